"""The interface between connections and what they speak. One protocol object serves all connections."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from trionet.errors import ConfigurationError, ConnectionClosed, nothing_but
from trionet.net.connection import CLOSING, LINGERING, NEVER, Connection
from trionet.net.counts import Counts

__all__ = ["Protocol", "Read"]


class Read:
    """A read that may hold several pieces, in ``connection._input`` while the handler has one of them."""

    __slots__ = ("data", "done")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.done = 0  # bytes of it that are handled, or in hand


class Protocol:
    """Override `data_received`; the rest has defaults that suit a simple byte protocol.

    A protocol keeps no state of its own about a connection: that lives in ``connection.data`` or in attributes of
    its `connection_class`. A connection changes its protocol by assigning ``connection.protocol``: an upgrade is that.

    Limits, in bytes: `high_water` (above it `Connection.wait_writable` waits, and nothing more is read from that
    peer), `low_water` (below it they go on), `hard_limit` (more than this queued closes the connection),
    `read_ahead` (input kept while a handler is busy). Deadlines, in seconds, None or 0 for none: `idle_timeout`
    (nothing was received), `write_timeout` (the peer took nothing of what is queued for it).

    `counts` is what its connections have done, `name` what metrics call it; protocols of the same name are one there.
    """

    connection_class: type[Connection] = Connection
    scheme = "tcp"
    name = "tcp"

    def __init__(
        self,
        *,
        high_water: int = 65536,
        low_water: int | None = None,
        hard_limit: int = 2**20,
        read_ahead: int = 65536,
        idle_timeout: float | None = 300.0,
        write_timeout: float | None = 60.0,
    ) -> None:
        self.high_water = high_water
        self.low_water = high_water // 4 if low_water is None else low_water
        self.hard_limit = hard_limit
        self.read_ahead = read_ahead
        self.idle_timeout = idle_timeout or 0.0
        self.write_timeout = write_timeout or NEVER
        self.counts = Counts()
        if not 0 <= self.low_water < high_water <= hard_limit:
            raise ConfigurationError(
                f"need 0 <= low_water ({self.low_water}) < high_water ({high_water}) <= hard_limit ({hard_limit})"
            )

    # ----------------------------------------------------------- to override

    def connection_made(self, connection: Any) -> None:
        """A connection was accepted. Synchronous; a protocol whose server speaks first writes here."""
        connection.opened()
        self.watch(connection)

    async def data_received(self, connection: Any, data: bytes) -> None:
        """Bytes have come. They may end anywhere; keep an unfinished piece in ``connection._input``."""
        raise NotImplementedError

    async def eof_received(self, connection: Any) -> None:
        """The peer sends no more. By default: send what is queued, then close."""
        connection.finish(ConnectionClosed(1006, "end of input", "peer"))

    async def connection_lost(self, connection: Any, closed: ConnectionClosed) -> None:
        """The connection has ended: the last call, made once."""

    def lost(self, connection: Any) -> Coroutine[Any, Any, None] | None:
        """Book-keeping at the end of a connection; returns `connection_lost` to be awaited, or None to spare it."""
        return self.connection_lost(connection, connection.closed)

    def overheard(self, connection: Any, data: bytes) -> int:
        """Bytes have come while this connection's handler is suspended: keep them; return how many are kept.

        What is kept for `catch_up` is in the connection's ``rare().held``, its size in ``held_size``.
        """
        rare = connection.rare()
        rare.held = data if rare.held is None else rare.held + data
        kept = rare.held_size = len(rare.held)
        return kept

    def eof_overheard(self, connection: Any) -> None:
        """The peer sends no more, said while its handler is suspended; `eof_received` follows when it is done."""

    async def catch_up(self, connection: Any) -> None:
        """The handler is done: work off what was kept; drop it if that has closed the connection."""
        rare = connection.rare()
        data, rare.held, rare.held_size = rare.held, None, 0
        if connection.closed is None:
            await self.data_received(connection, data)

    def unread(self, connection: Any) -> bytes:
        """What was read from this peer and not handled yet, as it came. `Connection.detach` gives it to the stream.

        Raises `RuntimeError` if that cannot be told, as here when ``connection._input`` is neither bytes nor a `Read`,
        which a protocol keeps there while it handles several pieces of one read.
        """
        rare, own = connection._rare, connection._input
        if isinstance(own, Read):
            own = connection._input = own.data[own.done :]
        kept = [own, rare.held if rare is not None else None]
        if not all(piece is None or isinstance(piece, bytes | bytearray) for piece in kept):
            raise RuntimeError(
                f"{type(self).__name__} is in the middle of something that cannot be given away"
            )
        return b"".join(piece for piece in kept if piece)

    def listening(self, listener: Any) -> None:
        """A server is about to serve this on `listener`; raise `ConfigurationError` if it must not be there."""

    def others(self) -> Iterable[Any]:
        """The protocols that a connection of this one may go over to."""
        return ()

    def full(self) -> bool:
        """Whether nothing more is to be accepted for this protocol now: it has as many connections as it can serve."""
        return False

    def handler_failed(self, connection: Any, error: Exception) -> None:
        """`data_received` or a handler raised: log it, and close this connection."""
        if connection.closed is not None and nothing_but(ConnectionClosed, error):
            return  # it used a connection whose peer had left: that ends handlers every day
        connection.engine.complain(connection, "handler failed, connection closed", error=error)
        connection.abort()

    def drain(self, connection: Any) -> None:
        """The server is going away: end this connection politely."""
        connection.finish(ConnectionClosed(1001, "server is going away", "us"))

    # -------------------------------------------------------------- deadlines

    def deadline_reached(self, connection: Any) -> int:
        """The tick set for this connection has come. Returns the next one, or 0 for none."""
        engine = connection.engine
        if connection._state & 7 in (CLOSING, LINGERING):
            deadline: int = connection.rare().deadline
            if deadline > engine.tick:
                return deadline
            connection.abort()
            return 0
        if connection.stalled():
            self.stalled(connection)
            return 0
        tick: int = self.next_deadline(connection)
        out = connection._out
        if out is not None:
            stall = out.since + engine.wheel.ticks(self.write_timeout)
            tick = min(tick, stall) if tick else stall
        return tick

    def stalled(self, connection: Any) -> None:
        """The peer has read nothing for `write_timeout`."""
        self.counts.stalled += 1
        connection.engine.complain(
            connection,
            "closed, the peer has read nothing for %g s",
            self.write_timeout,
            level=logging.WARNING,
        )
        connection.reset(ConnectionClosed(1006, f"nothing was read for {self.write_timeout:g} s", "us"))

    def next_deadline(self, connection: Any) -> int:
        """Act on deadlines of the protocol's own; return the tick of the next, or 0. Here: `idle_timeout`."""
        if not self.idle_timeout:
            return 0
        engine = connection.engine
        due: int = connection._seen + engine.wheel.ticks(self.idle_timeout)
        if due <= engine.tick:
            self.counts.idle += 1
            connection.finish(ConnectionClosed(1001, f"nothing came for {self.idle_timeout:g} s", "us"))
            return 0
        return due

    def watch(self, connection: Any) -> None:
        """Set the first deadline."""
        tick = self.next_deadline(connection)
        if tick:
            connection.engine.set_deadline(connection, tick)
