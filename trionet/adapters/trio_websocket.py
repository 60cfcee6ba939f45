"""A task and a `trio_websocket.WebSocketConnection` for each connection. Needs the extra ``trionet[trio-websocket]``.

    handshake   ours, in event mode: limits, origin check, `on_upgrade`; no task for a peer that dawdles
    queued      there are `max_tasks` tasks. Left when one ends
    served      the head is replayed to trio-websocket, which answers it; from then on all is trio-websocket's
    closing     1000 when the handler returns, 1011 when it raises, 1001 at drain; `close_timeout` bounds it

trio-websocket's own servers end, with every connection, when one handler raises; here that costs its own connection.
Not repaired: a `send_message` that is cancelled while the peer is slow leaves half a frame behind, and what is sent
next corrupts the stream. Straight-line handlers (`trionet.WebSocketProtocol`) have neither fault, and cost a tenth.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Literal, cast

import trio
import trio_websocket

from trionet.adapters._tasks import ConnectionTasks
from trionet.adapters.stream import name_of
from trionet.errors import nothing_but
from trionet.net.connection import OPENING
from trionet.net.engine import Engine
from trionet.net.stream import DetachedStream
from trionet.protocols.channel import WebSocket
from trionet.protocols.websocket import Accept, WebSocketHandler, WebSocketProtocol
from trionet.wire.forwarded import TrustedProxies
from trionet.wire.handshake import HeadLimits, Request

__all__ = ["TrioWebSocketConnection", "TrioWebSocketProtocol"]

log = logging.getLogger("trionet")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Replay(trio.abc.Stream):
    """The head first, then, once it is answered, the stream: wsproto forgets to look at frames that come before."""

    __slots__ = ("_answered", "_head", "stream")

    def __init__(self, head: bytes, stream: DetachedStream) -> None:
        self._head = head
        self.stream = stream
        self._answered: trio.Event | None = trio.Event()

    def answered(self) -> None:
        """The head has been answered."""
        if self._answered is not None:
            self._answered.set()
            self._answered = None

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        return (
            self.stream.receive_some(max_bytes) if self._answered is None else self._receive_head(max_bytes)
        )

    async def _receive_head(self, max_bytes: int | None) -> bytes | bytearray:
        if self._head:
            await trio.lowlevel.checkpoint()
            size = max_bytes or len(self._head)
            head, self._head = self._head[:size], self._head[size:]
            return head
        if self._answered is not None:
            await self._answered.wait()
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.answered()
        await self.stream.aclose()


class TrioWebSocketConnection(trio_websocket.WebSocketConnection):
    """What handlers get: a `WebSocketConnection` that knows its addresses, and what `on_upgrade` left in `data`."""

    #: What `on_upgrade` stored in ``ws.data``.
    data: Any = None
    _stream: _Replay

    @property
    def local(self) -> Any:
        """Our own address: an `Endpoint`, or the path of a Unix socket."""
        return _endpoint(self._stream.stream.local, self._stream.stream)

    @property
    def remote(self) -> Any:
        """The peer's address; None when it has gone, and on a Unix socket."""
        return _endpoint(self._stream.stream.peer, self._stream.stream)


def _endpoint(address: Any, stream: DetachedStream) -> Any:
    if isinstance(address, tuple):
        return trio_websocket.Endpoint(address[0], address[1], is_ssl=stream.secure)
    return address


