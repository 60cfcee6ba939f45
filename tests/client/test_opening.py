"""Connecting: what servers, proxies, networks and options can do wrong, and what is said about it."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest
import trio
import trustme
from scripted import scripted, server_frame
from ws_peer import CLOSE, TEXT, Diary, Echo, descriptors, serving, until

import trionet
from trionet.wire.handshake import build_upgrade_response

NORMAL = (1000).to_bytes(2, "big")


async def accept(side):
    """Agree, and part politely."""
    await side.accept()
    while (frame := await side.frame()) is not None:
        if frame.opcode == CLOSE:
            await side.send(server_frame(CLOSE, frame.payload))
            return


def answering(response, *, cut=False):
    """A server that answers so, whole or byte by byte, and closes."""

    async def answer(side):
        await side.head()
        with contextlib.suppress(trio.BrokenResourceError):
            for piece in [response[i : i + 1] for i in range(len(response))] if cut else [response]:
                await side.send(piece)
            if not cut:
                await side.stream.send_eof()
        while await side.more():
            pass

    return answer


@pytest.fixture(autouse=True)
def _no_leaks():
    """No test of this file may leave a descriptor behind."""
    before = descriptors()
    yield
    assert descriptors() <= before


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "bytewise"])
async def test_refusal_is_shown(cut):
    """Status, headers and the beginning of the body of a refusal are in the exception."""
    response = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\nX-Reason: Origin\r\nSet-Cookie: a=b\r\n\r\nNot you!"
    )
    async with scripted(answering(response, cut=cut)) as script:
        with pytest.raises(
            trionet.UpgradeRefused, match=r"127.0.0.1:\d+/ answered 403 Forbidden: Not you!"
        ) as caught:
            async with trionet.connect_websocket(script.url):
                pass
    error = caught.value
    assert (error.status, error.reason, error.body, error.by) == (403, "Forbidden", b"Not you!", "server")
    assert error.header("x-reason") == "Origin"


async def test_refusal_with_a_body_that_does_not_end(monkeypatch):
    """The body of a refusal is not waited for for long."""
    monkeypatch.setattr("trionet.client.opening._BODY_TIME", 0.02)

    async def slow(side):
        await side.head()
        await side.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\nLater")
        await side.ended()

    async with scripted(slow) as script, trionet.open_client(resolution=0.01) as client:
        with pytest.raises(trionet.UpgradeRefused) as caught:
            await client.connect(script.url)
    assert caught.value.body == b"Later"


async def test_refusal_of_our_own_server():
    """What `Rejection` says in `on_upgrade` is what the client is told."""

    class Closed(Echo):
        async def on_upgrade(self, ws, request):
            raise trionet.Rejection(401, headers=[("WWW-Authenticate", "Bearer")], body="Who are you?")

    async with serving(Closed()) as s:
        with pytest.raises(trionet.UpgradeRefused) as caught:
            async with trionet.connect_websocket(s.url):
                pass
    assert caught.value.status == 401
    assert caught.value.header("www-authenticate") == "Bearer"
    assert caught.value.body == b"Who are you?"


@pytest.mark.parametrize(
    "response, words",
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "Accept is missing"),
        (b"HTTP/1.1 101 x\r\nA: " + b"b" * 70000, "more than"),
    ],
    ids=["ssh", "accept", "long"],
)
async def test_what_is_no_websocket(response, words):
    """A server that answers something else is named, with what is wrong, and let go."""
    async with scripted(answering(response)) as script:
        with pytest.raises(trionet.ProtocolError, match=words) as caught:
            async with trionet.connect_websocket(script.url):
                pass
    assert f"127.0.0.1:{script.port}" in str(caught.value)


async def test_subprotocol_that_was_not_offered():
    """A server that chooses what nobody offered is not talked to."""

    async def wrong(side):
        await side.accept(subprotocol="mine")
        await side.ended()

    async with scripted(wrong) as script:
        with pytest.raises(trionet.ProtocolError, match=r"'mine', which was not offered"):
            async with trionet.connect_websocket(script.url, subprotocols=["yours"]):
                pass


@pytest.mark.parametrize("compression", [False, True])
async def test_extension_that_was_not_offered(compression):
    """Nor one that uses an extension that nobody offered, or with parameters that do not fit."""

    async def wrong(side):
        await side.accept(extensions="permessage-bzip2")
        await side.ended()

    async with scripted(wrong) as script:
        with pytest.raises(trionet.ProtocolError, match=r"not offered"):
            async with trionet.connect_websocket(script.url, compression=compression):
                pass


async def test_server_that_hangs_up():
    """A server that closes without an answer is a `ConnectionError`, as is one that resets."""

    async def leave(side):
        await side.head()

    async def half(side):
        await side.head()
        await side.send(b"HTTP/1.1 101 Swi")

    async with scripted(leave, half) as script:
        for _ in range(2):
            with pytest.raises(ConnectionError, match=r"ended during the handshake"):
                async with trionet.connect_websocket(script.url):
                    pass


# -------------------------------------------------------------------- network


async def test_nobody_listens():
    """A refused connection is `ConnectionRefusedError` and says where."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(ConnectionRefusedError, match=rf"{host} port {port}: .*listen"):
                async with trionet.connect_websocket(f"ws://{host}:{port}/"):
                    pass


