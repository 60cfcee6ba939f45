"""Our client against servers nobody here wrote: websockets, aiohttp, trio-websocket, picows and ws."""

from __future__ import annotations

import pytest
import trio
from interop_servers import SERVERS
from interop_tap import tapped
from tls_peer import client_context

import trionet
from trionet import Deflate, connect_websocket, open_client

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 2**20)
TEXT = "a line like many others, and many others like it; " * 1300
TAKEOVER = Deflate(server_no_context_takeover=False, client_no_context_takeover=False, threshold=0)


def servers(*abilities: str):
    """Mark a test that is run with each server that has these abilities."""
    names = [name for name, server in SERVERS.items() if not server.cannot & set(abilities)]
    return pytest.mark.parametrize("foreign", names, indirect=True)


@servers()
async def test_the_handshake(foreign):
    """Subprotocol, a header of ours, and one of the response."""
    async with (
        foreign() as port,
        connect_websocket(
            f"ws://127.0.0.1:{port}/", subprotocols=["none", "chat"], headers={"X-Token": "t0"}
        ) as ws,
    ):
        assert ws.subprotocol == "chat"
        assert ws.response.header("x-seen") == "t0"


@servers()
async def test_messages_of_every_length_come_back_as_they_were(foreign):
    """Text and binary, at both ends of each form of the length (5.2), and many in a row in their order."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
        for size in SIZES:
            for message in (
                "é" * (size // 2) + "x" * (size % 2),
                b"\xff\x00" * (size // 2) + b"\x80" * (size % 2),
            ):
                await ws.send(message)
                assert await ws.receive() == message
        messages = [f"message {n}" if n % 3 else b"message %d" % n for n in range(400)]
        for message in messages:
            await ws.send(message)
        assert [await ws.receive() for _ in messages] == messages


@servers()
async def test_pings_both_ways(foreign):
    """Ours is answered; the server's is answered by us, whether we receive or not."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
        await ws.ping()
        await ws.send("/ping hello")
        assert await ws.receive() == "pong hello"


@servers()
async def test_a_message_in_pieces_reaches_the_server(foreign):
    """As one message, text and binary."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
        async with ws.send_stream(text=True) as stream:
            await stream.send("one ")
            await stream.send("größer")
        assert await ws.receive() == "one größer"
        async with ws.send_stream() as binary:
            await binary.send(b"a" * 70_000)
            await binary.send(b"b")
        assert await ws.receive() == b"a" * 70_000 + b"b"


@servers("pieces")
async def test_a_message_in_pieces_reaches_us(foreign):
    """As one message, or as its pieces."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/", max_stream=2**21) as ws:
        await ws.send("/pieces")
        assert await ws.receive() == "one two three"
        await ws.send("/pieces")
        async with ws.receive_stream() as pieces:
            assert "".join([piece async for piece in pieces]) == "one two three"


@servers()
async def test_we_close_with_a_code_and_a_reason(foreign):
    """The closing handshake is over soon, not by its deadline."""
    async with foreign() as port:
        with trio.fail_after(8):
            async with connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
                await ws.close(3001, "bye, größer")
        assert (ws.closed.code, ws.closed.reason, ws.closed.by) == (3001, "bye, größer", "us")


