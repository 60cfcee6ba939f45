"""`TrioWebSocketProtocol`: our handshake, then a task with trio-websocket's connection."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from ws_peer import PING, PONG, TEXT, Frame, close, descriptors, frame, request, serving, tasks, text, until

import trionet

trio_websocket = pytest.importorskip("trio_websocket")

from trionet.adapters.trio_websocket import TrioWebSocketProtocol  # noqa: E402


async def echo(ws):
    """Send back what comes; end with the connection, as handlers of trio-websocket do."""
    while True:
        await ws.send_message(await ws.get_message())


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_head_and_frames_however_they_are_cut(how, backend, caplog):
    """The head is replayed, and frames that came with it are not lost."""
    protocol = TrioWebSocketProtocol(echo)
    async with serving(protocol, backend=backend) as at:
        peer = await at.dial()
        data = request() + text("one") + frame(PING, b"?") + text("two")
        for piece in [data] if how == "whole" else [data[n : n + 1] for n in range(len(data))]:
            await peer.send(piece)
            if how == "bytewise":
                await trio.lowlevel.checkpoint()
        assert await peer.status() == 101
        frames = [await peer.frame() for _ in range(3)]
        assert sorted(frames) == sorted([Frame(TEXT, b"one"), Frame(PONG, b"?"), Frame(TEXT, b"two")])
        await peer.send(close(4001))
        assert await peer.closed() == 4001
        await peer.ended()
        await until(lambda: at.server.statistics().connections == 0)
    assert protocol.failures == 0
    assert not caplog.records


async def test_its_own_client():
    """trio-websocket's client: subprotocol, headers, path, both kinds of messages, a clean end."""

    async def on_upgrade(ws, request):
        assert request.headers["x-user"] == ["alice"]
        ws.data = {"user": "alice"}
        return trionet.Accept(headers=[("X-Greeting", "hello")])

    async def handler(ws):
        seen.append((ws.path, ws.subprotocol, ws.data, ws.remote.port, str(ws.local.address)))
        await echo(ws)

    seen = []
    protocol = TrioWebSocketProtocol(
        handler, on_upgrade=on_upgrade, subprotocols=["chat", "mail"], headers=["x-user"]
    )
    async with (
        serving(protocol) as at,
        trio_websocket.open_websocket_url(
            at.url + "room?x=1", subprotocols=["nothing", "mail"], extra_headers=[(b"X-User", b"alice")]
        ) as ws,
    ):
        assert ws.subprotocol == "mail"
        assert (b"x-greeting", b"hello") in ws.handshake_headers
        for message in ("té", b"\x00\xff"):
            await ws.send_message(message)
            assert await ws.get_message() == message
        assert seen == [("/room?x=1", "mail", {"user": "alice"}, ws.local.port, "127.0.0.1")]


async def test_our_handshake_comes_first():
    """Origin check, `on_upgrade` and limits answer before any task is started."""

    async def on_upgrade(ws, request):
        if request.path == "/secret":
            raise trionet.Rejection(401, body="Who are you?")
        if request.path == "/broken":
            raise RuntimeError("broken")

    async def handler(ws):
        called.append(ws)

    called = []
    protocol = TrioWebSocketProtocol(handler, on_upgrade=on_upgrade)
    async with serving(protocol) as at:
        before = tasks()
        for path, header, status in (
            ("/", "Origin: https://elsewhere.example", 403),
            ("/secret", "X-A: b", 401),
            ("/broken", "X-A: b", 500),
            ("/" + "x" * 20_000, "X-A: b", 414),
        ):
            peer = await at.dial()
            await peer.send(request(path, header))
            assert await peer.status() == status
            await peer.aclose()
        await until(lambda: at.server.statistics().connections == 0)
        assert tasks() == before
    assert called == []
    assert protocol.rejections == {403: 1, 401: 1, 414: 1, 500: 1}


