"""Counters are exact: whatever way a message takes, however a connection ends, and whichever process dies."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest
import trio

import trionet
from trionet.net.histogram import Histogram
from trionet.ops.control import Agent, Fleet, Local, Worker
from trionet.ops.metrics import Family, Metrics, Snapshot, Totals, collect, install, routes

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from ws_peer import Echo, close, frame, serving, text, until

text_parser = pytest.importorskip("prometheus_client.parser")
openmetrics_parser = pytest.importorskip("prometheus_client.openmetrics.parser")


# -------------------------------------------------------------- messages


async def straight(ws):
    """Parked while it waits."""
    async for message in ws:
        await ws.send(message)


async def pinned(ws):
    """Waits in a task of its own."""
    with trio.CancelScope():
        await straight(ws)


class Nowait(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        ws.send_nowait(message)


class Prepared(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(trionet.PreparedMessage(message))


class Broadcast(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        trionet.broadcast([ws], message)


class Waiting(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        await trio.sleep(0.0005)  # meanwhile others are overheard
        await ws.send(message)


class InPieces(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        async with ws.send_stream(text=True) as stream:
            await stream.send(message)


PLAIN = False
ALONE = trionet.Deflate(threshold=0)
TAKEOVER = trionet.Deflate(threshold=0, server_no_context_takeover=False, client_no_context_takeover=False)
HANDLERS = {
    "events": Echo(),
    "straight": straight,
    "pinned": pinned,
    "nowait": Nowait(),
    "prepared": Prepared(),
    "broadcast": Broadcast(),
    "waiting": Waiting(),
    "pieces": InPieces(),
}
WAYS = [(name, PLAIN) for name in HANDLERS] + [
    (name, how) for name in ("events", "nowait", "broadcast", "pieces") for how in (ALONE, TAKEOVER)
]


@pytest.mark.parametrize("name, compression", WAYS)
async def test_both_sides_count_the_same(name, compression):
    """One by one and in a rush, short and long: what one side has sent the other has received, to the byte."""
    async with (
        serving(HANDLERS[name], compression=compression) as at,
        trionet.connect_websocket(at.url, compression=compression) as ws,
    ):
        count = 0

        async def say(message, times):
            for _ in range(times):
                await ws.send(message)

        for size, times in [(1, 1), (30, 40), (200, 70), (70_000, 2)]:
            message = "ab" * size
            count += times
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say, message, times)
                for _ in range(times):
                    assert await ws.receive() == message
        ours, theirs = at.protocol.counts, ws.protocol.counts
        assert (ours.received, ours.sent, theirs.received, theirs.sent) == (count,) * 4
        assert ours.received_bytes == theirs.sent_bytes
        assert ours.sent_bytes == theirs.received_bytes


@pytest.mark.parametrize("policy", [trionet.SlowConsumer.DROP_OLDEST, trionet.SlowConsumer.DROP_NEWEST])
async def test_messages_that_are_dropped(policy):
    """`sent` counts what the kernel or the queue took, once, whichever call gave it; the others are dropped ones."""
    async with serving(Echo(), slow_consumer=policy, high_water=8192) as at:
        await at.join(small=True)
        counts = at.protocol.counts
        for _ in range(100):
            await at.connection.send("x" * 4000)
            at.connection.send_nowait("x" * 4000)
        assert at.protocol.messages_dropped > 0
        if policy is trionet.SlowConsumer.DROP_NEWEST:
            assert counts.sent + at.protocol.messages_dropped == 200
        else:
            assert counts.sent == 200  # each went in, and drove an older one out


# ------------------------------------------------------------------ ends


async def test_every_end_is_counted_once():
    """What was opened is closed, by code and by whom: on a WebSocket however it ends, at last with the server."""
    async with serving(Echo(), max_message=100) as at:

        async def ends(*pieces, code=None):
            peer = await at.join()
            await peer.send(*pieces)
            if code is not None:
                assert await peer.closed() == code
            return peer

        await (
            await ends(close(1000, b"detached"), code=1000)
        ).aclose()  # the words of a stream that is given away
        await (await ends(frame(3), code=1002)).aclose()
        await (await ends(frame(1, b"\xff"), code=1007)).aclose()
        await (await ends(text("x" * 200), code=1009)).aclose()
        await (await ends()).aclose()
        peer = await ends(text("x"), close(1000))
        assert await peer.hear() == "x"
        await peer.reset()
        await until(lambda: not at.server.statistics().connections)
        peer = await at.join()
        at.connection.reset()
        await until(lambda: not at.server.statistics().connections)
        await peer.aclose()
        peer = await at.join()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: at.server.drain(timeout=5, code=1012))
            await peer.farewell(1012)
        counts = at.protocol.counts
        assert sum(counts.closed.values()) == counts.opened == 8
        assert counts.closed == {
            (1000, "peer"): 2,
            (1002, "us"): 1,
            (1007, "us"): 1,
            (1009, "us"): 1,
            (1006, "network"): 1,
            (1006, "us"): 1,
            (1012, "us"): 1,
        }


@pytest.mark.parametrize("how", ["hard stop", "detached"])
async def test_ends_without_a_word(how):
    """A hard stop ends what is open; a connection that is given away is closed with the label "detached"."""

    async def handler(ws):
        if how == "detached":
            (await ws.detach()).close_now()
        async for _ in ws:
            pass

    async with serving(handler) as at:
        await at.join()
        if how == "detached":
            await until(lambda: at.protocol.counts.closed)
    assert at.protocol.counts.opened == sum(at.protocol.counts.closed.values()) == 1
    assert list(at.protocol.counts.closed) == [(1006, "us") if how == "hard stop" else (0, "us")]


# ---------------------------------------------------- the application's own


def samples(body, parser=text_parser):
    """Of a page."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(body)
        for sample in family.samples
    }


