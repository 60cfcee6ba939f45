"""Handlers written as one coroutine: forms, receiving, parking and pinning, and the memory of contexts."""

from __future__ import annotations

import contextvars
import functools
import gc
import logging
import os
import weakref
from contextlib import aclosing, asynccontextmanager

import pytest
import sniffio
import trio
import trio.testing
from ws_peer import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    close,
    frame,
    request,
    serving,
    text,
    until,
)

import trionet

variable = contextvars.ContextVar("variable", default="unset")
TICK = 0.02


async def echo(ws):
    """Answer each message with itself."""
    async for message in ws:
        await ws.send(message)


def pool(at):
    """Return the counters of the pool."""
    return at.server.statistics().pool


# ------------------------------------------------------------------ forms


class Callable:
    """A handler that is an object with an async ``__call__``."""

    async def __call__(self, ws):
        await echo(ws)


class Whole(trionet.WebSocketHandler):
    """A handler with all three methods it may have."""

    def __init__(self):
        self.seen = []

    async def on_upgrade(self, ws, request):
        self.seen.append("upgrade")

    async def handle(self, ws):
        self.seen.append("handle")
        await echo(ws)
        self.seen.append("handled")

    async def on_close(self, ws, closed):
        self.seen.append(closed.code)


async def with_greeting(greeting, ws):
    """Take an argument more."""
    assert greeting == "hello"
    await echo(ws)


FORMS = {
    "function": lambda: echo,
    "lambda": lambda: lambda ws: echo(ws),  # noqa: PLW0108 - the case
    "partial": lambda: functools.partial(with_greeting, "hello"),
    "callable": Callable,
    "class": Whole,
}


@pytest.mark.parametrize("form", FORMS)
async def test_all_that_may_be_a_handler(form):
    """A coroutine function, whatever returns a coroutine, and a `WebSocketHandler` with `handle`."""
    async with serving(trionet.WebSocketProtocol(FORMS[form]())) as at:
        peer = await at.join()
        await peer.echo("one")
        await peer.send(frame(BINARY, b"two"))
        assert await peer.frame() == Frame(BINARY, b"two")
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()


async def test_upgrade_and_close_belong_to_it():
    """`on_upgrade` comes before `handle`, `on_close` after its end."""
    handler = Whole()
    async with serving(handler) as at:
        peer = await at.join()
        await peer.echo()
        await peer.send(close(1001))
        assert await peer.closed() == 1001
        await until(lambda: len(handler.seen) == 4)
    assert handler.seen == ["upgrade", "handle", "handled", 1001]


async def test_an_upgrade_function():
    """`on_upgrade=` is for handlers that are functions: it may refuse."""

    async def on_upgrade(ws, request):
        if request.path != "/good":
            raise trionet.Rejection(403)

    async with serving(echo, on_upgrade=on_upgrade) as at:
        peer = await at.join("/good")
        await peer.echo()
        with pytest.raises(AssertionError):
            await at.join("/bad")


async def a_generator(ws):
    """Mistake `yield` for something a handler does."""
    yield ws


class Mixed(trionet.WebSocketHandler):
    """Has both."""

    async def handle(self, ws): ...

    async def on_message(self, ws, message): ...


@pytest.mark.parametrize(
    ("handler", "options", "says"),  # noqa: PT006
    [
        (Mixed(), {}, "on_message"),
        (Whole, {}, r"Whole\(\)"),
        (a_generator, {}, "yield"),
        (5, {}, "coroutine function"),
        (trionet.WebSocketHandler(), {"cancel_on_disconnect": True}, "straight-line"),
        (trionet.WebSocketHandler(), {"max_stream": 2**21}, "straight-line"),
        (echo, {"max_stream": 5}, "max_message"),
    ],
    ids=["mixed", "class", "generator", "number", "cancel_on_disconnect", "max_stream", "short max_stream"],
)
def test_what_cannot_work_is_said_at_once(handler, options, says):
    """Settings that cannot work raise when the protocol is made, and say which."""
    with pytest.raises(trionet.ConfigurationError, match=says):
        trionet.WebSocketProtocol(handler, **options)


async def test_a_function_that_is_no_coroutine_function(caplog):
    """A plain ``def`` is found out with the first connection, which is closed with 1011; the log says why."""

    def handler(ws):
        return None

    async with serving(handler) as at:
        peer = await at.join()
        assert await peer.closed() == 1011
    assert "async def" in str(caplog.records[0].exc_info[1])


