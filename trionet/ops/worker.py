"""One process that serves an application: alone, or as a worker of a supervisor.

With its supervisor a worker speaks over a socket pair, a JSON object a line. It is told ``retire`` (accept no more),
``drain`` and ``dump``; it says ``ready`` and, now and then, ``alive``. The end of that line is the supervisor's
end: the worker drains and ends as well. With the admin process it speaks over a `Link`.

=========  =======================================================================================
SIGTERM    drain, within `grace` seconds; again: stop now. Before it serves: end
SIGINT     the same when alone; workers leave it to their supervisor
SIGUSR1    write the state to the log
SIGHUP     alone: read the TLS certificate again, for connections that come later. Workers ignore it:
           new code, settings and certificates are loaded by new processes (see `supervisor`)
=========  =======================================================================================
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import attrs
import trio

from trionet.errors import BrokerError, ConfigurationError, ProtocolError
from trionet.net.admission import from_limits
from trionet.net.listener import Endpoint
from trionet.net.tls import server_tls_context
from trionet.ops import admin, logs, metrics, systemd
from trionet.ops.application import Application, load, own_failure
from trionet.ops.broker import Post, check_broker, has_local, local_path, own_post, surroundings_of
from trionet.ops.collector import collector_policy
from trionet.ops.control import Agent, ControlError, Link, Local
from trionet.ops.dump import state_dump
from trionet.ops.limits import raise_descriptor_limit
from trionet.ops.settings import ServeSettings
from trionet.ops.sockets import occupy_standard_streams, open_admin, open_sockets, private_folder
from trionet.protocols.proxied import ProxyProtocol
from trionet.pubsub.surroundings import surround
from trionet.server import Server, open_server
from trionet.wire.closing import CloseCode

__all__ = ["Place", "run_alone", "run_worker"]

log = logging.getLogger("trionet.ops")

_RECONNECT = 0.25  # seconds between attempts to reach the admin process
_REPORT = 5.0  # seconds between reports to it
_SETTLE = 2.0  # seconds a retired worker's handshakes get before it drains
_MESSAGE = 65536


@attrs.frozen
class Place:
    """Where a worker stands: its number, counted from 1, and what its supervisor gave it.

    `life`: the socket pair's end. `control`: the path of the admin process's Unix socket; None if there is none; so
    `broker`, of the local broker's.
    """

    number: int = 1
    generation: int = 1
    life: socket.socket | None = None
    control: str | None = None
    broker: str | None = None


@attrs.define
class _End:
    """How it is to end, once `told` is set. `at_once` is all that runs; `now` only what waits for the end."""

    at_once: trio.CancelScope
    told: trio.Event = attrs.field(factory=trio.Event)
    now: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    agent: Agent | None = None  # once it serves
    life: Any = None
    code: int = CloseCode.GOING_AWAY
    reason: str = "server is going away"

    def ask(self, **how: Any) -> None:
        """Drain. Asked again: no more patience, unless a supervisor repeats itself in other words."""
        for name, value in how.items():
            setattr(self, name, value)
        self.told.set()


# ------------------------------------------------------------------ alone


def run_alone(settings: ServeSettings, announce: Callable[[Server, Any], object] | None = None) -> int:
    """Serve in this process until SIGTERM or SIGINT; returns the exit code: 0, or 1 after an error of the server.

    `announce` is called with the server, and the admin server or None, once connections are accepted. Raises
    `ConfigurationError` and `OSError` (an address that cannot be had) before anything is served.
    """
    occupy_standard_streams()
    _ignore(signal.SIGHUP, signal.SIGUSR1)  # until there are handlers for them
    inherited = systemd.inherited_sockets()
    with ExitStack() as stack:
        socks = open_sockets(settings, [fd for name, fd in inherited if name != "admin"])
        stack.callback(socks.close)
        desk = open_admin(settings.admin, [fd for name, fd in inherited if name == "admin"])
        stack.callback(desk.close)
        check_broker(settings.broker, 1)
        post = _own_broker(settings, stack)
        surround(surroundings_of(settings, post.path if post is not None else None))
        with _ends_at_once():
            application = load(settings.app)
        raise_descriptor_limit()
        with collector_policy():
            admin_fds = [sock.detach() for sock in desk.of[1]]
            _run(settings, application, Place(), socks.of[1], admin_fds, announce, post)
    return 0


def _own_broker(settings: ServeSettings, stack: ExitStack) -> Post | None:
    """The local broker of one process, for other programs of this machine: it is served in it."""
    folder = None
    if has_local(settings) and local_path(settings) is None:
        folder = private_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    post = own_post(settings, folder)
    if post is not None:
        stack.callback(post.close)
    return post


def _ignore(*numbers: signal.Signals) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """SIGTERM while the application is imported is an orderly end. Without a handler process 1 would not heed it."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------- as a worker


