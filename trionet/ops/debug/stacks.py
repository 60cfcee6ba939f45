"""Stacks of code that waits: of tasks, of the jobs that workers drive by hand, of parked handlers.

A coroutine knows what it awaits; so a stack is a walk along ``cr_await``. It breaks off where a generator drives
another coroutine by `send`: the pool's driver, a straight-line handler's, the clock of `debug.timing`. There the
collector is asked what the generator refers to, as `f_locals` of a frame would keep alive what it shows.
"""

from __future__ import annotations

import gc
import linecache
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from trionet.net.pool import TaskPool, Worker
from trionet.protocols.straight import Straight

__all__ = ["Place", "drives", "foreign", "frames", "here", "places", "short", "show", "worker_of"]

Place: TypeAlias = "tuple[types.CodeType, int]"  # a line of a function, as a key to count equals by

DEPTH: Final = 40  # frames of one stack
_LINE: Final = 160  # characters of a line shown

#: Code of the generators that drive a coroutine by hand.
drives: set[types.CodeType] = set()


def _code(function: Any) -> types.CodeType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__  # type: ignore[no-any-return]


drives.update((_code(TaskPool._drive), _code(Straight._pass_on)))
_DRIVE: Final = _code(TaskPool._drive)


def frames(awaited: Any) -> Iterator[types.FrameType]:
    """The frames of something that waits, outermost first."""
    for _ in range(4 * DEPTH):
        frame = _frame(awaited)
        if frame is not None:
            yield frame
        awaited = _next(awaited)
        if awaited is None:
            return


def _frame(awaited: Any) -> types.FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        if hasattr(awaited, name):
            return getattr(awaited, name)  # type: ignore[no-any-return]
    return None


def _next(awaited: Any) -> Any:
    """What it awaits."""
    if hasattr(awaited, "cr_await"):
        return awaited.cr_await
    if hasattr(awaited, "gi_yieldfrom"):
        if awaited.gi_code in drives:
            return next((each for each in gc.get_referents(awaited) if hasattr(each, "cr_await")), None)
        return awaited.gi_yieldfrom
    if hasattr(awaited, "ag_await"):
        return awaited.ag_await
    if type(awaited).__name__ in {"async_generator_asend", "async_generator_athrow", "coroutine_wrapper"}:
        return next(
            (
                each
                for each in gc.get_referents(awaited)
                if hasattr(each, "ag_await") or hasattr(each, "cr_await")
            ),
            None,
        )
    return None


def worker_of(task: trio.lowlevel.Task) -> Worker | None:
    """The pool's worker that `task` is; None for other tasks, and for one that runs right now."""
    awaited: Any = task.coro
    for _ in range(8):
        if hasattr(awaited, "gi_code") and awaited.gi_code is _DRIVE:
            return next((each for each in gc.get_referents(awaited) if isinstance(each, Worker)), None)
        awaited = _next(awaited)
        if awaited is None:
            break
    return None


def places(awaited: Any) -> tuple[Place, ...]:
    """A stack as something to compare: its innermost `DEPTH` frames, outermost first."""
    found = [(frame.f_code, frame.f_lineno) for frame in frames(awaited)]
    while len(found) > 1 and found[-1][0].co_filename == _TRAPS:  # where every wait in Trio ends
        del found[-1]
    return tuple(found[-DEPTH:])


def here(stack: list[dict[str, Any]]) -> dict[str, Any]:
    """The frame of a stack to show if only one is shown: the innermost of the application's, else not of Trio's."""
    own = next((frame for frame in reversed(stack) if frame["own"]), None)
    return own or next(
        (frame for frame in reversed(stack) if not frame["file"].startswith("trio/")), stack[-1]
    )


async def show(stack: tuple[Place, ...]) -> list[dict[str, Any]]:
    """A stack as JSON. `own`: not a line of trionet, Trio or Python, so probably the one to look at."""
    names = {code.co_filename for code, _ in stack if not code.co_filename.startswith("<")}
    missing = names - linecache.cache.keys()
    if missing:  # milliseconds each
        await trio.to_thread.run_sync(_read, missing)
    return [
        {
            "file": short(code.co_filename),
            "line": line,
            "function": code.co_qualname,
            "code": linecache.getline(code.co_filename, line).strip()[:_LINE],
            "own": not foreign(code.co_filename),
        }
        for code, line in stack
    ]


def _read(names: set[str]) -> None:
    for name in names:
        linecache.getlines(name)


_TRIONET: Final = Path(__file__).resolve().parents[2]
_TRIO: Final = Path(trio.__file__).parent
_LIBRARIES: Final = (f"{_TRIONET}{os.sep}", f"{_TRIO}{os.sep}", f"{Path(os.__file__).parent}{os.sep}", "<")
_TRAPS: Final = str(_TRIO / "_core" / "_traps.py")


def foreign(filename: str) -> bool:
    """Whether the code is a library's: trionet's, Trio's, Python's, or anything installed."""
    return filename.startswith(_LIBRARIES) or "-packages" in filename  # Debian's are dist-packages


def short(filename: str) -> str:
    """A file's name without what all have in common: the last three parts say which it is."""
    parts = filename.replace("\\", "/").split("/")
    for mark in ("site-packages", "trionet"):
        if mark in parts[:-1]:
            index = len(parts) - 2 - parts[:-1][::-1].index(mark)
            return "/".join(parts[index + (mark == "site-packages") :])
    return "/".join(parts[-3:])
