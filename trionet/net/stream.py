"""A connection given away: its descriptor as an ordinary Trio stream, behind the bytes that were read before."""

from __future__ import annotations

import operator
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import trio

if TYPE_CHECKING:
    from trionet.net.engine import Engine

__all__ = ["DetachedStream", "RawStream"]


class RawStream(Protocol):
    """What `DetachedStream` reads and writes: `trio.SocketStream`, or a stream that enciphers."""

    socket: Any

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]: ...
    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def wait_send_all_might_not_block(self) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class DetachedStream(trio.abc.HalfCloseableStream):
    """What `Connection.detach` returns, and what the handler of a `StreamProtocol` gets.

    A `trio.abc.HalfCloseableStream` like any other: checkpoints, errors and cancellation are Trio's. A `send_all` that
    is cancelled may have sent a part. Close it: until then it counts as a connection of the server, which closes it
    at a hard stop.
    """

    __slots__ = ("_draining", "_engine", "_on_drain", "_raw", "_unread", "addresses")

    def __init__(self, engine: Engine, raw: RawStream, unread: bytes = b"") -> None:
        self._engine = engine
        self._raw = raw
        self._unread = unread
        #: Set where a proxy told other addresses than the kernel knows: the peer's, and our own.
        self.addresses: tuple[Any, Any] | None = None
        self._draining = engine.draining
        self._on_drain: Callable[[], object] | None = None

    def __repr__(self) -> str:
        fd = self.socket.fileno()
        state = "closed" if fd < 0 else f"fd={fd}"
        return f"<DetachedStream {state}{f', {len(self._unread)} bytes unread' if self._unread else ''}>"

    @property
    def socket(self) -> Any:
        """The `trio.socket` object below. What it receives comes behind `unread`."""
        return self._raw.socket

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return not isinstance(self._raw, trio.SocketStream)

    @property
    def unread(self) -> bytes:
        """The bytes that were read before the connection was given away and not received since."""
        return self._unread

    @property
    def peer(self) -> Any:
        """The peer's address, as `Connection.peer`."""
        if self.addresses is not None:
            return self.addresses[0]
        try:
            return self.socket.getpeername() or None
        except OSError:
            return None

    @property
    def local(self) -> Any:
        """Our own address."""
        if self.addresses is not None:
            return self.addresses[1]
        try:
            return self.socket.getsockname() or None
        except OSError:
            return None

    # ------------------------------------------------------------ the stream

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive what there is, `max_bytes` at most; b"" at the end of the input. See `trio.abc.ReceiveStream`."""
        # Handlers spend their lives here: a coroutine of our own would cost each of them 235 bytes.
        return self._receive_unread(max_bytes) if self._unread else self._raw.receive_some(max_bytes)

    async def _receive_unread(self, max_bytes: int | None) -> bytes | bytearray:
        size = len(self._unread) if max_bytes is None else operator.index(max_bytes)
        if size < 1:
            raise ValueError("max_bytes must be >= 1")
        await trio.lowlevel.checkpoint()
        if not self._unread:  # another task took it meanwhile
            return await self._raw.receive_some(max_bytes)
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; waits while the peer is slow. See `trio.abc.SendStream`."""
        await self._raw.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might not block."""
        await self._raw.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Shut our side; the peer reads the end of the input, and we go on receiving."""
        await self._raw.send_eof()

    async def aclose(self) -> None:
        """Close it. A second call does nothing."""
        self._ended()
        await self._raw.aclose()

    def close_now(self) -> None:
        """Close without waiting. Who waits for this stream gets `trio.ClosedResourceError`."""
        self._ended()
        self.socket.close()

    def _ended(self) -> None:
        self._engine.stream_closed(self)
        self._unread = b""
        self._on_drain = None

    # ----------------------------------------------------------------- drain

    @property
    def on_drain(self) -> Callable[[], object] | None:
        """Called once when the server drains, at once if it does already; must not raise. None: nobody is told."""
        return self._on_drain

    @on_drain.setter
    def on_drain(self, function: Callable[[], object] | None) -> None:
        self._on_drain = function
        if function is not None and self._draining:
            function()

    def drain(self) -> None:
        """The server is going away: tell whoever uses it."""
        self._draining = True
        if self._on_drain is not None:
            self._on_drain()
