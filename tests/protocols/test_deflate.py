"""Compression on real connections: with raw frames, and with a client of others."""

from __future__ import annotations

import random
import socket
import struct
import types
import zlib

import pytest
import trio
import trio.testing
from tls_peer import client_context, server_context
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.trio.client import connect
from ws_peer import (
    BINARY,
    CONTINUATION,
    KEY,
    TEXT,
    Echo,
    Gated,
    Opened,
    Peer,
    frame,
    request,
    serving,
    until,
)

import trionet
from trionet import Deflate, PreparedMessage, Rejection, SlowConsumer
from trionet.protocols.deflate import Deflated
from trionet.wire import deflate
from trionet.wire.deflate import EXPANSION
from trionet.wire.frames import encode_frame

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
TAKEOVER = Deflate(server_no_context_takeover=False, client_no_context_takeover=False, threshold=20)
ALONE = Deflate(threshold=20)
BOTH = pytest.mark.parametrize("wish", [ALONE, TAKEOVER], ids=["alone", "takeover"])
LONG = "a text that is compressed, " * 40


class DeflatePeer(Peer):
    """A client that compresses by zlib, all or nothing, and can tell what was compressed."""

    takeover = False

    def begin(self, head: bytes) -> None:
        """The handshake is done."""
        self.takeover = b"no_context_takeover" not in head
        self.packer = zlib.compressobj(wbits=-12)
        self.unpacker = zlib.decompressobj(-12)

    def pack(self, data: bytes) -> bytes:
        """Return the payload of a compressed message."""
        if not self.takeover:
            self.packer = zlib.compressobj(wbits=-12)
        return (self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH))[:-4]

    async def press(self, data: bytes, opcode: int = TEXT) -> None:
        """Send a compressed message."""
        await self.send(encode_frame(opcode, self.pack(data), rsv=4, key=KEY))

    async def message(self) -> tuple[bool, str | bytes]:
        """Return the next message, sent in one frame, and whether it was compressed."""
        while (size := self._whole()) is None:
            assert await self._more(), "the connection ended"
        first, second = self.data[:2]
        assert first & 0xBF in (0x81, 0x82), hex(first)
        payload = self.take(size)[{126: 4, 127: 10}.get(second, 2) :]
        if first & 0x40:
            if not self.takeover:
                self.unpacker = zlib.decompressobj(-12)
            payload = self.unpacker.decompress(payload + b"\0\0\xff\xff")
        return bool(first & 0x40), payload.decode() if first & 1 else payload

    async def pieces(self, count: int = 1000):
        """Yield what each of the next frames holds, to the end of a compressed message."""
        first = 0x40
        for _ in range(count):
            while (size := self._whole()) is None:
                assert await self._more(), "the connection ended"
            assert self.data[0] & 0x70 == first
            fin, second = self.data[0] & 0x80, self.data[1]
            payload = self.take(size)[{126: 4, 127: 10}.get(second, 2) :]
            if first and not self.takeover:
                self.unpacker = zlib.decompressobj(-12)
            first = 0
            yield self.unpacker.decompress(payload + (b"\0\0\xff\xff" if fin else b""))
            if fin:
                return


async def join(at, *headers: str, small: bool = False) -> DeflatePeer:
    """Connect, offering compression."""
    peer = await at.dial(small=small)
    peer.__class__ = DeflatePeer
    await peer.send(request("/", *(headers or (OFFER,))))
    head = await peer.head()
    assert b" 101 " in head
    assert b"permessage-deflate" in head
    peer.begin(head)
    return peer


# --- the handshake ------------------------------------------------------------------------------------------


async def test_it_is_off_by_default():
    """An offer is not answered, connections have no word for it, and a compressed frame is an error."""
    async with serving(Echo()) as at:
        peer = await at.dial()
        await peer.send(request("/", OFFER))
        assert b"Sec-WebSocket-Extensions" not in await peer.head()
        assert not hasattr(at.connection, "codec")
        await peer.send(encode_frame(TEXT, b"\0", rsv=4, key=KEY))
        assert await peer.closed() == 1002


