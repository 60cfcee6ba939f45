"""The opening handshake of RFC 6455 from the client's side: the request (4.1), and what to make of the answer.

`build_upgrade_request` makes the request; `ResponseReader` is fed what comes back, however it is cut into pieces, and
`check_upgrade_response` says whether that opens a WebSocket. `build_connect_request` is for an HTTP proxy in between.

What comes back is one of these:

    ====================================  ======================================================================
    not HTTP, or more than the limits     `ProtocolError` as soon as it is seen
    1xx other than 101                    skipped (RFC 9110, 15.2), eight of them at most
    101                                   the head, and `rest`: frames may follow it at once
    any other status                      the head, and the beginning of the body: `UpgradeRefused` carries both
    ====================================  ======================================================================

and `check_upgrade_response` takes a 101 for a WebSocket if all of this holds (4.1, list after item 12):

    1  HTTP/1.1, status 101
    2  Upgrade is "websocket", Connection lists "upgrade"; neither says more than once what it may say once
    3  Sec-WebSocket-Accept proves that our key was understood
    4  Sec-WebSocket-Protocol, if there: once, and a subprotocol that was offered
    5  Sec-WebSocket-Extensions, if there: only if extensions were offered (`deflate` checks which, and how)
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Iterable, Sequence

import attrs

from trionet.errors import ConfigurationError, ProtocolError
from trionet.wire.handshake import accept_key
from trionet.wire.http1 import encode_fields
from trionet.wire.tokens import TOKEN, VALUE, has_element, is_token
from trionet.wire.url import Target

__all__ = [
    "ResponseLimits",
    "ResponseReader",
    "UpgradeResponse",
    "basic_credentials",
    "build_connect_request",
    "build_upgrade_request",
    "check_upgrade_response",
]

# What the handshake says itself (4.1), and what would give the request a body.
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([%b]*+))?" % VALUE)
_FIELD = re.compile(rb"([%b]++):[ \t]*+([%b]*+)" % (TOKEN, VALUE))
_BEGINNING = b"HTTP/1."
_MAX_INFORMATIONAL = 8
_BODILESS = frozenset({204, 304})
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*+;[%b]*+)?" % VALUE)


# ------------------------------------------------------------------ requests


def build_upgrade_request(
    target: Target,
    key: bytes,
    *,
    subprotocols: Sequence[str] = (),
    extensions: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Return the opening handshake. `key`: 16 bytes from a source of strong randomness, fresh for each connection.

    `headers` are added; a Host among them takes the place of ours, Authorization that of what the URL says. Those
    that belong to the handshake, and what would inject others, raise `ConfigurationError`.
    """
    if len(key) != 16:
        raise ConfigurationError(f"a Sec-WebSocket-Key is made of 16 bytes, not {len(key)}")
    given = list(headers)
    names = {name.lower() for name, _ in given}
    if ours := sorted(names & _OURS):
        raise ConfigurationError(
            f"trionet sets the header {ours[0]!r} of an opening handshake itself; "
            "see the parameters subprotocols and compression"
        )
    fields = [] if "host" in names else [("Host", target.authority)]
    fields += [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", binascii.b2a_base64(key, newline=False).decode()),
        ("Sec-WebSocket-Version", "13"),
    ]
    if subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(_checked(subprotocols))))
    if extensions:
        fields.append(("Sec-WebSocket-Extensions", extensions))
    if target.user is not None and "authorization" not in names:
        fields.append(("Authorization", basic_credentials(target.user, target.password)))
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (target.resource.encode(), encode_fields(fields + given))


