"""Where the processor's time goes: stacks sampled for some seconds, without a word in the application.

    method     who samples                                    what it sees
    py-spy     another process, if `py-spy` is on PATH        all threads, without touching this one
    signal     SIGPROF at each 10 ms of processor time        Trio's thread, at the line that runs
    thread     a thread, where Trio is not in the main one    the same, with a bias to where the GIL is given away

The result is collapsed stacks (``outermost;…;innermost``, a count), which flame graph tools read; `speedscope` makes
the format of speedscope.app of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from trionet.ops.control import ControlError
from trionet.ops.debug.stacks import short

__all__ = ["collapsed", "profile", "speedscope"]

_DEPTH: Final = 100
_STACKS: Final = 5000  # different ones
_MOST: Final = 120.0  # seconds
_busy = False


async def profile(seconds: float = 5.0, rate: int = 100, method: str = "auto") -> dict[str, Any]:
    """Sample for `seconds`, `rate` times a second of processor time. One at a time; raises `ControlError`."""
    global _busy
    if not 0.1 <= seconds <= _MOST or not 1 <= rate <= 1000:
        raise ControlError(f"a profile takes 0.1 to {_MOST:g} seconds at a rate of 1 to 1000")
    if method not in {"auto", "py-spy", "signal", "thread"}:
        raise ControlError(f"method is {method!r}; it must be auto, py-spy, signal or thread")
    if _busy:
        raise ControlError("a profile is being taken already")
    _busy = True
    try:
        return await _profile(seconds, rate, method)
    finally:
        _busy = False


async def _profile(seconds: float, rate: int, method: str) -> dict[str, Any]:
    note = ""
    begin, before = time.perf_counter(), time.process_time()
    stacks: Counter[str] | None = None
    if method in {"auto", "py-spy"}:
        stacks, note = await _py_spy(seconds, rate)
        if stacks is None and method == "py-spy":
            raise ControlError(note)
        used = "py-spy"
    if stacks is None:
        main = threading.current_thread() is threading.main_thread()
        free = signal.getsignal(signal.SIGPROF) == signal.SIG_DFL if hasattr(signal, "SIGPROF") else False
        if method == "thread" or not (main and free):
            stacks, used = await _by_thread(seconds, rate), "thread"
        else:
            stacks, used = await _by_signal(seconds, rate), "signal"
    wall = time.perf_counter() - begin
    return {
        "method": used,
        "note": note,
        "seconds": round(wall, 3),
        "rate": rate,
        "samples": sum(stacks.values()),
        "cpu": round((time.process_time() - before) / wall, 4),  # of one processor
        "stacks": [[stack, count] for stack, count in stacks.most_common(_STACKS)],
    }


# ---------------------------------------------------------------- who samples


def _fold(frame: types.FrameType | None) -> str:
    parts: list[str] = []
    while frame is not None and len(parts) < _DEPTH:
        code = frame.f_code
        parts.append(f"{code.co_qualname} ({short(code.co_filename)}:{frame.f_lineno})")
        frame = frame.f_back
    return ";".join(part.replace(";", ":") for part in reversed(parts))


def _note(stacks: Counter[str], frame: types.FrameType | None) -> None:
    stack = _fold(frame)
    stacks[stack if stack in stacks or len(stacks) < _STACKS else "(others)"] += 1


async def _by_signal(seconds: float, rate: int) -> Counter[str]:
    """The handler runs between two steps of the interpreter, so it sees the line whose time it was."""
    stacks: Counter[str] = Counter()
    previous = signal.signal(signal.SIGPROF, lambda _, frame: _note(stacks, frame))
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, 1 / rate, 1 / rate)
    try:
        await trio.sleep(seconds)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        # One that is on its way must find somebody: the default action ends the process.
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, previous)
    return stacks


async def _by_thread(seconds: float, rate: int) -> Counter[str]:
    stacks: Counter[str] = Counter()
    watched = threading.get_ident()
    end = time.perf_counter() + seconds
    stopped = threading.Event()

    def sample() -> None:
        while time.perf_counter() < end and not stopped.wait(1 / rate):
            frame = sys._current_frames().get(watched)
            if frame is not None and frame.f_code.co_name != "get_events":  # Trio waits for events
                _note(stacks, frame)

    # A thread that waits for the GIL gets it where the loop calls the system. So wait as little as possible.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        await trio.to_thread.run_sync(sample, abandon_on_cancel=True)
    finally:
        stopped.set()
        sys.setswitchinterval(interval)
    return stacks


async def _py_spy(seconds: float, rate: int) -> tuple[Counter[str] | None, str]:
    """What py-spy says; None, and why, when it cannot be used."""
    program = shutil.which("py-spy")
    if program is None:
        return None, "py-spy is not on PATH"
    folder = tempfile.mkdtemp(prefix="trionet-")
    path = Path(folder, "stacks")
    options = ["--format", "raw", "--nonblocking", "--output", str(path)]
    options += ["--duration", str(max(1, round(seconds))), "--rate", str(rate), "--pid", str(os.getpid())]
    try:
        with trio.move_on_after(seconds + 10) as scope:
            done = await trio.run_process(
                [program, "record", *options],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if scope.cancelled_caught or done.returncode:
            words = (
                "took too long" if scope.cancelled_caught else done.stdout.decode("utf-8", "replace").strip()
            )
            return None, f"py-spy: {words[-300:]}"
        stacks: Counter[str] = Counter()
        for line in await trio.to_thread.run_sync(_lines, path):
            stack, _, count = line.rpartition(" ")
            if count.isdecimal() and len(stacks) < _STACKS:
                stacks[stack] += int(count)
    except OSError as error:
        return None, f"py-spy: {error}"
    else:
        return stacks, ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", "replace").splitlines()


# ------------------------------------------------------------------- formats


def collapsed(document: dict[str, Any]) -> str:
    """One line for each stack, as ``flamegraph.pl`` and others read it."""
    return "".join(f"{stack} {count}\n" for stack, count in document["stacks"])


def speedscope(document: dict[str, Any], name: str = "trionet") -> dict[str, Any]:
    """A file for https://www.speedscope.app (its "sampled" profile)."""
    numbers: dict[str, int] = {}
    samples, weights = [], []
    for stack, count in document["stacks"]:
        samples.append([numbers.setdefault(frame, len(numbers)) for frame in stack.split(";")])
        weights.append(count)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "trionet",
        "shared": {"frames": [{"name": frame} for frame in numbers]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
