"""systemd's protocols: sockets that are handed in, and what the manager is told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from served import APP, PROGRAM, ask, until

from trionet.ops import systemd

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"},
    ],
    ids=["none", "no-pid", "of-another", "nonsense"],
)
def test_sockets_that_are_not_for_us(environ: dict[str, str]) -> None:
    """They are left alone, and what says they are there is not passed on."""
    assert systemd.inherited_sockets(environ) == []
    assert environ == {}


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_notify(abstract: bool, tmp_path: Path) -> None:
    """The lines are one datagram, to a file or to an address of Linux's own kind."""
    name = f"@trionet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    if abstract and sys.platform != "linux":
        pytest.skip("Linux only")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        assert systemd.notify("READY=1", "STATUS=good", environ={"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1\nSTATUS=good"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/no/such/file"])
def test_nobody_to_notify(address: str) -> None:
    """No manager, one that cannot be spoken to, or one that has gone: that stops nobody."""
    assert not systemd.notify("READY=1", environ={"NOTIFY_SOCKET": address})


def test_the_interval_of_the_watchdog() -> None:
    """Half of what it wants, if it is meant for this process."""
    mine, other = str(os.getpid()), str(os.getppid())
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "3000000"}) == 1.5
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": mine}) == 1.5
    for environ in ({}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": other}, {"WATCHDOG_USEC": "0"}):
        assert systemd.watchdog_interval(environ) is None


@pytest.mark.parametrize("workers", [1, 2])
async def test_sockets_by_name(workers: int, client: Any, tmp_path: Path) -> None:
    """Of several that systemd opened, the one called "admin" has the operator's pages, the others are served."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("no systemd-socket-activate")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [sock.getsockname()[1] for sock in (one, two)]
    app, admin = tmp_path / "app.py", tmp_path / "admin"
    app.write_text(APP)
    options = json.dumps({"app": str(app), "workers": workers, "grace": 1})
    listen = [f"--listen=127.0.0.1:{port}" for port in ports]
    command = [activate, *listen, f"--listen={admin}", "--fdname=web:web:admin"]
    # `systemd-socket-activate` starts it when somebody connects, and does not hand on the environment.
    kept = [f"--setenv={name}" for name in ("PATH", "PYTHONPATH") if name in os.environ]
    with subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*command, *kept, sys.executable, "-c", PROGRAM, options, "", *["alone"] * (workers == 1)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            await until(lambda: _reached(ports[0]))
            for port in ports:
                await ask(client, f"ws://127.0.0.1:{port}/")
            async with await trio.open_unix_socket(str(admin)) as stream:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True) == 0
            assert admin.exists()  # systemd's, not ours
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _reached(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