def build_connect_request(target: Target, proxy: Target) -> bytes:
    """Return the request that has `proxy` open a tunnel to `target` (RFC 9110, 9.3.6: always with the port)."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    fields = [("Host", f"{host}:{target.port}")]
    if proxy.user is not None:
        fields.append(("Proxy-Authorization", basic_credentials(proxy.user, proxy.password)))
    return b"CONNECT %b HTTP/1.1\r\n%b\r\n" % (fields[0][1].encode(), encode_fields(fields))


def basic_credentials(user: str, password: str) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    return "Basic " + binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()


def _checked(subprotocols: Sequence[str]) -> Sequence[str]:
    if isinstance(subprotocols, str):
        raise ConfigurationError(f"subprotocols is a list of names, not one: {subprotocols!r}")
    for name in subprotocols:
        if not is_token(name.encode()):
            raise ConfigurationError(f"not a subprotocol: {name!r}")
    if len(set(subprotocols)) != len(subprotocols):  # 4.1 item 10
        raise ConfigurationError(f"a subprotocol is offered twice: {list(subprotocols)!r}")
    return subprotocols


# ----------------------------------------------------------------- responses


@attrs.frozen
class ResponseLimits:
    """How much of a response is read, in bytes: its head, a line of it, and (of a refusal) its body."""

    total: int = 16384
    line: int = 8190
    headers: int = 100
    body: int = 4096


@attrs.frozen
class UpgradeResponse:
    """The head of a response to an opening handshake. Text is ISO 8859-1, as HTTP has it."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    minor: int = 1

    def header(self, name: str) -> str | None:
        """The value of a header, several lines of it joined by commas; None when it did not come."""
        name = name.lower()
        values = [value for other, value in self.headers if other.lower() == name]
        return ", ".join(values) if values else None

    def count(self, name: str) -> int:
        """How many lines of this header came."""
        name = name.lower()
        return sum(other.lower() == name for other, _ in self.headers)


class ResponseReader:
    """Takes the bytes of a response, in any pieces. `final`: statuses after which other bytes belong to the caller.

    Once `feed` (or `end`) has returned True, `response` is there, `rest` holds what followed the head of a final one
    (for 101 that is frames), and `body` the beginning of the body of any other.
    """

    __slots__ = ("_data", "_final", "_limits", "_scanned", "_skipped", "body", "complete", "response", "rest")

    def __init__(
        self, limits: ResponseLimits | None = None, *, final: range | tuple[int, ...] = (101,)
    ) -> None:
        self._limits = limits or ResponseLimits()
        self._final = final
        self._data = bytearray()
        self._scanned = 0
        self._skipped = 0
        self.response: UpgradeResponse | None = None
        self.rest = b""
        self.body = b""
        self.complete = False  # whether `body` is all of it

    def feed(self, data: bytes) -> bool:
        """Take more bytes; return whether that is enough. Raises `ProtocolError`."""
        self._data += data
        while self.response is None:
            end = self._data.find(b"\r\n\r\n", max(0, self._scanned - 3))
            self._scanned = len(self._data)
            if end < 0:
                self._glance()
                return False
            if end + 4 > self._limits.total:
                raise ProtocolError(f"a response head of more than {self._limits.total} bytes")
            response = _parse_head(bytes(self._data[:end]), self._limits)
            del self._data[: end + 4]
            self._scanned = 0
            if response.status in self._final:
                self.response, self.rest = response, bytes(self._data)
                self._data = bytearray()
                return True
            if response.status >= 200:
                self.response = response
            elif response.status == 101:
                raise ProtocolError("a 101 response to a request that did not ask for it")
            else:
                self._skipped += 1
                if self._skipped > _MAX_INFORMATIONAL:
                    raise ProtocolError(f"more than {_MAX_INFORMATIONAL} informational responses")
        return self._read_body(ended=False)

    def end(self) -> bool:
        """The connection has ended: return whether what came is enough for an answer."""
        return self.response is not None and (
            self.response.status in self._final or self._read_body(ended=True)
        )

    def _glance(self) -> None:
        """A head is not whole: see whether it can still become one."""
        data, limits = self._data, self._limits
        if data[:7] != _BEGINNING[: len(data)]:
            raise ProtocolError(_word_not_http(bytes(data)))
        if len(data) > limits.total:
            raise ProtocolError(f"a response head of more than {limits.total} bytes")
        if len(data) - data.rfind(b"\n") - 1 > limits.line + 1:
            raise ProtocolError(f"a line of more than {limits.line} bytes in the response head")

    def _read_body(self, *, ended: bool) -> bool:
        """Whether there is as much of the body as is wanted, or as will come."""
        response, limit = self.response, self._limits.body
        assert response is not None
        data = bytes(self._data)
        length = response.header("content-length")
        if response.status in _BODILESS:
            self.complete = True
        elif has_element((response.header("transfer-encoding") or "").encode("latin-1"), b"chunked"):
            self.body, self.complete = _dechunk(data)
            self.body = self.body[:limit]
            return self.complete or ended or len(data) >= 2 * limit
        elif length is not None and length.isascii() and length.isdigit() and len(length) < 16:
            self.body = data[: min(int(length), limit)]
            self.complete = len(data) >= int(length) <= limit
            return ended or len(data) >= min(int(length), limit)
        else:
            self.body = data[:limit]
            self.complete = ended and len(data) <= limit
            return ended or len(data) >= limit
        return True


