"""The life of a WebSocket: the upgrade, messages in order, the end, and what a handler may rely on."""

from __future__ import annotations

import contextlib
import contextvars
import logging

import pytest
import trio
import trio_websocket
import websockets.trio.client
from ws_peer import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Diary,
    Echo,
    Frame,
    Gated,
    Opened,
    close,
    frame,
    request,
    serving,
    text,
    until,
)

import trionet

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.fixture
def clock(mock_clock):
    """Let time jump whenever all is quiet; the threshold gives the loopback time to deliver."""
    mock_clock.autojump_threshold = 0.002
    return mock_clock


# ------------------------------------------------------------------ order


async def test_a_life_in_order(backend):
    """Upgrade, open, messages, close: each in its place, close once."""
    diary = Diary()
    async with serving(diary, backend=backend) as at:
        peer = await at.join()
        await peer.echo("one")
        await peer.send(frame(BINARY, b"two"))
        assert await peer.frame() == Frame(BINARY, b"two")
        await peer.send(close(4000, b"enough"))
        assert await peer.closed() == 4000
        await peer.ended()
        await until(lambda: len(diary.seen) == 5)
    *rest, closed = diary.seen
    assert rest == ["upgrade", "open", "one", b"two"]
    assert (closed.code, closed.reason, closed.by) == (4000, "enough", "peer")


@pytest.mark.parametrize(
    "how", ["close", "fin", "reset", "bad frame", "server closes", "raises", "hard stop"]
)
async def test_close_comes_exactly_once(how, backend):
    """However it ends, `on_close` is called once, after the last message."""

    class Handler(Diary):
        async def on_message(self, ws, message):
            self.seen.append(message)
            if how == "server closes":
                ws.close_nowait(4001)
            if how == "raises":
                raise RuntimeError("broken")

    handler = Handler()
    async with serving(handler, backend=backend, close_timeout=0.2, resolution=0.02) as at:
        peer = await at.join()
        await peer.say("one")
        await until(lambda: "one" in handler.seen)
        if how == "close":
            await peer.send(close())
            assert await peer.closed() == 1000
            await peer.ended()
        elif how == "fin":
            await peer.stream.send_eof()
        elif how == "reset":
            await peer.reset()
        elif how == "bad frame":
            await peer.send(b"\xff\x00")
            assert await peer.closed() == 1002
            await peer.aclose()
        elif how in {"server closes", "raises"}:
            await peer.frame()
            await peer.send(close(1000))
            await peer.ended()
        if how != "hard stop":
            await until(lambda: at.server.statistics().connections == 0)
            await until(lambda: len(handler.seen) == 4)
    *rest, closed = handler.seen
    assert rest == ["upgrade", "open", "one"]
    code, by = {
        "close": (1000, "peer"),
        "fin": (1006, "network"),
        "reset": (1006, "network"),
        "bad frame": (1002, "us"),
        "server closes": (4001, "us"),
        "raises": (1011, "us"),
        "hard stop": (1006, "us"),
    }[how]
    assert (closed.code, closed.by) == (code, by)


@pytest.mark.parametrize("how", ["refused", "fails", "leaves"])
async def test_no_close_without_open(how, caplog):
    """A connection whose `on_open` was never begun has no `on_close`."""

    class Handler(Diary):
        async def on_upgrade(self, ws, request):
            self.seen.append("upgrade")
            if how == "refused":
                raise trionet.Rejection(403)
            if how == "fails":
                raise RuntimeError("no database")
            await gate.wait()

    gate = trio.Event()
    handler = Handler()
    async with serving(handler) as at:
        peer = await at.dial()
        await peer.send(request())
        if how == "leaves":
            await until(lambda: handler.seen)
            await peer.reset()
            gate.set()
        else:
            assert await peer.status() == (403 if how == "refused" else 500)
            await peer.aclose()
        await until(lambda: at.server.statistics().connections == 0)
    assert handler.seen == ["upgrade"]


