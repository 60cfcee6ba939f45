"""`StreamProtocol`: a task and a Trio stream for each connection that has said something."""

from __future__ import annotations

import logging

import pytest
import trio
from tls_peer import serving_tls
from trio.testing import wait_all_tasks_blocked
from ws_peer import descriptors, serving, tasks, until

import trionet
from trionet.adapters.stream import StreamProtocol


async def echo(stream):
    """Send back what comes."""
    async for data in stream:
        await stream.send_all(data)


async def heard(peer, size):
    """Return `size` bytes from the peer's stream."""
    while len(peer.data) < size:
        assert await peer._more(), bytes(peer.data)
    return peer.take(size)


def port_of(peer):
    """Return the port that the server sees."""
    return peer.stream.socket.getsockname()[1]


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_echo_however_it_is_cut(how, backend):
    """The first bytes, which started the task, and all behind them come back in order."""
    async with serving(StreamProtocol(echo), backend=backend) as at:
        peer = await at.dial()
        data = bytes(range(256)) * (100 if how == "whole" else 1)
        for piece in [data] if how == "whole" else [data[n : n + 1] for n in range(len(data))]:
            await peer.send(piece)
            if how == "bytewise":
                await trio.lowlevel.checkpoint()
        assert await heard(peer, len(data)) == data
        await peer.stream.send_eof()
        await peer.ended()


