"""One connection to a NATS server, watched: it works, or it is lost and says why. `nats` makes a new one then.

Three tasks: one reads, one writes what has gathered meanwhile, one watches the time. Nothing else waits for the socket,
so a caller that is cancelled cannot cut a message in two, and its answer is dropped when it comes.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from trionet.errors import BrokerDown, BrokerError, printable
from trionet.pubsub.brokers.linked import words
from trionet.pubsub.brokers.nats import protocol as wire
from trionet.pubsub.brokers.nats.protocol import Message
from trionet.pubsub.brokers.nats.server import (
    READ,
    LinkOptions,
    Server,
    dial,
    introduction,
)

__all__ = ["Link", "open_link"]

MAX_UNSENT: Final = 64 * 2**20  # bytes for a server that takes nothing
INBOX: Final = 1  # the subscription that answers come to; others use the ids above


class _Request:
    """Somebody waits for an answer, or for several until an empty one with a status ends them."""

    __slots__ = ("answers", "done", "error", "many", "sent", "subject")

    def __init__(self, subject: str, *, many: bool) -> None:
        self.subject = subject
        self.many = many
        self.answers: list[Message] = []
        self.error: BrokerError | None = None
        self.done = trio.Event()
        self.sent = trio.current_time()


class Link:
    """Made by `open_link`. Methods raise `BrokerDown` once it is `lost`; `error` says why."""

    def __init__(
        self,
        server: Server,
        stream: trio.abc.Stream,
        parser: wire.Parser,
        info: dict[str, Any],
        options: LinkOptions,
        receive: Callable[[Message], object],
        wait_room: Callable[[], Awaitable[object]],
    ) -> None:
        self.server = server
        self.info = info
        self.options = options
        self.rtt: float | None = None  # seconds of the last PING
        self.lost = trio.Event()
        self.error = BrokerDown("")
        self.on_info: Callable[[dict[str, Any]], object] = lambda _: None
        self.on_lost: Callable[[BrokerDown], object] = lambda _: None
        self._stream = stream
        self._parser = parser
        self._receive = receive
        self._wait_room = wait_room
        self._out: list[bytes] = []
        self._unsent = 0
        self._wake = trio.Event()
        self._inbox = f"{options.inbox}.{secrets.token_hex(11)}."
        self._requests: dict[bytes, _Request] = {}
        self._serial = 0
        self._pings: deque[tuple[float, Callable[[], object] | None]] = deque()
        self._asking = False  # a PING was written that has not left, and nothing is behind it
        self._denied: dict[str, str] = {}
        self._heard = self._pinged = trio.current_time()
        self._paused = False

    def begin(self) -> None:
        """Say who we are."""
        self.write(
            wire.connect(introduction(self.server, encrypted=isinstance(self._stream, trio.SSLStream)))
        )
        self.subscribe(self._inbox + "*", INBOX)

    # --------------------------------------------------------------- sending

    def write(self, data: bytes) -> None:
        """Send it soon. Raises `BrokerDown` if the link is lost."""
        if self.lost.is_set():
            raise self._lost()
        self._unsent += len(data)
        if self._unsent > MAX_UNSENT:
            raise BrokerDown(f"NATS at {self.server} does not take what it is sent")
        self._asking = False
        self._out.append(data)
        self._wake.set()

    def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Publish; `flush` tells when the server has it."""
        self.write(self._fitting(wire.publish(subject, payload, headers)))

    def subscribe(self, subject: str, sid: int) -> None:
        """Have messages on `subject` received, with this id (above `INBOX`)."""
        self.write(wire.subscribe(subject, sid))

    def unsubscribe(self, sid: int) -> None:
        """End a subscription. Messages that are on their way still come."""
        self.write(wire.unsubscribe(sid))

    def after_pong(self, call: Callable[[], object]) -> None:
        """Call it when the server has dealt with all that was written so far; never, if the link is lost before."""
        self._ping(call)

    def check_allowed(self, subject: str) -> None:
        """Raise `BrokerError` if the server has forbidden `subject` lately; known after a `flush`."""
        if subject in self._denied:
            raise BrokerError(self._denied.pop(subject))

    async def flush(self) -> None:
        """Wait until the server has dealt with all that was written so far. Raises `BrokerDown`."""
        request = _Request("", many=False)
        self._serial += 1
        name = b"%d" % self._serial
        self._requests[name] = request
        self._ping(request.done.set)
        await self._answered(name, request)

    async def request(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Message:
        """Return the answer. Raises `BrokerDown` if none comes in time, `BrokerError` if the server forbids it."""
        return (await self._request(subject, payload, headers, many=False))[0]

    async def collect(self, subject: str, payload: bytes = b"") -> list[Message]:
        """Return all answers, up to and with the empty one whose status ends them."""
        return await self._request(subject, payload, None, many=True)

    async def _request(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, *, many: bool
    ) -> list[Message]:
        self._serial += 1
        name = b"%d" % self._serial
        self.write(self._fitting(wire.publish(subject, payload, headers, f"{self._inbox}{self._serial}")))
        request = self._requests[name] = _Request(subject, many=many)
        await self._answered(name, request)
        return request.answers

    async def _answered(self, name: bytes, request: _Request) -> None:
        try:
            await request.done.wait()
        finally:
            self._requests.pop(name, None)
        if request.error is not None:
            raise request.error

    def _fitting(self, data: bytes) -> bytes:
        most = self.info.get("max_payload", 2**20)
        if len(data) > most and len(data) - data.index(b"\r\n") - 4 > most:
            raise BrokerError(f"the NATS server takes messages of at most {most} bytes")
        return data

    def _ping(self, call: Callable[[], object] | None) -> None:
        """PINGs that would stand side by side are one."""
        if self._asking:
            sent, first = self._pings.pop()
            self._pings.append((sent, call if first is None else _both(first, call)))
            return
        self.write(wire.PING)
        self._asking = True
        self._pinged = trio.current_time()
        self._pings.append((self._pinged, call))

    # ----------------------------------------------------------------- tasks

    def fail(self, why: str) -> None:
        """It is lost: whoever waits is told so."""
        if self.lost.is_set():
            return
        self.error = BrokerDown(why)
        self.lost.set()
        self._wake.set()
        for request in self._requests.values():
            request.error = self._lost()
            request.done.set()
        self._requests.clear()
        self.on_lost(self.error)

    def _lost(self) -> BrokerDown:
        return BrokerDown(
            f"NATS at {self.server}: {self.error}"
        )  # a new one each: a traceback belongs to one task

    async def run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run one of the tasks; whatever the network does to it means that the link is lost."""
        try:
            await task()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.fail(words(error))
        except BrokerDown as error:
            self.fail(str(error))

    async def write_out(self) -> None:
        while not self.lost.is_set():
            if not self._out:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            data = b"".join(self._out)
            self._out.clear()
            self._unsent = 0
            self._asking = False
            await self._stream.send_all(data)

    async def read(self) -> None:
        while not self.lost.is_set():
            data = await self._stream.receive_some(READ)
            if not data:
                raise BrokerDown("it has closed the connection")
            self._heard = trio.current_time()
            received = False
            for item in self._parser.feed(bytes(data)):
                if isinstance(item, Message):
                    if item.sid == INBOX:
                        self._answer(item)
                    else:
                        received = True
                        self._receive(item)
                else:
                    self._control(item.verb, item.text)
            if received:
                self._paused = True  # a server that we do not listen to is not late
                await self._wait_room()
                self._paused = False
                self._heard = trio.current_time()

    def _answer(self, message: Message) -> None:
        name = message.subject[len(self._inbox) :]
        request = self._requests.get(name)
        if request is None:
            return  # who asked has given up
        request.answers.append(message)
        if not request.many or wire.parse_status(message.headers)[0]:
            del self._requests[name]
            request.done.set()
        else:
            request.sent = self._heard  # they keep coming

    def _control(self, verb: str, text: bytes) -> None:
        if verb == "PONG":
            if not self._pings:
                raise BrokerDown("a PONG that nobody asked for")
            sent, call = self._pings.popleft()
            self.rtt = trio.current_time() - sent
            if call is not None:
                call()
        elif verb == "PING":
            self.write(wire.PONG)
        elif verb == "INFO":
            self.info = {**self.info, **wire.read_object(text)}
            self.on_info(self.info)
        elif verb == "-ERR":
            self._refused(printable(text.decode(errors="replace").strip("'")))

    def _refused(self, text: str) -> None:
        """Permissions concern one subject; whatever else the server complains of, it ends the connection."""
        if not text.lower().startswith("permissions violation"):
            raise BrokerDown(text)
        subject = text.partition('"')[2].rpartition('"')[0]
        while len(self._denied) >= 1000:
            del self._denied[next(iter(self._denied))]
        self._denied[subject] = text
        for request in self._requests.values():
            if request.subject == subject:
                request.error = BrokerError(text)
                request.done.set()

    async def watch(self) -> None:
        """Nothing waits for ever: neither a caller, nor the first byte of a server that has gone."""
        timeout = self.options.timeout
        interval = min(self.options.ping_interval, timeout)
        while not self.lost.is_set():
            due = trio.current_time() + min(interval, timeout) / 4
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > timeout / 4:  # it is we who stood still: what it says may lie there unread
                self._heard = now
                for request in self._requests.values():
                    request.sent = now
            if self._paused:
                continue
            silent = now - self._heard
            if self._pings and silent > timeout and now - self._pings[0][0] > timeout:
                raise BrokerDown(f"no answer within {timeout:g} s")
            for name, request in list(self._requests.items()):
                if now - request.sent <= timeout:
                    continue
                if silent > timeout:
                    raise BrokerDown(f"no answer within {timeout:g} s")
                del self._requests[name]
                request.error = BrokerDown(f"no answer from {request.subject or 'NATS'} within {timeout:g} s")
                request.done.set()
            if not self._pings and now - self._pinged >= interval:
                self._ping(None)


def _both(first: Callable[[], object], second: Callable[[], object] | None) -> Callable[[], object]:
    if second is None:
        return first
    return lambda: (first(), second())


@asynccontextmanager
async def open_link(
    server: Server,
    options: LinkOptions,
    receive: Callable[[Message], object],
    wait_room: Callable[[], Awaitable[object]],
) -> AsyncIterator[Link]:
    """A link to `server`, for as long as the block lasts. Raises `BrokerDown`.

    `receive` is called with each message that is no answer; what it raises comes out of the block. `wait_room` is
    awaited before more is read. Whoever still waits for an answer afterwards is to be told by `fail`.
    """
    stream, parser, info = await dial(server, options)
    link = Link(server, stream, parser, info, options, receive, wait_room)
    try:
        link.begin()
        async with trio.open_nursery() as nursery:
            for task in (link.read, link.write_out, link.watch):
                nursery.start_soon(link.run, task)
            await link.flush()  # what it thinks of CONNECT comes before the PONG
            yield link
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
