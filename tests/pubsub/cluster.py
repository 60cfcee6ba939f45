"""An engine in this process whose every delay a test decides: what brokers do, one step at a time.

A `Cluster` is the engine, a `Node` the broker of one process. What is published waits in each node's link until it is
`pump`ed; an answer to a node waits at two gates, on the way there and on the way back, until `open_gate` lets it pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from trionet.errors import BrokerDown
from trionet.pubsub.broker import PAGE, Broker, BrokerState, Receiver
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position, Publication
from trionet.pubsub.store import Store
from trionet.pubsub.topics import HistoryLimits, TopicOptions, TopicRules


class Cluster:
    """The engine: one store, and the links to its nodes. Topics keep `count` publications."""

    def __init__(self, count: int = 5, *, gated: bool = True) -> None:
        self.rules = TopicRules({"*": TopicOptions(history=HistoryLimits(count=count))})
        self.nodes: list[Node] = []
        self.gates: list[trio.Event] = []
        self.gated = gated
        self.epochs = 0
        self.store = self._new_store()
        self.truth: list[Publication] = []  # everything that was ever published

    def _new_store(self) -> Store:
        self.epochs += 1
        return Store(f"e{self.epochs}", lambda topic: any(topic in node.topics for node in self.nodes))

    def node(self) -> Node:
        """Return a new node."""
        self.nodes.append(Node(self))
        return self.nodes[-1]

    def publish(self, topic: str, data: bytes) -> Position:
        """Somebody publishes."""
        limits = self.rules.of(topic).history
        position, publication = self.store.publish(topic, data, limits, float(self.epochs))
        assert publication is not None
        self.truth.append(publication)
        for node in self.nodes:
            if node.linked and topic in node.topics:
                node.link.append(publication)
        return position

    def forget(self) -> None:
        """The engine is killed and started again: its past is lost, and so are all links."""
        self.store = self._new_store()
        for node in self.nodes:
            node.cut()

    async def gate(self) -> None:
        """Wait until the test lets this go on."""
        if not self.gated:
            await trio.lowlevel.checkpoint()
            return
        event = trio.Event()
        self.gates.append(event)
        try:
            await event.wait()
        finally:
            if event in self.gates:
                self.gates.remove(event)

    def open_gate(self, number: int) -> None:
        """Let one of those that wait go on."""
        if self.gates:
            self.gates.pop(number % len(self.gates)).set()


class Node(Broker):
    """The broker of one process."""

    name = "cluster"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rules = cluster.rules
        self.topics: dict[str, Position] = {}
        self.link: deque[Publication] = deque()
        self.linked = True
        self.receiver: Receiver | None = None
        self.subscribed: list[str] = []  # what was asked for, again and again
        self.reconnects = 0

    @property
    def state(self) -> BrokerState:
        return BrokerState(up=self.linked, since=0.0, reconnects=self.reconnects)

    def running(self, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        return self._running(receiver)

    @asynccontextmanager
    async def _running(self, receiver: Receiver) -> AsyncIterator[None]:
        self.receiver = receiver
        yield

    def pump(self, count: int = 1) -> None:
        """Deliver what has come by the link."""
        assert self.receiver is not None
        while self.link and count:
            count -= 1
            publication = self.link.popleft()
            if publication.topic in self.topics:
                assert publication.previous == self.topics[publication.topic].offset
                self.topics[publication.topic] = publication.position
                self.receiver.deliver(publication)

    def cut(self) -> None:
        """Lose the link, and what was on its way."""
        self.linked = False
        self.link.clear()

    def reconnect(self) -> None:
        """Have the link again: what was missed is delivered, or there are gaps."""
        assert self.receiver is not None
        if self.linked:
            return
        self.linked = True
        self.reconnects += 1
        for topic, position in list(self.topics.items()):
            page = self.cluster.store.history(topic, position, PAGE, 0.0)
            if page.complete:
                self.link.extend(page.publications)
            else:
                self.topics[topic] = page.top
                self.receiver.interrupted(topic, page.top)

    def _up(self) -> None:
        if not self.linked:
            raise BrokerDown("the link is cut")

    async def publish(
        self, topic: str, data: bytes, *, key: str = "", tag: str = "", origin: str = ""
    ) -> Position:
        self._up()
        return self.cluster.publish(topic, data)

    async def subscribe(self, topics: Sequence[str]) -> None:
        self.subscribed += topics
        self._up()
        await self.cluster.gate()
        self._up()
        for topic in topics:
            assert topic not in self.topics, "subscribed to twice"
            self.topics[topic] = NOWHERE  # so that the store knows that it is listened to
            self.topics[topic] = self.cluster.store.position(topic)
        await self.cluster.gate()
        if not all(topic in self.topics for topic in topics):
            raise BrokerDown("cut meanwhile")

    def unsubscribe(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self.topics.pop(topic, None)
            if not any(topic in node.topics for node in self.cluster.nodes):
                self.cluster.store.released(topic)
            self.link = deque(publication for publication in self.link if publication.topic != topic)

    def position(self, topic: str) -> Position:
        return self.topics[topic]

    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        self._up()
        await self.cluster.gate()
        self._up()
        page = self.cluster.store.history(topic, since, limit, 0.0)
        await self.cluster.gate()
        return page

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        raise NotImplementedError

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        return []

    async def leave(self, topic: str, member: str, owner: str) -> bool:
        raise NotImplementedError

    async def members(self, topic: str) -> dict[str, bytes]:
        raise NotImplementedError