async def test_close_follows_an_open_that_failed(caplog):
    """`on_close` tells of each `on_open` that was begun, also of one that raised."""

    class Handler(Diary):
        async def on_open(self, ws):
            self.seen.append("open")
            raise RuntimeError("no room")

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.farewell(1011)
        await until(lambda: len(handler.seen) == 3)
    assert handler.seen[:2] == ["upgrade", "open"]
    assert handler.seen[2].code == 1011


async def test_close_waits_for_the_handler_that_runs():
    """`on_close` never runs beside another method of the same connection."""
    handler = Gated()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("one")
        await handler.entered.wait()
        await peer.reset()
        await until(lambda: handler.ws.closed is not None)
        await trio.testing.wait_all_tasks_blocked()
        assert handler.ends == []
        handler.gate.set()
        await until(lambda: handler.ends)
    assert handler.seen == ["one"]
    assert len(handler.ends) == 1


async def test_a_handler_need_not_have_any_method():
    """Every method is optional; messages without `on_message` are dropped, pings answered."""
    async with serving(trionet.WebSocketHandler()) as at:
        peer = await at.join()
        await peer.send(text("nobody hears"), frame(PING, b"there?"))
        assert await peer.frame() == Frame(PONG, b"there?")
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()


# ------------------------------------------------------------------ real clients


async def test_trio_websocket_talks_to_it(backend):
    """trio-websocket: text, binary, ping, close."""
    diary = Diary()
    async with (
        serving(diary, backend=backend, subprotocols=["chat"]) as at,
        trio_websocket.open_websocket_url(at.url, subprotocols=["chat"]) as ws,
    ):
        assert ws.subprotocol == "chat"
        for message in ("text", b"binary", "x" * 70_000):
            await ws.send_message(message)
            assert await ws.get_message() == message
        await ws.ping()
        await ws.aclose(4002, "bye")
        await until(lambda: isinstance(diary.seen[-1], trionet.ConnectionClosed))
    assert diary.seen[-1].code == 4002


async def test_websockets_talks_to_it(backend):
    """The library websockets: text, binary, fragments, ping, close."""
    diary = Diary()
    async with serving(diary, backend=backend) as at:
        async with websockets.trio.client.connect(at.url, compression=None) as ws:
            for message in ("text", b"binary", b"x" * 300_000):
                await ws.send(message)
                assert await ws.recv() == message
            await ws.send(["frag", "ments"])
            assert await ws.recv() == "fragments"
            await ws.ping()
        await until(lambda: isinstance(diary.seen[-1], trionet.ConnectionClosed))
    assert diary.seen[-1].code == 1000


# ------------------------------------------------------------------ the upgrade


async def test_a_rejection_is_the_response():
    """Status, reason, headers and body of a `Rejection` reach the client."""

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            raise trionet.Rejection(401, "Who Are You", [("WWW-Authenticate", "Bearer")], "Log in first.")

    async with serving(Handler()) as at:
        peer = await at.dial()
        await peer.send(request())
        lines = (await peer.head()).decode().split("\r\n")
        await until_received(peer, 13)
        assert lines[0] == "HTTP/1.1 401 Who Are You"
        assert "WWW-Authenticate: Bearer" in lines
        assert "Content-Length: 13" in lines
        assert peer.take(13) == b"Log in first."
        await peer.ended()
        assert at.protocol.rejections == {401: 1}


async def until_received(peer, size):
    """Read until so much is there."""
    while len(peer.data) < size:
        peer.data += await peer.stream.receive_some()


