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
connections wait in the slot's queue. A first start that fails ends everything: there is nothing to go back to.
"""

from __future__ import annotations

import random
import signal
from typing import Final, Literal

import attrs

__all__ = ["Act", "Child", "Rules", "Slots"]

STABLE: Final = 10.0  # seconds of serving after which a crash counts as the first
BACKOFF_FIRST: Final = 0.25
BACKOFF_MOST: Final = 15.0
MARGIN: Final = 5.0  # seconds a worker gets beyond `grace` to end by itself

State = Literal["starting", "serving", "retired", "draining"]


@attrs.define(eq=False)
class Child:
    """A worker's process."""

    pid: int
    slot: int
    generation: int
    since: float
    state: State = "starting"
    deadline: float | None = None  # it is killed then
    heard: float = 0.0
    aborted: bool = False


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
        self._stop_at: float | None = None

    # ---------------------------------------------------------------- events

    def start(self) -> list[Act]:
        """Begin: a worker for each slot."""
        return [self._fork(slot) for slot in self.slots.values()]

    def forked(self, pid: int, slot: int, now: float) -> None:
        """A process for `slot` runs."""
        place = self.slots[slot]
        child = Child(pid, slot, place.generation, now, deadline=now + self.rules.start_timeout, heard=now)
        self.children[pid] = child
        place.starting = child

    def ready(self, pid: int, now: float) -> list[Act]:
        """A worker can serve, and accepts."""
        child = self.children.get(pid)
        if child is None or child.state != "starting" or self.stopping:
            return []
        slot = self.slots[child.slot]
        acts: list[Act] = []
        child.state, child.since, child.deadline, child.heard = "serving", now, None, now
        old, slot.serving, slot.starting, slot.retry_at = slot.serving, child, None, None
        if old is not None:
            old.state = "retired"
            acts.append(Act("retire", pid=old.pid))
            self._rolled += 1
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
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        acts = [Act("say", text=f"worker {child.slot} (pid {pid}) {how}")]
        if child is slot.serving:
            slot.serving = None
            slot.restarts += 1
            slot.failures = 0 if now - child.since >= STABLE else slot.failures + 1
            if slot.starting is None:  # else its successor is on the way
                acts += self._retry(slot, now)
            return acts
        slot.starting = None
        slot.failures += 1
        if self.rules.patient and slot.serving is None:
            self._roll, self.rolling = False, []
            return [*acts, Act("say", text="waiting for a change")]
        if not self.ready_once:
            return [*acts, *self.stop(now, status if status > 0 else 1, at_once=True)]
        if self._roll and not self._rolled and slot.serving is not None:
            self._roll, self.rolling = False, []
            acts.append(Act("say", text="the new code does not start; the workers there are go on"))
            return acts
        return acts + self._retry(slot, now)

    def hang_up(self, now: float) -> list[Act]:
        """SIGHUP: a rolling restart. One that is asked for during another follows it."""
        if self.stopping:
            return []
        if self._roll:
            self.roll_again = True
            return [Act("say", text="a restart is under way; another follows")]
        self._roll, self._rolled = True, 0
        self.rolling = list(self.slots)
        for slot in self.slots.values():
            if slot.starting is not None:  # it may have loaded the old code
                slot.starting.deadline = now
                self.rolling.remove(slot.number)
        return [Act("say", text="rolling restart"), *self._roll_on(), *self.tick(now)]

    def stop(self, now: float, status: int = 0, *, at_once: bool = False) -> list[Act]:
        """SIGTERM: drain all and end. A second call ends them at once."""
        if self.stopping or at_once:
            self._exit = self._exit or status
            self.stopping = True
            return [*(Act("kill", pid=pid, number=signal.SIGKILL) for pid in self.children), *self._leave()]
        self.stopping = True
        self._exit = status
        acts: list[Act] = []
        for child in self.children.values():
            if child.state == "starting":
                acts.append(Act("kill", pid=child.pid, number=signal.SIGKILL))
            elif child.state != "draining":
                child.state = "draining"
                acts.append(Act("drain", pid=child.pid))
            child.deadline = now + self.rules.grace + MARGIN
        return [*acts, *self._leave()]

    def tick(self, now: float) -> list[Act]:
        """The time has come that `next` named, or something happened."""
        acts: list[Act] = []
        for slot in self.slots.values():
            if slot.retry_at is not None and slot.retry_at <= now and not self.stopping:
                slot.retry_at = None
                acts.append(self._fork(slot))
        for child in self.children.values():
            if child.deadline is not None and child.deadline <= now:
                child.deadline = None
                if child.state == "starting":
                    acts.append(
                        Act("say", text=f"worker {child.slot} (pid {child.pid}) was not ready in time")
                    )
                acts.append(Act("kill", pid=child.pid, number=signal.SIGKILL))
            elif self._hangs(child, now):
                # SIGABRT shows where it hangs (faulthandler), SIGKILL follows.
                child.aborted = True
                child.deadline = now + 2.0
                silence = f"gave no sign of life for {now - child.heard:.0f} s"
                acts.append(Act("say", text=f"worker {child.slot} (pid {child.pid}) {silence}"))
                acts.append(Act("kill", pid=child.pid, number=signal.SIGABRT))
        return acts

    def next(self) -> float | None:
        """When `tick` is to be called at the latest."""
        times = [slot.retry_at for slot in self.slots.values()]
        times += [child.deadline for child in self.children.values()]
        if self.rules.worker_timeout is not None:
            times += [
                child.heard + self.rules.worker_timeout
                for child in self.children.values()
                if child.state != "starting" and not child.aborted
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
    def restarts(self) -> dict[int, int]:
        """By slot: how often its worker ended without being told to."""
        return {slot.number: slot.restarts for slot in self.slots.values()}

    # ---------------------------------------------------------------- decisions

    def _fork(self, slot: _Slot) -> Act:
        slot.generation += 1
        return Act("fork", slot=slot.number, generation=slot.generation)

    def _retry(self, slot: _Slot, now: float) -> list[Act]:
        if slot.failures == 0:
            return [self._fork(slot)]
        pause = min(BACKOFF_FIRST * 2 ** (slot.failures - 1), BACKOFF_MOST) * random.uniform(0.8, 1.2)
        slot.retry_at = now + pause
        return [Act("say", text=f"worker {slot.number} starts again in {pause:.1f} s")]

    def _hangs(self, child: Child, now: float) -> bool:
        timeout = self.rules.worker_timeout
        return (
            timeout is not None
            and child.state != "starting"
            and not child.aborted
            and now - child.heard >= timeout
        )

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
                child.deadline = None  # set by `draining`
                acts.append(Act("drain", pid=child.pid))
        return acts or self._rolled_out()

    def drains(self, pid: int, now: float) -> None:
        """A worker was told to drain."""
        if pid in self.children:
            self.children[pid].deadline = now + self.rules.grace + MARGIN

    def _rolled_out(self) -> list[Act]:
        """After an old worker's end: whether the restart is complete."""
        if not self._roll or self.rolling or not self.all_serving:
            return []
        if any(child.state in {"retired", "draining", "starting"} for child in self.children.values()):
            return []
        self._roll = False
        acts = [Act("say", text="restarted")]
        if self.roll_again:
            self.roll_again = False
            self._roll, self._rolled, self.rolling = True, 0, list(self.slots)
            acts += self._roll_on()
        return acts

    def _leave(self) -> list[Act]:
        return [] if self.children else [Act("exit", number=self._exit)]
