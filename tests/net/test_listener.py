"""Listening: one port for all addresses, Unix sockets, inherited descriptors, and what accept's errors mean."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from pathlib import Path

import pytest
import trio

from trionet.errors import ConfigurationError
from trionet.net import listener as module
from trionet.net import system
from trionet.net.listener import Endpoint, Listener, open_listeners

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux")


class Protocol:
    """Enough of a protocol for a listener."""

    scheme = "ws"


PROTOCOL = Protocol()


@pytest.fixture
async def listen():
    """Return a function that opens the listeners of an endpoint; they are closed afterwards."""
    opened = []

    async def start(**settings):
        found = await open_listeners(Endpoint(protocol=PROTOCOL, **settings))
        opened.extend(found)
        return found

    yield start
    for listener in opened:
        listener.close()


def has_ipv6():
    """Whether this machine can listen on IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def exists(path):
    """Whether there is a file of that name."""
    return Path(path).exists()


async def accepted(listener):
    """The next connection, as a socket object."""
    await trio.lowlevel.wait_readable(listener.fileno())
    return socket.socket(fileno=listener.accept())


async def test_a_listener_accepts_what_connects(listen):
    """What is accepted is connected, non-blocking, not inherited by children, and without Nagle's delay."""
    (listener,) = await listen()
    assert listener.protocol is PROTOCOL
    with pytest.raises(BlockingIOError):
        listener.accept()
    with socket.create_connection(listener.address) as peer, await accepted(listener) as ours:
        assert not os.get_blocking(ours.fileno())
        assert not os.get_inheritable(ours.fileno())
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert ours.getpeername() == peer.getsockname()
        peer.sendall(b"x")
        await trio.lowlevel.wait_readable(ours)
        assert system.read(ours.fileno(), 10) == b"x"


async def test_nodelay_can_be_left_off(listen):
    """`nodelay=False` leaves Nagle's algorithm on, on the listener and on what it accepts."""
    (listener,) = await listen(nodelay=False)
    with socket.create_connection(listener.address), await accepted(listener) as ours:
        assert not ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
async def test_every_interface_has_one_port(listen):
    """Host None and port 0 listen on IPv4 and IPv6, on the same free port."""
    listeners = await listen(host=None)
    assert len(listeners) == 2
    assert len({listener.address[1] for listener in listeners}) == 1
    assert {listener.sock.family for listener in listeners} == {socket.AF_INET, socket.AF_INET6}
    for listener in listeners:
        host = "::1" if listener.sock.family == socket.AF_INET6 else "127.0.0.1"
        shown = "[::1]" if host == "::1" else host
        assert listener.url == f"ws://{shown}:{listener.address[1]}/"
        with socket.create_connection((host, listener.address[1])), await accepted(listener):
            pass


async def test_a_port_in_use_is_named(listen):
    """The error says which address and port, and keeps the kernel's number."""
    (listener,) = await listen()
    host, port = listener.address
    with pytest.raises(OSError, match=f"cannot listen on {host} port {port}") as caught:
        await open_listeners(Endpoint(protocol=PROTOCOL, port=port))
    assert caught.value.errno == errno.EADDRINUSE


async def test_when_one_address_fails_the_others_are_closed(listen, monkeypatch):
    """Nothing stays open when an endpoint cannot be opened as a whole."""
    opened = []

    def bind(sock, endpoint, address):
        opened.append(sock)
        sock.bind(("127.0.0.1", 0)) if len(opened) == 1 else None
        if len(opened) == 2:
            raise OSError(errno.EACCES, "Permission denied")

    async def resolved(*args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))] * 2

    monkeypatch.setattr(module, "_bind", bind)
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolved)
    with pytest.raises(PermissionError):
        await listen()
    assert [sock.fileno() for sock in opened] == [-1, -1]


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
@pytest.mark.parametrize("missing", [1, 2])
async def test_an_address_family_that_is_missing(listen, monkeypatch, code, missing):
    """A host may name a family this machine has not got: the others serve; with none left it is an error."""

    def bind(sock, endpoint, address):
        if address[0] == "gone":
            raise OSError(code, "not here")
        sock.bind(address)
        sock.listen()

    async def resolved(*args, **kwargs):
        hosts = ["gone"] * missing + ["127.0.0.1"] * (2 - missing)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 0)) for host in hosts]

    monkeypatch.setattr(module, "_bind", bind)
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolved)
    if missing == 1:
        assert len(await listen(host="both")) == 1
    else:
        with pytest.raises(OSError, match="no address of 'both' can be listened on"):
            await listen(host="both")


async def test_options_reach_the_socket(listen):
    """`reuse_port` lets several listen on one port; `defer_accept` and `backlog` are set where there are such."""
    (first,) = await listen(reuse_port=True)
    (second,) = await listen(reuse_port=True, port=first.address[1], backlog=5)
    assert first.address == second.address
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        (deferred,) = await listen(defer_accept=5)
        assert deferred.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 5


