"""What metrics are made of: `Family`, a name with its samples, and `Snapshot`, all families of one process at a time.

Both are plain data that JSON can carry between processes, and adding them up is a pure function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

from trionet.errors import ConfigurationError
from trionet.net.histogram import Histogram

__all__ = ["SECONDS", "Family", "Snapshot", "merge"]

Labels: TypeAlias = dict[str, str]
Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]

#: Bounds, in seconds, for what ought to take milliseconds and on a bad day takes seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@attrs.define
class Family:
    """A metric: its `samples` are pairs of labels and value.

    `name`: without the suffix that a kind has by rule ("_total", "_info"). `unit`: the name's last word, where it is a
    unit. A histogram's values are `Histogram`, which counts whole numbers: `scale` of them are one unit, and `bounds`,
    in units, are those of the buckets shown.

    `across` says what a gauge means for several workers: their "sum", one "each" (with a label `worker`), or the
    "same" in all. Counters and histograms are always summed.
    """

    name: str
    kind: Kind
    help: str
    samples: list[tuple[Labels, Any]] = attrs.field(factory=list)
    unit: str = ""
    across: Literal["sum", "each", "same"] = "sum"
    bounds: tuple[float, ...] = attrs.field(default=SECONDS, converter=tuple)
    scale: float = 1e6

    def add(self, value: Any, **labels: str) -> Family:
        """Add a sample; returns the family."""
        self.samples.append((labels, value))
        return self

    def to_json(self) -> dict[str, Any]:
        """The family as something `json.dumps` takes."""
        document = attrs.asdict(self, recurse=False)
        if self.kind == "histogram":
            document["samples"] = [(labels, value.to_json()) for labels, value in self.samples]
        else:
            del document["bounds"], document["scale"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Family:
        """The family that `to_json` described. Raises `ValueError` for anything else."""
        try:
            family = cls(**document)
            decode = Histogram.from_json if family.kind == "histogram" else lambda value: value
            family.samples = [(dict(labels), decode(value)) for labels, value in family.samples]
        except TypeError as error:
            raise ValueError(f"not a metric: {error}") from error
        return family


@attrs.define
class Snapshot:
    """All metrics of a process. `started`: when its counters began at zero; `taken`: when it was asked (Unix time)."""

    pid: int
    started: float
    taken: float
    families: list[Family]

    @property
    def identity(self) -> tuple[int, float]:
        """Tells processes apart, also when a process number is used again."""
        return self.pid, self.started

    def to_json(self) -> dict[str, Any]:
        """The snapshot as something `json.dumps` takes."""
        return {
            "pid": self.pid,
            "started": self.started,
            "taken": self.taken,
            "families": [family.to_json() for family in self.families],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Snapshot:
        """The snapshot that `to_json` described. Raises `ValueError` for anything else."""
        try:
            families = [Family.from_json(family) for family in document["families"]]
            return cls(int(document["pid"]), float(document["started"]), float(document["taken"]), families)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a snapshot: {error!r}") from error


def merge(parts: Iterable[tuple[str, Iterable[Family]]]) -> list[Family]:
    """Add up the metrics of several workers, each with what its label `worker` is to say ("" for none)."""
    merged: dict[str, Family] = {}
    sums: dict[str, dict[tuple[tuple[str, str], ...], Any]] = {}
    for worker, families in parts:
        for family in families:
            total = merged.setdefault(family.name, attrs.evolve(family, samples=[]))
            if total.kind != family.kind:
                raise ConfigurationError(f"metric {family.name} is a {total.kind} and a {family.kind}")
            values = sums.setdefault(family.name, {})
            for labels, value in family.samples:
                if family.across == "each" and worker:
                    labels = {**labels, "worker": worker}  # noqa: PLW2901
                key = tuple(sorted(labels.items()))
                values[key] = _added(family, values.get(key), value)
    for name, values in sums.items():
        merged[name].samples = [(dict(key), value) for key, value in values.items()]
    return list(merged.values())


def _added(family: Family, one: Any, other: Any) -> Any:
    if isinstance(other, Histogram):
        total = one if one is not None else Histogram()  # made here, or by the call before
        total.merge(other)
        return total
    if one is None or family.across != "sum" or family.kind == "info":
        return other
    return one + other
