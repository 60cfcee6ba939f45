"""What was asked of a bus, and what came of it."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from trionet.client.subscription import BusMessage
from trionet.errors import BusError
from trionet.pubsub.publication import Position

__all__ = ["BusHistory", "BusMembers", "Request"]


@attrs.frozen
class BusHistory:
    """What a topic's history has, the oldest first. `position`: behind the last of these, to go on with as `since`.

    `complete`: nothing is missing between what was asked for and the first of these.
    """

    messages: list[BusMessage]
    position: Position
    complete: bool


@attrs.frozen
class BusMembers:
    """Who is on a topic: how many, and the first of them by name, with the info each has."""

    count: int
    members: dict[str, Any]


@attrs.define(eq=False)
class Request:
    """Something that waits for its answer; sent again on each new connection until it has one."""

    text: str
    topic: str
    key: str | None
    silent: bool  # not to our own subscription
    done: trio.Event = attrs.Factory(trio.Event)
    answer: dict[str, Any] | None = None
    error: BusError | None = None

    def fail(self, error: BusError) -> None:
        """It will have none."""
        self.error = error
        self.done.set()
