"""A client that sends whatever bytes it is told to, and says exactly what came back and how it ended."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import trio

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455, 1.3, and its answer
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"

# How a connection ended, seen from the peer.
FIN, RST, OPEN = "FIN", "RST", "still open"

GENEROUS = 10.0  # seconds; how long anything may take on a busy machine

FIELDS = {
    b"Host": b"example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def head(*extra: bytes, line: bytes = b"GET /chat HTTP/1.1", **changes: bytes | None) -> bytes:
    """Return a good handshake with lines changed (`upgrade=b"x"`), left out (`upgrade=None`), added (`extra`)."""
    fields = {name.lower().replace("_", "-").encode(): value for name, value in changes.items()}
    lines = [(name, fields.pop(name.lower(), value)) for name, value in FIELDS.items()]
    assert not fields, fields
    return b"\r\n".join([line, *(name + b": " + v for name, v in lines if v is not None), *extra, b"", b""])


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    width: int | None = None,
    declared: int | None = None,
) -> bytes:
    """Return a frame. `width`: bytes of length field (0, 2, 8); `declared`: a length other than the true one."""
    length = len(payload) if declared is None else declared
    if width is None:
        width = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[width]
    first = (fin << 7) | (rsv << 4) | opcode
    start = bytes([first, short | (0 if mask is None else 0x80)]) + (length.to_bytes(width) if width else b"")
    if mask is None:
        return start + payload
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size])
    return start + mask + (int.from_bytes(payload) ^ key).to_bytes(size)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """Return a masked Close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class Response(NamedTuple):
    """An HTTP response, and the bytes behind it."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """Return the value of a header that must not be repeated."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, self.headers
        return values[0] if values else None

    def tokens(self, name: str) -> set[str]:
        """Return the members of a list header."""
        return {t.strip().lower() for key, value in self.headers if key == name for t in value.split(",")} - {
            ""
        }


STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t -~\x80-\xff]*)")  # RFC 9112, 4
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t ]*(.*?)[\t ]*")  # RFC 9112, 5


def parse_response(data: bytes) -> Response:
    """Parse a response strictly: every line must match the grammar."""
    top, end, body = data.partition(b"\r\n\r\n")
    assert end, f"no complete response head: {data!r}"
    first, *lines = top.split(b"\r\n")
    start = STATUS_LINE.fullmatch(first)
    assert start, first
    headers = []
    for line in lines:
        field = FIELD_LINE.fullmatch(line)
        assert field, line
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", field[2]), line
        headers.append((field[1].decode().lower(), field[2].decode("latin-1")))
    return Response(int(start[1]), start[2].decode("latin-1"), headers, body)


def check_error_response(response: Response, *, method: str = "GET") -> None:
    """Check what RFC 9110 and 9112 ask of any final response that refuses a request."""
    if response.status < 500:  # 9110, 6.6.1: MUST in 2xx, 3xx, 4xx
        date = response.get("date")
        assert date, "no Date"
        assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date), (
            date
        )  # 5.6.7
        assert parsedate_to_datetime(date)
    assert "close" in response.tokens("connection"), "9112, 9.6: no `Connection: close` before closing"
    if response.status == 405:
        assert "get" in response.tokens("allow"), "9110, 15.5.6: 405 MUST list Allow"
    if response.status == 426:
        assert "websocket" in response.tokens("upgrade"), "9110, 15.5.22: 426 MUST send Upgrade"
        assert "upgrade" in response.tokens("connection"), "9110, 7.8: Upgrade needs the connection option"
        assert "13" in response.tokens("sec-websocket-version"), "6455, 4.4"
    assert response.get("transfer-encoding") is None
    length = response.get("content-length")
    assert length, "9110, 8.6: SHOULD send Content-Length"
    if method == "HEAD":
        assert response.body == b"", "9110, 9.3.2: MUST NOT send content"
    else:
        assert int(length) == len(response.body)
        if response.body:
            assert response.get("content-type"), "9110, 8.3: SHOULD send Content-Type"


def check_switch(response: Response) -> None:
    """Check what RFC 6455, 4.2.2 asks of the 101."""
    assert response.status == 101
    assert response.tokens("upgrade") == {"websocket"}
    assert response.tokens("connection") == {"upgrade"}
    assert response.get("sec-websocket-accept") == ACCEPT.decode()
    assert response.get("sec-websocket-extensions") is None
    assert response.get("content-length") is None, "9110, 8.6: MUST NOT in 1xx"
    assert response.get("transfer-encoding") is None