async def test_half_close():
    """A handler that has read the end of the input may still send; its own end of output does not end its input."""

    async def handler(stream):
        await stream.send_eof()
        data = b""
        async for piece in stream:
            data += piece
        received.append(data)

    received = []
    async with serving(StreamProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(b"first ")
        assert not await peer._more()
        await peer.send(b"second")
        await peer.stream.send_eof()
        await until(lambda: received)
    assert received == [b"first second"]

    async def late(stream):
        size = 0
        async for piece in stream:
            size += len(piece)
        await stream.send_all(b"%d bytes" % size)

    async with serving(StreamProtocol(late)) as at:
        peer = await at.dial()
        await peer.send(b"x" * 100_000)
        await peer.stream.send_eof()
        assert await heard(peer, 12) == b"100000 bytes"
        await peer.ended()


async def test_no_task_for_the_silent():
    """A connection that says nothing has no task; with `eager` each has one at once, and the server may speak first."""

    async def greet(stream):
        await stream.send_all(b"hello")
        await trio.sleep_forever()

    async with serving(StreamProtocol(greet)) as at:
        before = tasks()
        peers = [await at.dial() for _ in range(10)]
        await until(lambda: at.server.statistics().connections == 10)
        await wait_all_tasks_blocked()
        assert (tasks(), at.server.statistics().streams) == (before, 0)
        await peers[0].send(b"x")
        assert await heard(peers[0], 5) == b"hello"
        assert tasks() == before + 2  # the handler's, and one that keeps their nursery

    async with serving(StreamProtocol(greet, eager=True)) as at:
        for _ in range(3):
            assert await heard(await at.dial(), 5) == b"hello"
        assert at.server.statistics().streams == at.server.statistics().connections == 3


async def test_a_silent_peer_is_let_go():
    """`idle_timeout` bounds the wait for the first bytes, and not what follows."""
    async with serving(StreamProtocol(echo, idle_timeout=0.1), resolution=0.01) as at:
        silent, talking = await at.dial(), await at.dial()
        await talking.send(b"x")
        await silent.ended()
        assert await heard(talking, 1) == b"x"
        await until(lambda: at.server.statistics().wheel.ticks > 30)
        await talking.send(b"y")
        assert await heard(talking, 1) == b"y"


async def test_a_peer_that_only_closes():
    """No task is started for a connection whose input ends before it begins."""
    called = []

    async def handler(stream):
        called.append(stream)

    async with serving(StreamProtocol(handler)) as at:
        peer = await at.dial()
        await peer.stream.send_eof()
        await peer.ended()
    assert called == []


async def test_a_handler_that_raises_is_alone(caplog):
    """Its connection is closed, with one record and a counter; also when the error comes in a group."""

    async def handler(stream):
        async for data in stream:
            if data == b"bad":
                raise RuntimeError("broken")
            if data == b"worse":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    raise RuntimeError("broken in a nursery")
            await stream.send_all(data)

    protocol = StreamProtocol(handler)
    async with serving(protocol) as at:
        good = await at.dial()
        for word in (b"bad", b"worse"):
            peer = await at.dial()
            await peer.send(word)
            await peer.ended()
        await good.send(b"fine")
        assert await heard(good, 4) == b"fine"
        await until(lambda: at.server.statistics().connections == 1)
    assert protocol.failures == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "handler failed" in caplog.text
    assert "test_a_handler_that_raises_is_alone" in caplog.text


async def test_stalled_handlers_hold_no_slot():
    """Pool of 4: ten handlers that wait for silent peers, ten that wait for slow ones; an echo still answers."""

    async def handler(stream):
        if await stream.receive_some() == b"flood":
            while True:
                await stream.send_all(bytes(65536))
        async for data in stream:
            await stream.send_all(data)

    async with serving(StreamProtocol(handler), pool_size=4, slot_grace=0.005) as at:
        for word in (b"wait", b"flood"):
            for _ in range(10):
                await (await at.dial(small=True)).send(word)
        for _ in range(10):
            await at.dial()
        good = await at.dial()
        await good.send(b"hello")
        await until(lambda: at.server.statistics().streams == 21)
        await good.send(b"x")
        assert await heard(good, 1) == b"x"


async def test_nothing_starts_while_the_pool_is_full():
    """A task is started by a worker: while all slots are taken the peer waits."""
    release, entered = trio.Event(), trio.Event()

    async def busy(connection, line):
        entered.set()
        await release.wait()

    endpoints = [
        trionet.Endpoint(protocol=trionet.LineProtocol(busy), port=0),
        trionet.Endpoint(protocol=StreamProtocol(echo), port=0),
    ]
    async with serving(endpoints, pool_size=1, slot_grace=1000) as at:
        peer = await at.dial(at.server.addresses[1])
        await until(lambda: at.server.statistics().connections == 1)
        await (await at.dial()).send(b"take it\n")
        await entered.wait()
        await peer.send(b"x")
        await wait_all_tasks_blocked(0.01)
        assert at.server.statistics().streams == 0
        release.set()
        assert await heard(peer, 1) == b"x"


@pytest.mark.parametrize("eager", [False, True])
async def test_max_tasks(eager):
    """Beyond `max_tasks` nothing starts and nothing is accepted; whoever waits gets the next place, in order."""
    started, release = [], {}

    async def handler(stream):
        name = await stream.receive_some(1)
        started.append(name)
        release[name] = trio.Event()
        await release[name].wait()
        await stream.send_all(b"done")

    protocol = StreamProtocol(handler, eager=eager, max_tasks=2)
    endpoints = [
        trionet.Endpoint(protocol=protocol, port=0),
        trionet.Endpoint(protocol=StreamProtocol(echo), port=0),
    ]
    async with serving(endpoints) as at:
        peers = {}
        for name in (b"a", b"b"):
            peers[name] = await at.dial()
        await until(lambda: at.server.statistics().gate.accepted == 2)
        if not eager:  # silent ones do not count: more of them may be accepted
            peers[b"c"] = await at.dial()
            await until(lambda: at.server.statistics().gate.accepted == 3)
        for name in (b"a", b"b"):
            await peers[name].send(name)
            await until(lambda name=name: name in started)
        if eager:
            peers[b"c"] = await at.dial()
        await peers[b"c"].send(b"c")
        peers[b"d"] = await at.dial()
        await peers[b"d"].send(b"d")
        other = await at.dial(at.server.addresses[1])  # another listener is not affected
        await other.send(b"x")
        assert await heard(other, 1) == b"x"
        assert started == [b"a", b"b"]
        assert at.server.statistics().gate.held["tasks"] > 0
        for name, following in ((b"a", b"c"), (b"b", b"d"), (b"c", None), (b"d", None)):
            release[name].set()
            assert await heard(peers[name], 4) == b"done"
            await until(lambda name=following: name is None or name in started)
    assert started == [b"a", b"b", b"c", b"d"]
    assert not protocol.tasks.waiting


async def test_whoever_leaves_the_queue_passes_the_place_on():
    """Peers that leave while they wait for a place, or in their turn, do not keep it from the next one."""

    async def handler(stream):
        started.append(await stream.receive_some())
        await release.wait()

    started, release = [], trio.Event()
    async with serving(StreamProtocol(handler, max_tasks=1)) as at:
        peers = [await at.dial() for _ in range(5)]
        await until(lambda: at.server.statistics().gate.accepted == 5)
        await peers[0].send(b"0")
        await until(lambda: started)
        for number, peer in enumerate(peers[1:], 1):
            await (peer.stream.send_eof() if number < 3 else peer.send(b"%d" % number))
            await until(lambda number=number: len(at.protocol.tasks.waiting) == number)
        next(
            connection for connection in at.protocol.tasks.waiting if connection.peer[1] == port_of(peers[3])
        ).abort()
        release.set()
        await until(lambda: b"4" in started)
    assert started == [b"0", b"4"]


async def test_half_a_tls_record_keeps_no_place():
    """Who has a turn, and then nothing that can be read, does not keep the place from the next one."""

    async def handler(stream):
        started.append(await stream.receive_some())
        await release.wait()

    started, release = [], trio.Event()
    async with serving_tls(StreamProtocol(handler, max_tasks=1)) as at:
        peers = [await at.dial() for _ in range(3)]
        for peer in peers:
            await peer.stream.do_handshake()
        await peers[0].send(b"0")
        await until(lambda: started)
        await peers[1].stream.transport_stream.send_all(b"\x17\x03\x03\x00\x40half")
        await until(lambda: len(at.protocol.tasks.waiting) == 1)
        await peers[2].send(b"2")
        await until(lambda: len(at.protocol.tasks.waiting) == 2)
        release.set()
        await until(lambda: b"2" in started)
        await trio.testing.wait_all_tasks_blocked()
        assert not at.protocol.tasks.living
        for peer in peers:
            await peer.stream.transport_stream.aclose()


async def test_hard_stop_leaves_nothing():
    """Leaving the server's block cancels every handler, runs its `finally`, and releases every descriptor."""
    ends = []

    async def handler(stream):
        try:
            if await stream.receive_some() == b"s":
                await trio.sleep_forever()
            async for _ in stream:
                pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            ends.append(stream)

    before = descriptors(), tasks()
    async with serving(StreamProtocol(handler)) as at:
        peers = [await at.dial() for _ in range(20)]
        for peer in peers[:15]:
            await peer.send(b"s" if peer in peers[:7] else b"r")
        await until(lambda: at.server.statistics().streams == 15)
        for peer in peers:
            await peer.aclose()
    assert len(ends) == 15
    assert all(stream.socket.fileno() == -1 for stream in ends)
    assert (descriptors(), tasks()) == before


@pytest.mark.parametrize("raises", [False, True])
async def test_hard_stop_and_an_error_in_one_group(raises, caplog):
    """A handler whose nursery fails while it is cancelled costs neither the stop nor the others."""

    async def handler(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                if raises:
                    raise ValueError("on the way out")

    protocol = StreamProtocol(handler)
    async with serving(protocol) as at:
        peers = [await at.dial() for _ in range(3)]
        for peer in peers:
            await peer.send(b"x")
        await until(lambda: at.server.statistics().streams == 3)
    assert protocol.failures == (3 if raises else 0)


async def test_drain_gives_handlers_a_grace(autojump_clock):
    """A handler may end within `drain_grace`; then it is cancelled. Who waits for first bytes is closed at once."""
    ends = []

    async def handler(stream):
        word = await stream.receive_some()
        try:
            await trio.sleep(3 if word == b"short" else 1000)
            await stream.send_all(b"bye")
        finally:
            ends.append((word, trio.current_time() - begin))

    async with serving(StreamProtocol(handler, drain_grace=5)) as at:
        peers = {word: await at.dial() for word in (b"short", b"long", b"silent")}
        await peers[b"short"].send(b"short")
        await peers[b"long"].send(b"long")
        await until(lambda: at.server.statistics().streams == 2, step=0.01)
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peers[b"silent"].ended)
            assert await at.server.drain(jitter=0, timeout=60)
        assert await heard(peers[b"short"], 3) == b"bye"
        await peers[b"long"].ended()
        assert at.server.statistics().connections == 0
    assert [word for word, _ in ends] == [b"short", b"long"]
    assert ends[0][1] <= 3
    assert 4.9 < ends[1][1] < 5.5


async def test_drain_does_not_wait_for_ever():
    """Those whose handlers shield themselves are closed when the server's block is left."""

    async def handler(stream):
        with trio.CancelScope(shield=True):
            entered.set()
            await release.wait()

    entered, release = trio.Event(), trio.Event()
    async with serving(StreamProtocol(handler, drain_grace=0)) as at:
        peer = await at.dial()
        await peer.send(b"x")
        await entered.wait()
        assert not await at.server.drain(jitter=0, timeout=0.05)
        assert at.server.statistics().connections == 1
        release.set()


async def test_max_connections_counts_streams():
    """A connection that has a task counts as one until the task has ended."""

    async def handler(stream):
        await stream.receive_some()
        await stream.receive_some()

    async with serving(StreamProtocol(handler), max_connections=2) as at:
        peers = [await at.dial() for _ in range(3)]
        for peer in peers:
            await peer.send(b"x")
        await until(lambda: at.server.statistics().streams == 2)
        await until(lambda: at.server.statistics().gate.held["connections"] > 0)
        assert at.server.statistics().gate.accepted == 2
        await peers[0].send(b"leave")
        await until(lambda: at.server.statistics().gate.accepted == 3)
        await until(lambda: at.server.statistics().streams == 2)


@pytest.mark.parametrize("bad", [{"max_tasks": 0}, {"drain_grace": -1}])
def test_settings_that_cannot_work(bad):
    """They are refused when the protocol is made."""
    with pytest.raises(trionet.ConfigurationError):
        StreamProtocol(echo, **bad)
