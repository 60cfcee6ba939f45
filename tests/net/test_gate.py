"""The accept gate: what cannot be served is not accepted, and the gate opens again by itself."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trionet.net import gate as module
from trionet.net.engine import Engine
from trionet.net.gate import AcceptGate
from trionet.net.listener import PASSING, SHORTAGE, Endpoint, open_listeners
from trionet.net.pool import TaskPool
from trionet.protocols.base import Protocol


class Echo(Protocol):
    """Sends back what comes."""

    async def data_received(self, connection, data):
        connection.write(data)


class HalfOpen(Echo):
    """A protocol whose greeting is the first input."""

    def connection_made(self, connection):
        pass

    async def data_received(self, connection, data):
        if connection._state & 7 == 0:
            connection.opened()
        connection.write(data)


class Clients:
    """A gate that accepts from a real listener, and clients of it."""

    def __init__(self, engine, gate, listener):
        self.engine, self.gate, self.listener = engine, gate, listener
        self.sockets = []

    def connect(self, count=1):
        """Connect, and say something; returns the last client's socket."""
        for _ in range(count):
            sock = socket.create_connection(self.listener.address)
            sock.setblocking(False)
            self.sockets.append(sock)
        return sock

    async def answered(self, sock):
        """Whether a client gets an answer."""
        sock.send(b"?")
        await wait_all_tasks_blocked()
        try:
            return bool(sock.recv(100))
        except BlockingIOError:
            return False


@asynccontextmanager
async def serving(protocol, *, pool=None, **limits):
    """An engine with a gate and one listener, on a free port."""
    limits = {"max_connections": 1000, "max_opening": 1000, "max_detached": 1000} | limits
    engine = Engine(pool or TaskPool(4))
    (listener,) = await open_listeners(Endpoint(protocol=protocol))
    gate = AcceptGate(engine, **limits)
    clients = Clients(engine, gate, listener)
    try:
        async with engine.open(), trio.open_nursery() as nursery:
            gate.open(listener)
            nursery.start_soon(gate.run)
            try:
                yield clients
            finally:
                gate.close()
                nursery.cancel_scope.cancel()
    finally:
        listener.close()
        for sock in clients.sockets:
            sock.close()


async def test_what_connects_is_accepted_and_served():
    """Every client gets a connection of the listener's protocol, and an answer."""
    async with serving(Echo()) as clients:
        clients.connect(100)
        await wait_all_tasks_blocked()
        assert clients.gate.statistics().accepted == clients.engine.connections == 100
        assert sum(clients.gate.statistics().held.values()) == 0
        assert [await clients.answered(sock) for sock in clients.sockets] == [True] * 100


async def test_as_many_connections_as_fit(autojump_clock):
    """At `max_connections` others wait in the backlog, and are let in as connections end."""
    async with serving(Echo(), max_connections=3) as clients:
        late = clients.connect(5)
        await trio.sleep(1)
        statistics = clients.gate.statistics()
        assert (clients.engine.connections, statistics.accepted) == (3, 3)
        assert statistics.held["connections"] > 1
        assert await clients.answered(clients.sockets[0])
        assert not await clients.answered(late)
        for sock in clients.sockets[:2]:
            sock.close()
        await trio.sleep(1)
        assert clients.gate.statistics().accepted == 5
        assert late.recv(10) == b"?"


async def test_half_open_handshakes_hold_the_gate(autojump_clock):
    """Clients that connect and say nothing are bounded; those that are open do not count."""
    async with serving(HalfOpen(), max_opening=2) as clients:
        clients.connect(4)
        await trio.sleep(1)
        assert (clients.engine.opening, clients.engine.connections) == (2, 2)
        assert clients.gate.statistics().held["handshakes"] > 1
        assert await clients.answered(clients.sockets[0])
        assert await clients.answered(clients.sockets[1])
        await trio.sleep(1)
        assert (clients.engine.opening, clients.engine.connections) == (2, 4)


async def test_too_many_detached_handlers_hold_the_gate(autojump_clock):
    """Handlers that wait for long are bounded by the gate, not by the pool."""
    gate = trio.Event()

    class Waits(Protocol):
        async def data_received(self, connection, data):
            await gate.wait()
            connection.write(data)

    async with serving(Waits(), max_detached=2) as clients:
        clients.connect(2)
        for sock in clients.sockets:
            sock.send(b"x")
        await trio.sleep(1)
        assert clients.engine.pool.detached == 2
        late = clients.connect()
        await trio.sleep(1)
        assert clients.engine.connections == 2
        assert clients.gate.statistics().held["detached"] > 1
        gate.set()
        await trio.sleep(1)
        assert clients.engine.connections == 3
        assert await clients.answered(late)


async def test_a_full_pool_accepts_nothing(autojump_clock):
    """When every slot is taken nobody is accepted; the first free slot accepts all who wait."""
    release = trio.Event()

    async def blocks():
        await release.wait()

    pool = TaskPool(2, slot_grace=float("inf"))
    async with serving(Echo(), pool=pool) as clients:
        await pool.schedule(blocks)
        await pool.schedule(blocks)
        await wait_all_tasks_blocked()
        clients.connect(3)
        await trio.sleep(1)
        assert clients.gate.statistics().accepted == 0
        release.set()
        await trio.sleep(1)
        assert clients.gate.statistics().accepted == 3


