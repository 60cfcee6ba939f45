"""WebSocket: the upgrade, then messages to a `WebSocketHandler`. Everything that is the same for all connections.

OPENING    the request head is read in place; limits, origin check and `on_upgrade` run before the 101
OPEN       messages → `on_message`; silent for `ping_interval`: a Ping; no answer for `ping_timeout`: closed
CLOSING    our Close is sent; the peer's, or `close_timeout`, ends it
LINGERING  after a refusal or a broken rule: our side is shut, input is discarded for 2 s at most
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Literal

import attrs
import trio

from trionet.errors import ConfigurationError, ConnectionClosed, ProtocolError, Rejection, nothing_but
from trionet.net.connection import BUSY, FRESH, OPEN, OPENING, PAUSED, PINGED, Connection
from trionet.net.describe import describe
from trionet.net.traits import compose
from trionet.protocols.base import Protocol
from trionet.protocols.channel import SlowConsumer, WebSocket
from trionet.protocols.conflating import Conflating
from trionet.protocols.deflate import BURST, Deflated
from trionet.protocols.forwarded import Forwarded, as_proxies, find_client
from trionet.protocols.handover import frames_not_handled
from trionet.protocols.rate import RateLimit, RateLimitedWebSocket
from trionet.protocols.registry import Registry
from trionet.protocols.straight import Straight, start_handler
from trionet.wire.closing import CloseCode
from trionet.wire.deflate import Deflate, frame_bound
from trionet.wire.forwarded import TrustedProxies
from trionet.wire.handshake import (
    HeadLimits,
    HeadScanner,
    OriginPolicy,
    Request,
    build_upgrade_response,
    check_upgrade,
    select_subprotocol,
)
from trionet.wire.http1 import build_rejection
from trionet.wire.messages import Chunk, Event, MessageDecoder

__all__ = ["Accept", "WebSocketHandler", "WebSocketProtocol", "http_date"]

log = logging.getLogger("trionet")

_PING = b"\x89\x00"


def _pairs(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(headers)


@attrs.frozen
class Accept:
    """What `on_upgrade` may return: the subprotocol to agree on, and headers to add to the 101 response."""

    subprotocol: str | None = None
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_pairs)


class WebSocketHandler:
    """Your application: one object serves all connections. Override what you need.

    For one connection the methods run one at a time, in the order `on_upgrade`, `on_open`, messages, `on_close`; for
    different connections they run at the same time. They may wait for anything. An exception closes that connection
    with 1011 and is logged; the others do not notice. What a method sets in a context variable ends with it.
    """

    async def on_upgrade(self, ws: WebSocket, request: Request) -> Accept | None:
        """Before the connection is accepted: authenticate here. Raise `Rejection` to refuse it."""

    async def on_open(self, ws: WebSocket) -> None:
        """The connection is open."""

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        """A message: str for text, bytes for binary."""

    async def on_close(self, ws: WebSocket, closed: ConnectionClosed) -> None:
        """It has ended. Called once for each connection whose `on_open` was begun."""

    async def on_chunk(self, ws: WebSocket, data: str | bytes, last: bool) -> None:
        """Overridden, it gets each message in pieces as they arrive, and `on_message` gets none.

        `last` ends the message; `max_message` still bounds it, but nothing is kept.
        """

    async def handle(self, ws: WebSocket) -> None:
        """Overridden, it is the whole conversation: it receives the messages itself, instead of `on_message`.

        Called when the connection is open. Returning closes it with 1000.
        """


class WebSocketProtocol(Protocol):
    """Serves `handler`. Sizes are bytes, times are seconds; None switches a deadline off.

    `subprotocols`: those spoken, unless `on_upgrade` chooses. `origins`: None allows pages of our own host only (and
    clients that are no browsers), "*" all, else a list like ``["https://example.org"]``. `headers`: names kept for
    `Request.headers`. `on_header`: called with each other header as memoryviews, valid during the call only.
    `http`: a protocol for plain requests on the same port. `max_messages_per_second`, `max_bytes_per_second`: a peer
    that sends more is not read from until a second's worth has refilled (control frames count). `trusted_proxies`:
    addresses of proxies whose X-Forwarded-For, -Proto and -Host are believed (or a `TrustedProxies`): from there come
    `WebSocket.client`, and our own host for `origins`. `compression`: a `Deflate`, or True for its defaults, to
    compress messages with clients that can. Queue limits and deadlines: see `Protocol`.
    """

    connection_class: type[Connection] = WebSocket
    scheme = "ws"
    name = "websocket"

    #: With `SlowConsumer.CONFLATE`: whether a peer is closed (1013) where it would miss a message for good: one without
    #: a tag, or the newest of a tag. For those who come back and catch up.
    close_behind = False

    #: Set by an adapter that answers accepted requests itself: called with the connection (in state OPENING, what
    #: follows the head in its ``_input``), the request, its head as it came, and what `on_upgrade` returned.
    hand_over: Callable[[WebSocket, Request, bytes, Accept | None], Awaitable[None]] | None = None

    def __init__(
        self,
        handler: WebSocketHandler | Callable[[WebSocket], Coroutine[Any, Any, object]],
        *,
        on_upgrade: Callable[[WebSocket, Request], Awaitable[Accept | None]] | None = None,
        cancel_on_disconnect: bool = False,
        subprotocols: Iterable[str] = (),
        origins: Literal["*"] | Iterable[str] | None = None,
        headers: Iterable[str] = ("cookie",),
        on_header: Callable[[memoryview, memoryview], object] | None = None,
        http: Any = None,
        max_message: int = 2**20,
        max_stream: int | None = None,
        max_frame: int | None = None,
        head_limits: HeadLimits | None = None,
        handshake_timeout: float | None = 10.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        close_timeout: float = 10.0,
        write_timeout: float | None = 60.0,
        slow_consumer: SlowConsumer = SlowConsumer.WAIT,
        high_water: int = 65536,
        low_water: int | None = None,
        hard_limit: int | None = None,
        read_ahead: int = 65536,
        compression: Deflate | bool = False,
        max_messages_per_second: float | None = None,
        max_bytes_per_second: float | None = None,
        trusted_proxies: TrustedProxies | Iterable[str] | None = None,
    ) -> None:
        super().__init__(
            high_water=high_water,
            low_water=low_water,
            hard_limit=max(2**20, high_water) if hard_limit is None else hard_limit,
            read_ahead=read_ahead,
            idle_timeout=None,
            write_timeout=write_timeout,
        )
        if max_message < 1 or close_timeout <= 0:
            raise ConfigurationError("max_message and close_timeout must be positive")
        if ping_interval and not ping_timeout:
            raise ConfigurationError(
                "ping_interval without ping_timeout: a dead peer would be pinged for ever"
            )
        if not isinstance(handler, WebSocketHandler):
            handler = _Function(handler)
        self.handler = handler
        self.subprotocols = tuple(subprotocols)
        self.http = http
        self.max_message = max_message
        self.handshake_timeout = handshake_timeout
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout or 0.0
        self.close_timeout = close_timeout
        self.slow_consumer = slow_consumer
        self.registry = Registry()
        self.rejections: dict[int, int] = {}
        self.closes: dict[int, int] = {}
        self.messages_dropped = 0
        self.handler_failures = 0
        self._dropped_logged = 0.0
        self._origins = OriginPolicy(origins)
        self.proxies = as_proxies(trusted_proxies)
        names = frozenset(name.lower().encode() for name in headers)
        self._scanner = HeadScanner(
            head_limits or HeadLimits(), names | self.proxies.names if self.proxies else names, on_header
        )
        own = _overridden(handler)
        straight = "handle" in own
        if straight and own & {"on_open", "on_message", "on_chunk"}:
            raise ConfigurationError(
                "a handler with `handle` gets its messages there: it has no on_open, on_message, on_chunk"
            )
        if not straight and (max_stream or cancel_on_disconnect):
            raise ConfigurationError("max_stream and cancel_on_disconnect are for straight-line handlers")
        if max_stream is not None and max_stream < max_message:
            raise ConfigurationError("max_stream is for messages longer than max_message")
        chunks = "on_chunk" in own or max_stream is not None
        longest = max_stream or max_message
        self.compression = Deflate.of(compression)
        frame = max_frame or (frame_bound(longest) if self.compression is not None else longest)
        self._decoder = MessageDecoder(longest, frame, chunks=chunks)
        # Up to this size `WebSocket.run` decodes the common frame by itself.
        self.short_cut = -1 if chunks else min(max_message, max_frame or max_message)
        self.on_message = handler.on_message
        self.on_chunk = handler.on_chunk
        self._on_upgrade = on_upgrade or (handler.on_upgrade if "on_upgrade" in own else None)
        self._on_open: Any = handler.on_open if "on_open" in own else None
        self._on_close = handler.on_close if "on_close" in own else None
        self._shows_request = straight or self._on_upgrade is not None or self._on_open is not None
        for function in (on_upgrade, *(getattr(handler, name) for name in own)):
            _interruptible(function)
        self.cancel_on_disconnect = cancel_on_disconnect
        self.title = (
            f"trionet handler {handler.name if isinstance(handler, _Function) else type(handler).__name__}"
        )
        if straight:
            self.connection_class = compose(WebSocket, Straight)
            self._on_open = start_handler(handler.handle)
            self.on_message = Straight.resume  # type: ignore[assignment]
            self.on_chunk = Straight.resume_with_chunk  # type: ignore[assignment]
        if self.proxies is not None:
            self.connection_class = compose(self.connection_class, Forwarded)
        if self.compression is not None:
            self.connection_class = compose(self.connection_class, Deflated)
        if slow_consumer is SlowConsumer.CONFLATE:
            self.connection_class = compose(self.connection_class, Conflating)
        self.rate: RateLimit | None = None
        if max_messages_per_second or max_bytes_per_second:
            self.rate = RateLimit(max_messages_per_second, max_bytes_per_second)
            self.connection_class = compose(self.connection_class, RateLimitedWebSocket)

    def others(self) -> Iterable[Protocol]:
        return (self.http,) if isinstance(self.http, Protocol) else ()

    # -------------------------------------------------------------- the upgrade

    def connection_made(self, connection: WebSocket) -> None:
        if self.handshake_timeout:
            wheel = connection.engine.wheel
            connection._due = wheel.add(connection.fd, wheel.tick + wheel.ticks(self.handshake_timeout))

    async def data_received(self, connection: WebSocket, data: bytes) -> None:
        if connection._state & 7 == OPENING:
            await self.opening(connection, data)
        else:
            size = len(data)
            await connection.deliver(self.decode(connection, data), size)

    async def opening(self, ws: WebSocket, data: bytes, scanned: Request | None = None) -> None:
        """Bytes of the request head have come. `scanned`: what a `Router` has read in them, the whole head."""
        head: bytes | bytearray = data
        searched = 0
        if ws._input is not None:
            head = ws._input
            searched = len(head)
            head += data
        try:
            request = scanned or self._scanner.scan(head, searched)
        except Rejection as rejection:
            self.refuse(ws, rejection)
            return
        if request is None:
            ws._input = head if searched else bytearray(head)
            return
        if self.http is not None and not request.websocket:
            ws._input = None
            await self.http.adopt(ws, bytes(head[request.skipped :]))
            return
        ws._input = head[request.size :] or None
        own_head = bytes(head[: request.size]) if self.hand_over is not None else b""
        del data, head
        if self._shows_request:
            ws.rare().request = request
        own_host = None
        if self.proxies is not None:
            client = ws._client = find_client(ws, request, self.proxies)  # type: ignore[attr-defined]
            own_host = client.authority
        try:
            secure = True if ws.tls is not None else None  # without, a proxy may have ended TLS
            check_upgrade(request, self._origins, secure, authority=own_host)
            answer = None
            if self._on_upgrade is not None:
                answer = await self._on_upgrade(ws, request)
            response = self._accept(ws, request, answer)
        except Rejection as rejection:
            self.refuse(ws, rejection, head=request.method == "HEAD")
            return
        if ws._state & 7 != OPENING or ws.closed is not None:  # it left, or ran out of time, meanwhile
            return
        if ws.engine.draining:
            self.drain(ws)
            return
        if self.hand_over is not None:
            await self.hand_over(ws, request, own_head, answer)
            return
        if request.expects_continue:  # 9110, 7.8: MUST be sent before a 101
            response = b"HTTP/1.1 100 Continue\r\n\r\n" + response
        ws.write(response)
        if ws._state & 7 != OPENING:
            return
        ws.opened()
        if self.ping_interval:
            ws.engine.set_deadline(ws, ws.engine.tick + ws.engine.wheel.ticks(self.ping_interval))
        if self._on_open is not None or ws._rare is not None or ws._input is not None:
            await self._opened(ws)

    def _accept(self, ws: WebSocket, request: Request, answer: Accept | None) -> bytes:
        key = request.key
        assert key is not None
        if answer is not None:
            chosen, headers = answer.subprotocol, answer.headers
            if chosen is not None and chosen not in request.subprotocols:
                raise ConfigurationError(f"subprotocol {chosen!r} was not offered by the client")
        else:
            chosen, headers = None, ()
        if chosen is None and self.subprotocols and (offered := request.subprotocols):
            chosen = select_subprotocol(offered, self.subprotocols)
        if chosen is not None:
            ws.rare().subprotocol = chosen
        extensions = None
        offers = request.extensions if self.compression is not None else None
        # Who sends much before the 101, all of which is decoded at once, is not to send it compressed.
        if self.compression is not None and offers is not None and len(ws._input or b"") <= BURST:
            accepted = self.compression.accept(offers)
            if accepted is not None:
                codec, extensions = accepted
                ws.codec = codec.private()  # type: ignore[attr-defined]
        return build_upgrade_response(key, chosen, headers, extensions)

    async def _opened(self, ws: WebSocket) -> None:
        """Frames may have come behind the head; they are decoded now, so that a Ping among them does not wait."""
        rest, ws._input = ws._input, None
        if rest is not None:
            ws.hold(self.decode(ws, bytes(rest)), in_order=True)
        if self._on_open is not None:
            await self._on_open(ws)
        if ws._rare is not None:
            rare = ws._rare
            rare.request = rare.subprotocol = None
            while rare.held_size:
                await self.catch_up(ws)
            ws.tidy()

    def refuse(self, ws: WebSocket, rejection: Rejection, *, head: bool = False) -> None:
        """Answer with an HTTP error, and let the connection linger so that the peer can read it."""
        self.rejections[rejection.status] = self.rejections.get(rejection.status, 0) + 1
        log.debug("%r: request refused: %s", ws, rejection)
        ws._input = None
        ws.note_closed(ConnectionClosed(1006, f"refused with {rejection.status}", "us"))
        ws.write(build_rejection(rejection, http_date(), head_request=head))
        ws.linger()

    # ---------------------------------------------------------------- messages

    def decode(self, ws: WebSocket, data: bytes) -> list[Event | ProtocolError]:
        """What `data` completes; a broken rule comes last, as the `ProtocolError` itself."""
        events: list[Event | ProtocolError] = []
        try:
            if self.compression is None:
                ws._input = self._decoder.decode(data, ws._input, events)  # type: ignore[arg-type]
            else:
                ws._input = self._decoder.decode(data, ws._input, events, ws.codec)  # type: ignore[arg-type, attr-defined]
        except ProtocolError as error:
            ws._input = None
            ws.pause_reading()
            events.append(error)
        self.count_received(events)
        if self.rate is not None:
            assert isinstance(ws, RateLimitedWebSocket)
            self.rate.charge(ws, len(events), len(data))
        return events

    def count_received(self, events: list[Event | ProtocolError]) -> None:
        """Count the messages among `events`."""
        kinds = list(map(type, events))  # in C: there may be thousands, and nearly all are whole messages
        count = kinds.count(str) + kinds.count(bytes)
        if count != len(kinds):
            count += sum(isinstance(event, Chunk) and event.last for event in events)
        self.counts.received += count

    def overheard(self, connection: WebSocket, data: bytes) -> int:
        rare = connection.rare()
        state = connection._state & 7
        if state == OPENING:  # frames sent before the 101: kept as they are
            kept = connection._input
            connection._input = data if kept is None else kept + data
            return len(connection._input)
        events = self.decode(connection, data)
        if state != OPEN and connection._said_goodbye():
            events = [event for event in events if not isinstance(event, str | bytes)]
        connection.hold(events)
        if connection.arrived():  # a long message is waited for: only whole ones may stop the reading
            return rare.held_size
        partial = connection._input
        return rare.held_size + (partial.held() if partial is not None else 0)

    def unread(self, connection: WebSocket) -> bytes:
        return frames_not_handled(connection)

    def eof_overheard(self, connection: WebSocket) -> None:
        connection.note_closed(
            ConnectionClosed(CloseCode.ABNORMAL, "the peer left without a Close", "network")
        )

    async def catch_up(self, connection: WebSocket) -> None:
        await connection.work_off()

    async def eof_received(self, connection: WebSocket) -> None:
        self.eof_overheard(connection)
        connection.finish()

    def lost(self, connection: WebSocket) -> Coroutine[Any, Any, None] | None:
        if self.registry.used:
            self.registry.forget(connection)
        if connection._state & FRESH:
            return None
        closed = connection.closed
        assert closed is not None
        code = closed.code
        self.closes[code] = self.closes.get(code, 0) + 1
        return connection.conclude(self._on_close, closed)

    def handler_failed(self, connection: WebSocket, error: Exception) -> None:
        if connection.closed is not None and nothing_but(ConnectionClosed, error):
            return  # it used a connection whose peer had left: that ends handlers every day
        self.handler_failures += 1
        connection.engine.complain(connection, "handler failed", error=error)
        if connection._state & 7 == OPENING:
            self.refuse(connection, Rejection(500, body="The server failed to handle the request.\n"))
        else:
            connection._say_goodbye(CloseCode.INTERNAL_ERROR, "")

    def failed(self, connection: WebSocket, error: ProtocolError) -> None:
        """A peer broke a rule; the connection is about to be failed."""
        log.debug("%r: failed: %s", connection, error)

    def dropped(self, connection: WebSocket, count: int) -> None:
        """Messages were dropped by the slow-consumer policy: counted, and logged once in ten seconds at most."""
        self.messages_dropped += count
        now = trio.current_time()
        if now - self._dropped_logged >= 10 or not self._dropped_logged:
            self._dropped_logged = now
            log.warning(
                "%r: slow consumer, policy %r; %d messages dropped so far on all connections",
                connection,
                self.slow_consumer.value,
                self.messages_dropped,
                extra={"trionet": {**describe(connection), "dropped": self.messages_dropped}},
            )

    # --------------------------------------------------------------- deadlines

    def drain(self, connection: WebSocket) -> None:
        if connection._state & 7 == OPENING:
            if connection.engine.runs(connection) or not connection._state & BUSY:
                self.refuse(
                    connection,
                    Rejection(
                        503, headers=[("Retry-After", "1")], body="The server is going away; try again.\n"
                    ),
                )
        else:
            connection._say_goodbye(*connection.engine.farewell)

    def next_deadline(self, connection: WebSocket) -> int:
        engine = connection.engine
        tick = engine.tick
        state = connection._state
        if state & 7 == OPENING:
            if state & BUSY:  # our own hook takes long, the peer is not to blame
                return tick + engine.wheel.ticks(self.handshake_timeout or 10.0)
            self.refuse(connection, Rejection(408, body="No complete request came in time.\n"))
            return 0
        expiry = self.registry.expiry(connection)
        if expiry and expiry <= tick:
            self.counts.expired += 1
            connection._say_goodbye(CloseCode.POLICY_VIOLATION, "expired")
            return connection.rare().deadline
        if state & PAUSED and not state & BUSY:
            connection.resume_reading()
        ping = self._keepalive(connection, tick) if self.ping_interval else 0
        return min(filter(None, (expiry, ping, connection.receive_due(tick))), default=0)

    def _keepalive(self, ws: WebSocket, tick: int) -> int:
        engine = ws.engine
        interval = engine.wheel.ticks(self.ping_interval or 0)
        state = ws._state
        if ws._state & PAUSED or ws._out is not None:
            # We do not read, so a Pong could not be seen; or the peer does not read, which the write deadline judges.
            ws._state = state & ~PINGED
            return tick + interval
        timeout = engine.wheel.ticks(self.ping_timeout)
        due = ws._seen + interval
        if state & PINGED:
            due += timeout
            if due > tick:
                return due
            self.counts.keepalives_lost += 1
            ws.fail(ProtocolError("no answer to a keepalive ping", CloseCode.INTERNAL_ERROR))
            return ws.rare().deadline
        if due > tick:
            return due
        ws._state = state | PINGED
        ws._seen = tick - interval  # as if nothing later had come: the time for the answer begins now
        ws.write(_PING)
        return tick + min(interval, timeout)


def _overridden(handler: WebSocketHandler) -> set[str]:
    names = ("on_upgrade", "on_open", "on_message", "on_close", "on_chunk", "handle")
    return {
        name
        for name in names
        if getattr(getattr(handler, name), "__func__", None) is not getattr(WebSocketHandler, name)
    }


class _Function(WebSocketHandler):
    """A coroutine function as a handler."""

    def __init__(self, function: Any) -> None:
        if isinstance(function, type):
            raise ConfigurationError(f"a handler is an object, not a class: {function.__name__}()?")
        if inspect.isasyncgenfunction(function):
            raise ConfigurationError("a handler does not `yield`: it is a coroutine function")
        if not callable(function):
            raise ConfigurationError(
                f"a handler is a WebSocketHandler or a coroutine function, not {type(function).__name__}"
            )
        self.name = getattr(function, "__qualname__", None) or type(function).__name__
        self.handle = function  # type: ignore[method-assign]


def _interruptible(function: Any) -> None:
    """Ctrl-C may stop a handler that loops, though it may not tear the worker that runs it."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - it is known to be callable
    for each in (function, inspect.unwrap(function)):
        if hasattr(each, "__code__"):
            trio.lowlevel.disable_ki_protection(getattr(each, "__func__", each))


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float | None = None) -> bytes:
    """A time as HTTP writes it (RFC 9110, 5.6.7), whatever the locale: now, or `seconds` since the epoch."""
    t = time.gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    ).encode()
