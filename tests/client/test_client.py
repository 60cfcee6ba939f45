"""A client against trionet's own server, and against servers that do as the test says."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio
from scripted import scripted, server_frame
from ws_peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Diary,
    Echo,
    Opened,
    descriptors,
    serving,
    tasks,
    until,
)

import trionet
from trionet.client.keys import fresh_key
from trionet.net.system import borrowed_socket

NORMAL = (1000).to_bytes(2, "big")


async def echo(side):
    """A server in a few lines."""
    await side.accept()
    while (frame := await side.frame()) is not None:
        await side.send(server_frame(frame.opcode, frame.payload, fin=frame.fin))
        if frame.opcode == CLOSE:
            return


# ------------------------------------------------------------------ messages


async def test_messages_go_and_come():
    """Text stays text, binary binary, short, long and empty."""
    messages = ["hello", b"bytes", "", b"", "é" * 100, b"x" * 125, b"x" * 126, b"x" * 65535, "y" * 70000]
    async with serving(Echo()) as s, trionet.connect_websocket(s.url) as ws:
        for message in messages:
            await ws.send(message)
            assert await ws.receive() == message


async def test_iteration_ends_with_the_connection():
    """`async for` gives all messages that came before the server's Close, and then ends."""

    async def three(side):
        await side.accept()
        await side.send(*(server_frame(TEXT, b"%d" % n) for n in range(3)), server_frame(CLOSE, NORMAL))
        assert await side.expect_close() == 1000

    async with scripted(three) as script, trionet.connect_websocket(script.url) as ws:
        assert [message async for message in ws] == ["0", "1", "2"]
        assert str(ws.closed) == "closed by peer: 1000"
        with pytest.raises(trionet.ConnectionClosed):
            await ws.receive()
        with pytest.raises(trionet.ConnectionClosed):
            await ws.send("too late")


async def test_frames_behind_the_response_are_received():
    """What the server sent in one piece with its response is not lost, a Ping among it is answered at once."""

    async def eager(side):
        await side.accept(server_frame(TEXT, b"hello"), server_frame(PING, b"?"))
        assert await side.frame() == (PONG, b"?", True)
        assert await side.expect_close() == 1000
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(eager) as script, trionet.connect_websocket(script.url) as ws:
        assert await ws.receive() == "hello"


async def test_every_frame_has_a_fresh_mask():
    """Messages, fragments, pings, pongs and the Close are masked, each with a key of its own (RFC 6455, 5.3)."""
    sides = []

    async def listen(side):
        sides.append(side)
        await side.accept(server_frame(PING))
        while (frame := await side.frame()) is not None:
            if frame.opcode == PING:
                await side.send(server_frame(PONG, frame.payload))
            if frame.opcode == CLOSE:
                await side.send(server_frame(CLOSE, frame.payload))
                return

    async with scripted(listen) as script, trionet.connect_websocket(script.url) as ws:
        await ws.send("a")
        ws.send_nowait(b"b")
        await ws.send(trionet.PreparedMessage("c"))
        assert trionet.broadcast([ws], "d") == 1
        await ws.ping()
        async with ws.send_stream(text=True) as stream:
            await stream.send("e")
    keys = sides[0].keys
    assert len(keys) == 9  # pong, a, b, c, d, ping, e, end, close
    assert len(set(keys)) == len(keys)


def test_keys_do_not_repeat():
    """Masking keys come from the system's randomness and are used once."""
    keys = [fresh_key() for _ in range(5000)]
    assert all(len(key) == 4 for key in keys)
    assert len(set(keys)) > 4990


async def test_fragments_are_joined():
    """A message in fragments, with a Ping between, is one message; bytewise as well."""

    async def pieces(side):
        await side.accept()
        data = (
            server_frame(TEXT, b"a\xc3", fin=False)
            + server_frame(PING)
            + server_frame(CONTINUATION, b"\xa9b")
            + server_frame(BINARY, b"z" * 300)
        )
        for i in range(len(data)):
            await side.send(data[i : i + 1])
            await trio.lowlevel.checkpoint()
        assert (await side.frame()).opcode == PONG
        await side.expect_close()
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(pieces) as script, trionet.connect_websocket(script.url) as ws:
        assert await ws.receive() == "aéb"
        assert await ws.receive() == b"z" * 300


