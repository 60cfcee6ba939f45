"""`BusHandler` over real WebSockets: each command, each error, who may do what."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import tracemalloc

import pytest
import trio
from bus_peer import RULES, Desk, Peer, serving, until

import trionet
from trionet.bus import BusHandler, Refused, bus_protocol
from trionet.pubsub.brokers.memory import MemoryBroker
from trionet.pubsub.topics import TopicOptions


async def test_welcome():
    """The first message says who is who, and what a client has to keep to."""
    async with serving() as at:
        ada, nobody = await at.join("ada", subprotocols=["trionet.bus.v1"]), await at.join()
        assert ada.ws.subprotocol == "trionet.bus.v1"
        session = ada.hello.pop("session")
        assert ada.hello == {
            "type": "welcome",
            "version": 1,
            "user": "ada",
            "heartbeat": 25.0,
            "limits": {"topics": 128, "message": 65536},
        }
        assert "user" not in nobody.hello
        assert nobody.hello["session"] != session


async def test_who_is_refused():
    """`authenticate` may refuse with an HTTP error; nobody is connected then."""
    async with serving() as at:
        with pytest.raises(trionet.UpgradeRefused) as caught:
            await at.join("eve")
        assert caught.value.status == 403


async def test_headers_that_authenticate_goes_by():
    """It sees Cookie and Authorization without being asked to keep them."""
    seen = []

    class Looks(BusHandler):
        async def authenticate(self, ws, request):
            seen.append(request.headers)

    handler = Looks("memory")
    headers = {"Authorization": "Bearer x", "Cookie": "a=b", "X-Other": "c"}
    async with (
        trionet.open_server(bus_protocol(handler), port=0, lifespan=handler.lifespan) as server,
        trionet.open_client() as client,
    ):
        ws = await client.connect(server.endpoints[0].url, headers=headers)
        await ws.close()
    assert seen == [{"authorization": ["Bearer x"], "cookie": ["a=b"]}]


async def test_a_page_that_is_refused():
    """A browser hides the status from its page, which is told by a close code not to come back."""
    async with serving() as at:
        origin = at.url.replace("ws://", "http://")
        page = Peer(await at.client.connect(f"{at.url}/?eve", origin=origin))
        assert (await page.ended()).code == 4403
        assert not page.kept
        assert (await at.join("ada", origin=origin)).hello["user"] == "ada"


async def test_subscribe_publish_unsubscribe():
    """A message goes to all who have subscribed, its publisher among them, until they unsubscribe."""
    async with serving() as at:
        ada, bob = await at.join("ada"), await at.join("bob")
        begun = await ada.ask("subscribe", "news")
        assert begun == {
            "type": "subscribed",
            "id": 1,
            "topic": "news",
            "epoch": begun["epoch"],
            "offset": 0,
            "recovered": None,
        }
        await bob.ask("subscribe", "news")
        sent = await ada.ask("publish", "news", data={"text": "ж", "n": [1, 2.5, None]}, tag="t")
        assert sent == {"type": "published", "id": 2, "epoch": begun["epoch"], "offset": 1}
        for peer in (ada, bob):
            message = await peer.next()
            assert message.pop("at") > 1.7e12
            assert message == {
                "type": "message",
                "topic": "news",
                "offset": 1,
                "tag": "t",
                "data": {"text": "ж", "n": [1, 2.5, None]},
            }
        assert await bob.ask("unsubscribe", "news") == {"type": "unsubscribed", "id": 2, "topic": "news"}
        await at.handler.publish("news", 2)
        assert (await ada.next())["data"] == 2
        await bob.quiet()


async def test_no_echo():
    """With `echo` false the publisher's own connection is left out."""
    async with serving() as at:
        ada, also = await at.join("ada"), await at.join("ada")
        for peer in (ada, also):
            await peer.ask("subscribe", "news")
        await ada.ask("publish", "news", data=1, echo=False)
        assert (await also.next())["data"] == 1
        await ada.quiet()