class TrioWebSocketProtocol(WebSocketProtocol):
    """Runs ``await handler(ws)`` in a task for each connection; `ws` is a `trio_websocket.WebSocketConnection`.

    The handler is called when the connection is open, and closes it by returning. Settings of the handshake are those
    of `WebSocketProtocol`; what its `on_upgrade` stores in ``ws.data`` is the handler's ``ws.data``. `max_message` is
    counted by trio-websocket: bytes, or characters of text. `message_queue_size`: messages kept for a handler that is
    busy. `max_tasks`: how many run at once; beyond, nothing is accepted here, and handshakes wait. trio-websocket
    sends no keepalive pings: a handler that may wait for long sends its own.
    """

    def __init__(
        self,
        handler: Callable[[TrioWebSocketConnection], Awaitable[object]],
        *,
        on_upgrade: Callable[[WebSocket, Request], Awaitable[Accept | None]] | None = None,
        subprotocols: Iterable[str] = (),
        origins: Literal["*"] | Iterable[str] | None = None,
        headers: Iterable[str] = ("cookie",),
        on_header: Callable[[memoryview, memoryview], object] | None = None,
        http: Any = None,
        trusted_proxies: TrustedProxies | Iterable[str] | None = None,
        head_limits: HeadLimits | None = None,
        handshake_timeout: float | None = 10.0,
        close_timeout: float = 10.0,
        max_message: int = 2**20,
        message_queue_size: int = 1,
        max_tasks: int = 10_000,
    ) -> None:
        super().__init__(
            WebSocketHandler(),
            on_upgrade=on_upgrade,
            subprotocols=subprotocols,
            origins=origins,
            headers=headers,
            on_header=on_header,
            http=http,
            trusted_proxies=trusted_proxies,
            head_limits=head_limits,
            handshake_timeout=handshake_timeout,
            close_timeout=close_timeout,
            max_message=max_message,
            ping_interval=None,
        )
        self.message_queue_size = message_queue_size
        self.tasks = ConnectionTasks(max_tasks, f"trionet trio-websocket {name_of(handler)}")
        self.hand_over = self._hand_over
        self._handler = handler

    @property
    def failures(self) -> int:
        """Handlers that raised."""
        return self.tasks.failures

    def full(self) -> bool:
        """Whether there are `max_tasks` tasks."""
        return self.tasks.full

    async def _hand_over(self, ws: WebSocket, request: Request, head: bytes, answer: Accept | None) -> None:
        """The handshake is good: trio-websocket reads it again, and answers it."""
        engine = ws.engine
        subprotocol = ws.subprotocol
        extra = [(n.encode(), v.encode("latin-1")) for n, v in answer.headers] if answer is not None else []
        try:
            await self.tasks.wait_place(engine.pool)
            if ws._state & 7 != OPENING or ws.closed is not None:  # it left meanwhile
                return
            if engine.draining:
                self.drain(ws)
                return
            if request.expects_continue:  # 9110, 7.8: MUST be sent before a 101
                ws.write(_CONTINUE)
            stream = await ws.detach()
            self.tasks.start(engine, stream, self._serve, engine, head, extra, subprotocol, ws.data)
        finally:
            self.tasks.invite()

    @trio.lowlevel.disable_ki_protection
    async def _serve(
        self,
        stream: DetachedStream,
        engine: Engine,
        head: bytes,
        extra: list[tuple[bytes, bytes]],
        subprotocol: str | None,
        data: Any,
    ) -> None:
        failure: Exception | None = None
        replay = _Replay(head, stream)
        del head
        try:
            async with trio.open_nursery() as nursery:
                accepted = None
                with trio.move_on_after(self.handshake_timeout or float("inf")):
                    proposal = await trio_websocket.wrap_server_stream(
                        nursery, replay, self.message_queue_size, self.max_message
                    )
                    accepted = await proposal.accept(subprotocol=subprotocol, extra_headers=extra)
                    del proposal
                    replay.answered()
                if accepted is None:  # its parser did not like a head that ours did
                    nursery.cancel_scope.cancel()
                    return
                accepted.__class__ = TrioWebSocketConnection
                ws = cast("TrioWebSocketConnection", accepted)
                ws.data = data
                stream.on_drain = partial(engine.start_soon, self._goodbye, engine, ws)
                failure = await self._handle(ws)
                # After some errors its reader would wait for the peer for ever.
                nursery.cancel_scope.deadline = trio.current_time() + self.close_timeout
        except Exception as error:
            # Its reader may have found the connection gone.
            if not nothing_but(trio_websocket.ConnectionClosed, error):
                raise
        if failure is not None:
            raise failure

    async def _handle(self, ws: TrioWebSocketConnection) -> Exception | None:
        """Run the handler and close; returns what it raised."""
        code = 1011
        try:
            await self._handler(ws)
            code = 1000
        except Exception as error:  # noqa: BLE001 - it goes to the bulkhead, without the nursery's group
            gone = ws.closed is not None and nothing_but(trio_websocket.ConnectionClosed, error)
            return None if gone else error
        finally:
            with trio.move_on_after(self.close_timeout):
                await ws.aclose(code)  # closes the stream in any case
        return None

    async def _goodbye(self, engine: Engine, ws: TrioWebSocketConnection) -> None:
        """The server drains."""
        with trio.move_on_after(self.close_timeout):
            try:
                await ws.aclose(1001, "server is going away")
            except Exception as error:  # noqa: BLE001 - whatever the library raises, others are not to notice
                engine.limited.log(log, logging.ERROR, "%s: closing failed", self.tasks.name, error=error)
