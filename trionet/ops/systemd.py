"""systemd's two small protocols: sockets it has opened for us, and telling it how we are.

Sources: sd_listen_fds(3), sd_notify(3). Both are environment variables and a datagram; nothing of systemd is needed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["inherited_sockets", "notify", "reloading", "stopping", "watchdog_interval"]

_FIRST = 3  # SD_LISTEN_FDS_START


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """Names and descriptors of the sockets systemd has passed to this process; empty without any.

    The variables are taken out, so that children do not think they were meant. Names are those of
    ``FileDescriptorName=``, "unknown" without one.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for index in range(int(count)):
        fd = _FIRST + index
        os.set_inheritable(fd, False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        found.append((name, fd))
    return found


def notify(*lines: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Tell the service manager, as in ``notify("READY=1", "STATUS=4 workers")``. False when there is none."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a manager that does not listen must not stop us
            sock.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def reloading() -> tuple[str, str]:
    """What to `notify` when a reload begins; ``READY=1`` ends it (needed by ``Type=notify-reload``)."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping(grace: float) -> tuple[str, str, str]:
    """What to `notify` when it ends: within `grace` seconds, and some more for what an application does at its end."""
    return "STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int((grace + 10) * 1e6)}"


def watchdog_interval(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Seconds between two ``WATCHDOG=1`` (half of ``WatchdogSec=``); None when nobody waits for them."""
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2_000_000 or None
