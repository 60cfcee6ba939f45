"""A bounded pool of tasks that works off a queue and, when the queue is empty, waits for the poller.

Leader and followers: a worker takes jobs until the queue is empty. Then one worker, the leader, waits at the source
(the poller) and fills the queue; the others are parked. A job that never yields costs no task switch and wakes
nobody. At a job's first yield, and only there, a follower is woken to carry on and to lead.

    job runs to its end            nothing happens: next job
    job yields to Trio             its worker waits with it; a follower takes over
    ... and lasts > slot_grace     detached: the slot is given back, the task goes on, a fresh worker replaces it
    job yields a Parked            only the coroutine is kept; the worker goes on with the next job

A slot pays for running, not for waiting. Slots are tokens of a `trio.CapacityLimiter` (which servers may share),
held on behalf of a worker while it has work in hand; a leader waits without one. When all are taken nobody polls:
the kernel's buffers, then the peers, feel the backpressure.

A detached job goes on at once when what it waits for comes. It never queues to come back: handlers that share a
lock would wait for each other for ever.
"""

from __future__ import annotations

import contextvars
import logging
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine, Generator
from contextlib import asynccontextmanager
from operator import is_
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import Abort, enable_ki_protection

from trionet.errors import ConfigurationError, nothing_but
from trionet.net.counts import durations

__all__ = ["Job", "Parked", "PlainJob", "PoolStatistics", "Source", "TaskPool", "Waiter", "split_error"]

log = logging.getLogger("trionet.pool")

# Trio says which tasks own a lock only in private. Without it nothing is ever parked: correct, only larger.
lock_owners: Container[object]
try:
    from trio._core._parking_lot import GLOBAL_PARKING_LOT_BREAKER as lock_owners  # noqa: N811
except ImportError:  # pragma: no cover

    class _Anybody:
        def __contains__(self, task: object) -> bool:
            return True

    lock_owners = _Anybody()


class _Opaque:
    """Stands for a task of a Trio that does not show which cancel scope is open: any may be."""

    @property
    def _cancel_status(self) -> object:
        return object()


_SLICE = 0.001  # seconds of work without a pause after which other tasks get a turn
_WORKER = "trionet worker"
_CREDIT = 64  # operations that never wait, after which a handler lets others run


class Job(Protocol):
    """Something to be run by a worker. Connections are jobs."""

    async def run(self) -> bool | None:
        """Do the work. True: this worker is to end (see `TaskPool.job_done`)."""

    def suspended(self) -> None:
        """The job has yielded for the first time: others run now."""

    def failed(self, error: BaseException) -> None:
        """`run` raised an `Exception` (or a group of them). May raise, and so end the pool."""

    def cut_off(self) -> None:
        """`run` was cancelled by `Worker.cancel`, it alone."""

    def context_changed(self, context: contextvars.Context) -> None:
        """The job has set a context variable. `context` is used by nobody from now on; most let it go."""


class Source(Protocol):
    """Where jobs come from when the queue is empty."""

    def fetch(self) -> None:
        """Put what is ready into the queue, without waiting."""

    async def wait(self) -> None:
        """Wait until there may be something to fetch."""


@attrs.frozen
class PoolStatistics:
    """`busy` workers hold a slot, `suspended` ones among them wait for something; `detached` hold none.

    `parked` handlers wait without a task, for a message or for room in a queue. `pinned` ones wait for a message in
    a task, because a cancel scope, a nursery or a lock of theirs is open.
    """

    size: float
    busy: int
    idle: int
    suspended: int
    detached: int
    parked: int
    pinned: int
    queued: int
    jobs: int
    failures: int


class Worker:
    """One task of the pool."""

    __slots__ = (
        "cancelled",
        "cut_off",
        "deadline",
        "detached",
        "holding",
        "job",
        "leaving",
        "scope",
        "shown",
        "task",
        "yielded",
    )

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.job: Any = None  # set while its job is suspended
        self.task = task
        # What shows `_cancel_status`: the task, or, where Trio's tasks do not have it, something that never matches.
        self.shown: Any = task if hasattr(task, "_cancel_status") else _Opaque()
        self.yielded = False
        self.detached = False
        self.holding = False  # a token
        self.deadline = 0.0  # the end of its grace, while it is suspended
        self.leaving = False  # what it runs will wait for long: no grace
        self.scope = trio.CancelScope()  # around all it does
        self.cancelled = False  # `cancel` was called: the scope has to be left before anything else is run
        self.cut_off: Any = None  # the job that a cancellation has just ended

    def cancel(self) -> None:
        """Cancel the job that is suspended in this worker; the worker goes on with another."""
        self.cancelled = True
        self.scope.cancel()


