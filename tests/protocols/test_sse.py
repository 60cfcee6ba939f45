"""Server-Sent Events over real sockets: what is sent, what an idle stream keeps, slow readers, the end."""

from __future__ import annotations

import functools
import logging
import re
import shutil
import socket
import subprocess

import pytest
import trio
import trio.testing
from http_peer import CLOSE, DATE, ask, connect, get, read, rest_of, status, until

import trionet
from trionet import (
    ConfigurationError,
    ConnectionClosed,
    EventSource,
    EventStream,
    HttpProtocol,
    Rejection,
    Response,
    SlowConsumer,
    broadcast_events,
)
from trionet.net import system

HEAD = (
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n\r\n"
)


class Feed(EventSource):
    """Notes what happens."""

    def __init__(self, **options):
        super().__init__(**options)
        self.open, self.ends, self.came = [], [], []

    async def on_open(self, stream, request):
        self.open.append(stream)
        self.came.append(request.last_event_id)

    async def on_close(self, stream, closed):
        self.open.remove(stream)
        self.ends.append(closed)


def serving(source, **options):
    """Open a server with events at /events."""
    options.setdefault("resolution", 0.05)
    return trionet.open_server(HttpProtocol({"/events": source, "/ok": b"ok"}), **options)


async def follow(server, *lines, version="1.1"):
    """Open a stream of events; returns it behind the head of the response."""
    stream = await connect(server)
    await stream.send_all(get("/events", *lines, version=version))
    head = await read(stream, b"\r\n\r\n", at_once=1)
    assert re.sub(DATE, b"", head) == HEAD
    return stream


async def test_events_arrive_as_they_are_sent():
    """The head at once, then each event, whoever sends it."""
    feed = Feed()
    async with serving(feed) as server, await follow(server) as stream:
        await until(lambda: feed.open)
        await feed.open[0].send("hello", event="greeting", id="1", retry=2)
        assert await read(stream, b"\n\n") == b"event: greeting\nid: 1\nretry: 2000\ndata: hello\n\n"
        feed.open[0].send_nowait("two\nlines")
        assert await read(stream, b"\n\n") == b"data: two\ndata: lines\n\n"
        assert broadcast_events(feed.open, None, id="2") == 1
        assert await read(stream, b"\n\n") == b"id: 2\n\n"
        with pytest.raises(ConfigurationError):
            await feed.open[0].send("x", event="a\nb")


@pytest.mark.parametrize("lines", [(), ("Connection: keep-alive",)])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_the_body_ends_with_the_connection(lines, version):
    """Nobody gets chunks, so one encoding serves all; `close` ends it cleanly."""
    feed = Feed(retry=0.5)
    async with serving(feed) as server, await follow(server, *lines, version=version) as stream:
        await until(lambda: feed.open)
        feed.open[0].send_nowait("last")
        feed.open[0].close()
        assert await rest_of(stream) == b"retry: 500\n\ndata: last\n\n"
        await stream.aclose()
        await until(lambda: feed.ends)
    assert (feed.ends[0].code, feed.ends[0].by) == (1000, "us")


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside WebSockets"])
async def test_an_idle_stream_keeps_nothing(beside):
    """No task, no coroutine, no parser, no queue, no record: the connection, its descriptor, its deadline."""
    feed = Feed()
    http = HttpProtocol({"/events": feed, "/ok": b"ok"})
    protocol = (
        trionet.WebSocketProtocol(trionet.WebSocketHandler(), http=http, max_messages_per_second=9)
        if beside
        else http
    )
    async with trionet.open_server(protocol) as server, await connect(server) as stream:
        await stream.send_all(get("/ok"))
        await read(stream, b"ok")
        await stream.send_all(get("/events"))
        await read(stream, b"\r\n\r\n")
        await until(lambda: feed.open)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (connection,) = server.connections
        assert isinstance(connection, EventStream)
        assert not isinstance(connection, trionet.WebSocket)
        assert connection is feed.open[0]
        assert (connection._input, connection._out, connection._rare, connection.data) == (
            None,
            None,
            None,
            None,
        )
        pool = server.statistics().pool
        assert (pool.parked, pool.detached, pool.suspended, pool.busy) == (0, 0, 0, 0)
        assert feed.streams == 1
        await stream.send_all(b"more that nobody listens to" * 1000)
        feed.open[0].send_nowait("x")
        assert await read(stream, b"\n\n") == b"data: x\n\n"
    assert feed.streams == 0


async def test_a_client_that_comes_back_says_where_it_was():
    """`last_event_id` is what the client got last, as UTF-8; empty the first time."""
    feed = Feed()
    async with serving(feed) as server:
        for lines in ((), ("Last-Event-ID: \u00e9\u20ac".encode().decode("latin-1"),)):
            stream = await connect(server)
            await stream.send_all(get("/events", *lines).decode().encode("latin-1"))
            await read(stream, b"\r\n\r\n")
            await stream.aclose()
        await until(lambda: len(feed.ends) == 2)
    assert feed.came == ["", "\u00e9\u20ac"]
    assert {closed.by for closed in feed.ends} <= {"peer", "network"}