@servers()
async def test_the_server_closes_with_a_code_and_a_reason(foreign):
    """`receive` raises what it said."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
        await ws.send("/close 4001 größer")
        with pytest.raises(trionet.ConnectionClosed) as closed:
            await ws.receive()
        assert (closed.value.code, closed.value.reason, closed.value.by) == (4001, "größer", "peer")


@servers()
async def test_a_server_that_vanishes_is_noticed(foreign):
    """1006, by the network."""
    async with foreign() as port, connect_websocket(f"ws://127.0.0.1:{port}/") as ws:
        await ws.send("/vanish")
        with pytest.raises(trionet.ConnectionClosed) as closed:
            await ws.receive()
        assert (closed.value.code, closed.value.by) == (1006, "network")


@servers()
async def test_a_refusal_has_status_and_body(foreign):
    """`UpgradeRefused` says what the server said."""
    async with foreign() as port:
        with pytest.raises(trionet.UpgradeRefused) as refused:
            async with connect_websocket(f"ws://127.0.0.1:{port}/forbidden"):
                pass
        assert refused.value.status == 403
        assert refused.value.body in {b"not here\n", b"not here"}


@servers()
async def test_too_big_a_message_ends_with_1009(foreign):
    """By whichever side has the limit."""
    async with foreign(limit=50_000) as port:
        url = f"ws://127.0.0.1:{port}/"
        async with connect_websocket(url) as ws:
            await ws.send("x" * 60_000)
            with pytest.raises(trionet.ConnectionClosed) as closed:
                await ws.receive()
            assert (closed.value.code, closed.value.by) == (1009, "peer")
        async with connect_websocket(url, max_message=1000) as ws:
            await ws.send("x" * 2000)
            with pytest.raises(trionet.ConnectionClosed) as closed:
                await ws.receive()
            assert (closed.value.code, closed.value.by) == (1009, "us")


@servers()
async def test_a_conversation_over_tls(foreign):
    """Long and short messages, compressed if the server can, a Ping each way, and the Close."""
    deflate = "deflate" not in SERVERS[foreign.name].cannot
    async with foreign(tls=True, deflate=deflate) as port:
        url = f"wss://127.0.0.1:{port}/"
        options = {"subprotocols": ["chat"], "compression": True}
        async with connect_websocket(url, ssl_context=client_context(), **options) as ws:
            assert ws.subprotocol == "chat"
            assert (ws.response.header("sec-websocket-extensions") is not None) is deflate
            for size in (0, 1, 16384, 2**20):
                for message in ("x" * size, b"\xff" * size):
                    await ws.send(message)
                    assert await ws.receive() == message
            await ws.ping()
            await ws.send("/ping hello")
            assert await ws.receive() == "pong hello"
            await ws.send("/close 4001 enough")
            with pytest.raises(trionet.ConnectionClosed) as closed:
                await ws.receive()
            assert (closed.value.code, closed.value.reason) == (4001, "enough")


@pytest.mark.parametrize("wish", [Deflate(), TAKEOVER], ids=["alone", "takeover"])
@servers("deflate")
async def test_messages_go_compressed_both_ways(foreign, wish):
    """Negotiated with what the server does by default; counted on the wire."""
    async with (
        foreign(deflate=True) as port,
        tapped(port) as tap,
        connect_websocket(f"ws://127.0.0.1:{tap.port}/", compression=wish) as ws,
    ):
        extensions = ws.response.header("sec-websocket-extensions")
        assert extensions.startswith("permessage-deflate")
        assert ("server_no_context_takeover" in extensions) is (wish is not TAKEOVER)
        for message in ("", b"", "short", TEXT, TEXT.encode(), "é" * 2**18, TEXT):
            tap.reset()
            await ws.send(message)
            assert await ws.receive() == message
            if message == TEXT:
                assert tap.there < 2000
                assert tap.back < 2000
        async with ws.send_stream(text=True) as stream:
            await stream.send(TEXT)
            await stream.send("größer")
        assert await ws.receive() == TEXT + "größer"
        for n in range(50):
            await ws.send(f"the price of article {n % 7} has changed to {n} just now")
        for n in range(50):
            assert await ws.receive() == f"the price of article {n % 7} has changed to {n} just now"


@servers("deflate")
async def test_a_server_that_does_not_compress_is_not_given_any(foreign):
    """We offer, it declines, and messages go as they are."""
    async with (
        foreign(deflate=False) as port,
        connect_websocket(f"ws://127.0.0.1:{port}/", compression=True) as ws,
    ):
        assert ws.response.header("sec-websocket-extensions") is None
        await ws.send(TEXT)
        assert await ws.receive() == TEXT


@servers()
async def test_thirty_connections_of_one_client(foreign):
    """With a handler that gets the messages, and by tasks, on one engine."""
    heard = []

    class Heard(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            heard.append(message)
            await ws.close()

    async with foreign() as port, open_client() as client:
        url = f"ws://127.0.0.1:{port}/"
        handler = Heard()

        async def one(number):
            if number % 2:
                async with client.connect(url) as ws:
                    await ws.send(f"I am {number}")
                    assert await ws.receive() == f"I am {number}"
            else:
                async with client.connect(url, handler=handler) as ws:
                    await ws.send(f"I am {number}")
                    await ws.wait_closed()

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)
        assert sorted(heard) == sorted(f"I am {number}" for number in range(0, 30, 2))
