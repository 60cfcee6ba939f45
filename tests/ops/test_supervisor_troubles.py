"""The supervisor on a bad day: what breaks around it must not break what works."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from served import APP, ask, children_of, until, until_workers

from trionet import ConnectionClosed

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc"),
]

#: Deadlines of seconds are tenths here.
SHORT = "import trionet.ops.slots as slots; slots.MARGIN = 0.3; slots._ABORT = 0.3"

#: An application that is not imported before the file "go" is there.
WAITING = """
import pathlib, time
while not pathlib.Path(__file__).with_name("go").exists():
    time.sleep(0.01)
"""

#: What speaks to the supervisor in our place: the only Unix socket a worker has while it imports.
GARBAGE = """
import os, stat, socket
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            sock = socket.socket(fileno=os.dup(fd))
            if sock.family == socket.AF_UNIX:
                sock.send(b'no sense\\n[1]\\n{"say"\\n{"say": "ready", "urls"')
                sock.send(b"x" * 100_000 + b"\\n")
            sock.close()
    except OSError:
        pass
"""

HANGS_AT_ITS_END = (
    APP
    + """
import contextlib, time

@contextlib.asynccontextmanager
async def lifespan(server):
    yield
    time.sleep(60)

app = trionet.ops.application.Application(app, lifespan=lifespan)
"""
).replace("import trionet\n", "import trionet\nimport trionet.ops.application\n", 1)


#: In two pieces.
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
)


async def begin(url: str, *pieces: bytes) -> trio.SocketStream:
    """A connection that has sent so much."""
    host, port = url.split("/")[2].split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(b"".join(pieces))
    return stream


def blocked(pid: int) -> int:
    """The signals that a process blocks, as a bit mask."""
    [mask] = re.findall(r"SigBlk:\s*(\S+)", Path(f"/proc/{pid}/status").read_text())
    return int(mask, 16)


def descriptors(pid: int, pattern: str = "*") -> dict[str, int]:
    """What a process has open, and how often."""
    found: dict[str, int] = {}
    for fd in Path(f"/proc/{pid}/fd").glob(pattern):
        with contextlib.suppress(OSError):
            name = str(fd.readlink())
            found[name] = found.get(name, 0) + 1
    return found


async def test_children_have_nothing_of_their_parent(start: Any, client: Any) -> None:
    """A worker has one listening socket, its own; no child blocks signals; a restart leaks nothing."""
    served = start(workers=2, drain_window=0)
    await served.ready()
    before = descriptors(served.process.pid)
    sockets = {name for name in before if name.startswith("socket:")}
    shared = []
    for row in await served.workers():
        shared.append(sockets & set(descriptors(row["pid"])))
        assert len(shared[-1]) == 1
        assert not blocked(row["pid"])
    assert not set.intersection(*shared)
    assert len(sockets & set(descriptors(await served.desk()))) == 2  # the admin's, and the control socket
    served.signal(signal.SIGHUP)
    await served.says("restarted")
    await until(lambda: sum(descriptors(served.process.pid).values()) == sum(before.values()))


async def test_a_worker_that_says_what_makes_no_sense(start: Any, client: Any) -> None:
    """It is logged, and the supervisor goes on."""
    served = start(GARBAGE + APP, workers=1)
    await ask(client, await served.ready())
    assert served.said().count("what makes no sense") == 3 + 1
    assert len(served.said()) < 10_000


async def test_signals_for_all_processes_while_they_start(start: Any, client: Any) -> None:
    """``pkill -HUP`` and ``-USR1`` reach workers that have no handlers yet: nobody dies of it."""
    served = start(WAITING + APP, drain_window=0)
    await until(lambda: len(children_of(served.process.pid)) == 3)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1):
        os.killpg(served.process.pid, number)
    await served.says("rolling restart")
    (served.folder / "go").touch()
    url = await served.ready()
    await served.says("restarted")
    assert (await ask(client, url))[0] == "one"
    assert "killed by" not in served.said()


async def test_sigterm_for_all_processes(start: Any, client: Any) -> None:
    """As systemd's KillMode=control-group sends it: all drain, the admin page is there meanwhile, the status is 0."""
    served = start(drain_window=60, grace=100)
    url = await served.ready()
    connections = [await client.connect(url) for _ in range(3)]
    os.killpg(served.process.pid, signal.SIGTERM)
    await until_workers(served, lambda rows: {row["state"] for row in rows} == {"draining"})
    assert "starts again" not in served.said()
    for ws in connections:
        await ws.close()
    assert await served.status() == 0
    assert "not by its supervisor" not in served.said()


