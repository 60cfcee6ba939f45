"""What brokers share (`brokers.linked`), and what none of them may do: keep something of a run that has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from engines import unique
from recorder import Client, Recorder, connected

from trionet.errors import BrokerDown, BrokerError, ConfigurationError, TopicError
from trionet.pubsub.broker import Receiver, open_broker
from trionet.pubsub.brokers import linked, memory
from trionet.pubsub.brokers.linked import Attempts, LinkedBroker, words
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.publication import NOWHERE, Position


class Lame(LinkedBroker):
    """Its engine is there, or not, as a test says."""

    history = enter = refresh = leave = members = subscribe = unsubscribe = position = None  # type: ignore[assignment]

    def __init__(self, **options) -> None:
        super().__init__(None, **{"when_down": "queue", "max_waiting": 3, **options})
        self.keys: list[str] = []
        self.refuses = False

    @asynccontextmanager
    async def running(self, receiver: Receiver) -> AsyncIterator[None]:
        with self._life():
            yield

    def _lag(self) -> None:
        return None

    async def _publish(self, topic: str, data: bytes, key: str, tag: str, origin: str) -> Position:
        self.keys.append(key)
        if self.refuses or not self._up.is_set():
            raise BrokerDown("it is away")
        return NOWHERE

    def switch(self, *, up: bool) -> None:
        """It comes, or goes."""
        if up:
            self._went_up()
        else:
            self._went_down("away")


async def test_who_waits_is_told_when_the_broker_is_left(nursery, autojump_clock):
    """Publishers in the queue of a broker that ends get `BrokerDown`; they do not wait for ever."""
    broker = Lame()
    told: list[str] = []

    async def publish() -> None:
        with pytest.raises(BrokerDown) as caught:
            await broker.publish("t", b"")
        told.append(str(caught.value))

    async with broker.running(Recorder()):
        for _ in range(3):
            nursery.start_soon(publish)
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
    with trio.fail_after(5):
        while len(told) < 3:  # noqa: ASYNC110 - soon
            await trio.sleep(0.1)


async def test_who_waits_keeps_its_place(nursery, autojump_clock):
    """An engine that comes and goes does not cost those their place who have waited, however many come behind them."""
    broker = Lame()
    done: list[bool] = []

    async def publish() -> None:
        await broker.publish("t", b"")
        done.append(True)

    async with broker.running(Recorder()):
        for _ in range(3):
            nursery.start_soon(publish)
        await trio.testing.wait_all_tasks_blocked()
        broker.refuses = True
        for up in (True, False, True):
            broker.switch(up=up)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BrokerDown, match="it is away; 3 publishers wait for it already"):
                await broker.publish("t", b"")
        broker.refuses = False
        await trio.sleep(1)
    assert len(done) == 3
    own = [key for key in broker.keys if broker.keys.count(key) > 1]
    assert len(set(own)) == 3  # each kept the key it was given


async def test_a_broker_runs_once_at_a_time():
    """Entering it twice is Trio's error for that, and the first goes on."""
    broker = Lame()
    async with broker.running(Recorder()):
        broker.switch(up=True)
        with pytest.raises(trio.BusyResourceError):
            async with broker.running(Recorder()):
                pass
        assert broker.state.up
    assert not broker.state.up


def test_pauses_become_short_again_only_for_a_connection_that_lasted(monkeypatch):
    """One that breaks as soon as it is there is a failure, too: nobody is to come back a hundred times a second."""
    monkeypatch.setattr(linked.random, "random", lambda: 1.0)
    monkeypatch.setattr(linked, "LONGEST", 2.0)
    attempts = Attempts("the engine")
    pauses = [attempts.pause("", 0.01) for _ in range(8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert attempts.pause("") == 2.0
    assert attempts.pause("", 60.0) == 0.05


def test_the_log_says_why_it_stays_away(caplog):
    """Once, when it has been away for a while: a password that was changed is not why the connection broke."""
    attempts = Attempts("the engine")
    for number in range(20):
        attempts.pause("it wants a password" if number else "it closed the connection")
    assert caplog.messages == ["the engine is still down: it wants a password"]


async def test_errors_name_the_cause():
    """What is said is what the system said, without Trio's groups around it."""
    with pytest.raises(OSError) as caught:
        await trio.open_tcp_stream("127.0.0.1", 1)
    assert words(caught.value) == "Connection refused"


@pytest.mark.parametrize("url", ["redis://u:se/cret@h", "redis://u:se#cret@h/1", "nats://u:se?cret@h"])
def test_no_part_of_a_password_is_in_an_error(url):
    """A password that was not escaped ends the host's name too early: the text does not show what was read."""
    if url.startswith("redis"):
        pytest.importorskip("hiredis")
    with pytest.raises(ConfigurationError, match="%2F") as caught:
        open_broker(url)
    assert "'se" not in str(caught.value)
    assert "cret" not in str(caught.value)


async def test_nothing_of_a_run_is_left_in_the_next(engine):
    """Left and run again, a broker has no subscriptions."""
    topic = unique()
    broker = engine.broker()
    for _ in range(2):
        client = Client(broker)
        async with broker.running(client.seen):
            await broker.publish(topic, b"1")
            assert broker.position(unique()).offset == 0
            await client.subscribe("*")
            await client.subscribe(topic)
            await broker.publish(topic, b"2")
            await client.seen.wait_data(topic, b"2")


async def test_a_name_that_is_none_does_not_cost_the_connection(engine):
    """Subscribing to it is a `TopicError` here, not something the engine ends the connection for."""
    async with connected(engine) as client:
        if engine.hurtable:
            with pytest.raises(TopicError):
                await client.broker.subscribe(["a b\n*"])
        await client.broker.publish(unique(), b"")
        assert client.broker.state.reconnects == 0


@pytest.mark.parametrize(
    "answer", [b"+OK\r\n", b"*0\r\n", b"$-1\r\n", b"%1\r\n*1\r\n:1\r\n:2\r\n", b"-ERR unknown command\r\n"]
)
async def test_what_only_looks_like_redis_is_an_error_and_not_the_end(answer, nursery):
    """A proxy that answers everything is told from a Redis: `BrokerError`, which a reconnect survives."""
    pytest.importorskip("hiredis")
    from trionet.pubsub.brokers.redis import scripts

    async def talk(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(answer * (len(scripts.SCRIPTS) + 3))
            async for _ in stream:
                pass

    (listener,) = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
    broker = open_broker(f"redis://127.0.0.1:{listener.socket.getsockname()[1]}")
    with (
        trio.fail_after(4),
        pytest.raises(BrokerError, match=r"what answers is not Redis|older than Redis 6"),
    ):
        async with broker.running(Recorder()):
            pass
    nursery.cancel_scope.cancel()


async def test_members_stay_when_the_clock_is_set(autojump_clock, monkeypatch):
    """An hour forward, or a process that stood still for an hour: those who are refreshed have not left."""
    wall = [1000.0]
    monkeypatch.setattr(memory, "wall_clock", lambda: wall[0])
    broker = MemoryBroker()
    async with broker.running(Recorder()):
        await broker.enter("t", "ann", "1", b"", 30)
        wall[0] += 3600
        await trio.sleep(5)
        autojump_clock.jump(3600)  # frozen
        await trio.sleep(5)
        assert await broker.refresh([("t", "ann", "1")], 30) == []
        wall[0] -= 7200
        await trio.sleep(31)
        assert await broker.members("t") == {}
