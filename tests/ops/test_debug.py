"""A look inside a real server: the commands that a worker answers."""

from __future__ import annotations

import json
import socket
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
import trio

sys.path.append(str(Path(__file__).resolve().parent))

from debug_server import looked_into

import trionet
from trionet.ops.control import ControlError
from trionet.ops.debug import connections, one, slices, tasks
from trionet.ops.debug.copy import in_a_copy
from trionet.ops.debug.profile import collapsed, speedscope
from trionet.ops.debug.tasks import tasks_as_text


def nodes(node):
    """Yield a task and all below it."""
    yield node
    for nursery in node["nurseries"]:
        for child in nursery["children"]:
            yield from nodes(child)


def named(document, name):
    """Return the tasks of this name."""
    return [node for node in nodes(document["root"]) if name in node["name"]]


async def sleeper():
    """Wait at a line of its own."""
    await trio.sleep_forever()


# ------------------------------------------------------------------------ tasks


async def test_tasks_that_are_alike_are_one_entry_with_a_count():
    """Fifty tasks at the same line are one node of the tree; one that differs stands beside it, before them."""
    async with looked_into() as looked, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(sleeper, name="crowd")
        nursery.start_soon(trio.sleep_forever, name="crowd")
        await trio.testing.wait_all_tasks_blocked()
        document = await looked.ask("tasks")
        assert [node["count"] for node in named(document, "crowd")] == [1, 50]
        stack = named(document, "crowd")[1]["stack"]
        assert stack[-1]["code"] == "await park()" or any(frame["function"] == "sleeper" for frame in stack)
        assert "and 49 more like this" in tasks_as_text(document)
        json.dumps(document)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_nursery_is_marked_in_the_tree():
    """What was cancelled and does not end can be told."""

    async def stubborn():
        with trio.CancelScope(shield=True):
            await release.wait()

    release, cancelled = trio.Event(), trio.Event()
    async with looked_into() as looked, trio.open_nursery() as outer:

        async def holder():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stubborn, name="stubborn")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                cancelled.set()

        outer.start_soon(holder, name="holder")
        await cancelled.wait()
        document = await looked.ask("tasks")
        release.set()
        [node] = named(document, "holder")
        assert node["nurseries"][0]["cancelled"]


async def test_a_stuck_handler_is_shown_with_its_own_line_its_nursery_and_its_connection():
    """A handler of events that waits: the pool's driver does not hide its frames."""
    async with looked_into() as looked:
        await looked.connect("/events", "sleep")
        await looked.until(looked.suspended(1))
        document = await looked.ask("tasks")
        [node] = [node for node in nodes(document["root"]) if node.get("handler")]
        assert node["handler"] == "WebSocketProtocol Events"
        [own] = [frame for frame in node["stack"] if frame["own"]]
        assert own["function"] == "Events.on_message"
        assert "open_nursery" in own["code"]
        assert node["nurseries"][0]["children"][0]["name"] == "the database"
        facts = await looked.ask("connection", id=node["connections"][0])
        assert facts["handler"] == "waits"
        assert [frame["function"] for frame in facts["stack"] if frame["own"]] == ["Events.on_message"]


@pytest.mark.parametrize("timed", [False, True])
async def test_a_straight_line_handler_that_waits_in_a_task_is_shown_whole(timed):
    """Also while the jobs are timed, which puts a generator between."""
    async with looked_into() as looked:
        if timed:
            await looked.ask("timing", on=True)
        await looked.connect("/echo", "sleep")
        await looked.until(looked.suspended(1))
        document = await looked.ask("tasks")
        [node] = [node for node in nodes(document["root"]) if node.get("handler")]
        assert [frame["function"] for frame in node["stack"] if frame["own"]] == ["echo"]


async def test_handlers_without_a_task_are_listed_by_line():
    """Three wait for a message, one for room in the queue of a peer that does not read."""
    async with looked_into() as looked:
        for _ in range(3):
            await looked.connect("/echo")
        slow = socket.create_connection(looked.server.addresses[0])
        with slow:
            slow.sendall(
                b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                b"\x81\x85\0\0\0\0flood"
            )
            await looked.until(lambda: looked.server.engine.pool.parked)
            document = await looked.ask("tasks")
            waiting = document["parked"]
            assert waiting["total"] == waiting["looked_at"] == 4
            codes = {group["count"]: group["stack"] for group in waiting["groups"]}
            assert any("async for message" in frame["code"] for frame in codes[3])
            assert any('ws.send("x" * 5000)' in frame["code"] for frame in codes[1])
            assert "4 handlers wait without a task" in tasks_as_text(document)
            rows = (await looked.ask("connections", min_queued=1))["rows"]
            assert [row["protocol"] for row in rows] == ["WebSocketProtocol echo"]
            assert rows[0]["queued"] > 0


