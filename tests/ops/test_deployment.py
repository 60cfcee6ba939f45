"""The files of docs/deploy are what their programs take, and do what the page says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio

import trionet
from trionet.ops.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "docs" / "deploy"
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"

APP = """
from trionet import HttpProtocol, WebSocketHandler, WebSocketProtocol

class Shop(WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(message)

app = WebSocketProtocol(Shop(), http=HttpProtocol({"/": "the shop"}), close_timeout=30)
"""

pytestmark = [pytest.mark.processes, pytest.mark.skipif(sys.platform != "linux", reason="systemd, sysctl")]


def program(name):
    """Return where a program is; skips the test where it is not installed."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(*command, **options):
    """Run a program to its end, and return its code and what it said."""
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=30, stdin=subprocess.DEVNULL, **options
    )
    return done.returncode, done.stdout + done.stderr


def text(name):
    """Return a file of the page."""
    return (DEPLOY / name).read_text("utf-8")


def test_units(tmp_path):
    """Every line of both units is understood by systemd."""
    analyze = program("systemd-analyze")
    unit = tmp_path / "shop.service"
    unit.write_text(text("shop.service").replace("/opt/shop/venv/bin/trionet", sys.executable), "utf-8")
    shutil.copy(DEPLOY / "shop.socket", tmp_path)
    assert run(analyze, "verify", str(unit), str(tmp_path / "shop.socket")) == (0, "")


def test_a_drain_is_not_cut_off():
    """The unit waits for longer than the server drains, and the server for longer than it tells connections to go."""
    stop = int(re.search(r"^TimeoutStopSec=(\d+)$", text("shop.service"), re.MULTILINE)[1])
    grace = int(re.search(r"^grace = (\d+)$", text("trionet.toml"), re.MULTILINE)[1])
    window = int(re.search(r"^drain_window = (\d+)$", text("trionet.toml"), re.MULTILINE)[1])
    assert window < grace < stop


def test_sysctl():
    """Each setting is one that Linux has; one that is there only at times is marked so."""
    lines = [line for line in text("99-shop.conf").splitlines() if line and not line.startswith("#")]
    assert len(lines) > 5
    for line in lines:
        name = line.partition(" = ")[0]
        assert name.startswith("-") or Path("/proc/sys", *name.split(".")).exists(), name


def test_nginx(tmp_path):
    """The configuration is one that nginx takes."""
    config = tmp_path / "nginx.conf"
    config.write_text(text("nginx.conf").replace("/run/nginx.pid", str(tmp_path / "pid")), "utf-8")
    code, said = run(program("nginx"), "-t", "-p", str(tmp_path), "-e", "stderr", "-c", str(config))
    assert code == 0, said
    assert "[warn]" not in said.replace("the configured user", "")


def test_haproxy():
    """HAProxy takes the configuration, without a warning."""
    code, said = run(program("haproxy"), "-c", "-f", str(DEPLOY / "haproxy.cfg"))
    assert code == 0, said
    assert "WARNING" not in said


def settings(tmp_path, *arguments, **environ):
    """Return what ``trionet serve`` makes of settings, as it shows them."""
    pytest.importorskip("cyclopts")
    (tmp_path / "shop.py").write_text(APP, "utf-8")
    code, said = run(
        sys.executable,
        "-m",
        "trionet",
        "serve",
        *arguments,
        "--show-settings",
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "NO_COLOR": "1", **environ},
    )
    assert code == 0, said
    return said


def test_settings_file(tmp_path):
    """The TOML file holds settings that there are."""
    shown = settings(tmp_path, "--config", str(DEPLOY / "trionet.toml"))
    assert re.search(r"drain_window\s+30", shown)
    assert re.search(r"admin\s+127.0.0.1:9090", shown)


def test_environment_of_the_image(tmp_path):
    """The Containerfile's variables are settings that there are, and are understood."""
    environ = dict(re.findall(r"(TRIONET_\w+)=(\S+)", text("Containerfile")))
    names = {field.name for field in attrs.fields(ServeSettings)}
    assert {name.removeprefix("TRIONET_").lower() for name in environ} <= names
    assert re.search(r"grace\s+25", settings(tmp_path, **environ))


# ----------------------------------------------------------------------- running


@contextmanager
def serving(tmp_path, *before, **environ):
    """Run ``trionet serve`` with the settings of the page, two workers and a free port; yields its process and port."""
    pytest.importorskip("cyclopts")
    (tmp_path / "shop.py").write_text(APP, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    config = tmp_path / "trionet.toml"
    config.write_text(
        text("trionet.toml")
        .replace("shop.web:app", "shop:app")
        .replace("port = 8080", f"port = {port}")
        .replace('"auto"', "2")
        .replace("drain_window = 30", "drain_window = 0.2")
        .replace("127.0.0.1:9090", f"unix:{tmp_path}/admin"),
        "utf-8",
    )
    given = [argument.replace("PORT", str(port)) for argument in before]
    process = subprocess.Popen(
        [*given, sys.executable, "-m", "trionet", "serve", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process, port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def echo(client, port):
    """Connect, as often as it takes, and return a connection that has been answered."""
    with trio.fail_after(20):
        while True:
            try:
                ws = await client.connect(f"ws://127.0.0.1:{port}/")
            except OSError:
                await trio.sleep(0.05)
            else:
                await ws.send("hello")
                assert await ws.receive() == "hello"
                return ws


async def heard(notify, until):
    """Wait until systemd is told something."""
    with trio.fail_after(20):
        while until not in (await notify.recv(4096)).decode():
            pass


async def test_socket_activation(tmp_path):
    """A connection starts the service and is served by it; systemd is told of the beginning, a reload and the end."""
    activate = program("systemd-socket-activate")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        await notify.bind(f"{tmp_path}/notify")
        told = f"NOTIFY_SOCKET={tmp_path}/notify"
        given = [activate, "-l", "127.0.0.1:PORT", "-E", told, "-E", "PYTHONPATH"]
        with serving(tmp_path, *given) as (process, port):
            async with trionet.open_client() as client:
                ws = await echo(client, port)
                await heard(notify, "READY=1")
                process.send_signal(signal.SIGHUP)
                await heard(notify, "RELOADING=1")
                await heard(notify, "READY=1")
                with pytest.raises(trionet.ConnectionClosed) as closed:
                    await ws.receive()
                assert closed.value.code == 1012
                process.send_signal(signal.SIGTERM)
                await heard(notify, "STOPPING=1")
            assert await trio.to_thread.run_sync(process.wait, 20) == 0


def refused(port):
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_who_comes_while_a_server_stops_is_refused_at_once(tmp_path):
    """A proxy asks the next server then; it would wait, and answer 502, if connections went on to be queued."""
    with serving(tmp_path) as (process, port):
        async with trionet.open_client() as client:
            await echo(client, port)
            stream = await trio.open_tcp_stream(
                "127.0.0.1", port
            )  # does not answer a Close: the drain goes on
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert b" 101 " in await stream.receive_some()
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(20):
                while not refused(port):  # noqa: ASYNC110 - another process
                    await trio.sleep(0.05)
            assert process.poll() is None
            await stream.aclose()
