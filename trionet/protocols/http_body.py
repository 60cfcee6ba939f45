"""The body of a request, read when the responder asks for it.

What has come is in h11; what comes while the responder runs is overheard by the connection, within its `read_ahead`,
and taken from there. A responder that waits for more is parked, like one that waits for room to send.

A body is to come at a rate: `patience` seconds for its beginning, and a second more for each `MIN_RATE` bytes that
came. Only the time counts in which the responder waits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import trio

from trionet.errors import ConnectionClosed, Rejection
from trionet.net.connection import EOF
from trionet.wire.http1 import refuse

if TYPE_CHECKING:
    import h11

    from trionet.net.pool import Parked, Waiter

__all__ = ["MIN_RATE", "BodyStream", "RequestBody", "next_event"]

MIN_RATE: Final = 1000  # bytes in a second, on average
_EVENTS: Final = 64  # of h11, after which others get a turn: a body may come in chunks of one byte
_SKIPPED: Final = 65536  # bytes that nobody asked for, read so that the connection can go on


class RequestBody:
    """Made by `HttpProtocol` for each request; responders use the methods of `HttpRequest`."""

    __slots__ = (
        "_connection",
        "_due",
        "_events",
        "_parser",
        "_parts",
        "_patience",
        "_received",
        "_waiter",
        "_whole",
        "broken",
        "complete",
        "limit",
        "size",
    )

    def __init__(
        self, connection: Any, parser: h11.Connection, declared: int | None, limit: int, patience: float
    ) -> None:
        self._connection = connection
        self._parser = parser
        # Time, counted in the bytes that are to come in it.
        self._patience = patience * MIN_RATE if patience else float("inf")
        self._due = 0  # tick at which the wait in hand has taken too long
        self._waiter: Waiter | Parked | None = None
        # What is read whole; None: a piece was given away. Not a list: it may come in pieces of one byte.
        self._parts: bytearray | None = bytearray()
        self._whole: bytes | None = None
        self._received = 0
        self._events = 0
        self.size = declared  # of the whole; None when it comes in chunks
        self.limit = limit
        self.complete = declared == 0
        self.broken = False  # the connection cannot be used for another request

    # ----------------------------------------------------- for the responder

    async def next(self, limit: int) -> bytes:
        """The next piece; empty at the end. Raises `Rejection`, `ConnectionClosed`."""
        if self.size is not None and self.size > limit:
            raise self._refuse(413, f"A body of more than {limit} bytes; send less.")
        while not self.complete:
            await self._breathe()  # before something is taken, which would be lost with a cancellation
            piece = self._next()
            if piece is None:
                await self._more()
                continue
            self._received += len(piece)
            if self._received > limit:
                raise self._refuse(413, f"A body of more than {limit} bytes; send less.")
            if piece:
                self._parts = None
                return piece
        return b""

    async def read(self, limit: int) -> bytes:
        """The whole; when it was cancelled, a second call goes on."""
        if self._whole is None:
            parts = self._parts
            if parts is None:
                raise RuntimeError("the body was taken in pieces")
            while piece := await self.next(limit):
                parts += piece
                self._parts = parts
            self._whole = bytes(parts)
            self._parts = bytearray()
        return self._whole

    async def _breathe(self) -> None:
        self._events += 1
        if self._events % _EVENTS == 0:
            await trio.lowlevel.checkpoint()

    def _refuse(self, status: int, body: str) -> Rejection:
        self.broken = True
        return refuse(status, body)

    def _next(self, *, answered: bool = False) -> bytes | None:
        """The next piece; empty at the end; None when more must come. Raises `Rejection`."""
        import h11

        if not answered and (self.broken or self._parser.our_state not in {h11.SEND_RESPONSE, h11.SEND_BODY}):
            raise RuntimeError("the body of a request cannot be read after its answer, or after an error")
        try:
            event = next_event(self._parser)
        except Rejection:
            self.broken = True
            raise
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self.complete = True
            return b""
        return None

    async def _more(self) -> None:
        """Wait until the parser has more to look at. Raises `Rejection`, `ConnectionClosed`."""
        import h11

        connection, parser = self._connection, self._parser
        if self._waiter is not None:
            raise trio.BusyResourceError("another task reads the body of this request")
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            rare = connection.rare()
            closed: ConnectionClosed | None = connection.closed
            if closed is not None:
                self.broken = True
                raise connection.closed_error()
            if rare.held:
                data, rare.held, rare.held_size = rare.held, None, 0
                self._patience += len(data)
                parser.receive_data(data)
                connection.resume_reading()
                return
            if connection._state & EOF:
                parser.receive_data(b"")  # h11 finds out whether the body was to end here
                return
            if self._patience <= 0:
                raise self._refuse(408, "The body did not come in time.")
            if parser.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                connection.write(parser.send(go_on))
                continue
            await self._wait(rare)

    async def _wait(self, rare: Any) -> None:
        """Wait for input, the end of the connection, or the deadline."""
        engine = self._connection.engine
        begun = engine.tick
        if self._patience != float("inf"):
            # Not by `Wheel.ticks`, which remembers what it is asked: there are few timeouts, but many remainders.
            self._due = begun + math.ceil(self._patience / MIN_RATE / engine.wheel.resolution)
            engine.set_deadline(self._connection, self._due)
        if rare.ended is None:
            rare.ended = []  # whoever releases the descriptor wakes those in it
        waiter = self._waiter = engine.pool.waiter()
        rare.ended.append(waiter)
        try:
            await waiter.wait()
        finally:
            self._waiter = None
            if rare.ended and waiter in rare.ended:
                rare.ended.remove(waiter)
        self._patience -= (engine.tick - begun) * engine.wheel.resolution * MIN_RATE

    # ------------------------------------------------------ for the protocol

    def wake(self) -> None:
        """Something has come, or is over: let the responder look."""
        if self._waiter is not None:
            self._waiter.wake()

    def judge(self, tick: int) -> int:
        """The tick of the next deadline while the responder waits for the body; 0 if it does not."""
        if self._waiter is None or not self._due:
            return 0
        if self._due <= tick:
            self._waiter.wake()
        return self._due

    def lets_go_on(self) -> bool:
        """Whether another request may follow on the connection, once what nobody read of this one is skipped."""
        if self.complete:
            return True
        if self.broken or self._parser.they_are_waiting_for_100_continue:
            return False
        return self.size is None or self.size <= _SKIPPED

    async def skip(self) -> bool | None:
        """Throw away what has come. True: that was all; None: more must come; False: it is too much, or wrong."""
        while not self.complete:
            try:
                piece = self._next(answered=True)
            except Rejection:
                return False
            if piece is None:
                return None
            self._received += len(piece)
            if self._received > _SKIPPED:
                return False
            await self._breathe()
        return True


class BodyStream:
    """The body of a request in pieces: ``async for piece in request.stream()``. One pass, by one task."""

    __slots__ = ("_body", "_limit")

    def __init__(self, body: RequestBody, limit: int) -> None:
        self._body = body
        self._limit = limit

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._body.next(self._limit)
        if not piece:
            raise StopAsyncIteration
        return piece


def next_event(parser: h11.Connection) -> Any:
    """Like `next_event`; what h11 finds wrong becomes a `Rejection`."""
    import h11

    try:
        return parser.next_event()
    except h11.RemoteProtocolError as error:
        raise refuse(error.error_status_hint, "Not HTTP/1.1; check how the body is framed.") from error
