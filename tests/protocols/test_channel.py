"""Sending: what the peer gets, who waits when it is slow, and that no frame is ever cut."""

from __future__ import annotations

import logging

import pytest
import trio
from ws_peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Echo,
    Frame,
    Opened,
    close,
    frame,
    serving,
    stall,
    text,
    until,
)

import trionet
from trionet.net import system
from trionet.net.connection import Connection

CHUNK = bytes(4096)


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.fixture
def writes(monkeypatch):
    """Return the list of what is handed to the kernel, one entry for each system call."""
    seen = []
    write = system.write

    def spy(fd, data):
        seen.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr(Connection, "_put", staticmethod(spy))
    return seen


# ------------------------------------------------------------------ what is sent


@pytest.mark.parametrize(
    "message, opcode, payload",
    [
        ("text", TEXT, b"text"),
        ("", TEXT, b""),
        ("é€😀", TEXT, "é€😀".encode()),
        (b"bytes", BINARY, b"bytes"),
        (b"", BINARY, b""),
        (bytearray(b"array"), BINARY, b"array"),
        (memoryview(b"xviewx")[1:-1], BINARY, b"view"),
        (memoryview(b"a-b-c")[::2], BINARY, b"abc"),
        (trionet.PreparedMessage("text"), TEXT, b"text"),
        (trionet.PreparedMessage(b"bytes"), BINARY, b"bytes"),
        (trionet.PreparedMessage(bytearray(b"array")), BINARY, b"array"),
        *((bytes(n), BINARY, bytes(n)) for n in (125, 126, 65535, 65536)),
        *(("x" * n, TEXT, b"x" * n) for n in (125, 126, 65535, 65536)),
    ],
    ids=range(19),
)
async def test_what_can_be_sent(message, opcode, payload):
    """A str as text, anything like bytes as binary, at every length form; `send` and `send_nowait` agree."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        await ws.send(message)
        ws.send_nowait(message)
        assert trionet.broadcast([ws], message) == 1
        for _ in range(3):
            assert await peer.frame() == Frame(opcode, payload)


@pytest.mark.parametrize("message", [None, 5, 1.5, [65, 66], {"a": 1}, object()], ids=range(6))
async def test_what_cannot_be_sent(message):
    """Anything else is a `TypeError`, at the caller's line: nothing is sent, nothing is guessed."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(TypeError):
            await ws.send(message)
        with pytest.raises(TypeError):
            ws.send_nowait(message)
        with pytest.raises(TypeError):
            trionet.broadcast([ws], message)
        with pytest.raises(TypeError):
            trionet.PreparedMessage(message)
        await ws.send("next")
        assert await peer.hear() == "next"


