"""The pool: who runs, who waits, who pays for it; nothing is lost and nobody waits for ever."""

from __future__ import annotations

import contextvars
import gc
import itertools
import math
import random
import weakref
from collections import deque

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trionet.errors import ConfigurationError
from trionet.net.pool import Parked, TaskPool, Waiter, split_error

variable = contextvars.ContextVar("variable", default="unset")


def tasks():
    """Tasks that live in this run."""
    return trio.lowlevel.current_statistics().tasks_living


class Source:
    """Stands for the poller: `give` makes jobs ready, and wakes the leader."""

    def __init__(self, pool):
        self.pool = pool
        pool.source = self
        self.events = deque()
        self.some = trio.Event()
        self.waits = 0
        self.waiting = False

    def give(self, *jobs):
        self.events += jobs
        self.some.set()

    def fetch(self):
        while self.events:
            job = self.events.popleft()
            job.given += 1
            self.pool.ready.append(job)
        self.some = trio.Event()

    async def wait(self):
        assert not self.waiting, "two leaders"
        self.waits += 1
        self.waiting = True
        try:
            if not self.events:
                await self.some.wait()
        finally:
            self.waiting = False


class Job:
    """A job as connections are: an object that runs again and again."""

    def __init__(self, pool, function, *args):
        self.pool = pool
        self.function = function
        self.args = args
        self.given = self.runs = self.suspensions = 0
        self.errors = []

    async def run(self):
        self.runs += 1
        await self.function(*self.args)
        return self.pool.job_done()

    def suspended(self):
        self.suspensions += 1

    def failed(self, error):
        self.errors.append(error)


async def nothing():
    """A job that never yields."""


@pytest.fixture
async def limit():
    """Fail a test that hangs, on the clock of the machine or of the test."""
    with trio.fail_after(20):
        yield


# ------------------------------------------------------------------ giving it work


async def test_scheduled_calls_run_with_their_arguments():
    """Every call runs once, with its arguments, in order; the block ends when the last has."""
    seen = []

    async def job(number):
        seen.append(number)
        if number % 3 == 0:
            await trio.lowlevel.checkpoint()
            seen.append(number + 0.5)

    async with TaskPool(2) as pool:
        for number in range(10):
            await pool.schedule(job, number)
    assert sorted(seen) == sorted([*range(10), 0.5, 3.5, 6.5, 9.5])
    assert [number for number in seen if isinstance(number, int)] == list(range(10))
    assert pool.statistics().jobs == 10
    assert pool.statistics().busy == 0


async def test_the_block_waits_for_detached_and_parked_jobs(autojump_clock, limit):
    """Leaving the block waits for what waits, however long that is."""
    done = []

    async def sleeps():
        await trio.sleep(6)
        done.append("slept")
        parked[0].wake()

    parked = []

    async def parks():
        waiter = pool.waiter()
        assert isinstance(waiter, Parked)
        parked.append(waiter)
        await waiter.wait()
        done.append("parked")

    async with TaskPool(1) as pool:
        await pool.schedule(parks)
        await pool.schedule(sleeps)
    assert done == ["slept", "parked"]
    assert pool.statistics().detached == pool.statistics().parked == 0


async def test_the_queue_has_a_bound(autojump_clock):
    """`schedule_nowait` raises `WouldBlock` when the queue is full, `schedule` waits for room, in turn."""
    gate = trio.Event()
    seen = []

    async def job(name):
        await gate.wait()
        seen.append(name)

    async with TaskPool(1, queue=2, slot_grace=math.inf) as pool:
        await pool.schedule(job, "running")
        await wait_all_tasks_blocked()
        pool.schedule_nowait(job, "a")
        pool.schedule_nowait(job, "b")
        with pytest.raises(trio.WouldBlock):
            pool.schedule_nowait(job, "never")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.schedule, job, "c")
            await wait_all_tasks_blocked()
            with trio.move_on_after(5) as scope:
                await pool.schedule(job, "cancelled")
            assert scope.cancelled_caught
            assert pool.statistics().queued == 2
            gate.set()
    assert seen == ["running", "a", "b", "c"]


