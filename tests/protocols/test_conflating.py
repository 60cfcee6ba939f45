"""The policy CONFLATE on real connections: what a slow peer gets, with and without compression, TLS and corks."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from test_deflate import ALONE, TAKEOVER, join, noise
from tls_peer import serving_tls
from ws_peer import Opened, serving, text, until

import trionet
from trionet import PreparedMessage, SlowConsumer
from trionet.net.conflating import ConflatingOutbox
from trionet.net.connection import Connection
from trionet.net.outbox import Outbox
from trionet.protocols.channel import WebSocket
from trionet.protocols.conflating import Conflating

CONFLATE = SlowConsumer.CONFLATE
FILL = "-" * 2000


def tagged(number, tag):
    """Return a message that says which it is."""
    return PreparedMessage(f"{number} {tag} {FILL}", tag=tag)


async def give(ws, message, way):
    """Send in one of three ways."""
    if way == "broadcast":
        return trionet.broadcast([ws], message)
    if way == "send":
        await ws.send(message)
    else:
        ws.send_nowait(message)
    return 1


async def behind(ws):
    """Send until the kernel takes no more; return how many messages that took."""
    count = 0
    while not isinstance(ws._out, ConflatingOutbox):
        ws.send_nowait(f"{count} first {FILL}")
        count += 1
    return count


async def heard(peer, ws, last="last"):
    """Have the peer read, and return (number, tag) of what came behind the first messages."""
    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.send, last)
        while (message := await peer.hear()) != last:
            number, tag, fill = message.split(" ")
            assert fill == FILL
            if tag != "first":
                got.append((int(number), tag))
    return got


@pytest.mark.parametrize("way", ["send", "send_nowait", "broadcast"])
async def test_a_slow_peer_gets_the_newest(way):
    """Of each tag the newest arrives, what was without a tag too, all in order; nothing is dropped."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=100_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await behind(ws)
        number = 0
        for _ in range(50):
            for tag in "abcdefghij":
                number += 1
                assert await give(ws, tagged(number, tag), way) == 1
                assert ws.queued <= 100_000
            if number == 100:
                await give(ws, f"{number} none {FILL}", way)
        assert at.protocol.messages_dropped == 0
        assert at.protocol.counts.slow_overflows == 490
        got = await heard(peer, ws)
        assert [number for number, tag in got if tag == "none"] == [100]
        assert [number for number, tag in got if tag != "none"][-10:] == list(range(491, 501))
        assert got == sorted(got)
        assert len(got) <= 11
        await ws.send("and on")
        assert await peer.hear() == "and on"


async def test_a_peer_that_keeps_up_gets_all():
    """Nothing is conflated where nothing is queued."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE) as at:
        peer = await at.join()
        ws = await handler.first()
        for n in range(100):
            trionet.broadcast([ws], PreparedMessage(str(n), tag="t"))
        assert [await peer.hear() for _ in range(100)] == [str(n) for n in range(100)]
        assert at.protocol.counts.slow_overflows == 0


async def test_more_tags_than_there_is_room_for():
    """The newest tags arrive; of the others the oldest are dropped, counted and mentioned in the log."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=30_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await behind(ws)
        for n in range(1000):
            assert trionet.broadcast([ws], tagged(n, f"tag{n}")) == 1
            assert ws.queued <= 33_000
        assert at.protocol.messages_dropped == at.protocol.counts.slow_overflows > 950
        got = await heard(peer, ws)
        assert [number for number, _ in got] == list(range(1000 - len(got), 1000))
        assert len(got) + at.protocol.messages_dropped == 1000


async def test_messages_without_a_tag_wait():
    """At the limit `send` waits, `send_nowait` raises, `broadcast` leaves the peer out; those with a tag still go."""
    handler = Opened()
    async with (
        serving(handler, slow_consumer=CONFLATE, high_water=30_000) as at,
        trio.open_nursery() as nursery,
    ):
        peer = await at.join(small=True)
        ws = await handler.first()
        first = await behind(ws)
        count = 0
        for _ in range(4):  # the kernel may take some more a moment later
            await trio.testing.wait_all_tasks_blocked(0.01)
            while trionet.broadcast([ws], f"{count} none {FILL}"):
                count += 1
        skips = at.protocol.counts.slow_skips
        assert skips == 4
        with pytest.raises(trio.WouldBlock):
            ws.send_nowait(f"{count} none {FILL}")
        assert at.protocol.counts.slow_skips == skips + 1
        nursery.start_soon(ws.send, f"{count} none {FILL}")
        await trio.testing.wait_all_tasks_blocked()
        assert at.protocol.counts.slow_waits == 1
        assert at.protocol.messages_dropped == 0
        # Full of what must not be dropped: now that of a tag is, and nobody waits for it.
        await ws.send(tagged(1, "a"))
        ws.send_nowait(tagged(2, "b"))
        assert trionet.broadcast([ws], tagged(3, "c")) == 0
        assert at.protocol.messages_dropped == 3
        got = [(await peer.hear()).split(" ")[:2] for _ in range(first + count + 1)]
        assert got[first:] == [[str(n), "none"] for n in range(count + 1)]


