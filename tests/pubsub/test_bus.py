"""The bus: how often it asks its broker, and what is left when something fails or goes away half-way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from cluster import Cluster, Node
from peers import Encode, Line, Peer, send
from trio.testing import wait_all_tasks_blocked

from trionet.errors import BrokerDown, BrokerError, TopicError
from trionet.pubsub.broker import Receiver
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.bus import Bus, Joined, open_bus
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position, Publication
from trionet.pubsub.topics import TopicOptions


class Ear:
    """A subscriber that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def receive(self, message: Any) -> bool:
        self.got.append(message)
        return True

    def data(self) -> list[bytes]:
        return [message.data for message in self.got if isinstance(message, Publication)]


async def quiet(_: object) -> None:
    """Begin or replay without a word."""
    await trio.lowlevel.checkpoint()


async def join(bus: Bus[Any, Any], ear: object, topic: str = "t", since: Position | None = None) -> Joined:
    """Subscribe; returns how it began, the last time if there were several."""
    begun: list[Joined] = []

    async def begin(joined: Joined) -> None:
        begun.append(joined)

    async def replay(publications: list[Publication]) -> None:
        for publication in publications:
            ear.receive(publication)

    await bus.subscribe(ear, topic, since, begin=begin, replay=replay)
    return begun[-1]


@asynccontextmanager
async def memory(**options: Any) -> AsyncIterator[Bus[Any, Any]]:
    """A bus on a memory broker."""
    rules = {"none.*": TopicOptions(history=None)}
    async with open_bus(MemoryBroker(rules=rules), send, Encode(), **options) as bus:
        yield bus
        assert (bus._places, bus._pending) == ({}, {})


@asynccontextmanager
async def gated(
    count: int = 5, **options: Any
) -> AsyncIterator[tuple[Cluster, list[Node], list[Bus[Any, Any]]]]:
    """Two buses on an engine whose delays the test decides."""
    cluster = Cluster(count)
    nodes = [cluster.node(), cluster.node()]
    async with (
        open_bus(nodes[0], send, Encode(), **options) as one,
        open_bus(nodes[1], send, Encode(), **options) as two,
    ):
        yield cluster, nodes, [one, two]


async def flow(cluster: Cluster) -> None:
    """Open every gate until nothing moves."""
    await wait_all_tasks_blocked()
    while cluster.gates:
        cluster.open_gate(0)
        await wait_all_tasks_blocked()


# ----------------------------------------------------------------------------- attaching


async def test_the_broker_is_asked_once_for_a_topic_however_many_subscribe():
    """At once or one after the other; it is given back when the last has gone, and asked again for the next."""
    async with gated() as (cluster, (node, _), (bus, _)), trio.open_nursery() as nursery:
        ears = [Ear() for _ in range(5)]
        for ear in ears[:4]:
            nursery.start_soon(join, bus, ear)
        await wait_all_tasks_blocked()
        assert bus.statistics().joining == 4
        assert bus.statistics().attached == 1
        await flow(cluster)
        await join(bus, ears[4])
        assert node.subscribed == ["t"]
        cluster.publish("t", b"1")
        node.pump()
        assert [ear.data() for ear in ears] == [[b"1"]] * 5
        for ear in ears:
            assert node.topics != {}
            assert bus.unsubscribe(ear, "t")
        assert node.topics == {}
        assert not bus.unsubscribe(ears[0], "t")
        nursery.start_soon(join, bus, ears[0])
        await flow(cluster)
        assert node.subscribed == ["t", "t"]
        assert bus.forget(ears[0]) == ("t",)
        assert (node.topics, bus._places, bus._pending) == ({}, {}, {})


