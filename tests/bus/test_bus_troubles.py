"""What goes wrong in the middle: brokers that fail at a bad moment, clients that ask for more than they read."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from bus_peer import RULES, Desk, serving, until

from trionet.bus import BusHandler, commands
from trionet.errors import BrokerDown, BrokerError, TopicError
from trionet.pubsub.broker import PAGE
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.publication import NOWHERE, HistoryPage


class Troubled(MemoryBroker):
    """Real engines do these things rarely, and not when asked to: somebody publishes while history is read."""

    second = None  # what the second call of `history` does: an error, or an answer
    calls = 0
    hold = None  # an event for which `subscribe` waits
    refuses = None  # what `publish` and `enter` raise

    async def history(self, topic, since, limit=PAGE):
        self.calls += 1
        if self.calls == 2 and isinstance(self.second, Exception):
            raise self.second
        if self.calls == 2 and self.second is not None:
            return self.second
        page = await super().history(topic, since, limit)
        await super().publish(topic, b'"meanwhile"')
        return page

    async def subscribe(self, topics):
        await super().subscribe(topics)
        if self.hold is not None:
            await self.hold.wait()

    async def publish(self, topic, data, **options):
        if self.refuses is not None:
            raise self.refuses
        return await super().publish(topic, data, **options)

    async def enter(self, topic, member, owner, info, ttl):
        if self.refuses is not None:
            raise self.refuses
        return await super().enter(topic, member, owner, info, ttl)


async def joining(at, user="ada"):
    """Have a client subscribe to a topic of which it has missed something; returns it, and the answer."""
    position = await at.handler.publish("news", 1)
    peer = await at.join(user)
    return peer, await peer.ask("subscribe", "news", since={"epoch": position.epoch, "offset": 0})


async def test_the_broker_goes_while_a_client_catches_up():
    """The subscription that had begun is ended, and the client told to subscribe again."""
    broker = Troubled()
    broker.second = BrokerDown("gone")
    async with serving(Desk(broker)) as at:
        ada, begun = await joining(at)
        assert begun["recovered"] is True
        assert (await ada.next())["data"] == 1
        ended = await ada.next()
        assert (ended["type"], ended["topic"], ended["code"], ended["retry"]) == (
            "unsubscribed",
            "news",
            "unavailable",
            True,
        )
        again = await ada.ask("subscribe", "news", since={"epoch": begun["epoch"], "offset": 1})
        assert again["recovered"] is True
        assert (await ada.next("message"))["data"] == "meanwhile"


async def test_more_is_published_than_is_kept_while_a_client_catches_up():
    """It is told where it goes on, and that something is missing."""
    broker = Troubled()
    broker.second = HistoryPage([], NOWHERE, complete=False)
    async with serving(Desk(broker)) as at:
        ada, begun = await joining(at)
        assert (await ada.next())["data"] == 1
        reset = await ada.next()
        assert reset == {"type": "reset", "topic": "news", "epoch": begun["epoch"], "offset": 2}
        await at.handler.publish("news", 3)
        assert (await ada.next())["offset"] == 3


async def test_a_subscription_is_ended_before_it_begins():
    """Who is thrown off a topic while the broker is asked for it does not get it."""
    broker = Troubled()
    async with serving(Desk(broker)) as at:
        ada = await at.join("ada")
        broker.hold = trio.Event()
        await ada.say("subscribe", id=7, topic="news")
        await until(lambda: at.bus.statistics().joining)
        await at.handler.unsubscribe_user("ada", "news")
        broker.hold.set()
        assert (await ada.answer(7))["code"] == "forbidden"
        assert at.bus.statistics().attached == 0


async def test_presence_cannot_be_noted(caplog):
    """That is no reason not to be subscribed: it is noted as soon as the broker can."""
    broker = Troubled(rules=RULES)
    async with serving(Desk(broker)) as at:
        broker.refuses = BrokerDown("gone")
        ada = await at.join("ada")
        assert (await ada.ask("subscribe", "room:1"))["type"] == "subscribed"
        await ada.quiet()
        assert len(at.bus.attendance) == 1
        broker.refuses = None


async def test_a_broker_that_refuses(caplog):
    """Its words are for the log; they may name hosts, which are no client's business."""
    broker = Troubled()
    async with serving(Desk(broker)) as at:
        ada = await at.join("ada")
        broker.refuses = BrokerError("db7.internal is out of memory")
        answer = await ada.ask("publish", "news", data=1)
        assert (answer["code"], answer["retry"]) == ("unavailable", True)
        assert "db7" not in str(answer)
        assert "db7" in caplog.text
        broker.refuses = TopicError("no dots, please")
        assert (await ada.ask("publish", "a.b", data=1))["code"] == "bad-topic"
        broker.refuses = None


