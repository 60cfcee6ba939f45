"""A hub and a broker joined: what one process publishes reaches the subscribers of all, and who was away catches up.

A topic is *attached*, subscribed to at the broker, while this process has subscribers of it, or some that are joining:
once, however many they are.

    joining    what `since` missed is fetched and sent, page by page (`joining.catch_up`), until that ends where this
               process stands; then the subscriber enters the hub, in the same step
    ahead      history may be newer than what was delivered here: until that has caught up, the subscriber stands
               beside the hub, and what it has is not sent again
    joined     it is in the hub

So a subscriber has each publication once, in order and without a gap, from `since` on; or it is told that some are
missing, and goes on from a position it is given.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs
import trio

from trionet.errors import BrokerError, TopicError
from trionet.net.histogram import Histogram
from trionet.net.limited import LimitedLog
from trionet.pubsub.attendance import Attendance
from trionet.pubsub.broker import PAGE, Broker, wall_clock
from trionet.pubsub.hub import Hub
from trionet.pubsub.joining import Joined, Place, Recoveries, catch_up
from trionet.pubsub.publication import HistoryPage, Position, Publication
from trionet.pubsub.topics import check_topic

__all__ = ["Bus", "BusStatistics", "Encoder", "Joined", "open_bus"]

log = logging.getLogger("trionet.pubsub")

S = TypeVar("S")
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)

_GOODBYE: Final = 1.0  # seconds that the end may take, to tell the broker who was here


class Encoder(Protocol[M_co]):
    """Makes what subscribers are sent, once for all of them."""

    def publication(self, publication: Publication, /) -> M_co:
        """Something was published."""

    def interrupted(self, topic: str, position: Position, /) -> M_co:
        """Publications before `position` may be missing."""

    def presence(self, topic: str, event: str, member: str, info: bytes, /) -> M_co:
        """A member came ("join") or left ("leave")."""


@attrs.frozen
class BusStatistics:
    """Numbers of a `Bus`; all but `attached` and `joining` only go up."""

    attached: int
    joining: int
    published: int
    publish_failures: int
    received: int  # publications delivered by the broker
    recoveries: int  # subscribers that came back and missed nothing
    recovered: int  # publications they had missed and got
    lost: int  # subscribers that came back and were told that some are missing
    interrupted: int  # topics of which the broker has lost the thread


class Bus(Generic[S, M]):
    """Subscriptions of one process in a system of many. Make it by `open_bus`.

    Any number of tasks may use it. Subscribers, messages and `send` are those of its `Hub`.
    """

    def __init__(
        self,
        broker: Broker,
        send: Callable[[Any, M], int],
        encoder: Encoder[M],
        *,
        linger: float = 5.0,
        **options: Any,
    ) -> None:
        self.broker = broker
        self.encoder = encoder
        self.hub: Hub[S, M] = Hub(send, on_last=self._last_left, **options)
        self.node = secrets.token_hex(4)  # tells processes apart
        self.delays = Histogram()  # microseconds from a publisher's broker to the fan-out here
        self.attendance = Attendance(broker, self.node, linger)
        self.published = self.publish_failures = self.received = 0
        self.interruptions = 0
        self.recoveries = Recoveries()
        self._serial = 0
        self._places: dict[str, Place[S]] = {}
        self._pending: dict[S, set[str]] = {}  # subscriber → topics where it is joining, or ahead
        self._origins: dict[S, str] = {}  # of subscribers that want to be left out of what they publish
        self._excluded: dict[str, S] = {}  # the other way round
        self._limited = LimitedLog()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run hub and broker until the block is left. Raises `BrokerDown` if the broker cannot be reached at first."""
        async with self.broker.running(self), trio.open_nursery() as nursery:
            nursery.start_soon(self.hub.run)
            nursery.start_soon(self.attendance.run)
            nursery.start_soon(self._tell_what_was_left_out)
            try:
                yield
            finally:
                with trio.move_on_after(_GOODBYE, shield=True):
                    await self.attendance.hand_over()
            nursery.cancel_scope.cancel()

    async def _tell_what_was_left_out(self) -> None:
        try:
            while True:
                await trio.sleep(1.0)
                if self._limited.pending:
                    self._limited.flush()
        finally:
            self._limited.flush(everything=True)

    # ------------------------------------------------------------ publishing

    async def publish(
        self, topic: str, data: bytes, *, key: str = "", tag: str = "", exclude: S | None = None
    ) -> Position:
        """Publish to all subscribers in all processes but `exclude`, one of this process. See `Broker.publish`.

        `exclude` finds it in the history later, if it ever asks.
        """
        origin = ""
        if exclude is not None and (exclude in self._pending or self.hub.topics(exclude)):
            origin = self._origins.get(exclude, "")
            if not origin:
                self._serial += 1
                origin = self._origins[exclude] = f"{self.node}.{self._serial}"
                self._excluded[origin] = exclude
        try:
            position = await self.broker.publish(topic, data, key=key, tag=tag, origin=origin)
        except BrokerError:
            self.publish_failures += 1
            raise
        self.published += 1
        return position

    # --------------------------------------------------------- subscriptions

    async def subscribe(
        self,
        subscriber: S,
        topic: str,
        since: Position | None = None,
        *,
        begin: Callable[[Joined], Awaitable[object]],
        replay: Callable[[list[Publication]], Awaitable[object]],
    ) -> None:
        """Subscribe to a topic, from `since` on; or to a pattern, of which nothing can be recovered.

        `begin` is awaited before anything is sent (and again, not recovered, if more was published than is kept while a
        slow peer was sent the rest), `replay` with each page of what was missed; both may wait. When this returns, all
        that follows comes by the hub. `unsubscribe` and `forget` end it, also while it is under way (then it returns
        quietly).

        Raises `TopicError` (no name of a topic, too many, subscribed to already), `BrokerDown`, `BrokerError`, and
        what `begin` and `replay` raise; then there is no subscription.
        """
        check_topic(topic, pattern=True)
        place = self._places.get(topic)
        if self.has(subscriber, topic) or (place is not None and subscriber in place.joining):
            raise TopicError(f"subscribed to {topic!r:.80} already")
        pending = self._pending.get(subscriber, ())
        if len(self.hub.topics(subscriber)) + len(pending) >= self.hub.max_topics:
            raise TopicError(f"more than {self.hub.max_topics} topics of one subscriber")
        if place is None:
            place = self._places[topic] = Place()
        place.joining[subscriber] = True
        self._pending.setdefault(subscriber, set()).add(topic)
        try:
            await place.attach(self.broker, topic, lambda: topic in self.hub)
            last = await catch_up(
                self.broker,
                topic,
                since,
                lambda: not place.joining[subscriber],
                self.recoveries,
                begin,
                replay,
            )
            if last is not None:
                if last == self.broker.position(topic):
                    self.hub.subscribe(subscriber, topic)
                else:
                    place.ahead[subscriber] = last
        finally:
            del place.joining[subscriber]
            if subscriber not in place.ahead:
                self._settled(subscriber, topic)
            self._tidy(topic, place)

    def has(self, subscriber: S, topic: str) -> bool:
        """Whether this subscription is there, or on its way."""
        place = self._places.get(topic)
        if place is not None and (subscriber in place.ahead or place.joining.get(subscriber, False)):
            return True
        return self.hub.has(subscriber, topic)

    def unsubscribe(self, subscriber: S, topic: str) -> bool:
        """End a subscription, and presence with it. False: there was none."""
        self.attendance.leave(subscriber, topic)
        place = self._places.get(topic)
        found = False
        if place is not None:
            if place.joining.get(subscriber):
                place.joining[subscriber] = False
                found = True
            if place.ahead.pop(subscriber, None) is not None:
                found = True
                self._settled(subscriber, topic)
                self._tidy(topic, place)
        return self.hub.unsubscribe(subscriber, topic) or found

    def forget(self, subscriber: S) -> Collection[str]:
        """It has gone: end its subscriptions, and its presence after a while. Returns the topics it had."""
        self.attendance.forget(subscriber)
        self._excluded.pop(self._origins.pop(subscriber, ""), None)
        pending = tuple(self._pending.get(subscriber, ()))
        for topic in pending:
            self.unsubscribe(subscriber, topic)
        return (*self.hub.forget(subscriber), *pending)

    async def enter(self, subscriber: S, topic: str, member: str, info: bytes = b"") -> bool:
        """`subscriber`, who has subscribed to `topic`, is `member` there: announced to all if it is new there.

        It is present until it unsubscribes, or was forgotten and has not come back within `linger` seconds.
        Raises `TopicError` if it is not subscribed (any more), `BrokerError`.
        """
        if not self.has(subscriber, topic):  # perhaps it has gone: then it would be present for ever
            raise TopicError(f"not subscribed to {topic!r:.80}")
        return await self.attendance.enter(subscriber, topic, member, info)

    async def members(self, topic: str) -> dict[str, bytes]:
        """Who is present on `topic`, in all processes."""
        check_topic(topic)
        return await self.broker.members(topic)

    async def history(self, topic: str, since: Position | None = None, limit: int = PAGE) -> HistoryPage:
        """See `Broker.history`."""
        check_topic(topic)
        return await self.broker.history(topic, since, limit)

    def _settled(self, subscriber: S, topic: str) -> None:
        """It is neither joining nor ahead any more."""
        pending = self._pending[subscriber]
        pending.remove(topic)
        if not pending:
            del self._pending[subscriber]

    def _tidy(self, topic: str, place: Place[S]) -> None:
        """Somebody is not joining any more."""
        if place.joining or place.ahead:
            return
        if self._places.get(topic) is place:
            del self._places[topic]
        if topic not in self.hub and place.attached:
            self.broker.unsubscribe([topic])

    def _last_left(self, topic: str) -> None:
        """The hub has no subscriber of `topic` any more."""
        place = self._places.get(topic)
        if place is None:
            self.broker.unsubscribe([topic])
        else:
            place.attached = True  # who is joining found it so: theirs from here on

    # --------------------------------------------------- called by the broker

    def deliver(self, publication: Publication) -> None:
        """See `Receiver`."""
        self.received += 1
        topic = publication.topic
        place = self._places.get(topic)
        if place is not None and place.ahead:
            self._catch_up(topic, place, Position(publication.epoch, publication.previous))
        if publication.at:
            self.delays.record(max(0, int((wall_clock() - publication.at) * 1e6)))
        exclude = self._excluded.get(publication.origin) if publication.origin else None
        if self.hub.wanted(topic):
            self.hub.publish(topic, self.encoder.publication(publication), exclude=exclude)
        if place is not None and place.ahead:
            self._catch_up(topic, place, publication.position)

    def _catch_up(self, topic: str, place: Place[S], position: Position) -> None:
        """Everything up to `position` was delivered: who had no more than that takes part from here on."""
        for subscriber, last in list(place.ahead.items()):
            if last.epoch == position.epoch and last.offset <= position.offset:
                self._take_part(subscriber, topic, place)
        self._tidy(topic, place)

    def _take_part(self, subscriber: S, topic: str, place: Place[S]) -> None:
        """Who was ahead goes into the hub."""
        del place.ahead[subscriber]
        self._settled(subscriber, topic)
        self.hub.subscribe(subscriber, topic)

    def interrupted(self, topic: str, position: Position) -> None:
        """See `Receiver`."""
        self.interruptions += 1
        text = "%s: publications before %s:%d may be missing"
        self._limited.log(
            log, logging.WARNING, text, topic, *position
        )  # all topics at once, where an engine is new
        place = self._places.get(topic)
        if place is not None:
            for subscriber, last in list(place.ahead.items()):
                if last.epoch != position.epoch or last.offset < position.offset:
                    self._take_part(subscriber, topic, place)
        if topic in self.hub:
            self.hub.publish(topic, self.encoder.interrupted(topic, position))
        if place is not None:  # who is ahead still has more than that: nothing is missing
            self._catch_up(topic, place, position)

    def presence(self, topic: str, event: str, member: str, info: bytes) -> None:
        """See `Receiver`."""
        if self.hub.wanted(topic):
            self.hub.publish(topic, self.encoder.presence(topic, event, member, info))

    async def wait_room(self) -> None:
        """See `Receiver`."""
        await self.hub.wait_room()

    def statistics(self) -> BusStatistics:
        """Numbers as they are now; the hub has its own."""
        return BusStatistics(
            attached=len(self.hub) + sum(topic not in self.hub for topic in self._places),
            joining=sum(len(place.joining) for place in self._places.values()),
            published=self.published,
            publish_failures=self.publish_failures,
            received=self.received,
            recoveries=self.recoveries.complete,
            recovered=self.recoveries.publications,
            lost=self.recoveries.lost,
            interrupted=self.interruptions,
        )


@asynccontextmanager
async def open_bus(
    broker: Broker, send: Callable[[Any, M], int], encoder: Encoder[M], **options: Any
) -> AsyncIterator[Bus[Any, M]]:
    """Run a `Bus` on `broker` for as long as the block lasts. `options` are those of `Bus` and `Hub`."""
    bus: Bus[Any, M] = Bus(broker, send, encoder, **options)
    async with bus.running():
        yield bus
