"""Which handlers take the time: a clock around every job of the pool, while it is switched on.

Off, it costs the pool one comparison a job; on, one to two microseconds. What is measured is what handlers do to
each other: `busy` is time on the loop, when nobody else runs; `longest` the longest such stretch; `waited` is time
suspended, which holds nobody up. A job is one read of a connection: what was read is decoded and handled, message by
message.
"""

from __future__ import annotations

import types
from collections.abc import Generator
from time import perf_counter
from typing import Any, Final

from trionet.net.pool import TaskPool
from trionet.ops.debug.identity import label
from trionet.ops.debug.stacks import drives

__all__ = ["Clock", "switch"]

_MOST: Final = 200  # names; what comes beyond is counted as one


class Row:
    """Sums of one handler. Times are seconds."""

    __slots__ = ("busy", "failed", "jobs", "longest", "name", "stretches", "waited", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs = 0
        self.failed = 0
        self.stretches = 0  # on the loop, between two waits
        self.busy = 0.0
        self.longest = 0.0
        self.waited = 0.0
        self.waiting = 0  # jobs suspended right now


class Clock:
    """Called by the pool with a job in place of its `run`."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self._rows: dict[Any, Row] = {}  # by protocol, or by the class of a job that is no connection
        self._names: dict[str, Row] = {}

    def row(self, job: Any) -> Row:
        """Where this job is counted."""
        key = getattr(job, "protocol", None) or type(job)
        row = self._rows.get(key)
        if row is None:
            name = key.__name__.strip("_").lower() if isinstance(key, type) else label(key)
            name = {"door": "accept", "call": "TaskPool.schedule"}.get(name, name)
            if len(self._names) >= _MOST:
                name = "others"
            row = self._names.setdefault(name, Row(name))
            if len(self._rows) < _MOST * 10:
                self._rows[key] = row
        return row

    @types.coroutine
    def __call__(self, job: Any) -> Generator[Any, Any, bool | None]:
        """Run `job`, and keep the time."""
        row = self.row(job)
        row.jobs += 1
        running = job.run()
        value = error = None
        begin = perf_counter()
        try:
            while True:
                if error is None:
                    trap = running.send(value)
                else:
                    error, thrown = None, error
                    trap = running.throw(thrown)
                    del thrown
                value = None
                end = perf_counter()
                self._add(row, end - begin)
                row.waiting += 1
                try:
                    value = yield trap
                except BaseException as raised:  # noqa: BLE001 - goes to the job
                    error = raised
                finally:
                    begin = perf_counter()
                    row.waited += begin - end
                    row.waiting -= 1
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except Exception:
            row.failed += 1
            raise
        finally:
            self._add(row, perf_counter() - begin)

    @staticmethod
    def _add(row: Row, seconds: float) -> None:
        row.stretches += 1
        row.busy += seconds
        row.longest = max(row.longest, seconds)

    def as_json(self, limit: int = 50) -> dict[str, Any]:
        """The rows, most time on the loop first."""
        rows = sorted(self._names.values(), key=lambda row: -row.busy)
        return {
            "on": True,
            "seconds": round(perf_counter() - self.began, 3),
            "busy": round(sum(row.busy for row in rows), 6),
            "rows": [
                {
                    "handler": row.name,
                    "jobs": row.jobs,
                    "failed": row.failed,
                    "stretches": row.stretches,
                    "busy": round(row.busy, 6),
                    "longest": round(row.longest, 6),
                    "waited": round(row.waited, 6),
                    "waiting": row.waiting,
                }
                for row in rows[:limit]
            ],
        }


drives.add(
    Clock.__call__.__wrapped__.__code__ if hasattr(Clock.__call__, "__wrapped__") else Clock.__call__.__code__
)


def switch(pool: TaskPool, on: bool) -> None:
    """Begin to measure, with all sums at zero, or end it. Jobs in hand are counted from their next read on."""
    pool.clock = Clock() if on else None
