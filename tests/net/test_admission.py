"""Admission policies: what each decides, and what becomes of those refused."""

from __future__ import annotations

import logging
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from tls_peer import client_context, server_context, serving_tls
from ws_peer import GENEROUS, Echo, Peer, descriptors, request, serving, until

import trionet
from trionet.net.admission import (
    AddressLimit,
    AdmissionPolicy,
    ConnectionLimit,
    HandshakeRate,
    LoopLag,
    MemoryLimit,
    PoolWait,
    from_limits,
)
from trionet.net.doorkeeper import Doorkeeper
from trionet.net.load import Cgroup, Readings

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def load(now=0.0, **readings):
    """Return what policies look at."""
    quiet = {"connections": 0, "opening": 0, "lag": 0.0, "pool_wait": 0.0, "resident": 0, "cgroup_share": 0.0}
    return SimpleNamespace(now=now, **quiet | readings)


class Closed(AdmissionPolicy):
    """Refuses everybody while `shut`."""

    name = "closed"
    shut = True

    def room(self, load):
        return 0 if self.shut else 1000

    def explain(self, load):
        return "by decree"


# ---------------------------------------------------------------- decisions


def test_as_many_connections_as_the_limit():
    """There is room for what the limit leaves, and never for less than none."""
    policy = ConnectionLimit(10)
    assert [policy.room(load(connections=count)) for count in (0, 9, 10, 12)] == [10, 1, 0, 0]
    assert policy.explain(load(connections=12)) == "12 connections of 10"


def test_a_rate_of_connections():
    """A second's worth may come at once; then as many as time brings; a pause saves up no more than that."""
    policy = HandshakeRate(10)
    assert policy.room(load(5.0)) == 10
    policy.accepted(10)
    assert [policy.room(load(now)) for now in (5.0, 5.09, 5.11, 5.25)] == [0, 0, 1, 2]
    assert policy.room(load(4.0)) == 2
    assert policy.room(load(1000.0)) == 10
    assert HandshakeRate(0.1).room(load()) == 1
    assert HandshakeRate(1, burst=50).room(load()) == 50
    assert "10 new connections a second" in policy.explain(load())


@pytest.mark.parametrize(
    "policy, reading",
    [
        (LoopLag(0.2, smoothing=0), "lag"),
        (PoolWait(0.2), "pool_wait"),
        (MemoryLimit(share=0.2, resume=0.1), "cgroup_share"),
    ],
    ids=["lag", "pool", "memory"],
)
def test_thresholds_have_two_ends(policy, reading):
    """Refusing begins above the limit and ends below half of it; in between nothing changes."""
    decisions = []
    for value in (0.0, 0.2, 0.21, 0.15, 0.1, 0.15, 0.21):
        policy.sample(load(**{reading: value}))
        decisions.append(policy.room(load()) > 0)
    assert decisions == [True, True, False, False, True, True, False]
    assert "0.2" in policy.explain(load()) or "20" in policy.explain(load())


def test_one_long_pause_is_no_overload():
    """Lag is smoothed: one late tick does not refuse anybody, a second of them does."""
    policy = LoopLag(0.2)
    verdicts = []
    lags = [0, 0, 0.5, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    for step, lag in enumerate(lags):
        policy.sample(load(step / 4, lag=lag))
        verdicts.append(policy.refusing)
    assert verdicts == [False] * 7 + [True] * 3


def test_connections_of_one_address():
    """Each address has its own count, which goes down with its connections and is forgotten at none."""
    policy = AddressLimit(2)
    seats = [policy.admit(("192.0.2.1", port)) for port in (1, 2)]
    assert policy.admit(("192.0.2.1", 3)) is None
    assert policy.admit(("192.0.2.2", 3)) is not None
    policy.left(seats.pop())
    assert policy.admit(("192.0.2.1", 4)) is not None
    assert sorted(policy.counts.values()) == [1, 2]
    for _ in range(2):
        policy.left(seats[0])
    assert list(policy.counts.values()) == [1]


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::1", "0.0.0.1", False),
    ],
)
def test_what_counts_as_one_address(one, other, same):
    """IPv6 counts by /64, an IPv4 address in its clothes as IPv4, and a zone not at all."""
    policy = AddressLimit(1)
    assert policy.admit((one, 1)) is not None
    assert (policy.admit((other, 1)) is None) is same


