"""The system calls on raw descriptors, and the one place that knows where descriptors are not file descriptors.

On POSIX these are `os.read`, `os.write`, `os.writev` and `os.close`. On Windows a socket handle is none of the
C library's descriptors, so socket objects are kept in a table. (Windows is untested here.)
"""

from __future__ import annotations

import _socket
import os
import socket
import sys
from collections.abc import Callable, Sequence

__all__ = [
    "adopt",
    "borrowed_socket",
    "close",
    "ignore_sigpipe",
    "read",
    "reset",
    "shutdown_read",
    "shutdown_write",
    "surrender",
    "unsent",
    "write",
    "writev",
]

read: Callable[[int, int], bytes]
write: Callable[[int, bytes], int]
writev: Callable[[int, Sequence[bytes | memoryview]], int]
close: Callable[[int], None]

if sys.platform != "win32":
    read, write, writev, close = os.read, os.write, os.writev, os.close

    def adopt(sock: socket.socket) -> int:
        """Take the descriptor out of a socket object (which is dead afterwards)."""
        return sock.detach()

    def surrender(fd: int) -> socket.socket:
        """The reverse: a socket object that owns the descriptor."""
        return socket.socket(fileno=fd)
else:  # pragma: no cover
    _sockets: dict[int, socket.socket] = {}

    def adopt(sock: socket.socket) -> int:
        """Keep a socket object and answer for it by its number."""
        _sockets[sock.fileno()] = sock
        return sock.fileno()

    def surrender(fd: int) -> socket.socket:
        """Give the socket object up."""
        return _sockets.pop(fd)

    def read(fd: int, size: int) -> bytes:  # noqa: D103
        return _sockets[fd].recv(size)

    def write(fd: int, data: bytes) -> int:  # noqa: D103
        return _sockets[fd].send(data)

    def writev(fd: int, buffers: Sequence[bytes | memoryview]) -> int:  # noqa: D103
        return _sockets[fd].send(b"".join(buffers))

    def close(fd: int) -> None:  # noqa: D103
        _sockets.pop(fd).close()


class borrowed_socket:  # noqa: N801 - reads as a context manager
    """``with borrowed_socket(fd) as sock``: a socket object for one call, which does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> socket.socket:
        if sys.platform == "win32":  # pragma: no cover
            return _sockets[self._fd]
        self._sock = socket.socket(fileno=self._fd)
        return self._sock

    def __exit__(self, *_: object) -> None:
        if sys.platform != "win32":  # pragma: no branch
            self._sock.detach()


if sys.platform == "linux":
    import fcntl
    import termios

    def unsent(fd: int) -> int:
        """Bytes the peer has not acknowledged yet (SIOCOUTQ, tcp(7)); many where that cannot be known."""
        try:
            return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
        except OSError:
            return sys.maxsize
else:  # pragma: no cover

    def unsent(fd: int) -> int:  # noqa: ARG001
        """Bytes the peer has not acknowledged yet; many where that cannot be known, as here."""
        return sys.maxsize


def shutdown_write(fd: int) -> None:
    """Send FIN, keep reading. A peer that is gone already is no error."""
    _shutdown(fd, socket.SHUT_WR)


def shutdown_read(fd: int) -> None:
    """Have the end of input reported, whatever the peer does."""
    _shutdown(fd, socket.SHUT_RD)


def _shutdown(fd: int, how: int) -> None:
    if sys.platform == "win32":  # pragma: no cover
        sock: _socket.socket = _sockets[fd]
    else:
        # Family, type and protocol are not asked from the kernel (three calls): shutdown(2) does not need them.
        sock = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        sock.shutdown(how)
    except OSError:
        pass
    finally:
        if sys.platform != "win32":  # pragma: no branch
            sock.detach()


def reset(fd: int) -> None:
    """Close with a TCP reset."""
    close_resets(fd)
    close(fd)


def close_resets(fd: int) -> None:
    """Have `close` send a TCP reset: nothing stays in the kernel, neither a queue nor TIME_WAIT.

    That is SO_LINGER with no time, see socket(7).
    """
    if sys.platform == "win32":  # pragma: no cover
        sock: _socket.socket = _sockets[fd]
    else:
        sock = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)  # as in `_shutdown`
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    except OSError:
        pass
    finally:
        if sys.platform != "win32":  # pragma: no branch
            sock.detach()


def ignore_sigpipe() -> None:
    """Ignore SIGPIPE where it exists: `os.write` to a closed peer must raise, not kill the process.

    CPython ignores it at start; an embedding program or `signal.signal(SIGPIPE, SIG_DFL)` may have undone that.
    Works from the main thread only; elsewhere the setting is left as it is.
    """
    import signal
    import threading

    if hasattr(signal, "SIGPIPE") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
