"""The admin process of a server with several workers: it asks them, and shows the operator's pages.

A child of the supervisor, which tells it over their socket pair who works and in what state. The workers connect to its
Unix socket. When it fails the server goes on, and a new one takes the same sockets.

It ends when that line does, and ignores SIGTERM: a service manager may send it to all processes at once, and how the
workers drain is worth looking at.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from trionet.ops import admin
from trionet.ops.control import Fleet
from trionet.ops.settings import ServeSettings

__all__ = ["run_desk"]

log = logging.getLogger("trionet.ops")

_PATIENCE = 2.0  # seconds to wait for who is to connect


def run_desk(
    settings: ServeSettings, life: socket.socket, control: socket.socket, admin_socks: Sequence[socket.socket]
) -> int:
    """Serve the pages until the supervisor has gone; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(control.getsockname()).parent
    trio.run(_serve, settings, life, control, [sock.detach() for sock in admin_socks])
    shutil.rmtree(folder, ignore_errors=True)  # the supervisor may have been killed
    return 0


async def _serve(
    settings: ServeSettings, life: socket.socket, control: socket.socket, fds: list[int]
) -> None:
    fleet = Fleet()
    condition = admin.Condition("", [])
    keep = Path(control.getsockname()).parent / "counters"  # lives as long as the supervisor
    control.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(control))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_heed, life, condition, nursery.cancel_scope)
        nursery.start_soon(trio.serve_listeners, fleet.serve, [listener])
        # Whoever asks meanwhile waits in the queue: an answer of a process that knows nothing yet would be a wrong one.
        with trio.move_on_after(_PATIENCE):
            while not _knows(fleet, condition):  # noqa: ASYNC110 - once, at the start
                await trio.sleep(0.02)
        async with admin.open_admin(fleet, condition, fds, debug=settings.debug, keep=keep):
            await trio.sleep_forever()


def _knows(fleet: Fleet, condition: admin.Condition) -> bool:
    """Whether the supervisor has said who serves, and those have connected."""
    serving = [row["pid"] for row in condition.workers or () if row["state"] == "serving"]
    return bool(condition.state) and all(pid in fleet.workers for pid in serving)


async def _heed(life: socket.socket, condition: admin.Condition, scope: trio.CancelScope) -> None:
    """What the supervisor says; its end is ours."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(life))
    buffer = b""
    while data := await stream.receive_some():
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            condition.state, condition.workers = message["state"], message["workers"]
            condition.broker = message["broker"]
    scope.cancel()
