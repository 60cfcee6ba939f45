"""The metrics of running servers: what is counted where it happens, and the /metrics page."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import trionet
from trionet.net.histogram import Histogram
from trionet.ops.control import Agent, Fleet, Local, Worker
from trionet.ops.metrics import Family, Metrics, collect, install, routes
from trionet.ops.metrics.census import Census

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from ws_peer import BINARY, KEY, PING, TEXT, close, frame, serving, text, until

text_parser = pytest.importorskip("prometheus_client.parser")


class Echo(trionet.WebSocketHandler):
    """Sends back."""

    async def on_message(self, ws, message):
        await ws.send(message)


def read(server, name, **labels):
    """Return the value of the one sample of a family that has these labels; 0 if there is none."""
    found = [
        value.count if isinstance(value, Histogram) else value
        for family in collect(server).families
        if family.name == f"trionet_{name}"
        for each, value in family.samples
        if labels.items() <= each.items()
    ]
    assert len(found) <= 1, f"{name}{labels} has {len(found)} samples"
    return found[0] if found else 0


# ----------------------------------------------------- what is counted where


async def test_messages_and_bytes():
    """Messages, and the bytes of all frames, however they come: alone, together, in pieces."""
    async with serving(Echo()) as at:
        peer = await at.join()
        before = read(at.server, "received_bytes"), read(at.server, "sent_bytes")  # the handshake
        await peer.echo("abc")
        await peer.send(frame(BINARY, b"12345"))
        assert (await peer.frame()).payload == b"12345"
        await peer.send(text("one") + frame(PING) + frame(BINARY, b"two"))
        for _ in range(3):
            await peer.frame()
        await peer.send(frame(TEXT, b"be", fin=False), frame(0, b"gun"))
        assert await peer.hear() == "begun"
        assert read(at.server, "messages_received") == 5
        assert read(at.server, "messages_sent") == 5
        header, mask = 2, len(KEY)
        received = [3, 5, 3, 0, 3, 2, 3]
        assert read(at.server, "received_bytes") - before[0] == sum(received) + len(received) * (
            header + mask
        )
        assert read(at.server, "sent_bytes") - before[1] == 3 + 5 + 3 + 3 + 5 + 6 * header  # with a Pong


async def test_messages_of_a_straight_line_handler():
    """Those that were kept while the handler waited for something else count as well."""
    go = trio.Event()

    async def handler(ws):
        await go.wait()
        async for message in ws:
            await ws.send(message)

    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"))
        await until(lambda: read(at.server, "messages_received") == 2)
        go.set()
        assert [await peer.hear(), await peer.hear()] == ["a", "b"]
        assert read(at.server, "messages_sent") == 2


async def test_messages_in_pieces():
    """A message that is received, and sent, piece by piece is one message."""

    class Pieces(trionet.WebSocketHandler):
        async def on_chunk(self, ws, data, last):
            if last:
                async with ws.send_stream(text=True) as stream:
                    await stream.send("to")
                    await stream.send("gether")

    async with serving(Pieces()) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, b"a", fin=False))
        await peer.send(frame(0, b"b"))
        while not (await peer.frame()).fin:
            pass
        assert read(at.server, "messages_received") == 1
        assert read(at.server, "messages_sent") == 1


async def test_broadcasts():
    """`broadcast` counts a message for each connection that took it, and those that it left out."""
    async with serving(Echo(), high_water=8192) as at:
        peers = [await at.join() for _ in range(3)]
        slow = await at.join(small=True)
        message = trionet.PreparedMessage("x" * 4000)
        for peer in peers:
            await peer.echo()
        await slow.echo()
        sent = read(at.server, "messages_sent")
        skipped = 0
        while not skipped:
            taken = trionet.broadcast(at.server.websockets, message)
            sent += taken
            skipped = 4 - taken
            queues = read(at.server, "send_queue_connections"), read(at.server, "send_queue_bytes")
            for peer in peers:  # meanwhile the kernel may take more
                await peer.frame()
        assert read(at.server, "messages_sent") == sent
        assert read(at.server, "slow_consumers", action="skip") == skipped
        assert queues[0] == 1
        assert queues[1] > 0


@pytest.mark.parametrize(
    "policy, action",
    [
        (trionet.SlowConsumer.DROP_NEWEST, "drop_newest"),
        (trionet.SlowConsumer.DROP_OLDEST, "drop_oldest"),
        (trionet.SlowConsumer.CLOSE, "close"),
    ],
)
async def test_slow_consumers(policy, action):
    """Each policy counts by its name when it acts, and what it dropped."""
    async with serving(Echo(), slow_consumer=policy, high_water=8192) as at:
        await at.join(small=True)
        while not read(at.server, "slow_consumers", action=action):
            at.connection.send_nowait("x" * 4000)
        assert read(at.server, "messages_dropped", reason="slow_consumer") >= 1


async def test_a_send_that_waits():
    """With the policy WAIT what is counted is how often `send` had to wait."""

    class Flood(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            while True:
                await ws.send("x" * 4000)

    async with serving(Flood(), high_water=8192) as at:
        peer = await at.join(small=True)
        await peer.say("go")
        await until(lambda: read(at.server, "slow_consumers", action="wait") == 1)


async def test_the_end_of_connections():
    """By code and by whom; application codes are one label; connections that were never open are not among them."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            ws.close_nowait(4001)

    async with serving(Handler()) as at:
        for code in (1000, 4000, 4321):
            peer = await at.join()
            await peer.send(close(code))
            assert await peer.closed() == code
        peer = await at.join()
        await peer.say("bye")
        await peer.farewell(4001)
        peer = await at.join()
        await peer.reset()
        stranger = await at.dial()
        await stranger.send(b"nonsense\r\n\r\n")
        assert await stranger.status() == 400
        await stranger.aclose()
        await until(lambda: not at.server.statistics().connections)
        closed = {
            (code, by): read(at.server, "connections_closed", code=code, initiator=by)
            for code, by in [("1000", "peer"), ("4xxx", "peer"), ("4xxx", "us"), ("1006", "network")]
        }
        assert closed == {
            ("1000", "peer"): 1,
            ("4xxx", "peer"): 2,
            ("4xxx", "us"): 1,
            ("1006", "network"): 1,
        }
        assert read(at.server, "connections_opened") == 5
        assert read(at.server, "connections_accepted") == 6
        assert read(at.server, "connections_rejected", reason="bad_request") == 1
        assert read(at.server, "handshake_seconds") == 5
        assert not at.server.engine.begun


