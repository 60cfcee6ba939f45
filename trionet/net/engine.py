"""Poller, pool and wheel joined: connections go in, their jobs come out.

One turn, as in libuv's design page:

1. the leader among the pool's workers waits until the poller's descriptor is readable;
2. it fetches a batch. A connection whose handler is suspended is overheard at once; the others are queued as jobs;
3. workers read, the protocol parses, handlers run, answers go straight to the kernel;
4. what the kernel does not take is queued, and the flusher, a task with a poller of its own, writes it later.
   It runs whatever the workers do: write is never gated, or a pool full of handlers waiting for slow readers
   would wait for itself;
5. every tick the wheel names the connections whose deadline has come.
"""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import Any

import trio

from trionet.errors import nothing_but
from trionet.net import system
from trionet.net.connection import BUSY, OPENING, Connection, ProtocolInterface
from trionet.net.counts import durations
from trionet.net.describe import closings, describe, log_stream_closed
from trionet.net.limited import LimitedLog
from trionet.net.poller import Poller, open_poller
from trionet.net.pool import TaskPool, Timed, split_error
from trionet.net.stream import DetachedStream
from trionet.net.wheel import Wheel

__all__ = ["Engine"]

log = logging.getLogger("trionet")

_BATCH = 256  # events in one fetch: a bound after which accepting, timers and other tasks get their turn
_DUE_AT_ONCE = 64
SAMPLING = 64  # one job in so many is timed


