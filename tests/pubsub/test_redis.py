"""What is peculiar to Redis, with a real server: scripts, flushes, passwords, TLS, snapshots, patterns, its errors."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trustme
from engine_redis import RedisEngine
from engines import Engine, unique
from recorder import RULES, Client, connected

from trionet.errors import BrokerDown, BrokerError
from trionet.pubsub.broker import open_broker
from trionet.pubsub.brokers import linked
from trionet.pubsub.brokers.redis import keys as redis_keys
from trionet.pubsub.brokers.redis import members as redis_members
from trionet.pubsub.brokers.redis.keys import Keys
from trionet.pubsub.brokers.redis.scripts import PUBLISH
from trionet.pubsub.publication import Position

pytestmark = pytest.mark.processes
KEYS = Keys("trionet:", 60)
TIMEOUT = 1.0
#: What docs/howto/brokers.md has a user be allowed.
ACL = "~trionet:* &trionet:* +@connection +@pubsub +@scripting +@read +@write -@dangerous +info +time"


class Volatile(RedisEngine):
    """Without an append-only file."""

    forgets = True
    options = ("--appendonly", "no")


@pytest.fixture
def redis(start_engine: Callable[[type[Engine]], Engine]) -> Iterator[RedisEngine]:
    """The one of the contract suite, with an append-only file."""
    engine = start_engine(RedisEngine)
    assert isinstance(engine, RedisEngine)
    yield engine
    trio.run(engine.heal)


@pytest.fixture
def volatile(start_engine: Callable[[type[Engine]], Engine]) -> Iterator[RedisEngine]:
    """One that keeps nothing, or what it is told to save."""
    engine = start_engine(Volatile)
    assert isinstance(engine, RedisEngine)
    yield engine
    trio.run(engine.heal)


@asynccontextmanager
async def one(engine: RedisEngine, **options) -> AsyncIterator[Client]:
    """A broker that finds out soon."""
    async with connected(engine, **{"timeout": TIMEOUT, **options}) as client:
        yield client


async def back(client: Client, reconnects: int = 1) -> None:
    """Wait until it has come back."""
    with trio.fail_after(10):
        while not (client.broker.state.up and client.broker.state.reconnects >= reconnects):  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_scripts_that_are_gone_are_loaded_again(redis):
    """After SCRIPT FLUSH everything goes on as if nothing had been."""
    async with one(redis) as client:
        broker, topic = client.broker, unique("long")
        await client.subscribe(topic)
        for call in (
            lambda: broker.publish(topic, b"1"),
            lambda: client.subscribe(unique()),
            lambda: broker.enter(topic, "ann", "o", b"", 30),
            lambda: broker.refresh([(topic, "ann", "o")], 30),
            lambda: broker.members(topic),
            lambda: broker.leave(topic, "ann", "o"),
            lambda: broker.history(topic, None),
        ):
            redis.ask("SCRIPT", "FLUSH")
            await call()
        redis.ask("SCRIPT", "FLUSH")
        await redis.cut()
        await client.insist(topic, b"2", "2")
        await client.seen.wait_data(topic, b"1", b"2")


async def test_a_flush_under_us_is_told_and_goes_on(redis):
    """FLUSHALL ends every epoch: who listens is interrupted once, in order with what comes after."""
    async with one(redis) as client:
        topic = unique()
        await client.subscribe(topic)
        before = await client.broker.publish(topic, b"1")
        await client.seen.wait_data(topic, b"1")
        redis.ask("FLUSHALL")
        after = await client.broker.publish(topic, b"2")
        await client.seen.wait_data(topic, b"1", b"2")
        assert after.epoch != before.epoch
        assert client.seen.interruptions[topic] == [Position(after.epoch, 0)]
        assert not (await client.broker.history(topic, before)).complete
        assert client.broker.state.reconnects == 0


async def test_fifty_broken_connections_cost_nothing(redis, monkeypatch):
    """CLIENT KILL again and again under load: nothing is lost, all in order, none twice."""
    monkeypatch.setattr(linked, "FIRST", 0.01)  # it comes back soon each time
    monkeypatch.setattr(linked, "STABLE", 0.0)
    async with one(redis) as listener, one(redis) as publisher:
        topic = unique("long")
        await listener.subscribe(topic)
        killed = 0
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                nonlocal killed
                for killed in range(1, 51):
                    kind = ("pubsub", "normal")[killed % 2]
                    await trio.to_thread.run_sync(redis.ask, "CLIENT", "KILL", "TYPE", kind)
                    await back(listener, killed)
                    await back(publisher, killed // 2)

            nursery.start_soon(kill)
            number = 0
            while killed < 50:
                await publisher.insist(topic, b"%d" % number, f"{number}")
                number += 1
        await listener.seen.until(lambda: len(listener.seen.got[topic]) >= number)
        assert listener.seen.data(topic) == [b"%d" % n for n in range(number)]
        assert listener.seen.interruptions[topic] == []


async def test_what_live_delivery_missed_is_read_from_the_history(redis):
    """A publication whose message never came is found missing by the next one, and both come in order."""
    async with one(redis) as client:
        topic = unique()
        await client.subscribe(topic)
        await client.broker.publish(topic, b"1")
        words = ["astray", "2", "", "", "100", "1000", "60000", "", "1", "60", "1"]
        redis.ask("EVALSHA", PUBLISH.sha, "2", *KEYS.line(topic), *words)
        await client.broker.publish(topic, b"3")
        await client.seen.wait_data(topic, b"1", b"2", b"3")
        assert client.seen.interruptions[topic] == []


async def test_a_past_that_went_back_ends_the_epoch(redis):
    """A server that knows less than was delivered would use offsets twice: a new epoch begins."""
    async with one(redis) as client:
        topic = unique()
        await client.subscribe(topic)
        for data in (b"1", b"2", b"3"):
            before = await client.broker.publish(topic, data)
        await client.seen.wait_data(topic, b"1", b"2", b"3")
        redis.ask("HSET", KEYS.line(topic)[0], "o", "1")
        await redis.cut()
        await back(client)
        assert len(client.seen.interruptions[topic]) == 1
        assert client.broker.position(topic).epoch != before.epoch


async def test_a_publisher_that_knows_more_ends_the_epoch(redis):
    """An append-only file that has lost its end is found out by who published that, before an offset is used twice."""
    async with one(redis) as client, one(redis) as publisher:
        topic = unique()
        await client.subscribe(topic)
        for data in (b"1", b"2", b"3"):
            before = await publisher.broker.publish(topic, data)
        redis.ask("HSET", KEYS.line(topic)[0], "o", "1")
        after = await publisher.broker.publish(topic, b"4")
        assert after.epoch != before.epoch
        await client.seen.wait_data(topic, b"1", b"2", b"3", b"4")
        assert client.seen.interruptions[topic] == [Position(after.epoch, 0)]


async def test_an_older_snapshot_ends_the_epoch(volatile):
    """Without its append-only file a server may come back with an old past, also for those who do not listen."""
    async with one(volatile) as client:
        topic, alone = unique(), unique()
        await client.subscribe(topic)
        before = await client.broker.publish(topic, b"1")
        await client.broker.publish(alone, b"1")
        volatile.ask("SAVE")
        await client.broker.publish(topic, b"2")
        await client.broker.publish(alone, b"2")
        await client.seen.wait_data(topic, b"1", b"2")
        await volatile.kill()
        await volatile.restart()
        await back(client)
        await client.insist(alone, b"3", "3")
        assert (await client.broker.history(alone, before)).complete is False
        assert [item.data for item in (await client.broker.history(alone, None)).publications] == [b"3"]
        assert [position.offset for position in client.seen.interruptions[topic]] == [0]
        assert client.seen.interruptions[topic][0].epoch != before.epoch


async def test_patterns_and_names_deliver_once(redis):
    """A topic that fits a name and three patterns comes once; characters with a meaning for Redis have none here."""
    base = unique("p")
    async with one(redis) as client:
        topic, odd = f"{base}/a/b", f"{base}/[ab]?\\/x"
        patterns = [f"{base}/*", f"{base}/a/*", "*", f"{base}/[ab]?\\/*"]
        await client.broker.subscribe(patterns)
        await client.subscribe(topic)
        for data in (b"1", b"2"):
            for name in (topic, odd, f"{base}/a?", f"{base}x"):
                await client.broker.publish(name, data)
        await client.broker.enter(topic, "ann", "o", b"", 30)
        await client.seen.until(lambda: client.seen.here(topic))
        for name in (topic, odd, f"{base}/a?", f"{base}x"):
            assert client.seen.data(name) == [b"1", b"2"]
        client.unsubscribe(topic)
        client.broker.unsubscribe(["*"])
        await client.broker.publish(f"{base}x", b"3")
        await client.broker.publish(topic, b"3")
        await client.seen.until(lambda: len(client.seen.got[topic]) == 3)
        assert client.seen.data(f"{base}x") == [b"1", b"2"]
        assert client.seen.here(topic) == [("join", "ann")]


async def test_strangers_on_our_channels_do_no_harm(redis):
    """What somebody else publishes there is left out, and the connection stays."""
    async with one(redis) as client:
        topic = unique()
        await client.subscribe(topic)
        for payload in ("", "hello", "+", "+9:x", "1:2:3:4:5:6:7", "-a:b"):
            redis.ask("PUBLISH", KEYS.channel(topic).decode(), payload)
        await client.broker.publish(topic, b"1")
        await client.seen.until(lambda: client.seen.data(topic)[-1:] == [b"1"])
        assert client.broker.state.reconnects == 0


async def test_what_is_kept_expires_in_its_order(redis):
    """The history goes first, the topic's place is remembered for long, and keys made here go when they are done."""
    async with one(redis, when_down="queue") as client:
        topic = unique()
        for number in range(64):
            await client.broker.publish(topic, b"%d" % number)
        await client.broker.publish(topic, b"x", key="mine")
        meta, line = KEYS.line(topic)
        assert 290_000 < int(redis.ask("PTTL", line)[1:]) <= 300_000
        assert 604_000 < int(redis.ask("TTL", meta)[1:]) <= 604_800
        assert redis.ask("EXISTS", KEYS.key(topic, "mine")) == b":1\r\n"
        with trio.fail_after(5):
            while redis.ask("EVAL", f"return #redis.call('KEYS', '*{topic}*')", "0") != b":3\r\n":  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_what_may_be_there_is_not_tried_again_for_ever(redis, monkeypatch):
    """Longer than Redis remembers keys a queueing publisher does not repeat what may have arrived: it is told so."""
    monkeypatch.setattr(linked, "RETRY_FOR", 0.0)
    async with one(redis, when_down="queue", timeout=0.4) as client:
        redis.freeze()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def thaw() -> None:
                await client.wait_state(up=False)
                redis.thaw()

            with pytest.raises(BrokerDown, match="not tried again"):
                await client.broker.publish(unique(), b"1")
        await client.wait_state(up=True)
        await client.broker.publish(unique(), b"2")