async def test_a_closed_gate_accepts_no_more(autojump_clock):
    """After `close` nothing is accepted, also when a cool-down ends; closing twice is closing once."""
    async with serving(Echo(), max_connections=1) as clients:
        clients.connect(2)
        await wait_all_tasks_blocked()
        clients.gate.close()
        clients.gate.close()
        clients.sockets[0].close()
        await trio.sleep(1)
        assert clients.engine.connections == 0
        assert clients.gate.statistics().accepted == 1
        assert clients.engine.poller.watched == 0


# ------------------------------------------------------------ errors of accept


async def test_a_listener_that_was_readable_when_the_gate_closed():
    """Its job may be queued then, behind whoever closes the gate: it does nothing, be the socket closed by now."""
    async with serving(Echo()) as clients:
        clients.connect()
        clients.engine.fetch()
        (job,) = clients.engine.pool.ready
        clients.gate.close()
        clients.listener.close()
        await job.run()
        assert clients.gate.accepted == 0
        assert not clients.gate.errnos


class FakeListener:
    """Readable while it has answers, which are what `accept` does: an errno, or None for a connection."""

    def __init__(self, protocol, answers):
        self.protocol = protocol
        self.answers = []
        self.ours, self.peer = socket.socketpair()
        self.ours.setblocking(False)
        self.peers = []
        self.give(*answers)

    def give(self, *answers):
        self.answers += answers
        if self.answers:
            self.peer.send(b"x")

    def fileno(self):
        return self.ours.fileno()

    def accept(self):
        if not self.answers:
            self.ours.recv(100)
            raise BlockingIOError
        answer = self.answers.pop(0)
        if answer is not None:
            raise OSError(answer, os.strerror(answer))
        ours, peer = socket.socketpair()
        self.peers.append(peer)
        ours.setblocking(False)
        return ours.detach()

    def close(self):
        for sock in (self.ours, self.peer, *self.peers):
            sock.close()


@pytest.fixture
async def fake():
    """Return a function that opens a gate for a fake listener inside a running engine."""
    opened = []

    @asynccontextmanager
    async def start(answers, protocol=None):
        listener = FakeListener(protocol or Echo(), answers)
        engine = Engine(TaskPool(2))
        gate = AcceptGate(engine, max_connections=1000, max_opening=1000, max_detached=1000)
        opened.append(listener)
        async with engine.open(), trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            try:
                yield gate, listener
            finally:
                gate.close()
                nursery.cancel_scope.cancel()

    yield start
    for listener in opened:
        listener.close()


@pytest.mark.parametrize("code", sorted(PASSING), ids=errno.errorcode.get)
async def test_errors_of_a_connection_pass(fake, code):
    """An error of a connection that never was is counted, and the next one is accepted at once."""
    async with fake([code, None, code, None]) as (gate, listener):
        gate.accept_some(listener)
        assert (gate.accepted, gate.errors, gate.shortages) == (2, 2, 0)


