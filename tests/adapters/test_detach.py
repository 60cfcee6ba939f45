"""`Connection.detach`: the raw stream, mid-connection, with what was read and not handled in front."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked
from ws_peer import BINARY, PING, PONG, TEXT, Frame, close, descriptors, frame, serving, tasks, text, until

import trionet
from trionet.net.connection import Connection
from trionet.net.engine import Engine
from trionet.net.pool import TaskPool
from trionet.net.stream import DetachedStream


async def heard(peer, size):
    """Return `size` bytes from the peer's stream."""
    while len(peer.data) < size:
        assert await peer._more(), bytes(peer.data)
    return peer.take(size)


async def all_of(stream):
    """Return what comes to the end of the input."""
    data = b""
    async for piece in stream:
        data += piece
    return data


class Lines(trionet.LineProtocol):
    """On STARTSTREAM, the rest of the connection goes to `use`; other lines are echoed."""

    def __init__(self, use, **options):
        super().__init__(self.line, **options)
        self.use = use
        self.ends = []

    async def line(self, connection, line):
        if line == b"STARTSTREAM":
            await self.use(await connection.detach())
        else:
            await connection.send(line)

    async def connection_lost(self, connection, closed):
        self.ends.append(closed)


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_what_follows_in_the_same_read_is_in_the_stream(how, backend):
    """A line protocol gives the connection away; not a byte behind the line is lost, wherever the reads end."""

    async def use(stream):
        received.append(await all_of(stream))
        await stream.send_all(b"got it")
        await stream.aclose()

    received = []
    raw = b"\r\nraw\nbytes, no lines\xff\x00\n"
    protocol = Lines(use)
    async with serving(protocol, backend=backend) as at:
        peer = await at.dial()
        data = b"one\nSTARTSTREAM\r\n" + raw
        for piece in [data] if how == "whole" else [data[n : n + 1] for n in range(len(data))]:
            await peer.send(piece)
            if how == "bytewise":
                await wait_all_tasks_blocked()
        await peer.stream.send_eof()
        assert await heard(peer, 11) == b"one\r\ngot it"
        await peer.ended()
        await until(lambda: protocol.ends)
    assert received == [raw]
    assert [(end.code, end.reason, end.by) for end in protocol.ends] == [(1006, "detached", "us")]


async def test_what_came_while_the_handler_waited_is_in_the_stream():
    """Lines kept for a busy handler come behind those of the read in hand."""

    async def handler(connection, line):
        entered.set()
        await release.wait()
        stream = await connection.detach()
        received.append((stream.unread, await all_of(stream)))
        await stream.aclose()

    entered, release, received = trio.Event(), trio.Event(), []
    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(b"go\nsecond\nthi")
        await entered.wait()
        await peer.send(b"rd\n")
        await until(lambda: at.connection._rare is not None and at.connection._rare.held_size)
        await peer.send(b"fourth\n")
        await peer.stream.send_eof()
        release.set()
        await until(lambda: received)
    assert received[0][1] == b"second\nthird\nfourth\n"
    assert received[0][0].startswith(b"second\nthird\n")


async def test_the_connection_is_closed_for_its_protocol():
    """Afterwards it behaves like any closed one; the protocol's last call is made when the handler has ended."""

    async def handler(connection, line):
        stream = await connection.detach()
        assert connection.fd == -1
        assert not connection.is_open
        connection.write(b"nowhere")
        with pytest.raises(trionet.ConnectionClosed, match="detached"):
            await connection.send(b"line")
        with pytest.raises(trionet.ConnectionClosed, match="detached"):
            await connection.detach()
        await connection.wait_closed()
        connection.abort()
        connection.finish()
        seen.append(len(ends))
        await stream.send_all(b"alive")
        await release.wait()
        await stream.aclose()

    ends = []

    class Protocol(trionet.LineProtocol):
        async def connection_lost(self, connection, closed):
            ends.append(closed)

    seen, release = [], trio.Event()
    protocol = Protocol(handler)
    async with serving(protocol) as at:
        peer = await at.dial()
        await peer.send(b"x\ny\n")
        assert await heard(peer, 5) == b"alive"
        statistics = at.server.statistics()
        assert (statistics.connections, statistics.streams) == (1, 1)
        assert list(at.server.connections) == []
        release.set()
        await peer.ended()
        await until(lambda: ends)
        statistics = at.server.statistics()
        assert (statistics.connections, statistics.streams, statistics.pool.detached) == (0, 0, 0)
    assert seen == [0]
    assert len(ends) == 1


