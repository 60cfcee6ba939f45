"""What this process has subscribed to at Redis: each topic's position, what comes live, what was missed meanwhile.

    fresh      SUBSCRIBE was sent, the position asked for behind it; what comes until it is there lies before it
    behind     the connection is new, or something was missed: what comes live is dropped, for the history, read on the
               same connection, ends where the next live one begins
    live       the next one is this position's + 1

All is decided by the reader, in the order in which Redis said it; that is why subscriptions, positions and histories
to catch up with use one connection.

A publication that fits a topic and patterns comes once for each, without anything between (PUBLISH writes them in one
go, the topic first): a payload that is the last one's again, by a pattern that has not had it, is dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import trio

from trionet.pubsub.broker import PAGE, Receiver
from trionet.pubsub.brokers.redis.keys import (
    PAGE_BYTES,
    Keys,
    page_of,
    parse_presence,
    parse_publication,
    position_of,
)
from trionet.pubsub.brokers.redis.link import Server, forgotten, load_scripts
from trionet.pubsub.brokers.redis.resp import Call, Link, error_of, pack
from trionet.pubsub.brokers.redis.scripts import POSITION
from trionet.pubsub.publication import NOWHERE, Position, Publication
from trionet.pubsub.topics import PatternLengths, TopicRules, is_pattern

__all__ = ["Subscriptions"]

log = logging.getLogger("trionet.pubsub")

BATCH: Final = 500  # topics in one SUBSCRIBE
AHEAD: Final = 8  # batches on their way
CATCHING_UP: Final = 64  # topics whose pages are on their way
Ask = Callable[[list[str]], Call]


class _Fresh:
    """Stands for the position of topics that are being subscribed to."""


class Subscriptions:
    """See the module. `attach` and `detach` change them, `prepare` and `catch_up` are run with each new connection."""

    def __init__(self, keys: Keys, rules: TopicRules) -> None:
        self.receiver: Receiver | None = None
        self._keys = keys
        self._rules = rules
        self._at: dict[str, Position | _Fresh] = {}
        self._patterns: dict[str, bytes] = {}  # → as PSUBSCRIBE has it
        self._lengths = PatternLengths()
        self._behind: set[str] = set()
        self._missed: deque[str] = deque()  # of those, whose history is to be read
        self._wake = trio.Event()
        self._last = b"", b""  # while there are patterns: channel and payload that came last,
        self._last_by: set[bytes] = set()  # and by which of them

    def __contains__(self, topic: str) -> bool:
        return topic in self._at or topic in self._patterns

    def position(self, topic: str) -> Position:
        """Of what was delivered last; `NOWHERE` if there is none."""
        at = self._at.get(topic, NOWHERE)
        return NOWHERE if isinstance(at, _Fresh) else at

    def clear(self) -> None:
        """Begin anew, subscribed to nothing."""
        self._at.clear()
        self._patterns.clear()
        self._lengths.clear()
        self._behind.clear()

    # ---------------------------------------------------------- subscribing

    async def attach(self, link: Link, server: Server, topics: Sequence[str]) -> None:
        """Subscribe. Raises `BrokerDown`, `BrokerError`; then, or cancelled, to none of them."""
        fresh = _Fresh()
        for topic in topics:
            if is_pattern(topic):
                if topic not in self._patterns:
                    self._lengths.add(topic)
                self._patterns[topic] = self._keys.pattern(topic)
            else:
                self._at[topic] = fresh if self._rules.of(topic).history is not None else NOWHERE
            self._behind.discard(topic)
        try:
            await self._subscribe(
                link, topics, partial(self._ask, link, server, partial(self._found_fresh, fresh))
            )
        except BaseException:
            for name in self.detach(topics):
                if not link.broken.is_set():
                    link.post([name[1]], names=name[0])
            raise

    def detach(self, topics: Iterable[str]) -> list[tuple[int, bytes]]:
        """Forget topics. Returns the commands that tell Redis, with the number of names each has."""
        names: list[bytes] = []
        patterns: list[bytes] = []
        for topic in topics:
            if topic in self._patterns:
                patterns.append(self._patterns.pop(topic))
                self._lengths.discard(topic)
            elif self._at.pop(topic, None) is not None:
                names.append(self._keys.channel(topic))
                self._behind.discard(topic)
        return [
            (len(some), pack(word, *some))
            for word, some in (("UNSUBSCRIBE", names), ("PUNSUBSCRIBE", patterns))
            if some
        ]

    async def prepare(self, link: Link, server: Server) -> None:
        """The connection is new: subscribe to everything, and catch up with what was missed."""
        self._behind = {topic for topic, at in self._at.items() if isinstance(at, Position) and at.epoch}
        self._missed.clear()
        self._last, self._last_by = (b"", b""), set()
        moved: list[str] = []
        await self._subscribe(
            link, [*self._patterns, *self._at], partial(self._ask_whether_moved, link, server, moved)
        )
        await self._in_batches(link, moved, partial(self._ask, link, server, self._found))
        await self._read_missed(link, server)

    async def catch_up(self, link: Link, server: Server) -> None:
        """Read what live delivery turns out to have missed, for as long as it runs. Raises `BrokerError`."""
        while True:
            self._wake = trio.Event()
            await self._read_missed(link, server)
            await self._wake.wait()

    async def _subscribe(self, link: Link, topics: Sequence[str], ask: Ask) -> None:
        """Subscribe, and `ask` for the positions behind that."""

        def send(batch: list[str]) -> list[Call]:
            names = [self._keys.channel(topic) for topic in batch if topic in self._at]
            patterns = [self._patterns[topic] for topic in batch if topic in self._patterns]
            return [
                link.post([pack(word, *some)], names=len(some))
                for word, some in (("SUBSCRIBE", names), ("PSUBSCRIBE", patterns))
                if some
            ]

        await self._in_batches(link, topics, ask, send)

    async def _in_batches(
        self,
        link: Link,
        topics: Sequence[str],
        ask: Ask,
        send: Callable[[list[str]], list[Call]] | None = None,
    ) -> None:
        """Of the topics that are still wanted."""
        calls: deque[tuple[list[str], list[Call], Call]] = deque()
        for begin in range(0, len(topics), BATCH):
            batch = [topic for topic in topics[begin : begin + BATCH] if topic in self]
            await link.room()
            sent = [] if send is None else send(batch)
            lines = [topic for topic in batch if self._at.get(topic, NOWHERE) != NOWHERE]
            calls.append((lines, sent, ask(lines)))
            if len(calls) >= AHEAD:
                await self._settle(link, *calls.popleft(), ask)
        while calls:
            await self._settle(link, *calls.popleft(), ask)

    async def _settle(self, link: Link, lines: list[str], sent: list[Call], asked: Call, ask: Ask) -> None:
        """Wait for the answers to one batch. What Redis had forgotten the script for is asked again."""
        for call in sent:
            for error in await call.wait():
                raise error_of(error)
        replies = await asked.wait()
        for again in (True, False):
            errors = [
                (topic, reply)
                for topic, reply in zip(lines, replies, strict=True)
                if isinstance(reply, Exception)
            ]
            if not errors:
                return
            if not (again and forgotten(errors[0][1])):
                raise error_of(errors[0][1])
            link.post(load_scripts())
            lines = [topic for topic, _ in errors]
            replies = await ask(lines).wait()

    def _ask(
        self, link: Link, server: Server, found: Callable[[str, Position], None], topics: list[str]
    ) -> Call:
        """`found` is called with each position, in the reader."""
        expected = iter(topics)

        def each(reply: Any) -> None:
            topic = next(expected)
            if not isinstance(reply, Exception):
                found(topic, position_of(reply))

        keys = self._keys
        return link.post(
            [
                keys.run(POSITION, keys.line(topic), *keys.server(server), *self.position(topic))
                for topic in topics
            ],
            each=each,
        )

    def _ask_whether_moved(self, link: Link, server: Server, moved: list[str], topics: list[str]) -> Call:
        """Look whether all is as it was, which costs Redis a tenth of the script; `moved` gets where it is not."""
        expected = iter(topics)

        def each(reply: Any) -> None:
            topic = next(expected)
            at = self.position(topic)
            if (
                isinstance(reply, Exception)
                or [at.epoch.encode(), b"%d" % at.offset] != reply[:2]
                or (server.run and reply[2] != server.run.encode())
            ):
                moved.append(topic)
            else:
                self._behind.discard(topic)

        return link.post(
            [pack("HMGET", self._keys.line(topic)[0], "e", "o", "r") for topic in topics], each=each
        )

    # ------------------------------------------------------------ positions

    def _found_fresh(self, fresh: _Fresh, topic: str, position: Position) -> None:
        if self._at.get(topic) is fresh:
            self._at[topic] = position

    def _found(self, topic: str, position: Position) -> None:
        """Where a topic stands that was subscribed to before."""
        at = self._at.get(topic)
        if at is None or topic not in self._behind:
            return
        if at == position:
            self._behind.discard(topic)
        elif position.offset:
            self._missed.append(topic)
        else:
            self._interrupt(topic, position)
            self._behind.discard(topic)

    def _interrupt(self, topic: str, position: Position) -> None:
        self._at[topic] = position
        assert self.receiver is not None
        self.receiver.interrupted(topic, position)

    async def _read_missed(self, link: Link, server: Server) -> None:
        """Pages of the histories of all that are behind, until none is."""
        calls: deque[tuple[str, int, Call]] = deque()
        size = 0  # of the pages on their way, at the most
        while self._missed or calls:
            while self._missed and (not calls or (len(calls) < CATCHING_UP and size < 2 * PAGE_BYTES)):
                topic = self._missed.popleft()
                limits = self._rules.of(topic).history
                if topic not in self._behind or limits is None:
                    continue
                await link.room()
                command = self._keys.history(server, topic, limits, PAGE, self.position(topic), 1)
                call = link.post([command], each=partial(self._missed_page, topic, self._at.get(topic)))
                calls.append((topic, min(limits.size, PAGE_BYTES), call))
                size += calls[-1][1]
            if not calls:
                return
            topic, most, call = calls.popleft()
            (reply,) = await call.wait()
            size -= most
            if isinstance(reply, Exception):
                if not forgotten(reply):
                    raise error_of(reply)
                link.post(load_scripts())
                self._missed.append(topic)

    def _missed_page(self, topic: str, since: object, reply: Any) -> None:
        """A page came, in order with what is live: once it is the last one, the next live one follows on it."""
        if isinstance(reply, Exception) or topic not in self._behind or self._at[topic] is not since:
            return  # the last: it was unsubscribed from, and subscribed to again
        page = page_of(topic, reply)
        assert self.receiver is not None
        if not page.complete:
            begin = page.publications[0].previous if page.publications else page.top.offset
            self._interrupt(topic, Position(page.top.epoch, begin))
        for publication in page.publications:
            if topic not in self._behind:
                return  # it was unsubscribed from just now
            self._at[topic] = publication.position
            self.receiver.deliver(publication)
        if page.more:
            self._missed.append(topic)
        else:
            self._behind.discard(topic)

    # ----------------------------------------------------------------- live

    def pushed(self, push: Any) -> None:
        """A message or pmessage came."""
        channel, payload = push[-2], push[-1]
        if self._patterns:
            by = push[1] if len(push) == 4 else b""
            if by and self._last == (channel, payload) and by not in self._last_by:
                self._last_by.add(by)
                return
            self._last, self._last_by = (channel, payload), {by}
        topic = self._keys.topic(channel)
        try:
            news = parse_presence(payload) if payload[:1] in b"+-" else parse_publication(topic, payload)
        except ValueError:
            log.warning("redis: what somebody published on %r is none of ours: %.60r", topic, payload)
            return
        if isinstance(news, Publication):
            self._live(topic, news)
        elif topic in self._at or self._fits_pattern(topic):
            assert self.receiver is not None
            self.receiver.presence(topic, *news)

    def _fits_pattern(self, topic: str) -> bool:
        return any(topic[:length] + "*" in self._patterns for length in self._lengths)

    def _live(self, topic: str, publication: Publication) -> None:
        assert self.receiver is not None
        at = self._at.get(topic)
        if at is None or isinstance(at, _Fresh):
            if not self._fits_pattern(topic):
                return
        elif at != NOWHERE and publication.epoch:
            if topic in self._behind:
                return
            if publication.epoch != at.epoch:
                self._interrupt(topic, Position(publication.epoch, publication.previous))
                if topic not in self._at:
                    return  # it was unsubscribed from just now
            elif publication.offset <= at.offset:
                return
            elif publication.previous > at.offset:
                self._behind.add(topic)
                self._missed.append(topic)
                self._wake.set()
                return
            self._at[topic] = publication.position
        self.receiver.deliver(publication)
