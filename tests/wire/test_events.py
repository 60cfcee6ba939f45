"""Server-Sent Events as bytes, read back by the rules of WHATWG HTML, 9.2.6."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet import ConfigurationError
from trionet.wire.events import encode_comment, encode_event


def read_events(data):
    """Return (type, data, last event id) of each event, and the reconnection times, as a browser would."""
    lines = data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines.pop() == ""  # all ends with a line end
    events, retries = [], []
    kind, last, buffer = "", "", []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if buffer:
                events.append((kind or "message", "\n".join(buffer), last))
            kind, buffer = "", []
        elif name == "event":
            kind = value
        elif name == "data":
            buffer.append(value)
        elif name == "id" and "\0" not in value:
            last = value
        elif name == "retry" and value.isdigit():
            retries.append(int(value))
        else:
            assert name == ""  # a comment
    assert (kind, buffer) == ("", [])
    return events, retries


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("x",), b"data: x\n\n"),
        (("",), b"data: \n\n"),
        ((" x",), b"data:  x\n\n"),
        (("a\nb",), b"data: a\ndata: b\n\n"),
        (("a\r\nb\rc\n",), b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (("\u2028\x0b\x1c",), "data: \u2028\x0b\x1c\n\n".encode()),
        (("{}", "tick", "7"), b"event: tick\nid: 7\ndata: {}\n\n"),
        (("x", None, ""), b"id: \ndata: x\n\n"),
        ((None, None, None, 2.5), b"retry: 2500\n\n"),
        ((None, None, "7"), b"id: 7\n\n"),
        (("x", None, None, -1), b"retry: 0\ndata: x\n\n"),
        (("\u20ac",), b"data: \xe2\x82\xac\n\n"),
    ],
)
def test_an_event_is_these_bytes(arguments, expected):
    """Fields a line each, data line by line, an empty line at the end."""
    assert encode_event(*arguments) == expected


@pytest.mark.parametrize(
    "arguments",
    [("x", "a\nb"), ("x", "a\rb"), ("x", None, "a\r\nb"), ("x", None, "a\0b"), (None,)],
    ids=repr,
)
def test_no_field_can_start_another(arguments):
    """A line break in a type or an id, NUL in an id, and nothing at all are the application's mistake."""
    with pytest.raises(ConfigurationError):
        encode_event(*arguments)


@pytest.mark.parametrize("text, expected", [("", b":\n\n"), ("a\r\nb", b":a\n:b\n\n")])
def test_a_comment_is_skipped(text, expected):
    """Readers see nothing of it."""
    assert encode_comment(text) == expected
    assert read_events(expected) == ([], [])


LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))
EVENT = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | LINE,
    st.none() | LINE,
    st.none() | st.integers(0, 99),
)


@hypothesis.given(st.lists(EVENT))
def test_what_is_written_is_what_a_browser_reads(events):
    """Data comes with its line ends as LF; type, id and retry as they were."""
    data = b"".join(encode_event(*event) + encode_comment("c") for event in events)
    last, expected = "", []
    for text, kind, event_id, _ in events:
        last = last if event_id is None else event_id
        expected.append((kind or "message", text.replace("\r\n", "\n").replace("\r", "\n"), last))
    assert read_events(data) == (expected, [event[3] * 1000 for event in events if event[3] is not None])
