"""The servers under test: an echo of each kind of handler, whose ends and requests the tests can look at."""

from __future__ import annotations

import pytest
import trio
from interop_peers import PEERS
from ws_peer import serving

import trionet


def peers(*abilities: str):
    """Mark a test that is run with each peer that has these abilities."""
    names = [name for name, kind in PEERS.items() if set(abilities) <= kind.can]
    return pytest.mark.parametrize("connect", names, indirect=True)


class Host(trionet.WebSocketHandler):
    """What both kinds have: they refuse /forbidden, answer with a header and a cookie, and note who comes and goes."""

    def __init__(self) -> None:
        self.requests = []
        self.ends = []
        self.arrived = []

    async def on_upgrade(self, ws, request):
        if request.path == "/forbidden":
            raise trionet.Rejection(403, body="not here\n")
        self.requests.append(request)
        return trionet.Accept(headers=[("X-Seen", "yes"), ("Set-Cookie", "a=b; Path=/")])

    async def end(self, *, within: float = 10) -> trionet.ConnectionClosed:
        """Return how the only connection ended."""
        with trio.fail_after(within):
            while not self.ends:  # noqa: ASYNC110 - the handler has no event for it
                await trio.sleep(0.001)
        [closed] = self.ends
        return closed

    async def first(self) -> trionet.WebSocket:
        """Return the first connection, once it is open."""
        while not self.arrived:  # noqa: ASYNC110 - the same
            await trio.sleep(0.001)
        return self.arrived[0]


class Events(Host):
    """An echo by events."""

    async def on_open(self, ws):
        self.arrived.append(ws)

    async def on_message(self, ws, message):
        await ws.send(message)

    async def on_close(self, ws, closed):
        self.ends.append(closed)


class Straight(Host):
    """An echo in a straight line."""

    async def handle(self, ws):
        self.arrived.append(ws)
        try:
            async for message in ws:
                await ws.send(message)
        finally:
            self.ends.append(ws.closed)


both_kinds = pytest.mark.parametrize("kind", [Events, Straight], ids=["events", "straight"])

__all__ = ["Events", "Host", "Straight", "both_kinds", "peers", "serving"]
