"""The TLS trait below the surface: a kernel that takes little, operations torn, connections given away."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from tls_peer import client_context, server_context, serving_tls
from ws_peer import (
    BINARY,
    TEXT,
    Echo,
    Frame,
    Opened,
    Peer,
    close,
    frame,
    serving,
    stall,
    until,
)

import trionet
from trionet.net.connection import Connection
from trionet.net.tls_session import HANDSHAKE, Session, Workbench, why
from trionet.net.traits import NO_SLOTS, compose


class Choked(Connection):
    """A connection whose kernel takes a few bytes in every second call (a trait)."""

    __slots__ = NO_SLOTS
    words = ()
    take = 0
    calls = 0

    def _put(self, fd, data):
        Choked.calls += 1
        if self.take and Choked.calls % 2:
            raise BlockingIOError
        return super()._put(fd, data[: self.take] if self.take else data)


@pytest.fixture(params=[2, 40, 5000])
def take(request, monkeypatch):
    """Have the kernel take so many bytes at once."""
    monkeypatch.setattr(Choked, "take", request.param)
    return request.param


def choked(protocol):
    """Return `protocol` with connections that are choked."""
    protocol.connection_class = compose(protocol.connection_class, Choked)
    return protocol


async def backwards(connection, line):
    """Answer a line."""
    await connection.send(line[::-1])


async def receive(peer: Peer, size: int) -> bytes:
    """Return so many bytes."""
    while len(peer.data) < size:
        assert await peer._more()
    return peer.take(size)


# ------------------------------------------------------------------ a kernel that takes little


async def test_every_write_may_be_cut(take):
    """Handshake, answers and close_notify go out however little the kernel takes."""
    async with serving_tls(choked(trionet.LineProtocol(backwards))) as at:
        peer = await at.dial()
        await peer.send(b"".join(b"%d\r\n" % n for n in range(100, 150)))
        for n in range(100, 150):
            assert await receive(peer, 5) == (b"%d" % n)[::-1] + b"\r\n"
        await peer.send(b"x" * 10_000)  # a line too long: a last word, then the end
        assert (await receive(peer, 9)) == b"line too "
        while await peer._more():
            pass
        assert peer.data.endswith(b"bytes\r\n")
        assert at.server.statistics().tls.handshakes == 1


async def test_frames_stay_whole_and_in_order(take):
    """Large and small frames, some dropped by policy, over such a kernel: what comes is whole and in order."""
    handler = Opened()
    protocol = choked(
        trionet.WebSocketProtocol(handler, slow_consumer=trionet.SlowConsumer.DROP_OLDEST, high_water=8192)
    )
    async with serving_tls(protocol) as at:
        peer = await at.join()
        ws = await handler.first()
        for n in range(60):
            trionet.broadcast([ws], f"{n:0{2000 if n % 3 else 40}}")
            await trio.lowlevel.checkpoint()
        ws.close_nowait()
        heard = []
        while (received := await peer.frame()).opcode == TEXT:
            heard.append(int(received.payload))
        assert heard == sorted(set(heard))
        assert len(heard) == 60 - protocol.messages_dropped
        await peer.send(close())
        await peer.ended()


async def test_a_message_of_many_pieces_is_cut_anywhere(monkeypatch):
    """More than is enciphered at once: what was taken is not sent again."""
    monkeypatch.setattr(Choked, "take", 65_000)
    message = bytes(range(256)) * 1500
    protocol = choked(trionet.WebSocketProtocol(Echo()))
    async with serving_tls(protocol) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        for _ in range(3):
            nursery.start_soon(peer.send, frame(BINARY, message))
            assert await peer.frame() == Frame(BINARY, message)


async def test_a_farewell_that_finds_no_room(monkeypatch):
    """close_notify itself may have to wait for the kernel; then the FIN follows."""

    class Parting(trionet.Protocol):
        async def data_received(self, connection, data):
            monkeypatch.setattr(Choked, "take", 3)
            monkeypatch.setattr(Choked, "calls", 0)
            (connection.linger if data == b"linger" else connection.finish)()

    for word in (b"linger", b"finish"):
        monkeypatch.setattr(Choked, "take", 0)
        async with serving_tls(choked(Parting())) as at:
            peer = await at.dial()
            await peer.send(word)
            assert await peer.stream.receive_some() == b""  # an error, if close_notify were missing


# ------------------------------------------------------------------ what may not happen to others


async def test_a_torn_operation_reaches_nobody_else():
    """What a signal leaves in the shared buffers is thrown away before the next operation, of whichever kind."""
    handler = Opened()
    async with serving_tls(handler) as at:
        peer = await at.join()
        ws = await handler.first()
        bench = at.server.engine.tls
        for act in (lambda: ws.send_nowait("hello"), lambda: None):
            bench.incoming.write(b"\x17\x03\x03\x00\x05torn!")
            bench.outgoing.write(b"torn")
            act()
            await peer.say("from the peer")
            await until(lambda: handler.seen)
            handler.seen.clear()
        assert await peer.hear() == "hello"
        bench.outgoing.write(b"torn")
        await (await at.join()).say("hello")  # a handshake
        await until(lambda: handler.seen)


async def test_a_damaged_record_behind_a_full_queue():
    """An alert would stand in the middle of a record: the connection is closed at once, with the reason."""
    handler = Opened()
    async with serving_tls(handler) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        ws.send_nowait(bytes(40_000))
        assert ws.queued
        await peer.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: handler.ends)
        assert ws.fd < 0
    assert handler.ends[0].reason.startswith("TLS: ")


async def test_answers_to_key_updates_are_bounded():
    """A peer that does not read, and has TLS answer without end, is closed."""
    handler = Opened()
    async with serving_tls(handler) as at:
        await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        ws._speak(ws._tls, bytes(100))
        assert ws.fd >= 0
        ws._speak(ws._tls, bytes(200_000))
        assert ws.fd < 0
        await until(lambda: handler.ends)
    assert "does not read" in handler.ends[0].reason


# ------------------------------------------------------------------ the end of input


@pytest.mark.parametrize("backend", [None, "tasks"])
async def test_the_end_of_input_behind_data_for_a_busy_handler(backend):
    """The handler is suspended while data and close_notify come in one read: both reach it, in order."""
    seen = []
    gate, entered = trio.Event(), trio.Event()

    class Protocol(trionet.LineProtocol):
        async def connection_lost(self, connection, closed):
            seen.append(closed.reason)

    async def handler(connection, line):
        entered.set()
        await gate.wait()
        seen.append(line)

    async with serving_tls(Protocol(handler), backend=backend) as at:
        peer = await at.dial()
        await peer.send(b"one\n")
        await entered.wait()
        plain = peer.stream.transport_stream
        kept = []

        async def keep(data):
            kept.append(bytes(data))

        plain.send_all, send = keep, plain.send_all
        await peer.send(b"two\n")
        with trio.move_on_after(0.01):
            await peer.stream.unwrap()
        await send(b"".join(kept))
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await until(lambda: len(seen) == 3)
    assert seen == [b"one", b"two", "end of input"]


# ------------------------------------------------------------------ the handshake


async def test_a_protocol_that_fails_at_its_first_call(caplog):
    """It costs the connection, as without TLS."""

    class Broken(trionet.Protocol):
        def connection_made(self, connection):
            raise ZeroDivisionError

    async with serving_tls(Broken()) as at:
        peer = await at.dial()
        await peer.stream.do_handshake()
        assert not await peer._more()
        await until(lambda: not at.server.statistics().connections)
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


async def test_no_time_limit():
    """`tls_timeout` 0: who stops in mid-handshake may stay, but not fill a queue."""
    endpoint = trionet.Endpoint(
        protocol=choked(trionet.LineProtocol(backwards)), ssl_context=server_context(), tls_timeout=0
    )
    async with serving([endpoint]) as at:
        await at.dial()
        await until(lambda: at.server.statistics().opening == 1)
        handshake = at.connection.protocol
        assert handshake.deadline_reached(at.connection) == 0
        with pytest.raises(RuntimeError, match="not done"):
            handshake.unread(at.connection)
        assert at.connection.tls is None
        assert await at.server.drain(jitter=0)


async def test_what_is_written_during_the_handshake_follows_it():
    """After `begin` (STARTTLS) the connection may be written to: it is sent when TLS is established."""

    async def handler(connection, line):
        upgrade.begin(connection)
        connection.write(b"early")
        connection.write(b"bird")

    protocol = trionet.LineProtocol(handler)
    upgrade = trionet.TlsHandshake(protocol, server_context())
    protocol.connection_class = upgrade.connection_class
    async with serving(protocol) as at:
        peer = await at.dial()
        await peer.send(b"\n")
        peer = Peer(trio.SSLStream(peer.stream, client_context(), server_hostname="localhost"))
        await peer.stream.do_handshake()
        assert await receive(peer, 9) == b"earlybird"


async def test_a_client_whose_server_name_is_none(caplog):
    """A name that cannot be is the caller's mistake: logged, and the connection closed."""
    protocol = trionet.LineProtocol(backwards)
    handshake = trionet.TlsHandshake(protocol, client_context(), server_side=False, server_hostname="")
    async with serving_tls(protocol) as at:
        sock = trio.socket.socket()
        await sock.connect(("127.0.0.1", at.port))
        connection = at.server.engine.add(sock.detach(), handshake, handshake.connection_class)
        assert connection.fd < 0
        await until(lambda: not at.server.statistics().connections)
    assert any("TLS handshake failed" in record.getMessage() for record in caplog.records)


