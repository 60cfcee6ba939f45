"""One connection to Redis: RESP3 by hiredis' parser (which does no I/O), and Trio around it.

    caller ──post──► buffer ──one writer──► socket ──one reader──► the oldest call that waits · pushes → `on_push`

Redis answers in the order it was asked, so calls wait in a queue, and an answer belongs to the first. A caller that is
cancelled leaves its place there, and its answer is dropped when it comes: replies cannot get mixed up. SUBSCRIBE and
its like are answered by pushes, one for each name (RESP3 specification, "Push type"), or by one error: such calls
stand in the same queue.

A link that breaks, or does not answer in time, fails all its calls and stays broken; somebody makes a new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import trio

from trionet.errors import BrokerDown, BrokerError, ConfigurationError

try:
    import hiredis
except ImportError:  # an extra
    hiredis = None  # type: ignore[assignment]

__all__ = ["Call", "Link", "error_of", "pack", "require_hiredis"]

READ: Final = 2**16
MAX_CALLS: Final = 10_000  # that wait for an answer; the next one waits to be sent
MAX_UNSENT: Final = 4 * 2**20  # bytes, the same

_NOTHING: Final = object()
_MESSAGES: Final = frozenset({b"message", b"pmessage"})
_ACKNOWLEDGED: Final = frozenset({b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe"})

#: Errors that pass by themselves: the server starts, fails over, or is held up by somebody's script.
_PASSING: Final = frozenset(
    {"LOADING", "MASTERDOWN", "READONLY", "BUSY", "NOREPLICAS", "TRYAGAIN", "CLUSTERDOWN"}
)
#: What to do about others.
_ADVICE: Final = {
    "OOM": "it is full: raise its maxmemory, or keep shorter histories",
    "MISCONF": "it cannot write its snapshot to the disk, and refuses writes",
    "NOAUTH": "it wants a password: redis://user:password@host",
    "WRONGPASS": "it does not know this user with this password",
    "NOPERM": "its ACL does not allow that to this user",
    "MOVED": "Redis Cluster is not supported",
    "CROSSSLOT": "Redis Cluster is not supported",
}


def require_hiredis() -> None:
    """Raises `ConfigurationError` if hiredis is not installed, or too old to tell pushes from answers."""
    if not hasattr(hiredis, "PushNotification"):
        raise ConfigurationError("Redis needs the parser hiredis, 3.2 or later: pip install 'trionet[redis]'")


def pack(*words: str | bytes | float) -> bytes:
    """A command as it is sent."""
    return hiredis.pack_command(words)  # type: ignore[no-any-return,arg-type]


def error_of(reply: Exception) -> BrokerError:
    """What a caller is told when Redis answered with an error: `BrokerDown` if the same may work soon."""
    text = str(reply)
    code = text.partition(" ")[0]
    if "Error running script" in text and " -" in text:  # before Redis 7 the script's own error stands inside
        code = text.partition(" -")[2].partition(" ")[0]
    kind = BrokerDown if code in _PASSING else BrokerError
    advice = _ADVICE.get(code)
    return kind(f"Redis refused: {text[:300]}" + (f" ({advice})" if advice else ""))


class Call:
    """Commands sent together, and their answers. An answer may be an exception (`hiredis.ReplyError`)."""

    __slots__ = ("acknowledged", "done", "each", "error", "left", "replies", "sent")

    def __init__(
        self, left: int, sent: float, *, acknowledged: bool, each: Callable[[Any], None] | None
    ) -> None:
        self.left = left  # answers that have not come
        self.sent = sent  # Trio's time
        self.acknowledged = acknowledged  # answered by pushes
        self.each = each  # called with each answer by the reader, in the order of everything that comes
        self.replies: list[Any] = []
        self.error: BrokerError | None = None
        self.done = trio.Event()

    async def wait(self) -> list[Any]:
        """Wait for the answers. Raises `BrokerDown` when the link broke before they came."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.replies


