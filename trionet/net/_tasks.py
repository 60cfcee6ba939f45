"""The portable poller: a Trio task waits for each armed watch. For Windows, and wherever nothing better exists.

Correct, only larger: 2.6 KB for each armed watch instead of none. On Windows Trio can wait for sockets but nothing
can be nested, so this is the poller there. (Windows is untested here; the poller is tested on Linux.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from trionet.net.poller import Event, Poller


class _Watch:
    """One armed descriptor; `bits` is what came and was not fetched yet."""

    __slots__ = ("bits", "ended", "once", "scopes", "taken")

    def __init__(self, *, once: bool) -> None:
        self.bits = 0
        self.once = once
        self.ended = False
        self.scopes: list[trio.CancelScope] = []
        self.taken = trio.Event()

    def end(self) -> None:
        self.ended = True
        for scope in self.scopes:
            scope.cancel()


class TaskPoller(Poller):
    """See `Poller`. Its tasks live in the nursery it is given, and end with `unregister` or `close`."""

    backend = "tasks"

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self._watches: dict[int, _Watch] = {}
        self._ready: dict[int, _Watch] = {}
        self._some = trio.Event()
        self._waiting = False
        self._closed = False

    def register(self, fd: int, interest: int = Event.READ, *, once: bool = False) -> None:
        if fd in self._watches:
            raise FileExistsError(fd)
        self.watched += 1
        self._arm(fd, interest, once=once)

    def modify(self, fd: int, interest: int, *, once: bool = False) -> None:
        self._disarm(fd)
        self._arm(fd, interest, once=once)

    def unregister(self, fd: int) -> None:
        if fd not in self._watches:
            self.stale += 1
            return
        self._disarm(fd)
        self.watched -= 1

    def _disarm(self, fd: int) -> None:
        self._watches.pop(fd).end()
        self._ready.pop(fd, None)

    def _arm(self, fd: int, interest: int, *, once: bool) -> None:
        watch = self._watches[fd] = _Watch(once=once)
        if interest & Event.READ:
            self._nursery.start_soon(self._watch, fd, watch, Event.READ, trio.lowlevel.wait_readable)
        if interest & Event.WRITE:
            self._nursery.start_soon(self._watch, fd, watch, Event.WRITE, trio.lowlevel.wait_writable)

    async def _watch(self, fd: int, watch: _Watch, bit: int, wait: Callable[[int], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            watch.scopes.append(scope)
            while not watch.ended:
                try:
                    await wait(fd)
                except (trio.ClosedResourceError, OSError):
                    return  # closed without `unregister`: nothing to report any more
                self._report(fd, watch, bit)
                if watch.once:
                    return
                # Level-triggered, yet not in a loop of its own: look again once this event was fetched.
                await watch.taken.wait()

    def _report(self, fd: int, watch: _Watch, bit: int) -> None:
        if not watch.ended:  # it may have been taken back between the event and now
            watch.bits |= int(bit)
            self._ready[fd] = watch
            self._some.set()

    def poll(self, limit: int = 256) -> list[tuple[int, int]]:
        self.polls += 1
        events = []
        for fd in list(self._ready)[:limit]:
            watch = self._ready.pop(fd)
            events.append((fd, watch.bits))
            watch.bits = 0
            taken, watch.taken = watch.taken, trio.Event()
            taken.set()
        if not self._ready and self._some.is_set():  # one that is not set may have a waiter
            self._some = trio.Event()
        self.events += len(events)
        return events

    async def wait(self) -> None:
        self._check()
        if self._waiting:
            raise trio.BusyResourceError("another task is waiting for this poller")
        self._waiting = True
        try:
            await self._some.wait()
        finally:
            self._waiting = False
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in list(self._watches):
                self._disarm(fd)
            self._some.set()
