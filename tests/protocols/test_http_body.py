"""Bodies of requests: read when they are asked for, within limits, in pieces; and what is done with the rest."""

from __future__ import annotations

import logging
import os
import shutil
import tracemalloc

import h11
import pytest
import trio
from http_peer import CLOSE, ask, connect, get, post, read, rest_of, status, statuses, until

import trionet
from trionet import HttpProtocol, HttpRequest, Rejection, Response
from trionet.protocols.http_body import RequestBody

CHUNKED = "Transfer-Encoding: chunked"


async def whole(request: HttpRequest) -> Response:
    """Answer with the body."""
    return Response(body=await request.body() + b"|" + await request.body())


async def count(request: HttpRequest) -> Response:
    """Answer with the sizes of the pieces."""
    return Response.json([len(piece) async for piece in request.stream(limit=2**24)])


async def total(request: HttpRequest) -> Response:
    """Answer with the size."""
    size = 0
    async for piece in request.stream(limit=2**24):
        size += len(piece)
    return Response.text(f"{size} bytes")


async def small(request: HttpRequest) -> Response:
    """Accept four bytes."""
    return Response(body=await request.body(limit=4))


async def deaf(request: HttpRequest) -> Response:
    """Ask for nothing."""
    return Response.text("deaf")


async def parsed(request: HttpRequest) -> Response:
    """Answer with JSON for JSON."""
    return Response.json(await request.json())


async def back(request: HttpRequest) -> Response:
    """Send pieces back as they come."""
    return Response(body=request.stream(limit=2**24))


async def stubborn(request: HttpRequest) -> Response:
    """Answer though the body cannot be had."""
    try:
        await request.body(limit=4)
    except Rejection as rejection:
        return Response.text(f"caught {rejection.status}")
    return Response.text("nothing to catch")


ROUTES = {
    "/ok": b"ok",
    **{
        f"{method} /{responder.__name__}": responder
        for responder in (whole, count, total, small, deaf, parsed, back, stubborn)
        for method in ("POST", "PUT")
    },
}


def serving(**options):
    """Open a server."""
    return trionet.open_server(HttpProtocol(ROUTES, **options), resolution=0.05)


