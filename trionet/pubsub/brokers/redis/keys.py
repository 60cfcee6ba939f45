"""Names of keys and channels in Redis, commands that run scripts, and what comes back. Pure; see `scripts`."""

from __future__ import annotations

import re
from typing import Any, Final

from trionet.pubsub.broker import PAGE
from trionet.pubsub.brokers.redis.link import Server
from trionet.pubsub.brokers.redis.resp import pack
from trionet.pubsub.brokers.redis.scripts import HISTORY, Script
from trionet.pubsub.publication import HistoryPage, Position, Publication
from trionet.pubsub.topics import HistoryLimits

__all__ = ["PAGE_BYTES", "Keys", "page_of", "parse_presence", "parse_publication", "plain", "position_of"]

#: Of data in a page of history. Redis cuts a subscriber for whom it has to buffer 32 MiB (its default).
PAGE_BYTES: Final = 4 * 2**20

_GLOB: Final = re.compile(rb"[\\*?\[\]^]")


class Keys:
    """Everything in Redis that belongs to one system begins with `prefix`. `life`: seconds a topic is remembered."""

    def __init__(self, prefix: str, life: float) -> None:
        self.prefix = prefix
        self.life = int(life)
        self._channel = prefix.encode()
        self._length = len(self._channel)
        self.due = f"{prefix}due"

    def channel(self, topic: str) -> bytes:
        """Where it is published."""
        return self._channel + b"t:" + topic.encode()

    def topic(self, channel: bytes) -> str:
        """The other way round."""
        return channel[self._length + 2 :].decode(errors="replace")

    def pattern(self, topic: str) -> bytes:
        """A pattern of topics as PSUBSCRIBE has it: all but the last ``*`` stands for itself."""
        return _GLOB.sub(rb"\\\g<0>", self.channel(topic[:-1])) + b"*"

    def line(self, topic: str) -> list[str]:
        """The keys of its history."""
        return [f"{self.prefix}m:{{{topic}}}", f"{self.prefix}h:{{{topic}}}"]

    def key(self, topic: str, key: str) -> str:
        """Where it is remembered that `key` was published."""
        return f"{self.prefix}k{len(topic.encode())}:{{{topic}}}{key}"

    def present(self, topic: str) -> list[str]:
        """The keys of its members."""
        return [f"{self.prefix}pz:{{{topic}}}", f"{self.prefix}pm:{{{topic}}}"]

    def server(self, server: Server) -> tuple[str, int, int]:
        """What `stand` in the scripts wants to know."""
        return server.run, int(server.durable), self.life

    def history(
        self,
        server: Server,
        topic: str,
        limits: HistoryLimits,
        limit: int,
        since: Position | None,
        *more: int,
    ) -> bytes:
        """The command that reads a page of history."""
        epoch, offset = (
            ("", 0) if since is None else (since.epoch or "-", since.offset)
        )  # "-": no epoch of ours
        return self.run(
            HISTORY,
            self.line(topic),
            *self.server(server),
            max(1, int(limits.age * 1000)),
            max(0, min(limit, PAGE)),
            PAGE_BYTES,
            epoch,
            offset,
            *more,
        )

    @staticmethod
    def run(script: Script, keys: list[str], *arguments: str | bytes | int) -> bytes:
        """The command that runs a script."""
        return pack("EVALSHA", script.sha, len(keys), *keys, *arguments)


def plain(data: bytes, at: float, tag: str, origin: str) -> bytes:
    """The payload of a publication on a topic that keeps nothing."""
    named, by = tag.encode(), origin.encode()
    return b"%d:0::%d:%d:%d:%b%b%b" % (len(data), at * 1e6, len(named), len(by), named, by, data)


def parse_publication(topic: str, payload: bytes) -> Publication:
    """Raises ValueError."""
    _, number, epoch, at, tag, origin, rest = payload.split(b":", 6)
    named = by = ""
    if tag != b"0" or origin != b"0":
        first = int(tag)
        second = first + int(origin)
        named, by, rest = rest[:first].decode(), rest[first:second].decode(), rest[second:]
    offset = int(number)
    return Publication(
        topic, rest, epoch.decode(), offset, offset - 1 if offset else 0, int(at) / 1e6, named, by
    )


def parse_presence(payload: bytes) -> tuple[str, str, bytes]:
    """Event, member, info. Raises ValueError."""
    length, _, rest = payload[1:].partition(b":")
    end = int(length)
    return "join" if payload.startswith(b"+") else "leave", rest[:end].decode(), rest[end:]


def position_of(reply: Any) -> Position:
    """Of an epoch and an offset."""
    return Position(reply[0].decode(), reply[1])


def page_of(topic: str, reply: Any) -> HistoryPage:
    """Of what the script `HISTORY` returned."""
    top = position_of(reply)
    publications = [parse_publication(topic, entry) for entry in reply[3]]
    return HistoryPage(
        publications,
        top,
        complete=reply[2] == 1,
        more=bool(publications) and publications[-1].offset < top.offset,
    )
