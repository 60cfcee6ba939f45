"""What `trionet.pubsub.broker` promises, on every engine there is: real servers, several brokers at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from engines import Engine, unique
from recorder import RULES, Client, connected

from trionet.errors import BrokerDown, BrokerError, TopicError
from trionet.pubsub.broker import Broker
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position


def needs_history(engine: Engine) -> None:
    """Skip for an engine that keeps nothing."""
    if not engine.broker().keeps_history:
        pytest.skip(f"{engine.name} keeps no history")


# ---------------------------------------------------------------------------- delivery


async def test_all_brokers_get_what_one_publishes_as_it_was_given(engine):
    """Data, tag, origin, time and position arrive as they were, at the publisher's own process too."""
    async with connected(engine) as one, connected(engine) as two:
        there = [one, two] if engine.shared else [one]
        topic = unique()
        for client in there:
            await client.subscribe(topic)
        data = bytes(range(256)) + b"\r\n$5\r\n\0"
        position = await one.broker.publish(topic, data, tag="färbe \0\n", origin="o.1")
        await one.broker.publish(topic, b"")
        for client in there:
            await client.seen.wait_data(topic, data, b"")
            first, second = client.seen.got[topic]
            assert (first.tag, first.origin, second.tag, second.origin) == ("färbe \0\n", "o.1", "", "")
            assert 1.7e9 < first.at <= second.at < 1e10
            if client.broker.keeps_history:
                assert first.position == position
                assert position.epoch
            else:
                assert first.position == position == NOWHERE


async def test_only_what_is_subscribed_to_arrives(engine):
    """Other topics are not delivered, nor is a topic after `unsubscribe`; subscribed again, it is."""
    async with connected(engine) as client:
        mine, other, marker = unique(), unique(), unique()
        await client.subscribe(mine, marker)
        await client.broker.publish(other, b"no")
        await client.broker.publish(mine, b"1")
        await client.seen.wait_data(mine, b"1")
        client.unsubscribe(mine)
        await client.broker.publish(mine, b"2")
        await client.broker.publish(marker, b"m")
        await client.seen.wait_data(marker, b"m")
        await client.subscribe(mine)
        await client.broker.publish(mine, b"3")
        await client.seen.wait_data(mine, b"1", b"3")
        assert client.seen.data(other) == []


async def test_twenty_publishers_are_one_sequence(engine):
    """Brokers see the publications of 20 concurrent publishers in one order, each publisher's own order kept."""
    async with connected(engine) as one, connected(engine) as two:
        there = [one, two] if engine.shared else [one]
        topics = [unique("long"), unique("long")]
        for client in there:
            await client.subscribe(*topics)

        async def publish(number: int) -> None:
            broker = there[number % len(there)].broker
            for count in range(16):
                await broker.publish(topics[count % 2], b"%d %d" % (number, count))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(publish, number)
        for topic in topics:
            for client in there:
                await client.seen.until(lambda c=client, t=topic: len(c.seen.got[t]) >= 160)
            assert len({tuple(client.seen.got[topic]) for client in there}) == 1
            for number in range(20):
                counts = [int(d.split()[1]) for d in there[0].seen.data(topic) if int(d.split()[0]) == number]
                assert counts == sorted(set(counts))
        assert sum(len(there[0].seen.got[topic]) for topic in topics) == 320


async def test_subscribe_returns_when_everything_from_then_on_is_delivered(engine):
    """What another broker publishes at once after `subscribe` has returned arrives, each time."""
    async with connected(engine) as one, connected(engine) as two:
        publisher = two if engine.shared else one
        for _ in range(15):
            topics = [unique(), unique("none"), unique("p") + "/*"]
            await one.subscribe(*topics)
            names = [*topics[:2], topics[2][:-1] + "x"]
            for name in names:
                await publisher.broker.publish(name, b"1")
            for name in names:
                await one.seen.wait_data(name, b"1")
            one.broker.unsubscribe(topics)


async def test_many_topics_are_subscribed_at_once(engine):
    """`subscribe` takes hundreds of topics; each is delivered."""
    async with connected(engine) as client:
        topics = [unique("many") for _ in range(300)]
        await client.subscribe(*topics)
        async with trio.open_nursery() as nursery:
            for topic in topics[::10]:
                nursery.start_soon(client.broker.publish, topic, topic.encode())
        for topic in topics[::10]:
            await client.seen.wait_data(topic, topic.encode())
        client.broker.unsubscribe(topics)