def test_networks_can_be_counted_and_exempted():
    """`prefix4` counts networks; `exempt` ones may have any number; Unix sockets are nobody's address."""
    policy = AddressLimit(1, prefix4=24, prefix6=48, exempt=["10.0.0.0/8", "2001:db8:7::/48"])
    assert [policy.admit((host, 1)) is None for host in ("192.0.2.1", "192.0.2.99")] == [False, True]
    for host in ("10.1.1.1", "::ffff:10.1.1.2", "2001:db8:7::1", "2001:db8:7:1::1"):
        assert policy.admit((host, 1)) is not None
    assert [policy.admit(peer) for peer in ("", b"\0abstract", "/run/peer", None, ("no address", 1))] == [
        0
    ] * 5
    policy.left(0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ConnectionLimit(0), "limit must be positive"),
        (lambda: LoopLag(float("nan")), "limit must be positive"),
        (lambda: LoopLag(1, resume=2), "resume"),
        (lambda: HandshakeRate(5, burst=0.5), "burst must be at least 1"),
        (lambda: ConnectionLimit(5, action="drop"), '"wait", "reset" or "answer"'),
        (lambda: AddressLimit(5, action="wait"), "known only after accepting"),
        (lambda: AddressLimit(5, prefix6=0), "prefix6"),
        (lambda: AddressLimit(5, exempt="10.0.0.0/8"), "must be a list"),
        (lambda: AddressLimit(5, exempt=["10.0.0.0/33"]), "to exempt"),
        (MemoryLimit, "either"),
        (lambda: MemoryLimit(share=5), "0 to 1"),
        (lambda: Doorkeeper([LoopLag(1), LoopLag(2)]), "different names"),
        (lambda: from_limits(max_loop_lag=-1), "limit must be positive"),
    ],
    ids=[str(number) for number in range(13)],
)
def test_what_cannot_be_is_said(make, words):
    """A policy that makes no sense is refused when it is made, in words that say why."""
    with pytest.raises(trionet.ConfigurationError, match=words):
        make()


def test_policies_from_settings():
    """Each limit of the settings is a policy; single addresses cannot wait, and are reset; no limit is no policy."""
    assert from_limits() == []
    policies = from_limits(
        max_connections_per_address=5,
        max_handshakes_per_second=100,
        max_loop_lag=0.5,
        max_pool_wait=1,
        max_memory=2**30,
    )
    assert [(policy.name, policy.action) for policy in policies] == [
        ("memory", "wait"),
        ("loop_lag", "wait"),
        ("pool_wait", "wait"),
        ("handshake_rate", "wait"),
        ("address", "reset"),
    ]
    [policy] = from_limits(max_memory=0.9, overload_action="answer")
    assert (policy.share, policy.action) == (0.9, "answer")
    [policy] = from_limits(max_connections_per_address=5, overload_action="answer", exempt=["127.0.0.1"])
    assert policy.action == "answer"


# ----------------------------------------------------------------- readings


def fill():
    """Take all descriptors there are."""
    while True:
        try:
            yield os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return


@linux
def test_memory_of_the_process():
    """The resident size is read from an open file, at most once a second, and without any descriptor left."""
    readings = Readings(SimpleNamespace())
    first = readings.resident
    assert 2**20 < first < 2**36
    spare = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        spare += fill()
        ballast = bytearray(b"x" * 2**25)
        assert readings.resident == first
        readings.now = 1.0
        assert readings.resident > first
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in spare:
            os.close(fd)
        readings.close()
    del ballast


_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"
_V2 = "memory.max", "memory.current"


