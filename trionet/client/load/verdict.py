"""What the figures say: do they meet what the user demands, and can they be trusted. Pure."""

from __future__ import annotations

from typing import Any

from trionet.client.load.options import LoadOptions
from trionet.client.load.result import Result, Threshold

__all__ = ["failures", "judge", "suspicions"]

_BUSY = 0.9  # of a core
_LAG = 50_000  # us
_LATE = 5_000  # us
_ON_TIME = 1_000  # us
_ENOUGH = 100  # messages, to speak of one in a hundred


def failures(result: Result) -> int:
    """All that went wrong."""
    totals = result["totals"]
    return sum(totals[name] for name in ("failed", "lost", "wrong", "unanswered", "missed"))


def judge(options: LoadOptions, result: Result) -> list[Threshold]:
    """Hold the result against the conditions. A figure that is missing has not met its condition."""
    histograms, totals = result["histograms"], result["totals"]
    latency = next((histograms[n] for n in ("message", "delivery") if n in histograms), None)
    if options.scenario == "storm":
        latency = histograms.get("control", latency)
    connect = histograms.get("connect") or histograms.get("reconnect")
    rate = totals["connect_rate"] if options.scenario == "idle" else totals["received_rate"]
    found: list[Threshold] = []

    def demand(
        name: str, limit: float | None, value: float | None, unit: str, *, least: bool = False
    ) -> None:
        if limit is not None:
            passed = value is not None and (value >= limit if least else value <= limit)
            found.append({"name": name, "limit": limit, "value": value, "unit": unit, "passed": passed})

    demand("max-p99", _us(options.max_p99), latency and latency["percentiles"].get("99"), "us")
    demand(
        "max-connect-p99", _us(options.max_connect_p99), connect and connect["percentiles"].get("99"), "us"
    )
    demand("max-failures", options.max_failures, failures(result), "1")
    demand("min-rate", options.min_rate, rate, "1/s", least=True)
    return found


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def suspicions(result: Result, busy: dict[int, list[float]], late: Any) -> list[str]:
    """Signs that the generator was the bottleneck, not the server.

    `busy`: by process, CPU use in each second of the measuring; `late`: how late it sent what was due, a histogram.
    """
    said = []
    shares = {number: sum(used) / len(used) for number, used in busy.items() if used}
    hot = [number for number, share in shares.items() if share > _BUSY]
    # An open loop wakes for each message as long as it has the time to: busy, and yet on time.
    on_time = late is not None and late.count and late.quantile(0.99) < _ON_TIME
    if hot and not on_time:
        top = max(shares.values())
        said.append(
            f"the load generator was the bottleneck: {len(hot)} of its processes used {top:.0%} of a core "
            "while measuring; take more --processes, or another machine"
        )
    lag = max((point["lag"] for point in result["series"] if point["phase"] == "measure"), default=0)
    if lag > _LAG:
        said.append(
            f"the load generator, or this machine, was the bottleneck: a process was {lag / 1000:.0f} ms late "
            "with its own work while measuring; latencies are too high by up to that"
        )
    if late is not None and late.count >= _ENOUGH and late.quantile(0.99) > _LATE:
        said.append(
            f"1 % of the messages were sent {late.quantile(0.99) / 1000:.1f} ms or more after they were due: the "
            "load generator could not keep the rate"
        )
    return said