async def test_patterns_match_by_the_beginning(engine):
    """A pattern delivers every topic that begins like it, with the topic's own name, and no other; `*` all."""
    async with connected(engine) as client:
        base = unique("p")
        await client.subscribe(f"{base}/eu/*", f"{base}:*", f"{base}/a[b]?^\\.*")
        for rest in ("/eu/berlin", ":", "/a[b]?^\\.x", "/eu", "/eux/berlin", "/ab.x", "/a[b]z^\\.x"):
            if rest != ":":
                await client.broker.publish(base + rest, rest.encode())
        await client.broker.publish(f"{base}:x:y", b"end")
        await client.seen.wait_data(f"{base}:x:y", b"end")
        await client.seen.wait_data(f"{base}/eu/berlin", b"/eu/berlin")
        await client.seen.wait_data(f"{base}/a[b]?^\\.x", b"/a[b]?^\\.x")
        assert len([topic for topic, got in client.seen.got.items() if got]) == 3
        await client.subscribe("*")
        everything = unique("anything")
        await client.broker.publish(everything, b"1")
        await client.seen.wait_data(everything, b"1")
        assert client.broker.position(f"{base}:*") == client.broker.position("*") == NOWHERE


@pytest.mark.parametrize("order", ["exact first", "pattern first"])
async def test_a_topic_by_name_and_by_patterns_arrives_once(engine, order):
    """Subscribed to by name and by two patterns, a topic is delivered once, and until the last of them is gone."""
    async with connected(engine) as client:
        base = unique("p")
        topic = f"{base}/a/b"
        topics = [topic, f"{base}/*", f"{base}/a/*"]
        for name in topics if order == "exact first" else reversed(topics):
            await client.subscribe(name)
        await client.broker.publish(topic, b"1")
        await client.seen.wait_data(topic, b"1")
        client.unsubscribe(topic)
        await client.broker.publish(topic, b"2")
        await client.seen.wait_data(topic, b"1", b"2")
        client.broker.unsubscribe([f"{base}/*"])
        await client.broker.publish(topic, b"3")
        await client.seen.wait_data(topic, b"1", b"2", b"3")
        await client.subscribe(topic)
        client.broker.unsubscribe([f"{base}/a/*"])
        await client.broker.publish(topic, b"4")
        await client.seen.wait_data(topic, b"1", b"2", b"3", b"4")
        client.unsubscribe(topic)
        marker = unique()
        await client.subscribe(marker)
        await client.broker.publish(topic, b"5")
        await client.broker.publish(marker, b"m")
        await client.seen.wait_data(marker, b"m")
        assert len(client.seen.got[topic]) == 4


NAMES = [
    "ü/日本/🎉",
    "a[b]c?d",
    "^x\\y{z}",
    "a..b",
    ".a.",
    ">",
    "a.>.b",
    "$SYS.x",
    "/",
    ":",
    "a:/b",
    "'\"`;#%",
    "{slot}",
]


async def test_every_name_that_is_allowed_works(engine):
    """Unicode, characters that engines give a meaning to, and 255 bytes: each is delivered, and by itself."""
    async with connected(engine) as client:
        # Names as they are (no prefix that would change what an engine makes of them), made new by what follows.
        names = [name + unique("") for name in NAMES]
        names.append("ö" * 100 + unique("").ljust(55, "x"))
        assert len(names[-1].encode()) == 255
        await client.subscribe(*names)
        for name in names:
            await client.broker.publish(name, name.encode())
        for name in names:
            await client.seen.wait_data(name, name.encode())
            if client.broker.keeps_history:
                page = await client.broker.history(name, None)
                assert [publication.topic for publication in page.publications] == [name]
            if client.broker.keeps_members:
                assert await client.broker.enter(name, name, "o", b"", 5)
                assert await client.broker.members(name) == {name: b""}
                assert await client.broker.leave(name, name, "o")


async def test_what_is_no_name_is_refused(engine):
    """`publish` raises `TopicError` for a pattern and for what is no name."""
    async with connected(engine) as client:
        for name in ("", "a*", "a b", "x" * 256, "a\nb", "\ud800"):
            with pytest.raises(TopicError):
                await client.broker.publish(name, b"")


