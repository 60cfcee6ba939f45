"""Clients nobody here wrote, against our server: websockets, aiohttp, trio-websocket, wsproto, ws and undici."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from interop_hosts import Events, Straight, both_kinds, peers, serving
from interop_peers import Refused

from trionet import broadcast

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 2**20)
TEXTS = ("", "é", "Grüße, 世界 🌍 \u200d\x00\x7f", "\U0010ffff" * 50)


@peers()
async def test_the_subprotocol_is_agreed_on_and_headers_and_cookies_arrive(connect):
    """The first of ours that the peer offers; its headers reach `on_upgrade`."""
    host = Events()
    async with serving(host, subprotocols=["chat", "other"], headers=["cookie", "x-token"]) as at:
        wish = {"subprotocols": ["none", "other"], "headers": {"X-Token": "t0", "Cookie": "sid=1; b=2"}}
        async with connect(at.url, **wish) as peer:
            assert peer.subprotocol == "other"
            await peer.send("in")
            assert await peer.receive() == "in"
        [request] = host.requests
        assert request.headers == {"x-token": ["t0"], "cookie": ["sid=1; b=2"]}
        assert request.subprotocols == ("none", "other")


@peers("response")
async def test_the_headers_of_our_response_reach_the_peer(connect):
    """Those that `on_upgrade` adds, a cookie among them."""
    async with serving(Straight()) as at, connect(at.url) as peer:
        headers = {name.lower(): value for name, value in peer.headers.items()}
        assert headers["x-seen"] == "yes"
        assert headers["set-cookie"] in {"a=b; Path=/", ("a=b; Path=/",)}


@both_kinds
@peers()
async def test_messages_of_every_length_come_back_as_they_were(connect, kind):
    """Text and binary, at both ends of each form of the length (5.2), and UTF-8 of one to four bytes."""
    async with serving(kind()) as at, connect(at.url) as peer:
        for size in SIZES:
            for message in ("x" * size, b"\xff\x00" * (size // 2) + b"\x80" * (size % 2)):
                await peer.send(message)
                assert await peer.receive() == message
        for message in TEXTS:
            await peer.send(message)
            assert await peer.receive() == message


@both_kinds
@peers()
async def test_many_messages_in_a_row_keep_their_order(connect, kind):
    """Hundreds are sent before the first answer is looked at."""
    messages = [f"message {n}" if n % 3 else b"message %d" % n for n in range(400)]
    async with serving(kind()) as at, connect(at.url) as peer:
        assert await peer.exchange(messages) == messages


@peers("pieces")
async def test_a_message_that_the_peer_sends_in_pieces_is_one_message(connect):
    """Text whose characters are whole in each frame, and binary with an empty piece."""
    async with serving(Events()) as at, connect(at.url) as peer:
        await peer.send_pieces(["one ", "two ", "größer"])
        assert await peer.receive() == "one two größer"
        await peer.send_pieces([b"a" * 70_000, b"", b"b"])
        assert await peer.receive() == b"a" * 70_000 + b"b"


@peers()
async def test_a_message_that_we_send_in_pieces_is_one_message(connect):
    """With a Ping in between, and pieces of more than 64 KiB."""
    host = Straight()
    async with serving(host) as at, connect(at.url) as peer:
        ws = await host.first()
        async with trio.open_nursery() as nursery:
            async with ws.send_stream(text=True) as stream:
                await stream.send("one ")
                nursery.start_soon(ws.ping)
                await trio.testing.wait_all_tasks_blocked()
                await stream.send("größer")
            assert await peer.receive() == "one größer"
            async with ws.send_stream() as binary:
                await binary.send(b"a" * 70_000)
                await binary.send(b"b")
            # Some peers answer the Ping only while they receive.
            assert await peer.receive() == b"a" * 70_000 + b"b"
            await ws.send("last")
            assert await peer.receive() == "last"


@peers()
async def test_the_peer_answers_our_ping(connect):
    """`ws.ping` returns; some peers answer only while they receive."""
    host = Straight()
    async with serving(host) as at, connect(at.url) as peer:
        ws = await host.first()
        async with trio.open_nursery() as nursery:

            async def ping():
                await ws.ping()
                await ws.send("answered")

            nursery.start_soon(ping)
            assert await peer.receive() == "answered"


@peers("ping")
async def test_we_answer_the_ping_of_the_peer(connect):
    """With the payload that it sent."""
    async with serving(Events()) as at, connect(at.url, sees_pongs=True) as peer:
        await peer.ping("are you there?")


@both_kinds
@peers()
async def test_the_peer_closes_with_a_code_and_a_reason(connect, kind):
    """We learn both, and the peer gets its code back."""
    host = kind()
    async with serving(host) as at, connect(at.url) as peer:
        code, _ = await peer.close(3001, "bye, größer")
        assert code == 3001
        closed = await host.end()
        assert (closed.code, closed.reason, closed.by) == (3001, "bye, größer", "peer")


@both_kinds
@peers()
async def test_we_close_with_a_code_and_a_reason(connect, kind):
    """The peer learns both, and answers."""
    host = kind()
    async with serving(host) as at, connect(at.url) as peer:
        ws = await host.first()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.close, 4001, "genug, größer")
            assert await peer.ended() == (4001, "genug, größer")
        closed = await host.end()
        assert (closed.code, closed.by) == (4001, "us")


@peers("vanish")
async def test_a_peer_that_vanishes_is_noticed(connect):
    """1006, by the network."""
    host = Events()
    async with serving(host) as at, connect(at.url) as peer:
        await peer.vanish()
        closed = await host.end()
        assert (closed.code, closed.by) == (1006, "network")


@peers()
async def test_the_peer_notices_that_we_vanish(connect):
    """1006 for those that tell; no peer takes the end of TCP for a Close."""
    host = Events()
    async with serving(host) as at, connect(at.url) as peer:
        (await host.first()).abort()
        assert await peer.ended() == (1006, "")


@peers()
async def test_a_refusal_is_seen_as_one(connect):
    """With its status, and its body where the peer keeps it."""
    async with serving(Events()) as at:
        with pytest.raises(Refused) as refused:
            async with connect(f"{at.url.rstrip('/')}/forbidden"):
                pass
        assert refused.value.status == (403 if "status" in connect.kind.can else None)
        assert refused.value.body in {"", "not here\n"}
        assert at.protocol.rejections == {403: 1}


@peers()
async def test_a_message_that_is_too_big_is_answered_with_1009(connect):
    """The peer sees the code, though it was still sending."""
    host = Events()
    async with serving(host, max_message=1000) as at:
        async with connect(at.url) as peer:
            await peer.send("x" * 100_000)
            assert (await peer.ended())[0] == 1009
        assert (await host.end()).code == 1009


@peers()
async def test_fifty_connections_at_once(connect):
    """Each gets its own echo, and all get one broadcast."""
    host = Events()
    async with serving(host) as at, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connect(at.url)) for _ in range(50)]
        async with trio.open_nursery() as nursery:

            async def talk(peer, text):
                await peer.send(text)
                assert await peer.receive() == text

            for number, peer in enumerate(peers):
                nursery.start_soon(talk, peer, f"I am {number}")
        assert broadcast(at.server.websockets, "all") == 50
        assert [await peer.receive() for peer in peers] == ["all"] * 50
