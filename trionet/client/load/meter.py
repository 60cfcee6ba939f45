"""What one process counts. Histograms and counters of the second under way; sums when it is over."""

from __future__ import annotations

import time
from typing import Any

from trionet.net.histogram import Histogram

__all__ = ["COUNTERS", "HISTOGRAMS", "Meter"]

HISTOGRAMS = ("connect", "message", "delivery", "reconnect", "control", "late")

COUNTERS = (
    "connected",
    "failed",
    "lost",
    "sent",
    "received",
    "sent_bytes",
    "received_bytes",
    "wrong",
    "unanswered",
    "missed",
)


class Meter:
    """Plain attributes, so that counting is cheap: ``meter.sent += 1``, ``meter.message.record(us)``."""

    def __init__(self) -> None:
        self.open = 0
        self.peak = 0
        self.connected = self.failed = self.lost = 0
        self.sent = self.received = self.sent_bytes = self.received_bytes = 0
        self.wrong = self.unanswered = self.missed = 0
        self.errors: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.examples: dict[str, str] = {}  # the first error of each cause, in full
        self.connect = Histogram()
        self.message = Histogram()
        self.delivery = Histogram()
        self.reconnect = Histogram()
        self.control = Histogram()
        self.late = Histogram()  # how late we sent ourselves what was due at a time
        self.totals = {name: Histogram() for name in HISTOGRAMS}
        self._said = dict.fromkeys(COUNTERS, 0)
        self._cpu = time.process_time()

    def failure(self, cause: str, example: str = "") -> None:
        """A connect has failed."""
        self.failed += 1
        self.errors[cause] = self.errors.get(cause, 0) + 1
        if len(self.examples) < 20:
            self.examples.setdefault(cause, example)

    def counters(self) -> dict[str, int]:
        """Sums since the start."""
        return {name: getattr(self, name) for name in COUNTERS}

    def second(self) -> dict[str, Any]:
        """What has happened since the last call. Histograms go over to `totals`."""
        counters = self.counters()
        changes = {name: counters[name] - self._said[name] for name in COUNTERS}
        self._said = counters
        histograms = {}
        for name in HISTOGRAMS:
            current: Histogram = getattr(self, name)
            if current.count:
                histograms[name] = current.to_json()
                self.totals[name].merge(current)
                current.clear()
        cpu = time.process_time()
        self._cpu, used = cpu, cpu - self._cpu
        return {
            **{name: n for name, n in changes.items() if n},
            "open": self.open,
            "cpu": round(used, 4),
            "histograms": histograms,
        }

    def result(self) -> dict[str, Any]:
        """All of it, as JSON has it. `second` has been called before."""
        return {
            **self.counters(),
            "peak": self.peak,
            "errors": self.errors,
            "closed": self.closed,
            "examples": self.examples,
            "cpu_total": time.process_time(),
            "histograms": {name: h.to_json() for name, h in self.totals.items() if h.count},
        }
