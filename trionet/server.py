"""A server: listeners, the accept gate, the engine, and an end.

`serve` runs one as a program; `open_server` runs one inside yours. Both take a protocol and an address, or a list
of `Endpoint` for several protocols on several listeners.

Cancelling is the hard stop. `Server.drain` is the polite one: stop accepting, say 1001 to everybody, spread over a
window so that not all come back at once, wait, then stop hard.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any

import attrs
import trio

from trionet.errors import ConfigurationError
from trionet.net import system
from trionet.net.connection import Connection
from trionet.net.doorkeeper import Doorkeeper
from trionet.net.engine import Engine
from trionet.net.gate import AcceptGate, GateStatistics
from trionet.net.listener import Endpoint, Listener, open_listeners
from trionet.net.policy import AdmissionPolicy
from trionet.net.poller import PollerStatistics
from trionet.net.pool import PoolStatistics, TaskPool
from trionet.net.stream import DetachedStream
from trionet.net.tls_session import TlsStatistics
from trionet.net.wheel import WheelStatistics
from trionet.protocols.channel import WebSocket
from trionet.wire.closing import CloseCode, check_sendable

__all__ = ["Server", "ServerStatistics", "open_server", "serve"]

log = logging.getLogger("trionet")

_DRAIN_STEP = 0.05


@attrs.frozen
class ServerStatistics:
    """What a server is doing. Times are seconds; `lag` is by how much the last timer tick came late.

    Of `connections`, `opening` are not greeted yet, and `streams` were given away to tasks.
    """

    connections: int
    streams: int
    opening: int
    opened: int
    overflowed: int
    draining: bool
    lag: float
    lag_max: float
    gate: GateStatistics
    pool: PoolStatistics
    poller: PollerStatistics
    wheel: WheelStatistics
    tls: TlsStatistics | None = None


class Server:
    """A running server; made by `open_server` and `serve`."""

    def __init__(self, engine: Engine, gate: AcceptGate) -> None:
        self.engine = engine
        self.gate = gate
        self.listeners: list[Listener] = []
        self.resources: Any = None

    @property
    def endpoints(self) -> list[Listener]:
        """What is listened on: each has an `address` and a `url`."""
        return self.listeners

    @property
    def addresses(self) -> list[Any]:
        """``(host, port)`` of each listener, or the path of a Unix socket."""
        return [listener.address for listener in self.listeners]

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self.engine.draining

    @property
    def connections(self) -> Iterator[Connection]:
        """The connections there are now; safe against changes while iterating."""
        return iter(self.engine)

    @property
    def websockets(self) -> Iterator[WebSocket]:
        """Those of `connections` that speak WebSocket and are open: what `broadcast` may be given."""
        return (
            connection
            for connection in self.engine
            if isinstance(connection, WebSocket) and connection.is_open
        )

    @property
    def overloaded(self) -> str | None:
        """Why no new connection is served now, in words with numbers; None if they are: a limit, or `admission`."""
        return self.gate.overloaded()

    def statistics(self) -> ServerStatistics:
        """A snapshot of all counters."""
        engine = self.engine
        return ServerStatistics(
            connections=engine.connections,
            streams=len(engine.streams),
            opening=engine.opening,
            opened=engine.opened,
            overflowed=engine.overflowed,
            draining=self.draining,
            lag=engine.lag,
            lag_max=engine.lag_max,
            gate=self.gate.statistics(),
            pool=engine.pool.statistics(),
            poller=engine.poller.statistics() if engine.running else PollerStatistics("", 0, 0, 0, 0),
            wheel=engine.wheel.statistics(),
            tls=engine.tls.statistics() if engine.tls is not None else None,
        )

    def stop_accepting(self) -> None:
        """Accept no more, and close the listeners; the connections there are go on. A second call does nothing.

        Sockets that were handed in (`Endpoint.fd`) go on in whoever else has them open: another process may accept
        from the same queue.
        """
        self.gate.close()
        for listener in self.listeners:
            listener.close()

    async def drain(
        self,
        *,
        jitter: float | None = None,
        timeout: float = 10.0,
        code: int = CloseCode.GOING_AWAY,
        reason: str = "server is going away",
    ) -> bool:
        """Stop accepting, close every connection with `code` within `jitter` seconds, wait for them to end.

        `jitter` None: a second for each thousand connections, half of `timeout` at most. `code`, `reason`: what
        WebSockets are told; 1012, service restart, where another process has taken over. Returns whether all ended
        within `timeout`; those that did not are closed when the server's block is left.
        """
        check_sendable(code, reason)
        engine = self.engine
        mine = engine.pool.running is not None  # a handler drains: it does not wait for itself
        engine.draining = True
        engine.farewell = (code, reason)
        self.stop_accepting()
        with trio.move_on_after(timeout) as scope:
            waiting: list[Connection | DetachedStream] = [*engine, *engine.streams]
            random.shuffle(waiting)
            window = min(len(waiting) / 1000, timeout / 2) if jitter is None else jitter
            size = math.ceil(len(waiting) / max(1, window / _DRAIN_STEP)) or 1
            steps = math.ceil(len(waiting) / size) or 1
            for start in range(0, len(waiting), size):
                if start:
                    await self._wait_ended(mine, window / steps)
                for connection in waiting[start : start + size]:
                    if isinstance(connection, DetachedStream):
                        connection.drain()
                    elif connection.fd >= 0:
                        connection.protocol.drain(connection)
            await self._wait_ended(mine)
        return not scope.cancelled_caught

    async def _wait_ended(self, mine: bool, seconds: float = math.inf) -> None:
        """Wait until nobody is left, handlers that clean up included; or for so many seconds."""
        engine = self.engine
        with trio.move_on_after(seconds):
            # An event would cost every closing connection a look.
            while engine.connections or engine.pool.unfinished() > mine:  # noqa: ASYNC110
                await trio.sleep(_DRAIN_STEP)


@asynccontextmanager
async def open_server(
    protocol: Any,
    host: str | None = "127.0.0.1",
    port: int = 0,
    *,
    ssl_context: ssl.SSLContext | None = None,
    lifespan: Callable[[Server], AbstractAsyncContextManager[Any]] | None = None,
    pool_size: int = 128,
    limiter: trio.CapacityLimiter | None = None,
    slot_grace: float = 0.1,
    max_detached: int = 10_000,
    max_connections: int | None = None,
    max_opening: int | None = None,
    admission: AdmissionPolicy | Sequence[AdmissionPolicy] | Doorkeeper | None = None,
    resolution: float = 0.25,
    backend: str | None = None,
) -> AsyncIterator[Server]:
    """Serve for the length of the block. `protocol`: a protocol for `host` and `port`, or an `Endpoint`, or several.

    `ssl_context`: connections speak TLS; see `server_tls_context`. `lifespan`: an async context manager of yours,
    opened before the first connection is accepted, closed after the last handler has ended; what it yields is
    ``server.resources``. `pool_size`: handlers that run at once (those that wait longer than `slot_grace` seconds do
    not count; `max_detached` of them shut the accept gate). `limiter`: a `trio.CapacityLimiter` to share with other
    servers instead. `max_connections`: as many as descriptors allow, when None. `max_opening`: half-open handshakes at
    once. `admission`: an `AdmissionPolicy` or several, which refuse new connections for more reasons, in other ways.
    `resolution`: seconds of a timer tick. `backend`: see `open_poller`.

    An exception in the block, or cancellation, is the hard stop: every connection is closed, every task ended.
    """
    from trionet.ops.limits import connections_that_fit

    endpoints: Sequence[Endpoint]
    if isinstance(protocol, Endpoint):
        protocol = [protocol]
    if not isinstance(protocol, list | tuple):
        endpoints = [Endpoint(protocol=protocol, host=host, port=port, ssl_context=ssl_context)]
    elif ssl_context is not None:
        raise ConfigurationError("ssl_context: each Endpoint has its own")
    else:
        endpoints = protocol
    if isinstance(admission, AdmissionPolicy):
        admission = [admission]
    if admission is not None and not isinstance(admission, Doorkeeper):
        admission = Doorkeeper(admission) if admission else None
    if max_connections is None:
        max_connections = connections_that_fit()
        if admission is not None and admission.answers:  # those who wait for an answer need descriptors, too
            admission.lobby.limit = min(admission.lobby.limit, max_connections // 4)
            max_connections -= admission.lobby.limit
    if max_opening is None:
        max_opening = max(1024, max_connections // 4)
    pool = TaskPool(pool_size, limiter=limiter, slot_grace=slot_grace)
    engine = Engine(pool, backend=backend, resolution=resolution)
    gate = AcceptGate(
        engine,
        max_connections=max_connections,
        max_opening=max_opening,
        max_detached=max_detached,
        doorkeeper=admission,
    )
    server = Server(engine, gate)
    system.ignore_sigpipe()
    async with AsyncExitStack() as stack:
        stack.callback(gate.close)
        for endpoint in endpoints:
            for listener in await open_listeners(endpoint):
                server.listeners.append(listener)
                stack.callback(listener.close)
                endpoint.protocol.listening(listener)
        if lifespan is not None:
            server.resources = await stack.enter_async_context(lifespan(server))
        failure: Exception | None = None
        async with engine.open(), trio.open_nursery() as nursery:
            await nursery.start(gate.run)
            for listener in server.listeners:
                listener.begin()
                gate.open(listener)
            try:
                yield server
            except Exception as error:  # noqa: BLE001 - the block's own: it goes on below, not wrapped in groups
                failure = error
            finally:
                gate.close()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def serve(
    protocol: Any,
    host: str | None = "127.0.0.1",
    port: int = 8080,
    *,
    grace: float = 10.0,
    announce: Callable[[Server], object] | None = None,
    collect: bool = True,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve as a program: ``trio.run(serve, protocol, "0.0.0.0", 8080)``. Options are those of `open_server`.

    Raises the limit on open files. SIGTERM or SIGINT drains, within `grace` seconds; a second one stops hard.
    `announce` is called with the server once it listens. `collect`: tune the garbage collector for a short latency
    tail while serving (`trionet.ops.collector`).
    """
    from trionet.ops.collector import collector_policy
    from trionet.ops.limits import raise_descriptor_limit

    raise_descriptor_limit()
    with collector_policy() if collect else nullcontext(), trio.open_signal_receiver(*_signals()) as signals:
        async with open_server(protocol, host, port, **options) as server:
            log.info(
                "listening on %s; room for %d connections",
                ", ".join(listener.url for listener in server.listeners),
                server.gate.max_connections,
            )
            task_status.started(server)
            if announce is not None:
                announce(server)
            await _until_told(signals, server, grace)


def _signals() -> list[signal.Signals]:
    return [signal.SIGINT, signal.SIGTERM] if hasattr(signal, "SIGTERM") else [signal.SIGINT]


async def _until_told(signals: AsyncIterator[int], server: Server, grace: float) -> None:
    number = await anext(signals)
    log.info("%s: draining %d connections", signal.Signals(number).name, server.engine.connections)
    async with trio.open_nursery() as nursery:

        async def second() -> None:
            await anext(signals)
            log.warning("second signal: stopping now")
            nursery.cancel_scope.cancel()

        nursery.start_soon(second)
        if not await server.drain(timeout=grace):
            log.warning("%d connections did not end in time", server.engine.connections)
        nursery.cancel_scope.cancel()