async def test_pages_are_bounded_by_bytes(redis, monkeypatch):
    """Large publications come in several pages, live and asked for, so that Redis need not buffer them."""
    monkeypatch.setattr(redis_keys, "PAGE_BYTES", 1000)
    async with one(redis) as client:
        topic = unique("long")
        await client.subscribe(topic)
        start = client.broker.position(topic)
        for _ in range(10):
            await client.broker.publish(topic, b"x" * 300)
        page = await client.broker.history(topic, start)
        assert (len(page.publications), page.complete, page.more) == (4, True, True)
        await client.seen.until(lambda: len(client.seen.got[topic]) == 10)


async def test_systems_with_different_prefixes_do_not_meet(redis):
    """The same topic under another prefix is another topic."""
    async with one(redis) as ours, one(redis, prefix="other:") as theirs:
        topic = unique()
        await ours.subscribe(topic)
        await theirs.broker.publish(topic, b"theirs")
        await ours.broker.publish(topic, b"ours")
        await ours.seen.wait_data(topic, b"ours")


async def test_an_owner_that_expired_is_told_once(redis):
    """Two processes look for owners that are gone: one event, and nothing is left to look at."""
    async with one(redis) as first, one(redis) as second:
        topic = unique()
        for client in (first, second):
            await client.subscribe(topic)
        await first.broker.enter(topic, "ann", "o", b"i", 0.05)
        for client in (first, second):
            await client.seen.until(lambda c=client: ("leave", "ann") in c.seen.here(topic))
        for client in (first, second):
            await client.broker._members._sweep_some()
            await client.broker.publish(topic, b"1")
        for client in (first, second):
            await client.seen.wait_data(topic, b"1", b"1")
            assert client.seen.here(topic) == [("join", "ann"), ("leave", "ann")]
        with trio.fail_after(5):
            while redis.ask("ZSCORE", KEYS.due, topic) not in (b"$-1\r\n", b"_\r\n"):  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_after_an_outage_nobody_leaves_before_they_could_say_they_are_there(redis, monkeypatch):
    """Owners that have expired while Redis could not be reached are known until their process had time to refresh."""
    monkeypatch.setattr(redis_members, "TICK", 0.02)
    async with one(redis) as client:
        topic = unique()
        await client.subscribe(topic)
        await client.broker.enter(topic, "ann", "1", b"", 0.15)
        await redis.cut()
        await back(client)
        await trio.sleep(0.3)
        assert await client.broker.refresh([(topic, "ann", "1")], 30) == []
        assert client.seen.here(topic) == [("join", "ann")]
        await client.broker.leave(topic, "ann", "1")