class Frame(NamedTuple):
    """A frame from the server."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int | None:
        """The close code."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2]) if self.payload else None


class Peer:
    """One raw connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = b""
        self.ended = OPEN
        self.cut: int | None = None  # errno of a send that found an RST: EPIPE after a FIN, else ECONNRESET

    async def send(self, data: bytes, *, chunk: int | None = None, pause: float | None = None) -> None:
        """Send; a connection that the server has closed is noted, not raised."""
        try:
            if chunk is None:
                await self.stream.send_all(data)
            else:
                for i in range(0, len(data), chunk):
                    await self.stream.send_all(data[i : i + chunk])
                    if pause is not None:
                        await trio.sleep(pause)
        except trio.BrokenResourceError as error:  # what was received before it is still there to be read
            self.cut = getattr(error.__cause__, "errno", None)

    def send_nowait(self, data: bytes) -> int:
        """Send what the kernel takes; return how much."""
        try:
            return os.write(self.stream.socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError as error:
            if getattr(error.__cause__, "errno", None) not in {errno.ECONNRESET, errno.EPIPE}:
                raise
            self.ended = RST
            return False
        if not data:
            self.ended = RST if self.cut == errno.ECONNRESET else FIN
            return False
        self.data += data
        return True

    async def read_response(self) -> Response:
        """Read one response head, leaving what is behind it."""
        with trio.fail_after(GENEROUS):
            while b"\r\n\r\n" not in self.data:
                assert await self._more(), f"{self.ended} after {self.data!r}"
        top, _, self.data = self.data.partition(b"\r\n\r\n")
        return parse_response(top + b"\r\n\r\n")

    async def read_frame(self) -> Frame | None:
        """Read one frame; None when the connection has ended at a frame border."""
        with trio.fail_after(GENEROUS):
            while (found := self._take()) is None:
                if not await self._more():
                    assert not self.data, f"{self.ended} in mid-frame: {self.data!r}"
                    return None
        return found

    def _take(self) -> Frame | None:
        data = self.data
        if len(data) < 2:
            return None
        assert not data[0] & 0x70, f"RSV bits without an extension: {data[:10]!r}"
        assert not data[1] & 0x80, f"a server MUST NOT mask (5.1): {data[:10]!r}"
        length, at = data[1], 2
        if length > 125:
            at = 4 if length == 126 else 10
            if len(data) < at:
                return None
            length = int.from_bytes(data[2:at])
            assert length > (125 if at == 4 else 65535), "a length not of minimal size (5.2)"
        if len(data) < at + length:
            return None
        self.data = data[at + length :]
        return Frame(data[0] & 15, data[at : at + length], bool(data[0] & 0x80))

    async def read_rest(self) -> bytes:
        """Read to the end of the connection; `ended` says which end it was."""
        with trio.fail_after(GENEROUS):
            while await self._more():
                pass
        return self.data

    async def read_to_close(self) -> list[Frame]:
        """Read all frames until the connection ends."""
        frames = []
        while (one := await self.read_frame()) is not None:
            frames.append(one)
        return frames

    async def open(self, *extra: bytes, **changes: bytes | None) -> None:
        """Do a good handshake."""
        await self.send(head(*extra, **changes))
        check_switch(await self.read_response())

    async def echo(self, payload: bytes = b"hello", opcode: int = TEXT) -> None:
        """Check that a message comes back."""
        await self.send(frame(opcode, payload))
        assert await self.read_frame() == (opcode, payload, True)

    async def leave(self) -> None:
        """Do a good closing handshake: the server answers, then closes first (RFC 6455, 7.1.1)."""
        await self.send(close(1000))
        assert await self.read_to_close() == [(CLOSE, struct.pack("!H", 1000), True)]
        assert self.ended == FIN

    def shut(self) -> None:
        """Send a FIN."""
        self.stream.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send an RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@asynccontextmanager
async def connect(address: tuple[str, int], *, receive_buffer: int | None = None):
    """Connect a `Peer`. `receive_buffer`: SO_RCVBUF, to be full soon."""
    sock = trio.socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Peer(trio.SocketStream(sock))
    finally:
        sock.close()


async def check_serves(address: tuple[str, int]) -> None:
    """Check that a well-behaved client is served."""
    async with connect(address) as peer:
        await peer.open()
        await peer.echo(b"still here?")
        await peer.leave()
