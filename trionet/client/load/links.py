"""One connection of a load run: a `ClientWebSocket` with a short way through what it mostly does.

While it is idle it is a slots object and a descriptor, nothing else: no task, no handshake, no response. What it
receives goes to the scenario as it came from the kernel (`Scenario.frames`); only what the scenario does not know by
sight is decoded. Pings, closing, TLS, compression and backpressure are those of any client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trionet.client.websocket import ClientProtocol
from trionet.net.connection import FRESH, OPEN, OPENING, READ_SIZE, broken
from trionet.net.traits import NO_SLOTS, compose
from trionet.protocols.channel import WebSocket
from trionet.protocols.websocket import WebSocketHandler

if TYPE_CHECKING:
    from trionet.client.load.attempt import Attempt
    from trionet.client.load.scenarios import Scenario

__all__ = ["Link", "LoadProtocol"]

_QUEUE = 2**26  # bytes: a generator never drops what it is to send


class Link(WebSocket):
    """What `ClientWebSocket` is in a load run (a trait, see `trionet.net.traits`). `data` belongs to the scenario."""

    __slots__ = NO_SLOTS
    words = ("_agreed",)

    protocol: LoadProtocol
    _agreed: Attempt | None  # while it is under way

    async def run(self) -> bool | None:
        """Read once. What the scenario knows by sight is not decoded."""
        if self._state != OPEN or self._out is not None or self._input is not None:
            return await super().run()
        try:
            data = self._get(self.fd, READ_SIZE)
        except BlockingIOError:
            return None if self._state == OPEN else await self._settle()
        except OSError as error:
            self.abort(broken(error))
            return await self._settle()
        self._seen = self.engine.tick
        if not data:
            await self._at_eof()
        elif not self.protocol.scenario.frames(self, data):
            await self.deliver(self.protocol.decode(self, data), len(data))
        return await self._settle() if self._state != OPEN else None

    def emit(self, frames: bytes) -> None:
        """Send frames that are masked already."""
        WebSocket.write(self, frames)

    def _release(self) -> None:
        attempt = self._agreed
        super()._release()
        if attempt is not None and self.fd < 0:
            attempt.ended(self)


class LoadProtocol(ClientProtocol):
    """What the connections of a process share."""

    def __init__(self, scenario: Scenario, **settings: Any) -> None:
        handler = _Receiver()
        handler.on_message = scenario.received  # type: ignore[method-assign, assignment]
        super().__init__(handler, high_water=_QUEUE, hard_limit=2 * _QUEUE, write_timeout=None, **settings)
        self.on_message = scenario.received  # type: ignore[assignment]
        self.scenario = scenario
        self.connection_class = compose(self.connection_class, Link)

    async def opening(self, ws: Any, data: bytes, scanned: object = None) -> None:  # noqa: ARG002
        rest = ws._agreed.heard(ws, data)
        if rest:
            await ws.deliver(self.decode(ws, rest), len(rest))

    def agreed(self, ws: Any) -> None:
        """The server has agreed."""
        ws._agreed = None
        ws.opened()
        if self.ping_interval:
            ws.engine.set_deadline(ws, ws.engine.tick + ws.engine.wheel.ticks(self.ping_interval))

    def lost(self, connection: Any) -> None:
        if not connection._state & FRESH:
            self.scenario.lost(connection, connection.closed)

    def next_deadline(self, connection: Any) -> int:
        if connection._state & 7 == OPENING:
            return connection._agreed.deadline(connection)  # type: ignore[no-any-return]
        return super().next_deadline(connection)


class _Receiver(WebSocketHandler):
    """Makes the protocol one of event handlers."""

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        """Never called: the scenario's takes its place."""
