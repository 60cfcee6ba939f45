"""One connection: its states, what it survives, what it costs, and that its end is told once."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trionet.errors import ConnectionClosed
from trionet.net import system
from trionet.net.connection import Connection
from trionet.net.engine import Engine
from trionet.net.outbox import FRAME_COST
from trionet.net.pool import TaskPool
from trionet.protocols.base import Protocol
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol
from trionet.wire.frames import Opcode, encode_frame


class Recorder(Protocol):
    """Writes down what is called, and does what a test puts in `act`."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.calls = []
        self.act = None

    @property
    def names(self):
        return [name for name, *_ in self.calls]

    async def data_received(self, connection, data):
        self.calls.append(("data", data))
        if self.act is not None:
            await self.act(connection, data)

    async def eof_received(self, connection):
        self.calls.append(("eof",))
        await super().eof_received(connection)

    async def connection_lost(self, connection, closed):
        self.calls.append(("lost", closed.code, closed.by))


class Bench:
    """A running engine and sockets at its other side."""

    def __init__(self, engine):
        self.engine = engine
        self.peers = []

    def connect(self, protocol, *, connection_class=Connection, tcp=False):
        """A connection of the engine, and the peer's end of it."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as server:
                peer = socket.create_connection(server.getsockname())
                ours, _ = server.accept()
        else:
            ours, peer = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ours.setblocking(False)
        peer.setblocking(False)
        self.peers.append(peer)
        return self.engine.add(ours.detach(), protocol, connection_class), peer


@asynccontextmanager
async def running(**settings):
    """An engine for the length of a block, on any backend."""
    bench = Bench(Engine(TaskPool(4), **settings))
    try:
        async with bench.engine.open():
            yield bench
    finally:
        for peer in bench.peers:
            peer.close()


@pytest.fixture
async def bench():
    """A running engine."""
    async with running() as bench:
        yield bench


def received(peer):
    """What has come to the peer, and whether that was the end."""
    found = []
    while True:
        try:
            data = peer.recv(65536)
        except BlockingIOError:
            return b"".join(found), False
        except ConnectionResetError:  # closed with unread input; what was sent before can still be read
            continue
        if not data:
            return b"".join(found), True
        found.append(data)


async def drained(peer):
    """All bytes until nothing more comes."""
    data, ended = received(peer)
    while True:
        await wait_all_tasks_blocked()
        more, ended = received(peer)
        if not more:
            return data, ended
        data += more


BIG = bytes(range(256)) * 600


# --------------------------------------------------------------------- states


async def test_a_new_connection_is_opening_until_its_protocol_says(bench):
    """OPENING → OPEN; a half-open one is counted apart."""

    class Silent(Recorder):
        def connection_made(self, connection):
            pass

    connection, _ = bench.connect(Silent())
    fd = connection.fileno()
    assert repr(connection) == f"<Connection fd={fd} opening>"
    assert (bench.engine.connections, bench.engine.opening) == (1, 1)
    connection.opened()
    assert repr(connection) == f"<Connection fd={fd} open>"
    assert (bench.engine.connections, bench.engine.opening, bench.engine.opened) == (1, 0, 1)


ACTIONS = {
    "finish": (lambda c: c.finish(), "closed", (1000, "us")),
    "abort": (lambda c: c.abort(), "closed", (1006, "us")),
    "reset": (lambda c: c.reset(), "closed", (1006, "us")),
    "finish with a reason": (lambda c: c.finish(ConnectionClosed(1001, "bye")), "closed", (1001, "peer")),
    "linger": (lambda c: c.linger(), "lingering", (1006, "us")),
}


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("name", ACTIONS)
async def test_closing_is_told_once(bench, name, opened):
    """Each way to close ends in `connection_lost`, once, with the first reason; a second close changes nothing."""

    class Maybe(Recorder):
        def connection_made(self, connection):
            if opened:
                super().connection_made(connection)

    act, state, (code, by) = ACTIONS[name]
    protocol = Maybe()
    connection, peer = bench.connect(protocol)
    act(connection)
    assert f" {state}" in repr(connection)
    assert bench.engine.opening == 0
    connection.finish(ConnectionClosed(4000, "too late"))
    connection.abort()
    connection.linger()
    assert connection.fileno() == -1
    assert bench.engine.connections == 0
    assert bench.engine.poller.watched == bench.engine.writer.watched == 0
    await wait_all_tasks_blocked()
    assert protocol.calls == [("lost", code, by)]
    assert " gone" in repr(connection)
    assert (connection.closed.code, connection.closed_error().code) == (code, code)
    assert received(peer) == (b"", True)


async def test_the_peer_leaves(bench):
    """End of input reaches the protocol, which by default closes."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("eof",), ("lost", 1006, "peer")]
    assert connection.peer is None
    assert connection.local is None