async def test_message_in_pieces():
    """`receive_stream` delivers a message longer than `max_message` as it comes."""

    async def long(side):
        await side.accept()
        await side.send(server_frame(BINARY, bytes(300_000)))
        await side.expect_close()
        await side.send(server_frame(CLOSE, NORMAL))

    async with (
        scripted(long) as script,
        trionet.connect_websocket(script.url, max_message=1000, max_stream=10**6) as ws,
    ):
        async with ws.receive_stream() as pieces:
            sizes = [len(piece) async for piece in pieces]
        assert sum(sizes) == 300_000
        assert len(sizes) > 1


async def test_deflate():
    """Compression is negotiated and used in both directions, with and without context takeover."""
    text = "abc" * 1000
    keep = trionet.Deflate(server_no_context_takeover=False, client_no_context_takeover=False)
    async with serving(Echo(), compression=keep) as s:
        for compression in (True, keep):
            async with trionet.connect_websocket(s.url, compression=compression) as ws:
                assert ws.codec is not None
                for _ in range(3):
                    await ws.send(text)
                    assert await ws.receive() == text
                assert trionet.broadcast([ws], text) == 1
                assert await ws.receive() == text
    async with serving(Echo()) as s, trionet.connect_websocket(s.url, compression=True) as ws:
        await ws.send(text)
        assert await ws.receive() == text
        assert ws.codec is None


# ------------------------------------------------------------ who may do what


async def test_second_receiver_is_busy():
    """Two tasks in `receive` get `trio.BusyResourceError`; the first goes on."""
    async with serving(Echo()) as s, trionet.connect_websocket(s.url) as ws, trio.open_nursery() as nursery:
        got = []

        async def receive():
            got.append(await ws.receive())

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ws.receive()
        await ws.send("one")
        await until(lambda: got)
        assert got == ["one"]


async def test_cancelled_receive_loses_nothing():
    """A message that comes after a cancelled `receive` is there for the next one."""
    async with serving(Echo()) as s, trionet.connect_websocket(s.url) as ws:
        with trio.move_on_after(0.01):
            await ws.receive()
        await ws.send("still here")
        assert await ws.receive() == "still here"


async def test_receive_with_timeout():
    """`receive(timeout=…)` gives up without a cancel scope."""
    async with (
        serving(Echo()) as s,
        trionet.open_client(resolution=0.01) as client,
        client.connect(s.url) as ws,
    ):
        with pytest.raises(trio.TooSlowError):
            await ws.receive(timeout=0.01)
        await ws.send("x")
        assert await ws.receive(timeout=10) == "x"


async def test_many_senders_never_interleave():
    """Frames of many tasks arrive whole, though the server reads slowly."""
    seen = []

    async def slow(side):
        await side.accept()
        while len(seen) < 40:
            frame = await side.frame()
            assert len(set(frame.payload)) == 1
            seen.append(frame.payload[0])
        assert await side.expect_close() == 1000
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(slow) as script, trionet.connect_websocket(script.url) as ws:

        async def say(number):
            for _ in range(10):
                await ws.send(bytes([number]) * 100_000)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(say, number)
    assert sorted(seen) == sorted([0, 1, 2, 3] * 10)


async def test_cancelled_send_never_cuts_a_frame():
    """Whatever is cancelled, the server sees whole frames only, and the connection goes on."""
    go = trio.Event()
    sizes = []

    async def slow(side):
        await side.accept()
        await go.wait()
        while (frame := await side.frame()).opcode == BINARY:
            sizes.append(len(frame.payload))
        assert frame.payload == b"the end"
        await side.expect_close()
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(slow) as script, trionet.connect_websocket(script.url) as ws:
        with trio.move_on_after(0.05):
            while True:
                await ws.send(bytes(50_000))
        go.set()
        await ws.send("the end")
    assert set(sizes) == {50_000}


async def test_reading_pauses_while_nobody_receives():
    """Input that nobody receives is kept up to `read_ahead`; then the server feels it, and later all arrives."""
    opened = Opened()
    async with serving(opened) as s, trionet.connect_websocket(s.url, read_ahead=10_000) as ws:
        server_side = await opened.first()
        sent = 0
        with contextlib.suppress(trio.WouldBlock):
            while sent < 10_000:
                server_side.send_nowait(b"%06d" % sent + bytes(4000))
                sent += 1
                await trio.lowlevel.checkpoint()
        assert sent < 10_000
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ws._rare.held_size < 10_000 + 65536 + 5000
        for number in range(sent):
            assert (await ws.receive())[:6] == b"%06d" % number


