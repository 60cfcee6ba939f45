"""epoll(7), Linux.

What surprised, each reproduced:

* ``modify(fd, 0)`` does not silence a descriptor: hang-up and error are reported whatever the mask says, on every
  poll, at full speed. A one-shot watch that has fired reports nothing. So "watch for nothing" is a one-shot watch
  with an empty mask: it can report a hang-up once, and then sleeps.
* A closed descriptor leaves the set by itself only when no duplicate of it (dup, fork) is alive; else its events
  keep coming, and it cannot be removed any more. So: unregister, then close.
* With more ready descriptors than the limit of a poll, the kernel rotates its list: bounded batches are fair.
* Nesting: an epoll descriptor becomes readable when its set has something to report.
"""

from __future__ import annotations

import select

from trionet.net.poller import Event, PlatformPoller

_ONCE = select.EPOLLONESHOT
_READ = select.EPOLLIN | select.EPOLLRDHUP


class EpollPoller(PlatformPoller):
    """See `Poller`."""

    backend = "epoll"

    def __init__(self) -> None:
        self._epoll = select.epoll()
        super().__init__(self._epoll.fileno())
        self._poll = self._epoll.poll

    def register(self, fd: int, interest: int = Event.READ, *, once: bool = False) -> None:
        self._epoll.register(fd, _READ if interest == 1 and not once else self._mask(interest, once))
        self.watched += 1

    def modify(self, fd: int, interest: int, *, once: bool = False) -> None:
        self._epoll.modify(fd, self._mask(interest, once) if interest else _ONCE)

    def unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError:  # not watched, or closed: ENOENT, EBADF
            self.stale += 1
        else:
            self.watched -= 1

    @staticmethod
    def _mask(interest: int, once: bool) -> int:
        # Plain numbers: an operation on an enum.Flag costs more than the system call.
        mask = int(interest)
        if mask & 1:
            mask |= select.EPOLLRDHUP
        return mask | _ONCE if once else mask

    def poll(self, limit: int = 256) -> list[tuple[int, int]]:
        self.polls += 1
        events = self._poll(0, limit)
        self.events += len(events)
        return events

    def _release(self) -> None:
        self._epoll.close()
