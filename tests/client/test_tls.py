"""A client over TLS: certificates that fit and others, and everything else as it is without."""

from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from scripted import scripted
from ws_peer import Echo, descriptors, serving

import trionet


@pytest.fixture(scope="module")
def authority():
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority):
    """A server's context, for localhost and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusting(authority):
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def secured(handler, context, **options):
    """Serve a handler over TLS."""
    protocol = trionet.WebSocketProtocol(handler, **options)
    return serving([trionet.Endpoint(protocol=protocol, ssl_context=context)])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_messages_over_tls(server_context, authority, version):
    """Messages of all sizes, pings, and a clean end over TLS 1.2 and 1.3."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.maximum_version = version
    async with secured(Echo(), server_context) as s:
        async with trionet.connect_websocket(s.url, ssl_context=context) as ws:
            for message in ("hello", b"x" * 70_000, "é" * 300_000):
                await ws.send(message)
                assert await ws.receive() == message
            assert await ws.ping() >= 0
            assert ws.tls.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]
        assert (ws.closed.code, ws.closed.by) == (1000, "us")


async def test_compression_over_tls(server_context, trusting):
    """Compressing, masking and enciphering go together, in this order."""
    async with (
        secured(Echo(), server_context, compression=True) as s,
        trionet.connect_websocket(s.url, ssl_context=trusting, compression=True) as ws,
    ):
        await ws.send("abc" * 10_000)
        assert await ws.receive() == "abc" * 10_000
        assert ws.codec is not None


async def test_many_over_tls(server_context, trusting):
    """Connections to the same server share what can be shared."""
    async with secured(Echo(), server_context) as s, trionet.open_client(ssl_context=trusting) as client:
        connections = [await client.connect(s.url) for _ in range(10)]
        for ws in connections:
            await ws.send("x")
        assert [await ws.receive() for ws in connections] == ["x"] * 10
        assert len(client._handshakes) == 1


@pytest.mark.parametrize(
    "options, words",
    [({}, "unable to get local issuer"), ({"server_hostname": "elsewhere.example"}, "elsewhere.example")],
    ids=["authority", "name"],
)
async def test_certificates_are_verified(server_context, trusting, options, words):
    """A certificate of an unknown authority, or for another name, is refused, and nothing stays open."""
    options = {"ssl_context": trusting, **options} if options else {}
    async with secured(Echo(), server_context) as s:
        before = descriptors()
        with pytest.raises(ssl.SSLCertVerificationError, match=words) as caught:
            async with trionet.connect_websocket(s.url, **options):
                pass
        assert "wss://127.0.0.1" in caught.value.__notes__[0]
        assert s.server.engine.opened == 1
        await _until_alone(s)
        assert descriptors() == before


async def _until_alone(s):
    while s.server.engine.connections:  # noqa: ASYNC110
        await trio.sleep(0.001)


async def test_server_name_may_be_given(server_context, trusting):
    """`server_hostname` says which name to verify, where the URL has another."""
    async with secured(Echo(), server_context) as s:
        options = {"ssl_context": trusting, "server_hostname": "localhost"}
        async with trionet.connect_websocket(s.url, **options) as ws:
            assert ws.tls.server_hostname == "localhost"


async def test_client_certificates(authority):
    """A server that wants a certificate gets that of the context."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.options |= ssl.OP_NO_RENEGOTIATION
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with secured(Echo(), server) as s:
        with pytest.raises((OSError, trionet.TrionetError)):
            async with trionet.connect_websocket(s.url, ssl_context=client) as ws:
                await ws.receive()
        authority.issue_cert("me@example.org").configure_cert(client)
        async with trionet.connect_websocket(s.url, ssl_context=client) as ws:
            await ws.send("x")
            assert await ws.receive() == "x"


async def test_server_without_tls():
    """``wss`` to a server that speaks plain HTTP is an SSL error; ``ws`` to one that speaks TLS says what to do."""
    async with serving(Echo()) as s:
        with pytest.raises(OSError, match=r"(?i)ssl|record|wrong version") as caught:
            async with trionet.connect_websocket("wss" + s.url[2:], open_timeout=5):
                pass
        assert not isinstance(caught.value, TimeoutError)


async def test_tls_server_without_wss(server_context):
    """``ws`` to a server that speaks TLS says what to do."""
    async with secured(Echo(), server_context) as s:
        with pytest.raises(trionet.UpgradeRefused, match=r"wss://"):
            async with trionet.connect_websocket("ws" + s.url[3:]):
                pass


async def test_server_that_leaves_during_the_handshake():
    """A server that hangs up on our ClientHello is a `ConnectionError`."""

    async def leave(side):
        await side.more()

    async with scripted(leave) as script:
        with pytest.raises(ConnectionError, match=r"during the"):
            async with trionet.connect_websocket(f"wss://127.0.0.1:{script.port}/"):
                pass


async def test_silent_server_over_tls():
    """`open_timeout` bounds TLS, too."""

    async def silent(side):
        while await side.more():
            pass

    async with scripted(silent) as script:
        with pytest.raises(TimeoutError):
            async with trionet.connect_websocket(f"wss://127.0.0.1:{script.port}/", open_timeout=0.05):
                pass


async def test_handler_over_tls(server_context, trusting):
    """A handler's connection over TLS: open, message, close."""
    seen = []

    class Talk(trionet.WebSocketHandler):
        async def on_open(self, ws):
            await ws.send("hello")

        async def on_message(self, ws, message):
            seen.append(message)
            await ws.close()

    async with secured(Echo(), server_context) as s, trionet.open_client(ssl_context=trusting) as client:
        ws = await client.connect(s.url, handler=Talk())
        await ws.wait_closed()
    assert seen == ["hello"]