async def test_accept_chooses_the_subprotocol_and_adds_headers():
    """What `on_upgrade` returns is in the 101, and `ws.subprotocol` in `on_open`."""
    seen = []

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            assert request.subprotocols == ("one", "two")
            return trionet.Accept(subprotocol="two", headers=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")])

        async def on_open(self, ws):
            seen.append(ws.subprotocol)

    async with serving(Handler(), subprotocols=["one"]) as at:
        peer = await at.dial()
        await peer.send(request("/", "Sec-WebSocket-Protocol: one, two"))
        head = (await peer.head()).decode()
        await until(lambda: seen)
    assert head.startswith("HTTP/1.1 101 ")
    assert "Sec-WebSocket-Protocol: two\r\n" in head
    assert "Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n" in head
    assert seen == ["two"]


async def test_none_leaves_the_choice_to_the_protocol():
    """Without a choice of `on_upgrade` the first offered that we speak is taken."""
    seen = []

    class Handler(trionet.WebSocketHandler):
        async def on_open(self, ws):
            seen.append(ws.subprotocol)

    async with serving(Handler(), subprotocols=["b", "a"]) as at:
        peer = await at.dial()
        await peer.send(request("/", "Sec-WebSocket-Protocol: x, a, b"))
        assert b"Sec-WebSocket-Protocol: a\r\n" in await peer.head()
        await at.join("/", "Sec-WebSocket-Protocol: x")
        await until(lambda: len(seen) == 2)
    assert seen == ["a", None]


@pytest.mark.parametrize(
    "accept",
    [
        lambda: trionet.Accept(subprotocol="never offered"),
        lambda: trionet.Accept(headers=[("X-Evil", "a\r\nSet-Cookie: b")]),
        lambda: trionet.Accept(headers=[("Bad Name", "a")]),
    ],
    ids=["subprotocol", "value", "name"],
)
async def test_an_acceptance_that_cannot_be_sent_is_an_error_of_ours(accept, caplog):
    """A subprotocol nobody offered, or a header that injects one: 500, and a record in the log."""

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            return accept()

    async with serving(Handler()) as at:
        peer = await at.dial()
        await peer.send(request())
        head = await peer.head()
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in head
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_slow_database_holds_nobody_up(clock):
    """`on_upgrade` may wait longer than the slot grace and the handshake deadline; others are served meanwhile."""

    class Handler(Echo):
        async def on_upgrade(self, ws, request):
            if request.path == "/slow":
                waiting.append(ws)
                await database.wait()

    waiting, database = [], trio.Event()
    async with serving(Handler(), pool_size=2, slot_grace=0.1, handshake_timeout=10) as at:
        slow = []
        for _ in range(10):
            peer = await at.dial()
            await peer.send(request("/slow"))
            slow.append(peer)
        await until(lambda: len(waiting) == 10, step=0.05)
        quick = await at.join("/quick")
        await quick.echo()
        await trio.sleep(15)
        assert at.server.statistics().pool.detached == 10
        await quick.echo()
        database.set()
        for peer in slow:
            assert await peer.status() == 101
            await peer.echo()


async def test_the_request_is_there_until_on_open_has_run():
    """`ws.request` shows path, query and the headers asked for, and is forgotten afterwards."""
    seen = []

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            assert ws.request is request
            ws.data = "kept"

        async def on_open(self, ws):
            await trio.lowlevel.checkpoint()
            seen.append((ws.request.target, dict(ws.request.headers), ws.data))

        async def on_message(self, ws, message):
            seen.append((ws.request, ws.subprotocol, ws.data))

    async with serving(Handler(), headers=["Cookie", "X-User"], subprotocols=["s"]) as at:
        peer = await at.join(
            "/room?x=1", "Cookie: a=b", "X-User: ada", "X-Other: no", "Sec-WebSocket-Protocol: s"
        )
        await peer.say("hello")
        await until(lambda: len(seen) == 2)
    target, headers, data = seen[0]
    assert "/room?x=1" in str(target)
    assert {str(name).lower() for name in headers} == {"cookie", "x-user"} or len(headers) == 2
    assert data == "kept"
    assert seen[1] == (None, None, "kept")


async def test_bytes_pipelined_behind_the_handshake_are_served(backend):
    """Frames in the same write as the request are answered, in order, behind the 101."""
    async with serving(Echo(), backend=backend) as at:
        peer = await at.dial()
        await peer.send(request(), text("one"), frame(PING, b"p"), text("two"), text("three")[:4])
        assert await peer.status() == 101
        got = [await peer.frame() for _ in range(3)]
        assert sorted(got) == sorted([Frame(TEXT, b"one"), Frame(PONG, b"p"), Frame(TEXT, b"two")])
        await peer.send(text("three")[4:])
        assert await peer.hear() == "three"


@pytest.mark.parametrize("where", ["on_upgrade", "on_open"])
async def test_bytes_that_come_while_the_door_opens_are_served(where, backend):
    """What comes while `on_upgrade` or `on_open` waits is handled afterwards, in order; nothing before its time."""
    entered, gate = trio.Event(), trio.Event()

    class Handler(Echo):
        async def on_upgrade(self, ws, request):
            await self.wait("on_upgrade")

        async def on_open(self, ws):
            await self.wait("on_open")
            await ws.send("open")

        async def wait(self, here):
            if here == where:
                entered.set()
                await gate.wait()

    async with serving(Handler(), backend=backend) as at:
        peer = await at.dial()
        await peer.send(request(), text("one"))
        await entered.wait()
        await peer.send(text("two"), text("three")[:3])
        await until(lambda: at.connection._state & 8)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(text("three")[3:], text("four"))
        gate.set()
        assert await peer.status() == 101
        heard = [await peer.hear() for _ in range(5)]
        assert heard == ["open", "one", "two", "three", "four"]
        await peer.echo("later")


async def test_a_flood_while_the_door_opens_is_bounded():
    """A peer that sends without waiting for the 101 is not read from beyond `read_ahead`, and loses nothing."""
    gate = trio.Event()
    total = 3_000

    class Handler(trionet.WebSocketHandler):
        def __init__(self):
            self.seen = []

        async def on_upgrade(self, ws, request):
            await gate.wait()

        async def on_message(self, ws, message):
            self.seen.append(message)

    handler = Handler()
    async with serving(handler, read_ahead=10_000) as at, trio.open_nursery() as nursery:
        peer = await at.dial()
        nursery.start_soon(peer.send, request(), *(text(f"{n:1000}") for n in range(total)))
        await until(lambda: at.server.statistics().connections and "paused" in repr(at.connection))
        assert len(at.connection._input) < 10_000 + 2 * 65536  # the read that brought the head, and one more
        gate.set()
        assert await peer.status() == 101
        await until(lambda: len(handler.seen) == total)
    assert [int(message) for message in handler.seen] == list(range(total))


# ------------------------------------------------------------------ a busy handler is still heard


async def test_a_ping_is_answered_while_the_handler_is_busy(backend):
    """Whatever the handler waits for, a Ping has its Pong at once."""
    handler = Gated()
    async with serving(handler, backend=backend) as at:
        peer = await at.join()
        await peer.say("work")
        await handler.entered.wait()
        for n in range(5):
            await peer.send(frame(PING, b"%d" % n))
            assert await peer.frame() == Frame(PONG, b"%d" % n)
        assert handler.seen == []
        handler.gate.set()


@pytest.mark.parametrize("how", ["close", "fin", "reset"])
async def test_a_departure_is_noted_while_the_handler_is_busy(how, backend):
    """`ws.closed` tells a busy handler that its peer has left; sending raises `ConnectionClosed`."""
    handler = Gated()
    async with serving(handler, backend=backend) as at:
        peer = await at.join()
        await peer.say("work")
        await handler.entered.wait()
        assert handler.ws.closed is None
        if how == "close":
            await peer.send(close(4003))
            assert await peer.closed() == 4003
            await peer.ended()
        elif how == "fin":
            await peer.stream.send_eof()
        else:
            await peer.reset()
        await until(lambda: handler.ws.closed is not None)
        assert handler.ws.closed.code == (4003 if how == "close" else 1006)
        if how != "fin":  # what is half closed may still be sent to
            with pytest.raises(trionet.ConnectionClosed):
                await handler.ws.send("x")
        handler.gate.set()
        await until(lambda: handler.ends)
    assert [end.by for end in handler.ends] == ["peer" if how == "close" else "network"]


async def test_messages_for_a_busy_handler_are_kept_in_order(backend):
    """What comes while a handler works is handled afterwards: all of it, in order."""
    handler = Gated()
    async with serving(handler, backend=backend) as at:
        peer = await at.join()
        await peer.send(text("0"), text("1"), text("2")[:5])
        await handler.entered.wait()
        await peer.send(text("2")[5:], text("3"))
        await peer.send(text("4"))
        await peer.send(frame(PING))
        assert await peer.frame() == Frame(PONG, b"")
        handler.gate.set()
        await peer.send(text("5"))
        await until(lambda: len(handler.seen) == 6)
    assert handler.seen == list("012345")


async def test_read_ahead_bounds_what_is_kept(backend):
    """Behind `read_ahead` the peer feels it; afterwards all comes, in order."""
    handler = Gated()
    total = 4_000
    async with serving(handler, backend=backend, read_ahead=20_000) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        await peer.say("-1")
        await handler.entered.wait()
        nursery.start_soon(peer.send, *(text(f"{n:1000}") for n in range(total)))
        await until(lambda: "paused" in repr(handler.ws))
        assert handler.ws._rare.held_size < 20_000 + 2 * 65536
        handler.gate.set()
        await until(lambda: len(handler.seen) == total + 1)
    assert [int(message) for message in handler.seen] == list(range(-1, total))


async def test_messages_before_the_close_are_still_delivered():
    """What a peer said before its Close is handled, though the connection has ended meanwhile."""
    handler = Gated()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("one")
        await handler.entered.wait()
        await peer.send(text("two"), text("three"), close())
        assert await peer.closed() == 1000
        await peer.ended()
        handler.gate.set()
        await until(lambda: handler.ends)
    assert handler.seen == ["one", "two", "three"]


async def test_a_broken_rule_is_seen_while_the_handler_is_busy():
    """A protocol error in what comes meanwhile fails the connection with its code, behind what came before it."""
    handler = Gated()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("one")
        await handler.entered.wait()
        await peer.send(text("two"), b"\x83\x80" + bytes(4))
        await trio.testing.wait_all_tasks_blocked()
        handler.gate.set()
        assert await peer.closed() == 1002
        await peer.ended()
        await peer.aclose()
        await until(lambda: handler.ends)
    assert handler.seen == ["one", "two"]
    assert handler.ends[0].code == 1002


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    "make",
    [
        RuntimeError,
        lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        trio.TooSlowError,
        lambda: trionet.Rejection(400),
    ],
    ids=["exception", "group", "timeout", "rejection"],
)
async def test_a_handler_that_raises_costs_its_connection_only(make, caplog):
    """1011 to its peer, one record in the log, a counter; the others do not notice."""

    class Handler(Echo):
        async def on_message(self, ws, message):
            if message == "bad":
                raise make()
            await ws.send(message)

    async with serving(Handler()) as at:
        good, bad = await at.join(), await at.join()
        await bad.send(text("fine"), text("bad"), text("never answered"))
        assert await bad.hear() == "fine"
        await bad.farewell(1011)
        await good.echo()
        assert at.protocol.handler_failures == 1
        assert at.server.statistics().pool.failures == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is type(make())


