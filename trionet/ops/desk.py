"""The admin process of a server with several workers: it asks them, and shows the operator's pages.

A child of the supervisor, which tells it over their socket pair who works and in what state. The workers connect to its
Unix socket. When it fails the server goes on, and a new one takes the same sockets.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Sequence
from typing import Any

import trio

from trionet.ops import admin
from trionet.ops.control import Fleet
from trionet.ops.settings import ServeSettings

__all__ = ["run_desk"]

log = logging.getLogger("trionet.ops")


def run_desk(
    settings: ServeSettings, life: socket.socket, control: socket.socket, admin_socks: Sequence[socket.socket]
) -> int:
    """Serve the pages until the supervisor has gone, or SIGTERM; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    trio.run(_serve, settings, life, control, [sock.detach() for sock in admin_socks])
    return 0


async def _serve(
    settings: ServeSettings, life: socket.socket, control: socket.socket, fds: list[int]
) -> None:
    fleet = Fleet()
    condition = admin.Condition("starting")
    control.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(control))
    async with admin.open_admin(fleet, condition, fds, debug=settings.debug), trio.open_nursery() as nursery:

        async def until_told() -> None:
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(until_told)
        nursery.start_soon(_heed, life, condition, nursery.cancel_scope)
        await trio.serve_listeners(fleet.serve, [listener])


async def _heed(life: socket.socket, condition: admin.Condition, scope: trio.CancelScope) -> None:
    """What the supervisor says; its end is ours."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(life))
    buffer = b""
    while data := await stream.receive_some():
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            condition.state, condition.workers = message["state"], message["workers"]
    scope.cancel()
