"""The TLS handshake, a protocol of its own, and contexts for it.

`TlsHandshake` has the connection until both sides agree, then hands it to the protocol that was meant. A silent client
costs no worker and, until its first byte, no TLS object. What connections do with TLS: `trionet.net.tls_trait`.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final

from trionet.errors import ConfigurationError, ConnectionClosed
from trionet.net.connection import LINGERING, OPEN, OPENING
from trionet.net.tls_session import Session, Workbench
from trionet.net.tls_trait import Tls
from trionet.net.traits import compose

__all__ = ["TlsHandshake", "check_context", "server_tls_context"]

log = logging.getLogger("trionet")

_STATE: Final = 7
_SECURE: Final = {"tcp": "tls", "ws": "wss", "http": "https"}


class TlsHandshake:
    """The protocol of a connection until TLS is established; then `protocol` has it, with `connection_made`.

    Server: an `Endpoint` with an `ssl_context` has this in place of its protocol. Client: for a connected,
    non-blocking descriptor,

        handshake = TlsHandshake(protocol, context, server_side=False, server_hostname="example.org")
        connection = engine.add(fd, handshake, handshake.connection_class)

    sends the ClientHello. `protocol.connection_made(connection)` is called when the server's certificate has been
    verified; if that fails, `failed(connection, error)` is called with the `ssl.SSLError`, and when the connection
    is closed, `protocol.lost(connection)`, with the reason in `connection.closed`.

    `handshake_timeout`: seconds for the handshake, and for what the protocol makes of its own state OPENING. None: the
    protocol's own `handshake_timeout`, or 10; 0: no limit. Raises `ConfigurationError` for a context that will not do.
    """

    def __init__(
        self,
        protocol: Any,
        context: ssl.SSLContext,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
        handshake_timeout: float | None = None,
        failed: Callable[[Any, ssl.SSLError], object] | None = None,
    ) -> None:
        check_context(context, server_side=server_side)
        self.protocol = protocol
        self.context = context
        self.server_side = server_side
        self.server_hostname = server_hostname
        if handshake_timeout is None:
            handshake_timeout = getattr(protocol, "handshake_timeout", 10.0)
        self.handshake_timeout = handshake_timeout or 0.0
        self.connection_class = compose(protocol.connection_class, Tls)
        scheme = getattr(protocol, "scheme", "tcp")
        self.scheme = _SECURE.get(scheme, f"{scheme}s")
        self._failed = failed
        self.high_water: int = protocol.high_water
        self.low_water: int = protocol.low_water
        self.hard_limit: int = protocol.hard_limit
        self.read_ahead: int = protocol.read_ahead
        self.write_timeout: float = protocol.write_timeout
        self.counts = protocol.counts

    # ------------------------------------------------------------- handshake

    def connection_made(self, connection: Any) -> None:
        """Wait for the client's first bytes, or send our own."""
        engine = connection.engine
        if engine.tls is None:
            engine.tls = Workbench()
        session = connection._tls = Session(engine.tls)
        if self.handshake_timeout:
            session.due = engine.tick + engine.wheel.ticks(self.handshake_timeout)
            engine.set_deadline(connection, session.due)
        if not self.server_side:
            self._start(session)
            session.shake(b"")
            connection._speak(session, session.output())

    def begin(self, connection: Any) -> None:
        """Go over to TLS in the middle of a plain connection (STARTTLS) that is open and of `connection_class`.

        The protocol's `connection_made` follows when TLS is established. Nothing may be queued (`RuntimeError`). If
        something is left of what the peer has sent, the connection is closed: anybody on the way may have sent it, to
        be taken for the peer's own words later.
        """
        if connection._out is not None or connection._tls is not None or connection._state & _STATE != OPEN:
            raise RuntimeError("TLS begins on an open connection, after all that is queued has been sent")
        if connection.protocol.unread(connection):
            connection.abort(ConnectionClosed(1006, "more has come in the clear than the wish for TLS", "us"))
            return
        connection._input = None
        connection._state += OPENING - OPEN
        connection.engine.opening += 1
        connection.protocol = self
        self.connection_made(connection)

    def _start(self, session: Session) -> None:
        """Make the TLS object."""
        session.start(self.context, server_side=self.server_side, server_hostname=self.server_hostname)

    def _done(self, connection: Any, session: Session) -> None:
        """TLS is established: hand the connection over."""
        engine, protocol = connection.engine, self.protocol
        session.bench.handshakes += 1
        session.bench.resumed += bool(session.ssl is not None and session.ssl.session_reused)
        connection.protocol = protocol
        try:
            protocol.connection_made(connection)
        except Exception as error:  # noqa: BLE001 - a protocol's mistake costs its connection only
            connection.blame(error)
        if connection.fd >= 0:
            if connection._out is not None:
                engine.writer.modify(connection.fd, 4)
            if session.due and connection.is_opening:
                engine.set_deadline(connection, max(session.due, engine.tick + 1))  # one limit for both

    def full(self) -> bool:
        """Whether the protocol has no room for more."""
        return bool(self.protocol.full())

    def deadline_reached(self, connection: Any) -> int:
        """Too late, be it for the handshake or for the peer's reading of an alert."""
        engine, out = connection.engine, connection._out
        lingers = connection._state & _STATE >= LINGERING
        due: int = connection.rare().deadline if lingers else connection._tls.due
        if out is not None:
            stall = out.since + engine.wheel.ticks(self.write_timeout)
            due = min(due, stall) if due else stall
        if due > engine.tick or not due:
            return due
        if lingers or out is not None:
            connection.abort()
        else:
            connection.abort(
                ConnectionClosed(1006, f"no TLS handshake within {self.handshake_timeout:g} s", "us")
            )
        return 0

    async def eof_received(self, connection: Any) -> None:
        """The peer has left."""
        connection.abort(ConnectionClosed(1006, "the peer left during the TLS handshake", "peer"))

    def failed(self, connection: Any, error: ssl.SSLError) -> None:
        """The two sides do not agree; the connection is about to be closed."""
        if self._failed is not None:
            self._failed(connection, error)

    def lost(self, connection: Any) -> Any:
        """It has ended without TLS. A server's protocol has never heard of it, and does not now."""
        connection.engine.tls.failures += 1
        return None if self.server_side else self.protocol.lost(connection)

    def drain(self, connection: Any) -> None:
        """The server is going away."""
        connection.abort(ConnectionClosed(1001, "server is going away", "us"))

    def handler_failed(self, connection: Any, error: Exception) -> None:
        """A mistake of ours, or of the context's SNI callback."""
        connection.engine.complain(connection, "TLS handshake failed", error=error)
        connection.abort()

    def unread(self, connection: Any) -> bytes:  # noqa: ARG002
        """There is nothing that could be given away."""
        raise RuntimeError("the TLS handshake is not done")

    async def data_received(self, connection: Any, data: bytes) -> None:
        """Not called: the protocol has the connection before there is data."""
        raise NotImplementedError

    def overheard(self, connection: Any, data: bytes) -> int:
        """Not called, for the same reason."""
        raise NotImplementedError

    def eof_overheard(self, connection: Any) -> None:
        """A handler has begun TLS and is suspended; `eof_received` follows."""

    async def catch_up(self, connection: Any) -> None:
        """Nothing was kept."""


