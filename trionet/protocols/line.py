"""Lines over TCP: the smallest complete protocol. Read it first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trionet.net.connection import Connection
from trionet.protocols.base import Protocol, Read

__all__ = ["LineConnection", "LineProtocol"]


class LineConnection(Connection):
    """A `Connection` that sends lines."""

    __slots__ = ()

    async def send(self, line: bytes) -> None:
        """Send `line` and a line end; waits while the peer is slow. Raises `ConnectionClosed`."""
        await self.wait_writable(len(line) + 2)
        self.write(line + b"\r\n")


class LineProtocol(Protocol):
    """Calls ``await handler(connection, line)`` for each line, one at a time, in order, without its LF or CR LF.

    A line longer than `max_line` bytes is answered with a sentence and closes the connection. An unfinished line at
    the end of the input is dropped. Other settings: see `Protocol`.
    """

    connection_class = LineConnection
    name = "line"

    def __init__(
        self,
        handler: Callable[[LineConnection, bytes], Awaitable[None]],
        *,
        max_line: int = 8192,
        idle_timeout: float | None = 300.0,
        write_timeout: float | None = 60.0,
    ) -> None:
        super().__init__(idle_timeout=idle_timeout, write_timeout=write_timeout)
        self.handler = handler
        self.max_line = max_line

    async def data_received(self, connection: LineConnection, data: bytes) -> None:
        """Cut lines; keep the unfinished one, and behind a handler that waits the others."""
        if connection._input is not None:
            data = connection._input + data
            connection._input = None
        start = 0
        read = None
        while (end := data.find(b"\n", start)) >= 0:
            line = data[start:end].removesuffix(b"\r")
            if len(line) > self.max_line:
                break
            start = end + 1
            if read is None:
                read = connection._input = Read(data)
            read.done = start
            await self.handler(connection, line)
            if connection.closed is not None:
                return
        else:
            rest = data[start:]
            if len(rest.removesuffix(b"\r")) <= self.max_line:  # its LF may be next
                connection._input = rest or None
                return
        connection._input = None
        connection.write(b"line too long: at most %d bytes\r\n" % self.max_line)
        connection.linger()
