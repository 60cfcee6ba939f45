"""Plain HTTP on a port of its own and beside WebSockets: exact bytes, limits, deadlines, the end."""

from __future__ import annotations

import functools
import http.client
import logging
import re
import shutil
import socket

import pytest
import trio
from http_peer import DATE, ask, connect, rest_of, until

import trionet
from trionet import ConfigurationError, Health, HttpProtocol, HttpRequest, Rejection, Response
from trionet.net.connection import OPENING, Connection

KEY = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    f"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{KEY}\r\n\r\n".encode()
)
HELLO = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"  # a masked "Hello"


class Echo(trionet.WebSocketHandler):
    async def on_message(self, ws, message):
        await ws.send(message)


async def echo(request: HttpRequest) -> Response:
    """Answer with what came."""
    fields = sorted(request.headers.items())
    return Response.json(
        [request.method, request.path, request.rest, request.query, fields, (await request.body()).decode()]
    )


async def slow(request: HttpRequest) -> Response:
    """Answer after others had their turn."""
    await trio.sleep(0.05)
    return Response.text(request.path)


async def broken(request: HttpRequest) -> Response:
    """Fail."""
    raise LookupError("no such thing")


async def missing(request: HttpRequest) -> Response:
    """Refuse politely."""
    raise Rejection(404, body="not here\n")


async def injecting(request: HttpRequest) -> Response:
    """Try to start a header of its own."""
    return Response.text("x", headers=[("X-Name", "a\r\nSet-Cookie: b")])


async def numbers(request: HttpRequest) -> Response:
    """Answer with a body of unknown length."""

    async def body():
        for number in range(3):
            yield b"%d\n" % number

    return Response(body=body(), content_type="text/plain")


async def cut(request: HttpRequest) -> Response:
    """Fail in the middle of the body."""

    async def body():
        yield b"begun"
        raise LookupError("no more")

    return Response(body=body(), length=100)


ROUTES = {
    "/healthz": b"ok\n",
    "/echo/": echo,
    "POST /echo/": echo,
    "POST /form": echo,
    "/slow": slow,
    "/broken": broken,
    "/missing": missing,
    "/injecting": injecting,
    "/numbers": numbers,
    "/cut": cut,
    "/big": Response(body=b"0123456789" * 800_000, content_type="text/plain"),
}


def open_http(**options):
    """Open a server that speaks HTTP only."""
    return trionet.open_server(HttpProtocol(ROUTES, **options), resolution=0.05)


def open_both(**options):
    """Open a server that speaks WebSocket and HTTP."""
    return trionet.open_server(
        trionet.WebSocketProtocol(Echo(), http=HttpProtocol(ROUTES, **options)), resolution=0.05
    )


both = pytest.mark.parametrize("open_one", [open_http, open_both])


