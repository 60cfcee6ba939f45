"""The public API as users type it. Not run: `mypy --strict` reads it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_type

import trio

import trionet
from trionet.adapters.trio_websocket import TrioWebSocketConnection, TrioWebSocketProtocol


class Chat(trionet.WebSocketHandler):
    """Every method, with the types its documentation promises."""

    async def on_upgrade(self, ws: trionet.WebSocket, request: trionet.Request) -> trionet.Accept | None:
        assert_type(request.path, str)
        assert_type(request.target, str)
        if request.path == "/forbidden":
            raise trionet.Rejection(403, "Forbidden", [("X-Why", "because")], "No.")
        if request.path == "/plain":
            return None
        return trionet.Accept(subprotocol="chat", headers=[("Set-Cookie", "a=b")])

    async def on_open(self, ws: trionet.WebSocket) -> None:
        assert_type(ws.request, trionet.Request | None)
        assert_type(ws.subprotocol, str | None)
        assert_type(ws.closed, trionet.ConnectionClosed | None)
        assert_type(ws.queued, int)
        ws.data = {"anything": 1}

    async def on_message(self, ws: trionet.WebSocket, message: str | bytes) -> None:
        await ws.send(message)
        await ws.send("text")
        await ws.send(b"bytes")
        await ws.send(bytearray(b"array"))
        await ws.send(memoryview(b"view"))
        await ws.send(trionet.PreparedMessage("once"))
        await ws.send(trionet.PreparedMessage(trionet.PreparedMessage(b"once"), tag="about"))
        trionet.PreparedMessage("once", tag=1)  # type: ignore[arg-type]
        ws.send_nowait("text")
        assert_type(await ws.ping(), float)
        async with ws.send_stream(text=True) as stream:
            assert_type(stream, trionet.MessageStream)
            await stream.send("piece")
        assert_type(trionet.broadcast([ws], "all"), int)
        ws.close_nowait()
        await ws.close(trionet.CloseCode.NORMAL, "bye")
        await ws.close(code=4000, reason="bye")

    async def on_close(self, ws: trionet.WebSocket, closed: trionet.ConnectionClosed) -> None:
        assert_type(closed.code, int)
        assert_type(closed.reason, str)
        assert_type(closed.clean, bool)

    async def on_chunk(self, ws: trionet.WebSocket, data: str | bytes, last: bool) -> None:
        await ws.send(data)


class Wrong(trionet.WebSocketHandler):
    """What mypy has to refuse; an unused ignore is an error as well."""

    async def on_message(self, ws: trionet.WebSocket, message: str) -> None:  # type: ignore[override]
        await ws.send(5)  # type: ignore[arg-type]
        await ws.send(None)  # type: ignore[arg-type]
        ws.send("forgotten")  # type: ignore[unused-coroutine]
        trionet.WebSocketProtocol(print)  # type: ignore[arg-type]
        trionet.WebSocketProtocol(self, slow_consumer="wait")  # type: ignore[arg-type]


async def shout(connection: trionet.LineConnection, line: bytes) -> None:
    """Handle a line."""
    await connection.send(line.upper())


@asynccontextmanager
async def lifespan(server: trionet.Server) -> AsyncIterator[str]:
    """Open resources."""
    yield "resources"


class Upper(trionet.Protocol):
    """A byte protocol of one's own."""

    async def data_received(self, connection: trionet.Connection, data: bytes) -> None:
        connection.write(data.upper())
        await connection.wait_writable()
        connection.finish(trionet.ConnectionClosed(1000, "", "us"))


async def embed() -> None:
    """Serve inside a program."""
    protocol = trionet.WebSocketProtocol(
        Chat(),
        subprotocols=("chat",),
        origins=["https://example.org"],
        headers=("cookie", "authorization"),
        max_message=2**16,
        slow_consumer=trionet.SlowConsumer.DROP_OLDEST,
        head_limits=trionet.HeadLimits(),
        ping_interval=None,
        http=trionet.HttpProtocol({"/healthz": trionet.Health()}),
    )
    endpoints = [
        trionet.Endpoint(protocol=protocol, host="127.0.0.1", port=0),
        trionet.Endpoint(protocol=trionet.LineProtocol(shout), path="/tmp/socket"),
    ]
    async with trionet.open_server(endpoints, lifespan=lifespan, pool_size=4) as server:
        assert_type(server, trionet.Server)
        assert_type(server.endpoints[0].url, str)
        assert_type(server.statistics().connections, int)
        assert_type(server.statistics().pool.size, float)
        assert_type(server.draining, bool)
        for ws in protocol.registry.find("ada"):
            assert_type(ws, trionet.WebSocket)
        assert_type(protocol.registry.close("ada", 4003, "banned"), int)
        assert_type(await server.drain(jitter=1.0, timeout=5.0), bool)
    await trionet.serve(protocol, "127.0.0.1", 8080, grace=5.0, pool_size=16)


async def page(request: trionet.HttpRequest) -> trionet.Response:
    """A responder."""
    assert_type(request.path_params, dict[str, str])
    assert_type(await request.body(limit=10), bytes)
    async for piece in request.stream():
        assert_type(piece, bytes)
    return trionet.Response.redirect("/", 303)


class Feed(trionet.EventSource):
    """A source of events."""

    async def on_open(self, stream: trionet.EventStream, request: trionet.HttpRequest) -> None:
        assert_type(request.last_event_id, str)
        await stream.send("data", event="type", id="1", retry=2.5)
        stream.send_nowait(None, id="2")
        assert_type(trionet.broadcast_events([stream], "data"), int)
        stream.close()