async def test_a_nursery_that_fails_costs_its_connection_only(caplog):
    """The group of a handler's nursery is its own affair, also when Cancelled is mixed in by the nursery."""

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(self.fail)

        async def fail(self):
            await trio.lowlevel.checkpoint()
            raise RuntimeError("broken")

    async with serving(Handler()) as at:
        peer, other = await at.join(), await at.join()
        await peer.say("go")
        await peer.farewell(1011)
        await other.send(frame(PING))
        assert await other.frame() == Frame(PONG, b"")
    [record] = caplog.records
    assert record.exc_info[0] is ExceptionGroup


@pytest.mark.parametrize("grouped", [False, True])
async def test_using_a_connection_that_left_is_no_error(grouped, caplog):
    """A `ConnectionClosed` that escapes a handler whose peer has left is everyday life: not in the log."""

    class Handler(Gated):
        async def on_message(self, ws, message):
            await super().on_message(ws, message)
            if grouped:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ws.send, "hello?")
            await ws.send("hello?")

    handler = Handler()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("go")
        await handler.entered.wait()
        await peer.reset()
        await until(lambda: handler.ws.closed is not None)
        handler.gate.set()
        await until(lambda: handler.ends)
        assert at.protocol.handler_failures == 0
    assert caplog.records == []


