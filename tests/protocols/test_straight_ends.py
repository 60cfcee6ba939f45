"""How straight-line handlers end: returning, raising, cancelled, drained, interrupted; their tasks, their cleanup."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
import trio
import trio.testing
from ws_peer import Peer, close, descriptors, request, serving, tasks, text, until

import trionet

variable = contextvars.ContextVar("variable", default="unset")
TICK = 0.02
ROOT = Path(trionet.__file__).resolve().parent.parent


async def echo(ws):
    """Answer each message with itself."""
    async for message in ws:
        await ws.send(message)


def pool(at):
    """Return the counters of the pool."""
    return at.server.statistics().pool


def waiting(at):
    """Return how many handlers wait, in whatever way."""
    statistics = pool(at)
    return statistics.parked + statistics.suspended + statistics.detached


# ------------------------------------------------------------------ returning, raising


async def test_returning_closes_with_1000():
    """A handler that returns early says goodbye."""

    async def handler(ws):
        await ws.send(await ws.receive())

    async with serving(handler) as at:
        peer = await at.join()
        await peer.echo()
        await peer.farewell(1000)
        assert pool(at).failures == 0


@pytest.mark.parametrize("after", ["nothing", "receive", "sleep", "pinned"])
@pytest.mark.parametrize("error", [RuntimeError, "group"])
async def test_raising_closes_with_1011(after, error, caplog):
    """What a handler raises is logged once and costs its own connection only."""

    async def handler(ws):
        if await ws.receive() == "raise":
            if after == "receive":
                await ws.receive()
            elif after == "sleep":
                await trio.lowlevel.checkpoint()
            elif after == "pinned":
                with trio.CancelScope():
                    await ws.receive()
            raise ExceptionGroup("two", [RuntimeError(), ValueError()]) if error == "group" else error
        await echo(ws)

    async with serving(handler) as at:
        other, peer = await at.join(), await at.join()
        await other.say("stay")
        await peer.send(text("raise"), text("and"))
        await peer.farewell(1011)
        await other.echo()
        assert pool(at).failures == 1
        assert pool(at).parked == 1
    assert len(caplog.records) == 1


async def test_a_closed_connection_is_no_failure(caplog):
    """`ConnectionClosed` that leaves the handler is how most end: it is not logged."""

    async def handler(ws):
        while True:
            await ws.send(await ws.receive())

    async with serving(handler) as at:
        for end in "close", "fin", "reset":
            peer = await at.join()
            await peer.echo()
            if end == "close":
                await peer.send(close(4000))
            elif end == "fin":
                await peer.aclose()
            else:
                await peer.reset()
        await until(lambda: at.server.engine.pool.at_rest == 0)
    assert caplog.records == []


async def test_another_connections_end_is_a_failure(caplog):
    """`ConnectionClosed` of another connection, while its own is open, is an error like others."""

    async def handler(ws):
        if await ws.receive() == "send":
            await trio.testing.wait_all_tasks_blocked()
            await gone[0].send("x")
        gone.append(ws)

    gone = []
    async with serving(handler) as at:
        first, second = await at.join(), await at.join()
        await first.say("x")
        await first.farewell(1000)
        await second.say("send")
        assert await second.closed() == 1011
    assert caplog.records[0].exc_info[0] is trionet.ConnectionClosed


# ------------------------------------------------------------------ cancelling


async def test_a_deadline_around_a_wait():
    """`move_on_after` around `receive` ends the wait; nothing that came is lost."""

    async def handler(ws):
        with trio.move_on_after(TICK) as scope:
            await ws.receive()
        await ws.send(f"{scope.cancelled_caught}")
        with pytest.raises(trio.TooSlowError), trio.fail_after(TICK):  # noqa: PT012 - a conversation
            async for message in ws:
                await ws.send(message)
        await echo(ws)

    async with serving(handler) as at:
        peer = await at.join()
        assert await peer.hear() == "True"
        await peer.echo("one")
        await until(lambda: pool(at).parked == 1)
        await peer.echo("two")


@pytest.mark.parametrize("reads", [True, False])
async def test_sending_for_ever_under_a_deadline(reads):
    """``while True: await ws.send(x)`` ends at its deadline, whether the peer reads or not; no frame is cut."""
    sent = []

    async def handler(ws):
        with trio.move_on_after(5 * TICK):
            while True:
                await ws.send(bytes(4096))
                sent.append(1)
        await ws.send("end")

    async with serving(handler) as at:
        peer = await at.join(small=True)
        if not reads:
            await until(lambda: pool(at).pinned or waiting(at))
            await trio.sleep(10 * TICK)
        count = 0
        while (frame := await peer.frame()).opcode == 2:
            count += 1
        assert frame.payload == b"end"
    assert count == len(sent)


async def test_cancelling_a_nursery():
    """A handler ends its children by cancelling their nursery, and goes on parked."""

    async def handler(ws):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(ws_receive, ws)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await ws.send("ready")
        await echo(ws)

    async def ws_receive(ws):
        await ws.receive()

    async with serving(handler) as at:
        peer = await at.join()
        assert await peer.hear() == "ready"
        await peer.echo()
        await until(lambda: pool(at).parked == 1)
        assert pool(at).pinned == 0


WAITS = ["parked", "timeout", "pinned", "asleep", "sending", "pinned sending", "child", "thread"]


def waiter(how, log):
    """Return a handler that waits in some way, and cleans up after it."""

    class Handler(trionet.WebSocketHandler):
        async def handle(self, ws):
            log.append(weakref.ref(ws._coroutine))
            try:
                if how == "parked":
                    await ws.receive()
                elif how == "timeout":
                    await ws.receive(timeout=60)
                elif how == "pinned":
                    with trio.fail_after(60):
                        await ws.receive()
                elif how == "asleep":
                    await trio.sleep_forever()
                elif how == "sending":
                    while True:
                        await ws.send(bytes(8192))
                elif how == "pinned sending":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.sleep_forever)
                        while True:
                            await ws.send(bytes(8192))
                elif how == "child":
                    async with trio.open_nursery() as nursery:

                        @nursery.start_soon
                        async def child():
                            await ws.receive()
                elif how == "thread":
                    await trio.to_thread.run_sync(lambda: trio.from_thread.run(trio.sleep_forever))
            except* trio.Cancelled:
                log.append("cancelled")
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.001)
                    log.append("cleaned up")

        async def on_close(self, ws, closed):
            log.append("closed")

    return Handler()


@pytest.mark.parametrize("stop", ["cancelled", "exception"])
@pytest.mark.parametrize("how", WAITS)
async def test_a_hard_stop(how, stop, caplog):
    """However they wait, they are cancelled; `finally` may await under a shield; `on_close` once; nothing is left."""
    log = []
    before = descriptors(), tasks()
    raised = False
    try:
        async with serving(waiter(how, log)) as at:
            for _ in range(3):
                await at.join(small=True)
            await until(lambda: waiting(at) == 3)
            await until(lambda: len(log) == 3)
            await trio.sleep(0.005)
            working = at.server.engine.pool
            if stop == "exception":
                raise ZeroDivisionError
    except ZeroDivisionError:
        raised = True
    assert raised == (stop == "exception")
    refs, words = log[:3], log[3:]
    assert sorted(words) == ["cancelled"] * 3 + ["cleaned up"] * 3 + ["closed"] * 3
    assert (working.at_rest, working.pinned, len(working.parked)) == (0, 0, 0)
    assert (descriptors(), tasks()) == before
    assert caplog.records == []
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


async def test_an_error_during_a_hard_stop(caplog):
    """A nursery that fails while it is cancelled: the error is logged, the server ends as it would."""
    started = []

    async def handler(ws):
        async def fail():
            started.append(1)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
            await ws.receive()

    async with serving(handler) as at:
        for _ in range(3):
            await at.join()
        await until(lambda: len(started) == 3)
    assert len(caplog.records) == 3


async def test_an_error_of_a_parked_handler_during_a_hard_stop(caplog):
    """One whose cleanup fails is logged; the others are ended all the same."""
    ended = []

    async def handler(ws):
        try:
            await ws.receive()
        finally:
            ended.append(1)
            raise ValueError

    async with serving(handler) as at:
        for _ in range(3):
            await at.join()
        await until(lambda: pool(at).parked == 3)
    assert len(ended) == len(caplog.records) == 3


async def test_leaving_by_cancellation():
    """A server in a scope that is cancelled ends, and its parked handlers with it."""
    ended = []

    async def handler(ws):
        try:
            await ws.receive()
        except trio.Cancelled:
            ended.append(1)
            raise

    with trio.CancelScope() as scope:
        async with serving(handler) as at:
            await at.join()
            await until(lambda: pool(at).parked == 1)
            scope.cancel()
            await trio.sleep_forever()
    assert ended == [1]


async def test_tasks_cannot_be_started_in_a_hard_stop():
    """`start_soon` while the server ends raises `ConnectionClosed`, and `on_close` is called all the same."""
    log = []

    class Handler(trionet.WebSocketHandler):
        async def handle(self, ws):
            try:
                await trio.sleep_forever()
            finally:
                with pytest.raises(trionet.ConnectionClosed):
                    ws.start_soon(trio.sleep_forever)
                log.append("refused")

        async def on_close(self, ws, closed):
            log.append("closed")

    async with serving(Handler()) as at:
        await at.join()
        await until(lambda: waiting(at) == 1)
    assert log == ["refused", "closed"]


# ------------------------------------------------------------------ draining


@pytest.mark.parametrize("how", ["parked", "timeout", "pinned", "child"])
async def test_draining(how):
    """Whoever waits gets `ConnectionClosed` with 1001, by us."""
    ends = []

    async def handler(ws):
        try:
            if how == "parked":
                await ws.receive()
            elif how == "timeout":
                await ws.receive(timeout=60)
            elif how == "pinned":
                with trio.CancelScope():
                    await ws.receive()
            else:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def child():
                        await ws.receive()
        except* trionet.ConnectionClosed as group:
            closed = group.exceptions[0]
            while isinstance(closed, ExceptionGroup):
                closed = closed.exceptions[0]
            ends.append((closed.code, closed.by))

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: waiting(at) == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.farewell, 1001)
            assert await at.server.drain(jitter=0)
    assert ends == [(1001, "us")]


async def test_draining_waits_for_cleanup():
    """Iteration ends; what the handler awaits afterwards is waited for, though its peer has left."""
    saved = []

    async def handler(ws):
        async for _ in ws:
            pass
        await trio.sleep(10 * TICK)
        saved.append(1)

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: pool(at).parked == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.farewell, 1001)
            assert await at.server.drain(jitter=0)
            assert saved == [1]


async def test_draining_waits_so_long_only():
    """Cleanup that takes longer than the timeout is cancelled when the server is left."""

    async def handler(ws):
        async for _ in ws:
            pass
        await trio.sleep_forever()

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: pool(at).parked == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.farewell, 1001)
            assert not await at.server.drain(jitter=0, timeout=0.3)


async def test_a_handler_that_drains():
    """A handler may drain its own server: it does not wait for itself."""
    done = []

    async def handler(ws):
        await ws.receive()
        done.append(await at.server.drain(jitter=0, timeout=10))

    async with serving(handler) as at:
        peer = await at.join()
        await peer.say("go")
        await peer.farewell(1001)
        await until(lambda: done)
    assert done == [True]


# ------------------------------------------------------------------ disconnect


@pytest.mark.parametrize("end", ["close", "fin", "reset"])
@pytest.mark.parametrize("wish", [True, False])
async def test_the_peer_vanishes_while_it_sleeps(end, wish):
    """With `cancel_on_disconnect` the handler is cancelled; without, it goes on. Its worker goes on in any case."""
    log = []
    gate = trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def handle(self, ws):
            if await ws.receive() == "echo":
                await echo(ws)
                return
            try:
                log.append("asleep")
                await gate.wait()
                log.append("awake")
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.001)
                log.append("cancelled")
                raise

        async def on_close(self, ws, closed):
            await trio.sleep(0.001)
            log.append(closed.code)

    handler = Handler()
    async with serving(handler, cancel_on_disconnect=wish, pool_size=1, slot_grace=0.001) as at:
        other, peer = await at.join(), await at.join()
        await other.say("echo")
        await peer.say("sleep")
        await until(lambda: log)
        if end == "close":
            await peer.send(close(4000))
            assert await peer.closed() == 4000
            await peer.aclose()
        elif end == "fin":
            await peer.aclose()
        else:
            await peer.reset()
        await other.echo()
        if not wish:
            assert log == ["asleep"]
            gate.set()
        await until(lambda: len(log) == 3)
        await other.echo()
        assert pool(at).failures == 0
    code = 4000 if end == "close" else 1006
    assert log[:3] == ["asleep", "cancelled" if wish else "awake", code]


async def test_a_close_of_ours_does_not_cancel():
    """`cancel_on_disconnect` is about the peer: what we close ourselves goes on."""
    log = []

    async def handler(ws):
        await ws.receive()
        ws.close_nowait()
        await trio.sleep(0.001)
        log.append("went on")

    async with serving(handler, cancel_on_disconnect=True) as at:
        peer = await at.join()
        await peer.say("x")
        await until(lambda: log)


async def test_a_receiving_child_does_not_save_it():
    """A sleeping handler is cancelled also when a task of its receives."""
    log = []

    async def handler(ws):
        ws.start_soon(receive, ws)
        try:
            await trio.sleep_forever()
        finally:
            log.append("ended")

    async def receive(ws):
        await ws.receive()

    async with serving(handler, cancel_on_disconnect=True) as at:
        peer = await at.join()
        await until(lambda: pool(at).pinned == 1)
        await peer.aclose()
        await until(lambda: log)
        assert pool(at).failures == 0


async def test_a_cancelled_worker_harms_nobody():
    """A handler that ends by itself though it was cancelled: what its worker does next is not cancelled."""
    log = []
    gate = trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def handle(self, ws):
            if await ws.receive() == "victim":
                try:
                    await ws.receive()
                except trionet.ConnectionClosed:
                    await trio.sleep(0.001)
                    log.append("victim cleaned up")
                return
            with trio.CancelScope(shield=True):
                await gate.wait()
            for other in at.server.websockets:
                other.close_nowait(4001)  # the victim is to be resumed, by this worker if it goes on

        async def on_close(self, ws, closed):
            await trio.sleep(0.001)
            log.append(closed.code)

    async with serving(Handler(), cancel_on_disconnect=True, pool_size=1, slot_grace=60) as at:
        victim, peer = await at.join(), await at.join()
        await victim.say("victim")
        await until(lambda: pool(at).parked == 2)
        await peer.say("x")
        await until(lambda: pool(at).suspended == 1)
        ws = next(iter(at.server.engine.pool.parked), None)
        assert ws is None
        await peer.aclose()
        await until(
            lambda: any(c.closed for c in at.server.connections) or at.server.statistics().connections == 1
        )
        gate.set()
        assert await victim.closed() == 4001
        await victim.send(close(4001))
        await victim.ended()
        await until(lambda: len(log) == 3)
    assert sorted(log, key=str) == [1006, 4001, "victim cleaned up"]


# ------------------------------------------------------------------ tasks of a connection


async def test_two_receivers():
    """A second task in `receive` gets `trio.BusyResourceError`, whichever comes first."""
    seen = []

    async def handler(ws):
        with pytest.RaisesGroup(trio.BusyResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, ws)
                nursery.start_soon(receive, ws)
        with pytest.RaisesGroup(trio.BusyResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, ws)
                await ws.receive()
        ws.start_soon(late, ws)
        await ws.receive()
        await ws.send("done")

    async def receive(ws):
        await ws.receive()

    async def late(ws):
        with pytest.raises(trio.BusyResourceError):
            await ws.receive()
        seen.append("busy")

    async with serving(handler) as at:
        peer = await at.join()
        await until(lambda: seen)
        await peer.say("x")
        assert await peer.hear() == "done"


async def test_children_receive_and_send():
    """Children of a nursery use the connection freely; one of them receives, frames of all never interleave."""
    counts = {}

    async def handler(ws):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(talk, ws, number)
            async for message in ws:
                await ws.send(message)
            nursery.cancel_scope.cancel()

    async def talk(ws, number):
        for _ in range(30):
            await ws.send(str(number) * 20_000)

    async with serving(handler) as at:
        peer = await at.join(small=True)
        await peer.say("e" * 20_000)
        for _ in range(151):
            words = await peer.hear()
            assert words == words[0] * 20_000
            counts[words[0]] = counts.get(words[0], 0) + 1
        await peer.send(close())
        assert await peer.closed() == 1000
    assert counts == {**dict.fromkeys("01234", 30), "e": 1}


@pytest.mark.parametrize(
    "end", ["peer closes", "peer leaves", "handler returns", "handler raises", "hard stop"]
)
async def test_tasks_end_with_their_connection(end):
    """Tasks started by `start_soon` are cancelled, may clean up, and `on_close` comes after them."""
    log = []
    ready = trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def handle(self, ws):
            variable.set("mine")
            ws.start_soon(work, ws, name="a worker of mine")
            await ws.receive()
            if end == "handler raises":
                raise RuntimeError
            if end == "handler returns":
                return
            await ws.receive()

        async def on_close(self, ws, closed):
            log.append("closed")
            with pytest.raises(trionet.ConnectionClosed):
                ws.start_soon(trio.sleep, 1)

    async def work(ws):
        log.append((trio.lowlevel.current_task().name, variable.get()))
        ready.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.005)
            log.append("cleaned up")

    async with serving(Handler()) as at:
        peer = await at.join()
        await ready.wait()
        await peer.say("x")
        if end == "peer closes":
            await peer.send(close())
        elif end == "peer leaves":
            await peer.aclose()
        if end in {"peer closes", "handler returns", "handler raises"}:
            await peer.closed()
            await peer.send(close())
        if end != "hard stop":
            await until(lambda: log[-1] == "closed")
    assert log == [("a worker of mine", "mine"), "cleaned up", "closed"]


async def test_a_task_that_fails(caplog):
    """It closes the connection with 1011; the handler is told."""
    ends = []

    async def handler(ws):
        async def fail():
            raise ValueError

        ws.start_soon(fail)
        try:
            await ws.receive()
        except trionet.ConnectionClosed as closed:
            ends.append((closed.code, closed.by))

    async with serving(handler) as at:
        peer = await at.join()
        assert await peer.closed() == 1011
        await until(lambda: ends)
    assert ends == [(1011, "us")]
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]


async def test_a_task_receives_while_the_handler_sleeps():
    """The handler may leave receiving to a task of its."""

    async def handler(ws):
        ws.start_soon(echo, ws)
        await trio.sleep_forever()

    async with serving(handler, cancel_on_disconnect=True) as at:
        peer = await at.join()
        await peer.echo("1")
        await peer.echo("2")
        await peer.send(close())
        assert await peer.closed() == 1000
        await until(lambda: waiting(at) == 0)


# ------------------------------------------------------------------ signals


def program(handler):
    """Return a program that serves `handler` and says where."""
    return textwrap.dedent(
        f"""
        import functools, signal, sys, trio, trionet
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        {textwrap.indent(textwrap.dedent(handler), "        ").strip()}
        async def main():
            async with trionet.open_server(trionet.WebSocketProtocol(handler), "127.0.0.1", 0) as server:
                print(server.addresses[0][1], flush=True)
                await trio.sleep_forever()
        try:
            trio.run(main)
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            print(type(error).__name__)
        """
    )


LOOPS = {
    "function": """
