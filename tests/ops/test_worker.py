"""A process that serves: alone, with its signals and its service manager; and what it says to the admin process."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from served import APP, codes, until

from trionet.ops import worker
from trionet.ops.control import Agent, ControlError, Fleet

pytestmark = [pytest.mark.processes, pytest.mark.skipif(not hasattr(os, "fork"), reason="signals")]

LIFESPAN = (
    APP
    + """
import contextlib, pathlib, trio
from trionet.ops.application import Application

here = pathlib.Path(__file__).parent

@contextlib.asynccontextmanager
async def lifespan(server):
    try:
        (here / "begun").touch()
        while not (here / "go").exists():
            await trio.sleep(0.01)
        yield
        (here / "ending").touch()
        await trio.sleep_forever()
    finally:
        (here / "ended").touch()

app = Application(app, lifespan=lifespan)
"""
)


async def test_what_a_service_manager_hears_of_one_process(start: Any, client: Any, tmp_path: Path) -> None:
    """READY, the watchdog, a reload with its end, STOPPING; SIGTERM drains, and the status is 0."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        served = start(alone=True, environ={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "100000"})

        def until_word(beginning: str) -> set[str]:
            """What is said before that."""
            words: set[str] = set()
            while not (word := manager.recv(4096).decode()).startswith(beginning):
                words.add(word)
            return words

        assert not await trio.to_thread.run_sync(until_word, "READY=1\nSTATUS=serving ")
        ws = await client.connect(await served.ready())
        await trio.to_thread.run_sync(until_word, "WATCHDOG=1")
        served.signal(signal.SIGHUP)
        assert await trio.to_thread.run_sync(until_word, "RELOADING=1\nMONOTONIC_USEC=") <= {"WATCHDOG=1"}
        assert await trio.to_thread.run_sync(until_word, "READY=1") <= {"WATCHDOG=1"}
        assert "nothing to load anew" in served.said()
        served.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(until_word, "STOPPING=1\n") <= {"WATCHDOG=1"}
        assert await codes([ws]) == {1001}
        assert await served.status() == 0


async def test_signals_before_it_serves(start: Any) -> None:
    """SIGHUP and SIGUSR1 kill nobody who has nothing to do for them yet; SIGTERM ends a lifespan that begins."""
    served = start(LIFESPAN, alone=True)
    await until((served.folder / "begun").exists)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        served.signal(number)
    assert await served.status() == 0
    assert "before it serves: ending" in served.said()
    assert (served.folder / "ended").exists()
    assert not os.path.exists(served.admin)  # noqa: ASYNC240, PTH110


async def test_a_lifespan_that_does_not_end(start: Any) -> None:
    """A second SIGTERM does not wait for connections, and a third not for the application: it is cancelled."""
    served = start(LIFESPAN, alone=True)
    (served.folder / "go").touch()
    await served.ready()
    served.signal(signal.SIGTERM)
    await until((served.folder / "ending").exists)
    served.signal(signal.SIGTERM)
    await served.says("second SIGTERM: stopping now")
    served.signal(signal.SIGTERM)
    assert await served.status() == 0
    assert (served.folder / "ended").exists()


