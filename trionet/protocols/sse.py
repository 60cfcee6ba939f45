"""Server-Sent Events: a response that never ends, for clients that cannot have a WebSocket (WHATWG HTML, 9.2).

An `EventSource` is a responder and a protocol: it answers the request, and the connection is its own from then on, as
an `EventStream`. Nothing else is kept: no task, no coroutine, no parser. Events go straight to the kernel, and what it
does not take is queued, as for WebSockets.

    OPEN       events → the peer; nothing was sent for `keepalive`: a comment
    PINGED     that comment was the last that was sent; still not acknowledged `keepalive` later: the peer is gone
    LINGERING  the end: our side is shut

The body ends with the connection, so that every event has the same bytes for every peer and `broadcast_events` encodes
once. A reader ignores an event that was cut off, comes back after `retry`, and says which one it got last.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine, Iterable
from typing import Any

import trio

from trionet.errors import ConfigurationError, ConnectionClosed, nothing_but
from trionet.net import system
from trionet.net.connection import PINGED, Connection
from trionet.net.outbox import FRAME_COST
from trionet.protocols.base import Protocol
from trionet.protocols.channel import SlowConsumer
from trionet.protocols.responders import Handover, HttpRequest, Response
from trionet.wire.events import encode_comment, encode_event
from trionet.wire.http1 import encode_fields

__all__ = ["EventSource", "EventStream", "broadcast_events"]

_COMMENT = encode_comment()
# What keeps caches from storing it, and nginx from holding it back.
_HEADERS = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))


class EventStream(Connection):
    """The events of one client; `EventSource.on_open` gets it. Any task may send at any time.

    `data` is yours. `closed` says how it ended; None while it is open.
    """

    __slots__ = ()

    protocol: EventSource

    async def send(
        self,
        data: str | None,
        *,
        event: str | None = None,
        id: str | None = None,  # noqa: A002 - the word of the format
        retry: float | None = None,
    ) -> None:
        """Send an event; waits, parked, while more than `high_water` bytes are queued for this peer.

        `data`: text of any number of lines; None sends the rest only. `event`: the type that the page listens to,
        "message" if None. `id`: what the client says when it comes back (`HttpRequest.last_event_id`). `retry`: seconds
        after which it does. Raises `ConnectionClosed`. Cancelled while it waits, it has sent nothing.
        """
        frame = encode_event(data, event, id, retry)
        await self.wait_writable(len(frame))
        if self.closed is not None:
            raise self.closed_error()
        self._send(frame)

    def send_nowait(
        self,
        data: str | None,
        *,
        event: str | None = None,
        id: str | None = None,  # noqa: A002
        retry: float | None = None,
    ) -> None:
        """Like `send`; where that would wait, the `SlowConsumer` policy decides (WAIT: raises `trio.WouldBlock`)."""
        if self.closed is not None:
            raise self.closed_error()
        if (
            not self._offer(encode_event(data, event, id, retry))
            and self.protocol.slow_consumer is SlowConsumer.WAIT
        ):
            raise trio.WouldBlock

    def close(self) -> None:
        """End it, once all that is queued has been sent. The client will come back, unless it is answered 204 then."""
        self.note_closed(ConnectionClosed(1000, "", "us"))
        self.linger()

    def _send(self, frame: bytes) -> None:
        self._emit(frame)
        self.protocol.counts.sent_events += 1

    def _emit(self, frame: bytes) -> None:
        self._seen = self.engine.tick
        self._state &= ~PINGED
        self.write(frame)

    def _offer(self, frame: bytes) -> bool:
        """Send or queue `frame` without waiting. False: it was not taken."""
        out, protocol = self._out, self.protocol
        size = len(frame) + FRAME_COST
        if out is None or out.size + size <= protocol.high_water:
            self._send(frame)
            return True
        policy = protocol.slow_consumer
        if policy is SlowConsumer.WAIT:
            protocol.counts.slow_skips += 1
            return False
        protocol.counts.slow_overflows += 1
        protocol.events_dropped += 1
        if policy is SlowConsumer.CLOSE:
            self.engine.complain(self, "closed, the peer reads too slowly", level=logging.WARNING)
            # Not after what is queued: it would have to be read first.
            self.reset(ConnectionClosed(1013, "too slow", "us"))
        elif policy is SlowConsumer.DROP_OLDEST:
            protocol.events_dropped += out.discard_oldest(size, protocol.high_water, _is_event) - 1
            if out.size + size <= protocol.high_water:
                self._send(frame)
                return True
            protocol.events_dropped += 1
        return False


class EventSource(Protocol):
    """Answers a route with a stream of events. Override what you need.

    For example::

        class Ticker(trionet.EventSource):
            async def on_open(self, stream, request):
                await stream.send("hello", id="1")

        HttpProtocol({"/ticker": Ticker()})

    For one stream the methods run one at a time, in the order below; an exception closes that stream and is logged.
    `keepalive`: seconds of silence after which a comment is sent, which keeps proxies from hanging up and finds peers
    that are gone. `retry`: seconds after which clients come back (they choose, 3 or 5, when None). `headers`: added to
    the response, as `Access-Control-Allow-Origin` for pages of other origins. `slow_consumer`: what becomes of an event
    for a peer whose queue is full, where `send` does not wait for it; by default it is disconnected, comes back, and
    can be sent what it missed. Others: see `Protocol`.
    """

    connection_class: type[Connection] = EventStream
    scheme = "http"
    name = "events"

    def __init__(
        self,
        *,
        keepalive: float | None = 15.0,
        retry: float | None = None,
        headers: Iterable[tuple[str, str]] = (),
        slow_consumer: SlowConsumer = SlowConsumer.CLOSE,
        high_water: int = 65536,
        write_timeout: float | None = 60.0,
    ) -> None:
        super().__init__(
            high_water=high_water,
            hard_limit=max(2**20, 2 * high_water),
            idle_timeout=None,
            write_timeout=write_timeout,
        )
        if not isinstance(slow_consumer, SlowConsumer):
            raise ConfigurationError(f"slow_consumer is a SlowConsumer, not {slow_consumer!r}")
        if slow_consumer is SlowConsumer.CONFLATE:
            raise ConfigurationError("CONFLATE goes by the tag of a PreparedMessage, and events have none")
        self.keepalive = keepalive or 0.0
        self.slow_consumer = slow_consumer
        self.streams = 0  # open now
        self.events_dropped = 0
        self.handler_failures = 0
        self._headers = Response(headers=[*_HEADERS, *headers]).headers  # checks them
        encode_fields(self._headers)
        self._first = encode_event(None, retry=retry) if retry is not None else b""
        for method in (self.on_request, self.on_open, self.on_close):
            if hasattr(method, "__code__"):  # Ctrl-C may stop it, though not the worker that runs it
                trio.lowlevel.disable_ki_protection(method)

    # ------------------------------------------------------------ to override

    async def on_request(self, request: HttpRequest) -> Response | None:
        """Before the stream is opened: authenticate here. Raise `Rejection` to refuse, or return another answer.

        A browser that gets 204 does not come back; after an error it does not either.
        """

    async def on_open(self, stream: EventStream, request: HttpRequest) -> None:
        """The stream is open. Send what the client missed (`request.last_event_id`), keep `stream` for later."""

    async def on_close(self, stream: EventStream, closed: ConnectionClosed) -> None:
        """It has ended. Called once for each stream whose `on_open` was begun."""

    # -------------------------------------------------------------- machinery

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer a request."""
        answer = await self.on_request(request)
        if answer is not None:
            return answer
        return Handover(self, request, self._headers, "text/event-stream")

    async def taken_over(self, stream: EventStream, request: HttpRequest) -> None:
        """The head of the response is sent."""
        self.streams += 1
        stream._seen = stream.engine.tick
        if stream.fd >= 0:
            if self._first:
                stream.write(self._first)
            self.watch(stream)
        if stream.engine.draining:  # since the request came: nobody will tell this stream
            self.drain(stream)
        await self.on_open(stream, request)

    async def data_received(self, connection: EventStream, data: bytes) -> None:
        """The peer has nothing more to say; if it does, nobody listens."""

    def overheard(self, connection: EventStream, data: bytes) -> int:  # noqa: ARG002
        return 0

    def eof_overheard(self, connection: EventStream) -> None:
        connection.finish(ConnectionClosed(1001, "the client left", "peer"))

    async def eof_received(self, connection: EventStream) -> None:
        self.eof_overheard(connection)

    def lost(self, connection: EventStream) -> Coroutine[Any, Any, None] | None:
        self.streams -= 1
        closed = connection.closed
        assert closed is not None
        return self.on_close(connection, closed)

    def handler_failed(self, connection: EventStream, error: Exception) -> None:
        if connection.closed is not None and nothing_but(ConnectionClosed, error):
            return  # it used a stream whose client had left: that ends handlers every day
        self.handler_failures += 1
        connection.engine.complain(connection, "handler failed", error=error)
        connection.reset(ConnectionClosed(1011, "handler failed", "us"))

    def drain(self, connection: EventStream) -> None:
        connection.note_closed(ConnectionClosed(1001, "server is going away", "us"))
        connection.linger()

    def next_deadline(self, connection: EventStream) -> int:
        """Send the comment, or find that nobody has acknowledged the last one."""
        if not self.keepalive:
            return 0
        engine = connection.engine
        tick = engine.tick
        interval = engine.wheel.ticks(self.keepalive)
        due = connection._seen + interval
        if due > tick:
            return due
        if connection._out is not None:
            return tick + interval  # the write deadline judges
        if connection._state & PINGED:
            unread = system.unsent(connection.fd)
            # On a Unix socket it would say what a peer, which is there, has not read.
            if 0 < unread < sys.maxsize and connection.peer is not None:
                self.counts.keepalives_lost += 1
                connection.reset(ConnectionClosed(1006, "the peer acknowledges nothing", "network"))
                return 0
        connection._emit(_COMMENT)
        connection._state |= PINGED
        return tick + interval


def broadcast_events(
    streams: Iterable[EventStream],
    data: str | None,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002
    retry: float | None = None,
) -> int:
    """Send an event to each stream that is open. Encodes it once, never waits; returns how many took it.

    For a peer that is slow its `SlowConsumer` policy decides; with WAIT it is left out.
    """
    frame = encode_event(data, event, id, retry)
    return sum([stream._offer(frame) for stream in streams if stream.closed is None])


def _is_event(frame: bytes) -> bool:
    """Whether what is queued may be dropped: not the head of the response."""
    return not frame.startswith(b"HTTP/")