async def test_topic_without_history():
    """Nothing is counted there: no positions, and a `since` recovers nothing."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "tick:1", since={"epoch": "x", "offset": 3})
        assert begun == {"type": "subscribed", "id": 1, "topic": "tick:1", "recovered": False}
        assert await ada.ask("publish", "tick:1", data=1) == {"type": "published", "id": 2}
        assert (await ada.next()).keys() == {"type", "topic", "at", "data"}


async def test_conflated_topic():
    """Who subscribes is told that gaps are meant."""
    async with serving() as at:
        ada = await at.join("ada")
        assert (await ada.ask("subscribe", "price:1"))["conflated"] is True


async def test_a_key_counts_once_for_each_user():
    """What is published again with its key is there once; nobody gets in another's way with the same key."""
    async with serving() as at:
        ada, bob = await at.join("ada"), await at.join("bob")
        first = await ada.ask("publish", "news", data=1, key="k")
        again = await (await at.join("ada")).ask("publish", "news", data=1, key="k")
        assert again["offset"] == first["offset"] == 1
        assert (await bob.ask("publish", "news", data=1, key="k"))["offset"] == 2


ERRORS = [
    ("subscribe", {"topic": "a b"}, "bad-topic"),
    ("subscribe", {"topic": ""}, "bad-topic"),
    ("subscribe", {"topic": "x" * 256}, "bad-topic"),
    ("subscribe", {"topic": "new*"}, "bad-topic"),
    ("subscribe", {"topic": "\ud83d"}, "bad-topic"),
    ("subscribe", {"topic": "secret:1"}, "forbidden"),
    ("subscribe", {"topic": "news/*"}, "forbidden"),
    ("subscribe", {"topic": "$trionet.control"}, "forbidden"),
    ("subscribe", {"topic": "there"}, "already-subscribed"),
    ("unsubscribe", {"topic": "elsewhere"}, "not-subscribed"),
    ("publish", {"topic": "secret:1", "data": 1}, "forbidden"),
    ("publish", {"topic": "news/*", "data": 1}, "bad-topic"),
    ("publish", {"topic": "$trionet.control", "data": {"do": "disconnect"}}, "forbidden"),
    ("publish", {"topic": "a", "data": [1e15] * 4000}, "too-large"),
    ("publish", {"topic": "a", "data": "x" * 65536}, "too-large"),
    ("history", {"topic": "secret:1"}, "forbidden"),
    ("history", {"topic": "tick:1"}, "no-history"),
    ("history", {"topic": "a/*"}, "bad-topic"),
    ("presence", {"topic": "news"}, "no-presence"),
    ("presence", {"topic": "secret:1"}, "forbidden"),
]


async def test_each_error():
    """Each refusal has its code and says whether to try again; the connection lives on."""
    async with serving() as at:
        ada = await at.join("ada")
        await ada.ask("subscribe", "there")
        for kind, fields, code in ERRORS:
            answer = await ada.ask(kind, **fields)
            assert (answer["type"], answer["code"], answer["retry"]) == ("error", code, False), fields
            assert answer["text"]
        await ada.ws.send("gibberish")
        answer = await ada.next("error")
        assert answer["code"] == "bad-request"
        assert "id" not in answer
        await ada.ws.send(b"{}")
        assert (await ada.next("error"))["code"] == "bad-request"
        await ada.quiet()
        assert at.handler.refusals["forbidden"] == sum(code == "forbidden" for *_, code in ERRORS)


async def test_patterns_are_authorised_as_such():
    """Who may have the pattern has all that fits it; but never the server's own topics."""
    async with serving() as at:
        admin, ada = await at.join("admin"), await at.join("ada")
        assert (await admin.ask("subscribe", "*"))["type"] == "subscribed"
        assert (await ada.ask("subscribe", "*"))["code"] == "forbidden"
        await at.handler.publish("$mine", 1)
        await at.handler.publish("secret:1", 1)
        await at.handler.unsubscribe_user("nobody", "x")
        assert (await admin.next())["topic"] == "secret:1"
        await admin.quiet()


async def test_nobody_may_anything_by_default():
    """A handler that says nothing about permissions gives none."""
    async with serving(BusHandler("memory")) as at:
        peer = await at.join()
        for kind, fields in (("subscribe", {}), ("publish", {"data": 1}), ("history", {}), ("presence", {})):
            assert (await peer.ask(kind, "a", **fields))["code"] == "forbidden"