async def test_event_handlers_do_not_receive():
    """`receive`, iteration, pieces and tasks in an event handler raise an error that says what to write instead."""
    said = []

    class Handler(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            for use in (
                ws.receive,
                lambda: aiter(ws),
                ws.receive_stream,
                lambda: ws.start_soon(trio.sleep, 1),
            ):
                with pytest.raises(RuntimeError) as caught:
                    use()
                said.append(str(caught.value))
            assert list(ws.stack()) == []
            await ws.send("done")

    async with serving(Handler()) as at:
        peer = await at.join()
        await peer.say("go")
        assert await peer.hear() == "done"
    assert len(said) == 4
    assert all("straight-line" in words for words in said)


async def test_receiving_before_it_is_open(caplog):
    """In `on_upgrade` there is nothing to receive yet."""

    async def on_upgrade(ws, request):
        await ws.receive()

    async with serving(echo, on_upgrade=on_upgrade) as at:
        peer = await at.dial()
        await peer.send(request())
        assert await peer.status() == 500
    assert "not open yet" in str(caplog.records[0].exc_info[1])


async def test_the_request_until_the_first_receive():
    """`ws.request` and `ws.subprotocol` can be read until something is received, then they are forgotten."""
    seen = []

    async def handler(ws):
        seen.append((ws.request.path, ws.subprotocol))
        await ws.receive()
        seen.append((ws.request, ws.subprotocol))

    async with serving(handler, subprotocols=["chat"]) as at:
        peer = await at.join("/room", "Sec-WebSocket-Protocol: chat")
        await peer.say("x")
        assert await peer.closed() == 1000
    assert seen == [("/room", "chat"), (None, None)]


# ------------------------------------------------------------------ receiving


@pytest.mark.parametrize("code", [1000, 1001, None, 4000, 1002])
async def test_how_iteration_ends(code):
    """It ends at 1000, 1001 and no code; else it raises what `receive` raises."""
    ends = []

    async def handler(ws):
        try:
            async for _ in ws:
                pass
        except trionet.ConnectionClosed as closed:
            ends.append((closed.code, closed.reason, closed.by))
        else:
            ends.append("end")
        for _ in range(3):  # again on every later call
            with pytest.raises(trionet.ConnectionClosed):
                await ws.receive()
            with pytest.raises(trionet.ConnectionClosed):
                await ws.send("x")

    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(frame(CLOSE) if code is None else close(code, b"why"))
        await peer.closed()
        await until(lambda: ends)
        assert pool(at).failures == 0
    assert ends == ["end" if code in {1000, 1001, None} else (code, "why", "peer")]


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("feed", ["whole", "byte by byte"])
async def test_what_came_before_the_close_is_received(timeout, pinned, feed):
    """Messages and a Close in one segment: all are received in order, then the end."""
    seen = []

    async def handler(ws):
        with trio.CancelScope() if pinned else functools.partial(_nothing)():
            try:
                while True:
                    seen.append(await ws.receive(timeout))
            except trionet.ConnectionClosed as closed:
                seen.append(closed.code)

    messages = [str(number) for number in range(20)]
    data = b"".join(map(text, messages)) + close(4321)
    async with serving(handler) as at:
        peer = await at.join()
        if feed == "whole":
            await peer.send(data)
        else:
            for index in range(len(data)):
                await peer.send(data[index : index + 1])
        assert await peer.closed() == 4321
        await until(lambda: len(seen) == 21)
    assert seen == [*messages, 4321]


class _nothing:  # noqa: N801 - stands for a context manager that does nothing
    def __enter__(self): ...
    def __exit__(self, *_): ...


@pytest.mark.parametrize("timeout", [None, 60])
async def test_answers_to_a_burst_that_ends_with_a_close(timeout):
    """A parked handler answers all that came before the Close, with a timeout or without."""

    async def handler(ws):
        try:
            while True:
                await ws.send(await ws.receive(timeout))
        except trionet.ConnectionClosed:
            pass

    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("1"), text("2"), text("3"), close())
        assert [await peer.hear() for _ in range(3)] == ["1", "2", "3"]
        assert await peer.closed() == 1000


async def test_nothing_is_delivered_after_our_own_close():
    """What a peer says after our Close is not received."""
    seen = []

    async def handler(ws):
        seen.append(await ws.receive())
        ws.close_nowait(4000)
        with pytest.raises(trionet.ConnectionClosed) as caught:
            await ws.receive()
        seen.append((caught.value.code, caught.value.by))

    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("one"), text("two"))
        assert await peer.closed() == 4000
        await peer.send(text("three"))
        await peer.send(close(4000))
        await peer.ended()
    assert seen == ["one", (4000, "us")]


