"""Messages with their length in front, over TCP: requests and responses in order."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.net.connection import BUSY, Connection
from trionet.net.stream import DetachedStream
from trionet.protocols.base import Protocol, Read
from trionet.wire.prefixed import PrefixedFormat

__all__ = ["LengthPrefixedConnection", "LengthPrefixedProtocol"]

log = logging.getLogger("trionet")

_CORK: Final = 65536


class _Read(Read):
    """With the answers that wait to be sent together."""

    __slots__ = ("answers", "size")

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.answers: list[bytes] = []
        self.size = 0


class LengthPrefixedConnection(Connection):
    """A `Connection` that sends messages."""

    __slots__ = ()

    protocol: LengthPrefixedProtocol

    async def send(self, message: bytes) -> None:
        """Send `message` behind its length; waits while the peer is slow. For what is no answer, from any task.

        Behind the answers to earlier requests. Raises `ConnectionClosed`; `ValueError` beyond `max_length`.
        """
        frame = self.protocol.format.encode(message)
        self.uncork()
        await self.wait_writable(len(frame))
        self.write(frame)

    def uncork(self) -> None:
        """Send the answers to the requests of one read that are there already."""
        read = self._input
        if isinstance(read, _Read) and read.answers:
            answers, read.answers, read.size = read.answers, [], 0
            self.write(b"".join(answers))

    def suspended(self) -> None:
        """The handler waits: nobody should wait for its earlier answers."""
        super().suspended()
        self.uncork()

    async def detach(self) -> DetachedStream:
        self.uncork()
        return await super().detach()

    def finish(self, closed: ConnectionClosed | None = None) -> None:
        self.uncork()
        super().finish(closed)

    def linger(self, seconds: float = 2.0) -> None:
        self.uncork()
        super().linger(seconds)


class LengthPrefixedProtocol(Protocol):
    """Calls ``await handler(connection, message)`` for each message; sends back what it returns, unless None.

    One at a time for each connection, so responses are in the order of the requests; those to requests that came in
    one read are sent together, at the latest when a handler waits. `width`: bytes of the prefix, 1, 2, 4 or 8;
    `byteorder`: "big" or "little"; `max_length`: bytes of a message in either direction. A longer one, told by its
    prefix, ends the connection before it is read (`too_long`), and an unfinished one at the end of the input is
    dropped. Memory for a message that comes in pieces grows with what has come. Other settings: see `Protocol`.
    """

    connection_class = LengthPrefixedConnection

    def __init__(
        self,
        handler: Callable[[LengthPrefixedConnection, bytes], Awaitable[bytes | None]],
        *,
        width: int = 4,
        byteorder: Literal["big", "little"] = "big",
        max_length: int = 2**20,
        high_water: int = 65536,
        read_ahead: int = 65536,
        idle_timeout: float | None = 300.0,
        write_timeout: float | None = 60.0,
    ) -> None:
        self.format = PrefixedFormat(width, byteorder, max_length)
        super().__init__(
            high_water=high_water,
            hard_limit=max(2**20, high_water + width + max_length),
            read_ahead=read_ahead,
            idle_timeout=idle_timeout,
            write_timeout=write_timeout,
        )
        self.handler = handler

    def too_long(self, connection: Any, error: ProtocolError) -> None:
        """A message is longer than `max_length`. Override it to say so first: what it writes is still sent."""
        log.debug("%r: closed, %s", connection, error)

    async def data_received(self, connection: LengthPrefixedConnection, data: bytes) -> None:
        """Cut messages; keep the unfinished one."""
        kept = connection._input
        if kept is not None:
            kept += data
            data = kept
        end = self._end(connection, data, 0)
        if end > len(data):
            connection._input = data if kept is not None else bytearray(data)
        elif end:
            await self._handle(connection, bytes(data), end)

    async def _handle(self, connection: LengthPrefixedConnection, data: bytes, end: int) -> None:
        """Handle the messages in `data`, of which the first ends at `end`."""
        read = connection._input = _Read(data)
        size, width, encode = len(data), self.format.width, self.format.encode
        while 0 < end <= size:
            message = data[read.done + width : end]
            read.done = end
            answer = await self.handler(connection, message)
            if connection.closed is not None:
                return
            if answer is not None:
                frame = encode(answer)
                read.answers.append(frame)
                read.size += len(frame)
                if read.size >= _CORK or connection._out is not None or connection._state & BUSY:
                    await connection.wait_writable(read.size)
                    connection.uncork()
            end = self._end(connection, data, end)
        connection.uncork()
        if end and connection.closed is None:
            connection._input = bytearray(memoryview(data)[read.done :]) or None

    def _end(self, connection: LengthPrefixedConnection, data: bytes, start: int) -> int:
        """Where the message at `start` ends, as far as is known; 0 if it is too long, and that was the end."""
        try:
            return self.format.need(data, start)
        except ProtocolError as error:
            connection.uncork()
            connection._input = None
            self.too_long(connection, error)
            connection.note_closed(ConnectionClosed(1009, error.reason, "us"))
            connection.linger()
            return 0

    def handler_failed(self, connection: LengthPrefixedConnection, error: Exception) -> None:
        """Close this connection, behind the answers to earlier requests; log, unless it used one that had ended."""
        if connection.closed is None:
            connection.uncork()
        super().handler_failed(connection, error)
