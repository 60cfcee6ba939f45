"""Clients that do their own I/O: websockets on Trio and on asyncio, aiohttp, trio-websocket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio
from interop_base import EXTENSIONS, Message, Peer, Refused, Wish, dial, exchange
from interop_threads import Loop, Node


def _for_websockets(wish: Wish) -> dict[str, Any]:
    from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

    narrow = ClientPerMessageDeflateFactory(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        server_max_window_bits=9,
        client_max_window_bits=9,
    )
    return {
        "extensions": [narrow] if wish.narrow else None,
        "subprotocols": list(wish.subprotocols) or None,
        "additional_headers": dict(wish.headers),
        "compression": "deflate" if wish.deflate else None,
        "ssl": wish.secure,
        "proxy": None,
        "max_size": 2**22,
    }


class Websockets(Peer):
    """websockets on Trio."""

    name = "websockets"
    needs = ("websockets",)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        from websockets.exceptions import InvalidStatus
        from websockets.trio.client import connect

        self = cls()
        connecting = connect(url, **_for_websockets(wish))
        try:
            self.ws = await connecting.__aenter__()
        except InvalidStatus as error:
            raise Refused(error.response.status_code, error.response.body.decode()) from error
        self._describe()
        try:
            yield self
        finally:
            await connecting.__aexit__(None, None, None)

    def _describe(self) -> None:
        self.subprotocol = self.ws.subprotocol
        self.headers = self.ws.response.headers
        self.extensions = self.headers.get(EXTENSIONS, "")

    async def send(self, message: Message) -> None:
        await self.ws.send(message)

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        await self.ws.send(pieces)

    async def receive(self) -> Message:
        return await self.ws.recv()

    async def ping(self, payload: str) -> None:
        await (await self.ws.ping(payload)).wait()

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        await self.ws.aclose(code, reason)
        return self.ws.close_code, self.ws.close_reason

    async def ended(self) -> tuple[int, str]:
        await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self.ws.stream)


class WebsocketsAsyncio(Websockets):
    """websockets on asyncio."""

    name = "websockets-asyncio"

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus

        async def open_it() -> Any:
            return await connect(url, **_for_websockets(wish))

        self = cls()
        self.loop = loop
        try:
            self.ws = await loop.run(open_it())
        except InvalidStatus as error:
            raise Refused(error.response.status_code, error.response.body.decode()) from error
        self._describe()
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True):
                await loop.run(self.ws.close())

    async def send(self, message: Message) -> None:
        await self.loop.run(self.ws.send(message))

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        await self.loop.run(self.ws.send(pieces))

    async def receive(self) -> Message:
        return await self.loop.run(self.ws.recv())

    async def exchange(self, messages: Iterable[Message]) -> list[Message]:
        return await self.loop.run(exchange(self.ws.send, self.ws.recv, messages))

    async def ping(self, payload: str) -> None:
        async def ping() -> None:
            await (await self.ws.ping(payload))

        await self.loop.run(ping())

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        await self.loop.run(self.ws.close(code, reason))
        return self.ws.close_code, self.ws.close_reason

    async def ended(self) -> tuple[int, str]:
        await self.loop.run(self.ws.wait_closed())
        return self.ws.close_code, self.ws.close_reason

    async def vanish(self) -> None:
        self.loop.loop.call_soon_threadsafe(self.ws.transport.abort)


class Aiohttp(Peer):
    """aiohttp's client."""

    name = "aiohttp"
    needs = ("aiohttp",)
    can = Peer.can - {"pieces", "narrow"}

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        import aiohttp

        async def open_it() -> Any:
            session = aiohttp.ClientSession()
            try:
                return session, await session.ws_connect(
                    url,
                    protocols=wish.subprotocols,
                    headers=wish.headers,
                    ssl=wish.secure or True,
                    compress=15 if wish.deflate else 0,
                    autoping=not wish.sees_pongs,
                    max_msg_size=2**22,
                )
            except BaseException:
                await session.close()
                raise

        self = cls()
        self.loop = loop
        self.messages = []
        self.end: tuple[int, str] | None = None
        try:
            self.session, self.ws = await loop.run(open_it())
        except aiohttp.WSServerHandshakeError as error:
            raise Refused(error.status) from error
        self.subprotocol = self.ws.protocol
        self.headers = self.ws._response.headers
        self.extensions = self.headers.get(EXTENSIONS, "")
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True):
                await loop.run(self._leave())

    async def _leave(self) -> None:
        await self.ws.close()
        await self.session.close()

    async def _send(self, message: Message) -> None:
        await (self.ws.send_str if isinstance(message, str) else self.ws.send_bytes)(message)

    async def _receive(self) -> Message:
        from aiohttp import WSMsgType

        message = await self.ws.receive()
        assert message.type in {WSMsgType.TEXT, WSMsgType.BINARY}, message
        return message.data

    async def send(self, message: Message) -> None:
        await self.loop.run(self._send(message))

    async def receive(self) -> Message:
        return await self.loop.run(self._receive())

    async def exchange(self, messages: Iterable[Message]) -> list[Message]:
        return await self.loop.run(exchange(self._send, self._receive, messages))

    async def ping(self, payload: str) -> None:
        from aiohttp import WSMsgType

        async def ping() -> None:
            await self.ws.ping(payload.encode())
            message = await self.ws.receive()
            assert (message.type, message.data) == (WSMsgType.PONG, payload.encode())

        await self.loop.run(ping())

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        # What it keeps is what the server answered; the reason of an echo is empty, as it may be (5.5.1).
        await self.loop.run(self.ws.close(code=code, message=reason.encode()))
        return self.ws.close_code, ""

    async def ended(self) -> tuple[int, str]:
        from aiohttp import WSMsgType

        message = await self.loop.run(self.ws.receive())
        # Its `close_code` becomes 1006 where the end of TCP came before its own answer to our Close.
        code = message.data if message.type is WSMsgType.CLOSE else self.ws.close_code
        return code, message.extra or ""

    async def vanish(self) -> None:
        self.loop.loop.call_soon_threadsafe(self.ws._conn.transport.abort)


