"""Peers that leave, stall, dribble or flood: TCP in its less usual moods, and deadlines."""

from __future__ import annotations

import functools
import logging
import struct

import pytest
import trio
from hostile_peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    OPEN,
    PING,
    PONG,
    TEXT,
    check_error_response,
    check_serves,
    check_switch,
    close,
    connect,
    frame,
    head,
    parse_response,
)

import trionet


async def all_gone(server):
    """Wait until the server has no connection left."""
    with trio.fail_after(10):
        while server.statistics().connections:  # noqa: ASYNC110
            await trio.sleep(0.01)


# ----------------------------------------------------------------------------------------- leaving


async def test_a_half_close_behind_a_handshake_and_a_message_loses_nothing(echo_program):
    """RFC 9112, 9.6: a client may shut its side early; what it asked for before is still answered."""
    async with connect(echo_program.address) as peer:
        await peer.send(head() + frame(TEXT, b"one") + frame(TEXT, b"two"))
        peer.shut()
        check_switch(await peer.read_response())
        assert (await peer.read_to_close())[:2] == [(TEXT, b"one", True), (TEXT, b"two", True)]
        assert peer.ended == FIN


async def test_a_half_close_behind_a_bad_request_is_answered(echo_program):
    """RFC 9112, 9.6: the error is sent although the client has shut its side."""
    async with connect(echo_program.address) as peer:
        await peer.send(b"GET / HTTP/1.1\r\n\r\n")
        peer.shut()
        response = parse_response(await peer.read_rest())
        assert response.status == 400
        check_error_response(response)
        assert peer.ended == FIN


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"G", head()[:-1]], ids=["nothing", "crlf", "letter", "all-but-one"]
)
async def test_a_half_close_in_mid_head_ends_the_connection(echo_program, sent):
    """RFC 9112, 8: an incomplete request MAY be answered with an error; the connection ends."""
    async with connect(echo_program.address) as peer:
        await peer.send(sent)
        peer.shut()
        data = await peer.read_rest()
        assert peer.ended == FIN
        assert not data or parse_response(data).status == 400
    await check_serves(echo_program.address)


CUTS = {
    "before-anything": b"",
    "in-mid-head": head()[:50],
    "behind-the-head": head(),
    "in-mid-header": head() + b"\x81",
    "in-mid-mask": head() + b"\x81\x85\x01\x02",
    "in-mid-payload": head() + frame(TEXT, b"hello")[:-2],
    "between-fragments": head() + frame(TEXT, b"hello", fin=False),
    "behind-a-message": head() + frame(TEXT, b"hello"),
    "behind-a-close": head() + close(1000),
    "behind-a-bad-frame": head() + b"\xff\xff\xff",
    "behind-an-error": b"NONSENSE\r\n\r\n",
    "behind-a-flood": head() + frame(BINARY, bytes(1000)) * 300,
}


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("sent", CUTS.values(), ids=CUTS)
async def test_peers_that_vanish(serving, echo_handler, sent, how, caplog):
    """RFC 6455, 7.1.5: a peer that leaves at any point is let go: 1006, once, no noise, nothing left behind."""
    caplog.set_level(logging.INFO)
    async with serving(echo_handler) as server:
        for wait in (True, False):
            async with connect(server.addresses[0]) as peer:
                await peer.send(sent)
                if wait:
                    await trio.sleep(0.02)
                if how == "RST":
                    peer.reset()
                else:
                    peer.shut()
                    await peer.read_rest()
        await all_gone(server)
        await check_serves(server.addresses[0])
        await all_gone(server)
    assert echo_handler.opened == len(echo_handler.closed)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_data_behind_the_closing_handshake_does_not_cost_the_close_frame(echo_program):
    """RFC 6455, 7.1.1: close cleanly, discarding what may still come; an RST could destroy the answer."""
    async with connect(echo_program.address) as peer:
        await peer.open()
        await peer.send(close(1000) + bytes(2**19))
        assert await peer.read_to_close() == [(CLOSE, struct.pack("!H", 1000), True)]
        assert peer.ended == FIN


async def test_echoes_in_flight_survive_the_close_behind_them(echo_program):
    """RFC 6455, 5.5.1 and 7.1.1: what was sent before the server's Close arrives, also when the peer reads late."""
    async with connect(echo_program.address, receive_buffer=4096) as peer:
        await peer.open()
        await peer.send(frame(BINARY, bytes(50_000)) * 3 + close(1000) + bytes(2**18))
        await trio.sleep(0.1)
        got = await peer.read_to_close()
        assert [len(one.payload) for one in got] == [50_000] * 3 + [2]
        assert peer.ended == FIN