async def test_a_ping_that_is_not_answered(autojump_clock):
    """It is a keepalive timeout, and an eviction."""
    async with serving(Echo(), ping_interval=1, ping_timeout=1) as at:
        await at.join()
        await until(lambda: read(at.server, "keepalive_timeouts") == 1, step=0.5)
        assert read(at.server, "evictions", reason="keepalive") == 1


async def test_connections_by_state():
    """A look at each: half-open ones, open ones, those that close; of each protocol there is."""
    lines = trionet.LineProtocol(lambda connection, line: connection.send(line))
    endpoints = [
        trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo(), http=trionet.HttpProtocol({}))),
        trionet.Endpoint(protocol=lines),
    ]
    async with serving(endpoints) as at:
        await at.join()
        await at.join()
        await at.dial()
        await at.dial(at.server.addresses[1])
        await until(lambda: at.server.statistics().connections == 4)
        at.server.websockets.__next__().close_nowait(1000)
        states = {
            (labels["protocol"], labels["state"]): value
            for family in collect(at.server).families
            if family.name == "trionet_connections"
            for labels, value in family.samples
        }
        assert states == {
            ("websocket", "opening"): 1,
            ("websocket", "open"): 1,
            ("websocket", "closing"): 1,
            ("line", "open"): 1,
            ("http", "open"): 0,
        }


async def test_two_protocols_of_one_kind():
    """Each has its own numbers under a name of its own."""
    protocols = [trionet.WebSocketProtocol(Echo()) for _ in range(2)]
    protocols[1].name = "quotes"
    async with serving([trionet.Endpoint(protocol=each) for each in protocols]) as at:
        peer = await at.join(address=at.server.addresses[1])
        await peer.echo()
        assert read(at.server, "messages_sent", protocol="quotes") == 1
        assert read(at.server, "messages_sent", protocol="websocket") == 0
        protocols[1].name = "websocket"  # as two that nobody has named: one sample for both
        assert read(at.server, "messages_sent", protocol="websocket") == 1


async def test_one_job_in_64_is_timed():
    """From the poll to the end of the handler, also of one that waits."""

    class Slow(Echo):
        async def on_message(self, ws, message):
            await trio.lowlevel.checkpoint()
            await ws.send(message)

    async with serving(Slow()) as at:
        peer = await at.join()
        for _ in range(200):
            await peer.echo()
        assert read(at.server, "message_seconds") == 3


