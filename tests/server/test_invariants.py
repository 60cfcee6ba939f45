"""The ten invariants of the design, a to j: each as a few claims about a running server."""

from __future__ import annotations

import gc
import logging
import math
import random
import tracemalloc

import pytest
import trio
from ws_peer import (
    BINARY,
    PING,
    PONG,
    Echo,
    Frame,
    Opened,
    Peer,
    close,
    descriptors,
    frame,
    request,
    serving,
    stall,
    tasks,
    text,
    until,
)

import trionet
from trionet.net import system
from trionet.net.connection import OPEN, PINGED, Connection

# ------------------------------------------------------------------ a: one at a time, in order


async def test_a_one_worker_at_a_time_and_in_order():
    """Whatever handlers wait for, however the input is cut: per connection never two at once, always in order."""
    chance = random.Random(1)

    class Handler(trionet.WebSocketHandler):
        async def enter(self, ws, event):
            assert not ws.data["inside"], "two at once"
            ws.data["inside"] = True
            for _ in range(chance.randrange(3)):
                await trio.sleep(chance.choice([0, 0, 0.001, 0.004]))
            ws.data["events"].append(event)
            ws.data["inside"] = False

        async def on_open(self, ws):
            ws.data = {"inside": False, "events": []}
            lives.append(ws.data["events"])
            await self.enter(ws, "open")

        async def on_message(self, ws, message):
            await self.enter(ws, message)

        async def on_close(self, ws, closed):
            await self.enter(ws, closed.code)

    lives = []
    total = 40
    async with serving(Handler(), pool_size=3, slot_grace=0.002) as at:

        async def live(peer):
            stream = b"".join(
                text(str(n)) + (frame(PING) if n % 7 == 0 else b"") for n in range(total)
            ) + close(4000)
            while stream:
                cut = chance.randrange(1, 100)
                await peer.send(stream[:cut])
                stream = stream[cut:]
                await trio.lowlevel.checkpoint()
            while (await peer.frame()).opcode != 8:
                pass
            await peer.ended()

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(live, await at.join())
        await until(lambda: all(life[-1] == 4000 for life in lives))
    assert lives == [["open", *map(str, range(total)), 4000]] * 12


# ------------------------------------------------------------------ b: nothing that waits holds a slot


async def test_b_waiting_handlers_and_stalled_peers_leave_the_pool_free():
    """Pool of 4: asleep, waiting for each other, silent, dribbling, not reading: an echo still answers."""
    send, receive = trio.open_memory_channel(0)

    class Handler(Echo):
        async def on_message(self, ws, message):
            if message == "sleep":
                await trio.sleep_forever()
            elif message == "take":
                await ws.send(await receive.receive())
            elif message == "give":
                await send.send("given")
            elif message == "flood":
                while True:
                    await ws.send(bytes(8192))
            else:
                await ws.send(message)

    each = 15
    async with serving(Handler(), pool_size=4, slot_grace=0.005) as at:
        for word in ("sleep", "flood"):
            for _ in range(each):
                await (await at.join(small=True)).say(word)
        takers = [await at.join() for _ in range(each)]
        for peer in takers:
            await peer.say("take")
        for _ in range(each):
            await at.dial()
            await (await at.dial()).send(request()[:40])
            await (await at.join()).send(text("half a frame")[:7])
        good = await at.join()
        for n in range(30):
            await good.echo(str(n))
        for _ in range(each):
            await (await at.join()).say("give")
        for peer in takers:
            assert await peer.hear() == "given"
        await until(lambda: at.server.statistics().pool.parked == each)
        await good.echo()
        assert at.server.statistics().pool.busy <= 4


# ------------------------------------------------------------------ c: idle holds nothing


@pytest.mark.measured
async def test_c_an_idle_connection_holds_nothing():
    """After an echo and a keepalive round: no buffer, no queue, no record, and few bytes of Python memory."""
    count = 200

    class Handler(Echo):
        async def on_close(self, ws, closed): ...

    async with serving(Handler(), ping_interval=1, ping_timeout=60, resolution=0.05) as at:
        for _ in range(5):  # whatever is made once, is made now
            await (await at.join()).echo()
        gc.collect()
        peers = [Peer(trio.SocketStream(trio.socket.socket())) for _ in range(count)]
        for peer in peers:
            await peer.stream.socket.connect(("127.0.0.1", at.port))
        await until(lambda: at.server.statistics().opening == count)
        gc.collect()
        tracemalloc.start()
        for peer in peers:
            await peer.send(request())
            assert await peer.status() == 101
            await peer.echo()
        for peer in peers:
            assert await peer.frame() == Frame(PING, b"")
            await peer.send(frame(PONG))
        await until(
            lambda: all(ws._state | PINGED == OPEN | PINGED for ws in list(at.server.connections)[5:])
        )
        for peer in peers:
            peer.data = b""
        gc.collect()
        grown = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=True, filename_pattern="*/trionet/*")]
        )
        tracemalloc.stop()
        size = sum(stat.size for stat in grown.statistics("filename"))
        for ws in list(at.server.connections)[5:]:
            assert (ws._input, ws._out, ws._rare) == (None, None, None)
        for peer in peers:
            await peer.stream.aclose()
    assert size / count < 150, f"{size / count:.0f} bytes more than an accepted connection"