async def test_half_open_handshakes_have_no_task():
    """A peer that dawdles over its head costs what it costs everywhere, and is answered 408."""
    protocol = TrioWebSocketProtocol(echo, handshake_timeout=0.1)
    async with serving(protocol, resolution=0.01) as at:
        before = tasks()
        peers = [await at.dial() for _ in range(10)]
        for peer in peers:
            await peer.send(request()[:30])
        await until(lambda: at.server.statistics().opening == 10)
        assert tasks() == before
        assert await peers[0].status() == 408


async def test_plain_requests_on_the_same_port():
    """`http` answers them, and a WebSocket may follow on the same connection."""
    http = trionet.HttpProtocol({"/healthz": "fine"})
    async with serving(TrioWebSocketProtocol(echo, http=http)) as at:
        peer = await at.dial()
        await peer.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await peer.status() == 200
        await until(lambda: not at.connection.queued)
        while len(peer.data) < 4:
            await peer._more()
        assert peer.take(4) == b"fine"
        await peer.send(request(), text("hello"))
        assert await peer.status() == 101
        assert await peer.hear() == "hello"


async def test_expect_continue():
    """RFC 9110, 7.8: the interim response comes before the 101."""
    async with serving(TrioWebSocketProtocol(echo)) as at:
        peer = await at.dial()
        await peer.send(request("/", "Expect: 100-continue"))
        assert await peer.status() == 100
        assert await peer.status() == 101
        await peer.say("x")
        assert await peer.hear() == "x"