@pytest.mark.parametrize("kind", ["straight", "events"])
async def test_closed_by_somebody_else_with_a_message_on_its_way(kind):
    """A connection that another task closes delivers nothing more, not even what the kernel has already."""
    seen = []

    class Events(trionet.WebSocketHandler):
        async def on_message(self, ws, message):
            seen.append(message)

    async def handler(ws):
        try:
            seen.append(await ws.receive())
        except trionet.ConnectionClosed as closed:
            assert closed.code == 4001  # noqa: PT017 - either may come

    async with serving(handler if kind == "straight" else Events()) as at:
        peer = await at.join()
        await trio.testing.wait_all_tasks_blocked()
        os.write(peer.stream.socket.fileno(), text("late"))
        at.connection.close_nowait(4001)
        assert await peer.closed() == 4001
        await peer.send(close(4001))
        await peer.ended()
    assert seen == []


async def test_messages_kept_while_it_sleeps_come_in_order():
    """What comes while the handler is busy is kept, and received in order."""
    seen = []
    gate = trio.Event()

    async def handler(ws):
        async for message in ws:
            seen.append(message)
            if message == "0":
                await gate.wait()
            await ws.send(message)

    async with serving(handler) as at:
        peer = await at.join()
        await peer.send(text("0"), text("1"), text("2"))
        await until(lambda: seen)
        await peer.send(text("3"), frame(PING, b"?"))
        assert await peer.frame() == Frame(PONG, b"?")  # it is heard meanwhile
        gate.set()
        await peer.say("4")
        assert [await peer.hear() for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert seen == ["0", "1", "2", "3", "4"]


async def test_a_busy_handler_is_read_ahead_of_only_so_far():
    """A pinned handler that does not receive lets the peer feel it, and gets all of it in the end."""
    gate = trio.Event()
    received = []

    async def handler(ws):
        with trio.CancelScope():
            await gate.wait()
            received.extend([message async for message in ws])

    async with serving(handler, read_ahead=2000) as at:
        peer = await at.join()
        await peer.send(*(text(f"{number:0100}") for number in range(100)))
        await until(lambda: at.connection._state & 16)
        assert at.connection._rare.held_size < 40_000
        gate.set()
        await peer.send(close())
        assert await peer.closed() == 1000
        await until(lambda: received)
    assert received == [f"{number:0100}" for number in range(100)]


@pytest.mark.parametrize("how", ["waits", "was busy", "child"])
async def test_a_long_message_for_a_pinned_handler(how):
    """A message longer than `read_ahead` reaches a handler that is pinned, in one frame or in many."""
    gate = trio.Event()

    async def handler(ws):
        async with trio.open_nursery() as nursery:
            if how == "child":
                nursery.start_soon(echo, ws)
                return
            if how == "was busy":
                await gate.wait()
            for _ in range(2):
                await ws.send(await ws.receive())

    async with serving(handler, read_ahead=2000) as at:
        peer = await at.join()
        async with trio.open_nursery() as nursery:
            payload = "x" * 300_000
            nursery.start_soon(peer.send, text(payload), *(text_frames(payload)))
            if how == "was busy":
                await until(lambda: at.connection._state & 16)
                gate.set()
            assert await peer.hear() == payload
            assert await peer.hear() == payload
        await peer.send(close())
        assert await peer.closed() == 1000


def text_frames(payload):
    """Return a message in three frames."""
    data = payload.encode()
    yield frame(TEXT, data[:1000], fin=False)
    yield frame(CONTINUATION, data[1000:100_000], fin=False)
    yield frame(CONTINUATION, data[100_000:])


async def test_a_long_burst_is_echoed():
    """More than 64 answers to one read let others run, and lose nothing."""
    async with serving(echo) as at:
        peer = await at.join()
        await peer.send(*(text(str(number)) for number in range(500)))
        assert [await peer.hear() for _ in range(500)] == [str(number) for number in range(500)]


# ------------------------------------------------------------------ timeouts


async def test_a_timeout_without_a_scope():
    """`receive(timeout=)` raises `trio.TooSlowError`; the handler stays parked, and may go on receiving."""
    seen = []

    async def handler(ws):
        for _ in range(2):
            with pytest.raises(trio.TooSlowError):
                await ws.receive(timeout=TICK)
            seen.append(pool(at).pinned)
        await ws.send("slow")
        await echo(ws)

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.hear() == "slow"
        await peer.echo()
        await until(lambda: pool(at).parked == 1)
    assert seen == [0, 0]


async def test_a_timeout_after_a_wait():
    """A handler that has slept before, in the same job, times out as well."""

    async def handler(ws):
        await trio.lowlevel.checkpoint()
        with pytest.raises(trio.TooSlowError):
            await ws.receive(timeout=TICK)
        await ws.send("slow")

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.hear() == "slow"


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
async def test_no_time_at_all(timeout):
    """A timeout of nothing is over with the next tick."""

    async def handler(ws):
        with pytest.raises(trio.TooSlowError):
            await ws.receive(timeout=timeout)

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.closed() == 1000


async def test_for_ever():
    """An infinite timeout is none."""

    async def handler(ws):
        await ws.send(await ws.receive(timeout=float("inf")))

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        await peer.echo()


async def test_a_timeout_in_a_pinned_handler():
    """It works the same inside a scope, and for a child."""

    async def handler(ws):
        with trio.CancelScope(), pytest.raises(trio.TooSlowError):
            await ws.receive(timeout=TICK)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def child():
                with pytest.raises(trio.TooSlowError):
                    await ws.receive(timeout=TICK)

        await ws.send("slow")

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.hear() == "slow"


async def test_a_cancelled_wait_takes_its_timeout_along():
    """The timeout of a `receive` that was cancelled does not end the next one."""

    async def handler(ws):
        with trio.move_on_after(0.001):
            await ws.receive(timeout=5 * TICK)
        await ws.receive()
        await ws.send("patient")

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        tick = at.server.engine.tick
        await until(lambda: at.server.engine.tick > tick + 10)
        await peer.say("late")
        assert await peer.hear() == "patient"


async def test_a_timeout_that_nobody_catches(caplog):
    """It is an error like others: 1011, in the log."""

    async def handler(ws):
        await ws.receive(timeout=TICK)

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.closed() == 1011
    assert caplog.records[0].exc_info[0] is trio.TooSlowError


async def test_a_message_in_time_costs_the_timeout_nothing():
    """After a message in time the clock begins anew, and a plain `receive` has none."""

    async def handler(ws):
        for _ in range(3):
            await ws.send(await ws.receive(timeout=60))
        assert ws._session is None
        await ws.receive()

    async with serving(handler, resolution=TICK) as at:
        peer = await at.join()
        for word in "abc":
            await peer.echo(word)
        await until(lambda: pool(at).parked == 1)
        assert at.connection._session is None


# ------------------------------------------------------------------ parked and pinned


async def test_waiting_costs_no_task():
    """A hundred handlers that wait are parked: none is pinned, none detached, and there are a few tasks only."""
    async with serving(echo) as at:
        before = trio.lowlevel.current_statistics().tasks_living
        peers = [await at.join() for _ in range(100)]
        await until(lambda: pool(at).parked == 100)
        statistics = pool(at)
        assert (statistics.pinned, statistics.detached, statistics.suspended) == (0, 0, 0)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 4
        for peer in peers:
            await peer.echo()
        await until(lambda: pool(at).parked == 100)
        for peer in peers[:50]:
            await peer.aclose()
        await until(lambda: pool(at).parked == 50)
    assert at.server.engine.pool.at_rest == 0
    assert at.server.engine.pool.pinned == 0


lock = trio.Lock()


@asynccontextmanager
async def holding(of):
    """Hold a lock that was acquired before."""
    await of.acquire()
    try:
        yield
    finally:
        of.release()


@asynccontextmanager
async def scope(of):
    """Open a cancel scope in a context manager of one's own."""
    with trio.CancelScope():
        yield


PINS = {
    "move_on_after": lambda: trio.move_on_after(60),
    "fail_after": lambda: trio.fail_after(60),
    "shield": lambda: trio.CancelScope(shield=True),
    "nursery": trio.open_nursery,
    "lock": lambda: holding(trio.Lock()),
    "condition": lambda: holding(trio.Condition()),
    "strict lock": lambda: holding(trio.StrictFIFOLock()),
    "own manager": lambda: scope(None),
}


@pytest.mark.parametrize("what", PINS)
async def test_what_pins(what):
    """While a scope, a nursery or a lock is open the handler waits in its task; afterwards it parks again."""

    async def handler(ws):
        await ws.send(await ws.receive())
        manager = PINS[what]()
        if hasattr(manager, "__aenter__"):
            async with manager:
                await ws.send(await ws.receive())
        else:
            with manager:
                await ws.send(await ws.receive())
        await echo(ws)

    async with serving(handler, pool_size=1) as at:
        peers = [await at.join() for _ in range(3)]
        for peer in peers:
            await peer.echo("1")
        await until(lambda: pool(at).pinned == 3)
        assert pool(at).parked == 0
        assert pool(at).detached == 3  # they hold no slot
        for peer in peers:
            await peer.echo("2")
        await until(lambda: pool(at).parked == 3)
        assert (pool(at).pinned, pool(at).detached) == (0, 0)
        for peer in peers:
            await peer.echo("3")


async def test_a_shared_lock_across_a_wait():
    """Handlers that hold one lock while they receive exclude each other, as tasks would."""
    shared = trio.Lock()
    order = []

    async def handler(ws):
        name = await ws.receive()
        async with shared:
            order.append(("in", name))
            await ws.send("in")
            await ws.receive()
            order.append(("out", name))
        await ws.send("out")

    async with serving(handler, pool_size=1) as at:
        peers = [await at.join() for _ in range(5)]
        for number, peer in enumerate(peers):
            await peer.say(str(number))
        async with trio.open_nursery() as nursery:
            for peer in peers:

                @nursery.start_soon
                async def play(peer=peer):
                    assert await peer.hear() == "in"
                    await peer.say("go")
                    assert await peer.hear() == "out"

    names = [name for _, name in order]
    assert names[::2] == names[1::2]
    assert [what for what, _ in order] == ["in", "out"] * 5


async def test_a_limiter_held_across_a_wait_is_an_error(caplog):
    """A `CapacityLimiter` borrowed by a task cannot be seen from outside: another worker cannot give it back."""
    limiter = trio.CapacityLimiter(1)
    gate = trio.Event()
    busy = []

    async def handler(ws):
        if await ws.receive() == "busy":
            busy.append(trio.lowlevel.current_task())
            await gate.wait()
        else:
            await limiter.acquire()
            await ws.receive()
            limiter.release()

    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("borrow")
        await until(lambda: limiter.borrowed_tokens == 1)
        [borrower] = limiter.statistics().borrowers
        while borrower not in busy:  # it may be waiting for its turn behind others
            other = await at.join()
            count = len(busy)
            await other.say("busy")
            await until(lambda count=count: len(busy) > count)
        await peer.say("go")
        assert await peer.closed() == 1011
        gate.set()
    assert caplog.records[0].exc_info[0] is RuntimeError


async def test_a_limiter_on_behalf_of_the_connection():
    """What to do instead: borrow on behalf of the connection."""
    limiter = trio.CapacityLimiter(1)

    async def handler(ws):
        await limiter.acquire_on_behalf_of(ws)
        try:
            await ws.receive()
            await trio.lowlevel.checkpoint()
        finally:
            limiter.release_on_behalf_of(ws)

    async with serving(handler) as at:
        first, second = await at.join(), await at.join()
        await until(lambda: limiter.borrowed_tokens == 1)
        await first.say("1")
        await second.say("2")
        assert await first.closed() == 1000
        assert await second.closed() == 1000


async def test_a_thread_that_calls_back():
    """A thread's call into the handler is bound to the task the thread came from, so there a receive is pinned."""

    async def handler(ws):
        async def receive():
            return await ws.receive()

        def in_thread():
            return trio.from_thread.run(receive) + trio.from_thread.run(receive)

        await ws.send(await trio.to_thread.run_sync(in_thread))
        await echo(ws)

    async with serving(handler) as at:
        peers = [await at.join() for _ in range(3)]
        for word in "ab":
            await until(lambda: pool(at).pinned == 3)
            for peer in peers:
                await peer.say(word)
            await until(lambda: pool(at).pinned < 3)
        for peer in peers:
            assert await peer.hear() == "ab"
            await peer.echo()


async def test_trio_without_a_cancel_status(monkeypatch):
    """A Trio that does not show which scope is open: every wait is pinned, and right."""
    monkeypatch.setattr("trionet.net.pool.hasattr", lambda *_: False, raising=False)
    async with serving(echo) as at:
        peer = await at.join()
        await peer.echo("1")
        await until(lambda: pool(at).pinned == 1)
        assert pool(at).parked == 0
        await peer.echo("2")


# ------------------------------------------------------------------ what handlers use


async def test_what_other_trio_code_sees():
    """Sleeping, threads, sniffio and the name of the task: as in any task."""
    seen = []

    async def handler(ws):
        async for message in ws:
            await trio.sleep(0.001)
            seen.append(sniffio.current_async_library())
            seen.append(await trio.to_thread.run_sync(str.upper, message))
            seen.append(trio.lowlevel.current_task().name)
            await ws.send(message)
            await ws.receive()
            seen.append(trio.lowlevel.current_task().name)
            return

    async with serving(handler) as at:
        peer = await at.join()
        await peer.echo("one")
        await peer.say("two")
        assert await peer.closed() == 1000
    assert seen[:2] == ["trio", "ONE"]
    assert "handler" in seen[2]
    assert "test_what_other_trio_code_sees" in seen[2]
    assert seen[3] == "trionet worker"


async def counted(ws):
    """Number the messages of a connection."""
    number = 0
    try:
        while True:
            yield number, await ws.receive()
            number += 1
    finally:
        ws.data = "finalised"
        await trio.lowlevel.checkpoint()


async def test_an_async_generator_that_receives():
    """A generator parks like its handler; `aclosing` ends it while the connection lives."""

    async def handler(ws):
        async with aclosing(counted(ws)) as numbered:
            async for number, message in numbered:
                await ws.send(f"{number} {message}")
                if number == 2:
                    break
        await ws.send(ws.data)
        await echo(ws)

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: pool(at).parked == 1)
        assert "yield number, await ws.receive()" in "".join(at.connection.stack().format())
        for number in range(3):
            await peer.say("x")
            assert await peer.hear() == f"{number} x"
        assert await peer.hear() == "finalised"
        await peer.echo()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_async_generator_left_behind():
    """One that is only dropped is ended by Trio's own hook."""

    async def handler(ws):
        numbered = counted(ws)
        await anext(numbered)
        del numbered
        gc.collect()
        await until(lambda: ws.data == "finalised")
        await ws.send("done")

    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("x")
        assert await peer.hear() == "done"