def check_context(context: Any, *, server_side: bool) -> None:
    """Raise `ConfigurationError` for what would fail at each connection, or is not safe."""
    if not isinstance(context, ssl.SSLContext):
        raise ConfigurationError(f"ssl_context must be an ssl.SSLContext, not {type(context).__name__}")
    other = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol == other:
        raise ConfigurationError(f"this ssl_context is for the other side: {other.name}")
    allows = getattr(ssl, "OP_ALLOW_CLIENT_RENEGOTIATION", 1 << 8)  # OpenSSL 3 refuses it unless this is set
    refused = context.options & ssl.OP_NO_RENEGOTIATION
    if server_side and not refused and (ssl.OPENSSL_VERSION_INFO < (3,) or context.options & allows):
        raise ConfigurationError(
            "this ssl_context lets clients renegotiate TLS 1.2; context.options |= ssl.OP_NO_RENEGOTIATION"
        )


def server_tls_context(
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str] | None = None,
    *,
    password: str | None = None,
    client_ca: str | os.PathLike[str] | None = None,
    client_optional: bool = False,
    alpn: Iterable[str] = ("http/1.1",),
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
) -> ssl.SSLContext:
    """Return a context for `Endpoint(ssl_context=…)`: TLS 1.2 and 1.3, no renegotiation, no compression.

    `certificate`: a PEM file with the certificate and what links it to a known authority; `key`: its private key, if
    that is not in the same file. `client_ca`: a PEM file of authorities; then clients must show a certificate of
    theirs, or may, if `client_optional` (``connection.tls.getpeercert()``). `alpn`: protocols offered, best first.

    Reading the files again (``context.load_cert_chain``) renews the certificate for connections that come later.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum_version
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.load_cert_chain(certificate, key, password)
    names = list(alpn)
    if names:
        context.set_alpn_protocols(names)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL if client_optional else ssl.CERT_REQUIRED
    return context