def get(target="/healthz", *lines, method="GET", version="1.1", body=b""):
    """Return a request."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *lines, "", ""]).encode() + body


async def read(stream, end=b"ok\n"):
    """Return what comes up to `end`."""
    received = bytearray()
    with trio.fail_after(10):
        while not received.endswith(end):
            data = await stream.receive_some()
            assert data, bytes(received)
            received += data
    return bytes(received)


def undated(response):
    """Return responses without their dates, each of which must be one."""
    assert len(re.findall(DATE, response)) == len(re.findall(rb"HTTP/1.1 [2-5]", response))
    return re.sub(DATE, b"", response)


def ok(body=b"ok\n", close=False):
    """Return the answer of /healthz without its date."""
    last = b"Connection: close\r\n" if close else b""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n"
        + last
        + b"\r\n"
        + body
    )


def status(response):
    """Return the status of the first response."""
    return int(response.split()[1])


CLOSE = "Connection: close"


@both
@pytest.mark.parametrize("feed", ["whole", "bytewise"])
async def test_answer_is_exact_however_the_request_arrives(open_one, feed):
    """A request gets the same bytes, whole or byte by byte, and `Connection: close` is followed."""
    request = get("/healthz", CLOSE)
    pieces = [request] if feed == "whole" else [request[i : i + 1] for i in range(len(request))]
    async with open_one() as server:
        assert undated(await ask(server, *pieces)) == ok(close=True)


@both
async def test_connection_is_kept_and_holds_nothing(open_one):
    """Between two requests a connection keeps no h11 object, no buffer and no deadline object of its own."""
    async with open_one() as server, await connect(server) as stream:
        for _ in range(3):
            await stream.send_all(get())
            assert undated(await read(stream)) == ok()
            await trio.lowlevel.checkpoint()
            (connection,) = server.connections
            assert type(connection) is Connection
            assert (connection._input, connection._out, connection._rare) == (None, None, None)
        assert server.engine.opening == 0


@both
async def test_pipelined_requests_are_answered_in_order(open_one):
    """Requests sent in one go get their answers one after the other, also behind a slow one."""
    async with open_one() as server:
        answer = await ask(
            server, get("/slow") + b"\r\n" + get() * 20, get("/missing") + get("/healthz", CLOSE)
        )
    answer = undated(answer)
    assert answer.startswith(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\n/slow"
    )
    assert answer.count(b"200 OK") == 22
    assert answer.endswith(b"Content-Length: 9\r\n\r\nnot here\n" + ok(close=True))


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_head_says_the_length_and_has_no_body(method):
    """HEAD gets the header of GET and nothing behind it; the next response follows at once."""
    async with open_http() as server:
        answer = undated(await ask(server, get(method=method) + get("/healthz", CLOSE)))
    assert answer == ok(b"" if method == "HEAD" else b"ok\n") + ok(close=True)


@pytest.mark.parametrize(
    "request_bytes, expected",
    [
        (get("/nothing"), 404),
        (get("/health"), 404),
        (get("/healthz/"), 404),
        (get("/healthz?x=/y"), 200),
        (get("/form"), 405),
        (get("/healthz", method="DELETE"), 405),
        (get("/healthz", method="TRACE"), 405),
        (get("/missing"), 404),
        (get("/healthz", method="OPTIONS"), 204),
        (get("*", method="OPTIONS"), 204),
        (get("/healthz", version="1.2"), 200),
        (get("http://b/healthz"), 200),
        (get("/form", "Content-Length: 2", method="POST", body=b"hi"), 200),
        (get("/form", "Content-Length: 2, 2", method="POST", body=b"hi"), 200),
        (get("/healthz", "Content-Length: 2", body=b"hi"), 200),
        (get("/healthz", "Upgrade: h2c, websocket", "Connection: Upgrade"), 200),
        (get("/healthz", "X-Odd: \xe9\t\xff".encode("latin-1").decode("latin-1")), 200),
    ],
    ids=repr,
)
async def test_connection_goes_on_after(request_bytes, expected):
    """What was read whole gets its status, and the next request on the connection is served."""
    async with open_http() as server:
        answer = await ask(server, request_bytes, get("/healthz", CLOSE))
    assert status(answer) == expected
    assert undated(answer).endswith(ok(close=True))


@pytest.mark.parametrize(
    "request_bytes, expected",
    [
        (get("/healthz", version="1.0"), 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (get("/healthz", CLOSE), 200),
        (get("/broken"), 500),
        (get("/injecting"), 500),
        (get("/form", "Content-Length: 101", method="POST"), 413),
        (get("/form", "Content-Length: 101", "Expect: 100-continue", method="POST"), 413),
        (get("/form", "Transfer-Encoding: chunked", method="POST", body=b"65\r\n" + b"x" * 101), 413),
        (get("/form", "Transfer-Encoding: chunked", method="POST", body=b"hello\r\n"), 400),
        (get("/form", "Transfer-Encoding: chunked", method="POST", body=b"1\r\nab\r\n0\r\n\r\n"), 400),
        (get("/nothing", "Content-Length: 2", method="POST", body=b"hi"), 404),
        (get("/healthz", "Content-Length: 2", method="POST", body=b"hi"), 405),
        (get("/form", "Expect: more", method="POST"), 417),
        (get("a:1", method="CONNECT"), 501),
        (get("/healthz", method="BREW"), 501),
        (get("/healthz", "X: a", " b"), 400),
        (b"GET /healthz HTTP/1.1\nHost: a\n\n", 400),
        (get("/healthz", "Transfer-Encoding: chunked", "Content-Length: 1"), 400),
        (get("/" + "x" * 8200), 414),
        (get("/healthz", "X: " + "x" * 8200), 431),
        (b"\x16\x03\x01\x02\x00\x01", 400),
    ],
    ids=lambda value: repr(value)[:120],
)
async def test_connection_ends_after(request_bytes, expected, caplog):
    """What was not read whole, failed or asked for it gets its status, `Connection: close`, and then the end."""
    async with open_http(max_body=100) as server:
        answer = await ask(server, request_bytes)
    assert status(answer) == expected
    assert len(re.findall(rb"^HTTP/", answer, re.MULTILINE)) == 1
    assert re.search(rb"\r\nConnection: close\r\n", answer, re.IGNORECASE)


async def test_method_not_allowed_says_what_is():
    """405 and OPTIONS list the methods of a path (RFC 9110, 15.5.6)."""
    async with open_http() as server:
        refused = await ask(server, get("/form", CLOSE, method="PUT"))
        asked = await ask(server, get("/echo/x", CLOSE, method="OPTIONS"))
    assert b"\r\nAllow: OPTIONS, POST\r\n" in refused
    assert b"\r\nAllow: GET, HEAD, OPTIONS, POST\r\n" in asked
    assert b"Content-Length" not in asked


@pytest.mark.parametrize(
    "location, sent",
    [
        ("/elsewhere?a=b#c", "/elsewhere?a=b#c"),
        ("https://example.org/", "https://example.org/"),
        ("/a b/\u00e9/%20", "/a%20b/%C3%A9/%20"),
        ("/x\r\nSet-Cookie: a", "/x%0D%0ASet-Cookie:%20a"),
    ],
)
async def test_a_redirect_names_its_place_safely(location, sent):
    """What no URI can hold is percent-encoded, what is encoded stays, and no header can be started."""
    routes = {"/": Response.redirect(location, 303)}
    async with trionet.open_server(HttpProtocol(routes)) as server:
        answer = await ask(server, get("/", CLOSE))
    assert status(answer) == 303
    assert f"\r\nLocation: {sent}\r\n".encode() in answer
    assert b"\r\nContent-Length: 0\r\n" in answer


async def test_patterns_name_their_parameters():
    """What stands for ``{name}`` is in `path_params`, decoded."""

    async def show(request):
        return Response.json([request.path_params, request.rest])

    routes = {"/users/{name}/files/": show, "POST /users/{name}": show}
    async with trionet.open_server(HttpProtocol(routes)) as server:
        answer = await ask(server, get("/users/ada%20l/files/a%20b", CLOSE))
        refused = await ask(server, get("/users/ada", CLOSE))
    assert answer.endswith(b'[{"name":"ada l"},"a%20b"]')
    assert (status(refused), b"\r\nAllow: OPTIONS, POST\r\n" in refused) == (405, True)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("feed", ["whole", "bytewise"])
async def test_body_is_read_however_it_arrives(framing, feed):
    """A responder gets the body whole, the headers by name, path, rest and query; what follows is served."""
    if framing == "length":
        request = get(
            "/echo/a%20b?c=d", "Content-Length: 5", "Cookie: a=1", "Cookie: b=2", method="POST", body=b"hello"
        )
    else:
        body = b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
        request = get(
            "/echo/a%20b?c=d", "Transfer-Encoding: chunked", "X: 1", "x: 2", method="POST", body=body
        )
    data = request + get("/healthz", CLOSE)
    pieces = [data] if feed == "whole" else [data[i : i + 1] for i in range(len(data))]
    async with open_http() as server:
        answer = await ask(server, *pieces)
    assert b'["POST","/echo/a%20b","a%20b","c=d",' in answer
    assert b'"hello"]' in answer
    assert (b'["cookie","a=1; b=2"]' if framing == "length" else b'["x","1, 2"]') in answer
    assert undated(answer).endswith(ok(close=True))


async def test_a_body_in_a_thousand_chunks_lets_others_run():
    """Bytes in chunks of one are counted, and handled in turns with other connections."""
    body = b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"
    async with open_http() as server:
        answer = await ask(
            server, get("/form", "Transfer-Encoding: chunked", CLOSE, method="POST", body=body)
        )
        assert status(answer) == 200
        assert answer.endswith(b"x" * 100 + b'"]')


async def test_a_body_that_is_waited_for_is_asked_for():
    """`Expect: 100-continue` gets a 100 where the body is wanted (RFC 9110, 10.1.1)."""
    async with open_http() as server, await connect(server) as stream:
        await stream.send_all(get("/form", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        assert await read(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"hi")
        assert (await read(stream, b'"hi"]')).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_of_unknown_length_is_sent_in_chunks():
    """An async iterable is sent chunked to HTTP/1.1, and to HTTP/1.0 until the end of the connection."""
    async with open_http() as server:
        new = await ask(server, get("/numbers", CLOSE))
        old = await ask(server, get("/numbers", version="1.0"))
        kept = await ask(server, get("/numbers") + get("/healthz", CLOSE))
    assert new.endswith(b"\r\n\r\n2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n")
    assert old.endswith(b"\r\n\r\n0\n1\n2\n")
    assert b"chunked" not in old
    assert undated(kept).endswith(b"0\r\n\r\n" + ok(close=True))


async def test_a_large_body_waits_for_a_slow_reader():
    """Eight megabytes go through a queue of 64 KiB, whole, also when the connection is closed behind them."""
    async with open_http() as server, await connect(server) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await stream.send_all(get("/big", CLOSE))
        await trio.sleep(0.1)
        (connection,) = server.connections
        assert 0 < connection.queued <= 2 * 65536
        with trio.fail_after(10):
            answer = await rest_of(stream)
    assert answer.partition(b"\r\n\r\n")[2] == b"0123456789" * 800_000


async def test_a_slow_reader_that_leaves_is_no_failure(caplog):
    """A peer that goes in the middle of an answer leaves no error in the log and no parked coroutine."""
    async with open_http() as server:
        async with await connect(server) as stream:
            await stream.send_all(get("/big"))
            await trio.sleep(0.05)
        await until(lambda: not server.engine.connections)
        assert server.statistics().pool.parked == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_responder_that_fails_is_logged_once(caplog):
    """An exception is answered with 500 without its words, counted, and logged once."""
    protocol = HttpProtocol(ROUTES)
    async with trionet.open_server(protocol) as server:
        answer = await ask(server, get("/broken") + get())
    assert status(answer) == 500
    assert b"no such thing" not in answer
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert protocol.handler_failures == 1
    assert protocol.responses == {500: 1}


async def test_an_answer_that_breaks_off_is_seen_to(caplog):
    """When the body fails half-way the connection is reset: no peer may take it for whole."""
    async with open_http() as server:
        with pytest.raises(trio.BrokenResourceError):
            await ask(server, get("/cut"))
    assert "no more" in caplog.text


async def test_a_half_closed_client_gets_its_answer():
    """A client that shuts its side behind the request is answered, then the connection ends."""
    async with open_http() as server:
        for target in ("/healthz", "/slow"):
            async with await connect(server) as stream:
                await stream.send_all(get(target))
                await stream.send_eof()
                with trio.fail_after(5):
                    assert status(await rest_of(stream)) == 200


@both
@pytest.mark.parametrize(
    "sent, expected",
    [
        (b"GET / HTTP/1.1\r\nHost:", 408),
        (get("/form", "Content-Length: 5", method="POST", body=b"he"), 408),
        (get(), 200),
        (get() + b"\r\n", 200),
    ],
    ids=["head", "body", "idle", "empty line"],
)
async def test_slow_requests_are_told_and_idle_connections_closed(open_one, sent, expected):
    """An unfinished request is answered with 408; an idle connection is closed without a word."""
    async with (
        open_one(header_timeout=0.1, body_timeout=0.1, idle_timeout=0.1) as server,
        await connect(server) as stream,
    ):
        await stream.send_all(get())
        await read(stream)
        await stream.send_all(sent)
        with trio.fail_after(5):
            answer = await rest_of(stream)
        assert status(answer) == expected
        assert answer.count(b"HTTP/1.1") == 1


async def test_a_connection_that_says_nothing_is_closed():
    """On a port of its own a silent peer is half open, and is closed after `header_timeout` without a word."""
    async with open_http(header_timeout=0.1) as server, await connect(server) as stream:
        with trio.fail_after(5):
            await until(lambda: server.engine.opening == 1)
            assert await rest_of(stream) == b""
            assert server.engine.opening == 0


async def test_dribbling_a_head_does_not_postpone_its_deadline():
    """The time for a head runs from its first byte (slow-loris)."""
    async with open_http(header_timeout=0.3) as server, await connect(server) as stream:
        await stream.send_all(get())
        await read(stream)
        answer = b""
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def dribble():
                    await stream.send_all(b"GET / HTTP/1.1\r\nX: ")
                    while True:
                        await stream.send_all(b"x")
                        await trio.sleep(0.05)

                nursery.start_soon(dribble)
                answer = await stream.receive_some()
                nursery.cancel_scope.cancel()
        assert status(answer) == 408


async def test_a_request_for_websocket_goes_back_to_its_protocol():
    """A kept-alive connection that asked for a page may become a WebSocket; the bytes behind the head are served."""
    async with open_both() as server, await connect(server) as stream:
        await stream.send_all(get())
        await read(stream)
        await stream.send_all(get("/slow") + UPGRADE + HELLO)
        answer = await read(stream, b"\x81\x05Hello")
        assert b"101 Switching Protocols" in answer
        (ws,) = server.connections
        assert isinstance(ws, trionet.WebSocket)
        assert ws.data is None
        assert server.engine.opening == 0


async def test_a_bad_request_for_websocket_is_refused_there():
    """The WebSocket protocol judges such a request on a kept-alive connection too."""
    async with open_both() as server:
        answer = await ask(server, get() + UPGRADE.replace(b": 13", b": 12"))
    assert b"HTTP/1.1 426 Upgrade Required" in answer
    assert server.engine.opening == 0


async def test_rate_limited_websockets_share_their_port_too():
    """A connection whose class has room for its rate is served plain HTTP, and becomes a WebSocket, all the same."""
    protocol = trionet.WebSocketProtocol(Echo(), http=HttpProtocol(ROUTES), max_messages_per_second=1000)
    async with trionet.open_server(protocol) as server, await connect(server) as stream:
        await stream.send_all(get())
        assert undated(await read(stream)) == ok()
        (connection,) = server.connections
        assert not isinstance(connection, trionet.WebSocket)
        await stream.send_all(UPGRADE + HELLO)
        await read(stream, b"\x81\x05Hello")


async def test_upgrade_is_ignored_where_there_is_no_websocket():
    """A server need not switch protocols (RFC 9110, 7.8): the request is answered as if it did not ask."""
    async with open_http() as server:
        answer = await ask(server, UPGRADE.replace(b"/chat", b"/healthz") + get("/healthz", CLOSE))
    assert undated(answer) == ok() + ok(close=True)


async def test_drain_closes_idle_connections_and_lets_requests_finish():
    """Draining closes what is idle, and what has a request in hand after its answer, which says so."""
    answers = {}

    async def finish(name, stream):
        answers[name] = await rest_of(stream)
        await stream.aclose()

    async with open_http() as server, trio.open_nursery() as nursery:
        idle, busy, begun = [await connect(server) for _ in range(3)]
        for stream in (idle, begun):
            await stream.send_all(get())
            await read(stream)
        await begun.send_all(get()[:20])
        await busy.send_all(get("/slow"))
        await trio.sleep(0.02)
        for name, stream in (("idle", idle), ("busy", busy), ("begun", begun)):
            nursery.start_soon(finish, name, stream)
        nursery.start_soon(functools.partial(server.drain, jitter=0))
        await trio.sleep(0.1)
        await begun.send_all(get()[20:])
        await until(lambda: len(answers) == 3)
    assert answers["idle"] == b""
    assert re.search(rb"\r\nConnection: close\r\n", answers["busy"], re.IGNORECASE)
    assert undated(answers["begun"]) == ok(close=True)


async def test_health_says_that_the_server_drains():
    """While the server drains, a probe that got in gets 503."""
    async with (
        trionet.open_server(HttpProtocol({"/health": Health()})) as server,
        await connect(server) as stream,
    ):
        server.engine.draining = True
        await stream.send_all(get("/health"))
        answer = await read(stream, b"draining\n")
        assert status(answer) == 503
        assert re.search(rb"\r\nConnection: close\r\n", answer, re.IGNORECASE)


async def test_cancelling_the_server_leaves_nothing(caplog):
    """A hard stop while responders wait ends them, and says nothing."""
    async with open_http() as server:
        stream = await connect(server)
        await stream.send_all(get("/slow"))
        await trio.sleep(0.02)
    assert server.engine.connections == 0
    await stream.aclose()
    assert not caplog.records


async def test_health_follows_its_check(caplog):
    """Health is 200 until its check raises or hangs, then 503; each failure is logged once until it has passed."""
    works = True

    async def check():
        if not works:
            raise OSError("database gone")

    routes = {"/health": Health(check), "/hangs": Health(trio.sleep_forever, timeout=0.01)}
    async with trionet.open_server(HttpProtocol(routes)) as server:
        good = await ask(server, get("/health", CLOSE))
        works = False
        bad = await ask(server, get("/health") + get("/health", CLOSE))
        hangs = await ask(server, get("/hangs", CLOSE))
    assert (status(good), status(bad), status(hangs)) == (200, 503, 503)
    assert good.endswith(b"ok\n")
    assert b"\r\nCache-Control: no-store\r\n" in bad
    assert b"database" not in bad
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(Response, headers=[("X", "a\r\nb")]),
        functools.partial(Response, headers=[("X Y", "a")]),
        functools.partial(Response, headers=[("Content-Length", "1")]),
        functools.partial(Response, headers=[("connection", "close")]),
        functools.partial(Response, headers=[("X", "€")]),
        functools.partial(Response, content_type="text/html\r\nX: y"),
        functools.partial(Response, reason="OK\r\n"),
        functools.partial(Response, 101),
        functools.partial(Response.redirect, "/", 200),
        functools.partial(Response, 600),
        functools.partial(HttpProtocol, {"healthz": b""}),
        functools.partial(HttpProtocol, {"post /x": b""}),
        functools.partial(HttpProtocol, {"/x": 1}),
        functools.partial(HttpProtocol, {"/x": b"", "GET /x": b""}),
        functools.partial(HttpProtocol, {"/{x": b""}),
        functools.partial(HttpProtocol, {"/x": Response(body=echo)}),
    ],
    ids=lambda make: f"{make.args}{make.keywords}",
)
def test_what_cannot_work_is_refused(make):
    """Header injection, headers of the protocol's own and impossible routes raise `ConfigurationError`."""
    with pytest.raises(ConfigurationError):
        make()