async def test_too_many_topics():
    """The one too many is refused; there is room again when one was given back."""
    async with serving(Desk("memory", max_topics=2)) as at:
        ada = await at.join("ada")
        assert ada.hello["limits"]["topics"] == 2
        assert [(await ada.ask("subscribe", name)).get("code") for name in "abc"] == [
            None,
            None,
            "too-many-topics",
        ]
        await ada.ask("unsubscribe", "a")
        assert (await ada.ask("subscribe", "c"))["type"] == "subscribed"


async def test_a_message_far_too_large():
    """Beyond twice the limit the connection is closed, for good."""
    async with serving(Desk("memory", max_message=1000)) as at:
        ada = await at.join("ada")
        assert (await ada.ask("publish", "a", data="x" * 1500))["code"] == "too-large"
        await ada.say("publish", id=9, topic="a", data="x" * 2500)
        assert (await ada.ended()).code == 1009


class Faulty(Desk):
    """Hooks that raise."""

    async def may_subscribe(self, user, topic):
        if topic == "slow":
            raise Refused("too-fast", "one at a time")
        if topic == "own":
            raise Refused("own-code", "because", retry=True)
        raise ZeroDivisionError


async def test_hooks_that_raise(caplog):
    """`Refused` is what the client is told. Anything else is our fault: logged, not told in detail, and lived with."""
    async with serving(Faulty("memory")) as at:
        ada = await at.join("ada")
        assert await ada.ask("subscribe", "slow") == {
            "type": "error",
            "id": 1,
            "code": "too-fast",
            "text": "one at a time",
            "retry": True,
        }
        answer = await ada.ask("subscribe", "own")
        assert (answer["code"], answer["retry"]) == ("own-code", True)
        assert not caplog.records
        answer = await ada.ask("subscribe", "x")
        assert (answer["code"], answer["retry"], answer["text"]) == ("internal", True, "the server failed")
        assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]
        assert at.protocol.handler_failures == 1
        await ada.quiet()


async def test_history():
    """The newest, or what came behind a position, the oldest first."""
    async with serving() as at:
        ada = await at.join("ada")
        for n in range(1, 6):
            await at.handler.publish("news", n, tag="odd" if n % 2 else "")
        page = await ada.ask("history", "news", limit=2)
        assert [message["data"] for message in page["messages"]] == [4, 5]
        assert page["messages"][1].keys() == {"offset", "at", "tag", "data"}
        assert (page["offset"], page["complete"]) == (5, True)
        page = await ada.ask("history", "news", since={"epoch": page["epoch"], "offset": 1}, limit=2)
        assert [message["data"] for message in page["messages"]] == [2, 3]
        page = await ada.ask("history", "news", since={"epoch": "another", "offset": 1})
        assert (page["messages"], page["complete"]) == ([], False)
        empty = await ada.ask("history", "empty")
        assert (empty["messages"], empty["offset"], empty["complete"]) == ([], 0, True)


async def test_history_is_cut_to_fit():
    """An answer has so many bytes at most, but one message at least; what is missing can be asked for."""
    async with serving(Desk("memory", max_reply=160)) as at:
        ada = await at.join("ada")
        for text in "abc":
            await at.handler.publish("news", text * 10)
        page = await ada.ask("history", "news")
        assert [message["data"][0] for message in page["messages"]] == ["b", "c"]
        start = {"epoch": page["epoch"], "offset": 0}
        page = await ada.ask("history", "news", since=start)
        assert [message["data"][0] for message in page["messages"]] == ["a", "b"]
        assert page["offset"] == 3
        await at.handler.publish("big", "x" * 100)
        assert len((await ada.ask("history", "big"))["messages"]) == 1


async def test_presence_over_a_reconnect():
    """Others see who comes and goes; who is lost and comes back in time has never left."""
    async with serving() as at:
        bob = await at.join("bob")
        await bob.ask("subscribe", "room:1")
        ada = await at.join("ada")
        await ada.ask("subscribe", "room:1")
        seen = [await bob.next(), await bob.next()]
        assert seen == [
            {"type": "join", "topic": "room:1", "member": name, "info": {"name": name.title()}}
            for name in ("bob", "ada")
        ]
        found = await bob.ask("presence", "room:1")
        assert found["count"] == 2
        assert {"member": "ada", "info": {"name": "Ada"}} in found["members"]
        await ada.kill()
        ada = await at.join("ada")
        await ada.ask("subscribe", "room:1")
        await until(lambda: not at.bus.attendance._leaving)
        await bob.quiet()
        await ada.ask("unsubscribe", "room:1")
        assert (await bob.next())["type"] == "leave"
        assert (await bob.ask("presence", "room:1"))["count"] == 1