async def test_a_failure_to_attach_is_everybodys():
    """Those who waited for the first get its error at once, each; the next one tries again."""
    async with gated() as (cluster, (node, _), (bus, _)):
        errors: list[BaseException] = []

        async def attempt() -> None:
            try:
                await join(bus, Ear())
            except BrokerError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(attempt)
            await wait_all_tasks_blocked()
            node.cut()
            await flow(cluster)
        assert [type(error) for error in errors] == [BrokerDown] * 5
        assert len(set(map(id, errors))) == 5
        assert node.subscribed == ["t"]
        assert (node.topics, bus._places, bus._pending) == ({}, {}, {})
        node.reconnect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join, bus, Ear())
            await flow(cluster)
        assert set(node.topics) == {"t"}


@pytest.mark.parametrize("gates", [0, 1])
async def test_the_first_is_cancelled_and_another_goes_on(gates):
    """Whoever attaches may be cancelled, before or behind the broker's doing; those who waited are served."""
    async with gated() as (cluster, (node, _), (bus, _)), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        ears = [Ear() for _ in range(3)]

        async def first() -> None:
            with scope:
                await join(bus, ears[0])

        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        for ear in ears[1:]:
            nursery.start_soon(join, bus, ear)
        await wait_all_tasks_blocked()
        for _ in range(gates):
            cluster.open_gate(0)
            await wait_all_tasks_blocked()
        scope.cancel()
        await flow(cluster)
        assert node.subscribed == ["t", "t"]
        cluster.publish("t", b"1")
        node.pump()
        assert [ear.data() for ear in ears] == [[], [b"1"], [b"1"]]


# ------------------------------------------------------------------------------- joining


async def test_who_leaves_while_joining_is_told_nothing_more():
    """Unsubscribed or forgotten at any moment of it: `subscribe` returns, nothing is sent, nothing is left."""
    for steps in range(7):
        for end in ("unsubscribe", "forget"):
            async with gated() as (cluster, (node, _), (bus, _)):
                told: list[object] = []

                async def tell(what: object, told: list[object] = told, cluster: Cluster = cluster) -> None:
                    told.append(what)
                    await cluster.gate()

                keeper, ear = Ear(), Ear()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(join, bus, keeper)
                    await flow(cluster)
                    bus.forget(keeper)
                    start = cluster.store.position("t")
                    cluster.publish("t", b"1")

                    async def subscribe(
                        ear: Ear = ear, start: Position = start, bus: Any = bus, t: Any = tell
                    ) -> None:
                        await bus.subscribe(ear, "t", start, begin=t, replay=t)

                    nursery.start_soon(subscribe)
                    await wait_all_tasks_blocked()
                    for _ in range(steps):
                        cluster.open_gate(0)
                        await wait_all_tasks_blocked()
                    count = len(told)
                    joined = bus.has(ear, "t")
                    assert joined
                    if end == "forget":
                        assert bus.forget(ear) == ("t",)
                    else:
                        assert bus.unsubscribe(ear, "t")
                    assert not bus.has(ear, "t")
                    await flow(cluster)
                assert len(told) == count
                cluster.publish("t", b"2")
                node.pump(10)
                assert ear.got == []
                assert (bus._places, bus._pending, node.topics, len(bus.hub)) == ({}, {}, {}, 0)


async def test_what_begin_and_replay_raise_ends_the_subscription():
    """It comes out of `subscribe`, and nothing is left of it."""
    async with memory() as bus:
        for number in range(3):
            await bus.publish("t", b"%d" % number)

        async def fail(_: object) -> None:
            raise ConnectionError

        page = await bus.history("t")
        for begin, replay in ((fail, quiet), (quiet, fail)):
            with pytest.raises(ConnectionError):
                await bus.subscribe("s", "t", page.publications[0].position, begin=begin, replay=replay)
            assert (bus._places, bus._pending, len(bus.hub), len(bus.broker._topics)) == ({}, {}, 0, 0)