async def test_name_is_not_known(monkeypatch):
    """A name that cannot be resolved is `socket.gaierror` and says which."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args, **options):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, sockaddr, flags):
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    with pytest.raises(socket.gaierror, match=r"'nowhere.example'"):
        async with trionet.connect_websocket("ws://nowhere.example/"):
            pass


async def test_open_timeout():
    """A server that accepts and is silent is given up after `open_timeout`."""

    async def silent(side):
        await side.head()
        await side.ended()

    async with scripted(silent) as script:
        with pytest.raises(TimeoutError, match=r"no WebSocket within 0.05 s"):
            async with trionet.connect_websocket(script.url, open_timeout=0.05):
                pass


async def test_cancelled_while_connecting():
    """The caller's cancel scope ends an attempt at any stage, and nothing stays open."""

    async def silent(side):
        await side.head()
        await side.ended()

    async with scripted(silent) as script, trionet.open_client() as client:
        with trio.move_on_after(0.05) as scope:
            await client.connect(script.url)
        assert scope.cancelled_caught
        assert client.statistics().connections == 0


async def test_unix_socket(tmp_path):
    """A Unix socket is reached by `unix_path`, and by the URL that the listener gives."""
    path = str(tmp_path / "s")
    endpoint = trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo()), path=path)
    async with serving([endpoint]) as s:
        for url, options in ((s.url, {}), ("ws://localhost/x", {"unix_path": path})):
            async with trionet.connect_websocket(url, **options) as ws:
                await ws.send("x")
                assert await ws.receive() == "x"
    with pytest.raises(FileNotFoundError, match=r"nothing here"):
        async with trionet.connect_websocket("ws://localhost/", unix_path=str(tmp_path / "nothing here")):
            pass


async def test_local_address():
    """The connection comes from the address that was asked for."""
    opened = Diary()
    async with (
        serving(opened) as s,
        trionet.connect_websocket(s.url, local_address="127.0.0.2") as ws,
    ):
        assert ws.local[0] == "127.0.0.2"


# -------------------------------------------------------------------- request


async def test_request_has_what_was_asked_for():
    """Headers, origin, user, path and query arrive."""
    requests = []

    async def server(side):
        await accept(side)
        requests.append(side.request)

    async with scripted(server) as script:
        url = f"ws://me:pw@127.0.0.1:{script.port}/a?b=c"
        async with trionet.connect_websocket(url, headers={"Cookie": "x=y"}, origin="https://example.org"):
            pass
    [request] = requests
    assert request.startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % script.port)
    for line in (b"Cookie: x=y", b"Origin: https://example.org", b"Authorization: Basic bWU6cHc="):
        assert b"\r\n%b\r\n" % line in request


async def test_keys_differ():
    """Each handshake has a key of its own."""
    keys = []

    async def server(side):
        await accept(side)
        keys.append(side.key)

    async with scripted(server) as script, trionet.open_client() as client:
        for _ in range(3):
            async with client.connect(script.url):
                pass
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    "url, options",
    [
        ("http:/x", {}),
        ("ws://h/", {"subprotocols": "chat"}),
        ("ws://h/", {"headers": {"Upgrade": "h2c"}}),
        ("ws://h/", {"proxy": "socks5://p"}),
        ("ws://h/", {"max_message": 0}),
        ("ws://h/", {"compression": "yes"}),
    ],
)
async def test_settings_that_cannot_work(url, options):
    """Mistakes in URL and options are told before anything is sent."""
    with pytest.raises(trionet.ConfigurationError):
        async with trionet.connect_websocket(url, **options):
            pass


