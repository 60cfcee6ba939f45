"""Redis or Valkey as the engine of a bus: ``redis://host``, from 6.2 on, one server (no Cluster, no Sentinel).

Two connections to the server, because what is safe under load differs:

    subscriptions   is not read while the hub has too much to do (`Receiver.wait_room`), and Redis may cut it when it
                    has buffered too much for us (`client-output-buffer-limit pubsub`): one more reconnect
    commands        publishes, histories and presence do not wait behind that, and their deadline means the server

`topics` says how a subscription survives, `scripts` what is kept in Redis and when an epoch ends. A topic
is remembered for `remember` seconds after it was last published on, or subscribed to: much longer than its history,
for its offsets go on for that long; then a new epoch begins, and who comes back later is told that something may be
missing.

How safe a publication is that was acknowledged is Redis' matter. Without an append-only file a restart loses all, and
begins new epochs. With one, epochs go on, and ``appendfsync everysec`` may lose the last two seconds when the machine
fails or the process is killed: that is noticed, and a new epoch begun, by the first who has seen more than Redis knows,
publisher or subscriber; but not if others publish as much as was lost before that. ``always`` loses nothing.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Literal

import trio

from trionet.errors import BrokerError, ConfigurationError
from trionet.pubsub.broker import PAGE, Receiver, wall_clock
from trionet.pubsub.brokers.linked import LinkedBroker
from trionet.pubsub.brokers.redis.address import parse_url
from trionet.pubsub.brokers.redis.keys import Keys, page_of, plain, position_of
from trionet.pubsub.brokers.redis.link import Settings, Supervised
from trionet.pubsub.brokers.redis.members import Members
from trionet.pubsub.brokers.redis.resp import Link, pack, require_hiredis
from trionet.pubsub.brokers.redis.scripts import ONCE, PUBLISH
from trionet.pubsub.brokers.redis.topics import Subscriptions
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position
from trionet.pubsub.topics import TopicOptions, TopicRules, check_topic, is_pattern

__all__ = ["RedisBroker"]

log = logging.getLogger("trionet.pubsub")

KEY_AGE: Final = 300_000  # milliseconds in which publishing again with the same key changes nothing
REMEMBER: Final = 7 * 86_400.0
_LAST: Final = 10_000  # topics whose last publication is remembered, and keys to be removed
_SETTLED: Final = 64  # keys of ours that have done their work, and are removed together


class RedisBroker(LinkedBroker):
    """Publications, histories and members are in Redis; see the module. `url` as in `open_broker`.

    `timeout`: seconds in which a server that does not answer is given up; `ping_interval`: between signs of life (at
    most 0.4 of `timeout`). `prefix`: of all keys and channels, to keep systems apart (databases do not: channels are
    common to all of them). `ssl_context`: for rediss://; None: the system's authorities.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        rules: TopicRules | Mapping[str, TopicOptions] | None = None,
        when_down: Literal["error", "queue"] = "error",
        max_waiting: int = 1000,
        timeout: float = 5.0,
        ping_interval: float = 5.0,
        prefix: str = "trionet:",
        remember: float = REMEMBER,
        ssl_context: ssl.SSLContext | None = None,
        client_name: str = "",
    ) -> None:
        require_hiredis()
        super().__init__(rules, when_down, max_waiting)
        if min(timeout, ping_interval) <= 0 or remember < 60:
            raise ConfigurationError("timeout and ping_interval are more than 0, remember is 60 at least")
        longest = max(
            (options.history.age for _, options in self.rules if options.history is not None), default=0
        )
        settings = Settings(
            address=parse_url(url),
            context=ssl_context,
            timeout=timeout,
            ping_interval=ping_interval,
            client_name=client_name or f"trionet-{os.getpid()}",
        )
        self._keys = Keys(prefix, max(remember, 2 * longest))
        self._topics = Subscriptions(self._keys, self.rules)
        self._live = Supervised(
            settings,
            "subscriptions",
            self._changed,
            prepare=self._topics.prepare,
            serve=self._topics.catch_up,
            on_push=self._topics.pushed,
            wait_room=self._wait_room,
        )
        self._commands = Supervised(settings, "commands", self._changed)
        self._members = Members(self._keys, self._commands)
        self._settled: list[str] = []
        self._last: dict[str, Position] = {}  # where what was published here last stands: Redis may forget it

    # ----------------------------------------------------------------- state

    def _lag(self) -> float | None:
        return self._commands.link.lag if self._commands.link is not None else None

    def _open(self) -> trio.Event:
        return self._commands.up

    def _changed(self) -> None:
        if self._live.link is not None and self._commands.link is not None:
            self._went_up()
        elif self._ups:
            self._went_down(str((self._live if self._live.link is None else self._commands).error))

    async def _wait_room(self) -> None:
        if self._topics.receiver is not None:
            await self._topics.receiver.wait_room()

    def running(self, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        return self._run(receiver)

    @asynccontextmanager
    async def _run(self, receiver: Receiver) -> AsyncIterator[None]:
        failure: BrokerError | None = None
        with self._life():
            self._topics.clear()
            self._topics.receiver = receiver
            try:
                async with trio.open_nursery() as nursery:
                    for part in (self._commands, self._live):
                        failure = failure or await nursery.start(part.run)
                    if failure is None:
                        nursery.start_soon(self._members.sweep)
                        nursery.start_soon(self._forget_keys)
                        yield
                    nursery.cancel_scope.cancel()
            finally:
                self._topics.receiver = None
                for part in (self._commands, self._live):
                    part.leave()
        if failure is not None:
            raise failure

    # ------------------------------------------------------------ publishing

    async def _publish(self, topic: str, data: bytes, key: str, tag: str, origin: str) -> Position:
        link = self._commands.require()
        if self.rules.of(topic).history is not None:
            position = await self._publish_kept(link, topic, data, key, tag, origin)
        else:
            position = NOWHERE
            keys = self._keys
            payload = plain(data, wall_clock(), tag, origin)
            command = (
                keys.run(ONCE, [keys.key(topic, key)], keys.channel(topic), payload, KEY_AGE)
                if key
                else pack("PUBLISH", keys.channel(topic), payload)
            )
            await self._commands.call(link, command)
        if key.startswith(self._own):
            self._settled.append(self._keys.key(topic, key))
            if len(self._settled) >= _SETTLED:
                self._unlink_settled()
        return position

    async def _publish_kept(
        self, link: Link, topic: str, data: bytes, key: str, tag: str, origin: str
    ) -> Position:
        keys = self._keys
        limits = self.rules.of(topic).history
        assert limits is not None
        command = keys.run(
            PUBLISH,
            [*keys.line(topic), keys.key(topic, key)] if key else keys.line(topic),
            keys.channel(topic),
            data,
            tag,
            origin,
            limits.count,
            limits.size,
            max(1, int(limits.age * 1000)),
            *keys.server(self._commands.server),
            KEY_AGE,
            *self._last.get(topic, NOWHERE),
        )
        position = position_of(await self._commands.call(link, command))
        self._last.pop(topic, None)
        self._last[topic] = position  # the newest comes last
        if len(self._last) > _LAST:
            del self._last[next(iter(self._last))]
        return position

    def _unlink_settled(self) -> None:
        """Keys made here are needed as long as their publication may be tried again, which is short."""
        link = self._commands.link
        if self._settled and link is not None and not link.broken.is_set():
            link.post([pack("UNLINK", *self._settled)])
            self._settled.clear()
        elif len(self._settled) > _LAST:
            self._settled.clear()  # they expire

    async def _forget_keys(self) -> None:
        while True:
            await trio.sleep(1.0)
            self._unlink_settled()

    # --------------------------------------------------------- subscriptions

    async def subscribe(self, topics: Sequence[str]) -> None:
        for topic in topics:
            check_topic(topic, pattern=True)
        await self._topics.attach(self._live.require(), self._live.server, topics)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        for names, command in self._topics.detach(topics):
            self._live.tell(command, names)

    def position(self, topic: str) -> Position:
        return self._topics.position(topic)

    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        link = self._commands.require()
        limits = None if is_pattern(topic) else self.rules.of(topic).history
        if limits is None:
            return HistoryPage([], NOWHERE, complete=False)
        command = self._keys.history(self._commands.server, topic, limits, limit, since)
        page = page_of(topic, await self._commands.call(link, command))
        return page if since is not None else page._replace(more=False)

    # -------------------------------------------------------------- presence

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        return await self._members.enter(topic, member, owner, info, ttl)

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        return await self._members.refresh(entries, ttl)

    async def leave(self, topic: str, member: str, owner: str) -> bool:
        return await self._members.leave(topic, member, owner)

    async def members(self, topic: str) -> dict[str, bytes]:
        return await self._members.members(topic)

    def __repr__(self) -> str:
        return f"<RedisBroker {self._commands.address} {'up' if self._up.is_set() else 'down'}>"
