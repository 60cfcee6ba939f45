"""The engine of one process: a `Store` and nothing else. What is published is delivered before `publish` returns."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from trionet.errors import BrokerDown
from trionet.pubsub.broker import PAGE, Broker, BrokerState, Receiver, as_rules, now, wall_clock
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position
from trionet.pubsub.store import KEY_AGE, MAX_BYTES, MAX_KEYS, Change, Store, Uptime
from trionet.pubsub.topics import TopicOptions, TopicRules, TopicSet, check_topic, is_pattern

__all__ = ["MemoryBroker"]


class MemoryBroker(Broker):
    """Keeps everything in this process and loses it with it.

    `max_bytes`: of all histories together. `max_keys`, `key_age` (seconds): idempotency keys that are known.
    """

    name = "memory"

    def __init__(
        self,
        *,
        rules: TopicRules | Mapping[str, TopicOptions] | None = None,
        max_bytes: int = MAX_BYTES,
        max_keys: int = MAX_KEYS,
        key_age: float = KEY_AGE,
    ) -> None:
        self.rules = as_rules(rules)
        self._topics = TopicSet()
        self.store = Store(
            secrets.token_hex(4),
            self._topics.__contains__,
            max_bytes=max_bytes,
            max_keys=max_keys,
            key_age=key_age,
        )
        self._uptime = Uptime()
        self._receiver: Receiver | None = None
        self._state = BrokerState(up=False, since=0.0)

    @property
    def state(self) -> BrokerState:
        return self._state

    def running(self, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        return self._running(receiver)

    @asynccontextmanager
    async def _running(self, receiver: Receiver) -> AsyncIterator[None]:
        if self._receiver is not None:
            raise trio.BusyResourceError("this broker runs already")
        self._receiver = receiver
        self._state = BrokerState(up=True, since=now(), lag=0.0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._receiver = None
            self.unsubscribe(list(self._topics))
            self._state = BrokerState(up=False, since=now(), error="the broker was left")

    async def _keep(self) -> None:
        while True:
            await trio.sleep(1.0)
            for change in self.store.expire(wall_clock(), present=self._uptime.at(now())):
                self._tell(change)

    def _up(self) -> Receiver:
        if self._receiver is None:
            raise BrokerDown("the broker does not run")
        return self._receiver

    def _tell(self, change: Change | None) -> bool:
        if change is not None and change.topic in self._topics:
            self._up().presence(*change)
        return change is not None

    async def publish(
        self, topic: str, data: bytes, *, key: str = "", tag: str = "", origin: str = ""
    ) -> Position:
        self._up()
        check_topic(topic)
        await trio.lowlevel.checkpoint()  # or a loop that publishes would let nobody else run
        await self._up().wait_room()
        receiver = self._up()
        position, publication = self.store.publish(
            topic, data, self.rules.of(topic).history, wall_clock(), key=key, tag=tag, origin=origin
        )
        if publication is not None and self._topics.wants(topic):
            receiver.deliver(publication)
        return position

    async def subscribe(self, topics: Sequence[str]) -> None:
        self._up()
        for topic in topics:
            self._topics.add(topic)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._topics.discard(topic)
            self.store.released(topic)

    def position(self, topic: str) -> Position:
        if is_pattern(topic) or self.rules.of(topic).history is None:
            return NOWHERE
        return self.store.position(topic)

    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        self._up()
        if is_pattern(topic) or self.rules.of(topic).history is None:
            return HistoryPage([], NOWHERE, complete=False)
        return self.store.history(topic, since, min(limit, PAGE), wall_clock())

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        self._up()
        return self._tell(self.store.enter(topic, member, owner, info, self._uptime.at(now()) + ttl))

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        self._up()
        return self.store.refresh(entries, self._uptime.at(now()) + ttl)

    async def leave(self, topic: str, member: str, owner: str) -> bool:
        self._up()
        return self._tell(self.store.leave(topic, member, owner))

    async def members(self, topic: str) -> dict[str, bytes]:
        self._up()
        return self.store.members(topic)