async def test_one_event_for_many():
    """`broadcast_events` counts those that took it, and passes over those that have ended."""
    feed = Feed()
    async with serving(feed) as server:
        streams = [await follow(server) for _ in range(5)]
        await until(lambda: len(feed.open) == 5)
        everybody = [*feed.open]
        everybody[0].close()
        assert broadcast_events(everybody, "x", id="7") == 4
        for stream in streams[1:]:
            assert await read(stream, b"\n\n") == b"id: 7\ndata: x\n\n"
        for stream in streams:
            await stream.aclose()
        await until(lambda: not feed.open)
        assert broadcast_events(everybody, "x") == 0
        with pytest.raises(ConnectionClosed):
            await everybody[1].send("x")
        with pytest.raises(ConnectionClosed):
            everybody[1].send_nowait("x")


async def test_silence_is_broken_by_a_comment():
    """After `keepalive` a comment is sent, again and again, as long as it is acknowledged."""
    feed = Feed(keepalive=0.1)
    async with serving(feed) as server, await follow(server) as stream:
        assert await read(stream, b":\n\n:\n\n:\n\n")
        assert not feed.ends


async def test_a_peer_that_acknowledges_nothing_is_gone(monkeypatch):
    """When nobody has acknowledged the comment until the next one is due, the stream has ended."""
    monkeypatch.setattr(system, "unsent", lambda fd: 3)
    feed = Feed(keepalive=0.1)
    async with serving(feed) as server, await follow(server):
        await until(lambda: feed.ends)
    assert feed.ends[0].by == "network"


async def test_events_count_as_a_sign_of_life(mock_clock):
    """Where events are sent, no comments are."""
    mock_clock.autojump_threshold = 0.002
    feed = Feed(keepalive=15)
    async with serving(feed, resolution=2.5) as server, await follow(server) as stream:
        await until(lambda: feed.open)
        for _ in range(6):
            feed.open[0].send_nowait("x")
            await trio.sleep(10)
        feed.open[0].close()
        assert await rest_of(stream) == b"data: x\n\n" * 6


async def fill(feed):
    """Send until the queue is full; returns how many events were taken."""
    taken = 0
    while feed.open and broadcast_events(feed.open, str(taken).rjust(1000)) and not feed.events_dropped:
        taken += 1
        if taken % 50 == 0:
            await trio.lowlevel.checkpoint()
    return taken


async def slow_reader(server):
    """Open a stream of events whose client has little room."""
    stream = await connect(server)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    await stream.send_all(get("/events"))
    await until(lambda: [c for c in server.connections if isinstance(c, EventStream)])
    return stream


@pytest.mark.parametrize("policy", [policy for policy in SlowConsumer if policy is not SlowConsumer.CONFLATE])
async def test_slow_readers_get_what_the_policy_says(policy):
    """CLOSE ends the stream, WAIT leaves it out, DROP_NEWEST and DROP_OLDEST lose events; the queue stays bounded."""
    feed = Feed(slow_consumer=policy, high_water=20_000)
    async with serving(feed) as server, await slow_reader(server) as stream:
        await until(lambda: feed.open)
        taken = await fill(feed)
        assert taken > 10
        if policy is SlowConsumer.CLOSE:
            await until(lambda: feed.ends)
            assert feed.ends[0].code == 1013
            return
        assert feed.open[0].queued <= 20_000
        if policy is SlowConsumer.WAIT:
            with pytest.raises(trio.WouldBlock):
                feed.open[0].send_nowait("x" * 2000)
        else:
            feed.open[0].send_nowait("last".rjust(1000))
        feed.open[0].close()
        numbers = (await rest_of(stream)).partition(b"\r\n\r\n")[2].split()[1::2]
        assert (numbers[-1] == b"last") is (policy is SlowConsumer.DROP_OLDEST)
        if policy is SlowConsumer.WAIT:
            assert numbers == [b"%d" % number for number in range(taken)]
            assert feed.events_dropped == 0
        else:
            assert numbers[0] == b"0"
            assert feed.events_dropped >= 1


async def test_send_waits_for_a_slow_reader():
    """A sender in `on_open` is parked while there is no room, holds no worker, and loses nothing."""

    class History(Feed):
        async def on_open(self, stream, request):
            await super().on_open(stream, request)
            for number in range(5000):
                await stream.send(str(number).rjust(1000))
            stream.close()

    feed = History(high_water=20_000)
    async with serving(feed) as server, await slow_reader(server) as stream:
        await until(lambda: server.statistics().pool.parked == 1)
        assert server.statistics().pool.busy == 0
        assert feed.open[0].queued <= 21_100
        received = await rest_of(stream)
    numbers = received.partition(b"\r\n\r\n")[2].split()[1::2]
    assert numbers == [b"%d" % number for number in range(5000)]