async def test_what_is_answered():
    """The response says what holds; True stands for the defaults."""
    async with serving(Echo(), compression=True) as at:
        peer = await at.dial()
        await peer.send(request("/", OFFER))
        [line] = [
            line for line in (await peer.head()).split(b"\r\n") if line.startswith(b"Sec-WebSocket-Ext")
        ]
        assert line == (
            b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
            b"client_no_context_takeover; server_max_window_bits=12; client_max_window_bits=12"
        )


@pytest.mark.parametrize("headers", [[], ["Sec-WebSocket-Extensions: permessage-deflate; unknown"]])
async def test_a_client_that_cannot(headers):
    """Without an offer, or with none that we can, all goes on as without compression."""
    async with serving(Echo(), compression=True) as at:
        peer = await at.join("/", *headers)
        assert at.connection.codec is None
        await peer.echo(LONG)
        await peer.send(encode_frame(TEXT, b"\0", rsv=4, key=KEY))
        assert await peer.closed() == 1002


async def test_an_idle_connection_holds_nothing():
    """Without takeover connections share one object for what they agreed on; after traffic too."""
    async with serving(Echo(), compression=ALONE) as at:
        peers = [await join(at), await join(at)]
        for peer in peers:
            await peer.press(LONG.encode())
            assert await peer.message() == (True, LONG)
        first, second = at.server.connections
        assert first.codec is second.codec
        assert first._input is first._rare is first._out is None


async def test_plain_http_first():
    """A connection that was served HTTP before its upgrade compresses like any other."""
    http = trionet.HttpProtocol({"/": "page"})
    async with serving(Echo(), compression=ALONE, http=http) as at:
        peer = await at.dial()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await peer.status() == 200
        while len(peer.data) < 4:
            await peer._more()
        assert peer.take(4) == b"page"
        peer.__class__ = DeflatePeer
        await peer.send(request("/", OFFER))
        peer.begin(await peer.head())
        await peer.press(LONG.encode())
        assert await peer.message() == (True, LONG)


# --- messages -----------------------------------------------------------------------------------------------


@BOTH
async def test_both_directions(wish):
    """Compressed or not, text or binary, short or long: the message comes back."""
    async with serving(Echo(), compression=wish) as at:
        peer = await join(at)
        for n in range(3):
            await peer.press(LONG.encode())
            assert await peer.message() == (True, LONG)
            await peer.press(bytes(100_000), BINARY)
            assert await peer.message() == (True, bytes(100_000))
            await peer.press(b"short")
            assert await peer.message() == (False, "short")
            await peer.say(f"{n}" * 500)
            assert await peer.message() == (True, f"{n}" * 500)
            await peer.press(b"")
            assert await peer.message() == (False, "")


@BOTH
async def test_several_in_one_read(wish):
    """Corked answers to messages of one read come in order, compressed in that order."""
    async with serving(Echo(), compression=wish) as at:
        peer = await join(at)
        packed = [encode_frame(TEXT, peer.pack(f"{n}{LONG}".encode()), rsv=4, key=KEY) for n in range(50)]
        await peer.send(*packed)
        for n in range(50):
            assert await peer.message() == (True, f"{n}{LONG}")


async def straight(ws):
    """Echo, as one coroutine."""
    async for message in ws:
        await ws.send(message)


THEIRS = {
    "default": {},
    "small": {"server_max_window_bits": 9, "client_max_window_bits": 9},
    "alone": {"server_no_context_takeover": True, "client_no_context_takeover": True},
    "server alone": {"server_no_context_takeover": True},
    "client alone": {"client_no_context_takeover": True},
}


