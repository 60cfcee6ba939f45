"""The server: listeners, lifespan, limits, statistics, the polite end and the hard one."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import socket
import stat

import pytest
import trio
from ws_peer import (
    Diary,
    Echo,
    Opened,
    close,
    descriptors,
    request,
    serving,
    stall,
    tasks,
    text,
    until,
)

import trionet

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


# ------------------------------------------------------------------ where it listens


async def test_several_protocols_on_several_endpoints(tmp_path, backend):
    """One server: WebSocket on two ports and a Unix socket, lines on a fourth; each speaks its own."""

    async def line(connection, data):
        await connection.send(data.upper())

    path = str(tmp_path / "socket")
    shout = trionet.WebSocketProtocol(Diary())
    endpoints = [
        trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo())),
        trionet.Endpoint(protocol=shout),
        trionet.Endpoint(protocol=shout, path=path, mode=0o600),
        trionet.Endpoint(protocol=trionet.LineProtocol(line)),
    ]
    async with serving(endpoints, backend=backend) as at:
        first, second, unix, lines = at.server.addresses
        assert unix == path
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        urls = [listener.url for listener in at.server.endpoints]
        assert urls == [
            f"ws://127.0.0.1:{first[1]}/",
            f"ws://127.0.0.1:{second[1]}/",
            f"ws+unix:{path}",
            f"tcp://127.0.0.1:{lines[1]}/",
        ]
        for address in (first, second, path):
            peer = await at.join(address=address)
            await peer.echo()
        assert [ws.peer is None for ws in at.server.connections] == [False, False, True]
        peer = await at.dial(lines)
        await peer.send(b"hello\n")
        assert await peer.stream.receive_some() == b"HELLO\r\n"
    with pytest.raises(FileNotFoundError):
        os.stat(path)


async def test_an_adopted_descriptor():
    """Socket activation: a listening socket that somebody else opened is served."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = os.dup(sock.fileno())
    endpoint = trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo()), fd=number)
    async with serving([endpoint]) as at:
        peer = await at.join()
        await peer.echo()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


async def test_a_server_that_cannot_listen_leaves_nothing():
    """The error names address and port; what was opened before is closed again."""
    protocol = trionet.WebSocketProtocol(Echo())
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        endpoints = [trionet.Endpoint(protocol=protocol), trionet.Endpoint(protocol=protocol, port=port)]
        gc.collect()
        before = descriptors()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with trionet.open_server(endpoints):
                pytest.fail("it listens twice")
        assert descriptors() == before


# ------------------------------------------------------------------ lifespan


async def test_lifespan_order():
    """Resources are opened before the first accept, and closed after the last handler and its `on_close`."""
    events = []

    class Handler(trionet.WebSocketHandler):
        async def on_open(self, ws):
            events.append("open")

        async def on_message(self, ws, message):
            try:
                await trio.sleep_forever()
            finally:
                events.append("handler ended")

        async def on_close(self, ws, closed):
            events.append("close")

    @contextlib.asynccontextmanager
    async def lifespan(server):
        assert server.addresses[0][1] > 0
        stream = await trio.open_tcp_stream(*server.addresses[0])  # it listens, so this waits in the backlog
        await stream.send_all(request())
        await trio.testing.wait_all_tasks_blocked()
        assert (server.statistics().opened, server.statistics().pool.busy) == (0, 0)
        events.append("resources")
        yield "the database"
        events.append("released")
        await stream.aclose()

    async with serving(Handler(), lifespan=lifespan) as at:
        assert at.server.resources == "the database"
        await until(lambda: events == ["resources", "open"])  # who waited in the backlog
        peer = await at.join()
        await peer.say("work")
        await until(lambda: at.server.statistics().pool.suspended)
    assert events[:3] == ["resources", "open", "open"]
    assert events[3] == "handler ended"
    assert events[4:] == ["close", "close", "released"]


