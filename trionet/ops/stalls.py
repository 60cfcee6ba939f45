"""A watch on the event loop: who holds it up, told while it lasts.

Everything a worker does happens in one thread. Code that does not give way, because it computes, or waits by
`time.sleep`, a lock, a driver for a database, stops all connections of that worker, and afterwards nothing tells why
they were late. So a thread looks on, and when the loop has been busy for `threshold` it logs what runs at that moment,
with its stack; then, once it is over, how long it took.

What it costs: two calls of Python for each turn of the loop (Trio's instruments `after_io_wait` and `before_io_wait`;
those for each step of a task cost several times more), and one wake-up of the thread in each `threshold`. A stall that
begins right after a look is still seen as soon as it has lasted for the threshold: at its next look the thread finds
the loop busy, and waits for the rest of the time only.

A C extension that computes without giving up the interpreter's lock stops the thread as well: such a stall is told when
it is over, without a stack.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, thread_time
from types import FrameType
from typing import Any, Final

import attrs
import trio

from trionet.net.connection import Connection
from trionet.net.describe import describe
from trionet.net.limited import LimitedLog
from trionet.server import Server

__all__ = ["StallStatistics", "StallWatch"]

log = logging.getLogger("trionet.stalls")

_FRAMES: Final = 30  # of a stack shown, the innermost
_TRIO: Final = f"{Path(trio.__file__).parent}{os.sep}"
_OURS: Final = f"{Path(__file__).resolve().parent.parent}{os.sep}"
_STDLIB: Final = f"{sysconfig.get_path('stdlib')}{os.sep}"


@attrs.frozen
class StallStatistics:
    """Counters of a watch; times are seconds. `busy`: all that the loop spent between two waits, in `turns` turns."""

    stalls: int
    longest: float
    stalled: float
    busy: float
    turns: int


class StallWatch(trio.abc.Instrument):
    """``with StallWatch(server): ...`` inside `trio.run` watches its loop for the length of the block.

    `threshold`: seconds of work without a pause that are told. Records go to the logger "trionet.stalls", limited as
    `LimitedLog` does. `server`: to name the connection whose handler it is.
    """

    def __init__(self, server: Server | None = None, *, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._server = server
        self._since = 0.0  # when the loop began to work; 0: it waits
        # At the last look between two turns: processor time of the loop's thread, and `_busy`. (To ask for that time at
        # the beginning of each turn would cost as much as all the rest.)
        self._looked = (0.0, 0.0)
        self._turns = 0
        self._busy = 0.0
        self._stalls = 0
        self._longest = 0.0
        self._stalled = 0.0
        self._told = 0.0  # the value of `_since` for which a stack was logged
        self._where = ""
        self._limited = LimitedLog(period=30.0)
        self._lock = threading.Lock()  # of `_limited` and of what is told
        self._stop = threading.Lock()
        self._thread: threading.Thread | None = None
        self._watched = 0

    def statistics(self) -> StallStatistics:
        """Counters."""
        return StallStatistics(self._stalls, self._longest, self._stalled, self._busy, self._turns)

    # ----------------------------------------------------------- the loop's side

    def __enter__(self) -> StallWatch:
        self._watched = threading.get_ident()
        self._since, self._looked = perf_counter(), (thread_time(), self._busy)
        trio.lowlevel.add_instrument(self)
        self._stop.acquire()
        self._thread = threading.Thread(target=self._watch, name="trionet stall watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)
        self._stop.release()
        assert self._thread is not None
        self._thread.join()
        self._stop.release()
        with self._lock:
            self._limited.flush(everything=True)

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        self._since = perf_counter()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        since = self._since
        self._since = 0.0
        took = perf_counter() - since
        self._turns += 1
        self._busy += took
        if took >= self.threshold:
            self._over(since, took)

    def _over(self, since: float, took: float) -> None:
        self._stalls += 1
        self._stalled += took
        self._longest = max(self._longest, took)
        used, busy = self._looked
        before = max(0.0, self._busy - took - busy)  # the turns between that look and this one
        computed = max(0.0, min(took, thread_time() - used - before))
        fields = {"seconds": round(took, 3), "computed": round(computed, 3), "load": _load()}
        with self._lock:
            if self._told == since:
                self._limited.log(
                    log,
                    logging.WARNING,
                    "the event loop goes on, after %.2f s, of which it computed for %.2f s; it was in %s",
                    took,
                    computed,
                    self._where,
                    fields=lambda: {**fields, "where": self._where},
                    key=self._where,
                )
            else:
                self._limited.log(
                    log,
                    logging.WARNING,
                    "the event loop was held up for %.2f s, of which it computed for %.2f s; no stack, for %s",
                    took,
                    computed,
                    "C code kept Python's own lock"
                    if computed > took / 2
                    else "it was not given a processor",
                    fields=lambda: fields,
                )

    # --------------------------------------------------------- the thread's side

    def _watch(self) -> None:
        rest = self.threshold
        while not self._stop.acquire(timeout=rest):
            rest = self.threshold
            since, now = self._since, perf_counter()
            if (
                not since or now - since < self.threshold / 8
            ):  # it waits; or, if it never does, a turn has just begun
                self._looked = (_processor_time(self._watched), self._busy)
            if since and since != self._told:
                lasts = now - since
                if lasts < rest:
                    rest -= lasts
                else:
                    with self._lock:
                        self._tell(since, lasts)
            if self._limited.pending:
                with self._lock:
                    self._limited.flush()

    def _tell(self, since: float, lasts: float) -> None:
        """Log who holds it up, unless that is over."""
        frame = sys._current_frames().get(self._watched)
        stack = list(_frames(frame))
        who = self._who()
        if self._since != since or frame is None:
            return
        del frame
        rank = [_rank(each.f_code.co_filename) for each in stack]
        own = [index for index, each in enumerate(rank) if each == max(rank)] if any(rank) else []
        self._where = _name(stack[own[-1] if own else -1])
        self._told = since
        entry = stack[own[0]].f_code.co_qualname if own else "library code"
        shown = stack[max(0, own[0] - 1) if own else 0 :][-_FRAMES:]
        text = "".join(traceback.format_list(traceback.StackSummary.extract((f, f.f_lineno) for f in shown)))
        fields = {"where": self._where, "handler": entry, "seconds": round(lasts, 3), "load": _load(), **who}
        self._limited.log(
            log,
            logging.WARNING,
            "the event loop is held up, so far for %.2f s, by %s, now in %s",
            lasts,
            entry,
            self._where,
            fields=lambda: fields,
            key=self._where,
            stack="Stack of the event loop:\n" + text.rstrip(),
        )

    def _who(self) -> dict[str, Any]:
        """The connection whose handler runs. Read from another thread: true as long as the loop stands still."""
        pool = self._server.engine.pool if self._server is not None else None
        job = pool.job if pool is not None and pool.running is not None else None
        if not isinstance(job, Connection):
            return {}
        return {"connection": repr(job), **describe(job)}


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The stack within Trio's loop, outermost first."""
    found: list[FrameType] = []
    while frame is not None and not (
        frame.f_code.co_name == "unrolled_run" and frame.f_code.co_filename.startswith(_TRIO)
    ):
        found.append(frame)
        frame = frame.f_back
    return reversed(found)


def _processor_time(thread: int) -> float:
    """What `thread_time` says in another thread."""
    if not hasattr(time, "pthread_getcpuclockid"):  # pragma: no cover - Windows
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


def _load() -> float:
    """What competed for the processors in the last minute: far above their number, no handler may be to blame."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def _rank(filename: str) -> int:
    """2: the application's own. 1: installed, a library that it uses, or itself. 0: trionet's, Trio's, Python's."""
    if filename.startswith((_OURS, _TRIO, "<")):
        return 0
    if "-packages" in filename:
        return 1
    return 0 if filename.startswith(_STDLIB) else 2


def _name(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
