"""Length-prefixed messages over TCP: in order, together, within limits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
from ws_peer import serving, until

import trionet

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "howto" / "tcp.md"


async def shout(connection, message):
    """Answer in capitals."""
    return message.upper()


def pack(*messages: bytes, width: int = 4, order: str = "big") -> bytes:
    """Return the bytes of messages."""
    return b"".join(len(message).to_bytes(width, order) + message for message in messages)


async def receive(peer, count: int = 1, *, width: int = 4, order: str = "big") -> list[bytes]:
    """Return the next messages; fewer at the end of the connection."""
    found = []
    while len(found) < count:
        data = peer.data
        end = width + int.from_bytes(data[:width], order) if len(data) >= width else width
        if len(data) >= end:
            found.append(peer.take(end)[width:])
        elif not await peer._more():
            break
    return found


@pytest.mark.parametrize("backend", [None, "tasks"], ids=["platform", "tasks"])
@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize("width, order", [(1, "big"), (2, "little"), (4, "big"), (8, "little")])
async def test_messages_come_however_they_are_cut(width, order, how, backend):
    """Each is answered, in order; the unfinished one waits for its rest."""
    messages = [b"one", b"", b"x" * 200, b"\0\r\n\xff"]
    protocol = trionet.LengthPrefixedProtocol(shout, width=width, byteorder=order, max_length=200)
    async with serving(protocol, backend=backend) as at:
        assert at.url.startswith("tcp://")
        peer = await at.dial()
        data = pack(*messages, b"rest", width=width, order=order)
        for piece in (
            [data[:-1], data[-1:]] if how == "whole" else [data[n : n + 1] for n in range(len(data))]
        ):
            await peer.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        answers = await receive(peer, 5, width=width, order=order)
        assert answers == [message.upper() for message in (*messages, b"rest")]
        assert at.connection._input is None
        await peer.stream.send_eof()
        await peer.ended()


async def test_answers_to_one_read_are_one_write():
    """What is asked together is answered together."""
    writes = []

    class Counted(trionet.LengthPrefixedConnection):
        __slots__ = ()

        def _put(self, fd, data):
            writes.append(bytes(data))
            return super()._put(fd, data)

    class Protocol(trionet.LengthPrefixedProtocol):
        connection_class = Counted

    requests = [b"%d" % n for n in range(500)]
    async with serving(Protocol(shout)) as at:
        peer = await at.dial()
        await peer.send(pack(*requests))
        assert await receive(peer, 500) == requests
    assert b"".join(writes) == pack(*requests)
    assert len(writes) < 10


async def test_answers_do_not_wait_for_a_handler_that_waits():
    """The answers before it are sent when it begins to wait, and those after it one by one."""
    gates = {b"wait": trio.Event(), b"again": trio.Event()}

    async def handler(connection, message):
        if message in gates:
            await gates[message].wait()
        return message

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(pack(b"1", b"2", b"wait", b"3", b"again"))
        assert await receive(peer, 2) == [b"1", b"2"]
        await peer.send(pack(b"4"))
        gates[b"wait"].set()
        assert await receive(peer, 2) == [b"wait", b"3"]
        gates[b"again"].set()
        assert await receive(peer, 2) == [b"again", b"4"]


async def test_a_handler_may_answer_nothing_or_more():
    """None is no answer; `send` is behind the answers that are due, and works from other tasks."""
    connections = []

    async def handler(connection, message):
        connections.append(connection)
        if message == b"twice":
            await connection.send(b"first")
        return None if message == b"quiet" else message

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(pack(b"a", b"quiet", b"twice", b"b"))
        assert await receive(peer, 4) == [b"a", b"first", b"twice", b"b"]
        await connections[0].send(b"news")
        assert await receive(peer) == [b"news"]
        with pytest.raises(ValueError, match="at most"):
            await connections[0].send(bytes(2**20 + 1))


@pytest.mark.parametrize("before", [[], [b"ok", b"fine"]])
@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_a_message_too_long(before, how):
    """It is refused by its prefix; what came before it is answered; the protocol may say why."""

    class Polite(trionet.LengthPrefixedProtocol):
        def too_long(self, connection, error):
            super().too_long(connection, error)
            connection.write(pack(error.reason.encode()))

    async with serving(Polite(shout, max_length=10)) as at:
        peer = await at.dial()
        data = pack(*before) + b"\0\0\0\x0b"
        for piece in (
            [data + b"0123456789x"] if how == "whole" else [data[n : n + 1] for n in range(len(data))]
        ):
            await peer.send(piece)
        answers = [m.upper() for m in before]
        assert await receive(peer, 9) == [*answers, b"a message of 11 bytes; at most 10 are read"]
        await peer.ended()


async def test_a_large_message_in_pieces():
    """A message of megabytes is put together once."""
    async with serving(trionet.LengthPrefixedProtocol(shout, max_length=2**23, high_water=2**23)) as at:
        peer = await at.dial()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, pack(b"x" * 2**23))
            assert await receive(peer) == [b"X" * 2**23]


async def test_a_peer_that_does_not_read_is_not_read_from():
    """Requests wait in the kernel, and then with the peer; all are answered when it reads."""
    answered = 0

    async def handler(connection, message):
        nonlocal answered
        answered += 1
        return bytes(1000)

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial(small=True)
        count = 5_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, pack(*[b"ask"] * count))
            await until(lambda: answered and at.connection.queued)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert answered < count
            assert at.connection.queued <= 2 * 65536
            assert len(await receive(peer, count)) == count


async def test_a_failed_handler(caplog):
    """The error is logged, the connection closed, earlier answers are sent; others do not notice."""

    async def handler(connection, message):
        if message == b"fail":
            raise LookupError("no such thing")
        return message

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer, other = await at.dial(), await at.dial()
        await peer.send(pack(b"a", b"fail", b"b"))
        assert await receive(peer, 3) == [b"a"]
        await other.send(pack(b"hello"))
        assert await receive(other) == [b"hello"]
    assert [record.exc_info[0] for record in caplog.records] == [LookupError]


async def test_a_handler_that_closes(caplog):
    """`finish` in a handler sends the answers before it, and ends the connection; nothing is logged."""
    caplog.set_level(logging.WARNING)

    async def handler(connection, message):
        if message == b"quit":
            connection.finish()
            with pytest.raises(trionet.ConnectionClosed):
                await connection.send(b"too late")
            await connection.send(b"too late")
        return message

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(pack(b"a", b"quit"))
        assert await receive(peer, 2) == [b"a"]
        await until(lambda: not at.server.statistics().connections)
    assert not caplog.records


async def test_giving_a_connection_away():
    """`detach` in a handler gives what follows the message in hand to the stream."""
    streams = []

    async def handler(connection, message):
        if message == b"take":
            streams.append(await connection.detach())
        return message

    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(pack(b"a", b"take") + b"raw bytes")
        await until(lambda: streams)
        assert await receive(peer) == [b"a"]
        async with streams[0] as stream:
            assert await stream.receive_some() == b"raw bytes"


async def test_idle_connections_are_closed(mock_clock):
    """After `idle_timeout` without a byte."""
    mock_clock.autojump_threshold = 0.01
    async with serving(trionet.LengthPrefixedProtocol(shout, idle_timeout=3)) as at:
        peer = await at.dial()
        began = trio.current_time()
        await peer.ended()
        assert 2.5 < trio.current_time() - began < 4


@pytest.mark.parametrize("how", ["whole", "bytewise"])
async def test_the_protocol_of_the_page(how):
    """The protocol that docs/howto/tcp.md shows echoes netstrings however they come, and refuses what is none."""
    names = {}
    exec(PAGE.read_text("utf-8").split("```python\n")[2].partition("```")[0], names)
    answer = b"16:not a netstring!,"
    for end in b"x:", b"3:abcd", b"9999:", b"12345":
        async with serving(names["Netstrings"]()) as at:
            peer = await at.dial()
            data = b"5:hello,0:,1000:" + b"x" * 1000 + b","
            pieces = [data + end] if how == "whole" else [bytes((byte,)) for byte in data + end]
            for piece in pieces:
                await peer.send(piece)
            expected = data + answer
            while len(peer.data) < len(expected):
                assert await peer._more()
            assert peer.take(len(expected)) == expected
            await peer.stream.send_eof()
            await peer.ended()


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
    async with serving(trionet.LengthPrefixedProtocol(handler)) as at:
        peer = await at.dial(small=True)
        await peer.send(pack(b"first"))
        await until(lambda: handled)
        await peer.send(pack(b"second"))
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
