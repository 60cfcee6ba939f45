"""`/metrics`: for the admin server of one process or of many (`install`, `routes`), or in your own (`Metrics`)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import trio

from trionet.errors import ConfigurationError
from trionet.ops.control import Agent, Asking, Local, Worker
from trionet.ops.metrics.collect import Collector, Extra
from trionet.ops.metrics.exposition import OPENMETRICS_TYPE, TEXT_TYPE, render, wants_openmetrics
from trionet.ops.metrics.model import Family, Snapshot
from trionet.ops.metrics.totals import Totals
from trionet.protocols.responders import HttpRequest, Responder, Response
from trionet.server import Server

__all__ = ["Metrics", "install", "routes"]

_MAX_AGE: Final = 0.5
_DEADLINE: Final = 1.0  # seconds for all workers; Prometheus waits 10 by default


class Metrics:
    """A responder that shows a server's metrics: ``HttpProtocol({"/metrics": Metrics(server)})``.

    `extra`: called with the server, returns families of your own. `stalls`: a `StallWatch`. `max_age`: seconds for
    which an answer is given again, so that it does not matter how many scrape, or how often.
    """

    def __init__(
        self, server: Server, extra: Extra | None = None, stalls: Any = None, *, max_age: float = _MAX_AGE
    ) -> None:
        self._collector = Collector(server, extra, stalls)
        self._answers = _Answers(self._families, max_age)

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer a scrape."""
        return await self._answers.to(request)

    async def _families(self) -> tuple[list[Family], float]:
        snapshot = await self._collector.collect()
        return snapshot.families, snapshot.started


def install(agent: Agent) -> None:
    """Have a worker answer the command "metrics" with its `Snapshot`."""
    collector = Collector(agent.server)

    async def metrics() -> dict[str, Any]:
        collector.own, collector.stalls = agent.families, agent.stalls  # set after this was called
        return (await collector.collect()).to_json()

    agent.commands["metrics"] = metrics


def routes(asking: Asking, *, max_age: float = _MAX_AGE) -> dict[str, Responder]:
    """The page for an admin server: the sums over all workers. `max_age`: as for `Metrics`."""
    return {"GET /metrics": _Answers(_Fleet(asking).families, max_age).to}


class _Fleet:
    """Asks all workers, with a deadline; of those that do not answer, shows what they said last."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._alone = isinstance(asking, Local)
        self._totals = Totals()
        if not self._alone:
            fleet: Any = asking
            fleet.noted["metrics"] = self._noted
            fleet.gone.append(self._gone)

    def _noted(self, worker: Worker, snapshot: dict[str, Any]) -> None:  # noqa: ARG002
        self._totals.update(Snapshot.from_json(snapshot))

    def _gone(self, worker: Worker) -> None:
        self._totals.gone(worker.pid)

    async def families(self) -> tuple[list[Family], float]:
        """The sums, and when the oldest of their counters began."""
        workers = dict(self._asking.workers)
        answers = await self._asking.ask("metrics", timeout=_DEADLINE)
        up = Family("trionet_worker_up", "gauge", "1 if the worker answered this scrape.", across="each")
        names = {} if self._alone else _labels(workers.values())
        for pid, worker in workers.items():
            answer = answers.get(pid)
            up.add(int(isinstance(answer, dict)), worker=names.get(pid, str(worker.number)))
            if isinstance(answer, dict):
                self._totals.update(Snapshot.from_json(answer))
                if pid not in self._asking.workers:  # it left meanwhile, and nobody will say so again
                    self._totals.gone(pid)
        if self._alone:
            names = dict.fromkeys(workers, "")
        return [*self._totals.families(names), up], self._totals.started()


def _labels(workers: Iterable[Worker]) -> dict[int, str]:
    """What the label `worker` says: the number; of one that is being replaced, with its generation."""
    newest: dict[int, Worker] = {}
    every = list(workers)
    for worker in every:
        other = newest.get(worker.number)
        if other is None or worker.generation > other.generation:
            newest[worker.number] = worker
    return {
        worker.pid: str(worker.number)
        if newest[worker.number] is worker
        else f"{worker.number}.{worker.generation}"
        for worker in every
    }


class _Answers:
    """Text made of what `source` returns, kept for `max_age` seconds in each of the two formats."""

    def __init__(self, source: Callable[[], Awaitable[tuple[list[Family], float]]], max_age: float) -> None:
        self._source = source
        self._max_age = max_age
        self._kept: dict[bool, tuple[float, Response]] = {}

    async def to(self, request: HttpRequest) -> Response:
        """Answer a scrape."""
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        made, response = self._kept.get(openmetrics, (-math.inf, None))
        if response is None or trio.current_time() - made >= self._max_age:
            families, created = await self._source()
            try:
                body = render(families, openmetrics=openmetrics, created=created)
            except ConfigurationError as error:  # a family of the application's own
                return Response.text(f"{error}\n", 500)
            content_type = OPENMETRICS_TYPE if openmetrics else TEXT_TYPE
            response = Response(200, body, [("Cache-Control", "no-store")], content_type=content_type)
            self._kept[openmetrics] = trio.current_time(), response
        return response