async def test_big_data_passes(engine):
    """900 KB on a topic arrive, among small ones, in order."""
    async with connected(engine) as client:
        topic = unique()
        await client.subscribe(topic)
        big = bytes(range(256)) * 3600
        for data in (b"1", big, b"2"):
            await client.broker.publish(topic, data)
        await client.seen.wait_data(topic, b"1", big, b"2")


async def test_unsubscribing_while_messages_come_is_quiet(engine):
    """A topic that is unsubscribed from and subscribed to again under load begins without a gap each time."""
    async with connected(engine) as one, connected(engine) as two:
        publisher = two if engine.shared else one
        topic, steady = unique("long"), unique("long")
        await one.subscribe(steady)
        done = False

        async def publish() -> None:
            nonlocal done
            for number in range(200):
                await publisher.broker.publish(topic, b"%d" % number)
                await publisher.broker.publish(steady, b"%d" % number)
            done = True
            one.seen.notice()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            while not done:
                await one.subscribe(topic)
                begin = len(one.seen.got[topic])
                await one.seen.until(lambda b=begin: done or len(one.seen.got[topic]) > b + 3)
                one.unsubscribe(topic)
                end = len(one.seen.got[topic])
                await trio.lowlevel.checkpoint()
                assert len(one.seen.got[topic]) == end, "delivered after unsubscribe"
        await one.seen.wait_data(steady, *[b"%d" % number for number in range(200)])


async def test_a_topic_without_history_has_no_positions(engine):
    """It is delivered in order; positions are `NOWHERE`, and its history is found incomplete."""
    async with connected(engine) as client:
        topic = unique("none")
        await client.subscribe(topic)
        assert client.broker.position(topic) == NOWHERE
        for number in range(5):
            assert await client.broker.publish(topic, b"%d" % number, tag="t", origin="o") == NOWHERE
        await client.seen.wait_data(topic, *[b"%d" % number for number in range(5)])
        last = client.seen.got[topic][-1]
        assert (last.position, last.tag, last.origin, last.at > 1e9) == (NOWHERE, "t", "o", True)
        assert client.broker.position(topic) == NOWHERE
        page = await client.broker.history(topic, None)
        assert (page.publications, page.complete) == ([], False)


# ----------------------------------------------------------------------------- history


def same(page: HistoryPage) -> list[bytes]:
    """What is on the page."""
    return [publication.data for publication in page.publications]


async def test_positions_and_pages_fit_together(engine):
    """What is delivered, what `publish` returns and what `history` finds are the same; pages go on without a gap."""
    needs_history(engine)
    async with connected(engine) as client:
        topic = unique("long")
        before = await client.broker.publish(topic, b"early", tag="t", origin="o")
        await client.subscribe(topic)
        assert client.broker.position(topic) == before
        positions = [await client.broker.publish(topic, b"%d" % number) for number in range(30)]
        await client.seen.until(lambda: len(client.seen.got[topic]) == 30)
        assert client.broker.position(topic) == positions[-1]
        assert [publication.position for publication in client.seen.got[topic]] == positions
        history = client.broker.history
        everything = await history(topic, None)
        assert everything.publications[1:] == client.seen.got[topic]
        assert (everything.publications[0].tag, everything.publications[0].origin) == ("t", "o")
        assert everything.top == positions[-1]
        assert everything.complete
        newest = await history(topic, None, 4)
        assert (same(newest), newest.top) == ([b"26", b"27", b"28", b"29"], positions[-1])
        page = await history(topic, before, 12)
        assert (same(page), page.more, page.complete) == (
            [b"%d" % number for number in range(12)],
            True,
            True,
        )
        page = await history(topic, page.publications[-1].position, 18)
        assert (same(page), page.more, page.complete) == (
            [b"%d" % number for number in range(12, 30)],
            False,
            True,
        )
        page = await history(topic, positions[-1])
        assert (same(page), page.more, page.complete, page.top) == ([], False, True, positions[-1])
        for wrong in (Position(before.epoch, positions[-1].offset + 1), Position("other", before.offset)):
            page = await history(topic, wrong)
            assert (same(page), page.complete, page.top) == ([], False, positions[-1])