@pytest.mark.parametrize("where", ["receive", "sleep", "generator"])
async def test_where_it_waits(where):
    """`stack()` shows the line where the handler waits; nothing, when it has ended."""

    async def handler(ws):
        if where == "receive":
            await ws.receive()  # it waits here
        elif where == "sleep":
            await trio.sleep_forever()  # it waits here
        else:
            async for _ in counted(ws):  # it waits here
                pass

    async with serving(handler) as at:
        await at.join()
        await until(lambda: pool(at).parked == 1 or pool(at).suspended + pool(at).detached == 1)
        ws = at.connection
        shown = "".join(ws.stack().format())
        assert "# it waits here" in shown
        assert {"receive": "_wait", "sleep": "sleep_forever", "generator": "counted"}[where] in shown
    assert list(ws.stack()) == []


# ------------------------------------------------------------------ contexts


@pytest.mark.parametrize("around", ["around", {}])
async def test_variables_are_the_handlers_own(around):
    """It sees what was set around the server; what it sets lasts across waits, for it alone (an equal value, too)."""
    token = variable.set(around)
    seen = []
    try:

        async def on_upgrade(ws, request):
            variable.set(("upgrade", request.path))

        async def handler(ws):
            seen.append(variable.get())
            mine = {}
            token = variable.set(mine)
            async for message in ws:
                assert variable.get() is mine
                variable.get()[message] = True
                if message == "wait":
                    await trio.lowlevel.checkpoint()
                    assert variable.get() is mine
                await ws.send(",".join(variable.get()))
                if message == "reset":
                    variable.reset(token)
                    assert variable.get() == seen[-1] or len(seen) > 1
                    return

        async with serving(handler, on_upgrade=on_upgrade) as at:
            one, two = await at.join("/1"), await at.join("/2")
            for word, answer in ("a", "a"), ("wait", "a,wait"), ("b", "a,wait,b"):
                for peer in one, two:
                    await peer.say(word)
                    assert await peer.hear() == answer
            await one.say("reset")
            assert await one.hear() == "a,wait,b,reset"
            assert await one.closed() == 1000
        assert variable.get() is around
        assert seen == [("upgrade", "/1"), ("upgrade", "/2")]
    finally:
        variable.reset(token)