@BOTH
@pytest.mark.parametrize("handler", [Echo(), straight], ids=["events", "straight"])
@pytest.mark.parametrize("name", THEIRS)
async def test_with_websockets(wish, handler, name):
    """The client of websockets, with its default and with other offers, understands us and is understood."""
    extension = ClientPerMessageDeflateFactory(**{"client_max_window_bits": True, **THEIRS[name]})
    async with (
        serving(trionet.WebSocketProtocol(handler, compression=wish)) as at,
        connect(at.url, compression=None, extensions=[extension]) as client,
    ):
        assert client.protocol.extensions
        for message in ("", "short", LONG, LONG, bytes(70_000), "κόσμε 🎉" * 1000, LONG[:700]):
            await client.send(message)
            assert await client.recv() == message
        await client.send([LONG, "", LONG])
        assert await client.recv() == LONG * 2


async def test_control_frames_between_fragments():
    """A Ping within a compressed message is answered at once, and changes nothing."""
    async with serving(Echo(), compression=ALONE) as at:
        peer = await join(at)
        payload = peer.pack(LONG.encode())
        await peer.send(encode_frame(TEXT, payload[:9], fin=False, rsv=4, key=KEY), frame(9, b"?"))
        assert await peer.frame() == (10, b"?", True)
        await peer.send(frame(CONTINUATION, payload[9:]))
        assert await peer.message() == (True, LONG)


@pytest.mark.parametrize(
    "wire,code",
    [
        (encode_frame(CONTINUATION, b"", rsv=4, key=KEY), 1002),
        (encode_frame(9, b"", rsv=4, key=KEY), 1002),
        (encode_frame(TEXT, b"\xff\xff", rsv=4, key=KEY), 1007),
        (encode_frame(TEXT, b"\x00\x01\x00\xfe\xff\xff\x00", rsv=4, key=KEY), 1007),
    ],
)
async def test_broken_rules(wire, code):
    """Reserved bits in wrong places are 1002; what is not deflate, or not UTF-8 when inflated, is 1007."""
    async with serving(Echo(), compression=ALONE) as at:
        peer = await join(at)
        await peer.send(wire)
        assert await peer.closed() == code


async def test_a_bomb_is_refused():
    """What becomes longer than `max_message` is answered with 1009, and was never inflated further."""
    handler = Opened()
    async with serving(handler, compression=ALONE) as at:
        peer = await join(at)
        await peer.press(bytes(2**20), BINARY)
        await peer.press(bytes(2**20 + 1), BINARY)
        assert await peer.closed() == 1009
        assert handler.seen == [bytes(2**20)]


async def test_many_bombs_of_the_allowed_size():
    """Messages that each keep to the limit are not all inflated because they came together."""
    handler = Gated()
    async with serving(handler, compression=ALONE) as at:
        peer = await join(at)
        bomb = encode_frame(BINARY, peer.pack(bytes(2**20)), rsv=4, key=KEY)
        count = 100_000 // len(bomb)
        assert count > 80
        await peer.send(bomb * count)
        await handler.entered.wait()
        await until(lambda: "paused" in repr(at.connection))
        # What is left of the first read, and another one.
        assert 0 < at.connection._rare.held_size < 2 * 4096 * EXPANSION
        handler.gate.set()
        await until(lambda: len(handler.seen) == count)


async def test_frames_sent_before_the_101():
    """They wait as they came, and few of them; then they are inflated in order."""

    class Slow(Echo):
        def __init__(self):
            self.gate = trio.Event()

        async def on_upgrade(self, ws, request):
            await self.gate.wait()

    handler = Slow()
    async with serving(handler, compression=ALONE) as at:
        peer = await at.dial()
        peer.__class__ = DeflatePeer
        peer.begin(b"no_context_takeover")
        packed = [encode_frame(TEXT, peer.pack(f"{n}{LONG}".encode()), rsv=4, key=KEY) for n in range(40)]
        assert sum(map(len, packed)) <= 4096
        await peer.send(request("/", OFFER))
        await until(lambda: [ws for ws in at.server.connections if "busy" in repr(ws)])
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(*packed)
        await until(lambda: at.connection._input is not None)
        handler.gate.set()
        assert await peer.status() == 101
        for n in range(40):
            assert await peer.message() == (True, f"{n}{LONG}")


