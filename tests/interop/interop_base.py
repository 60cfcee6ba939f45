"""What tests ask of a client of others: the same few methods of each, so that one test does for all."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import SplitResult

import attrs
import trio
from interop_threads import Loop, Node

Message = str | bytes
EXTENSIONS = "sec-websocket-extensions"


class Refused(Exception):
    """The server said no; `status` is None where the peer does not tell."""

    def __init__(self, status: int | None, body: str = "") -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


@attrs.frozen
class Wish:
    """How to connect. `deflate`: offer permessage-deflate as the peer does by default; else offer nothing.

    `narrow`: offer it without context takeover and with windows of 512 bytes. `sees_pongs`: for `ping`.
    """

    subprotocols: Sequence[str] = ()
    headers: Mapping[str, str] = attrs.field(factory=dict)
    secure: ssl.SSLContext | None = None
    deflate: bool = False
    narrow: bool = False
    sees_pongs: bool = False


class Peer:
    """A connection. What a peer cannot do is not in `can`."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    can: ClassVar[frozenset[str]] = frozenset(
        {"ping", "pieces", "response", "status", "deflate", "deflates", "narrow", "vanish"}
    )

    subprotocol: str | None
    extensions: str = ""  # what the server agreed to
    headers: Mapping[str, str]  # of its response

    @classmethod
    def missing(cls) -> str:
        """Return why this peer cannot be had, or nothing."""
        absent = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} is not installed" if absent else ""

    @classmethod
    def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> Any:
        """Connect for the length of a block: ``async with Kind.connect(...) as peer``. Raises `Refused`."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Send a message."""
        raise NotImplementedError

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        """Send one message in several frames."""
        raise NotImplementedError

    async def receive(self) -> Message:
        """Receive a message."""
        raise NotImplementedError

    async def exchange(self, messages: Iterable[Message]) -> list[Message]:
        """Send all, then receive as many."""
        messages = list(messages)
        for message in messages:
            await self.send(message)
        return [await self.receive() for _ in messages]

    async def ping(self, payload: str) -> None:
        """Send a Ping and wait for the Pong with the same payload."""
        raise NotImplementedError

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        """Close; returns how the peer says that it ended."""
        raise NotImplementedError

    async def ended(self) -> tuple[int, str]:
        """Wait for the end; returns code and reason as the peer says them."""
        raise NotImplementedError

    async def vanish(self) -> None:
        """Leave without a Close."""
        raise NotImplementedError


async def dial(parts: SplitResult, secure: ssl.SSLContext | None) -> trio.abc.Stream:
    """Open a stream to where a URL says, over TLS if there is a context."""
    stream = await trio.open_tcp_stream(parts.hostname, parts.port)
    if secure is None:
        return stream
    tls = trio.SSLStream(stream, secure, server_hostname=parts.hostname, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


async def exchange(send: Any, receive: Any, messages: Iterable[Message]) -> list[Message]:
    """Send all, then receive as many."""
    messages = list(messages)
    for message in messages:
        await send(message)
    return [await receive() for _ in messages]