async def test_addresses_are_asked_from_the_kernel(bench):
    """No address is kept: both are asked for when read; a Unix socket has none."""
    connection, peer = bench.connect(Recorder(), tcp=True)
    assert connection.peer == peer.getsockname()
    assert connection.local == peer.getpeername()
    unix, _ = bench.connect(Recorder())
    assert unix.peer is None
    assert unix.local is None


async def test_wait_closed(bench):
    """Whoever waits for the end is woken by it; a waiter that is cancelled is forgotten; later ones do not wait."""
    connection, peer = bench.connect(Recorder())
    ended = []

    async def wait():
        await connection.wait_closed()
        ended.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.wait_closed()
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await connection.wait_closed()
        assert scope.cancelled_caught
        assert len(connection.rare().ended) == 2
        peer.close()
    assert ended == [1, 1]
    await connection.wait_closed()


async def cancel_soon(scope):
    """Cancel a scope as soon as everything waits."""
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_a_queue_that_cannot_be_watched_ends_the_connection(bench, monkeypatch):
    """Without room in the poller (fs.epoll.max_user_watches) what is queued would never be sent: so it is closed."""

    def register(fd, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    protocol = Recorder(hard_limit=10**7)
    connection, _ = bench.connect(protocol)
    monkeypatch.setattr(bench.engine.writer, "register", register)
    connection.write(BIG)
    assert connection.fd == -1
    assert connection.closed.reason == "No space left on device"
    await wait_all_tasks_blocked()
    assert protocol.names == ["lost"]


async def test_a_flush_that_fails_costs_its_connection_only(bench, caplog):
    """What a trait raises there does not end the engine."""

    class Broken(Connection):
        __slots__ = ()

        def flush(self):
            raise ValueError("flush")

    protocol = Recorder(hard_limit=10**7)
    connection, peer = bench.connect(protocol, connection_class=Broken)
    connection.write(BIG)
    await drained(peer)
    await wait_all_tasks_blocked()
    assert connection.is_gone
    assert "ValueError: flush" in caplog.text
    connection, peer = bench.connect(protocol)
    peer.send(b"x")
    await wait_all_tasks_blocked()
    assert protocol.calls[-1] == ("data", b"x")


# ------------------------------------------------------- readiness is a hint


async def test_nothing_to_read_is_no_end(bench):
    """A job that finds no bytes (EAGAIN) leaves the connection as it is."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    bench.engine.pool.submit(connection)
    await wait_all_tasks_blocked()
    assert protocol.calls == []
    peer.send(b"x")
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"x")]


async def test_data_that_comes_with_a_hang_up_is_read_first(bench):
    """Last words are delivered before the end is."""
    protocol = Recorder()
    _, peer = bench.connect(protocol)
    peer.send(b"last words")
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"last words"), ("eof",), ("lost", 1006, "peer")]


async def test_a_reset_while_reading(bench):
    """ECONNRESET ends this connection with 1006, by the network."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol, tcp=True)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("lost", 1006, "network")]
    assert connection.closed.reason == os.strerror(errno.ECONNRESET)


async def test_a_broken_pipe_while_writing(bench):
    """EPIPE ends the connection too, and further writes do nothing."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    peer.close()
    connection.write(b"x")
    connection.write(b"y")
    assert connection.closed.reason == os.strerror(errno.EPIPE)
    await wait_all_tasks_blocked()
    assert protocol.calls == [("lost", 1006, "network")]


async def test_a_broken_pipe_while_flushing(bench):
    """A peer that goes away with bytes queued for it is an ordinary end."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    connection.write(BIG)
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.names.count("lost") == 1
    assert connection.queued == 0
    assert bench.engine.writer.watched == 0


async def test_a_late_event_for_a_closed_descriptor(bench):
    """An event of a descriptor that nobody has any more is counted and forgotten."""
    engine = bench.engine
    connection, _ = bench.connect(Recorder())
    fd = connection.fd
    connection.abort()
    poll, engine._poll = engine._poll, lambda limit: [(fd, 1)]
    engine.fetch()
    engine._poll = poll
    assert engine.stale == 1
    assert engine.table[fd] is None


async def test_a_late_event_for_a_reused_descriptor(bench):
    """The next owner of the number reads, finds nothing, and is none the worse."""
    first, _ = bench.connect(Recorder())
    fd = first.fd
    first.abort()
    protocol = Recorder()
    second, peer = bench.connect(protocol)
    assert second.fd == fd
    bench.engine.pool.submit(second)  # what a late event does
    await wait_all_tasks_blocked()
    assert protocol.calls == []
    peer.send(b"x")
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"x")]


