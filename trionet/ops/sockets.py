"""The listening sockets of all workers, opened by the one process that outlives them.

With SO_REUSEPORT each worker has a queue of its own and the kernel spreads connections over the queues by a hash of
the addresses: evenly, where a queue that is shared by all goes to whoever wakes first. Closing such a socket resets
what waits in its queue, so the sockets are opened here, once, and never closed while the server lives: whoever
succeeds a worker takes the same queue, with what has gathered in it.

A Unix socket, and a socket that was handed in without SO_REUSEPORT, is shared by all workers.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

import attrs

from trionet.errors import ConfigurationError
from trionet.net.listener import Endpoint, bind, bind_unix
from trionet.ops.settings import ServeSettings

__all__ = [
    "Sockets",
    "admin_endpoint",
    "occupy_standard_streams",
    "open_admin",
    "open_sockets",
    "private_folder",
]

_PATH: Final = 103  # bytes of a Unix socket's path that every system has room for (Linux: 107)


@attrs.define
class Sockets:
    """`of[n]`: the sockets of worker n, counted from 1. `path`: the file of a Unix socket that we made."""

    of: dict[int, list[socket.socket]]
    path: str | None = None
    _file: tuple[int, int] | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._file = _identity(self.path)

    def close(self) -> None:
        """Close all, here; and remove the file. A second call does nothing."""
        for sock in {id(sock): sock for socks in self.of.values() for sock in socks}.values():
            sock.close()
        # A successor may have made it anew: that one stays.
        if self.path is not None and self._file is not None and self._file == _identity(self.path):
            try:
                os.unlink(self.path)
            except OSError:
                pass
        self.path = None

    def keep(self, number: int) -> list[socket.socket]:
        """In a worker: close those of the others; the worker's own are returned."""
        own = self.of[number]
        kept = {id(sock) for sock in own}
        for socks in self.of.values():
            for sock in socks:
                if id(sock) not in kept:
                    sock.close()
        return own

    @property
    def spread(self) -> bool:
        """Whether the kernel spreads connections over queues, one for each worker."""
        first = self.of[1]
        return len(self.of) > 1 and all(
            socks[0] is not first[0] for number, socks in self.of.items() if number != 1
        )


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file that is."""
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status is not None else None


def open_sockets(settings: ServeSettings, inherited: Sequence[int] = ()) -> Sockets:
    """Bind (and do not listen yet) what `settings` asks for; `inherited` descriptors take its place.

    Raises `OSError` with the address in its text, `ConfigurationError`.
    """
    numbers = range(1, settings.workers + 1)
    fds = list(inherited) or ([settings.fd] if settings.fd is not None else [])
    if fds:
        first = [_taken_over(fd) for fd in fds]
        of = {1: first}
        for number in numbers[1:]:
            of[number] = [_sibling(sock) for sock in first]
        return Sockets(of)
    if settings.unix is not None:
        sock = bind_unix(Endpoint(protocol=None, path=settings.unix, mode=settings.unix_mode))
        return Sockets({number: [sock] for number in numbers}, settings.unix)
    return Sockets(_bind_tcp(settings, settings.workers))


def _bind_tcp(settings: ServeSettings, count: int) -> dict[int, list[socket.socket]]:
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    alone = Endpoint(protocol=None, host=settings.host, port=settings.port)
    # With SO_REUSEPORT a second server of the same user would bind as well, and get half of the connections; so
    # first without it, which fails if anybody listens there.
    probes = bind(alone, found)
    port = probes[0].getsockname()[1]
    for probe in probes:
        probe.close()
    if count == 1 or not hasattr(socket, "SO_REUSEPORT"):
        socks = bind(attrs.evolve(alone, port=port), found, listen=False)
        return dict.fromkeys(range(1, count + 1), socks)
    endpoint = attrs.evolve(alone, port=port, reuse_port=True)
    of: dict[int, list[socket.socket]] = {}
    try:
        for number in range(1, count + 1):
            of[number] = bind(endpoint, found, listen=False)
    except BaseException:
        Sockets(of).close()
        raise
    return of


def _taken_over(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigurationError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    sock.set_inheritable(False)  # it came through an exec; what the application starts has no use for it
    return sock


def _sibling(sock: socket.socket) -> socket.socket:
    """For another worker: a queue of its own where the socket allows it (systemd: ``ReusePort=yes``), else the same."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or not hasattr(socket, "SO_REUSEPORT"):
        return sock
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return sock
    other = socket.socket(sock.family, sock.type, sock.proto)
    try:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        other.bind(sock.getsockname())
    except OSError as error:
        other.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES, errno.EPERM}:  # opened by another user
            return sock
        raise
    return other


def admin_endpoint(text: str) -> Endpoint:
    """An `Endpoint` (without a protocol) for ``host:port``, ``[::1]:port``, ``:port`` or ``unix:/path``."""
    if text.startswith("unix:"):
        return Endpoint(protocol=None, path=text[5:], mode=0o600)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"admin is {text!r}; it must be host:port, or unix:/path")
    return Endpoint(protocol=None, host=host.strip("[]") or "127.0.0.1", port=int(port))


def open_admin(text: str | None, inherited: Sequence[int] = ()) -> Sockets:
    """The sockets of the admin address, or those that were handed in; they do not listen yet. None: there are none.

    Raises `OSError` with the address in its text, `ConfigurationError`.
    """
    if inherited:
        return Sockets({1: [_taken_over(fd) for fd in inherited]})
    if not text:
        return Sockets({1: []})
    endpoint = admin_endpoint(text)
    try:
        if endpoint.path is not None:
            return Sockets({1: [bind_unix(endpoint)]}, endpoint.path)
        found: Any = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return Sockets({1: bind(endpoint, found, listen=False)})
    except OSError as error:
        error.strerror = f"admin address: {error.strerror}"
        raise


def private_folder(environ: MutableMapping[str, str] = os.environ) -> str:
    """Make a folder that nobody else may enter, with a path that is short enough for a socket in it.

    In systemd's RuntimeDirectory= if there is one, which no cleaner visits; else where temporary files are.
    """
    places = [environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], tempfile.gettempdir(), "/tmp"]  # noqa: S108
    reason = "their names are too long"
    for place in places:
        if not place or len(os.fsencode(place)) > _PATH - len("/trionet-xxxxxxxx/control"):
            continue
        try:
            return tempfile.mkdtemp(prefix="trionet-", dir=place)
        except OSError as error:
            reason = f"{error.strerror}: {place}"
    raise ConfigurationError(f"no folder for the control socket, set TMPDIR to one: {reason}")


def occupy_standard_streams() -> None:
    """Open the null device where standard input, output or error is closed, as it may be under an init or cron.

    Else a socket would get that number, and whatever a library prints would go to it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            os.set_inheritable(fd, True)
