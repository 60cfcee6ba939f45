"""One connection: all that is known about it, its end, and a word to all."""

from __future__ import annotations

import itertools
import reprlib
from typing import Any, Final

from trionet.errors import ConnectionClosed
from trionet.net.connection import BUSY, FLUSHING, LINGERING, Connection
from trionet.net.stream import DetachedStream
from trionet.ops.control import ControlError
from trionet.ops.debug.connections import address, row
from trionet.ops.debug.identity import fd_of, find
from trionet.ops.debug.kernel import kernel_facts
from trionet.ops.debug.slices import Slices
from trionet.ops.debug.stacks import places, show, worker_of
from trionet.protocols.channel import PreparedMessage, WebSocket, broadcast
from trionet.server import Server

__all__ = ["describe", "kick", "say"]

_AT_ONCE: Final = 64  # peers written to before the clock is looked at
_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlevel = 3


def _found(server: Server, name: str) -> Connection | DetachedStream:
    connection = find(server.engine, name)
    if connection is None:
        raise ControlError(f"there is no connection {name}: it has ended")
    return connection


async def describe(server: Server, id: str) -> dict[str, Any]:  # noqa: A002 - the word of the JSON
    """Everything known about one connection. Raises `ControlError` when it has ended."""
    connection = _found(server, id)
    facts = row(connection) or {}
    facts["local"] = address(connection.local)
    facts["kernel"] = kernel_facts(fd_of(connection))
    if isinstance(connection, DetachedStream):
        return facts
    facts["class"] = type(connection).__name__
    try:
        facts["data"] = _REPR.repr(connection.data) if connection.data is not None else None
    except Exception as error:  # noqa: BLE001 - the application's `__repr__`
        facts["data"] = f"({type(connection.data).__name__}: its repr raised {type(error).__name__})"
    if connection.closed is not None:
        facts["closed"] = str(connection.closed)[:400]
    engine = connection.engine
    if connection._due:
        facts["next_look"] = round((connection._due - engine.tick) * engine.wheel.resolution, 2)
    session = connection.tls
    if session is not None:
        cipher = session.cipher()
        facts["tls_version"], facts["tls_cipher"] = session.version(), cipher[0] if cipher else None
    codec = getattr(connection, "codec", None)
    if codec is not None:
        facts["compression"] = str(codec)[:200]
    protocol = connection.protocol
    facts["limits"] = {
        "high_water": protocol.high_water,
        "hard_limit": protocol.hard_limit,
        "read_ahead": protocol.read_ahead,
        "write_timeout": protocol.write_timeout,
    }
    facts["stack"] = await show(await _stack(server, connection))
    return facts


async def _stack(server: Server, connection: Connection) -> tuple[Any, ...]:
    """Where its handler waits; empty when there is none."""
    if not connection._state & BUSY:
        return places(getattr(connection, "_coroutine", None))
    pool, slices = server.engine.pool, Slices()
    for parked in list(pool.parked):
        if parked.job is connection:
            return places(parked.coroutine)
    nursery = pool._nursery
    for task in list(nursery.child_tasks) if nursery is not None else ():
        worker = worker_of(task)
        if worker is not None and worker.job is connection:
            return places(task.coro)
        await slices.breathe()
    return ()


def kick(
    server: Server,
    id: str,  # noqa: A002 - the word of the JSON
    *,
    code: int = 1008,
    reason: str = "",
    reset: bool = False,
) -> dict[str, Any]:
    """Close one connection: a WebSocket with `code` and `reason`; `reset`: at once, by a TCP reset.

    A handler that waits for something else than a message is not cancelled; its next send or receive raises
    `ConnectionClosed`. Raises `ControlError` when the connection has ended, or for a code that may not be sent.
    """
    connection = _found(server, id)
    if isinstance(connection, DetachedStream):
        connection.close_now()
        return {"id": id, "done": "closed: its handler gets trio.ClosedResourceError"}
    closed = ConnectionClosed(1006, reason or "closed by an operator", "us")
    if reset:
        connection.reset(closed)
        done = "reset"
    elif isinstance(connection, WebSocket) and connection.is_open:
        try:
            connection.close_nowait(code, reason)
        except ValueError as error:
            raise ControlError(str(error)) from error
        done = f"told {code}; it has {connection.protocol.close_timeout:g} s to answer"
    elif connection._state & 7 >= LINGERING or connection._state & FLUSHING or not connection.is_open:
        connection.abort(closed)
        done = "closed at once: it was not open"
    else:
        connection.finish(closed)
        done = "closes as soon as it has taken what is queued"
    if connection._state & BUSY and not connection.is_gone:
        done += "; its handler waits on"
    return {"id": id, "done": done}


async def say(server: Server, text: str) -> dict[str, Any]:
    """Send `text` to every open WebSocket. A peer that is slow gets what its protocol's `SlowConsumer` policy says."""
    slices = Slices()
    message = PreparedMessage(text)
    everybody = server.websockets
    sent = seen = 0
    while chunk := list(itertools.islice(everybody, _AT_ONCE)):
        seen += len(chunk)
        sent += broadcast(chunk, message)
        await slices.breathe()
    return {"sent": sent, "left_out": seen - sent, "seconds": slices.seconds}