def _parse_head(head: bytes, limits: ResponseLimits) -> UpgradeResponse:
    lines = head.split(b"\r\n")
    if len(lines) - 1 > limits.headers:
        raise ProtocolError(f"more than {limits.headers} header lines in the response")
    if max(map(len, lines)) > limits.line:
        raise ProtocolError(f"a line of more than {limits.line} bytes in the response head")
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise ProtocolError(_word_not_http(lines[0]))
    minor, status, reason = match.groups()
    headers = []
    for line in lines[1:]:
        field = _FIELD.fullmatch(line)
        if field is None:  # folded lines too (RFC 9112, 5.2)
            raise ProtocolError(f"the response has a malformed header line: {line[:80]!r}")
        name, value = field.groups()
        headers.append((name.decode(), value.rstrip(b" \t").decode("latin-1")))
    return UpgradeResponse(int(status), (reason or b"").decode("latin-1"), tuple(headers), int(minor))


def _word_not_http(data: bytes) -> str:
    if data[:1] in (b"\x15", b"\x16"):  # an alert, or a handshake (RFC 8446, 5.1)
        return "the server speaks TLS at this port; connect with wss://"
    if data[:5] == b"HTTP/":
        return f"not the status line of an HTTP/1.1 response: {data[:80]!r}"
    return f"the server does not speak HTTP at this port; its answer begins with {data[:40]!r}"


def _dechunk(data: bytes) -> tuple[bytes, bool]:
    """The body that is in `data` so far (RFC 9112, 7.1), and whether no more can be made of it."""
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        if not found:
            return body, len(line) > 256
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None or int(match[1], 16) == 0:
            return body, True
        size = int(match[1], 16)
        body += data[:size]
        if len(data) < size + 2:
            return body, False
        data = data[size + 2 :]


def check_upgrade_response(
    response: UpgradeResponse, key: bytes, subprotocols: Sequence[str] = (), *, extensions: bool = False
) -> tuple[str | None, str | None]:
    """Return the subprotocol and the extensions agreed on (None when none), if `response` opens a WebSocket.

    `key` and `subprotocols` are those of the request; `extensions`: whether any were offered. Raises `ProtocolError`
    for what the table above forbids. The status has to be 101: the caller knows what other statuses mean.
    """
    if response.status != 101 or response.minor < 1:
        raise ProtocolError(f"not a switch of protocols: HTTP/1.{response.minor} {response.status}")
    upgrade = response.header("upgrade") or ""
    if upgrade.lower() != "websocket":
        raise ProtocolError(f'Upgrade in the 101 response is {upgrade!r}, not "websocket"')
    if not has_element((response.header("connection") or "").encode("latin-1"), b"upgrade"):
        raise ProtocolError('Connection in the 101 response does not list "Upgrade"')
    accept = (response.header("sec-websocket-accept") or "").encode("latin-1")
    proof = accept_key(binascii.b2a_base64(key, newline=False))
    if not hmac.compare_digest(accept, proof):  # 4.1 item 4; two lines of it are joined, and so never right
        what = "is wrong" if accept else "is missing"
        raise ProtocolError(f"Sec-WebSocket-Accept {what}: the server did not understand the handshake")
    chosen = response.header("sec-websocket-protocol")
    if chosen is not None:
        if response.count("sec-websocket-protocol") > 1:  # 11.3.4
            raise ProtocolError("more than one Sec-WebSocket-Protocol in the response")
        if chosen not in subprotocols:
            raise ProtocolError(f"the server chose the subprotocol {chosen!r}, which was not offered")
    agreed = response.header("sec-websocket-extensions")
    if agreed is not None and not agreed.strip(" \t,"):
        agreed = None
    if agreed is not None and not extensions:
        raise ProtocolError(f"the server uses the extension {agreed!r}, which was not offered")
    return chosen, agreed
