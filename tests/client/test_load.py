"""The scenarios of the load generator against real servers, in this process; two runs with real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from ws_peer import until

import trionet
from trionet.client.load.alarm import Alarm
from trionet.client.load.attempt import cause_of
from trionet.client.load.coordinator import Coordinator, run_load
from trionet.client.load.dialer import Dialer
from trionet.client.load.environment import look
from trionet.client.load.lines import Lines
from trionet.client.load.options import LoadOptions
from trionet.client.load.plan import Arrivals, Machine, make_plan
from trionet.client.load.result import to_json
from trionet.client.load.worker import Worker
from trionet.net.histogram import Histogram

MACHINE = Machine(nofile=1024, ports=28_232, cpus=(0, 1))


class Echo(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(message)


@asynccontextmanager
async def serving(handler=None, **settings):
    """A server, an echo if nothing else is asked for."""
    protocol = trionet.WebSocketProtocol(handler or Echo(), origins="*", **settings)
    async with trionet.open_server(protocol, resolution=0.02) as server:
        server.protocol = protocol
        yield server


class Driver:
    """The coordinator's side, in the hands of a test."""

    def __init__(self, worker, lines):
        self.worker = worker
        self.meter = worker.meter
        self.links = worker.scenario.links
        self._lines = lines

    async def ask(self, do, seconds=0.0):
        """Have it done; return what the worker says then (ticks apart)."""
        now = time.monotonic()
        await self._lines.say({"do": do, "until": now + seconds, "epoch": now})
        return await self.hear()

    async def hear(self):
        while (said := await self._lines.hear())["say"] == "tick":
            pass
        return said


@asynccontextmanager
async def driving(url, **given):
    """A worker in this process."""
    options = LoadOptions(url=url, **given)
    options.check()
    address = "127.0.0.1" if options.target.unix is None else None
    share = make_plan(attrs.evolve(options, processes=1), MACHINE, address).shares[0]
    worker = Worker(options, share, processes=1, address=address)
    ours, theirs = socket.socketpair()
    lines, far = Lines(ours), Lines(theirs)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run, far)
                driver = Driver(worker, lines)
                assert await driver.hear() == {"say": "ready"}
                yield driver
                nursery.cancel_scope.cancel()
    finally:
        lines.close()
        far.close()


def histogram(result, name):
    """One of those in a result."""
    return Histogram.from_json(result["histograms"][name])


async def test_idle_connects_holds_and_says_goodbye():
    """All connections are open after the ramp, nothing is sent, and they end by the closing handshake."""
    async with serving() as server, driving(server.listeners[0].url, connections=50) as driver:
        done = await driver.ask("ramp")
        assert done["connected"] == server.statistics().connections == 50
        await driver.ask("measure", 0.01)
        result = await driver.ask("close")
        assert result["connected"] == result["peak"] == 50
        assert result["failed"] == result["lost"] == result["sent"] == 0
        assert histogram(result, "connect").count == 50
        await until(lambda: server.protocol.closes == {1000: 50})


async def test_abrupt_end():
    """With `abrupt` connections are reset: the server gets no goodbye."""
    async with serving() as server, driving(server.listeners[0].url, connections=5, abrupt=True) as driver:
        await driver.ask("ramp")
        await driver.ask("close")
        await until(lambda: server.protocol.closes == {1006: 5})


async def test_an_open_link_is_small():
    """An idle link keeps nothing but itself: no handshake, no response, no task."""
    async with serving() as server, driving(server.listeners[0].url, connections=3) as driver:
        await driver.ask("ramp")
        assert len(driver.links) == 3
        for link in driver.links:
            assert link._agreed is link._rare is link._out is link._input is link.data is None
            assert sys.getsizeof(link) <= 120


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_flight": 8},
        {"size": 70_000, "in_flight": 3},
        {"binary": True, "size": 200},
        {"message": "grüße"},
        {"compression": True, "size": 500},
    ],
    ids=["plain", "pipelined", "long", "binary", "own", "compressed"],
)
async def test_echo(options):
    """Every message is answered, each answer is what was sent, and every latency is recorded."""
    async with (
        serving(compression=True) as server,
        driving(server.listeners[0].url, scenario="echo", connections=4, **options) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.15)
        result = await driver.ask("close")
        assert result["received"] == result["sent"] >= 4 * options.get("in_flight", 1)
        assert result["received_bytes"] == result["sent_bytes"]
        assert result["wrong"] == result["unanswered"] == result["lost"] == 0
        assert histogram(result, "message").count == result["received"]
        assert result["window"]["received"] <= result["received"]