class Request:
    """What the page looks at."""

    def __init__(self, accept=""):
        self.headers = {"accept": accept}


def broken(server):
    """Every mistake there is, and one family that is right."""
    yield Family("shop-orders", "gauge", "").add(1)
    yield Family("trionet_tasks", "gauge", "").add(1)
    yield Family("shop_speed", "speed", "").add(1)
    yield Family("shop_total", "counter", "").add(1)
    yield Family("shop_value", "gauge", "").add("many")
    yield Family("shop_label", "gauge", "").add(1, le="1")
    yield Family("shop_unit", "gauge", "", unit="seconds").add(1)
    yield Family("shop_wait", "histogram", "").add(1)
    yield "shop"
    yield Family("shop_right", "gauge", 'A "quoted"\nhelp \\').add(1, who='a"b\\c\nü', number=5)
    raise ValueError("no database")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
async def test_mistakes_of_the_application_cost_only_its_own_metrics(accept, caplog):
    """They are logged and counted; what is right is shown, and so is everything of the server's."""
    async with serving(Echo()) as at:
        response = await Metrics(at.server, broken)(Request(accept))
        assert response.status == 200
        found = samples(response.body.decode(), openmetrics_parser if accept else text_parser)
        assert found["shop_right", ("number", "5"), ("who", 'a"b\\c\nü')] == 1
        assert found["trionet_metrics_failures_total",] == 10
        assert found["trionet_pool_size",] > 0
        assert {name for name, *_ in found if name.startswith("shop")} == {"shop_right"}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) >= 2
    assert "shop-orders" in said[0]


async def test_those_who_ask_at_once_get_one_answer():
    """Two scrapers do not make the workers count twice."""
    async with serving(Echo()) as at:
        agent = Agent(at.server)
        install(agent)
        asked = []
        count = agent.commands["metrics"]

        async def slowly():
            asked.append(1)
            await trio.sleep(0.01)
            return await count()

        agent.commands["metrics"] = slowly
        page = routes(Local(agent))["GET /metrics"]
        async with trio.open_nursery() as nursery:
            for accept in ("", "application/openmetrics-text", ""):
                nursery.start_soon(page, Request(accept))
        assert len(asked) == 1


async def test_the_queue_of_the_kernel_is_shown():
    """How many wait to be accepted, and for how many there is room."""
    if sys.platform != "linux":
        pytest.skip("tcp_info")
    endpoint = trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo()), backlog=7)
    async with serving(endpoint, max_connections=1) as at:
        await at.join()
        await at.dial()
        await at.dial()
        found = {family.name: family.samples for family in collect(at.server).families}
        assert found["trionet_listen_queue_limit"] == [({}, 7)]
        assert 1 <= found["trionet_listen_queue"][0][1] <= 2