async def test_the_server_closes_first(echo_program):
    """RFC 6455, 7.1.1: after the closing handshake the server closes first; the client holds its side open."""
    async with connect(echo_program.address) as peer:
        await peer.open()
        await peer.leave()


async def test_a_close_split_by_a_pause_is_answered_once(echo_program):
    """RFC 6455, 5.5.1: one Close, one answer, however it comes."""
    async with connect(echo_program.address) as peer:
        await peer.open()
        await peer.send(close(4000, b"gone fishing"), chunk=1, pause=0.002)
        assert await peer.read_to_close() == [(CLOSE, struct.pack("!H", 4000), True)]


class Recorder(trionet.WebSocketHandler):
    """Keeps what it got; takes its time for "slow"."""

    def __init__(self):
        self.got = []
        self.closed = []
        self.go_on = trio.Event()

    async def on_message(self, ws, message):
        self.got.append(message)
        if message == "slow":
            await self.go_on.wait()

    async def on_close(self, ws, closed):
        self.closed.append((closed.code, closed.by))


@pytest.mark.parametrize("behind_handshake", [False, True])
async def test_the_application_gets_what_came_before_a_close_and_nothing_behind_it(serving, behind_handshake):
    """RFC 6455, 1.4 and 5.5.1: what follows a Close is discarded."""
    handler = Recorder()
    async with serving(handler) as server, connect(server.addresses[0]) as peer:
        sent = frame(TEXT, b"a") + frame(TEXT, b"b") + close(4000) + frame(TEXT, b"c")
        if behind_handshake:
            await peer.send(head() + sent)
            check_switch(await peer.read_response())
        else:
            await peer.open()
            await peer.send(sent)
        assert await peer.read_to_close() == [(CLOSE, struct.pack("!H", 4000), True)]
        peer.shut()
        await all_gone(server)
    assert handler.got == ["a", "b"]
    assert handler.closed == [(4000, "peer")]


async def test_a_close_is_answered_while_a_handler_works_and_what_follows_it_is_discarded(serving):
    """RFC 6455, 5.5.1: as soon as practical, that is at once; messages held before it are handled."""
    handler = Recorder()
    async with serving(handler) as server, connect(server.addresses[0]) as peer:
        await peer.open()
        await peer.send(frame(TEXT, b"slow"))
        with trio.fail_after(5):
            while not handler.got:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await peer.send(frame(TEXT, b"held") + close(4000) + frame(TEXT, b"late"))
        assert await peer.read_frame() == (CLOSE, struct.pack("!H", 4000), True)
        await peer.send(frame(TEXT, b"later"))
        await trio.sleep(0.02)
        handler.go_on.set()
        assert await peer.read_to_close() == []
        peer.shut()
        await all_gone(server)
    assert handler.got == ["slow", "held"]
    assert handler.closed == [(4000, "peer")]


async def test_a_failure_behind_much_that_is_queued_still_arrives(serving, echo_handler):
    """RFC 6455, 7.1.7: a peer that reads late, but reads, gets all that was sent before the Close, and the Close."""
    async with (
        serving(echo_handler, high_water=2**20) as server,
        connect(server.addresses[0], receive_buffer=4096) as peer,
    ):
        await peer.open()
        await peer.send(frame(BINARY, bytes(100_000)) * 9 + frame(TEXT, b"\xff"))
        with trio.fail_after(10):
            got = [await peer.read_frame() for _ in range(9)]
            assert [len(one.payload) for one in got] == [100_000] * 9
            assert (await peer.read_frame()).code == 1007
            assert await peer.read_frame() is None


# ----------------------------------------------------------------------------------- requests that are special


async def test_expect_continue(echo_program):
    """RFC 9110, 7.8: with Upgrade and `Expect: 100-continue` the server MUST send 100 before 101 (or refuse)."""
    async with connect(echo_program.address) as peer:
        await peer.send(head(b"Expect: 100-continue"))
        first = await peer.read_response()
        assert first.status in (100, 417)
        if first.status == 100:
            assert first.headers == []
            check_switch(await peer.read_response())
            await peer.echo()