async def test_schedule_is_a_checkpoint_and_a_cancelled_one_does_nothing():
    """It yields always; cancelled, it has not queued anything."""
    ran = []

    async def job():
        ran.append(1)

    async with TaskPool(1) as pool:
        with assert_checkpoints():
            await pool.schedule(job)
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.schedule(job)
        assert scope.cancelled_caught
    assert ran == [1]


async def test_a_pool_that_does_not_run_takes_nothing():
    """Before and after its block a pool refuses, and says so."""
    pool = TaskPool(1)
    with pytest.raises(RuntimeError, match="not running"):
        pool.schedule_nowait(nothing)
    async with pool:
        await pool.schedule(nothing)
    with pytest.raises(RuntimeError, match="not running"):
        await pool.schedule(nothing)


async def test_whoever_waits_for_room_learns_of_the_end(limit):
    """A pool that ends while tasks wait in `schedule` leaves none of them waiting."""
    refused = []

    async def waits():
        try:
            await pool.schedule(nothing)
        except RuntimeError:
            refused.append(1)

    async with trio.open_nursery() as nursery:
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError), allow_unwrapped=False):
            async with TaskPool(1, queue=1, slot_grace=math.inf) as pool:
                await pool.schedule(trio.sleep_forever)
                await wait_all_tasks_blocked()
                await pool.schedule(nothing)
                for _ in range(3):
                    nursery.start_soon(waits)
                await wait_all_tasks_blocked()
                raise KeyError
        await wait_all_tasks_blocked()
        assert refused == [1, 1, 1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options,message", [({"size": 0}, "pool size is 0"), ({"queue": 0}, "pool queue is 0")]
)
def test_settings_that_cannot_work(options, message):
    """A pool without a worker, or whose queue holds nothing, is a mistake."""
    with pytest.raises(ConfigurationError, match=message):
        TaskPool(**options)


# ---------------------------------------------------------------------- slots


class Crowd:
    """Jobs that run until they are let go, and who of them runs."""

    def __init__(self):
        self.gate = trio.Event()
        self.running = 0
        self.most = 0
        self.done = 0

    async def job(self):
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        self.done += 1


async def test_no_more_run_than_there_are_slots():
    """Of many jobs `size` run at once, the others wait their turn."""
    crowd = Crowd()
    async with TaskPool(3, slot_grace=math.inf) as pool:
        for _ in range(10):
            await pool.schedule(crowd.job)
        await wait_all_tasks_blocked()
        statistics = pool.statistics()
        assert crowd.running == 3
        assert (statistics.busy, statistics.suspended, statistics.queued) == (3, 3, 7)
        crowd.gate.set()
    assert (crowd.most, crowd.done) == (3, 10)


async def test_the_size_can_change_while_jobs_run():
    """More slots are used at once; fewer let running jobs finish, and hold from then on."""
    crowd = Crowd()
    async with TaskPool(2, slot_grace=math.inf) as pool:
        assert pool.size == 2
        for _ in range(8):
            await pool.schedule(crowd.job)
        await wait_all_tasks_blocked()
        assert crowd.running == 2
        pool.size = 5
        await wait_all_tasks_blocked()
        assert crowd.running == pool.size == pool.statistics().size == 5
        pool.size = 1
        await wait_all_tasks_blocked()
        assert crowd.running == 5
        second = crowd.gate
        crowd.gate = trio.Event()
        second.set()
        await wait_all_tasks_blocked()
        assert (crowd.running, crowd.done) == (1, 5)
        crowd.gate.set()
    assert crowd.done == 8


async def test_two_pools_share_a_limiter():
    """With one limiter two pools run no more jobs than it has tokens, and both get on."""
    limiter = trio.CapacityLimiter(3)
    crowd, other = Crowd(), Crowd()
    async with (
        TaskPool(limiter=limiter, slot_grace=math.inf) as first,
        TaskPool(limiter=limiter, slot_grace=math.inf) as second,
    ):
        assert first.size == second.size == 3
        for _ in range(5):
            await first.schedule(crowd.job)
            await second.schedule(other.job)
        await wait_all_tasks_blocked()
        assert crowd.running + other.running == limiter.borrowed_tokens == 3
        crowd.gate.set()
        other.gate.set()
    assert (crowd.done, other.done) == (5, 5)
    assert limiter.borrowed_tokens == 0