class Engine:
    """The running machinery of a server. Made by `trionet.server`; hand-made servers may use it too."""

    def __init__(self, pool: TaskPool, *, backend: str | None = None, resolution: float = 0.25) -> None:
        self.pool = pool
        self.wheel = Wheel(resolution)
        self.tick = self.wheel.tick
        self.poller: Poller
        self.writer: Poller
        self.table: list[Any] = [None] * 64  # connections and listeners by descriptor
        self.running = False
        self.draining = False
        self.farewell = (1001, "server is going away")  # said to WebSockets while draining
        self.connections = 0
        # Of them, those given away, and what `doorkeeper` is told at their end.
        self.streams: dict[DetachedStream, Any] = {}
        self.opening = 0  # of them, those in state OPENING
        self.begun: dict[int, int] = {}  # when those were accepted, in ns, by descriptor
        self.opened = 0
        self.overflowed = 0
        # Ticks of accepting by descriptor; kept when somebody wants to know.
        self.born: array[int] | None = None
        self.pings = random.getrandbits(62)  # what a Ping carries: not to be guessed by whoever sends Pongs
        self.stale = 0
        self.tls: Any = None  # what TLS connections share, made with the first: `tls_session.Workbench`
        self.lag = 0.0  # seconds by which the last tick came late
        self.lag_max = 0.0
        self.lags = durations()  # of each tick, in microseconds
        self._untimed = SAMPLING  # jobs until the next is timed
        self.limited = LimitedLog()  # for what a peer or a load can cause
        self.room: trio.Event | None = None  # set when a connection ends, for a gate that waits for room
        self.doorkeeper: Any = None  # asks admission policies, if there are any: `doorkeeper.Doorkeeper`
        self._backend = backend
        self._tasks: trio.Nursery

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        """Run it for the length of the block; leaving closes every connection and ends every task."""
        async with trio.open_nursery() as nursery:
            self.poller = open_poller(self._backend, nursery=nursery)
            self.writer = open_poller(self._backend, nursery=nursery)
            self._poll = self.poller.poll
            self.pool.source = self
            self.running = True
            nursery.start_soon(self._flush_loop)
            nursery.start_soon(self._tick_loop)
            try:
                async with self.pool.open(), trio.open_nursery() as self._tasks:
                    try:
                        yield self
                    finally:
                        nursery.cancel_scope.cancel()
            finally:
                await self._close_all()
                self.limited.flush(everything=True)
                self.poller.close()
                self.writer.close()
                nursery.cancel_scope.cancel()

    # --------------------------------------------------- source of the pool

    def fetch(self) -> None:
        """Queue the connections that are readable now."""
        table, ready = self.table, self.pool.ready
        events = self._poll(_BATCH)
        before = len(ready)
        for fd, _ in events:
            connection = table[fd]
            if connection is None:
                self.stale += 1
                self.poller.unregister(fd)
            elif connection._state & BUSY:
                self._overhear(connection)
            else:
                ready.append(connection)
        self._untimed -= len(ready) - before
        if self._untimed < 0:
            self._sample()

    def _sample(self) -> None:
        """Have one in `SAMPLING` of the jobs just queued timed, from now to its end."""
        ready = self.pool.ready
        while self._untimed < 0:
            job = ready[self._untimed]
            if isinstance(job, Connection) and job.is_open:
                ready[self._untimed] = Timed(self.pool, job)
            self._untimed += SAMPLING

    def _overhear(self, connection: Connection) -> None:
        try:
            connection.overhear()
        except Exception as error:  # noqa: BLE001 - logged, and told to its protocol
            self.complain(connection, "failed while it was busy", error=error)
            connection.blame(error)

    async def wait(self) -> None:
        """Wait until `fetch` may find something."""
        await self.poller.wait()

    # ---------------------------------------------------------- connections

    def add(self, fd: int, protocol: ProtocolInterface, connection_class: type[Connection]) -> Connection:
        """Take over a connected, non-blocking descriptor. Raises `OSError` (and closes it) if it cannot be watched."""
        connection = connection_class(self, fd, protocol)
        try:
            self.poller.register(fd)
        except OSError:  # no memory, or fs.epoll.max_user_watches
            system.close(fd)
            if (seat := getattr(connection, "_seat", None)) is not None:
                self.doorkeeper.left(seat)
            raise
        try:
            self.table[fd] = connection
        except IndexError:
            self._place(fd, connection)
        self.connections += 1
        self.opened += 1
        self.opening += 1
        if self.born is not None:
            self._note_birth(self.born, fd)
        try:
            protocol.connection_made(connection)
        except Exception as error:  # noqa: BLE001 - a protocol's mistake costs its connection only
            connection.blame(error)
        if connection._state & 7 == OPENING:
            self.begun[fd] = perf_counter_ns()
        return connection

    def watch(self, fd: int, job: Any) -> None:
        """Have `job` run whenever `fd` is readable: a listener's accepting."""
        self._place(fd, job)
        self.poller.register(fd)

    def unwatch(self, fd: int) -> None:
        """End that; before `fd` is closed."""
        self.table[fd] = None
        self.poller.unregister(fd)

    def _place(self, fd: int, job: Any) -> None:
        table = self.table
        if fd >= len(table):
            table.extend([None] * max(len(table) // 8, fd + 1 - len(table)))
        table[fd] = job

    def _note_birth(self, born: array[int], fd: int) -> None:
        if fd >= len(born):
            born.extend([0] * (fd + 1 - len(born)))
        born[fd] = self.tick

    def age(self, fd: int) -> float | None:
        """Seconds since the connection with this descriptor was accepted, if that was noted."""
        born = self.born
        tick = born[fd] if born is not None and 0 <= fd < len(born) else 0
        return (self.tick - tick) * self.wheel.resolution if tick else None

    def forget(self, fd: int) -> None:
        """`fd` is about to be closed."""
        self.table[fd] = None
        self.connections -= 1
        if self.begun:
            self.begun.pop(fd, None)
        self.poller.unregister(fd)
        if self.room is not None:
            self.room.set()

    def given_away(self, stream: DetachedStream) -> None:
        """A connection goes on as `stream`: it counts until that is closed."""
        self.connections += 1
        self.streams[stream] = None

    def stream_closed(self, stream: DetachedStream) -> None:
        """That is the end of it. A second call does nothing."""
        if stream in self.streams:
            if closings.isEnabledFor(logging.DEBUG):
                log_stream_closed(stream)
            seat = self.streams.pop(stream)
            self.connections -= 1
            if seat is not None:
                self.doorkeeper.left(seat)
            if self.room is not None:
                self.room.set()

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any, name: object = None) -> None:
        """Start a task that ends with the engine: cancelled, when it is left. What it raises ends the engine."""
        self._tasks.start_soon(function, *args, name=name)

    def complain(
        self,
        connection: Connection,
        message: str,
        *args: object,
        error: BaseException | None = None,
        level: int = logging.ERROR,
        **options: Any,
    ) -> None:
        """Log something about a connection: a record that a flood of its kind cannot multiply (see `LimitedLog`)."""
        options.setdefault("fields", lambda: describe(connection))
        self.limited.log(log, level, "%r: " + message, connection, *args, error=error, **options)

    def runs(self, connection: Connection) -> bool:
        """Whether the code that asks is a job of this connection."""
        return self.pool.running is not None and self.pool.job is connection

    def __iter__(self) -> Iterator[Connection]:
        """The connections there are now; safe against changes while iterating."""
        for fd in range(len(self.table)):
            connection = self.table[fd]
            if isinstance(connection, Connection):
                yield connection

    def set_deadline(self, connection: Connection, tick: int) -> None:
        """See to it that the protocol's `deadline_reached` is called at `tick`, or earlier."""
        if not connection._due or tick < connection._due:
            connection._due = self.wheel.add(connection.fd, tick)

    # ---------------------------------------------------------------- tasks

    async def _flush_loop(self) -> None:
        writer, table = self.writer, self.table
        while True:
            await writer.wait()
            for fd, _ in writer.poll():
                connection = table[fd]
                if connection is None:
                    writer.unregister(fd)
                else:
                    try:
                        connection.flush()
                    except Exception as error:  # noqa: BLE001 - told to its protocol
                        connection.blame(error)
                        connection.abort()

    async def _tick_loop(self) -> None:
        next_tick = trio.current_time()
        while True:
            next_tick += self.wheel.resolution
            await trio.sleep_until(next_tick)
            if self.limited.pending:
                self.limited.flush()
            late = trio.current_time() - next_tick
            self.lag = late
            self.lag_max = max(late, self.lag_max)
            self.lags.record(int(late * 1e6))
            if late > 1:  # suspended, or a handler that computes: do not hurry through the ticks missed
                next_tick += late
            due = self.wheel.advance()
            self.tick = tick = self.wheel.tick
            for count, fd in enumerate(due):
                connection = self.table[fd]
                if connection is not None and connection._due == tick:
                    self._deadline(connection)
                if count % _DUE_AT_ONCE == _DUE_AT_ONCE - 1:
                    await trio.lowlevel.checkpoint()

    def _deadline(self, connection: Connection) -> None:
        connection._due = 0
        try:
            tick = connection.protocol.deadline_reached(connection)
        except Exception as error:  # noqa: BLE001 - logged, and told to its protocol
            self.complain(connection, "deadline failed", error=error)
            connection.blame(error)
            return
        if tick and connection.fd >= 0:
            self.set_deadline(connection, max(tick, self.tick + 1))

    # ------------------------------------------------------------------ end

    async def _close_all(self) -> None:
        """Hard stop: what is open is closed; each `connection_lost` runs, under cancellation, to its first wait."""
        for stream in list(self.streams):
            stream.close_now()
        # Those cut off, and those waiting for their last job, may have released their descriptor before.
        jobs = dict.fromkeys([*self, *self.pool.cut_off, *self.pool.ready])
        connections = [job for job in jobs if isinstance(job, Connection)]
        for connection in connections:
            connection._state &= ~BUSY
            connection.abort()
        self.pool.cut_off.clear()
        self.pool.ready.clear()
        with trio.CancelScope() as scope:
            scope.cancel()
            async with trio.open_nursery() as nursery:  # cleaning up may wait, shielded
                rest = iter(connections)
                for _ in range(int(min(self.pool.size, len(connections)))):
                    nursery.start_soon(self._end_some, rest)

    @staticmethod
    async def _end_some(connections: Iterator[Connection]) -> None:
        for connection in connections:
            for _ in range(3):  # first a handler is cancelled, then the end is told
                if connection.is_gone:
                    break
                try:
                    await connection.run()
                except BaseException as error:
                    own, rest = split_error(error)
                    if own is not None:
                        connection.blame(own)
                    if rest is not None and not nothing_but(trio.Cancelled, rest):
                        raise
