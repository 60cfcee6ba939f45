"""The registry of a protocol: find connections by a key, close a user's, let a token expire."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
from ws_peer import Opened, close, serving, until

import trionet


async def several(at, handler, *keys):
    """Join one peer for each key."""
    peers = []
    for number, key in enumerate(keys):
        peers.append(await at.join())
        await until(lambda: len(handler.arrived) > number)  # noqa: B023
        if key is not None:
            at.protocol.registry.assign(handler.arrived[number], key)
    return peers


async def test_find_and_count():
    """Several connections may share a key; those without one are not counted."""
    handler = Opened()
    async with serving(handler) as at:
        await several(at, handler, "ada", "bob", "ada", None)
        registry = at.protocol.registry
        a, b, c, _ = handler.arrived
        assert registry.find("ada") == {a, c}
        assert registry.find("bob") == {b}
        assert registry.find("eve") == frozenset()
        assert len(registry) == 3


async def test_assign_again_replaces_the_key():
    """A connection has one key."""
    handler = Opened()
    async with serving(handler) as at:
        await several(at, handler, "ada")
        registry, ws = at.protocol.registry, handler.arrived[0]
        registry.assign(ws, ("bob", 2))
        registry.assign(ws, ("bob", 2))
        assert registry.find("ada") == frozenset()
        assert registry.find(("bob", 2)) == {ws}
        assert len(registry) == 1


async def test_connections_leave_by_themselves():
    """What has ended is found no more, and is kept alive by nothing."""
    handler = Opened()
    async with serving(handler) as at:
        peer, _ = await several(at, handler, "ada", "ada")
        registry = at.protocol.registry
        registry.expire(handler.arrived[0], 1000)
        await peer.send(close())
        await peer.closed()
        await until(lambda: handler.ends)
        assert registry.find("ada") == {handler.arrived[1]}
        assert len(registry) == 1
        assert registry.expiry(handler.arrived[0]) == 0


async def test_closing_a_user():
    """All connections of a key are closed with code and reason; the others stay."""
    handler = Opened()
    async with serving(handler) as at:
        first, bob, second = await several(at, handler, "ada", "bob", "ada")
        assert at.protocol.registry.close("ada", 4003, "banned") == 2
        assert at.protocol.registry.close("eve") == 0
        for peer in (first, second):
            received = await peer.frame()
            assert received.payload == (4003).to_bytes(2, "big") + b"banned"
            await peer.send(close(4003))
            await peer.ended()
        await until(lambda: len(handler.ends) == 2)
        assert len(at.protocol.registry) == 1
        await bob.say("still here")
        await until(lambda: handler.seen == ["still here"])


async def test_a_close_code_that_may_not_travel_closes_nobody():
    """`ValueError`, as `close_nowait` has it."""
    handler = Opened()
    async with serving(handler) as at:
        await several(at, handler, "ada")
        with pytest.raises(ValueError, match="close"):
            at.protocol.registry.close("ada", 1006)
        assert handler.arrived[0].closed is None


async def test_a_token_expires():
    """The connection is closed with 1008, whatever else it does; others stay."""
    handler = Opened()
    async with serving(handler, resolution=0.01) as at:
        peer, other = await several(at, handler, "ada", None)
        at.protocol.registry.expire(handler.arrived[0], 0.05)
        await peer.farewell(1008)
        await until(lambda: handler.ends)
        assert (handler.ends[0].reason, handler.ends[0].by) == ("expired", "us")
        await other.say("still here")
        await until(lambda: handler.seen)


@pytest.mark.parametrize("later", [None, 1000])
async def test_an_expiry_can_be_taken_back_or_moved(later):
    """None takes it back; a new one replaces it."""
    handler = Opened()
    async with serving(handler, resolution=0.01, ping_interval=None) as at:
        await several(at, handler, "ada")
        registry, ws = at.protocol.registry, handler.arrived[0]
        registry.expire(ws, 0.03)
        registry.expire(ws, later)
        ticks = at.server.statistics().wheel.ticks
        await until(lambda: at.server.statistics().wheel.ticks > ticks + 10)
        assert ws.closed is None
        registry.expire(ws, 0.01)
        await until(lambda: ws.closed is not None)


async def test_an_expiry_set_during_the_upgrade_holds():
    """A token is checked in `on_upgrade`, so that is where its end is known."""

    class Handler(Opened):
        async def on_upgrade(self, ws, request):
            ws.protocol.registry.expire(ws, 0.05)
            ws.protocol.registry.assign(ws, "ada")

    handler = Handler()
    async with serving(handler, resolution=0.01) as at:
        peer = await at.join()
        await peer.farewell(1008)


async def test_a_refused_upgrade_leaves_the_registry():
    """What was assigned before a rejection is forgotten."""

    class Handler(Opened):
        async def on_upgrade(self, ws, request):
            ws.protocol.registry.assign(ws, "ada")
            ws.protocol.registry.expire(ws, 1000)
            raise trionet.Rejection(403)

    async with serving(Handler()) as at:
        from ws_peer import request

        peer = await at.dial()
        await peer.send(request())
        assert await peer.status() == 403
        await peer.aclose()
        await until(lambda: at.server.statistics().connections == 0)
        assert len(at.protocol.registry) == 0


async def test_what_has_ended_is_not_taken_in():
    """A task that comes too late with a key or an expiry leaves nothing behind."""
    handler = Opened()
    async with serving(handler) as at:
        [peer] = await several(at, handler, None)
        await peer.send(close())
        await peer.closed()
        await until(lambda: handler.ends)
        registry = at.protocol.registry
        registry.assign(handler.arrived[0], "ada")
        registry.expire(handler.arrived[0], 1000)
        assert len(registry) == 0
        assert registry.find("ada") == frozenset()
        assert registry.expiry(handler.arrived[0]) == 0


async def test_an_ended_connection_is_freed():
    """Neither the registry nor anything else in the server keeps it."""
    handler = Opened()
    async with serving(handler) as at:
        peer, other = await several(at, handler, "ada", "ada")
        gone = weakref.ref(token := type("Token", (), {})())
        handler.arrived[0].data = token
        del token
        await peer.send(close())
        await peer.closed()
        await until(lambda: handler.ends)
        handler.arrived.clear()
        await other.say("another job runs")
        await until(lambda: handler.seen)
        gc.collect()
        assert gone() is None


async def test_closing_a_key_refuses_who_is_still_being_let_in():
    """A user banned while `on_upgrade` looks him up gets 403, not a connection."""
    looking, go_on = trio.Event(), trio.Event()

    class Handler(trionet.WebSocketHandler):
        async def on_upgrade(self, ws, request):
            ws.protocol.registry.assign(ws, "mallory")
            looking.set()
            await go_on.wait()

    async with trionet.open_server(trionet.WebSocketProtocol(Handler())) as server:
        stream = await trio.open_tcp_stream(*server.addresses[0])
        async with stream:
            await stream.send_all(
                b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await looking.wait()
            [ws] = server.connections
            assert ws.protocol.registry.close("mallory") == 1
            go_on.set()
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 403 ")