async def test_hang_up_renews_the_certificate(start: Any, tmp_path: Path) -> None:
    """Who connects afterwards is shown the new one; one that cannot be read changes nothing."""
    authority = trustme.CA()
    file = tmp_path / "both.pem"

    def issue(name: str) -> None:
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(file))

    issue("one.example")
    served = start(alone=True, tls_cert=str(file))
    port = int((await served.ready()).rsplit(":", 1)[1].strip("/"))

    def shown() -> list[str]:
        context = ssl.create_default_context()
        context.check_hostname = False
        authority.configure_trust(context)
        with (
            socket.create_connection(("127.0.0.1", port)) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            return [str(value) for kind, value in tls.getpeercert()["subjectAltName"] if kind == "DNS"]

    assert await trio.to_thread.run_sync(shown) == ["one.example"]
    file.write_text("-----BEGIN NOTHING-----\n")
    served.signal(signal.SIGHUP)
    await served.says("the certificate cannot be read, the old one holds")
    assert await trio.to_thread.run_sync(shown) == ["one.example"]
    issue("two.example")
    served.signal(signal.SIGHUP)
    await served.says("the certificate was read again")
    assert await trio.to_thread.run_sync(shown) == ["two.example"]


# ---------------------------------------------------------- the admin process


@asynccontextmanager
async def reporting(path: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A worker's link to the admin process at `path`, which is tried all the time."""
    monkeypatch.setattr(worker, "_REPORT", 0.01)
    monkeypatch.setattr(worker, "_RECONNECT", 0.01)
    report = worker._Report(agent, str(path))
    report._wanted = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report.keep)
        yield report
        await report.last()
        nursery.cancel_scope.cancel()


def agent_with(metrics: Any) -> Agent:
    """An agent that answers that command."""
    agent = Agent(None)  # type: ignore[arg-type]
    agent.commands["metrics"] = lambda look=True: metrics()
    return agent


def fails() -> None:
    """As metrics of the application's own may."""
    raise ControlError("metrics of the application's own")


@pytest.mark.parametrize("metrics", [fails, object], ids=["failing", "no-json"])
async def test_metrics_that_cannot_be_had(metrics: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The worker goes on, and stays connected, whatever the application's own metrics do."""
    fleet = Fleet()
    calls = []

    def counted() -> Any:
        calls.append(1)
        return metrics()

    path = tmp_path / "control"
    async with trio.open_nursery() as nursery:
        listener = await _listen(path)
        nursery.start_soon(trio.serve_listeners, fleet.serve, [listener])
        async with reporting(path, agent_with(counted), monkeypatch):
            await until(lambda: len(calls) > 3)
            assert os.getpid() in fleet.workers
        nursery.cancel_scope.cancel()


async def test_an_admin_process_that_does_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    """It is stopped, or hangs: the worker gives the link up, and tries again."""
    monkeypatch.setattr("trionet.ops.control.SEND_TIMEOUT", 0.05)
    connected = []

    async def deaf(stream: trio.SocketStream) -> None:
        connected.append(stream)
        await trio.sleep_forever()

    path = tmp_path / "control"
    async with trio.open_nursery() as nursery:
        listener = await _listen(path)
        nursery.start_soon(trio.serve_listeners, deaf, [listener])
        async with reporting(path, agent_with(lambda: "x" * 2**20), monkeypatch):
            await until(lambda: len(connected) > 2)
        nursery.cancel_scope.cancel()


async def test_an_admin_process_that_talks_nonsense_or_leaves(tmp_path: Path, monkeypatch: Any) -> None:
    """The link ends, in the middle of a report perhaps, and is made anew."""
    connected = []

    async def rude(stream: trio.SocketStream) -> None:
        connected.append(stream)
        if len(connected) % 2:
            await stream.send_all(b"\xff" * 8)
        await stream.aclose()

    path = tmp_path / "control"
    async with trio.open_nursery() as nursery:
        listener = await _listen(path)
        nursery.start_soon(trio.serve_listeners, rude, [listener])
        async with reporting(path, agent_with(lambda: "x" * 2**20), monkeypatch):
            await until(lambda: len(connected) > 5)
        nursery.cancel_scope.cancel()


async def _listen(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(sock)


async def test_nobody_is_told_numbers_that_nobody_has_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was never scraped reports nothing by itself, and everything from its first scrape on."""
    monkeypatch.setattr(worker, "_REPORT", 0.0)
    fleet = Fleet()
    heard: list[int] = []
    fleet.noted["metrics"] = lambda each, snapshot: heard.append(each.pid)
    server: Any = None  # no command of this test looks at it
    agent = Agent(server)
    agent.commands["metrics"] = lambda look=True: {}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "control"))
        sock.listen()
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, fleet.serve, [listener])
            nursery.start_soon(worker._Report(agent, str(tmp_path / "control")).keep)
            await until(lambda: fleet.workers)
            for _ in range(20):  # there and back: a report would have been due many times
                await fleet.ask("ping")
            assert not heard
            assert await fleet.ask("metrics") == {os.getpid(): {}}
            await until(lambda: heard)
            nursery.cancel_scope.cancel()
