"""The Python client of the bus against a real server: connections that break, and nothing lost."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio
from scripted import scripted, server_frame
from ws_peer import CLOSE, GENEROUS, TEXT, until

import trionet
from trionet.bus import BusHandler, Refused, bus_protocol
from trionet.client.bus import open_bus_client
from trionet.client.following import BusSubscribed
from trionet.client.subscription import BusMessage, BusPresence, BusReset
from trionet.errors import BusError
from trionet.pubsub.publication import Position
from trionet.pubsub.topics import HistoryLimits, TopicOptions

SOON = trionet.Backoff(initial=0.001, maximum=0.002)


class Handler(BusHandler):
    """Everybody may everything, but what begins with `secret`; `busy` is refused as often as the test says."""

    def __init__(self):
        rules = {
            "few:*": TopicOptions(history=HistoryLimits(count=3)),
            "none:*": TopicOptions(history=None),
            "room:*": TopicOptions(presence=True),
            "*": TopicOptions(history=HistoryLimits(count=1000)),
        }
        super().__init__("memory", rules=rules, linger=0.01)
        self.busy = 0
        self.away = False

    async def authenticate(self, ws, request):
        if self.away:
            raise trionet.Rejection(503)

    async def may_subscribe(self, user, topic):
        if topic.startswith("busy") and self.busy:
            self.busy -= 1
            raise Refused("unavailable", "not now")
        return not topic.startswith("secret")

    async def may_subscribe_pattern(self, user, pattern):
        return True

    async def may_publish(self, user, topic, data):
        return not topic.startswith("secret")


class Served:
    """A server, and how to hurt it."""

    def __init__(self, handler, server):
        self.handler = handler
        self.server = server
        self.url = server.endpoints[0].url
        self.publish = handler.publish

    @property
    def connections(self):
        """Those of clients that are open."""
        return [ws for ws in self.server.connections if ws.is_open]

    def cut(self, *, away=False):
        """Break all connections without a word. `away`: and let nobody come back for now."""
        self.handler.away = away
        for ws in self.connections:
            ws.abort()

    def close(self, code):
        """Close all connections."""
        for ws in self.connections:
            ws.close_nowait(code)


@asynccontextmanager
async def bus_server():
    """Serve a bus for the length of the block."""
    handler = Handler()
    protocol = bus_protocol(handler, max_messages_per_second=None)
    with trio.fail_after(GENEROUS):
        async with trionet.open_server(protocol, "127.0.0.1", 0, lifespan=handler.lifespan) as server:
            yield Served(handler, server)


@asynccontextmanager
async def served(**options):
    """A server and a client of it."""
    async with bus_server() as server, open_bus_client(server.url, backoff=SOON, **options) as bus:
        yield server, bus


async def take(subscription, count):
    """Read so many messages; return their data."""
    found = []
    async for message in subscription:
        found.append(message.data)
        if len(found) == count:
            break
    return found


async def test_three_hundred_messages_while_connections_break_come_once_and_in_order():
    """Live or from the history, whatever breaks; and the reader's position is that of what it has read."""
    async with served() as (server, bus), bus.subscribe("mail:1") as mail, trio.open_nursery() as nursery:
        found = []

        async def read():
            found.extend(await take(mail, 300))

        nursery.start_soon(read)
        for number in range(300):
            await server.publish("mail:1", number)
            if number % 10 == 9:
                server.cut()
            if number % 50 == 25:
                await bus.wait_open()
    assert found == list(range(300))
    assert mail.position.offset == 300


async def test_what_is_published_while_connections_break_is_published_once():
    """Whether the publication or its acknowledgement got lost; in the order in which it was asked for."""
    async with served() as (server, bus):
        done = trio.Event()

        async def cut():
            while not done.is_set():
                server.cut()
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            offsets = [(await bus.publish("out:1", number)).offset for number in range(100)]
            done.set()
        page = await bus.history("out:1", limit=1000)
        assert [message.data for message in page.messages] == list(range(100))
        assert offsets == [message.position.offset for message in page.messages] == list(range(1, 101))
        assert page.complete
        assert page.position.offset == 100


