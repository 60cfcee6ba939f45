"""Responses are framed exactly, and nothing an application hands in starts a header line of its own."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionet.errors import ConfigurationError, Rejection
from trionet.wire.http1 import build_rejection, build_response, encode_fields, phrase, refuse

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"


def test_phrases_are_those_of_rfc_9110_on_every_python():
    """The phrases that changed with RFC 9110 do not depend on the standard library's age."""
    assert [phrase(status) for status in (404, 413, 414, 422, 426, 431, 599)] == [
        "Not Found",
        "Content Too Large",
        "URI Too Long",
        "Unprocessable Content",
        "Upgrade Required",
        "Request Header Fields Too Large",
        "",
    ]


REJECTIONS = {
    "plain": (
        Rejection(403, body="No entry."),
        (
            b"HTTP/1.1 403 Forbidden\r\nDate: %b\r\nConnection: close\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\r\nNo entry."
        ),
    ),
    "own phrase and headers": (
        Rejection(401, "Who Are You", [("WWW-Authenticate", "Bearer"), ("X-A", "1\t2")], "é"),
        (
            b"HTTP/1.1 401 Who Are You\r\nDate: %b\r\nConnection: close\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b"WWW-Authenticate: Bearer\r\nX-A: 1\t2\r\nContent-Length: 2\r\n\r\n\xc3\xa9"
        ),
    ),
    "own content type": (
        Rejection(400, headers=[("content-type", "application/json")], body=b"{}"),
        (
            b"HTTP/1.1 400 Bad Request\r\nDate: %b\r\nConnection: close\r\ncontent-type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        ),
    ),
    "redirect without a body": (
        Rejection(307, headers=[("Location", "/elsewhere")]),
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nDate: %b\r\nConnection: close\r\nLocation: /elsewhere\r\n"
            b"Content-Length: 0\r\n\r\n"
        ),
    ),
    "no phrase registered": (
        Rejection(599),
        b"HTTP/1.1 599 \r\nDate: %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ),
    "304 has no body": (
        Rejection(304, headers=[("ETag", '"x"')], body="ignored"),
        (b'HTTP/1.1 304 Not Modified\r\nDate: %b\r\nConnection: close\r\nETag: "x"\r\n\r\n'),
    ),
    "405 says what is allowed": (
        Rejection(405),
        (
            b"HTTP/1.1 405 Method Not Allowed\r\nDate: %b\r\nConnection: close\r\nAllow: GET\r\n"
            b"Content-Length: 0\r\n\r\n"
        ),
    ),
    "405 with its own list": (
        Rejection(405, headers=[("Allow", "GET, HEAD")]),
        (
            b"HTTP/1.1 405 Method Not Allowed\r\nDate: %b\r\nConnection: close\r\nAllow: GET, HEAD\r\n"
            b"Content-Length: 0\r\n\r\n"
        ),
    ),
    "426 says to what": (
        Rejection(426),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nDate: %b\r\nConnection: Upgrade, close\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n"
        ),
    ),
    "426 to something else": (
        Rejection(426, headers=[("Upgrade", "TLS/1.3")]),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nDate: %b\r\nConnection: Upgrade, close\r\nUpgrade: TLS/1.3\r\n"
            b"Content-Length: 0\r\n\r\n"
        ),
    ),
    "426 with a version of its own": (
        Rejection(426, headers=[("Sec-WebSocket-Version", "13, 8")]),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nDate: %b\r\nConnection: Upgrade, close\r\n"
            b"Sec-WebSocket-Version: 13, 8\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
        ),
    ),
}


@pytest.mark.parametrize("name", REJECTIONS)
def test_rejections_to_the_byte(name):
    """Each refusal is one exact response, which h11 reads as the same status and body."""
    rejection, expected = REJECTIONS[name]
    response = build_rejection(rejection, DATE)
    assert response == expected % DATE
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    assert client.next_event().status_code == rejection.status
    while type(event := client.next_event()) is h11.Data:
        assert response.endswith(bytes(event.data))
    assert type(event) is h11.EndOfMessage