async def test_of_very_many_parked_handlers_some_are_looked_at(monkeypatch):
    """The total is exact; stacks are asked of a part, so that a look costs little."""
    monkeypatch.setattr(tasks, "_LOOKS", 2)
    async with looked_into() as looked:
        for _ in range(6):
            await looked.connect("/echo")
        waiting = (await looked.ask("tasks"))["parked"]
        assert waiting["total"] == 6
        assert waiting["looked_at"] == sum(group["count"] for group in waiting["groups"]) == 2


async def test_the_answer_about_tasks_is_bounded():
    """Different tasks beyond the limit are counted, not shown."""
    async with looked_into() as looked, trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(sleeper, name=f"task {number}")
        await trio.testing.wait_all_tasks_blocked()
        document = await looked.ask("tasks", limit=10)
        assert len(list(nodes(document["root"]))) <= 11
        assert document["tasks"] == document["hidden"] + sum(
            node["count"] for node in nodes(document["root"])
        )
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ connections


async def test_connections_are_counted_and_filtered():
    """By state, flag, protocol, peer; the counts are of all whatever is wanted."""
    async with looked_into() as looked:
        ws = await looked.connect("/echo", "hello")
        assert await ws.receive() == "hello"
        await looked.connect("/events", "sleep")
        await looked.stack.enter_async_context(await trio.open_tcp_stream(*looked.server.addresses[0]))
        tcp = await trio.open_tcp_stream(*looked.server.addresses[1])
        await looked.stack.enter_async_context(tcp)
        await tcp.send_all(b"x")
        await looked.until(lambda: looked.suspended(1)() and looked.server.engine.streams)
        await looked.until(lambda: looked.server.engine.connections == 4)
        every = await looked.ask("connections")
        summary = every["summary"]
        assert summary["states"] == {"open": 2, "opening": 1, "stream": 1}
        assert summary["flags"] == {"busy": 1}
        assert summary["handlers"] == {"parked": 1, "waits": 1}
        assert summary["connections"] == summary["matched"] == len(every["rows"]) == 4
        assert all(row["age"] is not None for row in every["rows"])

        async def found(**wanted):
            document = await looked.ask("connections", **wanted)
            assert document["summary"]["connections"] == 4
            assert document["summary"]["matched"] == len(document["rows"])
            return sorted(row["protocol"] for row in document["rows"])

        assert await found(state="opening") == ["Router"]
        assert await found(state="stream") == ["DetachedStream"]
        assert await found(flag="busy") == ["WebSocketProtocol Events"]
        assert await found(protocol="websocket ") == []
        assert await found(protocol="websocketprotocol e") == [
            "WebSocketProtocol Events",
            "WebSocketProtocol echo",
        ]
        assert len(await found(peer="127.0.0.1:")) == 4
        assert await found(peer="10.") == []
        assert await found(min_silent=3600) == []
        assert len((await looked.ask("connections", limit=2))["rows"]) == 2
        for wrong in ({"sort": "beauty"}, {"state": "happy"}, {"flag": "red"}):
            with pytest.raises(ControlError, match="must be one of"):
                await looked.ask("connections", **wrong)


async def test_the_largest_come_first():
    """Sorted by memory: a straight-line handler takes more than none."""
    async with looked_into() as looked:
        for path in ("/events", "/echo", "/events"):
            await looked.connect(path)
        document = await looked.ask("connections", sort="memory", limit=2)
        sizes = [row["memory"] for row in document["rows"]]
        assert document["rows"][0]["protocol"] == "WebSocketProtocol echo"
        assert sizes == sorted(sizes, reverse=True)
        assert document["summary"]["memory"] > sum(sizes)


