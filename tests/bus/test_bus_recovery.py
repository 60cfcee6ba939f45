"""Nobody misses anything: connections that break, clients that read slowly, a broker that goes away."""

from __future__ import annotations

import contextlib
import tempfile

import pytest
import trio
from bus_peer import RULES, Desk, serving, until

import trionet
from trionet.bus import commands
from trionet.errors import BrokerDown
from trionet.pubsub.broker import open_broker
from trionet.pubsub.brokers.local.server import listen_local, serve_local_broker


def position(message, offset=None):
    """The position that a `subscribed` begins at, or another one of its epoch."""
    return {"epoch": message["epoch"], "offset": message["offset"] if offset is None else offset}


async def test_recovery_over_a_killed_connection():
    """Who comes back with its position gets what it missed, in order, marked as late; then what is live."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "news")
        await at.handler.publish("news", 1)
        assert (await ada.next())["offset"] == 1
        await ada.kill()
        for n in (2, 3):
            await at.handler.publish("news", n)
        ada = await at.join("ada")
        again = await ada.ask("subscribe", "news", since=position(begun, 1))
        assert again["recovered"] is True
        assert again["offset"] == 1
        await at.handler.publish("news", 4)
        seen = [await ada.next() for _ in range(3)]
        assert [(each["data"], each["offset"], each.get("replay")) for each in seen] == [
            (2, 2, True),
            (3, 3, True),
            (4, 4, None),
        ]
        await ada.quiet()


async def test_nothing_was_missed():
    """Who comes back to a topic where nothing happened is told so, and gets nothing."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "news")
        await ada.ask("unsubscribe", "news")
        assert (await ada.ask("subscribe", "news", since=position(begun)))["recovered"] is True
        await ada.quiet()


@pytest.mark.parametrize(
    "since", [{"epoch": "another", "offset": 1}, {"epoch": None, "offset": 1}, {"epoch": None, "offset": 99}]
)
async def test_what_cannot_be_recovered(since):
    """Another epoch, more than is kept, or a position that never was: told so, it goes on from now."""
    async with serving() as at:
        ada = await at.join("ada")
        epoch = (await at.handler.publish("short:1", 1)).epoch
        for n in range(2, 8):
            await at.handler.publish("short:1", n)
        begun = await ada.ask("subscribe", "short:1", since=since | {"epoch": since["epoch"] or epoch})
        assert (begun["recovered"], begun["offset"]) == (False, 7)
        await at.handler.publish("short:1", 8)
        assert (await ada.next())["data"] == 8


async def test_recovery_can_be_declined():
    """With `recover` false it begins now."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await at.handler.publish("news", 1)
        since = {"epoch": begun.epoch, "offset": 0}
        assert (await ada.ask("subscribe", "news", since=since, recover=False))["recovered"] is None
        await ada.quiet()


async def test_a_long_replay_waits_for_its_reader():
    """Much more than the queue holds is sent as fast as it is read, with room for what else is published."""
    async with serving() as at:
        page = "x" * 20_000
        begun = await at.handler.publish("long:1", 0)
        for _ in range(400):
            await at.handler.publish("long:1", page)
        ada = await at.join("ada", read_ahead=4096)
        await ada.ask("subscribe", "news")
        await ada.say("subscribe", id=77, topic="long:1", since=begun._asdict())
        await until(lambda: any(each._out is not None for each in at.server.websockets))
        for n in range(5):
            await at.handler.publish("news", n)
        assert (await ada.answer(77))["recovered"] is True
        seen = [await ada.next() for _ in range(405)]
        assert [each["offset"] for each in seen if each["topic"] == "long:1"] == list(range(2, 402))
        assert [each["data"] for each in seen if each["topic"] == "news"] == list(range(5))
        await ada.quiet()


async def test_a_slow_consumer_is_closed_and_recovers():
    """Who does not read is sent away with 1013, comes back, and has missed nothing."""
    async with serving() as at:
        ada = await at.join("ada", read_ahead=4096)
        begun = await ada.ask("subscribe", "long:1")
        count = 0
        while not at.protocol.messages_dropped:
            await at.handler.publish("long:1", "x" * 50_000)
            count += 1
            await trio.lowlevel.checkpoint()
            assert count < 1000
        assert (await ada.ended()).code == 1013
        last = ada.kept[-1]["offset"]
        assert [each["offset"] for each in ada.kept] == list(range(1, last + 1))
        assert last < count
        ada = await at.join("ada")
        assert (await ada.ask("subscribe", "long:1", since=position(begun, last)))["recovered"] is True
        assert [(await ada.next())["offset"] for _ in range(count - last)] == list(range(last + 1, count + 1))


async def test_a_slow_reader_of_a_conflated_topic():
    """It gets the newest of each tag and skips what that made superfluous, in order, and is not sent away."""
    async with serving() as at:
        ada = await at.join("ada", read_ahead=4096)
        await ada.ask("subscribe", "price:1")
        await ada.ask("subscribe", "price:2")
        for n in range(400):
            await at.handler.publish(f"price:{n % 2 + 1}", [n, "x" * 50_000], tag="ab"[n // 2 % 2])
        seen = {}
        while set(seen.values()) != {396, 397, 398, 399}:
            message = await ada.next()
            seen[message["topic"], message["tag"]] = message["data"][0]
        assert len(seen) == 4
        await ada.quiet()


async def test_a_slow_reader_of_both_kinds():
    """Where some topics are conflated, overtaken by one that is not, a reader is sent away to come back."""
    async with serving() as at:
        ada = await at.join("ada", read_ahead=4096)
        await ada.ask("subscribe", "news")
        while not at.protocol.messages_dropped:
            await at.handler.publish("news", "x" * 50_000)
        assert (await ada.ended()).code == 1013


class Away:
    """A local broker, served in this process, that can go away and come back without its past."""

    def __init__(self, nursery, path):
        self.nursery = nursery
        self.path = path
        self.url = f"local:{path}"
        self.scope = trio.CancelScope()

    async def come(self):
        """Serve."""
        self.scope = trio.CancelScope()
        listener = listen_local(self.path)

        async def run():
            with listener, self.scope:
                await serve_local_broker(listener)

        self.nursery.start_soon(run)

    def go(self):
        """Stop, and forget everything."""
        self.scope.cancel()


@contextlib.asynccontextmanager
async def away():
    """Return an `Away` that is there."""
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        async with trio.open_nursery() as nursery:
            broker = Away(nursery, f"{folder}/broker")
            await broker.come()
            yield broker
            nursery.cancel_scope.cancel()


async def test_the_broker_goes_away_and_comes_back():
    """Connections stay up; requests say that they may be tried again; who had subscribed is told what is lost."""
    async with away() as broker, serving(Desk(broker.url, rules=RULES)) as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "room:1")
        await at.handler.publish("room:1", 1)
        assert (await ada.next("message"))["data"] == 1
        broker.go()
        await until(lambda: not at.bus.broker.state.up)
        for kind, topic, fields in (
            ("subscribe", "news", {}),
            ("publish", "room:1", {"data": 1}),
            ("history", "room:1", {}),
            ("presence", "room:1", {}),
        ):
            answer = await ada.ask(kind, topic, **fields)
            assert (answer["type"], answer["code"], answer["retry"]) == ("error", "unavailable", True), kind
            assert broker.path not in answer["text"]
        await ada.say("ping")
        assert (await ada.next())["type"] == "pong"
        await broker.come()
        await until(lambda: at.bus.broker.state.up)
        reset = await ada.next("reset")
        assert reset["epoch"] != begun["epoch"]
        await at.handler.publish("room:1", 2)
        message = await ada.next("message")
        assert (message["data"], message["offset"]) == (2, reset["offset"] + 1)


async def test_publishing_waits_for_the_broker_only_so_long(monkeypatch):
    """Where publishers wait for an engine that is away, a client's other requests get their turn nevertheless."""
    monkeypatch.setattr(commands, "PATIENCE", 0.05)
    async with away() as broker:
        waiting = open_broker(broker.url, rules=RULES, when_down="queue")
        async with serving(Desk(waiting)) as at:
            ada = await at.join("ada")
            broker.go()
            await until(lambda: not at.bus.broker.state.up)
            assert (await ada.ask("publish", "news", data=1))["code"] == "unavailable"
            await ada.quiet()


