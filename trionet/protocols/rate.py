"""Message and byte rates of a connection, for protocols that limit them. Nothing here exists for those that do not.

A token bucket that holds one second's worth. Who uses it up is not read from until it has refilled: the kernel's
buffer, then the peer, feels it; nothing is lost and nobody is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionet.net.connection import OPEN, Connection, ProtocolInterface
from trionet.net.traits import NO_SLOTS
from trionet.protocols.channel import WebSocket

if TYPE_CHECKING:
    from trionet.net.engine import Engine

__all__ = ["RateLimit", "RateLimitedWebSocket"]


_ROUNDING = 1e-9  # seconds: what additions of fractions may leave behind


class RateLimit:
    """The limits of a protocol: messages and bytes in a second, None for no limit."""

    def __init__(self, messages: float | None, received: float | None) -> None:
        self.messages = messages or float("inf")
        self.received = received or float("inf")

    def charge(self, ws: RateLimitedWebSocket, events: int, size: int) -> None:
        """`ws` has received `size` bytes that completed so many `events`, control frames included."""
        left = self.refill(ws)
        left[1] -= events
        left[2] -= size
        wait = self.wait(left)
        if wait > 0:
            ws.pause_reading()
            self.call_again(ws, wait)

    def owed(self, ws: RateLimitedWebSocket) -> float:
        """Seconds until `ws` may be read from; 0 once we have said goodbye, for then only the answer matters."""
        if ws.allowance is None or ws._state & 7 != OPEN:
            return 0.0
        return self.wait(self.refill(ws))

    @staticmethod
    def call_again(ws: RateLimitedWebSocket, seconds: float) -> None:
        """Have `ws` look at its deadlines, and so resume reading, after so long."""
        engine = ws.engine
        engine.set_deadline(ws, engine.tick + engine.wheel.ticks(seconds))

    def refill(self, ws: RateLimitedWebSocket) -> list[float]:
        """What `ws` has left now: ``[tick, messages, bytes]``, below zero when it is in debt."""
        engine = ws.engine
        left = ws.allowance
        if left is None:
            left = ws.allowance = [engine.tick, self.messages, self.received]
            return left
        passed = (engine.tick - left[0]) * engine.wheel.resolution
        if passed:
            left[0] = engine.tick
            left[1] = min(self.messages, left[1] + passed * self.messages)
            left[2] = min(self.received, left[2] + passed * self.received)
        return left

    def wait(self, left: list[float]) -> float:
        """Seconds until nothing is owed."""
        owed = max(max(0.0, -left[1]) / self.messages, max(0.0, -left[2]) / self.received)
        return owed if owed > _ROUNDING else 0.0


class RateLimitedWebSocket(WebSocket):
    """A `WebSocket` whose protocol limits rates (a trait, see `trionet.net.traits`)."""

    __slots__ = NO_SLOTS
    words = ("allowance",)

    allowance: list[float] | None

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self.allowance = None

    async def run(self) -> bool | None:
        """Without the short cut of `WebSocket.run`: every read is charged."""
        return await Connection.run(self)

    @property
    def throttled(self) -> bool:
        """Also while it has used up its rate."""
        if self._owed() > 0:
            return True
        return Connection.throttled.fget(self)  # type: ignore[attr-defined, no-any-return]

    def resume_reading(self) -> None:
        """Not before the rate allows it. An earlier deadline may have come in between, so the next is set here."""
        owed = self._owed() if self.fd >= 0 else 0.0
        if owed > 0:
            RateLimit.call_again(self, owed)
        else:
            super().resume_reading()

    def _owed(self) -> float:
        # Before it is charged the protocol may be another one that has no rate: a TLS handshake.
        limit = self.protocol.rate if self.allowance is not None else None
        return limit.owed(self) if limit is not None else 0.0