@pytest.mark.parametrize("receiver", ["task", "handler"])
async def test_both_sides_may_send_much(receiver):
    """Bulk in both directions: the client reads on while it waits for room, or both would wait for each other."""
    count, message = 20, bytes(500_000)
    received = []

    class Count(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            received.append(len(message))

    async with serving(Echo()) as s, trionet.open_client() as client:
        ws = await client.connect(s.url, handler=Count() if receiver == "handler" else None)
        for connection in (ws, s.connection):
            with borrowed_socket(connection.fd) as sock:
                for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    sock.setsockopt(socket.SOL_SOCKET, buffer, 65536)

        async def send():
            for _ in range(count):
                await ws.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while receiver == "task" and len(received) < count:
                received.append(len(await ws.receive()))
        await until(lambda: len(received) == count)
        await ws.close()
    assert received == [len(message)] * count


async def test_message_longer_than_what_is_kept():
    """A message longer than `read_ahead` arrives, also behind one that waits to be received."""
    opened = Opened()
    async with serving(opened) as s, trionet.connect_websocket(s.url, read_ahead=1000) as ws:
        server_side = await opened.first()
        async with trio.open_nursery() as nursery:
            for message in ("first", "x" * 300_000, "last"):
                nursery.start_soon(server_side.send, message)
                await trio.testing.wait_all_tasks_blocked()
            assert [len(await ws.receive()) for _ in range(3)] == [5, 300_000, 4]


async def test_flood_of_pings_fills_no_queue():
    """A server that pings and does not read gets one Pong for many Pings once its buffers are full."""
    flooded = trio.Event()
    go = trio.Event()

    async def flood(side):
        await side.accept()
        for _ in range(300):
            await side.send(server_frame(PING, b"x" * 125) * 100)
        flooded.set()
        await go.wait()
        while (await side.frame()).opcode == PONG:
            pass
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(flood, small=True) as script, trionet.connect_websocket(script.url) as ws:
        await flooded.wait()
        assert 0 < ws.queued <= 2 * (125 + 6 + 64)
        go.set()


async def test_idle_connection_keeps_nothing():
    """Between two messages there is neither queue nor session nor record of rare things."""
    async with serving(Echo()) as s, trionet.connect_websocket(s.url) as ws:
        await ws.send("x")
        await ws.receive()
        assert (ws._rare, ws._out, ws._input, ws._session) == (None, None, None, None)


# ------------------------------------------------------------------- handlers


async def test_event_handler():
    """With a handler the messages go there, in the order open, messages, close; the caller goes on."""
    diary = Diary()
    async with serving(Echo()) as s, trionet.open_client() as client:
        ws = await client.connect(s.url, handler=diary)
        await ws.send("stop")  # the echo of the echo, and so on
        await until(lambda: diary.seen.count("stop") > 3)
        with pytest.raises(RuntimeError):
            await ws.receive()
        await ws.close()
        await until(lambda: isinstance(diary.seen[-1], trionet.ConnectionClosed))
    assert diary.seen[0] == "open"
    assert diary.seen[-1].code == 1000


async def test_event_handler_gets_what_came_with_the_response():
    """`on_open` comes first, then the messages that came in one piece with the response."""
    diary = Diary()

    async def eager(side):
        await side.accept(server_frame(TEXT, b"1"), server_frame(BINARY, b"2"), server_frame(CLOSE, NORMAL))
        assert await side.frame() == (TEXT, b"1", True)

    async with scripted(eager) as script, trionet.open_client() as client:
        ws = await client.connect(script.url, handler=diary)
        await ws.wait_closed()
        await until(lambda: len(diary.seen) == 4)
    assert diary.seen[:3] == ["open", "1", b"2"]


async def test_event_handler_refuses_masked_frames():
    """A server's frames are not masked: in a handler's connection, too, a masked one is 1002."""

    async def wrong(side):
        await side.accept()
        await side.frame()
        await side.send(b"\x81\x82\0\0\0\0hi")
        assert await side.expect_close() == 1002

    async with scripted(wrong) as script, trionet.open_client() as client:
        ws = await client.connect(script.url, handler=Echo())
        await ws.send("x")
        await ws.wait_closed()
        assert ws.closed.code == 1002


async def test_handler_that_fails():
    """An exception of a handler closes its connection with 1011; the client goes on."""

    class Broken(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            raise KeyError("mine")

    opened = Opened()
    async with serving(opened) as s, trionet.open_client() as client:
        ws = await client.connect(s.url, handler=Broken())
        (await opened.first()).send_nowait("x")
        await ws.wait_closed()
        assert ws.closed.code == 1011
        assert ws.protocol.handler_failures == 1
        await until(lambda: opened.ends)
        assert opened.ends[0].code == 1011


async def test_straight_handler_is_parked():
    """A coroutine function as the handler costs no task: many of them wait parked."""
    done = []

    async def chat(ws):
        await ws.send("hi")
        done.append(await ws.receive())
        async for _ in ws:
            pass

    async with serving(Echo()) as s, trionet.open_client() as client:
        before = tasks()
        connections = [await client.connect(s.url, handler=chat) for _ in range(20)]
        await until(lambda: len(done) == 20)
        await until(lambda: client.statistics().pool.parked == 20)
        assert tasks() <= before + 3
        for ws in connections:
            await ws.close()
        await until(lambda: client.statistics().connections == 0)


# -------------------------------------------------------------------- closing


async def test_leaving_the_block_closes_with_1000():
    """The server gets 1000, answers, and closes TCP first (RFC 6455, 7.1.1)."""

    async def server(side):
        await side.accept()
        assert await side.expect_close() == 1000
        await side.send(server_frame(CLOSE, NORMAL))
        await trio.testing.wait_all_tasks_blocked(0.02)
        with trio.move_on_after(0.02) as scope:
            await side.more()
        assert scope.cancelled_caught, "the client closed before the server"

    async with scripted(server) as script:
        async with trionet.connect_websocket(script.url) as ws:
            pass
        assert (ws.closed.code, ws.closed.by) == (1000, "us")
        assert ws.fd == -1


async def test_leaving_by_an_exception_closes_with_1011():
    """The exception goes on as it is, not wrapped in a group."""

    async def server(side):
        await side.accept()
        assert await side.expect_close() == 1011
        await side.send(server_frame(CLOSE, NORMAL))

    async with scripted(server) as script:
        with pytest.raises(KeyError, match=r"mine"):
            async with trionet.connect_websocket(script.url):
                raise KeyError("mine")


async def test_leaving_after_connection_closed():
    """`ConnectionClosed` in the block goes on; nothing more is sent."""

    async def server(side):
        await side.accept(server_frame(CLOSE, (4001).to_bytes(2, "big") + b"go away"))
        assert await side.expect_close() == 4001

    async with scripted(server) as script:
        with pytest.raises(trionet.ConnectionClosed, match=r"closed by peer: 4001 go away"):
            async with trionet.connect_websocket(script.url) as ws:
                await ws.receive()


async def test_cancelled_block_ends_at_once():
    """Cancelled, the connection is closed hard: the server's answer is not waited for."""
    left = trio.Event()

    async def server(side):
        await side.accept()
        assert await side.expect_close() == 1001
        await side.ended()
        left.set()

    async with scripted(server) as script:
        with trio.CancelScope() as scope:
            async with trionet.connect_websocket(script.url) as ws:
                scope.cancel()
                await ws.receive()
        assert scope.cancelled_caught
        assert ws.fd == -1
        await left.wait()


async def test_server_that_does_not_answer_a_close():
    """`close_timeout` bounds the wait for the answer, and for the end of TCP."""

    async def silent(side):
        await side.accept()
        await side.expect_close()
        await side.ended()

    async def lingering(side):
        await side.accept()
        await side.expect_close()
        await side.send(server_frame(CLOSE, NORMAL))
        await side.ended()

    async with scripted(silent, lingering) as script, trionet.open_client(resolution=0.01) as client:
        for _ in range(2):
            async with client.connect(script.url, close_timeout=0.05) as ws:
                pass
            assert ws.closed.code == 1000
            assert ws.fd == -1


async def test_close_while_nobody_receives():
    """A full read-ahead does not keep the closing handshake from ending."""
    opened = Opened()
    async with serving(opened) as s:
        async with trionet.connect_websocket(s.url, read_ahead=1000) as ws:
            server_side = await opened.first()
            for _ in range(10):
                server_side.send_nowait(bytes(4000))
            await until(lambda: ws._rare is not None and ws._rare.held)
        await until(lambda: opened.ends)
        assert opened.ends[0].code == 1000


async def test_connection_that_breaks():
    """A server that vanishes is `ConnectionClosed` 1006, by the network, after what it had sent."""

    async def vanish(side):
        await side.accept(server_frame(TEXT, b"last words"))

    async with scripted(vanish) as script, trionet.connect_websocket(script.url) as ws:
        assert await ws.receive() == "last words"
        with pytest.raises(trionet.ConnectionClosed) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.by) == (1006, "network")


@pytest.mark.parametrize(
    "data, code",
    [
        (b"\x81\x82\0\0\0\0hi", 1002),  # masked
        (b"\x83\x00", 1002),  # unknown opcode
        (b"\xc1\x00", 1002),  # RSV1 without an extension
        (b"\x80\x00", 1002),  # nothing to continue
        (b"\x81\x02\xff\xff", 1007),  # not UTF-8
        (b"\x88\x02\x03\xed", 1002),  # a Close with 1005
        (b"\x82\x7f" + (2**40).to_bytes(8, "big"), 1009),  # longer than max_message
    ],
    ids=["masked", "opcode", "rsv", "continuation", "utf8", "close", "size"],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytewise"])
async def test_broken_rules_of_the_server(data, code, cut):
    """A server that breaks a rule is told so, and `receive` says it."""

    async def wrong(side):
        await side.accept(server_frame(TEXT, b"good"))
        await side.frame()
        for piece in [data[i : i + 1] for i in range(len(data))] if cut else [data]:
            await side.send(piece)
        assert await side.expect_close() == code

    async with scripted(wrong) as script, trionet.connect_websocket(script.url) as ws:
        assert await ws.receive() == "good"
        await ws.send("now")
        with pytest.raises(trionet.ConnectionClosed) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.by) == (code, "us")


async def test_messages_before_a_broken_rule_are_received():
    """What came before the fault is delivered before the fault is acted on."""

    async def wrong(side):
        await side.accept(server_frame(TEXT, b"1") + server_frame(TEXT, b"2") + b"\x83\x00")
        assert await side.expect_close() == 1002

    async with scripted(wrong) as script, trionet.connect_websocket(script.url) as ws:
        assert [await ws.receive(), await ws.receive()] == ["1", "2"]
        with pytest.raises(trionet.ConnectionClosed, match=r"1002"):
            await ws.receive()


async def test_broken_rule_is_noticed_without_a_receiver():
    """A client that only sends learns it, too."""

    async def wrong(side):
        await side.accept(b"\x83\x00")
        assert await side.expect_close() == 1002

    async with scripted(wrong) as script, trionet.connect_websocket(script.url) as ws:
        await ws.wait_closed()
        assert ws.closed.code == 1002


# ------------------------------------------------------------------- keepalive


async def test_keepalive_pings_a_silent_server():
    """A server that is silent is pinged; one that answers stays, one that does not is given up."""
    pings = []

    async def server(side):
        await side.accept()
        for _ in range(3):
            frame = await side.frame()
            assert frame.opcode == PING
            pings.append(frame)
            await side.send(server_frame(PONG, frame.payload))
        while (frame := await side.frame()) is not None and frame.opcode != CLOSE:
            pass

    async with (
        scripted(server) as script,
        trionet.open_client(resolution=0.01, ping_interval=0.02, ping_timeout=0.05) as client,
        client.connect(script.url) as ws,
    ):
        with pytest.raises(trionet.ConnectionClosed, match=r"keepalive"):
            await ws.receive()
    assert len(pings) == 3


# ---------------------------------------------------------------- the client


async def test_many_connections_on_one_engine():
    """A hundred connections, and no task for any of them."""
    async with serving(Echo()) as s, trionet.open_client() as client:
        before = tasks()
        connections = [await client.connect(s.url) for _ in range(100)]
        for number, ws in enumerate(connections):
            await ws.send(str(number))
        assert [await ws.receive() for ws in connections] == [str(number) for number in range(100)]
        assert tasks() <= before + 2  # workers
        assert client.statistics().connections == 100
        assert len(list(client.connections)) == 100
        assert len({ws.protocol for ws in connections}) == 1


async def test_leaving_the_client_ends_everything():
    """What is still connected is cut off; no descriptor and no task stays behind."""
    async with serving(Echo()) as s:
        fds, living = descriptors(), tasks()
        async with trionet.open_client() as client:
            connections = [await client.connect(s.url) for _ in range(10)]
        assert all(ws.fd == -1 for ws in connections)
        with pytest.raises(trionet.ConnectionClosed):
            await connections[0].receive()
        await until(lambda: s.server.engine.connections == 0)
        assert descriptors() == fds
        assert tasks() <= living + 1


async def test_client_that_was_left():
    """Connecting with a client whose block was left says so."""
    async with trionet.open_client() as client:
        pass
    with pytest.raises(RuntimeError, match=r"the client is closed"):
        await client.connect("ws://127.0.0.1:1/")


async def test_tasks_of_a_connection():
    """`ws.start_soon` runs a task for as long as the connection is open."""
    ended = trio.Event()

    async def tick(ws):
        try:
            while True:
                await ws.send("tick")
                await trio.sleep(0.001)
        finally:
            ended.set()

    async with serving(Echo()) as s, trionet.open_client() as client:
        async with client.connect(s.url) as ws:
            ws.start_soon(tick, ws)
            assert [await ws.receive() for _ in range(3)] == ["tick"] * 3
        await ended.wait()


async def test_exception_leaves_the_client_as_it_is():
    """An exception of the block is not wrapped in a group."""
    with pytest.raises(KeyError, match=r"mine"):
        async with trionet.open_client():
            raise KeyError("mine")


async def test_defaults_of_a_client():
    """Options of `open_client` hold for all its connections, unless they have their own."""
    async with (
        serving(Echo(), subprotocols=["a", "b"]) as s,
        trionet.open_client(subprotocols=["a"], max_message=10) as client,
    ):
        async with client.connect(s.url) as ws:
            assert ws.subprotocol == "a"
            assert ws.protocol.max_message == 10
        async with client.connect(s.url, subprotocols=["b"]) as ws:
            assert ws.subprotocol == "b"


async def test_unknown_option():
    """A misspelt option is an error, in `open_client` as in `connect`."""
    with pytest.raises(TypeError, match=r"compresion"):
        async with trionet.open_client(compresion=True):
            pass
    with pytest.raises(TypeError, match=r"headres"):
        async with trionet.connect_websocket("ws://h/", headres={}):
            pass


async def test_connection_with_a_client():
    """`connect_websocket(client=…)` uses the engine of that client."""
    async with (
        serving(Echo()) as s,
        trionet.open_client() as client,
        trionet.connect_websocket(s.url, client=client) as ws,
    ):
        assert list(client.connections) == [ws]
        await ws.send("x")
        assert await ws.receive() == "x"


async def test_response_and_subprotocol():
    """The response is there until the first message is received, the subprotocol as long as the connection."""
    async with (
        serving(Echo(), subprotocols=["chat"]) as s,
        trionet.connect_websocket(s.url, subprotocols=["other", "chat"]) as ws,
    ):
        assert ws.response.status == 101
        assert ws.response.header("sec-websocket-protocol") == "chat"
        await ws.send("x")
        await ws.receive()
        assert ws.response is None
        assert ws.subprotocol == "chat"
        assert ws.request is None


async def test_repr_tells_the_state():
    """A repr says what the connection is doing."""
    async with serving(Echo()) as s:
        async with trionet.connect_websocket(s.url) as ws:
            assert repr(ws) == f"<WebSocket fd={ws.fd} open, busy>"
        assert repr(ws).startswith("<WebSocket fd=-1 ")


async def test_a_client_that_is_left_while_somebody_dials_leaks_nothing(monkeypatch):
    """Who got a descriptor after the client's block was left closes it, and says so."""
    dialed, left = trio.Event(), trio.Event()

    async def late(*args):
        dialed.set()
        await left.wait()
        return await dial(*args)

    dial = trionet.client.client.dial
    monkeypatch.setattr(trionet.client.client, "dial", late)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    before = descriptors()

    async def connect(client):
        with pytest.raises(RuntimeError, match="closed"):
            await client.connect(f"ws://127.0.0.1:{port}/")

    async with listener, trio.open_nursery() as nursery:
        async with trionet.open_client() as client:
            nursery.start_soon(connect, client)
            await dialed.wait()
        left.set()
        while nursery.child_tasks:
            await trio.lowlevel.checkpoint()
        assert descriptors() == before
