"""JSON lines over a socket pair: how the coordinator and its processes speak."""

from __future__ import annotations

import json
import socket
from collections import deque
from typing import Any

import trio

__all__ = ["Lines"]

_CHUNK = 65536


class Lines:
    """One end. `say` may be called by several tasks; one task reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._turn = trio.Lock()
        self._heard: deque[bytes] = deque()
        self._rest = b""

    async def say(self, what: dict[str, Any]) -> None:
        """Send a document. Raises `trio.BrokenResourceError` when the other end is gone."""
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        async with self._turn:
            await self._stream.send_all(line)

    async def hear(self) -> Any:
        """The next document; None when the other end is closed or gone."""
        while not self._heard:
            try:
                data = await self._stream.receive_some(_CHUNK)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._heard.extend(lines)
        return json.loads(self._heard.popleft())

    def close(self) -> None:
        """Close this end."""
        self._stream.socket.close()