async def test_many_frames_sent_before_the_101():
    """Whoever sends more than a little without waiting gets no compression: all of it would be inflated at once."""
    async with serving(Echo(), compression=ALONE) as at:
        peer = await at.dial()
        await peer.send(request("/", OFFER), frame(TEXT, b"x" * 4096))
        assert b"permessage-deflate" not in await peer.head()
        assert await peer.hear() == "x" * 4096


async def test_behind_a_router():
    """A path may compress where others do not."""
    router = trionet.Router(
        {
            "/packed": trionet.WebSocketProtocol(Echo(), compression=ALONE),
            "/plain": trionet.WebSocketProtocol(Echo()),
        }
    )
    async with serving(router) as at:
        for path, packed in (("/plain", False), ("/packed", True)):
            peer = await at.dial()
            peer.__class__ = DeflatePeer
            await peer.send(request(path, OFFER))
            head = await peer.head()
            assert (b"permessage-deflate" in head) is packed
            peer.begin(head)
            await peer.say(LONG)
            assert await peer.message() == (packed, LONG)


async def test_a_message_in_pieces():
    """`on_chunk` gets what is inflated so far."""

    class Chunks(trionet.WebSocketHandler):
        def __init__(self):
            self.chunks = []

        async def on_chunk(self, ws, data, last):
            self.chunks.append(data)
            if last:
                await ws.send(data[-5:])

    handler = Chunks()
    text = "".join(str(n * n) for n in range(30_000))
    async with serving(handler, compression=ALONE) as at:
        peer = await join(at)
        await peer.press(text.encode())
        assert await peer.message() == (False, text[-5:])
    assert "".join(handler.chunks) == text
    assert len(handler.chunks) > 5


async def test_an_incompressible_message_of_the_greatest_size():
    """A peer that compresses noise sends a little more than `max_message` bytes; that is no fault."""
    noise = zlib.compress(",".join(str(n * n * n) for n in range(20_000)).encode(), 9)[:30_000]
    async with serving(Echo(), compression=ALONE, max_message=30_000) as at:
        peer = await join(at)
        await peer.press(noise, BINARY)
        assert await peer.message() == (False, noise)
    async with serving(Echo(), compression=ALONE, max_message=30_000, max_frame=30_000) as at:
        peer = await join(at)
        assert len(peer.pack(noise)) > 30_000
        await peer.press(noise, BINARY)
        assert await peer.closed() == 1009


async def test_with_a_rate_limit():
    """A limited peer may compress."""
    async with serving(Echo(), compression=ALONE, max_messages_per_second=1000) as at:
        peer = await join(at)
        for _ in range(3):
            await peer.press(LONG.encode())
            assert await peer.message() == (True, LONG)


# --- to many ------------------------------------------------------------------------------------------------


@pytest.fixture
def compressions(monkeypatch):
    """Return the list of messages that were compressed."""
    seen = []
    genuine = zlib.compressobj

    class Counted:
        def __init__(self, *args):
            self.stream = genuine(*args)

        def compress(self, data):
            seen.append(bytes(data))
            return self.stream.compress(data)

        def flush(self, mode):
            return self.stream.flush(mode)

    # Not in zlib itself: the clients of these tests use that.
    monkeypatch.setattr(deflate, "zlib", types.SimpleNamespace(**{**vars(zlib), "compressobj": Counted}))
    return seen


async def everybody(at, handler, *, plain: int = 1, packed: int = 3):
    """Return so many clients, some of them without compression."""
    peers = [await join(at) for _ in range(packed)]
    for _ in range(plain):
        peer = await at.join()
        peer.__class__ = DeflatePeer
        peers.append(peer)
    await until(lambda: len(handler.arrived) == packed + plain)
    return peers


