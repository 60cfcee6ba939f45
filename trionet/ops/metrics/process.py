"""Metrics of the process itself, by the names that every Prometheus client library gives them, and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from functools import cache
from typing import Final

from trionet._version import __version__
from trionet.ops.limits import descriptor_limit
from trionet.ops.metrics.model import Family

__all__ = ["build_info", "process_families", "process_start"]


_LIST_EVERY: Final = 10.0  # seconds
_listed = {"pid": 0, "until": 0.0, "count": 0}


@cache
def _start_of(pid: int) -> float:
    """Unix time; proc(5): field 22 of /proc/PID/stat, in ticks since boot, which `btime` of /proc/stat dates."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/stat", "rb") as file:  # noqa: PTH123
            boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, StopIteration):
        return time.time()  # now is the best that is known


def process_start() -> float:
    """When this process began (Unix time)."""
    return _start_of(os.getpid())


def process_families() -> Iterator[Family]:
    """CPU time, memory, descriptors. On other systems than Linux, what can be had."""
    usage = os.times()
    yield Family("process_cpu_seconds", "counter", "User and system CPU time spent.", unit="seconds").add(
        usage.user + usage.system
    )
    yield Family(
        "process_start_time_seconds",
        "gauge",
        "When the process began, Unix time.",
        unit="seconds",
        across="each",
    ).add(process_start())
    resident = _resident()
    if resident:
        yield Family(
            "process_resident_memory_bytes", "gauge", "Resident memory.", unit="bytes", across="each"
        ).add(resident)
    fds = _open_fds(time.monotonic())
    if fds:
        yield Family("process_open_fds", "gauge", "Open file descriptors.", across="each").add(fds)
    limit = descriptor_limit()
    if limit is not None:
        yield Family("process_max_fds", "gauge", "Most file descriptors there may be.", across="each").add(
            limit[0]
        )


def _open_fds(now: float) -> int:
    try:
        count = os.stat("/proc/self/fd").st_size
        if count == 0 and (_listed["pid"] != os.getpid() or now >= _listed["until"]):
            # A list of 15,000 takes 10 ms, in which nothing else happens.
            count = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the listing's own
            _listed.update(pid=os.getpid(), until=now + _LIST_EVERY, count=count)
    except OSError:
        return 0
    return count or int(_listed["count"])


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@cache
def _versions() -> dict[str, str]:
    return {
        "version": __version__,
        "python": platform.python_version(),
        "trio": importlib.metadata.version("trio"),
    }


def build_info() -> Family:
    """Which versions run."""
    return Family("trionet_build", "info", "Versions of trionet, Python and Trio.", across="same").add(
        1, **_versions()
    )
