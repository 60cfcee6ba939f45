"""`storm`: a control group is in and echoes; all others connect at once; later they are cut and come back at once.

Those that fail try again after a random wait, as good clients do, until all are in. How long that takes is one figure,
what the control group feels meanwhile is the other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from trionet.client.load.scenarios.echo import Answers
from trionet.errors import ConnectionClosed

if TYPE_CHECKING:
    from trionet.client.load.worker import Worker

__all__ = ["Storm"]

_PACE = 0.05  # seconds between two messages of a link of the control group
_CUT_AT_ONCE = 256


class Storm(Answers):
    """See above."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self._crowd: set[Any] = set()
        self._gathering = True  # the control group connects

    async def ramp(self) -> None:
        share = self.share
        await self.worker.dialer.connect(share.control, share.connect_rate, phase=self.phase)
        self._gathering = False

    def opened(self, link: Any) -> None:
        if self._gathering:
            super().opened(link)
        else:
            self._crowd.add(link)

    def lost(self, link: Any, closed: ConnectionClosed) -> None:
        self._crowd.discard(link)
        super().lost(link, closed)

    async def echo_for_ever(self) -> None:
        """The control group: each link sends when its last message was answered, but not too often."""
        self.active = True
        while True:
            began = time.monotonic()
            for count, link in enumerate(self.links):
                if link.is_open and link.data is None:
                    self.send(link, time.monotonic())
                if count % 32 == 31:
                    await trio.lowlevel.checkpoint()
            await trio.sleep(max(0.001, began + _PACE - time.monotonic()))

    async def storm(self) -> None:
        """Cut the crowd, if it is in, and have it connect at once; return when all are in."""
        dialer = self.worker.dialer
        self.histogram = self.meter.control
        dialer.since = time.monotonic()
        dialer.histogram = self.meter.reconnect
        crowd = list(self._crowd)
        self._crowd.clear()
        for count, link in enumerate(crowd):
            link.reset()
            if count % _CUT_AT_ONCE == _CUT_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
        try:
            waiting = dialer.left  # of the last storm, and what the server has cut since
            await dialer.connect(self.share.connections - self.share.control - waiting, None, limit=0)
        finally:
            self.histogram = self.meter.message
