"""What is known of the machine: plain values, None where nothing could be read. No I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

__all__ = ["HOST_ONLY", "SYSCTLS", "UNLIMITED", "Cgroup", "Facts", "PythonBuild"]

#: Stands for "unlimited". The kernel says it as 2**63 - 1, that less a page, or in words.
UNLIMITED: Final = 2**60

#: The kernel's settings that are read, by the name sysctl(8) gives them.
SYSCTLS: Final = (
    "fs.epoll.max_user_watches",
    "fs.file-max",
    "fs.file-nr",
    "fs.nr_open",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_abort_on_overflow",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_sack",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_tw_recycle",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_window_scaling",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
)

#: One value for the whole machine, which the kernel shows only outside of network namespaces (as of Linux 6.18).
HOST_ONLY: Final = frozenset({"net.ipv4.tcp_mem", "net.ipv4.tcp_max_orphans"})


@attrs.frozen(kw_only=True)
class Cgroup:
    """The tightest limits on the way from this process's control group to the root. Memory in bytes."""

    version: int | None = None
    memory_max: int | None = None
    memory_used: int = 0  # without the page cache that can be dropped
    memory_at: str = ""  # the directory that sets it
    pids_max: int | None = None
    pids_used: int = 0
    cpus: float | None = None  # quota: processors' worth of time


@attrs.frozen(kw_only=True)
class PythonBuild:
    """The Python that asks; the server is assumed to run on the same one."""

    version: str = ""
    implementation: str = "CPython"
    debug: bool = False
    optimized: bool | None = None  # profile guided (``--enable-optimizations``); None: unknown
    gil: bool = True
    backend: str = "epoll"
    mask_in_c: bool = True
    isal: bool = True


@attrs.frozen(kw_only=True)
class Facts:
    """What was read. A name that is missing in `sysctls` could not be read; `reason` says why."""

    system: str = "Linux"
    release: str = ""
    page_size: int = 4096
    nofile: tuple[int, int] | None = None  # RLIMIT_NOFILE, soft and hard
    nproc: int | None = None  # RLIMIT_NPROC, soft
    sysctls: Mapping[str, str] = {}
    refused: frozenset[str] = frozenset()  # those that exist, but not for this user
    files: Mapping[str, tuple[str, str]] = {}  # sysctl.d: name -> (value, path of the last file that sets it)
    memory: Mapping[str, int] = {}  # /proc/meminfo, in bytes
    cgroup: Cgroup = Cgroup()
    tasks: int | None = None  # threads of the machine
    cpus: int = 1
    governor: str | None = None
    driver: str | None = None
    may_raise: bool | None = None  # CAP_SYS_RESOURCE
    container: str | None = None
    pid: int | None = None  # whose limits these are; None: of this process
    python: PythonBuild = PythonBuild()

    def number(self, name: str, column: int = 0) -> int | None:
        """A number of a sysctl with one or several; None where it could not be read."""
        try:
            return int(self.sysctls[name].split()[column])
        except (KeyError, IndexError, ValueError):
            return None

    def reason(self, name: str) -> str:
        """Why a sysctl is unknown."""
        if name in self.refused:
            return "not readable for this user"
        if not self.sysctls:
            return "there is no /proc/sys to read"
        if name in HOST_ONLY and "net.ipv4.tcp_rmem" in self.sysctls:
            return "shown only in the host's network namespace: look there"
        return "not there: an older kernel, or hidden by the container"

    def available(self) -> int | None:
        """Bytes that can still be had: of the machine and of the control group, whichever is less."""
        machine = self.memory.get("MemAvailable")
        if self.cgroup.memory_max is None:
            return machine
        group = max(0, self.cgroup.memory_max - self.cgroup.memory_used)
        return group if machine is None else min(machine, group)

    def processors(self) -> float:
        """Processors' worth of time: those allowed, less if a quota says so."""
        return min(self.cpus, self.cgroup.cpus) if self.cgroup.cpus else self.cpus