@pytest.mark.parametrize(
    "membership, folder, names, inactive",
    [
        ("0::/a/b\n", "a", _V2, "inactive_file"),
        ("1:cpu:/\n4:memory:/a/b\n0::/\n", "memory/a", _V1, "total_inactive_file"),
        ("0::/not/ours\n", "", _V2, "inactive_file"),
    ],
    ids=["2", "1", "container"],
)
def test_memory_of_the_control_group(tmp_path, membership, folder, names, inactive):
    """The nearest control group with a limit counts, whichever the version; idle pages of files are not in use."""
    (tmp_path / "membership").write_text(membership)
    top = tmp_path / folder
    (top / "b").mkdir(parents=True)
    (top / "b" / names[0]).write_text("max\n" if "max" in names[0] else f"{2**63 - 4096}\n")
    for name, text in (
        (names[0], "1000\n"),
        (names[1], "900\n"),
        ("memory.stat", f"anon 5\n{inactive} 400\n"),
    ):
        (top / name).write_text(text)
    group = Cgroup(str(tmp_path), str(tmp_path / "membership"))
    assert group.read() == 0.5
    group.close()


def test_no_control_group(tmp_path):
    """Without a limit of a control group a share of it means nothing, and the server says so at the start."""
    (tmp_path / "membership").write_text("0::/\n")
    with pytest.raises(trionet.ConfigurationError, match="no control group"):
        Cgroup(str(tmp_path), str(tmp_path / "membership"))
    with pytest.raises(trionet.ConfigurationError, match="no control group"):
        Cgroup(str(tmp_path), str(tmp_path / "nothing"))


async def test_how_long_jobs_wait(autojump_clock):
    """The wait is that of a job in the queue: none while slots are free, and growing while all are taken."""
    blocked = trio.Event()

    class Blocks(Echo):
        async def on_message(self, ws, message):
            await blocked.wait()

    policy = PoolWait(1000)
    async with serving(Blocks(), pool_size=1, slot_grace=float("inf"), admission=policy) as at:
        peer = await at.join()
        await trio.sleep(1)
        assert 0 < policy.value < 100  # by perf_counter, on a busy machine
        await peer.say("x")
        await trio.sleep(1)
        readings = at.server.gate.doorkeeper.load
        ages = [readings.pool_wait for _ in range(3)]
        assert ages == sorted(set(ages))
        assert at.server.engine.pool.statistics().queued == 1
        blocked.set()
        await until(lambda: policy.value < ages[0], step=0.25)


# ------------------------------------------------------- what becomes of them


async def fate(at, *, source="127.0.0.1", send=b""):
    """Return what becomes of a new client: "served", "answered", "reset", "closed" or "waits"."""
    sock = trio.socket.socket()
    try:
        await sock.bind((source, 0))
        await sock.connect(("127.0.0.1", at.port))
        await sock.send(send or request())
        with trio.move_on_after(0.5):
            data = await sock.recv(100)
            if data.startswith(b"HTTP/1.1 503"):
                return "answered"
            return "served" if data else "closed"
    except ConnectionResetError:
        return "reset"
    finally:
        sock.close()
    return "waits"


@pytest.mark.parametrize("action", ["wait", "reset", "answer"])
async def test_each_action_at_the_limit(action):
    """Those beyond the limit are treated as the operator says; those within notice nothing; the next may come in."""
    expected = {"wait": "waits", "reset": "reset", "answer": "answered"}[action]
    async with serving(Echo(), admission=ConnectionLimit(2, action=action)) as at:
        peers = [await at.join() for _ in range(2)]
        assert at.server.overloaded == "connection_limit: 2 connections of 2"
        assert await fate(at) == expected
        assert (at.server.engine.connections, at.server.engine.opened) == (2, 2)
        [statistics] = at.server.statistics().gate.policies
        assert statistics.refused == ({action: 1} if action != "wait" else {})
        assert (statistics.held > 0) is (action == "wait")
        for peer in peers:
            await peer.echo()
        await peers[0].aclose()
        await until(lambda: at.server.engine.connections < 2)
        assert at.server.overloaded is None
        assert await fate(at) == "served"