async def test_a_signal_in_between_changes_nothing(bench):
    """System calls interrupted by a signal (EINTR) are made again."""
    signal = pytest.importorskip("signal")
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        protocol = Recorder()
        connection, peer = bench.connect(protocol)
        while len(seen) < 5:
            connection.write(b"x" * 100)
            peer.send(b"y")
            await wait_all_tasks_blocked()
            received(peer)
        assert connection.closed is None
        assert set(protocol.names) == {"data"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def test_mark_then_unregister_then_close(bench, monkeypatch):
    """The descriptor is out of the object, the table and both pollers before its number is free for others."""
    connection, _ = bench.connect(Recorder())
    connection.write(BIG)
    fd, engine = connection.fd, bench.engine
    seen = []

    def close(number):
        seen.append((number, connection.fd, engine.table[fd], engine.poller.watched, engine.writer.watched))
        os.close(number)

    monkeypatch.setattr(system, "close", close)
    connection.abort()
    assert seen == [(fd, -1, None, 0, 0)]


# -------------------------------------------------------------------- writing


async def test_what_the_kernel_takes_is_not_queued(bench):
    """A write that fits goes straight through: no queue, no second poller."""
    connection, peer = bench.connect(Recorder())
    connection.write(b"hello")
    assert connection.queued == 0
    assert bench.engine.writer.watched == 0
    assert received(peer) == (b"hello", False)


async def test_what_the_kernel_does_not_take_is_queued_and_sent_later(bench):
    """The rest waits in the outbox, in order, and then the connection is as idle as before."""
    connection, peer = bench.connect(Recorder(high_water=10**6, hard_limit=10**7))
    connection.write(BIG)
    connection.write(b"second")
    connection.write(b"third")
    assert connection.queued > FRAME_COST
    assert f"{connection.queued} bytes queued" in repr(connection)
    assert bench.engine.writer.watched == 1
    assert await drained(peer) == (BIG + b"secondthird", False)
    assert connection.queued == 0
    assert connection._out is None
    assert bench.engine.writer.watched == 0


async def test_high_water_pauses_reading_and_low_water_resumes_it(bench):
    """A peer that does not read is not read from; below the low mark it is."""
    protocol = Recorder(high_water=1000, low_water=100, hard_limit=10**6)
    connection, peer = bench.connect(protocol)
    connection.write(BIG)
    assert connection.throttled
    assert "paused" in repr(connection)
    peer.send(b"unheard")
    await wait_all_tasks_blocked()
    assert protocol.calls == []
    await drained(peer)
    assert protocol.calls == [("data", b"unheard")]
    assert "paused" not in repr(connection)


async def test_the_hard_limit_closes_with_1013(bench):
    """A queue that no one empties costs its connection, not the server's memory."""
    protocol = Recorder(high_water=1000, hard_limit=len(BIG) + 100_000)
    connection, _ = bench.connect(protocol)
    writes = 0
    while connection.closed is None:
        connection.write(b"x" * 10_000)
        writes += 1
        assert writes < 100
        assert connection.queued <= protocol.hard_limit
    assert connection.closed.code == 1013
    assert bench.engine.overflowed == 1
    await wait_all_tasks_blocked()
    assert protocol.calls == [("lost", 1013, "us")]


async def test_wait_writable_waits_for_room(bench):
    """It returns when there is room, raises when the connection ends, and a cancelled one leaves no trace."""
    protocol = Recorder(high_water=1000, low_water=100, hard_limit=10**6)
    connection, peer = bench.connect(protocol)
    await connection.wait_writable(10**9)  # nothing is queued: there is room for anything
    connection.write(BIG)
    woken, failed = [], []

    async def wait():
        try:
            await connection.wait_writable(100)
            woken.append(connection.queued)
        except ConnectionClosed as error:
            failed.append(error.code)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await connection.wait_writable()
        assert scope.cancelled_caught
        assert connection._out.waiters == []
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not woken
        await drained(peer)
        assert woken == [0]
        connection.write(BIG)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        connection.abort()
    assert failed == [1006]
    with pytest.raises(ConnectionClosed):
        await connection.wait_writable()


async def test_finish_sends_what_is_queued_and_reads_no_more(bench):
    """After `finish` all bytes still go out, and input is not delivered any more, not even beyond the low mark."""
    protocol = Recorder(high_water=1000, low_water=999, hard_limit=10**6)

    async def act(connection, data):
        connection.write(BIG)
        connection.finish()

    protocol.act = act
    connection, peer = bench.connect(protocol)
    peer.send(b"go")
    await wait_all_tasks_blocked()
    assert "flushing" in repr(connection)
    peer.send(b"after the end")
    await wait_all_tasks_blocked()
    assert await drained(peer) == (BIG, True)
    assert protocol.calls == [("data", b"go"), ("lost", 1000, "us")]


async def test_flushing_is_not_interrupted_by_input(bench):
    """A queue small enough for reading to go on is sent before the close, and what comes meanwhile is not delivered."""
    protocol = Recorder(high_water=10**6, hard_limit=10**7)

    async def act(connection, data):
        connection.write(BIG)
        connection.finish()

    protocol.act = act
    _, peer = bench.connect(protocol)
    peer.send(b"go")
    await wait_all_tasks_blocked()
    protocol.act = None
    peer.send(b"after the end")
    await wait_all_tasks_blocked()
    assert await drained(peer) == (BIG, True)
    assert protocol.calls == [("data", b"go"), ("lost", 1000, "us")]


# ------------------------------------------------------------------- lingering


async def test_linger_lets_the_peer_read_our_last_words(bench):
    """Our side is shut behind what is queued; input is discarded; the peer's end is the end."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    connection.write(BIG)
    connection.linger()
    assert "lingering" in repr(connection)
    assert "flushing" in repr(connection)
    assert await drained(peer) == (BIG, True)
    peer.send(b"discarded")
    await wait_all_tasks_blocked()
    assert "lingering" in repr(connection)
    assert protocol.calls == []
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("lost", 1006, "us")]


async def test_lingering_has_an_end(autojump_clock):
    """A peer that neither reads nor leaves is waited for two seconds."""
    async with running() as bench:
        protocol = Recorder()
        connection, _ = bench.connect(protocol)
        connection.linger()
        await trio.sleep(1.5)
        assert "lingering" in repr(connection)
        await trio.sleep(1.5)
        assert protocol.calls == [("lost", 1006, "us")]


async def test_linger_after_the_peers_end_closes_when_all_is_sent(bench):
    """Nothing more can come, so there is nothing to wait for."""
    protocol = Recorder()

    class Lingers(Recorder):
        async def eof_received(self, connection):
            connection.write(BIG)
            connection.linger()

    protocol = Lingers()
    connection, peer = bench.connect(protocol)
    peer.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert await drained(peer) == (BIG, True)
    assert protocol.calls == [("lost", 1006, "us")]
    assert connection.fd == -1


# -------------------------------------------------------------------- deadlines


async def test_a_stalled_peer_is_reset(autojump_clock, caplog):
    """A peer that takes nothing for `write_timeout` is reset, also while a close waits for its queue."""
    async with running() as bench:
        for finishing in (False, True):
            protocol = Recorder(write_timeout=5)
            connection, peer = bench.connect(protocol)
            connection.write(BIG)
            if finishing:
                connection.finish(ConnectionClosed(1000, "", "us"))
            await trio.sleep(4)
            assert connection.fd >= 0
            peer.recv(65536)  # progress: the deadline begins anew
            await trio.sleep(4)
            assert connection.fd >= 0
            with caplog.at_level(logging.WARNING, "trionet"):
                await trio.sleep(2)
            assert protocol.names == ["lost"]
            assert "the peer has read nothing for 5 s" in caplog.text


async def test_an_idle_peer_is_closed(autojump_clock):
    """Nothing received for `idle_timeout` ends the connection; any byte begins it anew."""
    async with running() as bench:
        protocol = Recorder(idle_timeout=10)
        connection, peer = bench.connect(protocol)
        visited = bench.engine.wheel.visited
        await trio.sleep(8)
        peer.send(b"x")
        await trio.sleep(8)
        assert connection.fd >= 0
        await trio.sleep(3)
        assert protocol.calls == [("data", b"x"), ("lost", 1001, "us")]
        assert bench.engine.wheel.visited - visited == 2


async def test_deadlines_can_be_off(autojump_clock):
    """Without deadlines nothing is listed in the wheel for an idle connection, and time does not end it."""
    async with running() as bench:
        connection, _ = bench.connect(Recorder(idle_timeout=None, write_timeout=None))
        assert bench.engine.wheel.statistics().waiting == 0
        connection.write(BIG)
        await trio.sleep(1_000)
        assert connection.fd >= 0


async def test_a_broken_deadline_costs_its_connection(autojump_clock, caplog):
    """A protocol's mistake in `deadline_reached` closes one connection; the wheel goes on for the others."""

    class Broken(Recorder):
        def next_deadline(self, connection):
            if connection.data:
                raise ValueError
            return connection.engine.tick + 4

    async with running() as bench:
        bad, good = Broken(), Recorder(idle_timeout=10)
        connection, _ = bench.connect(bad)
        other, _ = bench.connect(good)
        connection.data = "break"
        await trio.sleep(2)
        assert bad.names == ["lost"]
        assert other.fd >= 0
        await trio.sleep(9)
        assert good.names == ["lost"]


async def test_ticks_that_were_missed_are_not_hurried_through(autojump_clock):
    """Lag is measured by the timer's own lateness."""
    async with running() as bench:
        await trio.sleep(3)
        assert bench.engine.lag == 0
        assert bench.engine.lag_max == 0
        assert bench.engine.tick == bench.engine.wheel.tick >= 12


# ------------------------------------------------------------------------ busy


async def test_a_busy_connection_is_still_heard(bench):
    """While its handler waits, input is kept, and worked off in order when it is done: one job at a time."""
    protocol = Recorder()
    gate, running_now = trio.Event(), []

    async def act(connection, data):
        running_now.append(1)
        assert len(running_now) == 1
        await gate.wait()
        running_now.pop()

    protocol.act = act
    connection, peer = bench.connect(protocol)
    peer.send(b"first")
    await wait_all_tasks_blocked()
    assert "busy" in repr(connection)
    for data in (b"sec", b"ond"):
        peer.send(data)
        await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"first")]
    gate.set()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"first"), ("data", b"second")]
    assert repr(connection) == f"<Connection fd={connection.fd} open>"
    assert connection._rare is None


