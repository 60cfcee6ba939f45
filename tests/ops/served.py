"""A supervisor in a process of its own, and what is asked of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

import trionet

PROGRAM = """
import sys, json
import logging
logging.basicConfig(level="INFO", format="%(message)s")
from trionet.ops.settings import ServeSettings
from trionet.ops.supervisor import run
settings = ServeSettings(**json.loads(sys.argv[1]))
exec(sys.argv[2])
if sys.argv[3:]:
    from trionet.ops.worker import run_alone
    sys.exit(run_alone(settings, lambda server, _: print("READY", server.listeners[0].url, flush=True)))
sys.exit(run(settings, None, lambda urls: print("READY", *urls, flush=True)))
"""

#: Has imported everything, and forks who asks for it: that takes a tenth of the time of a new interpreter.
NURSERY = """
import json, os, signal, socket, sys, tempfile
import trionet.ops.admin, trionet.ops.debug, trionet.ops.supervisor, trionet.ops.worker, h11
asked = socket.socket(fileno=0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    request, fds, _, _ = socket.recv_fds(asked, 2**20, 3)
    if not request:
        sys.exit()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        argv, environ = json.loads(request)
        asked.close()
        pid = os.fork()
        if pid:
            os.write(fds[2], b"%d\\n" % pid)
            os.write(fds[2], b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
        break
    for fd in fds:
        os.close(fd)
os.setsid()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(fds[0], 1)
os.dup2(fds[1], 2)
os.closerange(3, 64)
os.environ.update(environ)
tempfile.tempdir = None
program, *rest = argv
sys.argv = ["-c", *rest]
exec(program)
"""


class Nursery:
    """A process that forks supervisors; one for all tests."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=theirs)

    def close(self) -> None:
        """End it."""
        self.sock.close()
        self.process.wait()


class Forked:
    """What a `Nursery` has forked, as a `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, argv: Sequence[str], environ: dict[str, str], *outputs: int) -> None:
        read, write = os.pipe()
        self._status = os.fdopen(read)
        socket.send_fds(nursery.sock, [json.dumps([argv, environ]).encode()], [*outputs, write])
        os.close(write)
        self.pid = int(self._status.readline())
        self._code: int | None = None

    def send_signal(self, number: int) -> None:
        """Send it."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; the exit code."""
        if self._code is None:
            self._code = int(self._status.readline())
            self._status.close()
        return self._code


APP = """
import os
import trionet

VERSION = "one"

class Who(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        if message == "hang":
            import time
            time.sleep(60)
        await ws.send(f"{VERSION} {os.getpid()}")

app = trionet.WebSocketProtocol(Who(), ping_interval=None)
"""


class Served:
    """A supervisor in a process of its own, or one process that serves `alone`.

    `prelude`: code that it runs first. `command`: what starts it.
    """

    def __init__(
        self,
        folder: Path,
        app: str = APP,
        *,
        prelude: str = "",
        command: Sequence[str] = (),
        environ: dict[str, str] | None = None,
        alone: bool = False,
        nursery: Nursery | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.file = folder / "served_app.py"
        self.file.write_text(textwrap.dedent(app))
        self.admin = str(folder / "admin")
        options = {"app": str(self.file), "port": 0, "workers": 2, "admin": f"unix:{self.admin}", "grace": 10}
        options.update(settings)
        self.log, self.out = folder / "log", folder / "out"
        argv = [PROGRAM, json.dumps(options), prelude, *["alone"] * alone]
        self.process: Forked | subprocess.Popen[bytes]
        with self.log.open("wb") as log, self.out.open("wb") as out:
            if nursery is not None and not command:
                self.process = Forked(nursery, argv, environ or {}, out.fileno(), log.fileno())
            else:
                self.process = subprocess.Popen(
                    [*command, sys.executable, "-c", *argv],
                    stdout=out,
                    stderr=log,
                    env=os.environ | (environ or {}),
                    start_new_session=True,
                )

    async def ready(self) -> str:
        """Wait until all workers accept; the address."""
        await until(lambda: self.out.read_text().endswith("\n"))
        words = self.out.read_text().split()
        assert words[:1] == ["READY"], self.said()
        with trio.fail_after(20):  # the admin process hears of it, and from the workers, a moment later
            while not all("connections" in row for row in await self.workers() or [{}]):  # noqa: ASYNC110
                await trio.sleep(0.02)
        return words[1]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def says(self, text: str, count: int = 1) -> None:
        await until(lambda: self.said().count(text) >= count)

    async def desk(self) -> int:
        """The admin process."""
        [pid] = set(children_of(self.process.pid)) - {row["pid"] for row in await self.workers()}
        return pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def status(self) -> int:
        return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)

    async def get(self, path: str) -> tuple[int, str]:
        """A page of the admin address."""
        stream = await trio.open_unix_socket(self.admin)
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = b"".join([piece async for piece in stream])
        head, _, body = data.decode().partition("\r\n\r\n")
        return int(head.split()[1]), body

    async def workers(self) -> list[dict[str, Any]]:
        return json.loads((await self.get("/workers"))[1])["workers"]

    def end(self) -> None:
        """Whatever happened: no process is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in another process."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - no event crosses processes
            await trio.sleep(0.02)


async def until_workers(
    served: Served, condition: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    """Wait until /workers shows what is wanted."""
    with trio.fail_after(20):
        while True:
            rows = await served.workers()
            if condition(rows):
                return rows
            await trio.sleep(0.02)


async def ask(client: trionet.WebSocketClient, url: str) -> tuple[str, int]:
    """Version and process of a worker that answers."""
    async with client.connect(url) as ws:
        await ws.send("?")
        version, pid = str(await ws.receive()).split()
        return version, int(pid)


async def until_readyz(served: Served, status: int) -> str:
    """What it says; the admin process hears of a change a moment later."""
    with trio.fail_after(20):
        while True:
            found, word = await served.get("/readyz")
            if found == status:
                return word
            await trio.sleep(0.02)


async def codes(connections: list[trionet.ClientWebSocket]) -> set[int]:
    """The close codes of all, once they have ended."""
    for ws in connections:
        await ws.wait_closed()
    return {ws.closed.code for ws in connections if ws.closed is not None}


def waiting_on(port: int) -> int:
    """Established connections with that local port, as the kernel counts them."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody reaps yet has ended all the same.
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return not status.startswith("Z") and bool(status.strip())


def children_of(pid: int) -> list[int]:
    """The processes it has started, and that are there."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
