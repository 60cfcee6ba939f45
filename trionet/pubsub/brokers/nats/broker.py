"""NATS as the engine: JetStream keeps the histories, core NATS carries what is live.

    protocol       the text protocol, without I/O
    server         where servers are, and how a connection begins
    link           one connection, watched
    publications   how a publication lies in a message
    streams        names of subjects and streams
    history        what is asked of JetStream
    subscriptions  what this process has subscribed to, and what becomes of each message
    checking       topics made sure, and filled with what they miss
    broker         this: connects again and again, publishes, subscribes

Publications on topics with history go to a JetStream stream, which answers with the sequence number, drops what comes
twice with one key, and republishes them with headers that say where they stand (`republish`, ADR-28). So what is live
costs one core subscription a topic, no consumer, and no acknowledgements; and what is missing is seen and fetched.
"""

from __future__ import annotations

import itertools
import logging
import random
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import trio

from trionet.errors import BrokerDown, BrokerError, ConfigurationError, first_error
from trionet.pubsub.broker import PAGE, Receiver, now, wall_clock
from trionet.pubsub.brokers.linked import Attempts, LinkedBroker
from trionet.pubsub.brokers.nats.checking import Checker
from trionet.pubsub.brokers.nats.history import JetStream
from trionet.pubsub.brokers.nats.link import Link, open_link
from trionet.pubsub.brokers.nats.publications import write_headers
from trionet.pubsub.brokers.nats.server import LinkOptions, parse_servers
from trionet.pubsub.brokers.nats.streams import Streams
from trionet.pubsub.brokers.nats.subscriptions import Subscription, Subscriptions
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position
from trionet.pubsub.topics import TopicOptions, TopicRules, check_topic, is_pattern

__all__ = ["NatsBroker"]

log = logging.getLogger("trionet.pubsub")

_SERVERS: Final = 32  # of a cluster, learnt from what its servers say


