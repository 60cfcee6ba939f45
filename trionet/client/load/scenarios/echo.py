"""`echo`, the closed loop: each link has `in_flight` messages under way, and sends another when an answer comes.

What is measured is what a server can do when nobody waits in line: as soon as it is slow, less is sent. For what users
feel at a given load take `rate`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from trionet.client.load.messages import Bank, stamped
from trionet.client.load.scenarios.base import ANSWERS_WITHIN, Scenario
from trionet.errors import ConnectionClosed
from trionet.net.connection import OPEN
from trionet.protocols.channel import WebSocket

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker

__all__ = ["Answers", "Echo"]

_STARTS_AT_ONCE = 64
_write = WebSocket.write  # of frames that are masked already


class Answers(Scenario):
    """A scenario whose messages are answered, in order on each link.

    `link.data` holds what its messages under way count from: None, a time, or a deque of times and how many messages.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        options = self.options
        self.bank = Bank(options.size, text=options.message, binary=options.binary)
        self.histogram = self.meter.message
        self._record = self.meter.message.record
        self.active = False  # whether answers are followed by messages
        self.loops = False  # the same for `echo` only
        self.pending = 0  # messages without an answer, on all links
        self._by_sight = not (options.any_answer or options.compression)
        self._compressed = options.compression
        self._last = self.bank.last
        self._answers = self.bank.answers
        self._next = self.bank.next
        self._clock = time.monotonic

    def send(self, link: Any, when: float, count: int = 1) -> None:
        """Send `count` messages that count from `when`."""
        meter = self.meter
        waiting = link.data
        if waiting is None:
            link.data = when if count == 1 else deque([(when, count)])
        elif waiting.__class__ is float:
            link.data = deque([(waiting, 1), (when, count)])
        else:
            waiting.append((when, count))
        self.pending += count
        meter.sent += count
        meter.sent_bytes += count * self.bank.size
        number = link.fd & self._last
        if self._compressed:
            for _ in range(count):
                link.send_nowait(self.bank.messages[number])
        elif count == 1:
            link.emit(self._next[number]())
        else:
            link.emit(b"".join([self._next[number]() for _ in range(count)]))

    def frames(self, link: Any, data: bytes) -> bool:
        if not self._by_sight:
            return False
        number = link.fd & self._last
        answer = self._answers[number]
        if data == answer:
            since = link.data
            if self.loops and since.__class__ is float:  # as `_count`, `answered` and `send` do, open-coded
                now = self._clock()
                self._record(int((now - since) * 1e6))
                link.data = now
                meter, size = self.meter, self.bank.size
                meter.received += 1
                meter.received_bytes += size
                meter.sent += 1
                meter.sent_bytes += size
                _write(link, self._next[number]())
                return True
            count = 1
        else:
            count = len(data) // len(answer)
            if count < 2 or data != answer * count:
                return False
        self._count(link, count)
        return True

    async def received(self, link: Any, message: str | bytes) -> None:
        if message != self.bank.messages[link.fd & self._last] and not self.options.any_answer:
            since = stamped(message)
            if since is not None:  # no answer: somebody told everyone something, and when
                self.meter.received += 1
                self.meter.received_bytes += len(message)
                self.meter.delivery.record(int((self._clock() - since) * 1e6))
                return
            self.meter.wrong += 1
        self._count(link, 1)

    def _count(self, link: Any, count: int) -> None:
        now = self._clock()
        meter = self.meter
        meter.received += count
        meter.received_bytes += count * self.bank.size
        left = count
        waiting = link.data
        if waiting.__class__ is float:
            self.histogram.record(int((now - waiting) * 1e6))
            link.data, left = None, left - 1
            self.pending -= 1
        elif waiting is not None:
            while left and waiting:
                since, sent = waiting[0]
                taken = min(left, sent)
                self.histogram.record(int((now - since) * 1e6), taken)
                self.pending -= taken
                left -= taken
                if taken == sent:
                    waiting.popleft()
                else:
                    waiting[0] = (since, sent - taken)
            if not waiting:
                link.data = None
        meter.wrong += left * (not self.options.any_answer)  # more answers than messages
        self.answered(link, now, count - left)

    def answered(self, link: Any, now: float, count: int) -> None:
        """So many messages were answered just now."""

    def lost(self, link: Any, closed: ConnectionClosed) -> None:
        waiting, link.data = link.data, None
        if waiting is not None:
            self._unanswered(waiting)
        super().lost(link, closed)

    def _unanswered(self, waiting: Any) -> None:
        """They count with the time they have waited: leaving them out would flatter the server."""
        now = self._clock()
        for since, count in [(waiting, 1)] if waiting.__class__ is float else waiting:
            self.pending -= count
            self.meter.unanswered += count
            self.histogram.record(int((now - since) * 1e6), count)

    async def last_answers(self) -> None:
        """Wait for what is on its way, a while at most."""
        end = self._clock() + ANSWERS_WITHIN
        while self.pending > 0 and self._clock() < end:  # noqa: ASYNC110 - counted where an event would cost
            await trio.sleep(0.01)

    def conclude(self) -> None:
        for link in self.links:
            waiting, link.data = link.data, None
            if waiting is not None:
                self._unanswered(waiting)


class Echo(Answers):
    """See above."""

    async def measure(self, until: float) -> None:
        self.active = self.loops = True
        for count, link in enumerate(list(self.links), 1):
            self._begin(link)
            if count % _STARTS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        await super().measure(until)
        self.active = self.loops = False
        self.worker.measured()
        await self.last_answers()

    def _begin(self, link: Any) -> None:
        if link.is_open:
            self.send(link, self._clock(), self.options.in_flight)

    def opened(self, link: Any) -> None:
        super().opened(link)
        if self.active:  # it came back
            self._begin(link)

    def answered(self, link: Any, now: float, count: int) -> None:
        if self.active and link._state & 7 == OPEN:
            self.send(link, now, count)