async def test_text_that_is_no_unicode_is_refused_before_anything_is_sent():
    """A lone surrogate cannot be encoded: `UnicodeEncodeError`, and the stream is intact."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(UnicodeEncodeError):
            await ws.send("a\ud800")
        await ws.send("next")
        assert await peer.hear() == "next"


@pytest.mark.parametrize("where", ["on_upgrade", "afterwards"])
async def test_sending_out_of_time(where):
    """Before the 101 sending is a mistake and says so; after the end it raises `ConnectionClosed`."""
    errors = []

    class Handler(Opened):
        async def on_upgrade(self, ws, request):
            if where == "on_upgrade":
                for attempt in (ws.send, ws.ping):
                    try:
                        await attempt(*(("x",) if attempt == ws.send else ()))
                    except Exception as error:
                        errors.append(error)
                try:
                    ws.send_nowait("x")
                except Exception as error:
                    errors.append(error)

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        if where == "on_upgrade":
            assert [type(error) for error in errors] == [RuntimeError] * 3
            return
        await peer.send(close(4000, b"bye"))
        await peer.closed()
        await until(lambda: handler.ends)
        for attempt in (lambda: ws.send("x"), ws.ping, ws.send_stream().__aenter__):
            with pytest.raises(trionet.ConnectionClosed, match="closed by peer: 4000 bye"):
                await attempt()
        with pytest.raises(trionet.ConnectionClosed):
            ws.send_nowait("x")
        assert trionet.broadcast([ws], "x") == 0
        await ws.close()  # ending what has ended is no error
        ws.close_nowait()
        await ws.wait_closed()


# ------------------------------------------------------------------ one write


async def test_pipelined_messages_are_answered_in_one_write(writes):
    """What came in one read is answered in one write, in order."""
    async with serving(Echo()) as at:
        peer = await at.join()
        await peer.echo("warm")
        writes.clear()
        await peer.send(*(text(str(n)) for n in range(16)))
        assert [await peer.hear() for _ in range(16)] == [str(n) for n in range(16)]
    assert writes == [b"".join(bytes((0x81, len(str(n)))) + str(n).encode() for n in range(16))]


async def test_pongs_are_corked_in_their_place(writes):
    """A Ping between messages is answered between them, in the same write."""
    async with serving(Echo()) as at:
        peer = await at.join()
        writes.clear()
        await peer.send(text("a"), frame(PING, b"p"), text("b"))
        assert [await peer.frame() for _ in range(3)] == [
            Frame(TEXT, b"a"),
            Frame(PONG, b"p"),
            Frame(TEXT, b"b"),
        ]
    assert len(writes) == 1


async def test_the_cork_is_flushed_when_the_handler_waits():
    """Answers never wait for a later handler: at its first wait they go out."""
    gate = trio.Event()

    class Handler(Echo):
        async def on_message(self, ws, message):
            await ws.send(message)
            if message == "b":
                await ws.send("waiting")
                await gate.wait()

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"), text("c"))
        assert [await peer.hear() for _ in range(3)] == ["a", "b", "waiting"]
        gate.set()
        assert await peer.hear() == "c"


async def test_the_cork_is_bounded(writes):
    """At 64 KiB it goes out, whatever is still to come."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            await ws.send(bytes(20_000))

    async with serving(Handler()) as at:
        peer = await at.join()
        writes.clear()
        await peer.send(*(text(str(n)) for n in range(8)))
        for _ in range(8):
            assert await peer.frame() == Frame(BINARY, bytes(20_000))
    assert [len(data) // 20_000 for data in writes] == [4, 4]


async def test_a_close_flushes_the_cork_first():
    """What was sent before a Close arrives before it."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            await ws.send(message)
            if message == "b":
                ws.close_nowait(4000)

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"), text("c"))
        assert await peer.hear() == "a"
        assert await peer.hear() == "b"
        await peer.farewell(4000)


async def test_a_failure_flushes_the_cork_first(caplog):
    """What a handler sent before it failed arrives before the 1011."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            await ws.send(message)
            if message == "b":
                raise RuntimeError

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"), text("c"))
        assert [await peer.hear(), await peer.hear()] == ["a", "b"]
        await peer.farewell(1011)


async def test_a_broken_rule_flushes_the_cork_first():
    """Answers to the messages before a bad frame arrive before the Close."""
    async with serving(Echo()) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"), b"\xff\xff")
        assert [await peer.hear(), await peer.hear()] == ["a", "b"]
        assert await peer.closed() == 1002


async def test_broadcast_never_overtakes_what_is_corked():
    """A handler that sends, broadcasts and sends again is heard in this order, also by its own peer."""
    everybody = []

    class Handler(Opened):
        async def on_open(self, ws):
            everybody.append(ws)

        async def on_message(self, ws, message):
            await ws.send(f"{message}1")
            trionet.broadcast(everybody, f"{message}2")
            ws.send_nowait(f"{message}3")
            await ws.send(f"{message}4")

    async with serving(Handler()) as at:
        peer, other = await at.join(), await at.join()
        await until(lambda: len(everybody) == 2)
        await peer.send(text("a"), text("b"), text("c"))
        assert [await peer.hear() for _ in range(12)] == [f"{m}{n}" for m in "abc" for n in (1, 2, 3, 4)]
        assert [await other.hear() for _ in range(3)] == ["a2", "b2", "c2"]


async def test_a_pipeline_of_large_answers_waits_for_the_peer(backend):
    """Many small requests in one read, large answers, a peer that reads late: `send` waits, nobody is cut off."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            self.seen.append(message)
            await ws.send(message.encode() * 20_000)

    handler = Handler()
    async with serving(handler, backend=backend, hard_limit=200_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await peer.send(*(text(chr(65 + n)) for n in range(26)))
        await until(lambda: ws.closed or at.server.statistics().pool.parked)
        assert ws.closed is None
        assert at.server.statistics().overflowed == 0
        for n in range(26):
            assert await peer.frame() == Frame(BINARY, bytes([65 + n]) * 20_000)
        await peer.send(close())
        assert await peer.closed() == 1000


# ------------------------------------------------------------------ slow peers


async def test_send_parks_on_a_slow_peer(backend):
    """A handler that waits for its peer holds no task: it is parked; and goes on when the peer reads."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            for n in range(200):
                await ws.send(n.to_bytes(4, "big") * 1024)
            await ws.send("all")

    async with serving(Handler(), backend=backend) as at:
        peer = await at.join(small=True)
        await peer.say("go")
        await until(lambda: at.server.statistics().pool.parked == 1)
        pool = at.server.statistics().pool
        assert (pool.suspended, pool.detached) == (0, 0)
        for n in range(200):
            assert await peer.frame() == Frame(BINARY, n.to_bytes(4, "big") * 1024)
        assert await peer.hear() == "all"
        assert at.server.statistics().pool.parked == 0


async def test_fifty_slow_peers_leave_a_pool_of_two_free(backend):
    """Whoever does not read holds nobody up but itself."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            if message == "flood":
                while True:
                    await ws.send(CHUNK)
            await ws.send(message)

    async with serving(Handler(), pool_size=2, backend=backend) as at:
        for _ in range(50):
            peer = await at.join(small=True)
            await peer.say("flood")
        good = await at.join()
        for n in range(20):
            await good.echo(str(n))
        await until(lambda: at.server.statistics().pool.parked == 50)
        await good.echo()


async def test_a_sender_in_a_scope_is_not_parked_but_goes_on():
    """With a cancel scope open the task itself waits, leaves the pool, and comes back."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            with trio.CancelScope():
                for _ in range(100):
                    await ws.send(CHUNK)
            await ws.send("all")

    async with serving(Handler(), slot_grace=0.01) as at:
        peer = await at.join(small=True)
        await peer.say("go")
        await until(lambda: at.server.statistics().pool.detached == 1)
        for _ in range(100):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        assert await peer.hear() == "all"
        await until(lambda: at.server.statistics().pool.detached == 0)


async def test_a_cancelled_send_sends_nothing(backend):
    """The defect of both Trio WebSocket libraries: a send that was cancelled leaves the stream intact."""
    handler = Opened()
    async with serving(handler, backend=backend) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws)
        for _ in range(5):
            with trio.move_on_after(0.005) as scope:
                await ws.send(b"never" * 10_000)
            assert scope.cancelled_caught
        queued = ws.queued
        for _ in range(count):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        assert queued > 0
        await ws.send("second")
        assert await peer.hear() == "second"