# --------------------------------------------------------- leader and followers


async def test_a_job_that_never_yields_wakes_nobody():
    """However many jobs run to their end, one task works and leads, without a slot while it waits."""
    pool = TaskPool(4)
    source = Source(pool)
    job = Job(pool, nothing)
    async with pool:
        await wait_all_tasks_blocked()
        assert source.waiting
        before = tasks()
        for _ in range(20):
            source.give(job, job, job)
            await wait_all_tasks_blocked()
        statistics = pool.statistics()
        assert tasks() == before
        assert (job.runs, job.suspensions, statistics.idle, statistics.busy) == (60, 0, 0, 0)
        assert source.waits == 21


async def test_at_the_first_yield_a_follower_takes_over():
    """A job that waits costs the others nothing: a follower carries on with the queue, then leads."""
    pool = TaskPool(4, slot_grace=math.inf)
    source = Source(pool)
    crowd = Crowd()
    slow, quick = Job(pool, crowd.job), Job(pool, nothing)
    async with pool:
        await wait_all_tasks_blocked()
        source.give(slow, quick, quick)
        await wait_all_tasks_blocked()
        assert (slow.suspensions, quick.runs) == (1, 2)
        assert source.waiting
        assert pool.statistics().busy == 1
        source.give(quick)
        await wait_all_tasks_blocked()
        assert quick.runs == 3
        crowd.gate.set()
        await wait_all_tasks_blocked()
        statistics = pool.statistics()
        assert (crowd.done, statistics.idle, statistics.busy, statistics.suspended) == (1, 1, 0, 0)


async def test_at_size_running_jobs_nobody_polls():
    """When every slot is taken events stay where they are: not polling is the backpressure."""
    pool = TaskPool(2, slot_grace=math.inf)
    source = Source(pool)
    crowd = Crowd()
    async with pool:
        await wait_all_tasks_blocked()
        source.give(*[Job(pool, crowd.job) for _ in range(2)])
        await wait_all_tasks_blocked()
        late = [Job(pool, nothing) for _ in range(3)]
        source.give(*late)
        await wait_all_tasks_blocked()
        source.give(*late)
        await wait_all_tasks_blocked()
        assert not any(job.runs for job in late)
        assert all(job.given <= 1 for job in late)
        crowd.gate.set()
        await wait_all_tasks_blocked()
        assert all(job.runs == 2 for job in late)


async def test_other_tasks_get_their_turn():
    """Work that never ends does not keep other tasks from running."""
    pool = TaskPool(1)
    source = Source(pool)
    turns = []

    async def more():
        source.give(again)

    again = Job(pool, more)
    async with trio.open_nursery() as nursery:

        async def other():
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                turns.append(again.runs)
            nursery.cancel_scope.cancel()

        async with pool:
            nursery.start_soon(other)
            source.give(again)
            await trio.sleep_forever()
    assert len(turns) == 3


# --------------------------------------------- a slot pays for running, not waiting


async def test_a_job_suspended_for_slot_grace_is_detached(autojump_clock):
    """After `slot_grace` its slot is free for another; it goes on at once when what it waits for comes."""
    crowd = Crowd()
    ran = []

    async def later():
        ran.append(trio.current_time())

    async with TaskPool(1, slot_grace=0.1) as pool:
        begin = trio.current_time()
        await pool.schedule(crowd.job)
        await pool.schedule(later)
        await trio.sleep(0.09)
        assert (pool.statistics().busy, pool.statistics().detached) == (1, 0)
        await trio.sleep(1)
        assert ran == [pytest.approx(begin + 0.1)]
        assert (pool.statistics().busy, pool.statistics().detached) == (0, 1)
        crowd.gate.set()
        await wait_all_tasks_blocked()
        assert crowd.done == 1
        assert (pool.statistics().detached, pool.statistics().suspended) == (0, 0)


async def test_a_job_that_is_back_in_time_keeps_its_slot(autojump_clock):
    """Shorter waits than `slot_grace`, one after the other, never detach."""

    async def job():
        await trio.sleep(0.09)

    async with TaskPool(1, slot_grace=0.1) as pool:
        for _ in range(5):
            await pool.schedule(job)
        for _ in range(50):
            await trio.sleep(0.01)
            assert pool.statistics().detached == 0


