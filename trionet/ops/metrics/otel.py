"""For programs that use OpenTelemetry: ``instrument(server, meter)`` makes observable instruments of all families.

Needs ``pip install trionet[otel]``. The SDK calls back when it exports; nothing is called for an event. Histograms
cannot be observed from outside, so each is exported as two counters, ``….count`` and ``….sum``, and a gauge of its
quantiles since the start, with the attribute `quantile`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from trionet._version import __version__
from trionet.ops.metrics.collect import Collector, Extra
from trionet.ops.metrics.model import Family
from trionet.server import Server

__all__ = ["instrument"]

_QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)
_FRESH: Final = 0.5  # seconds: an export calls back for each instrument, and one snapshot serves them all
_UNITS: Final = {"seconds": "s", "bytes": "By"}


def instrument(server: Server, meter: Meter | None = None, extra: Extra | None = None) -> list[Any]:
    """Create an observable instrument for each family of `server` and return them. Names have dots: trionet.tasks.

    `meter`: the global provider's when None. Call it once for a server, when it runs. `extra`: as for `Metrics`.
    """
    chosen = meter if meter is not None else get_meter("trionet", __version__)
    source = _Source(Collector(server, extra))
    made: list[Any] = []
    for family in source.families().values():
        name = family.name.replace("_", ".", 1)
        unit = _UNITS.get(family.unit, "1")
        if family.kind == "histogram":
            count = source.reader(family.name, lambda value: value.count)
            total = source.reader(family.name, partial(_sum, family.scale))
            made.append(chosen.create_observable_counter(f"{name}.count", [count], "1", family.help))
            made.append(chosen.create_observable_counter(f"{name}.sum", [total], unit, family.help))
            quantiles = source.quantiles(family.name)
            made.append(chosen.create_observable_gauge(f"{name}.quantile", [quantiles], unit, family.help))
        elif family.kind == "counter":
            read = source.reader(family.name, _same)
            made.append(chosen.create_observable_counter(name, [read], unit, family.help))
        else:
            read = source.reader(family.name, _same)
            made.append(chosen.create_observable_gauge(name, [read], unit, family.help))
    return made


def _sum(scale: float, value: Any) -> float:
    return value.sum / scale  # type: ignore[no-any-return]


def _same(value: Any) -> Any:
    return value


class _Source:
    """One snapshot for all the instruments of an export. The SDK exports from a thread of its own."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._lock = threading.Lock()
        self._taken = 0.0
        self._families: dict[str, Family] = {}

    def families(self) -> dict[str, Family]:
        with self._lock:
            now = time.monotonic()
            if not self._families or now - self._taken > _FRESH:
                snapshot = self._collector.collect_now()
                self._families = {family.name: family for family in snapshot.families}
                self._taken = now
            return self._families

    def _samples(self, name: str) -> Sequence[tuple[dict[str, str], Any]]:
        family = self.families().get(name)
        return family.samples if family is not None else ()

    def reader(
        self, name: str, value_of: Callable[[Any], Any]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value_of(value), labels) for labels, value in self._samples(name)]

        return read

    def quantiles(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            scale = self.families()[name].scale
            return [
                Observation(found / scale, {**labels, "quantile": str(q)})
                for labels, value in self._samples(name)
                if value.count
                for q, found in zip(_QUANTILES, value.quantiles(_QUANTILES), strict=True)
            ]

        return read
