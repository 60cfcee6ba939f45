"""A server of every kind of handler to look into, for tests of `trionet.ops.debug`."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager

import trio

import trionet
from trionet.ops.control import Agent, ControlError, Local
from trionet.ops.debug import install


async def echo(ws):
    """Answer each message; wait where the message says."""
    async for message in ws:
        if message == "sleep":
            await trio.sleep_forever()
        elif message == "flood":
            while True:
                await ws.send("x" * 5000)
        else:
            await ws.send(message)


class Events(trionet.WebSocketHandler):
    """The same with events."""

    async def on_open(self, ws):
        ws.data = {"name": "<b>"}
        ws.protocol.registry.assign(ws, "ann")

    async def on_message(self, ws, message):
        if message == "sleep":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever, name="the database")
        elif message == "fail":
            raise ValueError(message)
        await ws.send(message)


async def stream(stream):
    """Read for ever."""
    async for _ in stream:
        pass


class Looked:
    """A running server, and what asks it."""

    def __init__(self, server):
        self.server = server
        self.agent = Agent(server)
        install(self.agent)
        self.local = Local(self.agent)
        self.stack = AsyncExitStack()

    async def ask(self, name, **arguments):
        """Return the answer of ``debug.name``; raise the error."""
        answer = (await self.local.ask(f"debug.{name}", timeout=50, **arguments))[os.getpid()]
        if isinstance(answer, ControlError):
            raise answer
        return answer

    async def connect(self, path, *messages):
        """Return a WebSocket that has said these things."""
        port = self.server.addresses[0][1]
        ws = await self.stack.enter_async_context(trionet.connect_websocket(f"ws://127.0.0.1:{port}{path}"))
        for message in messages:
            await ws.send(message)
        return ws

    async def until(self, true):
        """Poll for a state that no event tells."""
        with trio.fail_after(20):
            while not true():  # noqa: ASYNC110
                await trio.sleep(0.005)

    def suspended(self, count):
        """Whether so many handlers wait for something else than a message."""
        return lambda: self.server.engine.pool.suspended + self.server.engine.pool.detached == count


@asynccontextmanager
async def looked_into(**options):
    """Run it: `/echo` straight-line, `/events` with events, and a port for streams."""
    routes = {
        "/echo": trionet.WebSocketProtocol(echo),
        "/events": trionet.WebSocketProtocol(Events()),
        "/": "a page",
    }
    endpoints = [
        trionet.Endpoint(protocol=trionet.Router(routes)),
        trionet.Endpoint(protocol=trionet.StreamProtocol(stream)),
    ]
    with trio.fail_after(40):
        async with trionet.open_server(endpoints, **options) as server:
            looked = Looked(server)
            async with looked.stack:
                yield looked
