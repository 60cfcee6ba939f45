"""The connections of a server, counted, chosen and sorted, in slices that let others run."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from trionet.net.connection import _FLAGS, _NAMES, _STATE, BUSY, Connection
from trionet.net.describe import address_text
from trionet.net.engine import Engine
from trionet.net.stream import DetachedStream
from trionet.ops.control import ControlError
from trionet.ops.debug.identity import fd_of, identity, label
from trionet.ops.debug.memory import estimate, held, partial
from trionet.ops.debug.slices import Slices

__all__ = ["SORTS", "address", "age_of", "query", "row"]

_STREAM: Final = "stream"  # the state of a connection that was given to a task
_MOST: Final = 1000  # rows
_TEXT: Final = 200  # characters of what peers and applications chose

STATES: Final = (*_NAMES[:5], _STREAM)
FLAGS: Final = tuple(name for _, name in _FLAGS)


def address(name: Any) -> str:
    """An address as text; of a Unix socket, its path, which a client has not got."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    return address_text(name) if isinstance(name, tuple) else name or "unix"


def state_of(connection: Connection) -> str:
    """The name of its state."""
    return _NAMES[connection._state & _STATE]


def flags_of(connection: Connection) -> list[str]:
    """What is set beside the state. One bit means another thing in a connection that lingers; it is left out."""
    state = connection._state
    return [name for flag, name in _FLAGS if state & flag and not (name == "pinged" and state & _STATE >= 3)]


def handler_of(connection: Connection) -> str | None:
    """What its handler does: "waits" (suspended), "receives" (in a task of its own), "parked" (without a task)."""
    session = getattr(connection, "_session", None)
    if session is not None and session.receiver is not None:
        return "receives"
    if connection._state & BUSY:
        return "waits"
    if getattr(connection, "_coroutine", None) is not None and not connection.engine.runs(connection):
        return "parked"
    return None


def age_of(connection: Connection | DetachedStream) -> float | None:
    """Seconds since it was accepted, if that was noted."""
    engine: Engine = connection.engine if isinstance(connection, Connection) else connection._engine
    age = engine.age(fd_of(connection))
    return round(age, 2) if age is not None else None


def stalled_of(connection: Connection) -> float:
    """Seconds for which the peer has taken nothing of what is queued."""
    out = connection._out
    if out is None:
        return 0.0
    return round((connection.engine.tick - out.since) * connection.engine.wheel.resolution, 2)


def silent_of(connection: Connection) -> float:
    """Seconds since the last input."""
    return round((connection.engine.tick - connection._seen) * connection.engine.wheel.resolution, 2)


SORTS: Final[dict[str, Callable[[Connection], float]]] = {
    "queued": lambda connection: connection.queued,
    "held": lambda connection: held(connection) + partial(connection),
    "memory": estimate,
    "silent": silent_of,
    "stalled": stalled_of,
    "age": lambda connection: age_of(connection) or 0.0,
    "fd": lambda connection: connection.fd,
}


def row(connection: Connection | DetachedStream) -> dict[str, Any] | None:
    """One connection as a row of the table; None when it has ended."""
    name = identity(connection)
    if name is None:
        return None
    shown: dict[str, Any] = {"id": name, "fd": fd_of(connection), "peer": address(connection.peer)[:_TEXT]}
    shown["age"] = age_of(connection)
    if isinstance(connection, DetachedStream):
        shown |= {"protocol": "DetachedStream", "state": _STREAM, "held": len(connection.unread)}
        return shown
    out, rare = connection._out, connection._rare
    client = getattr(connection, "_client", None)
    key = getattr(getattr(connection.protocol, "registry", None), "_keys", {}).get(connection)
    return shown | {
        "protocol": label(connection.protocol),
        "state": state_of(connection),
        "flags": flags_of(connection),
        "handler": handler_of(connection),
        "silent": silent_of(connection),
        "queued": connection.queued,
        "frames": len(out) if out is not None else 0,
        "stalled": stalled_of(connection),
        "held": held(connection),
        "partial": partial(connection),
        "memory": estimate(connection),
        "tls": connection.tls is not None,
        "client": address((client.host, client.port or 0))[:_TEXT]
        if client is not None and client.host
        else None,
        "subprotocol": rare.subprotocol if rare is not None else None,
        "key": str(key)[:_TEXT] if key is not None else None,
    }


