"""Sums over workers that come and go, in which a counter never goes back.

What a worker had counted when it went stays counted, be it that it crashed: its last snapshot is kept. A newer one
takes the place of that, and shows that the worker lives: only its line was broken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from trionet.ops.metrics.model import Family, Snapshot, merge

__all__ = ["Totals"]

_KEPT: Final = 16  # departed workers whose snapshot may still be replaced by a later one


class Totals:
    """Remembers the last snapshot of every worker there is, and the counters of those that are gone."""

    def __init__(self) -> None:
        self._live: dict[int, Snapshot] = {}  # by process id
        self._gone: dict[tuple[int, float], Snapshot] = {}
        self._folded: list[Family] = []  # of those gone long ago
        self._closed: deque[tuple[int, float]] = deque(maxlen=1000)  # who they were
        self._since = math.inf

    def update(self, snapshot: Snapshot) -> None:
        """A worker has told its numbers, so it lives. Older ones than those known are ignored."""
        identity = snapshot.identity
        if identity in self._closed:
            return
        self._since = min(self._since, snapshot.started)
        known = self._gone.get(identity)
        if known is not None:
            if snapshot.taken <= known.taken:
                return
            del self._gone[identity]
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
            self._folded = merge(_agreeing(parts))

    def families(self, names: Mapping[int, str]) -> list[Family]:
        """The sums. `names`: what the label `worker` says of each live process; "" for none."""
        newest = sorted(self._live.values(), key=lambda each: (-each.started, each.pid))
        parts = [(names.get(each.pid, str(each.pid)), each.families) for each in newest]
        parts += [("", _lasting(each)) for each in reversed(self._gone.values())]
        parts.append(("", self._folded))
        return merge(_agreeing(parts))

    def started(self) -> float:
        """When the oldest of the counters began; 0 if there is none."""
        return self._since if self._since < math.inf else 0.0

    # ------------------------------------------------- for whoever comes after this process

    def to_json(self) -> dict[str, Any]:
        """What those had counted that are gone. Those that live tell it themselves."""
        return {
            "since": self.started(),
            "gone": [attrs.evolve(each, families=_lasting(each)).to_json() for each in self._gone.values()],
            "folded": [family.to_json() for family in self._folded],
            "closed": list(self._closed),
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Begin with what `to_json` gave. Raises `ValueError` for anything else."""
        try:
            gone = [Snapshot.from_json(each) for each in document["gone"]]
            folded = [Family.from_json(each) for each in document["folded"]]
            closed = [(int(pid), float(started)) for pid, started in document["closed"]]
            since = float(document["since"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not what is kept of totals: {error!r}") from error
        self._gone = {each.identity: each for each in gone}
        self._folded = folded
        self._closed.extend(closed)
        self._since = since or math.inf


def _agreeing(parts: Iterable[tuple[str, list[Family]]]) -> list[tuple[str, list[Family]]]:
    """Without families that mean something else than in a part before: a new version may give a name a new meaning."""
    kinds: dict[str, str] = {}
    return [
        (name, [family for family in families if kinds.setdefault(family.name, family.kind) == family.kind])
        for name, families in parts
    ]


def _lasting(snapshot: Snapshot) -> list[Family]:
    """What stays of a worker that is gone."""
    return [family for family in snapshot.families if family.kind in {"counter", "histogram"}]