async def test_the_stream_may_outlive_the_handler():
    """The handler gives it to a task and returns; that goes on, and the count with it."""

    async def use(stream):
        nursery.start_soon(copy, stream)

    async def copy(stream):
        async with stream:
            async for data in stream:
                await stream.send_all(data.upper())

    protocol = Lines(use)
    async with trio.open_nursery() as nursery, serving(protocol) as at:
        peer = await at.dial()
        await peer.send(b"STARTSTREAM\nabc")
        assert await heard(peer, 3) == b"ABC"
        assert len(protocol.ends) == 1
        assert at.server.statistics().streams == 1
        await peer.send(b"def")
        assert await heard(peer, 3) == b"DEF"
        await peer.aclose()
        await until(lambda: at.server.statistics().connections == 0)


async def test_what_is_queued_is_sent_first():
    """Detaching waits until the peer has taken what was written before."""
    size = 300_000

    async def handler(connection, line):
        connection.write(b"x" * size)
        seen.append(connection.queued)
        stream = await connection.detach()
        await stream.send_all(b"end")
        await stream.aclose()

    seen = []
    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial(small=True)
        await peer.send(b"go\n")
        await until(lambda: at.server.statistics().pool.parked == 1)
        assert await heard(peer, size) == b"x" * size
        assert await heard(peer, 3) == b"end"
        await peer.ended()
    assert seen[0] > 0


@pytest.mark.parametrize("how", ["reset", "timeout"])
async def test_a_peer_that_never_takes_it(how):
    """`write_timeout` bounds the wait, and so does the peer's end: `ConnectionClosed`."""

    async def handler(connection, line):
        connection.write(b"x" * 300_000)
        try:
            await connection.detach()
        except trionet.ConnectionClosed as closed:
            told.append(closed.code)

    told = []
    protocol = trionet.LineProtocol(handler, write_timeout=0.05 if how == "timeout" else 60)
    async with serving(protocol, resolution=0.01) as at:
        peer = await at.dial(small=True)
        await peer.send(b"go\n")
        if how == "reset":
            await until(lambda: at.server.statistics().pool.parked == 1)
            await peer.reset()
        await until(lambda: told)
    assert told == [1006]


async def test_cancelled_it_has_changed_nothing():
    """A handler that gives up waiting goes on with the connection."""

    async def handler(connection, line):
        if line == b"go":
            connection.write(b"x" * 300_000)
            with trio.move_on_after(0.02) as scope:
                await connection.detach()
            assert scope.cancelled_caught
            gave_up.set()
        else:
            await connection.send(line)

    gave_up = trio.Event()
    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial(small=True)
        await peer.send(b"go\nstill here\n")
        await gave_up.wait()
        assert await heard(peer, 300_000) == b"x" * 300_000
        assert await heard(peer, 12) == b"still here\r\n"
        assert at.server.statistics().streams == 0


async def test_hard_stop_closes_every_stream():
    """Who waits for a stream when the server's block is left gets Trio's error; no descriptor is left."""

    async def use(stream):
        nursery.start_soon(wait, stream)

    async def wait(stream):
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        ends.append(stream)

    async def within(stream):
        try:
            await stream.receive_some()
        finally:
            ends.append(stream)

    before, ends = (descriptors(), tasks()), []
    async with trio.open_nursery() as nursery:
        for function in (use, within):
            async with serving(Lines(function)) as at:
                peers = [await at.dial() for _ in range(5)]
                for peer in peers:
                    await peer.send(b"STARTSTREAM\n")
                await until(lambda: at.server.statistics().streams == 5)
                for peer in peers:
                    await peer.aclose() if function is within else None
    assert len(ends) == 10
    assert (descriptors(), tasks()) == before