class Waiter:
    """Waits in its own task, as any Trio code does. `wake` may be called once."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Wait for `wake`. A cancelled waiter must be forgotten by whoever would wake it."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def waits_in(self, task: trio.lowlevel.Task) -> bool:
        """Whether it is `task` that waits, and was not woken yet."""
        return self._task is task

    def _abort(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def wake(self) -> None:
        """Let it go on."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None


class Parked:
    """Waits without a task: a handler's coroutine is kept here while its worker does other things.

    The handler yields it (``await parked.wait()``) where `TaskPool.can_park` holds; the pool's driver takes the
    coroutine, and a worker resumes it after `wake`.
    """

    __slots__ = ("context", "coroutine", "job", "pool")

    def __init__(self, pool: TaskPool) -> None:
        self.pool = pool
        self.coroutine: Coroutine[Any, Any, Any]
        self.context: contextvars.Context
        self.job: Any = None

    @types.coroutine
    def wait(self) -> Generator[object, Any, None]:
        """Give the worker away. Returns in another one; under a hard stop, raises `trio.Cancelled` there."""
        yield self
        yield from trio.lowlevel.checkpoint_if_cancelled().__await__()  # noqa: ASYNC105 - awaited by hand

    def wake(self) -> None:
        """Let it go on as soon as a worker is free."""
        self.pool.unpark(self)


class PlainJob:
    """A `Job` that nothing has to be told of; what it raises ends the pool."""

    __slots__ = ()

    def suspended(self) -> None: ...

    def cut_off(self) -> None: ...

    def context_changed(self, context: contextvars.Context) -> None: ...

    def failed(self, error: BaseException) -> None:
        raise error