async def test_what_a_busy_connection_keeps_has_a_bound(bench):
    """At `read_ahead` bytes it is not read any more, until the handler is done."""
    protocol = Recorder(read_ahead=10)
    gate = trio.Event()

    async def act(connection, data):
        await gate.wait()

    protocol.act = act
    connection, peer = bench.connect(protocol)
    for data in (b"1", b"x" * 10, b"rest"):
        peer.send(data)
        await wait_all_tasks_blocked()
    assert "paused" in repr(connection)
    assert connection.rare().held_size == 10
    gate.set()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"1"), ("data", b"x" * 10), ("data", b"rest")]
    assert repr(connection) == f"<Connection fd={connection.fd} open>"


async def test_the_end_of_input_during_a_handler_comes_after_it(bench):
    """What was sent before the end is delivered first; the end is told once."""
    protocol = Recorder()
    gate = trio.Event()

    async def act(connection, data):
        await gate.wait()

    protocol.act = act
    _, peer = bench.connect(protocol)
    peer.send(b"first")
    await wait_all_tasks_blocked()
    peer.send(b"second")
    peer.close()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"first")]
    gate.set()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"first"), ("data", b"second"), ("eof",), ("lost", 1006, "peer")]


async def test_an_end_of_input_that_is_awaited_is_told_once(bench):
    """`eof_received` may wait, and may leave its side open; it is not called again."""

    class HalfClosed(Recorder):
        async def eof_received(self, connection):
            self.calls.append(("eof",))
            await trio.lowlevel.checkpoint()
            connection.write(b"still here")

    protocol = HalfClosed()
    connection, peer = bench.connect(protocol)
    peer.shutdown(socket.SHUT_WR)
    await wait_all_tasks_blocked()
    assert protocol.calls == [("eof",)]
    assert received(peer) == (b"still here", False)
    connection.finish()


