"""The subjects of the fan-out bench: every connection subscribes to one topic, what a client sends is published there.

hub.py PORT hub|bus|json

hub: by `Hub` alone. bus: by `Bus` with the memory broker, with history, but without the JSON protocol. json: the
subject of pubsub.py, a `BusHandler` that lets everybody do everything.
"""

from __future__ import annotations

import sys

import trio

import trionet
from trionet.bus import BusHandler, bus_protocol
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.bus import Bus
from trionet.pubsub.hub import Hub

PORT, KIND = int(sys.argv[1]), sys.argv[2]
TOPIC = "all"


class WithHub(trionet.WebSocketHandler):
    """Publishes on the hub of this process."""

    def __init__(self):
        self.hub = Hub(trionet.broadcast)

    async def on_open(self, ws):
        self.hub.subscribe(ws, TOPIC)

    async def on_message(self, ws, message):
        self.hub.publish(TOPIC, message)
        await self.hub.wait_room()

    async def on_close(self, ws, closed):
        self.hub.forget(ws)

    async def run(self, task_status):
        """Send what is published."""
        task_status.started()
        await self.hub.run()


class Plain:
    """An encoder that sends the data as it is."""

    def publication(self, publication):
        return trionet.PreparedMessage(publication.data.decode())

    def interrupted(self, topic, position):
        return trionet.PreparedMessage("interrupted")

    def presence(self, topic, event, member, info):
        return trionet.PreparedMessage(f"{member} {event}")


async def nothing(_):
    """Nobody is told how its subscription begins."""


class WithBus(trionet.WebSocketHandler):
    """Publishes on the bus."""

    def __init__(self):
        self.bus = Bus(MemoryBroker(), trionet.broadcast, Plain())

    async def on_open(self, ws):
        await self.bus.subscribe(ws, TOPIC, begin=nothing, replay=nothing)

    async def on_message(self, ws, message):
        await self.bus.publish(TOPIC, message.encode())

    async def on_close(self, ws, closed):
        self.bus.forget(ws)

    async def run(self, task_status):
        """Send what is published."""
        async with self.bus.running():
            task_status.started()
            await trio.sleep_forever()


class Everybody(BusHandler):
    """Nothing is forbidden."""

    async def may_subscribe(self, user, topic):
        return True

    async def may_publish(self, user, topic, data):
        return True


async def main():
    """Serve until the process is ended."""
    if KIND == "json":
        bus = Everybody("memory")
        protocol = bus_protocol(bus, max_messages_per_second=None, max_bytes_per_second=None)
        await trionet.serve(protocol, "127.0.0.1", PORT, lifespan=bus.lifespan)
        return
    handler = WithHub() if KIND == "hub" else WithBus()
    protocol = trionet.WebSocketProtocol(handler, origins="*", max_message=2**24)
    async with trio.open_nursery() as nursery:
        await nursery.start(handler.run)
        await trionet.serve(protocol, "127.0.0.1", PORT)


trio.run(main)
