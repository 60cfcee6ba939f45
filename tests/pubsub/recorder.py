"""A `Receiver` that keeps what a broker gives it, and watches that the contract holds while it does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from engines import Engine

from trionet.errors import BrokerDown
from trionet.pubsub.broker import Broker
from trionet.pubsub.publication import NOWHERE, Position, Publication
from trionet.pubsub.topics import HistoryLimits, TopicOptions, is_pattern

#: What the brokers of a test are made with; names come from `unique("few")` and the like.
RULES = {
    "none.*": TopicOptions(history=None),
    "few.*": TopicOptions(history=HistoryLimits(count=5)),
    "small.*": TopicOptions(history=HistoryLimits(size=1000)),
    "brief.*": TopicOptions(history=HistoryLimits(age=0.5)),
    "long.*": TopicOptions(history=HistoryLimits(count=3000)),
}


class Recorder:
    """What was received, by topic. `faults` has what broke the contract: a gap, a repetition, a wrong position."""

    def __init__(self) -> None:
        self.broker: Broker | None = None
        self.got: dict[str, list[Publication]] = defaultdict(list)
        self.interruptions: dict[str, list[Position]] = defaultdict(list)
        self.events: list[tuple[str, str, str, bytes]] = []
        self.at: dict[str, Position] = {}
        self.exact: set[str] = set()  # subscribed to by name
        self.faults: list[str] = []
        self.room = trio.Event()
        self.room.set()
        self._changed = trio.Event()

    def deliver(self, publication: Publication) -> None:
        """See `Receiver`."""
        assert self.broker is not None
        topic = publication.topic
        if publication.epoch:
            before = self.at.get(topic)
            if before is not None and before != Position(publication.epoch, publication.previous):
                self.faults.append(f"behind {before} came {publication}")
            self.at[topic] = publication.position
            if topic in self.exact and self.broker.position(topic) != publication.position:
                self.faults.append(f"position is {self.broker.position(topic)} within deliver({publication})")
        self.got[topic].append(publication)
        self.notice()

    def interrupted(self, topic: str, position: Position) -> None:
        """See `Receiver`."""
        self.interruptions[topic].append(position)
        self.at[topic] = position
        assert self.broker is not None
        if self.broker.position(topic) != position:
            self.faults.append(f"position is {self.broker.position(topic)} within interrupted({position})")
        self.notice()

    def presence(self, topic: str, event: str, member: str, info: bytes) -> None:
        """See `Receiver`."""
        self.events.append((topic, event, member, info))
        self.notice()

    async def wait_room(self) -> None:
        """See `Receiver`. Clear `room` (by a new event) to hold the broker up."""
        await self.room.wait()

    def notice(self) -> None:
        """Something is different: those who wait look again."""
        self._changed.set()
        self._changed = trio.Event()

    def data(self, topic: str) -> list[bytes]:
        """What came on `topic`."""
        return [publication.data for publication in self.got[topic]]

    def here(self, topic: str) -> list[tuple[str, str]]:
        """The presence events of `topic`."""
        return [(event, member) for name, event, member, _ in self.events if name == topic]

    async def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        """Wait until `condition` holds; it is asked whenever something was received."""
        with trio.move_on_after(seconds):
            while not condition():
                await self._changed.wait()
        state = self.broker.state if self.broker is not None else None
        assert condition(), (dict(self.got), dict(self.interruptions), self.events, self.faults, state)

    async def wait_data(self, topic: str, *data: bytes, seconds: float = 10) -> None:
        """Wait until exactly this came on `topic`."""
        await self.until(lambda: len(self.got[topic]) >= len(data), seconds)
        assert self.data(topic) == list(data), self.faults


class Client:
    """A broker that runs, and what it receives."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.seen = Recorder()
        self.seen.broker = broker

    async def subscribe(self, *topics: str) -> None:
        """Subscribe, and watch what comes from there on."""
        exact = [topic for topic in topics if not is_pattern(topic)]
        self.seen.exact.update(exact)
        await self.broker.subscribe(topics)
        for topic in exact:
            position = self.broker.position(topic)
            if position != NOWHERE:
                before = self.seen.at.setdefault(topic, position)
                assert before == position, "what was delivered and the position differ"

    def unsubscribe(self, topic: str) -> None:
        """Unsubscribe, and forget where it stood."""
        self.broker.unsubscribe([topic])
        self.seen.exact.discard(topic)
        self.seen.at.pop(topic, None)

    async def insist(self, topic: str, data: bytes, key: str) -> Position:
        """Publish until it has worked, as a publisher does that wants it to be there once."""
        with trio.fail_after(15):
            while True:
                try:
                    return await self.broker.publish(topic, data, key=key)
                except BrokerDown:
                    await trio.sleep(0.02)

    async def wait_state(self, *, up: bool, seconds: float = 10) -> None:
        """Wait until the broker is up, or down."""
        with trio.move_on_after(seconds):
            while self.broker.state.up is not up:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.005)
        assert self.broker.state.up is up, self.broker.state


@asynccontextmanager
async def connected(engine: Engine, **options: Any) -> AsyncIterator[Client]:
    """A broker of `engine`, running; at the end nothing must have broken the contract."""
    options.setdefault("rules", RULES)
    client = Client(engine.broker(**options))
    async with client.broker.running(client.seen):
        yield client
        assert client.seen.faults == []
