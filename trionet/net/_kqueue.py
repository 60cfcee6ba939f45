"""kqueue(2), BSD and macOS: a thin translation to `Event`. Untested on a real BSD here; tested with a stand-in.

A descriptor has one filter for each direction; EV_EOF on the read filter is a half-close (data may come with it),
on the write filter a hang-up. A kqueue's own descriptor can be polled by another kqueue.
"""

from __future__ import annotations

import select
from typing import Any

from trionet.net.poller import Event, PlatformPoller


class KqueuePoller(PlatformPoller):
    """See `Poller`. `kqueue` and `api` can be given for a test."""

    backend = "kqueue"

    def __init__(self, kqueue: Any = None, api: Any = select) -> None:
        if kqueue is None:  # pragma: no cover
            kqueue = api.kqueue()
        self._api = api
        self._kqueue = kqueue
        self._filters: dict[int, int] = {}
        super().__init__(kqueue.fileno())

    def register(self, fd: int, interest: int = Event.READ, *, once: bool = False) -> None:
        if fd in self._filters:
            raise FileExistsError(fd)
        self._apply(fd, 0, interest, once=once)
        self._filters[fd] = int(interest)
        self.watched += 1

    def modify(self, fd: int, interest: int, *, once: bool = False) -> None:
        self._apply(fd, self._filters[fd], interest, once=once)
        self._filters[fd] = int(interest)

    def unregister(self, fd: int) -> None:
        before = self._filters.pop(fd, None)
        if before is None:
            self.stale += 1
            return
        self.watched -= 1
        self._apply(fd, before, 0, once=False)

    def _apply(self, fd: int, before: int, after: int, *, once: bool) -> None:
        api = self._api
        add = api.KQ_EV_ADD | (api.KQ_EV_ONESHOT if once else 0)
        for bit, which in ((Event.READ, api.KQ_FILTER_READ), (Event.WRITE, api.KQ_FILTER_WRITE)):
            if after & bit:
                self._kqueue.control([api.kevent(fd, which, add)], 0)
            elif before & bit:
                try:
                    self._kqueue.control([api.kevent(fd, which, api.KQ_EV_DELETE)], 0)
                except OSError:  # a one-shot filter that has fired is gone already
                    pass

    def poll(self, limit: int = 256) -> list[tuple[int, int]]:
        self.polls += 1
        found: dict[int, int] = {}
        for event in self._kqueue.control(None, limit, 0):
            reading = event.filter == self._api.KQ_FILTER_READ
            bits = Event.READ if reading else Event.WRITE
            if event.flags & self._api.KQ_EV_EOF:
                bits |= Event.HALF_CLOSE if reading else Event.HANGUP
            if event.flags & self._api.KQ_EV_ERROR:
                bits |= Event.ERROR
            found[event.ident] = found.get(event.ident, 0) | bits
        self.events += len(found)
        return list(found.items())

    def _release(self) -> None:
        self._kqueue.close()
        self._filters.clear()
