"""What machine this is, and what it allows: for the plan, and for whoever reads the result later."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import trio

from trionet.client.load.plan import Machine
from trionet.client.load.result import Environment

__all__ = ["describe", "look", "pss", "resolve"]

_SYSCTLS = (
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_tw_reuse",
    "fs.file-max",
    "fs.nr_open",
)
_PORTS = (49152, 65535)  # where nothing else is known: IANA's ephemeral ports


def look() -> Machine:
    """What limits us."""
    first, last = _port_range()
    return Machine(nofile=_nofile(), ports=last - first + 1, cpus=_cpus())


def describe(processes: int) -> Environment:
    """The environment block of a result, without what is known at the end only."""
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "trio": trio.__version__,
        "machine": platform.machine(),
        "cpus": len(_cpus()),
        "memory": _memory(),
        "nofile": _nofile(),
        "limits": {name: value for name in _SYSCTLS if (value := _sysctl(name)) is not None},
        "processes": processes,
        "cpu_seconds": 0.0,
        "pss_bytes": None,
    }


def _nofile() -> int:
    """Descriptors that a process can have: the processes raise the soft limit to the hard one."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return min(hard, 2**20) if hard != resource.RLIM_INFINITY else 2**20


def _cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _sysctl(name: str) -> str | None:
    try:
        return " ".join(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").split())
    except OSError:
        return None


def _port_range() -> tuple[int, int]:
    text = _sysctl("net.ipv4.ip_local_port_range")
    if text is None:
        return _PORTS
    first, last = map(int, text.split())
    return first, last


def resolve(host: str, port: int) -> str:
    """The first address of `host`; raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def pss(process: int | str = "self") -> int | None:
    """Bytes of memory of a process (this one), where what is shared is shared out (proc(5)); None where unknown."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None
