"""What users hold: `connect_websocket` for one connection, `open_client` for many on one engine."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Unpack

import attrs
import trio

from trionet.client.dialing import dial
from trionet.client.opening import Opening
from trionet.client.options import OPEN_TIMEOUT, ConnectOptions, split
from trionet.client.websocket import ClientProtocol, ClientWebSocket
from trionet.errors import UpgradeRefused
from trionet.net import system
from trionet.net.engine import Engine
from trionet.net.pool import PoolStatistics, TaskPool
from trionet.net.tls import TlsHandshake
from trionet.wire.client_handshake import build_upgrade_request
from trionet.wire.closing import CloseCode
from trionet.wire.url import Target, parse_proxy, parse_url, redirected

__all__ = [
    "ClientStatistics",
    "ConnectOptions",
    "Connecting",
    "WebSocketClient",
    "connect_websocket",
    "open_client",
]

# What tells of whom we are: not for another origin that a redirect leads to.
_PRIVATE = frozenset({"authorization", "cookie", "host", "proxy-authorization"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_REMEMBERED = 256  # settings, and servers reached by TLS


@attrs.frozen
class ClientStatistics:
    """What a client is doing: connections now (`opening` of them still shake hands), and how many there have been."""

    connections: int
    opening: int
    opened: int
    overflowed: int
    lag: float
    lag_max: float
    pool: PoolStatistics


class WebSocketClient:
    """Many WebSocket connections on one engine; made by `open_client`. A connection costs no task."""

    def __init__(self, engine: Engine, defaults: ConnectOptions) -> None:
        self.engine = engine
        self.closed = False  # its block was left
        self._defaults = defaults
        self._protocols: dict[Any, ClientProtocol] = {}
        self._handshakes: dict[Any, TlsHandshake] = {}
        self._context: ssl.SSLContext | None = None
        split(defaults)

    @property
    def connections(self) -> Iterator[ClientWebSocket]:
        """The connections that are open now; safe against changes while iterating."""
        return (ws for ws in self.engine if isinstance(ws, ClientWebSocket) and ws.is_open)

    def statistics(self) -> ClientStatistics:
        """A snapshot of all counters."""
        engine = self.engine
        return ClientStatistics(
            connections=engine.connections,
            opening=engine.opening,
            opened=engine.opened,
            overflowed=engine.overflowed,
            lag=engine.lag,
            lag_max=engine.lag_max,
            pool=engine.pool.statistics(),
        )

    def connect(self, url: str, *, handler: Any = None, **options: Unpack[ConnectOptions]) -> Connecting:
        """Connect to `url`: ``async with client.connect(url) as ws``, or ``ws = await client.connect(url)``.

        Leaving the block closes the connection (1000; 1011 if by an exception) and waits for the end of the closing
        handshake, `close_timeout` at most; cancelled, it ends at once. Awaited, it is yours to close; what is open when
        the client's block is left is cut off.

        With a `handler` (a `WebSocketHandler`, or a coroutine function of the connection) the messages go there, and
        the caller goes on as soon as the connection is open.

        Raises `OSError` (the name, the network, TLS, the time), `UpgradeRefused` (the server or the proxy said no),
        `ProtocolError` (what answers does not speak WebSocket rightly), `ConfigurationError` (the options).
        """
        return Connecting(self, url, handler, {**self._defaults, **options})

    async def _open(self, url: str, handler: Any, options: ConnectOptions) -> ClientWebSocket:
        if self.closed:
            raise RuntimeError("the client is closed: its block was left")
        dialing, settings = split(options)
        protocol = self._protocol(handler, settings)
        target = parse_url(url)
        if (path := dialing.get("unix_path")) is not None:
            target = attrs.evolve(target, unix=os.fspath(path))
        headers = dialing.get("headers") or ()
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        timeout = dialing.get("open_timeout", OPEN_TIMEOUT)
        left = dialing.get("redirects", 0)
        with trio.move_on_after(timeout or float("inf")) as scope:
            while True:
                try:
                    return await self._attempt(target, protocol, pairs, dialing)
                except UpgradeRefused as refused:
                    location = refused.header("location")
                    if (
                        refused.status not in _REDIRECTS
                        or location is None
                        or refused.by == "proxy"
                        or left <= 0
                    ):
                        raise
                    left -= 1
                    previous, target = target, redirected(target, location)
                    if target.origin != previous.origin:
                        pairs = [(name, value) for name, value in pairs if name.lower() not in _PRIVATE]
        assert scope.cancelled_caught
        raise TimeoutError(f"{target}: no WebSocket within {timeout:g} s")

    async def _attempt(
        self,
        target: Target,
        protocol: ClientProtocol,
        headers: list[tuple[str, str]],
        dialing: dict[str, Any],
    ) -> ClientWebSocket:
        key = os.urandom(16)
        offers: Any = dialing.get("subprotocols") or ()
        if not isinstance(offers, str):  # which is refused below
            offers = tuple(offers)
        origin = dialing.get("origin")
        request = build_upgrade_request(
            target,
            key,
            subprotocols=offers,
            extensions=protocol.compression.offer if protocol.compression is not None else None,
            headers=[*headers, *([("Origin", origin)] if origin is not None else [])],
        )
        first = self._secured(protocol, target, dialing) if target.secure else protocol
        proxy = parse_proxy(dialing["proxy"]) if dialing.get("proxy") else None
        fd = await dial(target, proxy, dialing.get("local_address"))
        if self.closed:  # meanwhile: there is no engine any more that would take it
            system.close(fd)
            raise RuntimeError("the client is closed: its block was left")
        opening = Opening(target, request, key, offers)
        ws: Any = self.engine.add(fd, first, first.connection_class)
        ws._agreed = opening
        try:
            if ws.fd < 0:
                opening.broke_off(ws)
            elif not target.secure:
                ws.write(request)
            await opening.wait()
        except BaseException as error:
            if ws.is_opening or ws.is_open:  # else it lingers, so that the server gets our alert
                ws.abort()
            if isinstance(error, ssl.SSLError):
                error.add_note(f"while connecting to {target}")
            raise
        return ws  # type: ignore[no-any-return]

    def _secured(self, protocol: ClientProtocol, target: Target, dialing: dict[str, Any]) -> TlsHandshake:
        """What comes before `protocol` when the target is reached by TLS."""
        context = dialing.get("ssl_context")
        if context is None:
            if self._context is None:
                self._context = ssl.create_default_context()
                self._context.set_alpn_protocols(["http/1.1"])
            context = self._context
        name = dialing.get("server_hostname") or target.host
        key = (protocol, context, name)
        handshake = self._handshakes.get(key)
        if handshake is None:
            if len(self._handshakes) >= _REMEMBERED:
                self._handshakes.clear()
            handshake = self._handshakes[key] = TlsHandshake(
                protocol,
                context,
                server_side=False,
                server_hostname=name,
                handshake_timeout=0,  # `open_timeout` holds for all of it
                failed=protocol.tls_failed,
            )
        return handshake

    def _protocol(self, handler: Any, settings: dict[str, Any]) -> ClientProtocol:
        """The protocol for these settings: connections with the same ones share it."""
        key = (handler, *sorted(settings.items()))
        protocol = self._protocols.get(key)
        if protocol is None:
            if len(self._protocols) >= _REMEMBERED:
                self._protocols.clear()  # connections keep theirs
            settings.setdefault("ping_interval", 30.0)  # servers ping every 20 s: one of the two is enough
            protocol = self._protocols[key] = ClientProtocol(handler, **settings)
        return protocol


class Connecting:
    """What `WebSocketClient.connect` returns: await it, or enter it."""

    __slots__ = ("_client", "_handler", "_options", "_url", "_ws")

    def __init__(self, client: WebSocketClient, url: str, handler: Any, options: ConnectOptions) -> None:
        self._client = client
        self._url = url
        self._handler = handler
        self._options = options
        self._ws: ClientWebSocket | None = None

    def __await__(self) -> Generator[Any, Any, ClientWebSocket]:
        return self._client._open(self._url, self._handler, self._options).__await__()

    async def __aenter__(self) -> ClientWebSocket:
        self._ws = await self
        return self._ws

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ws is not None
        await leave(self._ws, error)


async def leave(ws: ClientWebSocket, error: BaseException | None) -> None:
    """The block of a connection is left, by `error` or not: close it."""
    if error is not None and not isinstance(error, Exception):
        ws._say_goodbye(CloseCode.GOING_AWAY, "")  # what it was cancelled for does not wait for peers
        ws.abort()
        return
    if ws.closed is None:
        ws.close_nowait(CloseCode.NORMAL if error is None else CloseCode.INTERNAL_ERROR)
    try:
        await ws.wait_closed()
    finally:
        ws.abort()


@asynccontextmanager
async def open_client(
    *,
    pool_size: int = 128,
    resolution: float = 0.25,
    backend: str | None = None,
    **defaults: Unpack[ConnectOptions],
) -> AsyncIterator[WebSocketClient]:
    """Open a client for the length of the block; leaving it cuts off what is still connected.

    `pool_size`: handlers of its connections that run at once. `resolution`: seconds of a timer tick. `backend`: see
    `open_poller`. `defaults`: options of every `WebSocketClient.connect`, see `ConnectOptions`.
    """
    system.ignore_sigpipe()
    engine = Engine(TaskPool(pool_size), backend=backend, resolution=resolution)
    client = WebSocketClient(engine, defaults)
    block = OwnBlock()
    async with engine.open():
        try:
            with block:
                yield client
        finally:
            client.closed = True
    block.go_on()


class OwnBlock:
    """``with`` it around a context manager's `yield`, and call `go_on` outside of the nurseries around that.

    So what the user's block raises reaches the user as it is, not wrapped in groups.
    """

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None or _cancels(error):
            return False
        self._failure = error
        return True

    def go_on(self) -> None:
        """Raise what the block has raised."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle of exception, traceback and frame


def _cancels(error: BaseException) -> bool:
    """Whether a cancel scope waits for it."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_cancels, error.exceptions))
    return isinstance(error, trio.Cancelled)


@asynccontextmanager
async def connect_websocket(
    url: str, *, client: WebSocketClient | None = None, **options: Unpack[ConnectOptions]
) -> AsyncIterator[ClientWebSocket]:
    """Connect for the length of a block.

    ::

        async with connect_websocket("wss://example.org/chat") as ws:
            await ws.send("hello")
            async for message in ws:
                ...

    Options are those of `ConnectOptions`; what is raised, and what leaving the block does, says
    `WebSocketClient.connect`. Each call has an engine of its own (three tasks), unless it is given a `client`: for more
    than a few connections open one.
    """
    if client is not None:
        async with client.connect(url, **options) as ws:
            yield ws
    else:
        async with open_client(pool_size=1) as own, own.connect(url, **options) as ws:
            yield ws
