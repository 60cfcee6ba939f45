"""Those who are answered 503: what they read, whatever they send and however, and that nothing of them stays."""

from __future__ import annotations

import re
import socket
import struct
import sys
from pathlib import Path

import pytest
import trio

sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
from tls_peer import client_context, server_context, serving_tls
from ws_peer import Echo, Peer, descriptors, request, serving, until

import trionet
from trionet.net.doorkeeper import Doorkeeper


class Closed(trionet.AdmissionPolicy):
    """Refuses everybody; the action is that of the class."""

    name = "closed"
    action = "answer"

    def room(self, load):
        return 0


ANSWER = re.compile(
    rb"HTTP/1\.1 503 Service Unavailable\r\n"
    rb"Retry-After: ([0-9]+)\r\n"
    rb"Content-Type: text/plain\r\n"
    rb"Content-Length: (34|35)\r\n"
    rb"Connection: close\r\n\r\n"
    rb"(Too busy\. Try again in \1 seconds\.\n)?"
)


async def rest(stream) -> bytes:
    """Return all that comes until the end, which must be an orderly one."""
    received = b""
    while data := await stream.receive_some(65536):
        received += data
    return received


REQUESTS = {
    "http 1.0": b"GET / HTTP/1.0\r\n\r\n",
    "no carriage returns": b"GET / HTTP/1.1\nHost: a\n\n",
    "empty line before": b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "with a body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n" + bytes(30000),
    "pipelined": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no end": b"GET /" + b"a" * 20000,
    "impatient websocket": request() + b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
}


async def test_exact_bytes():
    """Whatever is asked, and whatever is sent along, there is one answer, and then the end of the connection."""
    async with serving(Echo(), admission=Closed()) as at:
        for name, sent in REQUESTS.items():
            peer = await at.dial()
            await peer.send(sent)
            received = await rest(peer.stream)
            assert (found := ANSWER.fullmatch(received)), (name, received)
            assert found[3] is not None
            assert int(found[2]) == len(found[3])
            await peer.aclose()
        for line in (b"HEAD / HTTP/1.1\r\n\r\n", b"\r\nHEAD / HTTP/1.1\r\n\r\n"):
            peer = await at.dial()
            await peer.send(line)
            assert (found := ANSWER.fullmatch(await rest(peer.stream)))
            assert found[3] is None
            await peer.aclose()
        await until(lambda: not at.server.statistics().gate.lingering)
        [policy] = at.server.statistics().gate.policies
        assert policy.refused == {"answer": len(REQUESTS) + 2}
        assert at.server.gate.doorkeeper.lobby.failed == 0


async def test_who_says_no_more_is_answered():
    """A client that shuts its side behind the request gets its answer; one that does so before its end gets none."""
    async with serving(Echo(), admission=Closed()) as at:
        peer = await at.dial()
        await peer.send(request())
        await peer.stream.send_eof()
        assert ANSWER.fullmatch(await rest(peer.stream))
        peer = await at.dial()
        await peer.send(request()[:-1])
        await peer.stream.send_eof()
        assert await rest(peer.stream) == b""
        await until(lambda: not at.server.statistics().gate.lingering)
        lobby = at.server.gate.doorkeeper.lobby
        assert (lobby.answered, lobby.failed) == (1, 1)


async def test_a_request_and_close_notify_at_once_are_answered():
    """Over TLS, too: the end of input that comes in the same read as the request does not hide it."""
    async with serving_tls(Echo(), client=client_context("TLSv1.2"), admission=Closed()) as at:
        peer = await at.dial()
        stream = peer.stream
        await stream.do_handshake()
        stream._ssl_object.write(request())
        with pytest.raises(Exception, match="did not complete"):
            stream._ssl_object.unwrap()
        await stream.transport_stream.send_all(stream._outgoing.read())
        received = await rest(stream.transport_stream)
        stream._incoming.write(received)
        assert ANSWER.fullmatch(stream._ssl_object.read(1000))


def version_2(host: str) -> bytes:
    """Return a PROXY header, version 2, of a client with that address."""
    addresses = socket.inet_aton(host) + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 5, 443)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + len(addresses).to_bytes(2, "big") + addresses


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_proxy_header_and_tls_in_pieces(size):
    """Header, handshake and request may come in any pieces; a header may hold what looks like the end of a head."""
    endpoint = trionet.Endpoint(
        protocol=trionet.WebSocketProtocol(Echo()),
        proxy_protocol=trionet.ProxyProtocol(["127.0.0.1"]),
        ssl_context=server_context(),
    )

    class Pieces(trio.abc.Stream):
        def __init__(self, stream):
            self.stream = stream
            self.first = version_2("192.0.2.1")

        async def send_all(self, data):
            data, self.first = self.first + bytes(data), b""
            for start in range(0, len(data), size):
                await self.stream.send_all(data[start : start + size])

        async def receive_some(self, max_bytes=None):
            return await self.stream.receive_some(max_bytes)

        async def wait_send_all_might_not_block(self):
            pass

        async def aclose(self):
            await self.stream.aclose()

    async with serving([endpoint], admission=Closed()) as at:
        transport = (await at.dial()).stream
        peer = Peer(trio.SSLStream(Pieces(transport), client_context(), server_hostname="localhost"))
        await peer.send(request())
        assert ANSWER.fullmatch(await rest(peer.stream))


