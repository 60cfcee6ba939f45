"""Find connections by a key of your own, close a user's, let a token expire. Costs nothing for those not in it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from trionet.errors import Rejection

if TYPE_CHECKING:
    from trionet.protocols.channel import WebSocket

__all__ = ["Registry"]


class Registry:
    """Part of a `WebSocketProtocol`. Connections leave it by themselves when they end."""

    def __init__(self) -> None:
        self._keys: dict[WebSocket, Hashable] = {}
        self._found: dict[Hashable, set[WebSocket]] = {}
        self._expiries: dict[WebSocket, int] = {}
        self.used = False

    def __len__(self) -> int:
        """Connections that have a key."""
        return len(self._keys)

    def assign(self, ws: WebSocket, key: Hashable) -> None:
        """Give `ws` a key, such as a user's name; several connections may share one. Replaces an earlier key.

        Does nothing for a connection that has ended: nobody would take it out again.
        """
        if ws.fd < 0:
            return
        self.used = True
        self._unassign(ws)
        self._keys[ws] = key
        self._found.setdefault(key, set()).add(ws)

    def find(self, key: Hashable) -> frozenset[WebSocket]:
        """The connections with this key."""
        return frozenset(self._found.get(key, ()))

    def close(self, key: Hashable, code: int = 1008, reason: str = "") -> int:
        """Begin closing all connections with this key; returns how many there are.

        One whose `on_upgrade` has not ended yet is refused with 403.
        """
        found = self.find(key)
        for ws in found:
            if ws.is_opening:
                ws.protocol.refuse(ws, Rejection(403))
            else:
                ws.close_nowait(code, reason)
        return len(found)

    def expire(self, ws: WebSocket, seconds: float | None) -> None:
        """Close `ws` with 1008 in `seconds` (as when its token expires); None takes that back."""
        if seconds is None:
            self._expiries.pop(ws, None)
            return
        if ws.fd < 0:
            return
        self.used = True
        engine = ws.engine
        tick = engine.tick + engine.wheel.ticks(seconds)
        self._expiries[ws] = tick
        engine.set_deadline(ws, tick)

    def expiry(self, ws: WebSocket) -> int:
        """The tick at which `ws` expires, or 0."""
        return self._expiries.get(ws, 0)

    def forget(self, ws: WebSocket) -> None:
        """`ws` has ended."""
        self._unassign(ws)
        self._expiries.pop(ws, None)

    def _unassign(self, ws: WebSocket) -> None:
        if ws in self._keys:
            key = self._keys.pop(ws)
            others = self._found[key]
            others.discard(ws)
            if not others:
                del self._found[key]
