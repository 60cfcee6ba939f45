"""The servers under attack: the echo example as a program, and servers in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import trionet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Test folders are no packages (importlib mode); this lets the tests here share `hostile_peer` and `hostile_cases`.
sys.path.append(str(HERE))


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class EchoProgram:
    """`examples/echo.py`, running."""

    def __init__(self, process: subprocess.Popen[str], address: tuple[str, int]) -> None:
        self.process = process
        self.address = address

    def descriptors(self) -> int:
        """Return how many descriptors the program has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Return its resident memory, in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def echo_program(tmp_path_factory):
    """Run the echo example for all the tests; at the end it must still run and have said nothing on stderr."""
    errors = tmp_path_factory.mktemp("hostile") / "stderr"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-u", "-W", "error", str(ROOT / "examples" / "echo.py"), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    line = process.stdout.readline()
    assert line.startswith("listening on "), errors.read_text()
    url = urlsplit(line.split()[2])
    yield EchoProgram(process, (url.hostname, url.port))
    ended_early = process.poll()
    process.terminate()
    status = process.wait(15)
    process.stdout.close()
    assert ended_early is None, f"the server ended with {ended_early}:\n{errors.read_text()}"
    said = errors.read_text()
    assert "Traceback" not in said, said
    assert status == 0, said


class Echo(trionet.WebSocketHandler):
    """Echoes, and counts what it was called with."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = []

    async def on_open(self, ws):
        self.opened += 1

    async def on_message(self, ws, message):
        await ws.send(message)

    async def on_close(self, ws, closed):
        self.closed.append(closed)


@pytest.fixture
def echo_handler():
    """Return a handler that echoes and keeps count."""
    return Echo()


@pytest.fixture
def serving():
    """Return `serving(handler, **options)`: a server in this process that must leave no descriptor behind."""

    @asynccontextmanager
    async def serve(handler, *, pool_size=128, resolution=0.05, **options):
        before = open_descriptors()
        protocol = trionet.WebSocketProtocol(handler, **options)
        async with trionet.open_server(protocol, pool_size=pool_size, resolution=resolution) as server:
            yield server
        assert open_descriptors() <= before

    return serve