def run_worker(settings: ServeSettings, place: Place, socks: Sequence[socket.socket]) -> int:
    """Serve as a worker until told to end; returns the exit code: 2 for a `ConfigurationError`, 1 for other errors."""
    logs.set_process(place.number)
    # Until there are handlers; SIGINT for ever: a terminal sends it to all, and the supervisor decides.
    _ignore(signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    try:
        surround(surroundings_of(settings, place.broker))
        application = load(settings.app)
        raise_descriptor_limit()
        with collector_policy():
            _run(settings, application, place, socks, (), None, None)
    except ConfigurationError as error:
        log.error("%s", error)  # noqa: TRY400 - the text says it all
        return 2
    except BrokerError as error:
        log.error("%s did not start: %s", settings.app, error)  # noqa: TRY400 - the same
        return 1
    except SystemExit as error:
        log.error("the application ended its worker: %r", error)  # noqa: TRY400
        return error.code if isinstance(error.code, int) and error.code else 1
    except Exception as error:
        what, trace = own_failure(error)
        if what:
            log.exception("%s %s", settings.app, what, exc_info=error.with_traceback(trace))
        elif isinstance(error, OSError):
            log.error("%s", error)  # noqa: TRY400 - the text says it all
        else:
            log.exception("worker %d failed", place.number)
        return 1
    return 0


# ------------------------------------------------------------------- in both


def _run(
    settings: ServeSettings,
    application: Application,
    place: Place,
    socks: Sequence[socket.socket],
    *rest: Any,
) -> None:
    """Run it, and raise an error as it is, without the groups of nurseries around it."""
    fds = [sock.detach() for sock in socks]
    try:
        trio.run(_serve, settings, application, place, fds, *rest)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


async def _serve(
    settings: ServeSettings,
    application: Application,
    place: Place,
    fds: Sequence[int],
    admin_fds: Sequence[int],
    announce: Callable[[Server, Any], object] | None,
    post: Post | None,
) -> None:
    async with AsyncExitStack() as stack:
        # Before the server is there: its lifespan may take long to begin, and to end. And outside of the nursery, whose
        # task would otherwise add an error of its own to that of a lifespan that fails at once.
        signals = stack.enter_context(trio.open_signal_receiver(*_signals(place)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        end = _End(nursery.cancel_scope)
        nursery.start_soon(_heed_signals, signals, end, settings, place)
        if post is not None:
            from trionet.pubsub.brokers.local.server import serve_local_broker

            nursery.start_soon(serve_local_broker, post.sock)
        server = await stack.enter_async_context(_open(settings, application, fds))
        agent = _agent(settings, application, place, server)
        watch = _stall_watch(settings, server)
        if watch is not None:
            stack.enter_context(watch)
            agent.stalls = watch
        desk = None
        if admin_fds:
            condition = admin.Condition()
            desk = await stack.enter_async_context(
                admin.open_admin(Local(agent), condition, admin_fds, debug=settings.debug)
            )
        end.agent = agent
        if place.life is not None:
            end.life = life = trio.socket.from_stdlib_socket(place.life)
            await _say(life, "ready", urls=[listener.url for listener in server.listeners])
            nursery.start_soon(_live, life, settings, server, end, agent)
        else:
            systemd.notify("READY=1", f"STATUS=serving {settings.app}")
            nursery.start_soon(_watchdog)
        report = None
        if place.control is not None:
            report = _Report(agent, place.control)
            nursery.start_soon(report.keep)
        if announce is not None:
            announce(server, desk)
        with end.now:
            await end.told.wait()
            await _leave(settings, server, end, place)
        if report is not None:
            await report.last()


async def _leave(settings: ServeSettings, server: Server, end: _End, place: Place) -> None:
    if place.life is None:
        systemd.notify(*systemd.stopping(settings.grace))
    server.stop_accepting()
    with trio.move_on_after(_SETTLE):
        while server.engine.opening:  # noqa: ASYNC110 - an event would cost every connection a look
            await trio.sleep(0.05)
    log.info("draining %d connections", server.engine.connections)
    done = await server.drain(
        jitter=settings.drain_window, timeout=settings.grace, code=end.code, reason=end.reason
    )
    if not done:
        log.warning("%d connections did not end in time", server.engine.connections)


@asynccontextmanager
async def _open(
    settings: ServeSettings, application: Application, fds: Sequence[int]
) -> AsyncIterator[Server]:
    context = None
    if settings.tls_cert is not None:
        context = server_tls_context(settings.tls_cert, settings.tls_key, password=settings.tls_key_password)
    header = ProxyProtocol(settings.proxy_protocol) if settings.proxy_protocol else None
    endpoints = [
        Endpoint(
            protocol=application.protocol,
            fd=fd,
            backlog=settings.backlog,
            ssl_context=context,
            proxy_protocol=header,
        )
        for fd in fds
    ]
    async with open_server(
        endpoints,
        lifespan=application.lifespan,
        pool_size=settings.pool_size,
        max_connections=settings.max_connections,
        max_opening=settings.max_opening,
        max_detached=settings.max_detached,
        resolution=settings.timer_resolution,
        admission=from_limits(
            max_connections_per_address=settings.max_connections_per_address,
            max_handshakes_per_second=settings.max_handshakes_per_second,
            max_loop_lag=settings.max_loop_lag,
            max_pool_wait=settings.max_pool_wait,
            max_memory=settings.max_memory,
            overload_action=settings.overload_action,
            retry_after=settings.retry_after,
            exempt=settings.overload_exempt,
        ),
    ) as server:
        yield server


def _agent(settings: ServeSettings, application: Application, place: Place, server: Server) -> Agent:
    agent = Agent(server, place.number, place.generation)
    agent.families = application.families
    admin.install(agent)
    metrics.install(agent)
    if settings.debug:
        from trionet.ops import debug

        debug.install(agent)
    return agent


def _stall_watch(settings: ServeSettings, server: Server) -> Any:
    if settings.stall_threshold is None:
        return None
    from trionet.ops.stalls import StallWatch  # a thread is started: only where it is wanted

    return StallWatch(server, threshold=settings.stall_threshold)


def _signals(place: Place) -> list[signal.Signals]:
    signals = [signal.SIGTERM, signal.SIGUSR1]
    return signals if place.life is not None else [*signals, signal.SIGINT, signal.SIGHUP]


async def _heed_signals(
    signals: AsyncIterator[int], end: _End, settings: ServeSettings, place: Place
) -> None:
    told = 0  # by a signal. One that also went to the supervisor, which has passed it on, is no second one
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGUSR1:
            if end.agent is not None:
                await _dump(end.agent)
        elif number == signal.SIGHUP:
            _renew(settings, end.agent)
        elif end.agent is None:
            log.info("%s before it serves: ending", name)
            end.at_once.cancel()
        elif told:
            log.warning("%s: stopping now", f"second {name}" if told == 1 else f"{name} again")
            (end.now if told == 1 else end.at_once).cancel()
            told += 1
        else:
            told = 1
            log.info("%s", name)
            if place.life is not None and not end.told.is_set():
                await _say(end.life, "leaves")
            end.ask()


def _renew(settings: ServeSettings, agent: Agent | None) -> None:
    """Alone, SIGHUP: a certificate that was renewed is shown to those who come later."""
    systemd.notify(*systemd.reloading())
    if settings.tls_cert is None:
        log.warning("SIGHUP: one process has nothing to load anew; with --workers 2 it replaces the workers")
    elif agent is not None:
        files = settings.tls_cert, settings.tls_key
        try:
            server_tls_context(*files, password=settings.tls_key_password)  # or half of it might be taken
            for listener in agent.server.listeners:
                if listener.endpoint.ssl_context is not None:
                    listener.endpoint.ssl_context.load_cert_chain(*files, settings.tls_key_password)
        except (OSError, ssl.SSLError) as error:
            log.error("the certificate cannot be read, the old one holds: %s", error)  # noqa: TRY400
        else:
            log.info("the certificate was read again")
    systemd.notify("READY=1")


async def _dump(agent: Agent) -> None:
    try:
        log.info("state of worker %d (pid %d)\n%s", agent.number, os.getpid(), await state_dump(agent.server))
    except Exception:
        log.exception("the state could not be written")


async def _watchdog() -> None:
    """Alone under systemd: say that the loop turns, as often as it wants to hear it."""
    interval = systemd.watchdog_interval()
    while interval is not None:
        systemd.notify("WATCHDOG=1")
        await trio.sleep(interval)


# ------------------------------------------------------------ the supervisor


async def _say(life: Any, what: str, **more: Any) -> None:
    with suppress(OSError):  # the reader of the line sees its end
        await life.send(json.dumps({"say": what, **more}).encode() + b"\n")


async def _live(life: Any, settings: ServeSettings, server: Server, end: _End, agent: Agent) -> None:
    async with trio.open_nursery() as nursery:
        if settings.worker_timeout is not None:
            nursery.start_soon(_beat, life, settings.worker_timeout / 4)
        buffer = b""
        while True:
            try:
                data = await life.recv(_MESSAGE)
            except OSError:
                data = b""
            if not data:
                log.warning("the supervisor has gone")
                end.ask()
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if order["do"] == "retire":
                    server.stop_accepting()
                elif order["do"] == "drain":
                    end.ask(code=order["code"], reason=order["reason"])
                elif order["do"] == "dump":
                    await _dump(agent)
        nursery.cancel_scope.cancel()


async def _beat(life: Any, interval: float) -> None:
    while True:
        await trio.sleep(interval)
        await _say(life, "alive")


# --------------------------------------------------------- the admin process


class _Report:
    """The link to the admin process: made anew when that one is.

    Once somebody has asked for its numbers they are sent now and then as well, so that they outlive this process.
    Before, nobody has seen any that could go back, and a silent process is not to be disturbed for it.
    """

    def __init__(self, agent: Agent, path: str) -> None:
        self.agent = agent
        self.path = path
        self.link: Link | None = None
        self._wanted = False

    async def keep(self) -> None:
        """Stay connected. Whatever is wrong with the admin process is not this one's end."""
        while True:
            try:
                await self._connect()
            except* (OSError, ControlError, ProtocolError) as group:
                log.debug("the admin process cannot be reached: %r", group.exceptions[0])
            finally:
                self.agent.tell = self.link = None
            await trio.sleep(_RECONNECT)

    async def _connect(self) -> None:
        stream = await trio.open_unix_socket(self.path)
        self.link = link = Link(stream, self._answer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, nursery.cancel_scope)
            agent = self.agent
            await link.tell("here", pid=os.getpid(), number=agent.number, generation=agent.generation)
            agent.tell = link.tell
            while True:
                await trio.sleep(_REPORT)
                if self._wanted:
                    await self.report()

    async def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        self._wanted = self._wanted or command == "metrics"
        return await self.agent.run(command, arguments)

    async def _run(self, scope: trio.CancelScope) -> None:
        assert self.link is not None
        await self.link.run()
        scope.cancel()

    async def report(self) -> None:
        """Send the numbers. Raises `ControlError` if the admin process has gone."""
        link = self.link
        if link is None:
            return
        try:
            snapshot = await self.agent.run("metrics", {"look": False})  # of the dead only counters are kept
        except ControlError:  # metrics of the application's own; it is in the log
            return
        try:
            await link.tell("metrics", snapshot=snapshot)
        except (TypeError, ValueError) as error:
            log.error("the metrics cannot be sent: %s", error)  # noqa: TRY400

    async def last(self) -> None:
        """The final numbers."""
        with suppress(ControlError), trio.move_on_after(1.0):
            await self.report()