async def test_nothing_comes_before_the_head_is_whole(echo_program):
    """RFC 6455, 4.2.1: no byte is answered before the empty line, and then all at once."""
    async with connect(echo_program.address) as peer:
        await peer.send(head()[:-1])
        with trio.move_on_after(0.05):
            await peer.read_rest()
        assert (peer.data, peer.ended) == (b"", OPEN)
        await peer.send(b"\n")
        check_switch(await peer.read_response())
        await peer.echo()


class Chooser(trionet.WebSocketHandler):
    """Refuses some, and adds headers for others."""

    async def on_upgrade(self, ws, request):
        await trio.sleep(0.01)
        if request.path == "/secret":
            raise trionet.Rejection(401, headers=[("WWW-Authenticate", "Bearer")], body="who?\n")
        if request.path == "/elsewhere":
            raise trionet.Rejection(302, headers=[("Location", "/")])
        if request.path == "/broken":
            raise ValueError("a mistake")
        if request.path == "/inject":
            return trionet.Accept(headers=[("X", "a\r\nSet-Cookie: b")])
        return trionet.Accept(headers=[("Set-Cookie", "a=b")])

    async def on_message(self, ws, message):
        await ws.send(message)


async def test_what_the_application_refuses(serving, caplog):
    """A rejection is a complete response (9110); a hook that fails, or would inject a header, is 500 and logged."""
    caplog.set_level(logging.CRITICAL, "trionet")
    async with serving(Chooser()) as server:
        for path, status in ((b"/secret", 401), (b"/elsewhere", 302), (b"/broken", 500), (b"/inject", 500)):
            async with connect(server.addresses[0]) as peer:
                await peer.send(head(line=b"GET " + path + b" HTTP/1.1") + bytes(100_000))
                response = parse_response(await peer.read_rest())
                assert response.status == status
                check_error_response(response)
                assert peer.ended == FIN
                if status == 401:  # 9110, 15.5.2: MUST
                    assert response.get("www-authenticate") == "Bearer"
                if status == 302:
                    assert response.get("location") == "/"
        async with connect(server.addresses[0]) as peer:
            await peer.send(head() + frame(PING, b"early") + frame(TEXT, b"early"))
            response = await peer.read_response()
            check_switch(response)
            assert response.get("set-cookie") == "a=b"
            assert await peer.read_frame() == (PONG, b"early", True)
            assert await peer.read_frame() == (TEXT, b"early", True)
            await peer.leave()


OFFERS = {
    # what the client offers, and what is chosen by a server that speaks "chat" and "superchat", in this order
    "none": ([], None),
    "unknown": ([b"x, y"], None),
    "one": ([b"chat"], "chat"),
    "case-matters": ([b"CHAT"], None),
    "second-line": ([b"x", b"superchat"], "superchat"),
    "no-space": ([b"x,superchat,y"], "superchat"),
}


@pytest.mark.parametrize("offered, chosen", OFFERS.values(), ids=OFFERS)
async def test_subprotocols(serving, echo_handler, offered, chosen):
    """RFC 6455, 4.2.2: one of the client's offers, or no header at all."""
    async with (
        serving(echo_handler, subprotocols=["chat", "superchat"]) as server,
        connect(server.addresses[0]) as peer,
    ):
        await peer.send(head(*(b"Sec-WebSocket-Protocol: " + line for line in offered)))
        response = await peer.read_response()
        check_switch(response)
        assert response.get("sec-websocket-protocol") == chosen


# ------------------------------------------------------------------------------------------ being slow


async def test_slow_heads_get_408(serving, echo_handler):
    """RFC 9110, 15.5.9: no whole head within the deadline, however busily it dribbles: 408, and the end."""
    async with serving(echo_handler, handshake_timeout=0.4) as server:

        async def dribble():
            async with connect(server.addresses[0]) as peer, trio.open_nursery() as nursery:
                nursery.start_soon(functools.partial(peer.send, head() * 5, chunk=1, pause=0.02))
                response = parse_response(await peer.read_rest())
                nursery.cancel_scope.cancel()
                assert response.status == 408
                check_error_response(response)
                assert peer.ended == FIN

        async def silent(sent):
            async with connect(server.addresses[0]) as peer:
                await peer.send(sent)
                data = await peer.read_rest()
                assert peer.ended == FIN
                if data:
                    assert parse_response(data).status == 408

        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(dribble)
                    nursery.start_soon(silent, b"")
                    nursery.start_soon(silent, b"\r\n")
                    nursery.start_soon(silent, head()[:-2])
        await all_gone(server)
        await check_serves(server.addresses[0])