class _Call(PlainJob):
    """A function given to `schedule`."""

    __slots__ = ("args", "function", "pool")

    def __init__(
        self, pool: TaskPool, function: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        self.pool = pool
        self.function = function
        self.args = args

    async def run(self) -> bool:
        self.pool._calls -= 1
        self.pool._room()
        await self.function(*self.args)
        return self.pool.job_done()


class Timed:
    """Stands for another job in the queue, to see how long it takes from now to its end, waiting included."""

    __slots__ = ("begun", "job", "pool")

    def __init__(self, pool: TaskPool, job: Any) -> None:
        self.pool = pool
        self.job = job
        self.begun = perf_counter_ns()

    async def run(self) -> bool | None:
        pool = self.pool
        pool.job = self.job
        try:
            over: bool | None = await self.job.run()
        finally:
            pool.latency.record((perf_counter_ns() - self.begun) // 1000)
        return over

    @property
    def protocol(self) -> Any:
        """That of the connection."""
        return self.job.protocol

    def context_changed(self, context: contextvars.Context) -> None:
        self.job.context_changed(context)


class TaskPool:
    """See the module. Use it as ``async with TaskPool(128) as pool``; leaving the block waits for all jobs.

    `size`: jobs that run at once. `limiter`: a `trio.CapacityLimiter` of your own instead, for sharing; changing its
    `total_tokens` (or `size`) takes effect at once, running jobs finish. `queue`: calls that `schedule` accepts
    beyond those that run before it waits. `slot_grace`: seconds for which a suspended job keeps its slot.
    """

    def __init__(
        self,
        size: int = 128,
        *,
        limiter: trio.CapacityLimiter | None = None,
        queue: int = 256,
        slot_grace: float = 0.1,
    ) -> None:
        if limiter is None and size < 1:
            raise ConfigurationError(f"pool size is {size}; a pool needs at least one worker")
        if queue < 1:
            raise ConfigurationError(f"pool queue is {queue}; it must hold at least one call")
        self._size = size
        self.limiter = limiter or trio.CapacityLimiter(size)
        self.queue = queue
        self.slot_grace = slot_grace
        self.source: Source | None = None
        # The worker whose coroutine is on the interpreter's stack right now. None: the code that asks runs elsewhere.
        self.running: Worker | None = None
        self.shown: Any = None  # its `Worker.shown`
        self.job: Any = None  # what it runs
        self.suspending: Worker | None = None  # the one that ran what has just been suspended
        self.context: Any = None  # where it runs
        self.home: Any = None  # the context of its task; a call from a thread runs in another
        self.credit = 0  # operations left before it must let others run
        # Answers to input that came in one piece go out in one piece (see `trionet.protocols.channel`).
        self.cork: list[bytes] | None = None
        self.corked = 0
        self.rest: Any = None  # input of the running job that is still to be handled
        self.detached = 0
        self.suspended = 0
        self.jobs = 0
        self.failures = 0
        self.clock: Any = None  # awaited with a job in place of its `run`, to measure it
        self.latency = durations()  # of jobs that were `Timed`, in microseconds
        self.ready: deque[Any] = deque()
        self.parked: set[Parked] = set()
        self.at_rest = 0  # handlers that wait for a message without a task
        self.pinned = 0
        self.status: Any = None  # the cancel status that the running task has outside any job
        self._calls = 0
        self._waiting_calls: deque[trio.lowlevel.Task] = deque()
        self._idle: list[trio.lowlevel.Task] = []
        self._leader: Worker | None = None
        self._workers = 0  # not detached
        self._grace: deque[tuple[float, Worker]] = deque()
        self.cut_off: list[Any] = []  # jobs that a hard stop ended
        self._overseer: trio.lowlevel.Task | None = None
        self._slice_end = 0.0
        self._context: contextvars.Context
        self._nursery: trio.Nursery | None = None
        self._closing = False

    # ------------------------------------------------------------------ life

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TaskPool]:
        """Run the pool for the length of the block. On a clean exit, queued and running jobs are finished first."""
        self._context = contextvars.copy_context()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._oversee)
            self._spawn()
            try:
                yield self
                self._close()
                self._wake_all()
                while self.source is None and (self._workers or self.detached or self.parked or self.ready):
                    await self._finished()
            finally:
                nursery.cancel_scope.cancel()
                self._close()
                await self._unwind()
                self._nursery = None

    async def __aenter__(self) -> TaskPool:
        self._manager = self.open()
        return await self._manager.__aenter__()

    async def __aexit__(self, *args: Any) -> bool | None:  # noqa: PYI036
        return await self._manager.__aexit__(*args)

    @property
    def size(self) -> float:
        """Jobs that may run at once; settable while the pool runs."""
        return self.limiter.total_tokens

    @size.setter
    def size(self, value: int) -> None:
        self.limiter.total_tokens = value

    @property
    def base_context(self) -> contextvars.Context:
        """The context in which the pool was opened; jobs run in copies of it."""
        return self._context

    def statistics(self) -> PoolStatistics:
        """Counters. `size` and `busy` are those of the limiter, which may be shared."""
        return PoolStatistics(
            size=self.size,
            busy=self.limiter.borrowed_tokens,
            idle=len(self._idle),
            suspended=self.suspended,
            detached=self.detached,
            parked=len(self.parked) + self.at_rest - self._runs_handler(),
            pinned=self.pinned,
            queued=len(self.ready),
            jobs=self.jobs,
            failures=self.failures,
        )

    def unfinished(self) -> int:
        """How many jobs are suspended, detached, parked or waiting for their turn."""
        return self.suspended + self.detached + len(self.parked) + len(self.ready)

    def _runs_handler(self) -> bool:
        """Whether the code that asks is a handler that has not been suspended: it is counted among those at rest."""
        running = self.running
        return (
            running is not None and not running.yielded and getattr(self.job, "_coroutine", None) is not None
        )

    # ------------------------------------------------------- giving it work

    async def schedule(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Have `function(*args)` run by a worker; waits while `queue` calls wait already (bound it by a scope).

        Returns when the call is queued, not when it is done. What it raises ends the pool's block.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._calls >= self.queue and not self._closing:
            task = trio.lowlevel.current_task()
            self._waiting_calls.append(task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> Abort:
                self._waiting_calls.remove(task)
                return Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self.schedule_nowait(function, *args)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def schedule_nowait(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Like `schedule`, but raises `trio.WouldBlock` when the queue is full."""
        if self._nursery is None or self._closing:
            raise RuntimeError("the pool is not running")
        if self._calls >= self.queue:
            raise trio.WouldBlock
        self._calls += 1
        self.submit(_Call(self, function, args))

    def submit(self, job: Any) -> None:
        """Queue a job. Unbounded: for the server's own, of which each connection has one at most."""
        self.ready.append(job)
        # A job that has not yielded yet works off the queue itself; one that has may go on waiting for ever.
        if self.running is None or self.running.yielded:
            self._wake_one()

    def _close(self) -> None:
        self._closing = True
        while self._waiting_calls:  # they learn that the pool does not run any more
            trio.lowlevel.reschedule(self._waiting_calls.popleft())

    def _room(self) -> None:
        if self._waiting_calls and self._calls < self.queue:
            trio.lowlevel.reschedule(self._waiting_calls.popleft())

    # ------------------------------------------------- what a job may ask

    def can_park(self) -> bool:
        """Whether the running code may give its worker away: no scope, nursery or lock of its own holds the task."""
        # A nursery brings a cancel scope of its own. A thread that called back waits for the task it came from.
        task = self.shown
        return (
            task is not None
            and task._cancel_status is self.status
            and task.context is self.home
            and task not in lock_owners
        )

    async def breathe(self) -> None:
        """Look for a cancellation; once the credit is used up, let others run."""
        if self.credit < 0:
            self.credit = _CREDIT
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    def waiter(self) -> Waiter | Parked:
        """What the running code is to wait with: parked where that is possible, else in its task."""
        return Parked(self) if self.can_park() else Waiter()

    async def wait_among(self, waiters: list[Waiter | Parked]) -> None:
        """Wait in `waiters` until whoever owns the list takes it and wakes all; leave it when cancelled."""
        waiter = self.waiter()
        waiters.append(waiter)
        try:
            await waiter.wait()
        except BaseException:
            if waiter in waiters:
                waiters.remove(waiter)
            raise

    def leave(self) -> None:
        """The running job is about to wait in its task, perhaps for ever: it needs its slot no longer."""
        worker = self.running
        if worker is not None and not worker.detached:
            if worker.yielded:
                self._detach(worker)
            else:
                worker.leaving = True

    def unpark(self, parked: Parked) -> None:
        """Let a parked coroutine go on as soon as a worker is free. A second call does nothing."""
        if parked in self.parked:
            self.parked.remove(parked)
            self.submit(parked)

    def job_done(self) -> bool:
        """A job that may have yielded has ended. True: the worker was replaced meanwhile, and must end with it."""
        worker = self.running
        if worker is None:  # run by hand, as at the end of an engine
            return False
        if worker.yielded:
            self._settled(worker)
            return worker.detached or worker.cancelled or self._oversized()
        return worker.detached or worker.cancelled

    def _oversized(self) -> bool:
        """Whether more slots are taken than there are: `size` was lowered."""
        return self.limiter.borrowed_tokens > self.limiter.total_tokens

    # ----------------------------------------------------------- the workers

    def _spawn(self) -> None:
        assert self._nursery is not None
        self._workers += 1
        self._nursery.start_soon(self._work, name=_WORKER)

    def _wake_one(self) -> None:
        """See to it that somebody takes the queue, or the lead."""
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop())
        # One more than there are slots: the leader, which waits, needs none.
        elif self._nursery is not None and self._workers <= self.size:
            self._spawn()

    def _wake_all(self) -> None:
        while self._idle:
            trio.lowlevel.reschedule(self._idle.pop())

    async def _idle_until_woken(self, worker: Worker) -> None:
        task = worker.task
        self._idle.append(task)

        def abort(_: object) -> Abort:
            self._idle.remove(task)
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    @enable_ki_protection
    async def _work(self) -> None:
        worker = Worker(trio.lowlevel.current_task())
        try:
            while True:
                with trio.CancelScope() as worker.scope:
                    await self._serve(worker)
                cancelled, worker.cancelled = worker.cancelled, False
                if not worker.scope.cancelled_caught:
                    # The job that was cancelled may have ended by itself, before it noticed.
                    if (cancelled and not worker.detached) or self._rejoin(worker):
                        continue
                    return
                if worker.yielded:
                    self._settled(worker)
                job, worker.cut_off = worker.cut_off, None
                if job is not None:  # else it came to its end first
                    self.cut_off.remove(job)
                    job.cut_off()
        finally:
            self._give_back(worker)
            if worker.detached:
                self.detached -= 1
            else:
                self._workers -= 1
            if self._closing:
                self._wake_all()
                self._wake_closer()

    async def _serve(self, worker: Worker) -> None:
        ready = self.ready
        while not (worker.detached or worker.cancelled):
            if not ready:
                if self._leader is None and self.source is not None and not self._closing:
                    self.source.fetch()
                    if not ready:
                        self._give_back(worker)
                        await self._lead(worker)
                        continue
                else:
                    self._give_back(worker)
                    if self._closing:
                        return
                    await self._idle_until_woken(worker)
                    continue
            await self._take_slot(worker)
            if ready:
                await self._drive(worker)

    async def _lead(self, worker: Worker) -> None:
        source = self.source
        assert source is not None
        self._leader = worker
        try:
            await source.wait()
        finally:
            self._leader = None
        source.fetch()
        self._slice_end = perf_counter() + _SLICE

    async def _take_slot(self, worker: Worker) -> None:
        if worker.holding and self._oversized():
            self._give_back(worker)
        if worker.holding:
            # Work came in without a pause. Others, tasks and servers, get their turn.
            if perf_counter() > self._slice_end:
                if self.limiter.borrowed_tokens >= self.limiter.total_tokens:
                    self._give_back(worker)
                await trio.lowlevel.checkpoint()
                self._slice_end = perf_counter() + _SLICE
            if worker.holding:
                return
        try:
            self.limiter.acquire_on_behalf_of_nowait(worker)
        except trio.WouldBlock:
            await self.limiter.acquire_on_behalf_of(worker)
        worker.holding = True

    def _give_back(self, worker: Worker) -> None:
        if worker.holding:
            worker.holding = False
            self.limiter.release_on_behalf_of(worker)

    @enable_ki_protection
    @types.coroutine
    def _drive(self, worker: Worker) -> Generator[Any, Any, None]:
        """Run jobs until the queue is empty, passing on to Trio what they yield, unless it is a `Parked`."""
        ready = self.ready
        status, home = worker.shown._cancel_status, worker.task.context
        while ready and not (worker.detached or worker.cancelled):
            if ready[0].__class__ is Parked:
                parked = ready.popleft()
                stack, context, self.job = parked.coroutine, parked.context, parked.job
                del parked  # or this frame would keep it, and what it waited for, alive
            else:
                stack, context = self._jobs(), self._context.copy()
            value = error = None
            while True:
                self.running, self.status, self.credit = worker, status, _CREDIT
                self.shown, self.context, self.home = worker.shown, context, home
                if worker.yielded:
                    self.job = worker.job
                try:
                    if error is None:
                        trap = context.run(stack.send, value)
                    else:
                        error, thrown = None, error
                        trap = context.run(stack.throw, thrown)
                        del thrown
                except StopIteration:
                    if self._oversized():
                        return
                    break
                finally:
                    self.running = self.shown = None
                if trap.__class__ is Parked:
                    self._park(worker, trap, stack, context)
                    break
                if not worker.yielded:
                    self._first_yield(worker)
                elif self.rest is not None or self.cork is not None:
                    self.job.suspended()
                try:
                    value = yield trap
                except BaseException as raised:  # noqa: BLE001 - goes to the job
                    error = raised

    async def _jobs(self) -> None:
        """Work off the queue. Parked with the job it runs, it goes on in another worker, so: no local worker."""
        ready = self.ready
        pristine = tuple(self._context.values())
        size = len(pristine)
        job: Any
        clock = self.clock
        done = 0
        try:
            while ready:
                job = ready.popleft()
                if type(job) is Parked:
                    ready.appendleft(job)
                    return
                self.job = job
                done += 1
                self.credit = _CREDIT
                try:
                    over = await (job.run() if clock is None else clock(job))
                except BaseException as error:  # noqa: BLE001 - the bulkhead
                    self._contain(job, error)
                    over = self.job_done()
                # What a handler sets in a context variable is its own: the next one gets a fresh copy.
                # Compared by identity: an equal value is another one (and comparing would run code of the handler's).
                context = self.context  # the one in use: no copy is needed to look into it
                if len(context) != size or (size and not all(map(is_, context.values(), pristine))):
                    job.context_changed(self.context)
                    return
                if over:
                    return
        finally:
            self.jobs += done

    def _contain(self, job: Any, error: BaseException) -> None:
        """The one bulkhead: an `Exception` is the job's own affair, what must end tasks goes on."""
        if type(job) is Timed:
            job = job.job
        own, rest = split_error(error)
        if own is not None:
            self.failures += 1
            job.failed(own)
        if rest is not None:
            self.cut_off.append(job)
            if self.running is not None:
                self.running.cut_off = job
            raise rest

    def _first_yield(self, worker: Worker) -> None:
        worker.yielded = True
        job = worker.job = self.job
        self.suspended += 1
        self.suspending = worker
        job.suspended()
        worker.task.name = getattr(job, "title", _WORKER)
        if worker.leaving:
            self._detach(worker)
            return
        worker.deadline = trio.current_time() + self.slot_grace
        self._grace.append((worker.deadline, worker))
        if self._overseer is not None:
            trio.lowlevel.reschedule(self._overseer)
            self._overseer = None
        self._replace()

    def _park(
        self, worker: Worker, parked: Parked, stack: Coroutine[Any, Any, Any], context: contextvars.Context
    ) -> None:
        parked.coroutine, parked.context, parked.job = stack, context, self.job
        self.parked.add(parked)
        if not worker.yielded or self.rest is not None or self.cork is not None:
            parked.job.suspended()
        if worker.yielded:
            self._settled(worker)

    def _settled(self, worker: Worker) -> None:
        worker.yielded = False
        worker.job = None
        worker.deadline = 0.0
        worker.task.name = _WORKER
        if not worker.detached:
            self.suspended -= 1

    # ------------------------------------------------ those who wait too long

    async def _oversee(self) -> None:
        """Detach workers whose job has been suspended for `slot_grace`."""
        grace = self._grace
        while True:
            if not grace:
                self._overseer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_overseeing)
                continue
            deadline, worker = grace[0]
            now = trio.current_time()
            if worker.deadline != deadline:  # that suspension is over
                grace.popleft()
            elif deadline > now:
                await trio.sleep(deadline - now)
            else:
                grace.popleft()
                self._detach(worker)

    def _stop_overseeing(self, _: object) -> Abort:
        self._overseer = None
        return Abort.SUCCEEDED

    def _detach(self, worker: Worker) -> None:
        worker.detached = True
        worker.leaving = False
        worker.deadline = 0.0
        self.suspended -= 1
        self.detached += 1
        self._workers -= 1
        self._give_back(worker)
        self._replace()

    def _rejoin(self, worker: Worker) -> bool:
        """A detached worker has done its job: it goes on, if there is a place for it."""
        if not worker.detached or worker.yielded or self._closing or self._workers > self.size:
            return False
        worker.detached = False
        self.detached -= 1
        self._workers += 1
        return True

    def _replace(self) -> None:
        """A worker is lost to its job for a while: another takes over what it would have done next."""
        if self.ready or (self.source is not None and self._leader is None):
            self._wake_one()

    # ---------------------------------------------------------------- the end

    async def _finished(self) -> None:
        self._closer = trio.lowlevel.current_task()

        def abort(_: object) -> Abort:
            self._closer = None
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    _closer: trio.lowlevel.Task | None = None

    def _wake_closer(self) -> None:
        if self._closer is not None:
            trio.lowlevel.reschedule(self._closer)
            self._closer = None

    async def _unwind(self) -> None:
        """End every parked coroutine by resuming it under cancellation, `size` at a time; its `finally` may await."""
        # Those that were woken and found no worker any more are among the jobs, which nobody will run now.
        self.parked.update(job for job in self.ready if job.__class__ is Parked)
        # The others were not begun. The engine tells connections among them their end.
        begun = [job for job in self.ready if job.__class__ is not Parked]
        self.cut_off += [job.job if type(job) is Timed else job for job in begun]
        self.ready.clear()
        if not self.parked:
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            async with trio.open_nursery() as nursery:
                for _ in range(int(min(self._size, len(self.parked)))):
                    nursery.start_soon(self._unwind_some)

    async def _unwind_some(self) -> None:
        while self.parked:
            parked = self.parked.pop()
            worker = Worker(trio.lowlevel.current_task())
            self.ready.append(parked)
            del parked
            try:
                await self._drive(worker)
            except trio.Cancelled:
                pass
            except BaseExceptionGroup as group:
                if not nothing_but(trio.Cancelled, group):
                    raise


def split_error(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """What of `error` is an `Exception`, and what must go on: `Cancelled`, `KeyboardInterrupt`, `SystemExit`.

    A nursery that fails during a hard stop raises both in one group, which ``except Exception`` would miss.
    """
    if isinstance(error, Exception):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        own, rest = error.split(Exception)
        return own, rest
    return None, error
