"""What handlers hold: `WebSocket`. Messages in, messages out, over a `Connection`.

It adds no word to an idle connection. Its heart is `run`: read, decode, call the handler.

Several messages that came in one read are handled one after the other, and what is sent meanwhile to the same
peer is corked: it goes out in one write with the answer to the last of them, at the handler's first yield, at
64 KiB, or before a Close. When a handler yields, what is left of the read moves to `Rare.held`, and so does what
comes while it is suspended; control frames are answered at once, and never wait behind a message.
"""

from __future__ import annotations

import enum
import sys
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.net import system
from trionet.net.conflating import TaggedFrame
from trionet.net.connection import (
    BUSY,
    CLOSING,
    OPEN,
    OPENING,
    PINGED,
    READ_SIZE,
    Connection,
    broken,
)
from trionet.net.stream import DetachedStream
from trionet.wire.closing import CloseCode, check_sendable, encode_close, parse_close
from trionet.wire.deflate import Codec
from trionet.wire.forwarded import Client
from trionet.wire.frames import Opcode, encode_frame
from trionet.wire.masking import apply_mask
from trionet.wire.messages import Chunk, Control, Event

if TYPE_CHECKING:
    from trionet.protocols.websocket import WebSocketProtocol
    from trionet.wire.request import Request

__all__ = ["MessageStream", "PreparedMessage", "SlowConsumer", "WebSocket", "broadcast"]

Message: TypeAlias = "str | bytes | bytearray | memoryview | PreparedMessage"

_TEXT: Final = tuple(bytes((0x81, n)) for n in range(126))
_BINARY: Final = tuple(bytes((0x82, n)) for n in range(126))
_CORK_LIMIT: Final = 65536
PARKED: Final = 4096  # bytes of a handler that waits for room, which are kept with the queue
_FEW: Final = 4096  # bytes that the peer has not acknowledged
_ECHO_NORMAL: Final = encode_frame(Opcode.CLOSE, encode_close(1000))


class SlowConsumer(enum.Enum):
    """What happens to a message for a peer that does not read fast enough (its queue is at `high_water`).

    WAIT: `send` waits, `send_nowait` raises `trio.WouldBlock`, `broadcast` leaves this peer out.
    DROP_NEWEST, DROP_OLDEST: a message is dropped, counted, and mentioned in the log (not each time).
    CLOSE: the connection is closed with 1013.
    CONFLATE: of messages with the same tag (`PreparedMessage`) the newest is enough. As soon as anything is queued, one
    that waits is driven out by the next with its tag, which goes to the end of the queue, so that what arrives is in
    order. At `high_water` the tag that was sent least recently loses its message. Messages without a tag: as WAIT.
    """

    WAIT = "wait"
    DROP_NEWEST = "drop newest"
    DROP_OLDEST = "drop oldest"
    CLOSE = "close"
    CONFLATE = "conflate"


class PreparedMessage:
    """A message encoded once, to be sent to many. Immutable; text from a str, binary from bytes.

    Compressed once for all connections that compress alike, when the first of them gets it. `tag`: what it is about,
    for connections with `SlowConsumer.CONFLATE`: a newer message with the same tag makes this one superfluous.
    """

    __slots__ = ("_compressed", "frame")

    def __init__(self, message: Message, *, tag: str = "") -> None:
        self.frame = _encode(message)
        if tag:
            self.frame = TaggedFrame.of(self.frame, tag)
        self._compressed: dict[Any, bytes] | None = None

    @property
    def tag(self) -> str:
        """What it is about; empty if no other makes it superfluous."""
        return getattr(self.frame, "tag", "")

    def compressed(self, codec: Codec) -> bytes:
        """Its frame for peers that agreed on `codec`, one without context takeover on our side."""
        variants = self._compressed
        if variants is None:
            variants = self._compressed = {}
        frame = variants.get(codec.key)
        if frame is None:
            frame = compress_frame(self.frame, codec)
            if self.tag:
                frame = TaggedFrame.of(frame, self.tag)
            variants[codec.key] = frame
        return frame


def compress_frame(frame: bytes, codec: Codec) -> bytes:
    """The frame of a whole message compressed, or as it is where that is better."""
    packed = codec.deflate(frame[{126: 4, 127: 10}.get(frame[1], 2) :])
    return frame if packed is None else encode_frame(frame[0] & 15, packed, rsv=4)