async def test_a_background_task_of_the_lifespan():
    """A task that lives with the server may send to its connections."""

    @contextlib.asynccontextmanager
    async def lifespan(server):
        async def tick():
            while True:
                trionet.broadcast(server.connections, "tick")
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            yield
            nursery.cancel_scope.cancel()

    async with serving(Echo(), lifespan=lifespan) as at:
        peer = await at.join()
        assert [await peer.hear() for _ in range(3)] == ["tick"] * 3


async def test_a_lifespan_that_fails_leaves_nothing():
    """Its error comes out as it is; listeners and everything else are closed."""

    @contextlib.asynccontextmanager
    async def lifespan(server):
        raise RuntimeError("no database")
        yield

    before = descriptors()
    with pytest.raises(RuntimeError, match="no database"):
        async with trionet.open_server(trionet.WebSocketProtocol(Echo()), lifespan=lifespan):
            pytest.fail("it runs")
    gc.collect()
    assert descriptors() == before


async def test_an_exception_in_the_block_comes_out_as_it_is():
    """The server is stopped; the error is not wrapped in groups."""
    diary = Diary()
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        async with trionet.open_server(trionet.WebSocketProtocol(diary)) as server:
            stream = await trio.open_tcp_stream(*server.addresses[0])
            await stream.send_all(request())
            await until(lambda: "open" in diary.seen)
            raise KeyError
    await stream.aclose()
    assert diary.seen[-1].by == "us"


# ------------------------------------------------------------------ limits


async def test_max_connections_holds_others_in_the_backlog(backend):
    """Clients beyond the limit wait, and are served as soon as there is room."""
    async with serving(Echo(), max_connections=3, backend=backend) as at:
        peers = [await at.join() for _ in range(3)]
        waiting = await at.dial()
        await waiting.send(request(), text("hello"))
        await until(lambda: at.server.statistics().gate.held["connections"] > 2)
        assert at.server.statistics().connections == 3
        assert not waiting.data
        for peer in peers:
            await peer.echo()
        await peers[0].send(close())
        assert await peers[0].closed() == 1000
        await peers[0].ended()
        assert await waiting.status() == 101
        assert await waiting.hear() == "hello"
        assert at.server.statistics().connections == 3


async def test_half_open_handshakes_are_limited(backend):
    """Silent clients fill no more than `max_opening`; others wait for the handshake deadline to make room."""
    options = {"max_opening": 5, "handshake_timeout": 0.2, "resolution": 0.02}
    async with serving(Echo(), backend=backend, **options) as at:
        served = await at.join()
        for _ in range(5):
            await at.dial()
        await until(lambda: at.server.statistics().opening == 5)
        late = await at.dial()
        await late.send(request())
        await until(lambda: at.server.statistics().gate.held["handshakes"])
        await served.echo()
        assert await late.status() == 101


async def test_detached_handlers_are_limited():
    """Beyond `max_detached` nothing is accepted until some have ended; those that are there are served."""
    gate = trio.Event()

    class Handler(Echo):
        async def on_message(self, ws, message):
            if message == "wait":
                await gate.wait()
            await ws.send(message)

    async with serving(Handler(), max_detached=3, slot_grace=0.01) as at:
        peers = [await at.join() for _ in range(4)]
        for peer in peers[:3]:
            await peer.say("wait")
        await until(lambda: at.server.statistics().pool.detached == 3)
        late = await at.dial()
        await late.send(request())
        await until(lambda: at.server.statistics().gate.held["detached"])
        await peers[3].echo()
        assert at.server.statistics().connections == 4
        gate.set()
        assert await late.status() == 101


