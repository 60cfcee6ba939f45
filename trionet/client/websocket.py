"""A WebSocket seen from the client: masked on its way out, and with the closing handshake of a client.

    state      what it means                              leaves by
    OPENING    our request is under way                   the response: OPEN · refused, broken, cancelled → CLOSED
    OPEN       in use                                     our Close → CLOSING · the server's → LINGERING
    CLOSING    our Close is sent; messages are discarded  the server's Close → LINGERING · `close_timeout` → CLOSED
    LINGERING  both have said goodbye: the server closes  end of input, or what is left of `close_timeout` → CLOSED
               TCP first (RFC 6455, 7.1.1)
    CLOSED     descriptor released                        `lost` has run → GONE

A connection that a task owns (``async with connect_websocket(…) as ws``) is BUSY from OPEN on: no worker runs it
any more, its input is read by the leader of the pool (`overhear`), kept within `read_ahead`, and whoever waits in
`receive` is woken. One with a handler is run by workers, as on a server.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import attrs

from trionet.client.keys import fresh_key
from trionet.client.opening import Opening
from trionet.errors import ConnectionClosed, ProtocolError
from trionet.net.connection import BUSY, CLOSING, EOF, LINGERING, OPEN, OPENING, READ_SIZE, WOKEN, Connection
from trionet.net.traits import NO_SLOTS, compose
from trionet.protocols.channel import Message, SlowConsumer, WebSocket, _encode
from trionet.protocols.conflating import Conflating
from trionet.protocols.deflate import Deflated
from trionet.protocols.straight import Straight
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol
from trionet.wire.closing import encode_close
from trionet.wire.frames import Opcode, encode_frame, mask_frames
from trionet.wire.messages import Event
from trionet.wire.unmasked import take_messages

if TYPE_CHECKING:
    from trionet.net.connection import ProtocolInterface
    from trionet.net.engine import Engine
    from trionet.wire.client_handshake import UpgradeResponse

__all__ = ["ClientProtocol", "ClientWebSocket"]


class ClientWebSocket(WebSocket):
    """What `WebSocket` is in a client (a trait, see `trionet.net.traits`)."""

    __slots__ = NO_SLOTS
    words = ("_agreed",)

    protocol: ClientProtocol
    compresses = True  # for `broadcast`: no frame is sent as it is

    _agreed: Any  # the `Opening` while it lasts; then the subprotocol

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self._agreed = None

    @property
    def owned(self) -> bool:
        """Whether a task receives its messages; False: a handler does, or TLS is not established yet."""
        return getattr(self.protocol, "owned", False)

    @property
    def request(self) -> None:
        """A server's connections have that; here it was ours."""
        return None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose; None when it chose none."""
        return self._agreed if isinstance(self._agreed, str) else None

    @property
    def response(self) -> UpgradeResponse | None:
        """The head of the server's response, until the first message is received; then it is forgotten."""
        return self._rare.request if self._rare is not None else None

    # -------------------------------------------------------------- reading

    async def run(self) -> bool | None:
        """For those with a handler: read once, handle all messages that are complete."""
        state = self._state & 7
        if state == OPENING or state > CLOSING or self._state & BUSY:
            return await Connection.run(self)
        if self._agreed.__class__ is _Unopened:  # `on_open` comes first: see `_roused`
            return await self._settle()
        data = self._receive()
        if data:
            size = len(data)
            events = self.protocol.decode(self, data)
            data = None
            message = events[0] if len(events) == 1 and state == OPEN else None
            if isinstance(message, str | bytes):  # what most reads are
                handling = self.protocol.on_message(self, message)
            else:
                handling = self.deliver(events, size)
            del events, message  # or they would be kept for as long as the handler waits
            await handling
        elif data is not None:
            await self._at_eof()
        return await self._settle() if self._state != OPEN else None

    def overhear(self) -> None:
        """Input has come, and no worker is to run: messages for the task that owns it."""
        if self.owned:
            data = self._receive()
            if data:
                self._keep(data)
            elif data is not None:
                self._ended_by_peer()
        else:
            super().overhear()

    def _keep(self, data: bytes) -> None:
        """Keep the messages in `data`, act on control frames, wake whoever waits."""
        if self._state & 7 >= LINGERING:
            return
        events = self.protocol.decode(self, data)
        if self._state & 7 != OPEN and self._said_goodbye():
            events = [event for event in events if not isinstance(event, str | bytes)]
        if len(events) == 1 and isinstance(events[0], ProtocolError) and not self._held():
            self.fail(events[0])
            return
        self.hold(events)
        if self._held():
            self.arrived()
            partial = self._input
            kept = self.rare().held_size + (partial.held() if partial is not None else 0)
            if kept >= self.protocol.read_ahead:
                self.pause_reading()
        else:
            self._received()

    def _held(self) -> bool:
        return self._rare is not None and bool(self._rare.held)

    def _ended_by_peer(self) -> None:
        """The end of input, in any state."""
        self._state |= EOF
        self.pause_reading()
        self.protocol.eof_overheard(self)  # a reason that is known already stays
        if self._state & 7 >= LINGERING and self._out is not None:
            self.abort()
        else:
            self.finish()

    def _received(self) -> None:
        super()._received()  # type: ignore[misc] # of `Straight`
        rare = self._rare
        if rare is not None and rare.held is not None and not rare.held:
            rare.held = None  # an empty queue is 760 bytes
            rare.held_size = 0
            self.tidy()

    def _roused(self) -> Any:
        if self._agreed.__class__ is _Unopened:
            return self.protocol.begin(self)
        return super()._roused()

    async def _settle(self) -> bool | None:
        over = await super()._settle()
        if self._state & 7 in (OPEN, CLOSING, LINGERING) and self.owned:
            self._state |= BUSY
        return over

    def _release(self) -> None:
        if self.owned:
            self._state &= ~BUSY  # so that `lost` follows, in a worker
        super()._release()
        if self._agreed.__class__ is Opening:
            self._agreed.broke_off(self)

    # A server stops reading from a peer that does not read. If its clients did the same, both would wait for each other
    # as soon as much is sent in both directions; so a client reads on, and `read_ahead` bounds what it keeps.

    @property
    def throttled(self) -> bool:
        return False

    def _room(self) -> int:
        return READ_SIZE

    # -------------------------------------------------------------- sending

    async def send(self, message: Message) -> None:
        """Send a message: a str as text, bytes as binary. As `WebSocket.send`, and masked."""
        if self._state & 7 != OPEN:
            raise self._not_open()
        frame = _encode(message)
        pool = self.engine.pool
        pool.credit -= 1
        if pool.credit < 0 or (task := pool.shown) is None or task._cancel_status is not pool.status:
            await pool.breathe()
            if self._state & 7 != OPEN:
                raise self._not_open()
        if pool.cork is not None and pool.job is self:
            if self._out is None:
                self.protocol.counts.sent += 1
                self._emit(frame)
                return
            self.uncork()
        if (self._out is not None or self._rare is not None) and not await self._admit(frame):
            return
        self.write(frame)
        if self.fd < 0:
            raise self.closed_error()
        self.protocol.counts.sent += 1

    def write(self, data: bytes) -> None:
        """Whole frames, masked here (5.3); before the connection is open, the request as it is."""
        super().write(data if self._state & 7 == OPENING else self._sealed(data))

    def _sealed(self, frame: bytes) -> bytes:
        return mask_frames(frame, fresh_key)

    # -------------------------------------------------------------- closing

    def _say_goodbye(self, code: int, reason: str) -> None:
        if self._state & 7 == OPEN and self.owned:
            self._drop_held()  # nothing is delivered after our own Close, and the answer to it has to be read
        super()._say_goodbye(code, reason)

    def _drop_held(self) -> None:
        if self._rare is not None:
            self._rare.held = None
            self._rare.held_size = 0

    def _goodbye(self, code: int, reason: str, *, alone: bool) -> None:  # noqa: ARG002
        """A Close frame came: echo it if it is the first, then wait for the server to close TCP (7.1.1)."""
        state = self._state & 7
        if state > CLOSING:
            return
        if state == OPEN:
            self.uncork()
            self.note_closed(ConnectionClosed(code, reason, "peer"))
            self.write(encode_frame(Opcode.CLOSE, encode_close(code)))
            if self.fd < 0:
                return
            self.bound_state(self.protocol.close_timeout)
        self._leave(LINGERING)
        if self._state & EOF:
            self.finish()
        else:
            self.resume_reading()