async def test_a_job_that_waits_again_has_its_grace_again(autojump_clock):
    """The grace of a suspension ends with it: the next one of the same job begins anew, and is detached once."""
    pool = TaskPool(1, slot_grace=0.1)
    waits = deque([0.05, 1.0])

    async def sleep():
        await trio.sleep(waits.popleft())

    job = Job(pool, sleep)
    async with pool:
        pool.submit(job)
        await trio.sleep(0.06)
        assert job.runs == 1
        assert pool.statistics().suspended == 0
        pool.submit(job)  # suspended from 0.06 to 1.06
        await trio.sleep(0.06)  # 0.12
        assert (pool.statistics().suspended, pool.statistics().detached) == (1, 0)
        await trio.sleep(0.06)  # 0.18
        assert (pool.statistics().suspended, pool.statistics().detached) == (0, 1)
        await trio.sleep(2)
        statistics = pool.statistics()
        assert (statistics.suspended, statistics.detached, statistics.busy) == (0, 0, 0)


async def test_a_hundred_that_wait_for_each_other_all_finish(autojump_clock):
    """Four slots, and a hundred jobs none of which ends before all have begun: no deadlock."""
    arrived, everybody = [], trio.Event()

    async def job():
        arrived.append(1)
        if len(arrived) == 100:
            everybody.set()
        await everybody.wait()

    async with TaskPool(4, slot_grace=0.1) as pool:
        for _ in range(100):
            await pool.schedule(job)
    assert len(arrived) == 100
    assert pool.statistics().detached == 0


async def test_detached_jobs_that_share_a_lock_all_finish(autojump_clock):
    """A detached job never queues for a slot, or holders of a lock would wait behind those who wait for it."""
    lock, done = trio.Lock(), []

    async def job():
        async with lock:
            await trio.sleep(0.3)
        done.append(1)

    async with TaskPool(2, slot_grace=0.1) as pool:
        for _ in range(10):
            await pool.schedule(job)
    assert len(done) == 10


@pytest.mark.parametrize("pause", [0, 0.05, 1.0])
async def test_work_submitted_by_a_job_that_has_waited_is_begun(autojump_clock, pause):
    """A job that has yielded, or is detached, may give the pool work and wait for it."""
    done = trio.Event()

    async def inner():
        done.set()

    async def outer():
        await trio.sleep(pause)
        pool.schedule_nowait(inner)
        await done.wait()

    pool = TaskPool(4, slot_grace=0.1)
    Source(pool)
    async with pool:
        await pool.schedule(outer)
        await trio.sleep(pause + 0.01)
        assert done.is_set()


@pytest.mark.parametrize("pause", [0, 1.0])
async def test_a_parked_job_woken_by_one_that_has_waited_goes_on(autojump_clock, pause):
    """Waking a parked job is giving the pool work: it goes on although its waker waits on."""
    pool = TaskPool(4, slot_grace=0.1)
    Source(pool)
    waiters, gone_on = [], []

    async def parks():
        waiters.append(pool.waiter())
        await waiters[0].wait()
        gone_on.append(trio.current_time())

    async def wakes():
        await trio.sleep(pause)
        waiters[0].wake()
        await trio.sleep(50)

    async with pool:
        begin = trio.current_time()
        await pool.schedule(parks)
        await pool.schedule(wakes)
        await trio.sleep(pause + 0.01)
        assert gone_on == [begin + pause]


# --------------------------------------------------------------------- parking