async def test_a_page_has_at_most_a_thousand(engine):
    """Whatever is asked for, 1,000 publications are a page; `more` says that there are others."""
    needs_history(engine)
    async with connected(engine) as client:
        topic = unique("long")
        await client.subscribe(topic)
        start = client.broker.position(topic)

        async def publish(first: int) -> None:
            for number in range(first, 1010, 20):
                await client.broker.publish(topic, b"%d" % number)

        async with trio.open_nursery() as nursery:
            for first in range(20):
                nursery.start_soon(publish, first)
        page = await client.broker.history(topic, start, 5000)
        assert (len(page.publications), page.more, page.complete) == (1000, True, True)
        rest = await client.broker.history(topic, page.publications[-1].position, 5000)
        assert (len(rest.publications), rest.more, rest.complete) == (10, False, True)
        assert len((await client.broker.history(topic, None, 5000)).publications) == 1000
        await client.seen.until(lambda: len(client.seen.got[topic]) == 1010)
        assert page.publications + rest.publications == client.seen.got[topic]


async def test_a_topic_nobody_has_published_on_stands_somewhere(engine):
    """Who subscribes to it and comes back before the first publication has missed nothing."""
    needs_history(engine)
    async with connected(engine) as client:
        topic = unique()
        await client.subscribe(topic)
        start = client.broker.position(topic)
        assert start.epoch
        page = await client.broker.history(topic, start)
        assert (page.publications, page.complete, page.top) == ([], True, start)
        await client.broker.publish(topic, b"1")
        page = await client.broker.history(topic, start)
        assert (same(page), page.complete, page.publications[0].previous) == ([b"1"], True, start.offset)


async def test_history_is_bounded_by_number_and_by_bytes(engine):
    """What exceeds the topic's limits is dropped, the oldest first; a position before it is found incomplete."""
    needs_history(engine)
    async with connected(engine) as client:
        history = client.broker.history
        few = unique("few")
        positions = [await client.broker.publish(few, b"%d" % number) for number in range(8)]
        page = await history(few, positions[2])
        assert (same(page), page.complete) == ([b"3", b"4", b"5", b"6", b"7"], True)
        page = await history(few, positions[1])
        assert (same(page), page.complete, page.top) == ([], False, positions[-1])
        assert same(await history(few, None)) == [b"3", b"4", b"5", b"6", b"7"]
        small = unique("small")
        await client.subscribe(small)
        positions = [await client.broker.publish(small, b"x" * 300) for _ in range(5)]
        page = await history(small, None)
        assert 1 <= len(page.publications) <= 3
        assert sum(map(len, same(page))) <= 1000
        assert not (await history(small, positions[0])).complete
        assert (await history(small, positions[-2])).complete
        # More than the topic keeps altogether: those who listen have it, those who come later have a gap.
        last = await client.broker.publish(small, b"y" * 1001)
        await client.seen.until(lambda: len(client.seen.got[small]) == 6)
        assert client.broker.position(small) == last
        assert not (await history(small, positions[-1])).complete
        assert (await history(small, last)).complete


async def test_history_is_bounded_by_age(engine):
    """What is older than the topic keeps is gone, and counts as missing; offsets go on."""
    needs_history(engine)
    async with connected(engine) as client:
        topic = unique("brief")
        await client.subscribe(topic)
        start = client.broker.position(topic)
        first = await client.broker.publish(topic, b"1")
        assert (await client.broker.history(topic, start)).complete
        with trio.fail_after(10):
            while (await client.broker.history(topic, None)).publications:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.05)
        assert not (await client.broker.history(topic, start)).complete
        assert (await client.broker.history(topic, first)).complete
        second = await client.broker.publish(topic, b"2")
        assert (second.epoch, second.offset > first.offset) == (first.epoch, True)
        await client.seen.wait_data(topic, b"1", b"2")


# -------------------------------------------------------------------------------- keys


async def test_a_key_publishes_once(engine):
    """Again with the same key, from whichever broker and however many at once: one publication, one position."""
    needs_history(engine)
    async with connected(engine) as one, connected(engine) as two:
        brokers = [one.broker, two.broker] if engine.shared else [one.broker]
        topic, other = unique(), unique()
        await one.subscribe(topic, other)
        first = await one.broker.publish(topic, b"1", key="k")
        assert await brokers[-1].publish(topic, b"2", key="k") == first
        found: set[Position] = set()

        async def publish(broker: Broker) -> None:
            found.add(await broker.publish(topic, b"3", key="ü\0 \n"))

        async with trio.open_nursery() as nursery:
            for broker in brokers * 5:
                nursery.start_soon(publish, broker)
        assert len(found) == 1
        await one.broker.publish(other, b"4", key="k")
        last = await one.broker.publish(topic, b"5")
        await one.seen.wait_data(topic, b"1", b"3", b"5")
        await one.seen.wait_data(other, b"4")
        assert (await one.broker.history(topic, first)).top == last
        assert await one.broker.publish(topic, b"6", key="k") == first