async def test_a_reader_goes_on_where_an_earlier_one_was():
    """`since` with a position that was kept, or with that of a page of history."""
    async with served() as (server, bus):
        for number in range(4):
            await server.publish("mail:2", number)
        page = await bus.history("mail:2", limit=2)
        assert [message.data for message in page.messages] == [2, 3]
        await server.publish("mail:2", 4)
        async with bus.subscribe("mail:2", since=page.position) as mail:
            message = await anext(aiter(mail))
            assert (message.data, message.replay, message.position.offset) == (4, True, 5)
        page = await bus.history("mail:2", since=page.messages[0].position, limit=1)
        assert [message.data for message in page.messages] == [3]
        async with bus.subscribe("mail:2", since=page.position) as mail:
            assert await take(mail, 1) == [4]


async def test_what_cannot_be_recovered_is_said():
    """More was missed than is kept, and a topic that keeps nothing: an event, and a mark on the next message."""
    async with served() as (server, bus), bus.subscribe("few:1") as few, bus.subscribe("none:1") as none:
        await server.publish("few:1", "first")
        for subscription in (few, none):
            assert await subscription.receive() == BusSubscribed(
                None, again=False, broken=False, position=subscription.position, conflated=False
            )
        assert (await few.receive()).broken is False
        server.cut(away=True)
        for number in range(5):
            await server.publish("few:1", number)
            await server.publish("none:1", number)
        server.handler.away = False
        for subscription, recovered in ((few, False), (none, None)):
            again = await subscription.receive()
            assert (again.recovered, again.again, again.broken) == (recovered, True, True)
            assert await subscription.receive() == BusReset(subscription.topic, again.position)
            await server.publish(subscription.topic, "after")
            message = await subscription.receive()
            assert (message.data, message.broken) == ("after", True)
            await server.publish(subscription.topic, "later")
            assert (await subscription.receive()).broken is False


async def test_a_slow_reader_misses_nothing_and_keeps_nobody_waiting():
    """With a full buffer its subscription is given back and taken up later; requests are answered meanwhile."""
    async with served(buffer=10) as (server, bus), bus.subscribe("mail:3") as slow:
        async with bus.subscribe("mail:4") as other:
            for number in range(100):
                await bus.publish("mail:3", number)
            assert slow.paused
            assert "paused" in repr(slow)
            await bus.publish("mail:4", "through")
            assert await take(other, 1) == ["through"]
        server.cut()
        found = []
        async for message in slow:
            found.append(message.data)
            assert not message.broken
            if len(found) == 100:
                break
        assert found == list(range(100))


async def test_a_slow_reader_of_what_is_not_kept_is_told():
    """Where there is no history, what came meanwhile is lost, and said so."""
    async with served(buffer=4) as (server, bus), bus.subscribe("none:2") as slow:
        for number in range(10):
            await server.publish("none:2", number)
        await until(lambda: slow.paused)
        events = []
        while not any(isinstance(event, BusReset) for event in events):
            events.append(await slow.receive())
        assert [event.data for event in events if isinstance(event, BusMessage)] == [0, 1, 2]
        await server.publish("none:2", "after")
        message = await slow.receive()
        assert (message.data, message.broken) == ("after", True)


@pytest.mark.parametrize("code", [1000, 1008, 4401, 4403, 4409])
async def test_codes_that_say_stay_away_are_obeyed(code):
    """What is held is read to its end; then subscriptions, requests and new blocks raise `closed` with the code."""
    async with served() as (server, bus), bus.subscribe("mail:5") as mail:
        await server.publish("mail:5", "last")
        server.close(code)
        assert await take(mail, 1) == ["last"]
        for attempt in (mail.receive, bus.wait_open, lambda: bus.publish("mail:5", 1)):
            with pytest.raises(BusError, match=str(code)) as caught:
                await attempt()
            assert (caught.value.code, caught.value.retry) == ("closed", False)
        with pytest.raises(BusError, match=str(code)):
            async with bus.subscribe("mail:6"):
                pass
        assert not server.connections


