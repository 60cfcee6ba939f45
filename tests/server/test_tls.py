"""TLS under the poller: what a server does over it, and what peers may do to it."""

from __future__ import annotations

import gc
import importlib.util
import logging
import shutil
import ssl
import subprocess
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from tls_peer import authority, certificate, client_context, server_context, serving_tls, write_pem
from ws_peer import (
    BINARY,
    TEXT,
    Echo,
    Frame,
    Gated,
    Opened,
    Peer,
    close,
    descriptors,
    frame,
    request,
    serving,
    stall,
    text,
    until,
)

import trionet

VERSIONS = ["TLSv1.2", "TLSv1.3"]


@pytest.fixture(params=VERSIONS)
def version(request):
    """Return each version that is spoken."""
    return request.param


def tls(at):
    """Return the counters."""
    return at.server.statistics().tls


# ------------------------------------------------------------------ the same as without


def elsewhere(name: str):
    """Return another file of tests as a module of its own."""
    path = Path(__file__).resolve().parent.parent / name
    spec = importlib.util.spec_from_file_location(f"over_tls_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_SERVER, _INVARIANTS, _CHANNEL, _WEBSOCKET = map(
    elsewhere,
    (
        "server/test_server.py",
        "server/test_invariants.py",
        "protocols/test_channel.py",
        "protocols/test_websocket.py",
    ),
)


@pytest.mark.parametrize(
    "module, name, arguments",
    [
        (_INVARIANTS, "test_a_one_worker_at_a_time_and_in_order", {}),
        (_INVARIANTS, "test_b_waiting_handlers_and_stalled_peers_leave_the_pool_free", {}),
        (_INVARIANTS, "test_h_every_wait_can_be_cancelled", {}),
        (_INVARIANTS, "test_i_cancelling_senders_never_cuts_a_frame", {}),
        (_CHANNEL, "test_a_pipeline_of_large_answers_waits_for_the_peer", {"backend": None}),
        (_CHANNEL, "test_broadcast_never_overtakes_what_is_corked", {}),
        (_CHANNEL, "test_fifty_slow_peers_leave_a_pool_of_two_free", {"backend": None}),
        (_CHANNEL, "test_a_cancelled_send_sends_nothing", {"backend": None}),
        (_CHANNEL, "test_a_large_message_is_never_cut", {"backend": None}),
        (_CHANNEL, "test_two_tasks_never_interleave", {"size": 10, "backend": "tasks"}),
        (_CHANNEL, "test_high_and_low_water", {}),
        (_CHANNEL, "test_a_peer_that_is_not_read_to_is_not_read_from", {}),
        (_CHANNEL, "test_policy_wait_leaves_slow_peers_out_of_a_broadcast", {}),
        (_CHANNEL, "test_control_frames_are_never_dropped", {}),
        (_CHANNEL, "test_a_flood_of_pings_is_answered_with_one_queued_pong", {}),
        (_CHANNEL, "test_a_peer_that_reads_slowly_is_kept", {}),
        (_CHANNEL, "test_closing_never_waits_behind_a_stalled_send", {"backend": None}),
        (_CHANNEL, "test_close_is_bounded", {"backend": None}),
        (_CHANNEL, "test_nothing_follows_the_answer_to_a_close", {"how": "broadcast"}),
        (_WEBSOCKET, "test_bytes_pipelined_behind_the_handshake_are_served", {"backend": "tasks"}),
        (_WEBSOCKET, "test_messages_for_a_busy_handler_are_kept_in_order", {"backend": None}),
        (_WEBSOCKET, "test_read_ahead_bounds_what_is_kept", {"backend": None}),
        (_WEBSOCKET, "test_a_broken_rule_is_seen_while_the_handler_is_busy", {}),
        (_SERVER, "test_drain_says_goodbye_to_all", {"backend": None}),
        (_SERVER, "test_drain_never_waits_behind_a_stalled_peer", {"backend": None}),
    ],
    ids=lambda value: value.removeprefix("test_") if isinstance(value, str) else "",
)
async def test_what_holds_without_tls(module, name, arguments, monkeypatch):
    """Tests of the protocol and of the server, as they are, over TLS."""
    monkeypatch.setattr(module, "serving", serving_tls)
    await getattr(module, name)(**arguments)


