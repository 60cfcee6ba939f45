"""What a log says about a connection: asked from the kernel at that moment, so that nothing is kept for it."""

from __future__ import annotations

import logging
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from trionet.net import system

if TYPE_CHECKING:
    from trionet.net.connection import Connection
    from trionet.net.stream import DetachedStream

__all__ = ["address_text", "closings", "describe", "log_closed", "log_stream_closed", "tcp_counters"]

#: Gets one record at debug level for each connection that ends. A logger of its own, to be switched on by itself.
closings = logging.getLogger("trionet.connections")

# Offsets in Linux's struct tcp_info (linux/tcp.h), which grows at its end only.
_RTT: Final = 68  # microseconds, smoothed
_RETRANSMITS: Final = 100  # segments sent again since the beginning
_BYTES: Final = 120  # acknowledged by the peer, and received from it: two 64-bit numbers, since Linux 4.2


def address_text(address: Any) -> str:
    """``host:port``, IPv6 in brackets, as a URL writes it; "unix" for what has no address, "unknown" for None."""
    if isinstance(address, tuple):
        host = str(address[0])
        return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
    return "unknown" if address is None else "unix"


def describe(connection: Connection) -> dict[str, Any]:
    """Whom it connects with what: fields for a record about it."""
    peer = connection.peer
    if peer is None and connection.fd >= 0 and isinstance(connection.local, str | bytes):
        peer = b""  # of a Unix socket
    fields: dict[str, Any] = {"peer": address_text(peer), "protocol": type(connection.protocol).__name__}
    told = getattr(connection, "_client", None)  # by trusted proxies: `trionet.protocols.forwarded`
    if told is not None and told.host is not None:
        fields["client"] = told.host
    if connection.fd >= 0:
        fields["fd"] = connection.fd
    return fields


def tcp_counters(fd: int) -> dict[str, Any]:
    """What the kernel has counted for a TCP connection: bytes on the wire, round trip, retransmits. Linux only.

    `sent` counts what the peer has acknowledged, the handshake's SYN and a FIN among it as one byte each.
    """
    if sys.platform != "linux":  # pragma: no cover
        return {}
    with system.borrowed_socket(fd) as sock:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        except OSError:
            return {}  # a Unix socket
    if len(info) < _BYTES + 16:  # pragma: no cover - an old kernel
        return {}
    sent, received = struct.unpack_from("=QQ", info, _BYTES)
    (rtt,) = struct.unpack_from("=I", info, _RTT)
    (retransmits,) = struct.unpack_from("=I", info, _RETRANSMITS)
    return {"received": received, "sent": sent, "rtt_ms": round(rtt / 1000, 3), "retransmits": retransmits}


def log_closed(connection: Connection) -> None:
    """Its descriptor is about to be released: the record of its end. Ask `closings.isEnabledFor` before."""
    closed = connection.closed
    assert closed is not None
    fields = {
        **describe(connection),
        "code": closed.code,
        "by": closed.by,
        "reason": closed.reason,
        **tcp_counters(connection.fd),
    }
    if connection.queued:
        fields["unsent"] = connection.queued
    if (age := connection.engine.age(connection.fd)) is not None:
        fields["seconds"] = age
    closings.debug("%r: %s", connection, closed, extra={"trionet": fields})


def log_stream_closed(stream: DetachedStream) -> None:
    """The same for a connection that was given away."""
    fd = stream.socket.fileno()
    fields = {
        "peer": address_text(stream.peer),
        "protocol": "stream",
        **(tcp_counters(fd) if fd >= 0 else {}),
    }
    closings.debug("%r: closed", stream, extra={"trionet": fields})
