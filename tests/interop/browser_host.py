"""A server for test_chromium.py: a page, and an echo that does what it is told. `browser_host.py [--tls FILE.pem]`."""

from __future__ import annotations

import sys

import trio

import trionet

PIECES = ("one ", "größer ", "three " * 5000)


class Host(trionet.WebSocketHandler):
    """An echo, but for "/close CODE REASON", "/vanish", "/ping" and "/pieces"."""

    def __init__(self) -> None:
        self.here = set()

    async def on_upgrade(self, ws, request):
        if request.path == "/forbidden":
            raise trionet.Rejection(403)
        ws.data = f"{request.headers.get('cookie')} {request.headers.get('sec-websocket-extensions')}"
        return trionet.Accept(headers=[("Set-Cookie", "agreed=yes")])

    async def on_close(self, ws, closed):
        self.here.discard(ws)

    async def handle(self, ws):
        self.here.add(ws)
        async for message in ws:
            words = message.split(" ") if isinstance(message, str) else [""]
            match words[0]:
                case "/close":
                    await ws.close(int(words[1]), words[2])
                case "/vanish":
                    ws.abort()
                case "/ping":
                    await ws.ping()
                    await ws.send("pong")
                case "/pieces":
                    async with ws.send_stream(text=True) as stream:
                        for piece in PIECES:
                            await stream.send(piece)
                case "/request":
                    await ws.send(ws.data)
                case "/broadcast":
                    trionet.broadcast(self.here, words[1])
                case _:
                    await ws.send(message)


protocol = trionet.WebSocketProtocol(
    Host(),
    subprotocols=["chat"],
    headers=["cookie", "sec-websocket-extensions"],
    http=trionet.HttpProtocol(
        {"/": trionet.Response(body=b"<!doctype html><title>t</title>", content_type="text/html")}
    ),
    compression=trionet.Deflate(
        server_no_context_takeover=False, client_no_context_takeover=False, threshold=0
    ),
    max_message=2**21,
)
context = trionet.server_tls_context(sys.argv[2]) if sys.argv[1:2] == ["--tls"] else None


def announce(server: trionet.Server) -> None:
    """Tell the test where to go."""
    url = server.endpoints[0].url
    print("listening on", url.replace("ws", "http", 1), flush=True)


async def main() -> None:
    """Serve until ended."""
    await trionet.serve(protocol, "127.0.0.1", 0, announce=announce, ssl_context=context)


trio.run(main)