async def test_sigterm_to_one_worker(start: Any, client: Any) -> None:
    """It drains, and its successor serves meanwhile."""
    served = start(workers=1)
    url = await served.ready()
    held = await begin(url, *REQUEST)
    assert (await held.receive_some()).startswith(b"HTTP/1.1 101")
    [row] = await served.workers()
    os.kill(row["pid"], signal.SIGTERM)
    await served.says("not by its supervisor")
    assert (await ask(client, url))[1] != row["pid"]
    assert sorted(row["state"] for row in await served.workers()) == ["draining", "serving"]
    assert (await held.receive_some())[2:4] == (1001).to_bytes(2)  # it does not answer
    await held.aclose()
    await until_workers(served, lambda rows: [row["restarts"] for row in rows] == [1])


async def test_a_fork_that_fails_is_tried_again(start: Any, client: Any) -> None:
    """No memory for a successor at this moment: the others go on, the place is filled later."""
    prelude = """
import os
fork, count = os.fork, 0
def failing():
    global count
    count += 1
    if count in (4, 5):
        raise OSError(12, "Cannot allocate memory")
    return fork()
os.fork = failing
"""
    served = start(prelude=prelude)
    url = await served.ready()
    before = {row["pid"] for row in await served.workers()}
    os.kill(min(before), signal.SIGKILL)
    await served.says("cannot be started: Cannot allocate memory")
    rows = await until_workers(
        served, lambda rows: len(rows) == 2 and min(before) not in {r["pid"] for r in rows}
    )
    assert max(before) in {row["pid"] for row in rows}
    await ask(client, url)


