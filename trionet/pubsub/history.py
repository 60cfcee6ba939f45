"""The last publications of one topic, found by offset. Pure: the time is handed in."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from trionet.pubsub.publication import Publication
from trionet.pubsub.topics import HistoryLimits

__all__ = ["History"]

# For the limit on all histories together: bytes that a kept publication takes besides its data, and a history that is
# not empty (most of it is the deque).
COST: Final = 160
BASE: Final = 1000

_NOTHING: Final[deque[Publication]] = deque(maxlen=0)  # of all that are empty


class History:
    """Offsets without gaps: what is kept is first … last, and every append is last + 1."""

    __slots__ = ("age", "kept", "last", "size")

    def __init__(self, last: int) -> None:
        self.kept = _NOTHING
        self.last = last  # offset of the newest that was ever appended
        self.size = 0  # bytes of data
        self.age = 0.0  # seconds, of the limits it was appended with last

    def append(self, publication: Publication, limits: HistoryLimits) -> int:
        """Keep it, drop what exceeds the limits. Returns by how much it grew, in bytes; that may be less than 0."""
        before = self.weight
        if not self.kept:
            self.kept = deque()
        self.kept.append(publication)
        self.size += len(publication.data)
        self.last = publication.offset
        self.age = limits.age
        while len(self.kept) > limits.count or self.size > limits.size:
            self._drop()
        self.expire(publication.at)
        return self.weight - before

    def expire(self, now: float) -> int:
        """Drop what is too old. Returns the bytes that sets free."""
        before = self.weight
        oldest = now - self.age
        while self.kept and self.kept[0].at < oldest:
            self._drop()
        return before - self.weight

    def clear(self) -> int:
        """Drop all. Returns the bytes that sets free."""
        freed = self.weight
        self.kept = _NOTHING
        self.size = 0
        return freed

    @property
    def weight(self) -> int:
        """Bytes it takes, roughly."""
        return self.size + len(self.kept) * COST + BASE if self.kept else 0

    def _drop(self) -> None:
        self.size -= len(self.kept.popleft().data)
        if not self.kept:
            self.kept = _NOTHING

    def after(self, offset: int, limit: int) -> tuple[list[Publication], bool]:
        """At most `limit` publications behind `offset`, and whether none is missing between it and the first."""
        if offset > self.last:
            return [], False  # of a future that was lost, or of a liar
        first = self.last - len(self.kept)  # the offset before the oldest
        return list(
            islice(self.kept, max(0, offset - first), max(0, offset - first) + limit)
        ), offset >= first

    def newest(self, limit: int) -> list[Publication]:
        """The last `limit` publications, the oldest first."""
        return list(islice(self.kept, max(0, len(self.kept) - limit), None))
