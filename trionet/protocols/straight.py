"""Handlers written as one coroutine: ``async for message in ws``. While they wait they cost a coroutine, not a task.

    state      what it means                              leaves by
    RUNNING    in a worker, or suspended in its task      `receive` → PARKED or PINNED · returns, raises → ENDED
    PARKED     only the coroutine is kept                 a message, the end, a timeout: a worker resumes it → RUNNING
    PINNED     it waits in its task, which left the       the same, and cancellation: its task goes on → RUNNING
               pool: a scope, nursery or lock is open
    ENDED      no coroutine                               the connection is closed: 1000, or 1011 if it raised

`receive` yields `_PARK` where the pool says that nothing ties the handler to its task. `resume`, in the worker, takes
that for itself and lets everything else through to the pool's driver, and so to Trio. What is sent into the coroutine
then is the next message, or None: look again at what happened.

A parked coroutine is always ended by resuming it, never by the garbage collector, so its `finally` blocks may await.
The first frame of its own that Ctrl-C may stop is the handler's.
"""

from __future__ import annotations

import gc
import traceback
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import trio

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.net.connection import BUSY, NEVER, OPEN, OPENING, PAUSED
from trionet.net.pool import Waiter, Worker, lock_owners, split_error
from trionet.net.traits import NO_SLOTS
from trionet.protocols.channel import WebSocket, _size
from trionet.wire.closing import CloseCode
from trionet.wire.messages import Chunk, Control

if TYPE_CHECKING:
    import contextvars

    from trionet.net.connection import ProtocolInterface
    from trionet.net.engine import Engine

__all__ = ["Straight", "start_handler"]

_PARK: Final = object()
_MESSAGE: Final = 0  # what is waited for: a message,
_NEXT: Final = 1  # a message or the end of the iteration,
_PIECE: Final = 2  # a message or a piece of one


class _Done:
    """Something to await that has happened, without a frame for it."""

    __slots__ = ()
    _nothing: Final = iter(())

    def __await__(self) -> Any:
        return self._nothing


_DONE: Final = _Done()


class _Session:
    """What a straight-line handler needs at times."""

    __slots__ = ("chunks", "context", "due", "idle", "receiver", "skipping", "tasks", "worker")

    def __init__(self) -> None:
        self.context: contextvars.Context | None = None  # its own, once it has set a variable
        self.receiver: Waiter | None = None  # who waits in a task
        self.due = 0  # tick at which the receiver has waited too long
        self.chunks: list[Any] | None = None  # pieces of a message that is wanted whole
        self.skipping = False  # the rest of a message that was received piece by piece
        self.tasks: set[trio.CancelScope] | None = None
        self.idle: list[Any] = []  # who waits for the end of the tasks
        self.worker: Worker | None = None  # that the handler was suspended in last

    def needed(self) -> bool:
        return bool(
            self.context is not None
            or self.receiver is not None
            or self.due
            or self.chunks
            or self.skipping
            or self.tasks
            or self.idle
            or self.worker is not None
        )