async def test_a_handler_whose_send_is_cancelled_goes_on():
    """Inside a handler, too: the message was not sent, the next one arrives whole."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            with trio.move_on_after(0.05) as scope:
                while True:
                    await ws.send(CHUNK)
                    self.seen.append(1)
            assert scope.cancelled_caught
            ended.set()
            await ws.send("second")

    handler, ended = Handler(), trio.Event()
    async with serving(handler) as at:
        peer = await at.join(small=True)
        await peer.say("go")
        await ended.wait()
        for _ in range(len(handler.seen)):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        assert await peer.hear() == "second"


async def test_a_large_message_is_never_cut(backend):
    """8 MiB with a deadline: the peer gets it whole, or not at all; and whatever comes next is whole too."""
    handler = Opened()
    large = bytes(2**23)
    async with serving(handler, backend=backend) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        sent = 0
        for _ in range(3):
            with trio.move_on_after(0.01):
                await ws.send(large)
                sent += 1
        assert sent == 1  # the first is in the queue, the others waited behind it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send, "second")
            assert await peer.frame() == Frame(BINARY, large)
            assert await peer.hear() == "second"


async def test_an_endless_sender_can_be_cancelled():
    """`while True: await ws.send(x)` inside `move_on_after` ends although it never waits for the peer."""
    handler = Opened()

    class Handler(Opened):
        async def on_message(self, ws, message):
            with trio.move_on_after(0.05) as scope:
                while True:
                    await ws.send("x")
            self.seen.append(scope.cancelled_caught)
            await ws.send("end")

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()

        async def read():
            while await peer.hear() != "end":
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await peer.say("go")
    assert handler.seen == [True]


async def test_an_endless_sender_lets_others_run():
    """A handler that sends for ever to a peer that reads shares the loop, with a pool of one too."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            while message == "flood":
                await ws.send("x")
            await ws.send(message)

    async with serving(Handler(), pool_size=2) as at:
        greedy, good = await at.join(), await at.join()

        async def read():
            while True:
                await greedy.stream.receive_some(2**20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await greedy.say("flood")
            for n in range(20):
                await good.echo(str(n))
            nursery.cancel_scope.cancel()


async def test_a_cancelled_scope_stops_the_very_next_send():
    """`send` is a cancellation point also where it need not wait."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with trio.CancelScope() as scope:
            scope.cancel()
            await ws.send("never")
        assert scope.cancelled_caught
        await ws.send("next")
        assert await peer.hear() == "next"


async def test_a_cancelled_scope_stops_a_send_in_a_handler():
    """In a handler as well, with a cork and without."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            with trio.CancelScope() as scope:
                scope.cancel()
                await ws.send("never")
            self.seen.append(scope.cancelled_caught)
            await ws.send("next")

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("one")
        assert await peer.hear() == "next"
        await peer.send(text("two"), text("three"))
        assert [await peer.hear(), await peer.hear()] == ["next", "next"]
    assert handler.seen == [True] * 3


@pytest.mark.parametrize("size", [1, 200, 10_000, 60_000])
async def test_two_tasks_never_interleave(size, backend):
    """Several tasks may send at once; each message arrives whole, those of one task in order."""
    handler = Opened()
    async with serving(handler, backend=backend) as at:
        peer = await at.join(small=True)
        ws = await handler.first()

        async def send(letter):
            for n in range(5):
                await ws.send(f"{letter}{n}" * size)

        async with trio.open_nursery() as nursery:
            for letter in "abcd":
                nursery.start_soon(send, letter)
            got = [await peer.hear() for _ in range(20)]
    for letter in "abcd":
        assert [m[:2] for m in got if m[0] == letter] == [f"{letter}{n}" for n in range(5)]
    assert all(m == m[:2] * size for m in got)


async def test_send_nowait_raises_would_block_and_sends_nothing():
    """At `high_water` it says so; below, it sends."""
    handler = Opened()
    async with serving(handler, high_water=20_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws)
        assert ws.queued <= 20_000
        with pytest.raises(trio.WouldBlock):
            ws.send_nowait(CHUNK)
        for _ in range(count):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        ws.send_nowait("again")
        assert await peer.hear() == "again"


async def test_high_and_low_water():
    """A waiting sender goes on when the queue has sunk to `low_water`, not with the first byte of room."""
    handler = Opened()
    async with serving(handler, high_water=40_000, low_water=5_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws, bytes(1000))
        levels = []

        async def send():
            nonlocal count
            count += await stall(ws, bytes(1000))  # the flusher may have made a little room meanwhile
            waiting.set()
            await ws.send(bytes(1000))
            levels.append(ws.queued)

        waiting = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await waiting.wait()
            for _ in range(count + 1):
                assert await peer.frame() == Frame(BINARY, bytes(1000))
    assert levels[0] <= 5_000 + 1000 + 64


async def test_a_message_larger_than_high_water_waits_for_an_empty_queue_only():
    """A message longer than the high-water mark can be sent: it goes when nothing is queued before it."""
    handler = Opened()
    async with serving(handler, high_water=10_000, hard_limit=20_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws, bytes(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send, bytes(100_000))
            for _ in range(count):
                assert await peer.frame() == Frame(BINARY, bytes(1000))
            assert await peer.frame() == Frame(BINARY, bytes(100_000))
        assert at.server.statistics().overflowed == 0


async def test_the_hard_limit_closes(backend):
    """More in the queue than `hard_limit`, as by `Connection.write`, closes with 1013 and is counted."""
    handler = Opened()
    async with serving(handler, high_water=10_000, hard_limit=50_000, backend=backend) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        while ws.closed is None:
            ws.write(trionet.PreparedMessage(bytes(8000)).frame)
            assert ws.queued < 60_000
        assert (ws.closed.code, ws.closed.by) == (1013, "us")
        assert at.server.statistics().overflowed == 1
        await until(lambda: handler.ends)
        await peer.aclose()


async def test_a_peer_that_is_not_read_to_is_not_read_from():
    """Above `high_water` we read nothing more from that peer; when it reads, we go on."""
    async with serving(Echo(), high_water=10_000) as at:
        peer = await at.join(small=True)
        message = "x" * 5000
        async with trio.open_nursery() as nursery:

            async def talk():
                for _ in range(200):
                    await peer.say(message)

            nursery.start_soon(talk)
            await until(lambda: "paused" in repr(at.connection))
            assert at.connection.queued < 100_000
            for _ in range(200):
                assert await peer.hear() == message


# ------------------------------------------------------------------ the policies


async def test_policy_wait_leaves_slow_peers_out_of_a_broadcast():
    """`broadcast` never waits: it counts who took it."""
    handler = Opened()
    async with serving(handler) as at:
        slow = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws, bytes(60_000))
        quick = await at.join()
        await until(lambda: len(handler.arrived) == 2)
        assert trionet.broadcast(at.server.connections, bytes(60_000)) == 1
        assert await quick.frame() == Frame(BINARY, bytes(60_000))
        for _ in range(count):
            assert await slow.frame() == Frame(BINARY, bytes(60_000))
        await ws.send("next")
        assert await slow.hear() == "next"


@pytest.mark.parametrize("how", ["send", "send_nowait", "broadcast"])
@pytest.mark.parametrize("policy", ["DROP_NEWEST", "DROP_OLDEST"])
async def test_dropping_policies(policy, how, caplog):
    """Messages are dropped whole, the others arrive in order; counted, and mentioned once a second in the log."""
    handler = Opened()
    total = 400
    slow = trionet.SlowConsumer[policy]
    async with serving(handler, slow_consumer=slow, high_water=30_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        taken = 0
        for n in range(total):
            message = f"{n:04}" * 250
            if how == "send":
                await ws.send(message)
            elif how == "send_nowait":
                ws.send_nowait(message)
            else:
                taken += trionet.broadcast([ws], message)
        assert ws.queued <= 30_000
        dropped = at.protocol.messages_dropped
        assert dropped > 0
        got = []
        for _ in range(total - dropped):
            message = await peer.hear()
            assert message == message[:4] * 250
            got.append(int(message[:4]))
        assert got == sorted(got)
        ws.send_nowait("last")
        assert await peer.hear() == "last"
        if policy == "DROP_NEWEST":
            assert got[: len(got) // 2] == list(range(len(got) // 2))
            assert how != "broadcast" or taken == len(got)
        else:
            assert got[-1] == total - 1
            assert how != "broadcast" or taken == total
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 1 <= len(records) < 5
    assert "slow consumer" in records[0].getMessage()
    assert slow.value in records[0].getMessage()


@pytest.mark.parametrize("how", ["send", "send_nowait", "broadcast"])
async def test_policy_close(how, caplog):
    """The connection is closed with 1013: what was queued arrives, then the Close."""
    handler = Opened()
    async with serving(handler, slow_consumer=trionet.SlowConsumer.CLOSE) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = 0
        while ws.closed is None:
            if how == "send":
                await ws.send(CHUNK)
            elif how == "send_nowait":
                ws.send_nowait(CHUNK)
            else:
                trionet.broadcast([ws], CHUNK)
            count += 1
        assert ws.closed.code == 1013
        for _ in range(count - 1):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        await peer.farewell(1013)
        assert at.protocol.messages_dropped == 1
    assert len(caplog.records) == 1


async def test_control_frames_are_never_dropped():
    """DROP_OLDEST passes over Pongs: only messages may be lost."""
    handler = Opened()
    async with serving(handler, slow_consumer=trionet.SlowConsumer.DROP_OLDEST, high_water=10_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        while at.protocol.messages_dropped == 0:
            ws.send_nowait(bytes(1000))
        ws.write(frame_of_server(PING, b"kept"))
        for _ in range(100):
            ws.send_nowait(bytes(1000))
        ws.send_nowait("last")
        seen = []
        while not seen or seen[-1] != Frame(TEXT, b"last"):
            seen.append(await peer.frame())
    assert Frame(PING, b"kept") in seen


def frame_of_server(opcode, payload):
    """Return the bytes of a frame that is not masked."""
    return bytes((0x80 | opcode, len(payload))) + payload


# ------------------------------------------------------------------ stalls


@pytest.mark.parametrize("blocked", ["nothing", "send", "ping", "all workers"])
async def test_write_timeout_closes_a_stalled_peer(blocked, backend, caplog):
    """The peer that takes nothing is closed, whatever else is blocked on it; waiters learn of it."""
    outcomes = []

    class Handler(Opened):
        async def on_message(self, ws, message):
            await trio.sleep_forever()

    handler = Handler()
    options = {
        "write_timeout": 0.1,
        "resolution": 0.02,
        "ping_interval": 0.05,
        "pool_size": 1,
        "slot_grace": 60,
    }
    async with serving(handler, backend=backend, **options) as at, trio.open_nursery() as nursery:
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)

        async def attempt(function, *args):
            try:
                await function(*args)
            except trionet.ConnectionClosed as closed:
                outcomes.append(closed.code)

        if blocked == "send":
            nursery.start_soon(attempt, ws.send, CHUNK)
        elif blocked == "ping":
            nursery.start_soon(attempt, ws.ping)
        elif blocked == "all workers":
            other = await at.join()
            await other.say("block")
            await until(lambda: at.server.statistics().pool.suspended == 1)
        await until(lambda: ws.fd < 0)
        await peer.aclose()
        if blocked in {"send", "ping"}:
            await until(lambda: outcomes)
            assert outcomes == [1006]
        assert ws.closed.by == "us"
    assert any("has read nothing" in record.getMessage() for record in caplog.records)


async def test_a_peer_that_reads_slowly_is_kept():
    """The deadline counts from the last progress, not from the first byte queued."""
    handler = Opened()
    async with serving(handler, write_timeout=0.3, resolution=0.02, ping_interval=None) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws)
        for _ in range(count):
            assert await peer.frame() == Frame(BINARY, CHUNK)
            await trio.sleep(0.02)
        assert ws.closed is None


async def test_no_write_timeout():
    """None switches it off."""
    handler = Opened()
    async with serving(handler, write_timeout=None, resolution=0.01, ping_interval=None) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = await stall(ws)
        before = at.server.statistics().wheel.ticks
        await until(lambda: at.server.statistics().wheel.ticks > before + 20)
        for _ in range(count):
            assert await peer.frame() == Frame(BINARY, CHUNK)


async def test_closing_never_waits_behind_a_stalled_send(backend):
    """A send is stuck; `close` ends within `close_timeout`, and the sender is told."""
    handler = Opened()
    told = []
    async with (
        serving(handler, close_timeout=0.1, resolution=0.02, backend=backend) as at,
        trio.open_nursery() as nursery,
    ):
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)

        async def send():
            with pytest.raises(trionet.ConnectionClosed) as caught:
                await ws.send(CHUNK)
            told.append(caught.value)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await ws.close(4000, "go")
        assert ws.fd == -1
        await until(lambda: told)
        await peer.aclose()
    assert (told[0].code, told[0].reason, told[0].by) == (4000, "go", "us")


async def test_a_broadcast_never_waits_behind_a_stalled_send():
    """A stuck send to one peer delays no broadcast to the others."""
    handler = Opened()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        slow = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        nursery.start_soon(ws.send, CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        quick = await at.join()
        await until(lambda: len(handler.arrived) == 2)
        for n in range(10):
            trionet.broadcast(handler.arrived, str(n))
            assert await quick.hear() == str(n)
        nursery.cancel_scope.cancel()
        await slow.aclose()


# ------------------------------------------------------------------ foreign tasks


async def test_a_background_task_may_send():
    """Any task may send at any time: here one that has nothing to do with the handler."""
    handler = Opened()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()
        nursery.start_soon(ws.send, "from outside")
        assert await peer.hear() == "from outside"


async def test_a_background_task_waits_for_a_slow_peer_and_is_told_of_its_end():
    """It waits in its own task, and gets `ConnectionClosed` when the peer leaves."""
    handler = Opened()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws)

        async def send():
            with pytest.raises(trionet.ConnectionClosed) as caught:
                await ws.send(CHUNK)
            assert caught.value.by == "network"

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert at.server.statistics().pool.parked == 0
        await peer.reset()


# ------------------------------------------------------------------ a message in pieces


async def test_a_stream_is_one_message_in_fragments():
    """First the opcode, then continuations, an empty one ends it."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        async with ws.send_stream(text=True) as stream:
            await stream.send("one ")
            await stream.send("two")
        async with ws.send_stream() as stream:
            await stream.send(b"bytes")
        async with ws.send_stream(text=True):
            pass
        await ws.send("whole")
        got = [await peer.frame() for _ in range(7)]
    assert got == [
        Frame(TEXT, b"one ", fin=False),
        Frame(CONTINUATION, b"two", fin=False),
        Frame(CONTINUATION, b"", fin=True),
        Frame(BINARY, b"bytes", fin=False),
        Frame(CONTINUATION, b"", fin=True),
        Frame(TEXT, b"", fin=True),
        Frame(TEXT, b"whole"),
    ]


@pytest.mark.parametrize("text_, piece", [(True, b"bytes"), (False, "text"), (True, 5), (False, 5)])
async def test_a_piece_of_the_wrong_kind(text_, piece):
    """Text takes str, binary takes bytes; a mistake breaks nothing that was sent."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(TypeError):
            async with ws.send_stream(text=text_) as stream:
                await stream.send(piece)
        await ws.send("next")
        assert await peer.hear() == "next"


@pytest.mark.parametrize("who", ["send", "send_nowait", "broadcast", "another stream", "pipelined handler"])
async def test_other_messages_wait_for_the_end_of_a_stream(who):
    """Between the fragments of a message no other message may come (5.4); control frames may."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            self.seen.append(message)
            await ws.send(message)

    handler = Handler()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()
        async with ws.send_stream(text=True) as stream:
            await stream.send("begin")
            assert await peer.frame() == Frame(TEXT, b"begin", fin=False)
            if who == "send":
                nursery.start_soon(ws.send, "other")
            elif who == "send_nowait":
                with pytest.raises(trio.WouldBlock):
                    ws.send_nowait("other")
            elif who == "broadcast":
                assert trionet.broadcast([ws], "other") == 0
            elif who == "another stream":

                async def another():
                    async with ws.send_stream(text=True) as second:
                        await second.send("other")

                nursery.start_soon(another)
            else:
                await peer.send(text("other"), text("and"), text("more"))
                await until(lambda: handler.seen)
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(frame(PING, b"p"))
            assert await peer.frame() == Frame(PONG, b"p")
            await stream.send("end")
        assert await peer.frame() == Frame(CONTINUATION, b"end", fin=False)
        assert await peer.frame() == Frame(CONTINUATION, b"", fin=True)
        if who in {"send_nowait", "broadcast"}:
            await ws.send("other")
        last = await peer.frame()
        assert (last.opcode, last.payload) == (TEXT, b"other")
        if who == "pipelined handler":
            assert [await peer.hear(), await peer.hear()] == ["and", "more"]


@pytest.mark.parametrize("policy", ["DROP_NEWEST", "DROP_OLDEST", "CLOSE"])
async def test_a_stream_makes_no_slow_consumer(policy):
    """Beside a stream `send` would wait whatever the policy, so `send_nowait` says so: nothing is lost silently."""
    handler = Opened()
    async with serving(handler, slow_consumer=trionet.SlowConsumer[policy]) as at:
        peer = await at.join()
        ws = await handler.first()
        async with ws.send_stream(text=True) as stream:
            await stream.send("begin")
            with pytest.raises(trio.WouldBlock):
                ws.send_nowait("not lost")
        assert [(await peer.frame()).payload for _ in range(2)] == [b"begin", b""]
        ws.send_nowait("not lost")
        assert await peer.hear() == "not lost"
        assert at.protocol.messages_dropped == 0


async def test_a_stream_that_fails_closes_with_1011():
    """What was sent cannot be taken back: an exception in the block ends the connection, and goes on."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with ws.send_stream() as stream:
                await stream.send(b"begin")
                raise KeyError
        assert await peer.frame() == Frame(BINARY, b"begin", fin=False)
        await peer.farewell(1011)


async def test_a_stream_that_fails_before_it_began_costs_nothing():
    """Nothing was sent, so nothing is broken."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(KeyError):
            async with ws.send_stream():
                raise KeyError
        await ws.send("next")
        assert await peer.hear() == "next"


async def test_a_stream_waits_for_a_slow_peer_and_can_be_cancelled():
    """Cancelled between fragments it closes the connection, since the message cannot be finished."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        sent = 0
        with trio.move_on_after(0.05) as scope:
            async with ws.send_stream() as stream:
                while True:
                    await stream.send(CHUNK)
                    sent += 1
        assert scope.cancelled_caught
        for _ in range(sent):
            received = await peer.frame()
            assert (received.payload, received.fin) == (CHUNK, False)
        await peer.farewell(1011)


async def test_waiting_for_a_stream_ends_with_the_connection():
    """Who waits for a stream that breaks off gets `ConnectionClosed`."""
    handler = Opened()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()

        async def send():
            with pytest.raises(trionet.ConnectionClosed):
                await ws.send("other")

        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with ws.send_stream() as stream:
                await stream.send(b"begin")
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                raise KeyError
        await peer.frame()
        await peer.farewell(1011)


async def test_a_stream_from_a_handler_with_pipelined_messages():
    """Fragments of an answer and the answers behind it come in order, corked or not."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            async with ws.send_stream(text=True) as stream:
                await stream.send(message)
            await ws.send("end")

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(text("a"), text("b"))
        got = [await peer.frame() for _ in range(6)]
    one = [Frame(CONTINUATION, b"", fin=True), Frame(TEXT, b"end")]
    assert got == [Frame(TEXT, b"a", fin=False), *one, Frame(TEXT, b"b", fin=False), *one]


# ------------------------------------------------------------------ ping


async def test_ping_measures_the_round_trip(backend):
    """It returns the seconds until the Pong; a Pong that answers nothing is ignored (5.5.3)."""
    handler = Opened()
    async with serving(handler, backend=backend) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()
        took = []

        async def ping():
            took.append(await ws.ping())

        nursery.start_soon(ping)
        ping_frame = await peer.frame()
        await peer.send(frame(PONG, b"something else"), frame(PONG))
        await trio.testing.wait_all_tasks_blocked()
        assert took == []
        await peer.send(frame(PONG, ping_frame.payload))
        await until(lambda: took)
    assert 0 <= took[0] < 20


async def test_concurrent_pings():
    """Each has its own payload; the Pong to a later one answers the earlier ones too (5.5.3)."""
    handler = Opened()
    done = []
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()

        async def ping(name):
            await ws.ping()
            done.append(name)

        frames = []
        for name in "abc":
            nursery.start_soon(ping, name)
            frames.append(await peer.frame())
        assert len({f.payload for f in frames}) == 3
        await peer.send(frame(PONG, frames[1].payload))
        await until(lambda: len(done) == 2)
        assert sorted(done) == ["a", "b"]
        await peer.send(frame(PONG, frames[2].payload))
        await until(lambda: len(done) == 3)


async def test_a_handler_may_ping_its_own_peer():
    """The Pong is heard although the handler of this connection waits; it is parked meanwhile."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            assert await ws.ping() >= 0
            await ws.send("pong came")

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.say("go")
        ping_frame = await peer.frame()
        await until(lambda: at.server.statistics().pool.parked == 1)
        await peer.send(frame(PONG, ping_frame.payload))
        assert await peer.hear() == "pong came"


@pytest.mark.parametrize("how", ["close", "reset", "we close"])
async def test_whoever_waits_for_a_pong_is_told_of_the_end(how):
    """`ping` raises `ConnectionClosed` when the connection ends."""
    handler = Opened()
    told = []
    async with (
        serving(handler, close_timeout=0.1, resolution=0.02) as at,
        trio.open_nursery() as nursery,
    ):
        peer = await at.join()
        ws = await handler.first()

        async def ping():
            with pytest.raises(trionet.ConnectionClosed) as caught:
                await ws.ping()
            told.append(caught.value.code)

        nursery.start_soon(ping)
        await peer.frame()
        if how == "close":
            await peer.send(close(4000))
        elif how == "reset":
            await peer.reset()
        else:
            ws.close_nowait(4001)
        await until(lambda: told)
    assert told == [{"close": 4000, "reset": 1006, "we close": 4001}[how]]


async def test_a_cancelled_ping_leaves_nothing():
    """Its Pong may come later and is ignored."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with trio.move_on_after(0.01):
            await ws.ping()
        assert ws._rare is None
        late = await peer.frame()
        await peer.send(frame(PONG, late.payload), text("next"))
        await until(lambda: handler.seen)


async def test_a_flood_of_pings_is_answered_with_one_queued_pong():
    """A peer that pings and does not read fills no queue: the latest Pong stands for all (5.5.3)."""
    handler = Opened()
    async with serving(handler, high_water=200_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await stall(ws, bytes(60_000))
        before = ws.queued
        for n in range(50):
            await peer.send(*(frame(PING, b"%03d-%02d" % (n, i)) for i in range(20)))
        await peer.say("all sent")
        await until(lambda: handler.seen)
        assert ws.queued < before + 300
        while (received := await peer.frame()).opcode != PONG:
            pass
        assert received.payload == b"049-19"


# ------------------------------------------------------------------ close


@pytest.mark.parametrize(
    "code, reason",
    [
        (999, ""),
        (0, ""),
        (1004, ""),
        (1005, ""),
        (1006, ""),
        (1015, ""),
        (1016, ""),
        (2999, ""),
        (5000, ""),
        (-1, ""),
        (70_000, ""),
        (1000, "x" * 124),
        (1000, "é" * 62),
    ],
)
async def test_closes_that_are_refused(code, reason):
    """A code that may not travel, a reason that is too long: `ValueError`, and the connection goes on."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with pytest.raises(ValueError, match="close"):
            ws.close_nowait(code, reason)
        with pytest.raises(ValueError, match="close"):
            await ws.close(code, reason)
        await ws.send("still here")
        assert await peer.hear() == "still here"


@pytest.mark.parametrize("code, reason", [(1000, ""), (1014, ""), (3000, "r"), (4999, "é" * 61 + "x")])
async def test_close_waits_for_the_answer(code, reason, backend):
    """`close` returns when the peer has answered; code and reason reach it."""
    handler = Opened()
    returned = []
    async with serving(handler, backend=backend) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()

        async def end():
            await ws.close(code, reason)
            returned.append(1)

        nursery.start_soon(end)
        assert await peer.frame() == Frame(CLOSE, code.to_bytes(2, "big") + reason.encode())
        await trio.testing.wait_all_tasks_blocked()
        assert returned == []
        with pytest.raises(trionet.ConnectionClosed):
            ws.send_nowait("x")
        await peer.send(close(code))
        await peer.ended()
        await until(lambda: returned)
        await until(lambda: handler.ends)
    assert (handler.ends[0].code, handler.ends[0].reason, handler.ends[0].by) == (code, reason, "us")
    assert handler.ends[0].clean is (code == 1000)


async def test_close_is_bounded(backend):
    """A peer that never answers is cut off after `close_timeout`."""
    handler = Opened()
    async with serving(handler, close_timeout=0.05, resolution=0.01, backend=backend) as at:
        peer = await at.join()
        ws = await handler.first()
        await ws.close(4000)
        assert ws.fd == -1
        assert await peer.closed() == 4000
        await peer.ended()


async def test_a_handler_may_close_its_own_connection_and_wait():
    """The peer's answer is heard although the handler waits for it; nothing more is delivered."""

    class Handler(Opened):
        async def on_message(self, ws, message):
            self.seen.append(message)
            await ws.close(4000)
            self.seen.append("closed")

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("one"), text("two"))
        assert await peer.closed() == 4000
        await peer.send(text("three"), close(4000))
        await peer.ended()
        await until(lambda: handler.ends)
    assert handler.seen == ["one", "closed"]


