"""What the supervisor decides: pure, told of every event and of the time.

A slot is a worker's place, with listening sockets of its own that outlive every process in it.

    STARTING   forked, loads the application                 → ready: SERVING · ended or too late: fails
    SERVING    accepts                                       → successor ready: RETIRED · ended: a crash
    RETIRED    accepts no more, keeps its connections        → all successors serve: DRAINING
    DRAINING   tells its connections to go                   → ended, or killed at its deadline

A rolling restart starts one successor first. If that one fails, nothing has changed and the old ones go on. Else the
others follow, one at a time; each old worker stops accepting once its successor is ready, and only when all are does
draining begin, so that nobody who is told to come back is told so twice.

A crash is repaired at once if the worker had served for `STABLE` seconds, and after a growing pause if not; meanwhile
connections wait in the slot's queue. A worker that somebody else told to end is replaced while it drains. A first start
that fails ends everything: there is nothing to go back to.

Whoever is to be killed for being late or silent gets SIGABRT first, which makes it show where it is (faulthandler).
"""

from __future__ import annotations

import random
import signal
from typing import Final, Literal

import attrs

__all__ = ["Act", "Child", "Rules", "Slots", "crash_pause", "how_ended"]

STABLE: Final = 10.0  # seconds of serving after which a crash counts as the first
BACKOFF_FIRST: Final = 0.25
BACKOFF_MOST: Final = 15.0
MARGIN: Final = 5.0  # seconds a worker gets beyond `grace` to end by itself
_ABORT: Final = 2.0  # seconds between SIGABRT and SIGKILL

State = Literal["starting", "serving", "retired", "draining"]


@attrs.frozen
class Act:
    """What is to be done: "fork" for `slot`; "retire", "drain", "kill" the process `pid`; "say" `text`; "exit"."""

    do: Literal["fork", "retire", "drain", "kill", "say", "exit"]
    slot: int = 0
    generation: int = 0
    pid: int = 0
    number: int = 0  # the signal for "kill", the status for "exit"
    text: str = ""


@attrs.frozen(kw_only=True)
class Rules:
    """Seconds; see `ServeSettings`. `patient`: a first start that fails is tried again at the next reload."""

    grace: float = 30.0
    start_timeout: float = 60.0
    worker_timeout: float | None = 60.0
    patient: bool = False


@attrs.define(eq=False)
class Child:
    """A worker's process. `rules`: those it was started by, and knows; a reload changes them for its successors."""

    pid: int
    slot: int
    generation: int
    since: float
    rules: Rules
    state: State = "starting"
    deadline: float | None = None  # it is killed then
    heard: float = 0.0
    aborted: bool = False
    outdated: bool = False  # killed while starting, because there may be newer code than it has loaded

    @property
    def name(self) -> str:
        """What it is called in the log."""
        return f"worker {self.slot} (pid {self.pid})"


@attrs.define(eq=False)
class _Slot:
    number: int
    generation: int = 0
    serving: Child | None = None
    starting: Child | None = None
    failures: int = 0
    retry_at: float | None = None
    restarts: int = 0


