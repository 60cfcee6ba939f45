"""Servers to test, and a client that says exactly which frames came: no library between the test and the wire."""

from __future__ import annotations

import inspect
import socket
import struct
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio
import trio.testing

import trionet
from trionet.wire.frames import encode_frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"\x37\xfa\x21\x3d"

#: Seconds that a whole test may take on a busy machine, on the real clock.
GENEROUS = 20.0

_SERVER_OPTIONS = {
    "admission",
    "ssl_context",
    "lifespan",
    "pool_size",
    "limiter",
    "slot_grace",
    "max_detached",
    "max_connections",
    "max_opening",
    "resolution",
    "backend",
}


class Frame(NamedTuple):
    """A frame as it came."""

    opcode: int
    payload: bytes
    fin: bool = True


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return the bytes of a client's frame."""
    return encode_frame(opcode, payload, fin=fin, key=KEY)


def text(message: str) -> bytes:
    """Return the bytes of a client's text message."""
    return frame(TEXT, message.encode())


def close(code: int = 1000, reason: bytes = b"") -> bytes:
    """Return the bytes of a client's Close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def request(path: str = "/", *headers: str) -> bytes:
    """Return the bytes of a good handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Peer:
    """A client without manners of its own: it answers nothing unless the test does."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = bytearray()

    async def send(self, *pieces: bytes) -> None:
        """Send all in one write."""
        await self.stream.send_all(b"".join(pieces))

    async def say(self, message: str) -> None:
        """Send a text message."""
        await self.send(text(message))

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        self.data += data
        return bool(data)

    async def head(self) -> bytes:
        """Return the head of the response."""
        while b"\r\n\r\n" not in self.data:
            if not await self._more():
                return self.take(len(self.data))
        return self.take(self.data.index(b"\r\n\r\n") + 4)

    def take(self, size: int) -> bytes:
        """Remove bytes that came."""
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken

    async def status(self) -> int:
        """Return the status of the response."""
        return int((await self.head()).split()[1])

    async def frame(self) -> Frame | None:
        """Return the next frame; None at the end of the connection."""
        while (size := self._whole()) is None:
            if not await self._more():
                assert not self.data, f"the connection ended within a frame: {bytes(self.data[:20])}…"
                return None
        first, second = self.data[:2]
        assert not first & 0x70, "reserved bits set: the stream is corrupt"
        assert first & 15 in {0, 1, 2, 8, 9, 10}, "unknown opcode: the stream is corrupt"
        assert second < 128, "masked: the stream is corrupt"
        header = {126: 4, 127: 10}.get(second, 2)
        return Frame(first & 15, self.take(size)[header:], first >= 128)

    def _whole(self) -> int | None:
        """Return the size of the first frame, once it is there."""
        data = self.data
        if len(data) < 2:
            return None
        header, length = 2, data[1] & 127
        if length >= 126:
            header = 4 if length == 126 else 10
            if len(data) < header:
                return None
            length = int.from_bytes(data[2:header], "big")
        return header + length if len(data) >= header + length else None

    async def hear(self) -> str:
        """Return the next frame, which has to be a text message."""
        received = await self.frame()
        assert received is not None, "the connection ended"
        assert received.opcode == TEXT, received
        assert received.fin
        return received.payload.decode()

    async def closed(self) -> int:
        """Return the code of the next frame, which has to be a Close."""
        received = await self.frame()
        assert received is not None, "the connection ended without a Close"
        assert received.opcode == CLOSE, received
        return int.from_bytes(received.payload[:2], "big")

    async def ended(self) -> None:
        """Wait for the end of the connection, nothing may come before; then leave too."""
        assert not self.data, bytes(self.data[:100])
        assert not await self._more(), bytes(self.data[:100])
        await self.aclose()

    async def farewell(self, code: int) -> None:
        """Expect a Close, answer it, and see the connection end."""
        assert await self.closed() == code
        await self.send(close(code))
        await self.ended()

    async def echo(self, message: str = "well?") -> None:
        """Say something to an echo, and hear it."""
        await self.say(message)
        assert await self.hear() == message

    async def aclose(self) -> None:
        """Leave without a word."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Leave with a reset."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