async def test_what_the_platform_lacks_is_said(listen, monkeypatch, tmp_path):
    """Without SO_REUSEPORT or Unix sockets, asking for them is a mistake in the settings."""
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(ConfigurationError, match="no SO_REUSEPORT"):
        await listen(reuse_port=True)
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    with pytest.raises(ConfigurationError, match="no Unix sockets"):
        await listen(path=str(tmp_path / "s"))


# ------------------------------------------------------------------ Unix sockets


async def test_a_unix_socket(listen, tmp_path):
    """It listens at its path with the mode asked for, and takes its file along when it is closed."""
    path = str(tmp_path / "s")
    (listener,) = await listen(path=path, mode=0o620)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o620
    assert (listener.address, listener.url) == (path, f"ws+unix:{path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(path)
        with await accepted(listener) as ours:
            assert not os.get_blocking(ours.fileno())
    listener.close()
    assert not exists(path)


async def test_a_stale_socket_file_is_replaced(listen, tmp_path):
    """What a killed server left behind does not keep the next one from starting."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()
    assert exists(path)
    await listen(path=path)


@pytest.mark.parametrize("waiting", [0, 3])
async def test_a_live_socket_is_left_alone(listen, tmp_path, waiting):
    """A server that listens keeps its path, also when its backlog is full; the error says so."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as live:
        live.bind(path)
        live.listen(0)
        peers = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(waiting)]
        for peer in peers:
            peer.setblocking(False)
            peer.connect_ex(path)
        with pytest.raises(OSError, match="another process listens on") as caught:
            await listen(path=path)
        assert caught.value.errno == errno.EADDRINUSE
        assert exists(path)
        for peer in peers:
            peer.close()


async def test_a_file_that_is_no_socket_is_left_alone(listen, tmp_path):
    """A path that names something else is a mistake, and nothing is removed."""
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="exists and is not a socket"):
        await listen(path=str(path))
    assert path.read_text() == "precious"


async def test_a_second_close_does_not_remove_the_file_of_a_successor(listen, tmp_path):
    """A server that drains closes its listeners early; a new one may own the path by the time its block ends."""
    path = str(tmp_path / "s")
    (old,) = await listen(path=path)
    old.close()
    await listen(path=path)
    old.close()
    assert exists(path)


async def test_a_file_that_is_gone_is_no_error(listen, tmp_path):
    """Somebody may have tidied up before us."""
    path = str(tmp_path / "s")
    (listener,) = await listen(path=path)
    os.unlink(path)
    listener.close()


# ---------------------------------------------------------- inherited descriptors


async def test_an_inherited_descriptor_is_adopted(listen):
    """A listening socket opened by a supervisor is used as it is, and owned from then on."""
    sock = socket.create_server(("127.0.0.1", 0))
    address = sock.getsockname()
    (listener,) = await listen(fd=sock.detach())
    assert listener.address == address
    with socket.create_connection(address), await accepted(listener) as ours:
        assert not os.get_blocking(ours.fileno())
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_descriptor_that_does_not_listen(listen):
    """It is named in the error, and still belongs to whoever passed it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        with pytest.raises(
            ConfigurationError, match=f"descriptor {sock.fileno()} is a socket, but does not listen"
        ):
            await listen(fd=sock.fileno())
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(ConfigurationError, match=f"descriptor {fd} is not a socket"):
        await listen(fd=fd)
    os.close(fd)


# ---------------------------------------------------------------------- accept


def test_errors_of_accept_are_sorted():
    """Errors of a connection pass, shortages back off, and neither table has what breaks a listener."""
    assert {errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ETIMEDOUT} <= module.PASSING
    assert {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM} == module.SHORTAGE
    assert not module.PASSING & module.SHORTAGE
    assert not {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT} & (module.PASSING | module.SHORTAGE)


async def test_no_object_is_made_for_an_accepted_connection(listen):
    """Accepting yields a bare descriptor; where the lower half of `socket.accept` is missing, the public one does."""
    (listener,) = await listen()
    with socket.create_connection(listener.address):
        await trio.lowlevel.wait_readable(listener.fileno())
        fd = listener.accept()
        assert type(fd) is int
        os.close(fd)
    listener._accept = None
    with socket.create_connection(listener.address):
        await trio.lowlevel.wait_readable(listener.fileno())
        fd = listener.accept()
        assert not os.get_blocking(fd)
        os.close(fd)


async def test_addresses_as_urls():
    """A wildcard address is shown as one that can be connected to, IPv6 in brackets."""

    class Sock:
        def __init__(self, name):
            self.name = name

        def getsockname(self):
            return self.name

    for name, url in [
        (("0.0.0.0", 80), "ws://127.0.0.1:80/"),
        (("::", 80, 0, 0), "ws://[::1]:80/"),
        (("fe80::1", 80, 0, 2), "ws://[fe80::1]:80/"),
        ("/run/s", "ws+unix:/run/s"),
    ]:
        assert Listener(Endpoint(protocol=PROTOCOL), Sock(name)).url == url
    assert Listener(Endpoint(protocol=object()), Sock(("::1", 1, 0, 0))).url == "tcp://[::1]:1/"
