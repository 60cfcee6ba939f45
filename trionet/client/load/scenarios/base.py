"""The scenario `idle`, and what all of them share: connect, hold, count what is lost."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import trio

from trionet.errors import ConnectionClosed

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker

__all__ = ["ANSWERS_WITHIN", "Scenario"]

ANSWERS_WITHIN = 5.0  # seconds after the end of the measuring in which the last answers may come


class Scenario:
    """Connect at a rate, then hold. The others override what they do otherwise."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.options = worker.options
        self.share = worker.share
        self.meter = worker.meter
        self.links: list[Any] = []  # those that were opened; some may have ended
        self.closing = False  # from here on nothing that ends is lost

    # ----------------------------------------------------- what drives a run

    async def ramp(self) -> None:
        """Connect all."""
        share = self.share
        await self.worker.dialer.connect(share.connections, share.connect_rate, phase=self.phase)

    async def measure(self, until: float) -> None:
        """Do what is to be measured, until the monotonic clock says `until`."""
        await trio.sleep(max(0.0, until - time.monotonic()))

    def conclude(self) -> None:
        """The measuring is over, and what was on its way had its time: count what is missing."""

    @property
    def phase(self) -> float:
        """Where in an interval this process does what all do at the same rate."""
        return self.share.number / self.worker.processes

    # ------------------------------------------------ what connections bring

    def opened(self, link: Any) -> None:
        """A link is open."""
        self.links.append(link)

    def frames(self, link: Any, data: bytes) -> bool:  # noqa: ARG002
        """What has come, as it came: whether it was known by sight and is done with."""
        return False

    async def received(self, link: Any, message: str | bytes) -> None:  # noqa: ARG002
        """A message, decoded."""
        self.meter.received += 1
        self.meter.received_bytes += _size(message)

    def lost(self, link: Any, closed: ConnectionClosed) -> None:  # noqa: ARG002
        """A link that was open has ended."""
        meter = self.meter
        meter.open -= 1
        if self.closing or closed.by == "us":
            return
        meter.lost += 1
        said = f"{closed.code} by {closed.by}"
        meter.closed[said] = meter.closed.get(said, 0) + 1
        if self.worker.dialer.retries:
            self.worker.dialer.lost()

    # ------------------------------------------------------------- for those

    def pick(self) -> Any:
        """An open link, chosen at random; None: there is none."""
        links = self.links
        while links:
            index = int(random.random() * len(links))
            link = links[index]
            if link.is_open:
                return link
            links[index] = links[-1]
            del links[-1]
        return None


def _size(message: str | bytes) -> int:
    return len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())
