"""What ``trionet serve`` serves in the benchmarks: echo by event methods, keepalive every 300 s."""

from __future__ import annotations

import os

from trionet import WebSocket, WebSocketHandler, WebSocketProtocol


class Echo(WebSocketHandler):
    """Answers each message with itself."""

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        await ws.send(message)


app = WebSocketProtocol(Echo(), origins="*", ping_interval=float(os.environ.get("BENCH_PING", "300")))
