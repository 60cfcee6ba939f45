"""Servers of others, all with the same manners, so that one test asks the same of each.

They refuse /forbidden with 403, speak the subprotocol "chat", and send the request's X-Token back in X-Seen. Each is an
echo, but for these texts: "/close CODE REASON", "/vanish", "/ping PAYLOAD" (answered "pong PAYLOAD" when the Pong has
come) and "/pieces" (answered "one two three" in three frames, if it can).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio
from interop_threads import Loop, Node

LOCAL = "127.0.0.1"
PIECES = ["one ", "two ", "three"]


@attrs.frozen
class Config:
    """How to serve; `tls`: paths of a certificate and its key, `limit`: bytes of the largest message."""

    loop: Loop
    node: Node | None
    context: ssl.SSLContext | None = None
    pem: dict[str, str] | None = None
    deflate: bool = False
    limit: int = 2**22


# ---------------------------------------------------------------------------------------------- websockets


def _for_websockets(config: Config) -> dict[str, Any]:
    from http import HTTPStatus

    def process_request(connection: Any, request: Any) -> Any:
        if request.path == "/forbidden":
            return connection.respond(HTTPStatus.FORBIDDEN, "not here\n")
        return None

    def process_response(connection: Any, request: Any, response: Any) -> None:
        response.headers["X-Seen"] = request.headers.get("X-Token", "")

    return {
        "process_request": process_request,
        "process_response": process_response,
        "subprotocols": ["chat"],
        "select_subprotocol": lambda ws, offered: "chat" if "chat" in offered else None,
        "compression": "deflate" if config.deflate else None,
        "ssl": config.context,
        "max_size": config.limit,
    }


async def _converse(ws: Any, close: Any, vanish: Any, pong: Any) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        async for message in ws:
            words = message.split(" ") if isinstance(message, str) else [""]
            if words[0] == "/close":
                await close(int(words[1]), words[2])
            elif words[0] == "/vanish":
                await vanish()
            elif words[0] == "/ping":
                await pong(await ws.ping(words[1]))
                await ws.send(f"pong {words[1]}")
            elif words[0] == "/pieces":
                await ws.send(PIECES)
            else:
                await ws.send(message)
    except ConnectionClosed:
        pass


@asynccontextmanager
async def websockets_trio(config: Config) -> AsyncIterator[int]:
    """Serve by websockets on Trio."""
    from websockets.trio.server import serve

    async def handler(ws: Any) -> None:
        async def wait(event: trio.Event) -> None:
            await event.wait()

        await _converse(ws, ws.aclose, partial(trio.aclose_forcefully, ws.stream), wait)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, 0, host=LOCAL, **_for_websockets(config)))
        yield server.listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def websockets_asyncio(config: Config) -> AsyncIterator[int]:
    """Serve by websockets on asyncio."""
    from websockets.asyncio.server import serve

    async def handler(ws: Any) -> None:
        async def vanish() -> None:
            ws.transport.abort()

        async def wait(waiter: Any) -> None:
            await waiter

        await _converse(ws, ws.close, vanish, wait)

    async def start() -> Any:
        return await serve(handler, LOCAL, 0, **_for_websockets(config))

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    server = await config.loop.run(start())
    yield server.sockets[0].getsockname()[1]
    with trio.CancelScope(shield=True):
        await config.loop.run(stop())


# ------------------------------------------------------------------------------------------------- aiohttp


@asynccontextmanager
async def aiohttp(config: Config) -> AsyncIterator[int]:
    """Serve by aiohttp."""
    from aiohttp import WSMsgType, web

    async def handler(request: Any) -> Any:
        if request.path == "/forbidden":
            raise web.HTTPForbidden(text="not here\n")
        ws = web.WebSocketResponse(
            protocols=("chat",), compress=config.deflate, max_msg_size=config.limit, autoping=False
        )
        ws.headers["X-Seen"] = request.headers.get("X-Token", "")
        await ws.prepare(request)
        async for message in ws:
            words = message.data.split(" ") if message.type is WSMsgType.TEXT else [""]
            if message.type is WSMsgType.PING:
                await ws.pong(message.data)
            elif message.type is WSMsgType.PONG:
                await ws.send_str(f"pong {message.data.decode()}")
            elif words[0] == "/close":
                await ws.close(code=int(words[1]), message=words[2].encode())
            elif words[0] == "/vanish":
                request.transport.abort()
            elif words[0] == "/ping":
                await ws.ping(words[1].encode())
            elif message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws

    async def start() -> Any:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, LOCAL, 0, ssl_context=config.context).start()
        return runner

    runner = await config.loop.run(start())
    yield runner.addresses[0][1]
    with trio.CancelScope(shield=True):
        await config.loop.run(runner.cleanup())


# ------------------------------------------------------------------------------------------ trio-websocket


@asynccontextmanager
async def trio_websocket(config: Config) -> AsyncIterator[int]:
    """Serve by trio-websocket, which has no compression and sends no pieces."""
    from trio_websocket import ConnectionClosed, serve_websocket

    async def handler(request: Any) -> None:
        if request.path == "/forbidden":
            await request.reject(403, body=b"not here\n")
            return
        token = next((value for name, value in request.headers if name == b"x-token"), b"")
        ws = await request.accept(
            subprotocol="chat" if "chat" in request.proposed_subprotocols else None,
            extra_headers=[(b"X-Seen", token)],
        )
        try:
            while True:
                message = await ws.get_message()
                words = message.split(" ") if isinstance(message, str) else [""]
                if words[0] == "/close":
                    await ws.aclose(int(words[1]), words[2])
                elif words[0] == "/vanish":
                    await trio.aclose_forcefully(ws._stream)
                elif words[0] == "/ping":
                    await ws.ping(words[1].encode())
                    await ws.send_message(f"pong {words[1]}")
                else:
                    await ws.send_message(message)
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(serve_websocket, handler, LOCAL, 0, config.context, max_message_size=config.limit)
        )
        yield server.port
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------ picows


@asynccontextmanager
async def picows(config: Config) -> AsyncIterator[int]:
    """Serve by picows, which gives and takes frames, and leaves all else to its user."""
    from picows import (
        WSListener,
        WSMsgType,
        WSUpgradeResponse,
        WSUpgradeResponseWithListener,
        ws_create_server,
    )

    class Echo(WSListener):
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            kind, data = frame.msg_type, frame.get_payload_as_bytes()
            words = data.decode().split(" ") if kind is WSMsgType.TEXT and frame.fin else [""]
            if kind is WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            elif kind is WSMsgType.PONG:
                transport.send(WSMsgType.TEXT, b"pong " + data)
            elif words[0] == "/close":
                transport.send_close(int(words[1]), words[2].encode())
            elif words[0] == "/vanish":
                transport.disconnect(graceful=False)
            elif words[0] == "/ping":
                transport.send_ping(words[1].encode())
            elif words[0] == "/pieces":
                for i, piece in enumerate(PIECES):
                    kind = WSMsgType.CONTINUATION if i else WSMsgType.TEXT
                    transport.send(kind, piece.encode(), fin=i == len(PIECES) - 1)
            else:
                transport.send(kind, data, fin=frame.fin)

    def factory(request: Any) -> Any:
        if request.path == b"/forbidden":
            response = WSUpgradeResponse.create_error_response(403, b"not here\n")
            return WSUpgradeResponseWithListener(response, None)
        headers = {"X-Seen": request.headers.get("X-Token", "")}
        if "chat" in request.headers.get("Sec-WebSocket-Protocol", ""):
            headers["Sec-WebSocket-Protocol"] = "chat"
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers), Echo())

    async def start() -> Any:
        return await ws_create_server(factory, LOCAL, 0, ssl=config.context, max_frame_size=config.limit)

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    server = await config.loop.run(start())
    yield server.sockets[0].getsockname()[1]
    with trio.CancelScope(shield=True):
        await config.loop.run(stop())


# --------------------------------------------------------------------------------------------------- ws


@asynccontextmanager
async def npm_ws(config: Config) -> AsyncIterator[int]:
    """Serve by npm's ws."""
    node = config.node
    assert node is not None
    answer = await node.ask("serve", {"tls": config.pem, "deflate": config.deflate, "limit": config.limit})
    yield answer["port"]
    with trio.CancelScope(shield=True):
        await node.ask("stop", None, answer["on"])


@attrs.frozen
class Server:
    """What tests have to know of a server."""

    serve: Callable[[Config], AbstractAsyncContextManager[int]]
    needs: str
    cannot: frozenset[str] = frozenset()


SERVERS = {
    "websockets": Server(websockets_trio, "websockets"),
    "websockets-asyncio": Server(websockets_asyncio, "websockets"),
    "aiohttp": Server(aiohttp, "aiohttp", frozenset({"pieces"})),
    "trio-websocket": Server(trio_websocket, "trio_websocket", frozenset({"pieces", "deflate"})),
    "picows": Server(picows, "picows", frozenset({"deflate"})),
    "ws": Server(npm_ws, "node"),
}
