"""The connection of a bus client: made again whenever it is lost, until the server does not want us back."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from trionet.client.reconnecting import Reconnecting
from trionet.client.websocket import ClientWebSocket
from trionet.errors import BusError, ConnectionClosed, TrionetError, first_error
from trionet.wire.bus import encode_data, reconnects
from trionet.wire.closing import CloseCode

__all__ = ["BusLink", "Hearer"]

log = logging.getLogger("trionet.client")

WELCOME_TIMEOUT: Final = 15.0


class Hearer(Protocol):
    """What a link tells."""

    def welcomed(self, welcome: dict[str, Any]) -> None:
        """There is a connection, and the server speaks the protocol of the bus."""

    def heard(self, message: dict[str, Any], size: int) -> None:
        """A message came; of `size` characters."""

    def lost(self) -> None:
        """The connection has gone; there will be another."""

    def ended(self, error: BusError) -> None:
        """There will be no other."""


class BusLink:
    """Keeps connected as long as `run` runs. `shown`: the URL, without its secrets."""

    def __init__(self, shown: str, hearer: Hearer) -> None:
        self.shown = shown
        self._hearer = hearer
        self._ws: ClientWebSocket | None = None
        self._scope = trio.CancelScope()  # of `run`
        self._nursery: trio.Nursery | None = None  # of a connection, from its welcome on
        self._outgoing: deque[str | Callable[[], str | None]] = deque()
        self._more = trio.Event()
        self._leaving = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, and the server has said welcome."""
        return self._nursery is not None

    def post(self, item: dict[str, Any] | Callable[[], str | None]) -> None:
        """Have a message sent on this connection, or what a function returns when its turn has come (None: nothing).

        What waits is bounded by those who post: each request once, two lines of each subscription in a round trip.
        """
        self._outgoing.append(item if callable(item) else encode_data(item).decode())
        self._more.set()

    def later(self, delay: float, act: Callable[[], object]) -> None:
        """Call `act` in so many seconds, if this connection lasts so long."""
        if self._nursery is not None:
            self._nursery.start_soon(_after, delay, act)

    async def run(self, connections: Reconnecting) -> None:
        """Keep connected until we leave, or are told to."""
        error = BusError("closed", "the block of the client was left")
        try:
            with self._scope:
                async with connections:
                    async for ws in connections:
                        self._ws = ws
                        await self._serve(ws)
                        if self._leaving:
                            break
                        if ws.closed is not None and not reconnects(ws.closed.code):
                            error = BusError("closed", str(ws.closed))
                            break
        except (OSError, TrionetError) as reason:  # no attempt will do better
            error = BusError("closed", str(reason))
            error.__cause__ = reason
        finally:
            self._hearer.ended(error)

    def leave(self) -> None:
        """Close the connection, or give up to make one."""
        self._leaving = True
        if self._ws is not None and self._ws.closed is None:
            self._ws.close_nowait(CloseCode.NORMAL)
        else:
            self._scope.cancel()

    async def _serve(self, ws: ClientWebSocket) -> None:
        """One connection to its end."""
        try:
            with trio.fail_after(WELCOME_TIMEOUT):
                welcome = _read(await ws.receive())
            if welcome["type"] != "welcome":
                raise TypeError(f"it begins with {welcome['type']!r:.80}")  # noqa: TRY301 - as what cannot be read
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                self._outgoing.clear()
                self._hearer.welcomed(welcome)
                nursery.start_soon(self._write, ws)
                try:
                    while True:
                        text = await ws.receive()
                        self._hearer.heard(_read(text), len(text))
                finally:
                    nursery.cancel_scope.cancel()
        except* ConnectionClosed:
            pass
        except* trio.TooSlowError:
            log.warning("%s: no welcome within %g s", self.shown, WELCOME_TIMEOUT)
        except* (AttributeError, KeyError, TypeError, ValueError) as group:
            log.error("%s does not speak the protocol of the bus: %r", self.shown, first_error(group))  # noqa: TRY400
            ws.close_nowait(CloseCode.PROTOCOL_ERROR)
        finally:
            if self._nursery is not None:
                self._nursery = None
                self._hearer.lost()

    async def _write(self, ws: ClientWebSocket) -> None:
        """A task of its own: a server that reads slowly is written to slowly, and heard all the same."""
        try:
            while True:
                while self._outgoing:
                    item = self._outgoing.popleft()
                    text = item if isinstance(item, str) else item()
                    if text is not None:
                        await ws.send(text)
                self._more = trio.Event()
                await self._more.wait()
        except ConnectionClosed:
            pass  # who reads finds out, too


async def _after(delay: float, act: Callable[[], object]) -> None:
    await trio.sleep(delay)
    act()


def _read(text: str | bytes) -> dict[str, Any]:
    message = json.loads(text)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise TypeError("a message is an object with a type")
    return message
