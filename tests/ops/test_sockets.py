"""Listening sockets that outlive processes: what is opened, what is shared, what is removed."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trionet.errors import ConfigurationError
from trionet.net.listener import Endpoint, bind_unix
from trionet.ops.settings import ServeSettings
from trionet.ops.sockets import Sockets, admin_endpoint, open_admin, open_sockets, private_folder

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT")


def settings(**options: Any) -> ServeSettings:
    """Any port, unless it is said."""
    return ServeSettings(app="x", **{"port": 0, "workers": 3, **options})


@contextlib.contextmanager
def opened(*args: Any, **options: Any) -> Iterator[Sockets]:
    """Sockets, closed with the block."""
    sockets = open_sockets(settings(**options), *args)
    try:
        yield sockets
    finally:
        sockets.close()


def listening(sock: socket.socket) -> bool:
    """Whether connections are queued."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def ports(sockets: Sockets) -> set[int]:
    """Of all of them."""
    return {sock.getsockname()[1] for socks in sockets.of.values() for sock in socks}


def test_each_worker_gets_a_queue_of_its_own() -> None:
    """All have the same port, and none listens before a worker is ready."""
    with opened() as sockets:
        every = [sock for socks in sockets.of.values() for sock in socks]
        assert len({sock.fileno() for sock in every}) == len(every) == 3
        assert len(ports(sockets)) == 1
        assert sockets.spread
        assert not any(map(listening, every))


def test_a_host_with_two_addresses() -> None:
    """Every worker listens on both, on one port."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        with opened(host=None) as sockets:
            for socks in sockets.of.values():
                assert {sock.family for sock in socks} == {socket.AF_INET, socket.AF_INET6}
            assert len(ports(sockets)) == 1
        return
    pytest.skip("no IPv6")


def test_a_worker_keeps_its_own_only() -> None:
    """Those of the others are closed in its process."""
    with opened() as sockets:
        [own] = sockets.keep(2)
        assert own.fileno() >= 0
        assert [sock.fileno() for number in (1, 3) for sock in sockets.of[number]] == [-1, -1]


def test_a_port_that_is_taken_is_named() -> None:
    """Whoever has it: even one with SO_REUSEPORT is not joined silently."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            open_sockets(settings(port=port))


def test_a_socket_that_was_handed_in_is_shared() -> None:
    """Without SO_REUSEPORT there is one queue for all, and it is not passed on to what the application starts."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        given.set_inheritable(True)
        fd = os.dup(given.fileno())
        os.set_inheritable(fd, True)
        with opened([fd]) as sockets:
            assert {sock.fileno() for socks in sockets.of.values() for sock in socks} == {fd}
            assert not sockets.spread
            assert not os.get_inheritable(fd)


def test_a_socket_that_was_handed_in_with_reuse_port_gets_siblings() -> None:
    """As systemd's ``ReusePort=yes`` makes it: a queue for each worker, on the same port."""
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as given,
        opened([os.dup(given.fileno())]) as sockets,
    ):
        assert sockets.spread
        assert ports(sockets) == {given.getsockname()[1]}


def test_a_descriptor_that_is_no_socket() -> None:
    """The error says so."""
    with tempfile.TemporaryFile() as file, pytest.raises(ConfigurationError, match="is not a socket"):
        open_sockets(settings(fd=file.fileno()))


def test_the_file_of_a_unix_socket_goes_with_it(tmp_path: Path) -> None:
    """It has the permissions that were asked for, and is removed by whoever made it."""
    path = tmp_path / "socket"
    sockets = open_sockets(settings(unix=str(path), unix_mode=0o660))
    assert path.stat().st_mode & 0o777 == 0o660
    sockets.close()
    assert not path.exists()


def test_the_file_of_a_successor_stays(tmp_path: Path) -> None:
    """Another server has taken the path meanwhile: its file is not removed."""
    path = tmp_path / "socket"
    first = open_sockets(settings(unix=str(path)))
    path.unlink()
    with bind_unix(Endpoint(protocol=None, path=str(path))):
        first.close()
        assert path.exists()


def test_the_admin_address_of_another_server_is_left_to_it(tmp_path: Path) -> None:
    """A second server by mistake ends with an error, and does not take the pages of the first with it."""
    path = tmp_path / "admin"
    first = open_admin(f"unix:{path}")
    first.of[1][0].listen()
    with pytest.raises(OSError, match="another process listens"):
        open_admin(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    first.close()
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    """Nobody listens on it any more."""
    path = tmp_path / "admin"
    bind_unix(Endpoint(protocol=None, path=str(path))).close()
    open_admin(f"unix:{path}").close()


@pytest.mark.parametrize(
    "text, host, port",
    [("127.0.0.1:9", "127.0.0.1", 9), ("[::1]:9", "::1", 9), (":9", "127.0.0.1", 9)],
)
def test_admin_addresses(text: str, host: str, port: int) -> None:
    """With a host, or none, which is the loopback one."""
    endpoint = admin_endpoint(text)
    assert (endpoint.host, endpoint.port) == (host, port)


@pytest.mark.parametrize("text", ["9090", "host", "host:port", "host:70000"])
def test_what_is_no_admin_address(text: str) -> None:
    """The error says what it must be."""
    with pytest.raises(ConfigurationError, match="it must be host:port, or unix:/path"):
        open_admin(text)


def test_the_folder_of_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in systemd's runtime folder if there is one, has room for a socket's path, and is private."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    for place in (f"{runtime}:/elsewhere", "", str(tmp_path / "missing")):
        folder = Path(private_folder({"RUNTIME_DIRECTORY": place}))
        assert (folder.parent == runtime) == place.startswith(f"{runtime}:")
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = Path(private_folder({}))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "control"))
    (folder / "control").unlink()
    folder.rmdir()
