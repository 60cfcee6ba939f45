"""A server's numbers as families: everything here is read, nothing is counted.

Names follow Prometheus' rules; a label never holds what a peer or a user chooses, so the number of series is bounded.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import trio

from trionet.net.counts import Counts
from trionet.ops.metrics.census import Census, protocols
from trionet.ops.metrics.model import Family, Snapshot, merge
from trionet.ops.metrics.own import Own
from trionet.ops.metrics.process import build_info, process_families, process_start
from trionet.protocols.websocket import WebSocketProtocol
from trionet.server import Server

__all__ = ["Collector", "collect"]

Extra: TypeAlias = Callable[[Server], Iterable[Family]]

_REASONS: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "timeout",
    413: "too_large",
    414: "too_large",
    426: "no_upgrade",
    429: "rate",
    431: "too_large",
    500: "failure",
    503: "unavailable",
}


class Collector:
    """Collects a server's metrics again and again; keeps a `Census`, so that this is cheap.

    `extra`: called with the server, returns families of the application's own. `stalls`: a `StallWatch`, for the time
    that the loop was busy.
    """

    def __init__(self, server: Server, extra: Extra | None = None, stalls: Any = None) -> None:
        self.server = server
        self.own = extra
        self.stalls = stalls
        self.census = Census(server)
        self._own = Own()

    async def collect(self) -> Snapshot:
        """A snapshot; connections by state are at most two seconds old. Lets others run while it counts those."""
        await self.census.refresh()
        return self.snapshot()

    def collect_now(self) -> Snapshot:
        """A snapshot, at once. May be called from another thread: what it sees may then be some microseconds apart."""
        self.census.look()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """A snapshot with what the census found last."""
        server = self.server
        families = [
            *_of_connections(self.census),
            *_of_all(protocols(server)),
            *_of_gate(server),
            *_of_pool(server),
            *_of_loop(server, self.stalls),
            build_info(),
            *process_families(),
        ]
        if self.own is not None:
            failures = _counter(
                "metrics_failures", "Mistakes in the application's own metrics; the log says which."
            )
            families.append(failures)
            families += self._own.ask(self.own, server, {family.name for family in families})
            failures.add(self._own.failures)
        return Snapshot(os.getpid(), process_start(), time.time(), families)


def collect(server: Server, extra: Extra | None = None) -> Snapshot:
    """A snapshot of a server, once. Looks at every connection: whoever does it often keeps a `Collector`."""
    return Collector(server, extra).collect_now()


def _counter(name: str, text: str, unit: str = "") -> Family:
    return Family(f"trionet_{name}", "counter", text, unit=unit)


def _gauge(name: str, text: str, value: float | None = None, **options: Any) -> Family:
    family = Family(f"trionet_{name}", "gauge", text, **options)
    return family if value is None else family.add(value)


# ------------------------------------------------------------- connections


def _of_connections(census: Census) -> Iterator[Family]:
    states = _gauge("connections", "Connections there are, by what they speak and the state they are in.")
    for (name, state), count in sorted(census.states.items()):
        states.add(count, protocol=name, state=state)
    yield states
    yield _gauge("send_queue_bytes", "Bytes queued for peers that read slowly.", census.queued, unit="bytes")
    yield _gauge("send_queue_connections", "Connections for which something is queued.", census.waiting)


def _of_all(found: Sequence[Any]) -> list[Family]:
    families = _of_protocols(found)
    if len({protocol.name for protocol in found}) < len(found):  # several of one name are one
        families = merge([("", families)])
    return families


def _of_protocols(found: Iterable[Any]) -> list[Family]:
    opened = _counter("connections_opened", "Connections that were greeted: the handshake succeeded.")
    closed = _counter(
        "connections_closed", "Connections that were open and have ended, by close code and by whom."
    )
    evicted = _counter("evictions", "Connections closed because of what their peer did not do, by reason.")
    keepalive = _counter("keepalive_timeouts", "Connections closed because a ping was not answered in time.")
    slow = _counter(
        "slow_consumers", "Times a peer read too slowly for what was sent to it, by what was done."
    )
    dropped = _counter("messages_dropped", "Messages and events that were dropped, by reason.")
    received = _counter("messages_received", "WebSocket messages received.")
    sent = _counter(
        "messages_sent", "WebSocket messages and Server-Sent Events that the kernel or the queue took."
    )
    bytes_in = _counter("received_bytes", "Bytes read, TLS taken off.", "bytes")
    bytes_out = _counter("sent_bytes", "Bytes written or queued, before TLS.", "bytes")
    failures = _counter("handler_failures", "Exceptions that handlers did not catch.")
    responses = _counter("http_responses", "Plain HTTP requests answered, by status.")
    handshakes = Family(
        "trionet_handshake_seconds",
        "histogram",
        "From accepting a connection to its being open, TLS included.",
        unit="seconds",
    )
    for protocol in found:
        name, counts = {"protocol": str(protocol.name)}, protocol.counts
        opened.add(counts.opened, **name)
        if counts.handshakes.count:
            handshakes.add(counts.handshakes, **name)
        ends: dict[tuple[str, str], int] = {}
        for (code, by), count in list(counts.closed.items()):
            key = _code(code), by
            ends[key] = ends.get(key, 0) + count
        for (label, by), count in ends.items():
            closed.add(count, **name, code=label, initiator=by)
        for reason, count in _evictions(counts):
            evicted.add(count, **name, reason=reason)
        keepalive.add(counts.keepalives_lost, **name)
        for action, count in _slow(protocol):
            slow.add(count, **name, action=action)
        lost = getattr(protocol, "messages_dropped", 0) + getattr(protocol, "events_dropped", 0)
        dropped.add(lost, reason="slow_consumer", **name)
        if isinstance(protocol, WebSocketProtocol):
            received.add(counts.received, **name)
            sent.add(counts.sent, **name)
        elif counts.sent_events:
            sent.add(counts.sent_events, **name)
        bytes_in.add(counts.received_bytes, **name)
        bytes_out.add(counts.sent_bytes, **name)
        failures.add(getattr(protocol, "handler_failures", 0), **name)
        for status, count in list(getattr(protocol, "responses", {}).items()):
            responses.add(count, **name, status=str(status))
    return [
        opened, closed, handshakes, received, sent, dropped, bytes_in, bytes_out, slow, evicted, keepalive,
        failures, responses,
    ]  # fmt: skip


def _code(code: int) -> str:
    """Peers may choose any code from 3000 to 4999: those are two labels, not two thousand."""
    if code == 0:
        return "detached"
    return str(code) if code < 3000 else f"{code // 1000}xxx"


def _evictions(counts: Counts) -> Iterator[tuple[str, int]]:
    yield "keepalive", counts.keepalives_lost
    yield "idle", counts.idle
    yield "expired", counts.expired
    yield "write_timeout", counts.stalled
    yield "overflow", counts.overflowed


def _slow(protocol: Any) -> Iterator[tuple[str, int]]:
    counts = protocol.counts
    yield "wait", counts.slow_waits
    yield "skip", counts.slow_skips
    policy = getattr(protocol, "slow_consumer", None)
    if policy is not None and policy.value != "wait":
        yield policy.value.replace(" ", "_"), counts.slow_overflows


# -------------------------------------------------------------- the gate


def _of_gate(server: Server) -> Iterator[Family]:
    gate, engine = server.gate, server.engine
    statistics = gate.statistics()
    yield _counter("connections_accepted", "Connections accepted.").add(statistics.accepted)
    rejected = _counter("connections_rejected", "Connections and requests refused, by reason.")
    for reason, count in sorted(_rejections(server, statistics).items()):
        rejected.add(count, reason=reason)
    yield rejected
    held = _counter("accept_held", "Looks at a listener that left everybody in the backlog, by reason.")
    for reason, count in statistics.held.items():
        held.add(count, reason=reason)
    for policy in statistics.policies:
        if policy.held:
            held.add(policy.held, reason=policy.name)
    yield held
    errors = _counter("accept_errors", "Errors of accept(2).")
    for number, count in list(gate.errnos.items()):
        errors.add(count, errno=errno.errorcode.get(number, str(number)))
    yield errors
    yield _gauge("connections_limit", "Connections that are accepted at most.", gate.max_connections)
    yield _gauge("connections_opening", "Connections that are not greeted yet.", engine.opening)
    yield _gauge("draining", "1 while the server is going away.", int(server.draining), across="each")
    overloaded = _gauge("overloaded", "1 while no new connection is served.", across="each")
    yield overloaded.add(int(server.overloaded is not None))
    yield _counter("overloads", "Times overload has begun.").add(statistics.overloads)
    queues = [found for each in server.listeners if (found := _queue_of(each)) is not None]
    if queues:
        waiting, limits = zip(*queues, strict=True)
        yield _gauge(
            "listen_queue", "Connections in the kernel's queues, waiting to be accepted.", sum(waiting)
        )
        yield _gauge("listen_queue_limit", "Room in these queues; beyond it the kernel refuses.", sum(limits))


def _queue_of(listener: Any) -> tuple[int, int] | None:
    """How many wait to be accepted, and how many may: tcp_info's unacked and sacked, of a socket that listens."""
    sock = listener.sock
    if sys.platform != "linux" or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    except OSError:
        return None
    return struct.unpack_from("=II", info, 24)