# ------------------------------------------------------------------ what handlers see


class Watched(Opened):
    """Echoes, and notes what TLS said when each connection opened."""

    def __init__(self):
        super().__init__()
        self.facts = []

    async def on_open(self, ws):
        self.facts.append((ws.tls.version(), ws.tls.selected_alpn_protocol(), ws.tls.getpeercert()))
        await super().on_open(ws)

    async def on_message(self, ws, message):
        await ws.send(message)


async def test_both_versions_echo(version):
    """TLS 1.2 and 1.3 are spoken; the handler sees which, and the protocol of ALPN; nothing when it is over."""
    handler = Watched()
    client = client_context(version)
    client.set_alpn_protocols(["h2", "http/1.1"])
    async with serving_tls(handler, client=client) as at:
        assert at.url == f"wss://127.0.0.1:{at.port}/"
        peer = await at.join()
        await peer.echo()
        ws = await handler.first()
        assert ws.tls.cipher()[0]
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()  # an error, if close_notify were missing
        await until(lambda: handler.ends)
        assert ws.tls is None
    assert handler.facts == [(version, "http/1.1", None)]


async def test_each_byte_may_come_alone(version):
    """The handshake, records and close_notify in reads of one byte: nothing is lost, nothing waits."""
    async with serving_tls(Echo(), client=client_context(version)) as at:
        peer = await at.dial(bytewise=True)
        await peer.send(request())
        assert await peer.status() == 101
        await peer.send(text("one"), text("two"))
        assert [await peer.hear(), await peer.hear()] == ["one", "two"]
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()


async def test_large_messages(version):
    """A megabyte each way is many records, and more than a kernel takes at once."""
    message = bytes(range(256)) * 4096
    async with serving_tls(Echo(), client=client_context(version)) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        nursery.start_soon(peer.send, frame(BINARY, message))
        assert await peer.frame() == Frame(BINARY, message)


async def test_many_messages_in_one_batch_of_records():
    """All that one read completes is handled, without another event from the kernel."""
    async with serving_tls(Echo()) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        nursery.start_soon(peer.send, *(text(str(n)) for n in range(3000)))
        for n in range(3000):
            assert await peer.hear() == str(n)


async def test_input_goes_on_after_a_pause():
    """A handler so slow that reading pauses, with more records behind: all are handled in the end."""
    handler = Gated()
    async with serving_tls(handler, read_ahead=2048) as at, trio.open_nursery() as nursery:
        peer = await at.join()
        await peer.say("first")
        await handler.entered.wait()
        nursery.start_soon(peer.send, *(text(f"{n:0200}") for n in range(500)))
        await until(lambda: "paused" in repr(handler.ws))
        handler.gate.set()
        await until(lambda: len(handler.seen) == 501)
    assert handler.seen[1:] == [f"{n:0200}" for n in range(500)]


async def test_broadcast_reaches_all(version):
    """One frame, enciphered for each."""
    handler = Opened()
    async with serving_tls(handler, client=client_context(version)) as at:
        peers = [await at.join() for _ in range(5)]
        await until(lambda: len(handler.arrived) == 5)
        for n in range(20):
            assert trionet.broadcast(at.server.websockets, str(n)) == 5
        for peer in peers:
            for n in range(20):
                assert await peer.hear() == str(n)


@pytest.mark.parametrize("policy", [trionet.SlowConsumer.DROP_OLDEST, trionet.SlowConsumer.DROP_NEWEST])
async def test_dropping_never_touches_a_record_that_is_begun(policy):
    """Messages are dropped from the queue of a peer that does not read; what it gets is still a TLS stream."""
    handler = Opened()
    async with serving_tls(handler, slow_consumer=policy) as at:
        peer = await at.join(small=True)
        ws = await handler.first()
        for n in range(400):
            ws.send_nowait(f"{n:01000}")
            await trio.lowlevel.checkpoint()
        assert at.protocol.messages_dropped > 50
        ws.close_nowait(1000)
        heard = []
        while (received := await peer.frame()).opcode == TEXT:
            heard.append(int(received.payload))
        assert heard == sorted(set(heard))
        assert len(heard) == 400 - at.protocol.messages_dropped
        await peer.send(close())
        await peer.ended()


