"""Several protocols on one port, by path: each request gets to the right one, and nothing of the router stays."""

from __future__ import annotations

import functools
import gc
import ssl
import sys

import pytest
import trio
from http_peer import CLOSE, HELLO, UPGRADE, ask, connect, get, post, read, status, statuses, until
from ws_peer import frame, text

import trionet
from trionet import (
    ConfigurationError,
    Endpoint,
    EventSource,
    HeadLimits,
    HttpProtocol,
    Rejection,
    Response,
    Router,
    WebSocket,
    WebSocketHandler,
    WebSocketProtocol,
)
from trionet.net.connection import Connection


class Room(WebSocketHandler):
    """Says where one is, then echoes."""

    def __init__(self):
        self.requests = []

    async def on_upgrade(self, ws, request):
        if request.path_params.get("room") == "closed":
            raise Rejection(403, body="closed\n")
        self.requests.append(request)

    async def on_open(self, ws):
        await ws.send(f"{ws.request.path} {ws.request.path_params} {ws.request.headers}")

    async def on_message(self, ws, message):
        await ws.send(message)


class Feed(EventSource):
    async def on_open(self, stream, request):
        await stream.send(str(request.path_params))


async def where(request):
    """Answer with where the request got to."""
    return Response.text(f"{request.path} {request.rest} {request.path_params}")


async def upload(request):
    """Answer with the body."""
    return Response(body=await request.body())


def router(room=None, **options):
    """Return a router of everything."""
    return Router(
        {
            "/": where,
            "/page": b"page",
            "GET /both": b"page",
            "/both": WebSocketProtocol(Room()),
            "/rooms/{room}": WebSocketProtocol(room or Room(), headers=("x-user",)),
            "/limited/": WebSocketProtocol(Room(), max_messages_per_second=1000, headers=("cookie",)),
            "/events/{topic}": Feed(),
            "/users/{name}": where,
            "POST /upload": upload,
            "/admin/": HttpProtocol({"/home": b"admin", "/log/{day}": where, "POST /up": upload}, max_body=4),
            "//api.example.org/page": b"api",
            "//ws.example.org/page": WebSocketProtocol(Room()),
        },
        **options,
    )


def serving(protocol=None, **options):
    """Open a server."""
    return trionet.open_server(protocol or router(), resolution=0.05, **options)


def upgrade(target, *lines):
    """Return a request for a WebSocket."""
    return get(target, *UPGRADE, *lines)


@pytest.mark.parametrize(
    "target, body",
    [
        ("/", b"/  {}"),
        ("/x/y", b"/x/y x/y {}"),
        ("/page", b"page"),
        ("/both", b"page"),
        ("/users/ada%20l", b"/users/ada%20l  {'name': 'ada l'}"),
        ("/admin/home", b"admin"),
        ("/admin/log/7", b"/admin/log/7  {'day': '7'}"),
        ("http://api.example.org/page", b"api"),
        ("http://api.example.org:81/page", b"api"),
        ("http://other.example.org/page", b"page"),
    ],
)
async def test_plain_requests_get_to_their_responder(target, body):
    """By path, by host, by parameters, and through a nested protocol."""
    async with serving() as server:
        answer = await ask(server, get(target, CLOSE))
    assert status(answer) == 200
    assert answer.partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    "request_bytes, expected, says",
    [
        (get("/rooms/1"), 426, b"\r\nUpgrade: websocket\r\n"),
        (get("/rooms/1", method="HEAD"), 426, b"\r\nConnection: Upgrade, close\r\n"),
        (get("/rooms/1", method="DELETE"), 426, b"\r\nSec-WebSocket-Version: 13\r\n"),
        (get("/users/ada", CLOSE, method="DELETE"), 405, b"\r\nAllow: GET, HEAD, OPTIONS\r\n"),
        (get("/both", CLOSE, method="PUT"), 405, b"\r\nAllow: GET, HEAD, OPTIONS\r\n"),
        (get("/admin/nothing", CLOSE), 404, b""),
        (get("/admin/home", CLOSE, method="PUT"), 405, b""),
        (post("/admin/up", b"12345", CLOSE), 413, b""),
        (post("/upload", b"12345", CLOSE), 200, b"12345"),
        (upgrade("/rooms/closed"), 403, b"closed"),
        (upgrade("/rooms/1").replace(b": 13", b": 12"), 426, b""),
        (upgrade("/rooms/1", "Origin: http://evil.example"), 403, b""),
        (upgrade("/page", CLOSE), 200, b"page"),
        (get("/page", method="BREW"), 501, b""),
    ],
    ids=repr,
)
async def test_what_cannot_be_served_is_told(request_bytes, expected, says):
    """404, 405 with Allow, 413 by the limit of the place, 426 for a plain request where only a WebSocket is."""
    async with serving() as server:
        answer = await ask(server, request_bytes)
        assert statuses(answer) == [expected]
        assert says in answer
        await until(lambda: not server.engine.connections)
        assert server.engine.opening == 0


