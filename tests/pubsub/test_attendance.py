"""Presence as one process keeps it: debounced, refreshed, handed over; on Trio's mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trionet.errors import BrokerDown, BrokerError
from trionet.pubsub.attendance import TTL, Attendance
from trionet.pubsub.broker import BrokerState
from trionet.pubsub.brokers import memory
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.store import Store


class Ears:
    """A receiver that notes who comes and goes."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def presence(self, topic: str, event: str, member: str, info: bytes) -> None:
        self.events.append((event, member))


class Frail(MemoryBroker):
    """A memory broker that can be down, and can forget everything as an engine that was killed does."""

    fails: BrokerError | None = None
    reconnects = 0
    calls = 0
    hold: trio.Event | None = None  # what `enter` waits for

    @property
    def state(self) -> BrokerState:
        return BrokerState(up=self.fails is None, since=0.0, reconnects=self.reconnects)

    async def enter(self, *args: object) -> bool:
        await self._check()
        if self.hold is not None:
            await self.hold.wait()
        return await super().enter(*args)

    async def leave(self, *args: object) -> bool:
        await self._check()
        return await super().leave(*args)

    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        await self._check()
        return await super().refresh(entries, ttl)

    async def _check(self) -> None:
        self.calls += 1
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails

    def lose_all(self) -> None:
        self.store = Store("new", self._topics.__contains__)
        self.reconnects += 1


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> trio.testing.MockClock:
    """Trio's clock, jumping, and the wall's goes with it."""
    monkeypatch.setattr(memory, "wall_clock", lambda: 1000.0 + trio.current_time())
    return autojump_clock


@asynccontextmanager
async def present(*lingers: float) -> AsyncIterator[tuple[Frail, Ears, list[Attendance]]]:
    """One broker, who hears of topic t, and some processes' attendances."""
    broker, ears = Frail(), Ears()
    async with broker.running(ears), trio.open_nursery() as nursery:
        await broker.subscribe(["t"])
        attendances = [Attendance(broker, f"n{number}", linger) for number, linger in enumerate(lingers)]
        for attendance in attendances:
            nursery.start_soon(attendance.run)
        yield broker, ears, attendances
        nursery.cancel_scope.cancel()


async def test_who_comes_back_in_time_has_not_left(clock):
    """A connection that was lost is waited for, in whichever process it comes back; then it has left."""
    async with present(5.0, 5.0) as (broker, ears, (here, there)):
        assert await here.enter("s1", "t", "ann", b"")
        here.forget("s1")
        await trio.sleep(4.0)
        assert not await there.enter("s2", "t", "ann", b"")
        await trio.sleep(TTL)
        assert ears.events == [("join", "ann")]
        there.forget("s2")
        await trio.sleep(4.0)
        assert ears.events == [("join", "ann")]
        await trio.sleep(2.0)
        assert ears.events == [("join", "ann"), ("leave", "ann")]
        assert broker.store.owners == len(here._leaving) == len(there._leaving) == len(there._owners) == 0


async def test_who_unsubscribes_leaves_at_once(clock):
    """Nobody waits for who says that it goes; its other topics are not touched."""
    async with present(60.0) as (broker, ears, (here,)):
        await here.enter("s1", "t", "ann", b"")
        await here.enter("s1", "u", "ann", b"")
        here.leave("s1", "t")
        here.leave("s1", "nothing")
        here.leave("nobody", "t")
        await trio.sleep(1.0)
        assert ears.events == [("join", "ann"), ("leave", "ann")]
        assert await broker.members("u") == {"ann": b""}
        assert len(here) == 1
        here.leave("s1", "u")
        assert (len(here), here._owners) == (0, {})


async def test_entering_again_is_no_second_owner(clock):
    """The same member: nothing new. Another: the former leaves, behind it."""
    async with present(60.0) as (broker, ears, (here,)):
        await here.enter("s1", "t", "ann", b"1")
        assert not await here.enter("s1", "t", "ann", b"1")
        assert broker.store.owners == 1
        assert not await here.enter("s1", "t", "ann", b"2")
        await trio.sleep(1.0)
        assert broker.store.owners == 1
        assert await here.enter("s1", "t", "bob", b"")
        await trio.sleep(1.0)
        assert ears.events == [("join", "ann"), ("join", "bob"), ("leave", "ann")]