async def test_the_pool_can_grow_while_it_runs():
    """A larger pool takes effect at once; a smaller one when jobs end."""
    inside = []
    gate = trio.Event()

    class Handler(Echo):
        async def on_message(self, ws, message):
            if message == "work":
                inside.append(ws)
                await gate.wait()
            await ws.send(message)

    async with serving(Handler(), pool_size=2, slot_grace=60) as at:
        peers = [await at.join() for _ in range(6)]
        for peer in peers:
            await peer.say("work")
        await until(lambda: len(inside) == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(inside) == 2
        at.server.engine.pool.size = 5
        await until(lambda: len(inside) == 5)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(inside), at.server.statistics().pool.size) == (5, 5)
        at.server.engine.pool.size = 1
        gate.set()
        for peer in peers:
            assert await peer.hear() == "work"
        for peer in peers:
            await peer.echo()
        assert at.server.statistics().pool.busy <= 1


async def test_servers_may_share_a_limiter():
    """A `trio.CapacityLimiter` of one's own bounds what runs in all of them."""
    limiter = trio.CapacityLimiter(2)
    inside = []
    gate = trio.Event()

    class Handler(Echo):
        async def on_message(self, ws, message):
            inside.append(ws)
            await gate.wait()
            await ws.send(message)

    options = {"limiter": limiter, "slot_grace": 60}
    async with serving(Handler(), **options) as one, serving(Handler(), **options) as two:
        peers = [await at.join() for at in (one, two, one, two)]
        for peer in peers:
            await peer.say("work")
        await until(lambda: len(inside) == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(inside) == 2
        gate.set()
        for peer in peers:
            assert await peer.hear() == "work"


# ------------------------------------------------------------------ statistics


async def test_statistics(backend):
    """What the counters say of a few known events."""
    diary = Diary()
    async with serving(diary, backend=backend) as at:
        fresh = at.server.statistics()
        assert (fresh.connections, fresh.opening, fresh.opened, fresh.draining) == (0, 0, 0, False)
        assert fresh.poller.backend == (backend or fresh.poller.backend)
        half_open = await at.dial()
        await until(lambda: at.server.statistics().opening == 1)
        first, second = await at.join(), await at.join()
        for peer in (first, second):
            await peer.echo()
        await first.send(close())
        await first.closed()
        await first.ended()
        await until(lambda: at.server.statistics().connections == 2)
        now = at.server.statistics()
        assert (now.connections, now.opening, now.opened, now.overflowed) == (2, 1, 3, 0)
        assert now.gate.accepted == 3
        assert sum(now.gate.held.values()) == now.gate.errors == now.gate.shortages == now.gate.shed == 0
        assert now.pool.size == 128
        assert (now.pool.busy, now.pool.suspended, now.pool.detached, now.pool.parked) == (0, 0, 0, 0)
        assert now.pool.failures == 0
        assert now.pool.jobs >= 7
        assert now.poller.watched == 3  # a listener, two connections
        assert now.wheel.waiting >= 2
        assert len(list(at.server.connections)) == 2
        await half_open.aclose()
        await until(lambda: at.server.statistics().opening == 0)


# ------------------------------------------------------------------ drain


async def test_drain_says_goodbye_to_all(backend):
    """1001 to everybody, each `on_close` runs, nobody new is accepted; True."""
    diary = Diary()
    results = []
    async with serving(diary, backend=backend) as at, trio.open_nursery() as nursery:
        port = at.port
        peers = [await at.join() for _ in range(20)]

        async def drain():
            results.append(await at.server.drain(jitter=0.1))

        nursery.start_soon(drain)
        for peer in peers:
            await peer.farewell(1001)
        await until(lambda: results)
        assert at.server.statistics().draining
        assert at.server.draining
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", port)
    assert results == [True]
    ends = [event for event in diary.seen if isinstance(event, trionet.ConnectionClosed)]
    assert [(end.code, end.by) for end in ends] == [(1001, "us")] * 20


async def test_drain_spreads_over_the_window(mock_clock):
    """Not all are sent away in one moment, or they would all come back in one."""
    mock_clock.autojump_threshold = 0.002
    times = []
    async with serving(Echo(), resolution=1) as at, trio.open_nursery() as nursery:
        peers = [await at.join() for _ in range(30)]
        began = trio.current_time()

        async def leave(peer):
            assert await peer.closed() == 1001
            times.append(trio.current_time() - began)
            await peer.send(close(1001))

        for peer in peers:
            nursery.start_soon(leave, peer)
        assert await at.server.drain(jitter=3, timeout=10)
    assert len(set(times)) > 10
    assert max(times) <= 3.1
    assert min(times) < 1
    assert max(times) > 2


async def test_drain_lets_handlers_finish():
    """A handler that works is not cancelled by a drain: what it still sends is refused, it ends in its own time."""
    outcome = []
    gate, entered = trio.Event(), trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            entered.set()
            await gate.wait()
            try:
                await ws.send("too late")
            except trionet.ConnectionClosed as closed:
                outcome.append(closed.code)

    async with serving(Handler()) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        await peer.say("work")
        await entered.wait()
        nursery.start_soon(at.server.drain)
        await peer.farewell(1001)
        gate.set()
        await until(lambda: outcome)
    assert outcome == [1001]


@pytest.mark.parametrize("sent", ["nothing", "half a head", "on_upgrade waits"])
async def test_drain_refuses_half_open_handshakes(sent):
    """503 with Retry-After, so that the client goes elsewhere."""
    entered, gate = trio.Event(), trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            entered.set()
            await gate.wait()

    async with serving(Handler()) as at, trio.open_nursery() as nursery:
        peer = await at.dial()
        if sent == "half a head":
            await peer.send(request()[:50])
        elif sent == "on_upgrade waits":
            await peer.send(request())
            await entered.wait()
        await until(lambda: at.server.statistics().opening == 1)
        nursery.start_soon(at.server.drain)
        await until(lambda: at.server.draining)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in head
        await peer.aclose()


async def test_drain_tells_when_some_did_not_end():
    """A peer that does not answer within `timeout`: False; leaving the block closes it."""
    handler = Opened()
    async with serving(handler) as at:
        peer, good = await at.join(), await at.join()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(good.farewell, 1001)
            assert await at.server.drain(jitter=0, timeout=0.5) is False
        assert at.server.statistics().connections == 1
        assert len(handler.ends) == 1
        assert await peer.closed() == 1001
    assert len(handler.ends) == 2


async def test_drain_never_waits_behind_a_stalled_peer(backend):
    """A peer that does not read delays no other's goodbye, and itself only until `close_timeout`."""
    handler = Opened()
    options = {"close_timeout": 0.2, "resolution": 0.02}
    async with serving(handler, backend=backend, **options) as at, trio.open_nursery() as nursery:
        slow = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)

        async def send():
            with pytest.raises(trionet.ConnectionClosed):
                await ws.send(bytes(4096))

        nursery.start_soon(send)
        good = await at.join()
        nursery.start_soon(good.farewell, 1001)
        assert await at.server.drain(jitter=0, timeout=10) is True
        await slow.aclose()


