"""`examples/echo.py`, run as a program: it echoes, broadcasts, drains on SIGTERM, and stops on a second signal."""

from __future__ import annotations

import signal
import socket

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

pytestmark = pytest.mark.processes

ECHO = ("-m", "examples.echo", "--port", "0")


def dial(url, **options):
    """Connect as any page may: a foreign origin, no compression."""
    return connect(url, compression=None, origin="https://example.org", open_timeout=20, **options)


def test_it_echoes(start_program):
    """Text comes back as text, binary as binary, on any path, from any origin."""
    _, url = start_program(*ECHO)
    with dial(f"{url}any/path?x=1") as ws:
        for message in ("text", "é€😀", b"binary", "", b"", "x" * 70_000):
            ws.send(message)
            assert ws.recv(timeout=20) == message
        assert ws.ping().wait(20)


@pytest.mark.parametrize("handler", ["events", "straight", "task"])
def test_its_handlers(start_program, handler):
    """`--handler`: three ways to write the same."""
    _, url = start_program(*ECHO, "--handler", handler)
    with dial(url) as ws:
        for message in ("text", b"binary", "x" * 70_000):
            ws.send(message)
            assert ws.recv(timeout=20) == message


@pytest.mark.parametrize("how", [["--compression"], ["--compression", "takeover"]])
def test_it_compresses(start_program, how):
    """`--compression`: with a client that can."""
    _, url = start_program(*ECHO, *how)
    with connect(url, open_timeout=20) as ws:
        [extension] = ws.protocol.extensions
        assert extension.local_no_context_takeover is (len(how) == 1)
        for message in ("text", b"binary", "x" * 70_000):
            ws.send(message)
            assert ws.recv(timeout=20) == message


def test_its_limit_on_messages(start_program):
    """`--max-message`: more is refused with 1009."""
    _, url = start_program(*ECHO, "--max-message", "100")
    with dial(url) as ws:
        ws.send(b"x" * 100)
        assert ws.recv(timeout=20) == b"x" * 100
        ws.send(b"x" * 101)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(timeout=20)
        assert caught.value.rcvd.code == 1009


def test_it_broadcasts(start_program):
    """`--broadcast`: everybody hears everything."""
    _, url = start_program(*ECHO, "--broadcast", "--pool", "4")
    with dial(url) as one, dial(url) as two:
        for ws in (one, two):  # whoever hears itself has joined
            ws.send("join")
            assert ws.recv(timeout=20) == "join"
        one.send("hello")
        assert two.recv(timeout=20) in {"join", "hello"}
        assert one.recv(timeout=20) in {"join", "hello"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_drains(start_program, name):
    """Clients see 1001, the program ends with 0."""
    process, url = start_program(*ECHO)
    with dial(url) as one, dial(url) as two:
        for ws in (one, two):
            ws.send("hello")
            assert ws.recv(timeout=20) == "hello"
        process.send_signal(signal.Signals[name])
        for ws in (one, two):
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(timeout=20)
            assert caught.value.rcvd.code == 1001
    assert process.wait(20) == 0
    with pytest.raises(OSError, match="refused"):
        dial(url)


SLOW_TO_LEAVE = """
import trio, trionet
protocol = trionet.WebSocketProtocol(trionet.WebSocketHandler(), close_timeout=600)
def announce(server):
    print("listening on", server.endpoints[0].url, flush=True)
async def run():
    await trionet.serve(protocol, "127.0.0.1", 0, grace=600, announce=announce)
    print("over", flush=True)
trio.run(run)
"""


def test_a_second_signal_stops_at_once(start_program):
    """A drain that waits for a peer which does not answer is cut short; still the end is clean."""
    process, url = start_program("-c", SLOW_TO_LEAVE)
    host, port = url.removeprefix("ws://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        process.send_signal(signal.SIGTERM)
        while b"\x88" not in data:  # the Close with 1001: the drain is under way, and waits for an answer
            data += sock.recv(4096)
        assert b"\x03\xe9" in data
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout.read() == "over\n"