async def test_pings_are_answered_meanwhile():
    """A server that pings idle links keeps them."""
    async with (
        serving(ping_interval=0.05, ping_timeout=0.05) as server,
        driving(server.listeners[0].url, connections=3) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.3)
        assert driver.meter.lost == 0
        assert driver.meter.open == 3


async def test_wrong_answers_are_counted():
    """An echo that is not what was sent counts as wrong, and as an answer."""

    class Wrong(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            await ws.send(message[::-1])

    async with (
        serving(Wrong()) as server,
        driving(server.listeners[0].url, scenario="rate", connections=2, rate=100.0) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.1)
        result = await driver.ask("close")
        assert result["wrong"] == result["received"] == result["sent"] > 0


async def test_any_answer():
    """With `any_answer` a server may say what it likes."""

    class Talk(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            await ws.send("ok")

    async with (
        serving(Talk()) as server,
        driving(server.listeners[0].url, scenario="echo", connections=2, any_answer=True) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.05)
        result = await driver.ask("close")
        assert result["wrong"] == 0
        assert result["received"] == result["sent"] > 0


async def test_latency_counts_from_when_a_message_was_due():
    """A server that stalls until the last message is sent makes all of them late, not only the last."""
    rate = 200.0
    released = trio.Event()

    class Stalled(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            await released.wait()
            await ws.send(message)

    async with (
        serving(Stalled()) as server,
        driving(server.listeners[0].url, scenario="rate", connections=1, rate=rate) as driver,
    ):
        scenario = driver.worker.scenario
        wait = scenario.last_answers

        async def all_are_sent():
            released.set()
            await wait()

        scenario.last_answers = all_are_sent
        await driver.ask("ramp")
        await driver.ask("measure", 0.3)
        result = await driver.ask("close")
        total = result["sent"]
        assert result["received"] == total > 1
        # The i-th waits at least for those that are due after it.
        expected = sum((total - 1 - i) / rate for i in range(total)) * 1e6
        assert histogram(result, "message").sum >= expected * 0.99


async def test_a_late_generator_does_not_flatter_the_server():
    """What the generator itself sends too late counts from when it was due, and its part is told."""
    async with (
        serving() as server,
        driving(server.listeners[0].url, scenario="rate", connections=2) as driver,
    ):
        await driver.ask("ramp")
        now = time.monotonic()
        alarm = Alarm()
        await driver.worker.scenario._send_at(Arrivals(now - 1.0, 50.0), now, alarm)  # it comes a second late
        alarm.close()
        await driver.worker.scenario.last_answers()
        result = await driver.ask("close")
        assert result["received"] == result["sent"] >= 50
        assert histogram(result, "message").sum >= histogram(result, "late").sum >= 25_000_000


async def test_what_is_not_answered_counts_with_the_time_it_has_waited():
    """A server that never answers has no good percentiles."""
    async with (
        serving(trionet.WebSocketHandler()) as server,
        driving(server.listeners[0].url, scenario="rate", connections=1, rate=100.0) as driver,
    ):
        driver.worker.scenario.last_answers = trio.lowlevel.checkpoint  # they do not come
        await driver.ask("ramp")
        await driver.ask("measure", 0.2)
        result = await driver.ask("close")
        assert result["received"] == 0
        assert result["unanswered"] == result["sent"] == histogram(result, "message").count > 0
        assert histogram(result, "message").maximum >= 150_000


async def test_trickle_uses_many_links():
    """Messages go over links chosen at random, and those that ended are left out."""
    async with (
        serving() as server,
        driving(server.listeners[0].url, scenario="trickle", connections=20, rate=400.0) as driver,
    ):
        await driver.ask("ramp")
        for link in driver.links[:10]:
            link.reset()
        await driver.ask("measure", 0.2)
        assert driver.meter.received == driver.meter.sent > 20
        assert driver.meter.missed == 0
        assert len(driver.links) < 20


async def test_fanout_counts_deliveries():
    """What one publishes arrives at all, with the latency from when it was due."""

    class Broadcast(trionet.WebSocketHandler):
        def __init__(self):
            self.everybody = set()

        async def on_open(self, ws):
            self.everybody.add(ws)

        async def on_message(self, ws, message):
            trionet.broadcast(self.everybody, message)

        async def on_close(self, ws, closed):
            self.everybody.discard(ws)

    async with (
        serving(Broadcast()) as server,
        driving(
            server.listeners[0].url, scenario="fanout", connections=10, rate=50.0, publishers=2
        ) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.2)
        result = await driver.ask("close")
        assert result["sent"] > 0
        assert result["received"] == 10 * result["sent"] == histogram(result, "delivery").count


async def test_storm_brings_everyone_back():
    """The crowd connects at once, is cut, and is in again; the control group was answered meanwhile."""
    async with (
        serving() as server,
        driving(server.listeners[0].url, scenario="storm", connections=60, control=5) as driver,
    ):
        assert (await driver.ask("ramp"))["connected"] == 5
        assert (await driver.ask("storm", 15))["connected"] == 60
        assert driver.meter.open == 60
        assert (await driver.ask("storm", 15))["connected"] == 115
        await until(lambda: server.statistics().connections == 60)
        await until(lambda: driver.meter.received > 0)
        result = await driver.ask("close")
        assert result["failed"] == result["lost"] == result["wrong"] == 0
        assert histogram(result, "reconnect").count == 110


async def test_lost_connections_are_counted_by_code():
    """A connection that the server ends is lost, under its code; with `reconnect` it comes back."""
    async with (
        serving() as server,
        driving(server.listeners[0].url, connections=4, reconnect=True) as driver,
    ):
        await driver.ask("ramp")
        for ws in list(server.engine):
            ws.close_nowait(1012)
        await until(lambda: driver.meter.lost == 4)
        assert driver.meter.closed == {"1012 by peer": 4}
        await until(lambda: driver.meter.open == 4)
        assert driver.meter.connected == 8


async def test_causes_of_failed_connects():
    """Each failed connect is counted once, by its cause, and the ramp ends all the same."""

    async def no(ws, request):
        raise trionet.Rejection(403)

    async with serving(on_upgrade=no) as server, driving(server.listeners[0].url, connections=3) as driver:
        assert (await driver.ask("ramp"))["connected"] == 0
        assert driver.meter.errors == {"status 403": 3}

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/"
        async with driving(url, connections=3) as driver:
            await driver.ask("ramp")
            assert driver.meter.errors == {"refused": 3}
        sock.listen()
        async with driving(url, connections=2, connect_timeout=0.3) as driver:
            await driver.ask("ramp")
            assert driver.meter.errors == {"timeout": 2}
    async with (
        serving() as server,
        driving(server.listeners[0].url.replace("ws:", "wss:"), connections=2) as driver,
    ):
        await driver.ask("ramp")
        assert driver.meter.errors == {"TLS": 2}


async def test_a_connect_may_meet_itself():
    """A socket that is connected to itself is refused: TCP allows that, and nobody listens there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError, match="itself"):
            Dialer._refuse_self(sock)


def test_causes_have_names():
    """Common errors have plain names, others those of errno(3)."""
    assert cause_of(OSError(errno.ECONNRESET, "")) == "reset"
    assert cause_of(OSError(errno.EMFILE, "")) == "EMFILE"
    assert cause_of(OSError(errno.EADDRNOTAVAIL, "")) == "EADDRNOTAVAIL"
    assert cause_of(TimeoutError()) == "TimeoutError"


async def test_hung_up_before_the_answer():
    """A server that accepts and leaves is told apart from one that refuses."""
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def hang_up(stream):
        await stream.receive_some(1000)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, listener)
        url = f"ws://127.0.0.1:{listener[0].socket.getsockname()[1]}/"
        async with driving(url, connections=2) as driver:
            await driver.ask("ramp")
            assert driver.meter.errors == {"hung up": 2}
        nursery.cancel_scope.cancel()


async def test_unix_socket(tmp_path):
    """A Unix socket is a target like any other, also when its queue is full."""
    path = str(tmp_path / "socket")
    protocol = trionet.WebSocketProtocol(Echo(), origins="*")
    endpoint = trionet.Endpoint(protocol=protocol, path=path, backlog=1)
    async with (
        trionet.open_server([endpoint]),
        driving(f"ws+unix:{path}:/", scenario="echo", connections=20) as driver,
    ):
        await driver.ask("ramp")
        await driver.ask("measure", 0.05)
        assert driver.meter.open == 20
        assert driver.meter.failed == 0


async def test_request_is_as_told():
    """Headers, origin and subprotocol are in the request."""
    seen = []

    async def look_at(ws, request):
        seen.append((request.headers["x-token"], request.origin, list(request.subprotocols)))

    async with (
        serving(on_upgrade=look_at, headers=("x-token",)) as server,
        driving(
            server.listeners[0].url,
            connections=1,
            header=("X-Token: 7",),
            origin="https://here.example",
            subprotocol=("chat",),
        ) as driver,
    ):
        await driver.ask("ramp")
        assert driver.meter.open == 1
    assert seen == [(["7"], "https://here.example", ["chat"])]


async def test_stop_reports_at_once():
    """Told to stop in the middle of the measuring, it reports what there is."""
    async with (
        serving() as server,
        driving(server.listeners[0].url, scenario="echo", connections=3) as driver,
    ):
        await driver.ask("ramp")
        await driver._lines.say({"do": "measure", "until": time.monotonic() + 60})
        await until(lambda: driver.meter.received > 10)
        result = await driver.ask("stop")
        assert result["say"] == "result"
        assert result["received"] > 10


# ------------------------------------------------------------ real processes


def test_without_the_command_line_extra(capsys):
    """``python -m trionet.client.load`` has the same options, and refuses what `trionet load` refuses."""
    from trionet.client.load.__main__ import main, parser

    given = parser().parse_args(
        ["ws://127.0.0.1/", "--max-p99", "20ms", "--cpu", "0", "--cpu", "1", "--abrupt"]
    )
    assert (given.max_p99, given.cpu, given.abrupt) == (0.02, [0, 1], True)
    assert {field.name for field in attrs.fields(LoadOptions)} <= vars(given).keys()
    assert main(["ws://192.0.2.1/"]) == 2
    assert "--i-may-load 192.0.2.1" in capsys.readouterr().err


@pytest.mark.processes
async def test_run_with_processes():
    """Two processes do the phases in step, and one result comes out: sums, histograms, seconds, environment."""
    async with serving() as server:
        shown = []
        result = await run_load(
            LoadOptions(
                url=server.listeners[0].url,
                scenario="echo",
                connections=7,
                processes=2,
                duration=1.3,
                max_failures=0,
                header=("X-Secret: 1234",),
            ),
            command=["trionet", "load"],
            show=lambda point, _: shown.append(point),
        )
    assert result["outcome"] == "passed"
    assert [phase["name"] for phase in result["phases"]] == ["ramp", "measure", "close"]
    totals = result["totals"]
    assert totals["connected"] == totals["peak"] == 7
    assert totals["sent"] == totals["received"] == result["histograms"]["message"]["count"] > 0
    assert totals["failed"] == totals["lost"] == totals["unanswered"] == 0
    assert result["environment"]["processes"] == 2
    assert result["environment"]["pss_bytes"] is None or result["environment"]["pss_bytes"] > 10**6
    assert shown == result["series"] != []
    assert json.loads(to_json(result)) == result
    assert "1234" not in to_json(result)


@pytest.mark.processes
async def test_a_process_that_dies_makes_the_run_fail():
    """Killed from outside, a load process is named with its signal, and the others go on to the end."""
    async with serving() as server:
        options = LoadOptions(url=server.listeners[0].url, connections=6, processes=3, duration=30)
        plan = make_plan(options, look(), "127.0.0.1")
        coordinator = Coordinator(options, plan, "127.0.0.1", [])
        result = None

        async def run():
            nonlocal result
            result = await coordinator.run()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await until(lambda: coordinator._phase == "measure" and server.statistics().connections == 6)
                victim = _one_child()
                os.kill(victim, signal.SIGKILL)
                await until(lambda: coordinator.result["warnings"])
                coordinator._work.cancel()
    assert result["outcome"] == "failed"
    assert "by signal 9 during measure" in result["warnings"][0]
    assert len(coordinator._results) == 2


def _one_child():
    """The process id of a load process: a child of the child that forks them."""
    out = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    for pid in out.stdout.split():
        out = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", pid], capture_output=True, text=True, check=False
        )
        for line in out.stdout.splitlines():
            if "trionet.client.load.process" in line:
                return int(line.split()[0])
    raise AssertionError("no load process")