async def test_the_answer():
    """It says 503, when to come back, and that this is the end; a HEAD request gets no body."""
    async with serving(Echo(), admission=Closed(action="answer", retry_after=10)) as at:
        waits = set()
        for _ in range(20):
            peer = await at.dial()
            await peer.send(request()[:-1])
            await peer.send(request()[-1:])
            answer = await peer.stream.receive_some(1000)
            head, _, body = answer.decode().partition("\r\n\r\n")
            lines = head.split("\r\n")
            assert lines[0] == "HTTP/1.1 503 Service Unavailable"
            fields = dict(line.split(": ") for line in lines[1:])
            assert int(fields["Content-Length"]) == len(body)
            assert fields["Connection"] == "close"
            assert fields["Retry-After"] in body
            waits.add(int(fields["Retry-After"]))
            assert await peer.stream.receive_some() == b""
            await peer.aclose()
        assert len(waits) > 1
        assert all(11 <= wait <= 20 for wait in waits)
        peer = await at.dial()
        await peer.send(b"HEAD / HTTP/1.1\r\n\r\n")
        assert (await peer.stream.receive_some(1000)).endswith(b"\r\n\r\n")
        await peer.aclose()
        await until(lambda: not at.server.statistics().gate.lingering)
        assert at.server.statistics().gate.answered == 21


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_the_answer_over_tls(version):
    """Who speaks TLS gets the answer inside it, and its end; the handshakes are none of the server's."""
    closed = Closed(action="answer")
    async with serving_tls(Echo(), client=client_context(version), admission=closed) as at:
        peer = await at.dial(bytewise=version == "TLSv1.2")
        await peer.send(request())
        assert await peer.status() == 503
        assert peer.take(8) == b"Too busy"
        assert await peer.stream.receive_some() == b""  # and not an error: close_notify has come
        await peer.aclose()
        assert at.server.statistics().tls is None
        assert await fate(at) == "reset"  # plain HTTP
        closed.shut = False
        await (await at.join()).echo()


async def test_who_speaks_no_http_is_reset():
    """Nobody knows what to tell a client of another protocol."""
    async with serving(trionet.LineProtocol(lambda line: line), admission=Closed(action="answer")) as at:
        assert await fate(at, send=b"hello\n") == "reset"
        [statistics] = at.server.statistics().gate.policies
        assert statistics.refused == {"reset": 1}


async def test_the_lobby_is_bounded(autojump_clock):
    """Few may wait for their answer, and not for long; others are reset. No connection, job or slot is theirs."""
    doorkeeper = Doorkeeper([Closed(action="answer")], lingering=3, timeout=2)
    async with serving(Echo(), admission=doorkeeper) as at:
        silent = [await at.dial() for _ in range(3)]
        await silent[0].send(b"GET / HTTP")
        await until(lambda: at.server.statistics().gate.lingering == 3, step=0.1)
        assert await fate(at) == "reset"
        assert at.server.engine.connections == 0
        for peer in silent:
            with pytest.raises(trio.BrokenResourceError):
                await peer.stream.receive_some()
        assert await fate(at) == "answered"
        [statistics] = at.server.statistics().gate.policies
        assert statistics.refused == {"answer": 4, "reset": 1}
        assert doorkeeper.lobby.failed == 3


async def test_what_is_discarded_is_bounded():
    """Who goes on sending behind the answer, or an endless head, is cut off."""
    async with serving(Echo(), admission=Closed(action="answer")) as at:
        peer = await at.dial()
        with pytest.raises(trio.BrokenResourceError):
            await peer.send(b"x" * 10_000_000)
        assert at.server.statistics().gate.answered == 1
        await until(lambda: not at.server.statistics().gate.lingering)


async def test_a_full_pool_turns_away():
    """While handlers have all the slots, those who come are answered nevertheless."""
    blocked = trio.Event()

    class Blocks(Echo):
        async def on_message(self, ws, message):
            await blocked.wait()
            await ws.send(message)

    policy = PoolWait(0.01, action="answer")
    async with serving(Blocks(), pool_size=1, slot_grace=float("inf"), admission=policy) as at:
        peer = await at.join()
        await peer.say("x")
        late = await at.dial()
        await late.send(request())
        assert await late.status() == 503
        assert at.server.overloaded is not None
        blocked.set()
        assert await peer.hear() == "x"
        await until(lambda: at.server.overloaded is None)
        await at.join()