async def test_peers_that_ignore_pings_are_closed(serving, echo_handler):
    """RFC 6455, 5.5.2: a Ping MAY serve as a keepalive; who answers stays, who does not is closed."""
    async with serving(echo_handler, handshake_timeout=1.0, ping_interval=0.2, ping_timeout=0.3) as server:

        async def deaf(sent):
            async with connect(server.addresses[0]) as peer:
                await peer.open()
                await peer.send(sent)
                frames = await peer.read_to_close()
                assert frames[0] == (PING, frames[0].payload, True)
                assert frames[-1].opcode == CLOSE

        async def alive():
            async with connect(server.addresses[0]) as peer:
                await peer.open()
                for _ in range(5):
                    one = await peer.read_frame()
                    assert one.opcode == PING
                    await peer.send(frame(PONG, one.payload))
                await peer.echo()

        with trio.fail_after(12):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alive)
                for _ in range(5):
                    nursery.start_soon(deaf, b"")
                    nursery.start_soon(deaf, b"\x81")
                    nursery.start_soon(deaf, frame(TEXT, b"hello")[:-1])
                    nursery.start_soon(deaf, frame(TEXT, b"hello", fin=False))
        await all_gone(server)


async def test_peers_that_do_not_answer_a_close(serving):
    """RFC 6455, 7.1.1: the closing handshake is bounded; a peer that goes on sending is not heard any more."""

    class Closer(trionet.WebSocketHandler):
        messages = 0

        async def on_message(self, ws, message):
            self.messages += 1
            ws.close_nowait(4001, "enough")

    closer = Closer()
    async with serving(closer, close_timeout=0.3) as server:

        async def stubborn(more):
            async with connect(server.addresses[0]) as peer:
                await peer.open()
                await peer.send(frame(TEXT, b"hello") + more)
                frames = await peer.read_to_close()
                assert frames == [(CLOSE, struct.pack("!H", 4001) + b"enough", True)]

        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                for more in (
                    b"",
                    frame(TEXT, b"more"),
                    frame(PING, b"x"),
                    b"\x81",
                    frame(TEXT, b"a", fin=False),
                ):
                    nursery.start_soon(stubborn, more)
        assert closer.messages == 5
        await all_gone(server)


async def test_peers_that_never_read_are_closed(serving, echo_handler):
    """A peer that takes nothing for `write_timeout` is dropped, whatever it still sends, and its queue with it."""
    async with serving(echo_handler, write_timeout=0.4, ping_interval=None) as server:
        async with connect(server.addresses[0], receive_buffer=4096) as peer:
            await peer.open()
            sent = 0
            with trio.move_on_after(8):
                data = frame(BINARY, bytes(100_000))
                while server.statistics().connections:
                    sent += peer.send_nowait(data[sent % len(data) :])
                    for connection in server.connections:
                        assert connection.queued <= 65536 + 100_100
                    await trio.sleep(0.01)
            assert server.statistics().connections == 0
        await check_serves(server.addresses[0])


# --------------------------------------------------------------------------------------------- floods


async def test_many_handshakes_at_once(echo_program):
    """500 clients at the same time, half of them pipelining: each is served."""
    limit = trio.CapacityLimiter(250)

    async def client(number):
        async with limit, connect(echo_program.address) as peer:
            payload = b"%d" % number
            if number % 2:
                await peer.send(head() + frame(TEXT, payload))
                check_switch(await peer.read_response())
                assert await peer.read_frame() == (TEXT, payload, True)
            else:
                await peer.open()
                await peer.echo(payload)
            await peer.leave()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(client, number)


async def flood(peer, data, replies):
    """Send `data` while reading that many frames; return them."""
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, data)
            return [await peer.read_frame() for _ in range(replies)]


async def test_pipelined_messages(echo_program):
    """20,000 messages in one go come back, in order."""
    async with connect(echo_program.address) as peer:
        await peer.open()
        data = b"".join(frame(TEXT, b"%d" % i) for i in range(5000))
        got = await flood(peer, data, 5000)
        assert [int(one.payload) for one in got] == list(range(5000))
        await peer.leave()