@pytest.mark.parametrize("feed", ["whole", "bytewise"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        post("/whole", b"hello"),
        get("/whole", CHUNKED, method="POST", body=b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n"),
    ],
    ids=["length", "chunked"],
)
async def test_a_body_is_whole_and_can_be_asked_for_again(request_bytes, feed):
    """However it arrives, `body` returns it each time, and the next request is served."""
    data = request_bytes + get("/ok", CLOSE)
    async with serving() as server:
        answer = await ask(
            server, *([data] if feed == "whole" else [data[i : i + 1] for i in range(len(data))])
        )
    assert b"\r\n\r\nhello|hello" in answer
    assert statuses(answer) == [200, 200]


async def test_pieces_come_as_they_arrive():
    """A responder that iterates gets a piece before the next is sent, and holds no worker in between."""
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(get("/back", "Content-Length: 7", method="POST"))
        for piece in (b"one", b"two"):
            await until(lambda: server.statistics().pool.parked == 1)
            assert server.statistics().pool.busy == 0
            await stream.send_all(piece)
            assert (await read(stream, piece + b"\r\n")).count(b"3\r\n") == 1
        await stream.send_all(b"!")
        assert await read(stream, b"\r\n\r\n") == b"1\r\n!\r\n0\r\n\r\n"


async def test_a_responder_that_does_not_read_holds_the_peer_back():
    """What nobody takes stays with the peer: no more than `read_ahead` and a read of it are kept."""
    gate = trio.Event()
    sizes = []

    async def lazy(request):
        await gate.wait()
        sizes.extend([len(piece) async for piece in request.stream(limit=2**24)])
        return Response.text("done")

    async with (
        trionet.open_server(HttpProtocol({"POST /": lazy}, read_ahead=10_000)) as server,
        await connect(server) as stream,
        trio.open_nursery() as nursery,
    ):
        await stream.send_all(get("/", "Content-Length: 8000000", method="POST"))
        nursery.start_soon(stream.send_all, bytes(8_000_000))
        await until(lambda: [c for c in server.connections if "paused" in repr(c)])
        (connection,) = server.connections
        assert connection.rare().held_size <= 10_000 + 65536
        gate.set()
        await read(stream, b"done")
    assert sum(sizes) == 8_000_000
    assert max(sizes) <= 65536 + 10_000


@pytest.mark.parametrize("responder", ["total", "whole"])
async def test_the_limit_holds_while_a_body_comes(responder):
    """A chunked body is refused with 413 as soon as it is too long, though its sender has not ended."""
    async with serving(max_body=1000) as server, await connect(server) as stream:
        await stream.send_all(
            get(f"/{responder}", CHUNKED, method="POST", body=b"2bc\r\n" + b"x" * 700 + b"\r\n")
        )
        if responder == "whole":
            await stream.send_all(b"2bc\r\n" + b"x" * 700)
            answer = await rest_of(stream)
            assert status(answer) == 413
            assert b"\r\nConnection: close\r\n" in answer
        else:  # it has a limit of its own
            await stream.send_all(b"2bc\r\n" + b"x" * 700 + b"\r\n0\r\n\r\n")
            assert await read(stream, b"1400 bytes")


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["Content-Length: 5"], 413),
        (["Content-Length: 5", "Expect: 100-continue"], 413),
        (["Content-Length: 99999999999"], 413),
        (["Content-Length: 4", "Expect: 200-ok"], 417),
    ],
)
async def test_a_body_that_will_not_do_is_refused_before_it_comes(lines, expected):
    """The answer comes though no byte of the body was sent, without a 100 before it, and the connection ends."""
    async with serving() as server:
        answer = await ask(server, get("/small", *lines, method="POST"))
    assert statuses(answer) == [expected]
    assert b"\r\nConnection: close\r\n" in answer