async def test_an_equal_value_is_another_one():
    """A handler that sets what is equal to what was there before gets its own back after a wait."""
    token = variable.set({})
    try:

        async def handler(ws):
            variable.set({})
            async for message in ws:
                variable.get()[message] = True
                await ws.send(",".join(variable.get()))

        async with serving(handler) as at:
            one, two = await at.join(), await at.join()
            await one.say("a")
            assert await one.hear() == "a"
            await two.say("b")
            assert await two.hear() == "b"
        assert variable.get() == {}
    finally:
        variable.reset(token)


async def test_values_are_not_compared():
    """A value whose ``==`` raises does no harm."""

    class Prickly:
        def __eq__(self, other):
            raise ValueError

        __hash__ = None

    token = variable.set(Prickly())
    try:

        async def handler(ws):
            variable.set(Prickly())
            await echo(ws)

        async with serving(handler) as at:
            peer = await at.join()
            await peer.echo()
            await peer.echo()
    finally:
        variable.reset(token)


async def test_a_token_from_before_the_wait():
    """`reset` works after parking, in whatever worker."""

    async def handler(ws):
        token = variable.set("mine")
        await ws.receive()
        variable.reset(token)
        context = contextvars.copy_context()
        context.run(variable.set, "inner")
        await ws.send(f"{variable.get()} {context[variable]}")
        await ws.receive()
        assert variable.get() == "unset"

    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("x")
        assert await peer.hear() == "unset inner"
        await peer.say("y")
        assert await peer.closed() == 1000


