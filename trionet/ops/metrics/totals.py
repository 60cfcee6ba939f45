"""Sums over workers that come and go, in which a counter never goes back.

What a worker had counted when it went stays counted, be it that it crashed: its last snapshot is kept. One that
arrives after its end (it was on its way) takes the place of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from trionet.ops.metrics.model import Family, Snapshot, merge

__all__ = ["Totals"]

_KEPT: Final = 64  # departed workers whose snapshot may still be replaced by a later one


class Totals:
    """Remembers the last snapshot of every worker there is, and the counters of those that are gone."""

    def __init__(self) -> None:
        self._live: dict[int, Snapshot] = {}  # by process id
        self._gone: dict[tuple[int, float], Snapshot] = {}
        self._folded: list[Family] = []  # of those gone long ago
        self._closed: deque[tuple[int, float]] = deque(maxlen=1000)  # who they were

    def update(self, snapshot: Snapshot) -> None:
        """A worker has told its numbers. Older ones than those known are ignored."""
        identity = snapshot.identity
        if identity in self._closed:
            return
        known = self._gone.get(identity)
        if known is not None:
            if snapshot.taken > known.taken:
                self._gone[identity] = snapshot
            return
        known = self._live.get(snapshot.pid)
        if known is not None and known.identity != identity:
            if known.started > snapshot.started:  # a late word of the process that had this id before
                self._gone[identity] = snapshot
                return
            self.gone(snapshot.pid)
            known = None
        if known is None or snapshot.taken >= known.taken:
            self._live[snapshot.pid] = snapshot

    def gone(self, pid: int) -> None:
        """The worker has ended. A second call, or one for a process that has never told anything, does nothing."""
        snapshot = self._live.pop(pid, None)
        if snapshot is None:
            return
        self._gone[snapshot.identity] = snapshot
        while len(self._gone) > _KEPT:
            identity = next(iter(self._gone))
            self._closed.append(identity)
            parts = [("", self._folded), ("", _lasting(self._gone.pop(identity)))]
            self._folded = merge(parts)

    def families(self, names: Mapping[int, str]) -> list[Family]:
        """The sums. `names`: what the label `worker` says of each live process; "" for none."""
        parts = [(names.get(pid, str(pid)), each.families) for pid, each in sorted(self._live.items())]
        parts += [("", _lasting(each)) for each in self._gone.values()]
        parts.append(("", self._folded))
        return merge(parts)

    def started(self) -> float:
        """When the oldest of the counters began; 0 if there is none."""
        return min((each.started for each in [*self._gone.values(), *self._live.values()]), default=0.0)


def _lasting(snapshot: Snapshot) -> list[Family]:
    """What stays of a worker that is gone."""
    return [family for family in snapshot.families if family.kind in {"counter", "histogram"}]
