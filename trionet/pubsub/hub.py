"""Who listens to what in this process, and one message to all of them. Synchronous: nothing here waits for a peer.

    topic of one subscriber    → the subscriber itself
    topic of several           → a list of them (9 bytes each; a dict takes 29 to 60, a set 105)
    subscriber of one topic    → its name; of several: a tuple of names

Who leaves a long list is noted, and taken out with the next publication, or when one in sixteen has left. A name is
kept once, however many have said it.

A publication costs what its subscribers cost, whatever else is subscribed: one look for the topic, and one for each
length of a pattern's beginning. More than `slice` subscribers get it in slices, between which `run` lets others have
their turn. It goes to those who were subscribed when it was published, unless they have left meanwhile, and
publications of one topic keep their order:

    no fan-out of the topic is under way   the first slice is sent at once, the rest is queued
    one is under way                       the publication is queued behind it
    `max_behind` are                       the oldest is finished at once: whoever publishes faster pays
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
import trio

from trionet.errors import ConfigurationError, TopicError
from trionet.pubsub.topics import PatternLengths, check_topic, is_pattern

__all__ = ["Hub", "HubStatistics"]

S = TypeVar("S")
M = TypeVar("M")

MAX_TOPICS: Final = 128  # of a subscriber
SLICE: Final = 512  # subscribers: some 2.5 ms
_MANY: Final = 8  # up to so many topics of a subscriber are a tuple
_SHORT: Final = 32  # up to so many subscribers of a topic, one is taken out of the list at once


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


class _Members(list[Any]):
    """Several subscribers of a topic, those who have left among them. While a fan-out may use it, it only grows."""

    __slots__ = ("gone", "name")

    def __init__(self, name: str, members: Iterable[Any]) -> None:
        super().__init__(members)
        self.name = name
        self.gone: set[Any] | None = None

    def present(self) -> _Members:
        """Those who have not left."""
        gone = self.gone
        return (
            self if gone is None else _Members(self.name, [member for member in self if member not in gone])
        )


class _FanOut(Generic[S, M]):
    """A publication on its way to the first `count` of `members`."""

    __slots__ = ("count", "members", "message", "number", "sent")

    def __init__(self, message: M, members: Sequence[S], count: int) -> None:
        self.message = message
        self.members = members
        self.count = count
        self.sent = 0  # so many of the members have it
        self.number = 0  # in its line


class _Line(deque[_FanOut[S, M]]):
    """Publications of a topic that are on their way, the oldest first."""

    __slots__ = ("left", "number")

    def __init__(self) -> None:
        super().__init__()
        self.number = 0  # of the newest
        self.left: dict[S, int] = {}  # who has unsubscribed → the newest that was on its way then

    def add(self, fan_out: _FanOut[S, M]) -> None:
        """At the end."""
        self.number = fan_out.number = self.number + 1
        self.append(fan_out)

    def done(self) -> None:
        """The oldest has been sent."""
        self.popleft()
        if self.left and self:
            oldest = self[0].number
            self.left = {member: number for member, number in self.left.items() if number >= oldest}


class Hub(Generic[S, M]):
    """Topics of one process. Everything belongs to the Trio thread.

    `send` gives one message to many subscribers without waiting, and returns how many took it: `trionet.broadcast` for
    WebSockets. Subscribers are any objects that can be a dict's key, but None. `on_first` and `on_last` are called when
    a topic gets its first subscriber and when it has lost the last one.

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
        self._lengths = PatternLengths()
        self._subscriptions = 0
        self._fan_outs: dict[str, _Line[S, M]] = {}  # the topic whose turn it is comes first
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
        topic = str.__str__(check_topic(topic, pattern=True))  # a subclass would not be taken for a str below
        count = 0 if own is None else 1 if own.__class__ is str else len(own)
        if count >= self.max_topics:
            raise TopicError(f"more than {self.max_topics} topics of one subscriber")
        members = self._topics.get(topic)
        if members is None:
            self._topics[topic] = subscriber
            self._lengths.add(topic)
        elif members.__class__ is _Members:
            topic = members.name
            if members.gone is not None and subscriber in members.gone:
                members.gone.remove(subscriber)  # it has its old place again
                members.gone = members.gone or None
            else:
                members.append(subscriber)
        else:
            topic = self._name(members, topic)
            self._topics[topic] = _Members(topic, (members, subscriber))
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
            self._take_out(subscriber, members)
        else:
            del self._topics[topic]
            self._lengths.discard(topic)
        if self._fan_outs:
            self._left(subscriber, topic)
        if last and self._on_last is not None:
            self._on_last(topic)

    def _take_out(self, subscriber: S, members: _Members) -> None:
        gone = members.gone
        if gone is None and len(members) <= _SHORT:
            if self._fan_outs:  # one of them may be under way along the list
                members = self._topics[members.name] = _Members(members.name, members)
            members.remove(subscriber)
            if len(members) == 1:
                self._topics[members.name] = members[0]
            return
        if gone is None:
            gone = members.gone = set()
        gone.add(subscriber)
        if len(gone) * 16 > len(members):
            self._topics[members.name] = members.present()

    def _name(self, subscriber: S, topic: str) -> str:
        """The str that `_topics` has for `topic`, whose one subscriber this is."""
        own = self._of[subscriber]
        return own if own.__class__ is str else next(name for name in own if name == topic)

    def _left(self, subscriber: S, topic: str) -> None:
        own = self.topics(subscriber)
        for name, line in self._fan_outs.items():
            if _fits(topic, name) and not any(_fits(other, name) for other in own):
                line.left[subscriber] = line.number

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
        """Who has subscribed to exactly this topic or pattern."""
        members = self._topics.get(topic)
        return () if members is None else tuple(_members(members))

    def count(self, topic: str) -> int:
        """How many have subscribed to exactly this topic or pattern."""
        members = self._topics.get(topic)
        if members.__class__ is _Members:
            return len(members) - (0 if members.gone is None else len(members.gone))
        return 0 if members is None else 1

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
        if members.__class__ is _Members:
            if members.gone is not None:
                members = self._topics[members.name] = members.present()
        elif members.__class__ is not list:
            members = (members,)
        if exclude is not None:
            members = [member for member in members if member is not exclude]
        count = len(members)
        line = self._fan_outs.get(topic)
        if line is None and (count <= self.slice or not self._running):
            taken = self._send(members[:], message)  # a copy: whoever is sent to may leave at once
            self.delivered += taken
            self.left_out += count - taken
            return count
        fan_out = _FanOut(message, members, count)
        self._behind += 1
        self._work.set()
        if line is None:
            line = self._fan_outs[topic] = _Line()
            line.add(fan_out)
            self._step(line, fan_out)
        else:
            if len(line) >= self.max_behind:
                self._finish_one(line)
            line.add(fan_out)
        return count

    def _with_patterns(self, topic: str, members: Any) -> Any:
        """`members` and those of all patterns that fit, each once."""
        union: dict[Any, None] | None = None
        for length in self._lengths:
            more = self._topics.get(topic[:length] + "*") if length <= len(topic) else None
            if more is None:
                continue
            if members is None:
                members = more
                continue
            if union is None:
                union = dict.fromkeys(_members(members))
            union.update(dict.fromkeys(_members(more)))
        return members if union is None else list(union)

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
                topic, line = next(iter(self._fan_outs.items()))
                fan_out = line[0]
                self._step(line, fan_out)
                del self._fan_outs[topic]
                if fan_out.sent == fan_out.count and line[0] is fan_out:
                    self._done(line)
                if line:
                    self._fan_outs[topic] = line  # at the end: topics take turns
                await trio.lowlevel.checkpoint()
        finally:
            self._running = False
            while self._fan_outs:  # nobody would do it later
                _, line = self._fan_outs.popitem()
                while line:
                    self._finish_one(line)

    async def wait_room(self) -> None:
        """Wait while `max_behind` publications, or more, are on their way. For those who could publish without end."""
        while self._behind >= self.max_behind:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def _step(self, line: _Line[S, M], fan_out: _FanOut[S, M]) -> None:
        """Send the next slice."""
        begin = fan_out.sent
        fan_out.sent = min(begin + self.slice, fan_out.count)
        members = fan_out.members[begin : fan_out.sent]
        if line.left:
            members = [member for member in members if line.left.get(member, 0) < fan_out.number]
        taken = self._send(members, fan_out.message)
        self.delivered += taken
        self.left_out += len(members) - taken

    def _finish_one(self, line: _Line[S, M]) -> None:
        fan_out = line[0]
        while fan_out.sent < fan_out.count:
            self._step(line, fan_out)
        self._done(line)

    def _done(self, line: _Line[S, M]) -> None:
        line.done()
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


def _fits(topic: str, name: str) -> bool:
    """Whether who has subscribed to `topic`, which may be a pattern, gets what is published on `name`."""
    return topic == name or (is_pattern(topic) and name.startswith(topic[:-1]))


def _members(members: Any) -> Iterable[Any]:
    """What a topic has in `Hub._topics`, as an iterable."""
    return members.present() if members.__class__ is _Members else (members,)