async def test_drain_of_nobody():
    """An empty server has ended at once; a second drain is no error."""
    async with serving(Echo()) as at:
        assert await at.server.drain() is True
        assert await at.server.drain() is True


# ------------------------------------------------------------------ the hard stop


@pytest.mark.parametrize(
    "what", ["idle", "opening", "busy", "parked", "detached", "stalled", "pinging", "closing"]
)
async def test_a_hard_stop_leaves_nothing(what, backend):
    """Whatever connections are doing: every task ends, every descriptor is released, `on_close` has run."""
    unwound = []

    class Handler(Opened):
        async def on_message(self, ws, message):
            try:
                if what == "parked":
                    while True:
                        await ws.send(bytes(4096))
                elif what == "pinging":
                    await ws.ping()
                elif what == "closing":
                    await ws.close()
                elif what == "detached":
                    with trio.CancelScope():
                        await trio.sleep_forever()
                await trio.sleep_forever()
            except trio.Cancelled:
                unwound.append("cancelled")
                raise
            finally:
                unwound.append("finally")

    handler = Handler()
    gc.collect()
    before = descriptors(), tasks()
    async with serving(handler, slot_grace=0.01, backend=backend) as at:
        for _ in range(3):
            if what == "opening":
                await (await at.dial()).send(request()[:30])
                continue
            peer = await at.join(small=True)
            if what not in {"idle", "stalled"}:
                await peer.say("go")
        pool = at.server.engine.pool
        if what == "opening":
            await until(lambda: at.server.statistics().opening == 3)
        else:
            await until(lambda: len(handler.arrived) == 3)
        if what == "stalled":
            for ws in handler.arrived:
                await stall(ws)
        elif what == "detached":
            await until(lambda: pool.detached == 3)
        elif what in {"parked", "pinging", "closing"}:
            await until(lambda: len(pool.parked) == 3)
        elif what == "busy":
            await until(lambda: pool.suspended + pool.detached == 3)
    if what not in {"idle", "opening", "stalled"}:
        assert sorted(unwound) == ["cancelled"] * 3 + ["finally"] * 3
    assert len(handler.ends) == (0 if what == "opening" else 3)
    assert all(ws.fd == -1 and repr(ws).endswith("gone>") for ws in handler.arrived)
    gc.collect()
    assert (descriptors(), tasks()) == before