async def test_presence_has_a_limit():
    """A crowd is counted, and some of it named."""
    async with serving(Desk("memory", rules=RULES, max_reply=200)) as at:
        for name in ("ada", "bob", "cal"):
            await (await at.join(name)).ask("subscribe", "room:1")
        found = await (await at.join("dan")).ask("presence", "room:1")
        assert found["count"] == 3
        assert 1 <= len(found["members"]) < 3


async def test_a_crowd_is_counted_now_and_then():
    """Asking without pause who is among thousands does not keep the broker busy; where few are it is always true."""
    broker = MemoryBroker(rules=RULES)
    async with serving(Desk(broker)) as at:
        ada = await at.join("ada")
        for number in range(3000):
            await broker.enter("room:1", f"m{number}", "o", b"", 60)
            if number in {1, 2, 2000, 2001}:
                count = (await ada.ask("presence", "room:1"))["count"]
                assert count == (number + 1 if number != 2001 else 2001)
        assert list(at.handler.crowds) == ["room:1"]


async def test_a_user_is_disconnected():
    """All their connections are closed with a code that says not to come back; others stay."""
    async with serving() as at:
        first, second, bob = await at.join("ada"), await at.join("ada"), await at.join("bob")
        await at.handler.disconnect("ada", reason="banned")
        for peer in (first, second):
            closed = await peer.ended()
            assert (closed.code, closed.reason) == (4403, "banned")
        await bob.quiet()
        await until(lambda: len(at.handler.users) == 1)
        await at.handler.disconnect("nobody")
        with pytest.raises(ValueError, match="1006"):
            await at.handler.disconnect("bob", 1006)


async def test_a_subscription_is_ended():
    """The user is told that it was the server; other topics and other users keep theirs."""
    async with serving() as at:
        ada, bob = await at.join("ada"), await at.join("bob")
        for peer in (ada, bob):
            await peer.ask("subscribe", "news")
            await peer.ask("subscribe", "more")
        await at.handler.unsubscribe_user("ada", "news")
        ended = await ada.next()
        assert (ended["type"], ended["topic"], ended["code"], ended["retry"]) == (
            "unsubscribed",
            "news",
            "forbidden",
            False,
        )
        await at.handler.publish("news", 1)
        await at.handler.publish("more", 2)
        assert (await ada.next())["data"] == 2
        assert [(await bob.next())["data"] for _ in range(2)] == [1, 2]