@pytest.mark.parametrize("feed", ["whole", "bytewise"])
@pytest.mark.parametrize(
    "target, says",
    [
        ("/both", b"/both {} {'cookie': ['a=1']}"),
        ("/rooms/a%2Fb?c", b"/rooms/a%2Fb {'room': 'a/b'} {'x-user': ['ada']}"),
        ("/limited/x", b"/limited/x {} {'cookie': ['a=1']}"),
        ("http://ws.example.org/page", b"/page {} {'cookie': ['a=1']}"),
    ],
)
async def test_websockets_get_to_their_handler(target, says, feed):
    """With parameters and declared headers; what follows the head is served."""
    data = upgrade(target, "X-User: ada", "Cookie: a=1") + HELLO
    async with serving() as server, await connect(server) as stream:
        for piece in [data] if feed == "whole" else [data[i : i + 1] for i in range(len(data))]:
            await stream.send_all(piece)
        answer = await read(stream, b"\x81\x05Hello")
        assert says in answer
        (ws,) = server.websockets
        assert isinstance(ws.protocol, WebSocketProtocol)
        assert server.engine.opening == 0


async def test_a_page_then_a_websocket_over_one_connection():
    """Each request is routed anew, also those sent in one go, and the WebSocket comes last."""
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(get("/page") + get("/users/ada") + get("/nothing", method="PUT"))
        assert statuses(await read(stream, b"OPTIONS.\n")) == [200, 200, 405]
        await stream.send_all(get("/page") + upgrade("/rooms/1") + HELLO)
        answer = await read(stream, b"\x81\x05Hello")
        assert statuses(answer) == [200, 101]
        (ws,) = server.websockets
        assert ws.data is None


async def test_events_have_their_place_too():
    """A stream of events behind a pattern."""
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(get("/events/news"))
        assert b"data: {'topic': 'news'}\n\n" in await read(stream, b"}\n\n")


def words(connection):
    """Return the slots of a connection and what is in them, without what every connection has of its own."""
    names = {name for cls in type(connection).__mro__ for name in vars(cls).get("__slots__", ())}
    names -= {"engine", "fd", "protocol", "_due", "_seen"}
    return {name: getattr(connection, name, None) for name in names if name != "made_of"}


class Quiet(WebSocketHandler):
    """Has only messages."""

    async def on_message(self, ws, message):
        await ws.send(message)


async def straight(ws):
    """Echo, straight-line."""
    async for message in ws:
        await ws.send(message)


@pytest.mark.parametrize("handler", [Quiet(), straight], ids=["events", "straight"])
async def test_an_idle_websocket_costs_the_same_without_a_router(handler):
    """The same size, the same slots with the same in them, and nothing else that refers to it."""
    found = []
    for protocol, target in [
        (WebSocketProtocol(handler), "/"),
        (Router({"/{room}": WebSocketProtocol(handler), "/": b"page"}), "/x"),
    ]:
        async with serving(protocol) as server, await connect(server) as stream:
            await stream.send_all(upgrade(target) + text("Hello"))
            await read(stream, b"Hello")
            await trio.testing.wait_all_tasks_blocked(0.01)
            (ws,) = server.websockets
            kept = {name: type(value) for name, value in words(ws).items()}
            gc.collect()
            owners = [type(owner).__name__ for owner in gc.get_referrers(ws) if owner is not sys._getframe()]
            found.append((sys.getsizeof(ws), kept, sorted(owners), server.statistics().pool.parked))
    assert found[0] == found[1]