async def test_a_key_publishes_once_without_history_too(engine):
    """A topic that keeps nothing delivers what has one key once."""
    needs_history(engine)
    async with connected(engine) as client:
        topic = unique("none")
        await client.subscribe(topic)
        await client.broker.publish(topic, b"1", key="k")
        await client.broker.publish(topic, b"2", key="k")
        await client.broker.publish(topic, b"3", key="l")
        await client.seen.wait_data(topic, b"1", b"3")


# ----------------------------------------------------------------------- cancellation


async def cancel_at_every_step(action: Callable[[int], object], steps: int = 12) -> None:
    """Call `action` (number → awaitable) `steps` times, each cancelled after one scheduling round more."""
    for number in range(steps):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(action, number)
            for _ in range(number):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_a_cancelled_call_leaves_the_broker_usable(engine):
    """Callers cancelled at every point leave nothing behind that would hurt the next one; what they did is whole."""
    async with connected(engine) as client:
        broker = client.broker
        topic = unique("long")
        await client.subscribe(topic)
        await cancel_at_every_step(lambda number: broker.publish(topic, b"c%d" % number, key=f"{number}"))
        names = [unique() for _ in range(12)]
        await cancel_at_every_step(lambda number: broker.subscribe([names[number]]))
        for number, name in enumerate(names):
            broker.unsubscribe([name])
            client.seen.exact.discard(name)
            await broker.publish(name, b"%d" % number)
        if broker.keeps_history:
            await cancel_at_every_step(lambda _: broker.history(topic, None))
        if broker.keeps_members:
            await cancel_at_every_step(lambda number: broker.enter(topic, f"m{number}", "o", b"", 30))
            await cancel_at_every_step(lambda _: broker.members(topic))
            await cancel_at_every_step(lambda number: broker.refresh([(topic, f"m{number}", "o")], 30))
            await cancel_at_every_step(lambda number: broker.leave(topic, f"m{number}", "o"))
            for number in range(12):
                await broker.leave(topic, f"m{number}", "o")
            assert await broker.members(topic) == {}
        assert broker.state.up
        await broker.publish(topic, b"end")
        await client.seen.until(lambda: client.seen.data(topic)[-1:] == [b"end"])
        numbers = [int(data[1:]) for data in client.seen.data(topic)[:-1]]
        assert len(numbers) == len(set(numbers))
        again = unique()
        await client.subscribe(again)
        await broker.publish(again, b"1")
        await client.seen.wait_data(again, b"1")


# ------------------------------------------------------------------------------- state


async def test_the_state_says_whether_it_is_up(engine):
    """Up while it runs, since a time; down before and after, when every method that waits raises `BrokerDown`."""
    broker = engine.broker(rules=RULES)
    assert not broker.state.up
    client = Client(broker)
    async with broker.running(client.seen):
        assert broker.state.up
        assert broker.state.since <= trio.current_time()
        assert (broker.state.reconnects, broker.state.error) == (0, "")
        assert broker.name == engine.name
        await client.subscribe(unique())
    assert not broker.state.up
    for call in (
        lambda: broker.publish(unique(), b""),
        lambda: broker.subscribe([unique()]),
        lambda: broker.history(unique(), None),
    ):
        with pytest.raises(BrokerDown):
            await call()
    broker.unsubscribe([unique()])


async def test_what_the_receiver_raises_ends_the_run(engine):
    """A fault in the receiver is not swallowed: it comes out of `running`."""

    class Fault(Exception):
        pass

    def fail(_: object) -> None:
        raise Fault

    broker = engine.broker(rules=RULES)
    client = Client(broker)
    client.seen.deliver = fail
    topic = unique()
    with pytest.RaisesGroup(Fault, flatten_subgroups=True, allow_unwrapped=True):
        async with broker.running(client.seen):
            await broker.subscribe([topic])
            await broker.publish(topic, b"1")
            with trio.fail_after(5):
                await trio.sleep_forever()