def routes() -> trionet.Router:
    """Several protocols on one port."""
    trionet.HttpProtocol({"/": trionet.WebSocketProtocol(Chat())})  # type: ignore[dict-item]
    return trionet.Router(
        {
            "/": b"page",
            "POST /form": page,
            "/events": Feed(keepalive=None, slow_consumer=trionet.SlowConsumer.WAIT),
            "/chat/{room}": trionet.WebSocketProtocol(Chat()),
            "/below/": trionet.HttpProtocol({"/": page}),
        },
        max_body=100,
    )


async def lowest(stream: trio.SocketStream) -> None:
    """Single frames over a stream."""
    received = await trionet.read_frame(stream, max_length=1000)
    assert_type(received, trionet.Frame)
    assert_type(received.payload, bytes)
    await trionet.write_frame(stream, trionet.Frame(1, b"Hello"), key=b"abcd")


async def streaming(stream: trionet.DetachedStream) -> None:
    """A task for a connection."""
    half: trio.abc.HalfCloseableStream = stream
    await half.send_all(await stream.receive_some())
    assert_type(stream.unread, bytes)
    async for data in stream:
        assert_type(data, bytes | bytearray)


async def giving_away(connection: trionet.Connection, ws: trionet.WebSocket) -> None:
    """The raw stream."""
    assert_type(await connection.detach(), trionet.DetachedStream)
    assert_type(await ws.detach(), trionet.DetachedStream)


def task_protocols() -> list[trionet.Protocol]:
    """Handlers with a task."""

    async def chat(ws: TrioWebSocketConnection) -> None:
        message = await ws.get_message()
        assert_type(message, str | bytes)

    return [
        trionet.StreamProtocol(streaming, eager=True, max_tasks=10, drain_grace=1.0),
        TrioWebSocketProtocol(chat, subprotocols=["chat"], origins="*", max_tasks=10),
    ]


async def by_hand() -> None:
    """Pool and poller."""
    async with trionet.TaskPool(4) as pool, trionet.open_poller() as poller:
        assert_type(pool, trionet.TaskPool)
        assert_type(poller, trionet.Poller)
        pool.size = 8
        await pool.schedule(lowest, None)
        async for item, event in poller:
            assert_type(event, trionet.Event)
            poller.resume(item)


def codes(error: trionet.TrionetError) -> int | None:
    """The tree of errors."""
    if isinstance(error, trionet.ProtocolError):
        return error.code
    if isinstance(error, trionet.Rejection):
        return error.status
    return None


async def connect() -> None:
    """Be a client."""
    async with trionet.connect_websocket(
        "ws://h/", subprotocols=["a"], headers={"X": "y"}, redirects=1
    ) as ws:
        assert_type(ws, trionet.ClientWebSocket)
        assert_type(await ws.receive(), str | bytes)
        assert_type(await ws.receive(timeout=1.0), str | bytes)
        async for message in ws:
            assert_type(message, str | bytes)
        assert_type(ws.subprotocol, str | None)
        assert_type(ws.response, trionet.UpgradeResponse | None)
    async with trionet.open_client(compression=trionet.Deflate(), ping_interval=None) as client:
        assert_type(client, trionet.WebSocketClient)
        assert_type(client.statistics().connections, int)
        assert_type(await client.connect("ws://h/", handler=Chat()), trionet.ClientWebSocket)
        async with client.connect("ws://h/", max_message=10) as other:
            await other.send("x")
        await client.connect("ws://h/", headres={})  # type: ignore[call-arg]
    connections = trionet.reconnecting("ws://h/", backoff=trionet.Backoff(initial=1), max_attempts=3)
    async with connections:
        async for ws in connections:
            assert_type(ws, trionet.ClientWebSocket)
    try:
        await client.connect("ws://h/")
    except trionet.UpgradeRefused as refused:
        assert_type(refused.status, int)
        assert_type(refused.header("retry-after"), str | None)


def secure(protocol: trionet.Protocol, connection: trionet.Connection) -> trionet.TlsStatistics | None:
    """Speak TLS, on either side."""
    context = trionet.server_tls_context(
        "server.pem", client_ca=Path("ca.pem"), client_optional=True, alpn=[]
    )
    assert_type(context, ssl.SSLContext)
    trionet.Endpoint(protocol=protocol, ssl_context=context, tls_timeout=5)
    trionet.open_server(protocol, ssl_context=context)
    client = ssl.create_default_context()
    trionet.TlsHandshake(protocol, client, server_side=False, server_hostname="h").begin(connection)
    assert_type(connection.tls, ssl.SSLObject | None)
    return None


def behind_proxies(
    handler: trionet.WebSocketHandler, ws: trionet.WebSocket, request: trionet.HttpRequest
) -> None:
    """Say whom to trust, and ask who the client is."""
    trionet.WebSocketProtocol(handler, trusted_proxies=["10.0.0.0/8", "unix:"])
    trusted = trionet.TrustedProxies(["127.0.0.1"], header="forwarded")
    protocol = trionet.WebSocketProtocol(handler, trusted_proxies=trusted)
    trionet.HttpProtocol({}, trusted_proxies=trusted)
    settings = trionet.ProxyProtocol(["127.0.0.1"], timeout=1, max_size=512, direct=True)
    trionet.Endpoint(protocol=protocol, proxy_protocol=settings)
    assert_type(ws.client, trionet.Client)
    assert_type(request.client.host, str | None)
    assert_type(ws.client.secure, bool | None)
    if isinstance(ws, trionet.Proxied):
        assert_type(ws.proxy_header, trionet.ProxyHeader | None)


async def prefixed(connection: trionet.LengthPrefixedConnection, message: bytes) -> bytes | None:
    """Answer messages."""
    await connection.send(message)
    return None


trionet.LengthPrefixedProtocol(prefixed, width=2, byteorder="little", max_length=1000)
