"""A bus served over loopback, and clients of it that speak the protocol by hand."""

from __future__ import annotations

import contextlib
import itertools
import json

import trio

import trionet
from trionet.bus import BusHandler, bus_protocol
from trionet.pubsub.topics import HistoryLimits, TopicOptions

RULES = {
    "room:*": TopicOptions(presence=True),
    "tick:*": TopicOptions(history=None),
    "short:*": TopicOptions(history=HistoryLimits(count=3)),
    "long:*": TopicOptions(history=HistoryLimits(count=10_000, size=2**26)),
    "price:*": TopicOptions(conflate=True),
}


class Desk(BusHandler):
    """Who connects to ``/?ada`` is ada. Everybody has everything but secrets; a pattern is for the admin."""

    async def authenticate(self, ws, request):
        if request.query == "eve":
            raise trionet.Rejection(403)
        return request.query or None

    async def may_subscribe(self, user, topic):
        return not topic.startswith("secret:")

    async def may_subscribe_pattern(self, user, pattern):
        return user == "admin"

    async def may_publish(self, user, topic, data):
        return await self.may_subscribe(user, topic)

    def member(self, user, session):
        return user, {"name": user.title()}


class Peer:
    """One connection. Answers are found by their id, whatever comes before them is kept for `next`."""

    def __init__(self, ws):
        self.ws = ws
        self.kept = []
        self.ids = itertools.count(1)
        self.hello = None

    async def say(self, kind, **fields):
        """Send a message without an answer."""
        await self.ws.send(json.dumps({"type": kind, **fields}))

    async def hear(self):
        """Return the next message as it comes."""
        with trio.fail_after(10):
            return json.loads(await self.ws.receive())

    async def ask(self, kind, topic, **fields):
        """Send a request, return its answer."""
        known = next(self.ids)
        await self.say(kind, id=known, topic=topic, **fields)
        return await self.answer(known)

    async def answer(self, known):
        """Return the answer to the request `known`."""
        while (message := await self.hear()).get("id") != known:
            self.kept.append(message)
        return message

    async def next(self, kind=None):
        """Return the next message that is no answer; of a kind, if one is given."""
        while True:
            message = self.kept.pop(0) if self.kept else await self.hear()
            if kind is None or message["type"] == kind:
                return message

    async def quiet(self):
        """Claim that nothing has come that was not looked at."""
        await self.say("ping")
        assert await self.next() == {"type": "pong"}

    async def ended(self):
        """Return how the connection ends."""
        try:
            while True:
                self.kept.append(await self.hear())
        except trionet.ConnectionClosed as closed:
            return closed

    async def kill(self):
        """Break the connection as a network does."""
        self.ws.reset(trionet.ConnectionClosed(1006, "killed", "us"))
        await self.ws.wait_closed()


class Served:
    """A bus that is served."""

    def __init__(self, protocol, server, client):
        self.protocol = protocol
        self.handler = handler = protocol.handler
        self.bus = handler.bus
        self.server = server
        self.client = client
        self.url = server.endpoints[0].url.rstrip("/")

    async def join(self, user="", **options):
        """Connect, and be greeted."""
        peer = Peer(await self.client.connect(f"{self.url}/?{user}", **options))
        peer.hello = await peer.hear()
        return peer


@contextlib.asynccontextmanager
async def serving(handler=None, *, http=None, **options):
    """Serve a bus; `options` are those of its protocol."""
    handler = handler or Desk("memory", rules=RULES, linger=0.5)
    protocol = bus_protocol(handler, http=http, **options)
    async with (
        trionet.open_client(ping_interval=None) as client,
        trionet.open_server(protocol, lifespan=handler.lifespan) as server,
    ):
        yield Served(protocol, server, client)


async def until(condition):
    """Wait until `condition` holds."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - of things that have no event
            await trio.sleep(0.005)