def _rejections(server: Server, statistics: Any) -> dict[str, int]:
    found = {"descriptors": statistics.shed}
    for policy in statistics.policies:
        found[policy.name] = found.get(policy.name, 0) + sum(policy.refused.values())
    for protocol in protocols(server):
        for status, count in list(getattr(protocol, "rejections", {}).items()):
            reason = _REASONS.get(status, f"http_{status}")
            found[reason] = found.get(reason, 0) + count
    headers = {id(each.endpoint.proxy_protocol): each.endpoint.proxy_protocol for each in server.listeners}
    for header in headers.values():
        for reason, count in list(getattr(header, "refused", {}).items()):
            found[f"proxy_{reason}"] = found.get(f"proxy_{reason}", 0) + count
    tls = server.engine.tls
    if tls is not None:
        found["tls"] = tls.failures
    return found


# --------------------------------------------------------- pool, loop, TLS


def _of_pool(server: Server) -> Iterator[Family]:
    pool = server.engine.pool
    statistics = pool.statistics()
    yield _gauge("pool_size", "Handlers that may run at once.", statistics.size)
    states = _gauge(
        "pool_handlers",
        "Handlers and what the pool has to do with them: busy ones hold a slot, suspended ones among these wait; "
        "detached, parked and pinned ones hold none; queued are not begun.",
    )
    for state in ("busy", "suspended", "detached", "parked", "pinned", "queued"):
        states.add(getattr(statistics, state), state=state)
    yield states
    yield _counter("pool_jobs", "Jobs done: reads, accepts, calls.").add(statistics.jobs)
    yield _counter("pool_failures", "Jobs that raised.").add(statistics.failures)
    yield Family(
        "trionet_message_seconds",
        "histogram",
        "From the poll that found a connection readable to the end of handling what was read; one in 64 is timed.",
        unit="seconds",
    ).add(pool.latency)