async def test_others_run_between_two_connections(monkeypatch):
    """A look at a table gives way as often as the time of a slice is over."""
    monkeypatch.setattr(slices, "SLICE", -1.0)
    monkeypatch.setattr(one, "_AT_ONCE", 1)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with looked_into() as looked:
        for _ in range(8):
            await looked.connect("/events")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for name in ("connections", "tasks", "broadcast"):
                before = turns
                await looked.ask(name, **({"text": "x"} if name == "broadcast" else {}))
                assert turns - before >= 6  # who runs first in a turn is chance
            nursery.cancel_scope.cancel()


async def test_all_that_is_known_about_one_connection():
    """Addresses, key, data, kernel; a `repr` that raises is no obstacle."""
    async with looked_into() as looked:
        ws = await looked.connect("/events", "hello")
        assert await ws.receive() == "hello"
        [row] = (await looked.ask("connections"))["rows"]
        facts = await looked.ask("connection", id=row["id"])
        assert facts["key"] == "ann"
        assert facts["data"] == "{'name': '<b>'}"
        assert facts["local"] == f"127.0.0.1:{looked.server.addresses[0][1]}"
        assert facts["stack"] == []
        if sys.platform == "linux":
            assert facts["kernel"]["tcp"] == "ESTABLISHED"
            assert facts["kernel"]["unread"] == 0
            assert facts["kernel"]["received"] > 100

        class Rude:
            def __repr__(self):
                raise RuntimeError

        next(looked.server.connections).data = Rude()
        assert "Rude" in (await looked.ask("connection", id=row["id"]))["data"]
        json.dumps(facts)


# ------------------------------------------------------------------------ changes


async def test_a_name_does_not_survive_its_connection():
    """The descriptor is used again, and the newcomer is not taken for the one that was meant."""
    async with looked_into() as looked:
        address = looked.server.addresses[1]
        with socket.create_connection(address):
            await looked.until(lambda: looked.server.engine.connections == 1)
            [old] = (await looked.ask("connections"))["rows"]
        await looked.until(lambda: looked.server.engine.connections == 0)
        with socket.create_connection(address):
            await looked.until(lambda: looked.server.engine.connections == 1)
            [new] = (await looked.ask("connections"))["rows"]
            assert new["fd"] == old["fd"]
            assert new["id"] != old["id"]
            for command in ("kick", "connection"):
                with pytest.raises(ControlError, match="it has ended"):
                    await looked.ask(command, id=old["id"])
            assert looked.server.engine.connections == 1


async def test_a_websocket_is_closed_with_code_and_reason():
    """The peer is told; a code that may not be sent is refused and changes nothing."""
    async with looked_into() as looked:
        ws = await looked.connect("/echo")
        [row] = (await looked.ask("connections"))["rows"]
        with pytest.raises(ControlError, match="1006"):
            await looked.ask("kick", id=row["id"], code=1006)
        assert "told 4002" in (await looked.ask("kick", id=row["id"], code=4002, reason="too loud"))["done"]
        with pytest.raises(trionet.ConnectionClosed) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.reason) == (4002, "too loud")


async def test_any_connection_can_be_ended():
    """A half-open one, a stream, and, by a reset, one that does not answer; each exactly that one."""
    async with looked_into() as looked:
        page, tcp = looked.server.addresses
        with socket.create_connection(page) as half, socket.create_connection(tcp) as given:
            given.sendall(b"x")
            ws = await looked.connect("/echo")
            await looked.until(lambda: looked.server.engine.streams and looked.server.engine.connections == 3)
            rows = {row["state"]: row["id"] for row in (await looked.ask("connections"))["rows"]}
            await looked.ask("kick", id=rows["opening"])
            assert half.recv(100) == b""
            await looked.ask("kick", id=rows["stream"])
            assert given.recv(100) == b""
            assert (await looked.ask("kick", id=rows["open"], reset=True))["done"] == "reset"
            with pytest.raises(trionet.ConnectionClosed):
                await ws.receive()
            await looked.until(lambda: looked.server.engine.connections == 0)


async def test_a_word_to_all_reaches_every_open_websocket():
    """And says how many; other connections are left alone."""
    async with looked_into() as looked:
        listeners = [await looked.connect(path) for path in ("/echo", "/events", "/echo")]
        await looked.stack.enter_async_context(await trio.open_tcp_stream(*looked.server.addresses[0]))
        answer = await looked.ask("broadcast", text="down in five minutes")
        assert answer["sent"] == 3
        assert answer["left_out"] == 0
        for ws in listeners:
            assert await ws.receive() == "down in five minutes"


