"""Lines over TCP: the smallest protocol shows the deadlines and limits that all have."""

from __future__ import annotations

import logging

import pytest
import trio
from ws_peer import serving, until

import trionet


async def echo(connection, line):
    """Answer with the line."""
    await connection.send(line)


class Wire:
    """Reads lines from a peer's stream."""

    def __init__(self, peer):
        self.peer = peer

    async def line(self):
        """Return the next line, without its end; b"" at the end."""
        data = self.peer.data
        while b"\n" not in data:
            if not await self.peer._more():
                return self.peer.take(len(data))
        return self.peer.take(data.index(b"\n") + 1).rstrip(b"\r\n")


@pytest.fixture(params=[None, "tasks"], ids=["platform", "tasks"])
def backend(request):
    """Return each poller backend: the platform's and the portable one."""
    return request.param


@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_lines_come_however_they_are_cut(how, backend):
    """LF and CR LF end a line; empty lines are lines; the unfinished one waits for its rest."""
    seen = []

    async def handler(connection, line):
        seen.append(line)

    async with serving(trionet.LineProtocol(handler), backend=backend) as at:
        peer = await at.dial()
        data = b"one\r\ntwo\n\r\n\nthree\rstill three\r\n\xff\x00\r\nrest"
        for piece in [data] if how == "whole" else [data[n : n + 1] for n in range(len(data))]:
            await peer.send(piece)
            if how == "bytewise":
                await trio.testing.wait_all_tasks_blocked()
        await until(lambda: len(seen) == 6)
        await peer.stream.send_eof()
        await peer.ended()
    assert seen == [b"one", b"two", b"", b"", b"three\rstill three", b"\xff\x00"]


async def test_echo_in_order(backend):
    """Many lines in one read are answered in order."""
    async with serving(trionet.LineProtocol(echo), backend=backend) as at:
        assert at.url.startswith("tcp://127.0.0.1:")
        peer = await at.dial()
        await peer.send(b"".join(b"%d\r\n" % n for n in range(100)))
        wire = Wire(peer)
        for n in range(100):
            assert await wire.line() == b"%d" % n


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("how", ["whole", "in two", "before its line feed"])
async def test_the_longest_line(how, end):
    """`max_line` counts the line without its end, whatever that is and however it arrives."""
    async with serving(trionet.LineProtocol(echo, max_line=10)) as at:
        peer = await at.dial()
        line = b"0123456789" + end
        cut = {"whole": 0, "in two": 5, "before its line feed": len(line) - 1}[how]
        if cut:
            await peer.send(line[:cut])
            await trio.testing.wait_all_tasks_blocked()
        await peer.send(line[cut:])
        assert await Wire(peer).line() == b"0123456789"


@pytest.mark.parametrize(
    "data", [b"0123456789x\n", b"0123456789x\r\n", b"0123456789xy", b"ok\n0123456789xy\nmore\n"]
)
async def test_a_line_too_long(data):
    """It is answered with a sentence, what came before it is served, and the connection ends."""
    async with serving(trionet.LineProtocol(echo, max_line=10)) as at:
        peer = await at.dial()
        await peer.send(data)
        wire = Wire(peer)
        if data.startswith(b"ok"):
            assert await wire.line() == b"ok"
        assert await wire.line() == b"line too long: at most 10 bytes"
        assert await wire.line() == b""


async def test_lines_for_a_busy_handler_are_kept():
    """What comes while the handler works is handled afterwards, in order, the end of input last."""
    seen = []
    gate, entered = trio.Event(), trio.Event()

    class Protocol(trionet.LineProtocol):
        async def connection_lost(self, connection, closed):
            seen.append(closed.reason)

    async def handler(connection, line):
        if not entered.is_set():
            entered.set()
            await gate.wait()
        seen.append(line)

    async with serving(Protocol(handler)) as at:
        peer = await at.dial()
        await peer.send(b"1\n2\n3")
        await entered.wait()
        await peer.send(b"3\n4\n")
        await peer.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        gate.set()
        await until(lambda: len(seen) == 5)
    assert seen == [b"1", b"2", b"33", b"4", "end of input"]


async def test_the_idle_deadline(backend):
    """Who sends nothing for `idle_timeout` is closed; who does is kept."""
    protocol = trionet.LineProtocol(echo, idle_timeout=0.2)
    async with serving(protocol, resolution=0.01, backend=backend) as at:
        silent, talking = await at.dial(), await at.dial()
        ended = trio.Event()

        async def watch():
            await silent.ended()
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while not ended.is_set():
                await talking.send(b"x\n")
                assert await Wire(talking).line() == b"x"
                await trio.sleep(0.01)
        await talking.send(b"still here\n")
        assert await Wire(talking).line() == b"still here"


