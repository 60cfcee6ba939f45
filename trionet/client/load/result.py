"""What a load run has measured: one JSON document.

The keys are a promise to programs: `schema` goes up when one is removed or changes its meaning, not when one is added.
Units: points in time and durations are seconds (`t` counts from `started`); latencies, lag included, are whole
microseconds; sizes are bytes of payload; rates are per second. What was not measured is None, never 0.
"""

from __future__ import annotations

import json
from typing import Any, TypedDict

from trionet._version import __version__
from trionet.net.histogram import Histogram

__all__ = [
    "PERCENTILES",
    "SCHEMA",
    "Environment",
    "HistogramDocument",
    "Phase",
    "Point",
    "Result",
    "Threshold",
    "Totals",
    "outcome_word",
    "summary",
    "to_json",
]

SCHEMA = 1

#: Those in `HistogramDocument.percentiles`, as people write them.
PERCENTILES = ("50", "75", "90", "95", "99", "99.9", "99.99", "99.999")


class Environment(TypedDict):
    """Where and how it was measured."""

    kernel: str
    python: str
    trio: str
    machine: str
    cpus: int  # those this process may use
    memory: int  # bytes of the machine
    nofile: int  # descriptors a process may have (soft limit)
    limits: dict[str, str]  # settings of the kernel that bear on very many connections, by their sysctl name
    processes: int  # load processes
    cpu_seconds: float  # which they have used, user and system
    pss_bytes: int | None  # their memory with all connections open; None: it could not be read


class Phase(TypedDict):
    """`name`: ramp, settle, measure, close; of `storm` also storm 1, rest, storm 2 and so on."""

    name: str
    began: float  # as `Point.t`
    ended: float


class Point(TypedDict):
    """One second of the run: what had happened in it, over all processes. `t` is its end."""

    t: float
    phase: str
    open: int  # connections that are open at `t`
    connects_s: float  # connections that became open
    sent_s: float  # messages
    received_s: float
    sent_bytes_s: float
    received_bytes_s: float
    p50: int | None  # latency of the messages of this second; of connecting while there are none
    p99: int | None
    errors: int  # failed connects and lost connections in this second
    lag: int  # by which the slowest process served its events too late


class HistogramDocument(TypedDict):
    """The distribution of a latency. `data` is `Histogram.to_json()`, for those who merge."""

    count: int
    minimum: int | None
    mean: float | None
    maximum: int | None
    percentiles: dict[str, int]  # by `PERCENTILES`; empty when `count` is 0
    data: dict[str, Any]


class Totals(TypedDict):
    """Sums of the whole run; rates are those of its measure phase (of `idle`: of its ramp, for connects)."""

    connections: int  # asked for
    connected: int  # became open, reconnects included
    peak: int  # open at the same time
    failed: int  # attempts that did not become open
    lost: int  # open connections that ended before we closed them
    sent: int  # messages
    received: int
    sent_bytes: int
    received_bytes: int
    wrong: int  # echoes that are not what was sent
    unanswered: int  # messages without an answer 5 s after the measuring, or when their connection was lost
    missed: int  # messages that were due (`rate`, `trickle`) and could not be sent, for want of an open connection
    duration: float  # of the measure phase
    connect_rate: float | None
    sent_rate: float | None
    received_rate: float | None
    reconnect_time: float | None  # of `storm`: until everyone was in, the longest of them


class Threshold(TypedDict):
    """A condition the user has set, and whether it held."""

    name: str  # as the option: max-p99, max-failures, min-rate
    limit: float
    value: float | None
    unit: str  # us, 1, 1/s
    passed: bool


def outcome_word(result: Result) -> str:
    """The outcome in a word for people: a run without conditions has not passed anything, it is done."""
    return "done" if result["outcome"] == "passed" and not result["thresholds"] else result["outcome"]


class Result(TypedDict):
    """The document. `outcome`: passed, failed (a threshold, a process that died), interrupted."""

    tool: str
    schema: int
    version: str
    command: list[str]
    target: str
    scenario: str
    options: dict[str, Any]  # those that are not the default
    started: str  # ISO 8601, UTC
    outcome: str
    environment: Environment
    phases: list[Phase]
    series: list[Point]
    # connect; message (to its answer), delivery (of `fanout`); of `storm` also reconnect, counted from its begin, and
    # control: what message is between the storms; late: how late the generator sent what was due, part of the others
    histograms: dict[str, HistogramDocument]
    errors: dict[str, int]  # failed connects by cause: refused, timeout, reset, status 503, EMFILE, …
    closed: dict[
        str, int
    ]  # connections lost, by close code and who said it: "1001 by peer", "1006 by network"
    totals: Totals
    warnings: list[str]
    thresholds: list[Threshold]


def summary(histogram: Histogram) -> HistogramDocument:
    """Return what a document says of `histogram`."""
    count = histogram.count
    return {
        "count": count,
        "minimum": histogram.minimum if count else None,
        "mean": round(histogram.sum / count, 1) if count else None,
        "maximum": histogram.maximum if count else None,
        "percentiles": {name: int(histogram.quantile(float(name) / 100)) for name in PERCENTILES}
        if count
        else {},
        "data": histogram.to_json(),
    }


def empty(target: str, scenario: str, command: list[str]) -> Result:
    """Return a document to fill in."""
    return {
        "tool": "trionet load",
        "schema": SCHEMA,
        "version": __version__,
        "command": command,
        "target": target,
        "scenario": scenario,
        "options": {},
        "started": "",
        "outcome": "passed",
        "environment": {
            "kernel": "",
            "python": "",
            "trio": "",
            "machine": "",
            "cpus": 0,
            "memory": 0,
            "nofile": 0,
            "limits": {},
            "processes": 0,
            "cpu_seconds": 0.0,
            "pss_bytes": None,
        },
        "phases": [],
        "series": [],
        "histograms": {},
        "errors": {},
        "closed": {},
        "totals": {
            "connections": 0,
            "connected": 0,
            "peak": 0,
            "failed": 0,
            "lost": 0,
            "sent": 0,
            "received": 0,
            "sent_bytes": 0,
            "received_bytes": 0,
            "wrong": 0,
            "unanswered": 0,
            "missed": 0,
            "duration": 0.0,
            "connect_rate": None,
            "sent_rate": None,
            "received_rate": None,
            "reconnect_time": None,
        },
        "warnings": [],
        "thresholds": [],
    }


def to_json(result: Result) -> str:
    """Return the document as text, one line."""
    return json.dumps(result, ensure_ascii=False, separators=(",", ":"))