async def test_a_client_that_leaves_ends_a_handler_that_sends(caplog):
    """`ConnectionClosed` in `on_open` is nothing to log; `on_close` comes after it, once."""
    order = []

    class Ticker(EventSource):
        async def on_open(self, stream, request):
            try:
                while True:
                    await stream.send("tick")
                    await trio.sleep(0.01)
            finally:
                order.append("opened")

        async def on_close(self, stream, closed):
            order.append("closed")

    source = Ticker()
    async with serving(source) as server:
        stream = await follow(server)
        await read(stream, b"tick\n\n")
        await stream.aclose()
        await until(lambda: len(order) == 2)
    assert order == ["opened", "closed"]
    assert source.handler_failures == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_who_may_not_listen_is_told():
    """`on_request` may refuse, or answer otherwise: 204 keeps a browser from coming back. HEAD opens nothing."""

    class Picky(Feed):
        async def on_request(self, request):
            if request.query == "stop":
                return Response(204)
            if request.query != "please":
                raise Rejection(403, body="say please\n")
            return None

    feed = Picky()
    async with serving(feed) as server:
        assert status(await ask(server, get("/events", CLOSE))) == 403
        assert status(await ask(server, get("/events?stop", CLOSE))) == 204
        head = await ask(server, get("/events?please", method="HEAD") + get("/ok", CLOSE))
        assert b"\r\nContent-Type: text/event-stream\r\n" in head
        assert head.endswith(b"\r\n\r\nok")
    assert feed.ends == feed.came == []


async def test_a_handler_that_fails_costs_its_stream_only(caplog):
    """It is logged and counted; the other stream goes on."""

    class Broken(Feed):
        async def on_open(self, stream, request):
            await super().on_open(stream, request)
            if request.query:
                raise LookupError("no such feed")

    feed = Broken()
    async with serving(feed) as server, await follow(server) as good:
        with pytest.raises(trio.BrokenResourceError):
            await ask(server, get("/events?x"))
        await until(lambda: feed.ends)
        broadcast_events(feed.open, "still here")
        assert await read(good, b"\n\n") == b"data: still here\n\n"
        assert feed.handler_failures == 1
    assert "no such feed" in caplog.text


async def test_draining_ends_streams_cleanly():
    """Clients get the end of the body, and come back to another server."""
    feed = Feed()
    async with serving(feed) as server:
        streams = [await follow(server) for _ in range(3)]
        await until(lambda: len(feed.open) == 3)
        broadcast_events(feed.open, "bye")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            for stream in streams:
                assert await rest_of(stream) == b"data: bye\n\n"
                await stream.aclose()
    assert [closed.code for closed in feed.ends] == [1001] * 3


async def test_a_hard_stop_calls_on_close():
    """Leaving the server's block ends all streams, each with its `on_close`."""
    feed = Feed()
    async with serving(feed) as server:
        streams = [await follow(server) for _ in range(3)]
        await until(lambda: len(feed.open) == 3)
    assert len(feed.ends) == 3
    for stream in streams:
        await stream.aclose()


def test_what_cannot_work_is_refused():
    """Headers that inject others and a policy that is none fail when the source is made."""
    for options in (
        {"headers": [("X", "a\nb")]},
        {"headers": [("Connection", "x")]},
        {"slow_consumer": "close"},
        {"slow_consumer": SlowConsumer.CONFLATE},
    ):
        with pytest.raises(ConfigurationError):
            EventSource(**options)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_shows_events_as_they_come():
    """`curl -N` writes each event when it was sent, and ends with the stream."""
    feed = Feed()
    async with serving(feed) as server, trio.open_nursery() as nursery:
        host, port = server.addresses[0][:2]
        command = ["curl", "-sSN", "--max-time", "10", f"http://{host}:{port}/events"]
        run = functools.partial(trio.run_process, command, stdout=subprocess.PIPE)
        process = await nursery.start(run)
        await until(lambda: feed.open)
        for text in (b"one", b"two"):
            feed.open[0].send_nowait(text.decode())
            assert await read(process.stdout, text + b"\n\n") == b"data: " + text + b"\n\n"
        feed.open[0].close()


async def test_a_stream_that_opens_while_the_server_drains_ends_at_once():
    """A request that was held up until after the server's farewell gets the head and the end of the body."""
    asked, answer = trio.Event(), trio.Event()

    class Slow(Feed):
        async def on_request(self, request):
            asked.set()
            await answer.wait()

    feed = Slow()
    async with serving(feed) as server, await connect(server) as stream:
        await stream.send_all(get("/events"))
        await asked.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(server.drain, jitter=0, timeout=60))
            await until(lambda: server.draining)
            await trio.testing.wait_all_tasks_blocked()
            answer.set()
            with trio.fail_after(20):
                assert re.sub(DATE, b"", await rest_of(stream)) == HEAD
            await stream.aclose()
    assert [closed.code for closed in feed.ends] == [1001]
