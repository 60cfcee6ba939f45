"""Which descriptors are ready: an epoll (or kqueue) of our own, nested in Trio's.

One task awaits `Poller.wait`; then one `poll` fetches the whole batch. Trio stays the only loop, and ten thousand
silent connections cost it nothing (a task in `wait_readable` for each would cost 2.6 KB, and Trio passes the
number of its waiters to every epoll_wait).

A watch is level-triggered unless `once` is asked for: then it reports one event and sleeps until `resume`.
What an event says is a hint. Read, and find out: data may come together with a hang-up (read first), an event
may be late for a descriptor that was closed and reused, or the data gone.

Close order: `stop`, then close the descriptor. A descriptor that is closed without `stop` stays in the kernel's
set as long as a duplicate of it lives anywhere (epoll(7), Q6), and can then no longer be removed.
"""

from __future__ import annotations

import abc
import enum
import select
from collections.abc import AsyncIterator
from typing import Any

import attrs
import trio

from trionet.errors import ConfigurationError

__all__ = ["BACKENDS", "Event", "Poller", "PollerStatistics", "open_poller"]


class Event(enum.IntFlag):
    """What to watch for (READ, WRITE), and what came. The numbers are those of epoll on Linux."""

    READ = 0x1
    WRITE = 0x4
    ERROR = 0x8
    HANGUP = 0x10  # both directions are shut
    HALF_CLOSE = 0x2000  # the peer will send no more; there may be data to read first


@attrs.frozen
class PollerStatistics:
    """Counters of a poller. `watched` counts descriptors started and not stopped, paused ones included."""

    backend: str
    watched: int
    polls: int
    events: int
    stale: int


class Poller(abc.ABC):
    """Watches descriptors; see `open_poller`. All methods but `wait` are synchronous and belong to one Trio thread."""

    backend = "?"

    def __init__(self) -> None:
        self.watched = 0
        self.polls = 0
        self.events = 0
        self.stale = 0
        self._objects: dict[int, Any] = {}

    @abc.abstractmethod
    def register(self, fd: int, interest: int = Event.READ, *, once: bool = False) -> None:
        """Watch the descriptor `fd`. Raises `FileExistsError` if it is watched already."""

    @abc.abstractmethod
    def modify(self, fd: int, interest: int, *, once: bool = False) -> None:
        """Watch for something else, or, with `interest` 0, for nothing (no hang-up either) until the next call."""

    @abc.abstractmethod
    def unregister(self, fd: int) -> None:
        """Forget `fd`. One that is not watched, or closed already, is no error: events may come late."""

    @abc.abstractmethod
    def poll(self, limit: int = 256) -> list[tuple[int, int]]:
        """At most `limit` pairs of descriptor and events, without waiting. The kernel rotates: a bound is fair."""

    @abc.abstractmethod
    async def wait(self) -> None:
        """Wait until `poll` may have something to say. One task at a time (`trio.BusyResourceError`)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the poller. A waiter gets `trio.ClosedResourceError`. Watched descriptors stay open."""

    # The same by object, for composing a server by hand (examples/explicit.py).

    def start(self, item: Any, interest: int = Event.READ, *, once: bool = True) -> None:
        """Watch anything with a `fileno()`; iteration yields it. One-shot by default: `resume` after each event."""
        fd = item.fileno()
        self.register(fd, interest, once=once)
        self._objects[fd] = item

    def resume(self, item: Any, interest: int = Event.READ, *, once: bool = True) -> None:
        """Arm the watch again."""
        self.modify(item.fileno(), interest, once=once)

    def stop(self, item: Any) -> None:
        """End the watch; before the descriptor is closed."""
        fd = item.fileno()
        if self._objects.pop(fd, None) is not None:
            self.unregister(fd)

    async def __aiter__(self) -> AsyncIterator[tuple[Any, Event]]:
        """Yield ``(item, event)`` for ever; each batch begins with a checkpoint."""
        while True:
            await self.wait()
            for fd, event in self.poll():
                item = self._objects.get(fd)
                if item is not None:
                    yield item, Event(event)

    def statistics(self) -> PollerStatistics:
        """Counters, and how many descriptors are watched."""
        return PollerStatistics(self.backend, self.watched, self.polls, self.events, self.stale)

    async def __aenter__(self) -> Poller:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class PlatformPoller(Poller):
    """What epoll and kqueue share: a kernel object with a descriptor that Trio can wait for."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._closed = False

    def fileno(self) -> int:
        """The kernel object's own descriptor."""
        return self._fd

    async def wait(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._fd)

    @abc.abstractmethod
    def _release(self) -> None: ...

    def close(self) -> None:
        if not self._closed:
            # Without notify_closing a waiter would hang for ever, and haunt the next owner of the number.
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
            self._release()


def _default_backend() -> str:
    if hasattr(select, "epoll"):
        return "epoll"
    return "kqueue" if hasattr(select, "kqueue") else "tasks"  # pragma: no cover


BACKENDS = ("epoll", "kqueue", "tasks")


def open_poller(backend: str | None = None, *, nursery: trio.Nursery | None = None) -> Poller:
    """A poller: "epoll" (Linux), "kqueue" (BSD, macOS) or "tasks" (anywhere; a Trio task for each armed watch).

    The portable one needs a `nursery` for its tasks. Chosen by the platform when not named.
    """
    name = backend or _default_backend()
    if name not in BACKENDS:
        raise ConfigurationError(f"poller backend {name!r} does not exist; there are {', '.join(BACKENDS)}")
    if name == "epoll":
        from trionet.net._epoll import EpollPoller

        return EpollPoller()
    if name == "kqueue":
        from trionet.net._kqueue import KqueuePoller

        return KqueuePoller()
    from trionet.net._tasks import TaskPoller

    if nursery is None:
        raise ConfigurationError('poller backend "tasks" needs a nursery')
    return TaskPoller(nursery)