async def test_who_goes_while_entering_does_not_stay(clock):
    """Forgotten while the broker was asked, with no time to come back: its leave comes behind the join."""
    async with present(0.0) as (broker, ears, (here,)):
        broker.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.enter, "s1", "t", "ann", b"")
            await trio.testing.wait_all_tasks_blocked()
            here.forget("s1")
            await trio.sleep(2.0)  # the leave came before the join
            broker.hold.set()
        await trio.sleep(2.0)
        assert ears.events == [("join", "ann"), ("leave", "ann")]
        assert (broker.store.owners, here._leaving) == (0, {})


async def test_owners_are_kept_alive_and_entered_again(clock):
    """Far beyond their time they are there; an engine that lost its past has them again once it is back."""
    async with present(5.0) as (broker, ears, (here,)):
        await here.enter("s1", "t", "ann", b"i")
        await trio.sleep(5 * TTL)
        assert ears.events == [("join", "ann")]
        broker.lose_all()
        await trio.sleep(1.0)
        assert await broker.members("t") == {"ann": b"i"}


async def test_a_process_that_was_killed_takes_its_members_with_it(clock):
    """Nobody refreshes them, so they leave when their time is over."""
    async with present(5.0) as (broker, ears, (here,)):
        await broker.enter("t", "bob", "dead.1", b"", TTL)
        await here.enter("s1", "t", "ann", b"")
        await trio.sleep(TTL + 2.0)
        assert ears.events == [("join", "bob"), ("join", "ann"), ("leave", "bob")]


async def test_a_process_that_ends_hands_its_members_over(clock):
    """Who comes back elsewhere within `linger` has not left; the others leave then, without any process's doing."""
    async with present(5.0, 5.0) as (broker, ears, (here, there)):
        for name in ("ann", "bob"):
            await here.enter(name, "t", name, b"")
        await here.enter("gone", "t", "eve", b"")
        here.leave("gone", "t")
        await here.hand_over()
        assert (len(here), here._leaving) == (0, {})
        await trio.sleep(3.0)
        await there.enter("ann again", "t", "ann", b"")
        await trio.sleep(5.0)
        assert ears.events == [("join", n) for n in ("ann", "bob", "eve")] + [
            ("leave", "eve"),
            ("leave", "bob"),
        ]
        assert await broker.members("t") == {"ann": b""}


async def test_while_the_broker_is_down_everything_is_tried_again(clock):
    """What could not be told is told later; who entered while it was down is there when it is up."""
    async with present(1.0) as (broker, ears, (here,)):
        await here.enter("s1", "t", "ann", b"")
        broker.fails = BrokerDown("away")
        with pytest.raises(BrokerDown):
            await here.enter("s2", "t", "bob", b"")
        here.forget("s1")
        await trio.sleep(12.0)
        broker.fails = None
        broker.reconnects += 1
        await trio.sleep(2.0)
        assert ears.events == [("join", "ann"), ("leave", "ann"), ("join", "bob")]


async def test_what_the_broker_never_takes_is_given_up(clock):
    """A leave that is refused for ever neither stops the others from being refreshed, nor is kept."""
    async with present(1.0) as (broker, ears, (here,)):
        await here.enter("s1", "t", "ann", b"")
        await here.enter("s2", "t", "bob", b"")
        refuse = broker.leave

        async def leave(topic: str, member: str, owner: str) -> bool:
            if member == "ann":
                raise BrokerError("no")
            return await refuse(topic, member, owner)

        broker.leave = leave
        here.forget("s1")
        await trio.sleep(3 * TTL)
        assert here._leaving == {}
        assert ears.events == [("join", "ann"), ("join", "bob"), ("leave", "ann")]  # it has expired


async def test_thousands_are_refreshed_by_few_calls(clock):
    """15,000 members cost a call for 500 of them each ten seconds; those that leave together, one each."""
    async with present(1.0) as (broker, _, (here,)):
        for number in range(1500):
            await here.enter(number, "t", f"m{number}", b"")
        await trio.sleep(1.0)
        broker.calls = 0
        await trio.sleep(TTL)
        assert broker.calls <= 4 * 3
        for number in range(1500):
            here.forget(number)
        await trio.sleep(3.0)
        assert broker.store.owners == 0