async def test_ping_flood_from_a_peer_that_does_not_read(echo_program):
    """RFC 6455, 5.5.3: Pongs may be skipped but the last one comes; 20,000 pings cost no memory to speak of."""
    before = echo_program.memory()
    async with connect(echo_program.address, receive_buffer=4096) as peer:
        await peer.open()
        with trio.fail_after(30):
            await peer.send(b"".join(frame(PING, b"%0125d" % i) for i in range(20_000)))
            assert echo_program.memory() - before < 2**24
            seen = -1
            while seen < 19_999:
                one = await peer.read_frame()
                assert one.opcode == PONG
                assert int(one.payload) > seen
                seen = int(one.payload)
        await peer.echo()


async def test_a_message_in_fragments_of_one_byte(echo_program):
    """RFC 6455, 5.4: 200,000 fragments are one message, and cost about as much as the message."""
    before = echo_program.memory()
    async with connect(echo_program.address) as peer:
        await peer.open()
        data = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"a", fin=False) * 200_000
        await peer.send(data)
        await peer.send(frame(PING, b"there?"))
        assert await peer.read_frame() == (PONG, b"there?", True)
        assert echo_program.memory() - before < 2**24
        await peer.send(frame(CONTINUATION, b"a"))
        assert (await peer.read_frame()).payload == b"a" * 200_002
        await peer.leave()


async def test_empty_fragments_without_end(echo_program):
    """RFC 6455, 10.4: fragments without content may come for ever; they cost nothing."""
    before = echo_program.memory()
    async with connect(echo_program.address) as peer:
        await peer.open()
        await peer.send(frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * 200_000 + frame(PING))
        assert await peer.read_frame() == (PONG, b"", True)
        assert echo_program.memory() - before < 2**23
        await peer.send(frame(CONTINUATION, b"end"))
        assert await peer.read_frame() == (BINARY, b"end", True)


async def test_declared_lengths_are_not_allocated(echo_program):
    """RFC 6455, 10.4: 100 peers that each announce 1 MiB and send little cost what they sent."""
    before = echo_program.memory()
    async with trio.open_nursery() as nursery:
        ready = []

        async def announce():
            async with connect(echo_program.address) as peer:
                await peer.open()
                await peer.send(frame(PING) + frame(BINARY, b"x" * 10, declared=2**20))
                await peer.read_frame()
                ready.append(peer)
                await trio.sleep_forever()

        for _ in range(100):
            nursery.start_soon(announce)
        with trio.fail_after(10):
            while len(ready) < 100:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert echo_program.memory() - before < 2**23
        nursery.cancel_scope.cancel()


async def test_heads_without_end(echo_program):
    """50 peers that send a head of endless lines are all refused, and cost no memory."""
    before = echo_program.memory()

    async def endless():
        async with connect(echo_program.address) as peer:
            await peer.send(b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"y" * 1000 + b"\r\n")
            for _ in range(200):
                await peer.send(b"X-Long: " + b"y" * 1000 + b"\r\n")
                if peer.cut:
                    break
            assert parse_response(await peer.read_rest()).status == 431

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(endless)
    assert echo_program.memory() - before < 2**23


@pytest.mark.parametrize("chunks", [False, True], ids=["messages", "chunks"])
async def test_input_for_a_handler_that_sleeps_is_bounded(serving, chunks):
    """A peer that floods while its handler waits is stopped by TCP; pings are answered."""

    async def asleep(handler, ws, *_):
        await trio.sleep_forever()

    name = "on_chunk" if chunks else "on_message"
    handler = type("Sleeper", (trionet.WebSocketHandler,), {name: asleep})()
    async with serving(handler, ping_interval=None) as server, connect(server.addresses[0]) as peer:
        await peer.open()
        await peer.send(frame(BINARY, b"x") + frame(PING, b"now"))
        assert await peer.read_frame() == (PONG, b"now", True)
        data = frame(BINARY, bytes(60_000)) * 20
        sent = 0
        quiet = 0
        while quiet < 20 and sent < 2**27:
            took = peer.send_nowait(data[sent % len(data) :])
            sent += took
            quiet = 0 if took else quiet + 1
            await trio.sleep(0.005)
        # The kernel's buffers take their part (up to 6 MiB of receive buffer here); the server must not grow.
        assert sent < 2**24, f"{sent} bytes were taken for a handler that sleeps"


async def test_last_of_all_no_descriptor_is_left(echo_program):
    """When all peers have gone, so have their descriptors."""
    with trio.fail_after(15):
        async with connect(echo_program.address) as peer:
            await peer.open()
            while echo_program.descriptors() > 24:  # noqa: ASYNC110
                await trio.sleep(0.1)
    await check_serves(echo_program.address)
