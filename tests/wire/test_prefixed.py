"""Length prefixes: what is encoded is found again, and what is too long is told by its first bytes."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet.errors import ConfigurationError, ProtocolError
from trionet.wire.prefixed import PrefixedFormat

FORMATS = [(width, order) for width in (1, 2, 4, 8) for order in ("big", "little")]


@pytest.mark.parametrize("width, order", FORMATS)
def test_the_bytes(width, order):
    """The length stands in front, in so many bytes, in this order."""
    form = PrefixedFormat(width, order, 200)
    assert form.encode(b"hello") == (5).to_bytes(width, order) + b"hello"
    assert form.encode(b"") == bytes(width)


@pytest.mark.parametrize("width, order", FORMATS)
@hypothesis.given(messages=st.lists(st.binary(max_size=255), max_size=5), start=st.integers(0, 3))
def test_whole_or_byte_by_byte(width, order, messages, start):
    """At every length of what came, `need` says what is missing, and never asks for more than the message."""
    form = PrefixedFormat(width, order, 255)
    data = bytes(start) + b"".join(map(form.encode, messages)) + b"\1"[: width - 1]
    found = []
    for message in messages:
        end = start + width + len(message)
        for size in range(start, end):
            assert size < form.need(data[:size], start) <= end
        assert form.need(data, start) == end
        found.append(data[start + width : end])
        start = end
    assert found == messages


@pytest.mark.parametrize("width, order", FORMATS)
def test_too_long(width, order):
    """The longest is read; one byte more is refused by its prefix alone, both ways."""
    form = PrefixedFormat(width, order, 100)
    assert form.need((100).to_bytes(width, order)) == width + 100
    with pytest.raises(ProtocolError, match="101 bytes; at most 100") as caught:
        form.need((101).to_bytes(width, order))
    assert caught.value.code == 1009
    form.encode(bytes(100))
    with pytest.raises(ValueError, match="101 bytes; at most 100"):
        form.encode(bytes(101))


@pytest.mark.parametrize(
    "wrong", [(3, "big", 1), (4, "middle", 1), (1, "big", 256), (2, "big", -1), (8, "big", 2**64)]
)
def test_formats_that_cannot_be(wrong):
    """They are told at once."""
    with pytest.raises(ConfigurationError):
        PrefixedFormat(*wrong)
