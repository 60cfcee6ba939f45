"""The Unix sockets of a local broker: who may listen there, who may connect, and what has come."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Final

import trio

from trionet.net.listener import Endpoint, bind_unix

__all__ = ["READ", "listen_local", "peer", "peer_may", "receive"]

READ: Final = 65536  # bytes at once


async def receive(sock: socket.socket) -> bytes:
    """What has come; nothing: it has gone."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with suppress(BlockingIOError):
            try:
                return sock.recv(READ)
            except ConnectionResetError:
                return b""


def peer(sock: socket.socket) -> tuple[int, int | None]:
    """Process and user at the other end; 0 and None where that cannot be told (SO_PEERCRED: Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):  # pragma: no cover - not on Linux
        return 0, None
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def peer_may(sock: socket.socket) -> bool:
    """Whether who is at the other end is of our user, or root. Where nobody knows, the file's mode has to do."""
    return peer(sock)[1] in {None, 0, os.geteuid()}


def listen_local(path: str) -> socket.socket:
    """Listen on `path`, for processes of our user only. Raises `OSError`, `ConfigurationError`."""
    # Until it listens nobody can connect, so there is no moment with another mode.
    sock = bind_unix(Endpoint(protocol=None, path=path, mode=0o600))
    try:
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    return sock