async def test_a_failing_on_close_is_logged_and_harms_nobody(caplog):
    """The last method may fail too."""

    class Handler(Echo):
        async def on_close(self, ws, closed):
            raise RuntimeError("cannot say goodbye")

    async with serving(Handler()) as at:
        peer, other = await at.join(), await at.join()
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()
        await other.echo()
        await until(lambda: caplog.records)
        await peer.aclose()
        assert at.server.statistics().connections == 1
        await other.send(close())
        await other.closed()
        await until(lambda: len(caplog.records) == 2)
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_must_end_the_program_goes_through(error):
    """Ctrl-C in a handler ends the server's block, and is not mistaken for a failure of the handler."""

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            raise error

    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the block is ended from within
        async with serving(Handler()) as at:
            peer = await at.join()
            await peer.say("stop")
            await trio.sleep_forever()
    assert caught.value.subgroup(error) is not None
    assert caught.value.subgroup(Exception) is None


# ------------------------------------------------------------------ what handlers may use


async def test_context_variables_belong_to_one_call():
    """A handler sees what was set around the server, not what another handler set."""
    seen = []

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            seen.append((message, variable.get()))
            variable.set(message)
            await trio.lowlevel.checkpoint()
            assert variable.get() == message
            await ws.send(message)

    token = variable.set("around")
    try:
        async with serving(Handler(), pool_size=1) as at:
            first, second = await at.join(), await at.join()
            await first.send(text("a"), text("b"))
            assert [await first.hear(), await first.hear()] == ["a", "b"]
            await second.echo("c")
            await first.echo("d")
    finally:
        variable.reset(token)
    assert {message for message, _ in seen} == set("abcd")
    # Messages handled one behind the other in one call share it; another connection's never leaks in.
    assert dict(seen)["a"] == dict(seen)["c"] == "around"
    assert dict(seen)["d"] == "around"


