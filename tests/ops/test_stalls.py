"""The stall watch: it says who holds up the event loop, while it lasts."""

from __future__ import annotations

import logging
import threading
import time

import trio

import trionet
from trionet.ops.stalls import StallWatch


class Told(logging.Handler):
    """Keeps records, and lets whoever holds up the loop go on when the first has come."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.first = threading.Event()

    def emit(self, record):
        self.records.append((record, time.perf_counter()))
        self.first.set()


class Listening:
    """What the watch's logger says within a block."""

    def __enter__(self):
        self.handler = Told()
        logging.getLogger("trionet.stalls").addHandler(self.handler)
        return self.handler

    def __exit__(self, *_):
        logging.getLogger("trionet.stalls").removeHandler(self.handler)


async def test_a_blocking_handler_is_named_while_it_blocks():
    """One record comes during the stall: handler, line, connection and stack. Another one says how long it took."""
    ended = []

    def query(told):
        told.first.wait(10)  # a driver that blocks; it is released by having been reported
        ended.append(time.perf_counter())

    class Chat(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            query(told)
            await ws.send(message)

    with Listening() as told:
        async with trionet.open_server(trionet.WebSocketProtocol(Chat())) as server:
            with StallWatch(server, threshold=0.1) as watch:
                async with trionet.connect_websocket(f"ws://127.0.0.1:{server.addresses[0][1]}/") as ws:
                    await ws.send("x")
                    await ws.receive()
                found = watch.statistics()
    (during, at), (after, _) = told.records
    assert at < ended[0]
    assert during.levelno == logging.WARNING
    assert "Chat.on_message" in during.trionet["handler"]
    assert "query" not in during.trionet["handler"]
    assert during.trionet["peer"].startswith("127.0.0.1:")
    assert during.trionet["connection"].startswith("<WebSocket fd=")
    assert "test_stalls.py" in during.trionet["where"] or "wait" in during.trionet["where"]
    assert "query(told)" in during.stack_info
    assert "told.first.wait(10)" in during.stack_info
    assert "goes on" in after.getMessage()
    assert after.trionet["computed"] < after.trionet["seconds"]
    assert found.stalls == 1
    assert found.longest == found.stalled >= 0.1
    assert found.turns > 5
    assert found.busy >= found.stalled


async def test_a_task_that_blocks_is_named():
    """Code outside of handlers is found by its stack; no connection is accused."""
    with Listening() as told, StallWatch(threshold=0.05):
        told.first.wait(10)
        await trio.lowlevel.checkpoint()
    (during, _), _ = told.records
    assert "test_a_task_that_blocks_is_named" in during.trionet["handler"]
    assert "peer" not in during.trionet


async def test_a_loop_that_waits_is_no_stall():
    """Sleeping longer than the threshold is what a loop does all day."""
    with Listening() as told, StallWatch(threshold=0.02) as watch:
        for _ in range(3):
            await trio.sleep(0.05)
        assert watch.statistics().turns >= 3
        long = watch.statistics().stalls
    assert len(told.records) == 2 * long == 0


async def test_a_stall_without_a_stack_is_told_when_it_is_over():
    """When the thread could not look, as with a C function that keeps the interpreter's lock, the length is logged."""
    with Listening() as told, StallWatch(threshold=10) as watch:
        watch.threshold = 1e-6  # the thread waits for its first look still
        await trio.lowlevel.checkpoint()
        watch.threshold = 10
        assert watch.statistics().stalls >= 1
    assert "no stack" in told.records[0][0].getMessage()


async def test_a_watch_ends_and_begins_again():
    """After its block there is no thread and no instrument; it may be used once more."""
    before = threading.active_count()
    watch = StallWatch(threshold=10)
    for _ in range(2):
        with watch:
            assert threading.active_count() == before + 1
            await trio.lowlevel.checkpoint()
        turns = watch.statistics().turns
        await trio.lowlevel.checkpoint()
        assert watch.statistics().turns == turns
        assert threading.active_count() == before


async def test_a_handler_that_always_blocks_does_not_fill_the_log():
    """The same stall over and over is logged a few times; all are counted."""
    with Listening() as told, StallWatch(threshold=10) as watch:
        for _ in range(20):
            watch._over(1.0, 11.0)
        assert watch.statistics().stalls == 20
        assert watch.statistics().stalled == 220
    assert len(told.records) == 6  # five, and what was left out