async def test_a_hard_stop_closes_the_lobby():
    """Leaving the server's block closes those who were being turned away, too."""
    async with serving(Echo(), admission=Closed(action="answer")) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().gate.lingering == 1)
        before = descriptors()
        at.server.gate.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.server.drain)
        assert at.server.statistics().gate.lingering == 1
    assert at.server.statistics().gate.lingering == 0
    assert descriptors() < before
    await peer.stream.aclose()


# ---------------------------------------------------------------- addresses


async def test_a_flood_from_one_address_leaves_others_served(caplog):
    """An address has its share and no more, whatever it tries; others are served meanwhile; one line tells of it."""
    async with serving(Echo(), admission=AddressLimit(3)) as at, trio.open_nursery() as nursery:
        inside = [await at.join() for _ in range(3)]

        async def hammer():
            while True:
                assert await fate(at) == "reset"

        for _ in range(10):
            nursery.start_soon(hammer)
        for host in range(2, 12):
            for _ in range(3):
                assert await fate(at, source=f"127.0.0.{host}") == "served"
        await inside[0].echo()
        nursery.cancel_scope.cancel()
    [statistics] = at.server.statistics().gate.policies
    assert statistics.refused["reset"] >= 10
    assert at.server.overloaded is None
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "a connection was refused: address: more than 3 connections" in warnings[0].getMessage()
    assert len(warnings) <= 2


class Stubborn(trionet.Protocol):
    """Fails to greet."""

    def connection_made(self, connection):
        raise ValueError("connection_made")


class Giver(trionet.Protocol):
    """Gives its connections away."""

    streams: list

    async def data_received(self, connection, data):
        self.streams.append(await connection.detach())


