"""Topics with history made sure: where they stand is asked of JetStream, and what they miss is delivered from there.

Topics that are subscribed to meanwhile wait for the next round, so however many they are, a round costs two requests
for each stream, one for each 500 topics, and one for each page that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import trio

from trionet.errors import BrokerDown
from trionet.pubsub.broker import PAGE, Receiver, now
from trionet.pubsub.brokers.nats.history import LAG, JetStream, State
from trionet.pubsub.brokers.nats.streams import Stream, Streams
from trionet.pubsub.brokers.nats.subscriptions import Subscription, Subscriptions
from trionet.pubsub.publication import Position

__all__ = ["Checker"]

_PATIENCE: Final = 50  # times that what was seen live is looked for in vain
_FILLERS: Final = 16  # topics that are filled at the same time


class _Round:
    """Topics that are checked together, and who waits for that."""

    def __init__(self, subs: Iterable[Subscription] = (), *, known: bool = False) -> None:
        self.subs = dict.fromkeys(subs)
        self.known = known
        self.done = trio.Event()
        self.failure: str | None = None


class Checker:
    """Checks what is `ask`ed for while `run` runs; that is, while there is a connection."""

    def __init__(self, subs: Subscriptions, receiver: Receiver, streams: Streams, interval: float) -> None:
        self.subs = subs
        self.receiver = receiver
        self._streams = streams
        self._interval = interval
        self._round = self._current = _Round()
        self._work = trio.Event()
        self._limit = trio.CapacityLimiter(_FILLERS)
        self._filling = 0  # tasks that do
        subs.on_gap = self.gap

    def begin(self, unsure: Iterable[Subscription]) -> None:
        """There is a new connection."""
        self._round = self._current = _Round(unsure, known=True)
        self._work.set()

    def gap(self, sub: Subscription) -> None:
        """A topic misses something."""
        self._round.subs[sub] = None
        self._work.set()

    async def check(self, subs: Iterable[Subscription]) -> None:
        """Wait until these are sure. Raises `BrokerDown` if the connection is lost before."""
        joined = self._round
        joined.subs.update(dict.fromkeys(subs))
        self._work.set()
        await joined.done.wait()
        if joined.failure is not None:
            raise BrokerDown(joined.failure)

    def fail(self, reason: str) -> None:
        """The connection was lost."""
        for each in (self._round, self._current):
            if not each.done.is_set():
                each.failure = reason
                each.done.set()

    async def run(self, jetstream: JetStream) -> None:
        """Check what there is, and look at the streams from time to time. Raises `BrokerDown`, `BrokerError`."""
        look_at = now() + self._interval
        self._filling = 0
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_at(look_at):
                    await self._work.wait()
                if self._work.is_set():
                    self._work = trio.Event()
                    this, self._round = self._round, _Round()
                    self._current = this
                    late = await self._check(jetstream, this.subs, known=this.known)
                    this.done.set()  # what is missing is delivered while others go on
                    todo = iter(late)
                    for _ in range(min(_FILLERS, len(late))):
                        nursery.start_soon(self._fill_all, jetstream, todo)
                if now() >= look_at:
                    for stream in self._streams:
                        state = await jetstream.state(stream)
                        if not self._filling:
                            stream.note(state.last)
                    look_at = now() + self._interval

    async def _check(
        self, jetstream: JetStream, subs: Iterable[Subscription], *, known: bool
    ) -> list[tuple[Subscription, int]]:
        """Find out where they stand; returns those that miss something.

        `known`: since the connection was lost, not since a gap within one, so `Stream.seen` counts.
        """
        streams: dict[Stream, list[Subscription]] = {}
        for sub in subs:
            if self.subs.has(sub) and self.subs.kept(sub):
                assert sub.stream is not None
                streams.setdefault(sub.stream, []).append(sub)
        late: list[tuple[Subscription, int]] = []
        for stream, group in streams.items():
            state = await jetstream.state(stream)
            tops = await jetstream.tops(stream, [sub.name for sub in group], state.last)
            seen = stream.seen if known else 0
            late += [
                (sub, seen)
                for sub in group
                if self.subs.has(sub) and self._judge(sub, tops.get(sub.name), state, seen)
            ]
        return late

    def _judge(self, sub: Subscription, top: int | None, state: State, seen: int) -> bool:
        """`top`: the topic's last message, if it has any. Returns whether there is something to be filled."""
        assert sub.stream is not None
        epoch = sub.stream.epoch
        stands = state.last if top is None else top
        if sub.sure and sub.epoch == epoch:  # what has come live follows what was delivered before
            return False
        if not sub.epoch:
            sub.epoch, sub.offset = epoch, stands
        elif sub.epoch != epoch or sub.offset > state.last:  # its past, or the end of it, is lost
            self.subs.interrupt(sub, epoch, stands)
        elif top is not None and top > sub.offset:
            return True
        elif top is None and not (state.first <= max(sub.offset, seen) + 1 or state.last <= seen):
            self.subs.interrupt(sub, epoch, max(sub.offset, stands))
        sub.sure = sub.behind <= sub.offset
        return not sub.sure

    async def _fill_all(self, jetstream: JetStream, todo: Iterator[tuple[Subscription, int]]) -> None:
        self._filling += 1
        for sub, seen in todo:
            async with self._limit:
                await self._fill(jetstream, sub, seen)
        self._filling -= 1

    async def _fill(self, jetstream: JetStream, sub: Subscription, seen: int) -> None:
        """Deliver from the history until it has caught up with what was seen live."""
        assert sub.stream is not None
        patience = _PATIENCE
        while self.subs.has(sub):
            page = await jetstream.page(sub.stream, sub.name, Position(sub.epoch, sub.offset), PAGE, seen)
            await self.receiver.wait_room()
            if not self.subs.has(sub):
                return
            if not page.complete:  # go on with what there is
                page = await jetstream.page(sub.stream, sub.name, None, PAGE)
                kept = page.publications
                offset = kept[0].offset - 1 if kept else page.top.offset
                if offset > sub.offset and self.subs.has(sub):
                    self.subs.interrupt(sub, sub.epoch, offset)
            for publication in page.publications:
                if publication.offset > sub.offset and self.subs.has(sub):
                    self.subs.deliver(sub, publication._replace(previous=sub.offset))
            if not page.more and sub.offset >= sub.behind:
                sub.sure = True
                return
            if not page.publications:
                patience -= 1
                if not patience:  # somebody has deleted it
                    self.subs.interrupt(sub, sub.epoch, max(sub.offset, sub.behind))
                await trio.sleep(LAG)  # a replica that does not have yet what was seen live