class _Filter:
    """Which connections are wanted."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.state = wanted.get("state")
        self.flag = wanted.get("flag")
        self.protocol = str(wanted.get("protocol") or "").lower()
        self.peer = str(wanted.get("peer") or "")
        self.min_queued = wanted.get("min_queued") or 0
        self.min_silent = wanted.get("min_silent") or 0
        if self.state and self.state not in STATES:
            raise ControlError(f"state is {self.state!r}; it must be one of {', '.join(STATES)}")
        if self.flag and self.flag not in FLAGS:
            raise ControlError(f"flag is {self.flag!r}; it must be one of {', '.join(FLAGS)}")

    def takes(self, connection: Connection) -> bool:
        """Whether this one is; what costs a system call is asked last."""
        return (
            (not self.state or state_of(connection) == self.state)
            and (not self.flag or self.flag in flags_of(connection))
            and connection.queued >= self.min_queued
            and (not self.min_silent or silent_of(connection) >= self.min_silent)
            and (not self.protocol or self.protocol in label(connection.protocol).lower())
            and (not self.peer or address(connection.peer).startswith(self.peer))
        )

    def takes_stream(self, stream: DetachedStream) -> bool:
        """The same for one that was given away."""
        return (
            self.state in {None, "", _STREAM}
            and not (self.flag or self.min_queued or self.min_silent)
            and self.protocol in "detachedstream"
            and (not self.peer or address(stream.peer).startswith(self.peer))
        )


async def query(engine: Engine, *, sort: str = "queued", limit: int = 50, **wanted: Any) -> dict[str, Any]:
    """Look at all connections: counts of all, and the `limit` first by `sort`, largest first, of those wanted.

    `wanted`: state, flag, protocol (a part of its name), peer (what its address begins with), min_queued (bytes),
    min_silent (seconds). Others run meanwhile, so the counts are of no single moment.
    """
    if sort not in SORTS:
        raise ControlError(f"sort is {sort!r}; it must be one of {', '.join(SORTS)}")
    value_of, wants = SORTS[sort], _Filter(wanted)
    limit = max(0, min(limit, _MOST))
    slices, count = Slices(), _Count()
    best: list[tuple[float, int, Any]] = []
    order = itertools.count(0, -1)  # of equal ones, the first are kept
    for connection in engine:
        await slices.breathe()
        if connection.fd < 0:
            continue
        count.add(connection)
        if wants.takes(connection):
            count.matched += 1
            _keep(best, (value_of(connection), next(order), connection), limit)
        del connection
    for stream in list(engine.streams):
        await slices.breathe()
        count.states[_STREAM] += 1
        if wants.takes_stream(stream):
            count.matched += 1
            _keep(best, (0, next(order), stream), limit)
    rows = []
    for _, _, found in sorted(best, key=lambda entry: entry[:2], reverse=True):
        await slices.breathe()
        shown = row(found)
        if shown is not None:
            rows.append(shown)
    return {"summary": count.as_json(), "sort": sort, "rows": rows, "seconds": slices.seconds}


def _keep(best: list[tuple[float, int, Any]], entry: tuple[float, int, Any], limit: int) -> None:
    if len(best) < limit:
        heapq.heappush(best, entry)
    elif limit and entry[:2] > best[0][:2]:
        heapq.heapreplace(best, entry)


class _Count:
    """Sums over all connections, whatever is wanted."""

    def __init__(self) -> None:
        self.matched = self.queued = self.held = self.memory = 0
        self.states: Counter[str] = Counter()
        self.handlers: Counter[str] = Counter()
        self._protocols: Counter[Any] = Counter()
        self._words: Counter[int] = Counter()

    def add(self, connection: Connection) -> None:
        self._words[connection._state] += 1
        self._protocols[connection.protocol] += 1
        self.queued += connection.queued
        self.held += held(connection) + partial(connection)
        self.memory += estimate(connection)
        doing = handler_of(connection)
        if doing is not None:
            self.handlers[doing] += 1

    def as_json(self) -> dict[str, Any]:
        flags: Counter[str] = Counter()
        protocols: Counter[str] = Counter()
        for word, number in self._words.items():
            self.states[_NAMES[word & _STATE]] += number
            for flag, name in _FLAGS:
                if word & flag:
                    flags[name] += number
        for protocol, number in self._protocols.items():
            protocols[label(protocol)] += number
        return {
            "connections": sum(self.states.values()),
            "matched": self.matched,
            "queued": self.queued,
            "held": self.held,
            "memory": self.memory,
            "states": dict(self.states),
            "flags": dict(flags),
            "protocols": dict(protocols.most_common(50)),
            "handlers": dict(self.handlers),
        }