async def test_what_was_queued_before_the_upgrade(monkeypatch):
    """A queue from when the connection was served plain HTTP is an ordinary one; it is taken over when it is full."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=30_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        with monkeypatch.context() as patch:
            patch.setattr(Conflating, "_new_outbox", Connection._new_outbox)
            while ws._out is None:
                ws.send_nowait(f"0 first {FILL}")
        assert type(ws._out) is Outbox
        for n in range(100):
            assert trionet.broadcast([ws], tagged(n, "ab"[n % 2])) == 1
        assert isinstance(ws._out, ConflatingOutbox)
        assert await heard(peer, ws) == [(98, "a"), (99, "b")]
        assert at.protocol.messages_dropped == 0


@pytest.mark.parametrize("way", ["send", "send_nowait", "broadcast"])
async def test_messages_without_a_tag_may_close(way):
    """Where the protocol says so, a client that cannot be given one is closed with 1013, so that it comes back."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=30_000) as at:
        at.protocol.close_behind = True
        peer = await at.join(small=True)
        ws = await handler.first()
        sent = await behind(ws)
        await give(ws, tagged(1, "a"), way)
        while ws.closed is None:
            await give(ws, f"0 first {FILL}", way)
            sent += 1
        assert ws.closed.code == 1013
        heard = [await peer.frame() for _ in range(sent)]
        assert sum(frame.payload.startswith(b"1 a") for frame in heard) == 1
        await peer.farewell(1013)
        assert at.protocol.messages_dropped == 1


async def test_the_newest_of_too_many_tags_may_close():
    """There, too, what would be dropped is something that the client would never know."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=30_000) as at:
        at.protocol.close_behind = True
        peer = await at.join(small=True)
        ws = await handler.first()
        sent = await behind(ws)
        for tags in range(1, 100):
            trionet.broadcast([ws], tagged(tags, f"tag {tags}"))
            if ws.closed is not None:
                break
        assert ws.closed.code == 1013
        heard = [(await peer.frame()).payload for _ in range(sent + tags - 1)]
        assert sum(b" tag " in payload for payload in heard) == tags - 1
        await peer.farewell(1013)


@pytest.mark.parametrize("wish", [ALONE, TAKEOVER], ids=["alone", "takeover"])
@pytest.mark.parametrize("way", ["send", "send_nowait", "broadcast"])
async def test_with_compression(wish, way):
    """What arrives can be read, is in order, and has the newest of each tag, whether a window is kept or not."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, compression=wish, high_water=100_000) as at:
        peer = await join(at, small=True)
        ws = await handler.first()
        fill = noise(1, 1500).hex()
        for n in range(5):
            await give(ws, PreparedMessage(f"{n} early {'and early again ' * 5}", tag="early"), way)
        while ws._out is None:
            ws.send_nowait(f"{noise(2, 1500).hex()} first first")
        for n in range(300):
            message = PreparedMessage(f"{n} {n % 5} {fill}", tag=str(n % 5))
            assert await give(ws, message, way) == 1
            if n == 150:
                ws.send_nowait(f"{n} none {fill}")
        ws.send_nowait("0 last last")
        got, packed = [], []
        while not got or got[-1] != ["0", "last", "last"]:
            compressed, message = await peer.message()
            got.append(message.split(" "))
            packed.append(compressed)
        assert [words[:2] for words in got[:5]] == [[str(n), "early"] for n in range(5)]
        numbers = [int(words[0]) for words in got if len(words[1]) == 1]
        assert numbers == sorted(set(numbers))
        assert numbers[-5:] == list(range(295, 300))
        assert len(numbers) < 50
        assert ["150", "none", fill] in got
        assert packed[0]
        # With takeover what may be dropped yet is not compressed, for no other message must refer to it.
        assert packed[-2] is (wish is ALONE)
        assert at.protocol.messages_dropped == 0