async def test_trio_primitives_just_work():
    """Nurseries, deadlines, locks held across a wait, threads, memory channels."""
    lock = trio.Lock()
    send, receive = trio.open_memory_channel(0)

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            if message == "nursery":
                async with trio.open_nursery() as nursery:
                    for n in range(3):
                        nursery.start_soon(ws.send, str(n))
            elif message == "deadline":
                with trio.move_on_after(0.01):
                    await trio.sleep_forever()
                await ws.send("late")
            elif message == "lock":
                async with lock:
                    await trio.sleep(0.01)
                    await ws.send("locked")
            elif message == "thread":
                await ws.send(await trio.to_thread.run_sync(str, 42))
            elif message == "give":
                await send.send("given")
            elif message == "take":
                await ws.send(await receive.receive())

    async with serving(Handler(), slot_grace=0.005) as at:
        peer, other = await at.join(), await at.join()
        await peer.say("nursery")
        assert sorted([await peer.hear() for _ in range(3)]) == ["0", "1", "2"]
        await peer.say("deadline")
        assert await peer.hear() == "late"
        await peer.say("lock")
        await other.say("lock")
        assert await other.hear() == await peer.hear() == "locked"
        await peer.say("thread")
        assert await peer.hear() == "42"
        await peer.say("take")
        await other.say("give")
        assert await peer.hear() == "given"


