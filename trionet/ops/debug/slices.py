"""Looking at very many things without keeping anybody waiting: work in slices, others run in between."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import trio

__all__ = ["SLICE", "Slices"]

SLICE: Final = 0.002  # seconds at a stretch; a batch of the pool takes as long


class Slices:
    """Made when the work begins; `breathe` is awaited often, and gives way once in `SLICE` seconds.

    `seconds`: how long the work has taken so far, the turns of the others included.
    """

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._end = self._begin + SLICE

    async def breathe(self) -> None:
        """Let others run if it is time. What was looked at may have changed afterwards."""
        if perf_counter() >= self._end:
            await trio.lowlevel.checkpoint()
            self._end = perf_counter() + SLICE

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return round(perf_counter() - self._begin, 6)
