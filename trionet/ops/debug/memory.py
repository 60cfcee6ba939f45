"""What one connection takes: an estimate, from the sizes of its own Python objects."""

from __future__ import annotations

from sys import getsizeof
from typing import Any, Final

from trionet.net.connection import Connection

__all__ = ["estimate", "held", "partial"]

_PLACE: Final = 8  # in the engine's table


def held(connection: Connection) -> int:
    """Bytes of input that was read and waits for the handler."""
    rare = connection._rare
    return rare.held_size if rare is not None else 0


def partial(connection: Connection) -> int:
    """Bytes of a message or a request of which only a part came."""
    own: Any = connection._input
    if own is None:
        return 0
    if isinstance(own, bytes | bytearray):
        return len(own)
    count = getattr(own, "held", None)
    if callable(count):
        return int(count())
    raw = getattr(own, "raw", None) or getattr(own, "data", None)
    return len(raw) if isinstance(raw, bytes | bytearray) else 0


def estimate(connection: Connection) -> int:
    """Bytes of Python objects: the connection, what it keeps and queues, its handler's frames.

    Not in it: the kernel's buffers (some 4 KB a socket), OpenSSL's and zlib's state, what the application's objects
    refer to. Queued messages that go to many are counted at each.
    """
    size = getsizeof(connection) + _PLACE
    out, rare, own = connection._out, connection._rare, connection._input
    if out is None and rare is None and own is None and not hasattr(connection, "_coroutine"):
        return size
    if own is not None:
        size += getsizeof(own) + (0 if isinstance(own, bytes | bytearray) else partial(connection))
    if out is not None:
        size += out.size + getsizeof(out) + getsizeof(out.frames)
    if rare is not None:
        size += getsizeof(rare) + getsizeof(vars(rare)) + rare.held_size
    session = getattr(connection, "_session", None)
    if session is not None:
        size += getsizeof(session)
    awaited = getattr(connection, "_coroutine", None)
    for _ in range(100):
        if awaited is None:
            break
        size += getsizeof(awaited)  # of a coroutine: with its frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return size
