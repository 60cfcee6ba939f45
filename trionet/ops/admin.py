"""The operator's side of a server, on an address of its own: health, readiness, workers, metrics, a look inside.

It has a gate, a pool and connections of its own, so that it answers while the server is full. It is served beside
the server in the same process, or, with several workers, in a process of its own that asks the workers. What it
shows is not secret to whoever may connect: bind it to the loopback address or to a Unix socket.

GET /healthz    200 "ok" as long as this process answers at all
GET /readyz     200 "ready"; 503 and why, while starting, draining or overloaded
GET /workers    JSON: each worker's process, state, age, connections; and the local broker's, if there may be one
GET /metrics    see `trionet.ops.metrics`
/debug/         see `trionet.ops.debug`; only if switched on
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from trionet.net.listener import Endpoint
from trionet.ops import metrics
from trionet.ops.control import Agent, Asking
from trionet.protocols.http import HttpProtocol
from trionet.protocols.responders import HttpRequest, Responder, Response
from trionet.server import Server, open_server

__all__ = ["Condition", "open_admin", "routes", "summary"]


@attrs.define
class Condition:
    """What the supervisor (or the one process) says of the whole: its `state`, and a row for each worker.

    `state`: "starting", "serving", "stopping". Rows: number, pid, generation, state, since (by the monotonic clock, in
    seconds; shown as an age), restarts. `workers` None: nobody says; those that can be asked. `broker`: the process of
    the local broker (path, pid, state, restarts), if there may be one.
    """

    state: str = "serving"
    workers: list[dict[str, Any]] | None = None
    broker: dict[str, Any] | None = None


def summary(server: Server) -> dict[str, Any]:
    """A worker's answer to "summary"; what readiness is judged by."""
    engine = server.engine
    return {
        "connections": engine.connections,
        "opening": engine.opening,
        "opened": engine.opened,
        "draining": server.draining,
        "overloaded": server.overloaded,
        "lag": engine.lag,
        "max_connections": server.gate.max_connections,
    }


def install(agent: Agent) -> None:
    """Give a worker the commands this module asks for."""
    agent.commands["summary"] = lambda: summary(agent.server)


def routes(asking: Asking, condition: Condition) -> dict[str, Responder]:
    """The pages that are always there."""

    async def healthz(_: HttpRequest) -> Response:
        return _plain(200, "ok")

    async def readyz(_: HttpRequest) -> Response:
        if condition.state != "serving":
            return _plain(503, condition.state)
        why = await _reasons(asking)
        if None in why:
            return _plain(200, "ready")
        return _plain(503, ", ".join(sorted(filter(None, why))) or "no worker answers")

    async def workers(_: HttpRequest) -> Response:
        answers = await asking.ask("summary", timeout=1.0)
        table = condition.workers
        if table is None:
            table = [
                {"number": each.number, "pid": each.pid, "generation": each.generation, "state": "serving"}
                for each in asking.workers.values()
            ]
        rows = []
        for each in table:
            row = dict(each)
            if "since" in row:
                row["age"] = round(max(0.0, time.monotonic() - row.pop("since")), 1)
            answer = answers.get(row["pid"])
            rows.append({**row, **(answer if isinstance(answer, dict) else {})})
        value: dict[str, Any] = {"state": condition.state, "workers": rows}
        if condition.broker is not None:
            value["broker"] = condition.broker
        return Response.json(value, headers=[("Cache-Control", "no-store")])

    return {"/healthz": healthz, "/readyz": readyz, "/workers": workers}


async def _reasons(asking: Asking) -> set[str | None]:
    """Why workers are not ready; with None as soon as one is: one that hangs does not make a balancer wait."""
    found: set[str | None] = set()
    async with trio.open_nursery() as nursery:

        async def one(pid: int) -> None:
            answer = (await asking.ask("summary", worker=pid, timeout=1.0)).get(pid)
            if isinstance(answer, dict):
                found.add(_why_not(answer))
                if None in found:
                    nursery.cancel_scope.cancel()

        for pid in list(asking.workers):
            nursery.start_soon(one, pid)
    return found


def _why_not(answer: dict[str, Any]) -> str | None:
    if answer["draining"]:
        return "draining"
    return f"overloaded: {answer['overloaded']}" if answer["overloaded"] else None


def _plain(status: int, word: str) -> Response:
    return Response.text(word + "\n", status, [("Cache-Control", "no-store")])


@asynccontextmanager
async def open_admin(
    asking: Asking,
    condition: Condition,
    fds: Sequence[int],
    *,
    debug: bool = False,
    more: Sequence[Callable[[Asking], Any]] = (),
    keep: Path | None = None,
) -> AsyncIterator[Server]:
    """Serve the admin pages on bound sockets for the length of the block. `keep`: see `metrics.routes`."""
    pages = routes(asking, condition) | metrics.routes(
        asking, rows=lambda: condition.workers or (), keep=keep
    )
    if debug:
        from trionet.ops import debug as inside

        pages |= inside.routes(asking)
    for make in more:
        pages |= make(asking)
    protocol = HttpProtocol(pages, max_body=2**20)
    endpoints = [Endpoint(protocol=protocol, fd=fd) for fd in fds]
    async with open_server(endpoints, pool_size=16, max_connections=256) as server:
        yield server