async def test_the_longest_prefix_wins_and_an_exact_path_before_it():
    """Routes are found by exact path, then by the longest prefix, in whatever order they were given."""
    routes = {"/": "root", "/a/b/": "ab", "/a/": "a", "/a/b/c": "abc", "/d/": missing}
    async with trionet.open_server(HttpProtocol(routes)) as server:
        for target, expected in {
            "/": "root",
            "/x/y": "root",
            "/a/x": "a",
            "/a/b/x": "ab",
            "/a/b/c": "abc",
        }.items():
            answer = await ask(server, get(target, CLOSE))
            assert answer.endswith(b"\r\n\r\n" + expected.encode())


async def test_the_standard_library_keeps_its_connection():
    """http.client gets pages, forms and chunked bodies over one connection."""

    def talk(address):
        client = http.client.HTTPConnection(*address, timeout=10)
        sock = None
        for method, target, body in [
            ("GET", "/healthz", None),
            ("HEAD", "/big", None),
            ("POST", "/form", b"x" * 1000),
            ("POST", "/form", iter([b"a", b"b"])),
            ("GET", "/nothing", None),
            ("GET", "/numbers", None),
            ("GET", "/big", None),
        ]:
            client.request(
                method, target, body, encode_chunked=body is not None and not isinstance(body, bytes)
            )
            sock = sock or client.sock
            assert client.sock is sock
            response = client.getresponse()
            yield response.status, len(response.read())
        client.close()

    async with open_http() as server:
        address = server.addresses[0][:2]
        results = await trio.to_thread.run_sync(lambda: list(talk(address)))
    assert [result[0] for result in results] == [200, 200, 200, 200, 404, 200, 200]
    assert (results[1][1], results[5][1], results[6][1]) == (0, 6, 8_000_000)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_posts_and_keeps_its_connection():
    """curl, which expects 100 for a larger body, gets its answers over one connection."""
    async with open_http(max_body=2**21) as server:
        host, port = server.addresses[0][:2]
        url = f"http://{host}:{port}"
        command = [
            "curl",
            "-sS",
            "--max-time",
            "10",
            "--data-binary",
            "@-",
            f"{url}/form",
            "--next",
            "-sS",
            f"{url}/healthz",
        ]
        run = functools.partial(
            trio.run_process, command, stdin=b"x" * (2**20 + 1), capture_stdout=True, capture_stderr=True
        )
        done = await run()
        assert server.engine.opened == 1
    assert done.stdout.endswith(b'xx"]ok\n')


async def test_opening_state_is_left_only_once_a_head_is_good():
    """A connection on a port of its own is half open until its first whole head."""
    async with open_http() as server, await connect(server) as stream:
        await stream.send_all(get()[:-1])
        await until(lambda: server.engine.connections)
        (connection,) = server.connections
        assert connection._state & 7 == OPENING
        await stream.send_all(b"\n")
        await read(stream)
        assert server.engine.opening == 0