async def test_drain_waits_for_streams():
    """A stream is told, if it asks to be, and waited for."""

    async def use(stream):
        stream.on_drain = told.set
        await told.wait()
        await stream.send_all(b"bye")
        await stream.aclose()

    told = trio.Event()
    async with serving(Lines(use)) as at:
        peer = await at.dial()
        await peer.send(b"STARTSTREAM\n")
        await until(lambda: at.server.statistics().streams == 1)
        assert await at.server.drain(jitter=0)
        assert await heard(peer, 3) == b"bye"


async def test_a_stream_that_begins_while_the_server_drains_is_told():
    """Who gets it then cannot have been told before."""

    async def use(stream):
        stream.on_drain = told.set
        await stream.aclose()

    told = trio.Event()
    async with serving(Lines(use)) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().connections)
        at.server.engine.draining = True
        await peer.send(b"STARTSTREAM\n")
        await peer.ended()
        assert told.is_set()


async def test_a_number_used_again():
    """The descriptor of a stream that was closed is used by the next connection, which nothing disturbs."""

    async def use(stream):
        numbers.append(stream.socket.fileno())
        await stream.aclose()

    numbers = []
    async with serving(Lines(use, idle_timeout=0.05), resolution=0.01) as at:
        for _ in range(5):
            peer = await at.dial()
            await peer.send(b"hello\nSTARTSTREAM\n")
            assert await heard(peer, 7) == b"hello\r\n"
            await peer.ended()
        assert at.server.statistics().poller.watched == 1
    assert len(set(numbers)) < 5


# ------------------------------------------------------------------ WebSocket


class Raw(trionet.WebSocketHandler):
    """On the message "raw" the connection goes to `use`; others are echoed."""

    def __init__(self, use):
        self.use = use
        self.ends = []

    async def on_message(self, ws, message):
        if message == "raw":
            await self.use(await ws.detach())
        else:
            await ws.send(message)

    async def on_close(self, ws, closed):
        self.ends.append(closed)


def unmasked(data):
    """Return the frames of a client."""
    frames = []
    while data:
        assert data[1] & 128
        length, at = data[1] & 127, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        key, end = data[at : at + 4], at + 4 + length
        payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(data[at + 4 : end]))
        assert len(payload) == length, "unfinished"
        frames.append(Frame(data[0] & 15, payload, bool(data[0] & 128)))
        data = data[end:]
    return frames


BEHIND = [
    ("nothing", b"", []),
    (
        "messages",
        text("one") + frame(BINARY, b"two" * 100),
        [Frame(TEXT, b"one"), Frame(BINARY, b"two" * 100)],
    ),
    ("a ping", frame(PING, b"!") + text("x"), [Frame(PING, b"!"), Frame(TEXT, b"x")]),
    ("a close", text("x") + close(1000), [Frame(TEXT, b"x"), Frame(8, b"\x03\xe8")]),
    ("fragments", frame(TEXT, b"on", fin=False) + frame(0, b"e"), [Frame(TEXT, b"one")]),
]


@pytest.mark.parametrize("data, frames", [row[1:] for row in BEHIND], ids=[row[0] for row in BEHIND])
async def test_messages_in_the_same_read(data, frames):
    """What came behind the message that gives the connection away is in the stream, as frames."""

    async def use(stream):
        received.append(await all_of(stream))
        await stream.send_all(b"raw bytes")
        await stream.aclose()

    received, handler = [], Raw(use)
    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("hello") + text("raw") + data)
        await peer.stream.send_eof()
        assert await peer.hear() == "hello"
        assert await heard(peer, 9) == b"raw bytes"
        await peer.ended()
        await until(lambda: handler.ends)
    assert unmasked(received[0]) == frames
    assert [(end.code, end.reason) for end in handler.ends] == [(1006, "detached")]


