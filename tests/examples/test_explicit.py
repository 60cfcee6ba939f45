"""`examples/explicit.py`, run as a program: the composition by hand serves real clients."""

from __future__ import annotations

import contextlib
import socket

import pytest
from websockets.sync.client import connect


@pytest.fixture
def url(start_program):
    """Return the address of the running example."""
    _, url = start_program("-m", "examples.explicit", "0")
    return url


def test_it_echoes(url):
    """Several clients at once; text, binary, a fragmented message."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(connect(url, compression=None, open_timeout=20, close_timeout=0.1))
            for _ in range(5)
        ]
        for ws in clients:
            for message in ("text", b"binary", "x" * 50_000):
                ws.send(message)
                assert ws.recv(timeout=20) == message
            ws.send(["frag", "ment"])
            assert ws.recv(timeout=20) == "fragment"


def test_silent_clients_hold_no_worker(url):
    """More half-open handshakes than the pool has workers, fed byte by byte or not at all: others are served."""
    host, port = url.removeprefix("ws://").rstrip("/").split(":")
    silent = [socket.create_connection((host, int(port)), 20) for _ in range(150)]
    for sock in silent[::2]:
        sock.sendall(b"GET / HT")
    with connect(url, compression=None, open_timeout=20, close_timeout=1) as ws:
        ws.send("still served")
        assert ws.recv(timeout=20) == "still served"
    for sock in silent:
        sock.close()
    with connect(url, compression=None, open_timeout=20, close_timeout=1) as ws:
        ws.send("and afterwards")
        assert ws.recv(timeout=20) == "and afterwards"
