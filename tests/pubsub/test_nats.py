"""The NATS broker against real servers: what only it has, besides what all brokers promise (test_contract)."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from engine_nats import NatsEngine
from engines import Engine, unique
from recorder import RULES, Client, connected

from trionet.errors import BrokerDown, BrokerError, ConfigurationError
from trionet.pubsub.broker import Broker, open_broker
from trionet.pubsub.brokers.nats import NatsBroker
from trionet.pubsub.brokers.nats.subscriptions import Subscriptions
from trionet.pubsub.publication import NOWHERE
from trionet.pubsub.topics import HistoryLimits, TopicOptions

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(NatsEngine.missing()), reason=NatsEngine.missing() or "it is there"),
]


@pytest.fixture
def nats(start_engine) -> Any:
    """The server that the tests of all brokers use, too."""
    engine = start_engine(NatsEngine)
    yield engine
    trio.run(engine.heal)


@asynccontextmanager
async def server(
    folder: Path, *arguments: str, jetstream: bool = False, config: str = ""
) -> AsyncIterator[Engine]:
    """A server of its own."""
    await trio.Path(folder).mkdir(exist_ok=True)
    engine = NatsEngine(folder)
    engine.jetstream = jetstream
    engine.arguments = arguments
    if config:
        await trio.Path(folder / "server.conf").write_text(config)
        engine.arguments += ("-c", str(folder / "server.conf"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
        engine.close()


def broker_of(client: Client) -> NatsBroker:
    """The same, by its own type."""
    assert isinstance(client.broker, NatsBroker)
    return client.broker


async def wait_reconnected(broker: Broker) -> None:
    """Wait until it has lost a connection and has another."""
    with trio.fail_after(10):
        while broker.state.reconnects < 1:  # noqa: ASYNC110 - a broker tells nobody
            await trio.sleep(0.005)


# ------------------------------------------------------------------------- outages


async def test_twenty_breaks_while_publishing_lose_nothing(nats, monkeypatch):
    """Cut off and killed in turn, 20 times: subscribers have all publications, in order, and none twice."""
    monkeypatch.setattr("trionet.pubsub.brokers.linked.STABLE", 0.0)  # it comes back soon each time
    async with connected(nats, timeout=2) as one, connected(nats, timeout=2) as two:
        topics = [unique("long") for _ in range(3)]
        for client in (one, two):
            await client.subscribe(*topics)
        ended = 0

        async def publish(topic: str) -> None:
            nonlocal ended
            number = 0
            while ended < 20:
                await two.insist(topic, b"%d" % number, f"{number}")
                number += 1
            counts[topic] = number

        counts: dict[str, int] = {}
        async with trio.open_nursery() as nursery:
            for topic in topics:
                nursery.start_soon(publish, topic)
            for ended in range(20):
                have = len(one.seen.got[topics[0]])
                await one.seen.until(lambda n=have: len(one.seen.got[topics[0]]) > n + 5)
                if ended % 5 == 4:
                    await nats.kill()
                    await nats.restart()
                else:
                    await nats.cut()
            ended = 20
        for topic in topics:
            for client in (one, two):
                await client.seen.wait_data(topic, *[b"%d" % number for number in range(counts[topic])])
        assert not one.seen.interruptions
        assert one.broker.state.reconnects >= 15


async def test_what_is_lost_within_a_connection_is_fetched(nats, monkeypatch):
    """A message that never arrives (a route of a cluster broke) is noticed by the next one, and nothing is missing."""
    async with connected(nats) as client:
        topic, other = unique("long"), unique("long")
        await client.subscribe(topic, other)
        receive = Subscriptions.receive
        lost = iter([False, True, True, False])

        def lose(subs: Subscriptions, message: Any) -> None:
            if not next(lost, False):
                receive(subs, message)

        await client.broker.publish(other, b"0")
        await client.seen.wait_data(other, b"0")
        checker = broker_of(client)._checker
        assert checker is not None
        link = broker_of(client)._link
        assert link is not None
        monkeypatch.setattr(link, "_receive", lambda message: lose(checker.subs, message))
        for number in range(4):
            await client.broker.publish(topic, b"%d" % number)
        await client.seen.wait_data(topic, b"0", b"1", b"2", b"3")
        assert client.broker.state.reconnects == 0
        assert not client.seen.interruptions


async def test_a_server_that_is_not_listened_to_is_not_taken_for_dead(nats):
    """While the receiver has no room, nothing is read and no deadline runs; then all goes on where it was."""
    async with connected(nats, timeout=0.3) as client, connected(nats) as other:
        topic = unique("long")
        await client.subscribe(topic)
        client.seen.room = trio.Event()
        await other.broker.publish(topic, b"1")
        await client.seen.wait_data(topic, b"1")
        await trio.sleep(0.8)
        client.seen.room.set()
        await other.broker.publish(topic, b"2")
        await client.seen.wait_data(topic, b"1", b"2")
        assert client.broker.state.reconnects == 0


async def test_a_stream_that_was_deleted_is_made_again_and_told(nats):
    """An operator deletes it: publishers get an error at most once, and subscribers are told that the past is lost."""
    rules = {**RULES, "gone.*": TopicOptions()}
    async with connected(nats, rules=rules, ping_interval=0.1) as client:
        topic = unique("gone")
        await client.subscribe(topic)
        first = await client.broker.publish(topic, b"1")
        await client.seen.wait_data(topic, b"1")
        link = broker_of(client)._link
        assert link is not None
        stream = broker_of(client)._streams.of(topic)
        await link.request(f"$JS.API.STREAM.DELETE.{stream.name}")
        await client.seen.until(lambda: client.seen.interruptions[topic])
        second = await client.broker.publish(topic, b"2")
        assert second.epoch != first.epoch
        await client.seen.wait_data(topic, b"1", b"2")
        assert len(client.seen.interruptions[topic]) == 1
        assert (await client.broker.history(topic, first)).complete is False


async def test_what_was_seen_live_and_deleted_since_is_told(nats, monkeypatch):
    """A topic whose missing message cannot be fetched any more is interrupted, not looked for without an end."""
    monkeypatch.setattr("trionet.pubsub.brokers.nats.checking._PATIENCE", 3)
    async with connected(nats) as client, connected(nats) as other:
        topic = unique("long")
        await client.subscribe(topic)
        stream = broker_of(client)._streams.of(topic)
        link, purger = broker_of(client)._link, broker_of(other)._link
        assert link is not None
        assert purger is not None
        receive, came = link._receive, []
        monkeypatch.setattr(link, "_receive", came.append)
        for number in range(3):
            await other.broker.publish(topic, b"%d" % number)
        with trio.fail_after(10):
            while len(came) < 3:  # noqa: ASYNC110 - a list tells nobody
                await trio.sleep(0.005)
        await purger.request(f"$JS.API.STREAM.PURGE.{stream.name}")
        monkeypatch.setattr(link, "_receive", receive)
        receive(came[2])  # 0 and 1 never arrived
        await client.seen.until(lambda: client.seen.interruptions[topic])
        await other.broker.publish(topic, b"3")
        await client.seen.wait_data(topic, b"3")


async def test_strangers_do_no_harm(nats):
    """What other programs publish below our subjects is dropped, or delivered as it is; nothing breaks."""
    async with connected(nats) as client:
        base = unique("p")
        await client.subscribe(f"{base}/*", f"{base}/x")
        link = broker_of(client)._link
        assert link is not None
        link.write(b"PUB trionet.live.all.%b/.\xff 1\r\n1\r\n" % base.encode())
        link.publish(f"trionet.live.all.{base}/.a%20b", b"2")
        link.publish(f"trionet.live.all.{base}/.x", b"3", {"Trionet-At": "never", "Nats-Sequence": "x"})
        await client.broker.publish(f"{base}/x", b"4")
        await client.seen.wait_data(f"{base}/x", b"3", b"4")
        assert client.seen.got[f"{base}/x"][0].at == 0
        assert list(client.seen.got) == [f"{base}/x"]


async def test_silent_for_longer_than_history_lasts_is_known_to_be_silent(nats):
    """A position that is older than what is kept is complete as long as nothing has come behind it."""
    async with connected(nats) as client:
        topic = unique("brief")
        position = await client.broker.publish(topic, b"1")
        await trio.sleep(0.6)  # longer than the topic's history lasts
        assert (await client.broker.history(topic, None)).publications == []
        page = await client.broker.history(topic, position)
        assert (page.complete, page.top) == (True, position)
        await client.broker.publish(topic, b"2")
        page = await client.broker.history(topic, position)
        assert (page.complete, [publication.data for publication in page.publications]) == (True, [b"2"])


async def test_changed_rules_change_the_stream(nats):
    """Started with other limits, a broker changes the stream in place: the epoch, and what is within them, stay."""
    topic = unique("changed")

    def rules(count: int) -> dict[str, TopicOptions]:
        return {f"{topic}.*": TopicOptions(history=HistoryLimits(count=count))}

    name = f"{topic}.x"
    async with connected(nats, rules=rules(10)) as client:
        first = [await client.broker.publish(name, b"%d" % number) for number in range(8)]
    async with connected(nats, rules=rules(3)) as client:
        page = await client.broker.history(name, None)
        assert [publication.data for publication in page.publications] == [b"5", b"6", b"7"]
        assert page.top == first[-1]
        assert not (await client.broker.history(name, first[0])).complete
    async with connected(nats, rules=rules(20)) as client:
        for number in range(8, 20):
            await client.broker.publish(name, b"%d" % number)
        assert len((await client.broker.history(name, None)).publications) == 4 + 12


async def test_what_is_too_big_is_refused_and_nothing_else(nats):
    """More than the server takes raises `BrokerError` before anything is sent; the connection lives on."""
    async with connected(nats) as client:
        for topic in (unique(), unique("none")):
            with pytest.raises(BrokerError, match="at most 1048576") as info:
                await client.broker.publish(topic, b"x" * 2**20 + b"y")
            assert not isinstance(info.value, BrokerDown)
            await client.broker.publish(topic, b"x" * (2**20 - 200))
        assert client.broker.state.reconnects == 0


async def test_the_next_server_is_tried(nats):
    """Of several servers one that answers is found, at the start and later; none of them: `BrokerDown` says why."""
    dead = "nats://127.0.0.1:1"
    async with connected(nats) as client:
        broker = open_broker(f"{dead},{nats.url}", rules=RULES)
        async with broker.running(client.seen):
            await nats.cut()
            await wait_reconnected(client.broker)
            await wait_reconnected(broker)
    with pytest.raises(BrokerDown, match=r"127\.0\.0\.1:1: .*refused"):
        async with open_broker(f"{dead},{dead}").running(client.seen):
            pass


# ------------------------------------------------------------------ other servers


async def test_without_jetstream_it_is_live_only(tmp_path, caplog):
    """It says so once; topics have no positions and no history, keys do nothing, and all is delivered."""
    async with server(tmp_path) as engine, connected(engine) as one, connected(engine) as two:
        topic, quiet = unique(), unique("none")
        await one.subscribe(topic, quiet)
        assert not one.broker.keeps_history
        assert one.broker.position(topic) == NOWHERE
        for _ in range(2):
            assert await two.broker.publish(topic, b"1", key="k", tag="t", origin="o") == NOWHERE
        await two.broker.publish(quiet, b"2")
        await one.seen.wait_data(topic, b"1", b"1")
        await one.seen.wait_data(quiet, b"2")
        assert (one.seen.got[topic][0].tag, one.seen.got[topic][0].origin) == ("t", "o")
        page = await one.broker.history(topic, None)
        assert (page.publications, page.complete) == ([], False)
        await engine.cut()
        await wait_reconnected(one.broker)
        await wait_reconnected(two.broker)
        await two.broker.publish(topic, b"3")
        await one.seen.wait_data(topic, b"1", b"1", b"3")
    assert sum("no topic has history" in record.message for record in caplog.records) == 2  # two brokers


ACCOUNTS = """
authorization {
  users = [
    {user: boss, password: "s3cret"}
    {user: app, password: "app", permissions: {
      publish: ["trionet.in.>", "trionet.live.>", "$JS.API.INFO", "$JS.API.STREAM.*.*", "$JS.API.DIRECT.GET.*"],
      subscribe: ["trionet.live.>", "_INBOX.>"]}}
    {user: guest, password: "guest", permissions: {
      publish: ["trionet.live.*.free.>", "$JS.API.>"], subscribe: ["_INBOX.>", "trionet.live.*.free.>"]}}
  ]
}
"""


async def test_who_may_not_is_told(tmp_path):
    """A wrong password is `BrokerDown` with the server's words; what permissions forbid is `BrokerError`."""
    async with server(tmp_path, config=ACCOUNTS) as engine:
        where = engine.url.removeprefix("nats://")
        with pytest.raises(BrokerDown, match="Authorization Violation"):
            async with NatsBroker(f"nats://boss:wrong@{where}").running(Client(NatsBroker(engine.url)).seen):
                pass
        async with connected(engine, user="boss", password="s3cret") as client:
            await client.subscribe(unique())
        engine.url = f"nats://guest:guest@{where}"
        async with connected(engine) as client:
            await client.subscribe("free.x")
            await client.broker.publish("free.x", b"1")
            await client.seen.wait_data("free.x", b"1")
            with pytest.raises(BrokerError, match="Permissions Violation"):
                await client.subscribe("other")
            with pytest.raises(BrokerError, match="Permissions Violation"):
                await client.broker.publish("other", b"1")
            await client.broker.publish("free.x", b"2")
            await client.seen.wait_data("free.x", b"1", b"2")
            assert client.broker.state.reconnects == 0


