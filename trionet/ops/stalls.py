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

Where more processes want to compute than there are processors, turns take long though no code is to blame. Linux tells
how long a thread was ready to run and had to wait for a processor; that time is taken off, and told in a record of its
own, once in five minutes. What is counted as a stall is code that computes, or that waits for something else.
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
    """Counters of a watch; times are seconds. `busy`: all that the loop spent between two waits, in `turns` turns.

    `starved`: how long, in turns over the threshold, the machine gave the loop's thread no processor. It is not counted
    in `longest` and `stalled`, and turns that were not too long but for that are no `stalls`. Linux; elsewhere 0.
    """

    stalls: int
    longest: float
    stalled: float
    busy: float
    turns: int
    starved: float = 0.0


@attrs.frozen
class _Look:
    """What the thread saw, from which times in a stall are reckoned."""

    since: float  # of the turn that it fell into, and how long that had lasted; 0: the loop waited
    lasts: float
    computed: float  # processor time of the loop's thread until then
    starved: float  # the time it was ready to run and did not
    busy: float  # `_busy`


class StallWatch(trio.abc.Instrument):
    """``with StallWatch(server): ...`` inside `trio.run` watches its loop for the length of the block.

    `threshold`: seconds of work without a pause that are told. Records go to the logger "trionet.stalls", limited as
    `LimitedLog` does. `server`: to name the connection whose handler it is.
    """

    def __init__(self, server: Server | None = None, *, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._server = server
        self._since = 0.0  # when the loop began to work; 0: it waits
        # To ask for these times at the beginning of each turn would cost as much as all the rest.
        self._look = _Look(0.0, 0.0, 0.0, 0.0, 0.0)
        self._schedstat = -1
        self._turns = 0
        self._busy = 0.0
        self._stalls = 0
        self._longest = 0.0
        self._stalled = 0.0
        self._starved = 0.0
        self._told = 0.0  # the value of `_since` for which a stack was logged
        self._where = ""
        self._limited = LimitedLog(period=30.0)
        self._scarce = LimitedLog(burst=1, period=300.0)  # for what is no fault of the program
        self._lock = threading.Lock()  # of both, and of what is told
        self._stop = threading.Lock()
        self._thread: threading.Thread | None = None
        self._watched = 0

    def statistics(self) -> StallStatistics:
        """Counters."""
        return StallStatistics(
            self._stalls, self._longest, self._stalled, self._busy, self._turns, self._starved
        )

    # ----------------------------------------------------------- the loop's side

    def __enter__(self) -> StallWatch:
        self._watched = threading.get_ident()
        self._schedstat = _open_schedstat()
        self._since = perf_counter()
        self._look = self._look_at(0.0, 0.0)
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
        if self._stop.locked():  # by the thread, unless that has failed
            self._stop.release()
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1
        with self._lock:
            self._limited.flush(everything=True)
            self._scarce.flush(everything=True)

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
        look = self._look
        before = max(
            0.0, self._busy - took - look.busy - look.lasts
        )  # the turns between that look and this one
        computed = max(0.0, min(took, thread_time() - look.computed - before))
        starved = self._starved_for(took, self._busy)
        held = took - starved
        self._starved += starved
        fields = {
            "seconds": round(took, 3),
            "computed": round(computed, 3),
            "starved": round(starved, 3),
            "load": _load(),
        }
        told = self._told == since
        if told or held >= self.threshold:
            self._stalls += 1
            self._stalled += held
            self._longest = max(self._longest, held)
        with self._lock:
            if not told and held < self.threshold:
                self._scarce.log(
                    log,
                    logging.WARNING,
                    "the event loop was late, by %.2f s, of which it had no processor for %.2f s: the machine has too"
                    " much to do, and no code here is to blame",
                    took,
                    starved,
                    fields=lambda: fields,
                )
            elif told:
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
                    else "it was over when the watch looked",
                    fields=lambda: fields,
                )

    # --------------------------------------------------------- the thread's side

    def _watch(self) -> None:
        rest = self.threshold
        while not self._stop.acquire(timeout=rest):
            rest = self.threshold
            since, now = self._since, perf_counter()
            lasts = now - since if since else 0.0
            if not since or (since != self._look.since and lasts < self.threshold / 2):
                self._look = self._look_at(since, lasts)
            if since and since != self._told:
                held = lasts - self._starved_for(lasts, self._busy + lasts) if lasts >= rest else lasts
                if held < rest:
                    rest = max(rest - held, rest / 16)
                else:
                    with self._lock:
                        self._tell(since, lasts)
            for limited in (self._limited, self._scarce):
                if limited.pending:
                    with self._lock:
                        limited.flush()

    def _look_at(self, since: float, lasts: float) -> _Look:
        return _Look(since, lasts, _processor_time(self._watched), self._waited_for_processor(), self._busy)

    def _waited_for_processor(self) -> float:
        """Seconds that the loop's thread was ready to run, and another one ran (Linux, sched-stats.rst)."""
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9 if self._schedstat >= 0 else 0.0

    def _starved_for(self, lasts: float, busy: float) -> float:
        """How much of the turn that has lasted so long that was, if it was the same share of all since the last look.

        `busy`: all that the loop was, this turn included.
        """
        look = self._look
        seen = busy - look.busy - look.lasts
        return min(lasts, (self._waited_for_processor() - look.starved) * lasts / seen) if seen > 0 else 0.0

    def _tell(self, since: float, lasts: float) -> None:
        """Log who holds it up, unless that is over."""
        frame = sys._current_frames().get(self._watched)
        stack = list(_frames(frame))
        who = self._who()
        if self._since != since or not stack:  # it is over, or Trio's own loop is what was held up
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


def _open_schedstat() -> int:
    """Where Linux counts for this thread: it stays open, to be read when descriptors are short, too. -1: nowhere."""
    try:
        return os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _load() -> float:
    """What competed for the processors in the last minute."""
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
