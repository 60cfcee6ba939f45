"""`/metrics`: for the admin server of one process or of many (`install`, `routes`), or in your own (`Metrics`)."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from trionet.errors import ConfigurationError
from trionet.ops.control import Agent, Asking, Local, Worker
from trionet.ops.metrics.collect import Collector, Extra
from trionet.ops.metrics.exposition import OPENMETRICS_TYPE, TEXT_TYPE, render, wants_openmetrics
from trionet.ops.metrics.keep import Keep
from trionet.ops.metrics.model import Family, Snapshot
from trionet.ops.metrics.totals import Totals
from trionet.protocols.responders import HttpRequest, Responder, Response
from trionet.server import Server

__all__ = ["Metrics", "install", "routes"]

log = logging.getLogger("trionet.ops")

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
    """Have a worker answer "metrics" with its `Snapshot`; ``look=False``: without a look at all connections."""
    collector = Collector(agent.server)

    async def metrics(*, look: bool = True) -> dict[str, Any]:
        collector.own, collector.stalls = agent.families, agent.stalls  # set after this was called
        return (await collector.collect() if look else collector.snapshot()).to_json()

    agent.commands["metrics"] = metrics


def routes(
    asking: Asking,
    *,
    max_age: float = _MAX_AGE,
    rows: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    keep: Path | None = None,
) -> dict[str, Responder]:
    """The page for an admin server: the sums over all workers. `max_age`: as for `Metrics`.

    `rows`: called for what the supervisor says of its workers: number, pid, generation, state, restarts. `keep`: a file
    for the counters of those that are gone, read now, so that they survive this process.
    """
    return {"GET /metrics": _Answers(_Fleet(asking, rows, keep).families, max_age).to}


class _Fleet:
    """Asks all workers, with a deadline; of those that do not answer, shows what they said last."""

    def __init__(
        self, asking: Asking, rows: Callable[[], Sequence[Mapping[str, Any]]], keep: Path | None
    ) -> None:
        self._asking = asking
        self._rows = rows
        self._alone = isinstance(asking, Local)
        self._totals = Totals()
        self._keep = Keep(self._totals, keep) if keep is not None else None
        if not self._alone:
            fleet: Any = asking
            fleet.noted["metrics"] = self._noted
            fleet.gone.append(self._gone)

    def _noted(self, worker: Worker, snapshot: dict[str, Any]) -> None:  # noqa: ARG002
        self._heard(snapshot)

    def _heard(self, document: Any) -> bool:
        """Take what a worker says. False: it says nothing that can be read."""
        if not isinstance(document, dict):
            return False
        try:
            self._totals.update(Snapshot.from_json(document))
        except ValueError as error:
            log.warning("metrics of a worker cannot be read: %s", error)
            return False
        return True

    def _gone(self, worker: Worker) -> None:
        self._totals.gone(worker.pid)
        if self._keep is not None:
            self._keep.save()

    async def families(self) -> tuple[list[Family], float]:
        """The sums, and when the oldest of their counters began."""
        rows = list(self._rows())
        workers = dict(self._asking.workers)
        for row in rows:  # one whose line is broken is down, too
            if row["state"] == "serving" and row["pid"] not in workers:
                workers[row["pid"]] = Worker(row["pid"], row["number"], row["generation"])
        answers = await self._asking.ask("metrics", timeout=_DEADLINE)
        up = Family("trionet_worker_up", "gauge", "1 if the worker answered this scrape.", across="each")
        names = {} if self._alone else _labels(workers.values())
        for pid, worker in workers.items():
            answer = answers.get(pid)
            heard = self._heard(answer)
            up.add(int(heard), worker=names.get(pid, str(worker.number)))
            if heard and pid not in self._asking.workers:  # it left meanwhile, and nobody will say so again
                self._gone(worker)
        if self._alone:
            names = dict.fromkeys(workers, "")
        return [*self._totals.families(names), up, *_of_workers(rows)], self._totals.started()


def _of_workers(rows: Iterable[Mapping[str, Any]]) -> Iterable[Family]:
    """What the supervisor knows."""
    states = Family("trionet_workers", "gauge", "Workers, by the state they are in.")
    restarts = Family("trionet_worker_restarts", "counter", "How often a worker ended without being told to.")
    generations = Family(
        "trionet_worker_generation", "gauge", "Which process of its number it is.", across="each"
    )
    count = Counter(str(row["state"]) for row in rows)
    for state, number in sorted(count.items()):
        states.add(number, state=state)
    newest = {row["number"]: row for row in sorted(rows, key=lambda row: row["generation"])}
    for number, row in sorted(newest.items()):
        restarts.add(row["restarts"], worker=str(number))
        generations.add(row["generation"], worker=str(number))
    return states, restarts, generations


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
    """Text made of what `source` returns, kept for `max_age` seconds. Who asks meanwhile waits for the same answer."""

    def __init__(self, source: Callable[[], Awaitable[tuple[list[Family], float]]], max_age: float) -> None:
        self._source = source
        self._max_age = max_age
        self._asking = trio.Lock()
        self._taken = -math.inf
        self._families: list[Family] = []
        self._created = 0.0
        self._responses: dict[bool, Response] = {}

    async def to(self, request: HttpRequest) -> Response:
        """Answer a scrape."""
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        async with self._asking:
            if trio.current_time() - self._taken >= self._max_age:
                self._families, self._created = await self._source()
                self._taken = trio.current_time()
                self._responses.clear()
        response = self._responses.get(openmetrics)
        if response is None:
            try:
                body = render(self._families, openmetrics=openmetrics, created=self._created)
            except ConfigurationError as error:  # of another version, say
                return Response.text(f"{error}\n", 500)
            content_type = OPENMETRICS_TYPE if openmetrics else TEXT_TYPE
            response = Response(200, body, [("Cache-Control", "no-store")], content_type=content_type)
            self._responses[openmetrics] = response
        return response
