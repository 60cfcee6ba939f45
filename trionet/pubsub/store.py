"""The histories, idempotency keys and members of all topics: what an engine in one process is made of.

Pure and synchronous: `brokers/memory` holds one, the broker that processes on one machine share serves one. Times are
seconds since 1970, handed in.

An epoch lives as long as the store. A topic nobody listens to, whose history has expired, is forgotten; so that its
offsets can never be used twice, every new topic starts above those of all that were forgotten (`_floor`). Then a
position from before is found to be incomplete, never mistaken for another one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

from trionet.pubsub.history import History
from trionet.pubsub.publication import HistoryPage, Position, Publication
from trionet.pubsub.topics import HistoryLimits

__all__ = ["Change", "Store", "Uptime"]

MAX_KEYS: Final = 100_000
KEY_AGE: Final = 300.0  # seconds in which publishing again with the same key changes nothing
MAX_BYTES: Final = 256 * 2**20  # of all histories together


class Change(NamedTuple):
    """Somebody came to a topic ("join"), or has left it ("leave")."""

    topic: str
    event: str
    member: str
    info: bytes


class Uptime:
    """What members' times are measured by: seconds in which somebody was there to look, beginning with 0.

    The wall's clock may be set, and a process may be frozen, with all that its members wanted to say: both would make
    everybody leave. Asked at least once a second, this one goes on by 2 at most.
    """

    def __init__(self) -> None:
        self._passed = 0.0
        self._last: float | None = None

    def at(self, now: float) -> float:
        """What it shows. `now`: any clock that is never set."""
        if self._last is not None:
            self._passed += min(now - self._last, 2.0)
        self._last = now
        return self._passed


class _Member:
    """One member of one topic: present as long as one of its owners (connections) is."""

    __slots__ = ("info", "owners")

    def __init__(self, info: bytes) -> None:
        self.info = info
        # → when it expires, and the second in which that is looked at
        self.owners: dict[str, tuple[float, int]] = {}


class Store:
    """See the module. `held` tells whether somebody listens to a topic, which is not forgotten then."""

    def __init__(
        self,
        epoch: str,
        held: Callable[[str], bool],
        *,
        max_bytes: int = MAX_BYTES,
        max_keys: int = MAX_KEYS,
        key_age: float = KEY_AGE,
    ) -> None:
        self.epoch = epoch
        self.size = 0  # bytes of all histories
        self.max_bytes = max_bytes
        self.max_keys = max_keys
        self.key_age = key_age
        self._held = held
        self._floor = 0
        self._starts: dict[str, int] = {}  # topics that are listened to and were never published on
        # Ordered, for the oldest is taken out: the first of a plain dict takes longer to find with each that was.
        self._lines: OrderedDict[str, History] = OrderedDict()  # the one published on longest ago comes first
        self._keys: OrderedDict[tuple[str, str], tuple[Position, float]] = OrderedDict()
        self._members: dict[str, dict[str, _Member]] = {}
        self.owners = 0  # of all members
        self._ends: dict[int, list[tuple[str, str, str]]] = {}  # second → owners that may expire then
        self._due: deque[str] = deque()  # topics the present round of `expire` has still to look at

    # ------------------------------------------------------------- history

    def publish(
        self,
        topic: str,
        data: bytes,
        limits: HistoryLimits | None,
        now: float,
        *,
        key: str = "",
        tag: str = "",
        origin: str = "",
    ) -> tuple[Position, Publication | None]:
        """Add a publication. None instead of it: it had been published with this `key` before, at that position."""
        if key:
            known = self._keys.get((topic, key))
            if known is not None and known[1] > now:
                return known[0], None
        if limits is None:
            publication = Publication(topic, data, at=now, tag=tag, origin=origin)
        else:
            line = self._lines.get(topic)
            if line is None:
                line = self._lines[topic] = History(self._starts.pop(topic, self._floor))
            else:
                self._lines.move_to_end(topic)
            publication = Publication(topic, data, self.epoch, line.last + 1, line.last, now, tag, origin)
            self.size += line.append(publication, limits)
            if self.size > self.max_bytes:
                self._shrink(topic)
        if key:
            self._remember(topic, key, publication.position, now)
        return publication.position, publication

    def position(self, topic: str) -> Position:
        """Where `topic` stands. Whoever listens to it calls this first, or its offsets may jump."""
        line = self._lines.get(topic)
        if line is not None:
            return Position(self.epoch, line.last)
        start = self._starts.get(topic)
        if start is None:
            start = self._floor
            if self._held(topic):
                self._starts[topic] = start
        return Position(self.epoch, start)

    def history(self, topic: str, since: Position | None, limit: int, now: float) -> HistoryPage:
        """What came behind `since`; None: the newest `limit` publications."""
        top = self.position(topic)
        line = self._lines.get(topic)
        if line is not None:
            self.size -= line.expire(now)
        if since is None:
            return HistoryPage(line.newest(limit) if line is not None else [], top, complete=True)
        if since.epoch != self.epoch:
            return HistoryPage([], top, complete=False)
        if line is None:
            return HistoryPage([], top, complete=since.offset == top.offset)
        publications, complete = line.after(since.offset, limit)
        if not complete:
            return HistoryPage([], top, complete=False)
        last = publications[-1].offset if publications else since.offset
        return HistoryPage(publications, top, complete=True, more=last < top.offset)

    def released(self, topic: str) -> None:
        """Nobody listens to `topic` any more."""
        self._starts.pop(topic, None)

    def _remember(self, topic: str, key: str, position: Position, now: float) -> None:
        keys = self._keys
        keys.pop((topic, key), None)  # so that the oldest comes first
        keys[topic, key] = position, now + self.key_age
        while len(keys) > self.max_keys:
            keys.popitem(last=False)

    def _shrink(self, spared: str) -> None:
        """Too much is kept: histories of the topics that were published on longest ago are emptied first."""
        for _ in range(len(self._lines)):
            topic, line = self._lines.popitem(last=False)
            if topic != spared:
                self.size -= line.clear()
            if topic == spared:
                self._lines[topic] = line
            else:
                self._floor = max(self._floor, line.last)
                if self._held(topic):  # it goes on from there, as if nothing had been published yet
                    self._starts[topic] = line.last
            if self.size <= self.max_bytes:
                return

    # ------------------------------------------------------------ presence

    def enter(self, topic: str, member: str, owner: str, info: bytes, expires: float) -> Change | None:
        """`owner` is a connection of `member`, or still is. Returns the join if it is the member's first."""
        members = self._members.setdefault(topic, {})
        found = members.get(member)
        fresh = found is None
        if found is None:
            found = members[member] = _Member(info)
        if owner not in found.owners:
            self.owners += 1
        self._keep(found, (topic, member, owner), expires)
        return Change(topic, "join", member, info) if fresh else None

    def refresh(self, entries: Iterable[tuple[str, str, str]], expires: float) -> list[tuple[str, str, str]]:
        """These owners (topic, member, owner) are alive until `expires`. Returns those it does not know (any more)."""
        unknown = []
        for entry in entries:
            topic, member, owner = entry
            found = self._members.get(topic, {}).get(member)
            if found is None or owner not in found.owners:
                unknown.append(entry)
            else:
                self._keep(found, entry, expires)
        return unknown

    def leave(self, topic: str, member: str, owner: str) -> Change | None:
        """`owner` has gone. Returns the leave if it was the member's last."""
        members = self._members.get(topic)
        found = members.get(member) if members is not None else None
        if members is None or found is None or found.owners.pop(owner, None) is None:
            return None
        self.owners -= 1
        if found.owners:
            return None
        del members[member]
        if not members:
            del self._members[topic]
        return Change(topic, "leave", member, found.info)

    def members(self, topic: str) -> dict[str, bytes]:
        """Who is there, each with its `info`."""
        return {member: found.info for member, found in self._members.get(topic, {}).items()}

    # -------------------------------------------------------------- upkeep

    def expire(self, now: float, budget: int = 1000, *, present: float | None = None) -> list[Change]:
        """Drop what is too old. Looks at some `budget` topics; call it about once a second. Returns who has left.

        `present`: the time for members, if that is another clock's.
        """
        keys = self._keys
        while keys and next(iter(keys.values()))[1] <= now:
            keys.popitem(last=False)
        if not self._due:
            self._due.extend(self._lines)
        budget = max(budget, len(self._lines) // 60)  # all of them within a minute
        for _ in range(min(budget, len(self._due))):
            topic = self._due.popleft()
            line = self._lines.get(topic)
            if line is None:
                continue
            self.size -= line.expire(now)
            if not line.kept and not self._held(topic):
                self._floor = max(self._floor, line.last)
                del self._lines[topic]
        return self._gone(now if present is None else present)

    def _keep(self, found: _Member, entry: tuple[str, str, str], expires: float) -> None:
        """A refresh costs nothing: when the second has come in which an owner would have ended, it is looked at."""
        owner = entry[2]
        second = int(expires)
        known = found.owners.get(owner)
        if known is not None and known[1] <= second:
            found.owners[owner] = expires, known[1]
        else:  # a new one, or one that ends earlier now
            found.owners[owner] = expires, second
            self._ends.setdefault(second, []).append(entry)

    def _gone(self, now: float) -> list[Change]:
        changes = []
        for second in sorted(second for second in self._ends if second <= now):
            for entry in self._ends.pop(second):
                topic, member, owner = entry
                found = self._members.get(topic, {}).get(member)
                expires, place = found.owners.get(owner, (0.0, -1)) if found is not None else (0.0, -1)
                if found is None or place != second:
                    continue  # it has left; if it came back, it has another place
                if expires > now:
                    found.owners[owner] = expires, int(expires)
                    self._ends.setdefault(int(expires), []).append(entry)
                elif (change := self.leave(*entry)) is not None:
                    changes.append(change)
        return changes

    def topics(self, limit: int = 100) -> list[str]:
        """Some topics with a history, those published on last first."""
        return list(islice(reversed(self._lines), limit))

    def __len__(self) -> int:
        return len(self._lines)