async def test_pages_and_websockets_share_the_port():
    """Plain requests go to `http`, and a connection may go back to WebSocket: both over TLS."""
    http = trionet.HttpProtocol({"/": "hello"})
    async with serving_tls(trionet.WebSocketProtocol(Echo(), http=http)) as at:
        peer = await at.dial()
        for _ in range(2):
            await peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await peer.status() == 200
            while len(peer.data) < 5:
                await peer._more()
            assert peer.take(5) == b"hello"
        assert at.connection.tls is not None
        await peer.send(request(), text("hi"))
        assert await peer.status() == 101
        assert await peer.hear() == "hi"
        assert type(at.connection).__mro__[1] is trionet.net.tls_trait.Tls


class Greeting(trionet.Protocol):
    """Speaks first, and says no more."""

    def connection_made(self, connection):
        super().connection_made(connection)
        connection.write(b"hello\r\n")
        connection.finish()


async def test_a_server_that_speaks_first(version):
    """What `connection_made` writes follows the handshake, and so does a close_notify."""
    async with serving_tls(Greeting(), client=client_context(version)) as at:
        assert at.url.startswith("tls://")
        peer = await at.dial()
        await peer.stream.do_handshake()
        while await peer._more():
            pass
        assert peer.data == b"hello\r\n"


async def test_lines_with_the_end_of_input_behind_them():
    """Data and close_notify in one read: the data is handled, then the end of input, though no FIN has come."""
    seen = []

    class Protocol(trionet.LineProtocol):
        async def connection_lost(self, connection, closed):
            seen.append((closed.code, closed.reason, closed.by))

    async def handler(connection, line):
        seen.append(line)
        await connection.send(line)

    async with serving_tls(Protocol(handler)) as at:
        plain = await at.dial_plain()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        for data in (b"one\n", b"two\n"):
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await plain.send(outgoing.read())
                    incoming.write(await plain.stream.receive_some())
            client.write(data)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        await plain.send(outgoing.read())
        await until(lambda: len(seen) == 3)
        assert seen == [b"one", b"two", (1006, "end of input", "peer")]
        while data := await plain.stream.receive_some():
            incoming.write(data)
        with pytest.raises(ssl.SSLZeroReturnError):  # noqa: PT012 - the server's close_notify
            while client.read():
                pass
        assert tls(at).truncated == 0


@pytest.mark.parametrize("origin, status", [("https://127.0.0.1", 101), ("http://127.0.0.1", 403)])
async def test_a_page_that_came_in_the_clear_is_another_origin(origin, status):
    """Anybody on the way could have written it (RFC 6454, 4: the scheme is part of the origin)."""
    async with serving_tls(Echo()) as at:
        peer = await at.dial()
        await peer.send(request("/", f"Origin: {origin}"))
        assert await peer.status() == status


# ------------------------------------------------------------------ certificates


async def test_client_certificates(tmp_path, version):
    """Who shows one of the right authority comes in, and the handler sees it; who shows none gets an alert."""
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    handler = Watched()
    context = server_context(client_ca=ca)
    async with serving_tls(handler, context=context, client=client_context(version)) as at:
        peer = await at.dial()
        with pytest.raises(trio.BrokenResourceError) as caught:  # noqa: PT012 - TLS 1.3 tells it later
            await peer.stream.do_handshake()
            await peer.stream.receive_some()
        assert "CERTIFICATE_REQUIRED" in str(caught.value.__cause__) or (
            version == "TLSv1.2" and "HANDSHAKE_FAILURE" in str(caught.value.__cause__)
        )
        await peer.vanish()
        await until(lambda: tls(at).failures == 1)
        certificate("client.example").configure_cert(at.client)
        await (await at.join()).echo()
    assert handler.facts[0][2]["subjectAltName"] == (("DNS", "client.example"),)


