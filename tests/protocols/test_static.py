"""Files over HTTP: what is found, what is not, types, conditions, changes, large files."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

import pytest
import trio

import trionet
from trionet import ConfigurationError, HttpProtocol, StaticFile, StaticFiles
from trionet.protocols import static
from trionet.protocols.static import content_type

OLD = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT
CSP = ("Content-Security-Policy", "default-src 'self'")
LARGE = os.urandom(300_000)


FDS = pathlib.Path("/proc/self/fd")


def open_files():
    """Return what the descriptors of this process lead to."""
    return [os.readlink(link) for link in FDS.iterdir() if os.path.lexists(link)]  # noqa: PTH115


@pytest.fixture
def site(tmp_path):
    """Return a directory with a site in it, and a secret beside it."""
    root = tmp_path / "site"
    (root / "sub" / ".git").mkdir(parents=True)
    (root / ".well-known").mkdir()
    (root / "empty").mkdir()
    for name, content in {
        "index.html": b"<p>home",
        "a b.txt": b"spaced",
        "app.js": b"1",
        "large.bin": LARGE,
        "nothing.css": b"",
        "sub/index.html": b"<p>sub",
        "sub/.git/config": b"secret",
        ".env": b"secret",
        ".well-known/x": b"known",
        "\u00e9.txt": b"accent",
        "../secret": b"secret",
        "../site2": b"secret",
    }.items():
        (root / name).write_bytes(content)
        os.utime(root / name, (OLD, OLD))
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "outdir").symlink_to(tmp_path)
    (root / "in.txt").symlink_to(root / "a b.txt")
    os.mkfifo(root / "pipe")
    return root


class Page:
    """Asks one server again and again."""

    def __init__(self, protocol):
        self.protocol = protocol

    async def __aenter__(self):
        self._server = trionet.open_server(self.protocol)
        self.server = await self._server.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self._server.__aexit__(*error)

    async def get(self, target, *lines, method="GET"):
        """Return status, headers and body of one request."""
        async with await trio.open_tcp_stream(*self.server.addresses[0][:2]) as stream:
            head = "\r\n".join(
                [f"{method} {target} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""]
            )
            await stream.send_all(head.encode())
            received = b""
            with trio.fail_after(10):
                async for data in stream:
                    received += data
        head, _, body = received.partition(b"\r\n\r\n")
        first, *fields = head.decode().split("\r\n")
        return int(first.split()[1]), dict(field.split(": ", 1) for field in fields), body


def serve(site, **options):
    """Return a server of the site below two prefixes."""
    return Page(HttpProtocol({"/": StaticFiles(site, **options), "/static/": StaticFiles(site, **options)}))


@pytest.mark.parametrize(
    "target, body",
    [
        ("/", b"<p>home"),
        ("/index.html?v=1", b"<p>home"),
        ("/static/", b"<p>home"),
        ("/static/a%20b.txt", b"spaced"),
        ("/%61%20b.txt", b"spaced"),
        ("/%C3%A9.txt", b"accent"),
        ("/sub/", b"<p>sub"),
        ("/nothing.css", b""),
        ("/large.bin", LARGE),
        ("/.well-known/x", b"known"),
        ("/in.txt", b"spaced"),
    ],
)
async def test_files_are_found(site, target, body):
    """A path, percent-decoded as UTF-8, is a file's name; a directory is its index; a link inside is followed."""
    async with serve(site) as page:
        status, headers, received = await page.get(target)
        assert (status, received) == (200, body)
        assert headers["Content-Length"] == str(len(body))
        again = await page.get(target, method="HEAD")
        assert again[0] == 200
        assert again[2] == b""
        assert {**again[1], "Date": ""} == {**headers, "Date": ""}


@pytest.mark.parametrize(
    "target",
    [
        "/missing",
        "/../secret",
        "/%2e%2e/secret",
        "/%2E%2e%2fsecret",
        "/sub/../../secret",
        "/..%5csecret",
        "/..\\secret",
        "//index.html",
        "/sub//index.html",
        "/./index.html",
        "/%2e/index.html",
        "/index.html/",
        "/index.html/x",
        "/index.html%00",
        "/index.html%00.css",
        "/%ff",
        "/%C3%28",
        "/%2Fetc%2Fpasswd",
        "//etc/passwd",
        "/.env",
        "/%2eenv",
        "/sub/.git/config",
        "/out",
        "/outdir/",
        "/outdir/secret",
        "/outdir/site2",
        "/pipe",
        "/empty/",
        "/" + "x" * 300,
        "/" + "x/" * 3000,
        "/%zz",
        "/static/../secret",
    ],
)
async def test_nothing_else_is(site, target):
    """Traversal in any spelling, hidden files, links that lead out, pipes and nonsense are 404, alike."""
    async with serve(site) as page:
        status, headers, body = await page.get(target)
        assert (status, body) == (404, b"There is nothing here.\n")
        assert headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_a_directory_without_its_slash_is_redirected(site):
    """The redirect names the path that was asked for and keeps the query; it can lead to no other host."""
    async with serve(site) as page:
        assert (await page.get("/sub?a=b"))[1]["Location"] == "/sub/?a=b"
        assert (await page.get("/static/sub"))[1]["Location"] == "/static/sub/"
        assert (await page.get("//sub"))[0] == 404