async def test_who_has_more_than_was_delivered_here_waits_beside_the_hub():
    """It gets what follows on what it has, and nothing of it again."""
    async with gated() as (cluster, (node, _), (bus, _)), trio.open_nursery() as nursery:
        keeper, ear = Ear(), Ear()
        nursery.start_soon(join, bus, keeper)
        await flow(cluster)
        for number in range(4):
            cluster.publish("t", b"%d" % number)
        node.pump(1)
        nursery.start_soon(join, bus, ear, "t", Position("e1", 2))
        await flow(cluster)
        assert ear.data() == []  # the last was delivered: 1; it has 2
        assert bus.has(ear, "t")
        assert not bus.hub.has(ear, "t")
        with pytest.raises(TopicError, match="already"):
            await join(bus, ear)
        node.pump(10)
        assert ear.data() == [b"2", b"3"]
        assert bus.hub.has(ear, "t")
        assert (bus._places, bus._pending) == ({}, {})


async def test_who_is_ahead_may_go_and_gives_the_topic_back():
    """Nobody else is there: the broker is told."""
    for end in ("unsubscribe", "forget"):
        async with gated() as (cluster, (node, _), (bus, _)), trio.open_nursery() as nursery:
            keeper, ear = Ear(), Ear()
            nursery.start_soon(join, bus, keeper)
            await flow(cluster)
            for number in range(4):
                cluster.publish("t", b"%d" % number)
            nursery.start_soon(join, bus, ear, "t", Position("e1", 2))
            await flow(cluster)
            bus.forget(keeper)
            assert set(node.topics) == {"t"}
            assert bus.statistics().attached == 1
            if end == "forget":
                assert bus.forget(ear) == ("t",)
            else:
                assert bus.unsubscribe(ear, "t")
            assert (node.topics, bus._places, bus._pending) == ({}, {}, {})


async def test_of_an_interruption_only_those_hear_who_miss_something():
    """Who came from elsewhere, with more than the position it goes on from, is not told; nobody gets anything twice."""
    async with gated(3) as (cluster, (node, other), (bus, elsewhere)), trio.open_nursery() as nursery:
        behind, level, ahead, old = Ear(), Ear(), Ear(), Ear()
        nursery.start_soon(join, bus, old)
        nursery.start_soon(join, elsewhere, Ear())
        await flow(cluster)
        cluster.forget()  # the engine has a new epoch; only the other process knows
        other.reconnect()
        for number in range(1, 5):
            cluster.publish("t", b"%d" % number)
        node.linked = True  # commands pass again, before the subscriptions are looked after
        for ear, offset in ((behind, 1), (level, 4)):
            nursery.start_soon(join, bus, ear, "t", Position("e2", offset))
            await flow(cluster)
        assert behind.data() == [b"2", b"3", b"4"]
        cluster.publish("t", b"5")
        nursery.start_soon(join, bus, ahead, "t", Position("e2", 4))
        await flow(cluster)
        assert ahead.data() == [b"5"]
        assert not any(bus.hub.has(ear, "t") for ear in (behind, level, ahead))
        # An old publication that was still on its way is not for those of the new epoch.
        bus.deliver(Publication("t", b"old", "e1", 9, 8))
        assert (old.data(), ahead.data(), level.data()) == ([b"old"], [b"5"], [])
        node.topics["t"] = Position("e2", 4)
        bus.interrupted("t", Position("e2", 4))
        cluster.publish("t", b"6")
        node.pump(10)
        assert old.got[1:] == [("t", Position("e2", 4)), *cluster.truth[-2:]]
        assert behind.data() == [b"2", b"3", b"4", b"5", b"6"]
        assert level.got == cluster.truth[-2:]
        assert ahead.data() == [b"5", b"6"]
        assert (bus._places, bus._pending) == ({}, {})


async def test_a_position_beyond_the_newest_is_not_believed():
    """Of a future that was lost, or invented: not recovered, from where the topic stands."""
    async with memory() as bus:
        position = await bus.publish("t", b"1")
        for since in (Position(position.epoch, 99), Position("other", 1), NOWHERE):
            ear = Ear()
            assert await join(bus, ear, since=since) == Joined("t", position, recovered=False)
            assert ear.got == []
            bus.forget(ear)


