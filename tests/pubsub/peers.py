"""Clients of a bus as browsers are: they keep their position, lose their connection, and come back with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import trio

from trionet.errors import BrokerError
from trionet.pubsub.bus import Bus, Joined
from trionet.pubsub.publication import Position, Publication


class Encode:
    """An encoder that keeps what it is given."""

    def publication(self, publication: Publication, /) -> Any:
        return publication

    def interrupted(self, topic: str, position: Position, /) -> Any:
        return topic, position

    def presence(self, topic: str, event: str, member: str, info: bytes, /) -> Any:
        return topic, event, member, info


def send(lines: Iterable[Line], message: Any) -> int:
    """Give `message` to many, as `broadcast` does."""
    return sum([line.receive(message) for line in lines])


class Line:
    """One connection of a `Peer`, on one topic. `pause` is awaited where a slow peer would make the server wait."""

    def __init__(self, peer: Peer, bus: Bus[Any, Any], pause: Callable[[], Awaitable[object]]) -> None:
        self.peer = peer
        self.bus = bus
        self.pause = pause
        self.open = True
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Subscribe, from where the peer stands."""
        if not self.open:
            return
        with self.scope:
            try:
                await self.bus.subscribe(
                    self, self.peer.topic, self.peer.position, begin=self._begin, replay=self._replay
                )
            except BrokerError:
                self.close()  # refused for now: it will come back

    def close(self, *, cancel: bool = False) -> None:
        """The connection has gone; the server notices, and may also cancel who serves it."""
        self.open = False
        if self.peer.line is self:
            self.peer.line = None
        self.bus.forget(self)
        if cancel:
            self.scope.cancel()

    async def _begin(self, joined: Joined) -> None:
        if self.open:
            self.peer.begin(joined)
        await self.pause()

    async def _replay(self, publications: list[Publication]) -> None:
        for publication in publications:
            if self.open:
                self.peer.take(publication)
        await self.pause()

    def receive(self, message: Any) -> bool:
        assert self.open, "sent to who has gone"
        if isinstance(message, Publication):
            self.peer.take(message)
        elif len(message) == 2:
            self.peer.reset(*message)
        return True


class Peer:
    """A client with one topic. `seen`: all it was shown; a Position stands where it was told that some are missing."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.position: Position | None = None
        self.seen: list[Publication | Position] = []
        self.line: Line | None = None

    def begin(self, joined: Joined) -> None:
        """It is subscribed."""
        if self.position is None:
            assert joined.recovered is None or self.seen == []
            self.seen.append(joined.position)
        elif joined.recovered:
            assert joined.position == self.position, "recovered from somewhere else"
        else:
            assert joined.recovered is False
            self.gap(joined.position)
        self.position = joined.position

    def reset(self, topic: str, position: Position) -> None:
        """The broker was interrupted."""
        assert topic == self.topic
        assert self.position is not None
        self.gap(position)
        self.position = position

    def gap(self, position: Position) -> None:
        """It is told that something is missing: that must be so."""
        assert self.position is not None
        same = position.epoch == self.position.epoch
        assert not same or position.offset > self.position.offset, (
            f"{position} misses nothing since {self.position}"
        )
        self.seen.append(position)

    def take(self, publication: Publication) -> None:
        """One publication."""
        assert publication.topic == self.topic
        assert self.position == (publication.epoch, publication.previous), (
            f"{publication} behind {self.position}"
        )
        self.seen.append(publication)
        self.position = publication.position

    def lose(self, count: int) -> None:
        """Of what was sent, the last `count` never came out of the network."""
        while count and self.seen and isinstance(self.seen[-1], Publication):
            last = self.seen.pop()
            assert isinstance(last, Publication)
            self.position = Position(last.epoch, last.previous)
            count -= 1

    def check(self, truth: Sequence[Publication]) -> None:
        """What it saw is what was published, from where it began, but for the gaps it was told of."""
        index = {publication.position: number for number, publication in enumerate(truth)}
        at: int | None = None
        for item in self.seen:
            if isinstance(item, Position):
                at = index.get(item)  # None: an epoch in which nothing was published yet, or before the first
            else:
                number = index[item.position]
                assert item == truth[number]
                assert at is None or number == at + 1
                at = number