async def test_no_idle_deadline():
    """None switches it off."""
    async with serving(trionet.LineProtocol(echo, idle_timeout=None), resolution=0.01) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().wheel.ticks > 30)
        await peer.send(b"x\n")
        assert await Wire(peer).line() == b"x"


async def test_a_handler_that_raises(caplog):
    """Its connection is closed, with one record in the log; the others stay."""

    async def handler(connection, line):
        if line == b"bad":
            raise RuntimeError("broken")
        await connection.send(line)

    async with serving(trionet.LineProtocol(handler)) as at:
        peer, other = await at.dial(), await at.dial()
        await peer.send(b"bad\nnever\n")
        assert await Wire(peer).line() == b""
        await other.send(b"fine\n")
        assert await Wire(other).line() == b"fine"
    assert [(record.levelno, record.exc_info[0]) for record in caplog.records] == [
        (logging.ERROR, RuntimeError)
    ]


async def test_the_handler_may_end_the_connection():
    """`finish` sends what is queued; lines behind are not handled."""
    seen = []

    async def handler(connection, line):
        seen.append(line)
        await connection.send(b"bye")
        connection.finish()

    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(b"quit\nmore\n")
        assert await Wire(peer).line() == b"bye"
    assert seen == [b"quit"]


async def test_send_waits_for_a_slow_peer():
    """It is parked meanwhile, and told when the peer leaves."""
    told = []

    async def handler(connection, line):
        try:
            while True:
                await connection.send(bytes(4096))
        except trionet.ConnectionClosed as closed:
            told.append(closed.by)

    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial(small=True)
        await peer.send(b"flood\n")
        await until(lambda: at.server.statistics().pool.parked == 1)
        await peer.reset()
        await until(lambda: told)
    assert told == ["network"]


async def test_drain_sends_what_is_queued():
    """The end of a byte connection: what was written arrives, then the end."""
    arrived = []

    async def handler(connection, line):
        arrived.append(connection)
        connection.write(b"x" * 60_000 + b"\r\n")

    async with serving(trionet.LineProtocol(handler)) as at, trio.open_nursery() as nursery:
        peer = await at.dial(small=True)
        await peer.send(b"go\n")
        await until(lambda: arrived)
        nursery.start_soon(at.server.drain)
        assert await Wire(peer).line() == b"x" * 60_000
        assert await Wire(peer).line() == b""


@pytest.mark.parametrize("speaks", ["server", "client"])
async def test_a_protocol_of_ones_own(speaks):
    """Bytes in, bytes out: `data_received`, and `connection_made` where the server speaks first."""
    lost = []

    class Upper(trionet.Protocol):
        def connection_made(self, connection):
            super().connection_made(connection)
            if speaks == "server":
                connection.write(b"HELLO\n")

        async def data_received(self, connection, data):
            connection.write(data.upper())

        async def connection_lost(self, connection, closed):
            lost.append(closed)

    async with serving(Upper()) as at:
        peer = await at.dial()
        wire = Wire(peer)
        if speaks == "server":
            assert await wire.line() == b"HELLO"
        await peer.send(b"abc\n")
        assert await wire.line() == b"ABC"
        await peer.aclose()
        await until(lambda: lost)
    assert len(lost) == 1


@pytest.mark.parametrize("how", ["finish", "queued", "linger"])
async def test_what_came_before_the_handler_closed_is_not_handled_after_it(how, caplog):
    """A handler that waited, and then closes, is the last one; what it wrote before is sent."""

    async def handler(connection, message):
        handled.append(message)
        await release.wait()
        if how == "queued":
            connection.write(bytes(size))
        connection.linger() if how == "linger" else connection.finish()

    handled, release, size = [], trio.Event(), 800_000
    async with serving(trionet.LineProtocol(handler)) as at:
        peer = await at.dial(small=True)
        await peer.send(b"first\n")
        await until(lambda: handled)
        await peer.send(b"second\n")
        await until(lambda: at.connection.rare().held_size)
        connection = at.connection
        release.set()
        await until(lambda: connection.closed is not None)
        while await peer._more():
            pass
        assert len(peer.data) == (size if how == "queued" else 0)
        await peer.aclose()
        await until(lambda: connection.is_gone)
    assert handled == [b"first"]
    assert not caplog.records
