"""Deadlines of very many connections without a task, a heap entry or a cancel scope for each.

Time is cut into ticks (0.25 s by default). A connection has one next deadline, kept as a tick number in its own
slot; the wheel keeps lists of descriptors by tick. Moving a deadline later touches nothing here: when the old
tick comes, the owner says when it is really due. A tick touches only what is listed for it (`visited` shows it).

Entries are descriptors, not objects: a closed connection is freed at once, and what is left behind, eight bytes,
is recognised when its tick comes, because the descriptor's owner, if it has one again, is due at another tick.
"""

from __future__ import annotations

import attrs

__all__ = ["Wheel", "WheelStatistics"]


@attrs.frozen
class WheelStatistics:
    """`waiting` counts entries, left-behind ones included; `visited` those looked at since the start."""

    ticks: int
    waiting: int
    visited: int


class Wheel:
    """Pure: it is told the time. `tick` is the current tick number, `resolution` the seconds in a tick."""

    __slots__ = ("_buckets", "_lengths", "resolution", "tick", "visited")

    def __init__(self, resolution: float = 0.25) -> None:
        self.resolution = resolution
        self.tick = 1  # 0 means "no deadline"
        self.visited = 0
        self._buckets: dict[int, list[int]] = {}
        self._lengths: dict[float, int] = {}  # of the few timeouts that protocols have

    def ticks(self, seconds: float) -> int:
        """Whole ticks that last at least `seconds`, and at least one."""
        count = self._lengths.get(seconds)
        if count is None:
            count = max(1, -int(-seconds // self.resolution))
            if len(self._lengths) < 100:
                self._lengths[seconds] = count
        return count

    def add(self, fd: int, tick: int) -> int:
        """List `fd` for `tick` (which lies ahead). Returns the tick as the object that all its owners share."""
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = [tick]
        bucket.append(fd)
        return bucket[0]

    def advance(self) -> list[int]:
        """Go on by one tick; return the descriptors listed for it."""
        self.tick += 1
        due = self._buckets.pop(self.tick, [0])
        del due[0]
        self.visited += len(due)
        return due

    def statistics(self) -> WheelStatistics:
        """Counters."""
        return WheelStatistics(
            self.tick, sum(len(bucket) - 1 for bucket in self._buckets.values()), self.visited
        )