async def test_a_seat_is_given_back_once():
    """However a connection ends, its address is one connection poorer, and the class it became does not matter."""
    page = trionet.HttpProtocol({"/": "page"})
    for protocol in (
        trionet.WebSocketProtocol(Echo(), http=page, compression=trionet.Deflate()),
        trionet.Router({"/": trionet.WebSocketProtocol(Echo(), max_messages_per_second=5), "/page": "page"}),
        trionet.LineProtocol(lambda line: line),
        Stubborn(),
    ):
        policy = AddressLimit(2)
        async with serving(protocol, admission=[policy, LoopLag(5)]) as at:
            for _ in range(2):
                peers = [await at.dial() for _ in range(2)]
                for peer, path in zip(peers, ("/", "/page"), strict=True):
                    await peer.send(request(path) if path == "/" else b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    with trio.move_on_after(5):
                        try:
                            await peer.stream.receive_some()
                        except trio.BrokenResourceError:
                            pass
                assert sum(policy.counts.values()) == at.server.engine.connections <= 2
                await peers[0].aclose()
                await peers[1].reset()
                await until(lambda: at.server.engine.connections == 0)
                assert policy.counts == {}
            if not isinstance(protocol, Stubborn):
                await at.dial()
                await until(lambda: at.server.engine.connections == 1)
                assert policy.counts
        assert policy.counts == {}


async def test_a_stream_keeps_its_seat():
    """A connection given away counts until its stream is closed."""
    policy = AddressLimit(1)
    protocol = Giver()
    protocol.streams = []
    async with serving(protocol, admission=policy) as at:
        peer = await at.dial()
        await peer.send(b"x")
        await until(lambda: protocol.streams)
        assert await fate(at) == "reset"
        await protocol.streams[0].aclose()
        await protocol.streams[0].aclose()
        assert policy.counts == {}


async def test_behind_a_proxy_the_clients_address_counts():
    """With PROXY headers it is the client who is counted, and refused, not the proxy; over TLS, too."""
    proxied = trionet.ProxyProtocol(["127.0.0.1"])
    endpoint = trionet.Endpoint(
        protocol=trionet.WebSocketProtocol(Echo()), proxy_protocol=proxied, ssl_context=server_context()
    )
    policy = AddressLimit(1, action="answer")

    async def client(at, host):
        transport = (await at.dial()).stream
        await transport.send_all(b"PROXY TCP4 %s 198.51.100.1 56324 443\r\n" % host.encode())
        peer = Peer(trio.SSLStream(transport, client_context(), server_hostname="localhost"))
        await peer.send(request())
        return await peer.status(), peer

    async with serving([endpoint], admission=policy) as at:
        status, first = await client(at, "192.0.2.1")
        assert status == 101
        assert (await client(at, "192.0.2.2"))[0] == 101
        assert (await client(at, "192.0.2.1"))[0] == 503
        assert at.server.engine.connections == 2
        await first.aclose()
        await until(lambda: at.server.engine.connections == 1)
        assert (await client(at, "192.0.2.1"))[0] == 101


async def test_turned_away_before_the_proxy_header():
    """A policy about the server refuses before the PROXY header is read; the answer comes behind it all the same."""
    endpoint = trionet.Endpoint(
        protocol=trionet.WebSocketProtocol(Echo()), proxy_protocol=trionet.ProxyProtocol(["127.0.0.1"])
    )
    async with serving([endpoint], admission=Closed(action="answer")) as at:
        line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"
        assert await fate(at, send=line + request()) == "answered"
        assert await fate(at) == "reset"  # no header


async def test_a_connection_that_cannot_be_watched_gives_its_seat_back(monkeypatch):
    """Without room in the poller the connection is closed, and counts no more."""
    policy = AddressLimit(1)
    async with serving(Echo(), admission=policy) as at:
        with monkeypatch.context() as patch:

            def register(fd, *args, **options):
                raise OSError(28, "No space left on device")

            patch.setattr(at.server.engine.poller, "register", register)
            assert await fate(at) in {"closed", "reset"}
        await until(lambda: policy.counts == {})


# ------------------------------------------------------------ what goes wrong


async def test_a_policy_that_raises_costs_one_connection(caplog):
    """A mistake in `admit` closes that connection; in `room`, `sample` or `left` it costs nobody anything."""

    class Broken(AdmissionPolicy):
        name = "broken"
        per_connection = True
        good = False

        def fail(self, *_):
            raise ZeroDivisionError(self.name)

        sample = room = accepted = left = explain = fail

        def admit(self, peer):
            return self.good or self.fail()

    policy = Broken(action="reset")
    async with serving(Echo(), admission=[policy, other := AddressLimit(1)]) as at:
        assert await fate(at) == "reset"
        policy.good = True
        assert await fate(at) == "served"
        await until(lambda: at.server.engine.connections == 0)
        assert other.counts == {}
        assert at.server.overloaded is None
        statistics, _ = at.server.statistics().gate.policies
        assert statistics.errors >= 5
    errors = [record for record in caplog.records if record.exc_info]
    assert {record.getMessage() for record in errors} == {"admission policy 'broken' failed"}
    assert len(errors) <= 5  # one of each method


@pytest.mark.parametrize("room", [None, 2.5, float("inf"), "many"])
async def test_a_policy_that_says_nonsense(room):
    """What is no number of connections is none: others come in."""

    class Vague(AdmissionPolicy):
        def __init__(self):
            pass

        def room(self, load):
            return room

    async with serving(Echo(), admission=Vague()) as at:
        await (await at.join()).echo()


async def test_two_lines_of_log(autojump_clock, caplog):
    """Overload is logged when it begins, with its reason, and when it is over, not for each connection."""
    policy = Closed(action="reset")
    with caplog.at_level(logging.INFO, "trionet"):
        async with serving(Echo(), admission=policy) as at:
            for _ in range(3):
                assert await fate(at) == "reset"
                policy.shut = False
                assert await fate(at) == "served"
                policy.shut = True
                await trio.sleep(1)
            policy.shut = False
            await trio.sleep(10)
            policy.shut = True
            assert await fate(at) == "reset"
    lines = [record.getMessage() for record in caplog.records if "overload" in record.getMessage()]
    assert lines[0] == "overload: new connections are refused: closed: by decree"
    assert lines[1].startswith("overload is over after")
    assert "3 connections were turned away" in lines[1]
    assert lines[2:] == lines[:1]
    assert at.server.statistics().gate.overloads == 2


async def test_limits_of_the_server_are_overload_too(autojump_clock, caplog):
    """Who asks whether the server is ready hears of the limits that were always there; so does the log."""
    async with serving(Echo(), max_connections=2) as at:
        peers = [await at.join() for _ in range(2)]
        assert at.server.overloaded == "connections: 2 connections, max_connections is 2"
        assert await fate(at) == "waits"
        assert "overload: new connections are refused: connections: 2 connections" in caplog.text
        await peers[0].aclose()
        await trio.sleep(1)
        assert at.server.overloaded is None


async def test_the_first_refusal_wins():
    """Policies are asked in their order, and the one that refuses decides what happens."""
    policies = [Closed(action="answer"), Closed(action="reset", name="behind")]
    async with serving(Echo(), admission=policies) as at:
        assert await fate(at) == "answered"
        policies[0].shut = False
        assert await fate(at) == "reset"
        first, second = at.server.statistics().gate.policies
        assert (first.refused, second.refused) == ({"answer": 1}, {"reset": 1})


async def test_without_policies_nothing_is_kept():
    """No policy, no word in any connection, no task, no file."""
    async with serving(Echo(), admission=[]) as at:
        await at.join()
        assert at.server.engine.doorkeeper is None
        assert "_seat" not in dir(at.connection)
        assert type(at.connection) is at.protocol.connection_class


async def test_a_full_server_looks_less_and_less_often(autojump_clock):
    """The cool-down grows until a connection ends: then a full server with clients waiting looks at once."""
    async with serving(Echo(), max_connections=1) as at:
        await at.join()
        late = await at.dial()
        await late.send(request())
        await trio.sleep(1)
        held = at.server.gate.held["connections"]
        await trio.sleep(10)
        assert at.server.gate.held["connections"] - held <= 41
        left = trio.current_time()
        at.connection.abort()
        assert await late.status() == 101
        assert trio.current_time() - left < 0.02


# ----------------------------------------------------------- out of descriptors

SCRIPT = """
import os, resource, sys
import trio
import trionet

limit, most, action = 256, int(sys.argv[1]) or None, sys.argv[2]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


class Echo(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(message)


async def main():
    protocol = trionet.WebSocketProtocol(Echo())
    policy = trionet.ConnectionLimit(150, action=action) if action else ()
    async with trionet.open_server(protocol, max_connections=most, admission=policy) as server:
        print(server.addresses[0][1], flush=True)
        stdin = trio.lowlevel.FdStream(os.dup(0))
        while await stdin.receive_some(1):
            begun, first = trio.current_time(), server.statistics()
            await trio.sleep(0.4)
            last = server.statistics()
            spent = trio.current_time() - begun
            print(
                last.connections,
                (sum(last.gate.held.values()) - sum(first.gate.held.values())) / spent,
                (last.gate.shortages - first.gate.shortages) / spent,
                (last.poller.polls - first.poller.polls) / spent,
                flush=True,
            )


trio.run(main)
"""


@linux
@pytest.mark.processes
@pytest.mark.parametrize(
    "most, action",
    [(0, ""), (100_000, ""), (100_000, "answer"), (0, "reset")],
    ids=["as many as fit", "until there are none left", "answered", "reset"],
)
def test_256_descriptors_and_a_thousand_clients(most, action):
    """At RLIMIT_NOFILE 256 and with 1,000 clients the server idles, serves those within, and recovers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(most), action],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    clients = []

    def look():
        process.stdin.write("?")
        process.stdin.flush()
        return [float(word) for word in process.stdout.readline().split()]

    def join():
        sock = socket.socket()
        sock.settimeout(GENEROUS)
        try:
            sock.connect(("127.0.0.1", port))
            sock.sendall(request())
        except OSError:
            pass  # it was reset already
        return sock

    try:
        port = int(process.stdout.readline())
        clients = [join() for _ in range(1000)]
        connections, held, shortages, polls = look()
        assert connections == 150 if action else 150 < connections < 256
        assert held <= 60  # looks in a second, the shortest cool-downs included
        assert shortages <= 60  # every 0.1 s, and once more for each descriptor that came free; not thousands
        assert polls <= 400
        for sock in clients:
            sock.close()
        assert any(look()[0] == 0 for _ in range(20)), "those who left are forgotten"
        clients = [join() for _ in range(100)]
        assert all(sock.recv(12) == b"HTTP/1.1 101" for sock in clients)
    finally:
        for sock in clients:
            sock.close()
        process.kill()
        process.communicate()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