@pytest.mark.parametrize("how", ["returns", "raises", "raises in a nursery"])
async def test_the_end_of_a_handler(how, caplog):
    """Returning closes with 1000, raising with 1011 and one record; the others stay."""

    async def handler(ws):
        async def bad():
            raise RuntimeError("broken")

        message = await ws.get_message()
        if message == "go" and how == "returns":
            return
        if message == "go" and how == "raises":
            await bad()
        if message == "go":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(bad)
        await ws.send_message(message)

    protocol = TrioWebSocketProtocol(handler)
    async with serving(protocol) as at:
        peer, other = await at.join(), await at.join()
        await peer.say("go")
        code = 1000 if how == "returns" else 1011
        assert await peer.closed() == code
        await peer.send(close(code))
        await peer.ended()
        await other.say("fine")
        assert await other.hear() == "fine"
        await until(lambda: at.server.statistics().streams == 1)
    assert protocol.failures == len(caplog.records) == (how != "returns")
    assert all(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("how", ["close", "reset", "end of input", "broken frame"])
async def test_the_end_of_a_peer(how, caplog):
    """However it goes, the handler is told by `ConnectionClosed`, which is no failure; nothing is left."""
    before, protocol = (descriptors(), tasks()), TrioWebSocketProtocol(echo)
    async with serving(protocol) as at:
        peer = await at.join()
        if how == "close":
            await peer.send(close(1000))
            assert await peer.closed() == 1000
        elif how == "reset":
            await peer.reset()
        elif how == "end of input":
            await peer.stream.send_eof()
        else:
            await peer.send(b"\xff\xff\xff")
        await until(lambda: at.server.statistics().connections == 0)
    assert protocol.failures == 0
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert (descriptors(), tasks()) == before


async def test_max_message():
    """What is longer is refused with 1009, and the task ends even if the peer then says nothing."""
    async with serving(TrioWebSocketProtocol(echo, max_message=100, close_timeout=0.1)) as at:
        peer = await at.join()
        await peer.say("x" * 101)
        assert await peer.closed() == 1009
        await until(lambda: at.server.statistics().connections == 0)


@pytest.mark.parametrize("answers", [True, False])
async def test_drain(answers):
    """Drain says 1001 to all, and 503 to those whose handshake is not over; a deaf peer has `close_timeout`."""
    protocol = TrioWebSocketProtocol(echo, close_timeout=0.2)
    async with serving(protocol) as at, trio.open_nursery() as nursery:
        peers = [await at.join() for _ in range(5)]
        half = await at.dial()
        await half.send(request()[:-2])
        await until(lambda: at.server.statistics().opening == 1)
        done = []

        async def drain():
            done.append(await at.server.drain(jitter=0))

        nursery.start_soon(drain)
        assert await half.status() == 503
        await half.aclose()
        for peer in peers:
            assert await peer.closed() == 1001
            if answers:
                await peer.send(close(1001))
        await until(lambda: done)
        assert at.server.statistics().connections == 0
    assert done == [True]
    assert protocol.failures == 0


async def test_drain_while_a_send_is_stalled():
    """A peer that does not read does not keep the server from ending."""

    async def flood(ws):
        while True:
            await ws.send_message(bytes(65536))

    async with serving(TrioWebSocketProtocol(flood, close_timeout=0.1)) as at:
        await at.join(small=True)
        await wait_all_tasks_blocked(0.01)
        assert await at.server.drain(jitter=0)


async def test_hard_stop_leaves_nothing():
    """Leaving the server's block cancels the handlers and releases every descriptor."""

    async def handler(ws):
        try:
            await ws.get_message()
        except trio.Cancelled:
            ends.append("cancelled")
            raise

    before, ends, protocol = (descriptors(), tasks()), [], TrioWebSocketProtocol(handler)
    async with serving(protocol) as at:
        for _ in range(10):
            await at.join()
        await until(lambda: at.server.statistics().streams == 10)
        await wait_all_tasks_blocked()
    assert ends == ["cancelled"] * 10
    assert (descriptors(), tasks()) == before
    assert protocol.failures == 0


async def test_max_tasks():
    """Beyond `max_tasks` a handshake waits, and nothing is accepted; the next place is its own."""
    protocol = TrioWebSocketProtocol(echo, max_tasks=1)
    async with serving(protocol) as at:
        waiting, leaving = await at.dial(), await at.dial()
        await until(lambda: at.server.statistics().gate.accepted == 2)
        first = await at.join()
        await leaving.send(request())
        await waiting.send(request() + text("early"))
        await until(lambda: len(protocol.tasks.waiting) == 2)
        assert at.server.statistics().pool.parked == 2
        late = await at.dial()
        await late.send(request() + text("late"))
        await until(lambda: at.server.statistics().gate.held["tasks"] > 0)
        assert at.server.statistics().gate.accepted == 3
        await leaving.reset()
        await first.send(close(1000))
        assert await first.closed() == 1000
        assert await waiting.status() == 101
        assert await waiting.hear() == "early"
        await waiting.send(close(1000))
        assert await late.status() == 101
        assert await late.hear() == "late"
    assert protocol.failures == 0


async def test_many_at_once_in_a_small_pool():
    """Ten silent handlers and ten stalled senders with a pool of 4: an echo still answers."""

    async def handler(ws):
        while True:
            message = await ws.get_message()
            while message == "flood":
                await ws.send_message(bytes(65536))
            await ws.send_message(message)

    async with serving(TrioWebSocketProtocol(handler), pool_size=4, slot_grace=0.005) as at:
        for _ in range(10):
            await at.join()
            await (await at.join(small=True)).say("flood")
        good = await at.join()
        await good.say("hello")
        assert await good.hear() == "hello"


async def test_messages_of_any_size():
    """Long messages, and many in one segment, come back whole and in order."""
    async with serving(TrioWebSocketProtocol(echo)) as at:
        peer = await at.join()
        sizes = [0, 1, 125, 126, 65535, 65536, 200_000]

        async def send():
            await peer.send(b"".join(text("x" * size) for size in sizes))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for size in sizes:
                received = b""
                while True:
                    piece = await peer.frame()
                    received += piece.payload
                    if piece.fin:
                        break
                assert received == b"x" * size
