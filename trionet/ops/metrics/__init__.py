"""Metrics: what a server has counted, for Prometheus and whatever else asks.

Counting is plain ints where things happen (`trionet.net.counts`, and the `statistics()` of each part); everything here
runs only when somebody asks.

    model        Family, Snapshot: plain data, which JSON carries between processes; merge adds them up
    collect      a server → Snapshot; census: connections by state; process: memory, CPU, descriptors, versions
    own          the application's families, with distrust
    totals       sums over workers that come and go; keep: a file for those of the gone
    exposition   families → text for Prometheus
    pages        the /metrics page; prometheus, otel: for who has a registry or a meter already
"""

from __future__ import annotations

from trionet.ops.metrics.collect import Collector, collect
from trionet.ops.metrics.exposition import render
from trionet.ops.metrics.model import Family, Snapshot, merge
from trionet.ops.metrics.pages import Metrics, install, routes
from trionet.ops.metrics.totals import Totals

__all__ = [
    "Collector",
    "Family",
    "Metrics",
    "Snapshot",
    "Totals",
    "collect",
    "install",
    "merge",
    "render",
    "routes",
]