async def test_what_is_no_json_costs_nobody_the_connection(caplog):
    """Another program may publish anything: subscribers get null, late ones too, and the log says where it was."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "news")
        others = [b"\xff\x00", b"hello", b'{"price":NaN}', b'{"a":1},"topic":"b"', b"[" * 100_000]
        for data in others:
            await at.bus.publish("news", data)
            assert (await ada.next())["data"] is None
        assert "news" in caplog.text
        await ada.ask("unsubscribe", "news")
        since = {"epoch": begun["epoch"], "offset": begun["offset"]}
        await ada.ask("subscribe", "news", since=since)
        assert [(await ada.next())["data"] for _ in others] == [None] * len(others)
        await ada.quiet()


async def test_orders_not_understood(caplog):
    """A process of another version may say what this one does not know."""
    async with serving() as at:
        ada = await at.join("ada")
        for data in (
            b"x",
            b"[]",
            b'{"do":"dance"}',
            b'{"do":"disconnect"}',
            b'{"do":"disconnect","user":"ada","code":1,"reason":""}',
        ):
            await at.bus.broker.publish("$trionet.control", data)
        assert len(caplog.records) == 5
        await ada.quiet()


async def test_nothing_is_left_of_those_who_have_gone():
    """Sessions, subscriptions and users go with their connections."""
    async with serving() as at:
        peers = [await at.join(user) for user in ("ada", "ada", "bob", "")]
        for peer in peers:
            await peer.ask("subscribe", "news")
            await peer.ask("subscribe", "room:1")
        for peer in peers[:2]:
            await peer.kill()
        for peer in peers[2:]:
            await peer.ws.close()
        await until(lambda: not at.bus.hub.statistics().subscribers)
        assert not len(at.handler.users)
        assert not len(at.bus.hub)
        assert not at.bus._places


async def test_sessions_are_small():
    """A connection costs what its slots cost: no dict, no task."""
    async with serving() as at:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            await (await at.join("ada")).ask("subscribe", "news")
        assert trio.lowlevel.current_statistics().tasks_living - tasks <= 3  # of the pools
        session = at.bus.hub.subscribers("news")[0].data
        assert session.user == "ada"
        assert not hasattr(session, "__dict__")


async def test_without_its_lifespan(caplog):
    """Who forgets to run the bus is told by the log, not by clients that wait for nothing."""
    protocol = bus_protocol(Desk("memory"))
    async with trionet.open_client() as client, trionet.open_server(protocol) as server:
        with pytest.raises(trionet.UpgradeRefused) as caught:
            await client.connect(server.endpoints[0].url)
        assert caught.value.status == 500
    assert "lifespan=handler.lifespan" in caplog.text


async def test_errors_of_the_program_come_out_as_they_are():
    """What goes wrong in the server's block is not wrapped in groups by the bus's nurseries."""
    with pytest.raises(ZeroDivisionError):
        async with serving():
            raise ZeroDivisionError


class Memberless(MemoryBroker):
    """A broker that does not note who is there."""

    keeps_members = False


def test_settings_that_cannot_work():
    """Contradictions are found where they are made."""
    with pytest.raises(trionet.ConfigurationError, match="its own"):
        BusHandler(MemoryBroker(), rules={})
    with pytest.raises(trionet.ConfigurationError, match="positive"):
        BusHandler("memory", heartbeat=0)
    with pytest.raises(trionet.ConfigurationError, match="who is there"):
        BusHandler(Memberless(rules={"a": TopicOptions(presence=True)}))
    for policy in ("WAIT", "DROP_NEWEST", "DROP_OLDEST"):
        with pytest.raises(trionet.ConfigurationError, match="come back"):
            bus_protocol(BusHandler("memory"), slow_consumer=trionet.SlowConsumer[policy])


def test_a_long_answer_leaves_room_for_what_is_published():
    """Who reads a page of history slowly is not sent away for it, to ask for the same again."""
    assert bus_protocol(BusHandler("memory", max_reply=2**20)).high_water == 2**21


async def test_the_publisher_has_to_publish_json():
    """What is no JSON is the program's mistake, and told so."""
    async with serving() as at:
        with pytest.raises(TypeError):
            await at.handler.publish("news", object())
        with pytest.raises(ValueError):
            await at.handler.publish("news", float("nan"))
        assert not (await at.bus.history("news")).publications


def frame(text):
    """Return a text frame of a client, masked with zeros."""
    return bytes([0x81, 0x80 | len(text)]) + b"\0\0\0\0" + text.encode()


@pytest.mark.measured
async def test_memory_of_a_connection():
    """A user with three topics, one theirs alone, costs less than 1,000 bytes, hub and broker included."""
    request = "GET /?user%d HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with contextlib.ExitStack() as stack:
        async with serving() as at:

            async def add(begin, end):
                for number in range(begin, end):
                    sock = stack.enter_context(socket.create_connection(at.server.addresses[0][:2]))
                    sock.sendall((request % number).encode())
                    for topic in (f"mail:{number}", "news", f"group:{number // 20}"):
                        sock.sendall(frame(json.dumps({"type": "subscribe", "id": 1, "topic": topic})))
                await until(lambda: at.bus.hub.statistics().subscriptions == 3 * end)
                gc.collect()

            await add(0, 30)  # what is there once
            tracemalloc.start()
            try:
                await add(30, 330)
                snapshot = tracemalloc.take_snapshot()
            finally:
                tracemalloc.stop()
            ours = snapshot.filter_traces(
                [tracemalloc.Filter(True, "*trionet*"), tracemalloc.Filter(True, "*json*")]
            )
            each = sum(trace.size for trace in ours.traces) / 300
            assert each < 1000, [str(line) for line in ours.statistics("lineno")[:10]]
