"""Endpoints that expect a PROXY header: from whom, how long, and what the protocol sees of it."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import sys

import pytest
import trio
import trustme
from ws_peer import Echo, Opened, Peer, request, serving, text, until

import trionet

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
BINARY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc6\x33\x64\1" + struct.pack("!HH", 56324, 443)
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def lines(handler=None):
    """Return a protocol that answers each line with the two addresses of its connection."""

    async def tell(connection, line):
        await connection.send(f"{line.decode()} {connection.peer} {connection.local}".encode())

    return trionet.LineProtocol(handler or tell)


@pytest.fixture(params=["version 1", "version 2"])
def header(request):
    """Return a header of either version."""
    return LINE if request.param == "version 1" else BINARY


def behind(settings, protocol=None, **options):
    """Return endpoints with one whose connections come from a proxy."""
    return [trionet.Endpoint(protocol=protocol or lines(), proxy_protocol=settings, **options)]


async def said(peer: Peer) -> bytes:
    """Return all that comes."""
    while await peer._more():
        pass
    return peer.take(len(peer.data))


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize("backend", [None, "tasks"], ids=["platform", "tasks"])
async def test_the_header_tells_the_addresses(header, how, backend):
    """`peer` and `local` are those the proxy tells, and what follows the header is the protocol's."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings), backend=backend) as at:
        assert at.url.startswith("tcp://")
        peer = await at.dial()
        data = header + b"hello\n"
        for piece in [data] if how == "whole" else [data[n : n + 1] for n in range(len(data))]:
            await peer.send(piece)
            if how == "bytewise":
                await trio.testing.wait_all_tasks_blocked()
        await peer.stream.send_eof()
        assert await said(peer) == b"hello ('192.0.2.7', 56324) ('198.51.100.1', 443)\r\n"
        await until(lambda: not at.server.statistics().connections)
        statistics = at.server.statistics()
    assert (settings.accepted, settings.refused) == (1, {})
    assert (statistics.opened, statistics.opening) == (1, 0)


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["local", "unknown"])
async def test_a_header_that_names_nobody(header):
    """The proxy's own address is what there is; `proxy_header` says why."""
    seen = []

    async def handler(connection, line):
        assert isinstance(connection, trionet.Proxied)
        seen.append((connection.peer == connection.proxy, connection.local[1], connection.proxy_header.local))
        await connection.send(b"ok")

    async with serving(behind(trionet.ProxyProtocol(["127.0.0.0/8"]), lines(handler))) as at:
        peer = await at.dial()
        await peer.send(header, b"\n")
        await until(lambda: seen)
        assert seen == [(True, at.port, header == LOCAL)]


async def test_a_unix_socket(tmp_path):
    """Peers on a Unix socket are trusted by "unix:", and only by that."""
    path = str(tmp_path / "socket")
    for trusted in ["unix:"], ["0.0.0.0/0", "::/0"]:
        settings = trionet.ProxyProtocol(trusted)
        async with serving(behind(settings, path=path)) as at:
            peer = await at.dial(path)
            try:
                await peer.send(LINE, b"hello\n")
            except trio.BrokenResourceError:
                assert trusted != ["unix:"]
            await until(lambda s=settings: s.accepted or s.refused)
            assert settings.refused == ({} if trusted == ["unix:"] else {"untrusted": 1})
            if trusted == ["unix:"]:
                await peer.stream.send_eof()
                assert b"192.0.2.7" in await said(peer)


