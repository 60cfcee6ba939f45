"""Listening sockets: where to listen, and what the errors of accept mean."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
import sys
from collections.abc import Iterable
from typing import Any

import attrs
import trio

from trionet.errors import ConfigurationError
from trionet.net import system
from trionet.net.tls import TlsHandshake, check_context

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    _NONBLOCKING = None
else:
    _NONBLOCKING = os.O_RDWR | os.O_NONBLOCK  # all the flags a fresh socket may have

__all__ = ["Endpoint", "Listener", "bind", "bind_unix", "open_listeners"]

#: accept(2): errors of the connection, not of the listener. Go on. (Linux reports pending network errors here.)
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EPERM",
        "EPROTO",
        "ENETDOWN",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)

#: accept(2): out of something. Back off; it passes when connections close.
SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where a protocol is served: `host` and `port`, or a Unix socket's `path`, or an inherited descriptor `fd`.

    An `fd` that is bound and does not listen yet does so as soon as the server is ready. `host` None is every
    interface, IPv4 and IPv6; `port` 0 any free port, the same for all addresses. `backlog`: connections the kernel
    queues for us (it has a limit of its own, net.core.somaxconn). `reuse_port`: several processes listen and the
    kernel spreads connections. `defer_accept`: seconds for which the kernel keeps a connection to itself until it
    has sent something (Linux; not for protocols whose server speaks first). `mode`: permissions of a Unix socket.
    `ssl_context`: connections speak TLS (`server_tls_context` makes one). `tls_timeout`: seconds for the TLS
    handshake and the protocol's own together; None for the protocol's `handshake_timeout`, or 10 if it has none; 0
    for no limit. `proxy_protocol`: connections begin with a PROXY header (`ProxyProtocol`), in the clear.
    """

    protocol: Any
    host: str | None = "127.0.0.1"
    port: int = 0
    path: str | None = None
    fd: int | None = None
    backlog: int = 65535
    reuse_port: bool = False
    nodelay: bool = True
    defer_accept: int = 0
    mode: int | None = None
    proxy_protocol: Any = None
    ssl_context: ssl.SSLContext | None = None
    tls_timeout: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.ssl_context is not None:
            check_context(self.ssl_context, server_side=True)


class Listener:
    """An open listening socket of an endpoint."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.sock = sock
        self.protocol = endpoint.protocol
        if endpoint.ssl_context is not None:
            self.protocol = TlsHandshake(
                self.protocol, endpoint.ssl_context, handshake_timeout=endpoint.tls_timeout
            )
        if endpoint.proxy_protocol is not None:  # it comes first, whatever the connections are afterwards
            self.protocol = endpoint.proxy_protocol.expect(self.protocol, self.protocol.connection_class)
        # `socket.accept` builds a socket object and an address that nobody needs; its lower half does not.
        self._accept = getattr(sock, "_accept", None)
        self.peer: Any = None  # the address of the last one accepted: the system call tells it anyway
        self._inherits = sys.platform == "linux"  # TCP_NODELAY of the listener holds for what it accepts

    def fileno(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    @property
    def address(self) -> Any:
        """``(host, port)``, or the path of a Unix socket."""
        name: Any = self.sock.getsockname()
        return name[:2] if isinstance(name, tuple) else name

    @property
    def url(self) -> str:
        """What to connect to; a wildcard address is shown as the loopback one."""
        scheme = getattr(self.protocol, "scheme", "tcp")
        address = self.address
        if not isinstance(address, tuple):
            return f"{scheme}+unix:{address}"
        host = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0]))
        if ":" in host:
            host = f"[{host}]"
        return f"{scheme}://{host}:{address[1]}/"

    def begin(self) -> None:
        """Let the kernel queue connections, if nobody did before: a socket handed in may be bound and no more."""
        if not _listens(self.sock):
            self.sock.listen(self.endpoint.backlog)

    def accept(self) -> int:
        """A connected, non-blocking descriptor. Raises `BlockingIOError` when none waits, or another `OSError`."""
        if self._accept is not None and sys.platform != "win32":
            fd: int
            fd, self.peer = self._accept()
            if _NONBLOCKING is not None:
                fcntl.fcntl(fd, fcntl.F_SETFL, _NONBLOCKING)  # half the calls of os.set_blocking
            else:  # pragma: no cover
                os.set_blocking(fd, False)
            if not self._inherits and self.endpoint.nodelay:  # pragma: no cover
                with system.borrowed_socket(fd) as sock:
                    _set_nodelay(sock)
            return fd
        sock, self.peer = self.sock.accept()  # pragma: no cover
        sock.setblocking(False)  # pragma: no cover
        return system.adopt(sock)  # pragma: no cover

    def close(self) -> None:
        """Stop listening; connections the kernel has queued are reset. A Unix socket's file is removed."""
        if self.sock.fileno() < 0:
            return
        path = self.endpoint.path
        self.sock.close()
        if path is not None:
            try:
                os.unlink(path)
            except OSError:
                pass