class Slots:
    """The plan for `count` workers. Each method takes an event and returns what is to be done, in order."""

    def __init__(self, count: int, rules: Rules) -> None:
        self.rules = rules
        self.slots = {number: _Slot(number) for number in range(1, count + 1)}
        self.children: dict[int, Child] = {}
        self.ready_once = False  # all were, at some time
        self.stopping = False
        self.rolling: list[int] = []  # slots that wait for a successor
        self.roll_again = False
        self._rolled = 0  # successors that are ready, in this roll
        self._roll = False
        self._exit = 0

    # ---------------------------------------------------------------- events

    def start(self) -> list[Act]:
        """Begin: a worker for each slot."""
        return [self._fork(slot) for slot in self.slots.values()]

    def forked(self, pid: int, slot: int, now: float) -> None:
        """A process for `slot` runs."""
        place = self.slots[slot]
        child = Child(pid, slot, place.generation, now, self.rules, heard=now)
        child.deadline = now + self.rules.start_timeout
        self.children[pid] = child
        place.starting = child

    def not_forked(self, slot: int, why: str, now: float) -> list[Act]:
        """There is no process for `slot`: no memory, or too many processes. It is tried again, as after a crash."""
        acts = [Act("say", text=f"worker {slot} cannot be started: {why}")]
        return acts + self._start_failed(self.slots[slot], 1, now)

    def ready(self, pid: int, now: float) -> list[Act]:
        """A worker can serve, and accepts."""
        child = self.children.get(pid)
        if child is None or child.state != "starting" or child.outdated or self.stopping:
            return []
        slot = self.slots[child.slot]
        acts: list[Act] = []
        child.state, child.since, child.deadline, child.heard = "serving", now, None, now
        old, slot.serving, slot.starting, slot.retry_at = slot.serving, child, None, None
        if old is not None:
            old.state = "retired"
            acts.append(Act("retire", pid=old.pid))
        self._rolled += self._roll
        if not self.ready_once and self.all_serving:
            self.ready_once = True
            acts.append(Act("say", text="ready"))
        if self._roll:
            acts += self._roll_on()
        return acts

    def alive(self, pid: int, now: float) -> None:
        """A sign of life."""
        if pid in self.children:
            self.children[pid].heard = now

    def leaves(self, pid: int, now: float) -> list[Act]:
        """A worker drains that was not told to by us: somebody sent it SIGTERM. Its place must not stay empty."""
        child = self.children.get(pid)
        if child is None or self.stopping or child.state not in {"serving", "retired"}:
            return []
        served, child.state = child.state == "serving", "draining"
        self.drains(pid, now)
        if not served:
            return []
        slot = self.slots[child.slot]
        slot.serving = None
        slot.restarts += 1
        acts = [Act("say", text=f"{child.name} was told to end, and not by its supervisor: it drains")]
        return acts if slot.starting is not None else [*acts, self._fork(slot)]

    def away(self, seconds: float, now: float) -> None:
        """The supervisor itself could not run for so long, and likely nobody could: silence says nothing then."""
        for child in self.children.values():
            child.heard = now
            if child.deadline is not None:
                child.deadline += seconds

    def ended(self, pid: int, status: int, now: float) -> list[Act]:
        """A process has ended. `status`: its exit code, or minus the signal's number."""
        child = self.children.pop(pid, None)
        if child is None:
            return []
        slot = self.slots[child.slot]
        if self.stopping:
            return self._leave()
        if child.state in {"retired", "draining"}:
            return self._rolled_out()
        if child.outdated:
            slot.starting = None
            return [self._fork(slot)]
        acts = [Act("say", text=f"{child.name} {how_ended(status)}")]
        if child is slot.serving:
            slot.serving = None
            slot.restarts += 1
            slot.failures = 0 if now - child.since >= STABLE else slot.failures + 1
            if slot.starting is None:  # else its successor is on the way
                acts += self._retry(slot, now)
            return acts
        slot.starting = None
        return acts + self._start_failed(slot, status, now)

    def hang_up(self) -> list[Act]:
        """SIGHUP: a rolling restart. One that is asked for during another follows it."""
        if self.stopping:
            return []
        if self._roll:
            self.roll_again = True
            return [Act("say", text="a restart is under way; another follows"), *self._hurry()]
        return [Act("say", text="rolling restart"), *self._begin_roll()]

    def stop(self, now: float, status: int = 0, *, at_once: bool = False) -> list[Act]:
        """SIGTERM: drain all and end. A second call ends them at once."""
        again, self.stopping = self.stopping, True
        self._exit = self._exit or status
        for slot in self.slots.values():
            slot.retry_at = None
        acts: list[Act] = []
        if again or at_once:
            acts += [Act("kill", pid=pid, number=signal.SIGKILL) for pid in self.children]
            return [*acts, *self._leave()]
        for child in self.children.values():
            if child.state == "starting":
                acts.append(Act("kill", pid=child.pid, number=signal.SIGKILL))
            elif child.state != "draining":
                child.state = "draining"
                acts.append(Act("drain", pid=child.pid))
            self.drains(child.pid, now)
        return [*acts, *self._leave()]

    def tick(self, now: float) -> list[Act]:
        """The time has come that `next` named, or something happened."""
        acts = [
            self._fork(slot)
            for slot in self.slots.values()
            if slot.retry_at is not None and slot.retry_at <= now
        ]
        for child in self.children.values():
            if child.deadline is not None and child.deadline <= now:
                if child.aborted:
                    child.deadline = None
                    acts.append(Act("kill", pid=child.pid, number=signal.SIGKILL))
                else:
                    late = "was not ready in time" if child.state == "starting" else "did not end in time"
                    acts += self._abort(child, late, now)
            elif self._hangs(child, now):
                acts += self._abort(child, f"gave no sign of life for {now - child.heard:.0f} s", now)
        return acts

    def next(self) -> float | None:
        """When `tick` is to be called at the latest."""
        times = [slot.retry_at for slot in self.slots.values()]
        times += [child.deadline for child in self.children.values()]
        times += [
            child.heard + child.rules.worker_timeout
            for child in self.children.values()
            if child.rules.worker_timeout is not None and child.state != "starting" and not child.aborted
        ]
        return min((time for time in times if time is not None), default=None)

    # ---------------------------------------------------------------- about it

    @property
    def all_serving(self) -> bool:
        """Whether every slot has a worker that accepts."""
        return all(slot.serving is not None for slot in self.slots.values())

    @property
    def serving(self) -> int:
        """Slots with a worker that accepts."""
        return sum(slot.serving is not None for slot in self.slots.values())

    @property
    def restarting(self) -> bool:
        """Whether a rolling restart is under way."""
        return self._roll and not self.stopping

    @property
    def restarts(self) -> dict[int, int]:
        """By slot: how often its worker ended without being told to."""
        return {slot.number: slot.restarts for slot in self.slots.values()}

    # ---------------------------------------------------------------- decisions

    def _fork(self, slot: _Slot) -> Act:
        slot.generation += 1
        slot.retry_at = None
        return Act("fork", slot=slot.number, generation=slot.generation)

    def _retry(self, slot: _Slot, now: float) -> list[Act]:
        if slot.failures == 0:
            return [self._fork(slot)]
        pause = crash_pause(slot.failures)
        slot.retry_at = now + pause
        return [Act("say", text=f"worker {slot.number} starts again in {pause:.1f} s")]

    def _start_failed(self, slot: _Slot, status: int, now: float) -> list[Act]:
        slot.failures += 1
        if self.rules.patient and slot.serving is None:
            return self._end_roll("waiting for a change")
        if not self.ready_once:
            return self.stop(now, status if status > 0 else 1, at_once=True)
        if self._roll and not self._rolled and slot.serving is not None:
            return self._end_roll("the new code does not start; the workers there are go on")
        return self._retry(slot, now)

    def _abort(self, child: Child, why: str, now: float) -> list[Act]:
        """Have it show where it is; SIGKILL follows."""
        child.aborted = True
        child.deadline = now + _ABORT
        return [
            Act("say", text=f"{child.name} {why}"),
            Act("kill", pid=child.pid, number=signal.SIGABRT),
        ]

    def _hangs(self, child: Child, now: float) -> bool:
        timeout = child.rules.worker_timeout
        return (
            timeout is not None
            and child.state != "starting"
            and not child.aborted
            and now - child.heard >= timeout
        )

    def _begin_roll(self) -> list[Act]:
        self._roll, self._rolled, self.roll_again = True, 0, False
        self.rolling = list(self.slots)
        acts: list[Act] = []
        for slot in self.slots.values():
            if slot.starting is not None:  # it may have loaded the old code
                slot.starting.outdated = True
                self.rolling.remove(slot.number)
                acts.append(Act("kill", pid=slot.starting.pid, number=signal.SIGKILL))
        return [*acts, *(self._hurry() or self._roll_on())]

    def _hurry(self) -> list[Act]:
        """Start those again that wait after a failure: there may be better code now."""
        waiting = [slot for slot in self.slots.values() if slot.retry_at is not None]
        self.rolling = [number for number in self.rolling if self.slots[number] not in waiting]
        return [self._fork(slot) for slot in waiting]

    def _end_roll(self, text: str) -> list[Act]:
        self._roll, self.rolling = False, []
        return [Act("say", text=text), *(self._begin_roll() if self.roll_again else [])]

    def _roll_on(self) -> list[Act]:
        """The next successor, once the one before is ready; drain when all are."""
        if any(slot.starting is not None or slot.retry_at is not None for slot in self.slots.values()):
            return []
        if self.rolling:
            return [self._fork(self.slots[self.rolling.pop(0)])]
        acts = []
        for child in self.children.values():
            if child.state == "retired":
                child.state = "draining"
                acts.append(Act("drain", pid=child.pid))
        return acts or self._rolled_out()

    def drains(self, pid: int, now: float) -> None:
        """A worker was told to drain."""
        if pid in self.children:
            child = self.children[pid]
            if not child.aborted:
                child.deadline = now + child.rules.grace + MARGIN

    def _rolled_out(self) -> list[Act]:
        """After an old worker's end: whether the restart is complete."""
        if not self._roll or self.rolling or not self.all_serving:
            return []
        if any(child.state in {"retired", "draining", "starting"} for child in self.children.values()):
            return []
        return self._end_roll("restarted")

    def _leave(self) -> list[Act]:
        return [] if self.children else [Act("exit", number=self._exit)]


def crash_pause(failures: int) -> float:
    """Seconds until what has crashed so often in a row is started again; at once if it had served for a while."""
    if not failures:
        return 0.0
    return min(BACKOFF_FIRST * 2.0 ** min(failures - 1, 20), BACKOFF_MOST) * random.uniform(0.8, 1.2)


def how_ended(status: int) -> str:
    """What a wait status means: an exit code, or minus a signal's number."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # most real-time signals have no name
        return f"was killed by signal {-status}"