async def test_a_timed_job_that_fails():
    """It is the connection's own failure, like any other."""

    class Broken(Echo):
        async def on_message(self, ws, message):
            if ws.engine.pool.latency.count or message == "last":
                raise ValueError(message)

    async with serving(Broken()) as at:
        at.server.engine._untimed = 0  # the next one is timed
        peer = await at.join()
        at.server.engine._untimed = 0
        await peer.say("last")
        assert await peer.closed() == 1011
        assert read(at.server, "message_seconds") == 1
        assert read(at.server, "handler_failures") == 1


# ------------------------------------------------------------------ the census


async def test_the_census_lets_others_run():
    """It looks at a thousand at a time, and once in two seconds at most."""
    async with serving(Echo()) as at:
        engine = at.server.engine
        engine.table.extend([None] * 5000)
        turns = []

        async def other():
            while True:
                await trio.lowlevel.checkpoint()
                turns.append(1)

        census = Census(at.server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await census.refresh()
            assert len(turns) >= 2
            census.states = {}
            await census.refresh()
            assert census.states == {}
            nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ the page


async def get(port, path="/metrics", accept=""):
    """Return head and body of an answer."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        answer = b"".join([piece async for piece in stream]).decode()
    return answer.split("\r\n\r\n", 1)


@asynccontextmanager
async def paged(pages):
    """Serve pages; the port."""
    async with trionet.open_server(trionet.HttpProtocol(pages)) as admin:
        yield admin.addresses[0][1]


def parsed(body):
    """Return the samples of a page."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_parser.text_string_to_metric_families(body)
        for sample in family.samples
    }


async def test_the_page_of_an_embedded_server():
    """Two lines: a responder beside the server. Its parser reads it; process metrics are there."""
    async with serving(Echo()) as at, paged({"/metrics": Metrics(at.server)}) as port:
        await (await at.join()).echo()
        head, body = await get(port)
        assert head.startswith("HTTP/1.1 200")
        assert "text/plain; version=0.0.4" in head
        found = parsed(body)
        assert found["trionet_connections", ("protocol", "websocket"), ("state", "open")] == 1
        assert found["process_open_fds",] > 3
        assert found["process_resident_memory_bytes",] > 10**6
        assert found["process_cpu_seconds_total",] > 0
        assert any(key[0] == "trionet_build_info" for key in found)


async def test_a_page_that_is_asked_for_often(autojump_clock):
    """Within `max_age` the same answer is given again; then a new one is made."""
    made = []

    def families(server):
        made.append(server)
        return []

    class Request:
        headers = {}  # noqa: RUF012

    async with serving(Echo()) as at:
        page = Metrics(at.server, families, max_age=0.5)
        first = await page(Request)
        assert await page(Request) is first
        await trio.sleep(0.6)
        assert await page(Request) is not first
        assert len(made) == 2


async def test_the_page_as_openmetrics():
    """For who asks for it, and the strict parser takes all of it."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    async with serving(Echo()) as at, paged({"/metrics": Metrics(at.server)}) as port:
        await (await at.join()).echo()
        head, body = await get(port, accept="application/openmetrics-text; version=1.0.0")
        assert "application/openmetrics-text; version=1.0.0" in head
        names = {family.name for family in parser.text_string_to_metric_families(body)}
        assert {"trionet_messages_sent", "trionet_handshake_seconds", "trionet_build"} <= names


async def test_metrics_of_the_application():
    """A function that returns families; what it must not return is in `test_metrics_exact`."""

    def families(server):
        assert server is at.server
        return [Family("shop_orders", "counter", "Orders.").add(42)]

    async with serving(Echo()) as at, paged({"/metrics": Metrics(at.server, families)}) as port:
        assert parsed((await get(port))[1])["shop_orders_total",] == 42


async def test_one_process_and_its_admin_page():
    """`install` and `routes` without a supervisor: no label `worker`; the application's families are asked for."""
    async with serving(Echo()) as at:
        agent = Agent(at.server)
        install(agent)
        agent.families = lambda _: [Family("shop_orders", "counter", "Orders.").add(42)]
        async with paged(routes(Local(agent))) as port:
            found = parsed((await get(port))[1])
        assert found["trionet_worker_up", ("worker", "1")] == 1
        assert found["trionet_draining",] == 0
        assert found["shop_orders_total",] == 42


