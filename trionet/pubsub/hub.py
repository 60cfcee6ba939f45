"""Who listens to what in this process, and one message to all of them. Synchronous: nothing here waits for a peer.

    topic of one subscriber    → the subscriber itself
    topic of several           → a dict used as an ordered set (29 to 47 bytes an entry; a set takes 105)
    subscriber of one topic    → its name; of several: a tuple of names

A publication costs what its subscribers cost, whatever else is subscribed: one look for the topic, and one for each
length of a pattern's beginning. More than `slice` subscribers get it in slices, between which `run` lets others have
their turn. It goes to those who were subscribed when it was published, and publications of one topic keep their order:

    no fan-out of the topic is under way   the first slice is sent at once, the rest is queued
    one is under way                       the publication is queued behind it
    `max_behind` are                       the oldest is finished at once: whoever publishes faster pays
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

import attrs
import trio

from trionet.errors import ConfigurationError, TopicError
from trionet.pubsub.topics import check_topic, is_pattern

__all__ = ["Hub", "HubStatistics"]

S = TypeVar("S")
M = TypeVar("M")

MAX_TOPICS: Final = 128  # of a subscriber
SLICE: Final = 512  # subscribers: some 2.5 ms
_MANY: Final = 8  # up to so many topics of a subscriber are a tuple


@attrs.frozen
class HubStatistics:
    """Numbers of a `Hub`. `published`, `delivered` and `left_out` only go up."""

    topics: int
    subscriptions: int
    subscribers: int
    published: int
    delivered: int  # messages that a subscriber's connection took
    left_out: int  # those it did not: it is slow, or closed
    behind: int  # publications whose fan-out is not finished


class _FanOut(Generic[S, M]):
    """A publication on its way."""

    __slots__ = ("left", "members", "message", "sent")

    def __init__(self, message: M, members: list[S], sent: int) -> None:
        self.message = message
        self.members = members
        self.sent = sent  # so many of the members have it
        self.left: set[S] | None = None  # who has unsubscribed meanwhile


class Hub(Generic[S, M]):
    """Topics of one process. Everything belongs to the Trio thread.

    `send` gives one message to many subscribers without waiting, and returns how many took it: `trionet.broadcast` for
    WebSockets. Subscribers are any objects that can be a dict's key. `on_first` and `on_last` are called when a topic
    gets its first subscriber and when it has lost the last one.

    A subscriber that has gone must be taken out by `forget`: in `on_close`, for a WebSocket.
    """

    def __init__(
        self,
        send: Callable[[Iterable[S], M], int],
        *,
        max_topics: int = MAX_TOPICS,
        slice: int = SLICE,  # noqa: A002 - the word for it
        max_behind: int = 64,
        on_first: Callable[[str], object] | None = None,
        on_last: Callable[[str], object] | None = None,
    ) -> None:
        if min(max_topics, slice, max_behind) < 1:
            raise ConfigurationError("max_topics, slice and max_behind are at least 1")
        self.max_topics = max_topics
        self.slice = slice
        self.max_behind = max_behind
        self.published = 0
        self.delivered = 0
        self.left_out = 0
        self._send = send
        self._on_first = on_first
        self._on_last = on_last
        self._topics: dict[str, Any] = {}  # str → S or _Members
        self._of: dict[S, Any] = {}  # S → str, tuple or dict of str
        self._lengths: dict[int, int] = {}  # of patterns' beginnings → how many there are
        self._subscriptions = 0
        self._fan_outs: dict[str, deque[_FanOut[S, M]]] = {}  # the topic whose turn it is comes first
        self._behind = 0
        self._running = False
        self._work = trio.Event()
        self._room = trio.Event()

    # --------------------------------------------------------- subscriptions

    def subscribe(self, subscriber: S, topic: str) -> bool:
        """Add a subscription to a topic or a pattern. False: it was there. Raises `TopicError`."""
        own = self._of.get(subscriber)
        if own is not None and (own == topic if own.__class__ is str else topic in own):
            return False
        check_topic(topic, pattern=True)
        count = 0 if own is None else 1 if own.__class__ is str else len(own)
        if count >= self.max_topics:
            raise TopicError(f"more than {self.max_topics} topics of one subscriber")
        members = self._topics.get(topic)
        if members is None:
            self._topics[topic] = subscriber
            if is_pattern(topic):
                length = len(topic) - 1
                self._lengths[length] = self._lengths.get(length, 0) + 1
        elif members.__class__ is _Members:
            members[subscriber] = None
        else:
            self._topics[topic] = _Members(((members, None), (subscriber, None)))
        if own is None:
            self._of[subscriber] = topic
        elif own.__class__ is str:
            self._of[subscriber] = (own, topic)
        elif own.__class__ is dict:
            own[topic] = None
        elif count < _MANY:
            self._of[subscriber] = (*own, topic)
        else:
            self._of[subscriber] = {**dict.fromkeys(own), topic: None}
        self._subscriptions += 1
        if members is None and self._on_first is not None:
            self._on_first(topic)
        return True

    def unsubscribe(self, subscriber: S, topic: str) -> bool:
        """Take a subscription back: nothing more comes by it. False: there was none."""
        own = self._of.get(subscriber)
        if own is None or not (own == topic if own.__class__ is str else topic in own):
            return False
        if own.__class__ is str:
            del self._of[subscriber]
        elif own.__class__ is dict:
            del own[topic]
            if not own:
                del self._of[subscriber]
        elif len(own) == 2:
            self._of[subscriber] = own[own[0] == topic]
        else:
            self._of[subscriber] = tuple([name for name in own if name != topic])
        self._remove(subscriber, topic)
        return True

    def forget(self, subscriber: S) -> tuple[str, ...]:
        """Take all its subscriptions back; returns their topics."""
        own = self._of.pop(subscriber, None)
        if own is None:
            return ()
        topics = (own,) if own.__class__ is str else tuple(own)
        for topic in topics:
            self._remove(subscriber, topic)
        return topics

    def _remove(self, subscriber: S, topic: str) -> None:
        self._subscriptions -= 1
        members = self._topics[topic]
        last = members.__class__ is not _Members
        if not last:
            del members[subscriber]
            if len(members) == 1:
                self._topics[topic] = next(iter(members))
        else:
            del self._topics[topic]
            if is_pattern(topic):
                length = len(topic) - 1
                self._lengths[length] -= 1
                if not self._lengths[length]:
                    del self._lengths[length]
        if self._fan_outs:
            self._left(subscriber, topic)
        if last and self._on_last is not None:
            self._on_last(topic)

    def _left(self, subscriber: S, topic: str) -> None:
        for name, fan_outs in self._fan_outs.items():
            if name == topic or (is_pattern(topic) and name.startswith(topic[:-1])):
                for fan_out in fan_outs:
                    if fan_out.left is None:
                        fan_out.left = set()
                    fan_out.left.add(subscriber)

    def __contains__(self, topic: str) -> bool:
        """Whether somebody has subscribed to exactly this topic or pattern."""
        return topic in self._topics

    def __len__(self) -> int:
        """How many topics and patterns have subscribers."""
        return len(self._topics)

    def __iter__(self) -> Iterator[str]:
        return iter(self._topics)

    def has(self, subscriber: S, topic: str) -> bool:
        """Whether this subscription is there."""
        return topic in self.topics(subscriber)

    def topics(self, subscriber: S) -> Collection[str]:
        """What it has subscribed to."""
        own = self._of.get(subscriber)
        return () if own is None else (own,) if own.__class__ is str else tuple(own)

    def subscribers(self, topic: str) -> Collection[S]:
        """Who has subscribed to exactly this topic or pattern, the earliest first."""
        members = self._topics.get(topic)
        return () if members is None else tuple(members) if members.__class__ is _Members else (members,)

    def count(self, topic: str) -> int:
        """How many have subscribed to exactly this topic or pattern."""
        members = self._topics.get(topic)
        return 0 if members is None else len(members) if members.__class__ is _Members else 1

    # ------------------------------------------------------------ publishing

    def wanted(self, topic: str) -> bool:
        """Whether a publication on `topic` has anybody to go to."""
        if topic in self._topics:
            return True
        return any(topic[:length] + "*" in self._topics for length in self._lengths)

    def publish(self, topic: str, message: M, *, exclude: S | None = None) -> int:
        """Give `message` to all who have subscribed to `topic` or a pattern of it, but for `exclude`; to each once.

        Never waits. Returns how many they are; what became of it is in `statistics`.
        """
        members = self._topics.get(topic)
        if self._lengths:
            members = self._with_patterns(topic, members)
        self.published += 1
        if members is None:
            return 0
        if members.__class__ is not _Members:
            members = (members,)
        if exclude is not None:
            members = [member for member in members if member is not exclude]
        count = len(members)
        behind = self._fan_outs.get(topic)
        if behind is None and (count <= self.slice or not self._running):
            taken = self._send(members, message)
            self.delivered += taken
            self.left_out += count - taken
            return count
        fan_out = _FanOut(message, list(members), 0)
        if behind is None:
            self._step(fan_out)
            behind = self._fan_outs[topic] = deque()
        elif len(behind) >= self.max_behind:
            self._finish_one(behind)
        behind.append(fan_out)
        self._behind += 1
        self._work.set()
        return count

    def _with_patterns(self, topic: str, members: Any) -> Any:
        """`members` and those of all patterns that fit."""
        union: _Members | None = None
        for length in self._lengths:
            more = self._topics.get(topic[:length] + "*") if length <= len(topic) else None
            if more is None:
                continue
            if members is None:
                members = more
                continue
            if union is None:
                members = union = _members(members)
            union.update(_members(more))
        return members

    # --------------------------------------------------------------- fan-out

    async def run(self) -> None:
        """Work off big fan-outs, slice by slice, for as long as it runs. Without it `publish` does all at once."""
        if self._running:
            raise trio.BusyResourceError("another task runs this hub")
        self._running = True
        try:
            while True:
                if not self._fan_outs:
                    self._work = trio.Event()
                    await self._work.wait()
                topic, behind = next(iter(self._fan_outs.items()))
                self._step(behind[0])
                del self._fan_outs[topic]
                if behind[0].sent >= len(behind[0].members):
                    self._done(behind)
                if behind:
                    self._fan_outs[topic] = behind  # at the end: topics take turns
                await trio.lowlevel.checkpoint()
        finally:
            self._running = False
            while self._fan_outs:  # nobody would do it later
                _, behind = self._fan_outs.popitem()
                while behind:
                    self._finish_one(behind)

    async def wait_room(self) -> None:
        """Wait while `max_behind` publications, or more, are on their way. For those who could publish without end."""
        while self._behind >= self.max_behind:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def _step(self, fan_out: _FanOut[S, M]) -> None:
        """Send the next slice."""
        begin = fan_out.sent
        fan_out.sent = begin + self.slice
        members = fan_out.members[begin : fan_out.sent]
        if fan_out.left:
            members = [member for member in members if member not in fan_out.left]
        taken = self._send(members, fan_out.message)
        self.delivered += taken
        self.left_out += len(members) - taken

    def _finish_one(self, behind: deque[_FanOut[S, M]]) -> None:
        fan_out = behind[0]
        while fan_out.sent < len(fan_out.members):
            self._step(fan_out)
        self._done(behind)

    def _done(self, behind: deque[_FanOut[S, M]]) -> None:
        behind.popleft()
        self._behind -= 1
        if self._behind < self.max_behind:
            self._room.set()

    def statistics(self) -> HubStatistics:
        """Numbers as they are now."""
        return HubStatistics(
            topics=len(self._topics),
            subscriptions=self._subscriptions,
            subscribers=len(self._of),
            published=self.published,
            delivered=self.delivered,
            left_out=self.left_out,
            behind=self._behind,
        )


class _Members(dict[Any, None]):
    """Several subscribers of a topic: a class of its own, for a subscriber may be a dict too."""

    __slots__ = ()


def _members(members: Any) -> _Members:
    """The same as a new set."""
    return _Members(members) if members.__class__ is _Members else _Members(((members, None),))