@pytest.mark.parametrize("cut", range(1, 26))
async def test_a_frame_cut_anywhere(cut):
    """Of a frame that came in part, the first part is in the stream and the rest follows it."""

    async def use(stream):
        received.append(stream.unread)
        await stream.send_all(b"!")
        received.append(await all_of(stream))
        await stream.aclose()

    behind = frame(TEXT, "é€".encode(), fin=False) + frame(0, b"and the rest")
    received = []
    async with serving(Raw(use)) as at:
        peer = await at.join()
        await peer.send(text("raw") + behind[:cut])
        assert await heard(peer, 1) == b"!"
        await peer.send(behind[cut:])
        await peer.stream.send_eof()
        await peer.ended()
        await until(lambda: len(received) == 2)
    frames = unmasked(received[0] + received[1] if not received[1].startswith(received[0]) else received[1])
    assert b"".join(piece.payload for piece in frames) == "é€and the rest".encode()
    assert frames[0].opcode == TEXT
    assert [piece.fin for piece in frames][-1]


async def test_messages_kept_for_a_busy_handler():
    """They are in the stream; a Ping that came meanwhile has been answered."""

    async def use(stream):
        received.append(await all_of(stream))
        await stream.aclose()

    class Handler(Raw):
        async def on_message(self, ws, message):
            entered.set()
            await release.wait()
            await super().on_message(ws, message)

    received, entered, release = [], trio.Event(), trio.Event()
    async with serving(Handler(use)) as at:
        peer = await at.join()
        await peer.send(text("raw") + text("one"))
        await entered.wait()
        await peer.send(text("two") + frame(PING, b"?") + text("three")[:-1])
        assert await peer.frame() == Frame(PONG, b"?")
        release.set()
        await until(lambda: at.server.statistics().streams == 1)
        await peer.send(text("three")[-1:])
        await peer.stream.send_eof()
        await peer.ended()
    assert [piece.payload for piece in unmasked(received[0])] == [b"one", b"two", b"three"]


async def test_from_on_open():
    """A handler may give the connection away before the first message."""

    class Handler(trionet.WebSocketHandler):
        async def on_open(self, ws):
            stream = await ws.detach()
            await stream.send_all(await all_of(stream))
            await stream.aclose()

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(text("x"))
        await peer.stream.send_eof()
        data = await heard(peer, len(text("x")))
        assert unmasked(data) == [Frame(TEXT, b"x")]
        await peer.ended()


@pytest.mark.parametrize("where", ["at the last message", "with more behind"])
async def test_from_a_straight_line_handler(where):
    """The handler goes on with the stream in the same lines; messages it has not received are in it."""
    behind = text("three") + text("four") if where != "at the last message" else b""

    async def handler(ws):
        seen.append(await ws.receive())
        seen.append(await ws.receive())
        async with await ws.detach() as stream:
            with pytest.raises(trionet.ConnectionClosed, match="detached"):
                await ws.receive()
            await stream.send_all(b"raw")
            seen.append(unmasked(await all_of(stream)))

    seen = []
    async with serving(trionet.WebSocketProtocol(handler)) as at:
        peer = await at.join()
        await peer.send(text("one") + text("two") + behind)
        assert await heard(peer, 3) == b"raw"
        await peer.send(text("five"))
        await peer.stream.send_eof()
        await peer.ended()
        await until(lambda: at.server.statistics().connections == 0)
    assert seen[:2] == ["one", "two"]
    later = ["three", "four", "five"] if behind else ["five"]
    assert [frame.payload.decode() for frame in seen[2]] == later