def test_head_says_the_length_and_sends_no_body():
    """A refused HEAD request gets the header lines of the GET response alone (RFC 9110, 9.3.2)."""
    rejection = refuse(404, "Nothing here.")
    whole = build_rejection(rejection, DATE)
    assert build_rejection(rejection, DATE, head_request=True) == whole.removesuffix(b"Nothing here.\n")


def test_a_connection_that_goes_on_is_not_closed():
    """Without `close` the response says nothing about the connection, except where Upgrade needs it."""
    assert b"Connection" not in build_rejection(refuse(404, "x"), DATE, close=False)
    assert b"Connection: Upgrade\r\n" in build_rejection(Rejection(426), DATE, close=False)


def test_a_response_of_another_kind():
    """`build_response` serves any final status; 204 has no length."""
    assert build_response(200, DATE, [("X", "1")], b"ok") == (
        b"HTTP/1.1 200 OK\r\nDate: %b\r\nX: 1\r\nContent-Length: 2\r\n\r\nok" % DATE
    )
    assert build_response(204, DATE) == b"HTTP/1.1 204 No Content\r\nDate: %b\r\n\r\n" % DATE


@pytest.mark.parametrize("status", [100, 101, 199, 600, 1000, 0, -1])
def test_only_final_statuses(status):
    """A status that a final response cannot have is a mistake in the settings, not on the wire."""
    with pytest.raises(ConfigurationError, match="final response"):
        build_response(status, DATE)


@pytest.mark.parametrize("status", [101, 200, 299, 600])
def test_a_refusal_is_no_success(status):
    """A `Rejection` cannot say that all went well, nor that the protocol was switched."""
    with pytest.raises(ConfigurationError, match="300 to 599"):
        build_rejection(Rejection(status), DATE)


INJECTIONS = [
    "a\r\nSet-Cookie: x=1",
    "a\nb",
    "a\rb",
    "\x00",
    "a\x7f",
    "\x1b[0m",
    "a\x0bb",
    "\u20ac",
    "\u010a",
    "a\r\n\r\n<p>",
]


@pytest.mark.parametrize("value", INJECTIONS, ids=ascii)
def test_values_cannot_inject(value):
    """A header value or a phrase with a line break, a control, or letters that shrink to one, is refused."""
    with pytest.raises(ConfigurationError):
        encode_fields([("X", value)])
    with pytest.raises(ConfigurationError):
        build_rejection(Rejection(400, reason=value), DATE)


@pytest.mark.parametrize(
    "name", ["", "a b", "a:", "a\r\nb", "a\n", "a\x00", "\xe9", "\u20ac", "a(b)"], ids=ascii
)
def test_names_cannot_inject(name):
    """A header name that is not a token is refused."""
    with pytest.raises(ConfigurationError, match="not a header name"):
        encode_fields([(name, "x")])


@pytest.mark.parametrize(
    "name", ["Connection", "CONTENT-LENGTH", "Transfer-Encoding", "date", "Trailer", "Keep-Alive"]
)
def test_framing_cannot_be_overridden(name):
    """Where a response ends, and whether another follows, is not for a `Rejection` to say."""
    with pytest.raises(ConfigurationError, match="sets the header"):
        build_rejection(Rejection(400, headers=[(name, "1")]), DATE)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=12)), max_size=3))
def test_whatever_is_encoded_stays_on_its_line(fields):
    """Any names and values are either refused, or come out as just so many lines."""
    try:
        block = encode_fields(fields)
    except ConfigurationError:
        return
    assert block.count(b"\r\n") == block.count(b"\n") == block.count(b"\r") == len(fields)
    assert block.split(b"\r\n")[:-1] == [f"{name}: {value}".encode("latin-1") for name, value in fields]