async def test_who_is_not_trusted_is_closed(header, caplog):
    """It is not heard, whatever it sends; that is counted, and logged for those who look."""
    caplog.set_level(logging.DEBUG, "trionet")
    settings = trionet.ProxyProtocol(["192.0.2.0/24", "::1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        assert await said(peer) == b""
        await until(lambda: not at.server.statistics().connections)
    assert (settings.accepted, settings.refused) == (0, {"untrusted": 1})
    assert [r.levelname for r in caplog.records if "not trusted" in r.getMessage()] == ["DEBUG"]


async def test_who_is_not_trusted_may_come_directly(header):
    """With `direct` it is served as itself, and a header of its own is nothing but input."""
    settings = trionet.ProxyProtocol(["192.0.2.0/24"], direct=True)
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await peer.send(b"hello\n")
        await peer.stream.send_eof()
        answer = await said(peer)
        assert answer.startswith(b"hello ('127.0.0.1', ")
        assert b"192.0.2.7" not in answer
        [protocol] = [listener.endpoint.protocol for listener in at.server.listeners]
        spoofer = await at.dial()
        await spoofer.send(LINE)
        await spoofer.stream.send_eof()
        assert b"443 ('127.0.0.1', " in await said(spoofer)
        assert protocol.connection_class is trionet.LineConnection
    assert (settings.accepted, settings.refused) == (0, {})


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PROXY TCP4 nonsense\r\n", BINARY[:13] + b"\xff\0\0"],
)
async def test_a_trusted_peer_without_a_good_header_is_closed(data, caplog):
    """No answer, no handler: closed, counted, logged for those who look."""
    caplog.set_level(logging.DEBUG, "trionet")
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await peer.send(data)
        assert await said(peer) == b""
        await until(lambda: not at.server.statistics().connections)
        assert at.server.statistics().opening == 0
    assert (settings.accepted, settings.refused) == (0, {"malformed": 1})
    assert [r.levelname for r in caplog.records if r.name.startswith("trionet")] == ["DEBUG"]


@pytest.mark.parametrize(
    "sent", [b"", LINE[:-1], BINARY[:-1]], ids=["nothing", "most of a line", "most of it"]
)
async def test_a_header_has_to_come_in_time(sent, mock_clock):
    """A slow or silent peer is closed after `timeout`, and does not keep its place among the half open."""
    mock_clock.autojump_threshold = 0.01
    settings = trionet.ProxyProtocol(["127.0.0.1"], timeout=5)
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await peer.send(sent)
        began = trio.current_time()
        assert await said(peer) == b""
        assert 4.5 < trio.current_time() - began < 6
        await until(lambda: not at.server.statistics().opening, step=0.1)
    assert settings.refused == {"late": 1}


@pytest.mark.parametrize("sent", [b"", LINE[:-1]], ids=["nothing", "most of a line"])
async def test_a_peer_that_leaves_before_its_header(sent):
    """A health check that only connects costs nothing."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await peer.send(sent)
        await peer.stream.send_eof()
        assert await said(peer) == b""
        await until(lambda: not at.server.statistics().connections)
    assert settings.refused == {"left": 1}


async def test_a_reset_before_the_header():
    """It is counted as one that left."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().connections)
        await peer.reset()
        await until(lambda: not at.server.statistics().connections)
    assert settings.refused == {"left": 1}


async def test_a_peer_that_is_gone_when_it_is_accepted(header):
    """Who it was cannot be told any more: it has left, which is not to say that it was not trusted."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        sock = socket.create_connection(
            ("127.0.0.1", at.port)
        )  # the kernel accepts, the server did not look yet
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(header)
        sock.close()
        await until(lambda: settings.refused)
        assert settings.refused == {"left": 1}


async def test_websockets_behind_a_header(header):
    """The handshake follows the header, in the same segment or not, and so do frames."""
    handler = Opened()
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    protocol = trionet.WebSocketProtocol(handler, max_messages_per_second=1000)
    async with serving(behind(settings, protocol)) as at:
        assert at.url.startswith("ws://")
        for together in (True, False):
            peer = await at.dial()
            await peer.send(header + (request() + text("hello") if together else b""))
            if not together:
                await until(lambda: settings.accepted == 2)
                await peer.send(request(), text("hello"))
            assert await peer.status() == 101
            await until(lambda n=2 - together: len(handler.seen) == n)
        for ws in handler.arrived:
            assert (ws.peer, ws.client.host) == (("192.0.2.7", 56324), "192.0.2.7")
            assert "WebSocket fd=" in repr(ws)


async def test_plain_requests_behind_a_header():
    """A connection that goes from HTTP to WebSocket knows its peer all the time."""
    seen = []

    async def page(req):
        seen.append(req.peer)
        return trionet.Response.text("page")

    protocol = trionet.WebSocketProtocol(Echo(), http=trionet.HttpProtocol({"/": page}))
    async with serving(behind(trionet.ProxyProtocol(["127.0.0.1"]), protocol)) as at:
        peer = await at.dial()
        await peer.send(LINE, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await peer.status() == 200
        peer.take(4)
        await peer.send(request())
        assert await peer.status() == 101
        assert at.connection.peer == ("192.0.2.7", 56324)
        await peer.echo()
    assert seen == [("192.0.2.7", 56324)]


async def test_a_drain_ends_those_that_wait_for_their_header():
    """They have said nothing yet, and are closed without a word."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().opening)
        assert "_Greeting" in repr(at.connection)
        assert await at.server.drain(jitter=0)
        await peer.ended()


async def test_a_header_that_comes_during_a_drain():
    """Its connection is not begun any more."""
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    async with serving(behind(settings)) as at:
        peer = await at.dial()
        await until(lambda: at.server.statistics().opening)
        at.server.engine.draining = True
        await peer.send(LINE)
        await peer.ended()
    assert settings.accepted == 1


async def test_a_server_that_speaks_first():
    """Its first words come after the header, and know the client."""

    class Greeter(trionet.LineProtocol):
        def connection_made(self, connection):
            super().connection_made(connection)
            connection.write(repr(connection.peer).encode())

    async with serving(behind(trionet.ProxyProtocol(["127.0.0.1"]), Greeter(lines().handler))) as at:
        peer = await at.dial()
        await peer.send(LINE)
        await peer.stream.send_eof()
        assert await said(peer) == b"('192.0.2.7', 56324)"


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"max_size": 100}, {"trusted": "127.0.0.1"}, {"trusted": ["x"]}]
)
def test_settings_that_cannot_work(options):
    """They are told at once."""
    with pytest.raises(trionet.ConfigurationError):
        trionet.ProxyProtocol(**{"trusted": ["127.0.0.1"], **options})