async def test_it_is_compressed_once():
    """A message for many is compressed once for all, with its tag."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, compression=ALONE) as at:
        peers = [await join(at) for _ in range(3)]
        await until(lambda: len(list(at.server.websockets)) == 3)
        message = PreparedMessage("a" * 1000, tag="t")
        assert trionet.broadcast(at.server.websockets, message) == 3
        [frame] = message._compressed.values()
        assert frame.tag == message.tag == "t"
        for peer in peers:
            assert await peer.message() == (True, "a" * 1000)


@pytest.mark.parametrize("small", [False, True])
async def test_over_tls(small):
    """What is enciphered already stays, the rest is conflated; what arrives is whole and in order."""
    handler = Opened()
    protocol = trionet.WebSocketProtocol(handler, slow_consumer=CONFLATE, high_water=100_000)
    async with serving_tls(protocol) as at:
        peer = await at.join()
        ws = await handler.first()
        count = await behind(ws)
        for n in range(400):
            trionet.broadcast(
                [ws], tagged(n, "ab"[n % 2]) if small else PreparedMessage(f"{n} a {FILL * 20}", tag="a")
            )
            if n % 100 == 50:
                ws.send_nowait(f"{n} first {FILL}")
                await trio.lowlevel.checkpoint()
        ws.send_nowait("last")
        got = []
        while (message := await peer.hear()) != "last":
            number, tag, _ = message.split(" ")
            if tag != "first":
                got.append(int(number))
        assert got == sorted(set(got))
        assert got[-1] == 399
        assert len(got) < 100
        assert count > 0
        assert protocol.messages_dropped == 0


async def test_corked():
    """What is sent while several messages of one read are handled goes out together, and before what comes later."""

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            await ws.send(PreparedMessage(f"a {message}", tag="a"))
            ws.send_nowait(PreparedMessage(f"b {message}", tag="b"))
            trionet.broadcast([ws], f"c {message}")

    async with serving(Handler(), slow_consumer=CONFLATE) as at:
        peer = await at.join()
        await peer.send(b"".join(text(str(n)) for n in range(20)))
        got = [await peer.hear() for _ in range(60)]
        assert got == [f"{tag} {n}" for n in range(20) for tag in "abc"]


async def test_pongs_and_streams_are_left_alone():
    """Answers to Pings, and messages sent in pieces, arrive among what is conflated."""
    handler = Opened()
    async with serving(handler, slow_consumer=CONFLATE, high_water=100_000) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        await behind(ws)
        ws.send_nowait(tagged(1, "a"))
        async with trio.open_nursery() as nursery:

            async def pieces():
                async with ws.send_stream(text=True) as stream:
                    for _ in range(3):
                        await stream.send("piece ")

            nursery.start_soon(pieces)
            await trio.testing.wait_all_tasks_blocked()
            ws._pong(b"\x8a\x01x")
            ws._pong(b"\x8a\x01y")
            ws.send_nowait(tagged(2, "a"))
            ws.send_nowait(tagged(3, "b"))
            seen, whole = [], b""
            while not seen or seen[-1][:3] != b"3 b":
                frame = await peer.frame()
                if frame.opcode in (0, 1) and (not frame.fin or frame.opcode == 0):
                    whole += frame.payload
                else:
                    seen.append(frame.payload)
        assert whole == b"piece " * 3
        assert [payload[:3] for payload in seen][-3:] == [b"y", b"2 a", b"3 b"]


async def test_a_client_conflates_too():
    """Its frames are masked, and the tag outlives that."""
    received = []

    class Slow(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            received.append(message.split(" ")[0])
            await go.wait()

    go = trio.Event()
    async with (
        serving(Slow(), read_ahead=2048) as at,
        trionet.connect_websocket(at.url, slow_consumer=CONFLATE, high_water=100_000) as ws,
    ):
        assert isinstance(ws, Conflating)
        await behind(ws)
        for n in range(500):
            ws.send_nowait(tagged(n, "ab"[n % 2]))
        assert ws.queued < 100_000
        ws.send_nowait("last")
        go.set()
        await until(lambda: received[-1:] == ["last"])
        assert received[-3:] == ["498", "499", "last"]


async def test_it_costs_nothing_elsewhere():
    """Connections of other policies are what they were, with an outbox as it was; those with it are no larger."""
    handler, other = Opened(), Opened()
    async with (
        serving(handler, slow_consumer=CONFLATE) as conflating,
        serving(other, slow_consumer=SlowConsumer.DROP_OLDEST) as plain,
    ):
        await conflating.join()
        await plain.join(small=True)
        ours, theirs = await handler.first(), await other.first()
        assert type(theirs) is WebSocket
        assert isinstance(ours, Conflating)
        assert ours.__sizeof__() == theirs.__sizeof__()
        while theirs._out is None:
            trionet.broadcast([theirs], PreparedMessage(bytes(5000), tag="x"))
        assert type(theirs._out) is Outbox


def test_tags():
    """A prepared message of another keeps its tag, unless it gets one of its own; without there is none."""
    first = PreparedMessage("x", tag="t")
    assert (first.tag, PreparedMessage(first).tag, PreparedMessage(first, tag="u").tag) == ("t", "t", "u")
    assert PreparedMessage("x").tag == ""
    assert type(PreparedMessage(b"x").frame) is bytes
