"""The worker's side: what can be asked of a server, as commands of its `Agent`."""

from __future__ import annotations

import os
import platform
import sys
import time
import tracemalloc
from array import array
from typing import Any

import attrs
import trio

from trionet._version import __version__
from trionet.ops.control import Agent, ControlError
from trionet.ops.debug.connections import query
from trionet.ops.debug.heap import heap, process_memory, trace
from trionet.ops.debug.one import describe, kick, say
from trionet.ops.debug.profile import profile
from trionet.ops.debug.tasks import parked, tree
from trionet.ops.debug.timing import switch
from trionet.server import Server

__all__ = ["install"]


def install(agent: Agent) -> None:
    """Add the commands ``debug.…`` to `agent`. Opening times of connections are noted from now on."""
    commands = _Commands(agent.server)
    agent.commands |= {
        "debug.overview": commands.overview,
        "debug.tasks": commands.tasks,
        "debug.connections": commands.connections,
        "debug.connection": commands.connection,
        "debug.handlers": commands.handlers,
        "debug.timing": commands.timing,
        "debug.heap": heap,
        "debug.tracemalloc": trace,
        "debug.profile": profile,
        "debug.kick": commands.kick,
        "debug.broadcast": commands.broadcast,
    }


class _Commands:
    """All answers are JSON values of bounded size; what takes long gives way to others."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.began = time.time()
        engine = server.engine
        if engine.born is None:
            engine.born = array("I")

    async def overview(self) -> dict[str, Any]:
        """The process and its server in numbers: `Server.statistics`, memory, versions, what is switched on."""
        server = self.server
        statistics = attrs.asdict(server.statistics())
        return {
            "pid": os.getpid(),
            "time": round(time.time(), 3),
            "seconds": round(time.time() - self.began, 1),
            "listening": [listener.url for listener in server.listeners][:20],
            "cpu": round(time.process_time(), 3),
            "memory": await process_memory(),
            "max_connections": server.gate.max_connections,
            "statistics": statistics,
            "tracing": tracemalloc.is_tracing(),
            "timing": server.engine.pool.clock is not None,
            "versions": {
                "trionet": __version__,
                "trio": trio.__version__,
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "system": f"{platform.system()} {platform.release()}",
            },
            "command": " ".join(sys.argv)[:300],
        }

    async def tasks(self, limit: int = 200) -> dict[str, Any]:
        """All tasks as a tree, and the handlers that wait without a task."""
        limit = max(1, min(limit, 2000))
        document = await tree(limit)
        document["parked"] = await parked(self.server.engine, max(10, limit // 4))
        return document

    async def connections(self, **wanted: Any) -> dict[str, Any]:
        """See `trionet.ops.debug.connections.query`."""
        return await query(self.server.engine, **wanted)

    async def connection(self, id: str) -> dict[str, Any]:  # noqa: A002 - the word of the JSON
        """See `trionet.ops.debug.one.describe`."""
        return await describe(self.server, id)

    def handlers(self, limit: int = 50) -> dict[str, Any]:
        """What `timing` has measured so far."""
        clock = self.server.engine.pool.clock
        if clock is None:
            return {"on": False, "rows": []}
        return clock.as_json(max(1, min(limit, 200)))  # type: ignore[no-any-return]

    def timing(self, on: bool) -> dict[str, Any]:
        """Begin, or end, to measure the time that handlers take."""
        switch(self.server.engine.pool, on)
        return {"on": on}

    def kick(self, id: str, code: int = 1008, reason: str = "", reset: bool = False) -> dict[str, Any]:  # noqa: A002
        """See `trionet.ops.debug.one.kick`."""
        return kick(self.server, id, code=code, reason=reason, reset=reset)

    async def broadcast(self, text: str) -> dict[str, Any]:
        """See `trionet.ops.debug.one.say`."""
        if not isinstance(text, str):
            raise ControlError("text must be a string")
        return await say(self.server, text)