@pytest.mark.parametrize("target", ["/index.html", "/large.bin"])
async def test_a_browser_that_has_it_gets_304(site, target):
    """ETag and Last-Modified lead to 304 without a body, and with what the browser should update."""
    async with serve(site, headers=[CSP], cache_control="max-age=60") as page:
        _, headers, _ = await page.get(target)
        assert headers["Last-Modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"
        for line in (f"If-None-Match: {headers['ETag']}", f"If-Modified-Since: {headers['Last-Modified']}"):
            status, again, body = await page.get(target, line)
            assert (status, body) == (304, b"")
            assert "Content-Length" not in again
            for name in ("ETag", "Cache-Control", "Content-Security-Policy", "Last-Modified"):
                assert again[name] == headers[name]
        assert (
            await page.get(target, 'If-None-Match: "x"', f"If-Modified-Since: {headers['Last-Modified']}")
        )[0] == 200
        assert (await page.get(target, 'If-Match: "x"'))[0] == 412


@pytest.mark.parametrize("target", ["/index.html", "/large.bin"])
async def test_a_changed_file_shows_at_once(site, target):
    """What is in memory is compared with the disk at each request, and a new file has a new ETag."""
    async with serve(site) as page:
        _, before, _ = await page.get(target)
        path = site / target[1:]
        for content in (b"one", b"two", b"x" * 70_000, b"six"):
            path.write_bytes(content)
            status, after, body = await page.get(target, f"If-None-Match: {before['ETag']}")
            assert (status, body) == (200, content)
            before = after
        path.unlink()
        assert (await page.get(target))[0] == 404


async def test_a_file_that_changes_while_it_is_sent_is_broken_off(site, monkeypatch, caplog):
    """Never half of the old and half of the new: the connection is reset."""
    monkeypatch.setattr(static, "_SMALL", 1000)
    read = static._File._read

    def change(file, offset, size):
        if offset:
            (site / "large.bin").write_bytes(b"x" * len(LARGE))
        return read(file, offset, size)

    monkeypatch.setattr(static._File, "_read", change)
    async with serve(site) as page:
        with pytest.raises(trio.BrokenResourceError):
            await page.get("/large.bin")
    assert "changed while it was sent" in caplog.text


async def test_memory_is_bounded(site):
    """Small files are kept until `cache_size`; then those that came first go."""
    for number in range(50):
        (site / f"{number}.txt").write_bytes(b"x" * 1000)
        os.utime(site / f"{number}.txt", (OLD, OLD))
    files = StaticFiles(site, cache_size=10_000)
    async with Page(HttpProtocol({"/": files})) as page:
        for number in range(50):
            assert (await page.get(f"/{number}.txt"))[2] == b"x" * 1000
            assert files._cached <= 10_000
        await page.get("/49.txt")
        await page.get("/large.bin")
    assert files._cached == sum(map(static._cost, files._cache.values()))
    assert [path.rpartition(os.sep)[2] for path in files._cache] == [
        "46.txt",
        "47.txt",
        "48.txt",
        "49.txt",
        "large.bin",
    ]


@pytest.mark.parametrize("target, content", [("/large.bin", LARGE), ("/a%20b.txt", b"spaced")])
async def test_parts_are_sent_to_who_asks_for_them(site, target, content):
    """First, last, open-ended and joined parts of files, those in memory and those that are not."""
    size = len(content)
    async with serve(site) as page:
        for value, start, stop in [
            ("0-0", 0, 1),
            ("2-", 2, size),
            ("-2", size - 2, size),
            ("1-3, 3-4", 1, 5),
            (f"1-{size * 2}", 1, size),
        ]:
            status, headers, body = await page.get(target, f"Range: bytes={value}")
            assert (status, body) == (206, content[start:stop])
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
            assert headers["Content-Length"] == str(stop - start)
            for name in ("ETag", "Last-Modified", "Cache-Control", "Content-Type", "Accept-Ranges"):
                assert name in headers
        status, headers, _ = await page.get(target, f"Range: bytes={size}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
        etag = (await page.get(target))[1]["ETag"]
        assert (await page.get(target, "Range: bytes=0-0", f"If-Range: {etag}"))[2] == content[:1]
        for lines in (
            ["Range: bytes=0-0", 'If-Range: "older"'],
            ["Range: bytes=0-0,2-2"],
            ["Range: bytes=2-1"],
            ["Range: bytes=0-0", "Range: bytes=2-2"],
        ):
            status, headers, body = await page.get(target, *lines)
            assert (status, body, headers["Accept-Ranges"]) == (200, content, "bytes")
        status, headers, body = await page.get(target, "Range: bytes=0-0", method="HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(size))
        assert (await page.get(target, "Range: bytes=0-0", f"If-None-Match: {etag}"))[0] == 304
        assert (await page.get(target, "Range: bytes=0-0", 'If-Match: "older"'))[0] == 412


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_goes_on_where_a_download_was_broken_off(site, tmp_path):
    """``curl -C -`` asks for the rest of a large file, and the pieces make the whole."""
    async with serve(site) as page:
        host, port = page.server.addresses[0][:2]
        (tmp_path / "part").write_bytes(LARGE[:123_456])
        command = ["curl", "-sS", "--max-time", "10", "-C", "-", "-o", str(tmp_path / "part")]
        command += ["-w", "%{http_code} %{size_download}", f"http://{host}:{port}/large.bin"]
        done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout == b"206 %d" % (len(LARGE) - 123_456)
    assert (tmp_path / "part").read_bytes() == LARGE


@pytest.mark.skipif(not FDS.is_dir(), reason="descriptors are counted in /proc")
async def test_slow_readers_hold_no_files_open(site):
    """While a peer does not read, its file is closed, and its coroutine is parked or detached, not a worker's."""
    (site / "huge.bin").write_bytes(bytes(20_000_000))
    async with serve(site) as page:
        streams = []
        for _ in range(5):
            stream = await trio.open_tcp_stream(*page.server.addresses[0][:2])
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 65536)
            await stream.send_all(b"GET /huge.bin HTTP/1.1\r\nHost: a\r\n\r\n")
            streams.append(stream)

        def held():
            """Whether a response still moves, or holds its file or a worker while it does not."""
            return (
                not all(connection.queued for connection in page.server.connections)
                or any(name.endswith("huge.bin") for name in open_files())
                or page.server.statistics().pool.busy > 1
            )

        try:
            with trio.fail_after(20):
                while held():  # noqa: ASYNC110
                    await trio.sleep(0.05)
        finally:
            for stream in streams:
                await stream.aclose()


async def test_one_file_answers_one_path(site):
    """`StaticFile` at "/" is the home page, not the answer to every path; it brings its headers."""
    files = {
        "/": StaticFile(site / "index.html", headers=[CSP]),
        "/js": StaticFile(site / "app.js", content_type="x/y"),
    }
    async with Page(HttpProtocol(files)) as page:
        status, headers, body = await page.get("/")
        assert (status, body) == (200, b"<p>home")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"
        assert headers["Content-Security-Policy"] == CSP[1]
        assert re.fullmatch(r'"[0-9a-f]{24}"', headers["ETag"])
        assert (await page.get("/js"))[1]["Content-Type"] == "x/y"
        assert (await page.get("/favicon.ico"))[0] == 404
        status, headers, _ = await page.get("/", method="POST")
        assert (status, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        os.unlink(site / "index.html")
        assert (await page.get("/"))[0] == 404


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_asks_for_news_only(site, tmp_path):
    """A page is sent to curl once, and by its ETag not again."""
    async with serve(site) as page:
        host, port = page.server.addresses[0][:2]
        command = ["curl", "-sS", "--max-time", "10", "--etag-save", str(tmp_path / "e"), "--etag-compare"]
        command += [str(tmp_path / "e"), "-w", "%{http_code}", f"http://{host}:{port}/"]
        (tmp_path / "e").touch()
        assert (await trio.run_process(command, capture_stdout=True)).stdout == b"<p>home200"
        assert (await trio.run_process(command, capture_stdout=True)).stdout == b"304"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("x.JS", "text/javascript; charset=utf-8"),
        ("x.html", "text/html; charset=utf-8"),
        ("x.json", "application/json"),
        ("x.tar.gz", "application/octet-stream"),
        ("x.unheard-of", "application/octet-stream"),
        ("x", "application/octet-stream"),
        ("x.bmp", "image/bmp"),
    ],
)
def test_content_type_is_that_of_the_ending(name, expected):
    """Scripts and pages do not depend on the machine's tables; what is unknown or packed is just bytes."""
    assert content_type(f"/some.css/{name}") == expected


def test_what_is_not_there_is_said_at_once(tmp_path):
    """A missing file or directory, or headers that inject others, fail when the responder is made."""
    for make in (StaticFile, StaticFiles):
        with pytest.raises(ConfigurationError):
            make(tmp_path / "missing")
        with pytest.raises(ConfigurationError):
            make(__file__ if make is StaticFile else tmp_path, headers=[("X", "a\nb")])
    with pytest.raises(ConfigurationError):
        StaticFile(tmp_path)
