"""curl against our server: plain HTTP beside the WebSocket, refused upgrades, TLS; WebSocket where curl can."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import trio
from tls_peer import authority, server_context
from ws_peer import serving

import trionet
from trionet import HttpProtocol, Response, StaticFiles, WebSocketProtocol

CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="no curl on PATH")

UPGRADE = ("-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13")
KEY = ("-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
FACTS = '{"status":%{http_code},"connects":%{num_connects},"version":"%{http_version}","size":%{size_download}}\\n'


def speaks(scheme: str) -> bool:
    """Return whether this curl has a protocol."""
    if CURL is None:
        return False
    lines = subprocess.run(
        [CURL, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return scheme in next(line for line in lines if line.startswith("Protocols:")).split()


async def curl(*args: str, stdin: bytes = b"", ends: int | None = 0) -> str:
    """Run curl and return what it wrote; `ends`: with this exit status, None for any."""
    # -q: whatever the person's own configuration says.
    command = [CURL, "-q", "-sS", "--noproxy", "*", "--max-time", "10", *args]
    done = await trio.run_process(command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False)
    text = done.stdout.decode("utf-8", "surrogateescape") + done.stderr.decode()
    assert ends in (None, done.returncode), (done.returncode, text)
    return text


class Greeter(trionet.WebSocketHandler):
    """Says hello and goodbye."""

    async def on_open(self, ws):
        await ws.send("hello")
        await ws.close(4000, "bye")


async def upload(request):
    """Answer how much came."""
    size = 0
    async for piece in request.stream(limit=2**20):
        size += len(piece)
    return Response.json({"bytes": size})


async def flow(request):
    """Answer in chunks."""

    async def pieces():
        for n in range(3):
            yield b"piece %d\n" % n

    return Response(body=pieces(), content_type="text/plain")


class Ticker(trionet.EventSource):
    """Sends three events, and ends."""

    async def on_open(self, stream, request):
        for n in range(3):
            await stream.send(f"tick {n}", id=str(n))
        stream.close()


@pytest.fixture
def site(tmp_path):
    """Return a protocol: WebSocket, and pages, a file, uploads, chunks and events beside it."""
    (tmp_path / "file.txt").write_bytes(b"0123456789" * 10)
    pages = HttpProtocol(
        {
            "/": "a page\n",
            "/static/": StaticFiles(tmp_path),
            "POST /upload": upload,
            "/flow": flow,
            "/events": Ticker(),
        }
    )
    return WebSocketProtocol(Greeter(), http=pages, close_timeout=0.25)  # curl answers no Close


@pytest.mark.parametrize(
    "args, status, header",
    [
        ((), 426, "Upgrade: websocket"),
        ((*UPGRADE[:4], "-H", "Sec-WebSocket-Version: 8", *KEY), 426, "Sec-WebSocket-Version: 13"),
        (UPGRADE, 400, "Connection: close"),
        ((*UPGRADE, *KEY, "-H", "Origin: https://evil.example"), 403, "Connection: close"),
        ((*UPGRADE, *KEY, "--http1.0"), 505, "Connection: close"),
    ],
    ids=["no-upgrade", "old-version", "no-key", "foreign-page", "http-1.0"],
)
async def test_what_is_no_good_handshake_is_refused_so_that_curl_says_why(args, status, header):
    """By a status, a header where one is required, and a body."""
    async with serving(Greeter()) as at:
        answer = await curl("-i", *args, at.url.replace("ws", "http", 1))
        head, _, body = answer.partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert header.lower() in head.lower()
        assert body.endswith("\n")


async def test_a_handshake_by_hand_is_answered_with_101(site):
    """And frames follow: a text, and a Close."""
    async with serving(site) as at:
        answer = await curl("-i", "-N", *UPGRADE, *KEY, f"http://127.0.0.1:{at.port}/", ends=None)
        head, _, frames = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 101 ")
        assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert frames.encode("utf-8", "surrogateescape").startswith(b"\x81\x05hello\x88\x05\x0f\xa0bye")


@pytest.mark.skipif(
    not speaks("wss"), reason="this curl does not speak WebSocket (libcurl's is in test_clients)"
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_curl_as_a_websocket_client(site, scheme):
    """It writes what it receives."""
    context = server_context("127.0.0.1") if scheme == "wss" else None
    with authority().cert_pem.tempfile() as pem:
        async with serving(site, ssl_context=context) as at:
            answer = await curl("-N", "--cacert", pem, f"{scheme}://127.0.0.1:{at.port}/", ends=None)
    assert "hello" in answer


async def test_requests_share_a_connection(site):
    """Three URLs, one connection; HTTP/1.0 and `Connection: close` get one each."""
    async with serving(site) as at:
        url = f"http://127.0.0.1:{at.port}"
        three = [f"{url}/", f"{url}/static/file.txt", f"{url}/static/missing"]
        options = ("--write-out", FACTS, "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null")
        facts = [json.loads(line) for line in (await curl(*options, *three)).splitlines()]
        assert [fact["status"] for fact in facts] == [200, 200, 404]
        assert [fact["connects"] for fact in facts] == [1, 0, 0]
        assert {fact["version"] for fact in facts} == {"1.1"}
        for option in (("--http1.0",), ("-H", "Connection: close")):
            answers = await curl(*option, *options, *three)
            assert [json.loads(line)["connects"] for line in answers.splitlines()] == [1, 1, 1]


async def test_pages_heads_ranges_and_conditions(site, tmp_path):
    """-I, -r, --etag-compare, and what the server says of methods it does not have."""
    async with serving(site) as at:
        url = f"http://127.0.0.1:{at.port}"
        assert await curl(f"{url}/") == "a page\n"
        head = await curl("-I", f"{url}/")
        assert head.startswith("HTTP/1.1 200 ")
        assert "content-length: 7\r\n" in head.lower()
        answer = await curl("-i", "-r", "8-11", f"{url}/static/file.txt")
        assert answer.startswith("HTTP/1.1 206 ")
        assert "content-range: bytes 8-11/100\r\n" in answer.lower()
        assert answer.endswith("\r\n\r\n8901")
        assert (await curl("-r", "-3", f"{url}/static/file.txt")) == "789"
        assert "HTTP/1.1 416" in await curl("-i", "-r", "500-", f"{url}/static/file.txt")
        tag = tmp_path / "etag"
        await curl("--etag-save", str(tag), "-o", "/dev/null", f"{url}/static/file.txt")
        answer = await curl("-i", "--etag-compare", str(tag), f"{url}/static/file.txt")
        assert answer.startswith("HTTP/1.1 304 ")
        answer = await curl("-i", "-X", "DELETE", f"{url}/")
        assert answer.startswith("HTTP/1.1 405 ")
        assert "allow: get, head, options" in answer.lower()


async def test_a_large_upload_waits_for_100_continue(site):
    """It is told to go on, before a refusal it sends nothing; chunked as well."""
    async with serving(site) as at:
        url = f"http://127.0.0.1:{at.port}/upload"
        body = b"x" * 500_000
        expect = ("-H", "Expect: 100-continue", "--expect100-timeout", "8", "--data-binary", "@-")
        answer = await curl("-i", *expect, url, stdin=body)
        assert answer.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
        assert answer.endswith('{"bytes":500000}')
        chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--data-binary", "@-")
        assert await curl(*chunked, url, stdin=body) == '{"bytes":500000}'
        facts = ("-o", "/dev/null", "--write-out", "%{http_code} %{size_upload}")
        assert await curl(*facts, *expect, url, stdin=b"x" * (2**20 + 1)) == "413 0"


async def test_bodies_of_unknown_length(site):
    """Chunked for HTTP/1.1, to the end of the connection for 1.0; and a stream of events."""
    async with serving(site) as at:
        url = f"http://127.0.0.1:{at.port}"
        pieces = "piece 0\npiece 1\npiece 2\n"
        answer = await curl("-i", f"{url}/flow")
        assert "transfer-encoding: chunked" in answer.lower()
        assert answer.endswith(pieces)
        answer = await curl("-i", "--http1.0", f"{url}/flow")
        assert "transfer-encoding" not in answer.lower()
        assert answer.endswith(pieces)
        answer = await curl("-i", "-N", f"{url}/events")
        assert "content-type: text/event-stream" in answer.lower()
        assert answer.count("data: tick ") == 3


async def test_pages_over_tls(site):
    """By HTTP/1.1, though curl offers HTTP/2; kept alive; verified; and plain HTTP on that port is told so."""
    async with serving(site, ssl_context=server_context("127.0.0.1")) as at:
        url = f"https://127.0.0.1:{at.port}/"
        with authority().cert_pem.tempfile() as pem:
            options = ("--cacert", pem, "--write-out", FACTS, "-o", "/dev/null", "-o", "/dev/null")
            facts = [json.loads(line) for line in (await curl(*options, url, url)).splitlines()]
            assert [fact["status"] for fact in facts] == [200, 200]
            assert [fact["connects"] for fact in facts] == [1, 0]
            assert {fact["version"] for fact in facts} == {"1.1"}
            for version in ("--tlsv1.2", "--tlsv1.3"):
                limit = ("--tls-max", version[-3:])
                assert await curl("--cacert", pem, version, *limit, url) == "a page\n"
        await curl(url, ends=60)  # nobody vouches for the certificate
        answer = await curl("-i", url.replace("https", "http"))
        assert answer.startswith("HTTP/1.1 400 ")
        assert "TLS" in answer
