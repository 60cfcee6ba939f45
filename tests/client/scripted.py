"""A server that says exactly what the test says: the counterpart of `ws_peer.Peer`."""

from __future__ import annotations

import re
import socket
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
from ws_peer import CLOSE, GENEROUS, Frame

from trionet.wire.frames import encode_frame
from trionet.wire.handshake import build_upgrade_response
from trionet.wire.masking import apply_mask_py


class Received(NamedTuple):
    """A client's frame, and its masking key."""

    frame: Frame
    key: bytes


class Side:
    """The server's side of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.request = b""
        self.keys = []

    async def more(self) -> bool:
        """Read something; False at the end."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        self.data += data
        return bool(data)

    async def head(self) -> bytes:
        """Read the request's head."""
        while b"\r\n\r\n" not in self.data:
            assert await self.more(), "the client left"
        end = self.data.index(b"\r\n\r\n") + 4
        self.request = bytes(self.data[:end])
        del self.data[:end]
        return self.request

    @property
    def key(self) -> bytes:
        """The request's Sec-WebSocket-Key."""
        return re.search(rb"Sec-WebSocket-Key: (\S+)", self.request)[1]

    async def send(self, *pieces: bytes) -> None:
        """Send all in one write."""
        await self.stream.send_all(b"".join(pieces))

    async def accept(self, *frames: bytes, **options) -> None:
        """Read the request and agree; `frames` follow the head at once."""
        await self.head()
        await self.send(build_upgrade_response(self.key, **options), *frames)

    async def frame(self) -> Frame | None:
        """The next frame, unmasked; None at the end. Fails for a frame that a client must not send."""
        while (found := self._parsed()) is None:
            if not await self.more():
                assert not self.data, f"ended within a frame: {bytes(self.data)}"
                return None
        frame, self.last_key = found
        self.keys.append(self.last_key)
        return frame

    def _parsed(self) -> Received | None:
        data = self.data
        if len(data) < 2:
            return None
        assert data[1] & 128, f"not masked: {bytes(data[:20])}"
        size = {126: 4, 127: 10}.get(data[1] & 127, 2)
        if len(data) < size + 4:
            return None
        length = int.from_bytes(data[2:size], "big") if size > 2 else data[1] & 127
        end = size + 4 + length
        if len(data) < end:
            return None
        first, key = data[0], bytes(data[size : size + 4])
        payload = apply_mask_py(bytes(data[size + 4 : end]), key)
        del data[:end]
        return Received(Frame(first & 15, payload, first >= 128), key)

    async def expect_close(self) -> int:
        """The code of the next frame, which has to be a Close."""
        frame = await self.frame()
        assert frame is not None, "the client left without a Close"
        assert frame.opcode == CLOSE, frame
        return int.from_bytes(frame.payload[:2], "big")

    async def ended(self) -> None:
        """The client leaves; nothing may come before."""
        assert await self.frame() is None


class Script:
    """Where a scripted server listens, and what it has seen."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"ws://127.0.0.1:{port}/"
        self.count = 0


@asynccontextmanager
async def scripted(*scripts, port=0, small=False):
    """Serve each connection with the next of `scripts` (`async def(side)`), those beyond them with the last.

    `small`: with little room in the kernel. What a script raises ends the test. Leaving waits for those under way.
    """
    listening = socket.create_server(("127.0.0.1", port))
    listening.setblocking(False)
    if small:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    script = Script(listening.getsockname()[1])
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    with trio.fail_after(GENEROUS):
        async with trio.open_nursery() as nursery:

            async def serve(stream, function):
                async with stream:
                    await function(Side(stream))

            async def accept():
                while True:
                    stream = await listener.accept()
                    function = scripts[min(script.count, len(scripts) - 1)]
                    script.count += 1
                    nursery.start_soon(serve, stream, function)

            accepting = trio.CancelScope()

            async def accept_until_left():
                with accepting:
                    await accept()

            nursery.start_soon(accept_until_left)
            try:
                yield script
            finally:
                accepting.cancel()
                await listener.aclose()


def server_frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """The bytes of a server's frame."""
    return encode_frame(opcode, payload, fin=fin)