async def test_optional_client_certificates(tmp_path):
    """`client_optional`: who shows none comes in all the same."""
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    handler = Watched()
    async with serving_tls(handler, context=server_context(client_ca=ca, client_optional=True)) as at:
        await (await at.join()).echo()
    assert handler.facts[0][2] is None


async def test_the_name_chooses_the_certificate():
    """An SNI callback of the context gives each name its certificate; what it notes is there for the handler."""
    contexts = {name: server_context(name) for name in ("a.example", "b.example")}
    names = []

    def choose(sslobject, name, context):
        sslobject.name = name
        sslobject.context = contexts[name]

    class Handler(Echo):
        async def on_open(self, ws):
            names.append(ws.tls.name)

    context = server_context("c.example")
    context.sni_callback = choose
    async with serving_tls(Handler(), context=context) as at:
        for name in contexts:
            peer = await at.dial(name=name)
            await peer.send(request())
            assert await peer.status() == 101
            assert peer.stream.getpeercert()["subjectAltName"] == (("DNS", name),)
    assert names == list(contexts)


async def test_what_an_sni_callback_sends_does_not_mix_with_the_handshake():
    """OpenSSL calls the application in the middle of an operation; a broadcast from there waits for its end."""
    handler = Opened()
    async with serving_tls(handler, context=(context := server_context())) as at:
        peer = await at.join()
        await handler.first()
        context.sni_callback = lambda *_: trionet.broadcast(at.server.websockets, "a newcomer") and None
        other = await at.join()
        assert await peer.hear() == "a newcomer"
        await until(lambda: len(handler.arrived) == 2)
        assert trionet.broadcast(at.server.websockets, "all") == 2
        assert [await peer.hear(), await other.hear()] == ["all", "all"]


async def test_a_renewed_certificate_is_for_new_connections(tmp_path):
    """`load_cert_chain` on the context of a running server; connections that are open stay."""
    path = write_pem(tmp_path / "server.pem", "old.example")
    context = trionet.server_tls_context(path)
    async with serving_tls(Echo(), context=context) as at:
        old = await at.dial(name="old.example")
        await old.send(request())
        assert await old.status() == 101
        context.load_cert_chain(write_pem(path, "new.example"))
        new = await at.dial(name="new.example")
        await new.send(request())
        assert await new.status() == 101
        await old.echo()


# ------------------------------------------------------------------ peers that are not as they should be


async def test_plain_http_gets_a_readable_answer():
    """Whoever forgot the s of https is told, in plain text."""
    async with serving_tls(Echo()) as at:
        peer = await at.dial_plain()
        await peer.send(b"G")
        assert await peer.status() == 400
        while await peer._more():
            pass
        assert b"speaks TLS" in peer.data
        assert (tls(at).plain_http, tls(at).handshakes) == (1, 0)


