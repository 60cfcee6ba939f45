"""A task and a Trio stream for each connection: ``async def handler(stream)``, as `trio.serve_tcp` has it.

waits     an ordinary idle connection: no task, no stream. Left by the first bytes (or at once, if `eager`)
queued    there are `max_tasks` tasks. Left when one ends, first come, first served
served    the handler's task has it. Left when the handler ends
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import trio

from trionet.adapters._tasks import ConnectionTasks
from trionet.errors import ConfigurationError
from trionet.net.connection import OPEN, PAUSED, Connection
from trionet.net.stream import DetachedStream
from trionet.net.traits import NO_SLOTS
from trionet.protocols.base import Protocol

__all__ = ["StreamConnection", "StreamProtocol"]


class StreamConnection(Connection):
    """A connection that waits for its task."""

    __slots__ = NO_SLOTS

    protocol: StreamProtocol

    async def run(self) -> bool | None:
        if self._state & 7 == OPEN and (self._input is not None or self.protocol.eager):
            self.protocol.begin(self)
            return await self._settle()
        return await super().run()

    def _receive(self) -> bytes | None:
        # What it sends stays in the kernel while there is no place.
        if self._state & 7 == OPEN and self.protocol.queue(self):
            return None
        data = super()._receive()
        if data is None and self._state & 7 == OPEN:  # a part of a TLS record: it leaves its turn to others
            self.protocol.tasks.invite()
        return data

    def resume_reading(self) -> None:
        if self._state & 7 != OPEN or self not in self.protocol.tasks.waiting:
            super().resume_reading()


class StreamProtocol(Protocol):
    """Runs ``await handler(stream)`` in a task for each connection; closes the stream when it ends.

    The stream is a `DetachedStream`. The task is started when the first bytes have come, by a worker of the pool, so
    nothing starts while all are taken; `eager` starts it as soon as the connection is accepted, for protocols where
    the server speaks first. `max_tasks`: how many run at once; beyond, this protocol's listeners accept nothing, and
    what was accepted waits. `idle_timeout`: seconds to wait for the first bytes; then time is the handler's affair.

    An exception of the handler is logged and counted (`failures`), and costs its own connection. When the server
    drains, handlers may go on for `drain_grace` seconds after the last was told, then they are cancelled; a hard stop
    cancels them at once.
    """

    connection_class: type[Connection] = StreamConnection

    def __init__(
        self,
        handler: Callable[[DetachedStream], Awaitable[object]],
        *,
        eager: bool = False,
        max_tasks: int = 10_000,
        idle_timeout: float | None = 300.0,
        drain_grace: float = 5.0,
    ) -> None:
        super().__init__(idle_timeout=idle_timeout)
        if drain_grace < 0:
            raise ConfigurationError(f"drain_grace is {drain_grace}; it cannot be negative")
        self.handler = handler
        self.eager = eager
        self.tasks = ConnectionTasks(max_tasks, f"trionet stream {name_of(handler)}", drain_grace)

    @property
    def failures(self) -> int:
        """Handlers that raised."""
        return self.tasks.failures

    def full(self) -> bool:
        """Whether there are `max_tasks` tasks."""
        return self.tasks.full

    # ---------------------------------------------------------- connections

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        if self.eager:
            connection.engine.pool.submit(connection)

    async def data_received(self, connection: Connection, data: bytes) -> None:
        """The first bytes."""
        connection._input = data
        self.begin(connection)

    def begin(self, connection: Connection) -> None:
        """Give the connection to a task, if there is a place."""
        if connection.engine.draining:
            self.drain(connection)
        elif not self.queue(connection):
            self.tasks.start(connection.engine, connection.give_away(), self._serve)

    def queue(self, connection: Connection) -> bool:
        """Let it wait, if there is no place."""
        if not self.tasks.full:
            return False
        self.tasks.waiting[connection] = partial(self._look_again, connection)
        connection.pause_reading()
        return True

    def _look_again(self, connection: Connection) -> None:
        if self.eager or connection._input is not None:
            connection._state &= ~PAUSED
            connection.engine.pool.submit(connection)
        else:
            connection.resume_reading()

    @trio.lowlevel.disable_ki_protection
    async def _serve(self, stream: DetachedStream) -> None:
        await self.handler(stream)

    def lost(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        self.tasks.waiting.pop(connection, None)
        self.tasks.invite()  # it may have been this one's turn
        return super().lost(connection)

    def next_deadline(self, connection: Connection) -> int:
        if connection in self.tasks.waiting:  # we let the peer wait, not it us
            engine = connection.engine
            return engine.tick + engine.wheel.ticks(self.idle_timeout) if self.idle_timeout else 0
        return super().next_deadline(connection)


def name_of(handler: object) -> str:
    """What a handler is called in logs and tools."""
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__
