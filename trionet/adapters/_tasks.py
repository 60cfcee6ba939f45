"""The tasks of a protocol that gives each connection one: how many, who waits for a place, what they raise."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from trio.lowlevel import enable_ki_protection

from trionet.errors import ConfigurationError
from trionet.net.describe import address_text
from trionet.net.engine import Engine
from trionet.net.pool import TaskPool, split_error
from trionet.net.stream import DetachedStream

__all__ = ["ConnectionTasks"]

log = logging.getLogger("trionet")


class _Host:
    """The nursery of the tasks of one engine. A protocol may serve several."""

    def __init__(self, grace: float | None) -> None:
        self.bound = partial(self._bound, grace or 0.0)  # one object for all streams
        self.nursery: trio.Nursery | None = None
        self.pending: list[tuple[DetachedStream, Callable[..., Awaitable[None]], tuple[Any, ...]]] = []
        self.deadline = float("inf")

    def _bound(self, seconds: float) -> None:
        self.deadline = trio.current_time() + seconds
        if self.nursery is not None:
            self.nursery.cancel_scope.deadline = self.deadline


class ConnectionTasks:
    """Counts them. `limit`: how many live at once; those beyond wait, unread, for a place.

    `grace`: seconds that they have when the server drains, counted from when the last of them was told. None: they
    are told in another way.
    """

    def __init__(self, limit: int, name: str, grace: float | None = None) -> None:
        if limit < 1:
            raise ConfigurationError(f"max_tasks is {limit}; no connection could ever be served")
        self.limit = limit
        self.grace = grace
        self.name = name  # what Trio's tools show; one string for all
        self.living = 0
        self.failures = 0
        self._hosts: dict[Engine, _Host] = {}
        self.waiting: dict[object, Callable[[], None]] = {}  # who waits for a place, and how to tell it

    @property
    def full(self) -> bool:
        """Whether there is no place."""
        return self.living >= self.limit

    def start(
        self, engine: Engine, stream: DetachedStream, function: Callable[..., Awaitable[None]], *args: Any
    ) -> None:
        """Run ``function(stream, *args)`` in a task; the stream is closed with it."""
        self.living += 1
        host = self._hosts.get(engine)
        try:
            if host is None:
                host = self._hosts[engine] = _Host(self.grace)
                engine.start_soon(self._keep, engine, host, name=f"{self.name} (nursery)")
            if self.grace is not None:
                stream.on_drain = host.bound
            if host.nursery is None:
                host.pending.append((stream, function, args))
            else:
                host.nursery.start_soon(self._run, stream, function, args, name=self.name)
        except RuntimeError:  # the engine is being left, and takes no more tasks
            self._ended(stream)

    async def _keep(self, engine: Engine, host: _Host) -> None:
        """Keep a nursery for one engine: one cancel scope for all tasks, where one for each would cost a kilobyte."""
        try:
            async with trio.open_nursery() as host.nursery:
                for stream, function, args in host.pending:
                    host.nursery.start_soon(self._run, stream, function, args, name=self.name)
                host.pending.clear()
                host.nursery.cancel_scope.deadline = host.deadline
                await trio.sleep_forever()
        finally:
            self._hosts.pop(engine, None)

    @enable_ki_protection
    async def _run(
        self, stream: DetachedStream, function: Callable[..., Awaitable[None]], args: tuple[Any, ...]
    ) -> None:
        try:
            await function(stream, *args)
            await stream.aclose()
        except BaseException as error:  # noqa: BLE001 - the bulkhead
            # What `TaskPool` does for jobs: an `Exception` is this connection's affair, what ends tasks goes on.
            own, rest = split_error(error)
            if own is not None:
                self.failures += 1
                stream._engine.limited.log(
                    log,
                    logging.ERROR,
                    "%s: handler failed, connection closed",
                    self.name,
                    error=own,
                    fields=lambda: {"peer": address_text(stream.peer)},
                )
            if rest is not None:
                raise rest from None
        finally:
            self._ended(stream)

    def _ended(self, stream: DetachedStream) -> None:
        stream.close_now()
        self.living -= 1
        self.invite()

    async def wait_place(self, pool: TaskPool) -> None:
        """Wait, parked, until there is a place. Whoever does not take it then calls `invite`."""
        while self.full:
            waiter = pool.waiter()
            self.waiting[waiter] = waiter.wake
            try:
                await waiter.wait()
            finally:
                self.waiting.pop(waiter, None)

    def invite(self) -> None:
        """A place may be free: the first of those that wait looks again."""
        if self.waiting and not self.full:
            first = next(iter(self.waiting))
            self.waiting.pop(first)()