async def test_a_server_that_says_no_is_an_error_of_whoever_waits():
    """A refused upgrade is not tried again; requests that wait for it end with its reason."""
    async with scripted(forbid) as script, open_bus_client(script.url, backoff=SOON) as bus:
        with pytest.raises(BusError, match=r"403") as caught:
            await bus.publish("t", 1)
        assert isinstance(caught.value.__cause__, trionet.UpgradeRefused)
        assert script.count == 1


async def forbid(side):
    """Refuse the upgrade."""
    await side.head()
    await side.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
    await side.ended()


async def chatter(side):
    """Speak something else."""
    await side.accept(server_frame(TEXT, b'{"hello": 1}'))
    await side.frame()
    await side.send(server_frame(CLOSE, (1002).to_bytes(2, "big")))


async def nonsense(side):
    """Speak it, and then something that is none of it."""
    await side.accept(server_frame(TEXT, b'{"type": "welcome", "session": "s", "limits": []}'))
    await side.frame()
    await side.send(server_frame(CLOSE, (1002).to_bytes(2, "big")))


@pytest.mark.parametrize("speak", [chatter, nonsense])
async def test_who_does_not_speak_the_protocol_is_left(speak, caplog):
    """It is closed with 1002, logged, and not tried again."""
    async with scripted(speak) as script, open_bus_client(script.url, backoff=SOON) as bus:
        with pytest.raises(BusError, match=r"1002"):
            await bus.publish("t", 1)
    assert "does not speak the protocol" in caplog.text


async def test_subscriptions_that_are_refused():
    """For now: asked for again, while the block waits. For good: the block raises. Twice the same: an error."""
    async with served() as (server, bus):
        server.handler.busy = 2
        async with bus.subscribe("busy:1"):
            assert server.handler.busy == 0
            with pytest.raises(BusError, match=r"already-subscribed"):
                async with bus.subscribe("busy:1"):
                    pass
        with pytest.raises(BusError) as caught:
            async with bus.subscribe("secret:1"):
                pass
        assert (caught.value.code, caught.value.retry) == ("forbidden", False)
        async with bus.subscribe("busy:1"):
            pass


async def test_a_subscription_that_the_server_ends():
    """Its reader is told why, behind what had come before."""
    async with served() as (server, bus), bus.subscribe("mail:7") as mail:
        await server.publish("mail:7", 1)
        ws = server.connections[0]
        await ws.send(json.dumps({"type": "unsubscribed", "topic": "mail:7", "code": "forbidden"}))
        assert await take(mail, 1) == [1]
        with pytest.raises(BusError, match=r"forbidden"):
            await mail.receive()


async def test_the_end_of_an_earlier_subscription_ends_no_later_one():
    """What the server said of it was under way while the topic was asked for again."""
    async with served() as (server, bus):
        async with bus.subscribe("mail:11"):
            pass

        async def ended_before(user, topic):
            ended = {"type": "unsubscribed", "topic": topic, "code": "forbidden"}
            await server.connections[0].send(json.dumps(ended))
            return True

        server.handler.may_subscribe = ended_before
        async with bus.subscribe("mail:11") as mail:
            await server.publish("mail:11", 1)
            assert await take(mail, 1) == [1]


async def test_a_buffer_of_one():
    """It holds one message, whatever the server says about the subscription itself."""
    async with served() as (server, bus), bus.subscribe("mail:12", buffer=1) as mail:
        for number in range(3):
            await server.publish("mail:12", number)
        assert await take(mail, 3) == [0, 1, 2]


