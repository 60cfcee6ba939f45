"""What the kernel knows about a connection (Linux: TCP_INFO, tcp(7); FIONREAD and TIOCOUTQ)."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Final

from trionet.net import system
from trionet.net.describe import tcp_counters

__all__ = ["kernel_facts"]

_STATES: Final = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2"),
    *("TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING"),
)

# Offsets in struct tcp_info of <linux/tcp.h>; milliseconds, but for the round trip's variation, in microseconds.
_LAST_SENT: Final = 44
_LAST_RECEIVED: Final = 52
_VARIATION: Final = 72


def kernel_facts(fd: int) -> dict[str, Any]:
    """Buffers and, over TCP, what was transmitted; times in milliseconds. Empty where that cannot be asked.

    `unread`: bytes that came and were not read; `unsent`: bytes that the peer has not acknowledged.
    """
    facts: dict[str, Any] = {}
    if sys.platform != "linux":  # pragma: no cover
        return facts
    import fcntl
    import termios

    try:
        facts["unread"] = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
        facts["unsent"] = int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
        with system.borrowed_socket(fd) as sock:
            facts["send_buffer"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            facts["receive_buffer"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            if sock.family in {socket.AF_INET, socket.AF_INET6}:
                facts |= _tcp(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)) | tcp_counters(fd)
    except OSError:  # it was closed meanwhile
        pass
    return facts


def _tcp(info: bytes) -> dict[str, Any]:
    (variation,) = struct.unpack_from("=I", info, _VARIATION)
    return {
        "tcp": _STATES[info[0]] if info[0] < len(_STATES) else str(info[0]),
        "last_sent": struct.unpack_from("=I", info, _LAST_SENT)[0],
        "last_received": struct.unpack_from("=I", info, _LAST_RECEIVED)[0],
        "rtt_variation_ms": round(variation / 1000, 3),
    }