async def test_a_broadcast_is_compressed_once(compressions):
    """However many agreed on the same, and some do not compress at all."""
    handler = Opened()
    async with serving(handler, compression=ALONE) as at:
        peers = await everybody(at, handler)
        compressions.clear()
        assert trionet.broadcast(handler.arrived, LONG) == 4
        assert compressions == [LONG.encode()]
        assert [await peer.message() for peer in peers] == [(True, LONG)] * 3 + [(False, LONG)]
        assert trionet.broadcast(handler.arrived, "short") == 4
        assert [await peer.message() for peer in peers] == [(False, "short")] * 4


async def test_a_prepared_message_is_compressed_once(compressions):
    """At its first use, and it remembers; by whichever way it is sent."""
    handler = Opened()
    async with serving(handler, compression=ALONE) as at:
        peers = await everybody(at, handler, packed=2)
        compressions.clear()
        message = PreparedMessage(LONG)
        assert compressions == []
        trionet.broadcast(handler.arrived, message)
        for ws in handler.arrived:
            await ws.send(message)
            ws.send_nowait(message)
        assert compressions == [LONG.encode()]
        for peer, packed in zip(peers, (True, True, False), strict=True):
            for _ in range(3):
                assert await peer.message() == (packed, LONG)


async def test_a_broadcast_with_takeover(compressions):
    """Each window is another, so it is compressed for each; what was sent before is referred to."""
    handler = Opened()
    async with serving(handler, compression=TAKEOVER) as at:
        peers = await everybody(at, handler, plain=1, packed=2)
        for n in range(3):
            await handler.arrived[0].send(f"only for one {n}" * 10)
            assert await peers[0].message() == (True, f"only for one {n}" * 10)
            trionet.broadcast(handler.arrived, LONG)
            assert [await peer.message() for peer in peers] == [(True, LONG)] * 2 + [(False, LONG)]
        assert compressions.count(LONG.encode()) == 6


# --- slow peers ---------------------------------------------------------------------------------------------


def noise(seed: int, size: int = 4000) -> bytes:
    """Return bytes that do not compress."""
    return random.Random(seed).randbytes(size)


async def fill(ws, send) -> list[bytes]:
    """Send until the peer is slow; return what was taken."""
    taken = []
    while True:
        message = noise(len(taken))
        try:
            send(message)
        except trio.WouldBlock:
            return taken
        taken.append(message)
        await trio.lowlevel.checkpoint()


@BOTH
async def test_a_cancelled_send_leaves_no_trace(wish):
    """What waited for room and was cancelled was not compressed into the stream: all that is sent can be read."""
    handler = Opened()
    async with serving(handler, compression=wish) as at:
        peer = await join(at, small=True)
        ws = await handler.first()
        taken = await fill(ws, ws.send_nowait)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ws.send, noise(10_000))
                nursery.start_soon(ws.send, LONG)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with pytest.raises(trio.WouldBlock):
            ws.send_nowait(noise(10_001))
        for message in taken:
            assert (await peer.message())[1] == message
        await ws.send(LONG)
        assert await peer.message() == (True, LONG)


@BOTH
async def test_many_senders_that_wait(wish):
    """Whoever gets room first: the peer reads every message, whole and right."""
    handler = Opened()
    async with serving(handler, compression=wish) as at:
        peer = await join(at, small=True)
        ws = await handler.first()
        taken = await fill(ws, ws.send_nowait)
        messages = [f"{n}{LONG * 20}" for n in range(20)]
        async with trio.open_nursery() as nursery:
            for message in messages:
                nursery.start_soon(ws.send, message)
            await trio.testing.wait_all_tasks_blocked()
            for message in taken:
                assert (await peer.message())[1] == message
            got = [await peer.message() for _ in messages]
        assert sorted(got) == sorted((True, message) for message in messages)