def _of_loop(server: Server, stalls: Any) -> Iterator[Family]:
    engine = server.engine
    yield Family(
        "trionet_loop_lag_seconds", "histogram", "How late timer ticks came, four a second.", unit="seconds"
    ).add(engine.lags)
    if stalls is not None:
        watch = stalls.statistics()
        yield _counter("loop_busy_seconds", "Time the event loop was busy.", "seconds").add(watch.busy)
        yield _counter("loop_turns", "Turns of the event loop.").add(watch.turns)
        yield _counter("loop_stalls", "Turns that took longer than the threshold.").add(watch.stalls)
        yield _counter(
            "loop_starved_seconds", "Time in such turns that the machine gave no processor.", "seconds"
        ).add(watch.starved)
    try:
        tasks: int | None = trio.lowlevel.current_statistics().tasks_living
    except RuntimeError:  # asked from another thread
        tasks = None
    if tasks is not None:
        yield _gauge("tasks", "Trio tasks.", tasks)
    if engine.running:
        poller = engine.poller.statistics()
        yield _gauge("poller_watched", "Descriptors that are watched for input.", poller.watched)
        yield _counter("poller_polls", "Fetches of ready descriptors.").add(poller.polls)
        yield _counter("poller_events", "Events fetched.").add(poller.events)
    yield _counter("timer_visits", "Deadlines that were looked at.").add(engine.wheel.visited)
    if engine.tls is not None:
        tls = engine.tls.statistics()
        yield _counter("tls_handshakes", "TLS handshakes that succeeded.").add(tls.handshakes)
        yield _counter("tls_resumed", "Those of them that resumed a session.").add(tls.resumed)
        yield _counter("tls_truncated", "TLS connections cut without close_notify.").add(tls.truncated)