async def test_a_broker_without_history():
    """Where the rules ask for more than the broker has, clients are told that there is none."""
    broker = Troubled()
    broker.calls, broker.second = 1, HistoryPage([], NOWHERE, complete=False)
    async with serving(Desk(broker)) as at:
        ada = await at.join("ada")
        assert (await ada.ask("history", "news"))["code"] == "no-history"


class Unreachable(MemoryBroker):
    """A broker that fails in a nursery of its own."""

    @asynccontextmanager
    async def _running(self, receiver):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise BrokerDown("nobody there")
            yield


async def test_a_failing_start_is_one_error():
    """Whatever nurseries the broker has, the program sees `BrokerDown` and no groups."""
    with pytest.raises(BrokerDown, match="nobody there"):
        async with serving(Desk(Unreachable())):
            pytest.fail("it has started")


class Nameless(Desk):
    """A handler that cannot say who somebody is, the first time."""

    asked = 0

    def member(self, user, session):
        self.asked += 1
        if self.asked == 1:
            raise KeyError(user)
        return super().member(user, session)


async def test_a_member_without_a_name(caplog):
    """A subscription that is answered by an error is none: asked for again, as the client is told, it begins."""
    broker = Troubled(rules=RULES)
    async with serving(Nameless(broker)) as at:
        ada = await at.join("ada")
        answer = await ada.ask("subscribe", "room:1")
        assert (answer["code"], answer["retry"]) == ("internal", True)
        broker.refuses = KeyError("the broker is at fault")
        assert (await ada.ask("subscribe", "room:1"))["type"] == "subscribed"
        answer = await ada.answer(2)
        assert (answer["code"], answer["retry"]) == ("internal", True)
        broker.refuses = None
        assert (await ada.ask("subscribe", "room:1"))["type"] == "subscribed"
        assert (await ada.next())["type"] == "join"
        await ada.quiet()


class Stuck(Desk):
    """A handler whose database does not answer."""

    async def may_subscribe(self, user, topic):
        await trio.sleep_forever()


async def test_hooks_that_hang(monkeypatch, caplog):
    """The client is told to try later, the log says why, and the connection is free for the next request."""
    monkeypatch.setattr(commands, "PATIENCE", 0.02)
    async with serving(Stuck("memory")) as at:
        ada = await at.join("ada")
        for kind, fields in (("subscribe", {}), ("publish", {"data": 1})):
            answer = await ada.ask(kind, "news", **fields)
            assert (answer["code"], answer["retry"]) == ("unavailable", True)
        assert "took too long" in caplog.text
        await ada.quiet()


class Open(BusHandler):
    """Everybody may listen."""

    async def may_subscribe(self, user, topic):
        return True


async def test_presence_of_nobody_in_particular():
    """Who has no name is present by the session."""
    async with serving(Open("memory", rules=RULES)) as at:
        somebody = await at.join()
        await somebody.ask("subscribe", "room:1")
        session = somebody.hello["session"]
        assert await somebody.next() == {"type": "join", "topic": "room:1", "member": session, "info": None}
        (ws,) = at.bus.hub.subscribers("room:1")
        assert repr(ws.data) == f"<Session {session} of None>"


async def test_a_client_that_asks_for_more_than_it_reads():
    """It waits for its answers, however many; it is not sent away for being slow."""
    async with serving(Desk("memory", rules=RULES)) as at:
        for _ in range(4):
            await at.handler.publish("news", "x" * 25_000)
        ada = await at.join("ada", read_ahead=4096)
        for known in range(60):
            await ada.say("history", id=known, topic="news")
        await until(lambda: any(each._out is not None for each in at.server.websockets))
        for known in range(60):
            assert len((await ada.answer(known))["messages"]) == 4
        await ada.quiet()