# ------------------------------------------------------------------ d: readiness is a hint


async def test_d_reads_survive_false_alarms_and_errors(monkeypatch):
    """EAGAIN at each second read costs nothing; data that comes together with a hang-up is read first."""
    read = system.read
    turns = []

    def flaky(fd, size):
        turns.append(fd)
        if len(turns) % 2:
            raise BlockingIOError
        return read(fd, size)

    monkeypatch.setattr(Connection, "_get", staticmethod(flaky))
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        for n in range(20):
            await peer.say(str(n))
            await peer.send(frame(PING))
            assert await peer.frame() == Frame(PONG, b"")
        await peer.send(text("last"), close())
        await peer.stream.send_eof()
        assert await peer.closed() == 1000
        await until(lambda: handler.ends)
    assert handler.seen == [*map(str, range(20)), "last"]
    assert handler.ends[0].code == 1000


async def test_d_an_event_for_a_number_that_was_reused_harms_nobody():
    """Connections come and go while others are busy: numbers are reused at once, nobody gets a wrong byte."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            if int(message) % 3 == 0:
                await trio.lowlevel.checkpoint()
            await ws.send(message)
            if int(message) % 2 == 0:
                ws.abort()

    async with serving(Handler()) as at:

        async def come_and_go(begin):
            for n in range(begin, begin + 15):
                peer = await at.join()
                await peer.say(str(n))
                assert (await peer.frame()).payload == str(n).encode()
                await peer.aclose()

        async with trio.open_nursery() as nursery:
            for begin in range(0, 300, 30):
                nursery.start_soon(come_and_go, begin)
        await until(lambda: at.server.statistics().connections == 0)
        assert at.protocol.handler_failures == 0


# ------------------------------------------------------------------ e: everything has a limit


def test_e_every_limit_has_a_default_that_limits():
    """A protocol made with nothing but a handler bounds whatever a peer can grow."""
    for protocol in (trionet.WebSocketProtocol(Echo()), trionet.LineProtocol(None)):
        for name in ("high_water", "hard_limit", "read_ahead"):
            assert 0 < getattr(protocol, name) < 2**24
        assert 0 < protocol.write_timeout < 600
    ws = trionet.WebSocketProtocol(Echo())
    assert 0 < ws.max_message < 2**24
    for seconds in (ws.handshake_timeout, ws.ping_interval, ws.ping_timeout, ws.close_timeout):
        assert 0 < seconds < 600
    assert 0 < trionet.LineProtocol(None).idle_timeout < 3600
    limits = trionet.HeadLimits()
    for field in limits.__attrs_attrs__:
        assert 0 < getattr(limits, field.name) < 2**20


async def test_e_a_server_has_limits_by_default():
    """Connections, half-open handshakes and detached handlers are bounded as well."""
    async with serving(Echo()) as at:
        gate = at.server.gate
        assert all(
            0 < limit < math.inf for limit in (gate.max_connections, gate.max_opening, gate.max_detached)
        )


# ------------------------------------------------------------------ f: one bulkhead


@pytest.mark.parametrize("method", ["on_upgrade", "on_open", "on_message", "on_chunk", "on_close"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
async def test_f_a_broken_method_costs_one_connection(method, waits, caplog):
    """Each method of a handler may fail, at once or later: one record in the log, one counter, nobody else notices."""

    async def fail(self, ws, *args):
        if ws.peer == broken_peer or (method == "on_close" and ws.data != "good"):
            if waits:
                await trio.sleep(0.001)
            raise RuntimeError("broken")
        if method == "on_message":
            await ws.send(args[0])
        if method == "on_open":
            ws.data = "good"
        if method == "on_chunk" and args[1]:
            await ws.send("well?")

    handler = type("Handler", (Echo,), {method: fail})()
    broken_peer = None
    async with serving(handler) as at:
        good = await at.join()
        next(iter(at.server.connections)).data = "good"
        bad = await at.dial()
        broken_peer = bad.stream.socket.getsockname()
        await bad.send(request(), text("boom"), close() if method == "on_close" else b"")
        status = await bad.status()
        if method == "on_upgrade":
            assert status == 500
            await bad.aclose()
        else:
            assert status == 101
            if method == "on_close":
                assert await bad.hear() == "boom"
            assert await bad.closed() == (1000 if method == "on_close" else 1011)
            await bad.send(close(1011))
            await bad.ended()
        await until(lambda: at.server.statistics().connections == 1)
        await good.echo()
        await until(lambda: at.protocol.handler_failures == 1)
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert errors[0].exc_info[0] is RuntimeError


# ------------------------------------------------------------------ g: structured


async def test_g_leaving_the_block_leaves_nothing():
    """Connections in every state at once, cancelled in the middle: no task, no descriptor, no open connection."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            if message == "park":
                await ws.ping()
            elif message == "scope":
                with trio.CancelScope():
                    await trio.sleep_forever()
            elif message == "nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    nursery.start_soon(ws.ping)

    handler = Handler()
    gc.collect()
    before = descriptors(), tasks()
    with trio.CancelScope() as scope:
        async with serving(handler, slot_grace=0.01) as at:
            for word in ("idle", "park", "scope", "nursery", "stall", "closing"):
                peer = await at.join(small=True)
                await peer.say(word)
            await at.dial()
            await (await at.dial()).send(request()[:50])
            await until(lambda: len(handler.arrived) == 6 and at.server.statistics().opening == 2)
            await stall(handler.arrived[4])
            handler.arrived[5].close_nowait()
            await until(lambda: at.server.statistics().pool.detached == 2)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    gc.collect()
    assert (descriptors(), tasks()) == before
    assert len(handler.ends) == 6
    assert list(at.server.connections) == []
    assert at.server.statistics().connections == at.server.statistics().opening == 0