async def test_an_idle_handler_without_variables_has_no_context():
    """A context is kept only for handlers that have set something."""

    async def handler(ws):
        await ws.receive()
        variable.set("mine")
        await ws.receive()

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: pool(at).parked == 1)
        ws = at.connection
        assert ws._session is None
        await peer.say("x")
        await until(lambda: ws._session is not None)
        assert ws._session.context is not None


async def test_nothing_is_left_of_it():
    """After the end neither the coroutine nor the connection is kept."""
    gone = []

    async def handler(ws):
        with trio.move_on_after(0):
            await ws.receive()
        token = variable.set("x")
        await trio.lowlevel.checkpoint()
        variable.reset(token)
        await echo(ws)

    async with serving(handler) as at:
        peer = await at.join()
        await peer.echo()
        gone += [weakref.ref(at.connection._coroutine)]
        await peer.send(close())
        assert await peer.closed() == 1000
        await until(lambda: at.server.statistics().connections == 0)
        await until(lambda: at.server.engine.pool.at_rest == 0)
        other = await at.join()
        await other.echo()
        gc.collect()
        assert [ref() for ref in gone] == [None]


# ------------------------------------------------------------------ pieces


async def test_a_message_in_pieces():
    """A message longer than `max_message` is received in pieces; the next ones whole."""

    async def handler(ws):
        size = 0
        async with ws.receive_stream() as pieces:
            async for piece in pieces:
                assert isinstance(piece, bytes)
                size += len(piece)
        await ws.send(f"{size}")
        await echo(ws)

    async with serving(handler, max_message=1000, max_stream=2**20) as at:
        peer = await at.join()
        await peer.send(frame(BINARY, bytes(300_000), fin=False))
        await peer.send(frame(CONTINUATION, bytes(5)), text("next"))
        assert await peer.hear() == "300005"
        assert await peer.hear() == "next"