async def test_on_chunk_receives_messages_as_they_arrive():
    """Pieces come before the message is whole; `last` ends it; text is cut between characters."""
    pieces = []

    class Handler(trionet.WebSocketHandler):
        async def on_chunk(self, ws, data, last):
            pieces.append((data, last))
            if last:
                await ws.send("done")

        async def on_message(self, ws, message):
            raise AssertionError

    async with serving(Handler(), max_message=50_000) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, "añ".encode()[:2], fin=False))
        await until(lambda: pieces)
        assert pieces == [("a", False)]
        await peer.send(frame(PING), frame(0, "añb".encode()[2:]))
        assert {await peer.frame(), await peer.frame()} == {Frame(PONG, b""), Frame(TEXT, b"done")}
        assert "".join(data for data, _ in pieces) == "añb"
        assert [last for _, last in pieces][-1] is True
        pieces.clear()
        await peer.send(frame(BINARY, bytes(50_000)))
        assert await peer.hear() == "done"
        assert sum(len(data) for data, _ in pieces) == 50_000
        await peer.send(frame(BINARY, bytes(50_001)))
        assert await peer.closed() == 1009


# ------------------------------------------------------------------ deadlines


async def test_a_handshake_that_never_comes_gets_408(backend):
    """A silent client is told so and closed."""
    async with serving(Echo(), handshake_timeout=0.05, resolution=0.01, backend=backend) as at:
        peer, other = await at.dial(), await at.dial()
        await other.send(request()[:-2])
        for each in (peer, other):
            assert await each.status() == 408
        assert at.protocol.rejections == {408: 2}


async def test_a_silent_peer_is_pinged_and_a_dead_one_closed(clock):
    """After `ping_interval` of silence a Ping; without an answer for `ping_timeout` the end."""
    handler = Opened()
    async with serving(handler, ping_interval=20, ping_timeout=15, resolution=1) as at:
        peer = await at.join()
        await peer.say("hello")
        await until(lambda: handler.seen, step=0.05)
        began = trio.current_time()
        assert await peer.frame() == Frame(PING, b"")
        assert 19 <= trio.current_time() - began < 22  # to a tick
        pinged = trio.current_time()
        assert await peer.closed() == 1011
        assert 14 <= trio.current_time() - pinged < 17
        await peer.ended()
        await peer.aclose()
        await until(lambda: handler.ends, step=0.05)
    assert handler.ends[0].by == "us"


@pytest.mark.parametrize("answer", ["pong", "message", "one byte"])
async def test_any_sign_of_life_keeps_a_connection(clock, answer):
    """A Pong does, a message does, a byte does."""
    handler = Opened()
    async with serving(handler, ping_interval=20, ping_timeout=20, resolution=1) as at:
        peer = await at.join()
        whole = {"pong": frame(PONG), "message": text("x"), "one byte": text("abcdefgh")}[answer]
        for n in range(6):
            assert await peer.frame() == Frame(PING, b"")
            await peer.send(whole[n : n + 1] if answer == "one byte" else whole)
        assert handler.ends == []
        assert at.server.statistics().connections == 1


async def test_pings_keep_their_interval_when_answers_may_take_longer(clock):
    """A peer that answers at once is pinged every `ping_interval`, however long `ping_timeout` is."""
    async with serving(Echo(), ping_interval=5, ping_timeout=60, resolution=1) as at:
        peer = await at.join()
        for _ in range(4):
            began = trio.current_time()
            assert await peer.frame() == Frame(PING, b"")
            assert trio.current_time() - began < 8  # to a tick or two
            await peer.send(frame(PONG))