async def test_who_can_be_parked():
    """Not while a scope, a nursery or a lock holds the task, nor in a child task; else yes."""
    seen = {}
    lock = trio.Lock()

    async def child():
        seen["child task"] = pool.can_park()

    async def job():
        seen["plain"] = pool.can_park()
        with trio.CancelScope():  # noqa: ASYNC100
            seen["scope"] = pool.can_park()
        with trio.move_on_after(5):  # noqa: ASYNC100
            seen["timeout"] = pool.can_park()
        seen["scope closed"] = pool.can_park()
        async with trio.open_nursery() as nursery:
            seen["nursery"] = pool.can_park()
            nursery.start_soon(child)
        seen["nursery closed"] = pool.can_park()
        async with lock:
            seen["lock"] = pool.can_park()
            assert isinstance(pool.waiter(), Waiter)
        seen["lock released"] = pool.can_park()
        await trio.lowlevel.checkpoint()
        seen["after a wait"] = pool.can_park()
        with trio.CancelScope() as scope:
            await trio.lowlevel.checkpoint()
            seen["scope after a wait"] = pool.can_park()
            scope.cancel()

    async with TaskPool(1) as pool:
        assert not pool.can_park()
        await pool.schedule(job)
    assert {name for name, answer in seen.items() if answer} == {
        "plain",
        "scope closed",
        "nursery closed",
        "lock released",
        "after a wait",
    }
    assert len(seen) == 11


async def test_a_parked_job_costs_no_task():
    """A thousand parked jobs and one worker: only coroutines are kept, and each goes on when it is woken."""
    waiters, done = [], []

    async def job(number):
        waiter = pool.waiter()
        waiters.append(waiter)
        await waiter.wait()
        done.append(number)

    async with TaskPool(2) as pool:
        before = tasks()
        for number in range(1000):
            await pool.schedule(job, number)
        await wait_all_tasks_blocked()
        assert pool.statistics().parked == 1000
        assert pool.statistics().busy == 0
        assert tasks() <= before + 2
        for waiter in waiters:
            waiter.wake()
            waiter.wake()  # a second call does nothing
    assert done == list(range(1000))


async def test_a_parked_job_goes_on_in_another_task():
    """The worker it had may be busy: any worker resumes it, with its locals and its context variables."""
    waiters, found = [], []
    gate = trio.Event()

    async def parks():
        variable.set("mine")
        found.append(trio.lowlevel.current_task())
        waiters.append(pool.waiter())
        await waiters[0].wait()
        found.append(trio.lowlevel.current_task())
        assert variable.get() == "mine"
        await trio.lowlevel.checkpoint()
        assert variable.get() == "mine"

    async def blocks():
        assert variable.get() == "unset"
        found.append(trio.lowlevel.current_task())
        await gate.wait()

    async with TaskPool(4, slot_grace=math.inf) as pool:
        pool.schedule_nowait(parks)
        pool.schedule_nowait(blocks)
        await wait_all_tasks_blocked()
        waiters[0].wake()
        await wait_all_tasks_blocked()
        gate.set()
    parked_in, blocked_in, resumed_in = found
    assert parked_in is blocked_in
    assert resumed_in is not parked_in


async def test_a_job_may_park_again_and_after_a_wait():
    """Parking, waiting in the task and parking again may follow each other in any order."""
    waiters, done = [], []

    async def park():
        waiters.append(pool.waiter())
        await waiters[-1].wait()

    async def job():
        await park()
        await trio.lowlevel.checkpoint()
        await park()
        await park()
        await trio.lowlevel.checkpoint()
        done.append(1)

    async with TaskPool(1) as pool:
        await pool.schedule(job)
        for _ in range(3):
            await wait_all_tasks_blocked()
            assert pool.statistics().parked == 1
            assert pool.statistics().suspended == 0
            waiters[-1].wake()
    assert done == [1]


async def test_a_detached_job_that_parks_gives_its_task_back(autojump_clock):
    """A job that waited long and then parks is an ordinary parked one; its task ends."""
    waiters = []

    async def job():
        await trio.sleep(1)
        waiters.append(pool.waiter())
        await waiters[0].wait()

    async with TaskPool(1, slot_grace=0.1) as pool:
        await pool.schedule(job)
        await trio.sleep(0.5)
        before = tasks()
        assert pool.statistics().detached == 1
        await trio.sleep(1)
        assert (pool.statistics().detached, pool.statistics().parked) == (0, 1)
        assert tasks() <= before
        waiters[0].wake()


