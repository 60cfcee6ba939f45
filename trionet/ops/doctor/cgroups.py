"""The limits of a control group, version 1 and 2 (cgroups(7); kernel: admin-guide/cgroup-v2, cgroup-v1/memory).

A limit may sit on any level between the process's group and the root of what is mounted; the one that leaves least
is what counts. In a container the path in /proc/self/cgroup may be the host's, and its directory not exist here: then
the mount itself is the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trionet.ops.doctor.facts import UNLIMITED, Cgroup

__all__ = ["contents", "read_cgroup"]


class Mount(NamedTuple):
    """A mounted hierarchy: the directory, the part of the hierarchy that is seen there, and the version."""

    point: Path
    root: str
    version: int


def contents(path: Path) -> str | None:
    """The text of a file, or None if it cannot be read, for whatever reason."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_cgroup(root: Path, process: str) -> Cgroup:
    """The limits that hold for a process (``self`` or a number); `root` is where /proc and /sys are."""
    lines = (contents(root / "proc" / process / "cgroup") or "").splitlines()
    paths = {
        controller: line.split(":", 2)[2]
        for line in lines
        if line.count(":") >= 2
        for controller in _of(line)
    }
    mounts = _mounts(root, process)
    memory_max, memory_used, memory_at = None, 0, ""
    least = UNLIMITED
    for directory, version in _levels(mounts, paths, "memory"):
        limit, used = _memory(directory, version)
        if limit is not None and limit - used < least:
            least = limit - used
            memory_max, memory_used = limit, used
            memory_at = "/" + str(directory.relative_to(root))
    pids_max, pids_used, least = None, 0, UNLIMITED
    for directory, _ in _levels(mounts, paths, "pids"):
        limit, used = _number(directory / "pids.max"), _number(directory / "pids.current") or 0
        if limit is not None and limit - used < least:
            least = limit - used
            pids_max, pids_used = limit, used
    quotas = [_quota(directory, version) for directory, version in _levels(mounts, paths, "cpu")]
    return Cgroup(
        version=mounts["memory"].version if "memory" in mounts else 2 if "" in mounts else None,
        memory_max=memory_max,
        memory_used=memory_used,
        memory_at=memory_at,
        pids_max=pids_max,
        pids_used=pids_used,
        cpus=min((quota for quota in quotas if quota is not None), default=None),
    )


def _of(line: str) -> list[str]:
    """The controllers of a line of /proc/PID/cgroup; of version 2 there is one, without a name."""
    return line.split(":", 2)[1].split(",")


def _mounts(root: Path, process: str) -> dict[str, Mount]:
    """Where each controller is mounted (proc_pid_mountinfo(5)); "" is the one tree of version 2."""
    found: dict[str, Mount] = {}
    for line in (contents(root / "proc" / process / "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        point = root / fields[4].lstrip("/")
        if kind[0] == "cgroup2":
            found[""] = Mount(point, fields[3], 2)
        else:
            for option in kind[2].split(","):
                found[option] = Mount(point, fields[3], 1)
    return found


def _levels(mounts: dict[str, Mount], paths: dict[str, str], controller: str) -> Iterator[tuple[Path, int]]:
    """Every directory from the process's group up to the mount, with the version."""
    name = controller if controller in mounts else ""
    if name not in mounts:
        return
    mount, path = mounts[name], paths.get(name, "/")
    inside = path.removeprefix(mount.root.rstrip("/")) if path.startswith(mount.root) else "/"
    parts = [part for part in inside.split("/") if part not in {"", ".."}]
    for length in range(len(parts), -1, -1):
        directory = mount.point.joinpath(*parts[:length])
        if directory.is_dir():
            yield directory, mount.version


def _number(path: Path) -> int | None:
    text = (contents(path) or "").strip()
    value = int(text) if text.isdecimal() else None
    return None if value is None or value >= UNLIMITED else value


def _memory(directory: Path, version: int) -> tuple[int | None, int]:
    """Limit and use, the page cache that can be dropped at once left out (as Kubernetes counts it)."""
    limit, used, cache = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    maximum = _number(directory / limit)
    if maximum is None:
        return None, 0
    statistics = dict(
        line.split(" ", 1) for line in (contents(directory / "memory.stat") or "").splitlines() if " " in line
    )
    droppable = statistics.get(cache, "0").strip()
    busy = (_number(directory / used) or 0) - (int(droppable) if droppable.isdecimal() else 0)
    return maximum, max(0, busy)


def _quota(directory: Path, version: int) -> float | None:
    """Processors' worth of time that the group may use."""
    if version == 2:
        parts = (contents(directory / "cpu.max") or "").split()
        quota, period = (parts[0], parts[1]) if len(parts) == 2 else ("max", "1")
    else:
        quota = (contents(directory / "cpu.cfs_quota_us") or "").strip()
        period = (contents(directory / "cpu.cfs_period_us") or "").strip()
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", or -1: none
    return int(quota) / int(period)