def test_why_says_what_openssl_says():
    """Errors in plain words."""
    assert why(ssl.SSLError(1, "[SSL: X] something")) == "[ssl: x] something"
    error = ssl.SSLCertVerificationError(1, "…")
    error.verify_message = "self-signed certificate"
    assert why(error) == "certificate verify failed: self-signed certificate"


def test_a_session_says_goodbye_once_and_only_when_it_began():
    """Before the handshake there is nobody to say it to."""
    session = Session(Workbench())
    session.goodbye()
    assert (session.stage, session.shut, session.output()) == (HANDSHAKE, False, b"")


# ------------------------------------------------------------------ streams


class Given(trionet.Protocol):
    """Gives each connection away at its first byte."""

    def __init__(self):
        super().__init__()
        self.streams = []

    async def data_received(self, connection, data):
        connection._input = data[1:]
        self.streams.append(await connection.detach())


@pytest.fixture
async def pair():
    """Return the two ends of a connection that was given away: a stream of ours, and the peer's."""
    async with serving_tls(protocol := Given()) as at:
        peer = await at.dial(small=True)
        await peer.send(b"x")
        await until(lambda: protocol.streams)
        async with protocol.streams[0] as stream:
            yield stream, peer
        await until(lambda: not at.server.statistics().connections)