async def test_passwords(redis):
    """A wrong one is refused at the start with what to do about it, and is not shown; the right one serves.

    The user may no more than docs/howto/brokers.md says.
    """
    topic = unique()
    redis.ask("ACL", "SETUSER", "ann", "on", ">s3cret", *ACL.split(), f"&trionet:t:{topic}/*")
    for word in ("wr0ng", "s3cret"):
        broker = open_broker(f"redis+unix://ann:{word}@{redis.path}", rules=RULES)
        assert word not in repr(broker)
        client = Client(broker)
        if word == "s3cret":
            async with broker.running(client.seen):
                await client.subscribe(topic, unique("none"))
                await broker.subscribe([f"{topic}/*"])
                await broker.publish(topic, b"1", key="k")
                await broker.publish(unique("none"), b"")
                await broker.enter(topic, "x", "o", b"", 30)
                await broker.history(topic, None)
                await client.seen.wait_data(topic, b"1")
            continue
        with pytest.raises(BrokerError, match="WRONGPASS") as caught:
            async with broker.running(client.seen):
                pass
        assert not isinstance(caught.value, BrokerDown)
        assert word not in str(caught.value)


async def test_what_an_acl_forbids_is_said(redis):
    """A user who may not use a channel gets an error for it, and everything else goes on."""
    mine = unique("mine")
    redis.ask("ACL", "SETUSER", "bob", "on", ">b", "~*", "resetchannels", f"&trionet:t:{mine}*", "+@all")
    broker = open_broker(f"redis+unix://bob:b@{redis.path}", rules=RULES)
    client = Client(broker)
    async with broker.running(client.seen):
        for _ in range(2):
            with pytest.raises(BrokerError, match="NOPERM"):
                await broker.subscribe([unique("theirs")])
            with pytest.raises(BrokerError, match=r"NOPERM|can.t publish"):
                await broker.publish(unique("theirs"), b"")
        await client.subscribe(mine)
        await broker.publish(mine, b"1")
        await client.seen.wait_data(mine, b"1")
        assert broker.state.reconnects == 0


