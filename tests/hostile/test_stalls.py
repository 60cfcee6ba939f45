"""More peers and handlers that wait than the pool has workers: the others must not notice."""

from __future__ import annotations

import gc
import logging
import struct
import warnings
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from hostile_peer import BINARY, CLOSE, FIN, TEXT, close, connect, frame

import trionet

MANY = 200
ECHOES = 200
HIGH_WATER = 32_768
PIECE = 16_384


async def make_peers(stack, address, count, **options):
    """Open `count` connections, a few at a time."""
    peers = []
    gate = trio.CapacityLimiter(50)

    async def one():
        async with gate:
            peer = await stack.enter_async_context(connect(address, **options))
            await peer.open()
            peers.append(peer)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return peers


async def echo_often(address, count=ECHOES):
    """Do `count` echoes, one after the other."""
    async with connect(address) as peer:
        await peer.open()
        for number in range(count):
            await peer.echo(b"%d" % number)
        await peer.leave()


def open_descriptors():
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition):
    """Wait for `condition`."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


class Firehose(trionet.WebSocketHandler):
    """Echoes, but for "more": then it sends without end."""

    def __init__(self):
        self.closed = []
        self.hosed = set()

    async def on_message(self, ws, message):
        if message != "more":
            await ws.send(message)
            return
        self.hosed.add(ws)
        while True:
            await ws.send(bytes(PIECE))

    async def on_close(self, ws, closed):
        self.closed.append(closed)
        self.hosed.discard(ws)


async def test_stalled_peers_hold_no_worker(serving):
    """16 workers; 200 peers silent, 200 in mid-frame, 200 that never read what 200 handlers send: echoes go on."""
    handler = Firehose()
    with trio.fail_after(50):
        async with serving(handler, pool_size=16, high_water=HIGH_WATER, ping_interval=None) as server:
            address = server.addresses[0]
            async with AsyncExitStack() as stack:
                # In the handshake's first half, which has a deadline of its own, and behind it.
                for _ in range(20):
                    peer = await stack.enter_async_context(connect(address))
                    await peer.send(b"GET / HTTP/1.1\r\nHost: ")
                await make_peers(stack, address, MANY)
                for peer in await make_peers(stack, address, MANY):
                    await peer.send(frame(TEXT, b"half a frame")[:9])
                deaf = await make_peers(stack, address, MANY, receive_buffer=4096)
                for peer in deaf:
                    await peer.send(frame(TEXT, b"more"))
                await until(lambda: sum(ws.queued > 0 for ws in handler.hosed) == MANY)

                await echo_often(address)

                stalled = list(handler.hosed)
                assert len(stalled) == MANY
                for ws in stalled:
                    assert ws.queued <= HIGH_WATER + PIECE + 1024
                assert server.statistics().connections >= 3 * MANY
                # One that begins to read gets what it missed: nothing was lost, nothing torn.
                for _ in range(20):
                    assert await deaf[0].read_frame() == (BINARY, bytes(PIECE), True)
                await echo_often(address, 20)
            await until(lambda: len(handler.closed) >= 3 * MANY)


class Waiters(trionet.WebSocketHandler):
    """Handlers that sleep, that wait for each other, and that answer."""

    def __init__(self):
        self.sleeping = self.waiting = self.woken = 0
        self.everybody = trio.Event()
        self.morning = trio.Event()

    async def on_message(self, ws, message):
        if message == "sleep":
            self.sleeping += 1
            await self.morning.wait()
        elif message == "wait":
            self.waiting += 1
            if self.waiting == 100:
                self.everybody.set()
            await self.everybody.wait()
            self.woken += 1
        elif message == "pour":
            while True:
                await ws.send(bytes(PIECE))
        await ws.send(message)


async def test_handlers_that_wait_hold_no_worker(serving):
    """4 workers; 100 handlers sleep, 100 wait until each of them has got a message: all meet, and echoes go on."""
    handler = Waiters()
    with trio.fail_after(50):
        async with serving(handler, pool_size=4) as server:
            address = server.addresses[0]
            async with AsyncExitStack() as stack:
                sleepers = await make_peers(stack, address, 100)
                for peer in sleepers:
                    await peer.send(frame(TEXT, b"sleep"))
                await until(lambda: handler.sleeping == 100)
                await echo_often(address)
                waiters = await make_peers(stack, address, 100)
                for peer in waiters[:99]:
                    await peer.send(frame(TEXT, b"wait"))
                await until(lambda: handler.waiting == 99)
                await echo_often(address)
                assert handler.woken == 0
                await waiters[99].send(frame(TEXT, b"wait"))
                for peer in waiters:
                    assert await peer.read_frame() == (TEXT, b"wait", True)
                handler.morning.set()
                for peer in sleepers:
                    assert await peer.read_frame() == (TEXT, b"sleep", True)
                await echo_often(address)


async def test_handlers_that_sleep_in_a_nursery_or_scope(serving):
    """2 workers; 50 handlers wait inside nurseries and cancel scopes of their own, where they cannot be parked."""

    class Nested(trionet.WebSocketHandler):
        begun = 0

        async def on_message(self, ws, message):
            if message == "hello":
                await ws.send(message)
                return
            self.begun += 1
            with trio.CancelScope():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)

    handler = Nested()
    with trio.fail_after(40):
        async with serving(handler, pool_size=2) as server, AsyncExitStack() as stack:
            for peer in await make_peers(stack, server.addresses[0], 50):
                await peer.send(frame(TEXT, b"nest"))
            await until(lambda: handler.begun == 50)
            async with connect(server.addresses[0]) as peer:
                await peer.open()
                for _ in range(20):
                    await peer.echo()


class Failing(trionet.WebSocketHandler):
    """Raises what it is told to."""

    async def on_open(self, ws):
        if ws.request.path == "/on_open":
            raise KeyError("on_open")

    async def on_message(self, ws, message):
        if message == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail)
                nursery.start_soon(trio.sleep_forever)
        elif message == "later":
            await trio.sleep(0.15)
            raise ValueError(message)
        elif message == "base":
            raise BaseExceptionGroup("several", [ValueError("one"), KeyError("two")])
        elif message == "at once":
            raise ValueError(message)
        await ws.send(message)

    async def on_close(self, ws, closed):
        if ws.data == "fail in on_close":
            raise RuntimeError("on_close")

    async def fail(self):
        raise ValueError("in a task")


@pytest.mark.parametrize("message", [b"at once", b"later", b"group", b"base"])
@pytest.mark.parametrize("pipelined", [False, True], ids=["alone", "pipelined"])
async def test_a_handler_that_raises_costs_its_connection_only(serving, caplog, message, pipelined):
    """RFC 6455, 7.4.1: it is closed with 1011, one error is logged, and others on the server do not notice."""
    async with serving(Failing()) as server, connect(server.addresses[0]) as other:
        await other.open()
        async with connect(server.addresses[0]) as peer:
            await peer.open()
            before = frame(TEXT, b"fine") if pipelined else b""
            behind = frame(TEXT, b"not handled") if pipelined else b""
            await peer.send(before + frame(TEXT, message) + behind)
            if pipelined:
                assert await peer.read_frame() == (TEXT, b"fine", True)
            assert await peer.read_frame() == (CLOSE, struct.pack("!H", 1011), True)
            await peer.send(close(1011))
            assert await peer.read_to_close() == []
            assert peer.ended == FIN
        await other.echo()
        await other.leave()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1, errors


async def test_an_on_open_that_raises(serving, caplog):
    """The connection is open by then, so it is closed with 1011, not answered with 500."""
    async with serving(Failing()) as server, connect(server.addresses[0]) as peer:
        await peer.open(line=b"GET /on_open HTTP/1.1")
        assert await peer.read_frame() == (CLOSE, struct.pack("!H", 1011), True)
        await peer.send(close(1011))
        assert await peer.read_to_close() == []
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_cancelling_the_server_leaves_nothing(echo_handler):
    """In every kind of wait: after the server's block is left no task, descriptor or warning is there."""
    handler = Waiters()
    tasks = len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks)
    gc.collect()
    before = open_descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with AsyncExitStack() as stack:
            with trio.CancelScope() as scope:
                protocol = trionet.WebSocketProtocol(handler, high_water=HIGH_WATER)
                async with trionet.open_server(protocol, pool_size=4) as server:
                    address = server.addresses[0]
                    await stack.enter_async_context(connect(address))
                    half = await stack.enter_async_context(connect(address))
                    await half.send(b"GET /")
                    for peer in await make_peers(stack, address, 30):
                        await peer.send(frame(TEXT, b"sleep"))
                    for peer in await make_peers(stack, address, 30):
                        await peer.send(frame(TEXT, b"wait") + frame(TEXT, b"held") * 3)
                    for peer in await make_peers(stack, address, 10):
                        await peer.send(frame(BINARY, bytes(100))[:50])
                    deaf = await make_peers(stack, address, 10, receive_buffer=4096)
                    for peer in deaf:
                        await peer.send(frame(TEXT, b"pour"))
                    await until(lambda: handler.sleeping + handler.waiting == 60)
                    await until(lambda: any(ws.queued for ws in server.connections))
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            assert server.statistics().connections == 0
        gc.collect()
        await trio.lowlevel.checkpoint()
    assert not warned, [str(w.message) for w in warned]
    assert open_descriptors() == before
    assert len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks) == tasks