class Link:
    """See the module. `run` it in a task; calls may be posted before, and by any number of tasks.

    `wait_room` is awaited between reads; the time it takes does not count as the server's.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        timeout: float,
        ping_interval: float,
        on_push: Callable[[Any], None] | None = None,
        wait_room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.timeout = timeout
        self.lag: float | None = None  # seconds the last PING took
        self.broken = trio.Event()
        self.error = BrokerDown("Redis: the connection was closed")
        self._ping_interval = min(ping_interval, timeout * 0.4)
        self._stream = stream
        self._on_push = on_push
        self._wait_room = wait_room
        self._calls: deque[Call] = deque()
        self._waiting = 0  # answers the calls wait for
        self._out: list[bytes] = []
        self._unsent = 0
        self._heard = trio.current_time()
        self._paused = False  # it is we who do not read
        self._wake = trio.Event()
        self._room = trio.Event()

    # --------------------------------------------------------------- calling

    def post(
        self, commands: Iterable[bytes], *, names: int = 0, each: Callable[[Any], None] | None = None
    ) -> Call:
        """Send packed commands together. Raises `BrokerDown`.

        `names`: it is one SUBSCRIBE, or one of its like, for so many.
        """
        if self.broken.is_set():
            raise self.error
        before = len(self._out)
        self._out += commands
        count = len(self._out) - before
        self._unsent += sum(map(len, self._out[before:]))
        call = Call(names or count, trio.current_time(), acknowledged=bool(names), each=each)
        if call.left:
            self._calls.append(call)
            self._waiting += call.left
            self._wake.set()
        else:
            call.done.set()
        return call

    async def call(self, command: bytes) -> Any:
        """Send one command, return its answer. Raises `BrokerDown`, `BrokerError`."""
        await self.room()
        (reply,) = await self.post([command]).wait()
        if isinstance(reply, Exception):
            raise error_of(reply)
        return reply

    async def room(self) -> None:
        """Wait while too many calls are on their way."""
        while (self._waiting >= MAX_CALLS or self._unsent >= MAX_UNSENT) and not self.broken.is_set():
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    def fail(self, why: str) -> None:
        """Break it."""
        if self.broken.is_set():
            return
        self.error = BrokerDown(why)
        self.broken.set()
        self._room.set()
        self._out.clear()
        while self._calls:
            call = self._calls.popleft()
            call.error = BrokerDown(why)
            call.done.set()

    # --------------------------------------------------------------- running

    async def run(self) -> None:
        """Read and write until it breaks; then it returns. Raises only what `on_push` and the like raise."""
        why = "the connection to Redis was left"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._read)
                await self.broken.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.fail(why)

    async def _write(self) -> None:
        try:
            while True:
                if not self._out:
                    self._wake = trio.Event()
                    await self._wake.wait()
                    continue
                data = b"".join(self._out)
                self._out.clear()
                self._unsent = 0
                self._room.set()
                if len(data) <= READ:
                    await self._stream.send_all(data)
                    continue
                for begin in range(0, len(data), READ):
                    await self._stream.send_all(data[begin : begin + READ])
                    if begin:  # much takes its time on a slow line, and that it goes is a sign of life
                        self._heard = trio.current_time()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.fail(f"the connection to Redis broke: {error.__cause__ or error}")

    async def _watch(self) -> None:
        """Ping; and find out when nothing comes though something was asked."""
        pinged = trio.current_time()
        ping: Call | None = None
        while True:
            due = trio.current_time() + self.timeout / 20
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > self.timeout / 4:
                self._heard = now  # it is we who stood still: what it says may lie there unread
            if self._paused:
                continue
            if ping is not None and ping.done.is_set():
                ping = None
            if (
                self._calls
                and now - self._heard >= 0.9 * self.timeout
                and now - self._calls[0].sent >= 0.4 * self.timeout
            ):
                self.fail(f"Redis has not answered for {self.timeout:g} s")
                return
            if ping is None and now - pinged >= self._ping_interval and not self.broken.is_set():
                pinged = now
                ping = self.post([pack("PING")], each=self._ponged)

    def _ponged(self, _: object) -> None:
        self.lag = trio.current_time() - self._calls[0].sent

    async def _read(self) -> None:
        reader = hiredis.Reader(notEnoughData=_NOTHING)
        try:
            while True:
                if self._wait_room is not None:
                    self._paused = True
                    await self._wait_room()
                    self._paused = False
                    self._heard = trio.current_time()
                data = await self._stream.receive_some(READ)
                if not data:
                    self.fail("Redis closed the connection")
                    return
                self._heard = trio.current_time()
                reader.feed(data)  # type: ignore[arg-type]  # its stubs know no buffers; it takes any
                self._take(reader)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.fail(f"the connection to Redis broke: {error.__cause__ or error}")
        except hiredis.ProtocolError as error:
            self.fail(f"what answers is not Redis: {error}")

    def _take(self, reader: Any) -> None:
        """Hand on all that has come."""
        push = hiredis.PushNotification
        while True:
            try:
                reply = reader.gets()
            except TypeError as error:  # a map whose keys are lists, or the like
                raise hiredis.ProtocolError(str(error)) from error
            if reply is _NOTHING:
                return
            if reply.__class__ is push:
                if reply[0] in _MESSAGES:
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                if reply[0] not in _ACKNOWLEDGED:
                    continue  # of a kind we did not ask for
            fits = reply.__class__ is push or isinstance(reply, hiredis.ReplyError)
            if (
                not self._calls
                or (fits if self._calls[0].acknowledged else reply.__class__ is not push) is False
            ):
                raise hiredis.ProtocolError(f"nothing was asked that this could answer: {reply!r:.80}")
            self._answer(self._calls[0], reply)
            if self.broken.is_set():
                return

    def _answer(self, call: Call, reply: Any) -> None:
        taken = 1
        if not call.acknowledged:
            call.replies.append(reply)
        elif isinstance(reply, hiredis.ReplyError):
            taken = call.left  # one error for all names
            call.replies.append(reply)
        if call.each is not None:
            call.each(reply)
            if self.broken.is_set():
                return
        call.left -= taken
        self._waiting -= taken
        if not call.left:
            self._calls.popleft()
            call.done.set()
        if self._waiting < MAX_CALLS:
            self._room.set()
