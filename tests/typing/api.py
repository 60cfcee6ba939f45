"""The public API as users type it. Not run: `mypy --strict` reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_type

import trio

import trionet


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


async def lowest(stream: trio.SocketStream) -> None:
    """Single frames over a stream."""
    received = await trionet.read_frame(stream, max_length=1000)
    assert_type(received, trionet.Frame)
    assert_type(received.payload, bytes)
    await trionet.write_frame(stream, trionet.Frame(1, b"Hello"), key=b"abcd")


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