async def handler(ws):
    await ws.send("looping")
    while True: pass
""",
    "after parking": """
async def handler(ws):
    await ws.receive(timeout=0)  # ends by itself
handler_ = handler
async def handler(ws):
    try: await handler_(ws)
    except trio.TooSlowError: pass
    await ws.send("looping")
    while True: pass
""",
    "callable": """
class Handler:
    async def __call__(self, ws):
        await ws.send("looping")
        while True: pass
handler = Handler()
""",
    "decorated": """
async def inner(x, ws):
    await ws.send("looping")
    while True: pass
handler = functools.partial(inner, 1)
""",
    "system exit": """
async def handler(ws):
    await ws.send("looping")
    sys.exit(3)
""",
}


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("kind", LOOPS)
async def test_ctrl_c_stops_a_handler_that_loops(kind):
    """A real SIGINT ends a program whose handler never yields, with `KeyboardInterrupt`."""
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", program(LOOPS[kind])],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        stream = None
        try:
            said = b""
            while b"\n" not in said:
                said += await process.stdout.receive_some(100)
            port = int(said)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            peer = Peer(stream)
            await peer.send(request())
            assert await peer.status() == 101
            assert await peer.hear() == "looping"
            if kind != "system exit":
                process.send_signal(signal.SIGINT)
            said = b"".join([piece async for piece in process.stdout]).decode().strip()
            assert said == ("SystemExit" if kind == "system exit" else "KeyboardInterrupt")
        finally:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            process.kill()
            await process.stdout.aclose()
            await process.wait()
