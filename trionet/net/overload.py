"""Tells of overload in few lines: when it begins, and why, once a minute while it lasts, and when it is over."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

__all__ = ["CALM", "Overload"]

log = logging.getLogger("trionet")

CALM: Final = 5.0  # seconds in which nobody was refused, after which it is over
_REMINDER: Final = 60.0


class Overload:
    """Whether a gate refuses, seen from afar: short breaks do not count. Times are those of Trio's clock."""

    def __init__(self) -> None:
        self.episodes = 0
        self.reason: str | None = None  # of the one that lasts
        self._begun = 0.0
        self._last = 0.0
        self._told = 0.0
        self._refused = 0

    @property
    def ends(self) -> float:
        """When it will be over, if nobody is refused until then."""
        return math.inf if self.reason is None else self._last + CALM

    def refused(self, now: float, reason: str, why: Callable[[], str], turned_away: int = 0) -> bool:
        """Somebody was: left in the backlog, or so many turned away. `why` says it in numbers.

        Returns whether it begins.
        """
        self._last = now
        begins = self.reason is None
        if begins:
            self.reason = reason
            self.episodes += 1
            self._begun = self._told = now
            self._refused = 0
            log.warning("overload: new connections are refused: %s: %s", reason, why())
        self._refused += turned_away
        if now - self._told >= _REMINDER:
            self._told = now
            log.warning(
                "overload lasts, for %.0f s: %s: %s; %d connections were turned away",
                now - self._begun,
                reason,
                why(),
                self._refused,
            )
        return begins

    def look(self, now: float) -> None:
        """Find out whether it is over."""
        if now >= self.ends:
            log.info(
                "overload is over after %.1f s (%s): %d connections were turned away, others may have waited",
                self._last - self._begun,
                self.reason,
                self._refused,
            )
            self.reason = None
