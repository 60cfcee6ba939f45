"""Who the client of a request is, found out from the connection and from what trusted proxies say in its head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trionet.net.connection import Connection
from trionet.net.traits import NO_SLOTS
from trionet.protocols.channel import WebSocket
from trionet.protocols.proxied import Proxied
from trionet.wire.forwarded import Client, TrustedProxies
from trionet.wire.request import Request

if TYPE_CHECKING:
    from trionet.net.connection import ProtocolInterface
    from trionet.net.engine import Engine

__all__ = ["Forwarded", "as_proxies", "find_client"]


def as_proxies(value: TrustedProxies | Iterable[str] | None) -> TrustedProxies | None:
    """A list of addresses means X-Forwarded-*; an empty one, or None, that no proxy is trusted."""
    if value is None or isinstance(value, TrustedProxies):
        return value
    proxies = TrustedProxies(value)
    return proxies if proxies.trusted else None


def find_client(connection: Connection, request: Request, proxies: TrustedProxies | None) -> Client:
    """The client of `request`, which has come by `connection`."""
    peer: Any = connection.peer
    if isinstance(peer, bytes) or (peer is None and isinstance(connection.local, str | bytes)):
        peer = ""  # a Unix socket; not a TCP connection whose peer is gone, which would not be trusted for it
    header = connection.proxy_header if isinstance(connection, Proxied) else None
    if header is not None and header.source is None:
        proxies = None  # such a proxy passes bytes on: what the head says is the client's own word
    secure = True if connection.tls is not None else None if header is None else header.secure
    scheme = None if secure is None else "https" if secure else "http"
    return (proxies or _NOBODY).client(request.headers, peer, request.host, scheme)


_NOBODY = TrustedProxies(())


class Forwarded(WebSocket):
    """A `WebSocket` that knows its client from the request head (a trait, see `trionet.net.traits`)."""

    __slots__ = NO_SLOTS
    words = ("_client",)

    _client: Client | None

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self._client = None

    @property
    def client(self) -> Client:
        """What the proxies said at the handshake; before it, and after a head that was refused, only the peer."""
        return self._client or super().client