class Serving:
    """A server under test and its clients."""

    def __init__(self, server: trionet.Server, protocol, stack: AsyncExitStack) -> None:
        self.server = server
        self.protocol = protocol
        self._stack = stack

    @property
    def port(self) -> int:
        """The first port."""
        return self.server.addresses[0][1]

    @property
    def url(self) -> str:
        """The first address, as clients want it."""
        return self.server.endpoints[0].url

    @property
    def connection(self) -> trionet.WebSocket:
        """The only connection."""
        [connection] = self.server.connections
        return connection

    async def dial(self, address=None, *, small: bool = False) -> Peer:
        """Connect. `small`: with little room in the kernel, so that a peer that does not read is soon noticed."""
        if isinstance(address, str):
            sock = trio.socket.socket(socket.AF_UNIX)
        else:
            sock = trio.socket.socket(socket.AF_INET)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for listener in self.server.listeners:
                listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer = Peer(trio.SocketStream(sock))
        await self._stack.enter_async_context(peer.stream)
        await sock.connect(address or ("127.0.0.1", self.port))
        return peer

    async def join(self, path: str = "/", *headers: str, address=None, small: bool = False) -> Peer:
        """Connect and shake hands."""
        peer = await self.dial(address, small=small)
        await peer.send(request(path, *headers))
        assert await peer.status() == 101
        return peer


@asynccontextmanager
async def serving(handler, **options):
    """Serve a handler (or a protocol, or endpoints); options of the server and of `WebSocketProtocol` may be mixed.

    Bounded: on the real clock by `GENEROUS` seconds, on a mock clock by an hour.
    """
    mocked = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    theirs = {name: options.pop(name) for name in _SERVER_OPTIONS & set(options)}
    protocol = (
        trionet.WebSocketProtocol(handler, **options)
        if isinstance(handler, trionet.WebSocketHandler) or inspect.isroutine(handler)
        else handler
    )
    with trio.fail_after(3600 if mocked else GENEROUS):
        async with (
            AsyncExitStack() as clients,
            trionet.open_server(protocol, "127.0.0.1", 0, **theirs) as server,
        ):
            yield Serving(server, protocol, clients)


async def until(condition, *, step: float = 0.001) -> None:
    """Wait until something is so; the enclosing deadline bounds it. On a clock that jumps take larger steps."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await trio.sleep(step)


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir()))


def tasks() -> int:
    """Return how many tasks live in this run."""
    return trio.lowlevel.current_statistics().tasks_living


class Echo(trionet.WebSocketHandler):
    """Answers each message with itself."""

    async def on_message(self, ws, message):
        await ws.send(message)


class Diary(trionet.WebSocketHandler):
    """Writes down what happens; echoes."""

    def __init__(self) -> None:
        self.seen = []

    async def on_upgrade(self, ws, request):
        self.seen.append("upgrade")

    async def on_open(self, ws):
        self.seen.append("open")

    async def on_message(self, ws, message):
        self.seen.append(message)
        await ws.send(message)

    async def on_close(self, ws, closed):
        self.seen.append(closed)


class Gated(trionet.WebSocketHandler):
    """Its first message waits at a gate; notes the others, and the ends."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.entered = trio.Event()
        self.seen = []
        self.ends = []
        self.ws = None

    async def on_message(self, ws, message):
        self.ws = ws
        if not self.entered.is_set():
            self.entered.set()
            await self.gate.wait()
        self.seen.append(message)

    async def on_close(self, ws, closed):
        self.ends.append(closed)


class Opened(trionet.WebSocketHandler):
    """Hands the connections out as they open, for tests that act from outside."""

    def __init__(self) -> None:
        self.arrived, self._open = [], trio.Event()
        self.seen = []
        self.ends = []

    async def on_open(self, ws):
        self.arrived.append(ws)
        self._open.set()

    async def on_message(self, ws, message):
        self.seen.append(message)

    async def on_close(self, ws, closed):
        self.ends.append(closed)

    async def first(self):
        """Return the first connection."""
        await self._open.wait()
        return self.arrived[0]


async def stall(ws, message: bytes = bytes(4096)) -> int:
    """Send to a peer that does not read until it is slow; returns how many messages it took."""
    count = 0
    while True:
        try:
            ws.send_nowait(message)
        except trio.WouldBlock:
            return count
        count += 1
        await trio.lowlevel.checkpoint()
