"""The storage, as an API worker sees it when it is another process: the same three calls, by HTTP on a Unix socket."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs
import trio

from .mailbox import Full, Invalid, Mail
from .shared import StorageDown, socket_of

__all__ = ["RemoteStorage"]

PATIENCE: Final = 5.0  # seconds; one that is started again is there within them


class RemoteStorage:
    """Asks again when the storage goes away in the middle: mails have ids, so nothing is delivered twice."""

    def __init__(self, database: str) -> None:
        self._path = socket_of(database)

    async def add(self, mails: Sequence[Mail]) -> None:
        """Deliver mails. Raises `Full`, `StorageDown`."""
        for mail in mails:
            fields = attrs.asdict(mail, filter=lambda field, _: field.name not in {"box", "at"})
            await self._ask("POST /mails", {"to": mail.box, **fields})

    async def inbox(self, box: str) -> list[dict[str, Any]]:
        """The mails of one person, the newest first. Raises `StorageDown`."""
        mails: list[dict[str, Any]] = await self._ask(f"GET /mails/{box}")
        return mails

    async def mark_read(self, box: str, ids: Iterable[str]) -> None:
        """Note, and announce, that mails were read. Raises `Full`, `StorageDown`."""
        await self._ask("POST /read", {"box": box, "ids": list(ids)})

    async def _ask(self, what: str, value: object = None) -> Any:
        body = b"" if value is None else json.dumps(value).encode()
        lines = [f"{what} HTTP/1.1", "Host: storage", "Connection: close", f"Content-Length: {len(body)}"]
        request = "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + body
        with trio.move_on_after(PATIENCE):
            while True:
                try:
                    status, answer = await self._exchange(request)
                    break
                except (
                    OSError,
                    trio.BrokenResourceError,
                    ValueError,
                ):  # not there, or gone before it had answered
                    await trio.sleep(0.05)
            if status == 200:
                return answer
            raise Full if status == 503 else Invalid(answer)
        raise StorageDown

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        async with await trio.open_unix_socket(self._path) as stream:
            await stream.send_all(request)
            answer = b"".join([piece async for piece in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head[9:12])
        if status >= 500 and status != 503:
            raise ValueError(f"the storage failed: {status}")
        return status, json.loads(body) if status == 200 else body.decode().strip()
