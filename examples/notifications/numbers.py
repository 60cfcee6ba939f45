"""What the operator sees: each worker publishes its numbers once a second, on the bus that they are about."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from trionet.bus.encoder import MessageEncoder
from trionet.errors import BrokerError
from trionet.net.histogram import Histogram

if TYPE_CHECKING:
    import trionet
    from trionet.pubsub.publication import Publication

    from .server import Notifications

__all__ = ["Meter", "report"]


class Meter(MessageEncoder):
    """Counts mails where they become messages: once for each worker that somebody is connected to who wants it."""

    def __init__(self, bus: Any) -> None:
        super().__init__(bus.broker.rules)
        self._hub = bus.hub
        self._clear()

    def _clear(self) -> None:
        self.mails = self.deliveries = 0
        self.delays = Histogram()  # microseconds from when the broker had it until it is sent to all

    def publication(self, publication: Publication, /) -> trionet.PreparedMessage:
        """Encode it."""
        if publication.data.startswith(b'{"type":"mail"'):  # not what was read, nor these numbers
            self.mails += 1
            self.deliveries += self._hub.count(publication.topic)
            self.delays.record(max(0, int((time.time() - publication.at) * 1e6)))
        return super().publication(publication)

    def take(self) -> dict[str, Any]:
        """The numbers since the last call. Of the delays all buckets: percentiles of several workers do not add up."""
        delays = self.delays.to_json()["buckets"]
        taken = {"mails": self.mails, "deliveries": self.deliveries, "delays": delays}
        self._clear()
        return taken


async def report(handler: Notifications, server: trionet.Server) -> None:
    """Publish a worker's numbers for as long as it runs. Nobody needs those of a second that is over."""
    bus = handler.bus
    while True:
        await trio.sleep(1.0)
        hub, state = bus.hub.statistics(), bus.broker.state
        numbers = {
            "pid": os.getpid(),
            "connections": server.engine.connections,
            "users": len(handler.users),
            "subscriptions": hub.subscriptions,
            "broker": {
                "name": bus.broker.name,
                "lag": state.lag,
                "reconnects": state.reconnects,
                "error": state.error,
            },
            **handler.meter.take(),
        }
        with suppress(BrokerError):  # the page sees that nothing comes
            await handler.publish(f"ops:{bus.node}", numbers)
