"""Connections that begin with a PROXY header: the header first, then TLS and the protocol as on any other listener.

    accept → `_Greeting`   the header is read, and not a byte of what follows it
           → `Proxied`     a connection of the protocol's own class, made then, that knows what the header said

A connection that waits for its header is half open, as a handshake is: few such are accepted at once, and `timeout`
bounds the wait. Endpoints that expect no header pay nothing.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from trionet.errors import ConfigurationError, ConnectionClosed, ProtocolError
from trionet.net import system
from trionet.net.connection import GONE, OPENING, Connection, ProtocolInterface, broken
from trionet.net.doorkeeper import seated
from trionet.net.stream import DetachedStream
from trionet.net.traits import NO_SLOTS, compose
from trionet.protocols.base import Protocol
from trionet.wire.addresses import UNIX, TrustList
from trionet.wire.proxy_header import ProxyHeader, parse_proxy_header

if TYPE_CHECKING:
    from trionet.net.engine import Engine

__all__ = ["Proxied", "ProxyProtocol", "far_end"]


class ProxyProtocol:
    """How an endpoint expects the PROXY protocol, and what came of it: ``Endpoint(protocol, proxy_protocol=…)``.

    `trusted`: addresses and networks of the proxies, ``"unix:"`` for any peer on a Unix socket. Each of them must
    begin with a header, version 1 or 2, of `max_size` bytes at most, within `timeout` seconds. Others are closed at
    once; or, if `direct`, served as themselves, and then a header is nothing but wrong input for the protocol.

    `accepted` counts headers; `refused` connections closed, by reason: "untrusted", "malformed", "late", "left".
    One object may serve several endpoints.
    """

    def __init__(
        self, trusted: Iterable[str], *, timeout: float = 5.0, max_size: int = 2048, direct: bool = False
    ) -> None:
        if timeout <= 0 or max_size < 232:
            raise ConfigurationError("timeout must be positive, and max_size hold the addresses: 232 bytes")
        self.trusted = TrustList(trusted)
        self.timeout = timeout
        self.max_size = max_size
        self.direct = direct
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def expect(self, protocol: Any, connection_class: type[Connection]) -> _Usher:
        """What a listener has in place of `protocol`, whose connections are of `connection_class`."""
        return _Usher(self, protocol, connection_class)


class Proxied(Connection):
    """A connection that began with a PROXY header (a trait, see `trionet.net.traits`).

    `peer` is the client and `local` what the client connected to, if the header said so. The header itself is
    `proxy_header`; `proxy` is the address the kernel knows, that of the proxy.
    """

    __slots__ = NO_SLOTS
    words = ("_proxy_header",)

    _proxy_header: bytes  # as it came: a quarter of what it says when it is taken apart

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self._proxy_header = b""

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """What the proxy said; None for a connection that did not come through one (`ProxyProtocol.direct`)."""
        return parse_proxy_header(self._proxy_header, 65551) if self._proxy_header else None

    @property
    def peer(self) -> Any:
        """The client's address as the proxy tells it; the proxy's own where it does not."""
        header = self.proxy_header
        return header.source if header is not None and header.source is not None else self.proxy

    @property
    def local(self) -> Any:
        """The address that the client connected to, as the proxy tells it; else our own."""
        header = self.proxy_header
        if header is not None and header.source is not None:
            return header.destination
        return Connection.local.fget(self)  # type: ignore[attr-defined]

    def give_away(self) -> DetachedStream:
        addresses = self.peer, self.local
        heir = super().give_away()
        heir.addresses = addresses
        return heir

    @property
    def proxy(self) -> Any:
        """The address of the peer that the kernel knows; None on a Unix socket or when gone."""
        return Connection.peer.fget(self)  # type: ignore[attr-defined]


class _Greeting(Connection):
    """A descriptor that waits for its PROXY header. It never yields, so none of it has to be kept for later."""

    __slots__ = ()

    protocol: _Usher

    async def run(self) -> bool | None:
        if self._state == OPENING:
            self._read_header()
        return await self._settle() if self._state != GONE else None

    def _read_header(self) -> None:
        usher = self.protocol
        held = self._input or b""
        try:
            with system.borrowed_socket(self.fd) as sock:
                # Look before taking: what stands behind the header may be for TLS to read.
                seen = sock.recv(usher.settings.max_size - len(held), socket.MSG_PEEK)
                header = parse_proxy_header(held + seen, usher.settings.max_size)
                if seen:
                    seen = sock.recv(len(seen) if header is None else header.size - len(held))
        except BlockingIOError:
            return  # readiness is a hint
        except OSError as error:
            usher.refuse(self, "left", broken(error).reason)
            return
        except ProtocolError as error:
            usher.refuse(self, "malformed", error.reason)
            return
        if header is not None:
            usher.settings.accepted += 1
            self.hand_over(held + seen, header.source)
        elif not seen:
            usher.refuse(self, "left", "end of input")
        else:
            self._input = held + seen

    def hand_over(self, header: bytes, source: Any = None) -> None:
        """Become a connection of the protocol, whose client is at `source`: a new object on the same descriptor."""
        fd, engine, usher = self.fd, self.engine, self.protocol
        if engine.draining:  # it is on no list of those to be told
            self.abort(ConnectionClosed(1001, "server is going away", "us"))
            return
        seat, refused, doorkeeper = None, None, engine.doorkeeper
        if doorkeeper is not None and doorkeeper.seating:
            seat, refused = doorkeeper.enter(self.peer if source is None else source)
        self.fd = -1
        self._state = GONE
        self._due = 0
        engine.forget(fd)
        engine.opening -= 1
        engine.opened -= 1
        if refused is not None:
            doorkeeper.turn_away(fd, usher.served, refused)
            return
        connection_class: Any = usher.connection_class_served
        if seat is not None:
            connection_class = seated(connection_class, seat)

        def make(engine: Engine, fd: int, protocol: ProtocolInterface) -> Connection:
            connection: Connection = connection_class(engine, fd, protocol)
            cast("Any", connection)._proxy_header = header
            return connection

        engine.add(fd, usher.served, cast("Any", make))


class _Usher(Protocol):
    """The protocol of `_Greeting`: whom to let in, and for how long to wait."""

    connection_class = _Greeting

    def __init__(self, settings: ProxyProtocol, served: Any, connection_class: type[Connection]) -> None:
        super().__init__()
        self.settings = settings
        self.served = served
        self.connection_class_served = compose(connection_class, Proxied)
        self.scheme = getattr(served, "scheme", "tcp")
        self.counts = served.counts

    # The gate asks no policy about the proxy's address: `hand_over` asks, about the client's.
    seats_later = True

    def full(self) -> bool:
        """Whether the protocol that comes next has no room for more."""
        return bool(self.served.full())

    def preamble(self, data: bytes) -> int | None:
        """How long the header at the beginning of `data` is; None while it is not whole. Raises `ProtocolError`."""
        try:
            header = parse_proxy_header(data, self.settings.max_size)
        except ProtocolError:
            if self.settings.direct:
                return 0
            raise
        return header.size if header is not None else None

    def connection_made(self, connection: _Greeting) -> None:
        settings, engine = self.settings, connection.engine
        host = far_end(connection)
        if host is None:  # a health check that connects and resets: who that was cannot be told any more
            self.refuse(connection, "left", "it left at once")
        elif host in settings.trusted:
            engine.set_deadline(connection, engine.tick + engine.wheel.ticks(settings.timeout))
        elif settings.direct:
            connection.hand_over(b"")
        else:
            self.refuse(connection, "untrusted", "a peer that is not trusted")

    def refuse(self, connection: _Greeting, reason: str, words: str) -> None:
        """Count and close: without an answer, for who knows what the peer speaks."""
        self.settings.refused[reason] += 1
        connection.abort(ConnectionClosed(1006, words, "us"))

    def deadline_reached(self, connection: _Greeting) -> int:
        self.refuse(connection, "late", f"no PROXY header within {self.settings.timeout:g} s")
        return 0

    def lost(self, connection: _Greeting) -> None:
        """Nothing to be told to anybody: it has never been open."""

    def drain(self, connection: _Greeting) -> None:
        connection.abort(ConnectionClosed(1001, "server is going away", "us"))


def far_end(connection: Connection) -> str | None:
    """The host of `connection.peer`, "unix:" on a Unix socket, None when the peer is gone."""
    peer = connection.peer
    if isinstance(peer, tuple):
        return str(peer[0])
    if peer is not None:
        return UNIX  # a path
    # The peer of a Unix socket has no name, but our own end has; and a TCP connection that is gone keeps its own.
    return UNIX if isinstance(connection.local, str | bytes) else None