class Straight(WebSocket):
    """What `WebSocket` is for straight-line handlers and clients (a trait, see `trionet.net.traits`)."""

    __slots__ = NO_SLOTS
    words = ("_coroutine", "_session")

    _coroutine: Coroutine[Any, Any, object] | None
    _session: _Session | None

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self._coroutine = None
        self._session = None

    # ------------------------------------------------------------ receiving

    def receive(self, timeout: float | None = None) -> Awaitable[str | bytes]:
        return self._wait(_MESSAGE, timeout)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    def receive_stream(self) -> AbstractAsyncContextManager[AsyncIterator[str | bytes]]:
        return _Pieces(self)

    @types.coroutine
    def _wait(self, what: int = _NEXT, timeout: float | None = None) -> Generator[Any, Any, Any]:
        """One frame, and this is what an idle connection keeps: what takes more is done before, in `_prepare`."""
        while True:
            if (
                self._state != OPEN
                or self._rare is not None
                or self._session is not None
                or timeout is not None
                or (pool := self.engine.pool).job is not self
                or (task := pool.shown) is None  # `TaskPool.can_park`: a thread's call never comes here
                or task._cancel_status is not pool.status
                or task in lock_owners
            ):
                try:
                    message = yield from self._prepare(what, timeout).__await__()
                except ConnectionClosed as closed:
                    if what == _NEXT and closed.clean:
                        raise StopAsyncIteration from None
                    raise
                if message is not _PARK:
                    return message
            task = None
            message = yield _PARK
            if message.__class__ is Chunk:
                message = self._piece(message, what)
            if message is not None:
                if self._session is not None:
                    self._received()
                return message

    __anext__ = _wait

    async def _prepare(self, what: int, timeout: float | None) -> Any:
        """Return what is there, or `_PARK` when the handler may park now; wait here where it may not."""
        pool = self.engine.pool
        pool.credit -= 1
        await pool.breathe()
        session = self._session
        if self._state & 7 == OPENING:
            raise self._not_open()
        if session is not None and session.receiver is not None:
            raise trio.BusyResourceError("another task is waiting for a message of this connection")
        if self._parked() and self.closed is None:
            raise trio.BusyResourceError("the handler is waiting for a message of this connection")
        rare = self._rare
        if rare is not None and (rare.request is not None or rare.subprotocol is not None):
            rare.request = rare.subprotocol = None
            self.tidy()
        if timeout is not None and timeout < NEVER:
            session = self._more()
            if not session.due:
                wheel = self.engine.wheel
                session.due = self.engine.tick + wheel.ticks(timeout)
                self.engine.set_deadline(self, session.due)
        while True:
            may_park = pool.job is self and pool.can_park()
            # Where it may park, `deliver` goes on with the rest of the read, and keeps its answers corked.
            if not may_park and pool.rest is not None and pool.running is not None and pool.job is self:
                self.hold_rest()
            message = self._take(what)
            if message is not None:
                self._received()
                return message
            if self.closed is not None:
                self._received()
                raise self.closed_error()
            if session is not None and session.due and self.engine.tick >= session.due:
                self._received()
                raise trio.TooSlowError
            if may_park:
                return _PARK
            session = self._more()
            session.receiver = Waiter()
            if self._state & PAUSED:
                self.resume_reading()  # the part of a long message that came already may have stopped it
            pool.pinned += 1
            pool.leave()
            try:
                await session.receiver.wait()
            except BaseException:
                session.due = 0
                raise
            finally:
                session.receiver = None
                pool.pinned -= 1

    def _parked(self) -> bool:
        """Whether the handler waits without a task."""
        return self._coroutine is not None and not self._state & BUSY and not self.engine.runs(self)

    def _take(self, what: int) -> Any:
        """The next message, or piece, of what was kept; None if there is none."""
        rare = self._rare
        held = rare.held if rare is not None else None
        if rare is None or not held:
            return None
        message = None
        while held and message is None:
            event = held.popleft()
            rare.held_size -= _size(event)
            if isinstance(event, Control):
                self.control(event)
            elif isinstance(event, ProtocolError):
                self.fail(event)
            elif not (self._state & 7 != OPEN and self._said_goodbye()):
                message = event if isinstance(event, str | bytes) else self._piece(event, what)
        if self._state & PAUSED:
            self.resume_reading()
        return message

    def _piece(self, chunk: Any, what: int) -> Any:
        """A piece of a message has come: return it, or the whole message if that is wanted; None: wait for more."""
        if chunk.__class__ is not Chunk:
            return chunk
        session = self._more()
        if session.skipping:
            session.skipping = not chunk.last
            return None
        chunks = session.chunks
        if what == _PIECE:
            if chunks is not None:  # they came for a `receive` that was cancelled
                session.chunks = None
                empty: Any = b"" if isinstance(chunk.data, bytes) else ""
                return Chunk(empty.join([*chunks, chunk.data]), chunk.last)
            return chunk
        if chunks is None:
            chunks = session.chunks = []
        chunks.append(chunk.data)
        size = sum(map(len, chunks)) if len(chunks) % 16 == 0 or chunk.last else 0
        if size > self.protocol.max_message:
            session.chunks = None
            limit = self.protocol.max_message
            self.fail(ProtocolError(f"message longer than {limit} bytes", CloseCode.MESSAGE_TOO_BIG))
            return None
        if not chunk.last:
            return None
        session.chunks = None
        return (b"" if isinstance(chunk.data, bytes) else "").join(chunks)

    def _received(self) -> None:
        """Nobody waits any more."""
        if self._session is not None:
            self._session.due = 0
            self._tidy_session()

    def _tidy_session(self) -> None:
        if self._session is not None and not self._session.needed():
            self._session = None

    def _more(self) -> _Session:
        if self._session is None:
            self._session = _Session()
        return self._session

    def arrived(self) -> bool:
        session = self._session
        if session is None or session.receiver is None:
            return False
        session.receiver.wake()
        return True

    def receive_due(self, tick: int) -> int:
        session = self._session
        if session is None or not session.due:
            return 0
        if session.due > tick:
            return session.due
        self._look_again()
        return 0

    def _look_again(self) -> None:
        """Something happened that whoever waits for a message has to know."""
        self.arrived()
        if self._coroutine is not None:
            self.wake()

    # ---------------------------------------------------------- the handler

    def begin(self, coroutine: Coroutine[Any, Any, object]) -> Awaitable[None]:
        """Run the handler to its first wait."""
        if not hasattr(coroutine, "send"):
            raise TypeError(
                f"{self.title} returned {type(coroutine).__name__}, not a coroutine: is it an `async def`?"
            )
        self._coroutine = coroutine
        self.engine.pool.at_rest += 1
        return self.resume(None)

    def resume(self, value: Any) -> Awaitable[None]:
        """Run the handler to its next wait for a message, or to its end; await what is returned for its other waits.

        `value`: a message, or None (it has just begun, or is to look at what happened).
        """
        coroutine = self._coroutine
        if coroutine is None:  # it has ended
            return _DONE
        try:
            if (session := self._session) is None or session.context is None:
                trap = coroutine.send(value)
            else:
                trap = session.context.run(coroutine.send, value)
        except BaseException as error:
            if not self._ended(error):
                raise
            return _DONE
        return _DONE if trap is _PARK else self._pass_on(coroutine, trap)

    @types.coroutine
    def _pass_on(self, coroutine: Coroutine[Any, Any, object], trap: Any) -> Generator[Any, Any, None]:
        """The handler waits for something else: pass that on to Trio, and what comes back to the handler."""
        pool = self.engine.pool
        pool.at_rest -= 1
        try:
            while trap is not _PARK:
                function: Callable[[Any], Any] = coroutine.send
                try:
                    value = yield trap
                except BaseException as error:  # noqa: BLE001 - goes to the handler
                    function, value = coroutine.throw, error
                # It may have got a context of its own meanwhile: see `context_changed`.
                context = self._session.context if self._session is not None else None
                trap = function(value) if context is None else context.run(function, value)
        except BaseException as error:
            if not self._ended(error):
                raise
        finally:
            pool.at_rest += 1
            value = None  # an exception refers to this frame
            if self._session is not None:
                self._session.worker = None
                self._tidy_session()

    def resume_with_chunk(self, data: str | bytes, last: bool) -> Awaitable[None]:
        """The same with a piece of a message."""
        return self.resume(Chunk(data, last))

    def _ended(self, error: BaseException) -> bool:
        """The handler has ended, by `error`. Returns whether that is an ordinary end: else it goes on."""
        self._coroutine = None
        self.engine.pool.at_rest -= 1
        self._cancel_tasks()
        if isinstance(error, ConnectionClosed):  # the way most end: an error only if it was another's
            return self.closed is not None
        if isinstance(error, StopIteration) and self.closed is None:
            self.close_nowait(CloseCode.NORMAL)
        return isinstance(error, StopIteration)

    def _roused(self) -> Awaitable[None] | None:
        if self._coroutine is None:
            return None
        session = self._session
        if self.closed is not None or (session is not None and 0 < session.due <= self.engine.tick):
            return self.resume(None)
        return None

    def suspended(self) -> None:
        if self.protocol.cancel_on_disconnect:
            self._more().worker = self.engine.pool.suspending
        super().suspended()

    @property
    def title(self) -> str:
        return self.protocol.title

    def context_changed(self, context: contextvars.Context) -> None:
        if self._coroutine is not None:
            self._more().context = context

    def note_closed(self, closed: ConnectionClosed) -> None:
        news = self.closed is None
        super().note_closed(closed)
        if news:
            if closed.by != "us":
                self._cancel_handler()
            self._look_again()

    def _cancel_handler(self) -> None:
        """The peer is gone: cancel what the handler waits for, if it wishes so."""
        session = self._session
        worker = session.worker if session is not None else None
        if session is None or worker is None or worker.job is not self:
            return
        if session.receiver is None or not session.receiver.waits_in(
            worker.task
        ):  # else `receive` will say it
            worker.cancel()

    # ------------------------------------------------------------ its tasks

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any, name: object = None) -> None:
        if self.closed is not None or self._state & 7 != OPEN:
            raise self._not_open()
        scope = trio.CancelScope()
        try:
            self.engine.start_soon(self._run_task, scope, function, args, name=name or function)
        except RuntimeError:  # a hard stop: the handler ends before the connection is closed
            raise ConnectionClosed(1006, "the server ends", "us") from None
        session = self._more()
        if session.tasks is None:
            session.tasks = set()
        session.tasks.add(scope)

    async def _run_task(
        self, scope: trio.CancelScope, function: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        try:
            with scope:
                await function(*args)
        except BaseException as error:  # noqa: BLE001 - a bulkhead
            own, rest = split_error(error)
            if own is not None:
                self.blame(own)
            if rest is not None:
                raise rest from None
        finally:
            session = self._session
            assert session is not None
            assert session.tasks is not None
            session.tasks.discard(scope)
            if not session.tasks:
                session.tasks = None
                idle, session.idle = session.idle, []
                for waiter in idle:
                    waiter.wake()
                self._tidy_session()

    def _cancel_tasks(self) -> None:
        session = self._session
        for scope in session.tasks or () if session is not None else ():
            scope.cancel()

    def conclude(self, on_close: Any, closed: ConnectionClosed) -> Coroutine[Any, Any, None] | None:
        if self._session is None or not self._session.tasks:
            return super().conclude(on_close, closed)
        return self._conclude(on_close, closed)

    async def _conclude(self, on_close: Any, closed: ConnectionClosed) -> None:
        while (session := self._session) is not None and session.tasks:
            await self.engine.pool.wait_among(session.idle)
        if on_close is not None:
            await on_close(self, closed)

    def _release(self) -> None:
        super()._release()
        if self._session is not None:
            self._cancel_tasks()

    # ------------------------------------------------------------- a look at

    def stack(self) -> traceback.StackSummary:
        frames = list(_frames(self._coroutine))
        return traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)