async def test_what_one_websocket_remembers_has_room_in_all():
    """Protocols with different traits share a layout; each connection has the methods of its own protocol only."""
    handlers = {
        "/straight": WebSocketProtocol(straight),
        "/rated": WebSocketProtocol(Quiet(), max_messages_per_second=2),
        "/plain": WebSocketProtocol(Quiet()),
        "/": b"page",
    }
    async with serving(Router(handlers)) as server:
        streams = {}
        for target in handlers:
            streams[target] = stream = await connect(server)
            if target == "/":
                await stream.send_all(get("/"))
                await read(stream, b"page")
            else:
                await stream.send_all(upgrade(target) + text("Hello"))
                await read(stream, b"Hello")
        kinds = {type(connection) for connection in server.connections}
        assert len({cls.__basicsize__ for cls in kinds}) == 1
        assert len(kinds) == 4
        (page,) = [connection for connection in server.connections if not isinstance(connection, WebSocket)]
        assert (page._input, page._out, page._rare) == (None, None, None)
        for _ in range(4):
            await streams["/rated"].send_all(text("again"))
        await until(lambda: [ws for ws in server.websockets if "paused" in repr(ws)])
        await streams["/straight"].send_all(text("more"))
        await read(streams["/straight"], b"more")
        for stream in streams.values():
            await stream.aclose()


def test_a_router_without_traits_adds_no_word():
    """Its connections begin as plain ones."""
    assert Router({"/": WebSocketProtocol(Quiet())}).connection_class is Connection


async def test_limits_and_callbacks_of_a_websocket_hold_behind_a_router():
    """A protocol with limits of its own, or `on_header`, scans the head again."""
    seen = []
    routes = {
        "/short": WebSocketProtocol(Quiet(), head_limits=HeadLimits(header_line=50)),
        "/seen": WebSocketProtocol(
            Quiet(), on_header=lambda name, value: seen.append((bytes(name), bytes(value)))
        ),
    }
    async with serving(Router(routes)) as server:
        answer = await ask(server, upgrade("/short", "X-Long: " + "x" * 50))
        assert status(answer) == 431
        async with await connect(server) as stream:
            await stream.send_all(get("/nothing", "X-A: 0") + upgrade("/seen", "X-A: 1") + HELLO)
            assert statuses(await read(stream, b"\x81\x05Hello")) == [404, 101]
    assert seen == [(b"X-A", b"1")]


async def test_a_handshake_that_waits_is_bounded_and_heard():
    """`on_upgrade` may take its time; frames that come meanwhile are served after it; nobody stays half open."""
    gate = trio.Event()

    class Slow(Quiet):
        async def on_upgrade(self, ws, request):
            await gate.wait()

    async with serving(Router({"/": WebSocketProtocol(Slow())})) as server, await connect(server) as stream:
        await stream.send_all(upgrade("/"))
        await until(
            lambda: server.engine.opening == 1 and [c for c in server.connections if "busy" in repr(c)]
        )
        await stream.send_all(HELLO)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.set()
        await read(stream, b"\x81\x05Hello")
        assert server.engine.opening == 0