@pytest.mark.parametrize("data", [b"\0", b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01\0\2", b"\x17" * 50])
async def test_nonsense_is_closed_without_a_word_in_the_log(data, caplog):
    """No traceback, no error: a failed handshake is counted, and logged for debugging only."""
    caplog.set_level(logging.INFO, "trionet")
    async with serving_tls(Echo(), handshake_timeout=0.2, resolution=0.02) as at:
        peer = await at.dial_plain()
        await peer.send(data)
        while await peer._more():
            pass
        await peer.aclose()
        await until(lambda: tls(at).failures == 1)
        assert at.server.statistics().connections == 0
        await (await at.join()).echo()
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_a_version_that_is_not_spoken_gets_an_alert():
    """The client learns why, instead of a reset."""
    context = server_context(minimum_version=ssl.TLSVersion.TLSv1_3)
    async with serving_tls(Echo(), context=context, client=client_context("TLSv1.2")) as at:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await at.join()
        assert "PROTOCOL_VERSION" in str(caught.value.__cause__)


async def test_silent_and_dribbling_handshakes_hold_no_worker(version):
    """Pool of 2, ten that are silent and ten that stop half-way: an echo answers, and the deadline ends them."""
    hello = ssl.MemoryBIO()
    client = client_context(version).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    first = hello.read()
    client_options = {"client": client_context(version), "pool_size": 2}
    async with serving_tls(Echo(), handshake_timeout=0.5, resolution=0.02, **client_options) as at:
        stuck = [await at.dial_plain() for _ in range(20)]
        for n, peer in enumerate(stuck[:10]):
            await peer.send(first[: 10 + 100 * n])  # some of them whole: then it is the rest that never comes
        good = await at.join()
        await good.echo()
        for peer in stuck:
            while await peer._more():
                pass
        assert tls(at).failures == 20
        assert at.server.statistics().opening == 0
        await good.echo()


@pytest.mark.parametrize("how", ["reset", "fin"])
@pytest.mark.parametrize("after", [0, 1])
async def test_leaving_in_mid_handshake(how, after, caplog):
    """Counted, not logged, nothing left."""
    hello = ssl.MemoryBIO()
    client = client_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    async with serving_tls(Echo()) as at:
        peer = await at.dial_plain()
        await peer.send(hello.read()[: None if after else 20])
        if after:
            await peer._more()
        else:
            await trio.testing.wait_all_tasks_blocked()
        await (peer.reset() if how == "reset" else peer.aclose())
        await until(lambda: tls(at) and tls(at).failures == 1)
        assert at.server.statistics().connections == 0
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_a_cut_connection_is_seen_as_such(version):
    """The end of input without close_notify: 1006, a reason that says so, and a counter."""
    handler = Opened()
    async with serving_tls(handler, client=client_context(version)) as at:
        peer = await at.join()
        await handler.first()
        await peer.vanish()
        await until(lambda: handler.ends)
        assert tls(at).truncated == 1
    assert handler.ends[0].code == 1006
    assert "close_notify" in handler.ends[0].reason


async def test_a_damaged_record_ends_the_connection_with_an_alert():
    """What fails authentication closes that connection, with an alert; others do not notice."""
    handler = Watched()
    async with serving_tls(handler) as at:
        good, bad = await at.join(), await at.join()
        await bad.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await bad.stream.receive_some()
        assert "ALERT_BAD_RECORD_MAC" in str(caught.value.__cause__)
        await bad.vanish()
        await until(lambda: handler.ends)
        await good.echo()
    assert handler.ends[0].reason == "TLS: decryption failed or bad record mac"


async def test_a_parked_handler_learns_of_a_damaged_record():
    """A straight-line handler that waits for a message is told at once, not when lingering is over."""
    ends = []

    async def handler(ws):
        await ws.send("hello")
        try:
            await ws.receive()
        except trionet.ConnectionClosed as closed:
            ends.append(closed)

    async with serving_tls(trionet.WebSocketProtocol(handler)) as at:
        peer = await at.join()
        assert await peer.hear() == "hello"
        await peer.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        await until(lambda: ends)
        assert at.server.statistics().connections == 1
        await peer.vanish()
    assert ends[0].reason.startswith("TLS: ")


async def test_a_peer_that_stalls_is_closed():
    """What is enciphered and not taken is no progress: the write deadline ends it."""
    handler = Opened()
    async with serving_tls(handler, write_timeout=0.1, resolution=0.02) as at:
        await at.join(small=True)
        ws = await handler.first()
        await stall(ws)
        await until(lambda: handler.ends)
    assert "nothing was read" in handler.ends[0].reason


# ------------------------------------------------------------------ KeyUpdate, renegotiation, tickets


class OpenSslClient:
    """`openssl s_client`, which has a key for what no Python library offers."""

    def __init__(self, process):
        self.process = process
        self.output = b""

    async def type(self, line):
        """Type a line, in one write: a letter on its own is a command."""
        await self.process.stdin.send_all(line + b"\n")

    async def sees(self, words):
        """Wait until it has printed `words`; False at its end."""
        while words not in self.output:
            data = await self.process.stdout.receive_some()
            if not data:
                return False
            self.output += data
        return True


@asynccontextmanager
async def s_client(at, *options):
    """Run one for the length of the block."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{at.port}", *options]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield OpenSslClient(process)
    finally:
        process.kill()
        await process.stdin.aclose()
        await process.stdout.aclose()
        with trio.CancelScope(shield=True):
            await process.wait()


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")


async def backwards(connection, line):
    """Answer so that the answer cannot be taken for the question."""
    await connection.send(line[::-1])


@needs_openssl
async def test_key_update():
    """New keys for one direction, and asked for by the peer for both: lines go on under them."""
    async with serving_tls(trionet.LineProtocol(backwards)) as at, s_client(at, "-tls1_3") as client:
        await client.type(b"hello, you")
        assert await client.sees(b"uoy ,olleh")
        for key, word in ((b"k", b"still there"), (b"K", b"and now"), (b"K", b"good bye")):
            await client.type(key)
            assert await client.sees(b"KEYUPDATE")
            client.output = b""
            await client.type(word)
            assert await client.sees(word[::-1])


@needs_openssl
async def test_renegotiation_is_refused():
    """A client of TLS 1.2 that asks for it is told no, or closed; and does not get it."""
    async with serving_tls(trionet.LineProtocol(backwards)) as at, s_client(at, "-tls1_2") as client:
        await client.type(b"hello, you")
        assert await client.sees(b"uoy ,olleh")
        await client.type(b"R")
        assert await client.sees(b"RENEGOTIATING")
        assert not await client.sees(b"verify return:1\n" * 9)
        assert b"no renegotiation" in client.output
        assert tls(at).handshakes == 1


@needs_openssl
async def test_resumption(tmp_path, version):
    """A client that comes back with its ticket is spared the certificate."""
    ticket = str(tmp_path / "ticket")
    flag = f"-{version.lower().replace('v', '').replace('.', '_')}"
    async with serving_tls(trionet.LineProtocol(backwards)) as at:
        for option in ("-sess_out", "-sess_in"):
            async with s_client(at, flag, option, ticket) as client:
                await client.type(b"hello, you")
                assert await client.sees(b"uoy ,olleh")
                await client.type(b"Q")
                assert not await client.sees(b"never")
        assert (tls(at).handshakes, tls(at).resumed) == (2, 1)


# ------------------------------------------------------------------ peers nobody here wrote


async def test_websockets_over_tls(start_program, tmp_path):
    """The client of websockets verifies, talks, and closes cleanly; the server is examples/echo.py."""
    client = pytest.importorskip("websockets.trio.client")
    pem = write_pem(tmp_path / "server.pem")
    _, url = start_program("examples/echo.py", "--port", "0", "--tls-cert", str(pem))
    assert url.startswith("wss://")
    with trio.fail_after(20):
        async with client.connect(url, ssl=client_context(), server_hostname="localhost") as ws:
            for message in ("hello", bytes(200_000)):
                await ws.send(message)
                assert await ws.recv() == message


# ------------------------------------------------------------------ the end


async def test_drain_and_hard_stop_leave_nothing(version):
    """Open, half-open, stalled and plain connections: all are closed, and no descriptor is left."""
    before = descriptors()
    handler = Opened()
    async with serving_tls(handler, client=client_context(version)) as at:
        await at.join()
        slow = await at.join(small=True)
        await until(lambda: len(handler.arrived) == 2)
        await stall(handler.arrived[1])
        silent = await at.dial_plain()
        half = await at.dial_plain()
        await half.send(b"\x16\x03\x01\x02")
        await until(lambda: at.server.statistics().connections == 4)
        assert not await at.server.drain(jitter=0, timeout=0.1)
        assert not await silent._more()
        assert not await half._more()
        slow.data.clear()
    assert len(handler.ends) == 2
    assert descriptors() == before


async def test_a_connection_given_away_speaks_tls(version):
    """`detach` gives a stream that goes on with the same TLS, behind what was read already."""
    got = []

    class Protocol(trionet.Protocol):
        async def data_received(self, connection, data):
            connection._input = data[1:]
            async with await connection.detach() as stream:
                assert connection.tls is None
                got.append(await stream.receive_some(2))
                await stream.send_all(b"what next?")
                got.append(await stream.receive_some())
                await stream.send_all(bytes(300_000))

    async with serving_tls(Protocol(), client=client_context(version)) as at:
        peer = await at.dial()
        await peer.send(b"xab")
        while peer.data != b"what next?":
            assert await peer._more()
        await peer.send(b"this")
        peer.data.clear()
        while await peer._more():
            pass
        assert peer.data == bytes(300_000)
        await until(lambda: not at.server.statistics().connections)
    assert got == [b"ab", b"this"]


@pytest.mark.parametrize("eager", [False, True])
async def test_a_task_for_each_connection(eager, version):
    """`StreamProtocol` over TLS: the bytes that came with the handshake are in the stream."""

    async def serve(stream):
        if eager:
            await stream.send_all(b"welcome ")
        while data := await stream.receive_some():
            await stream.send_all(data.upper())

    protocol = trionet.StreamProtocol(serve, eager=eager)
    async with serving_tls(protocol, client=client_context(version)) as at:
        peer = await at.dial()
        await peer.send(b"hello ")
        expected = b"welcome HELLO " if eager else b"HELLO "
        while len(peer.data) < len(expected):
            assert await peer._more()
        await peer.send(b"world")
        while len(peer.data) < len(expected) + 5:
            assert await peer._more()
        assert peer.data == expected + b"WORLD"
        await peer.stream.unwrap()
        await until(lambda: not at.server.statistics().connections)
        assert protocol.failures == 0


async def test_trio_websocket_handlers():
    """The adapter for trio-websocket hands its connection over with TLS and all."""
    adapter = pytest.importorskip("trionet.adapters.trio_websocket")

    async def echo(ws):
        while True:
            await ws.send_message(await ws.get_message())

    async with serving_tls(adapter.TrioWebSocketProtocol(echo)) as at:
        peer = await at.join()
        await peer.echo()
        await peer.send(close())
        assert await peer.closed() == 1000


# ------------------------------------------------------------------ on the way to TLS


async def test_behind_a_proxy_that_says_who_it_is():
    """The PROXY header comes first, in the clear; then TLS, on the same descriptor."""
    peers = []

    class Handler(Echo):
        async def on_open(self, ws):
            peers.append((ws.peer[0], ws.tls.version()))

    protocol = trionet.WebSocketProtocol(Handler())
    endpoint = trionet.Endpoint(
        protocol=protocol, ssl_context=server_context(), proxy_protocol=trionet.ProxyProtocol(["127.0.0.1"])
    )
    async with serving([endpoint]) as at:
        plain = await at.dial()
        await plain.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        peer = Peer(trio.SSLStream(plain.stream, client_context(), server_hostname="localhost"))
        await peer.send(request())
        assert await peer.status() == 101
        await peer.echo()
    assert peers == [("192.0.2.7", "TLSv1.3")]


@pytest.mark.parametrize("injected", [b"", b"evil\r\n", b"ev"])
async def test_starttls(injected):
    """A plain protocol may go over to TLS, unless more than the wish for it has come in the clear."""
    seen = []

    class Lines(trionet.LineProtocol):
        def connection_made(self, connection):
            super().connection_made(connection)
            connection.write(b"secure\r\n" if connection.tls else b"plain\r\n")

    async def handler(connection, line):
        seen.append(line)
        if line == b"STARTTLS":
            await connection.send(b"go ahead")
            upgrade.begin(connection)
        else:
            await connection.send(line[::-1])

    protocol = Lines(handler)
    upgrade = trionet.TlsHandshake(protocol, server_context())
    protocol.connection_class = upgrade.connection_class
    async with serving(protocol) as at:
        peer = await at.dial()
        await peer.send(b"STARTTLS\r\n" + injected)
        while not peer.data.endswith(b"go ahead\r\n"):
            await peer._more()
        if injected:
            assert not await peer._more()
            assert seen == [b"STARTTLS"]
            return
        peer = Peer(trio.SSLStream(peer.stream, client_context(), server_hostname="localhost"))
        await peer.stream.do_handshake()
        await peer.send(b"abc\n")
        while peer.data != b"secure\r\ncba\r\n":
            await peer._more()
        with pytest.raises(RuntimeError, match="open connection"):
            upgrade.begin(at.connection)


# ------------------------------------------------------------------ the other side


class Asker(trionet.Protocol):
    """A client: says one thing, keeps the answer, notes the end."""

    def __init__(self):
        super().__init__()
        self.answer = b""
        self.ends = []

    def connection_made(self, connection):
        super().connection_made(connection)
        connection.write(b"hello\r\n")

    async def data_received(self, connection, data):
        self.answer += data
        if self.answer.endswith(b"\n"):
            connection.finish()

    async def connection_lost(self, connection, closed):
        self.ends.append(closed)


async def connect(at):
    """Return a connected descriptor."""
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", at.port))
    return sock.detach()


async def test_the_client_role():
    """The same trait is a client: it verifies, then the protocol speaks; close_notify both ways."""
    protocol = Asker()
    handshake = trionet.TlsHandshake(
        protocol, client_context(), server_side=False, server_hostname="localhost"
    )
    async with serving_tls(trionet.LineProtocol(backwards)) as at:
        at.server.engine.add(await connect(at), handshake, handshake.connection_class)
        await until(lambda: protocol.ends)
        assert protocol.answer == b"olleh\r\n"
        await until(lambda: not at.server.statistics().connections)
        assert (tls(at).handshakes, tls(at).truncated) == (2, 0)


async def test_the_client_refuses_another_name():
    """A certificate for another name: nothing is sent, the reason is told."""
    protocol, errors = Asker(), []
    handshake = trionet.TlsHandshake(
        protocol,
        client_context(),
        server_side=False,
        server_hostname="other.example",
        failed=lambda connection, error: errors.append(error),
    )
    async with serving_tls(trionet.LineProtocol(backwards)) as at:
        at.server.engine.add(await connect(at), handshake, handshake.connection_class)
        await until(lambda: protocol.ends)
        await until(lambda: not at.server.statistics().connections)
    assert isinstance(errors[0], ssl.SSLCertVerificationError)
    assert "certificate verify failed: Hostname mismatch" in protocol.ends[0].reason
    assert protocol.answer == b""


# ------------------------------------------------------------------ settings


async def test_contexts_that_will_not_do():
    """Mistakes show when the server starts, not with the first client."""
    renegotiating = server_context()
    renegotiating.options &= ~ssl.OP_NO_RENEGOTIATION
    renegotiating.options |= 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION
    for context in (client_context(), "server.pem", renegotiating):
        with pytest.raises(trionet.ConfigurationError, match="ssl_context"):
            async with trionet.open_server(trionet.WebSocketProtocol(Echo()), ssl_context=context):
                pass
    with pytest.raises(trionet.ConfigurationError, match="each Endpoint"):
        async with trionet.open_server([], ssl_context=server_context()):
            pass


# ------------------------------------------------------------------ memory


@pytest.mark.measured
async def test_an_idle_connection_holds_no_buffer():
    """After an echo: nothing is kept but OpenSSL's own state, and few bytes of Python's memory."""
    count = 100
    async with serving_tls(Echo()) as at:
        for _ in range(5):
            await (await at.join()).echo()
        gc.collect()
        peers = [await at.dial() for _ in range(count)]
        tracemalloc.start()
        for peer in peers:
            await peer.send(request())
            assert await peer.status() == 101
            await peer.echo()
        await until(lambda: all(ws._state == 1 for ws in at.server.connections))
        gc.collect()
        grown = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/trionet/*")])
        tracemalloc.stop()
        for ws in at.server.connections:
            assert (ws._input, ws._out, ws._rare) == (None, None, None)
            assert not ws._tls.left
        assert not at.server.engine.tls.incoming.pending
        assert not at.server.engine.tls.outgoing.pending
        size = sum(stat.size for stat in grown.statistics("filename"))
    assert size / count < 800, f"{size / count:.0f} bytes beside OpenSSL's"