async def test_a_stream_is_a_trio_stream(pair):
    """Pieces as asked for, the end of input, who may use it at once, what is closed."""
    stream, peer = pair
    await stream.wait_send_all_might_not_block()
    await peer.send(b"abcdef")
    assert await stream.receive_some(2) == b"ab"
    assert await stream.receive_some() == b"cdef"
    with pytest.raises(ValueError, match=">= 1"):
        await stream.receive_some(0)
    with pytest.raises(NotImplementedError):
        await stream.send_eof()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.05):
        await peer.stream.unwrap()
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""
    await stream.send_all(b"we may go on")
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.wait_send_all_might_not_block()


async def test_a_cancelled_send_breaks_no_record(pair):
    """What was begun is finished by the next send, so the peer's TLS goes on."""
    stream, peer = pair
    sent = bytes(range(256)) * 2000
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sent)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"the end")
        while not peer.data.endswith(b"the end"):
            assert await peer._more()
    begun = peer.data.removesuffix(b"the end")
    assert begun == sent[: len(begun)]
    assert len(begun) % 65536 == 0


@pytest.mark.parametrize("how", ["cut", "damaged", "reset"])
async def test_a_stream_that_is_broken(pair, how):
    """Without close_notify, by a record that is not genuine, by a reset: `BrokenResourceError`."""
    stream, peer = pair
    if how == "cut":
        await peer.vanish()
    elif how == "reset":
        await peer.reset()
    else:
        await peer.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - the kernel may take some before it says so
        for _ in range(100):
            await stream.send_all(bytes(65536))


async def test_a_stream_closed_by_another_task(pair):
    """Who waits is told that it was closed here."""
    stream, _ = pair
    async with trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


async def test_what_cannot_be_given_away():
    """Records half sent cannot be taken back."""
    handler = Opened()
    async with serving_tls(handler) as at:
        await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        with pytest.raises(RuntimeError, match="cannot be given away"):
            ws._stream()
