"""Request heads, read out of the receive buffer: strictly RFC 9112, and as little as possible is copied.

One pattern checks the whole head at C speed and one more fetches the few headers that matter. Both only
ever say yes; every no comes from `HeadScanner._judge`, which walks the lines and finds the *earliest*
fault, so the same bytes get the same answer however they were cut into pieces. A head that has not come
whole is judged when a line ends, when a byte comes that no line may hold, and once per KiB.

The order in which faults count (the first row that applies is answered):

    ======  ==========================================================================================
    status  fault, in the order of the bytes
    ======  ==========================================================================================
    400     more than 8 empty lines before the request line; bare CR or LF, NUL, controls; request line
            that is not `method SP target SP HTTP/d.d CRLF`
    501     a method of more than 32 bytes (RFC 9112, 3)
    414     request line longer than `HeadLimits.request_line`
    505     another major version than 1 (the request line has ended)
    501     a method that nobody has registered
    400     a target in a form that the method does not have (RFC 9112, 3.2)
    400     header line: no colon, space before the colon, folded (RFC 9112, 5.1, 5.2), controls
    431     header line, number of headers, or head beyond `HeadLimits`
    then    the head has ended, and counts:
    400     Host: repeated, invalid, missing; Origin repeated
    400     framing: Transfer-Encoding in HTTP/1.0 or beside Content-Length, "chunked" not last, a
            Content-Length that is no number or has two values
    413     a Content-Length that no file system could hold
    501     a transfer coding other than "chunked"
    ======  ==========================================================================================

`handshake.check_upgrade` goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from trionet.errors import ConfigurationError
from trionet.wire.head_rules import read_framing, read_host, read_request_line
from trionet.wire.http1 import refuse
from trionet.wire.request import Request
from trionet.wire.tokens import TOKEN, VALUE, is_token

__all__ = ["HeadLimits", "HeadScanner"]

# "A method longer than any that it implements" is 501 too (RFC 9112, 3): no need to wait for its end.
_LONGEST_METHOD = 32

_PARTS = {
    b"T": TOKEN,
    b"V": VALUE,
    # No spaces, no fragment (RFC 9112, 3.2), nothing beyond ASCII, no `"<>`. RFC 3986 has no \^`{|}[] and no bare
    # % there either, but browsers send these as they are (WHATWG URL, query percent-encode set).
    b"U": rb"\x21\x24-\x3b\x3d\x3f-\x7e",
    b"N": b"%d" % _LONGEST_METHOD,
}


def _pattern(text: bytes) -> re.Pattern[bytes]:
    """Compile `text`, in which <T>, <V>, <U> and <N> stand for the parts above."""
    return re.compile(re.sub(rb"<(.)>", lambda part: _PARTS[part[1]], text))


_BLANKS = _pattern(rb"(?:\r\n){0,8}+")
_HEAD = rb"([<T>]{1,<N>}+) ([<U>]++) HTTP/([0-9])\.([0-9])\r\n((?:[<T>]++:[<V>]*+\r\n){0,%d}+)\r\n"
# The longest beginning of a well-formed line: where it stops before the data does, there is the fault.
_REQUEST_LINE = _pattern(
    rb"(?:[<T>]{1,<N>}+(?: (?:[<U>]++(?: (?:H(?:T(?:T(?:P(?:/(?:[0-9](?:\.(?:[0-9]"
    rb"(?:\r\n?)?)?)?)?)?)?)?)?)?)?)?)?)?"
)
_HEADER_LINE = _pattern(rb"(?:[<T>]++(?::[<V>]*+(?:\r\n?)?)?)?")
_FIELD = _pattern(rb"([^:\r]++):[ \t]*+((?:[^\r]*[^ \t\r])?)[ \t]*+\r\n")
# Bytes that end a line or that no line may hold.
_TELLING = _pattern(rb"[\x00-\x08\x0a-\x1f\x7f]")

_CR, _LF, _SP, _HTAB, _COLON, _TLS_HANDSHAKE = b"\r\n \t:\x16"

_HANDSHAKE = (
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"origin",
    b"sec-websocket-extensions",
    b"sec-websocket-key",
    b"sec-websocket-protocol",
    b"sec-websocket-version",
    b"transfer-encoding",
    b"upgrade",
)
_NEVER: frozenset[bytes] = frozenset()

HeaderCallback = Callable[[memoryview, memoryview], object]


@attrs.frozen
class HeadLimits:
    """How much of a request head is read, in bytes; lines are counted without their CRLF.

    A peer that sends a too long line in small pieces is told so when the KiB is full in which it became too
    long.
    """

    request_line: int = 8190
    header_line: int = 8190
    headers: int = 100  # number of header lines
    total: int = 16384  # the head from its first byte to its last, skipped empty lines included

    def __attrs_post_init__(self) -> None:
        if min(self.request_line, self.header_line, self.headers, self.total) < 1:
            raise ConfigurationError(f"limits of a request head must be positive: {self}")
        if self.total <= max(self.request_line, self.header_line):
            raise ConfigurationError(f"a request head must have room for its longest line: {self}")


class HeadScanner:
    """Finds and checks request heads; one object serves all connections, it holds settings only.

    `names` are the headers (lower case) that `Request.headers` keeps. `on_header(name, value)` is called,
    once a whole head was found good, for each header that the handshake does not use itself, in order, with
    memoryviews of the buffer that are released when it returns: copy (`bytes(value)`) what you keep. Using
    a view later raises ValueError. Do not keep slices of one: they pin the buffer.
    """

    __slots__ = ("_fields", "_head", "_limits", "_names", "_on_header", "_short")

    def __init__(
        self,
        limits: HeadLimits | None = None,
        names: frozenset[bytes] = frozenset({b"cookie"}),
        on_header: HeaderCallback | None = None,
    ) -> None:
        for name in names:
            if not is_token(name) or name != name.lower():
                raise ConfigurationError(f"not a header name in lower case: {name!r}")
        self._limits = limits = limits or HeadLimits()
        self._names = names
        self._on_header = on_header
        # Below this size no line of a head can be too long.
        self._short = min(limits.request_line, limits.header_line)
        self._head = _pattern(_HEAD % limits.headers)
        wanted = b"|".join(re.escape(name) for name in sorted(names.union(_HANDSHAKE)))
        self._fields = re.compile(rb"\n((?i:%b)):([^\r]*+)" % wanted)

    def scan(self, data: bytes | bytearray, searched: int = 0) -> Request | None:
        """Return the request whose head `data` begins with; None when it has not come whole.

        Call again with more bytes appended and `searched` set to the length that gave None: what was
        looked at is not looked at again. A head that is wrong, or cannot become right, raises `Rejection`;
        the connection is to be closed after the answer, as nobody knows where the next request begins.
        """
        skipped = _BLANKS.match(data).end() if data[:1] == b"\r" else 0  # type: ignore[union-attr]
        # Most heads come whole: what begins with one needs no look for its end.
        match = None if searched else self._head.match(data, skipped)
        if match is None or match.end() > self._short:
            if data.find(b"\r\n\r\n", max(searched - 3, skipped)) < 0:
                self._glance(data, searched)
                return None
            match = self._head.match(data, skipped)
            if match is None or match.end() > self._short:
                self._judge(data, 0)
        assert match is not None  # `_judge` has words for all that the pattern refuses
        method, target, major, minor = match.group(1, 2, 3, 4)
        if target[0] == 47 and major == b"1" and method == b"GET":
            authority = None
        else:
            authority, target = read_request_line(method, target, major)
        start, end = match.span(5)

        fields = self._fields.findall(data, start - 1, end)  # from the LF before the first name
        # OWS is all the pattern lets be stripped.
        found = {name.lower(): value.strip() for name, value in fields}
        repeated = _NEVER if len(found) == len(fields) else _join_repeated(fields, found)
        kept: dict[str, list[str]] = {}
        for name in self._names:
            if name in found:
                kept[name.decode()] = [
                    value.strip().decode("latin-1") for other, value in fields if other.lower() == name
                ]

        one_dot = 0 if minor == b"0" else 1
        host = read_host(found.get(b"host"), authority, repeated, one_dot, target)
        if repeated and b"origin" in repeated:
            raise refuse(400, "More than one Origin header; send one.")
        length, chunked = None, False
        if b"content-length" in found or b"transfer-encoding" in found:
            length, chunked = read_framing(
                found.get(b"content-length"), found.get(b"transfer-encoding"), one_dot
            )
        request = Request(
            method, target, one_dot, host, found, kept, repeated, match.end(), skipped, length, chunked
        )
        if self._on_header is not None:
            _show(self._on_header, data, start, end)
        return request

    def _glance(self, data: bytes | bytearray, searched: int) -> None:
        """Judge a head that is not whole, if what came since `searched` can have made it wrong.

        Every line is looked at when it ends and once per KiB, so a peer that sends byte by byte costs a
        small multiple of its bytes. The first 64 bytes are always looked at: they tell what is not HTTP.
        """
        if searched > 64 and searched >> 10 == len(data) >> 10 and not _TELLING.search(data, searched - 1):
            return
        self._judge(data, data.rfind(b"\n", 0, searched) + 1)

    def _judge(self, data: bytes | bytearray, line: int) -> None:
        """Raise the `Rejection` for the earliest fault; return if the head is whole or more bytes can complete it."""
        limits = self._limits
        end = min(len(data), limits.total)
        first = _BLANKS.match(data).end()  # type: ignore[union-attr] # it matches the empty string
        if line <= first:
            line = _judge_request_line(data, first, end, limits.request_line)
        # Counting is the one thing done again for each line: a memchr, and only `limits.headers` times.
        count = data.count(b"\n", first, line) - 1
        while line < end:
            if data[line] == _CR:
                if line + 1 == end:
                    break
                if data[line + 1] == _LF:
                    return
                raise refuse(400, "A bare CR; end every line with CR LF.")
            if count == limits.headers:
                raise refuse(431, f"More than {limits.headers} header lines; send fewer.")
            stop = _stop(_HEADER_LINE, data, line, end)
            if _length(data, line, stop) > limits.header_line:
                raise refuse(431, f"A header line of more than {limits.header_line} bytes; send less.")
            if data[stop - 1] == _LF and stop > line:
                line = stop
                count += 1
                continue
            if stop < end:
                raise refuse(400, _word_header_fault(data, line, stop, count))
            break
        if len(data) >= limits.total:
            raise refuse(431, f"A request head of more than {limits.total} bytes; send less.")


def _join_repeated(fields: list[tuple[bytes, bytes]], found: dict[bytes, bytes]) -> frozenset[bytes]:
    """Make one list of the lines of a name that came more than once (RFC 9110, 5.3); return these names."""
    seen: dict[bytes, bytes] = {}
    repeated = set()
    for name, value in ((name.lower(), value.strip()) for name, value in fields):
        if name in seen:
            repeated.add(name)
            seen[name] += b", " + value
        else:
            seen[name] = value
    found.update(seen)
    return frozenset(repeated)


def _stop(pattern: re.Pattern[bytes], data: bytes | bytearray, line: int, end: int) -> int:
    """Return where the well-formed beginning of the line at `line` stops."""
    return pattern.match(data, line, end).end()  # type: ignore[union-attr] # both match the empty string


def _length(data: bytes | bytearray, line: int, stop: int) -> int:
    """Return the bytes from `line` to `stop` without the CR or CRLF at their end."""
    if data[stop - 1] == _LF:
        stop -= 1
    if data[stop - 1] == _CR:
        stop -= 1
    return stop - line


def _judge_request_line(data: bytes | bytearray, line: int, end: int, limit: int) -> int:
    """Raise the earliest fault of the request line at `line`; return its end, or `end` if it is not whole."""
    stop = _stop(_REQUEST_LINE, data, line, end)
    if stop > line and _length(data, line, stop) > limit:
        raise refuse(414, f"A request line of more than {limit} bytes; use a shorter address.")
    if stop > line and data[stop - 1] == _LF:
        method, target, version = bytes(data[line : stop - 2]).split(b" ")
        read_request_line(method, target, version[5:6])
        return stop
    if stop < end and not (data[stop] == _CR and stop == line and stop + 1 == end):
        bad = data[stop]
        spaces = data.count(b" ", line, stop)
        if spaces == 0 and stop - line == _LONGEST_METHOD and is_token(bytes((bad,))):
            raise refuse(501, f"A method of more than {_LONGEST_METHOD} bytes is not implemented here.")
        raise refuse(400, _word_request_fault(data, line, stop, spaces))
    return end


def _word_line_end(data: bytes | bytearray, line: int, stop: int) -> str | None:
    """Return words for the faults that any line can have at `stop`."""
    if stop > line and data[stop - 1] == _CR:
        return "A bare CR; end every line with CR LF."
    if data[stop] == _LF:
        return "A bare LF; end every line with CR LF."
    if data[stop] == 0:
        return "A NUL byte in the request head; leave it out."
    return None


def _word_request_fault(data: bytes | bytearray, line: int, stop: int, spaces: int) -> str:
    """Return words for the fault at `stop` of a request line; `spaces` come before it."""
    bad = data[stop]
    if bad == _TLS_HANDSHAKE and stop == line:
        return "This looks like TLS, but TLS is not spoken here; use ws:// or http://."
    if bad == _CR and stop == line:
        # Either an empty line too many, or a CR that no LF follows.
        return "Too many empty lines, or a bare CR, before the request line; begin with the method."
    if words := _word_line_end(data, line, stop):
        return words
    if spaces == 1 and bad == 35:
        return "A fragment in the request target; leave out what follows the #."
    if spaces == 1 and (bad < 32 or bad > 126) and bad != _CR:
        return "Bytes in the request target that an address cannot hold; percent-encode them."
    return "Not a request line; send method, target and version with one space between."


def _word_header_fault(data: bytes | bytearray, line: int, stop: int, count: int) -> str:
    """Return words for the fault at `stop` of the header line that begins at `line` after `count` others."""
    bad = data[stop]
    if bad in {_SP, _HTAB} and stop == line:
        if count:
            return "A folded header line (RFC 9112, 5.2); put the header on one line."
        return "White space before the first header (RFC 9112, 2.2); leave it out."
    if words := _word_line_end(data, line, stop):
        return words
    if data.find(b":", line, stop) >= 0:
        return "A control character in a header value; leave it out."
    if bad == _CR:
        return "A header line without a colon; send name, colon and value."
    if bad == _COLON:
        return "A header without a name; send name, colon and value."
    if bad in {_SP, _HTAB}:
        return "White space in or behind a header name (RFC 9112, 5.1); put the colon right behind the name."
    return "A character that a header name cannot hold; use letters, digits and hyphens."


def _show(on_header: HeaderCallback, data: bytes | bytearray, start: int, end: int) -> None:
    """Call `on_header` with views of those headers from `start` to `end` that the handshake leaves alone."""
    # All places first: while a pattern walks over a bytearray, nobody can resize it.
    places = [(field.span(1), field.span(2)) for field in _FIELD.finditer(data, start, end)]
    with memoryview(data) as whole:
        for name_place, value_place in places:
            name, value = whole[slice(*name_place)], whole[slice(*value_place)]
            try:
                if bytes(name).lower() not in _HANDSHAKE:
                    on_header(name, value)
            finally:
                name.release()
                value.release()