@BOTH
@pytest.mark.parametrize("policy", [SlowConsumer.DROP_NEWEST, SlowConsumer.DROP_OLDEST])
@pytest.mark.parametrize("way", ["send", "send_nowait", "broadcast"])
async def test_dropped_messages_leave_no_trace(wish, policy, way):
    """What is dropped is missing, and the rest can be read."""
    handler = Opened()
    async with serving(handler, compression=wish, slow_consumer=policy) as at:
        peer = await join(at, small=True)
        ws = await handler.first()
        sent = [noise(n, 3900) + LONG.encode() for n in range(1000)]
        for message in sent:
            if way == "broadcast":
                trionet.broadcast([ws], message)
            elif way == "send":
                await ws.send(message)
            else:
                ws.send_nowait(message)
            if at.protocol.messages_dropped > 50:
                break
        assert at.protocol.messages_dropped > 50
        got = []
        while ws.queued or not got:
            got.append((await peer.message())[1])
        await until(lambda: not ws.queued)
        await ws.send("the last" * 10)
        while got[-1] != "the last" * 10:
            got.append((await peer.message())[1])
        got.pop()
        at_sent = [sent.index(message) for message in got]
        assert at_sent == sorted(at_sent)
        newest = max(at_sent)
        if policy is SlowConsumer.DROP_OLDEST and wish is ALONE:
            assert newest > len(got) + 40
        else:
            assert newest < len(got) + 10


async def test_a_slow_peer_may_be_closed():
    """The policy CLOSE works with compression."""
    handler = Opened()
    async with serving(handler, compression=TAKEOVER, slow_consumer=SlowConsumer.CLOSE) as at:
        await join(at, small=True)
        ws = await handler.first()
        n = 0
        while ws.closed is None:
            await ws.send(noise(n))
            n += 1
        assert ws.closed.code == 1013
        with pytest.raises(trionet.ConnectionClosed):
            await ws.send(LONG)
        with pytest.raises(trionet.ConnectionClosed):
            ws.send_nowait(LONG)


async def test_sending_is_a_cancellation_point():
    """With takeover too, though nothing has to be waited for."""
    handler = Opened()
    async with serving(handler, compression=TAKEOVER) as at:
        peer = await join(at)
        ws = await handler.first()
        with trio.CancelScope() as scope:
            scope.cancel()
            await ws.send(LONG)
        assert scope.cancelled_caught
        await ws.send(LONG)
        assert await peer.message() == (True, LONG)


async def break_off(ws, *pieces):
    """Begin a message and do not end it."""
    async with ws.send_stream() as stream:
        for piece in pieces:
            await stream.send(piece)
        raise ZeroDivisionError


@BOTH
async def test_a_stream_of_pieces(wish):
    """What is sent piece by piece can be read piece by piece; those around it too, and those meanwhile wait."""
    handler = Opened()
    async with serving(handler, compression=wish) as at:
        peer = await join(at)
        ws = await handler.first()
        await ws.send(LONG)
        assert await peer.message() == (True, LONG)
        async with trio.open_nursery() as nursery:
            async with ws.send_stream(text=True) as stream:
                await stream.send(LONG)
                nursery.start_soon(ws.send, LONG)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.WouldBlock):
                    ws.send_nowait(LONG)
                await stream.send(LONG)
            assert [piece async for piece in peer.pieces()] == [LONG.encode(), LONG.encode(), b""]
            assert await peer.message() == (True, LONG)
        for sent in ([], ["", LONG, ""], [LONG]):
            async with ws.send_stream(text=True) as stream:
                for piece in sent:
                    await stream.send(piece)
            assert [piece async for piece in peer.pieces()] == [*(piece.encode() for piece in sent), b""]
            await ws.send(LONG)
            assert await peer.message() == (True, LONG)
        with pytest.raises(ZeroDivisionError):
            await break_off(ws)
        await ws.send(LONG)
        assert await peer.message() == (True, LONG)
        with pytest.raises(ZeroDivisionError):
            await break_off(ws, b"x")
        [piece] = [piece async for piece in peer.pieces(1)]
        assert piece == b"x"
        assert await peer.closed() == 1011