async def test_the_permissions_that_the_manual_names_are_enough(tmp_path):
    """A user that may do nothing else makes the streams, publishes, listens, and reads history."""
    async with server(tmp_path, jetstream=True, config=ACCOUNTS) as engine:
        async with connected(engine, user="app", password="app") as client:
            topics = [unique(), unique("none")]
            await client.subscribe(*topics, f"{topics[0]}/*")
            for topic in topics:
                await client.broker.publish(topic, b"1", key="k")
                await client.seen.wait_data(topic, b"1")
            assert len((await client.broker.history(topics[0], None)).publications) == 1
        async with connected(engine, user="app", password="app", rules={}) as client:
            assert client.broker.keeps_history


async def test_tls_is_spoken_and_not_given_up(tmp_path, nats):
    """A server that asks for TLS gets it, with its certificate checked; who asks for TLS gets nothing else."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = ["--tlscert", str(tmp_path / "cert.pem"), "--tlskey", str(tmp_path / "key.pem")]
    async with server(tmp_path / "one", "--tls", *files, jetstream=True) as engine:
        async with connected(engine, ssl_context=context) as client:
            topic = unique()
            await client.subscribe(topic)
            await client.broker.publish(topic, b"x" * 200_000)
            await client.seen.wait_data(topic, b"x" * 200_000)
        with pytest.raises(BrokerDown, match="CERTIFICATE_VERIFY_FAILED"):
            async with engine.broker().running(client.seen):
                pass
    with pytest.raises(BrokerDown, match="does not speak TLS"):
        async with open_broker(nats.url.replace("nats://", "tls+nats://")).running(client.seen):
            pass


async def test_a_server_that_speaks_something_else_is_refused(nats):
    """An HTTP server, and one that says nothing: `BrokerDown`, in time."""

    async def http(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()

    for handler, text in ((http, "not the protocol of NATS"), (silent, "no answer within")):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(BrokerDown, match=text):
                async with NatsBroker(f"nats://127.0.0.1:{port}", timeout=0.2).running(
                    Client(nats.broker()).seen
                ):
                    pass
            nursery.cancel_scope.cancel()


async def test_a_server_that_is_about_to_end_is_left_for_another_of_its_cluster(nats):
    """INFO names the servers of the cluster; the one in lame duck mode is left before it closes the connection."""
    host, port = nats.address
    begin = b'INFO {"version":"2.9.0","headers":true,"connect_urls":["%b:%d"]}\r\n' % (host.encode(), port)
    retire = trio.Event()

    async def old(stream: trio.SocketStream) -> None:
        async with stream, trio.open_nursery() as nursery:
            await stream.send_all(begin)

            async def leave() -> None:
                await retire.wait()
                await stream.send_all(b'INFO {"ldm":true}\r\n')

            nursery.start_soon(leave)
            with suppress(trio.BrokenResourceError):
                while data := await stream.receive_some():
                    await stream.send_all(b"PONG\r\n" * data.count(b"PING"))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, old, 0)
        broker = NatsBroker(f"nats://127.0.0.1:{listeners[0].socket.getsockname()[1]}", rules=RULES)
        client = Client(broker)
        client.seen.broker = broker
        async with broker.running(client.seen):
            assert not broker.keeps_history  # it is too old
            retire.set()
            with trio.fail_after(10):
                while not (broker.state.up and broker.keeps_history):  # noqa: ASYNC110 - a broker tells nobody
                    await trio.sleep(0.005)
            assert (await broker.publish(unique(), b"1")).offset
            assert broker.state.reconnects >= 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options",
    [
        {"when_down": "perhaps"},
        {"timeout": 0},
        {"max_waiting": 0},
        {"prefix": "a.b"},
        {"prefix": ""},
        {"remember": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(options):
    """`ConfigurationError`, before anything is connected."""
    with pytest.raises(ConfigurationError):
        NatsBroker("nats://localhost", **options)


async def test_going_down_and_coming_up_is_logged_once_each(nats, caplog):
    """One warning with the reason, one line when it is back, and nothing when the block is left."""
    caplog.set_level(logging.INFO, "trionet.pubsub")
    async with connected(nats) as client:
        await nats.cut()
        await wait_reconnected(client.broker)
    texts = [record.message for record in caplog.records]
    assert len(texts) == 2
    assert "is down" in texts[0]
    assert "up again" in texts[1]