async def test_nothing_stays_of_guests_in_any_stage():
    """A drain and a hard stop with guests before their header, in their handshake, before and behind their answer."""
    proxy = trionet.ProxyProtocol(["127.0.0.1"])
    protocol = trionet.WebSocketProtocol(Echo())
    endpoints = [
        trionet.Endpoint(protocol=protocol, proxy_protocol=proxy, ssl_context=server_context()),
        trionet.Endpoint(protocol=protocol),
    ]
    before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
    async with serving(endpoints, admission=Closed(), max_connections=100) as at:
        plain = at.server.addresses[1]
        header = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"
        peers = [
            (await at.dial(), header[:20]),
            (await at.dial(), header + b"\x16\x03\x01"),
            (await at.dial(plain), b"GET / HT"),
            (await at.dial(plain), b"GET / HTTP/1.1\r\n\r\n"),
            (await at.dial(plain), b""),
        ]
        for peer, sent in peers:
            await peer.send(sent)
        lobby = at.server.gate.doorkeeper.lobby
        await until(lambda: len(lobby) == 5 and lobby.answered == 1)
        await until(lambda: {guest.stage for guest in lobby._guests.values()} == {0, 1, 2, 3})
        assert await at.server.drain(timeout=1)  # does not wait for them
        assert len(lobby) == 5
        [policy] = at.server.statistics().gate.policies
    assert len(lobby) == 0
    assert descriptors() == before
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert policy.refused == {"answer": 5}
    with trio.fail_after(5):
        async with serving(
            endpoints, admission=at.server.gate.doorkeeper
        ) as again:  # the same lobby, once more
            peer = await again.dial(again.server.addresses[1])
            await peer.send(request())
            assert ANSWER.fullmatch(await rest(peer.stream))


async def test_hundreds_of_silent_clients_keep_nobody_from_an_answer(autojump_clock):
    """More than the lobby holds are reset; those within leave when their time is up, and others get their answer."""
    async with serving(Echo(), admission=Closed(), max_connections=1000) as at:
        silent = []
        resets = 0
        for _ in range(300):
            try:
                silent.append(await at.dial())
            except ConnectionResetError:
                resets += 1
        gate = at.server.statistics
        await until(lambda: sum(gate().gate.policies[0].refused.values()) == 300, step=0.01)
        assert gate().gate.policies[0].refused == {"answer": 256, "reset": 44}
        assert gate().connections == 0
        await trio.sleep(5.1)
        assert gate().gate.lingering == 0
        peer = await at.dial()
        await peer.send(request())
        assert ANSWER.fullmatch(await rest(peer.stream))
        for peer in silent:
            with pytest.raises(trio.BrokenResourceError):
                await peer.stream.receive_some()


@pytest.mark.parametrize("secure", [False, True])
async def test_reset_is_a_reset(secure):
    """A reset is a RST at once, also where TLS is spoken: nothing is said, and nothing lingers."""
    policy = Closed(action="reset")
    async with serving(Echo(), admission=policy, ssl_context=server_context() if secure else None) as at:

        async def call():
            with trio.socket.socket() as sock:
                await sock.connect(("127.0.0.1", at.port))
                await sock.recv(1)

        with pytest.raises(ConnectionResetError):
            await call()
        assert at.server.statistics().gate.lingering == 0


async def test_trionets_client_is_told():
    """The client's exception has the status and the field that says when to come back."""
    async with serving(Echo(), admission=Closed(retry_after=7)) as at:
        with pytest.raises(trionet.UpgradeRefused) as caught:
            async with trionet.connect_websocket(at.url):
                pass
        assert caught.value.status == 503
        assert 7 <= int(caught.value.header("retry-after")) <= 14


async def test_websockets_is_told():
    """So is the exception of a client of others."""
    client = pytest.importorskip("websockets.sync.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    async with serving(Echo(), admission=Closed(retry_after=7)) as at:
        url = at.url

        def connect():
            with client.connect(url, proxy=None):
                pass

        with pytest.raises(exceptions.InvalidStatus) as caught:
            await trio.to_thread.run_sync(connect)
        assert caught.value.response.status_code == 503
        assert 7 <= int(caught.value.response.headers["Retry-After"]) <= 14


async def test_answers_leave_descriptors_for_connections():
    """As many connections as fit are fewer where some clients may wait for an answer: accept does not fail for them."""
    async with serving(Echo()) as at:
        most = at.server.gate.max_connections
    async with serving(Echo(), admission=Closed()) as at:
        lobby = at.server.gate.doorkeeper.lobby
        assert at.server.gate.max_connections == most - lobby.limit
        assert 0 < lobby.limit <= 256
    async with serving(Echo(), admission=Doorkeeper([Closed(action="reset")])) as at:
        assert at.server.gate.max_connections == most
