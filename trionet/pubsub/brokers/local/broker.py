"""The engine of one machine: its processes share a `server` through a Unix socket. No server to install.

``trionet serve`` with several workers has one, started when it is first used; ``trionet broker PATH`` serves one by
itself. What is kept lives as long as that process.

When the connection was lost, a new one is made, and what was missed is fetched before it counts as up:

    topics       subscribed to again, some hundreds at a time; the answer says where each stands now
    ── behind    what came meanwhile is fetched from the history, page by page; what comes live is already in there, and
                 is dropped until the last page is in
    ── lost      the history does not reach back so far, or the broker has a new epoch: `Receiver.interrupted`, and all
                 that is kept

Longer than other files, for it is one class: the interface, and the recovery that shares its table of topics.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

import trio

from trionet.errors import BrokerDown, BrokerError, ConfigurationError, ProtocolError
from trionet.pubsub.broker import PAGE, Receiver
from trionet.pubsub.brokers.linked import Attempts, LinkedBroker, words
from trionet.pubsub.brokers.local import messages as say
from trionet.pubsub.brokers.local import wire
from trionet.pubsub.brokers.local.link import Link, open_link
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position, Publication
from trionet.pubsub.topics import TopicOptions, TopicRules, TopicSet, check_topic, is_pattern

__all__ = ["LocalBroker"]

log = logging.getLogger("trionet.pubsub")

_BATCH: Final = 500  # topics, or owners, in one message
_HUGE: Final = 2**32 - 1

_JOINING, _LIVE, _BEHIND = range(3)


class _Topic:
    """A topic, or pattern, that is subscribed to. `epoch` "" if it keeps nothing."""

    __slots__ = ("epoch", "keeps", "offset", "state")

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        self.state = _JOINING
        self.epoch = ""
        self.offset = 0

    def stands(self, epoch: str, offset: int) -> Position:
        """It goes on from there."""
        self.epoch, self.offset, self.state = epoch, offset, _LIVE
        return Position(epoch, offset)


class LocalBroker(LinkedBroker):
    """See the module. `path`: of the socket.

    `timeout`: seconds after which a broker that answers nothing counts as down; it is pinged every `ping_interval`
    (a fifth of that, if it is not given). `when_down`, `max_waiting`: see `open_broker`.
    """

    name = "local"

    def __init__(
        self,
        path: str,
        *,
        rules: TopicRules | Mapping[str, TopicOptions] | None = None,
        when_down: Literal["error", "queue"] = "error",
        max_waiting: int = 1000,
        timeout: float = 5.0,
        ping_interval: float | None = None,
    ) -> None:
        interval = timeout / 5 if ping_interval is None else ping_interval
        super().__init__(rules, when_down, max_waiting)
        if not (timeout > 0 and 0 < interval <= timeout / 3):
            raise ConfigurationError(
                f"need timeout > 0 and ping_interval of a third of it at most; not {timeout}, {interval}"
            )
        self.path = path
        self.timeout = timeout
        # A ping is on its way at most one interval after the last answer, and is looked for once in each.
        self._patience = interval, timeout - 2 * interval
        self._receiver: Receiver | None = None
        self._link: Link | None = None  # while it is connected
        self._last: Link | None = None  # the newest there was
        self._topics: dict[str, _Topic] = {}
        self._patterns = TopicSet()

    def _lag(self) -> float | None:
        return self._link.lag if self._link is not None else None

    # ------------------------------------------------------------- its life

    def running(self, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        return self._running(receiver)

    @asynccontextmanager
    async def _running(self, receiver: Receiver) -> AsyncIterator[None]:
        with self._life():
            self._receiver = receiver
            try:
                link = await self._connect_first()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep, link, receiver)
                    await self._up.wait()
                    yield
                    nursery.cancel_scope.cancel()
            finally:
                self._receiver = None
                self._down("the broker was left")
                if self._last is not None:
                    self._last.lose("the broker was left")
                self._topics.clear()
                self._patterns = TopicSet()

    async def _connect_first(self) -> Link:
        """Whoever has just started it gets some time; where nobody listens there is nothing to wait for."""
        attempts = Attempts(f"the local broker at {self.path}")
        deadline = trio.current_time() + self.timeout
        while True:
            link = await self._connect(deadline)
            if isinstance(link, Link):
                return link
            passing = isinstance(
                link, ConnectionResetError | BlockingIOError
            )  # it ended just now; many are queued
            if not passing or trio.current_time() >= deadline:
                raise BrokerDown(f"no local broker at {self.path}: {words(link)}")
            await trio.sleep(attempts.pause(words(link)))

    async def _connect(self, deadline: float) -> Link | Exception:
        with trio.CancelScope(deadline=deadline):
            try:
                return await open_link(self.path)
            except (OSError, ProtocolError) as error:
                return error
        return TimeoutError(f"it does not answer within {self.timeout:g} s")

    async def _keep(self, link: Link | None, receiver: Receiver) -> None:
        """Stay connected."""
        attempts = Attempts(f"the local broker at {self.path}")
        lasted: float | None = None
        while True:
            if link is None:
                await trio.sleep(attempts.pause(self._error, lasted))
                found = await self._connect(trio.current_time() + self.timeout)
                if isinstance(found, Exception):
                    lasted = None
                    self._error = words(found)
                    continue
                link = found
            self._link = self._last = link
            link.on_lost = self._down
            try:
                await link.run(self._pushed, receiver.wait_room, self._patience, partial(self._recover, link))
                log.warning("the local broker at %s is down: %s", self.path, link.reason)
            finally:
                self._down(link.reason)
                lasted = trio.current_time() - link.recovered if link.recovered is not None else None
            link = None

    def _down(self, reason: str) -> None:
        self._link = None
        for topic in self._topics.values():
            if topic.state == _LIVE:
                topic.state = _BEHIND
        self._went_down(reason)

    # ------------------------------------------------------------- recovery

    async def _recover(self, link: Link) -> None:
        """Subscribe again, and fetch what was missed; then it is up."""
        try:
            names = list(self._topics)
            for begin in range(0, len(names), _BATCH):
                batch = [name for name in names[begin : begin + _BATCH] if name in self._topics]
                if not batch:
                    continue
                behind = await self._resubscribe(link, batch)
                for name in behind:
                    await self._catch_up(link, name)
        except BrokerDown:
            return
        except BrokerError as error:  # it takes fewer topics than we have
            link.lose(str(error))
            return
        link.recovered = trio.current_time()
        self._went_up()
        if self._ups > 1:
            log.info("the local broker at %s is up again", self.path)

    async def _resubscribe(self, link: Link, batch: list[str]) -> list[str]:
        """Returns those of the batch that have missed something."""
        wanted = [(name, self._topics[name]) for name in batch]
        behind: list[str] = []

        def heed(answer: Any) -> None:
            if answer.__class__ is say.Refused:
                return
            for (name, topic), offset in zip(wanted, answer.offsets, strict=True):
                if self._topics.get(name) is not topic:
                    continue
                if not topic.keeps:
                    topic.state = _LIVE
                elif topic.epoch != link.epoch and not offset:
                    self._interrupt(name, topic, link.epoch, 0)  # nothing was published in the new one
                elif (topic.epoch, topic.offset) == (link.epoch, offset):
                    topic.state = _LIVE
                else:
                    behind.append(name)

        await link.ask(wire.subscribe, batch, heed=heed)
        return behind

    async def _catch_up(self, link: Link, name: str) -> None:
        """Deliver what `name` has missed; or, where that is not known, say so, and deliver what there is."""
        topic = self._topics.get(name)
        if topic is None:
            return
        lost = topic.epoch != link.epoch

        def heed(answer: Any) -> None:
            nonlocal lost
            if answer.__class__ is say.Refused or self._topics.get(name) is not topic:
                return
            if not answer.complete:
                lost = True
                return
            found = answer.publications
            if lost:
                self._interrupt(name, topic, link.epoch, found[0].previous if found else answer.top)
            for publication in found:
                self._deliver(topic, publication)
            topic.state = _BEHIND if answer.more else _LIVE

        while self._topics.get(name) is topic and topic.state == _BEHIND:
            since = None if lost else Position(topic.epoch, topic.offset)
            await link.ask(wire.history, name, since, PAGE, heed=heed)

    def _interrupt(self, name: str, topic: _Topic, epoch: str, offset: int) -> None:
        assert self._receiver is not None
        self._receiver.interrupted(name, topic.stands(epoch, offset))

    def _deliver(self, topic: _Topic, publication: Publication) -> None:
        assert self._receiver is not None
        topic.offset = publication.offset
        self._receiver.deliver(publication)

    # -------------------------------------------------------- what comes by itself

    def _pushed(self, message: Any) -> None:
        assert self._receiver is not None
        if message.__class__ is not Publication:
            if message.topic in self._topics:
                self._receiver.presence(message.topic, message.event, message.member, message.info)
            return
        name = message.topic
        topic = self._topics.get(name)
        if topic is None or topic.state == _JOINING:
            if self._patterns.wants(name):
                self._receiver.deliver(message)
        elif not message.offset:
            self._receiver.deliver(message)
        elif topic.state == _LIVE and message.offset > topic.offset:
            self._deliver(topic, message)

    # ------------------------------------------------------------ requests

    def _now(self) -> Link:
        """The connection, if it is up."""
        if self._link is None or not self._up.is_set():
            raise BrokerDown(f"the local broker is down: {self._error}")
        return self._link

    async def _publish(self, topic: str, data: bytes, key: str, tag: str, origin: str) -> Position:
        limits = self.rules.of(topic).history
        kept = (0, 0, 0.0) if limits is None else (min(limits.count, _HUGE), limits.size, limits.age)
        link = self._link  # one that recovers will do: who hears of a break may answer at once
        if link is None:
            raise BrokerDown(f"the local broker is down: {self._error}")
        if len(data) > link.max_message:
            raise BrokerError(f"{len(data)} bytes; the local broker takes at most {link.max_message}")
        answer = await link.ask(wire.publish, kept, topic, key, tag, origin, data)
        return Position(link.epoch, answer.offset) if answer.offset else NOWHERE

    async def subscribe(self, topics: Sequence[str]) -> None:
        link = self._now()
        added = {}
        for name in topics:
            check_topic(name, pattern=True)
            keeps = not is_pattern(name) and self.rules.of(name).history is not None
            added[name] = _Topic(keeps=keeps)
        for name in added:
            if is_pattern(name):
                self._patterns.add(name)
        self._topics.update(added)
        try:
            for batch in _batches(added):
                await link.ask(wire.subscribe, batch, heed=partial(self._joined, link, batch, added))
        except BaseException:
            self.unsubscribe(name for name in added if self._topics.get(name) is added[name])
            raise

    def _joined(self, link: Link, batch: Sequence[str], added: Mapping[str, _Topic], answer: Any) -> None:
        if answer.__class__ is say.Refused:
            return
        for name, offset in zip(batch, answer.offsets, strict=True):
            topic = added[name]
            if topic.keeps:
                topic.stands(link.epoch, offset)
            else:
                topic.state = _LIVE

    def unsubscribe(self, topics: Iterable[str]) -> None:
        gone = [name for name in topics if self._topics.pop(name, None) is not None]
        for name in gone:
            self._patterns.discard(name)
        if self._link is not None:
            for batch in _batches(gone):
                self._link.send(wire.unsubscribe(batch))

    def position(self, topic: str) -> Position:
        found = self._topics.get(topic)
        return Position(found.epoch, found.offset) if found is not None and found.keeps else NOWHERE

    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        link = self._now()
        if is_pattern(topic) or self.rules.of(topic).history is None:
            return HistoryPage([], NOWHERE, complete=False)
        limit = max(0, min(limit, PAGE))
        if since is not None and not 0 <= since.offset < 2**64:
            since = Position("", 0)  # of no epoch there ever was
        answer = await link.ask(wire.history, topic, since, limit)
        top = Position(link.epoch, answer.top)
        return HistoryPage(answer.publications, top, answer.complete, answer.more)

    # ------------------------------------------------------------ presence

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        answer = await self._now().ask(wire.enter, topic, member, owner, info, ttl)
        return bool(answer.whether)

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        unknown: list[tuple[str, str, str]] = []
        for batch in _batches(entries):
            answer = await self._now().ask(wire.refresh, batch, ttl)
            unknown += answer.entries
        return unknown

    async def leave(self, topic: str, member: str, owner: str) -> bool:
        answer = await self._now().ask(wire.leave, topic, member, owner)
        return bool(answer.whether)

    async def members(self, topic: str) -> dict[str, bytes]:
        answer = await self._now().ask(wire.members, topic)
        found: dict[str, bytes] = answer.members
        return found


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