def _encode(message: Message) -> bytes:
    if isinstance(message, str):
        return encode_frame(Opcode.TEXT, message.encode())
    if isinstance(message, PreparedMessage):
        return message.frame
    if isinstance(message, bytes | bytearray | memoryview):
        return encode_frame(Opcode.BINARY, bytes(message))
    raise TypeError(f"a message is str or bytes, not {type(message).__name__}")


class WebSocket(Connection):
    """One WebSocket connection. Handlers get it; the protocol makes it.

    Any task may send at any time; frames never interleave. After the connection has ended, sending raises
    `ConnectionClosed`, and `closed` says how it ended.
    """

    __slots__ = ()

    protocol: WebSocketProtocol
    compresses = False  # whether messages go through a `Codec`; see `trionet.protocols.deflate`

    # ------------------------------------- what straight-line handlers have

    def receive(self, timeout: float | None = None) -> Awaitable[str | bytes]:
        """Wait for the next message: str for text, bytes for binary. For straight-line handlers and clients.

        Raises `ConnectionClosed`, at once after our own Close, else when all that came before the end was received;
        `trio.TooSlowError` after `timeout` seconds (and up to a tick of the server's clock, 0.25 s, more), which costs
        no cancel scope; `trio.BusyResourceError` when another task waits already.
        """
        raise self._no_receiver(timeout)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Iterate over messages until the connection has ended.

        Ends when it was closed with 1000, 1001 or no code, by whomever; else raises `ConnectionClosed`.
        """
        raise self._no_receiver()

    def receive_stream(self) -> AbstractAsyncContextManager[AsyncIterator[str | bytes]]:
        """Receive one message piece by piece: ``async with ws.receive_stream() as pieces: async for piece in pieces:``.

        A piece is what came in one go, up to 64 KiB; messages may be longer than `max_message` if the protocol has a
        `max_stream`. Without one, a message comes in one piece. What is not read of it is discarded.
        """
        raise self._no_receiver()

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any, name: object = None) -> None:
        """Start a task that belongs to this connection: cancelled when it closes, or when its handler ends.

        An `Exception` of it closes the connection with 1011. Raises `ConnectionClosed`.
        """
        raise self._no_receiver(function, args, name)

    def stack(self) -> traceback.StackSummary:
        """Where the handler waits: print it with ``"".join(ws.stack().format())``. Empty when there is none."""
        return traceback.StackSummary()

    def arrived(self) -> bool:
        """Messages, or parts of one, were kept for whoever will receive them. Returns whether a task waits for them."""
        return False

    def conclude(
        self,
        on_close: Callable[[WebSocket, ConnectionClosed], Coroutine[Any, Any, None]] | None,
        closed: ConnectionClosed,
    ) -> Coroutine[Any, Any, None] | None:
        """The connection has ended; what remains to be awaited."""
        return on_close(self, closed) if on_close is not None else None

    def receive_due(self, tick: int) -> int:  # noqa: ARG002 - a straight-line handler has one
        """The tick at which a receiver that waits is told that it took too long; 0 for none."""
        return 0

    @staticmethod
    def _no_receiver(*_: object) -> Exception:
        return RuntimeError(
            "the messages of this connection go to `on_message`; a straight-line handler receives"
        )

    # ------------------------------------------------------------- about it

    @property
    def client(self) -> Client:
        """Who is at the far end: as trusted proxies say, if the protocol has `trusted_proxies`; else the peer."""
        peer = self.peer
        return Client(*peer[:2]) if isinstance(peer, tuple) else Client(None)

    @property
    def request(self) -> Request | None:
        """The request that opened it, during `on_upgrade` and `on_open`; then it is forgotten, to save memory."""
        return self._rare.request if self._rare is not None else None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, during `on_open`; keep it in `data` if you need it later."""
        return self._rare.subprotocol if self._rare is not None else None

    # -------------------------------------------------------------- reading

    async def run(self) -> bool | None:
        """Read once, handle all messages that are complete."""
        data: bytes | None
        if self._state == OPEN and self._out is None:  # `_receive`, open-coded
            try:
                data = self._get(self.fd, READ_SIZE)
            except BlockingIOError:
                # A TLS record may have been broken.
                return None if self._state == OPEN else await self._settle()
            except OSError as error:
                self.abort(broken(error))
                return await self._settle()
            self._seen = self.engine.tick
            size = len(data)
            counts = self.protocol.counts
            counts.received_bytes += size
        elif self._state & 7 > CLOSING or self._state & BUSY:
            return await Connection.run(self)
        else:
            data = self._receive()
            if data is None or self._state & 7 == OPENING:
                if data:
                    await self.protocol.opening(self, data)
                elif data is not None:
                    await self._at_eof()
                return await self._settle() if self._state != OPEN else None
            size = len(data)
            counts = self.protocol.counts
        # What most reads are: one whole, masked text or binary frame, and nothing else (RFC 6455, 5.2).
        body = 0
        if size > 6 and self._input is None and ((first := data[0]) == 0x81 or first == 0x82):
            if size < 132:
                if data[1] == size + 122:
                    body = 6
            elif data[1] == 254 and size > 133 and data[2] << 8 | data[3] == size - 8:
                body = 8
        if body and size - body <= self.protocol.short_cut and self._state == OPEN:
            payload: Any = apply_mask(data[body:], data[body - 4 : body])
            if first == 0x81:
                try:
                    payload = payload.decode()
                except UnicodeDecodeError:
                    self.fail(ProtocolError("text is not UTF-8", CloseCode.INVALID_DATA))
                    return await self._settle()
            counts.received += 1
            data = None  # or it would be kept for as long as the handler waits
            await self.protocol.on_message(self, payload)
        elif 6 <= size < 132 and data[0] in b"\x88\x89\x8a" and data[1] == size + 122 and self._input is None:
            self.control(Control(data[0] & 15, apply_mask(data[6:], data[2:6])), alone=True)
        elif size:
            events = self.protocol.decode(self, data)
            data = None
            handling = self.deliver(events, size)
            del events
            await handling
        else:
            await self._at_eof()
        if self._state != OPEN:
            return await self._settle()
        return None

    async def deliver(self, events: list[Event | ProtocolError], size: int) -> None:
        """Call the handler for each message, corking what it sends, and act on control frames.

        `events` came in a read of `size` bytes. The list is given up, so that nothing but the message in hand is
        kept while a handler waits.
        """
        if not events:
            return
        last = events.pop()
        if not events:
            if last.__class__ is Control:
                self.control(last)
            else:
                await self._handle(last)
            return
        pool = self.engine.pool
        rest = iter(events)
        del events
        mine = (rest, last, size)
        pool.rest = mine
        if self._out is None and not self._streams():  # else what is sent waits its turn, and `send` for room
            pool.cork, pool.corked = [], 0
        on_message = self.protocol.on_message
        try:
            for event in rest:
                if self._state == OPEN and (event.__class__ is str or event.__class__ is bytes):
                    await on_message(self, event)
                else:
                    await self._handle(event)
            if pool.rest is mine:  # nobody has taken them for later
                pool.rest = None
                await self._handle(last)
        finally:
            if pool.cork is not None:
                self.uncork()
                pool.cork = None
            pool.rest = None

    async def _handle(self, event: Event | ProtocolError) -> None:
        if isinstance(event, Control):
            self.control(event)
        elif isinstance(event, ProtocolError):
            self.fail(event)
        elif self._state & 7 != OPEN and self._said_goodbye():
            pass
        elif isinstance(event, Chunk):
            await self.protocol.on_chunk(self, event.data, event.last)
        else:
            await self.protocol.on_message(self, event)

    def _said_goodbye(self) -> bool:
        """After our own Close nothing more is delivered; what came before the peer's is."""
        closed = self.closed
        return closed is not None and closed.by == "us"

    def suspended(self) -> None:
        """The handler waits: send what is corked, keep what is left of the read."""
        Connection.suspended(self)
        pool = self.engine.pool
        if pool.cork is not None:
            self.uncork()
            pool.cork = None
        if pool.rest is not None:
            self.hold_rest()

    def hold_rest(self) -> None:
        """Keep what is left of the read in hand."""
        pool = self.engine.pool
        (rest, last, _), pool.rest = pool.rest, None
        self.hold([*rest, last])

    def hold(self, events: list[Event | ProtocolError], *, in_order: bool = False) -> None:
        """Keep messages for later, act on control frames now; `in_order`: on a Close after the messages before it."""
        rare = self.rare()
        if rare.held is None:
            rare.held = deque()
        for event in events:
            if isinstance(event, Control) and not (in_order and rare.held and event.opcode == Opcode.CLOSE):
                self.control(event)
            else:
                if in_order and isinstance(event, Control):
                    self.pause_reading()  # nothing that follows a Close is looked at
                rare.held.append(event)
                rare.held_size += _size(event)

    async def work_off(self) -> None:
        """Handle what was kept, one by one: more may come behind it meanwhile."""
        rare = self.rare()
        held = rare.held
        while held:
            event = held.popleft()
            rare.held_size -= _size(event)
            await self._handle(event)
        rare.held = None
        rare.held_size = 0

    def control(self, frame: Control, *, alone: bool = False) -> None:
        """Answer a Ping, note a Pong, follow a Close (5.5). `alone`: nothing came with it."""
        if frame.opcode == Opcode.PING:
            if self._state & 7 == OPEN:
                self._pong(encode_frame(Opcode.PONG, frame.payload))
        elif frame.opcode == Opcode.PONG:
            pings = self._rare.pings if self._rare is not None else None
            if pings:
                self._answered(pings, frame.payload)
        else:
            try:
                code, reason = parse_close(frame.payload)
            except ProtocolError as error:
                self.fail(error)
                return
            self._goodbye(code, reason, alone=alone)

    def _pong(self, frame: bytes) -> None:
        out = self._out
        # 5.5.3: one Pong for the latest of several Pings will do, so a flood of them fills no queue.
        if out is not None and out.last[:1] == b"\x8a" and out.replace_last(self._sealed(frame)):
            return
        self._emit(frame)

    def _sealed(self, frame: bytes) -> bytes:
        """As it goes out: a client's frames are masked."""
        return frame

    def _goodbye(self, code: int, reason: str, *, alone: bool) -> None:
        """A Close frame came: echo it if it is the first, then the server closes first (7.1.1)."""
        state = self._state & 7
        if state == OPEN:
            self.uncork()
            self.note_closed(ConnectionClosed(code, reason, "peer"))
            self.write(_ECHO_NORMAL if code == 1000 else encode_frame(Opcode.CLOSE, encode_close(code)))
        if state > CLOSING:
            return
        # 7.1.1: cleanly. Closing on unread input makes the kernel send a reset, which may overtake what is on its way;
        # so shut our side and wait for the end of the input. That doubles the price of a connection's end (+25 us):
        # a peer whose Close came alone, and who has taken what we sent, has shown that it has no more to say.
        if alone and self._out is None and system.unsent(self.fd) <= _FEW:
            self.finish()
        else:
            self.linger()

    # -------------------------------------------------------------- sending

    async def send(self, message: Message) -> None:
        """Send a message: a str as text, bytes as binary.

        Returns when the kernel or the queue has it. Waits while more than `high_water` bytes are queued for this
        peer (or does what the `SlowConsumer` policy says). Raises `ConnectionClosed`. Cancelled, it has sent
        nothing, never a part. Deviates from Trio's rule: it is a cancellation point always, but lets others run
        only when it waits, and once in 64 calls.
        """
        if self._state != OPEN and self._state & 7 != OPEN:
            raise self._not_open()
        if type(message) is str:
            payload = message.encode()
            size = len(payload)
            frame = (_TEXT[size] if size < 126 else _long_header(b"\x81", size)) + payload
        elif type(message) is bytes:
            size = len(message)
            frame = (_BINARY[size] if size < 126 else _long_header(b"\x82", size)) + message
        else:
            frame = _encode(message)
        pool = self.engine.pool
        pool.credit -= 1
        if pool.credit < 0 or (task := pool.shown) is None or task._cancel_status is not pool.status:
            await pool.breathe()
            if self._state & 7 != OPEN:
                raise self._not_open()
        if pool.cork is not None and pool.job is self:  # as `_emit` does
            if self._out is None:
                self.protocol.counts.sent += 1
                pool.cork.append(frame)
                pool.corked += len(frame)
                if pool.rest is None or pool.corked >= _CORK_LIMIT:
                    self.uncork()
                return
            self.uncork()
        if (self._out is not None or self._rare is not None) and not await self._admit(frame):
            return
        try:
            sent = self._put(self.fd, frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.abort(broken(error))
            raise self.closed_error() from error
        counts = self.protocol.counts
        counts.sent += 1
        counts.sent_bytes += (size := len(frame))
        if sent != size:
            self._queue(frame, sent)

    def send_nowait(self, message: Message) -> None:
        """Like `send`, but raises `trio.WouldBlock` where that would wait (policy WAIT)."""
        if self._state & 7 != OPEN:
            raise self._not_open()
        frame = _encode(message)
        if not self._offer(frame) and (self._streams() or self._waits(frame)):
            raise trio.WouldBlock

    def _streams(self) -> bool:
        """Whether a message is being sent in pieces."""
        return self._rare is not None and self._rare.stream is not None

    async def _admit(self, frame: bytes) -> bool:
        """Take part in the queue. True: nothing is queued, write; False: `frame` is queued, or dropped."""
        protocol = self.protocol
        while True:
            stream = self._rare.stream if self._rare is not None else None
            if stream is not None:
                await stream.wait_end()
            elif self._out is None:
                return True
            elif not self._full(frame, PARKED + len(frame)):
                protocol.counts.sent += 1
                self.write(frame)
                return False
            elif not self._waits(frame):
                self._overflow(frame)
                return False
            else:
                protocol.counts.slow_waits += 1
                await self.wait_writable(len(frame) * 2 + self._held_back() + PARKED)
            if self._state & 7 != OPEN:
                raise self._not_open()

    def _waits(self, frame: bytes) -> bool:  # noqa: ARG002 - where the policy is CONFLATE, it depends on it
        """Whether `send` waits for room, rather than that the policy does something else."""
        return self.protocol.slow_consumer is SlowConsumer.WAIT

    def _full(self, frame: bytes, more: int = 0) -> bool:
        out = self._out
        return out is not None and out.size + len(frame) + self._held_back() + more > self.protocol.high_water

    def _held_back(self) -> int:
        """What is left of the read in hand: it has to be kept if we wait, so it counts."""
        pool = self.engine.pool
        return pool.rest[2] if pool.rest is not None and pool.job is self else 0

    def _offer(self, frame: bytes) -> bool:
        """Send or queue `frame` without waiting. False: the peer is slow and it was not taken."""
        if self._streams():
            return False
        if self._full(frame):
            return self._overflow(frame)
        self._emit(frame)
        self.protocol.counts.sent += 1
        return True

    def _emit(self, frame: bytes) -> None:
        """Into the cork, if this connection's job is running with one; else out."""
        pool = self.engine.pool
        cork = pool.cork
        if cork is None or pool.job is not self or self._out is not None:
            self.uncork()
            self.write(frame)
            return
        cork.append(frame)
        pool.corked += len(frame)
        # The answer to the last message takes along what waits for it.
        if pool.rest is None or pool.corked >= _CORK_LIMIT:
            self.uncork()

    def uncork(self) -> None:
        """Write what is corked."""
        pool = self.engine.pool
        cork = pool.cork
        if not cork or pool.job is not self:
            return
        frames = cork[:]
        cork.clear()
        pool.corked = 0
        if self._out is None:
            self.write(b"".join(frames))
        else:
            for frame in frames:
                self.write(frame)

    def _overflow(self, frame: bytes) -> bool:
        """The queue is full, and nobody waits for room. Returns whether `frame` was queued after all."""
        protocol, out = self.protocol, self._out
        assert out is not None
        if protocol.slow_consumer is SlowConsumer.WAIT:
            protocol.counts.slow_skips += 1
            return False
        protocol.counts.slow_overflows += 1
        if protocol.slow_consumer is SlowConsumer.CLOSE:
            protocol.dropped(self, 1)
            self.close_nowait(CloseCode.TRY_AGAIN_LATER, "too slow")
            return False
        dropped = 1
        taken = False
        if protocol.slow_consumer is SlowConsumer.DROP_OLDEST:
            dropped = out.discard_oldest(len(frame), protocol.high_water, self._droppable())
            taken = out.size + len(frame) <= protocol.high_water
            if taken:
                self.write(frame)
                protocol.counts.sent += 1
            else:
                dropped += 1
        protocol.dropped(self, dropped)
        return taken

    def _droppable(self) -> Callable[[bytes], bool]:
        """Which queued frames the policy may drop."""
        return is_message

    def _offer_prepared(self, message: PreparedMessage) -> bool:
        """`_offer` for what goes to many."""
        return self._offer(message.frame)

    @asynccontextmanager
    async def send_stream(self, *, text: bool = False) -> AsyncIterator[MessageStream]:
        """Send one message piece by piece: ``async with ws.send_stream(text=True) as stream: await stream.send("…")``.

        Each piece is a fragment (5.4). Other messages to this peer wait until the block ends; control frames do not.
        So do not await `send` of the same connection inside the block: it would wait for its own end.
        Leaving the block by an exception cannot take back what was sent, so it closes the connection with 1011.
        """
        while (stream := self._rare.stream if self._rare is not None else None) is not None:
            await stream.wait_end()
        if self._state & 7 != OPEN:
            raise self._not_open()
        pool = self.engine.pool
        if pool.cork is not None and pool.job is self:
            self.uncork()
            pool.cork = None
        stream = self.rare().stream = self._message_stream(Opcode.TEXT if text else Opcode.BINARY)
        try:
            yield stream
            await stream.end()
        except BaseException:
            if stream.begun:
                self.close_nowait(CloseCode.INTERNAL_ERROR, "message broken off")
            raise
        finally:
            if self._rare is not None:
                self._rare.stream = None
                self.tidy()
            stream.wake()

    def _message_stream(self, opcode: int) -> MessageStream:
        return MessageStream(self, opcode)

    async def ping(self) -> float:
        """Send a Ping and wait for its Pong; returns the seconds between. Raises `ConnectionClosed`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._state & 7 != OPEN:
            raise self._not_open()
        engine = self.engine
        rare = self.rare()
        if rare.pings is None:
            rare.pings = {}
        engine.pings += 1
        payload = engine.pings.to_bytes(8, "big")
        waiter = engine.pool.waiter()
        begin = trio.current_time()
        rare.pings[payload] = waiter
        self.write(encode_frame(Opcode.PING, payload))
        try:
            if self.fd >= 0:
                await waiter.wait()
        finally:
            pings = self._rare.pings if self._rare is not None else None
            if pings is not None:
                pings.pop(payload, None)
                self.tidy()
        if self.closed is not None:
            raise self.closed_error()
        return trio.current_time() - begin

    @staticmethod
    def _answered(pings: dict[bytes, Any], payload: bytes) -> None:
        if payload in pings:
            for key in list(pings):  # 5.5.3: the answer to a Ping stands for the earlier ones
                pings.pop(key).wake()
                if key == payload:
                    break

    # -------------------------------------------------------------- closing

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Begin the closing handshake and wait for its end, `close_timeout` at most. A second call only waits."""
        self.close_nowait(code, reason)
        await self.wait_closed()

    def close_nowait(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Begin the closing handshake. Does nothing on a connection that is closing or closed.

        Raises `ValueError` for a code that may not be sent, or a reason of more than 123 bytes.
        """
        check_sendable(code, reason)
        self._say_goodbye(code, reason)

    def _say_goodbye(self, code: int, reason: str) -> None:
        if self._state & 7 != OPEN:
            return
        self.uncork()
        self.note_closed(ConnectionClosed(code, reason, "us"))
        if self._state & 7 == OPEN:  # uncorking may have found it broken
            self._state = self._state & ~(PINGED | 7) | CLOSING
            self.bound_state(self.protocol.close_timeout)
            self.write(encode_frame(Opcode.CLOSE, encode_close(code, reason)))
            self.resume_reading()

    def fail(self, error: ProtocolError) -> None:
        """The peer broke a rule: say so and shut our side (7.1.7)."""
        self.protocol.failed(self, error)
        if self._state & 7 == OPEN:
            self.uncork()
            self.note_closed(ConnectionClosed(error.code, error.reason, "us"))
            self.write(encode_frame(Opcode.CLOSE, encode_close(error.code, error.reason)))
        self._input = None
        self.linger()

    async def detach(self) -> DetachedStream:
        """Give the connection away as a Trio stream of frames: see `Connection.detach`.

        Messages that wait to be handled are in the stream, joined and masked with zeros; control frames before them
        have been answered. `RuntimeError` in the middle of a message that is delivered or sent in pieces.
        """
        self.uncork()
        return await super().detach()

    def _not_open(self) -> Exception:
        if self._state & 7 == OPENING:
            return RuntimeError("the connection is not open yet: send from on_open on")
        return self.closed_error()

    def _released(self) -> None:
        pings = self._rare.pings if self._rare is not None else None
        if pings:
            for waiter in pings.values():
                waiter.wake()


class MessageStream:
    """A message being sent in pieces; made by `WebSocket.send_stream`."""

    def __init__(self, ws: WebSocket, opcode: int) -> None:
        self._ws = ws
        self._opcode = opcode
        self._text = opcode == Opcode.TEXT
        self._waiters: list[Any] = []
        self.begun = False

    async def send(self, piece: str | bytes) -> None:
        """Send a piece (str for text, bytes for binary); waits while the peer is slow. Raises `ConnectionClosed`."""
        if isinstance(piece, str) is not self._text:
            raise TypeError(f"this message is {'text' if self._text else 'binary'}")
        await self._frame(piece.encode() if isinstance(piece, str) else piece, fin=False)

    async def end(self) -> None:
        """End the message."""
        await self._frame(b"", fin=True)

    async def _frame(self, payload: bytes, *, fin: bool) -> None:
        ws = self._ws
        await ws.wait_writable(len(payload))
        if ws._state & 7 != OPEN:
            raise ws.closed_error()
        ws._emit(self._encoded(payload, fin=fin))
        if fin:
            ws.protocol.counts.sent += 1
        self._opcode = Opcode.CONTINUATION
        self.begun = True

    def _encoded(self, payload: bytes, *, fin: bool) -> bytes:
        return encode_frame(self._opcode, payload, fin=fin)

    async def wait_end(self) -> None:
        """Wait until the message has ended."""
        await self._ws.engine.pool.wait_among(self._waiters)

    def wake(self) -> None:
        """Let those who wait for the end go on."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()


def broadcast(connections: Iterable[WebSocket], message: Message) -> int:
    """Send `message` to each connection that is open. Encodes it once, never waits; returns how many took it.

    For a peer that is slow its `SlowConsumer` policy decides; with WAIT it is left out. (`Server.websockets` has all
    connections of a server; `Server.connections` may have some that speak plain HTTP.)
    """
    prepared = message if isinstance(message, PreparedMessage) else PreparedMessage(message)
    frame = prepared.frame
    size = len(frame)
    taken = direct = 0
    protocol = None
    for ws in connections:
        if (
            ws._state == OPEN
            and ws._out is None
            and ws._rare is None
            and not ws.compresses
            and ws.engine.pool.job is not ws
        ):
            try:
                sent = ws._put(ws.fd, frame)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                ws.abort(broken(error))
                continue
            if ws.protocol is not protocol:  # counted together, as long as it is the same one
                if protocol is not None:
                    protocol.counts.note_sent(direct, size)
                protocol, direct = ws.protocol, 0
            direct += 1
            if sent != size:
                ws._queue(frame, sent)
            taken += 1
        elif ws._state & 7 == OPEN and ws._offer_prepared(prepared):
            taken += 1
    if protocol is not None:
        protocol.counts.note_sent(direct, size)
    return taken


def _long_header(first: bytes, size: int) -> bytes:
    """Header of a whole message of 126 bytes and more (5.2)."""
    if size < 65536:
        return first + b"\x7e" + size.to_bytes(2, "big")
    return first + b"\x7f" + size.to_bytes(8, "big")


def _size(event: Event | ProtocolError) -> int:
    """Bytes of memory that an event which is kept takes."""
    return sys.getsizeof(event.data if isinstance(event, Chunk) else event)


def is_message(frame: bytes) -> bool:
    """Whether a queued frame is a whole message, which may be dropped: not a fragment, not a control frame."""
    return frame[0] in (0x81, 0x82)