async def test_context_variables_end_with_the_job():
    """What a job sets is not seen by the next one; what was set around the pool is seen by all."""
    seen = []

    async def job(value):
        seen.append(variable.get())
        variable.set(value)

    async def waiting_job(value):
        await job(value)
        await trio.lowlevel.checkpoint()
        seen.append(variable.get())

    token = variable.set("around")
    async with TaskPool(1) as pool:
        assert pool.base_context[variable] == "around"
        for value in "abc":
            await pool.schedule(job, value)
        await pool.schedule(waiting_job, "d")
        await pool.schedule(job, "e")
    variable.reset(token)
    assert seen == ["around", "around", "around", "around", "d", "around"]


@pytest.mark.parametrize("seed", range(3))
async def test_context_variables_of_jobs_that_wait_in_every_way(seed):
    """Suspended, detached or parked, resumed by whatever worker: each sees what it has set itself, and nothing else."""
    chance = random.Random(seed)
    wrong, done = [], []
    parked = []

    async def job(pool, number, steps):
        mine = "around"
        for step in ("look", *steps):
            if variable.get() != mine:
                wrong.append((number, step, variable.get()))
            if step == "set":
                mine = f"{number}.{len(done)}"
                variable.set(mine)
            elif step == "other":
                contextvars.ContextVar("other").set(number)
            elif step == "yield":
                await trio.lowlevel.checkpoint()
            elif step == "detach":
                await trio.sleep(0.02)
            elif step == "park":
                parked.append(waiter := pool.waiter())
                await waiter.wait()
        done.append(number)

    token = variable.set("around")
    async with TaskPool(3, slot_grace=0.005) as pool:
        for number in range(60):
            steps = chance.choices(
                ["set", "other", "yield", "yield", "detach", "park"], k=chance.randrange(5)
            )
            await pool.schedule(job, pool, number, steps)
            for _ in range(chance.randrange(3)):
                await trio.lowlevel.checkpoint()
            while parked and chance.random() < 0.5:
                parked.pop(chance.randrange(len(parked))).wake()
        with trio.fail_after(10):
            while len(done) < 60:
                while parked:
                    parked.pop().wake()
                await trio.sleep(0.001)
    variable.reset(token)
    assert wrong == []


async def test_a_job_is_let_go_when_it_is_done():
    """Behind a job nothing of the pool keeps it alive: not what ran, what failed, or what was parked."""

    class Thing:
        pass

    refs, waiters = [], []

    async def job(kind):
        thing = Thing()
        refs.append(weakref.ref(thing))
        if kind == "fails":
            raise ValueError(thing)
        if kind == "yields":
            await trio.lowlevel.checkpoint()
        if kind == "parks":
            waiters.append(pool.waiter())
            await waiters[0].wait()

    pool = TaskPool(2)
    source = Source(pool)
    gc.disable()
    try:
        async with pool:
            for kind in ("runs", "fails", "yields", "parks"):
                made = Job(pool, job, kind)
                source.give(made)
                await wait_all_tasks_blocked()
                if waiters:
                    waiters.pop().wake()
                    await wait_all_tasks_blocked()
                made.errors.clear()  # the error's traceback leads back to the job: a ring of the test's own
                del made
            source.give(Job(pool, nothing))
            await wait_all_tasks_blocked()
            assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()


# -------------------------------------------------------------------- hard stop


async def test_a_hard_stop_resumes_parked_jobs_under_cancellation(autojump_clock):
    """`Cancelled` is raised in each, once, and a `finally` block may wait behind a shield."""
    ended = []
    pool = TaskPool(2)
    Source(pool)

    async def job(number):
        try:
            await pool.waiter().wait()
        except trio.Cancelled:
            ended.append(("cancelled", number))
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            ended.append(("done", number))

    before = tasks()
    async with trio.open_nursery() as nursery, pool:
        for number in range(5):
            await pool.schedule(job, number)
        await wait_all_tasks_blocked()
        assert pool.statistics().parked == 5
        nursery.cancel_scope.cancel()
    assert sorted(ended) == sorted([(word, n) for word in ("cancelled", "done") for n in range(5)])
    assert pool.statistics().parked == 0
    assert pool.limiter.borrowed_tokens == 0
    assert tasks() == before


