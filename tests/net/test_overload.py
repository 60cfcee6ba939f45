"""Overload: when it begins and ends, what the operator hears of it, and that counts hold however connections end."""

from __future__ import annotations

import logging
import math
import random
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from tls_peer import client_context, server_context
from ws_peer import Echo, Peer, request, serving, until

import trionet
from trionet.net import thresholds
from trionet.net.admission import (
    AddressLimit,
    AdmissionPolicy,
    HandshakeRate,
    LoopLag,
    MemoryLimit,
    from_limits,
)
from trionet.net.doorkeeper import Doorkeeper
from trionet.net.limited import LimitedLog
from trionet.net.load import Cgroup, give_back_memory
from trionet.net.overload import Overload


def load(now=0.0, **readings):
    """Return what policies look at."""
    return SimpleNamespace(now=now, connections=0, **readings)


# ---------------------------------------------------------------- decisions


def test_a_pause_is_one_reading_however_long():
    """A pause of six times the limit refuses nobody, though time has passed in it; a second one does."""
    policy = LoopLag(0.25)
    policy.sample(load(10.0, lag=0.0))
    policy.sample(load(11.75, lag=1.5))
    assert not policy.refusing
    policy.sample(load(13.5, lag=1.5))
    assert policy.refusing
    calm = 0
    while policy.refusing:
        calm += 1
        policy.sample(load(13.5 + calm / 4, lag=0.0))
    assert calm <= 12  # three seconds: what half-life and hysteresis come to


def test_what_cannot_be_read_refuses_nobody():
    """A policy whose reading fails lets everybody in again, whatever it did before, and goes on when it can."""
    policy = MemoryLimit(1000)
    policy.sample(load(resident=2000))
    assert policy.room(load()) == 0
    with pytest.raises(AttributeError):
        policy.sample(load())
    assert policy.room(load()) > 0
    policy.sample(load(resident=2000))
    assert policy.room(load()) == 0


def test_memory_that_is_free_is_given_back(monkeypatch):
    """What was freed and is kept by the C library would keep everybody out for ever: it is asked once a minute."""
    moments = []
    monkeypatch.setattr(thresholds, "give_back_memory", lambda: moments.append(second))
    policy = MemoryLimit(1000)
    for second in range(200):
        policy.sample(load(second, resident=1500 if second > 20 else 500))
    assert moments == [21, 81, 141]
    give_back_memory()  # the true one


def test_both_numbers_of_version_1(tmp_path):
    """In version 1 there are inactive pages of the group, and those with its children's, which include them."""
    folder = tmp_path / "memory"
    folder.mkdir()
    (tmp_path / "membership").write_text("4:memory:/\n")
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("900\n")
    (folder / "memory.stat").write_text("inactive_file 300\nanon 1\ntotal_inactive_file 400\n")
    group = Cgroup(str(tmp_path), str(tmp_path / "membership"))
    assert group.read() == 0.5
    group.close()


def test_the_class_says_what_its_objects_do():
    """What a class of one's own sets holds unless something else is asked for."""

    class Own(AdmissionPolicy):
        name = "own"
        action = "answer"
        retry_after = 60.0

    assert (Own().action, Own().retry_after, Own().name) == ("answer", 60.0, "own")
    assert (Own(action="reset").action, Own(retry_after=1).retry_after) == ("reset", 1)


