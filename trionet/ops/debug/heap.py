"""Where the memory is: by line when tracemalloc is on, by type, and what the process takes as a whole."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from trionet.ops.control import ControlError
from trionet.ops.debug.copy import in_a_copy
from trionet.ops.debug.stacks import foreign, short

__all__ = ["heap", "process_memory", "trace"]

_KEPT: Final = ("Rss", "Pss", "Private_Dirty", "Shared_Clean", "Swap", "AnonHugePages")
_MOST: Final = 200


async def process_memory() -> dict[str, int]:
    """Bytes: ``rss``, ``pss`` (shared pages divided by who shares them), … (Linux: smaps_rollup, proc(5))."""
    return await trio.to_thread.run_sync(
        _read_smaps
    )  # the kernel walks all pages: milliseconds, without the GIL


def _read_smaps() -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    except OSError:  # pragma: no cover - not Linux
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        if name in _KEPT:
            found[name.lower()] = int(rest.split()[0]) * 1024
    return found


async def heap(top: int = 25, *, objects: bool = False, timeout: float = 30.0) -> dict[str, Any]:
    """Memory of the process; with tracemalloc on, the lines and files that hold most; `objects`: counts by type.

    The latter two are found in a copy of the process (`in_a_copy`): a snapshot of a large heap takes seconds.
    """
    top = max(1, min(top, _MOST))
    on = tracemalloc.is_tracing()
    document: dict[str, Any] = {
        "process": await process_memory(),
        "collector": {
            "enabled": gc.isenabled(),
            "counts": gc.get_count(),
            "thresholds": gc.get_threshold(),
            "frozen": gc.get_freeze_count(),
            "collections": [generation["collections"] for generation in gc.get_stats()],
            "uncollectable": len(gc.garbage),
        },
        "allocated_blocks": sys.getallocatedblocks(),
        "tracing": on,
    }
    if on:
        traced, peak = tracemalloc.get_traced_memory()
        document |= {"traced": traced, "peak": peak, "overhead": tracemalloc.get_tracemalloc_memory()}
    if on or objects:

        def look() -> dict[str, Any]:
            return (_traces(top) if on else {}) | (_types(top) if objects else {})

        found, pause = await in_a_copy(look, timeout=timeout)
        document |= found
        document["pause"] = pause
    return document


def trace(on: bool, frames: int = 1) -> dict[str, Any]:
    """Begin or end tracing. What was allocated before is not seen. Costs memory, and some 10 to 30 % of speed."""
    if not 1 <= frames <= 50:
        raise ControlError(f"frames is {frames}; it must be 1 to 50")
    if on and not tracemalloc.is_tracing():
        tracemalloc.start(frames)
    elif not on:
        tracemalloc.stop()
    return {"tracing": tracemalloc.is_tracing()}


def _traces(top: int) -> dict[str, Any]:
    snapshot = tracemalloc.take_snapshot().filter_traces((tracemalloc.Filter(False, tracemalloc.__file__),))
    lines = snapshot.statistics("lineno")
    files: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for each in lines:
        files[each.traceback[0].filename] += each.size
        counts[each.traceback[0].filename] += each.count
    return {
        "lines": [
            {
                "file": short(each.traceback[0].filename),
                "line": each.traceback[0].lineno,
                "code": str(each.traceback.format()[-1]).strip()[:160],
                "own": not foreign(each.traceback[0].filename),
                "size": each.size,
                "count": each.count,
            }
            for each in lines[:top]
        ],
        "files": [
            {"file": short(name), "own": not foreign(name), "size": size, "count": counts[name]}
            for name, size in files.most_common(top)
        ],
    }


def _types(top: int) -> dict[str, Any]:
    """Objects that the collector tracks; numbers, strings and bytes are not among them."""
    gc.unfreeze()  # in the copy only: frozen objects are not listed
    counts: Counter[type] = Counter()
    sizes: Counter[type] = Counter()
    objects = gc.get_objects()
    for each in objects:
        kind = type(each)
        counts[kind] += 1
        try:
            sizes[kind] += sys.getsizeof(each)
        except Exception:  # noqa: BLE001, S112 - an application's `__sizeof__`
            continue
    return {
        "objects": len(objects),
        "types": [
            {"type": f"{kind.__module__}.{kind.__qualname__}", "count": count, "size": sizes[kind]}
            for kind, count in counts.most_common(top)
        ],
    }