class TrioWebsocket(Peer):
    """trio-websocket's client. It has no extensions."""

    name = "trio-websocket"
    needs = ("trio_websocket",)
    can = Peer.can - {"pieces", "deflate", "deflates", "narrow"}

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        import trio_websocket

        self = cls()
        parts = urlsplit(url)
        try:
            # Its own functions that connect leave the socket open after a refusal.
            async with await dial(parts, wish.secure) as stream, trio.open_nursery() as nursery:
                self.ws = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,
                    parts.netloc,
                    parts.path or "/",
                    subprotocols=list(wish.subprotocols),
                    extra_headers=[(k.encode(), v.encode()) for k, v in wish.headers.items()],
                    max_message_size=2**22,
                )
                self.subprotocol = self.ws.subprotocol
                self.headers = {k.decode(): v.decode() for k, v in self.ws.handshake_headers}
                try:
                    yield self
                finally:
                    await self.ws.aclose()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # its reader raised it
            rejected, _ = group.split(trio_websocket.ConnectionRejected)
            if rejected is None:
                raise
            error = rejected.exceptions[0]
            raise Refused(error.status_code, (error.body or b"").decode()) from error

    async def send(self, message: Message) -> None:
        await self.ws.send_message(message)

    async def receive(self) -> Message:
        return await self.ws.get_message()

    async def ping(self, payload: str) -> None:
        await self.ws.ping(payload.encode())

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        await self.ws.aclose(code, reason)
        return self.ws.closed.code, self.ws.closed.reason or ""

    async def ended(self) -> tuple[int, str]:
        import trio_websocket

        try:
            message = await self.ws.get_message()
        except trio_websocket.ConnectionClosed as closed:
            return closed.reason.code, closed.reason.reason or ""
        raise AssertionError(f"a message instead of the end: {message!r}")

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self.ws._stream)