# ------------------------------------------------------------------ h: cancellation and checkpoints


async def test_h_every_wait_can_be_cancelled():
    """`send`, `ping`, `close`, `wait_closed`: each ends with the caller's scope, and leaves no waiter."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        await peer.say("heard")
        waits = [
            lambda: ws.send(bytes(9000)),
            ws.ping,
            ws.wait_closed,
            lambda: ws.wait_writable(9000),
            ws.close,
        ]
        for wait in waits:
            with trio.move_on_after(0.005) as scope:
                await wait()
            assert scope.cancelled_caught
            assert not ws._out.waiters
            assert not (ws._rare and (ws._rare.pings or ws._rare.ended))
        await peer.aclose()


async def test_h_a_tick_touches_only_what_is_due():
    """A hundred idle connections cost the wheel one look each in an interval, not one in each tick."""
    async with serving(Echo(), resolution=0.005, handshake_timeout=600, ping_interval=600) as at:
        for _ in range(100):
            await at.join()
        before = at.server.statistics().wheel
        await until(lambda: at.server.statistics().wheel.ticks > before.ticks + 20)
        assert at.server.statistics().wheel.visited - before.visited <= 5


# ------------------------------------------------------------------ i: whole frames


async def test_i_cancelling_senders_never_cuts_a_frame():
    """Many tasks send with deadlines that strike at random to a slow peer: every frame it gets is whole."""
    chance = random.Random(2)
    handler = Opened()
    sent = []
    async with serving(handler) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        received = []

        async def send(letter):
            for n in range(12):
                message = (letter + bytes([n])) * chance.choice([1, 100, 10_000, 40_000])
                with trio.move_on_after(chance.choice([0, 0.001, 0.005, 5])):
                    await ws.send(message)
                    sent.append(message)

        async def read():
            while (message := await peer.frame()) != Frame(BINARY, b"end"):
                received.append(message.payload)

        async with trio.open_nursery() as readers:
            readers.start_soon(read)
            async with trio.open_nursery() as senders:
                for letter in (b"a", b"b", b"c", b"d"):
                    senders.start_soon(send, letter)
            await ws.send(b"end")
    assert sorted(received) == sorted(sent)


# ------------------------------------------------------------------ j: fairness


async def test_j_a_flood_does_not_starve_others():
    """One peer pipelines without end, another is served in between; the loop's lag is known."""
    async with serving(Echo(), pool_size=1) as at:
        greedy, good = await at.join(), await at.join()
        flood = b"".join(text(str(n)) for n in range(3000))

        async def send():
            while True:
                await greedy.send(flood)

        async def read():
            while True:
                await greedy.stream.receive_some(2**20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(read)
            for n in range(20):
                await good.echo(str(n))
            nursery.cancel_scope.cancel()
        assert at.server.statistics().lag_max >= at.server.statistics().lag >= 0
