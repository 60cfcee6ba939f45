"""permessage-deflate with clients nobody here wrote, each offering it as it does by default."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
from interop_hosts import Events, Straight, peers, serving
from interop_peers import PEERS, Wish
from interop_tap import tapped

from trionet import Deflate, broadcast

ALONE = Deflate()
TAKEOVER = Deflate(server_no_context_takeover=False, client_no_context_takeover=False, threshold=0)
WISHES = pytest.mark.parametrize("wish", [ALONE, TAKEOVER], ids=["alone", "takeover"])

TEXT = "a line like many others, and many others like it; " * 1300  # 65,000 characters
NOISE = random.Random(1).randbytes(65_000)


def parameters(extensions: str) -> set[str]:
    """Return the names of the parameters that were agreed on."""
    return {word.partition("=")[0].strip() for word in extensions.split(";")[1:]}


@WISHES
@peers("deflate")
async def test_messages_go_compressed_both_ways(connect, wish):
    """What can be made smaller is, on the wire; what cannot, empty messages and long ones arrive as they were."""
    host = Events() if wish is ALONE else Straight()
    async with (
        serving(host, compression=wish) as at,
        tapped(at.port) as tap,
        connect(f"ws://127.0.0.1:{tap.port}/", deflate=True) as peer,
    ):
        assert peer.extensions.startswith("permessage-deflate")
        none = {"server_no_context_takeover", "client_no_context_takeover"}
        if connect.kind.name != "wsproto":  # it says what it would offer, not what was agreed on
            assert parameters(peer.extensions) & none == (none if wish is ALONE else set())
        for message in ("", b"", "short", TEXT, TEXT.encode(), NOISE, "é" * 2**18, TEXT):
            tap.reset()
            await peer.send(message)
            assert await peer.receive() == message
            if message == TEXT:
                assert tap.back < 2000
                assert tap.there < 2000 or "deflates" not in connect.kind.can
        assert (await peer.close(3001, "bye"))[0] == 3001
        assert (await host.end()).code == 3001


@peers("deflate")
async def test_many_short_messages_refer_to_those_before_them(connect):
    """With takeover, hundreds of messages that resemble one another cost a few bytes each, and none is mixed up."""
    messages = [f"the price of article {n % 7} has changed to {n} just now" for n in range(300)]
    async with (
        serving(Straight(), compression=TAKEOVER) as at,
        tapped(at.port) as tap,
        connect(f"ws://127.0.0.1:{tap.port}/", deflate=True) as peer,
    ):
        tap.reset()
        assert await peer.exchange(messages) == messages
        assert tap.back < sum(map(len, messages)) / 2


@peers("deflate")
async def test_a_compressed_message_in_pieces_is_one_message(connect):
    """Ours, sent piece by piece; theirs too, if they can."""
    host = Events()
    async with serving(host, compression=TAKEOVER) as at, connect(at.url, deflate=True) as peer:
        ws = await host.first()
        async with ws.send_stream(text=True) as stream:
            await stream.send(TEXT)
            await stream.send("größer")
        assert await peer.receive() == TEXT + "größer"
        if "pieces" in connect.kind.can:
            await peer.send_pieces([TEXT, "", "größer"])
            assert await peer.receive() == TEXT + "größer"
        await peer.send("after it")
        assert await peer.receive() == "after it"


@peers("narrow")
async def test_a_peer_that_asks_for_small_windows_gets_them(connect):
    """Windows of 512 bytes and no takeover, though the server would do more."""
    async with (
        serving(Straight(), compression=TAKEOVER) as at,
        tapped(at.port) as tap,
        connect(f"ws://127.0.0.1:{tap.port}/", narrow=True) as peer,
    ):
        assert parameters(peer.extensions) >= {"server_no_context_takeover", "server_max_window_bits"}
        for message in (TEXT, NOISE, TEXT.encode()):
            tap.reset()
            await peer.send(message)
            assert await peer.receive() == message
            assert message == NOISE or (tap.there < 10_000 and tap.back < 10_000)


@peers("deflates")
async def test_a_small_message_that_inflates_too_far_is_answered_with_1009(connect):
    """The limit holds for what comes out."""
    async with (
        serving(Events(), compression=True, max_message=10_000) as at,
        connect(at.url, deflate=True) as peer,
    ):
        await peer.send(TEXT)
        assert (await peer.ended())[0] == 1009


@pytest.mark.parametrize("connect", ["websockets", "aiohttp", "wsproto", "ws"], indirect=True)
async def test_a_peer_without_compression_is_not_given_any(connect):
    """It offers none, and is served."""
    async with serving(Events(), compression=True) as at, connect(at.url) as peer:
        assert peer.extensions == ""
        await peer.send(TEXT)
        assert await peer.receive() == TEXT


@WISHES
async def test_one_broadcast_reaches_those_that_compress_and_those_that_do_not(loop, node, wish):
    """Ten rounds, to three kinds of peers with and without compression."""
    async with serving(Events(), compression=wish) as at, AsyncExitStack() as stack:
        peers = []
        kinds = [kind for name in ("websockets", "aiohttp", "ws") if not (kind := PEERS[name]).missing()]
        for kind in kinds:
            for deflate in (True, False):
                connecting = kind.connect(at.url, Wish(deflate=deflate), loop, node)
                peer = await stack.enter_async_context(connecting)
                assert bool(peer.extensions) is deflate
                peers.append(peer)
        for n in range(10):
            message = f"round {n}: {TEXT[: n * 1000]}"
            assert broadcast(at.server.websockets, message) == len(peers)
            for peer in peers:
                assert await peer.receive() == message
            await peers[n % len(peers)].send(f"heard {n}")
            assert await peers[n % len(peers)].receive() == f"heard {n}"
