"""The local broker: its messages, its limits, and what becomes of clients that are cut off, refused, or read nothing.

What it has in common with the others is in `test_contract` and `test_outages`. Here the server runs in the same loop.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from recorder import RULES, Client

from trionet.errors import BrokerDown, BrokerError, ConfigurationError, ProtocolError
from trionet.pubsub.brokers.local import LocalBroker, wire
from trionet.pubsub.brokers.local import messages as say
from trionet.pubsub.brokers.local import server as local_server
from trionet.pubsub.brokers.local import sockets as local_sockets
from trionet.pubsub.brokers.local.server import LocalLimits, LocalServer
from trionet.pubsub.brokers.local.sockets import listen_local
from trionet.pubsub.publication import Position, Publication
from trionet.pubsub.store import Store
from trionet.pubsub.topics import HistoryLimits, TopicOptions

# --------------------------------------------------------------- messages

KEPT = Publication("mail:42", b"data", "e", 7, 6, 1234.5, "tag", "origin")
BARE = Publication("tïck", b"", "", 0, 0, 2.0)
ENTRIES = [("t", "member", "owner"), ("ü", "", "x" * 1024)]
MESSAGES = [
    (wire.hello(1), say.Hello(1, "trionet", say.VERSION)),
    (
        wire.publish(2, (100, 2**40, 300.5), "tïck", "key", "", "o", b"\0data"),
        say.Publish(2, (100, 2**40, 300.5), "tïck", "key", "", "o", b"\0data"),
    ),
    (wire.subscribe(3, ["a", "b/*"]), say.Topics(3, ["a", "b/*"])),
    (wire.unsubscribe([]), say.Topics(0, [])),
    (wire.history(4, "t", Position("e", 2**40), 9), say.History(4, "t", Position("e", 2**40), 9)),
    (wire.history(4, "t", None, 9), say.History(4, "t", None, 9)),
    (wire.enter(5, "t", "m", "o", b"info", 30.0), say.Enter(5, "t", "m", "o", b"info", 30.0)),
    (wire.refresh(6, ENTRIES, 30.0), say.Entries(6, ENTRIES, 30.0)),
    (wire.leave(7, *ENTRIES[0]), say.Entries(7, ENTRIES[:1])),
    (wire.members(8, "t"), say.Ask(8, "t")),
    (wire.ping(2**32 - 1), say.Ask(2**32 - 1)),
    (wire.welcome(1, 2**23, "e"), say.Welcome(1, say.VERSION, 2**23, "e")),
    (wire.published(2, 2**63), say.Published(2, 2**63)),
    (wire.subscribed(3, [0, 2**63]), say.Subscribed(3, [0, 2**63])),
    (
        wire.shown(4, [KEPT, KEPT], 9, complete=True, more=True),
        say.Shown(4, complete=True, more=True, top=9, publications=[KEPT, KEPT]),
    ),
    (wire.done(5, whether=True), say.Done(5, whether=True)),
    (wire.unknown(6, ENTRIES), say.Entries(6, ENTRIES)),
    (wire.present(8, {"m": b"info", "n": b""}), say.Present(8, {"m": b"info", "n": b""})),
    (wire.pong(9), say.Ask(9)),
    (wire.refused(0, "no"), say.Refused(0, "no")),
    (wire.publication(KEPT), KEPT),
    (wire.publication(BARE), BARE),
    (wire.presence("join", "t", "m", b"info"), say.Presence("join", "t", "m", b"info")),
]


@pytest.mark.parametrize("data, message", MESSAGES)
def test_every_message_is_read_as_it_was_meant(data, message):
    """Whole, byte by byte, and with the beginning of another one behind it."""
    frames = wire.Frames(2**16)
    assert [wire.parse(frame, "e") for frame in frames.feed(data)] == [message]
    found = [frame for byte in data for frame in frames.feed(bytes([byte]))]
    assert [wire.parse(frame, "e") for frame in found] == [message]
    assert [wire.parse(frame, "e") for frame in frames.feed(data + data[:3])] == [message]
    assert [wire.parse(frame, "e") for frame in frames.feed(data[3:] + data)] == [message, message]


@pytest.mark.parametrize("data, message", MESSAGES)
def test_what_is_cut_short_makes_no_sense(data, message):
    """Every shorter message is an error or, where the rest is data, a shorter one: nothing else is raised."""
    for end in range(1, len(data) - 4):
        try:
            found = wire.parse(data[4 : 4 + end], "e")
        except ProtocolError:
            continue
        assert type(found) is type(message)
        assert len(found.data) < len(message.data)


def test_lengths_have_a_bound():
    """A message that is too long is refused by its length, before it is there; so are empty and unknown ones."""
    frames = wire.Frames(100)
    assert len(frames.feed((100).to_bytes(4) + bytes(100))) == 1
    with pytest.raises(ProtocolError, match="101 bytes"):
        frames.feed((101).to_bytes(4))
    with pytest.raises(ProtocolError):
        wire.Frames(100).feed(bytes(4))
    with pytest.raises(ProtocolError, match="unknown kind 99"):
        wire.parse(b"\x63")


texts = st.text(max_size=20)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.floats(allow_nan=False)),
    st.tuples(texts, texts, texts, texts),
    st.binary(max_size=50),
)
def test_a_publication_goes_there_and_back(number, limits, names, data):
    """What is published is what the server reads, and what it sends on is what a subscriber reads."""
    [frame] = wire.Frames(2**16).feed(wire.publish(number, limits, *names, data))
    assert wire.parse(frame) == say.Publish(number, limits, *names, data)
    topic, _, tag, origin = names
    publication = Publication(topic, data, "e", 5, 4, 1.5, tag, origin)
    [frame] = wire.Frames(2**16).feed(wire.publication(publication))
    assert wire.parse(frame, "e") == publication


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_are_a_message_or_an_error(data):
    """No other exception, whatever comes."""
    try:
        wire.parse(data)
    except ProtocolError:
        pass


# -------------------------------------------------------- a server to talk to

BIG = TopicOptions(history=HistoryLimits(size=2**24))


class Here:
    """A server in this loop."""

    def __init__(self, path: str, nursery: trio.Nursery, **limits: Any) -> None:
        self.path = path
        self.nursery = nursery
        self.limits = limits
        self.server = LocalServer(LocalLimits(**limits))
        self.listener: socket.socket | None = None
        self.scope = trio.CancelScope()

    async def _serve(self) -> None:
        with self.scope:
            assert self.listener is not None
            await self.server.serve(self.listener)

    def begin(self) -> None:
        """Serve, with nothing in memory."""
        if self.listener is None:
            self.listener = listen_local(self.path)
        self.server = LocalServer(LocalLimits(**self.limits))
        self.scope = trio.CancelScope()
        self.nursery.start_soon(self._serve)

    def cut(self) -> None:
        """End all connections."""
        for process in self.server.processes:
            process.scope.cancel()

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        """A broker that runs; it must have kept the contract."""
        client = Client(LocalBroker(self.path, rules=RULES, **options))
        async with client.broker.running(client.seen):
            yield client
        assert client.seen.faults == []

    async def talk(self, *data: bytes) -> trio.SocketStream:
        """A connection that has sent this."""
        stream = await trio.open_unix_socket(self.path)
        await stream.send_all(b"".join(data))
        return stream


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tl-") as name:
        yield name


@pytest.fixture
async def here(folder: str) -> AsyncIterator[Callable[..., Here]]:
    """Make servers."""
    made: list[Here] = []
    async with trio.open_nursery() as nursery:

        def make(**limits: Any) -> Here:
            made.append(Here(f"{folder}/{len(made)}", nursery, **limits))
            made[-1].begin()
            return made[-1]

        yield make
        nursery.cancel_scope.cancel()
    for each in made:
        if each.listener is not None:
            each.listener.close()


async def the_end(stream: trio.SocketStream) -> bytes:
    """What comes until the other side has closed."""
    async with stream:
        with trio.fail_after(5):
            return b"".join([piece async for piece in stream])


# ----------------------------------------------------------------- who may


async def test_only_our_user_may_connect(here, monkeypatch):
    """The file is for its owner alone; whoever comes nevertheless is refused by what the kernel says of it."""
    served = here()
    assert stat.S_IMODE((await trio.Path(served.path).stat()).st_mode) == 0o600
    for module in (local_server, local_sockets):
        monkeypatch.setattr(module, "peer", lambda _: (1, 12345))
    with pytest.raises(BrokerDown, match="belongs to another user"):
        async with served.client():
            pass
    stream = await trio.open_unix_socket(served.path)
    [frame] = wire.Frames(1000).feed(await the_end(stream))
    assert "belongs to user 12345" in wire.parse(frame).reason
    for module in (local_server, local_sockets):
        monkeypatch.setattr(module, "peer", lambda _: (1, 0))  # root
    async with served.client() as client:
        assert client.broker.state.up


async def test_who_is_there_is_what_the_kernel_says(here):
    """SO_PEERCRED tells process and user of the other end."""
    served = here()
    stream = await served.talk()
    assert local_sockets.peer(stream.socket._sock) == (os.getpid(), os.geteuid())
    await stream.aclose()


async def test_another_version_is_refused_in_words(here):
    """Programs with a trionet that speaks otherwise are told so."""
    stream = await here().talk(wire.hello(1)[:-2], (9).to_bytes(2))
    [frame] = wire.Frames(1000).feed(await the_end(stream))
    assert "it speaks version 9" in wire.parse(frame).reason


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", wire.ping(1), wire.hello(1) + b"\0\0\0\1\x63", wire.hello(1) + bytes(4)],
    ids=["http", "no greeting", "unknown", "empty"],
)
async def test_what_makes_no_sense_ends_the_connection(here, data):
    """That one only: others go on."""
    served = here()
    async with served.client() as client:
        await the_end(await served.talk(data))
        await client.subscribe("t")
        await client.broker.publish("t", b"1")
        await client.seen.wait_data("t", b"1")
        assert client.broker.state.reconnects == 0


async def test_who_says_nothing_is_not_kept(here, monkeypatch):
    """A connection without a greeting is closed after a while."""
    monkeypatch.setattr(local_server, "_HELLO_TIMEOUT", 0.05)
    assert await the_end(await here().talk()) == b""


# ------------------------------------------------------------------- limits


async def test_limits_are_told_and_harm_nothing(here):
    """Data, texts, topics, members: what is too much raises `BrokerError`, and the connection goes on."""
    served = here(max_message=1000, max_topics=3, max_members=2)
    async with served.client() as client:
        broker = client.broker
        with pytest.raises(BrokerError, match="1001 bytes; the local broker takes at most 1000"):
            await broker.publish("t", bytes(1001))
        with pytest.raises(BrokerError, match="at most 1024 bytes"):
            await broker.publish("t", b"", key="k" * 1025)
        await broker.subscribe(["a", "b"])
        with pytest.raises(BrokerError, match="3 topics"):
            await broker.subscribe(["c", "d"])
        await broker.subscribe(["c"])
        await broker.enter("a", "m", "1", b"", 30)
        await broker.enter("a", "m", "2", b"", 30)
        with pytest.raises(BrokerError, match="more than 2 owners"):
            await broker.enter("a", "n", "3", b"", 30)
        await broker.leave("a", "m", "2")
        await broker.enter("a", "n", "3", b"", 30)
        for ttl in (float("nan"), float("inf"), -1.0):
            with pytest.raises(BrokerError, match="a ttl is 0 to"):
                await broker.refresh([("a", "n", "3")], ttl)
        await broker.publish("c", bytes(1000))
        await client.seen.wait_data("c", bytes(1000))
        assert broker.state.reconnects == 0


async def test_processes_are_bounded(here):
    """One more than may be there is refused with the reason."""
    served = here(max_processes=1)
    async with served.client():
        with pytest.raises(BrokerDown, match="1 processes already"):
            async with served.client():
                pass


async def test_histories_together_are_bounded(here):
    """However many topics: the ones published on longest ago are emptied first."""
    served = here(max_bytes=200_000)
    async with served.client() as client:
        for number in range(30):
            await client.broker.publish(f"t{number}", bytes(20_000))
        assert served.server.store.size <= 200_000
        assert (await client.broker.history("t0", None)).publications == []
        assert len((await client.broker.history("t29", None)).publications) == 1


async def test_who_does_not_read_is_cut_off_and_others_are_not(here):
    """Its queue has a bound; it comes back, and is told what it missed when it reads again."""
    served = here(max_queued=100_000)
    async with served.client() as slow, served.client() as quick:
        for client in (slow, quick):
            await client.subscribe("few.t")
        slow.seen.room = trio.Event()
        with trio.fail_after(10):
            for number in range(200):
                await quick.broker.publish("few.t", b"%d" % number + bytes(10_000))
        assert served.server.cut_off == 1
        assert len(quick.seen.got["few.t"]) == 200
        slow.seen.room.set()
        await slow.seen.until(lambda: slow.seen.got["few.t"][-1:] == quick.seen.got["few.t"][-1:])
        assert len(slow.seen.interruptions["few.t"]) == 1


# ------------------------------------------------------------ pages, batches


async def test_pages_have_a_bound_in_bytes(here):
    """Big publications come in several pages, from the beginning on; the newest ones, if no position is given."""
    served = here()
    data = [bytes([number]) * 900_000 for number in range(8)]
    broker = LocalBroker(served.path, rules={"big": BIG})
    reader = Client(broker)
    async with broker.running(reader.seen):
        first = [await broker.publish("big", piece) for piece in data][0]  # noqa: RUF015 - all are published
        page = await broker.history("big", Position(first.epoch, first.offset - 1))
        assert page.more
        assert [found.data for found in page.publications] == data[:5]
        rest = await broker.history("big", page.publications[-1].position)
        assert [found.data for found in rest.publications] == data[5:]
        assert not rest.more
        newest = await broker.history("big", None)
        assert [found.data for found in newest.publications] == data[3:]


async def test_what_came_in_one_read_is_answered_in_one_write(here):
    """A hundred requests sent at once have their answers in one piece."""
    served = here()
    requests = [wire.publish(number, (9, 99, 9.0), "t", "", "", "", b"x") for number in range(2, 102)]
    stream = await served.talk(wire.hello(1), *requests)
    with trio.fail_after(5):
        frames = wire.Frames(1000).feed(await stream.receive_some(65536))
    assert [wire.parse(frame).number for frame in frames] == list(range(1, 102))
    await stream.aclose()


# ---------------------------------------------------------------- upkeep


def test_owners_that_come_and_go_leave_nothing_behind():
    """What is kept for their expiry is bounded by who is there, however often one leaves, returns and is refreshed."""
    store = Store("e", lambda _: False)
    for now in range(300):
        store.enter("t", "m", "o", b"", now + 30.0)
        store.refresh([("t", "m", "o")], now + 31.0)
        assert store.expire(now) == []
        if now % 2:
            store.leave("t", "m", "o")
        assert store.owners == (now + 1) % 2
        assert sum(map(len, store._ends.values())) <= 31
    assert [change.event for change in store.expire(400.0)] == []
    assert store._ends == {}


def test_a_full_store_does_not_look_at_all_topics():
    """Histories that were emptied, and are listened to, do not stand in the way of the next one that is."""
    looks = 0

    def held(_: str) -> bool:
        nonlocal looks
        looks += 1
        return True

    store = Store("e", held, max_bytes=20_000)
    for number in range(1000):
        store.publish(f"t{number}", bytes(5000), HistoryLimits(), 0.0)
        assert store.size <= 20_000
    assert looks < 1100
    assert store.position("t0") == ("e", 1)


# ---------------------------------------------------------------- recovery


async def test_a_thousand_topics_are_recovered(here):
    """Cut off while all are published on: each has everything, once and in order."""
    served = here()
    topics = [f"t{number}" for number in range(1000)]
    async with served.client() as one, served.client(when_down="queue") as two:
        await one.subscribe(*topics)
        for step in (b"1", b"2", b"3"):
            async with trio.open_nursery() as nursery:
                for topic in topics:
                    nursery.start_soon(two.broker.publish, topic, step)
                if step == b"2":
                    await trio.lowlevel.checkpoint()
                    served.cut()
        await one.seen.until(lambda: all(len(one.seen.got[topic]) == 3 for topic in topics))
        assert all(one.seen.data(topic) == [b"1", b"2", b"3"] for topic in topics)
        assert not any(one.seen.interruptions.values())
        await one.wait_state(up=True)
        assert one.broker.state.reconnects == 1


async def test_more_than_a_page_is_caught_up_while_more_comes(here):
    """2,500 missed, and publishing goes on meanwhile: once each, in order, without an interruption."""
    served = here()
    async with served.client() as one, served.client() as two:
        await one.subscribe("long.t")
        one.seen.room = trio.Event()  # it reads no more
        await two.broker.publish("long.t", b"0")
        await one.seen.until(lambda: one.seen.got["long.t"])
        [process] = served.server.hub.subscribers("long.t")
        process.scope.cancel()
        for number in range(1, 2500):
            await two.broker.publish("long.t", b"%d" % number)
        one.seen.room.set()
        for number in range(2500, 2600):
            await two.broker.publish("long.t", b"%d" % number)
            await trio.lowlevel.checkpoint()
        await one.seen.wait_data("long.t", *[b"%d" % number for number in range(2600)])
        assert one.seen.interruptions["long.t"] == []


async def test_queued_publications_are_there_once(here):
    """Cut off again and again, those who queue without keys have each of their publications in the history once."""
    served = here()
    async with served.client(when_down="queue") as client, trio.open_nursery() as nursery:
        left = 20

        async def publish(name: int) -> None:
            nonlocal left
            for number in range(20):
                await client.broker.publish("long.q", b"%d.%d" % (name, number))
            left -= 1

        for name in range(20):
            nursery.start_soon(publish, name)
        with trio.fail_after(20):
            while left:
                await trio.sleep(0.01)
                served.cut()
        async with served.client() as reader:
            page = await reader.broker.history("long.q", None)
        found = [publication.data for publication in page.publications]
        assert len(found) == len(set(found)) == 400
        for name in range(20):
            mine = [data for data in found if data.startswith(b"%d." % name)]
            assert mine == [b"%d.%d" % (name, number) for number in range(20)]


async def test_a_new_broker_is_told_and_what_it_has_is_delivered(here):
    """The past is lost: `interrupted`, and then all that others have published meanwhile."""
    served = here()
    async with served.client() as one, served.client(when_down="queue") as two:
        await one.subscribe("t", "none.t")
        await two.broker.publish("t", b"old")
        await one.seen.wait_data("t", b"old")
        one.seen.room = trio.Event()  # it comes back later than the other
        await two.broker.publish("t", b"older")
        served.scope.cancel()
        served.begin()
        position = await two.broker.publish("t", b"new")
        one.seen.room.set()
        await one.seen.until(lambda: one.seen.data("t")[-1:] == [b"new"])
        assert one.seen.interruptions["t"] == [Position(position.epoch, position.offset - 1)]
        assert not one.seen.interruptions["none.t"]


async def test_a_busy_process_does_not_take_the_broker_for_dead(here):
    """A loop that stood still for longer than `timeout` has answers lying there unread."""
    served = here()
    async with served.client(timeout=0.15) as client:
        await client.seen.until(lambda: True)
        for _ in range(3):
            time.sleep(0.25)  # noqa: ASYNC251 - that is the point
            await trio.sleep(0.04)
        await client.broker.publish("t", b"")
        assert client.broker.state.up
        assert client.broker.state.reconnects == 0
        assert client.broker.state.lag is not None


async def test_where_nobody_listens_it_says_so_at_once(folder):
    """No file, and a file that nobody serves any more."""
    for prepare in (lambda: None, lambda: listen_local(f"{folder}/x").close()):
        prepare()
        with pytest.raises(BrokerDown, match=f"no local broker at {folder}/x"):
            async with LocalBroker(f"{folder}/x").running(Client(None).seen):  # type: ignore[arg-type]
                pass


def test_options_are_checked():
    """Values that cannot work are a `ConfigurationError`."""
    for options in (
        {"timeout": 0},
        {"ping_interval": 4, "timeout": 5},
        {"max_waiting": -1},
        {"when_down": "x"},
    ):
        with pytest.raises(ConfigurationError):
            LocalBroker("p", **options)  # type: ignore[arg-type]


# ----------------------------------------------------------------- the command


@pytest.mark.processes
def test_the_command_serves_one(folder):
    """`trionet broker PATH` says where, serves, and at SIGTERM ends with 0 and removes its file."""
    pytest.importorskip("cyclopts")
    path = f"{folder}/bus"
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "trionet", "broker", path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    try:
        assert process.stdout is not None
        assert f"local:{path}" in process.stdout.readline().decode()

        async def publish() -> None:
            broker = LocalBroker(path)
            async with broker.running(Client(broker).seen):
                assert (await broker.publish("t", b"1")).offset == 1

        trio.run(publish)
        with pytest.raises(OSError, match="another process listens on"):
            listen_local(path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not os.path.exists(path)  # noqa: PTH110
    finally:
        process.kill()
        process.communicate()
