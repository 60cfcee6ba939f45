"""One connection to a local broker: requests, each with its answer, and what comes by itself.

Everything that waits to be sent goes out in one write, everything that came in one read is worked off in one go. A
request whose caller was cancelled is carried out all the same; its answer finds nobody.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import trio

from trionet.errors import BrokerDown, BrokerError, ProtocolError
from trionet.pubsub.brokers.local import messages as say
from trionet.pubsub.brokers.local import wire
from trionet.pubsub.brokers.local.sockets import READ, peer_may

__all__ = ["Link", "open_link"]

_MAX_MESSAGE: Final = 2**30  # of the server's, which we trust: against nonsense only
_MAX_OUT: Final = 8 * 2**20  # bytes that may wait to be sent before requests do


class _Waiter:
    """Who waits for an answer: a task, a function that is called with it, or both (the function first)."""

    __slots__ = ("answer", "heed", "task")

    def __init__(self, heed: Callable[[Any], object] | None) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.heed = heed
        self.answer: Any = None


class Link:
    """Make it by `open_link`, and `run` it. `on_lost` is called with the reason at the very moment when it ends."""

    def __init__(self, sock: socket.socket, frames: wire.Frames, welcome: say.Welcome) -> None:
        self.sock = sock
        self.epoch = welcome.epoch
        self.max_message = welcome.max_message
        self.reason = ""  # why it has ended, or is going to
        self.on_lost: Callable[[str], object] = len
        self.recovered: float | None = None  # when it was up; see `LocalBroker`
        self.heard = trio.current_time()
        self.lag: float | None = None
        self._frames = frames
        self._out: list[bytes] = []
        self._waiting_bytes = 0
        self._writer: trio.lowlevel.Task | None = None
        self._room = trio.Event()
        self._waiting: dict[int, _Waiter] = {}
        self._numbers = count(2)
        self._scope = trio.CancelScope()
        self._held_up = False  # what was read is not worked off: the receiver has no room

    # -------------------------------------------------------------- requests

    async def ask(
        self, make: Callable[..., bytes], *arguments: Any, heed: Callable[[Any], object] | None = None
    ) -> Any:
        """Send the request that `make` makes of a number and the arguments; returns the answer.

        `heed` is called with the answer at its place between the other messages, also if the caller was cancelled.
        Raises `BrokerDown` if the connection ends, `BrokerError` for what the server refuses.
        """
        while self._waiting_bytes > _MAX_OUT:
            if self.reason:
                raise BrokerDown(self.reason)
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        waiter = self._send(make, arguments, heed)
        waiter.task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        answer = waiter.answer
        if answer is None:
            raise BrokerDown(self.reason)
        if answer.__class__ is say.Refused:
            raise BrokerError(answer.reason)
        return answer

    def _send(
        self, make: Callable[..., bytes], arguments: tuple[Any, ...], heed: Callable[[Any], object] | None
    ) -> _Waiter:
        if self.reason:
            raise BrokerDown(self.reason)
        number = next(self._numbers) & 0xFFFFFFFF
        data = make(number, *arguments)
        waiter = self._waiting[number] = _Waiter(heed)
        self.send(data)
        return waiter

    def send(self, data: bytes) -> None:
        """Send what needs no answer."""
        self._out.append(data)
        self._waiting_bytes += len(data)
        writer = self._writer
        if writer is not None:
            self._writer = None
            trio.lowlevel.reschedule(writer)

    # --------------------------------------------------------------- its life

    async def run(
        self,
        pushed: Callable[[Any], object],
        room: Callable[[], Awaitable[None]],
        patience: tuple[float, float],
        work: Callable[[], Awaitable[object]],
    ) -> None:
        """Read, write, and look whether the server lives, until the connection ends: then `reason` says why.

        `pushed` is called with every message that answers nothing; `room` is awaited between reads. `patience`: seconds
        between pings, and for which an answer may be missing. `work` runs besides. What `pushed` raises comes out; who
        waits for an answer is then left to be cancelled, or woken by `lose`.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._look, *patience)
                    nursery.start_soon(work)
                    await self._read(pushed, room)
        finally:
            self.reason = self.reason or "the broker was left"
            self.sock.close()

    def lose(self, reason: str) -> None:
        """It has ended: nobody waits any longer."""
        if not self.reason:
            self.reason = reason
            self.on_lost(reason)
        self._scope.cancel()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if waiter.task is not None:
                trio.lowlevel.reschedule(waiter.task)
        self._room.set()

    async def _read(self, pushed: Callable[[Any], object], room: Callable[[], Awaitable[None]]) -> None:
        sock = self.sock
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    data = sock.recv(READ)
                except BlockingIOError:
                    continue
                if not data:
                    break
                self.heard = trio.current_time()
                for frame in self._frames.feed(data):
                    message = wire.parse(frame, self.epoch)
                    if frame[0] < 64:
                        pushed(message)
                    else:
                        self._answered(message)
                self._held_up = True
                await room()
                self._held_up = False
                self.heard = trio.current_time()
        except (OSError, ProtocolError) as error:
            self.lose(f"the connection to the local broker broke: {error}")
        else:
            self.lose("the local broker has ended, or cut us off")

    def _answered(self, message: Any) -> None:
        waiter = self._waiting.pop(message.number, None)
        if waiter is None:
            if message.number == 0 and message.__class__ is say.Refused:
                raise ProtocolError(message.reason)
            return
        if waiter.heed is not None:
            waiter.heed(message)
        if waiter.task is not None:
            waiter.answer = message
            trio.lowlevel.reschedule(waiter.task)

    async def _write(self) -> None:
        sock = self.sock
        try:
            while True:
                if not self._out:
                    self._writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._left)
                out, self._out = self._out, []
                rest = memoryview(out[0] if len(out) == 1 else b"".join(out))
                while rest:
                    try:
                        sent = sock.send(rest)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(sock)
                        continue
                    rest = rest[sent:]
                    self._waiting_bytes -= sent
                if self._waiting_bytes <= _MAX_OUT:
                    self._room.set()
                if self._out:
                    await trio.lowlevel.checkpoint()
        except OSError as error:
            self.lose(f"the connection to the local broker broke: {error}")

    def _left(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _look(self, interval: float, patience: float) -> None:
        """Ping, unless anything else is answered; and see that there are answers."""
        asked = 0.0  # Trio's time of the ping that is on its way

        def ponged(_: object) -> None:
            nonlocal asked
            self.lag = trio.current_time() - asked
            asked = 0.0

        while not self.reason:
            due = trio.current_time() + interval
            if not asked:
                asked = trio.current_time()
                self._send(wire.ping, (), ponged)
            await trio.sleep_until(due)
            now = trio.current_time()
            if self._held_up or now - due > interval / 2:
                self.heard = now  # it is us who are late: what it says may lie there unread
            elif asked and now - max(asked, self.heard) >= patience:
                self.lag = now - asked
                self.lose(f"the local broker has not answered for {now - asked:.1f} s")


async def open_link(path: str) -> Link:
    """Connect and exchange greetings. Raises `OSError`, `ProtocolError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)  # a Unix socket connects at once, or not
        return await _greet(sock)
    except BaseException:
        sock.close()
        raise


async def _greet(sock: socket.socket) -> Link:
    if not peer_may(sock):
        raise ProtocolError(f"its process belongs to another user than us ({os.geteuid()})")
    sock.send(wire.hello(1))
    frames = wire.Frames(_MAX_MESSAGE)
    found: list[bytes] = []
    while not found:
        await trio.lowlevel.wait_readable(sock)
        data = sock.recv(READ)
        if not data:
            raise ConnectionResetError("it ended the connection")
        found = frames.feed(data)
    message = wire.parse(found[0])
    if isinstance(message, say.Refused):
        raise ProtocolError(message.reason)
    if not isinstance(message, say.Welcome) or message.version != say.VERSION or found[1:]:
        raise ProtocolError("it is no local broker of this version of trionet")
    return Link(sock, frames, message)