@pytest.mark.parametrize("answer", [{"pid": 1}, {"pid": "x", "families": [{"name": 5}]}, 5, None])
async def test_a_worker_that_talks_nonsense_is_down(answer, caplog):
    """It costs the page nothing, whether it was asked or has told it unasked."""

    class Nonsense:
        async def ask(self, command, **arguments):
            return answer

    fleet = Fleet()
    worker = fleet.workers[5] = Worker(5, 1, link=Nonsense())
    page = routes(fleet)["GET /metrics"]
    fleet.noted["metrics"](worker, snapshot=answer)
    assert samples((await page(Request())).body.decode()) == {("trionet_worker_up", ("worker", "1")): 0}


# ------------------------------------------------- processes that come and go


def snapshot(pid, count, *, taken=2.0, kind="counter", started=1.0):
    """A worker's."""
    return Snapshot(
        pid,
        started,
        taken,
        [
            Family("app_jobs", kind, "Jobs.").add(count),
            Family("app_depth", "gauge", "Depth.").add(count),
            Family("app_wait", "histogram", "Waits.").add(Histogram()),
        ],
    )


def shown(totals):
    """The values of what is plain."""
    return {f.name: f.samples[0][1] for f in totals.families({}) if f.kind != "histogram" and f.samples}


def test_a_worker_whose_line_was_broken():
    """It speaks again: its gauges are there again, and its counters not twice."""
    totals = Totals()
    totals.update(snapshot(1, 5))
    totals.gone(1)
    assert shown(totals) == {"app_jobs": 5}
    totals.update(snapshot(1, 6, taken=3.0))
    assert shown(totals) == {"app_jobs": 6, "app_depth": 6}


def test_totals_for_whoever_comes_after():
    """They begin with what those had counted that are gone, however long ago; the others speak for themselves."""
    totals = Totals()
    for pid in range(1, 101):
        totals.update(snapshot(pid, 1, started=float(pid)))
        totals.gone(pid)
    totals.update(snapshot(200, 7, started=200.0))
    after = Totals()
    after.restore(totals.to_json())
    assert shown(after) == {"app_jobs": 100}
    assert after.started() == 1.0
    after.update(snapshot(200, 8, taken=3.0, started=200.0))
    assert shown(after) == shown(totals) | {"app_jobs": 108, "app_depth": 8}
    with pytest.raises(ValueError, match="not what is kept"):
        after.restore({"gone": []})


def test_a_name_whose_kind_has_changed():
    """A new version says that it is a gauge now: what old ones counted under that name is left out, nothing fails."""
    totals = Totals()
    totals.update(snapshot(1, 5))
    totals.gone(1)
    totals.update(snapshot(2, 6))
    totals.update(snapshot(3, 3, kind="gauge", started=9.0))
    assert shown(totals) == {"app_jobs": 3, "app_depth": 9}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_counters_survive_a_worker_and_then_the_admin_process(start, client):
    """SIGKILL of one after the other: no counter goes back; restarts are counted."""
    served = start()
    url = await served.ready()

    async def metrics():
        with trio.fail_after(20):
            while True:
                try:
                    status, body = await served.get("/metrics")
                except (OSError, IndexError):  # between two admin processes
                    status = 0
                if status == 200:
                    return samples(body)
                await trio.sleep(0.02)

    async def reaches(name, value):
        with trio.fail_after(20):
            while (found := await metrics()).get(name, 0) < value:  # noqa: ASYNC110
                await trio.sleep(0.05)
        return found

    opened = "trionet_connections_opened_total", ("protocol", "websocket")
    for _ in range(4):
        async with client.connect(url) as ws:
            await ws.send("?")
            await ws.receive()
    await reaches(opened, 4)
    victim, *_ = await served.workers()
    os.kill(victim["pid"], signal.SIGKILL)
    await served.says("starts again")
    found = await reaches(("trionet_worker_restarts_total", ("worker", str(victim["number"]))), 1)
    assert found[opened] == 4
    await until(lambda: served.said().count("killed by SIGKILL") == 1)
    with trio.fail_after(20):
        while len([row for row in await served.workers() if "connections" in row]) < 2:  # noqa: ASYNC110
            await trio.sleep(0.02)
    desk = await served.desk()
    os.kill(desk, signal.SIGKILL)
    await served.says("the admin process was killed")
    found = await metrics()
    assert found[opened] == 4
    assert found["trionet_workers", ("state", "serving")] == 2