async def test_no_more_than_size_unwind_at_once(autojump_clock):
    """A hard stop of very many parked jobs keeps to the pool's size."""
    crowd = Crowd()
    crowd.gate.set()
    pool = TaskPool(3)
    Source(pool)

    async def job():
        try:
            await pool.waiter().wait()
        finally:
            with trio.CancelScope(shield=True):
                crowd.running += 1
                crowd.most = max(crowd.most, crowd.running)
                await trio.sleep(1)
                crowd.running -= 1
                crowd.done += 1

    async with trio.open_nursery() as nursery, pool:
        for _ in range(10):
            await pool.schedule(job)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (crowd.most, crowd.done) == (3, 10)


async def test_a_parked_job_woken_just_before_the_stop_is_ended_too():
    """Between its wake-up and its turn the stop may come: it is resumed all the same."""
    pool = TaskPool(1)
    Source(pool)
    waiters, ended = [], []

    async def job():
        waiters.append(pool.waiter())
        try:
            await waiters[0].wait()
        finally:
            ended.append(1)

    async with trio.open_nursery() as nursery, pool:
        await pool.schedule(job)
        await wait_all_tasks_blocked()
        waiters[0].wake()
        nursery.cancel_scope.cancel()
    assert ended == [1]


async def test_an_unwinding_job_that_fails_leaves_none_behind(autojump_clock):
    """A `finally` block whose nursery raises an error together with `Cancelled` keeps no other job from its end."""
    pool = TaskPool(1)
    Source(pool)
    jobs, ended = [], []

    async def breaks():
        raise ValueError

    async def job():
        try:
            await pool.waiter().wait()
        finally:
            ended.append(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(breaks)
                nursery.start_soon(trio.sleep_forever)

    async with trio.open_nursery() as nursery, pool:
        for _ in range(3):
            jobs.append(Job(pool, job))
            pool.submit(jobs[-1])
        await wait_all_tasks_blocked()
        assert pool.statistics().parked == 3
        nursery.cancel_scope.cancel()
    assert ended == [1, 1, 1]
    assert [len(job.errors) for job in jobs] == [1, 1, 1]


async def test_a_hard_stop_ends_running_and_detached_jobs(autojump_clock):
    """Cancelling reaches every job, in its task, and every token is back."""
    ended = []

    async def job():
        try:
            await trio.sleep_forever()
        finally:
            ended.append(1)

    before = tasks()
    async with trio.open_nursery() as nursery, TaskPool(2, slot_grace=0.1) as pool:
        for _ in range(5):
            await pool.schedule(job)
        await trio.sleep(0.15)
        assert (pool.statistics().detached, pool.statistics().suspended) == (2, 2)
        nursery.cancel_scope.cancel()
    assert len(ended) == 4  # the fifth had not begun
    assert pool.limiter.borrowed_tokens == 0
    assert pool.statistics().detached == 0
    assert tasks() == before


# ------------------------------------------------------------------- exceptions

CASES = {
    "plain": (lambda: ValueError("x"), "own"),
    "group": (lambda: ExceptionGroup("g", [ValueError(), KeyError()]), "own"),
    "interrupt": (KeyboardInterrupt, "rest"),
    "exit": (SystemExit, "rest"),
    "mixed": (lambda: BaseExceptionGroup("g", [ValueError(), KeyboardInterrupt()]), "both"),
    "nested": (
        lambda: BaseExceptionGroup(
            "g", [ExceptionGroup("h", [ValueError()]), BaseExceptionGroup("i", [SystemExit()])]
        ),
        "both",
    ),
    "only base": (lambda: BaseExceptionGroup("g", [SystemExit(), KeyboardInterrupt()]), "rest"),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_are_split(name):
    """Exceptions are the job's own affair; what must end tasks goes on, also out of a group that holds both."""
    make, kind = CASES[name]
    error = make()
    own, rest = split_error(error)
    assert (own is not None) is (kind in ("own", "both"))
    assert (rest is not None) is (kind in ("rest", "both"))
    if kind == "own":
        assert own is error
    if own is not None:
        assert isinstance(own, Exception)
    if isinstance(rest, BaseExceptionGroup):
        assert rest.split(Exception)[0] is None


@pytest.mark.parametrize("pauses", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] == "own"])
async def test_a_job_that_fails_is_told_once_and_costs_nobody_else(name, pauses):
    """`failed` gets the error, once; the pool goes on, and counts."""
    pool = TaskPool(1)
    source = Source(pool)
    error = CASES[name][0]()

    async def fails():
        if pauses:
            await trio.lowlevel.checkpoint()
        raise error

    bad, good = Job(pool, fails), Job(pool, nothing)
    async with pool:
        source.give(bad, good)
        await wait_all_tasks_blocked()
        source.give(good)
        await wait_all_tasks_blocked()
        statistics = pool.statistics()
        assert bad.errors == [error]
        assert good.runs == 2
        assert (statistics.failures, statistics.busy, statistics.suspended) == (1, 0, 0)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] != "own"])
