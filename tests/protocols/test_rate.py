"""Message and byte rates: who sends more is not read from until its bucket has refilled; nothing is lost."""

from __future__ import annotations

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest
import trio
from tls_peer import serving_tls
from ws_peer import PING, PONG, Echo, Frame, Gated, Opened, close, frame, serving, text, until

from trionet.net.wheel import Wheel
from trionet.protocols.rate import RateLimit


async def test_a_peer_that_sends_too_much_is_paused_and_goes_on(mock_clock):
    """A burst of a second's worth passes, then the steady rate; all messages come, in order."""
    mock_clock.autojump_threshold = 0.002
    times = []

    class Handler(Opened):
        async def on_message(self, ws, message):
            self.seen.append(message)
            times.append(trio.current_time())

    handler = Handler()
    options = {"max_messages_per_second": 10, "resolution": 0.5, "ping_interval": None}
    async with serving(handler, **options) as at:
        peer = await at.join()
        for n in range(50):
            await peer.say(str(n))
            await trio.testing.wait_all_tasks_blocked()
        await until(lambda: len(handler.seen) == 50, step=0.1)
        # What had piled up in the kernel came in one read: now it is in debt, and the next one waits for that.
        await peer.say("50")
        await until(lambda: len(handler.seen) == 51, step=0.1)
        assert handler.ends == []
    assert handler.seen == [str(n) for n in range(51)]
    assert len([t for t in times if t - times[0] < 0.4]) <= 12
    assert 3 < times[-1] - times[0] < 8


async def test_bytes_are_limited_too(mock_clock):
    """A peer of few but large messages is held by bytes."""
    mock_clock.autojump_threshold = 0.002
    handler = Opened()
    async with serving(handler, max_bytes_per_second=10_000, resolution=0.5, ping_interval=None) as at:
        peer = await at.join()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, *(text("x" * 30_000) for _ in range(4)))
            await until(lambda: len(handler.seen) == 4, step=0.1)
        await peer.send(text("next"))
        await until(lambda: len(handler.seen) == 5, step=0.1)
        assert trio.current_time() - began > 10


async def test_control_frames_count(mock_clock):
    """A flood of Pings is held as well, and answered in the end."""
    mock_clock.autojump_threshold = 0.002
    async with serving(Echo(), max_messages_per_second=10, resolution=0.5) as at:
        peer = await at.join()
        await peer.send(*(frame(PING, b"%d" % n) for n in range(30)))
        for n in range(30):
            assert await peer.frame() == Frame(PONG, b"%d" % n)
        began = trio.current_time()
        assert "paused" in repr(at.connection)
        await peer.send(text("next"))
        assert await peer.hear() == "next"
        assert trio.current_time() - began >= 1.5


async def test_others_do_not_notice():
    """Each connection has a rate of its own."""
    async with serving(Echo(), max_messages_per_second=5, resolution=0.02) as at:
        greedy, good = await at.join(), await at.join()
        await greedy.send(*(text(str(n)) for n in range(500)))
        for n in range(500):
            assert await greedy.hear() == str(n)
        assert "paused" in repr(next(iter(at.server.connections)))
        for n in range(3):
            await good.echo(str(n))


@pytest.mark.parametrize("who", ["we", "peer"])
async def test_a_limited_peer_can_be_closed(who, mock_clock):
    """A closing handshake does not wait for the bucket when we begin it: the peer's answer is read at once."""
    mock_clock.autojump_threshold = 0.002
    handler = Opened()
    options = {"max_messages_per_second": 1, "close_timeout": 60, "ping_interval": None, "resolution": 0.5}
    async with serving(handler, **options) as at:
        peer = await at.join()
        ws = await handler.first()
        await peer.send(*(text(str(n)) for n in range(21)))
        await until(lambda: len(handler.seen) == 21, step=0.1)
        assert "paused" in repr(ws)
        began = trio.current_time()
        if who == "we":
            ws.close_nowait(4000)
        else:
            await peer.send(close(4000))
            assert await peer.closed() == 4000
            await peer.ended()
            return
        await peer.farewell(4000)
        assert trio.current_time() - began < 5


async def test_a_busy_handler_is_limited_too():
    """What comes while a handler works is charged as well, and comes in the end."""
    handler = Gated()
    async with serving(handler, max_messages_per_second=50, resolution=0.02) as at:
        peer = await at.join()
        await peer.say("work")
        await handler.entered.wait()
        await peer.send(*(text(str(n)) for n in range(60)))
        await until(lambda: "paused" in repr(at.connection))
        handler.gate.set()
        await peer.say("last")
        await until(lambda: len(handler.seen) == 62)
    assert handler.seen == ["work", *map(str, range(60)), "last"]


async def test_no_limit_no_cost():
    """Without a limit connections have no allowance at all."""
    handler = Opened()
    async with serving(handler) as at:
        await at.join()
        assert not hasattr(await handler.first(), "allowance")
        assert at.protocol.rate is None


class FakeEngine:
    """A clock of ticks."""

    def __init__(self, resolution):
        self.wheel = Wheel(resolution)
        self.tick = 1


class FakeConnection:
    """What `RateLimit` needs of a connection."""

    def __init__(self, engine):
        self.engine = engine
        self.allowance = None


@hypothesis.given(
    st.integers(1, 1000),
    st.integers(1, 1_000_000),
    st.sampled_from([0.25, 0.1, 0.02, 0.05, 0.3]),
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 100_000), st.integers(0, 20)), min_size=1, max_size=20
    ),
)
def test_the_wait_is_long_enough(messages, size, resolution, reads):
    """After the ticks that `wait` asks for nothing is owed: else a connection would stay paused for ever."""
    limit = RateLimit(messages, size)
    ws = FakeConnection(FakeEngine(resolution))
    for count, received, passed in reads:
        ws.engine.tick += passed
        left = limit.refill(ws)
        left[1] -= count
        left[2] -= received
        wait = limit.wait(left)
        if wait > 0:
            ws.engine.tick += ws.engine.wheel.ticks(wait)
            assert limit.wait(limit.refill(ws)) == 0


@hypothesis.given(st.integers(1, 100), st.lists(st.integers(0, 300), max_size=30))
def test_no_more_than_the_rate_and_a_seconds_worth(rate, reads):
    """In any time, what passes is at most a burst, the rate times the time, and the last read."""
    limit = RateLimit(rate, None)
    ws = FakeConnection(FakeEngine(0.25))
    passed = 0
    for count in reads:
        left = limit.refill(ws)
        assert limit.wait(left) == 0
        left[1] -= count
        passed += count
        if limit.wait(left) > 0:
            ws.engine.tick += ws.engine.wheel.ticks(limit.wait(left)) + 1
        seconds = Fraction(ws.engine.tick - 1, 4)
        assert passed <= rate + rate * seconds + 1e-6 + (count if limit.wait(limit.refill(ws)) else 0)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05wrong"], ids=["http", "tls"]
)
async def test_a_tls_handshake_that_fails_costs_its_connection_only(sent, caplog):
    """Before there is anything to be limited, what has no rate may be the protocol."""
    async with serving_tls(Echo(), max_messages_per_second=10) as at:
        stream = await trio.open_tcp_stream(*at.server.addresses[0])
        await stream.send_all(sent)
        answer = b""
        async for piece in stream:
            answer += piece
        assert answer.startswith((b"HTTP/1.1 400", b"\x15\x03"))
        await stream.aclose()
        await until(lambda: not at.server.statistics().connections)
        await (await at.join()).echo()
    assert not caplog.records