async def test_a_handler_that_fails_costs_its_connection_only(bench, caplog):
    """It is logged and closed; what was kept for it is dropped; its neighbour does not notice."""
    protocol, good = Recorder(), Recorder()
    gate = trio.Event()

    async def act(connection, data):
        if data == b"wait":
            await gate.wait()
        raise ValueError("handler's mistake")

    protocol.act = act
    _, peer = bench.connect(protocol)
    _, waiting = bench.connect(protocol)
    _, other = bench.connect(good)
    waiting.send(b"wait")
    await wait_all_tasks_blocked()
    waiting.send(b"kept")
    await wait_all_tasks_blocked()
    peer.send(b"x")
    await wait_all_tasks_blocked()
    gate.set()
    await wait_all_tasks_blocked()
    other.send(b"y")
    await wait_all_tasks_blocked()
    assert protocol.calls.count(("lost", 1006, "us")) == 2
    assert ("data", b"kept") not in protocol.calls
    assert caplog.text.count("handler failed, connection closed") == 2
    assert good.calls == [("data", b"y")]
    assert bench.engine.pool.statistics().failures == 2


async def test_a_protocol_that_fails_to_overhear_costs_its_connection_only(bench, caplog):
    """A mistake while a connection is busy is contained as well."""

    class Broken(Recorder):
        def overheard(self, connection, data):
            raise KeyError("overheard")

    protocol, gate = Broken(), trio.Event()

    async def act(connection, data):
        await gate.wait()

    protocol.act = act
    _, peer = bench.connect(protocol)
    peer.send(b"x")
    await wait_all_tasks_blocked()
    peer.send(b"y")
    await wait_all_tasks_blocked()
    gate.set()
    await wait_all_tasks_blocked()
    assert protocol.names == ["data", "lost"]
    assert "failed while it was busy" in caplog.text


