"""Seconds of all processes joined: `Point` by `Point`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trionet.client.load.result import Point
from trionet.net.histogram import Histogram

__all__ = ["Series"]

_LATENCIES = (("message", "delivery", "control"), ("connect", "reconnect"))


class Series:
    """Takes what each process says of a second; gives a point as soon as all have said it."""

    def __init__(self, processes: int) -> None:
        self.alive = set(range(processes))
        self._seconds: dict[int, dict[int, dict[str, Any]]] = {}

    def add(self, process: int, second: int, said: dict[str, Any], phase: str) -> Iterator[Point]:
        """A process tells of a second; yield the points that are complete now."""
        self._seconds.setdefault(second, {})[process] = said
        yield from self._complete(phase)

    def died(self, process: int, phase: str) -> Iterator[Point]:
        """This one says no more."""
        self.alive.discard(process)
        yield from self._complete(phase)

    def _complete(self, phase: str) -> Iterator[Point]:
        while self._seconds:
            second = min(self._seconds)
            if not self.alive <= self._seconds[second].keys():
                return
            yield _join(second, list(self._seconds.pop(second).values()), phase)


def _join(second: int, said: list[dict[str, Any]], phase: str) -> Point:
    def total(name: str) -> int:
        return sum(each.get(name, 0) for each in said)

    latency = Histogram()
    for names in _LATENCIES:
        for each in said:
            for name in names:
                if name in each["histograms"]:
                    latency.merge(Histogram.from_json(each["histograms"][name]))
        if latency.count:
            break
    return {
        "t": float(second),
        "phase": phase,
        "open": total("open"),
        "connects_s": total("connected"),
        "sent_s": total("sent"),
        "received_s": total("received"),
        "sent_bytes_s": total("sent_bytes"),
        "received_bytes_s": total("received_bytes"),
        "p50": latency.quantile(0.5) if latency.count else None,
        "p99": latency.quantile(0.99) if latency.count else None,
        "errors": total("failed") + total("lost"),
        "lag": max((each["lag"] for each in said), default=0),
    }
