"""Clients nobody here wrote, over TLS: the short list."""

from __future__ import annotations

import pytest
import trio
from interop_hosts import Events, Straight, peers, serving
from tls_peer import client_context, server_context

LOCAL = "127.0.0.1"


@peers()
async def test_a_conversation_over_tls(connect):
    """Subprotocol, messages of every record's worth, compressed if the peer can, our Ping, and the peer's Close."""
    host = Straight()
    options = {"subprotocols": ["chat"], "compression": True}
    deflate = "deflate" in connect.kind.can
    async with serving(host, ssl_context=server_context(LOCAL), **options) as at:
        assert at.url.startswith("wss://")
        wish = {"subprotocols": ["chat"], "deflate": deflate, "secure": client_context()}
        async with connect(at.url, **wish) as peer:
            assert peer.subprotocol == "chat"
            assert bool(peer.extensions) is deflate
            for size in (0, 1, 125, 16384, 65536, 300_000):
                for message in ("é" * (size // 2), b"\xff" * size):
                    await peer.send(message)
                    assert await peer.receive() == message
            messages = [f"message {n}" for n in range(100)]
            assert await peer.exchange(messages) == messages
            ws = await host.first()
            assert ws.tls.version() in {"TLSv1.2", "TLSv1.3"}
            async with trio.open_nursery() as nursery:

                async def ping():
                    await ws.ping()
                    await ws.send("answered")

                nursery.start_soon(ping)
                assert await peer.receive() == "answered"
            code, _ = await peer.close(3001, "bye")
            assert code == 3001
            closed = await host.end()
            assert (closed.code, closed.reason, closed.by) == (3001, "bye", "peer")


@peers()
async def test_we_close_over_tls(connect):
    """The Close comes before the end of TLS."""
    host = Events()
    async with (
        serving(host, ssl_context=server_context(LOCAL)) as at,
        connect(at.url, secure=client_context()) as peer,
    ):
        ws = await host.first()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.close, 4001, "enough")
            assert await peer.ended() == (4001, "enough")


@peers()
async def test_a_certificate_for_another_name_is_not_accepted(connect):
    """No peer talks to us then, and we say no more than that TLS failed."""
    host = Events()
    async with serving(host, ssl_context=server_context("elsewhere.example")) as at:
        with pytest.raises(Exception):  # noqa: B017 - of each peer its own
            async with connect(at.url, secure=client_context()):
                pass
        assert host.requests == []
