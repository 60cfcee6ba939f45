"""A server with its debug page, for `test_debug_browser.py`: a stuck handler, a name that is HTML, a silent worker."""

from __future__ import annotations

import base64
import os

import trio

import trionet
from trionet.ops.control import Agent, Local, Worker
from trionet.ops.debug import install, routes

EVIL = "<img src=x onerror=document.title='owned'>"


class Handler(trionet.WebSocketHandler):
    """Gives each connection an evil name, and gets stuck."""

    async def on_open(self, ws):
        """Say that it is open."""
        ws.protocol.registry.assign(ws, EVIL)
        ws.data = EVIL
        await ws.send("open")

    async def on_message(self, ws, message):
        """Wait for ever."""
        await trio.sleep_forever()


class TwoWorkers(Local):
    """This process, and one that never answers."""

    def __init__(self, agent):
        super().__init__(agent)
        self.workers[1] = Worker(1, 3)


async def client(address):
    """Connect, and say what makes the handler wait."""
    async with await trio.open_tcp_stream(*address) as stream:
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        await stream.send_all(f"{head}Sec-WebSocket-Version: 13\r\n\r\n".encode() + b"\x81\x82\0\0\0\0go")
        async for _ in stream:
            pass


async def main():
    """Serve until killed."""
    async with trionet.open_server(trionet.WebSocketProtocol(Handler())) as server:
        agent = Agent(server)
        install(agent)
        protocol = trionet.HttpProtocol(routes(TwoWorkers(agent)))
        async with trionet.open_server(protocol) as debug, trio.open_nursery() as nursery:
            nursery.start_soon(client, server.addresses[0])
            print(f"listening on {debug.endpoints[0].url}", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