async def test_a_look_at_other_deadlines_does_not_cut_the_time_for_a_pong(clock):
    """The receive timeout of a handler comes between Ping and Pong, and the connection stays."""

    async def handler(ws):
        while True:
            with contextlib.suppress(trio.TooSlowError):
                await ws.receive(timeout=2)

    async with serving(handler, ping_interval=5, ping_timeout=60, resolution=1) as at:
        peer = await at.join()
        assert await peer.frame() == Frame(PING, b"")
        await trio.sleep(20)
        await peer.send(frame(PONG))
        assert await peer.frame() == Frame(PING, b"")


async def test_talking_peers_are_not_pinged(clock):
    """A peer that is heard often enough costs no Ping."""
    handler = Opened()
    async with serving(handler, ping_interval=20, resolution=1) as at:
        peer = await at.join()
        for _ in range(12):
            await peer.say("x")
            await trio.sleep(10)
        await peer.send(close())
        assert await peer.closed() == 1000
    assert len(handler.seen) == 12


async def test_keepalive_can_be_off(clock):
    """`ping_interval=None`: nothing is sent, nobody is closed."""
    async with serving(Echo(), ping_interval=None, resolution=5) as at:
        peer = await at.join()
        await trio.sleep(300)
        await peer.echo()


async def test_a_busy_handler_loses_no_healthy_peer(clock):
    """While a handler works for minutes its peer is pinged, and its Pongs are heard."""
    handler = Gated()
    async with serving(handler, ping_interval=20, ping_timeout=20, resolution=1) as at:
        peer = await at.join()
        await peer.say("work")
        for _ in range(6):
            assert await peer.frame() == Frame(PING, b"")
            await peer.send(frame(PONG))
        handler.gate.set()
        await peer.say("next")
        await until(lambda: len(handler.seen) == 2, step=0.05)
    assert handler.ends[0].by == "us"


async def test_a_paused_connection_is_not_judged(clock):
    """While we do not read, a Pong could not be seen: the peer is not to blame."""
    handler = Gated()
    async with serving(handler, ping_interval=5, ping_timeout=5, read_ahead=1000, resolution=1) as at:
        peer = await at.join()
        await peer.send(text("work"))
        await handler.entered.wait()
        await peer.send(text("x" * 2000))
        await until(lambda: "paused" in repr(handler.ws), step=0.05)
        await trio.sleep(60)
        assert handler.ws.closed is None
        handler.gate.set()
        await until(lambda: len(handler.seen) == 2, step=0.05)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "options",
    [
        {"max_message": 0},
        {"close_timeout": 0},
        {"ping_timeout": None},
        {"high_water": 100, "low_water": 100},
        {"high_water": 100, "hard_limit": 50},
        {"low_water": -1},
    ],
    ids=",".join,
)
def test_settings_that_cannot_work(options):
    """Contradictions are told when the protocol is made."""
    with pytest.raises(trionet.ConfigurationError):
        trionet.WebSocketProtocol(Echo(), **options)


async def test_counters_of_a_protocol():
    """Rejections by status, ends by close code."""
    async with serving(Echo()) as at:
        for code in (1000, 4000, 4000):
            peer = await at.join()
            await peer.send(close(code))
            assert await peer.closed() == code
            await peer.ended()
        bad = await at.dial()
        await bad.send(request().replace(b"Version: 13", b"Version: 12"))
        assert await bad.status() == 426
        assert at.protocol.closes == {1000: 1, 4000: 2}
        assert at.protocol.rejections == {426: 1}


async def test_repr_tells_the_state():
    """State, flags and the queue."""
    handler = Opened()
    async with serving(handler) as at:
        await at.join()
        ws = await handler.first()
        assert repr(ws).startswith("<WebSocket fd=")
        assert repr(ws).endswith(" open>")
        assert ws.peer[0] == "127.0.0.1"
        assert ws.local[1] == at.port
        ws.close_nowait()
        assert repr(ws).endswith(" closing>")
    assert repr(ws) == "<WebSocket fd=-1 gone>"
    assert ws.peer is None
    assert ws.fileno() == -1