# ------------------------------------------------------------------- measurements


async def test_handlers_are_timed_when_that_is_switched_on():
    """Time on the loop and time of waiting, by handler; off, nothing is kept."""
    async with looked_into() as looked:
        assert (await looked.ask("handlers")) == {"on": False, "rows": []}
        await looked.ask("timing", on=True)
        first, second = await looked.connect("/echo", "a"), await looked.connect("/events", "fail")
        assert await first.receive() == "a"
        with pytest.raises(trionet.ConnectionClosed):
            await second.receive()
        await looked.connect("/events", "sleep")
        await looked.until(looked.suspended(1))
        document = await looked.ask("handlers")
        rows = {row["handler"]: row for row in document["rows"]}
        assert rows["WebSocketProtocol Events"]["failed"] == 1
        assert rows["WebSocketProtocol Events"]["waiting"] == 1
        assert rows["WebSocketProtocol echo"]["jobs"] >= 1
        assert (
            rows["WebSocketProtocol echo"]["longest"]
            <= rows["WebSocketProtocol echo"]["busy"]
            <= document["seconds"]
        )
        await looked.ask("timing", on=False)
        assert looked.server.engine.pool.clock is None


async def test_the_heap_is_explained_by_line_and_by_type():
    """What was allocated while tracing is found at its line, objects are counted, in a copy of the process."""
    async with looked_into() as looked:
        document = await looked.ask("heap")
        assert not document["tracing"]
        assert "lines" not in document
        if sys.platform == "linux":
            assert document["process"]["rss"] > 2**20
        assert (await looked.ask("tracemalloc", on=True)) == {"tracing": True}
        try:
            kept = [bytes(100_000) for _ in range(20)]
            document = await looked.ask("heap", objects=True, top=5)
        finally:
            await looked.ask("tracemalloc", on=False)
        assert not tracemalloc.is_tracing()
        assert document["lines"][0]["file"].endswith("test_debug.py")
        assert "bytes(100_000)" in document["lines"][0]["code"]
        assert document["lines"][0]["size"] >= 100_000 * len(kept)
        assert len(document["types"]) == 5
        assert document["objects"] > 1000


async def test_a_copy_that_fails_or_hangs_is_an_error():
    """The server goes on, and nothing of the copy is left."""

    def fail():
        raise ValueError("no")

    with pytest.raises(ControlError, match="ValueError: no"):
        await in_a_copy(fail)
    with pytest.raises(ControlError, match="not done"):
        await in_a_copy(lambda: time.sleep(60), timeout=0.05)


async def test_one_copy_at_a_time():
    """However often the heap is asked for, the process is not forked into many."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(in_a_copy, lambda: time.sleep(0.2)))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ControlError, match="another copy"):
            await in_a_copy(lambda: None)
    assert (await in_a_copy(lambda: 7))[0] == 7


@pytest.mark.parametrize("method", ["signal", "thread"])
async def test_a_profile_names_the_function_that_takes_the_time(method):
    """Samples of the process by itself, as collapsed stacks and for speedscope."""

    def busy_bee():
        return sum(number * number for number in range(2000))

    async def work():
        while True:
            busy_bee()
            await trio.lowlevel.checkpoint()

    async with looked_into() as looked, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        document = await looked.ask("profile", seconds=0.4, method=method)
        nursery.cancel_scope.cancel()
    assert document["method"] == method
    assert "busy_bee" in collapsed(document)
    assert sum(speedscope(document)["profiles"][0]["weights"]) == document["samples"] > 0


async def test_one_profile_at_a_time_within_bounds():
    """A second is refused while the first is taken; so are an hour and an unknown method."""
    async with looked_into() as looked, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: looked.ask("profile", seconds=0.3, method="signal"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ControlError, match="already"):
            await looked.ask("profile", seconds=0.1)
        with pytest.raises(ControlError, match="seconds"):
            await looked.ask("profile", seconds=3600)
        with pytest.raises(ControlError, match="method"):
            await looked.ask("profile", method="magic")


def test_every_sort_has_a_name_that_rows_have():
    """What the table is sorted by is a column of it."""
    assert set(connections.SORTS) == {"queued", "held", "memory", "silent", "stalled", "age", "fd"}
