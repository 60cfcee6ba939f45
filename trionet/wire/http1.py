"""Pieces that any code speaking HTTP/1.1 shares: reason phrases, header fields, responses to refusals.

Nothing here reads a clock: the `Date` of a response (RFC 9110, 6.6.1) is handed in as bytes.
What an application hands in is checked where it is encoded, so that no name, value or phrase can start a
header line of its own; what fails raises `ConfigurationError`, because it is the application's fault.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from http import HTTPStatus

from trionet.errors import ConfigurationError, Rejection
from trionet.wire.tokens import VALUE, is_token

__all__ = ["build_rejection", "build_response", "encode_fields", "phrase", "refuse"]

# RFC 9110 renamed these; the standard library followed in Python 3.13 only.
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}

_VALUE = re.compile(rb"[%b]*+" % VALUE)

# What decides where a response ends, and whether another follows, is said by this module alone.
_FRAMING = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"trailer", b"transfer-encoding"}
)

_BODILESS = frozenset({204, 304})

_TEXT = ("Content-Type", "text/plain; charset=utf-8")


def phrase(status: int) -> str:
    """Return the reason phrase of `status`; empty when there is none registered."""
    return _PHRASES.get(status, "")


def refuse(status: int, body: str, headers: Iterable[tuple[str, str]] = ()) -> Rejection:
    """Return a `Rejection` with the registered phrase; `body` says what is wrong and what to do instead."""
    return Rejection(status, phrase(status), headers, f"{body}\n")


def _encode(text: str, what: str) -> bytes:
    """Return `text` as the bytes of a header value or a reason phrase (RFC 9110, 5.5; RFC 9112, 4)."""
    try:
        value = text.encode("latin-1")
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} can hold ISO 8859-1 only: {text!r}") from None
    if _VALUE.fullmatch(value) is None:
        raise ConfigurationError(f"{what} must not hold control characters: {text!r}")
    return value


def encode_fields(fields: Iterable[tuple[str, str]], forbidden: Container[bytes] = ()) -> bytes:
    """Return header lines, each ended by CRLF.

    A name that is not a token or is among `forbidden` (lower case), and a value that holds a line break or
    another control character, raise `ConfigurationError`.
    """
    lines = []
    for name, value in fields:
        raw = name.encode()
        if not is_token(raw):
            raise ConfigurationError(f"not a header name: {name!r}")
        if raw.lower() in forbidden:
            raise ConfigurationError(f"trionet sets the header {name!r} of this response itself")
        lines.append(b"%b: %b\r\n" % (raw, _encode(value, f"header {name}")))
    return b"".join(lines)


def build_response(
    status: int,
    date: bytes,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    reason: str = "",
    connection: bytes = b"",
    head_request: bool = False,
) -> bytes:
    """Return a whole final response with a body of known length.

    `connection` is the value of the `Connection` header, left out when empty. A response to HEAD says the
    length of the body and leaves it out (RFC 9110, 9.3.2); 204 and 304 have neither (RFC 9110, 8.6, 15.4.5).
    """
    if not 200 <= status <= 599:
        raise ConfigurationError(f"not the status of a final response: {status}")
    head = b"HTTP/1.1 %d %b\r\nDate: %b\r\n" % (status, _encode(reason or phrase(status), "reason"), date)
    if connection:
        head += b"Connection: %b\r\n" % connection
    head += encode_fields(headers, _FRAMING)
    if status in _BODILESS:
        return head + b"\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    return head if head_request else head + body


def build_rejection(
    rejection: Rejection, date: bytes, *, close: bool = True, head_request: bool = False
) -> bytes:
    """Return the response that tells a peer of `rejection`.

    `close` says `Connection: close`: set it unless the request was read whole and the connection goes on.
    What a status must bring with it is added when `rejection.headers` lack it: `Allow` to 405 (RFC 9110,
    15.5.6), `Upgrade` and `Sec-WebSocket-Version` to 426 (RFC 9110, 15.5.22; RFC 6455, 4.4).
    """
    if not 300 <= rejection.status <= 599:
        raise ConfigurationError(f"the status of a Rejection is 300 to 599, not {rejection.status}")
    headers = list(rejection.headers)
    names = {name.lower() for name, _ in headers}
    if rejection.status == 405 and "allow" not in names:
        headers.append(("Allow", "GET"))
    if rejection.status == 426 and "upgrade" not in names:
        headers.append(("Upgrade", "websocket"))
        if "sec-websocket-version" not in names:
            headers.append(("Sec-WebSocket-Version", "13"))
    body = rejection.body.encode() if isinstance(rejection.body, str) else rejection.body
    if rejection.status in _BODILESS:
        body = b""
    if body and "content-type" not in names:
        headers.insert(0, _TEXT)
    options = [b"close"] * close
    if rejection.status == 426 or "upgrade" in names:
        options.insert(0, b"Upgrade")  # whoever sends Upgrade says so in Connection (RFC 9110, 7.8)
    return build_response(
        rejection.status,
        date,
        headers,
        body,
        reason=rejection.reason,
        connection=b", ".join(options),
        head_request=head_request,
    )
