"""A WebSocket echo server: text comes back as text, binary as binary, on any path, from any origin.

python examples/echo.py --port 8080
"""

from __future__ import annotations

import argparse

import trio

from trionet import (
    ConnectionClosed,
    Deflate,
    Server,
    WebSocket,
    WebSocketHandler,
    WebSocketProtocol,
    broadcast,
    serve,
    server_tls_context,
)


class Echo(WebSocketHandler):
    """Answers each message with itself."""

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        await ws.send(message)


async def echo(ws: WebSocket) -> None:
    """The same as one coroutine."""
    async for message in ws:
        await ws.send(message)


def task_protocol(max_message: int) -> WebSocketProtocol:
    """The same as a task for each connection, with trio-websocket."""
    from trionet.adapters.trio_websocket import TrioWebSocketConnection, TrioWebSocketProtocol

    async def echo(ws: TrioWebSocketConnection) -> None:
        while True:
            await ws.send_message(await ws.get_message())

    return TrioWebSocketProtocol(echo, origins="*", max_message=max_message)


class Broadcast(WebSocketHandler):
    """Sends each message to every connection."""

    def __init__(self) -> None:
        self.everybody: set[WebSocket] = set()

    async def on_open(self, ws: WebSocket) -> None:
        self.everybody.add(ws)

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        broadcast(self.everybody, message)

    async def on_close(self, ws: WebSocket, closed: ConnectionClosed) -> None:
        self.everybody.discard(ws)


def announce(server: Server) -> None:
    """Say that it is ready."""
    for listener in server.listeners:
        print(f"listening on {listener.url}", flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--pool", type=int, default=128, metavar="N", help="handlers that run at once")
    parser.add_argument("--handler", choices=["events", "straight", "task"], default="events")
    parser.add_argument("--max-message", type=int, default=2**20, metavar="BYTES")
    parser.add_argument(
        "--compression",
        choices=["on", "takeover"],
        nargs="?",
        const="on",
        help="permessage-deflate; takeover: each connection keeps its windows",
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="speak TLS: certificate chain, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, if that is in another file")
    parser.add_argument("--broadcast", action="store_true", help="send to every connection instead")
    args = parser.parse_args()
    handler = Broadcast() if args.broadcast else echo if args.handler == "straight" else Echo()
    compression: Deflate | bool = args.compression is not None
    if args.compression == "takeover":
        compression = Deflate(server_no_context_takeover=False, client_no_context_takeover=False)
    protocol = WebSocketProtocol(handler, origins="*", max_message=args.max_message, compression=compression)
    if args.handler == "task":
        if args.broadcast or compression:
            parser.error("--handler task has no --broadcast and no --compression")
        protocol = task_protocol(args.max_message)
    context = server_tls_context(args.tls_cert, args.tls_key) if args.tls_cert else None

    async def run() -> None:
        await serve(
            protocol, args.host, args.port, ssl_context=context, pool_size=args.pool, announce=announce
        )

    trio.run(run)


if __name__ == "__main__":
    main()
