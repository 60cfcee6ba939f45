"""From a descriptor to an open WebSocket: the handshake, as it is while it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionet.errors import ConnectionClosed, ProtocolError, UpgradeRefused
from trionet.net.pool import Waiter
from trionet.wire.client_handshake import ResponseReader, UpgradeResponse, check_upgrade_response
from trionet.wire.url import Target

if TYPE_CHECKING:
    from trionet.client.websocket import ClientWebSocket

__all__ = ["Opening"]

_BODY_TIME = 2.0  # seconds for the body of a refusal


class Opening:
    """A handshake under way: what was asked for, what has been answered, and the task that waits."""

    __slots__ = (
        "_due",
        "_reader",
        "_waiter",
        "done",
        "error",
        "key",
        "offers",
        "request",
        "subprotocol",
        "target",
    )

    def __init__(self, target: Target, request: bytes, key: bytes, offers: tuple[str, ...]) -> None:
        self.target = target
        self.request = request
        self.key = key
        self.offers = offers
        self.subprotocol: str | None = None
        self.error: Exception | None = None
        self.done = False
        self._reader = ResponseReader()
        self._waiter: Waiter | None = None
        self._due = 0  # tick at which the body of a refusal has been waited for long enough

    async def wait(self) -> None:
        """Wait until the connection is open; raise what kept it from that."""
        if not self.done:
            self._waiter = Waiter()
            try:
                await self._waiter.wait()
            finally:
                self._waiter = None
        if self.error is not None:
            raise self.error

    def heard(self, ws: ClientWebSocket, data: bytes) -> None:
        """Bytes of the response have come; none: the server has closed the connection."""
        try:
            if self._reader.feed(data) if data else self._reader.end():
                self._answered(ws)
            elif not data:
                ws.abort(ConnectionClosed(1006, "the server closed it before it answered", "peer"))
            elif self._reader.response is not None and not self._due:  # a refusal whose body is still to come
                self._due = ws.engine.tick + ws.engine.wheel.ticks(_BODY_TIME)
                ws.engine.set_deadline(ws, self._due)
        except ProtocolError as error:
            self._fail(ws, error)

    def next_deadline(self, ws: ClientWebSocket) -> int:
        """The body of a refusal is not waited for for long: what came of it is enough."""
        if not self._due or self._due > ws.engine.tick:
            return self._due
        self._answered(ws)
        return 0

    def _answered(self, ws: ClientWebSocket) -> None:
        reader = self._reader
        response = reader.response
        assert response is not None
        if response.status != 101:
            self._fail(ws, _refusal(response, reader.body, self.target))
            return
        deflate = ws.protocol.compression
        self.subprotocol, extensions = check_upgrade_response(
            response, self.key, self.offers, extensions=deflate is not None
        )
        if deflate is not None and (codec := deflate.confirm(extensions)) is not None:
            ws.codec = codec.private()  # type: ignore[attr-defined]
        self._finish()
        ws.protocol.opened(ws, self, response, reader.rest)

    def _fail(self, ws: ClientWebSocket, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            error = ProtocolError(f"{self.target}: {error}", error.code)
        self.failed(error)
        ws.abort(ConnectionClosed(1006, str(error), "us"))

    def failed(self, error: Exception) -> None:
        """The handshake is over; `wait` raises `error`, the first one."""
        if not self.done:
            self.error = error
            self._finish()

    def broke_off(self, ws: ClientWebSocket) -> None:
        """The connection has ended before it was open."""
        closed = ws.closed
        reason = closed.reason if closed is not None else ""
        self.failed(ConnectionError(f"{self.target}: the connection ended during the handshake: {reason}"))

    def _finish(self) -> None:
        self.done = True
        if self._waiter is not None:
            self._waiter.wake()


def _refusal(response: UpgradeResponse, body: bytes, target: Target) -> UpgradeRefused:
    return UpgradeRefused(response.status, response.reason, response.headers, body, where=str(target))