def _listens(sock: socket.socket) -> bool:
    """Whether it does, or the platform cannot tell."""
    if not hasattr(socket, "SO_ACCEPTCONN"):  # pragma: no cover
        return True
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_bound(sock: socket.socket) -> bool:
    """Whether it is a stream socket with an address of its own and without a peer: `Listener.begin` makes it listen."""
    if sock.type != socket.SOCK_STREAM:
        return False
    try:
        sock.getpeername()
    except OSError:
        name = sock.getsockname()
        return bool(name[1] if isinstance(name, tuple) else name)
    return False


def _set_nodelay(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def open_listeners(endpoint: Endpoint) -> list[Listener]:
    """Open the sockets of an endpoint: one, or one for each address of its host."""
    if endpoint.fd is not None:
        return [Listener(endpoint, _adopt(endpoint.fd))]
    if endpoint.path is not None:
        sock = bind_unix(endpoint)
        try:
            sock.listen(endpoint.backlog)
        except BaseException:
            sock.close()
            raise
        return [Listener(endpoint, sock)]
    found = await trio.socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return [Listener(endpoint, sock) for sock in bind(endpoint, found)]


def bind(endpoint: Endpoint, found: Iterable[Any], *, listen: bool = True) -> list[socket.socket]:
    """Open a socket for each address of `found` (what getaddrinfo(3) said), all on the same port."""
    socks: list[socket.socket] = []
    port = endpoint.port
    found = list(found)
    try:
        for family, kind, proto, _, address in found:
            try:
                sock = _open(family, kind, proto, endpoint, (address[0], port, *address[2:]), listen)
            except OSError as error:
                # A host may name an address family that this machine has not got.
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                    continue
                raise OSError(
                    error.errno, f"cannot listen on {address[0]} port {port}: {error.strerror}"
                ) from error
            port = sock.getsockname()[1]
            socks.append(sock)
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    if not socks:
        raise OSError(errno.EADDRNOTAVAIL, f"no address of {endpoint.host!r} can be listened on")
    return socks


def _open(
    family: int, kind: int, proto: int, endpoint: Endpoint, address: tuple[Any, ...], listen: bool
) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        _bind(sock, endpoint, address)
        if listen:
            sock.listen(endpoint.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, endpoint: Endpoint, address: tuple[Any, ...]) -> None:
    sock.setblocking(False)
    if sys.platform != "win32":  # there it would let another process steal the port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if endpoint.reuse_port:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise ConfigurationError("reuse_port: this platform has no SO_REUSEPORT")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if endpoint.nodelay:
        _set_nodelay(sock)
    if endpoint.defer_accept and hasattr(socket, "TCP_DEFER_ACCEPT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, endpoint.defer_accept)
    sock.bind(address)


def bind_unix(endpoint: Endpoint) -> socket.socket:
    """Open the Unix socket of an endpoint; it does not listen yet."""
    path = endpoint.path
    assert path is not None
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigurationError("path: this platform has no Unix sockets")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _remove_stale(path)
        try:
            sock.bind(path)
        except OSError as error:  # too long a path has no number
            text = f"cannot listen on {path}: {error.strerror or error}"
            raise OSError(error.errno or errno.EADDRNOTAVAIL, text) from error
        if endpoint.mode is not None:
            os.chmod(path, endpoint.mode)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more, as a killed server leaves behind; nothing else."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigurationError(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live server's backlog may be full: then `connect` would wait for it
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
        raise OSError(errno.EADDRINUSE, f"another process listens on {path}")


def _adopt(fd: int) -> socket.socket:
    """A listening socket that was opened by somebody else (systemd, a supervisor)."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigurationError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    if not _listens(sock) and not _is_bound(sock):
        sock.detach()
        raise ConfigurationError(f"descriptor {fd} is a socket, but does not listen")
    sock.setblocking(False)
    _set_nodelay(sock)
    return sock
