"""Fetch the facts from /proc, /sys, /etc and getrlimit(2). What cannot be read is left out, and no error."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from trionet.errors import ConfigurationError
from trionet.ops.doctor.cgroups import contents, read_cgroup
from trionet.ops.doctor.facts import SYSCTLS, UNLIMITED, Facts, PythonBuild
from trionet.ops.limits import descriptor_limit

__all__ = ["python_build", "read_facts"]

#: capabilities(7): may raise hard limits.
CAP_SYS_RESOURCE = 24


def read_facts(
    root: str | Path = "/",
    *,
    pid: int | None = None,
    system: str | None = None,
    limits: Callable[[], tuple[int, int] | None] = descriptor_limit,
) -> Facts:
    """Read what there is below `root`; `pid`: the limits and the control group of that process instead of this one's.

    A service has limits of its own, which a shell on the same machine does not see; hence `pid`. `limits` answers
    where /proc does not. Raises `ConfigurationError` if there is no process `pid`.
    """
    root = Path(root)
    process = "self" if pid is None else str(pid)
    proc = root / "proc"
    if pid is not None and not (proc / process).is_dir():
        raise ConfigurationError(f"pid is {pid}; there is no such process")
    status = _fields(contents(proc / process / "status"))
    capabilities = status.get("CapEff")
    resource = _limits(contents(proc / process / "limits"))
    sysctls, refused = _sysctls(proc / "sys")
    scaling = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return Facts(
        system=system or platform.system(),
        release=(contents(proc / "sys/kernel/osrelease") or platform.release()).strip(),
        page_size=os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096,
        nofile=resource.get("Max open files") or limits(),
        nproc=resource.get("Max processes", (None,))[0],
        sysctls=sysctls,
        refused=refused,
        files=_files(root),
        memory=_memory(contents(proc / "meminfo")),
        cgroup=read_cgroup(root, process),
        tasks=_tasks(contents(proc / "loadavg")),
        cpus=_processors(root, status),
        governor=_line(scaling / "scaling_governor"),
        driver=_line(scaling / "scaling_driver"),
        may_raise=None if capabilities is None else bool(int(capabilities, 16) >> CAP_SYS_RESOURCE & 1),
        container=_container(root, process),
        pid=pid,
        python=python_build(),
    )


def python_build() -> PythonBuild:
    """What speaks for or against the Python that runs this."""
    from trionet.net.poller import BACKENDS
    from trionet.wire.masking import apply_mask, apply_mask_py

    configured = sysconfig.get_config_var("CONFIG_ARGS")
    gil = getattr(sys, "_is_gil_enabled", None)
    return PythonBuild(
        version=platform.python_version(),
        implementation=platform.python_implementation(),
        debug=bool(sysconfig.get_config_var("Py_DEBUG")),
        optimized=None if configured is None else "--enable-optimizations" in configured,
        gil=True if gil is None else bool(gil()),
        backend=next(iter(BACKENDS)),
        mask_in_c=apply_mask is not apply_mask_py,
        isal=importlib.util.find_spec("isal") is not None,
    )


def _line(path: Path) -> str | None:
    text = contents(path)
    return None if text is None else text.strip()


def _fields(text: str | None) -> dict[str, str]:
    """Lines of the form ``Name: value``."""
    pairs = (line.partition(":") for line in (text or "").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _memory(text: str | None) -> dict[str, int]:
    values = {name: value.removesuffix(" kB") for name, value in _fields(text).items()}
    return {name: int(value) * 1024 for name, value in values.items() if value.isdecimal()}


def _limits(text: str | None) -> dict[str, tuple[int, int]]:
    """Soft and hard limits of /proc/PID/limits; its first three columns have fixed widths (26, 21, 21)."""
    found = {}
    for line in (text or "").splitlines()[1:]:
        soft, hard = (
            UNLIMITED if word == "unlimited" else int(word) if word.isdecimal() else None
            for word in (line[26:47].strip(), line[47:68].strip())
        )
        if soft is not None and hard is not None:
            found[line[:26].strip()] = (soft, hard)
    return found


def _sysctls(folder: Path) -> tuple[dict[str, str], frozenset[str]]:
    found, refused = {}, []
    for name in SYSCTLS:
        # nf_conntrack and file-max have no dots in the names of their files, so this is the whole rule.
        path = folder / name.replace(".", "/")
        text = contents(path)
        if text is not None:
            found[name] = " ".join(text.split())
        elif path.exists():
            refused.append(name)
    return found, frozenset(refused)


def _files(root: Path) -> dict[str, tuple[str, str]]:
    """What the files of sysctl.d(5) set at boot: later names win, and /etc/sysctl.conf is read last (sysctl(8))."""
    found = {}
    by_name: dict[str, Path] = {}
    for folder in ("usr/lib/sysctl.d", "run/sysctl.d", "etc/sysctl.d"):
        by_name |= {path.name: path for path in _conf(root / folder)}
    for path in [*(by_name[name] for name in sorted(by_name)), root / "etc/sysctl.conf"]:
        for line in (contents(path) or "").splitlines():
            name, equals, value = line.strip().removeprefix("-").partition("=")
            if equals and not name.startswith(("#", ";")):
                key = name.strip().replace("/", ".")
                found[key] = (" ".join(value.split()), "/" + str(path.relative_to(root)))
    return found


def _conf(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.glob("*.conf")
    except OSError:  # pragma: no cover - a folder that may not be listed
        return


def _tasks(text: str | None) -> int | None:
    """All threads of the machine: the number behind the slash in /proc/loadavg (proc_loadavg(5))."""
    words = (text or "").split()
    total = words[3].partition("/")[2] if len(words) > 3 else ""
    return int(total) if total.isdecimal() else None


def _processors(root: Path, status: dict[str, str]) -> int:
    """Processors that are switched on and that the process may use (proc_pid_status(5))."""
    allowed = _range(status.get("Cpus_allowed_list"))
    online = _range(_line(root / "sys/devices/system/cpu/online"))
    if allowed and online:
        return len(allowed & online) or 1
    return len(allowed or online) or os.cpu_count() or 1


def _range(text: str | None) -> set[int]:
    """A list as ``0-3,8``."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _container(root: Path, process: str) -> str | None:
    """The kind of container this is in, as far as it shows; None if nothing does."""
    named = (contents(root / "run/systemd/container") or "").strip()
    groups = contents(root / "proc" / process / "cgroup") or ""
    marks = (
        (bool(named), named),
        ((root / "run/.containerenv").exists(), "podman"),
        ("kubepods" in groups or (root / "var/run/secrets/kubernetes.io").exists(), "kubernetes"),
        ((root / ".dockerenv").exists() or "/docker" in groups, "docker"),
        ("/lxc" in groups, "lxc"),
    )
    return next((name for found, name in marks if found), None)