async def test_what_must_end_the_server_goes_on(name):
    """`KeyboardInterrupt` and `SystemExit` leave the pool; the job hears of its own part only."""
    pool = TaskPool(1)
    Source(pool)

    async def fails():
        raise CASES[name][0]()  # noqa: RSE102

    job = Job(pool, fails)
    caught = None
    try:
        async with pool:
            pool.submit(job)
            await trio.sleep_forever()
    except BaseExceptionGroup as group:
        caught = group
    assert caught is not None
    assert caught.split(Exception)[0] is None
    assert len(job.errors) == (CASES[name][1] == "both")
    assert pool.limiter.borrowed_tokens == 0


async def test_a_hard_stop_is_not_an_error_of_the_job():
    """`Cancelled` passes through, and `failed` hears nothing."""
    pool = TaskPool(1)
    Source(pool)
    job = Job(pool, trio.sleep_forever)
    with trio.CancelScope() as scope:
        async with pool:
            pool.submit(job)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert job.errors == []
    assert pool.statistics().failures == 0


async def test_a_nursery_that_fails_during_a_hard_stop_is_split():
    """The error of a handler's nursery is told, its `Cancelled` ends the task, and the stop goes on."""
    pool = TaskPool(1)
    Source(pool)

    async def breaks():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    async def run():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaks)
            await trio.sleep_forever()

    job = Job(pool, run)
    with trio.CancelScope() as scope:
        async with pool:
            pool.submit(job)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert len(job.errors) == 1
    assert job.errors[0].split(ValueError)[1] is None


async def test_a_scheduled_call_that_raises_ends_the_block():
    """Calls have no bulkhead of their own: their error leaves the pool's block, and other jobs are cancelled."""

    async def fails():
        raise LookupError

    with pytest.RaisesGroup(pytest.RaisesExc(LookupError)):
        async with TaskPool(2) as pool:
            await pool.schedule(trio.sleep_forever)
            await pool.schedule(fails)
    assert pool.limiter.borrowed_tokens == 0


# ---------------------------------------------------------------------- manners


async def test_a_handler_that_never_waits_lets_others_run():
    """After its credit an operation that does not wait gives way, and before that it sees a cancellation."""
    spins, turns = [], []

    async def spin():
        with trio.CancelScope() as scope:
            scopes.append(scope)
            while True:
                spins.append(1)
                pool.credit -= 1
                await pool.breathe()

    scopes = []

    async def other():
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            turns.append(len(spins))
        scopes[0].cancel()

    async with trio.open_nursery() as nursery, TaskPool(1) as pool:
        await pool.schedule(spin)
        nursery.start_soon(other)
    assert len(turns) == 3
    assert all(later - earlier <= 200 for earlier, later in itertools.pairwise(turns))


async def test_each_job_has_its_own_credit():
    """A job begins with 64 operations that need not let others run, whatever the one before it used up."""
    seen = []

    async def job():
        seen.append(pool.credit)
        pool.credit = 0

    async with TaskPool(1) as pool:
        for _ in range(3):
            await pool.schedule(job)
    assert seen == [64, 64, 64]


async def test_a_waiter_that_is_cancelled_is_not_woken():
    """After cancellation `wake` does nothing, and before `wait` neither."""
    waiter = Waiter()
    waiter.wake()
    with trio.CancelScope() as scope:
        scope.cancel()
        await waiter.wait()
    assert scope.cancelled_caught
    waiter.wake()