async def test_pausing_is_idempotent_and_resuming_hears_what_waited(bench):
    """A paused connection is not read; resumed, it reads what the kernel kept."""
    protocol = Recorder()
    connection, peer = bench.connect(protocol)
    connection.pause_reading()
    connection.pause_reading()
    peer.send(b"x")
    await wait_all_tasks_blocked()
    assert protocol.calls == []
    connection.resume_reading()
    connection.resume_reading()
    await wait_all_tasks_blocked()
    assert protocol.calls == [("data", b"x")]


# --------------------------------------------------------------------- hard stop


KINDS = ["idle", "aborted", "busy", "busy and reset", "busy and aborted", "queued", "lingering"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hard_stop_tells_every_connection_its_end_once(kind):
    """Whatever a connection does when the block is left: its descriptor is closed and its end is told, once."""
    protocol = Recorder()

    async def act(connection, data):
        await trio.sleep_forever()

    protocol.act = act
    async with running() as bench:
        connection, peer = bench.connect(protocol, tcp=True)
        fd = connection.fd
        if "busy" in kind:
            peer.send(b"x")
            await wait_all_tasks_blocked()
            assert "busy" in repr(connection)
        if "reset" in kind:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await wait_all_tasks_blocked()
            assert connection.fd == -1
        if "aborted" in kind:
            connection.abort()
        if kind == "queued":
            while not connection.queued:
                connection.write(BIG)
        if kind == "lingering":
            connection.linger()
    assert protocol.names.count("lost") == 1
    assert connection.fd == -1
    assert bench.engine.connections == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("backend", ["epoll", "tasks"])
async def test_an_echo_on_every_backend(backend):
    """The same engine runs on the poller of the platform and on the portable one."""
    if not hasattr(__import__("select"), backend) and backend != "tasks":
        pytest.skip(backend)
    protocol = Recorder(high_water=10**6, hard_limit=10**7)

    async def act(connection, data):
        connection.write(data)

    protocol.act = act
    async with running(backend=backend) as bench:
        _, peer = bench.connect(protocol)
        sent = 0
        got = b""
        while len(got) < len(BIG):
            try:
                sent += peer.send(BIG[sent : sent + 5000])
            except BlockingIOError:
                pass
            await wait_all_tasks_blocked()
            got += received(peer)[0]
        assert got == BIG
        peer.close()
        await wait_all_tasks_blocked()
        assert protocol.names[-1] == "lost"


async def test_many_descriptors_grow_the_table(bench):
    """The table of connections grows with the numbers the kernel hands out."""
    protocol = Recorder()
    ends = [bench.connect(protocol) for _ in range(100)]
    assert len(set(bench.engine)) == 100
    assert max(connection.fd for connection, _ in ends) < len(bench.engine.table)
    for connection in bench.engine:
        connection.abort()
    assert list(bench.engine) == []


# ------------------------------------------------------------ what it costs

KEY = b"\x37\xfa\x21\x3d"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Echo(WebSocketHandler):
    """Sends back."""

    async def on_message(self, ws, message):
        await ws.send(message)


@asynccontextmanager
async def websocket():
    """One open WebSocket of an echo server: its object, the peer's socket and the bench."""
    async with running() as bench:
        protocol = WebSocketProtocol(Echo(), ping_interval=None)
        ws, peer = bench.connect(protocol, connection_class=protocol.connection_class)
        peer.send(HANDSHAKE)
        await wait_all_tasks_blocked()
        assert received(peer)[0].startswith(b"HTTP/1.1 101 ")
        yield ws, peer, bench


def hello(text=b"Hello"):
    """Return a text message of a client."""
    return encode_frame(Opcode.TEXT, text, key=KEY)


@pytest.fixture
def calls(monkeypatch):
    """Names of the system calls made on connections."""
    made = []

    def counted(name, call):
        def do(*args):
            made.append(name)
            return call(*args)

        return do

    monkeypatch.setattr(Connection, "_get", staticmethod(counted("read", system.read)))
    monkeypatch.setattr(Connection, "_put", staticmethod(counted("write", system.write)))
    monkeypatch.setattr(system, "writev", counted("writev", system.writev))
    return made


async def test_an_echo_is_one_read_and_one_write(calls):
    """A small message costs two system calls on its connection, and no event is asked for twice."""
    async with websocket() as (_, peer, _):
        for _ in range(3):
            calls.clear()
            peer.send(hello())
            await wait_all_tasks_blocked()
            assert received(peer) == (b"\x81\x05Hello", False)
            assert calls == ["read", "write"]


@pytest.mark.parametrize("count", [2, 16, 64])
async def test_answers_to_one_read_go_out_in_one_write(calls, count):
    """Pipelined messages are answered together, in order."""
    async with websocket() as (_, peer, _):
        calls.clear()
        peer.send(b"".join(hello(b"%03d" % i) for i in range(count)))
        await wait_all_tasks_blocked()
        assert received(peer)[0] == b"".join(b"\x81\x03%03d" % i for i in range(count))
        assert calls == ["read", "write"]


async def test_echoes_leave_nothing_behind():
    """Three hundred more echoes keep nothing, make no garbage for the collector, and leave no rare record."""
    async with websocket() as (ws, peer, _):

        async def echo():
            peer.send(hello())
            await wait_all_tasks_blocked()
            assert received(peer) == (b"\x81\x05Hello", False)

        for _ in range(20):
            await echo()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            await echo()
            before, objects = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
            for _ in range(300):
                await echo()
            after, more = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
        finally:
            tracemalloc.stop()
            gc.enable()
        assert (after - before) / 300 < 32  # less than any object; the interpreter's free lists may fill
        assert more - objects < 30
        assert ws._rare is ws._out is ws._input is None


MEASURE = """
import gc, resource, socket, sys, tracemalloc
import trio
from trio.testing import wait_all_tasks_blocked
from trionet.net.engine import Engine
from trionet.net.pool import TaskPool
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol

HANDSHAKE = {handshake!r}
HELLO = {hello!r}
COUNT = int(sys.argv[1])


class Echo(WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(message)


async def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = Engine(TaskPool(4))
    protocol = WebSocketProtocol(Echo())
    pairs = [socket.socketpair() for _ in range(COUNT)]
    peers = [peer for _, peer in pairs]
    fds = [ours.detach() for ours, _ in pairs]

    async def use(some):
        for fd in some:
            engine.add(fd, protocol, protocol.connection_class)
        for data in (HANDSHAKE, HELLO):
            for peer in peers:
                if peer.fileno() - 1 in used:
                    peer.send(data)
            await wait_all_tasks_blocked()
            for peer in peers:
                if peer.fileno() - 1 in used:
                    assert peer.recv(1000)

    for fd, peer in zip(fds, peers):
        assert peer.fileno() == fd + 1
    async with engine.open():
        used = set(fds[:50])
        rest = set(fds[50:])
        await use(fds[:50])  # what is made once is made now
        gc.collect()
        tracked = len(gc.get_objects())
        tracemalloc.start()
        used = rest
        await use(sorted(rest))
        gc.collect()
        more = len(gc.get_objects()) - tracked
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert engine.connections == COUNT
        print(size / (COUNT - 50), more / (COUNT - 50))

trio.run(main)
"""


@pytest.mark.measured
@pytest.mark.parametrize("count", [2050])
def test_bytes_of_an_idle_websocket(count):
    """After its handshake and one echo, an idle WebSocket holds at most 200 bytes and one object for the collector."""
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2 * count + 100:
        pytest.skip("not enough descriptors")
    script = MEASURE.format(handshake=HANDSHAKE, hello=hello())
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(count)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=50)
    assert result.returncode == 0, result.stderr
    size, objects = map(float, result.stdout.split())
    assert size <= 200
    assert objects <= 1.02
