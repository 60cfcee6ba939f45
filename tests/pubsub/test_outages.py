"""What brokers promise while their engine is killed, started again, frozen, or cut off: with real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from engines import Engine, unique
from recorder import RULES, Client, connected

from trionet.errors import BrokerDown
from trionet.pubsub.publication import NOWHERE, Position

TIMEOUT = 0.6  # seconds after which a silent engine is given up
BOUND = 5.0  # what "bounded" means here: some timeouts, and a slow machine


pytestmark = pytest.mark.processes


@asynccontextmanager
async def pair(engine: Engine, **options: Any) -> AsyncIterator[tuple[Client, Client]]:
    """Two brokers as two processes have them, that find out soon what is wrong."""
    options.setdefault("timeout", TIMEOUT)
    async with connected(engine, **options) as one, connected(engine, **options) as two:
        yield one, two


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    """Await `call`: it must raise `BrokerDown`, in bounded time."""
    with trio.fail_after(BOUND), pytest.raises(BrokerDown):
        await call()


async def test_killed_it_says_so_and_started_again_all_goes_on(hurt):
    """Callers get `BrokerDown`, the state says down and up again, and old and new subscriptions work afterwards."""
    async with pair(hurt) as (one, two):
        topic, gone, pattern = unique(), unique(), unique("p") + "/*"
        await one.subscribe(topic, gone, pattern)
        await two.broker.publish(topic, b"1")
        await one.seen.wait_data(topic, b"1")
        await hurt.kill()
        await one.wait_state(up=False)
        since = one.broker.state.since
        assert one.broker.state.error
        late = unique()
        await refused(lambda: one.broker.publish(topic, b"2"))
        await refused(lambda: one.broker.subscribe([late]))
        if one.broker.keeps_history:
            await refused(lambda: one.broker.history(topic, None))
        if one.broker.keeps_members:
            await refused(lambda: one.broker.members(topic))
            await refused(lambda: one.broker.enter(topic, "x", "o", b"", 5))
        one.unsubscribe(gone)
        await hurt.restart()
        for client in (one, two):
            await client.wait_state(up=True)
            assert client.broker.state.reconnects == 1
        assert one.broker.state.since > since
        if one.broker.keeps_history:
            if hurt.forgets:
                await one.seen.until(lambda: one.seen.interruptions[topic])
            else:
                assert same_epoch(await one.broker.history(topic, None), one.seen.got[topic][-1])
        base = pattern[:-1]
        for name in (topic, gone, late, base + "x"):
            await two.broker.publish(name, b"3")
        await one.seen.until(lambda: one.seen.data(topic)[-1:] == [b"3"])
        await one.seen.until(lambda: one.seen.data(base + "x") == [b"3"])
        assert one.seen.data(gone) == one.seen.data(late) == []
        await one.subscribe(late)
        await two.broker.publish(late, b"4")
        await one.seen.wait_data(late, b"4")
        if one.broker.keeps_history:
            assert len(one.seen.interruptions[topic]) == hurt.forgets
        assert not one.seen.interruptions[gone]


def same_epoch(page: Any, publication: Any) -> bool:
    """Whether the engine still knows what it published before it was killed."""
    return page.top.epoch == publication.epoch and page.top.offset >= publication.offset


async def stream(client: Client, topic: str, count: int, begin: int = 0) -> None:
    """Publish numbers, each until it has worked, each with a key."""
    for number in range(begin, begin + count):
        await client.insist(topic, b"%d" % number, f"{number}")


async def test_connections_that_break_cost_nothing(hurt):
    """Cut off again and again under load, subscribers have each publication once, in order, and are not interrupted."""
    async with pair(hurt) as (one, two):
        if not one.broker.keeps_history:
            pytest.skip(f"{hurt.name} keeps no history")
        topics = [unique("long"), unique("long")]
        for client in (one, two):
            await client.subscribe(*topics)
        async with trio.open_nursery() as nursery:
            for topic, publisher in zip(topics, (one, two), strict=True):
                nursery.start_soon(stream, publisher, topic, 150)
            for count in (10, 60, 110):
                await one.seen.until(lambda n=count: len(one.seen.got[topics[0]]) >= n)
                await hurt.cut()
        for topic in topics:
            for client in (one, two):
                await client.seen.wait_data(topic, *[b"%d" % number for number in range(150)])
                assert client.seen.interruptions[topic] == []
        assert one.broker.state.reconnects >= 1


async def test_who_missed_more_than_is_kept_is_interrupted_once(hurt):
    """A process that was away while much was published is told so, with a position, and goes on from there."""
    async with pair(hurt) as (one, two):
        if not one.broker.keeps_history:
            pytest.skip(f"{hurt.name} keeps no history")
        topic = unique("few")
        await one.subscribe(topic)
        await two.broker.publish(topic, b"first")
        await one.seen.wait_data(topic, b"first")
        one.seen.room = trio.Event()  # it reads no more
        await hurt.cut()
        await stream(two, topic, 30)
        one.seen.room.set()
        await stream(two, topic, 30, 30)
        await one.seen.until(lambda: one.seen.data(topic)[-1:] == [b"59"])
        lost = 61 - len(one.seen.got[topic])
        assert len(one.seen.interruptions[topic]) <= 2
        assert bool(lost) == bool(one.seen.interruptions[topic])


async def test_frozen_it_is_found_out(hurt):
    """An engine that takes all and answers nothing: publishers hear of it in time; thawed, nothing is missing."""
    async with pair(hurt) as (one, two):
        topic = unique("long")
        await one.subscribe(topic)
        await two.broker.publish(topic, b"0", key="0")
        await one.seen.wait_data(topic, b"0")
        hurt.freeze()
        await refused(lambda: two.broker.publish(topic, b"1", key="1"))
        await refused(lambda: one.broker.subscribe([unique()]))
        for client in (one, two):
            await client.wait_state(up=False)
            await refused(lambda c=client: c.broker.publish(topic, b"never"))
        hurt.thaw()
        await stream(two, topic, 5, 1)
        await one.seen.until(lambda: one.seen.data(topic)[-1:] == [b"5"])
        if one.broker.keeps_history:
            numbers = [data for data in one.seen.data(topic) if data != b"never"]
            assert numbers == [b"%d" % number for number in range(6)]
            assert one.seen.interruptions[topic] == []


async def test_frozen_without_a_caller_it_is_found_out_too(hurt):
    """Nobody asks anything of it: the broker notices by itself."""
    async with pair(hurt) as (one, _):
        await one.subscribe(unique())
        hurt.freeze()
        await one.wait_state(up=False, seconds=BOUND)
        hurt.thaw()
        await one.wait_state(up=True)


async def test_an_engine_that_is_not_there_is_refused_at_the_start(hurt):
    """`running` raises `BrokerDown` in bounded time, whether nothing listens or nobody answers."""
    hurt.freeze()
    await refused(lambda: enter(hurt))
    await hurt.kill()
    await refused(lambda: enter(hurt))
    await hurt.restart()
    await enter(hurt)


async def enter(engine: Engine) -> None:
    """Run a broker and leave it."""
    broker = engine.broker(rules=RULES, timeout=TIMEOUT)
    async with broker.running(Client(broker).seen):
        pass


async def test_queueing_publishers_wait_and_publish_once(hurt):
    """With `when_down="queue"` callers wait for the engine, as many as may; each publishes once when it is back."""
    async with pair(hurt, when_down="queue", max_waiting=10) as (one, two):
        topic = unique("long")
        await one.subscribe(topic)
        await hurt.kill()
        for client in (one, two):
            await client.wait_state(up=False)
        results: list[Position | None] = []

        async def publish(number: int) -> None:
            try:
                results.append(await two.broker.publish(topic, b"%d" % number, key=f"{number}"))
            except BrokerDown:
                results.append(None)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(publish, number)
            with trio.fail_after(BOUND):
                while len(results) < 2:  # noqa: ASYNC110 - soon
                    await trio.sleep(0.005)
            assert results == [None, None]  # those there was no room for
            await hurt.restart()
        assert None not in results[2:]
        if one.broker.keeps_history:
            assert NOWHERE not in results
            await one.seen.until(
                lambda: len(one.seen.got[topic]) + 10 * bool(one.seen.interruptions[topic]) >= 10
            )
            await one.wait_state(up=True)
            page = await one.broker.history(topic, None)
            assert (
                len(page.publications) == len({publication.data for publication in page.publications}) == 10
            )
        # Who gave up waiting has left the queue.
        await hurt.kill()
        await two.wait_state(up=False)
        for _ in range(12):
            with trio.move_on_after(0.01):
                await two.broker.publish(topic, b"given up")
        await hurt.restart()
        await two.broker.publish(topic, b"end", key="end")
        await one.seen.until(lambda: one.seen.data(topic)[-1:] == [b"end"])
        assert b"given up" not in one.seen.data(topic)


@pytest.mark.usefixtures("with_members")
async def test_presence_survives_a_break(hurt):
    """Members stay where they are while connections break; events afterwards are told."""
    async with pair(hurt) as (one, two):
        topic = unique()
        await one.subscribe(topic)
        await two.broker.enter(topic, "ann", "o1", b"a", 30)
        await one.seen.until(lambda: one.seen.here(topic) == [("join", "ann")])
        await hurt.cut()
        for client in (one, two):
            await client.seen.until(lambda: True)
        with trio.fail_after(BOUND):
            while True:
                try:
                    assert await two.broker.members(topic) == {"ann": b"a"}
                    assert await one.broker.members(topic) == {"ann": b"a"}
                    break
                except BrokerDown:
                    await trio.sleep(0.01)
        await two.insist(topic, b"back", "back")
        await one.seen.wait_data(
            topic, b"back"
        )  # its subscription is back too, maybe on a connection of its own
        await two.broker.leave(topic, "ann", "o1")
        await one.seen.until(lambda: one.seen.here(topic)[-1] == ("leave", "ann"))
        assert one.seen.here(topic) == [("join", "ann"), ("leave", "ann")]


@pytest.mark.usefixtures("with_members", "forgetful")
async def test_an_engine_that_lost_its_members_says_so(hurt):
    """After a restart that forgot them, `refresh` returns the owners, who can enter again."""
    async with pair(hurt) as (one, _):
        topic = unique()
        await one.subscribe(topic)
        await one.broker.enter(topic, "ann", "o1", b"a", 30)
        await hurt.kill()
        await one.wait_state(up=False)
        await hurt.restart()
        await one.wait_state(up=True)
        assert await one.broker.refresh([(topic, "ann", "o1")], 30) == [(topic, "ann", "o1")]
        assert await one.broker.enter(topic, "ann", "o1", b"a", 30)
        await one.seen.until(lambda: one.seen.here(topic) == [("join", "ann")] * 2)
