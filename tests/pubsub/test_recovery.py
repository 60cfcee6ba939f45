"""The claim of the bus, under random schedules: who recovers sees each publication once, in order, without a gap.

Hypothesis makes the schedules: publications; connections that break at any moment, also while they are joining, and
come back to either of two processes; links of processes that break; an engine that loses its past. On an engine whose
every delay is decided (`cluster`), and on real ones.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio
from cluster import Cluster
from engines import Engine, unique
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import Encode, Line, Peer, send

from trionet.errors import BrokerDown
from trionet.pubsub.bus import Bus, open_bus
from trionet.pubsub.publication import Publication
from trionet.pubsub.topics import HistoryLimits, TopicOptions

TOPIC = "news"


class Play:
    """One schedule on a `Cluster`: each byte of a script is a step."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.cluster = Cluster(3)
        self.buses: list[Bus[Line, object]] = []
        for _ in range(2):
            bus: Bus[Line, object] = Bus(self.cluster.node(), send, Encode(), slice=1, max_behind=2)
            self.buses.append(bus)
        self.peers = [Peer(TOPIC) for _ in range(4)]
        self.published = 0

    def step(self, code: int) -> None:
        """Do one thing."""
        action, number = code % 16, code // 16
        peer = self.peers[number % 4]
        node = self.buses[number % 2].broker
        if action < 3:
            self.published += 1
            self.cluster.publish(TOPIC, b"%d" % self.published)
        elif action < 5:
            node.pump(1 + number // 4)
        elif action < 9:
            self.cluster.open_gate(number)
        elif action < 12:
            if peer.line is None:
                peer.line = Line(peer, self.buses[number // 4 % 2], self.cluster.gate)
                self.nursery.start_soon(peer.line.run)
            else:
                self.cluster.open_gate(number)
        elif action < 14:
            if peer.line is not None:
                peer.line.close(cancel=number >= 8)
                peer.lose(number // 4 % 2)
        elif action == 14:
            if number < 5:
                node.cut()
            else:
                node.reconnect()
        elif number == 15:
            self.cluster.forget()
        elif peer.line is not None and not peer.line.bus.unsubscribe(peer.line, peer.topic):
            peer.line.close()

    async def settle(self) -> None:
        """Let everything come to an end: all are connected, and have what there is."""
        for _ in range(20):
            for bus in self.buses:
                bus.broker.reconnect()
            for peer in self.peers:
                if peer.line is not None and not peer.line.bus.has(peer.line, peer.topic):
                    peer.line.close()
                if peer.line is None and peer.position is not None:
                    peer.line = Line(peer, self.buses[0], self.cluster.gate)
                    self.nursery.start_soon(peer.line.run)
            await rounds(2)
            idle = not any(bus.statistics().joining for bus in self.buses)
            while self.cluster.gates:
                self.cluster.open_gate(0)
            for bus in self.buses:
                bus.broker.pump(1000)
            if idle and all(peer.line is not None or peer.position is None for peer in self.peers):
                await rounds(30)  # for the last of the fan-out
                return
        raise AssertionError("it does not come to rest")

    def check(self) -> None:
        """Everybody has everything; and when they have gone, nothing is left."""
        for peer in self.peers:
            truth = self.cluster.truth
            peer.check(truth)
            if peer.position is not None:
                assert peer.position == self.cluster.store.position(peer.topic)
                if truth and isinstance(peer.seen[-1], type(truth[-1])):
                    assert peer.seen[-1] == truth[-1]
        for peer in self.peers:
            if peer.line is not None:
                peer.line.close()
        for bus in self.buses:
            assert_empty(bus)
            assert bus.broker.topics == {}


def assert_empty(bus: Bus[Line, object]) -> None:
    """Nobody is subscribed or joining: nothing is kept of those who were."""
    assert (bus._places, bus._pending, len(bus.hub), bus.hub._of) == ({}, {}, 0, {})
    statistics = bus.statistics()
    assert (statistics.attached, statistics.joining, bus.hub.statistics().behind) == (0, 0, 0)


async def rounds(count: int = 4) -> None:
    """Let the others run until they wait for the test."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def play(script: bytes) -> None:
    """Run one schedule."""
    async with trio.open_nursery() as nursery:
        case = Play(nursery)
        for bus in case.buses:
            nursery.start_soon(bus.hub.run)
            bus.broker.receiver = bus
        await rounds(1)
        for code in script:
            case.step(code)
            await rounds(2)
        await case.settle()
        case.check()
        nursery.cancel_scope.cancel()


@settings(max_examples=max(120, settings.default.max_examples))
@given(st.binary(min_size=40, max_size=80))
def test_clients_of_two_processes_miss_nothing_and_see_nothing_twice(script):
    """Whatever breaks and whenever: each publication once, in order; a gap is told exactly where there is one."""
    trio.run(play, script)


# --------------------------------------------------------------------- real engines

KEPT = 4
AT_ONCE = 8  # schedules that share two processes' worth of connections


class Story:
    """One schedule on a topic of its own: `script` says what happens, real time and real servers when."""

    def __init__(self, buses: list[Bus[Line, object]], script: bytes) -> None:
        self.buses = buses
        self.script = script
        self.topic = unique("story")
        self.peers = [Peer(self.topic) for _ in range(3)]
        self.truth: dict[int, Publication] = {}
        self.chance = random.Random(script)
        self.serial = 0

    async def publish(self, bus: Bus[Line, object]) -> None:
        """As a publisher that wants it to be there once."""
        self.serial += 1
        data = b"%d" % self.serial
        while True:
            try:
                position = await bus.publish(self.topic, data, key=str(data))
            except BrokerDown:
                await trio.sleep(0.01)
            else:
                assert position.offset not in self.truth
                self.truth[position.offset] = Publication(self.topic, data, *position)
                return

    async def pause(self) -> None:
        """A peer that is slow now and then."""
        if self.chance.random() < 0.5:
            await trio.sleep(self.chance.random() * 0.003)
        else:
            await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Do all of it; then everybody comes back, and must have everything."""
        async with trio.open_nursery() as nursery:
            for code in self.script:
                action, number = code % 8, code // 8
                peer = self.peers[number % 3]
                bus = self.buses[number % 2]
                if action < 3:
                    nursery.start_soon(self.publish, bus)
                elif action < 5:
                    if peer.line is None:
                        self.connect(nursery, peer, bus)
                elif action < 6:
                    if peer.line is not None:
                        peer.line.close(cancel=number >= 16)
                        peer.lose(number // 4 % 3)
                elif action < 7:
                    await self.pause()
                else:
                    await self.publish(bus)
        await self.publish(self.buses[0])
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                while not all(self.is_level(peer) for peer in self.peers):
                    for number, peer in enumerate(self.peers):
                        if peer.line is None:
                            self.connect(nursery, peer, self.buses[number % 2])
                    await trio.sleep(0.002)
        for peer in self.peers:
            self.check(peer)
            assert peer.line is not None
            peer.line.close()

    def connect(self, nursery: trio.Nursery, peer: Peer, bus: Bus[Line, object]) -> None:
        """It comes (back)."""
        peer.line = Line(peer, bus, self.pause)
        nursery.start_soon(peer.line.run)

    def is_level(self, peer: Peer) -> bool:
        """Whether it has the last there is."""
        return peer.position is not None and peer.position.offset == max(self.truth)

    def check(self, peer: Peer) -> None:
        """It saw what was published."""
        for item in peer.seen:
            if isinstance(item, Publication):
                assert item.data == self.truth[item.offset].data


async def tell(engine: Engine, scripts: list[bytes], cuts: int) -> None:
    """Run some schedules at once; break all connections `cuts` times meanwhile."""
    rules = {"*": TopicOptions(history=HistoryLimits(count=KEPT))}
    async with AsyncExitStack() as stack:
        buses: list[Bus[Line, object]] = [
            await stack.enter_async_context(
                open_bus(engine.broker(rules=rules), send, Encode(), slice=2, linger=0.0)
            )
            for _ in range(2 if engine.shared else 1)
        ]
        stories = [Story([buses[0], buses[-1]], script) for script in scripts]
        async with trio.open_nursery() as nursery:
            for story in stories:
                nursery.start_soon(story.run)
            for _ in range(cuts):
                await trio.sleep(0.01)
                await engine.cut()
        for bus in buses:
            assert_empty(bus)


@settings(
    max_examples=max(5, settings.default.max_examples // 40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.binary(min_size=30, max_size=60), min_size=AT_ONCE, max_size=AT_ONCE), st.integers(0, 9))
def test_they_miss_nothing_on_a_real_engine_either(engine, scripts, cuts):
    """The same with real servers, real time, and connections to the engine that break."""
    if not engine.broker().keeps_history:
        pytest.skip(f"{engine.name} keeps no history")
    trio.run(tell, engine, scripts, max(0, cuts - 7) if engine.hurtable else 0)
