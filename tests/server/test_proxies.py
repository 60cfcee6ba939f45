"""Behind real proxies: nginx and HAProxy, with the very configurations of docs/howto/proxies.md."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from ws_peer import CLOSE, PING, PONG, TEXT, Opened, Peer, close, frame, request, serving, until

import trionet

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "howto" / "proxies.md"
NGINX, STREAM = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
HAPROXY, FORWARDED = re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"

OURS = "127.0.0.2"  # where clients come from, other than the proxies

#: What is in front, and how it tells who the client is.
ROUTES = {
    "nginx": "head",
    "nginx-unix": "head",
    "nginx-stream": "header",
    "haproxy": "head",
    "haproxy-forwarded": "standard",
    "haproxy-bytes": "header",
    "haproxy-bytes-v1": "header",
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="neither nginx nor HAProxy is for Windows")


@pytest.fixture(params=ROUTES)
def route(request):
    """Return the name of a way to the server; skips it where its proxy is not installed."""
    name = request.param
    if shutil.which(name.partition("-")[0], path=PATH) is None:
        pytest.skip(f"no {name.partition('-')[0]} on PATH or in /usr/sbin")
    if name == "nginx-stream" and not STREAM_MODULE.exists():
        pytest.skip(f"no {STREAM_MODULE}: nginx cannot pass bytes on (Debian: libnginx-mod-stream)")
    return name


def replaced(config: str, *pairs: tuple[str, str]) -> str:
    """Return the page's configuration with what is the test's own; each thing has to be there."""
    for old, new in pairs:
        assert old in config, old
        config = config.replace(old, new)
    return config


def configure(
    route: str, front: int, back: dict[str, str], folder: Path, more: tuple[tuple[str, str], ...]
) -> str:
    """Return a whole configuration file for this way."""
    if route == "nginx-stream":
        block = replaced(
            STREAM, ("8003", f"127.0.0.1:{front} reuseport"), ("127.0.0.1:8002", back["header"]), *more
        )
        return f"load_module {STREAM_MODULE};\n{MAIN.format(folder)}\nstream {{\n{block}\n}}\n"
    if route.startswith("nginx"):
        upstream = f"unix:{back['unix']}" if route.endswith("unix") else back["head"]
        block = replaced(NGINX, ("8000", f"127.0.0.1:{front} reuseport"), ("127.0.0.1:8001", upstream), *more)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        return f"{MAIN.format(folder)}\nhttp {{\naccess_log off;\n{paths}{block}\n}}\n"
    own = [("127.0.0.1:8001", back["head"]), ("127.0.0.1:8002", back["header"])]
    if "bytes" in route:
        own += [("127.0.0.1:8003", f"127.0.0.1:{front}"), ("127.0.0.1:8000", f"unix@{folder}/other")]
    else:
        own += [("127.0.0.1:8000", f"127.0.0.1:{front}"), ("127.0.0.1:8003", f"unix@{folder}/other")]
    if route.endswith("v1"):
        own.append(("send-proxy-v2  #", "send-proxy  #"))
    if route.endswith("forwarded"):
        own[0] = ("127.0.0.1:8001", f"unix@{back['standard']}")
        own.append(("    http-request del-header Forwarded\n", FORWARDED))
    return replaced(HAPROXY, *own, *more)


MAIN = """daemon off; master_process off; worker_processes 1;
pid {0}/pid; error_log stderr warn; events {{ worker_connections 512; }}"""


@asynccontextmanager
async def proxied(route: str, back: dict[str, str], folder: Path, *more: tuple[str, str]):
    """Run the proxy; yields its port once it listens."""
    name = route.partition("-")[0]
    config, log = folder / "config", folder / "log"
    with socket.socket() as reserved:  # nobody else gets this port meanwhile, as it does not let them
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        config.write_text(configure(route, port, back, folder, more), "utf-8")
        command = [shutil.which(name, path=PATH), "-p", str(folder), "-e", "stderr", "-c", str(config)]
        if name == "haproxy":
            command[1:] = ["-db", "-q", "-f", str(config)]
        process = start(command, log)
        try:
            while not await listens(port):
                assert process.poll() is None, log.read_text("utf-8", "replace")
            yield port
        finally:
            process.kill()
            process.wait()


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a program that writes to a file what it has to say."""
    with log.open("wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


async def listens(port: int) -> bool:
    """Whether something listens there; if not, a moment has passed."""
    with trio.socket.socket() as sock:
        await sock.bind((OURS, 0))  # from the port's own address it might connect to itself
        try:
            await sock.connect(("127.0.0.1", port))
        except OSError:
            await trio.sleep(0.01)
            return False
    return True


class Host(Opened):
    """Tells clients who they are; closes when told so."""

    async def on_message(self, ws, message):
        if isinstance(message, bytes):
            await ws.send(message)
        elif message == "close":
            await ws.close(4001, "enough")
        else:
            who = ws.peer if isinstance(ws, trionet.Proxied) else (ws.client.host, ws.client.port)
            await ws.send(f"{who[0]} {ws.client.scheme} {ws.client.authority}")


class Behind:
    """A server with all its endpoints, and a proxy in front of one of them."""

    def __init__(self, server: trionet.Server, handler: Host, port: int, peers: AsyncExitStack) -> None:
        self.server = server
        self.handler = handler
        self.port = port
        self.peers = peers

    async def dial(self) -> Peer:
        """Connect to the proxy, from an address that nobody trusts."""
        sock = trio.socket.socket()
        peer = Peer(trio.SocketStream(sock))
        self.peers.push_async_callback(peer.aclose)
        await sock.bind((OURS, 0))
        await sock.connect(("127.0.0.1", self.port))
        return peer

    async def join(self, *headers: str) -> Peer:
        """Connect to the proxy and become a WebSocket."""
        peer = await self.dial()
        await peer.send(self.request(*headers))
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return peer

    def request(self, *headers: str) -> bytes:
        """Return a handshake with the public name of the site."""
        return request("/", *headers).replace(b"Host: 127.0.0.1", b"Host: chat.example:8443")


@asynccontextmanager
async def behind(route: str, folder: Path, *more: tuple[str, str], **options):
    """Serve `Host` behind a proxy."""
    handler = Host()
    trust = ["127.0.0.1", "unix:"]
    options.setdefault("subprotocols", ("chat.v2", "chat.v1"))
    head = trionet.WebSocketProtocol(handler, trusted_proxies=trust, **options)
    standard = trionet.WebSocketProtocol(
        handler, trusted_proxies=trionet.TrustedProxies(trust, header="forwarded"), **options
    )
    plain = trionet.WebSocketProtocol(handler, **options)
    names = {name: str(folder / name) for name in ("unix", "standard")}
    settings = trionet.ProxyProtocol(["127.0.0.1"])
    endpoints = [
        trionet.Endpoint(protocol=head),
        trionet.Endpoint(protocol=plain, proxy_protocol=settings),
        trionet.Endpoint(protocol=head, path=names["unix"]),
        trionet.Endpoint(protocol=standard, path=names["standard"]),
    ]
    async with serving(endpoints) as at:
        ports = [listener.address[1] for listener in at.server.listeners[:2]]
        back = {"head": f"127.0.0.1:{ports[0]}", "header": f"127.0.0.1:{ports[1]}", **names}
        async with AsyncExitStack() as peers, proxied(route, back, folder, *more) as front:
            yield Behind(at.server, handler, front, peers)


async def test_a_websocket_through_a_proxy(route, tmp_path):
    """Messages, subprotocols and the client's address come through; what the client claims to be does not."""
    spoofed = ("X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6;proto=https;host=bank.example")
    async with behind(route, tmp_path) as it:
        peer = await it.dial()
        offer = "Sec-WebSocket-Protocol: chat.v3, chat.v2, chat.v1"
        origin = "Origin: https://chat.example:8443"
        await peer.send(it.request(*spoofed, offer, origin))
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\nsec-websocket-protocol: chat.v2\r\n" in head.lower()
        await peer.say("who?")
        answer = await peer.hear()
        if ROUTES[route] == "header":
            assert answer == f"{OURS} None "
            assert it.handler.arrived[-1].peer == peer.stream.socket.getsockname()
        else:
            assert answer == f"{OURS} http chat.example:8443"
        for size in (0, 125, 70_000, 1_000_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.send, frame(2, b"x" * size))
                assert len((await peer.frame()).payload) == size


async def test_close_codes_pass(route, tmp_path):
    """Both sides see the code and the reason that the other one gave."""
    async with behind(route, tmp_path) as it:
        peer = await it.join()
        await peer.say("close")
        received = await peer.frame()
        assert (received.opcode, received.payload) == (CLOSE, (4001).to_bytes(2, "big") + b"enough")
        await peer.send(close(4001))
        await peer.ended()
        other = await it.join()
        await other.send(close(4002, b"bye"))
        assert await other.closed() == 4002
        await until(lambda: len(it.handler.ends) == 2)
        assert {(end.code, end.by) for end in it.handler.ends} == {(4001, "us"), (4002, "peer")}
        lost = await it.join()
        await lost.reset()
        await until(lambda: len(it.handler.ends) == 3)
        assert it.handler.ends[2].code == 1006


async def test_a_drain_reaches_the_client(route, tmp_path):
    """Clients behind the proxy are told 1001."""
    async with behind(route, tmp_path) as it:
        peers = [await it.join() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: it.server.drain(jitter=0))
            for peer in peers:
                assert await peer.closed() == 1001
                await peer.send(close(1001))
                await peer.ended()
        assert {end.code for end in it.handler.ends} == {1001}


@pytest.mark.parametrize("route", ["nginx"], indirect=True)
async def test_a_quiet_connection_lives_by_our_pings(route, tmp_path):
    """The proxy cuts what is silent for its timeout; Pings are a sound, and without them the handler sees 1006."""
    short = ("proxy_read_timeout 75s", "proxy_read_timeout 1500ms")
    folders = [tmp_path / name for name in ("with", "without")]
    for folder in folders:
        folder.mkdir()
    pinging = behind(route, folders[0], short, ping_interval=0.5, ping_timeout=0.5)
    async with pinging as it, behind(route, folders[1], short, ping_interval=None) as silent:
        peer, cut = await it.join(), await silent.join()
        for _ in range(5):  # half a second apart
            received = await peer.frame()
            assert received.opcode == PING
            await peer.send(frame(PONG, received.payload))
        await cut.ended()
        await until(lambda: silent.handler.ends)
        assert silent.handler.ends[0].code == 1006
        await peer.say("who?")
        received = await peer.frame()
        while received.opcode != TEXT:
            received = await peer.frame()


@pytest.mark.parametrize("route", ["nginx"], indirect=True)
async def test_a_proxy_that_does_not_pass_upgrades_on(route, tmp_path):
    """The client is told, with an HTTP status, and the handler is not called."""
    async with behind(route, tmp_path, ("proxy_http_version 1.1;", "")) as it:
        peer = await it.dial()
        await peer.send(it.request())
        assert await peer.status() == 505
    async with behind(route, tmp_path, ("proxy_set_header Upgrade $http_upgrade;", "")) as it:
        peer = await it.dial()
        await peer.send(it.request())
        assert await peer.status() == 400
        while b"No Upgrade: websocket" not in peer.data:
            assert await peer._more()
        assert not it.handler.arrived


@pytest.mark.parametrize("route", ["haproxy-bytes"], indirect=True)
async def test_what_a_proxy_adds_to_its_header(route, tmp_path):
    """HAProxy's checksum is right, and its other records are told."""
    more = ("send-proxy-v2  #", "send-proxy-v2 proxy-v2-options crc32c,unique-id  #")
    unique = ("    timeout client 1h\n", "    timeout client 1h\n    unique-id-format conn-%[src_port]\n")
    async with behind(route, tmp_path, more, unique) as it:
        peer = await it.join()
        ws = await it.handler.first()
        port = peer.stream.socket.getsockname()[1]
        assert ws.proxy_header.unique_id == b"conn-%d" % port
        assert ws.proxy_header.tlv(3) is not None
        assert ws.local == ("127.0.0.1", it.port)


@pytest.mark.parametrize("route", ["haproxy-bytes"], indirect=True)
async def test_the_health_checks_of_a_proxy(route, tmp_path):
    """Checks with a header of their own (LOCAL) or with none at all leave nothing behind."""
    checks = ("send-proxy-v2  #", "send-proxy-v2 check inter 50ms check-send-proxy  #")
    async with behind(route, tmp_path, checks) as it:
        settings = it.server.listeners[1].endpoint.proxy_protocol
        await until(lambda: settings.accepted + settings.refused["left"] >= 2)
        peer = await it.join()
        await peer.say("who?")
        assert await peer.hear()
        assert settings.refused.keys() <= {"left"}
        assert len(it.handler.arrived) == 1