async def test_leaving_a_message_early_skips_the_rest():
    """What is not read of it is discarded; the next message begins where it begins."""

    async def handler(ws):
        async with ws.receive_stream() as pieces:
            await ws.send(await anext(pieces))
        await echo(ws)

    async with serving(handler, max_stream=2**21) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, b"first", fin=False))
        assert await peer.hear() == "first"
        await peer.send(frame(CONTINUATION, b"second", fin=False))
        await peer.send(frame(CONTINUATION, b"third"), text("next"))
        assert await peer.hear() == "next"


async def test_a_whole_message_from_pieces():
    """`receive` assembles a message that comes in pieces, also where a piece ends within a character."""
    async with serving(echo, max_stream=2**21) as at:
        peer = await at.join()
        word = "grüße €"
        data = frame(TEXT, word.encode())
        for index in range(len(data)):
            await peer.send(data[index : index + 1])
        assert await peer.hear() == word
        middle = word.encode().index(b"\xc3") + 1
        await peer.send(frame(TEXT, word.encode()[:middle], fin=False))
        await peer.send(frame(CONTINUATION, word.encode()[middle:]))
        assert await peer.hear() == word


async def test_a_whole_message_may_not_be_too_long():
    """Beyond `max_message`, `receive` closes with 1009, whatever `max_stream` allows."""
    ends = []

    async def handler(ws):
        try:
            await ws.receive()
        except trionet.ConnectionClosed as closed:
            ends.append((closed.code, closed.by))

    async with serving(handler, max_message=1000, max_stream=2**21) as at:
        peer = await at.join()
        await peer.send(frame(BINARY, bytes(2000)))
        assert await peer.closed() == 1009
        await until(lambda: ends)
    assert ends == [(1009, "us")]


async def test_pieces_after_a_cancelled_receive():
    """What a cancelled `receive` had of a message goes to whoever receives next, once."""
    seen = []
    gate = trio.Event()

    async def handler(ws):
        with trio.CancelScope() as waiting:
            ws.data = waiting
            await ws.receive()
        async with ws.receive_stream() as pieces:
            seen.append([piece async for piece in pieces])
        seen.append(await ws.receive())
        gate.set()

    async with serving(handler, max_stream=2**21) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, b"abc", fin=False))
        await until(lambda: at.connection._session is not None and at.connection._session.chunks)
        at.connection.data.cancel()
        await until(lambda: pool(at).parked == 1)
        await peer.send(frame(CONTINUATION, b"def"), text("next"))
        await gate.wait()
    assert seen == [["abcdef"], "next"]