async def test_cancelling_the_scope_around_is_the_hard_stop():
    """A server that runs in a task ends with it, and a `finally` of a handler may await in a shield."""
    events = []

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            try:
                await ws.ping()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
                    events.append("unwound")

        async def on_close(self, ws, closed):
            events.append("closed")

    async def run(*, task_status):
        async with trionet.open_server(trionet.WebSocketProtocol(Handler())) as server:
            task_status.started(server)
            await trio.sleep_forever()

    before = descriptors(), tasks()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(run)
            stream = await trio.open_tcp_stream(*server.addresses[0])
            await stream.send_all(request() + text("go"))
            await until(lambda: server.statistics().pool.parked)
            nursery.cancel_scope.cancel()
        await stream.aclose()
    assert events == ["unwound", "closed"]
    assert (descriptors(), tasks()) == before


async def test_a_handler_that_fails_during_the_stop_harms_nothing(caplog):
    """A nursery that raises during the stop gives a mixed group: its errors are logged, the stop goes on."""
    entered = []

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
                entered.append(ws)
                await trio.sleep_forever()

        async def fail(self):
            try:
                await trio.sleep_forever()
            finally:
                raise RuntimeError("while ending")

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.say("go")
        await until(lambda: entered)
        await trio.testing.wait_all_tasks_blocked()
    assert [record.exc_info[0] for record in caplog.records] == [ExceptionGroup]


async def test_an_on_close_that_waits_is_cancelled_by_the_stop():
    """It runs to its first wait."""
    events = []

    class Handler(Opened):
        async def on_close(self, ws, closed):
            events.append("begun")
            try:
                await trio.sleep_forever()
            finally:
                events.append("ended")

    async with serving(Handler()) as at:
        await at.join()
        await until(lambda: at.server.statistics().connections)
    assert events == ["begun", "ended"]


# ------------------------------------------------------------------ context


async def test_the_context_around_the_server_is_seen():
    """What was set before `open_server` is there in every handler."""
    seen = []

    class Handler(trionet.WebSocketHandler):
        async def on_open(self, ws):
            seen.append(variable.get())

        async def on_close(self, ws, closed):
            seen.append(variable.get())

    token = variable.set("around")
    try:
        async with serving(Handler()) as at:
            variable.set("later")
            peer = await at.join()
            await peer.send(close())
            await peer.closed()
            await until(lambda: len(seen) == 2)
    finally:
        variable.reset(token)
    assert seen == ["around", "around"]


async def test_one_endpoint_needs_no_list() -> None:
    """`open_server` takes an `Endpoint` by itself, and listens where that says."""
    endpoint = trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo()), host="127.0.0.1")
    async with trionet.open_server(endpoint) as server:
        assert [listener.endpoint for listener in server.listeners] == [endpoint]