# ---------------------------------------------------------------------------- presence


@pytest.mark.usefixtures("with_members")
async def test_a_member_comes_with_its_first_owner_and_leaves_with_its_last(engine):
    """Two owners in two processes are one member: one join, one leave, and info as it was given."""
    async with connected(engine) as one, connected(engine) as two:
        there = [one, two] if engine.shared else [one, one]
        topic = unique()
        for client in there:
            await client.subscribe(topic)
        first, second = there[0].broker, there[-1].broker
        info = b"\0\xff info"
        assert await first.enter(topic, "ann", "o1", info, 30)
        assert not await second.enter(topic, "ann", "o2", info, 30)
        assert not await second.enter(topic, "ann", "o2", info, 30)
        assert await second.enter(topic, "bob", "o3", b"", 30)
        assert await first.members(topic) == await second.members(topic) == {"ann": info, "bob": b""}
        assert not await first.leave(topic, "ann", "o1")
        assert not await first.leave(topic, "ann", "nobody")
        assert await second.leave(topic, "ann", "o2")
        assert not await second.leave(topic, "ann", "o2")
        assert await first.members(topic) == {"bob": b""}
        for client in there:
            await client.seen.until(lambda c=client: len(c.seen.here(topic)) == 3)
            assert client.seen.here(topic) == [("join", "ann"), ("join", "bob"), ("leave", "ann")]
            assert client.seen.events[0] == (topic, "join", "ann", info)


@pytest.mark.usefixtures("with_members")
async def test_presence_is_told_to_those_who_subscribed_only(engine):
    """Of a topic this process has not subscribed to, or not any more, it hears nothing."""
    async with connected(engine) as client:
        topic, other, marker = unique(), unique(), unique()
        await client.subscribe(topic, marker)
        await client.broker.enter(other, "x", "o", b"", 30)
        await client.broker.enter(topic, "x", "o", b"", 30)
        await client.seen.until(lambda: client.seen.here(topic) == [("join", "x")])
        client.unsubscribe(topic)
        await client.broker.leave(topic, "x", "o")
        await client.broker.leave(other, "x", "o")
        await client.broker.publish(marker, b"m")
        await client.seen.wait_data(marker, b"m")
        assert [event[0] for event in client.seen.events] == [topic]


@pytest.mark.usefixtures("with_members")
async def test_owners_that_are_not_refreshed_leave(engine):
    """Those of a process that was killed go after their time, and are told; those that are refreshed stay."""
    async with connected(engine) as client:
        broker, seen, brief = client.broker, client.seen, 0.3
        spent = brief
        while spent >= brief:  # on a busy machine they would have expired before they were refreshed
            began = trio.current_time()
            topic = unique()
            await client.subscribe(topic)
            await broker.enter(topic, "stays", "o1", b"s", 30)
            await broker.enter(topic, "ends", "o1", b"e", 30)
            await broker.enter(topic, "goes", "o2", b"g", brief)
            await broker.enter(topic, "both", "o1", b"b", brief)
            await broker.enter(topic, "both", "o2", b"b", brief)
            here = [(topic, "stays", "o1"), (topic, "both", "o1")]
            unknown = await broker.refresh([*here, (topic, "who", "o1"), (f"{topic}.x", "x", "y")], 30)
            spent = trio.current_time() - began
        assert unknown == [(topic, "who", "o1"), (f"{topic}.x", "x", "y")]
        # A shorter time holds as well: a process that ends says so of its owners.
        assert await broker.refresh([(topic, "ends", "o1")], 0.2) == []
        await seen.until(lambda: {("leave", "goes"), ("leave", "ends")} <= set(seen.here(topic)))
        assert await broker.members(topic) == {"stays": b"s", "both": b"b"}
        assert ("leave", "both") not in seen.here(topic)
        # What expired is unknown, and can come again.
        assert await broker.refresh([(topic, "goes", "o2")], 30) == [(topic, "goes", "o2")]
        assert await broker.enter(topic, "goes", "o2", b"g", 30)
        await seen.until(lambda: seen.here(topic)[-1] == ("join", "goes"))


@pytest.mark.usefixtures("without_members")
async def test_without_members_presence_is_refused(engine):
    """An engine that knows no members says so."""
    async with connected(engine) as client:
        with pytest.raises(BrokerError):
            await client.broker.enter(unique(), "x", "o", b"", 30)