# ------------------------------------------------------------------ redirects


def redirecting(location, status=302):
    """A server that sends its client elsewhere."""
    requests = []

    async def server(side):
        requests.append(await side.head())
        await side.send(
            b"HTTP/1.1 %d Elsewhere\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n"
            % (status, location.encode())
        )
        await side.ended()

    server.requests = requests
    return server


async def test_redirects_are_followed_if_asked_for():
    """A redirect is a refusal, unless `redirects` says how many to follow; then headers go along."""
    second = []

    async def good(side):
        await accept(side)
        second.append(side.request)

    async with scripted(redirecting("/b?c", 307), good) as script:
        options = {"headers": {"Authorization": "Bearer x"}}
        async with trionet.connect_websocket(script.url, redirects=1, **options) as ws:
            assert ws.response.status == 101
    assert second[0].startswith(b"GET /b?c HTTP/1.1\r\n")
    assert b"Bearer x" in second[0]
    async with scripted(redirecting("/b")) as script:
        with pytest.raises(trionet.UpgradeRefused, match=r"302 Elsewhere to /b \(redirects"):
            async with trionet.connect_websocket(script.url):
                pass


async def test_redirects_are_bounded():
    """A server that redirects for ever is given up."""
    async with scripted(redirecting("/")) as script:
        with pytest.raises(trionet.UpgradeRefused):
            async with trionet.connect_websocket(script.url, redirects=3):
                pass
        assert script.count == 4


async def test_redirect_to_another_origin_takes_no_secrets_along():
    """Authorization, Cookie and the user of the URL stay with their origin; other headers go along."""
    second = []

    async def good(side):
        await accept(side)
        second.append(side.request)

    async with scripted(good) as elsewhere, scripted(redirecting(elsewhere.url)) as script:
        headers = [("Authorization", "Bearer x"), ("cookie", "a=b"), ("X-Other", "y")]
        async with trionet.connect_websocket(script.url, redirects=1, headers=headers):
            pass
    assert b"X-Other: y" in second[0]
    assert b"Bearer" not in second[0]
    assert b"a=b" not in second[0]


# ---------------------------------------------------------------------- proxy


def proxy(*, status=b"200 OK", extra=b"", seen=None):
    """An HTTP proxy that connects to whatever it is asked for."""

    async def serve(side):
        head = await side.head()
        if seen is not None:
            seen.append(head)
        method, authority, _ = head.split(b"\r\n")[0].split(b" ")
        assert method == b"CONNECT"
        if not status.startswith(b"2"):
            await side.send(b"HTTP/1.1 %b\r\nContent-Length: 3\r\n\r\nNo." % status)
            await side.ended()
            return
        host, _, port = authority.decode().rpartition(":")
        await side.send(b"HTTP/1.1 %b\r\n\r\n" % status, extra)
        async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:

            async def pump(source, sink):
                try:
                    async for data in source:
                        await sink.send_all(data)
                    await sink.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(pump, far, side.stream)
            await pump(side.stream, far)

    return serve


async def test_proxy_connects_us():
    """A WebSocket goes through the tunnel of an HTTP proxy, which is told who asks."""
    seen = []
    async with serving(Echo()) as s, scripted(proxy(seen=seen)) as script:
        url = f"http://me:pw@127.0.0.1:{script.port}"
        async with trionet.connect_websocket(s.url, proxy=url) as ws:
            await ws.send("x" * 100_000)
            assert await ws.receive() == "x" * 100_000
        assert b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % s.port in seen[0]
    assert b"Proxy-Authorization: Basic bWU6cHc=\r\n" in seen[0]


async def test_tls_through_a_proxy():
    """TLS goes through the tunnel: the proxy sees none of it, and the certificate is that of the server."""
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.options |= ssl.OP_NO_RENEGOTIATION
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    endpoint = trionet.Endpoint(protocol=trionet.WebSocketProtocol(Echo()), ssl_context=server_side)
    async with serving([endpoint]) as s, scripted(proxy()) as script:
        options = {"proxy": f"http://127.0.0.1:{script.port}", "ssl_context": trusting}
        async with trionet.connect_websocket(s.url, **options) as ws:
            await ws.send("x")
            assert await ws.receive() == "x"