async def test_all_of_it_over_tls():
    """A connection keeps its TLS through every change of class: page, upload, each kind of WebSocket, events."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    routes = {
        "/": b"page",
        "POST /upload": upload,
        "/straight": WebSocketProtocol(straight),
        "/rated": WebSocketProtocol(Quiet(), max_messages_per_second=100),
        "/events/{topic}": Feed(),
    }
    endpoint = Endpoint(protocol=Router(routes), host="127.0.0.1", port=0, ssl_context=server_context)
    async with trionet.open_server([endpoint]) as server:
        for request_bytes, end in [
            (upgrade("/straight") + HELLO, b"\x81\x05Hello"),
            (upgrade("/rated") + HELLO, b"\x81\x05Hello"),
            (get("/events/a"), b"data: {'topic': 'a'}\n\n"),
        ]:
            host, port = server.addresses[0][:2]
            stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=client_context)
            await stream.send_all(get("/") + post("/upload", b"x" * 50_000))
            await read(stream, b"x" * 16_000)
            await stream.send_all(request_bytes)
            await read(stream, end)
            await stream.aclose()


async def test_whom_trusted_proxies_speak_for():
    """Behind a proxy, pages, events and WebSockets know their client; a protocol that trusts nobody sees the proxy."""
    seen = {}

    async def page(request):
        seen["page"] = request.client.host
        return Response.text("page")

    class Source(EventSource):
        async def on_open(self, stream, request):
            seen["events"] = request.client.host
            stream.close()

    class Greeter(Quiet):
        def __init__(self, name):
            self.name = name

        async def on_upgrade(self, ws, request):
            seen[self.name] = ws.client.host

    routes = {
        "/": page,
        "/events": Source(),
        "/ws": WebSocketProtocol(Greeter("ws"), trusted_proxies=["127.0.0.1"]),
        "/naive": WebSocketProtocol(Greeter("naive")),
    }
    async with serving(Router(routes, trusted_proxies=["127.0.0.1"])) as server:
        told = "X-Forwarded-For: 192.0.2.7"
        await ask(server, get("/", told, CLOSE))
        await ask(server, get("/events", told))
        for target in ("/ws", "/naive"):
            async with await connect(server) as stream:
                await stream.send_all(upgrade(target, told) + HELLO)
                await read(stream, b"\x81\x05Hello")
    assert seen == {"page": "192.0.2.7", "events": "192.0.2.7", "ws": "192.0.2.7", "naive": "127.0.0.1"}


async def test_silent_and_slow_peers_are_bounded_by_the_router():
    """Its `header_timeout` holds until it is known who is asked for."""
    async with serving(router(header_timeout=0.1)) as server:
        assert await ask(server) == b""
        assert status(await ask(server, upgrade("/rooms/1")[:-2])) == 408
        await until(lambda: not server.engine.connections)


async def test_draining_says_goodbye_in_each_protocol():
    """1001 for a WebSocket, the end for a page."""
    async with serving() as server, await connect(server) as one, await connect(server) as two:
        await one.send_all(upgrade("/both") + HELLO)
        await read(one, b"\x81\x05Hello")
        await two.send_all(get("/page"))
        await read(two, b"page")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(server.drain, jitter=0))
            assert (await one.receive_some())[2:4] == b"\x03\xe9"
            await one.send_all(frame(8, b"\x03\xe9"))
            assert await two.receive_some() == b""


@pytest.mark.parametrize(
    "routes",
    [
        {"GET /": WebSocketProtocol(Quiet())},
        {"/": WebSocketProtocol(Quiet(), http=HttpProtocol({}))},
        {"/a": HttpProtocol({})},
        {"POST /a/": HttpProtocol({})},
        {"/one": 1},
        {"/{a}": b"x", "/{b}": b"y"},
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_refused(routes):
    """A method for a WebSocket, pages in the wrong place, nested protocols at a single path, ambiguous patterns."""
    with pytest.raises(ConfigurationError):
        Router(routes)


async def test_a_router_is_not_put_into_a_websocket(caplog):
    """The other way round it works; this way each page is answered with 500, and the log says why."""
    async with serving(WebSocketProtocol(Quiet(), http=router())) as server:
        assert status(await ask(server, get("/page"))) == 500
    assert "into the Router" in caplog.text


def test_websockets_need_a_router():
    """An `HttpProtocol` alone has no room for them, and says so."""
    with pytest.raises(ConfigurationError, match="Router"):
        HttpProtocol({"/": WebSocketProtocol(Quiet())})


async def test_what_a_websocket_sends_while_an_earlier_request_is_answered_reaches_it():
    """A page and an upgrade in one go, then a frame while the page's responder waits: all are served."""
    asked, answer = trio.Event(), trio.Event()

    async def slow(request):
        asked.set()
        await answer.wait()
        return Response.text("slow")

    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    router = Router({"/slow": slow, "/ws": WebSocketProtocol(echo)})
    async with trionet.open_server(router) as server, await connect(server) as stream:
        await stream.send_all(get("/slow") + get("/ws", *UPGRADE))
        await asked.wait()
        await stream.send_all(frame(1, b"hello"))
        (connection,) = server.engine
        await until(lambda: connection.rare().held)
        answer.set()
        assert (await read(stream, b"\x81\x05hello")).count(b"HTTP/1.1 ") == 2
