"""What a connection of a client costs while nothing happens on it."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc

import pytest
import trio
from scripted import scripted, server_frame
from ws_peer import until

import trionet
from trionet.client import keys


async def echo(side):
    """Echo until the client leaves."""
    await side.accept()
    with contextlib.suppress(trio.BrokenResourceError):
        while (frame := await side.frame()) is not None:
            await side.send(server_frame(frame.opcode, frame.payload))


async def straight(ws):
    """A handler that waits."""
    async for _ in ws:
        pass


@pytest.mark.measured
@pytest.mark.parametrize(
    "handler, bound",
    [(None, 400), (trionet.WebSocketHandler(), 350), (straight, 700)],
    ids=["task", "events", "straight"],
)
async def test_idle_connection_is_small(handler, bound):
    """Bytes of Python objects that trionet keeps for an open connection that has said something before."""
    count = 100
    async with scripted(echo) as script, trionet.open_client(subprotocols=["a"]) as client:
        for _ in range(5):  # whatever is made once, is made now
            await client.connect(script.url, handler=handler)
        keys._keys.clear()
        gc.collect()
        tracemalloc.start()
        connections = [await client.connect(script.url, handler=handler) for _ in range(count)]
        for ws in connections:
            await ws.send("hello")
            if handler is None:
                assert await ws.receive() == "hello"
        await until(lambda: all(ws._rare is None and ws._out is None for ws in connections))
        keys._keys.clear()  # those fetched ahead are for all connections
        gc.collect()
        kept = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(inclusive=True, filename_pattern="*/trionet/*")]
        )
        tracemalloc.stop()
        size = sum(stat.size for stat in kept.statistics("filename")) / count
        for ws in connections:
            ws.reset()
    assert size < bound, f"{size:.0f} bytes"
