"""What so many connections ask for. The costs were measured; each says where."""

from __future__ import annotations

import math
from typing import Final, Literal

import attrs

from trionet.errors import ConfigurationError
from trionet.ops.doctor.facts import Facts
from trionet.ops.limits import DEFAULT_RESERVE

__all__ = ["HANDLERS", "SOCKET", "Need", "Plan", "estimate", "roomy"]

Handler = Literal["events", "straight", "task"]

#: Bytes of kernel memory of a TCP socket with its file and its place in an epoll set, idle. A pair whose ends are both
#: on this machine took 8,061 B (200,000 and 1,000,000 pairs, slab counters, Linux 6.18, x86-64).
SOCKET: Final = 4030

#: Bytes of user memory (PSS) of an idle connection by kind of handler: event methods, a parked coroutine, a Trio task
#: (15,000 and 10,000 connections, CPython 3.11; the README says how).
HANDLERS: Final[dict[Handler, int]] = {"events": 163, "straight": 641, "task": 20_800}

#: What TLS 1.3 adds to each (3,000 connections: 14,500 B all told with event methods).
TLS: Final = 14_337

#: Bytes of a connection of `trionet.open_client` with a `WebSocketHandler`.
CLIENT: Final = 170

#: Bytes (PSS) of a process that serves and holds nothing yet. Forked workers share a part of it.
PROCESS: Final = 28 * 2**20

#: Threads a process may come to have: Trio's default limit for `trio.to_thread`, and itself.
THREADS: Final = 41

#: Seconds of one core for a Ping and its Pong (3,000 idle connections, a Ping every 2 s, CPU time of the server).
PING: Final = 25e-6


@attrs.frozen(kw_only=True)
class Plan:
    """What is wished for. `workers` None: as many as the processors, or as the limit on open files makes necessary.

    `local_clients`: the clients (or a proxy in front) are on this machine too, so that each connection is two sockets.
    `reserve`: descriptors of a worker besides its connections. `ping_interval`: seconds; None: no keepalive.
    """

    connections: int
    workers: int | None = None
    handler: Handler = "events"
    tls: bool = False
    local_clients: bool = False
    port: int = 8080
    ping_interval: float | None = 20.0
    reserve: int = DEFAULT_RESERVE

    def __attrs_post_init__(self) -> None:
        """Refuse what is no plan."""
        for name in ("connections", "workers"):
            value: int | None = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is {value!r}; it must be 1 or greater")
        if self.handler not in HANDLERS:
            raise ConfigurationError(f"handler is {self.handler!r}; it must be one of {', '.join(HANDLERS)}")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port!r}; it must be 0 to 65535")
        if self.reserve < 0:
            raise ConfigurationError(f"reserve is {self.reserve!r}; it must be 0 or greater")
        if self.ping_interval is not None and self.ping_interval <= 0:
            raise ConfigurationError(f"ping_interval is {self.ping_interval!r}; it must be greater than 0")


@attrs.frozen(kw_only=True)
class Need:
    """What a plan comes to on a machine. Memory in bytes."""

    plan: Plan
    workers: int
    busiest: int  # connections of the worker that happens to get most
    descriptors: int  # of that worker
    sockets: int  # on this machine
    processes: int
    kernel: int
    user: int
    fixed: int

    @property
    def memory(self) -> int:
        """All of it, without what is on its way in buffers."""
        return self.kernel + self.user + self.fixed

    @property
    def side(self) -> int:
        """How many ends of a connection are on this machine."""
        return 2 if self.plan.local_clients else 1


def estimate(facts: Facts, plan: Plan) -> Need:
    """Work the plan out; what is left open in it is chosen for this machine."""
    workers = plan.workers or _workers(facts, plan)
    sides = 2 if plan.local_clients else 1
    processes = workers * sides + 2  # the supervisor, and the child for metrics and control
    each = HANDLERS[plan.handler] + TLS * plan.tls
    if plan.local_clients:
        each += CLIENT + TLS * plan.tls
    return Need(
        plan=plan,
        workers=workers,
        busiest=busiest(plan.connections, workers),
        descriptors=busiest(plan.connections, workers) + plan.reserve,
        sockets=plan.connections * sides,
        processes=processes,
        kernel=plan.connections * sides * SOCKET,
        user=plan.connections * each,
        fixed=processes * PROCESS,
    )


def busiest(connections: int, workers: int) -> int:
    """Connections of the fullest worker: SO_REUSEPORT spreads by a hash, so allow four standard deviations.

    Measured: 1,000,000 over 66 processes gave 14,853 to 15,389, within two of them.
    """
    mean = math.ceil(connections / workers)
    return mean if workers == 1 else min(connections, mean + math.ceil(4 * math.sqrt(mean)))


def workers_that_do(facts: Facts, plan: Plan) -> int | None:
    """The least number of workers that the hard limit on open files allows; None if no number does."""
    return None if facts.nofile is None else _workers_within(facts.nofile[1], plan)


def _workers_within(limit: int, plan: Plan) -> int | None:
    room = limit - plan.reserve
    if room < 1:
        return None
    workers = math.ceil(plan.connections / room)
    while busiest(plan.connections, workers) > room:
        workers += max(1, workers // 100)
        if workers > plan.connections:
            return None
    return workers


def sensible_workers(facts: Facts) -> int:
    """How many processes are still a reasonable answer to a low limit on open files."""
    return max(64, 16 * facts.cpus)


def _workers(facts: Facts, plan: Plan) -> int:
    needed = workers_that_do(facts, plan)
    at_least = min(facts.cpus, plan.connections)
    if needed is None or needed > sensible_workers(facts):
        # The limit has to be raised anyway: then for as few as the processors need, but not above what can be set.
        ceiling = facts.number("fs.nr_open")
        needed = _workers_within(ceiling, plan) if ceiling else None
    return max(needed or 1, at_least)


def roomy(number: float) -> int:
    """A round number with a tenth to spare: two digits and zeros, so that nobody wonders about the rest."""
    wanted = max(1, math.ceil(number * 1.1))
    step: int = 10 ** max(0, len(str(wanted)) - 2)
    return math.ceil(wanted / step) * step