class Line:
    """In place of a link: a worker in the same process, which may be deaf."""

    def __init__(self, agent, pid):
        self.agent = agent
        self.pid = pid
        self.deaf = False

    async def ask(self, command, **arguments):
        if self.deaf:
            await trio.sleep_forever()
        answer = json.loads(json.dumps(await self.agent.run(command, arguments)))
        return {**answer, "pid": self.pid}


async def test_the_page_of_a_fleet(autojump_clock):
    """Sums over workers; one that hangs is shown by what it said last, one that died by its counters."""
    async with serving(Echo()) as one, serving(Echo()) as two:
        fleet = Fleet()
        lines = []
        for number, at in enumerate((one, two), 1):
            agent = Agent(at.server, number)
            install(agent)
            lines.append(Line(agent, 1000 + number))
            fleet.workers[1000 + number] = Worker(1000 + number, number, link=lines[-1])
        page = routes(fleet, max_age=0)["GET /metrics"]

        async def scrape():
            class Request:
                headers = {}  # noqa: RUF012

            return parsed((await page(Request)).body.decode())

        await (await one.join()).echo()
        peer = await two.join()
        await peer.echo()
        sent = "trionet_messages_sent_total", ("protocol", "websocket")
        found = await scrape()
        assert found[sent] == 2
        assert found["trionet_connections", ("protocol", "websocket"), ("state", "open")] == 2
        assert found["trionet_worker_up", ("worker", "2")] == 1
        assert found["trionet_draining", ("worker", "2")] == 0

        lines[1].deaf = True
        await peer.echo()
        found = await scrape()
        assert found[sent] == 2
        assert found["trionet_worker_up", ("worker", "1")] == 1
        assert found["trionet_worker_up", ("worker", "2")] == 0

        lines[1].deaf = False
        last = await lines[1].ask("metrics")
        fleet.noted["metrics"](fleet.workers[1002], snapshot=last)
        worker = fleet.workers.pop(1002)
        for call in fleet.gone:
            call(worker)
        found = await scrape()
        assert found[sent] == 3
        assert found["trionet_connections", ("protocol", "websocket"), ("state", "open")] == 1
        assert ("trionet_worker_up", ("worker", "2")) not in found


async def test_a_worker_and_its_successor():
    """While both live the label `worker` tells them apart."""
    async with serving(Echo()) as at:
        fleet = Fleet()
        for generation in (1, 2):
            agent = Agent(at.server, 1, generation)
            install(agent)
            pid = 2000 + generation
            fleet.workers[pid] = Worker(pid, 1, generation, link=Line(agent, pid))

        class Request:
            headers = {}  # noqa: RUF012

        body = (await routes(fleet)["GET /metrics"](Request)).body.decode()
        found = parsed(body)
        assert found["trionet_worker_up", ("worker", "1")] == 1
        assert found["trionet_worker_up", ("worker", "1.1")] == 1
        assert found["trionet_draining", ("worker", "1.1")] == 0


# ------------------------------------------------------------- other libraries


async def test_a_prometheus_client_registry():
    """`ServerCollector` shows the same numbers to a registry, which is asked from a thread."""
    client = pytest.importorskip("prometheus_client")
    from trionet.ops.metrics.prometheus import ServerCollector

    registry = client.CollectorRegistry()
    async with serving(Echo()) as at:
        registry.register(ServerCollector(at.server))
        await (await at.join()).echo()
        body = (await trio.to_thread.run_sync(client.generate_latest, registry)).decode()
        found = parsed(body)
        assert found["trionet_messages_sent_total", ("protocol", "websocket")] == 1
        assert found["trionet_handshake_seconds_count", ("protocol", "websocket")] == 1
        assert any(key[0] == "trionet_build_info" for key in found)
        assert not any(key[0].startswith("process_") for key in found)


async def test_opentelemetry():
    """`instrument` makes observable instruments of the same numbers; the SDK reads them when it exports."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from trionet.ops.metrics.otel import instrument

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    try:
        async with serving(Echo()) as at:
            await (await at.join()).echo()
            instrument(at.server, provider.get_meter("test"))
            data = await trio.to_thread.run_sync(reader.get_metrics_data)
            metrics = {
                metric.name: metric.data.data_points
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }
            points = {point.attributes["protocol"]: point.value for point in metrics["trionet.messages_sent"]}
            assert points == {"websocket": 1}
            assert metrics["trionet.handshake_seconds.count"][0].value == 1
            assert {
                point.attributes["quantile"] for point in metrics["trionet.handshake_seconds.quantile"]
            } == {"0.5", "0.9", "0.99", "0.999"}
    finally:
        provider.shutdown()
