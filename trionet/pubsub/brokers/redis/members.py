"""Presence in Redis: who is on a topic, as long as one of their owners is refreshed.

Owners that nobody refreshes are found by whichever process looks first: an index in Redis has the topics where one may
have expired, each process asks it once a second, and what it gets is its own for `LEASE` seconds. Taking an owner out
and telling that the member has left is one step in Redis, so it is told once, whoever else looks.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Final

import trio

from trionet.errors import BrokerDown, BrokerError
from trionet.pubsub.brokers.redis.keys import Keys
from trionet.pubsub.brokers.redis.link import Supervised
from trionet.pubsub.brokers.redis.resp import error_of
from trionet.pubsub.brokers.redis.scripts import (
    DUE_DONE,
    DUE_NOTE,
    DUE_TAKE,
    ENTER,
    LEAVE,
    MEMBERS,
    REFRESH,
    SWEEP,
)
from trionet.pubsub.topics import check_topic

__all__ = ["Members"]

log = logging.getLogger("trionet.pubsub")

TICK: Final = 1.0  # seconds between looks at the index
LEASE: Final = 5.0
TOPICS: Final = 200  # taken from the index at once
OWNERS: Final = 200  # taken out of a topic at once
LIFE: Final = (
    3600  # seconds that members are kept behind their time, if nobody is there who would take them out
)


class Members:
    """What a `Broker` has for presence, by scripts."""

    def __init__(self, keys: Keys, commands: Supervised) -> None:
        self._keys = keys
        self._commands = commands
        self._ttl = 0.0  # the longest that somebody entered for

    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        """See `Broker.enter`."""
        check_topic(topic)
        keys = self._keys
        ms = int(ttl * 1000)
        self._ttl = max(self._ttl, ttl)
        commands = [
            keys.run(
                ENTER,
                keys.present(topic),
                keys.channel(topic),
                member,
                owner,
                info,
                ms,
                LIFE + int(ttl),
            ),
            keys.run(DUE_NOTE, [keys.due], topic, ms),
        ]
        first, noted = await self._commands.calls(self._commands.require(), commands)
        for reply in (noted, first):
            if isinstance(reply, Exception):
                raise error_of(reply)
        return bool(first)

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        """See `Broker.refresh`."""
        by_topic: dict[str, list[tuple[str, str, str]]] = {}
        for entry in entries:
            by_topic.setdefault(entry[0], []).append(entry)
        commands = [
            self._keys.run(
                REFRESH,
                self._keys.present(topic),
                int(ttl * 1000),
                LIFE + int(ttl),
                *[word for _, member, owner in some for word in (member, owner)],
            )
            for topic, some in by_topic.items()
        ]
        if ttl < self._ttl:  # they may expire before the index says so
            commands += [
                self._keys.run(DUE_NOTE, [self._keys.due], topic, int(ttl * 1000)) for topic in by_topic
            ]
        unknown = []
        replies = await self._commands.calls(self._commands.require(), commands)
        for some, reply in zip(by_topic.values(), replies, strict=False):
            if isinstance(reply, Exception):
                raise error_of(reply)
            unknown += [some[int(index)] for index in reply]
        return unknown

    async def leave(self, topic: str, member: str, owner: str) -> bool:
        """See `Broker.leave`."""
        command = self._keys.run(LEAVE, self._keys.present(topic), self._keys.channel(topic), member, owner)
        return bool(await self._commands.call(self._commands.require(), command))

    async def members(self, topic: str) -> dict[str, bytes]:
        """See `Broker.members`."""
        command = self._keys.run(MEMBERS, self._keys.present(topic), self._keys.channel(topic))
        reply: Any = await self._commands.call(self._commands.require(), command)
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {name[1:].decode(): info for name, info in pairs if name.startswith(b"i")}

    async def sweep(self) -> None:
        """Take out owners that have expired, for as long as it runs.

        When Redis was away for long all have. So those who are there are given time to say so before anybody leaves.
        """
        link = self._commands.link
        while True:
            await trio.sleep(random.uniform(0.8, 1.2) * TICK)
            if self._commands.link is None:
                continue
            if self._commands.link is not link:
                link = self._commands.link
                await trio.sleep(LEASE)
            try:
                while await self._sweep_some() >= TOPICS:
                    pass
            except BrokerDown:
                pass  # its state says so, and why
            except BrokerError as error:
                log.warning("redis: presence: %s", error)

    async def _sweep_some(self) -> int:
        """Returns of how many topics."""
        keys = self._keys
        link = self._commands.require()
        taken = await self._commands.call(link, keys.run(DUE_TAKE, [keys.due], TOPICS, int(LEASE * 1000)))
        lease, topics = taken[0], [name.decode() for name in taken[1:]]
        if not topics:
            return 0
        swept = await self._commands.calls(
            link, [keys.run(SWEEP, keys.present(topic), keys.channel(topic), OWNERS) for topic in topics]
        )
        await self._commands.calls(
            link,
            [
                keys.run(DUE_DONE, [keys.due], topic, lease, following)
                for topic, following in zip(topics, swept, strict=True)
                if not isinstance(following, Exception)
            ],
        )
        return len(topics)