async def test_no_broker_at_the_start():
    """A server that cannot reach its broker does not start, and says in one sentence why."""
    with pytest.raises(BrokerDown, match="no local broker at /nowhere"):
        async with serving(Desk("local:/nowhere/broker")):
            pytest.fail("it has started")


async def test_two_processes_are_one_bus():
    """Messages, presence, and orders to let a user go reach the clients of all handlers at the same broker."""
    async with (
        away() as broker,
        serving(Desk(broker.url, rules=RULES)) as one,
        serving(Desk(broker.url, rules=RULES)) as two,
    ):
        ada, bob = await one.join("ada"), await two.join("bob")
        assert ada.hello["session"] != bob.hello["session"]
        for peer in (ada, bob):
            await peer.ask("subscribe", "room:1")
        await bob.ask("publish", "room:1", data=1, echo=False)
        assert (await ada.next("message"))["data"] == 1
        found = await ada.ask("presence", "room:1")
        assert {each["member"] for each in found["members"]} == {"ada", "bob"}
        await two.handler.unsubscribe_user("ada", "room:1")
        assert (await ada.next("unsubscribed"))["code"] == "forbidden"
        await two.handler.disconnect("ada", 4401, "logged out")
        assert (await ada.ended()).code == 4401
        await bob.ask("publish", "room:1", data=2)
        assert [(await bob.next("message"))["data"]] == [2]


async def test_a_subscription_on_its_way_is_ended():
    """Who is thrown off a topic while being sent what it missed gets no more of it."""
    async with serving() as at:
        begun = await at.handler.publish("long:1", 0)
        for _ in range(400):
            await at.handler.publish("long:1", "x" * 20_000)
        ada = await at.join("ada", read_ahead=4096)
        await ada.say("subscribe", id=1, topic="long:1", since=begun._asdict())
        await until(lambda: any(each._out is not None for each in at.server.websockets))
        await at.handler.unsubscribe_user("ada", "long:1")
        assert (await ada.next("unsubscribed"))["code"] == "forbidden"
        await ada.quiet()
        assert not at.bus.has(at.server.websockets and next(iter(at.server.websockets)), "long:1")


async def test_clients_that_leave_while_they_catch_up():
    """Nothing is left of a subscription whose client went away in the middle."""
    async with serving() as at:
        begun = await at.handler.publish("long:1", 0)
        for _ in range(400):
            await at.handler.publish("long:1", "x" * 20_000)
        ada = await at.join("ada", read_ahead=4096)
        await ada.say("subscribe", id=1, topic="long:1", since=begun._asdict())
        await until(lambda: any(each._out is not None for each in at.server.websockets))
        await ada.kill()
        await until(lambda: not list(at.server.websockets))
        await until(lambda: not at.bus._places)
        assert not len(at.bus.hub)


async def test_a_server_that_drains():
    """Clients are sent away with a code that says to come back."""
    async with serving() as at:
        ada = await at.join("ada")
        await ada.ask("subscribe", "news")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.server.drain)
            assert (await ada.ended()).code == trionet.CloseCode.GOING_AWAY