async def test_no_message_before_it_is_open():
    """As without compression."""

    class Early(Echo):
        async def on_upgrade(self, ws, request):
            with pytest.raises(RuntimeError):
                await ws.send(LONG)
            with pytest.raises(RuntimeError):
                ws.send_nowait(LONG)
            raise Rejection(403)

    async with serving(Early(), compression=TAKEOVER) as at:
        peer = await at.dial()
        await peer.send(request("/", OFFER))
        assert await peer.status() == 403


@BOTH
async def test_what_is_no_message(wish):
    """A wrong type raises TypeError, and nothing is sent."""
    handler = Opened()
    async with serving(handler, compression=wish) as at:
        peer = await join(at)
        ws = await handler.first()
        with pytest.raises(TypeError):
            await ws.send(3)
        with pytest.raises(TypeError):
            ws.send_nowait(None)
        await ws.send(bytearray(100))
        assert await peer.message() == (True, bytes(100))


@BOTH
async def test_giving_it_away(wish):
    """A connection whose windows are kept cannot be given away: nobody else could read on."""
    handler = Opened()
    async with serving(handler, compression=wish) as at:
        await join(at)
        ws = await handler.first()
        assert isinstance(ws, Deflated)
        if wish is TAKEOVER:
            with pytest.raises(RuntimeError, match="cannot be given away"):
                await ws.detach()
        else:
            async with await ws.detach():
                pass


@BOTH
async def test_over_tls(wish):
    """What is read of the records is inflated, what is compressed is enciphered; large and small, in order."""
    protocol = trionet.WebSocketProtocol(Echo(), compression=wish)
    with trio.fail_after(20):
        async with (
            trionet.open_server(protocol, "127.0.0.1", 0, ssl_context=server_context()) as server,
            connect(
                f"wss://localhost:{server.addresses[0][1]}", host="127.0.0.1", ssl=client_context()
            ) as client,
        ):
            [ws] = server.connections
            assert ws.codec is not None
            messages = [
                LONG,
                "",
                bytes(300_000),
                noise(1, 200_000),
                LONG[:600],
                "x" * 2**19,
                "κόσμε 🎉" * 9000,
            ]
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send():
                    for message in messages:
                        await client.send(message)

                for message in messages:
                    assert await client.recv() == message


async def test_a_client_that_cannot_and_is_slow():
    """Streams and the slow-consumer policy treat it as if there were no compression."""
    handler = Opened()
    async with serving(handler, compression=ALONE, slow_consumer=SlowConsumer.DROP_OLDEST) as at:
        peer = await at.join(small=True)
        peer.__class__ = DeflatePeer
        ws = await handler.first()
        async with ws.send_stream() as stream:
            await stream.send(b"piece")
        assert await peer.frame() == (BINARY, b"piece", False)
        assert await peer.frame() == (CONTINUATION, b"", True)
        count = 0
        while not at.protocol.messages_dropped:
            await ws.send(noise(count))
            count += 1
        got = [(await peer.message())[1] for _ in range(count - at.protocol.messages_dropped)]
        assert got[-1] == noise(count - 1)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_sender_that_waits_for_room_when_it_ends(end):
    """It gets `ConnectionClosed`, and nothing of its message was sent."""
    handler = Opened()
    async with serving(handler, compression=TAKEOVER) as at:
        peer = await join(at, small=True)
        ws = await handler.first()
        taken = await fill(ws, ws.send_nowait)

        async def send():
            with pytest.raises(trionet.ConnectionClosed):
                await ws.send(LONG * 500)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            if end == "abort":
                ws.abort()
                return
            ws.close_nowait(4000)
            for message in taken:
                assert (await peer.message())[1] == message
            assert await peer.closed() == 4000


async def test_a_peer_that_is_gone():
    """The `send` that finds it out says so."""
    handler = Opened()
    async with serving(handler, compression=TAKEOVER) as at:
        peer = await join(at)
        ws = await handler.first()
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.stream.socket.close()
        with pytest.raises(trionet.ConnectionClosed):
            await ws.send(LONG)
