"""The supervisor with real processes: real forks, signals and sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from served import APP, ask, children_of, codes, running, until, until_readyz, until_workers, waiting_on

from trionet import ConnectionClosed

pytestmark = [pytest.mark.processes, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


async def test_connections_are_spread_over_the_workers(start: Any, client: Any) -> None:
    """Every worker gets some of them, and /workers counts the same."""
    served = start()
    url = await served.ready()
    open_now = [await client.connect(url) for _ in range(40)]
    rows = await served.workers()
    counts = [row["connections"] for row in rows]
    assert sum(counts) == len(open_now)
    assert min(counts) > 0


async def test_sigterm_drains_and_ends_with_0(start: Any, client: Any) -> None:
    """Every connection is told 1001, every process ends, nothing is left behind."""
    served = start()
    url = await served.ready()
    connections = [await client.connect(url) for _ in range(10)]
    pids = [row["pid"] for row in await served.workers()]
    served.signal(signal.SIGTERM)
    assert await codes(connections) == {1001}
    assert await served.status() == 0
    assert not any(running(pid) for pid in pids)
    assert not os.path.exists(served.admin)  # noqa: ASYNC240, PTH110


async def test_sighup_loads_new_code_and_refuses_nobody(start: Any, client: Any) -> None:
    """During a rolling restart each attempt to connect succeeds; afterwards the new version answers."""
    served = start(drain_window=0.2)
    url = await served.ready()
    held = [await client.connect(url) for _ in range(10)]
    assert (await ask(client, url))[0] == "one"
    served.file.write_text(APP.replace('"one"', '"two"'))
    served.signal(signal.SIGHUP)
    answers, told = [], {1012}
    with trio.fail_after(20):
        while "restarted" not in served.said():
            try:
                answers.append((await ask(client, url))[0])
            except ConnectionClosed as closed:  # it was let in, and told at once to come back
                told.add(closed.code)
    assert (await ask(client, url))[0] == "two"
    assert set(answers) <= {"one", "two"}
    assert await codes(held) == told == {1012}, served.said()


async def test_code_that_does_not_load_changes_nothing(start: Any, client: Any) -> None:
    """After SIGHUP with a broken application the old workers serve as before, and the log says why."""
    served = start()
    url = await served.ready()
    before = {row["pid"] for row in await served.workers()}
    async with client.connect(url) as ws:
        served.file.write_text("import no_such_module_anywhere")
        served.signal(signal.SIGHUP)
        await served.says("the new code does not start")
        assert "no_such_module_anywhere" in served.said()
        assert {row["pid"] for row in await served.workers()} == before
        await ws.send("?")
        assert str(await ws.receive()).startswith("one")


async def test_an_application_that_cannot_be_loaded_ends_it_with_2(start: Any) -> None:
    """At the first start there is nothing to fall back to: exit code 2, and what to do."""
    served = start("handlers = 3")
    assert await served.status() == 2
    assert "has none of app, application, protocol, handler" in served.said()


async def test_what_waits_in_the_queue_of_a_killed_worker_is_served_by_its_successor(
    start: Any, client: Any
) -> None:
    """A worker is stopped, connections gather in its queue, it is killed: all of them are answered."""
    served = start(workers=1)
    url = await served.ready()
    [row] = await served.workers()
    os.kill(row["pid"], signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        answered = []

        async def one() -> None:
            answered.append(await ask(client, url))

        port = int(url.rsplit(":", 1)[1].strip("/"))
        for _ in range(30):
            nursery.start_soon(one)
        await until(lambda: waiting_on(port) >= 30)
        os.kill(row["pid"], signal.SIGKILL)
    assert len(answered) == 30
    assert row["pid"] not in {pid for _, pid in answered}


async def test_a_crash_costs_only_its_own_connections(start: Any, client: Any) -> None:
    """One of two workers is killed: those of the other do not notice, and its place is filled again."""
    served = start()
    url = await served.ready()
    connections = [await client.connect(url) for _ in range(30)]
    rows = await served.workers()
    victim = rows[0]
    os.kill(victim["pid"], signal.SIGKILL)
    after = await until_workers(
        served,
        lambda rows: (
            len(rows) == 2 and all(row["pid"] != victim["pid"] and row["state"] == "serving" for row in rows)
        ),
    )
    assert {row["restarts"] for row in after} == {0, 1}
    await until(lambda: sum(ws.closed is not None for ws in connections) == victim["connections"])
    for ws in connections:
        if ws.closed is None:
            await ws.send("?")
            await ws.receive()


async def test_a_worker_that_hangs_is_replaced_and_shows_its_stack(start: Any, client: Any) -> None:
    """No sign of life for `worker_timeout`: SIGABRT has it print where it hangs, and a new one takes its place."""
    served = start(workers=1, worker_timeout=0.5, stall_threshold=None)
    url = await served.ready()
    ws = await client.connect(url)
    await ws.send("hang")
    await served.says("gave no sign of life")
    assert (await ask(client, url))[0] == "one"
    assert "in on_message" in served.said()


async def test_readiness_follows_the_state(start: Any, client: Any) -> None:
    """/readyz is 200 while it serves, and 503 while it drains."""
    served = start(drain_window=5)
    url = await served.ready()
    assert await until_readyz(served, 200) == "ready\n"
    assert await served.get("/healthz") == (200, "ok\n")
    await client.connect(url)
    served.signal(signal.SIGTERM)
    answer = await until_readyz(served, 503)
    assert answer in {"stopping\n", "draining\n"}  # who is asked first: the supervisor or the workers
    served.signal(signal.SIGTERM)
    assert await served.status() == 0


async def test_a_second_sigterm_does_not_wait(start: Any, client: Any) -> None:
    """Connections that would be drained for a long time are cut."""
    served = start(drain_window=60, grace=100)
    url = await served.ready()
    connections = [await client.connect(url) for _ in range(200)]
    served.signal(signal.SIGTERM)
    await served.says("draining")
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert 1006 in await codes(connections)


async def test_sigusr1_writes_the_state(start: Any) -> None:
    """The supervisor lists its workers, each worker its counters."""
    served = start()
    await served.ready()
    served.signal(signal.SIGUSR1)
    await served.says("state of worker 1")
    await served.says("state of worker 2")
    assert "2 of 2 workers serve" in served.said()


async def test_workers_end_with_their_supervisor(start: Any) -> None:
    """SIGKILL of the supervisor: its workers and the admin process see it, and end by themselves."""
    served = start(grace=0.2)
    await served.ready()
    pids = [row["pid"] for row in await served.workers()]
    served.signal(signal.SIGKILL)
    await served.status()
    await until(lambda: not any(running(pid) for pid in pids))


async def test_the_admin_process_is_replaced(start: Any, client: Any) -> None:
    """It is killed: the server does not notice, and the workers find the new one."""
    served = start()
    url = await served.ready()
    rows = await served.workers()
    children = children_of(served.process.pid)
    [desk] = set(children) - {row["pid"] for row in rows}
    os.kill(desk, signal.SIGKILL)
    assert (await ask(client, url))[0] == "one"
    await served.says("the admin process was killed")
    with trio.fail_after(20):
        while True:
            with contextlib.suppress(OSError, ValueError, IndexError):
                if all("connections" in row for row in await served.workers()):
                    break
            await trio.sleep(0.05)


async def test_a_unix_socket_is_shared_by_the_workers(start: Any, client: Any, tmp_path: Path) -> None:
    """Workers accept from one queue, and the file is removed at the end."""
    path = tmp_path / "socket"
    served = start(unix=str(path))
    await served.ready()
    async with client.connect("ws://localhost/", unix_path=path) as ws:
        await ws.send("?")
        assert str(await ws.receive()).startswith("one")
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert not os.path.exists(path)  # noqa: ASYNC240, PTH110


async def test_a_port_that_is_taken_is_an_error_before_anything_starts(start: Any) -> None:
    """Another listener on the port, even one with SO_REUSEPORT, is not joined silently."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        served = start(port=other.getsockname()[1])
        assert await served.status() == 1
    assert "Address already in use" in served.said()


async def test_nobody_is_queued_before_a_worker_is_ready(start: Any) -> None:
    """While the application is being imported connections are refused: a balancer sends them elsewhere."""
    gate = start(
        "import pathlib, time\nwhile not pathlib.Path(__file__).with_name('go').exists(): time.sleep(0.01)\n"
        + APP
    )
    with trio.fail_after(20):
        while True:
            with contextlib.suppress(OSError):
                assert await gate.get("/readyz") == (503, "starting\n")
                break
            await trio.sleep(0.02)
    (gate.folder / "go").touch()
    await gate.ready()
    assert await until_readyz(gate, 200) == "ready\n"


async def test_a_changed_file_is_loaded_while_developing(start: Any, client: Any, tmp_path: Path) -> None:
    """With `reload` a saved file is served soon after; one with an error is reported, and the old code goes on."""
    served = start(workers=1, reload=True, reload_dirs=[str(tmp_path)])
    url = await served.ready()
    assert (await ask(client, url))[0] == "one"
    served.file.write_text("mistake(")
    await served.says("the new code does not start")
    assert (await ask(client, url))[0] == "one"
    served.file.write_text(APP.replace('"one"', '"three"'))
    await served.says("restarted")
    assert (await ask(client, url))[0] == "three"