async def test_standard_streams_that_are_closed(start: Any, tmp_path: Path) -> None:
    """Started without any of the three, no socket gets their numbers, and all is served."""
    served = start(command=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    with trio.fail_after(20):
        while True:
            with contextlib.suppress(OSError, ValueError, IndexError):
                if (await served.get("/readyz"))[0] == 200:
                    break
            await trio.sleep(0.02)
    for pid in (served.process.pid, *children_of(served.process.pid)):
        assert set(descriptors(pid, "[012]")) == {"/dev/null"}
    served.signal(signal.SIGTERM)
    assert await served.status() == 0


async def test_a_control_socket_that_was_removed_is_made_anew(start: Any, tmp_path: Path) -> None:
    """A cleaner of /tmp took it: the admin process and the workers find each other again."""
    place = tmp_path / "t"
    place.mkdir()
    served = start(prelude="import trionet.ops.folder as f; f._LOOK = 0.1", environ={"TMPDIR": str(place)})
    await served.ready()
    [folder] = place.iterdir()
    shutil.rmtree(folder)
    await served.says("was removed")
    await served.says("the admin process was killed")
    for row in await served.workers():
        os.kill(row["pid"], signal.SIGKILL)
    await until_workers(
        served,
        lambda rows: len(rows) == 2 and all("connections" in row and row["restarts"] for row in rows),
    )
    assert (await served.get("/readyz"))[0] == 200
    served.signal(signal.SIGTERM)
    await served.status()
    assert not folder.exists()


async def test_numbers_do_not_go_back(start: Any, client: Any) -> None:
    """What a worker has counted stays counted over a restart and a kill; and readiness never goes."""
    served = start(drain_window=0)
    url = await served.ready()

    async def opened() -> float:
        text = (await served.get("/metrics"))[1]
        [number] = re.findall(r"^trionet_connections_opened_total{[^}]*} (\S+)", text, re.MULTILINE)
        return float(number)

    async def settled(count: int) -> None:
        with trio.fail_after(20):
            while (seen := await opened()) != count:
                assert seen <= count
                seen_all.append(seen)
                await trio.sleep(0.05)

    seen_all: list[float] = []
    for _ in range(10):
        await ask(client, url)
    await settled(10)
    served.signal(signal.SIGHUP)
    with trio.fail_after(20):
        while "restarted" not in served.said():
            assert (await served.get("/readyz"))[0] == 200
            seen_all.append(await opened())
    await ask(client, url)
    await settled(11)
    for row in await served.workers():
        os.kill(row["pid"], signal.SIGKILL)
    await until_workers(served, lambda rows: sum("connections" in r for r in rows if r["restarts"]) == 2)
    assert await opened() == 11
    assert seen_all == sorted(seen_all)


async def test_a_handshake_that_is_half_done_when_its_worker_is_retired(start: Any, client: Any) -> None:
    """It is answered by the worker that has begun it."""
    served = start(workers=1)
    url = await served.ready()
    stream = await begin(url, REQUEST[0])
    await until_workers(served, lambda rows: rows[0]["opening"] == 1)
    served.signal(signal.SIGHUP)
    await until_workers(served, lambda rows: {row["state"] for row in rows} == {"serving", "draining"})
    await stream.send_all(REQUEST[1])
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
    await stream.aclose()


async def test_a_unix_socket_serves_through_a_restart(start: Any, client: Any, tmp_path: Path) -> None:
    """Workers share one queue: nobody in it is lost when one of them stops accepting."""
    path = tmp_path / "socket"
    served = start(unix=str(path), drain_window=0)
    await served.ready()
    served.signal(signal.SIGHUP)
    with trio.fail_after(20):
        while "restarted" not in served.said():
            async with client.connect("ws://localhost/", unix_path=path) as ws:
                try:
                    await ws.send("?")
                    await ws.receive()
                except ConnectionClosed as closed:
                    if closed.code != 1012:  # accepted in the last moment: told to come back, and not lost
                        raise


async def test_an_application_that_never_ends_its_start(start: Any) -> None:
    """It shows where it is, and all ends."""
    served = start(WAITING + APP, workers=1, start_timeout=0.3, prelude=SHORT)
    assert await served.status() == 1
    assert "was not ready in time" in served.said()
    assert "served_app.py" in served.said()


async def test_an_application_that_never_ends_its_end(start: Any, client: Any) -> None:
    """It has `grace` and a little more, then shows where it is, and is killed; so is one that is stopped."""
    served = start(HANGS_AT_ITS_END, grace=0.1, prelude=SHORT)
    await served.ready()
    os.kill((await served.workers())[0]["pid"], signal.SIGSTOP)
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert served.said().count("did not end in time") == 2
    assert "in lifespan" in served.said()


async def test_an_application_that_calls_exit(start: Any) -> None:
    """It is said that it did, and the status is its own."""
    served = start("import atexit, sys\natexit.register(print, 'bye', file=sys.stderr)\nsys.exit(7)")
    assert await served.status() == 7
    assert "the application ended its worker: SystemExit(7)" in served.said()
    assert "bye" in served.said()


async def test_what_a_service_manager_hears(start: Any, tmp_path: Path) -> None:
    """READY, the watchdog, each reload with its end (be it that it failed), STOPPING: in this order."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        served = start(
            workers=2,
            drain_window=0,
            environ={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"},
        )

        def next_word() -> str:
            while (word := manager.recv(4096).decode()) == "WATCHDOG=1":
                beats.append(word)
            return word

        beats: list[str] = []
        assert await trio.to_thread.run_sync(next_word) == f"READY=1\nSTATUS=2 workers serve {served.file}"
        for code, status in (
            (APP, f"STATUS=2 workers serve {served.file}"),
            ("import no_such_module", "the new code does not start; the workers there are go on"),
        ):
            served.file.write_text(code)
            served.signal(signal.SIGHUP)
            assert (await trio.to_thread.run_sync(next_word)).startswith("RELOADING=1\nMONOTONIC_USEC=")
            word = await trio.to_thread.run_sync(next_word)
            assert word.startswith("READY=1\n")
            assert word.endswith(status)
        served.signal(signal.SIGTERM)
        assert (await trio.to_thread.run_sync(next_word)).startswith("STOPPING=1\n")
        assert await served.status() == 0
        assert beats


async def test_the_folder_goes_with_a_supervisor_that_is_killed(start: Any, tmp_path: Path) -> None:
    """The admin process, which sees it, removes it."""
    place = tmp_path / "t"
    place.mkdir()
    served = start(workers=1, grace=0.1, environ={"TMPDIR": str(place)})
    await served.ready()
    served.signal(signal.SIGKILL)
    await served.status()
    await until(lambda: not list(place.iterdir()))
