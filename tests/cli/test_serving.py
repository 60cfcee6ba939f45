"""`trionet serve` and `trionet demo` as programs: what they say when they start, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization

import trionet
from trionet.cli.demo import DEMOS, locate
from trionet.cli.main import main
from trionet.cli.welcome import addresses, lines
from trionet.ops.application import load
from trionet.ops.settings import ServeSettings

ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def program(*arguments, folder):
    """The command as a process of its own, which is ended when the block is left."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRIONET_")}
    with subprocess.Popen(
        [sys.executable, "-m", "trionet", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def fetch(url):
    """Get a page."""
    with urllib.request.urlopen(url) as page:
        return page.read()


async def talk(url):
    """Enter the chat and say a line; returns the kinds of the messages that came."""
    kinds = []
    async with trionet.connect_websocket(url) as ws:
        await ws.send('{"type":"enter","room":"a","name":"Ada","author":"author-1"}')
        await ws.send('{"type":"say","n":1,"text":"hello"}')
        while "said" not in kinds:
            kinds.append(json.loads(await ws.receive())["type"])
    return kinds


async def test_the_demo_serves_page_and_chat(tmp_path):
    """From a folder that knows nothing of it: an address, the page there, a line said; Ctrl-C ends it with 0."""
    with program("demo", "chat", "--port", "0", folder=tmp_path) as process:
        url = re.search(r"open (http\S+) in two windows", process.stdout.readline())[1]
        assert b"<title>" in await trio.to_thread.run_sync(fetch, url)
        assert (await talk(url.replace("http", "ws")))[:2] == ["hello", "welcome"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


async def test_serve_says_what_it_serves(tmp_path):
    """A line each for the application, the address, the admin pages, the room there is, and how to stop."""
    admin = tmp_path / "admin.sock"
    with program(
        "serve",
        "examples.chat",
        "--port",
        "0",
        "--admin",
        f"unix:{admin}",
        "--max-connections",
        "50",
        folder=ROOT,
    ) as process:
        said = dict(re.split(r"\s+", process.stdout.readline().strip(), maxsplit=1) for _ in range(5))
        assert said["serving"] == "examples.chat"
        url = said["at"].split()[0]
        assert "hello" in await talk(url)
        assert str(admin) in said["admin"]
        assert said["room"] == "for 50 connections"
        assert "Ctrl-C or SIGTERM" in said["stop"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_serve_with_json_logs_says_nothing_else(tmp_path):
    """Each line of stdout and stderr is an object; they hold the address too."""
    (tmp_path / "app.py").write_text("async def app(ws): pass\n")
    with program("serve", "app.py", "--port", "0", "--log-format", "json", folder=tmp_path) as process:
        first = json.loads(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert "ws://127.0.0.1:" in str(first)
    assert out == ""
    for line in err.splitlines():
        assert json.loads(line)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A folder of its own; `serve` in this process leaves the signals and the log as they are."""
    from trionet.ops import logs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    return tmp_path


def test_an_application_that_cannot_be_loaded_shows_its_own_traceback(here, capsys, monkeypatch):
    """From its module on; nothing of trionet and of importlib."""
    monkeypatch.delitem(sys.modules, "broken_shop", raising=False)
    (here / "broken_shop.py").write_text("def app():\n    return 1 / 0\n")
    assert main(["serve", "broken_shop", "--port", "0"]) == 1
    text = capsys.readouterr().err
    assert "1 / 0" in text
    assert "ZeroDivisionError" in text
    assert "trionet/ops" not in text
    assert "importlib" not in text
    assert text.rstrip().endswith("error: broken_shop cannot be loaded, for the error above")


def test_a_syntax_error_shows_its_line_and_nothing_of_ours(here, capsys):
    """It has no frame of its own; where it is stands in the error."""
    (here / "typo_shop.py").write_text("async def app(ws)\n    pass\n")
    assert main(["serve", "typo_shop.py", "--port", "0"]) == 1
    text = capsys.readouterr().err
    assert 'typo_shop.py", line 1' in text
    assert "trionet/ops" not in text
    assert "importlib" not in text
    assert text.rstrip().endswith("error: typo_shop.py cannot be loaded, for the error above")


LIFESPAN = """
from contextlib import asynccontextmanager
import trionet

@asynccontextmanager
async def lifespan({parameter}):
    raise ConnectionRefusedError("no database")
    yield

app = trionet.Application(trionet.LineProtocol(lambda *_: None), lifespan=lifespan)
"""


@pytest.mark.parametrize(
    "parameter, reason",
    [
        ("server", "ConnectionRefusedError: no database"),
        ("", "TypeError: lifespan() takes 0 positional arguments"),
    ],
)
def test_a_lifespan_that_fails_shows_its_own_traceback(here, capsys, parameter, reason):
    """Be it raised in the lifespan, by calling it wrongly: no groups, no frames of trionet, and what has failed."""
    (here / "lost_shop.py").write_text(LIFESPAN.format(parameter=parameter))
    assert main(["serve", "lost_shop.py", "--port", "0"]) == 1
    text = capsys.readouterr().err
    assert reason in text
    assert "Group" not in text
    assert "trionet/ops" not in text
    assert text.rstrip().endswith(
        "error: lost_shop.py did not start: its lifespan failed, for the error above"
    )


def test_an_application_that_is_not_there_is_a_usage_error(here, capsys):
    """No traceback, exit code 2."""
    assert main(["serve", "no_such_shop:app", "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no module 'no_such_shop'")


def test_wrong_settings_in_the_code_of_the_application_show_where(here, capsys, monkeypatch):
    """A `ConfigurationError` from there: what it says, the line of theirs that it comes from, and exit code 2."""
    monkeypatch.delitem(sys.modules, "wrong_shop", raising=False)
    text = "import trionet\nasync def h(ws): pass\napp = trionet.WebSocketProtocol(h, max_message=-1)\n"
    (here / "wrong_shop.py").write_text(text)
    assert main(["serve", "wrong_shop", "--port", "0"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: wrong_shop cannot be loaded: ")
    assert "max_message" in text
    assert "wrong_shop.py, line 3, in <module>" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "options, path",
    [(["--unix=none/app"], "none/app"), (["--port=0", "--broker=local:none/bus"], "none/bus")],
)
def test_a_path_that_cannot_be_had_is_named(here, capsys, options, path):
    """For the server's socket and for that of a local broker: no traceback, exit code 2."""
    (here / "app.py").write_text("async def app(ws): pass\n")
    assert main(["serve", "app.py", *options]) == 2
    assert capsys.readouterr().err.endswith(f"cannot listen on {path}: No such file or directory\n")


def test_a_host_that_is_not_there_is_a_usage_error(here, capsys, monkeypatch):
    """No traceback, exit code 2."""

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (here / "app.py").write_text("async def app(ws): pass\n")
    assert main(["serve", "app.py", "--host", "nobody.example"]) == 2
    assert "the host to listen on cannot be found" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(here, capsys):
    """With the command that says who has it; exit code 2."""
    (here / "app.py").write_text("async def app(ws): pass\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "app.py", "--port", str(port)]) == 2
    text = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in text
    assert f"ss -ltnp 'sport = :{port}'" in text


def test_a_private_key_with_a_password_needs_it(here, capsys, monkeypatch):
    """OpenSSL does not ask on the terminal: what is missing is said, and a wrong one is refused."""
    issued = trustme.CA().issue_cert("shop.example")
    issued.cert_chain_pems[0].write_to_path("cert.pem")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"geheim"),
    )
    (here / "key.pem").write_bytes(encrypted)
    arguments = ["serve", "x:y", "--show-settings", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    assert main(arguments) == 2
    assert "the private key is encrypted; set tls_key_password" in capsys.readouterr().err
    monkeypatch.setenv("TRIONET_TLS_KEY_PASSWORD", "wrong")
    assert main(arguments) == 2
    assert "is tls_key_password right?" in capsys.readouterr().err
    monkeypatch.setenv("TRIONET_TLS_KEY_PASSWORD", "geheim")
    assert main(arguments) == 0
    assert "geheim" not in capsys.readouterr().out


def test_the_lines_say_what_workers_share():
    """The room is that of all workers; a browser's address stands beside the WebSocket's."""
    settings = ServeSettings(app="shop.web", workers=4, host="0.0.0.0", debug=True, reload=True, grace=5)
    said = {label: text.plain for label, text in lines(settings, ["ws://127.0.0.1:80/"], ["http://x/"], 1000)}
    assert said["at"] == "ws://127.0.0.1:80/  http://127.0.0.1:80/  (and all other addresses of this machine)"
    assert said["room for"] == "4,000 connections (4 times 1,000)"
    assert said["workers"].startswith("4;")
    assert said["admin"] == "http://x/  /metrics /healthz /readyz /workers /debug/"
    assert "5 s" in said["stop"]
    assert "working directory" in said["reload"]


def test_what_is_no_websocket_has_no_address_for_browsers():
    """TCP, TLS and Unix sockets are shown as they are."""
    settings = ServeSettings(app="x")
    assert addresses(settings, ["tcp://127.0.0.1:1/", "wss://h:2/"]) == [
        ("tcp://127.0.0.1:1/", ""),
        ("wss://h:2/", "  https://h:2/"),
    ]


def test_the_demos_are_listed(capsys):
    """Without a name."""
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in DEMOS)


@pytest.mark.parametrize("name", DEMOS)
def test_every_demo_is_there(name, monkeypatch):
    """It can be loaded where it is looked for."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load(locate(name)).lifespan is not None
