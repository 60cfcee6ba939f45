"""Clients that leave I/O, or messages, to their user: wsproto, libcurl."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio
from interop_base import Message, Peer, Refused, Wish, dial
from interop_threads import Loop, Node
from tls_peer import authority


def _for_wsproto(wish: Wish) -> list[Any]:
    from wsproto.extensions import PerMessageDeflate

    if wish.narrow:
        return [PerMessageDeflate(True, 9, True, 9)]
    return [PerMessageDeflate()] if wish.deflate else []


class Wsproto(Peer):
    """wsproto, which does no I/O: the few lines around it are the test's."""

    name = "wsproto"
    needs = ("wsproto",)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        import wsproto
        import wsproto.events as wse

        parts = urlsplit(url)
        self = cls()
        self.stream = stream = await dial(parts, wish.secure)
        self.ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.queue = []
        self.pieces: list[Message] = []
        async with stream:
            await self._say(
                wse.Request(
                    host=parts.netloc,
                    target=parts.path or "/",
                    subprotocols=list(wish.subprotocols),
                    extra_headers=[(k.encode(), v.encode()) for k, v in wish.headers.items()],
                    extensions=_for_wsproto(wish),
                )
            )
            answer = await self._event()
            if isinstance(answer, wse.RejectConnection):
                body = b""
                while not (part := await self._event()).body_finished:
                    body += part.data
                raise Refused(answer.status_code, (body + part.data).decode())
            self.subprotocol = answer.subprotocol
            self.headers = {k.decode(): v.decode() for k, v in answer.extra_headers}
            self.extensions = ", ".join(f"{e.name}; {e.offer()}" for e in answer.extensions)
            yield self

    async def _say(self, event: Any) -> None:
        await self.stream.send_all(self.ws.send(event))

    async def _event(self) -> Any:
        """Return the next event; answer what has to be answered."""
        import wsproto.events as wse

        while not self.queue:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            self.ws.receive_data(data or None)
            self.queue += self.ws.events()
        event = self.queue.pop(0)
        if isinstance(event, wse.Ping):
            await self._say(event.response())
            return await self._event()
        if isinstance(event, wse.CloseConnection) and self.ws.state.name == "REMOTE_CLOSING":
            await self._say(event.response())
        return event

    async def send(self, message: Message) -> None:
        import wsproto.events as wse

        kind = wse.TextMessage if isinstance(message, str) else wse.BytesMessage
        await self._say(kind(data=message))

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        import wsproto.events as wse

        kind = wse.TextMessage if isinstance(pieces[0], str) else wse.BytesMessage
        for i, piece in enumerate(pieces):
            await self._say(kind(data=piece, message_finished=i == len(pieces) - 1))

    async def receive(self) -> Message:
        pieces = []
        while True:
            event = await self._event()
            pieces.append(event.data if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                return type(pieces[0])().join(pieces)

    async def ping(self, payload: str) -> None:
        import wsproto.events as wse

        await self._say(wse.Ping(payload=payload.encode()))
        event = await self._event()
        assert isinstance(event, wse.Pong), event
        assert bytes(event.payload) == payload.encode()

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        import wsproto.events as wse

        await self._say(wse.CloseConnection(code=code, reason=reason))
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        event = await self._event()
        return event.code, event.reason or ""

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Libcurl(Peer):
    """libcurl, by pycurl. It has no extensions; it answers Pings while it receives, and leaves Closes to its user."""

    name = "curl"
    needs = ("pycurl",)
    can = Peer.can - {"deflate", "deflates", "narrow"}

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        import pycurl

        self = cls()
        self.curl = curl = pycurl.Curl()
        self.headers = {}
        self.over = False
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.CONNECT_ONLY, 2)
        curl.setopt(pycurl.NOPROXY, "*")
        curl.setopt(pycurl.HEADERFUNCTION, self._header)
        fields = [f"{name}: {value}" for name, value in wish.headers.items()]
        if wish.subprotocols:
            fields.append(f"Sec-WebSocket-Protocol: {', '.join(wish.subprotocols)}")
        curl.setopt(pycurl.HTTPHEADER, fields)
        with ExitStack() as stack:
            stack.callback(curl.close)
            if wish.secure is not None:
                curl.setopt(pycurl.CAINFO, stack.enter_context(authority().cert_pem.tempfile()))
            try:
                await trio.to_thread.run_sync(curl.perform)
            except pycurl.error as error:
                if status := curl.getinfo(pycurl.RESPONSE_CODE):
                    raise Refused(status) from error
                raise
            self.subprotocol = self.headers.get("sec-websocket-protocol")
            yield self

    def _header(self, line: bytes) -> None:
        name, colon, value = line.decode().partition(":")
        if colon:
            self.headers[name.lower()] = value.strip()

    async def _send(self, data: bytes, flags: int) -> None:
        import pycurl

        view = memoryview(data)
        while True:
            try:
                view = view[self.curl.ws_send(view, flags) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.curl.getinfo(pycurl.ACTIVESOCKET))
            if not view:
                return

    async def _frame(self) -> tuple[int, bytes]:
        """Return flags and payload of the next frame."""
        import pycurl

        data = b""
        while True:
            try:
                piece, meta = self.curl.ws_recv(2**20)
            except BlockingIOError:
                with trio.move_on_after(0.02) as idle:
                    await trio.lowlevel.wait_readable(self.curl.getinfo(pycurl.ACTIVESOCKET))
                if idle.cancelled_caught:  # its answer to a Ping waits until something else is sent
                    self.curl.ws_send(b"", pycurl.WS_PONG)
                continue
            data += piece
            if not meta.bytesleft:
                return meta.flags, data

    async def send(self, message: Message) -> None:
        import pycurl

        if isinstance(message, str):
            await self._send(message.encode(), pycurl.WS_TEXT)
        else:
            await self._send(message, pycurl.WS_BINARY)

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        import pycurl

        kind = pycurl.WS_TEXT if isinstance(pieces[0], str) else pycurl.WS_BINARY
        for i, piece in enumerate(pieces):
            data = piece.encode() if isinstance(piece, str) else piece
            await self._send(data, kind | (pycurl.WS_CONT if i < len(pieces) - 1 else 0))

    async def receive(self) -> Message:
        import pycurl

        data = b""
        while True:
            flags, piece = await self._frame()
            if flags & (pycurl.WS_PING | pycurl.WS_PONG):
                continue
            assert flags & (pycurl.WS_TEXT | pycurl.WS_BINARY), flags
            data += piece
            if not flags & pycurl.WS_CONT:
                return data.decode() if flags & pycurl.WS_TEXT else data

    async def ping(self, payload: str) -> None:
        import pycurl

        await self._send(payload.encode(), pycurl.WS_PING)
        assert await self._frame() == (pycurl.WS_PONG, payload.encode())

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        self.curl.ws_close(code, reason)
        self.over = True
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        import pycurl

        try:
            flags, data = await self._frame()
        except pycurl.error:
            return 1006, ""
        assert flags & pycurl.WS_CLOSE, flags
        code, reason = int.from_bytes(data[:2], "big"), data[2:].decode()
        if not self.over:
            self.curl.ws_close(code, reason)
        return code, reason

    async def vanish(self) -> None:
        self.curl.close()