async def test_what_a_pattern_or_a_topic_without_history_begins_with():
    """No position, nothing to recover; and that is said if it was asked for."""
    async with memory() as bus:
        for topic in ("none.a", "news/*"):
            one, two = Ear(), Ear()
            assert await join(bus, one, topic) == Joined(topic, NOWHERE, recovered=None)
            assert await join(bus, two, topic, Position("e", 1)) == Joined(topic, NOWHERE, recovered=False)
            await bus.publish(topic.replace("*", "x"), b"1")
            assert one.data() == two.data() == [b"1"]
            bus.forget(one)
            bus.forget(two)


async def test_one_who_is_slower_than_the_publishers_goes_on():
    """More is published each time than it was sent, for many pages: it gets all of it, and is live in the end."""
    async with memory() as bus:
        start = await bus.publish("t", b"0")
        await bus.publish("t", b"1")
        got: list[int] = []

        async def replay(page: list[Publication]) -> None:
            got.extend(publication.offset for publication in page)
            if len(got) < 300:
                await bus.publish("t", b"more")

        ear = Ear()
        await bus.subscribe(ear, "t", start, begin=quiet, replay=replay)
        assert got == list(range(2, got[-1] + 1))
        assert bus.hub.has(ear, "t")
        bus.forget(ear)


async def test_an_engine_that_has_not_what_it_delivered_is_an_error():
    """Its pages stay empty though it stands further on: in the end that is said, instead of asking for ever."""

    class Empty(MemoryBroker):
        async def history(self, topic: str, since: Position | None, limit: int = 1) -> HistoryPage:
            return HistoryPage([], self.position(topic), complete=True)

    async with open_bus(Empty(), send, Encode()) as bus:
        start = await bus.publish("t", b"0")
        await bus.publish("t", b"1")
        with pytest.raises(BrokerError, match="has not what it says"):
            await bus.subscribe(Ear(), "t", start, begin=quiet, replay=quiet)
        assert len(bus.hub) == 0


# --------------------------------------------------------------------------------- limits


async def test_subscriptions_on_their_way_count():
    """However fast they come, nobody has more topics than allowed."""
    async with gated(max_topics=3) as (cluster, _, (bus, _)), trio.open_nursery() as nursery:
        ear = Ear()
        for topic in "abc":
            nursery.start_soon(join, bus, ear, topic)
        await wait_all_tasks_blocked()
        with pytest.raises(TopicError, match="more than 3 topics"):
            await join(bus, ear, "d")
        await flow(cluster)
        with pytest.raises(TopicError, match="more than 3 topics"):
            await join(bus, ear, "d")
        assert sorted(bus.forget(ear)) == ["a", "b", "c"]


async def test_twice_is_an_error():
    """Subscribed, or about to be."""
    async with gated() as (cluster, _, (bus, _)), trio.open_nursery() as nursery:
        ear = Ear()
        nursery.start_soon(join, bus, ear)
        await wait_all_tasks_blocked()
        with pytest.raises(TopicError, match="subscribed to 't' already"):
            await join(bus, ear)
        await flow(cluster)
        with pytest.raises(TopicError, match="subscribed to 't' already"):
            await join(bus, ear)
        with pytest.raises(TopicError):
            await join(bus, ear, "no name")


# ------------------------------------------------------------------------------ the rest


