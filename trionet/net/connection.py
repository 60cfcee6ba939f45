"""One peer: a descriptor, a few words of state, and nothing else while it is idle.

    state       what it means                          leaves by
    OPENING     no protocol-level greeting yet         the protocol says OPEN · deadline → CLOSED
    OPEN        in use                                 close → CLOSING · broken → CLOSED
    CLOSING     we said goodbye and still read         the peer's goodbye, or the deadline → CLOSED
    LINGERING   our side is shut, input is discarded   end of input, or the deadline → CLOSED
    CLOSED      descriptor released                    `connection_lost` has run → GONE
    GONE        over

Flags beside the state: BUSY (a handler of this connection is suspended), PAUSED (not watched for input), EOF (the
peer sends no more), PINGED (nothing came since a keepalive ping), FLUSHING (the next state as soon as the queue is
empty), WOKEN (queued to be run for another reason than input), and from LINGERING on FRESH (it has never been
OPEN). A connection that is merely OPEN has no flag set, so one comparison tells the ordinary case from all others;
and but for the moments when it is WOKEN, state and flags stay below 257, numbers that CPython keeps anyway.

At most one worker runs a connection. Input that comes while its handler is suspended is read and given to
`Protocol.overheard`, so that a busy connection is still heard.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Coroutine
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final
from typing import Protocol as Interface

import trio

from trionet.errors import ConnectionClosed
from trionet.net import system
from trionet.net.describe import closings, log_closed
from trionet.net.outbox import Outbox, Writev
from trionet.net.pool import Parked, Waiter
from trionet.net.stream import DetachedStream, RawStream

if TYPE_CHECKING:
    import ssl

    from trionet.net.counts import Counts
    from trionet.net.engine import Engine

__all__ = ["Connection", "ProtocolInterface", "broken"]

OPENING: Final = 0
OPEN: Final = 1
CLOSING: Final = 2
LINGERING: Final = 3
CLOSED: Final = 4
GONE: Final = 5
_STATE: Final = 7
BUSY: Final = 8
PAUSED: Final = 16
EOF: Final = 32
PINGED: Final = 64
FRESH: Final = 64  # the same bit: a connection that lingers is not pinged
FLUSHING: Final = 128
WOKEN: Final = 256  # rare enough to be beyond the small numbers

_NAMES = ("opening", "open", "closing", "lingering", "closed", "gone")
_FLAGS = (
    (BUSY, "busy"),
    (PAUSED, "paused"),
    (EOF, "eof"),
    (PINGED, "pinged"),
    (FLUSHING, "flushing"),
    (WOKEN, "woken"),
)

READ_SIZE: Final = 65536
_RESERVE: Final = 6144
_CONTROL: Final = 512
NEVER: Final = 1e9  # seconds


class ProtocolInterface(Interface):
    """What a connection calls; `trionet.protocols.base.Protocol` documents each method."""

    high_water: int
    low_water: int
    hard_limit: int
    read_ahead: int
    write_timeout: float
    counts: Counts

    def connection_made(self, connection: Any) -> None: ...
    def data_received(self, connection: Any, data: bytes) -> Coroutine[Any, Any, None]: ...
    async def eof_received(self, connection: Any) -> None: ...
    def lost(self, connection: Any) -> Coroutine[Any, Any, None] | None: ...
    def overheard(self, connection: Any, data: bytes) -> int: ...
    def eof_overheard(self, connection: Any) -> None: ...
    async def catch_up(self, connection: Any) -> None: ...
    def deadline_reached(self, connection: Any) -> int: ...
    def handler_failed(self, connection: Any, error: Exception) -> None: ...
    def unread(self, connection: Any) -> bytes: ...
    def drain(self, connection: Any) -> None: ...


class Rare:
    """What a connection needs at times: while busy, while closing, while somebody waits for it."""

    # Class attributes: making one is cheap, and few are set.
    closed: ConnectionClosed | None = None
    deadline = 0  # tick at which CLOSING or LINGERING ends
    heir: Any = None  # the stream that takes over the descriptor
    ended: list[Waiter | Parked] | None = None  # who waits for the end
    detached = False  # that is how it ended
    eof = False  # the end of input came while its handler was suspended
    held: Any = None  # input that came while its handler was suspended, as the protocol keeps it
    held_size = 0
    pings: Any = None
    request: Any = None
    stream: Any = None
    subprotocol: str | None = None

    def needed(self) -> bool:
        """Whether anything is kept here."""
        return bool(
            self.closed
            or self.held
            or self.eof
            or self.ended
            or self.pings
            or self.request
            or self.stream
            or self.deadline
        )


class Connection:
    """A byte connection. Protocols and handlers use it; the engine makes it.

    `data` is the application's own slot. All methods belong to the Trio thread.
    """

    __slots__ = ("_due", "_input", "_out", "_rare", "_seen", "_state", "data", "engine", "fd", "protocol")

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        self.engine = engine
        self.fd = fd
        self.protocol = protocol
        self.data: Any = None
        self._state = OPENING
        self._due = 0  # tick of its entry in the wheel; 0: none
        self._seen = engine.tick  # tick of the last input
        self._input: Any = None  # an unfinished piece of input, as the protocol keeps it
        self._out: Outbox | None = None
        self._rare: Rare | None = None

    def __repr__(self) -> str:
        state = self._state
        words = [_NAMES[state & _STATE], *(name for flag, name in _FLAGS if state & flag)]
        if self._out is not None:
            words.append(f"{self._out.size} bytes queued")
        return f"<{type(self).__name__} fd={self.fd} {', '.join(words)}>"

    def fileno(self) -> int:
        """The descriptor, or -1 when closed."""
        return self.fd

    # ------------------------------------------------------------- about it

    @property
    def peer(self) -> Any:
        """The peer's address, asked from the kernel: ``(host, port, …)``; None on a Unix socket or when gone."""
        if self.fd < 0:
            return None
        with system.borrowed_socket(self.fd) as sock:
            try:
                name = sock.getpeername()
            except OSError:
                return None
        return name or None

    @property
    def local(self) -> Any:
        """Our own address on this connection."""
        if self.fd < 0:
            return None
        with system.borrowed_socket(self.fd) as sock:
            return sock.getsockname() or None

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS object: `version()`, `cipher()`, `getpeercert()`, …; None without TLS, and when closed."""
        return None

    @property
    def closed(self) -> ConnectionClosed | None:
        """How the connection ended; None while it can be used."""
        return self._rare.closed if self._rare is not None else None

    @property
    def is_open(self) -> bool:
        """Whether it is in use: greeted, and not closing."""
        return self._state & _STATE == OPEN

    @property
    def is_opening(self) -> bool:
        """Whether it was not greeted yet."""
        return self._state & _STATE == OPENING

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and everybody was told."""
        return self._state & _STATE == GONE

    @property
    def queued(self) -> int:
        """Bytes waiting for the peer to read (frames count `FRAME_COST` more each)."""
        return self._out.size if self._out is not None else 0

    def rare(self) -> Rare:
        """The record of rare things, made when first needed."""
        if self._rare is None:
            self._rare = Rare()
        return self._rare

    def tidy(self) -> None:
        """Drop the record of rare things when nothing is in it."""
        if self._rare is not None and not self._rare.needed():
            self._rare = None

    # --------------------------------------------------- the system's calls

    # Traits put methods of their own in the place of these: ``_get(fd, size)`` raises `BlockingIOError` when there is
    # nothing, and returns nothing at the end of input; ``_put(fd, data)`` raises it too, and may take only a part.
    _get = staticmethod(system.read)
    _put = staticmethod(system.write)
    _put_many: Writev | None = None  # what takes the place of writev(2)

    # -------------------------------------------------------------- reading

    async def run(self) -> bool | None:
        """Read once and give the bytes to the protocol (the pool calls this when the connection is readable)."""
        if self._state & BUSY:  # queued twice, and the first of the two jobs is suspended
            return None
        data = self._receive()
        if data:
            if self._state & _STATE < LINGERING:
                handling = self.protocol.data_received(self, data)
                del data  # or it would be kept for as long as the handler waits
                await handling
        elif data is not None:
            await self._at_eof()
        if self._state != OPEN:
            return await self._settle()
        return None

    def _receive(self) -> bytes | None:
        """What can be read now; empty at the end of input; None when there is nothing."""
        if self.fd < 0 or self._state & (PAUSED | EOF):
            return None
        size = READ_SIZE
        if self._out is not None and (size := self._room()) <= 0:
            self.pause_reading()
            return None
        try:
            data = self._get(self.fd, size)
        except BlockingIOError:
            return None  # readiness is a hint
        except OSError as error:
            self.abort(broken(error))
            return None
        self._seen = self.engine.tick
        self.protocol.counts.received_bytes += len(data)
        if self._state & (PINGED | _STATE) == PINGED | OPEN:
            self._state -= PINGED
        return data

    async def _at_eof(self) -> None:
        self._state |= EOF
        self.pause_reading()
        if self._state & _STATE == LINGERING:
            self.abort()
        else:
            await self.protocol.eof_received(self)

    def overhear(self) -> None:
        """Input for a connection whose handler is suspended: read it, let the protocol keep it, within `read_ahead`."""
        rare = self.rare()
        data = self._receive()
        if data is not None and self._state & _STATE >= LINGERING:  # discarded; the end of input ends it
            if not data:
                self.abort()
        elif data:
            if self.protocol.overheard(self, data) >= self.protocol.read_ahead or self.throttled:
                self.pause_reading()
        elif data is not None:
            self._state |= EOF
            self.pause_reading()
            rare.eof = True
            self.protocol.eof_overheard(self)

    async def _settle(self) -> bool | None:
        """End of a job on anything but a plain open connection."""
        while (rare := self._rare) is not None or self._state & WOKEN:
            if rare is not None and rare.held_size and self._state & BUSY:
                await self.protocol.catch_up(self)
            elif rare is not None and rare.eof:
                rare.eof = False
                if self._state & _STATE < LINGERING:
                    await self.protocol.eof_received(self)
            elif (handling := self._roused()) is not None:
                await handling
            else:
                self._state &= ~WOKEN
                break
        worker = self.engine.pool.running
        if self._state & _STATE == CLOSED and worker is not None and worker.cancelled:
            # What the last call awaits would be cancelled here: another job makes it.
            self._state |= WOKEN
            self.engine.pool.submit(self)
        elif self._state & _STATE == CLOSED:
            self._state += GONE - CLOSED
            if not self._state & FRESH and (closed := self.closed) is not None:
                code = 0 if self.rare().detached else closed.code
                self.protocol.counts.note_closed(code, closed.by)
            lost = self.protocol.lost(self)
            if lost is not None:
                await lost
        busy = self._state & BUSY
        self._state -= busy
        if self._state & PAUSED:
            self.resume_reading()
        self.tidy()
        return self.engine.pool.job_done() if busy else None

    def _roused(self) -> Awaitable[None] | None:
        """A job ends, and there is something about the connection that a waiting handler may have to know."""
        return None

    def suspended(self) -> None:
        """The pool says: the job running for this connection has yielded."""
        self._state |= BUSY

    @property
    def title(self) -> str:
        """The name of a worker's task while it waits for this connection's handler."""
        return "trionet handler"

    def context_changed(self, context: contextvars.Context) -> None:
        """The pool says: the job running for this connection has set a context variable."""

    def cut_off(self) -> None:
        """The pool says: the job running for this connection was cancelled on its own."""
        self._let_go()

    def wake(self) -> None:
        """Have it run soon, though nothing may have come. Does nothing while it runs or is suspended: see `_roused`."""
        if not (self._state & (BUSY | WOKEN) or self.engine.runs(self)):
            self._state |= WOKEN
            self.engine.pool.submit(self)

    def failed(self, error: Exception) -> None:
        """The pool says: the job running for this connection has raised `error`."""
        self._state &= ~BUSY
        self.blame(error)
        self._let_go()

    def blame(self, error: Exception) -> None:
        """Tell the protocol that `error` was raised for this connection. What it raises itself costs this one, too."""
        try:
            self.protocol.handler_failed(self, error)
        except Exception as failure:  # noqa: BLE001 - it is logged
            self.engine.complain(self, "handler_failed failed, connection closed", error=failure)
            self.abort()

    def _let_go(self) -> None:
        """A job was broken off: what it would have handled next is dropped."""
        self._state &= ~BUSY
        if self._rare is not None:
            self._rare.held = None
            self._rare.held_size = 0
        if self._state & _STATE == CLOSED or (self._rare is not None and self._rare.eof):
            self._state |= WOKEN
            self.engine.pool.submit(self)
        self.resume_reading()

    @property
    def throttled(self) -> bool:
        """Whether so much is kept for this peer, to be sent or to be handled, that we do not read more from it."""
        out = self._out
        return out is not None and (out.size >= self.protocol.high_water or self._room() <= 0)

    def _room(self) -> int:
        """How much to read while something waits to be sent: what is read may have to be kept as well.

        The frames of a suspended handler, and a message of which only a part came, need some room too. While none is
        suspended there is always room for control frames.
        """
        assert self._out is not None
        limit = self.protocol.high_water
        kept = self._out.size + (self._rare.held_size if self._rare is not None else 0)
        room = min(READ_SIZE, limit - min(_RESERVE, limit // 4) - kept)
        return room if self._state & BUSY else max(_CONTROL, room)

    def pause_reading(self) -> None:
        """Stop watching for input; the kernel's buffer, then the peer, feel it."""
        if not self._state & PAUSED and self.fd >= 0:
            self._state |= PAUSED
            self.engine.poller.modify(self.fd, 0)

    def resume_reading(self) -> None:
        """Watch for input again, unless there is a reason not to."""
        state = self._state
        if state & FLUSHING and state & _STATE < LINGERING:
            return  # `finish`: nothing more is read
        if state & BUSY and self._rare is not None and self._rare.held_size >= self.protocol.read_ahead:
            return
        if state & PAUSED and not state & EOF and self.fd >= 0 and not self.throttled:
            self._state = state & ~PAUSED
            self.engine.poller.modify(self.fd, 1)

    # -------------------------------------------------------------- writing

    def write(self, data: bytes) -> None:
        """Send `data`, queueing what the kernel does not take. Never waits; `data` is taken whole, or not at all.

        Does nothing on a closed connection. Crossing the protocol's `hard_limit` closes the connection: whoever may
        send much asks `throttled` first, or awaits `wait_writable`.
        """
        out = self._out
        if out is not None:
            self.protocol.counts.sent_bytes += len(data)
            out.append(data)
            if self.throttled:
                self.pause_reading()
            if out.size > self.protocol.hard_limit:
                self.engine.overflowed += 1
                self.protocol.counts.overflowed += 1
                self.engine.complain(self, "closed, it does not read what it is sent", level=logging.WARNING)
                self.abort(ConnectionClosed(1013, "the peer does not read what it is sent", "us"))
            return
        if self.fd < 0:
            return
        try:
            sent = self._put(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.abort(broken(error))
            return
        self.protocol.counts.sent_bytes += len(data)
        if sent != len(data):
            self._queue(data, sent)

    def _new_outbox(self) -> Outbox:
        return Outbox(self.engine.tick)

    def _queue(self, data: bytes, sent: int) -> None:
        engine = self.engine
        out = self._out = self._new_outbox()
        out.append(data, sent)
        try:
            engine.writer.register(self.fd, 4)
        except OSError as error:  # no memory, or fs.epoll.max_user_watches
            self.abort(broken(error))
            return
        if self.protocol.write_timeout < NEVER:
            engine.set_deadline(self, engine.tick + engine.wheel.ticks(self.protocol.write_timeout))
        if self.throttled:
            self.pause_reading()

    def flush(self) -> None:
        """The descriptor takes more: write what is queued (the engine's flusher calls this)."""
        out = self._out
        if out is None:
            self.engine.writer.unregister(self.fd)
            return
        try:
            emptied = out.flush(self.fd, self.engine.tick, self._put_many)
        except OSError as error:
            self.abort(broken(error))
            return
        if emptied:
            self._out = None
            self.engine.writer.unregister(self.fd)
        if emptied or out.size <= self.protocol.low_water:
            if out.waiters:
                out.wake()
            if self._state & PAUSED:
                self.resume_reading()
        if emptied and self._state & FLUSHING:
            self._flushed()

    async def wait_writable(self, size: int = 0) -> None:
        """Wait until there is room for `size` more bytes, or the queue is empty.

        The handler is parked: it holds no worker meanwhile. Raises `ConnectionClosed`, `trio.Cancelled`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while (out := self._out) is not None and out.size + size > self.protocol.high_water:
            await self.engine.pool.wait_among(out.waiters)
        if self.fd < 0:
            raise self.closed_error()

    def stalled(self) -> bool:
        """Whether the peer has taken nothing of what is queued for `write_timeout`."""
        out, timeout = self._out, self.protocol.write_timeout
        return out is not None and self.engine.tick - out.since >= self.engine.wheel.ticks(timeout)

    # -------------------------------------------------------------- closing

    def closed_error(self) -> ConnectionClosed:
        """A fresh exception that says how this connection ended."""
        closed = self.closed
        if closed is None:
            return ConnectionClosed(1006, "", "network")
        return ConnectionClosed(closed.code, closed.reason, closed.by)

    def note_closed(self, closed: ConnectionClosed) -> None:
        """Remember why it ends; the first reason stays."""
        rare = self.rare()
        if rare.closed is None:
            rare.closed = closed

    def finish(self, closed: ConnectionClosed | None = None) -> None:
        """Close after what is queued has been sent (within `write_timeout`). Nothing more is read."""
        if self._rare is None or self._rare.closed is None:
            self.note_closed(closed or ConnectionClosed(1000, "", "us"))
        if self.fd < 0:
            return
        if self._out is None:
            self._release()
        else:
            self._state |= FLUSHING
            self.pause_reading()

    def linger(self, seconds: float = 2.0) -> None:
        """Shut our side once all is sent, then read and discard for a while, so that the peer gets our last words.

        Closing with unread input would make the kernel send a reset, which may overtake them (RFC 9112, 9.6).
        """
        self.note_closed(ConnectionClosed(1006, "", "us"))
        if self._state & _STATE >= LINGERING:
            return
        self._leave(LINGERING)
        if self._out is None:
            self.bound_state(seconds)
            self._flushed()
        else:  # the bound for discarding begins when the last words have been sent
            self.bound_state(self.protocol.write_timeout)
            self._state |= FLUSHING
        if self._state & EOF:
            self.finish()
        self.resume_reading()

    def _flushed(self) -> None:
        self._state &= ~FLUSHING
        if self._state & _STATE == LINGERING and not self._state & EOF:
            system.shutdown_write(self.fd)
            self.bound_state(2.0)
        else:
            self._release()

    def abort(self, closed: ConnectionClosed | None = None) -> None:
        """Close at once; what is queued is lost."""
        self.note_closed(closed or ConnectionClosed(1006, "", "us"))
        self._release()

    def reset(self, closed: ConnectionClosed | None = None) -> None:
        """Close at once with a TCP reset: nothing stays in the kernel, neither queue nor TIME_WAIT."""
        if self.fd >= 0:
            system.close_resets(self.fd)
        self.abort(closed)

    def _release(self) -> None:
        """Mark, unregister, close: in this order. `connection_lost` follows, as a job or at the end of this one."""
        fd, engine = self.fd, self.engine
        if fd < 0:
            return
        if closings.isEnabledFor(logging.DEBUG) and (self._rare is None or self._rare.heir is None):
            log_closed(self)
        self.fd = -1
        self._leave(CLOSED)
        self._due = 0
        self._input = None
        engine.forget(fd)
        out = self._out
        if out is not None:
            self._out = None
            engine.writer.unregister(fd)
        rare = self._rare
        assert rare is not None  # it says why
        if rare.heir is None:
            system.close(fd)
        else:
            engine.given_away(rare.heir)
        if out is not None:
            out.wake()
        if rare.ended is not None:
            ended, rare.ended = rare.ended, None
            for waiter in ended:
                waiter.wake()
        if rare.pings is not None:
            self._released()
        if not (self._state & BUSY or engine.runs(self)):
            engine.pool.submit(self)

    def _released(self) -> None:
        """The descriptor is released, and somebody waits for a Pong."""

    # ----------------------------------------------------------- giving away

    async def detach(self) -> DetachedStream:
        """Give the connection away: return it as a Trio stream that begins with what was read and not handled yet.

        Waits, within `write_timeout`, until what is queued has been sent. Afterwards this object is closed (1006,
        "detached"), the protocol's last call follows as for any end, and the stream belongs to the caller. The server
        goes on counting it as a connection until it is closed; at a hard stop it is closed, whoever uses it. Raises
        `ConnectionClosed`; `RuntimeError` where what was read cannot be given back. Cancelled, nothing has changed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while (out := self._out) is not None:
            await self.engine.pool.wait_among(out.waiters)
        if self.fd < 0 or self.closed is not None:
            raise self.closed_error()
        return self.give_away()

    def give_away(self) -> DetachedStream:
        """The same at once. Nothing may be queued."""
        unread = self.protocol.unread(self)
        heir = DetachedStream(self.engine, self._stream(), unread)
        rare = self.rare()
        rare.detached = rare.closed is None
        self.note_closed(ConnectionClosed(1006, "detached", "us"))
        rare.heir = heir
        rare.held, rare.held_size, rare.eof = None, 0, False  # it is in `unread`
        self._release()
        rare.heir = None
        return heir

    def _stream(self) -> RawStream:
        """A stream of Trio's that takes over the descriptor."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(system.surrender(self.fd)))

    async def wait_closed(self) -> None:
        """Wait until the descriptor is released."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.fd >= 0:
            rare = self.rare()
            if rare.ended is None:
                rare.ended = []
            await self.engine.pool.wait_among(rare.ended)

    # --------------------------------------------------------------- states

    def opened(self) -> None:
        """OPENING → OPEN."""
        self._state += OPEN - OPENING
        engine, counts = self.engine, self.protocol.counts
        engine.opening -= 1
        counts.opened += 1
        begun = engine.begun.pop(self.fd, None)
        if begun is not None:
            counts.handshakes.record((perf_counter_ns() - begun) // 1000)
            if not engine.begun:
                engine.begun.clear()  # an empty dict keeps the room it once needed

    def bound_state(self, seconds: float) -> None:
        """CLOSING and LINGERING end by themselves."""
        engine = self.engine
        tick = engine.tick + engine.wheel.ticks(seconds)
        self.rare().deadline = tick
        engine.set_deadline(self, tick)

    def _leave(self, state: int) -> None:
        """Go on to LINGERING or CLOSED."""
        old = self._state
        fresh = old & FRESH if old & _STATE >= LINGERING else 0
        if old & _STATE == OPENING:
            self.engine.opening -= 1
            fresh = FRESH
        keep = BUSY | WOKEN if state == CLOSED else BUSY | WOKEN | PAUSED | EOF | FLUSHING
        self._state = old & keep | fresh | state


def broken(error: OSError) -> ConnectionClosed:
    """What a system call's error means for the connection."""
    return ConnectionClosed(1006, error.strerror or str(error), "network")
