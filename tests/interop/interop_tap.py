"""What goes over the wire: a relay that counts bytes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import trio


class Tap:
    """A way to a port of this machine; counts the bytes that go there and back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.there = 0
        self.back = 0

    async def _relay(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, "there")
            nursery.start_soon(self._pump, far, near, "back")

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, way: str) -> None:
        try:
            while data := await source.receive_some():
                setattr(self, way, getattr(self, way) + len(data))
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await sink.aclose()

    def reset(self) -> None:
        """Count from here."""
        self.there = self.back = 0


@asynccontextmanager
async def tapped(target: int):
    """Relay connections to a port of this machine for the length of a block."""
    tap = Tap(target)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, tap._relay, 0, host="127.0.0.1", handler_nursery=nursery)
        [listener] = await nursery.start(serve)
        tap.port = listener.socket.getsockname()[1]
        yield tap
        nursery.cancel_scope.cancel()