async def test_proxy_that_refuses():
    """407 of a proxy is told as the proxy's."""
    async with scripted(proxy(status=b"407 Proxy Authentication Required")) as script:
        with pytest.raises(trionet.UpgradeRefused, match=r"the proxy 127.0.0.1:\d+ answered 407") as caught:
            async with trionet.connect_websocket("ws://h/", proxy=f"http://127.0.0.1:{script.port}"):
                pass
    assert caught.value.by == "proxy"
    assert caught.value.body == b"No."


@pytest.mark.parametrize(
    "response, error",
    [
        (b"", ConnectionResetError),
        (b"garbage garbage", trionet.ProtocolError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 30000, trionet.ProtocolError),
        (b"HTTP/1.1 200 OK\r\n\r\n\x81\x00", trionet.ProtocolError),
    ],
    ids=["nothing", "garbage", "long", "extra"],
)
async def test_proxy_that_is_none(response, error):
    """What a broken proxy says is bounded and named as the proxy's."""
    async with scripted(answering(response)) as script:
        with pytest.raises(error, match=r"the proxy 127.0.0.1"):
            async with trionet.connect_websocket("ws://h/", proxy=f"http://127.0.0.1:{script.port}"):
                pass


async def test_silent_proxy():
    """The time for opening includes the proxy's."""

    async def silent(side):
        await side.head()
        await side.ended()

    async with scripted(silent) as script:
        proxy_url = f"http://127.0.0.1:{script.port}"
        with pytest.raises(TimeoutError):
            async with trionet.connect_websocket("ws://h/", proxy=proxy_url, open_timeout=0.05):
                pass


# -------------------------------------------------------------------- tidiness


@pytest.mark.parametrize("how", ["plain", "tls", "proxy"])
async def test_cancelled_at_any_point(how):
    """An attempt that is cancelled after 1, 2, 3, … turns of the loop leaves no descriptor and no connection."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    authority.issue_cert("127.0.0.1").configure_cert(context)
    options = {"ssl_context": ssl.create_default_context()}
    authority.configure_trust(options["ssl_context"])

    async def patient(side):
        with contextlib.suppress(
            AssertionError, trio.BrokenResourceError
        ):  # its client may leave at any time
            await proxy()(side)

    protocol = trionet.WebSocketProtocol(Echo())
    endpoint = trionet.Endpoint(protocol=protocol, ssl_context=context if how == "tls" else None)
    async with serving([endpoint]) as s, scripted(patient) as script, trionet.open_client() as client:
        if how == "proxy":
            options["proxy"] = f"http://127.0.0.1:{script.port}"
        await until(lambda: s.server.engine.connections == 0)
        opened = 0
        for turns in range(40):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, turns, scope)
                    async with client.connect(s.url, **options) as ws:
                        opened += 1
                        await ws.send("x")
                        await ws.receive()
                    nursery.cancel_scope.cancel()
            assert client.statistics().connections == 0
        await until(lambda: s.server.engine.connections == 0)
    assert opened


async def _cancel_after(turns, scope):
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    if turns < 39:
        scope.cancel()


async def test_failed_attempts_leave_nothing():
    """After many failures of all kinds the client has no connection, and goes on working."""

    async def hang_up(side):
        await side.head()

    async def good(side):
        await side.head()
        await side.send(build_upgrade_response(side.key), server_frame(TEXT, b"hello"))
        assert await side.expect_close() == 1000
        await side.send(server_frame(CLOSE, NORMAL))

    scripts = [
        answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        answering(b"nonsense"),
        hang_up,
        good,
    ]
    async with scripted(*scripts) as script, trionet.open_client() as client:
        for _ in range(3):
            with pytest.raises((trionet.UpgradeRefused, trionet.ProtocolError, OSError)):
                await client.connect(script.url)
        assert client.statistics().connections == 0
        async with client.connect(script.url) as ws:
            assert await ws.receive() == "hello"
        await until(lambda: client.statistics().connections == 0)