class ClientProtocol(WebSocketProtocol):
    """What the connections of a client with the same settings share. `handler` None: a task owns each of them.

    The settings are those of `WebSocketProtocol` that are not about requests.
    """

    def __init__(self, handler: Any = None, **settings: Any) -> None:
        super().__init__(_owner if handler is None else handler, **settings)
        self.owned = handler is None
        self._decoder = attrs.evolve(self._decoder, masked=False)
        self._short, self.short_cut = self.short_cut, -1  # the latter is for masked frames
        straight = issubclass(self.connection_class, Straight)
        # In this order: what is compressed is masked, and what is known of straight-line handlers is built upon.
        traits: list[Any] = (
            [Deflated] * (self.compression is not None) + [ClientWebSocket] + [Straight] * straight
        )
        if self.slow_consumer is SlowConsumer.CONFLATE:
            traits.insert(0, Conflating)
        self.connection_class = compose(WebSocket, *traits)

    # --------------------------------------------------------- the handshake

    def connection_made(self, connection: ClientWebSocket) -> None:  # type: ignore[override]
        opening = connection._agreed
        if opening is not None:  # TLS is established
            connection.write(opening.request)

    async def opening(self, ws: ClientWebSocket, data: bytes, scanned: object = None) -> None:  # type: ignore[override] # noqa: ARG002
        ws._agreed.heard(ws, data)

    def opened(self, ws: ClientWebSocket, opening: Opening, response: UpgradeResponse, rest: bytes) -> None:
        """The server has agreed. Frames may have come behind its response."""
        ws._agreed = opening.subprotocol
        ws.rare().request = response
        ws.opened()
        if self.ping_interval:
            ws.engine.set_deadline(ws, ws.engine.tick + ws.engine.wheel.ticks(self.ping_interval))
        ws._state |= WOKEN  # a job of it is running: `_settle` makes it BUSY, or has `begin` called
        if not self.owned:
            ws._input = rest or None
            ws._agreed = _Unopened(opening.subprotocol)
        elif rest:
            ws._keep(rest)

    async def begin(self, ws: ClientWebSocket) -> None:
        """Call `on_open`, and handle what came behind the response."""
        ws._agreed = ws._agreed.subprotocol
        if ws._state & 7 == OPEN:
            await self._opened(ws)

    def tls_failed(self, connection: ClientWebSocket, error: ssl.SSLError) -> None:
        """The TLS handshake has failed, or our judgement of the server's certificate."""
        connection._agreed.failed(error)

    async def eof_received(self, connection: ClientWebSocket) -> None:  # type: ignore[override]
        if connection._state & 7 == OPENING:
            connection._agreed.heard(connection, b"")
        else:
            connection._ended_by_peer()

    def handler_failed(self, connection: ClientWebSocket, error: Exception) -> None:  # type: ignore[override]
        if connection._state & 7 == OPENING:
            connection._agreed.failed(error)
            connection.abort()
        else:
            super().handler_failed(connection, error)

    # -------------------------------------------------------------- the rest

    def decode(self, ws: WebSocket, data: bytes) -> list[Event | ProtocolError]:
        events: list[Event | ProtocolError] = []
        if ws._input is None and self._short >= 0:
            done = take_messages(data, self._short, events)  # type: ignore[arg-type]
            if done:
                self.count_received(events)
            if done == len(data):
                return events
            if done:
                data = data[done:]
        return events + super().decode(ws, data) if events else super().decode(ws, data)

    def unread(self, connection: ClientWebSocket) -> bytes:  # type: ignore[override] # noqa: ARG002
        raise RuntimeError("a client's connection cannot be given away")

    def next_deadline(self, connection: ClientWebSocket) -> int:  # type: ignore[override]
        if connection._state & 7 == OPENING:  # the task that opens it bounds that
            return connection._agreed.next_deadline(connection)  # type: ignore[no-any-return]
        return super().next_deadline(connection)


class _Unopened:
    """In the place of the subprotocol until `on_open` is called."""

    __slots__ = ("subprotocol",)

    def __init__(self, subprotocol: str | None) -> None:
        self.subprotocol = subprotocol


class _Owner(WebSocketHandler):
    """Never called: a connection that a task owns has the methods of straight-line handlers, and none runs."""

    async def handle(self, ws: WebSocket) -> None:  # pragma: no cover
        raise NotImplementedError


_owner = _Owner()