def start_handler(handler: Callable[[Any], Coroutine[Any, Any, object]]) -> Callable[[Any], Awaitable[None]]:
    """What a protocol calls when a connection is open: begin `handler` for it."""

    def begin(ws: Straight) -> Awaitable[None]:
        return ws.begin(handler(ws))

    return begin


def _frames(awaited: Any) -> Generator[types.FrameType, None, None]:
    """The frames of a coroutine that waits, outermost first."""
    while awaited is not None:
        if hasattr(awaited, "cr_frame"):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif hasattr(awaited, "gi_frame"):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        elif hasattr(awaited, "ag_frame"):
            frame, awaited = awaited.ag_frame, awaited.ag_await
        elif type(awaited).__name__ in (
            "async_generator_asend",
            "async_generator_athrow",
            "coroutine_wrapper",
        ):
            # They do not say what they wait for in Python; the collector knows (as in Trio's iter_await_frames).
            referents = gc.get_referents(awaited)
            awaited = next((r for r in referents if hasattr(r, "ag_frame") or hasattr(r, "cr_frame")), None)
            continue
        else:
            return
        if frame is not None:
            yield frame


class _Pieces:
    """A message that is received piece by piece."""

    def __init__(self, ws: Straight) -> None:
        self._ws = ws
        self._begun = self._ended = False

    async def __aenter__(self) -> _Pieces:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._begun and not self._ended:
            self._ws._more().skipping = True

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> str | bytes:
        if self._ended:
            raise StopAsyncIteration
        piece = await self._ws._wait(_PIECE, None)
        self._begun = True
        if not isinstance(piece, Chunk):
            self._ended = True
            return piece  # type: ignore[no-any-return]
        self._ended = piece.last
        if piece.last and not piece.data:
            raise StopAsyncIteration
        return piece.data
