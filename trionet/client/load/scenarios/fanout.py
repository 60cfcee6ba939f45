"""`fanout`: some links publish at a rate, all links receive; for servers that send what one says to all.

A message begins with the time it was due. So the latency of a delivery is known wherever it arrives, on this machine:
all processes share the clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from trionet.client.keys import fresh_key
from trionet.client.load.alarm import Alarm
from trionet.client.load.messages import stamp, stamped
from trionet.client.load.plan import Arrivals
from trionet.client.load.scenarios.base import ANSWERS_WITHIN, Scenario
from trionet.wire.frames import Opcode, encode_frame, mask_frames
from trionet.wire.unmasked import take_messages

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker
    from trionet.wire.messages import Event

__all__ = ["Fanout"]


class Fanout(Scenario):
    """See above."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._opcode = Opcode.BINARY if self.options.binary else Opcode.TEXT
        self._data = b""  # what came last: most links get the same
        self._times: list[float] = []
        self._turn = 0

    async def measure(self, until: float) -> None:
        if self.share.publishers:
            await self._publish_until(until)
        else:
            await super().measure(until)
        self.worker.measured()
        await self._quiet()

    async def _publish_until(self, until: float) -> None:
        alarm = Alarm()
        try:
            await self._publish_at(Arrivals(time.monotonic(), self.share.rate, self.phase), until, alarm)
        finally:
            alarm.close()

    async def _publish_at(self, arrivals: Arrivals, until: float, alarm: Alarm) -> None:
        meter, size = self.meter, self.options.size
        total = arrivals.due(until)
        for number in range(total):
            intended = arrivals.time(number)
            if time.monotonic() > until + 1:  # the generator is far behind its own plan
                meter.missed += total - number
                return
            await alarm.wait_until(intended)
            self._turn = (self._turn + 1) % self.share.publishers
            link = self.links[self._turn] if self._turn < len(self.links) else None
            if link is None or not link.is_open:
                meter.missed += 1
                continue
            meter.late.record(int((time.monotonic() - intended) * 1e6))
            meter.sent += 1
            meter.sent_bytes += size
            frame = encode_frame(self._opcode, stamp(size, intended))
            if self.options.compression:
                link.send_nowait(stamp(size, intended).decode())
            else:
                link.emit(mask_frames(frame, fresh_key))

    async def _quiet(self) -> None:
        """Wait until deliveries cease."""
        end = time.monotonic() + ANSWERS_WITHIN
        seen = -1
        while seen != self.meter.received and time.monotonic() < end:
            seen = self.meter.received
            await trio.sleep(0.3)

    def frames(self, link: Any, data: bytes) -> bool:  # noqa: ARG002
        if data != self._data:
            events: list[Event] = []
            if take_messages(data, 2**24, events) != len(data):
                return False
            times = [stamped(event) for event in events]  # type: ignore[arg-type]
            if None in times:
                return False
            self._data, self._times = data, times  # type: ignore[assignment]
        now = time.monotonic()
        meter = self.meter
        for since in self._times:
            meter.delivery.record(int((now - since) * 1e6))
        meter.received += len(self._times)
        meter.received_bytes += len(self._times) * self.options.size
        return True

    async def received(self, link: Any, message: str | bytes) -> None:
        await super().received(link, message)
        since = stamped(message)
        if since is None:
            self.meter.wrong += 1
        else:
            self.meter.delivery.record(int((time.monotonic() - since) * 1e6))
