"""Adapters over TLS, behind a proxy, on a Unix socket, behind a router; streams and tasks are the same everywhere."""

from __future__ import annotations

import pytest
import trio
from tls_peer import serving_tls
from ws_peer import close, descriptors, frame, request, serving, tasks, text, until

import trionet
from trionet.adapters.stream import StreamProtocol

trio_websocket = pytest.importorskip("trio_websocket")

from trionet.adapters.trio_websocket import TrioWebSocketProtocol  # noqa: E402


async def echo(stream):
    """Send back what comes."""
    async for data in stream:
        await stream.send_all(data)


async def echo_messages(ws):
    """Send back what comes."""
    while True:
        await ws.send_message(await ws.get_message())


async def heard(peer, size):
    """Return `size` bytes from the peer's stream."""
    while len(peer.data) < size:
        assert await peer._more(), bytes(peer.data)
    return peer.take(size)


@pytest.mark.parametrize("eager", [False, True])
async def test_a_stream_over_tls(eager):
    """The task gets plaintext; a silent handshake starts none; the end is told by close_notify."""

    async def handler(stream):
        assert stream.secure
        if eager:
            await stream.send_all(b"hello")
        await echo(stream)
        ends.append(stream)

    before, ends = (descriptors(), tasks()), []
    async with serving_tls(StreamProtocol(handler, eager=eager)) as at:
        await at.dial_plain()
        peer = await at.dial()
        if eager:
            await peer.stream.do_handshake()
            assert await heard(peer, 5) == b"hello"
        data = bytes(range(256)) * 400
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, data)
            assert await heard(peer, len(data)) == data
        assert at.server.statistics().streams == 1
        await peer.stream.aclose()
        await until(lambda: ends)
    assert (descriptors(), tasks()) == before


async def test_queued_with_its_first_bytes():
    """Over TLS the first bytes may have been read before it turned out that there is no place: they are kept."""
    async with serving_tls(StreamProtocol(echo, max_tasks=1)) as at:
        waiting, first = await at.dial(), await at.dial()
        await waiting.stream.do_handshake()
        await first.send(b"1")
        assert await heard(first, 1) == b"1"
        await waiting.send(b"2")
        await until(lambda: at.protocol.tasks.waiting)
        await first.stream.aclose()
        assert await heard(waiting, 1) == b"2"


async def test_detach_over_tls():
    """What came in the record of the line that gives the connection away is in the stream, and TLS goes on."""

    async def handler(connection, line):
        stream = await connection.detach()
        await stream.send_all(b"raw: ")
        await echo(stream)
        await stream.aclose()

    async with serving_tls(trionet.LineProtocol(handler)) as at:
        peer = await at.dial()
        await peer.send(b"go\nabc")
        assert await heard(peer, 8) == b"raw: abc"
        await peer.send(b"def")
        assert await heard(peer, 3) == b"def"


async def test_trio_websocket_over_tls():
    """It knows that it is secure."""

    async def handler(ws):
        seen.append(ws.remote.is_ssl)
        await echo_messages(ws)

    seen = []
    async with serving_tls(TrioWebSocketProtocol(handler)) as at:
        peer = await at.join()
        await peer.say("hello")
        assert await peer.hear() == "hello"
        await peer.send(close(1000))
        assert await peer.closed() == 1000
        await until(lambda: not at.server.statistics().streams)
    assert seen == [True]


async def test_behind_a_proxy():
    """The addresses are those of the PROXY header, for both adapters."""

    async def tell(stream):
        await stream.send_all(repr((stream.peer, stream.local)).encode())

    async def tell_message(ws):
        await ws.send_message(f"{ws.remote.address} {ws.remote.port} {ws.local.address}")

    settings = trionet.ProxyProtocol(["127.0.0.1"])
    endpoints = [
        trionet.Endpoint(protocol=protocol, proxy_protocol=settings, port=0)
        for protocol in (StreamProtocol(tell), TrioWebSocketProtocol(tell_message))
    ]
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
    async with serving(endpoints) as at:
        peer = await at.dial()
        await peer.send(header + b"x")
        told = b"(('192.0.2.7', 56324), ('198.51.100.1', 443))"
        assert await heard(peer, len(told)) == told
        peer = await at.dial(at.server.addresses[1])
        await peer.send(header)
        await peer.send(request())
        assert await peer.status() == 101
        assert await peer.hear() == "192.0.2.7 56324 198.51.100.1"


async def test_on_a_unix_socket(tmp_path):
    """A peer without an address has none; our own is the path."""

    async def handler(ws):
        await ws.send_message(repr((ws.remote, ws.local)))

    path = str(tmp_path / "socket")
    async with serving([trionet.Endpoint(protocol=TrioWebSocketProtocol(handler), path=path)]) as at:
        peer = await at.join(address=path)
        assert await peer.hear() == repr((None, path))


async def test_behind_a_router():
    """A path may lead to a task."""
    router = trionet.Router({"/": b"page", "/tasks/{name}": TrioWebSocketProtocol(echo_messages)})
    async with serving(router) as at:
        peer = await at.join("/tasks/one")
        await peer.send(text("a"), frame(1, b"b"))
        assert [await peer.hear(), await peer.hear()] == ["a", "b"]
        assert at.server.statistics().streams == 1