async def test_a_full_server_is_an_error_and_not_an_outage(volatile):
    """OOM is said to the publisher, also to one that would queue, and goes when there is room."""
    async with one(volatile, when_down="queue") as client:
        topic = unique()
        await client.subscribe(topic)
        await client.broker.enter(topic, "ann", "1", b"", 30)
        volatile.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            with trio.fail_after(5), pytest.raises(BrokerError, match="maxmemory") as caught:
                await client.broker.publish(topic, b"1")
            assert not isinstance(caught.value, BrokerDown)
            assert await client.broker.refresh([(topic, "ann", "1")], 30) == []  # nobody has to leave for it
            assert await client.broker.leave(topic, "ann", "1")
        finally:
            volatile.ask("CONFIG", "SET", "maxmemory", "0")
        await client.broker.publish(topic, b"2")
        await client.seen.wait_data(topic, b"2")


async def test_a_replica_is_left(volatile):
    """A server that has become a read-only replica is an outage: connections are made anew, for it may be another."""
    async with one(volatile) as client:
        topic = unique()
        await client.subscribe(topic)
        volatile.ask("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(BrokerDown, match="READONLY"):
                await client.broker.publish(topic, b"1")
        finally:
            volatile.ask("REPLICAOF", "NO", "ONE")
        await client.insist(topic, b"2", "2")
        await client.seen.until(lambda: client.seen.data(topic)[-1:] == [b"2"])
        await back(client)


class Secured(RedisEngine):
    """On a port, with TLS only."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = self.authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
        with (folder / "cert.pem").open("wb") as out:
            for blob in certificate.cert_chain_pems:
                out.write(blob.bytes())

    def command(self) -> list[str]:
        files = {"cert": "cert.pem", "key": "key.pem", "ca-cert": "ca.pem"}
        tls = [
            word for name, file in files.items() for word in (f"--tls-{name}-file", str(self.folder / file))
        ]
        return [*super().command(), "--tls-port", str(self.port), "--tls-auth-clients", "no", *tls]


def has_tls() -> bool:
    """Whether redis-server was built with TLS."""
    path = shutil.which("redis-server")
    if path is None:
        return False
    return b"libssl" in subprocess.run(["ldd", path], capture_output=True, check=False).stdout


@pytest.mark.skipif(not has_tls(), reason="redis-server has no TLS")
async def test_tls(tmp_path):
    """rediss:// works with an authority that is known, and is refused with a reason where it is not."""
    engine = Secured(tmp_path)
    for _ in range(5):  # a free port may be gone until redis has it
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            engine.port = sock.getsockname()[1]
        with suppress(RuntimeError):
            await engine.start()
            break
    try:
        url = f"rediss://localhost:{engine.port}"
        context = ssl.create_default_context()
        engine.authority.configure_trust(context)
        broker = open_broker(url, ssl_context=context, rules=RULES)
        client = Client(broker)
        async with broker.running(client.seen):
            topic = unique()
            await client.subscribe(topic)
            await broker.publish(topic, b"x" * 100_000)
            await client.seen.wait_data(topic, b"x" * 100_000)
        with pytest.raises(BrokerDown, match=r"(?i)certificate"):
            async with open_broker(url).running(client.seen):
                pass
    finally:
        await engine.stop()


async def test_repr_tells_where_and_whether(redis):
    """Address and state, no password."""
    async with one(redis) as client:
        assert repr(client.broker) == f"<RedisBroker {redis.path} up>"
    assert repr(client.broker) == f"<RedisBroker {redis.path} down>"