async def test_the_second_close_only_waits():
    """The first code stands."""
    handler = Opened()
    async with serving(handler) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        ws = await handler.first()
        ws.close_nowait(4000)
        nursery.start_soon(ws.close, 4001)
        nursery.start_soon(ws.close, 4002)
        await peer.farewell(4000)
        await until(lambda: handler.ends)


@pytest.mark.parametrize("how", ["send", "send_nowait", "broadcast", "ping", "close", "drain"])
async def test_nothing_follows_the_answer_to_a_close(how):
    """The peer's Close is answered behind a full queue: no message and no second Close may come after that (5.5.1)."""
    handler = Opened()
    async with serving(handler, close_timeout=0.2, resolution=0.02) as at, trio.open_nursery() as nursery:
        peer = await at.join(small=True)
        ws = await handler.first()
        count = 0
        while ws.queued < 20_000:  # behind a queue, yet not so much that the peer is not read from
            ws.send_nowait(CHUNK)
            count += 1
        await peer.send(close(4000))
        await until(lambda: ws.closed is not None)
        if how in {"send", "send_nowait", "ping"}:
            with pytest.raises(trionet.ConnectionClosed):  # noqa: PT012 - whichever is first
                with trio.move_on_after(0.05):
                    await (ws.ping() if how == "ping" else ws.send("late"))
                ws.send_nowait("late")
        elif how == "broadcast":
            assert trionet.broadcast([ws], "late") == 0
        elif how == "close":
            ws.close_nowait(4001)
        else:
            nursery.start_soon(at.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(count):
            assert await peer.frame() == Frame(BINARY, CHUNK)
        assert await peer.frame() == Frame(CLOSE, (4000).to_bytes(2, "big"))
        await peer.ended()
    assert handler.ends[0].code == 4000


async def test_both_close_at_once():
    """Closes that cross: both are sent, each side sees one, and that ends it (5.5.1)."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        ws.close_nowait(4000)
        await peer.send(close(4001))
        assert await peer.closed() == 4000
        await peer.ended()
        await until(lambda: handler.ends)
    assert handler.ends[0].code == 4000


async def test_a_cancelled_close_has_begun():
    """Cancelling stops the waiting; the closing handshake goes on."""
    handler = Opened()
    async with serving(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        with trio.move_on_after(0.01) as scope:
            await ws.close(4000)
        assert scope.cancelled_caught
        await peer.farewell(4000)


async def test_the_peers_code_comes_back():
    """An echo of the code (7.1.5), 1005 as an empty Close."""
    for payload in (b"", b"\x03\xe8", b"\x0f\xa0why"):
        handler = Opened()
        async with serving(handler) as at:
            peer = await at.join()
            await peer.send(frame(CLOSE, payload))
            assert await peer.frame() == Frame(CLOSE, payload[:2])
            await peer.ended()
            await until(lambda: handler.ends)  # noqa: B023
        assert handler.ends[0].code == (int.from_bytes(payload[:2], "big") or 1005)