@pytest.mark.parametrize("code", sorted(SHORTAGE), ids=errno.errorcode.get)
async def test_a_shortage_pauses_the_gate(fake, code, autojump_clock, caplog):
    """Out of something: one line of log in five seconds, and a new look every 100 ms until it has passed."""
    answers = [code, errno.EAGAIN] * 20 + [None]
    async with fake(answers) as (gate, listener):
        gate.open(listener)
        with caplog.at_level(logging.WARNING, "trionet"):
            await trio.sleep(1.05)
            assert 9 <= gate.shortages <= 12
            assert len(caplog.records) == 1
            assert "Raise the limit (ulimit -n" in caplog.text
            await trio.sleep(3)
        assert gate.accepted == 1
        assert gate.shortages == 20
        assert len(caplog.records) == 1


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK])
async def test_a_broken_listener_ends_the_server(fake, code):
    """An error that does not pass is not hidden: it leaves the engine's block."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, check=lambda error: error.errno == code), flatten_subgroups=True
    ):
        async with fake([code]) as (gate, listener):
            gate.open(listener)
            await trio.sleep_forever()


async def test_the_spare_descriptor_sheds(fake):
    """At EMFILE the spare descriptor is given up to accept and close what waits, and taken again."""
    async with fake([errno.EMFILE, None, None, errno.EMFILE]) as (gate, listener):
        gate.accept_some(listener)
        assert (gate.shortages, gate.shed, gate.accepted) == (1, 2, 0)
        assert gate._spare >= 0
        assert [peer.recv(10) for peer in listener.peers] == [b"", b""]


async def test_without_a_spare_descriptor_nothing_is_shed(fake, monkeypatch):
    """If not even the spare can be had, the gate only waits; it takes one as soon as it can."""
    async with fake([errno.EMFILE, errno.EMFILE, None]) as (gate, listener):
        os.close(gate._spare)
        gate._spare = -1
        monkeypatch.setattr(module, "_open_spare", lambda: -1)
        gate.accept_some(listener)
        assert (gate.shortages, gate.shed, gate._spare) == (1, 0, -1)
        monkeypatch.undo()
        gate.accept_some(listener)
        assert (gate.shortages, gate.shed) == (2, 1)
        assert gate._spare >= 0


async def test_a_spare_that_cannot_be_opened(monkeypatch):
    """Opening the spare may fail too; that is no error."""

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    assert module._open_spare() == -1


async def test_a_protocol_that_fails_to_greet_costs_its_connection_only(fake, caplog):
    """A mistake in `connection_made` closes that connection; the server goes on."""

    class Broken(Echo):
        def connection_made(self, connection):
            super().connection_made(connection)
            if self.broken:
                raise ValueError("connection_made")

        broken = True

    protocol = Broken()
    async with fake([None, None], protocol) as (gate, listener):
        gate.open(listener)
        await wait_all_tasks_blocked()
        protocol.broken = False
        listener.give(None)
        await wait_all_tasks_blocked()
        assert gate.engine.connections == 1
        assert gate.accepted == 3
        assert "connection_made" in caplog.text


async def test_a_connection_that_cannot_be_watched_is_shed(fake, monkeypatch, autojump_clock, caplog):
    """Without room in the poller for one more (fs.epoll.max_user_watches) the gate closes it, and pauses."""
    async with fake([None, None, errno.EAGAIN]) as (gate, listener):
        poller = gate.engine.poller

        def register(fd, *args, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(poller, "register", register)
            gate.accept_some(listener)
        assert (gate.accepted, gate.shortages, gate.shed) == (1, 1, 2)
        assert [peer.recv(10) for peer in listener.peers] == [b"", b""]
        engine = gate.engine
        assert (engine.connections, engine.opening, engine.opened) == (0, 0, 0)
        gate.open(listener)
        listener.give(None)
        await trio.sleep(1)
        assert engine.connections == 1
        assert "No space left" in caplog.text


async def test_a_protocol_that_fails_at_a_failure_costs_its_connection_only(fake, caplog):
    """A `handler_failed` that raises is logged, and ends one connection."""

    class Broken(Echo):
        def connection_made(self, connection):
            raise ValueError("connection_made")

        def handler_failed(self, connection, error):
            raise ValueError("handler_failed")

    async with fake([None], Broken()) as (gate, listener):
        gate.open(listener)
        await wait_all_tasks_blocked()
        assert listener.peers[0].recv(10) == b""
        assert gate.engine.connections == 0
        assert "handler_failed failed" in caplog.text


async def test_a_listener_may_get_a_number_with_a_deadline_of_its_former_owner(fake, autojump_clock):
    """What a closed connection left in the wheel under a descriptor's number does not concern its next owner."""
    async with fake([]) as (gate, listener):
        engine = gate.engine
        engine.wheel.add(listener.fileno(), engine.tick + 2)
        gate.open(listener)
        await trio.sleep(2)
        listener.give(None)
        await wait_all_tasks_blocked()
        assert gate.accepted == 1


SCRIPT = """
import resource, socket, sys
import trio
from trio.testing import wait_all_tasks_blocked
import trionet


class Echo(trionet.Protocol):
    async def data_received(self, connection, data):
        connection.write(data)


async def main():
    clients = []

    def connect():
        sock = socket.create_connection(address)
        sock.settimeout(5)
        clients.append(sock)
        return sock

    async with trionet.open_server(Echo(), max_connections=10_000) as server:
        address = server.addresses[0]
        await wait_all_tasks_blocked()
        spare = [socket.socket() for _ in range(12)]  # numbers for the clients that come later
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1].fileno() + 1, spare[-1].fileno() + 1))
        for sock in spare[:6]:
            sock.close()
        for _ in range(3):
            connect()
        await trio.sleep(0.01)
        assert server.engine.connections == 3, server.statistics()
        for sock in spare[6:9]:
            sock.close()
        shed = [connect() for _ in range(3)]  # they are connected by the kernel, and we have nothing left
        with trio.fail_after(5):
            while server.gate.shed < 3:
                await trio.sleep(0.01)
        for sock in shed:
            assert sock.recv(10) == b"", "a client that cannot be served is told at once"
        assert server.engine.connections == 3
        assert server.gate.shortages >= 1
        clients[0].sendall(b"alive")
        await trio.sleep(0.01)
        assert clients[0].recv(10) == b"alive"
        for sock in shed:
            sock.close()
        late = connect()
        late.sendall(b"late")
        with trio.fail_after(5):
            while server.engine.connections < 4:
                await trio.sleep(0.01)
        await trio.sleep(0.01)
        assert late.recv(10) == b"late"
        print("recovered", server.gate.shed)
        for sock in [*clients, *spare]:
            sock.close()


trio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors as Linux does")
def test_out_of_descriptors():
    """At the real limit clients are shed and counted, those who are served notice nothing, and it passes."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=50)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("recovered")
