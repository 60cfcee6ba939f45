"""Clients in Node: npm's ws, and undici."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import trio
from interop_base import Message, Peer, Refused, Wish
from interop_threads import Loop, Node, pack, unpack

NARROW = {
    "serverNoContextTakeover": True,
    "clientNoContextTakeover": True,
    "serverMaxWindowBits": 9,
    "clientMaxWindowBits": 9,
}


class NpmWs(Peer):
    """npm's ws."""

    name = "ws"
    needs = ("node",)
    op: ClassVar[str] = "connect"

    @classmethod
    def missing(cls) -> str:
        return ""  # the fixture `node` knows

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, wish: Wish, loop: Loop, node: Node | None) -> AsyncIterator[Peer]:
        self = cls()
        assert node is not None
        self.node = node
        answer = await node.ask(
            cls.op,
            {
                "url": url,
                "subprotocols": list(wish.subprotocols),
                "headers": dict(wish.headers),
                "deflate": NARROW if wish.narrow else wish.deflate,
            },
        )
        if "on" not in answer:
            raise Refused(answer["status"], answer["body"])
        self.on = answer["on"]
        self.subprotocol = answer["subprotocol"]
        self.extensions = answer["extensions"]
        headers = answer["headers"] or {}  # Node has a list for what may come several times
        self.headers = {name: tuple(v) if isinstance(v, list) else v for name, v in headers.items()}
        try:
            yield self
        finally:
            with trio.CancelScope(shield=True):
                await self.close(1000, "")

    async def send(self, message: Message) -> None:
        await self.node.ask("send", pack(message), self.on)

    async def send_pieces(self, pieces: Sequence[Message]) -> None:
        await self.node.ask("pieces", [pack(piece) for piece in pieces], self.on)

    async def receive(self) -> Message:
        return unpack(await self.node.ask("receive", None, self.on))

    async def exchange(self, messages: Iterable[Message]) -> list[Message]:
        answers = await self.node.ask("exchange", [pack(message) for message in messages], self.on)
        return [unpack(answer) for answer in answers]

    async def ping(self, payload: str) -> None:
        assert await self.node.ask("ping", payload, self.on) == payload

    async def close(self, code: int, reason: str) -> tuple[int, str]:
        code, reason = await self.node.ask("close", [code, reason], self.on)
        return code, reason

    async def ended(self) -> tuple[int, str]:
        code, reason = await self.node.ask("ended", None, self.on)
        return code, reason

    async def vanish(self) -> None:
        await self.node.ask("vanish", None, self.on)


class Undici(NpmWs):
    """The client that is built into Node (the package undici, where Node is too old for it)."""

    name = "undici"
    op = "connectBuiltIn"
    can = frozenset({"deflate"})
