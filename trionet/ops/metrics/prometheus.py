"""For programs that have a `prometheus_client` registry: ``REGISTRY.register(ServerCollector(server))``.

Needs ``pip install trionet[prometheus]``. One process only: with several workers use the admin server's /metrics, for
prometheus_client's own way of adding up processes does not know custom collectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector as _Base

from trionet.ops.metrics.collect import Collector, Extra
from trionet.ops.metrics.model import Family
from trionet.server import Server

__all__ = ["ServerCollector"]


class ServerCollector(_Base):
    """A server's metrics for a registry. May be asked from any thread.

    Without the process's own ones, which a registry has already. `extra`: as for `trionet.ops.metrics.Metrics`.
    """

    def __init__(self, server: Server, extra: Extra | None = None) -> None:
        self._collector = Collector(server, extra)

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask a server that may not run yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families."""
        snapshot = self._collector.collect_now()
        for family in snapshot.families:
            if family.samples and not family.name.startswith("process_"):
                yield _converted(family, snapshot.started)


def _converted(family: Family, created: float) -> Metric:
    names = list(dict.fromkeys(name for labels, _ in family.samples for name in labels))
    metric: Any
    if family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, family.help, labels=names)
        bounds = [*family.bounds, math.inf]
        for labels, value in family.samples:
            counts = value.buckets(bound * family.scale for bound in bounds)
            texts = ["+Inf" if bound == math.inf else repr(float(bound)) for bound in bounds]
            metric.add_metric(
                [labels.get(name, "") for name in names],
                list(zip(texts, counts, strict=True)),
                value.sum / family.scale,
            )
        return metric  # type: ignore[no-any-return]
    if family.kind == "info":
        metric = InfoMetricFamily(family.name, family.help)
        for labels, _ in family.samples:
            metric.add_metric([], labels)
        return metric  # type: ignore[no-any-return]
    if family.kind == "counter":
        metric = CounterMetricFamily(family.name, family.help, labels=names)
        for labels, value in family.samples:
            metric.add_metric([labels.get(name, "") for name in names], value, created=created)
        return metric  # type: ignore[no-any-return]
    metric = GaugeMetricFamily(family.name, family.help, labels=names)
    for labels, value in family.samples:
        metric.add_metric([labels.get(name, "") for name in names], value)
    return metric  # type: ignore[no-any-return]
