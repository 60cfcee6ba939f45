"""What one process has subscribed to at NATS, and what becomes of each message that comes.

A message says which sequence number it has and which one the topic's message before it had. So on a topic with history

    sure, and it follows            it is delivered
    already delivered               it is dropped: it came from the history as well, or by a pattern, too
    something is missing between    nothing is delivered, and the topic is *unsure*: `checking` fills it
    unsure                          it is delivered only if it follows exactly; the history has it anyway

Every topic is unsure when a connection begins. Nothing is ever buffered.

A server sends a message once for each subscription that matches, so one of them is responsible: the topic's own if it
is live (its SUB was acknowledged), else the longest live pattern. One that was given up counts until the server knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from trionet.errors import BrokerDown, TopicError
from trionet.pubsub.broker import Receiver
from trionet.pubsub.brokers.nats.link import INBOX, Link
from trionet.pubsub.brokers.nats.protocol import Message
from trionet.pubsub.brokers.nats.publications import PREVIOUS, SEQUENCE, number, read_plain, read_stored
from trionet.pubsub.brokers.nats.streams import Stream, Streams, to_topic
from trionet.pubsub.publication import NOWHERE, Position, Publication
from trionet.pubsub.topics import SEPARATORS, check_topic, is_pattern

__all__ = ["Subscription", "Subscriptions"]


class Subscription:
    """A topic (`stream` is its), or a pattern (None). `epoch` and `offset` are its position, once it has one."""

    __slots__ = ("behind", "epoch", "leaving", "live", "name", "offset", "sid", "stream", "sure")

    def __init__(self, name: str, sid: int, stream: Stream | None) -> None:
        self.name = name
        self.sid = sid
        self.stream = stream
        self.epoch = ""
        self.offset = 0
        self.behind = 0  # the newest that was seen and not delivered
        self.sure = False
        self.live = False
        self.leaving = False


class Subscriptions:
    """All of them, by name and by the number that NATS knows them by."""

    def __init__(self, streams: Streams, receiver: Receiver) -> None:
        self.keeping = True  # JetStream is there
        self.on_gap: Callable[[Subscription], object] = lambda _: None
        self._streams = streams
        self._receiver = receiver
        self._subs: dict[str, Subscription] = {}
        self._by_sid: dict[int, Subscription] = {}
        self._patterns = 0
        self._serial = INBOX

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._subs.values())

    def kept(self, sub: Subscription) -> bool:
        """Whether it is a topic with history."""
        return self.keeping and sub.stream is not None and sub.stream.limits is not None

    def has(self, sub: Subscription) -> bool:
        """Whether it is still wanted."""
        return self._subs.get(sub.name) is sub and not sub.leaving

    def position(self, name: str) -> Position:
        """See `Broker.position`."""
        sub = self._subs.get(name)
        return (
            Position(sub.epoch, sub.offset) if sub is not None and sub.epoch and not sub.leaving else NOWHERE
        )

    # ------------------------------------------------------------ the table

    def add(self, name: str, link: Link) -> Subscription | None:
        """Subscribe; None: it was there."""
        found = self._subs.get(name)
        if found is not None:
            if not found.leaving:
                return None
            self._forget(found)
        self._serial += 1
        pattern = is_pattern(name)
        sub = Subscription(name, self._serial, None if pattern else self._streams.of(name))
        self._subs[name] = self._by_sid[sub.sid] = sub
        self._patterns += pattern
        link.subscribe(self.subject(sub), sub.sid)
        return sub

    def subject(self, sub: Subscription) -> str:
        """Where it listens."""
        return self._streams.everywhere(sub.name) if sub.stream is None else sub.stream.live(sub.name)

    def remove(self, name: str, link: Link | None) -> None:
        """Unsubscribe, if it was."""
        sub = self._subs.get(name)
        if sub is None or sub.leaving:
            return
        sub.leaving = True
        if link is not None:
            try:
                link.unsubscribe(sub.sid)
                if self._patterns and self._wanted(name):
                    link.after_pong(partial(self._forget, sub))
                    return
            except BrokerDown:
                pass  # the next connection does not subscribe to it
        self._forget(sub)

    def _forget(self, sub: Subscription) -> None:
        self._by_sid.pop(sub.sid, None)
        if self._subs.get(sub.name) is sub:
            del self._subs[sub.name]
            self._patterns -= is_pattern(sub.name)

    def began(self, link: Link) -> list[Subscription]:
        """There is a new connection: subscribe to all. Returns the topics with history, unsure as they are now."""
        for sub in [sub for sub in self if sub.leaving]:
            self._forget(sub)
        for sub in self:
            sub.sure = sub.live = False
            sub.behind = 0
            link.subscribe(self.subject(sub), sub.sid)
        self.live_after_pong(list(self), link)
        return [sub for sub in self if self.kept(sub)]

    def live_after_pong(self, subs: list[Subscription], link: Link) -> None:
        """They are live when the server has acknowledged them: between two messages, so that none comes twice."""

        def live() -> None:
            for sub in subs:
                sub.live = True

        link.after_pong(live)

    def _wanted(self, topic: str) -> bool:
        """Whether a topic, or all of a pattern, is subscribed to by something that is not leaving."""
        found = self._subs.get(topic)
        return (found is not None and not found.leaving) or any(not sub.leaving for sub in self._above(topic))

    def _above(self, topic: str) -> Iterator[Subscription]:
        """The live patterns that `topic` fits, the longest first."""
        name = topic.removesuffix("*")
        for end in range(len(name), 0, -1):
            if name[end - 1] in SEPARATORS:
                found = self._subs.get(name[:end] + "*")
                if found is not None and found.live:
                    yield found
        found = self._subs.get("*")
        if found is not None and found.live:
            yield found

    # ------------------------------------------------------------- receiving

    def receive(self, message: Message) -> None:
        """A message of NATS: deliver it, or not."""
        sub = self._by_sid.get(message.sid)
        if sub is None:
            return  # on its way when it was unsubscribed from
        topic = sub.name
        twice = False  # it comes by another subscription, too
        if sub.stream is None:
            try:
                topic = check_topic(to_topic(message.subject.decode().split(".", 3)[3]))
            except (UnicodeDecodeError, TopicError):
                return  # none of ours publishes there
            own = self._subs.get(topic)
            if own is not None and self.kept(own):
                sub, twice = own, own.live
            elif (own is not None and own.live) or next(self._above(topic), None) is not sub:
                return
        elif not sub.live and not self.kept(sub):
            return
        if sub.leaving and not self._wanted(topic):
            return
        offset = number(message.headers, SEQUENCE)
        if not offset or not self.keeping:
            if not twice:
                self._receiver.deliver(read_plain(topic, message.headers, message.payload))
        elif self.kept(sub):
            self._follow(sub, message, offset)
        else:
            self._loose(topic, message)

    def _loose(self, topic: str, message: Message) -> None:
        """Of a pattern, or of a topic that keeps nothing and was published with a key."""
        stream = self._streams.of(topic)
        previous = number(message.headers, PREVIOUS)
        publication = read_stored(topic, stream.epoch, message.headers, message.payload, previous)
        if stream.limits is None:
            publication = publication._replace(epoch="", offset=0, previous=0)
        self._receiver.deliver(publication)

    def _follow(self, sub: Subscription, message: Message, offset: int) -> None:
        assert sub.stream is not None
        previous = number(message.headers, PREVIOUS)
        if not sub.epoch:  # it begins with this one
            sub.epoch, sub.offset, sub.sure = sub.stream.epoch, previous, True
        elif sub.epoch != sub.stream.epoch:
            sub.behind = offset
            return
        if offset <= sub.offset:
            return
        if previous == sub.offset or (sub.sure and previous < sub.offset):
            sub.sure = True
            self.deliver(sub, read_stored(sub.name, sub.epoch, message.headers, message.payload, sub.offset))
            return
        sub.behind = offset
        if sub.sure:
            sub.sure = False
            self.on_gap(sub)

    def deliver(self, sub: Subscription, publication: Publication) -> None:
        """The next of a topic with history."""
        sub.offset = publication.offset
        self._receiver.deliver(publication)

    def interrupt(self, sub: Subscription, epoch: str, offset: int) -> None:
        """Something is missing: it goes on behind this."""
        sub.epoch, sub.offset = epoch, offset
        self._receiver.interrupted(sub.name, Position(epoch, offset))