class Lazy(AdmissionPolicy):
    """Does not call the constructor of its base."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


@pytest.mark.parametrize(
    "policy, words",
    [
        (LoopLag, "is no AdmissionPolicy"),
        ("loop_lag", "is no AdmissionPolicy"),
        (Lazy(action="drop"), "action is"),
        (Lazy(per_connection=True), "known only after accepting"),
        (Lazy(name="connections"), "cannot be called 'connections'"),
        (Lazy(name=None), "cannot be called None"),
        (Lazy(retry_after=math.inf), "retry_after must be positive"),
        (Lazy(retry_after=-1), "retry_after must be positive"),
    ],
    ids=[str(number) for number in range(8)],
)
def test_what_is_no_policy_is_no_server(policy, words):
    """What could not be asked, named or answered is refused before anybody comes."""
    with pytest.raises(trionet.ConfigurationError, match=words):
        Doorkeeper([policy])


def test_all_of_the_control_group():
    """A limit of 1 is all of the control group, not one byte, with which nobody would ever get in."""
    [policy] = from_limits(max_memory=1.0)
    assert policy.share == 1.0
    [policy] = from_limits(max_memory=2.0**30)
    assert policy.limit == 2**30


def test_addresses_that_are_none():
    """A proxy may be named as a listener for both families shows it; numbers of AF_VSOCK are no addresses."""
    policy = AddressLimit(1, exempt=["::ffff:10.0.0.7", "::ffff:192.0.2.0/120"])
    for host in ("10.0.0.7", "::ffff:10.0.0.7", "192.0.2.9"):
        assert [policy.admit((host, port)) is None for port in (1, 2)] == [False, False]
    assert [policy.admit(("10.0.0.8", port)) is None for port in (1, 2)] == [False, True]
    assert [policy.admit((3, 1024)), policy.admit((3, 1025))] == [0, 0]


# ----------------------------------------------------------- what is heard


def test_an_overload_that_lasts_is_told_again(caplog):
    """Once a minute: who looks into a log of today must not have to look into that of last week."""
    overload = Overload()
    with caplog.at_level(logging.INFO, "trionet"):
        for second in range(200):
            overload.refused(second, "memory", lambda: "too much", 2)
        overload.look(300)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "overload: new connections are refused: memory: too much",
        "overload lasts, for 60 s: memory: too much; 122 connections were turned away",
        "overload lasts, for 120 s: memory: too much; 242 connections were turned away",
        "overload lasts, for 180 s: memory: too much; 362 connections were turned away",
        "overload is over after 199.0 s (memory): 400 connections were turned away, others may have waited",
    ]


async def test_a_pool_that_hangs_is_told_while_it_hangs(caplog):
    """All slots are taken and clients wait: the log says so, though nothing that accepts can run."""
    blocked = trio.Event()

    class Blocks(Echo):
        async def on_message(self, ws, message):
            await blocked.wait()

    policy = trionet.PoolWait(0.01)
    async with serving(Blocks(), pool_size=1, slot_grace=math.inf, admission=policy) as at:
        peer = await at.join()
        await peer.say("x")
        await until(lambda: at.server.overloaded)
        assert "overload" not in caplog.text  # nobody has come
        late = await at.dial()
        await late.send(request())
        await until(lambda: "overload: new connections are refused: pool_wait: the wait" in caplog.text)
        assert at.server.statistics().gate.policies[0].held
        blocked.set()
        assert await late.status() == 101


async def test_a_listener_without_tasks_is_looked_at_seldom(autojump_clock):
    """A protocol that has all the tasks it may have is asked four times a second, not a hundred times."""

    class Full(trionet.LineProtocol):
        def full(self):
            return True

    async with serving(Full(lambda line: line)) as at:
        await at.dial()
        await trio.sleep(10)
        assert 30 <= at.server.gate.held["tasks"] <= 60


async def test_an_explanation_that_cannot_be_shown():
    """What a policy says is made text where its mistakes are caught."""

    class Unshowable:
        def __str__(self):
            raise ZeroDivisionError

    class Odd(AdmissionPolicy):
        name = "odd"
        action = "reset"
        per_connection = True
        shut = True

        def admit(self, peer):
            return None if self.shut else True

        def explain(self, load):
            return Unshowable()

    policy = Odd()
    async with serving(Echo(), admission=policy) as at:
        for _ in range(2):
            try:
                await (await at.dial()).stream.receive_some()
            except OSError:
                pass
            except trio.BrokenResourceError:
                pass
        policy.shut = False
        await (await at.join()).echo()


async def test_a_rate_is_kept_and_nobody_is_lost(autojump_clock):
    """With "wait" a storm is a queue: so many at once, so many in each second, and those within are served."""
    async with serving(Echo(), admission=HandshakeRate(10, burst=5)) as at, trio.open_nursery() as nursery:
        begun = trio.current_time()
        entered = []

        async def client():
            peer = await at.join()
            entered.append(trio.current_time() - begun)
            await peer.echo()

        for _ in range(35):
            nursery.start_soon(client)
    entered.sort()
    assert entered[4] < 0.05
    for number, moment in enumerate(entered[5:], 1):
        assert number / 10 - 0.01 <= moment <= number / 10 + 0.35


# --------------------------------------------------------------- the counts


async def misbehave(at, address, kind, rng):
    """Come, and go in one of the ways there are."""
    source = f"127.0.0.{rng.randrange(2, 5)}"
    sock = trio.socket.socket()
    await sock.bind((source, 0))
    stream = trio.SocketStream(sock)
    with trio.move_on_after(2):
        try:
            await sock.connect(address)
            if kind.startswith("proxied"):
                await stream.send_all(b"PROXY TCP4 192.0.2.%d 198.51.100.1 5 443\r\n" % rng.randrange(1, 4))
            if kind == "half a header":
                await stream.send_all(b"PROXY TCP4 192")
            if kind == "proxied noise":
                await stream.send_all(b"no TLS at all\r\n\r\n")
            if kind == "proxied tls":
                secure = trio.SSLStream(stream, client_context(), server_hostname="localhost")
                peer = Peer(secure)
                await peer.send(request())
                await peer.head()
            if kind == "websocket":
                peer = Peer(stream)
                await peer.send(request())
                await peer.head()
            if kind == "noise":
                await stream.send_all(rng.randbytes(50) + b"\r\n\r\n")
            if kind == "page":
                await stream.send_all(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
                await stream.receive_some()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    if rng.random() < 0.5:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


async def test_counts_hold_however_connections_end():
    """Noise, resets, cut-off headers and handshakes, plain, behind a proxy and over TLS: at the end nobody counts."""
    policy = AddressLimit(3)
    rng = random.Random(4)
    protocol = trionet.WebSocketProtocol(Echo(), http=trionet.HttpProtocol({"/page": "page"}))
    endpoints = [
        trionet.Endpoint(protocol=protocol),
        trionet.Endpoint(
            protocol=protocol,
            proxy_protocol=trionet.ProxyProtocol(["127.0.0.0/8"]),
            ssl_context=server_context(),
        ),
        trionet.Endpoint(protocol=protocol, proxy_protocol=trionet.ProxyProtocol(["127.0.0.2"], direct=True)),
    ]
    async with serving(endpoints, admission=policy) as at:
        engine = at.server.engine
        plain, secure, mixed = at.server.addresses
        plans = [
            *[(plain, kind) for kind in ("silent", "websocket", "noise", "page")],
            *[
                (secure, kind)
                for kind in ("silent", "half a header", "proxied", "proxied noise", "proxied tls")
            ],
            *[(mixed, kind) for kind in ("silent", "half a header", "proxied", "websocket", "noise")],
        ]
        async with trio.open_nursery() as nursery:
            for number in range(140):
                nursery.start_soon(misbehave, at, *plans[number % len(plans)], rng)
                if number % 10 == 9:
                    await trio.sleep(0.002)
                    assert sum(policy.counts.values()) <= engine.connections
                    assert max(policy.counts.values(), default=0) <= 3
        await until(lambda: engine.connections == 0)
        assert policy.counts == {}
        assert at.server.statistics().gate.policies[0].refused["reset"] > 0
        for address in (plain, mixed):
            await at.dial(address)
        await until(lambda: engine.connections == 2)
    assert policy.counts == {}


def test_what_cannot_be_shown_is_no_error_of_those_who_log():
    """A record whose arguments cannot be formatted costs the record at most, as with `logging` itself."""

    class Unshowable:
        def __repr__(self):
            raise ZeroDivisionError

    logger = logging.Logger("apart")  # noqa: LOG001 - no handlers of the test run
    logger.addHandler(logging.NullHandler())
    limited = LimitedLog(burst=1)
    for _ in range(3):
        limited.log(logger, logging.WARNING, "it is %r", Unshowable())
    assert limited.suppressed == 2
    limited.flush(everything=True)
