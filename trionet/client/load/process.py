"""The load processes: ``python -m trionet.client.load.process FD…``, started by the coordinator.

One descriptor for each process, an end of a socket pair. The libraries are imported once; then this process forks, so
that the others share them (a Python process with Trio is 24 MB, a thousand idle connections are 0.3), and waits. How
each of them ended goes to standard output, one JSON line.

A process ends when it has said its result, or when the coordinator is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

import trio

from trionet.client.load.lines import Lines
from trionet.client.load.options import LoadOptions
from trionet.client.load.plan import Share
from trionet.client.load.worker import Worker

__all__ = ["main"]


def main(descriptors: list[int]) -> int:
    """Fork, and wait for the end of all."""
    # They may be sent to all of a group: the coordinator tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # or the collector's marks would unshare the pages
    children = {}
    for number, fd in enumerate(descriptors):
        pid = os.fork()
        if pid == 0:
            for other in descriptors[number + 1 :]:
                os.close(other)
            os._exit(_work(fd))
        os.close(fd)
        children[pid] = number
    while children:
        pid, status = os.wait()
        number = children.pop(pid)
        sys.stdout.write(json.dumps({"ended": number, "code": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()
    return 0


def _work(fd: int) -> int:
    """What a child does; its exit code."""
    try:
        sock = socket.socket(fileno=fd)
        setup = _setup(sock)
        if setup is None:
            return 0
        share = Share(**setup["share"])
        if share.cpu is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [share.cpu])
        _raise_limit()
        gc.disable()  # nothing cyclic is made for a connection; the worker collects after the ramp
        worker = Worker(
            LoadOptions(**setup["options"]),
            share,
            processes=setup["processes"],
            address=setup["address"],
            leave=lambda: os._exit(
                0
            ),  # the kernel closes what is left at once; object by object takes seconds
        )

        async def work() -> None:
            lines = Lines(sock)
            with contextlib.suppress(trio.BrokenResourceError):  # the coordinator is gone
                await worker.run(lines)
            lines.close()

        trio.run(work)
    except BaseException:  # noqa: BLE001 - this is the outermost frame of a process
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        return 1
    return 0


def _setup(sock: socket.socket) -> dict[str, Any] | None:
    """The first line, read before Trio runs; None: the coordinator is gone."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            return None
        line += byte
    document: dict[str, Any] = json.loads(line)
    for name in ("cpu", "source", "subprotocol", "header"):
        document["options"][name] = tuple(document["options"][name])
    document["share"]["sources"] = tuple(document["share"]["sources"])
    return document


def _raise_limit() -> None:
    """As many descriptors as we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
