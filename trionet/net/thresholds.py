"""Admission policies that look at how loaded the server is: refusing begins at one reading and ends at a lower one."""

from __future__ import annotations

import math
from typing import Final

from trionet.errors import ConfigurationError
from trionet.net.load import Load, give_back_memory
from trionet.net.policy import MANY, Action, AdmissionPolicy, positive

__all__ = ["LoopLag", "MemoryLimit", "PoolWait"]

_INTERVAL: Final = 0.25  # between two samples
_TRIM: Final = 60.0


class _Threshold(AdmissionPolicy):
    """Refuses from a reading above `limit` until it is at or below `resume`: in between, nothing changes."""

    title = "it"

    def __init__(
        self,
        limit: float,
        resume: float,
        smoothing: float,
        *,
        name: str | None,
        action: Action,
        retry_after: float,
    ) -> None:
        super().__init__(name=name, action=action, retry_after=retry_after)
        self.limit = positive(limit, "limit")
        if not 0 <= resume <= limit:
            raise ConfigurationError(f"resume ({resume:g}) must be between 0 and the limit ({limit:g})")
        self.resume = resume
        self.smoothing = smoothing
        self.value = 0.0
        self.refusing = False
        self._sampled: float | None = None

    def read(self, load: Load) -> float:
        """The reading that is compared."""
        raise NotImplementedError

    def sample(self, load: Load) -> None:
        refusing, self.refusing = self.refusing, False  # if it cannot be read, nobody is refused
        value = self.read(load)
        if self.smoothing and self._sampled is not None:
            # Half of what came before counts, each `smoothing` seconds. However long a pause was, it is one reading.
            weight = 0.5 ** (min(load.now - self._sampled, _INTERVAL) / self.smoothing)
            value += (self.value - value) * weight
        self._sampled = load.now
        self.value = value
        self.refusing = value > (self.resume if refusing else self.limit)

    def room(self, load: Load) -> int:  # noqa: ARG002
        return 0 if self.refusing else MANY

    def explain(self, load: Load) -> str:  # noqa: ARG002
        number = self._number
        return (
            f"{self.title}: {number(self.value)}, limit {number(self.limit)}, again at {number(self.resume)}"
        )

    def _number(self, value: float) -> str:
        return f"{value:.3g} s"


class LoopLag(_Threshold):
    """Refuses while timers come more than `limit` seconds late: handlers compute, or there is more to do than time.

    The lateness of the ticks, four in a second, is smoothed with a half-life of `smoothing` seconds, so that one pause
    of up to six times `limit` does not shut the gate. It opens again at `resume`, by default half of `limit`.
    """

    name = "loop_lag"
    title = "timers' lateness"

    def __init__(
        self,
        limit: float,
        resume: float | None = None,
        *,
        smoothing: float = 1.0,
        name: str | None = None,
        action: Action = "wait",
        retry_after: float = 5.0,
    ) -> None:
        resume = limit / 2 if resume is None else resume
        super().__init__(limit, resume, smoothing, name=name, action=action, retry_after=retry_after)

    def read(self, load: Load) -> float:
        return load.lag


class PoolWait(_Threshold):
    """Refuses while jobs wait more than `limit` seconds for their turn: all slots of the pool are taken for long.

    Found out by a job of its own that is queued four times a second. Opens again at `resume`, by default half of it.
    """

    name = "pool_wait"
    title = "the wait for a slot"

    def __init__(
        self,
        limit: float,
        resume: float | None = None,
        *,
        name: str | None = None,
        action: Action = "wait",
        retry_after: float = 5.0,
    ) -> None:
        resume = limit / 2 if resume is None else resume
        super().__init__(limit, resume, 0, name=name, action=action, retry_after=retry_after)

    def read(self, load: Load) -> float:
        return load.pool_wait


class MemoryLimit(_Threshold):
    """Refuses while the process has more than `limit` bytes of physical memory, looked at once a second.

    Or, with `share` instead, while that part of the memory limit of its control group is in use (0.9: nine tenths), by
    all processes in it. Opens again at `resume`, in the same unit, by default 5 % below. What Python frees is not given
    back to the system at once, so while it refuses, the C library is asked to do that once a minute. Something may stay
    nevertheless: set it well above the ordinary, as the last resort that it is. Linux.
    """

    name = "memory"
    title = "memory"

    def __init__(
        self,
        limit: int | None = None,
        *,
        share: float | None = None,
        resume: float | None = None,
        name: str | None = None,
        action: Action = "wait",
        retry_after: float = 5.0,
    ) -> None:
        if (limit is None) == (share is None):
            raise ConfigurationError("MemoryLimit: give either a number of bytes or share=, a part of 1")
        if share is not None and not 0 < share <= 1:
            raise ConfigurationError(f"share is a part of the control group's limit, 0 to 1, not {share!r}")
        self.share = share
        bound = share if limit is None else limit
        assert bound is not None
        self._trim_at = -math.inf
        resume = bound * 0.95 if resume is None else resume
        super().__init__(bound, resume, 0, name=name, action=action, retry_after=retry_after)

    def sample(self, load: Load) -> None:
        super().sample(load)
        if self.refusing and load.now >= self._trim_at:
            self._trim_at = load.now + _TRIM
            give_back_memory()

    def read(self, load: Load) -> float:
        return load.resident if self.share is None else load.cgroup_share

    def _number(self, value: float) -> str:
        return (
            f"{value / 2**20:.1f} MiB" if self.share is None else f"{value:.1%} of the control group's limit"
        )