async def test_a_body_is_asked_for_when_the_responder_wants_it():
    """`Expect: 100-continue` gets its 100 from who reads, and the final answer at once from who does not."""
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(get("/whole", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        assert await read(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"hi")
        assert status(await read(stream, b"hi|hi")) == 200
        await stream.send_all(get("/deaf", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        answer = await rest_of(stream)
    assert statuses(answer) == [200]
    assert b"\r\nConnection: close\r\n" in answer  # the client may, or may not, send the body now


@pytest.mark.parametrize(
    "body",
    [
        post("/deaf", bytes(60_000)),
        get("/deaf", CHUNKED, method="POST", body=b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("split", [False, True])
async def test_a_small_body_that_nobody_reads_is_skipped(body, split):
    """The connection goes on behind it, also when it comes after the answer."""
    async with serving() as server, await connect(server) as stream:
        end = body.index(b"\r\n\r\n") + 4 if split else len(body)
        await stream.send_all(body[:end])
        await read(stream, b"deaf")
        await stream.send_all(body[end:] + get("/ok", CLOSE))
        assert status(await rest_of(stream)) == 200


@pytest.mark.parametrize(
    "lines, body",
    [
        (["Content-Length: 10000000"], b""),
        ([CHUNKED], b"186a0\r\n" + bytes(100_000)),
        ([CHUNKED], b"nonsense\r\n"),
    ],
    ids=["long", "long in chunks", "malformed"],
)
async def test_a_body_that_is_not_worth_reading_ends_the_connection(lines, body):
    """More than 64 KiB that nobody asked for, or nonsense, is answered, and then the connection ends."""
    async with serving() as server:
        answer = await ask(server, get("/deaf", *lines, method="POST", body=body))
    assert statuses(answer) == [200]


async def test_a_slow_body_is_told():
    """Dribbling: `body_timeout` for the beginning and a second for each 1,000 bytes, then 408."""
    async with serving(body_timeout=0.1) as server, await connect(server) as stream:
        await stream.send_all(get("/total", "Content-Length: 1000", method="POST"))
        answer = b""
        async with trio.open_nursery() as nursery:

            async def dribble():
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.02)

            nursery.start_soon(dribble)
            answer = await stream.receive_some()
            nursery.cancel_scope.cancel()
        assert status(answer) == 408
        assert b"\r\nConnection: close\r\n" in answer


async def test_a_steady_body_may_take_longer_than_its_timeout():
    """What comes earns time: a large upload is not cut off while it flows."""
    async with serving(body_timeout=0.3) as server, await connect(server) as stream:
        await stream.send_all(get("/total", "Content-Length: 12000", method="POST"))
        for _ in range(12):
            await stream.send_all(bytes(1000))
            await trio.sleep(0.04)
        assert await read(stream, b"12000 bytes")


async def test_what_is_left_of_a_skipped_body_has_a_deadline_too():
    """A peer that never sends the body it declared is closed, without a second answer."""
    async with serving(body_timeout=0.1) as server:
        answer = await ask(server, get("/deaf", "Content-Length: 10", method="POST"))
    assert statuses(answer) == [200]


@pytest.mark.parametrize("responder", ["whole", "total", "back"])
async def test_a_peer_that_leaves_in_the_middle_is_no_failure(responder, caplog):
    """Nothing is logged as an error, nothing stays parked."""
    protocol = HttpProtocol(ROUTES)
    async with trionet.open_server(protocol) as server:
        for end in (b"", b"part"):
            async with await connect(server) as stream:
                await stream.send_all(get(f"/{responder}", "Content-Length: 10", method="POST", body=end))
                await until(lambda: server.statistics().pool.parked == 1)
            await until(lambda: not server.engine.connections)
        assert server.statistics().pool.parked == 0
    assert protocol.handler_failures == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_half_closed_peer_is_told_that_its_body_is_short():
    """Whoever shuts its side in the middle of a body gets 400."""
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(get("/whole", "Content-Length: 10", method="POST", body=b"half"))
        await until(lambda: server.statistics().pool.parked == 1)
        await stream.send_eof()
        assert status(await rest_of(stream)) == 400


@pytest.mark.parametrize(
    "body, expected", [(b'{"a":[1]}', 200), (b"", 400), (b"{", 400), (b"[" * 60_000, 400)]
)
async def test_json_is_parsed_or_refused(body, expected):
    """What is no JSON is the peer's fault: 400, and the connection goes on."""
    async with serving() as server:
        answer = await ask(server, post("/parsed", body), get("/ok", CLOSE))
    assert statuses(answer) == [expected, 200]


async def test_a_responder_may_answer_in_spite_of_its_body():
    """A `Rejection` that is caught is the responder's affair; the connection still ends."""
    async with serving() as server:
        answer = await ask(server, post("/stubborn", b"too long") + get("/ok"))
    assert statuses(answer) == [200]
    assert answer.endswith(b"caught 413")


async def test_a_body_is_read_before_the_answer_ends():
    """Kept for later, the request still tells its head, but has no body to read."""
    kept = []

    async def keep(request):
        kept.append(request)
        return Response.text("kept")

    async with trionet.open_server(HttpProtocol({"POST /": keep})) as server:
        await ask(server, post("/", b"hello", CLOSE))
    assert (kept[0].method, kept[0].path) == ("POST", "/")
    with pytest.raises(RuntimeError, match="after its answer"):
        await kept[0].body()


async def test_only_one_task_reads_a_body():
    """A second reader gets `trio.BusyResourceError`."""
    seen = []

    async def twice(request):
        async def read_on():
            try:
                await request.body()
            except trio.BusyResourceError:
                seen.append("busy")
                await stream.send_all(b"0123456789")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            nursery.start_soon(read_on)
        return Response.text("done")

    async with (
        trionet.open_server(HttpProtocol({"POST /": twice})) as server,
        await connect(server) as stream,
    ):
        await stream.send_all(get("/", "Content-Length: 10", method="POST"))
        await read(stream, b"done")
    assert seen == ["busy"]


async def test_cancelling_the_reader_leaves_the_connection_whole():
    """A read under `move_on_after` may be given up, and taken up again."""
    pieces = []

    async def impatient(request):
        stream = request.stream()
        while True:
            with trio.move_on_after(0.02) as scope:
                async for piece in stream:
                    pieces.append(piece)  # noqa: PERF401 - some of them, when it is cut short
            if not scope.cancelled_caught:
                return Response.text("done")

    async with (
        trionet.open_server(HttpProtocol({"POST /": impatient})) as server,
        await connect(server) as stream,
    ):
        await stream.send_all(get("/", "Content-Length: 4", method="POST"))
        for byte in (b"a", b"b", b"c", b"d"):
            await trio.sleep(0.03)
            await stream.send_all(byte)
        await read(stream, b"done")
    assert b"".join(pieces) == b"abcd"


async def test_cancelling_a_whole_body_loses_nothing():
    """`body` under `move_on_after` goes on where it was."""

    async def impatient(request):
        for _ in range(100):
            with trio.move_on_after(0.02):
                return Response(body=await request.body())
        return Response(500)

    async with (
        trionet.open_server(HttpProtocol({"POST /": impatient})) as server,
        await connect(server) as stream,
    ):
        await stream.send_all(get("/", CHUNKED, method="POST", body=b"1\r\n.\r\n" * 200))
        for byte in (b"a", b"b", b"c"):
            await trio.sleep(0.03)
            await stream.send_all(b"1\r\n" + byte + b"\r\n")
        await stream.send_all(b"0\r\n\r\n")
        await read(stream, b"." * 200 + b"abc")


async def test_a_body_is_had_whole_or_in_pieces():
    """Whoever has taken a piece cannot have the whole any more, and is told so."""

    async def both(request):
        async for _ in request.stream():
            break
        with pytest.raises(RuntimeError, match="in pieces"):
            await request.body()
        return Response.text("told")

    async with trionet.open_server(HttpProtocol({"POST /": both})) as server:
        answer = await ask(server, post("/", b"12345", CLOSE))
    assert answer.endswith(b"told")


async def test_a_hard_stop_ends_those_who_wait_for_a_body(caplog):
    """Cancelling the server unwinds parked readers, and says nothing."""
    async with serving() as server:
        stream = await connect(server)
        await stream.send_all(get("/whole", "Content-Length: 10", method="POST"))
        await until(lambda: server.statistics().pool.parked == 1)
    assert server.engine.connections == 0
    await stream.aclose()
    assert not caplog.records


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_uploads_a_large_file(tmp_path):
    """16 MB from curl, which expects 100 first, once with a length and once in chunks, over one connection."""
    (tmp_path / "file").write_bytes(os.urandom(2**24))
    async with serving() as server:
        host, port = server.addresses[0][:2]
        url = f"http://{host}:{port}/total"
        command = [
            "curl",
            "-sSv",
            "--max-time",
            "20",
            "-H",
            "Expect: 100-continue",
            "-T",
            tmp_path / "file",
            url,
        ]
        command += ["--next", "-sSv", "--max-time", "20", "-H", CHUNKED, "-T", tmp_path / "file", url]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
        assert server.engine.opened == 1
    assert done.stdout == b"16777216 bytes" * 2
    assert b"< HTTP/1.1 100 Continue" in done.stderr


async def test_a_body_in_tiny_chunks_costs_little_more_than_its_bytes():
    """What is read whole is kept as bytes: an object for each chunk of two would take twenty times as much."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(post("/", b"2\r\nab\r\n" * 10_000 + b"0\r\n\r\n", CHUNKED))
    parser.next_event()
    body = RequestBody(None, parser, None, 2**20, 0)
    tracemalloc.start()
    try:
        assert await body.read(2**20) == b"ab" * 10_000
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