async def test_by_another_task_while_the_handler_waits():
    """A straight-line handler that is parked in `receive` is told that the connection has ended for it."""

    async def handler(ws):
        sockets.append(ws)
        try:
            await ws.receive()
        except trionet.ConnectionClosed as closed:
            told.append(closed.reason)

    sockets, told = [], []
    async with serving(trionet.WebSocketProtocol(handler)) as at:
        peer = await at.join()
        await until(lambda: sockets)
        await wait_all_tasks_blocked()
        async with await sockets[0].detach() as stream:
            await until(lambda: told)
            await stream.send_all(b"raw")
            assert await heard(peer, 3) == b"raw"
    assert told == ["detached"]


async def test_in_the_middle_of_a_message_in_pieces():
    """What cannot be given back is not given away: `RuntimeError`, and the connection goes on."""

    class Handler(trionet.WebSocketHandler):
        async def on_chunk(self, ws, data, last):
            if not last:
                with pytest.raises(RuntimeError, match="cannot be given away"):
                    await ws.detach()
            else:
                async with ws.send_stream() as stream:
                    await stream.send(b"x")
                    with pytest.raises(RuntimeError, match="being sent"):
                        await ws.detach()
                await ws.send("fine")

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, b"on", fin=False) + frame(0, b"e"))
        while (piece := await peer.frame()).opcode != TEXT:
            pass
        assert piece.payload == b"fine"


async def test_after_a_close():
    """A connection that is closing cannot be given away."""

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            ws.close_nowait(4000)
            with pytest.raises(trionet.ConnectionClosed):
                await ws.detach()
            seen.append(message)

    seen = []
    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.say("x")
        assert await peer.closed() == 4000
    assert seen == ["x"]


# ----------------------------------------------------------------- the stream


async def test_it_is_a_half_closeable_stream(tmp_path):
    """Trio's own checks pass, with and without bytes in front."""
    engine = Engine(TaskPool(1))

    async def make(small=False):
        ends = []
        for sock in socket.socketpair():
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            raw = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            ends.append(DetachedStream(engine, raw))
        return tuple(ends)

    async def clogged():
        left, right = await make(small=True)
        for one in (left, right):
            with trio.move_on_after(0.05):
                while True:
                    await one.send_all(bytes(65536))
        return left, right

    await check_half_closeable_stream(make, clogged)


async def test_bytes_in_front():
    """They come first, cut as asked for; `repr` tells how many are left; closing forgets them."""
    engine = Engine(TaskPool(1))
    left, right = socket.socketpair()
    raw = trio.SocketStream(trio.socket.from_stdlib_socket(left))
    with right:
        stream = DetachedStream(engine, raw, b"0123456789")
        right.send(b"live")
        assert "10 bytes unread" in repr(stream)
        assert stream.peer is None
        assert await stream.receive_some(4) == b"0123"
        for bad, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
            with pytest.raises(error):
                await stream.receive_some(bad)
        assert stream.unread == b"456789"
        with trio.move_on_after(0) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        assert stream.unread == b"456789"
        assert await stream.receive_some() == b"456789"
        assert await stream.receive_some() == b"live"
        stream._unread = b"more"
        await stream.aclose()
        await stream.aclose()
        stream.close_now()
        assert repr(stream) == "<DetachedStream closed>"
        assert stream.peer is stream.local is None
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


async def test_a_protocol_that_keeps_something_else():
    """Where what was read is not kept as bytes, detaching is refused and the connection goes on."""

    class Counting(trionet.Protocol):
        async def data_received(self, connection, data):
            connection._input = len(data)
            with pytest.raises(RuntimeError, match="Counting"):
                await connection.detach()
            connection._input = None
            connection.write(b"ok")

    async with serving(Counting()) as at:
        peer = await at.dial()
        await peer.send(b"x")
        assert await heard(peer, 2) == b"ok"


def test_there_is_no_word_for_it_in_an_idle_connection():
    """Giving away costs an idle connection nothing."""
    assert not [name for name in Connection.__slots__ if "heir" in name or "detach" in name]
