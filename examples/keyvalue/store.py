"""Keys, values and their expiry, within limits. Knows nothing of connections."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import trio

from examples.keyvalue.resp import Limits

OVERHEAD = 200  # bytes of memory for a key beside its name and its value, about


class CommandFailed(Exception):
    """A command cannot be run: the peer is told, and may go on."""


class Store:
    """Keys and values, in a dict; with a heap of expiries that is worked off a few at a time."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = trio.current_time) -> None:
        self.limits = limits
        self.clock = clock
        self.values: dict[bytes, bytes] = {}
        self.expiries: dict[bytes, float] = {}
        self.heap: list[tuple[float, bytes]] = []
        self.memory = 0

    def sweep(self, count: int = 20) -> None:
        """Drop keys that have expired, and so many at most."""
        if not self.heap:
            return
        now = self.clock()
        while self.heap and self.heap[0][0] <= now and count:
            when, key = heapq.heappop(self.heap)
            if self.expiries.get(key) == when:
                self.remove(key)
            count -= 1

    def get(self, key: bytes) -> bytes | None:
        """The value; None when there is none (any more)."""
        if self.expiries and (when := self.expiries.get(key)) is not None and when <= self.clock():
            self.remove(key)
        return self.values.get(key)

    def set(self, key: bytes, value: bytes, *, keep: bool = False) -> None:
        """Put a value; its expiry goes unless it is to be kept. Raises `CommandFailed` when memory is used up."""
        old = self.get(key)
        growth = len(value) - len(old) if old is not None else len(key) + len(value) + OVERHEAD
        if growth > 0 and (
            self.memory + growth > self.limits.memory
            or (old is None and len(self.values) >= self.limits.keys)
        ):
            raise CommandFailed("OOM command not allowed when used memory > 'maxmemory'.")
        self.values[key] = value
        self.memory += growth
        if not keep and self.expiries:
            self.expiries.pop(key, None)

    def remove(self, key: bytes) -> bool:
        """Drop a key; whether there was one."""
        value = self.values.pop(key, None)
        self.expiries.pop(key, None)
        if value is None:
            return False
        self.memory -= len(key) + len(value) + OVERHEAD
        return True

    def expire(self, key: bytes, seconds: float) -> bool:
        """Have a key expire after so long; whether there is one."""
        if self.get(key) is None:
            return False
        when = self.expiries[key] = self.clock() + seconds
        heapq.heappush(self.heap, (when, key))
        if len(self.heap) > 2 * len(self.expiries) + 64:  # most of it is out of date
            self.heap = [(when, key) for key, when in self.expiries.items()]
            heapq.heapify(self.heap)
        return True

    def left(self, key: bytes) -> float | None:
        """Seconds until a key expires; None when it does not."""
        when = self.expiries.get(key)
        return None if when is None else when - self.clock()