# ------------------------------------------------- what proxies add to requests


def forwarded(**options):
    """Return a protocol whose messages are answered with what is known of the client."""

    class Tell(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            assert ws.client.authority

        async def on_message(self, ws, message):
            await ws.send(f"{ws.client.host} {ws.client.scheme} {ws.client.authority}")

    return trionet.WebSocketProtocol(Tell(), **options)


HEADERS = (
    "X-Forwarded-For: 6.6.6.6, 192.0.2.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: chat.example",
    "Forwarded: for=6.6.6.6, for=192.0.2.8;proto=http;host=other.example",
)


@pytest.mark.parametrize(
    "proxies, answer",
    [
        (["127.0.0.1"], "192.0.2.7 https chat.example"),
        (trionet.TrustedProxies(["127.0.0.1"], header="forwarded"), "192.0.2.8 http other.example"),
        (["192.0.2.0/24"], "127.0.0.1 None 127.0.0.1"),
    ],
)
async def test_the_client_of_a_websocket(proxies, answer):
    """`ws.client` is what trusted proxies say; `ws.peer` stays the peer."""
    async with serving(forwarded(trusted_proxies=proxies)) as at:
        peer = await at.join("/", *HEADERS)
        await peer.say("who?")
        assert await peer.hear() == answer
        assert at.connection.peer[0] == "127.0.0.1"


@pytest.mark.parametrize("proxies", [None, []])
async def test_without_trusted_proxies_nothing_is_read(proxies):
    """The client is the peer, and its connection has no word more."""
    handler = Opened()
    protocol = trionet.WebSocketProtocol(handler, trusted_proxies=proxies)
    async with serving(protocol) as at:
        await at.join("/", *HEADERS)
        assert (await handler.first()).client.host == "127.0.0.1"
        assert protocol.connection_class is trionet.WebSocket


async def test_trusted_proxies_on_a_unix_socket(tmp_path):
    """The proxy beside us is trusted by "unix:"."""
    path = str(tmp_path / "socket")
    endpoints = [trionet.Endpoint(protocol=forwarded(trusted_proxies=["unix:"]), path=path)]
    async with serving(endpoints) as at:
        peer = await at.join("/", *HEADERS, address=path)
        await peer.say("who?")
        assert await peer.hear() == "192.0.2.7 https chat.example"


@pytest.mark.skipif(sys.platform != "linux", reason="names without a file are Linux's")
@pytest.mark.parametrize("name", [b"\0", b"\0trionet proxy"])
async def test_a_proxy_with_a_name_that_is_no_file(name, tmp_path):
    """A peer whose socket is bound to an abstract name, which is bytes, is on a Unix socket, too."""
    path = str(tmp_path / "socket")
    endpoints = [trionet.Endpoint(protocol=forwarded(trusted_proxies=["unix:"]), path=path)]
    async with serving(endpoints):
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.bind(name + (tmp_path.name.encode() if name[1:] else b""))
            await sock.connect(path)
            peer = Peer(trio.SocketStream(sock))
            await peer.send(request("/", *HEADERS))
            assert await peer.status() == 101
            await peer.say("who?")
            assert await peer.hear() == "192.0.2.7 https chat.example"


@pytest.mark.parametrize(
    "origin, proxies, status",
    [
        ("https://chat.example", ["127.0.0.1"], 101),
        ("http://127.0.0.1", ["127.0.0.1"], 403),
        ("https://chat.example", ["192.0.2.1"], 403),
        ("http://127.0.0.1", ["192.0.2.1"], 101),
    ],
)
async def test_the_own_host_behind_a_proxy(origin, proxies, status):
    """The host that the browser asked the proxy for is our own; who is not trusted cannot change it."""
    async with serving(Echo(), trusted_proxies=proxies) as at:
        peer = await at.dial()
        await peer.send(request("/", f"Origin: {origin}", *HEADERS))
        assert await peer.status() == status


async def test_both_kinds_together():
    """The PROXY header says who connects: that is whose X-Forwarded-For is believed, or not."""
    protocol = forwarded(trusted_proxies=["192.0.2.7"])
    async with serving(behind(trionet.ProxyProtocol(["127.0.0.1"]), protocol)) as at:
        for header, answer in (
            (LINE, "9.9.9.9 None 127.0.0.1"),
            (LINE.replace(b"2.7", b"2.8"), "192.0.2.8 None 127.0.0.1"),
        ):
            peer = await at.dial()
            await peer.send(header, request("/", "X-Forwarded-For: 9.9.9.9"))
            assert await peer.status() == 101
            await peer.say("who?")
            assert await peer.hear() == answer


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["local", "unknown"])
async def test_a_head_behind_an_unknown_client_is_not_believed(header):
    """A proxy that passes bytes on lets X-Forwarded-For through as the client wrote it."""
    protocol = forwarded(trusted_proxies=["127.0.0.1"])
    async with serving(behind(trionet.ProxyProtocol(["127.0.0.1"]), protocol)) as at:
        peer = await at.dial()
        await peer.send(header, request("/", "X-Forwarded-For: 6.6.6.6"))
        assert await peer.status() == 101
        await peer.say("who?")
        assert await peer.hear() == "127.0.0.1 None 127.0.0.1"


