"""How loaded a server is: what admission policies look at. Readings cost nothing unless somebody asks for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from trionet.errors import ConfigurationError
from trionet.net.pool import PlainJob

if TYPE_CHECKING:
    from trionet.net.engine import Engine

__all__ = ["Cgroup", "Load", "Readings", "Resident", "give_back_memory"]

_CGROUPS: Final = "/sys/fs/cgroup"
_UNLIMITED: Final = 2**60  # version 1 writes some huge number where there is no limit


class Load(Protocol):
    """What an `AdmissionPolicy` is given to look at. Times are seconds."""

    @property
    def now(self) -> float:
        """The time on Trio's clock."""

    @property
    def connections(self) -> int:
        """Connections there are, half-open ones included."""

    @property
    def opening(self) -> int:
        """Of them, those that are not greeted yet."""

    @property
    def lag(self) -> float:
        """By how much the last timer tick came late."""

    @property
    def pool_wait(self) -> float:
        """How long a job that is queued now waits for its turn."""

    @property
    def resident(self) -> int:
        """Bytes of physical memory of this process, not older than a second."""

    @property
    def cgroup_share(self) -> float:
        """The part of the control group's memory limit that is in use, not older than a second."""


class Probe(PlainJob):
    """A job that finds out how long jobs wait.

    A timestamp on every job would cost every message; one job a sampling interval costs nothing that can be measured,
    and while it waits, its age is known.
    """

    def __init__(self) -> None:
        self._sent = 0.0
        self._waiting = False
        self._waited = 0.0

    def waited(self) -> float:
        """Seconds that the last one waited; or the one that still does, if that is longer."""
        return max(self._waited, perf_counter() - self._sent) if self._waiting else self._waited

    def send(self, engine: Engine) -> None:
        """Queue it, unless it waits already."""
        if not self._waiting:
            self._waiting = True
            self._sent = perf_counter()
            engine.pool.submit(self)

    async def run(self) -> None:
        self._waiting = False
        self._waited = perf_counter() - self._sent


class Resident:
    """Bytes of physical memory of this process: proc_pid_statm(5).

    The file stays open: to open it again would fail for want of descriptors just when somebody wants to know.
    """

    def __init__(self, path: str = "/proc/self/statm") -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"memory in use cannot be known here: {path}: {error.strerror}"
            ) from error
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> int:
        """The bytes now."""
        return int(os.pread(self._fd, 128, 0).split()[1]) * self._page

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)


class Cgroup:
    """Memory of the control group with the smallest limit that this process is in: cgroups(7), versions 2 and 1.

    Memory that the kernel takes back for the asking (inactive pages of files) is not counted as in use, as container
    managers do it.
    """

    def __init__(self, root: str = _CGROUPS, membership: str = "/proc/self/cgroup") -> None:
        found = [limit for folder in _folders(root, membership) if (limit := _limit(folder)) is not None]
        if not found:
            raise ConfigurationError(
                "no control group limits the memory of this process: use a number of bytes"
            )
        self.limit, usage, stat = min(found)
        self._usage = os.open(usage, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._stat = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._usage)
            raise

    def read(self) -> float:
        """The part of the limit that is in use, 0 to 1."""
        used = int(os.pread(self._usage, 64, 0))
        inactive = {b"inactive_file": 0, b"total_inactive_file": 0}
        for line in os.pread(self._stat, 16384, 0).splitlines():
            name, _, value = line.partition(b" ")
            if name in inactive:
                inactive[name] = int(value)
        # Version 1 has both, the first for this group only, the second with those below it.
        return max(0, used - max(inactive.values())) / self.limit

    def close(self) -> None:
        """Release the files."""
        os.close(self._usage)
        os.close(self._stat)


def _folders(root: str, membership: str) -> list[str]:
    """The folders of the control groups this process is in, up to the root, that may limit its memory."""
    try:
        lines = Path(membership).read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops = [root, f"{root}/unified"]
        elif "memory" in controllers.split(","):
            tops = [f"{root}/memory"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        # Inside a container the path may be that of the host: then only the root of what is mounted is there.
        folders += ["/".join([top, *parts[:depth]]) for top in tops for depth in range(len(parts) + 1)]
    return folders


def _limit(folder: str) -> tuple[int, str, str] | None:
    """The limit of a control group, and the files with its usage; None where there is none."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            text = Path(folder, limit).read_text("ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text), f"{folder}/{usage}", f"{folder}/memory.stat"
    return None


def give_back_memory() -> None:
    """Have the C library give to the system what nobody uses: malloc_trim(3), GNU only.

    It keeps freed memory otherwise, as long as something above it is in use. Takes 60 ms for a GiB.
    """
    try:
        import ctypes

        trim = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError, TypeError):  # another C library
        return
    trim(0)


class Readings:
    """The `Load` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._probe: Probe | None = None
        self._gauges: dict[type[Resident | Cgroup], tuple[float, float, Resident | Cgroup]] = {}
        self.now = 0.0  # set by whoever asks the policies

    @property
    def connections(self) -> int:
        """See `Load`."""
        return self._engine.connections

    @property
    def opening(self) -> int:
        """See `Load`."""
        return self._engine.opening

    @property
    def lag(self) -> float:
        """See `Load`."""
        return self._engine.lag

    @property
    def pool_wait(self) -> float:
        """See `Load`. The first question begins the measurement."""
        if self._probe is None:
            self._probe = Probe()
        return self._probe.waited()

    @property
    def resident(self) -> int:
        """See `Load`."""
        return int(self._gauge(Resident))

    @property
    def cgroup_share(self) -> float:
        """See `Load`."""
        return self._gauge(Cgroup)

    def _gauge(self, kind: type[Resident | Cgroup]) -> float:
        if kind not in self._gauges:  # kept before it is read: a read that fails must not lose its files
            self._gauges[kind] = -sys.maxsize, 0.0, kind()
        read_at, value, gauge = self._gauges[kind]
        if self.now - read_at >= 1:
            value = gauge.read()
            self._gauges[kind] = self.now, value, gauge
        return value

    def refresh(self) -> None:
        """Begin the measurements that take a while; once in a sampling interval."""
        if self._probe is not None:
            self._probe.send(self._engine)

    def close(self) -> None:
        """Release files."""
        for _, _, gauge in self._gauges.values():
            gauge.close()
        self._gauges.clear()