class NatsBroker(LinkedBroker):
    """An engine on NATS. `url`: one server or several of one cluster, ``nats://user:password@one:4222,nats://two``.

    `when_down`, `max_waiting`: see `open_broker`. `timeout`: seconds for an answer; a silent server is asked every
    `ping_interval` seconds. `user`, `password`, `token`: instead of those in the URL. `ssl_context`: for servers
    with TLS; `tls_first`: they are configured with ``handshake_first``. `inbox`: what subjects for answers begin with.

    History needs JetStream in servers from 2.11 on. It has a stream for each rule, whose name begins with `prefix`
    (so do all subjects): made at the start, and changed when the rule's limits have changed. `remember`: seconds that
    a stream keeps messages, however short a topic's history is: so long a silent topic is known to have been silent.
    `max_bytes`: what a stream takes at most. `storage` ("file", "memory") and `replicas` count when a stream is made.
    `domain`: the JetStream domain.
    """

    name = "nats"
    keeps_members = False

    def __init__(
        self,
        url: str,
        *,
        rules: TopicRules | Mapping[str, TopicOptions] | None = None,
        when_down: Literal["error", "queue"] = "error",
        max_waiting: int = 1000,
        timeout: float = 5.0,
        ping_interval: float = 5.0,
        prefix: str = "trionet",
        remember: float = 86_400.0,
        max_bytes: int = 256 * 2**20,
        storage: Literal["file", "memory"] = "file",
        replicas: int = 1,
        domain: str = "",
        user: str = "",
        password: str = "",
        token: str = "",
        ssl_context: ssl.SSLContext | None = None,
        tls_first: bool = False,
        inbox: str = "_INBOX",
    ) -> None:
        super().__init__(rules, when_down, max_waiting)
        if min(max_waiting, max_bytes, replicas) < 1 or min(timeout, ping_interval) <= 0 or remember < 0:
            raise ConfigurationError("max_waiting, max_bytes, replicas and times are above 0")
        self._options = LinkOptions(timeout, ping_interval, ssl_context, tls_first, inbox)
        self._given = parse_servers(url, user, password, token)
        self._servers = self._given
        self._remember = remember
        self._max_bytes = max_bytes
        self._creation = {"storage": storage, "num_replicas": replicas}
        self._domain = domain
        self._streams = Streams(self.rules, prefix)
        self._checker: Checker | None = None  # while it runs
        self._link: Link | None = None  # while it is up
        self._jetstream: JetStream | None = None

    def _lag(self) -> float | None:
        return self._link.rtt if self._link is not None else None

    # -------------------------------------------------------------- connecting

    @asynccontextmanager
    async def running(self, receiver: Receiver) -> AsyncIterator[None]:
        failure: BrokerDown | None = None
        with self._life():
            subs = Subscriptions(self._streams, receiver)
            checker = self._checker = Checker(subs, receiver, self._streams, self._options.ping_interval)
            try:
                async with trio.open_nursery() as nursery:
                    failure = await nursery.start(self._supervise, checker)
                    try:
                        if failure is None:
                            yield
                    finally:
                        self._checker = None
                    nursery.cancel_scope.cancel()
            finally:
                self._checker = None
                self._down("the broker was left", checker)
        if failure is not None:
            raise failure

    async def _supervise(
        self,
        checker: Checker,
        *,
        task_status: trio.TaskStatus[BrokerDown | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect, and again when that is lost. At first: try each server once, and say how it went."""
        attempts = Attempts("NATS")
        for turn in itertools.count(random.randrange(len(self._servers))):
            server = self._servers[turn % len(self._servers)]
            since: float | None = None
            reason = ""
            try:
                async with open_link(
                    server, self._options, checker.subs.receive, checker.receiver.wait_room
                ) as link:
                    await self._begin(link, checker)
                    since = now()
                    if self._ups == 1:
                        task_status.started(None)
                    await self._serve(link, checker)
            except* BrokerError as group:
                reason = str(first_error(group))
            self._down(reason, checker)
            pause = attempts.pause(
                reason, None if since is None else now() - since, places=len(self._servers)
            )
            if not self._ups and attempts.failures >= len(self._servers):
                task_status.started(BrokerDown(reason))
                return
            await trio.sleep(pause)

    async def _begin(self, link: Link, checker: Checker) -> None:
        """Prepare the streams, subscribe to all again, and be up."""
        link.on_info = lambda info: self._learn(link, info)
        self._learn(link, link.info)
        jetstream = JetStream(link, self._domain)
        missing = await jetstream.there()
        if not missing:
            for stream in self._streams:
                config = stream.config(self._remember, self._max_bytes)
                await jetstream.provide(stream, config, self._creation)
                stream.lost()
        elif self._ups and self.keeps_history:
            raise BrokerDown(f"NATS at {link.server}: {missing}, where it was before")
        elif self.keeps_history:
            log.warning("NATS at %s: %s; no topic has history, and keys do nothing", link.server, missing)
        self.keeps_history = checker.subs.keeping = not missing
        unsure = checker.subs.began(link)
        await link.flush()
        checker.begin(unsure)
        link.on_lost = lambda error: self._down(str(error), checker)
        self._link, self._jetstream = link, None if missing else jetstream
        self._went_up()
        if self._ups > 1:
            log.info("NATS at %s is up again", link.server)

    async def _serve(self, link: Link, checker: Checker) -> None:
        async with trio.open_nursery() as nursery:
            if self._jetstream is not None:
                nursery.start_soon(checker.run, self._jetstream)
            await link.lost.wait()
            raise link.error

    def _down(self, reason: str, checker: Checker) -> None:
        """It is not up any more, or still not."""
        link, self._link, self._jetstream = self._link, None, None
        if link is not None:
            if self._checker is not None:
                log.warning("NATS at %s is down: %s", link.server, reason)
            link.fail(reason)
        self._went_down(reason)
        checker.fail(reason)

    def _learn(self, link: Link, info: dict[str, Any]) -> None:
        """What a server says of its cluster: who else is there, and whether it is about to go."""
        learnt = [link.server.beside(str(address)) for address in (info.get("connect_urls") or ())[:_SERVERS]]
        self._servers = self._given + [server for server in learnt if server not in self._given]
        if info.get("ldm") and len(self._servers) > 1:
            link.fail("the server is about to end (lame duck mode)")

    # -------------------------------------------------------------- subscribing

    async def subscribe(self, topics: Sequence[str]) -> None:
        for topic in topics:  # NATS ends the connection for a subject that is none
            check_topic(topic, pattern=True)
        link, checker = self._linked()
        subs = checker.subs
        added: list[Subscription] = []
        try:
            for topic in topics:
                sub = subs.add(topic, link)
                if sub is not None:
                    added.append(sub)
            subs.live_after_pong(added, link)
            await link.flush()
            for sub in added:
                link.check_allowed(subs.subject(sub))
            kept = [sub for sub in added if subs.kept(sub)]
            if kept:
                await checker.check(kept)
        except BaseException:
            for sub in added:
                if subs.has(sub):
                    subs.remove(sub.name, self._link)
            raise

    def unsubscribe(self, topics: Iterable[str]) -> None:
        if self._checker is not None:
            for topic in topics:
                self._checker.subs.remove(topic, self._link)

    def position(self, topic: str) -> Position:
        return NOWHERE if self._checker is None else self._checker.subs.position(topic)

    def _linked(self) -> tuple[Link, Checker]:
        if self._checker is None:
            raise BrokerDown("the broker does not run")
        if self._link is None:
            raise BrokerDown(f"NATS cannot be reached: {self._error}")
        return self._link, self._checker

    # --------------------------------------------------------------- publishing

    async def _publish(self, topic: str, data: bytes, key: str, tag: str, origin: str) -> Position:
        link, _ = self._linked()
        stream = self._streams.of(topic)
        if self._jetstream is None or (stream.limits is None and not key):
            subject = stream.live(topic)
            link.publish(subject, data, write_headers(topic, "", tag, origin, wall_clock()))
            await link.flush()
            link.check_allowed(subject)
            return NOWHERE
        headers = write_headers(topic, key, tag, origin, None)
        epoch = stream.epoch
        sequence = await self._jetstream.publish(stream, topic, data, headers)
        return NOWHERE if stream.limits is None else Position(epoch, sequence)

    # ------------------------------------------------------------------ asking

    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        self._linked()
        stream = self._streams.of(topic)
        if is_pattern(topic) or stream.limits is None or self._jetstream is None:
            return HistoryPage([], NOWHERE, complete=False)
        return await self._jetstream.page(stream, check_topic(topic), since, max(1, min(limit, PAGE)))

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:  # noqa: ARG002
        raise _no_members()

    async def refresh(
        self,
        entries: Sequence[tuple[str, str, str]],
        ttl: float,  # noqa: ARG002
    ) -> list[tuple[str, str, str]]:
        if entries:
            raise _no_members()
        return []

    async def leave(self, topic: str, member: str, owner: str) -> bool:  # noqa: ARG002
        raise _no_members()

    async def members(self, topic: str) -> dict[str, bytes]:  # noqa: ARG002
        raise _no_members()


def _no_members() -> BrokerError:
    return BrokerError("NATS knows no members here: presence needs a memory, local or redis broker")
