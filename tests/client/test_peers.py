"""The client against servers that nobody here wrote."""

from __future__ import annotations

import contextlib
import threading

import pytest
import trio
import trio_websocket
import websockets.sync.server
import websockets.trio.server
from ws_peer import GENEROUS

import trionet

MESSAGES = ["hello", b"bytes", "", "é" * 1000, b"\0" * 70_000, "x" * 200_000]


@contextlib.asynccontextmanager
async def websockets_on_trio(**options):
    """The `websockets` server on Trio, in this run: an echo."""

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: websockets.trio.server.serve(
                echo, 0, host="127.0.0.1", subprotocols=["chat"], task_status=task_status, **options
            )
        )
        yield server.listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def websockets_in_a_thread(**options):
    """The `websockets` server with threads: an echo."""

    def echo(connection):
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            for message in connection:
                connection.send(message)

    with websockets.sync.server.serve(echo, "127.0.0.1", 0, subprotocols=["chat"], **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            await trio.to_thread.run_sync(thread.join)


@contextlib.asynccontextmanager
async def trio_websocket_server():
    """The trio-websocket server: an echo."""

    async def echo(request):
        subprotocol = "chat" if "chat" in request.proposed_subprotocols else None
        connection = await request.accept(subprotocol=subprotocol)
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                await connection.send_message(await connection.get_message())

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, echo, "127.0.0.1", 0, None)
        yield server.port
        nursery.cancel_scope.cancel()


SERVERS = [websockets_on_trio, websockets_in_a_thread, trio_websocket_server]


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.__name__)
async def test_echo(server):
    """Messages of all sizes, a subprotocol, a ping and a clean end with each peer."""
    with trio.fail_after(GENEROUS):
        async with server() as port:
            url = f"ws://127.0.0.1:{port}/"
            async with trionet.connect_websocket(url, subprotocols=["other", "chat"]) as ws:
                assert ws.subprotocol == "chat"
                for message in MESSAGES:
                    await ws.send(message)
                    assert await ws.receive() == message
                assert await ws.ping() >= 0
            assert (ws.closed.code, ws.closed.by) == (1000, "us")


@pytest.mark.parametrize("takeover", [False, True], ids=["fresh", "takeover"])
@pytest.mark.parametrize("server", SERVERS[:2], ids=lambda server: server.__name__)
async def test_compression(server, takeover):
    """permessage-deflate with a peer that compresses, with and without context takeover."""
    wish = trionet.Deflate(
        server_no_context_takeover=not takeover, client_no_context_takeover=not takeover, threshold=1
    )
    with trio.fail_after(GENEROUS):
        async with (
            server(compression="deflate") as port,
            trionet.connect_websocket(
                f"ws://127.0.0.1:{port}/", compression=wish, subprotocols=["chat"]
            ) as ws,
        ):
            assert ws.codec is not None
            for message in MESSAGES * 2:
                await ws.send(message)
                assert await ws.receive() == message


async def test_refusal_of_a_peer():
    """The HTTP answer of a peer that refuses is shown."""

    def refuse(connection, request):
        return connection.respond(403, "Not today.\n")

    with trio.fail_after(GENEROUS):
        async with websockets_on_trio(process_request=refuse) as port:
            with pytest.raises(trionet.UpgradeRefused, match=r"403 Forbidden: Not today") as caught:
                async with trionet.connect_websocket(f"ws://127.0.0.1:{port}/"):
                    pass
            assert caught.value.body == b"Not today.\n"
