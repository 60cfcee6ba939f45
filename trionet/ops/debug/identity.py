"""Which connection is meant: names that outlive neither the connection nor a descriptor that is used again."""

from __future__ import annotations

import os
from typing import Any

from trionet.net.connection import Connection
from trionet.net.engine import Engine
from trionet.net.stream import DetachedStream

__all__ = ["fd_of", "find", "identity", "label"]


def fd_of(connection: Connection | DetachedStream) -> int:
    """Its descriptor; -1 when it is closed."""
    return connection.fd if isinstance(connection, Connection) else connection.socket.fileno()


def identity(connection: Connection | DetachedStream) -> str | None:
    """Descriptor and inode (what ``ss -e`` shows as ino), as in ``17-84211``; None when it is closed.

    The kernel counts inodes of sockets up, so a connection that gets the same descriptor later has another name, which
    costs an idle connection nothing. Where sockets have no inode the object's address stands in.
    """
    fd = fd_of(connection)
    if fd < 0:
        return None
    try:
        inode = os.fstat(fd).st_ino
    except OSError:
        return None
    return f"{fd}-{inode or id(connection)}"


def find(engine: Engine, name: str) -> Connection | DetachedStream | None:
    """The connection that has this name now."""
    number = name.partition("-")[0]
    if not number.isdecimal() or len(number) > 10:
        return None
    fd = int(number)
    found: Any = engine.table[fd] if fd < len(engine.table) else None
    if not isinstance(found, Connection):
        found = next((stream for stream in engine.streams if fd_of(stream) == fd), None)
    return found if found is not None and identity(found) == name else None


def label(protocol: Any) -> str:
    """A protocol's name and, where it has one, its handler's."""
    name = type(protocol).__name__
    title = getattr(protocol, "title", None)
    return f"{name} {title.removeprefix('trionet handler ')}" if isinstance(title, str) else name