async def test_who_publishes_without_an_echo_has_no_gap():
    """What it published for the others does not come, not even after a loss, and is not asked for."""
    async with served() as (server, bus), bus.subscribe("mail:8") as mail:
        for number in (1, 2):
            await bus.publish("mail:8", "mine", echo=False)
            await server.publish("mail:8", number)
        server.cut()
        await bus.publish("mail:8", "mine", echo=False)
        await server.publish("mail:8", 3)
        found = [await mail.receive() for _ in range(5)]
        assert [each.data for each in found if isinstance(each, BusMessage)] == [1, 2, 3]
        assert [each.recovered for each in found if isinstance(each, BusSubscribed)] == [None, True]
        assert mail.position.offset == 6


async def test_requests_wait_within_bounds():
    """So many at a time; one that is cancelled is not sent any more; what is too large is not sent at all."""
    async with served(max_waiting=1) as (server, bus):
        with pytest.raises(BusError, match=r"too-large"):
            await bus.publish("mail:9", "x" * 70_000)
        for value in ({1}, float("nan")):
            with pytest.raises((TypeError, ValueError)):
                await bus.publish("mail:9", value)
        server.cut(away=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.publish, "mail:9", "given up")
            await until(lambda: bus._requests)
            with pytest.raises(BusError, match=r"queue-full") as caught:
                await bus.publish("mail:9", "too many")
            assert caught.value.retry
            await until(lambda: not bus.is_open)
            nursery.cancel_scope.cancel()
        server.handler.away = False
        position = await bus.publish("mail:9", "then")
        page = await bus.history("mail:9")
        assert [message.data for message in page.messages][-1] == "then"
        assert page.position == position
        assert "0 requests" in repr(bus)


async def test_patterns_and_presence():
    """A pattern brings its topics' messages, each once; who comes and goes is told, and listed."""
    async with served() as (server, bus):
        async with bus.subscribe("news:*") as every, bus.subscribe("news:eu") as eu:
            await server.publish("news:eu", 1)
            await server.publish("news:us", 2)
            await every.receive()
            found = [await every.receive() for _ in range(2)]
            assert [(each.topic, each.data, each.position) for each in found] == [
                ("news:eu", 1, None),
                ("news:us", 2, None),
            ]
            assert await take(eu, 1) == [1]
            server.handler.bus.interrupted("news:eu", Position("another", 7))
            assert await every.receive() == BusReset("news:eu", None)
            assert every.position is None
        async with bus.subscribe("room:1") as room:
            async with open_bus_client(server.url) as other, other.subscribe("room:1"):
                await until(lambda: len(room._held) >= 3)
                who = await bus.presence("room:1")
                assert who.count == 2
                assert set(who.members) == {bus.session, other.session}
                gone = other.session
            events = [await room.receive() for _ in range(4)]
            assert [each.event for each in events if isinstance(each, BusPresence)] == [
                "join",
                "join",
                "leave",
            ]
            assert events[-1].member == gone


async def raise_in_block(server, held):
    """Leave a client's block by an exception."""
    async with open_bus_client(server.url) as bus, bus.subscribe("t") as subscription:
        held += [bus, subscription, server.connections[0]]
        raise KeyError("mine")


async def test_leaving_the_blocks():
    """The server is told by 1000; who still reads, or asks, is told so; errors of the block come out as they are."""
    async with bus_server() as server:
        held = []
        with pytest.raises(KeyError, match=r"mine"):
            await raise_in_block(server, held)
        bus, subscription, ws = held
        await until(lambda: ws.closed)
        assert ws.closed.code == 1000
        with pytest.raises(trio.ClosedResourceError):
            await subscription.receive()
        with pytest.raises(BusError, match=r"block"):
            await bus.publish("t", 1)
        with trio.move_on_after(0.05) as scope:
            async with open_bus_client(server.url) as bus, bus.subscribe("t") as subscription:
                async for _ in subscription:
                    pass
        assert scope.cancelled_caught


async def test_a_client_of_nobody_can_be_left():
    """While attempts fail the block is entered, and left, all the same."""
    async with scripted() as script:
        url = script.url
    async with open_bus_client(url) as bus:
        assert not bus.is_open
    with pytest.raises(trionet.ConfigurationError):
        async with open_bus_client(url, buffer=0):
            pass