async def test_the_client_of_a_plain_request():
    """`HttpRequest.client` believes whom `HttpProtocol` trusts."""
    seen = []

    async def page(req):
        seen.append(f"{req.client.host} {req.client.scheme} {req.client.authority}")
        return trionet.Response.text("page")

    for trusted in ["127.0.0.1"], []:
        async with serving(trionet.HttpProtocol({"/": page}, trusted_proxies=trusted)) as at:
            peer = await at.dial()
            head = "\r\n".join(["GET / HTTP/1.1", "Host: own.example", *HEADERS, "", ""])
            await peer.send(head.encode())
            assert await peer.status() == 200
    assert seen == ["192.0.2.7 https chat.example", "127.0.0.1 None own.example"]


async def test_tls_behind_a_header(header):
    """The header is plain, and TLS begins right behind it: not a byte is lost, however it is cut."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("chat.example").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    protocol = forwarded(trusted_proxies=["192.0.2.0/24"])
    async with serving(behind(settings, protocol, ssl_context=context)) as at:
        for cut in (0, 5):
            raw = await trio.open_tcp_stream("127.0.0.1", at.port)
            await raw.send_all(header[:cut])
            stream = trio.SSLStream(Behind(raw, header[cut:]), trust, server_hostname="chat.example")
            peer = Peer(stream)
            await peer.send(request("/", "X-Forwarded-For: 9.9.9.9"))
            assert await peer.status() == 101
            await peer.say("who?")
            assert await peer.hear() == "9.9.9.9 https 127.0.0.1"
            assert at.connection.peer == ("192.0.2.7", 56324)
            await raw.aclose()
            await until(lambda: not at.server.statistics().connections)


class Behind(trio.abc.Stream):
    """A stream whose first bytes are sent behind a header, in one write."""

    def __init__(self, stream, header):
        self.stream, self.header = stream, header

    async def send_all(self, data):
        data, self.header = self.header + bytes(data), b""
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self):
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        await self.stream.aclose()
