"""What handlers in different processes tell each other: to let a user go, or to end a subscription of theirs.

It travels over the bus, on a topic that is no client's business, so it reaches all processes that share the broker.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from trionet.protocols.channel import PreparedMessage, WebSocket
from trionet.pubsub.bus import Bus
from trionet.pubsub.publication import Position, Publication
from trionet.wire.bus import encode_data

__all__ = ["CONTROL", "ControlledBus", "Orders"]

log = logging.getLogger("trionet.bus")

#: Clients get at no topic that begins with this.
RESERVED: Final = "$"
CONTROL: Final = "$trionet.control"


class Orders(Protocol):
    """What can be told."""

    def disconnect_here(self, user: str, code: int, reason: str) -> None:
        """Close the connections of `user` to this process."""

    def unsubscribe_here(self, user: str, topic: str) -> None:
        """End the subscriptions of `user` to `topic` in this process."""


class ControlledBus(Bus[WebSocket, PreparedMessage]):
    """A `Bus` that hears what other processes tell. `orders` is set before it runs."""

    orders: Orders

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running():
            await self.broker.subscribe([CONTROL])
            yield

    async def tell(self, order: str, **arguments: Any) -> None:
        """Have all processes do it, this one too. Raises `BrokerError`."""
        await self.broker.publish(CONTROL, encode_data({"do": order, **arguments}))

    def interrupted(self, topic: str, position: Position) -> None:
        if topic == CONTROL:
            log.warning(
                "the broker has lost its past: orders to disconnect users may not have reached this process"
            )
        else:
            super().interrupted(topic, position)

    def deliver(self, publication: Publication) -> None:
        if not publication.topic.startswith(RESERVED):
            super().deliver(publication)
            return
        if publication.topic != CONTROL:  # somebody has the pattern *
            return
        try:
            arguments = json.loads(publication.data)
            orders: dict[str, Callable[..., None]] = {
                "disconnect": self.orders.disconnect_here,
                "unsubscribe": self.orders.unsubscribe_here,
            }
            orders[arguments.pop("do")](**arguments)
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
            log.warning(
                "%s: not understood: %.200r", CONTROL, publication.data
            )  # of another version, perhaps