async def test_a_message_that_is_broken_off():
    """The end within a message is the end for whoever receives it."""
    ends = []

    async def handler(ws):
        try:
            async with ws.receive_stream() as pieces:
                async for piece in pieces:
                    ends.append(piece)  # noqa: PERF401 - what came before it was broken off
        except trionet.ConnectionClosed as closed:
            ends.append(closed.code)

    async with serving(handler, max_stream=2**21) as at:
        peer = await at.join()
        await peer.send(frame(TEXT, b"abc", fin=False))
        await until(lambda: ends)
        await peer.aclose()
        await until(lambda: len(ends) == 2)
    assert ends == ["abc", 1006]


async def test_sending_in_pieces_from_a_handler():
    """`send_stream` parks while the peer is slow; what comes meanwhile is received afterwards."""

    async def handler(ws):
        await ws.receive()
        async with ws.send_stream() as stream:
            for _ in range(60):
                await stream.send(bytes(8192))
        await echo(ws)

    async with serving(handler) as at:
        peer = await at.join(small=True)
        await peer.send(text("go"), text("next"))
        await until(lambda: pool(at).parked == 1)
        size = 0
        while not (piece := await peer.frame()).fin:
            size += len(piece.payload)
        assert size == 60 * 8192
        assert await peer.hear() == "next"


# ------------------------------------------------------------------ with others


async def test_a_limited_rate():
    """A straight-line handler on a protocol that limits rates gets all, later."""
    async with serving(echo, max_messages_per_second=50, resolution=TICK) as at:
        peer = await at.join()
        await peer.send(*(text(str(number)) for number in range(60)))
        assert [await peer.hear() for _ in range(60)] == [str(number) for number in range(60)]
        await until(lambda: pool(at).parked == 1)


async def test_a_foreign_origin_starts_no_handler():
    """The checks before the upgrade are the same."""
    begun = []

    async def handler(ws):
        begun.append(ws)

    async with serving(handler) as at:
        peer = await at.dial()
        await peer.send(request("/", "Origin: https://evil.example"))
        assert await peer.status() == 403
    assert begun == []


async def test_a_silent_peer_is_noticed_while_parked():
    """No answer to a keepalive ping ends a parked handler with 1011."""
    ends = []

    async def handler(ws):
        try:
            await ws.receive()
        except trionet.ConnectionClosed as closed:
            ends.append((closed.code, closed.by))

    async with serving(handler, ping_interval=TICK, ping_timeout=TICK, resolution=TICK) as at:
        peer = await at.join()
        assert await peer.frame() == Frame(PING, b"")
        assert await peer.closed() == 1011
        await until(lambda: ends)
    assert ends == [(1011, "us")]


async def test_a_peer_that_does_not_read_is_noticed_while_parked(caplog):
    """The write deadline ends a handler that is parked in `send`."""
    ends = []

    async def handler(ws):
        try:
            while True:
                await ws.send(bytes(8192))
        except trionet.ConnectionClosed as closed:
            ends.append(closed.code)

    caplog.set_level(logging.ERROR)
    async with serving(handler, write_timeout=3 * TICK, resolution=TICK) as at:
        await at.join(small=True)
        await until(lambda: ends)
        assert pool(at).failures == 0
    assert ends == [1006]


async def test_waiting_for_room_is_parked():
    """A handler whose peer does not read costs no worker: others go on, in a pool of one."""

    async def handler(ws):
        if await ws.receive() == "flood":
            while True:
                await ws.send(bytes(8192))
        await echo(ws)

    async with serving(handler, pool_size=1, slot_grace=60) as at:
        slow = [await at.join(small=True) for _ in range(3)]
        peer = await at.join()
        for one in slow:
            await one.say("flood")
        await until(lambda: len(at.server.engine.pool.parked) == 3)
        await peer.say("echo")
        await peer.echo("still here")
        assert pool(at).parked == 4
        assert (pool(at).suspended, pool(at).detached) == (0, 0)


async def test_handlers_that_wait_for_each_other():
    """In a pool of one, twenty handlers each wait for the next one's message."""
    events = [trio.Event() for _ in range(21)]
    events[20].set()

    async def handler(ws):
        number = int(await ws.receive())
        await events[number + 1].wait()
        events[number].set()
        await ws.send("passed on")

    async with serving(handler, pool_size=1, slot_grace=0.001) as at:
        peers = [await at.join() for _ in range(20)]
        for number, peer in enumerate(peers):
            await peer.say(str(number))
        for peer in peers:
            assert await peer.hear() == "passed on"
