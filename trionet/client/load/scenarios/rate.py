"""`rate`, the open loop: so many messages a second over all links in turn, whatever the answers do.

Latency counts from when a message was due, not from when it was sent: if the server (or the generator) stalls, all that
was due meanwhile is late, as it would be for users, who do not wait for each other either.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from trionet.client.load.alarm import Alarm
from trionet.client.load.plan import Arrivals
from trionet.client.load.scenarios.echo import Answers

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker

__all__ = ["Rate"]

_AT_ONCE = 64


class Rate(Answers):
    """See above."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._turn = 0

    async def measure(self, until: float) -> None:
        if self.share.rate > 0:
            await self._send_until(until)
        else:
            await trio.sleep(max(0.0, until - time.monotonic()))
        self.worker.measured()
        await self.last_answers()

    async def _send_until(self, until: float) -> None:
        arrivals = Arrivals(time.monotonic(), self.share.rate, self.phase)
        alarm = Alarm()
        try:
            await self._send_at(arrivals, until, alarm)
        finally:
            alarm.close()

    async def _send_at(self, arrivals: Arrivals, until: float, alarm: Alarm) -> None:
        meter = self.meter
        total = arrivals.due(until)
        number = 0
        while number < total:
            now = time.monotonic()
            if now > until + 1:  # the generator is far behind its own plan
                meter.missed += total - number
                return
            due = min(arrivals.due(now), number + _AT_ONCE, total)
            while number < due:
                intended = arrivals.time(number)
                number += 1
                link = self.choose()
                if link is None:
                    meter.missed += 1
                    continue
                meter.late.record(int((time.monotonic() - intended) * 1e6))
                self.send(link, intended)
            await alarm.wait_until(arrivals.time(number))

    def choose(self) -> Any:
        """The next open link; None: there is none."""
        links = self.links
        for _ in range(len(links)):
            self._turn = (self._turn + 1) % len(links)
            link = links[self._turn]
            if link.is_open:
                return link
            links[self._turn] = links[-1]
            del links[-1]
            if not links:
                break
            self._turn %= len(links)
        return None