async def test_the_publisher_may_be_left_out():
    """It is excluded by name and by pattern, alone, once; what it published it finds in the history."""
    async with memory() as bus:
        me, other, mine = Ear(), Ear(), Ear()
        await join(bus, me, "a/b")
        await join(bus, other, "a/b")
        await join(bus, mine, "a/*")
        start = bus.broker.position("a/b")
        await bus.publish("a/b", b"1", exclude=me)
        await bus.publish("a/b", b"2")
        await bus.publish("a/b", b"3", exclude=mine)
        assert (me.data(), other.data(), mine.data()) == ([b"2", b"3"], [b"1", b"2", b"3"], [b"1", b"2"])
        await bus.publish("a/b", b"4", exclude=Ear())
        assert set(bus._excluded.values()) == {me, mine}  # not who has subscribed to nothing
        await bus.publish("elsewhere", b"", exclude=me)
        for ear in (me, other, mine):
            bus.forget(ear)
        assert bus._excluded == bus._origins == {}
        assert (await join(bus, me, "a/b", start)).recovered
        assert me.data()[-4:] == [b"1", b"2", b"3", b"4"]
        bus.forget(me)


async def test_a_failed_publication_is_counted_and_nothing_is_kept():
    """The error is the broker's."""
    async with gated() as (_, (node, _), (bus, _)):
        node.cut()
        with pytest.raises(BrokerDown):
            await bus.publish("t", b"", exclude="x")
        assert bus.statistics().publish_failures == 1
        assert bus._excluded == {}


async def test_presence_needs_a_subscription():
    """Who has not subscribed, or has gone, is nobody's member; who unsubscribes leaves."""
    async with memory() as bus:
        ear = Ear()
        with pytest.raises(TopicError, match="not subscribed"):
            await bus.enter(ear, "t", "ann")
        await join(bus, ear)
        assert await bus.enter(ear, "t", "ann", b"i")
        assert ear.got == [("t", "join", "ann", b"i")]
        assert await bus.members("t") == {"ann": b"i"}
        bus.forget(ear)
        with pytest.raises(TopicError, match="not subscribed"):
            await bus.enter(ear, "t", "ann")
        assert len(bus.attendance) == 0


async def test_the_start_fails_with_the_brokers_own_error():
    """`running` raises `BrokerDown`, not a group with one in it."""

    class Away(MemoryBroker):
        @asynccontextmanager
        async def running(self, receiver: Receiver) -> AsyncIterator[None]:
            raise BrokerDown("away")
            yield

    with pytest.raises(BrokerDown, match="away"):
        async with open_bus(Away(), send, Encode()):
            pass


async def test_its_end_hands_its_members_over_even_if_it_is_cancelled():
    """The broker hears of it before it is left."""
    heard: list[tuple[str, str, str]] = []

    class Listens(MemoryBroker):
        async def refresh(self, entries: Any, ttl: float) -> Any:
            heard.extend(entries)
            await trio.lowlevel.checkpoint()
            assert ttl == 2.0
            return await super().refresh(entries, ttl)

    with trio.CancelScope() as scope:
        async with open_bus(Listens(), send, Encode(), linger=2.0) as bus:
            await join(bus, ear := Ear())
            await bus.enter(ear, "t", "ann")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert [entry[:2] for entry in heard] == [("t", "ann")]


async def test_a_loop_that_publishes_lets_others_run():
    """The memory broker never waits, and yet others have their turn."""
    async with memory() as bus, trio.open_nursery() as nursery:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        for _ in range(20):
            await bus.publish("t", b"")
        assert turns >= 10
        nursery.cancel_scope.cancel()


async def test_a_cancelled_subscription_leaves_nothing_at_any_await():
    """Cancelled at each step of joining in turn."""
    for steps in range(8):
        async with gated() as (cluster, (node, _), (bus, _)):
            peer = Peer("t")
            peer.position = cluster.store.position("t")
            cluster.publish("t", b"1")
            async with trio.open_nursery() as nursery:
                line = peer.line = Line(peer, bus, cluster.gate)
                nursery.start_soon(line.run)
                await wait_all_tasks_blocked()
                for _ in range(steps):
                    cluster.open_gate(0)
                    await wait_all_tasks_blocked()
                line.scope.cancel()
                await flow(cluster)
            bus.forget(line)
            assert (bus._places, bus._pending, node.topics, len(bus.hub)) == ({}, {}, {}, 0)
