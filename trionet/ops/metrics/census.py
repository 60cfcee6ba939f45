"""How many connections there are in which state, and what is queued for them: found by looking at each of them.

Counting that as it happens would cost every connection a word and every change an addition. A look at 15,000 takes
some 6 ms; so it is taken once in two seconds at most, in slices between which others run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

import trio

from trionet.net.connection import Connection
from trionet.server import Server

__all__ = ["Census", "protocols"]

_SLICE: Final = 1000  # descriptors between two checkpoints: 0.4 ms
_MAX_AGE: Final = 2.0
_protocol, _state, _out = attrgetter("protocol"), attrgetter("_state"), attrgetter("_out")
_NAMES: Final = ("opening", "open", "closing", "lingering", "closed", "closed", "closed", "closed")


class Census:
    """Of one server. What it found last: `states` by protocol name and state, `queued` bytes, for `waiting` peers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._taken = -_MAX_AGE
        self._busy = False
        self.states: dict[tuple[str, str], int] = {}
        self.queued = 0
        self.waiting = 0

    async def refresh(self) -> None:
        """Look again, unless that was done within the last two seconds. Must run in the server's own Trio thread."""
        now = trio.current_time()
        if self._busy or now - self._taken < _MAX_AGE:
            return
        self._busy = True
        try:
            for _ in self._look():
                await trio.lowlevel.checkpoint()
        finally:
            self._busy = False
        self._taken = trio.current_time()

    def look(self) -> None:
        """Look now, in one go."""
        for _ in self._look():
            pass

    def _look(self) -> Iterator[None]:
        engine = self._server.engine
        tally: Counter[tuple[Any, int]] = Counter()
        queued = waiting = 0
        table = engine.table
        for start in range(0, len(table), _SLICE):
            if start:
                yield
            # In C, as far as possible: there may be very many.
            jobs = [job for job in table[start : start + _SLICE] if isinstance(job, Connection)]
            tally.update(zip(map(_protocol, jobs), map(_state, jobs), strict=True))
            queues = list(filter(None, map(_out, jobs)))
            queued += sum([out.size for out in queues])
            waiting += len(queues)
        states = {(protocol.name, "open"): 0 for protocol in protocols(self._server)}
        for (protocol, state), count in tally.items():
            name = _name(protocol), _NAMES[state & 7]
            states[name] = states.get(name, 0) + count
        if engine.streams:
            states["stream", "detached"] = len(engine.streams)
        self.states, self.queued, self.waiting = states, queued, waiting


def _name(protocol: Any) -> str:
    """What metrics call it: a TLS handshake and a PROXY header belong to the protocol behind them."""
    while not hasattr(protocol, "name") or hasattr(protocol, "served"):
        protocol = getattr(protocol, "protocol", None) or getattr(protocol, "served", None)
        if protocol is None:
            return "other"
    return str(protocol.name)


def protocols(server: Server) -> list[Any]:
    """All protocols that connections of `server` may speak."""
    found: dict[int, Any] = {}
    waiting = [listener.endpoint.protocol for listener in server.listeners]
    while waiting:
        protocol = waiting.pop()
        if id(protocol) not in found and hasattr(protocol, "counts"):
            found[id(protocol)] = protocol
            waiting += protocol.others()
    return list(found.values())
