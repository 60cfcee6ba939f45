"""What the supervisor decides, without processes: events in, acts out."""

from __future__ import annotations

import itertools
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.ops.slots import BACKOFF_MOST, STABLE, Act, Rules, Slots, crash_pause


class Imagined:
    """Processes that exist on paper: acts are carried out at once, and kept."""

    def __init__(self, count: int, **rules: object) -> None:
        self.slots = Slots(count, Rules(**rules))
        self.now = 0.0
        self.pids = 100
        self.acts: list[Act] = []
        self.refusing = False  # fork(2) fails
        self.do(self.slots.start())

    def do(self, acts: list[Act]) -> list[Act]:
        for act in acts:
            self.acts.append(act)
            if act.do == "fork" and self.refusing:
                self.do(self.slots.not_forked(act.slot, "no memory", self.now))
            elif act.do == "fork":
                self.pids += 1
                self.slots.forked(self.pids, act.slot, self.now)
            elif act.do == "drain":
                self.slots.drains(act.pid, self.now)
        return acts

    def ready(self, *pids: int) -> list[Act]:
        return [act for pid in pids for act in self.do(self.slots.ready(pid, self.now))]

    def ended(self, pid: int, status: int = 0) -> list[Act]:
        return self.do(self.slots.ended(pid, status, self.now))

    def hang_up(self) -> list[Act]:
        return self.do(self.slots.hang_up())

    def tick(self, seconds: float) -> list[Act]:
        self.now += seconds
        return self.do(self.slots.tick(self.now))

    def in_state(self, state: str) -> list[int]:
        return [pid for pid, child in self.slots.children.items() if child.state == state]

    def serving(self) -> Imagined:
        self.ready(*self.in_state("starting"))
        return self


def kinds(acts: list[Act]) -> list[str]:
    """What is done."""
    return [act.do for act in acts]


def texts(acts: list[Act]) -> str:
    """What is said."""
    return " | ".join(act.text for act in acts if act.do == "say")


def test_each_slot_gets_a_worker() -> None:
    """At the start a worker is forked for every slot."""
    world = Imagined(3)
    assert [(act.do, act.slot, act.generation) for act in world.acts] == [
        ("fork", 1, 1),
        ("fork", 2, 1),
        ("fork", 3, 1),
    ]


def test_ready_is_said_once_all_are() -> None:
    """The whole is ready with its last worker, and says so once."""
    world = Imagined(2)
    assert world.ready(101) == []
    assert texts(world.ready(102)) == "ready"
    world.ended(101, -9)
    world.tick(5)
    assert "ready" not in texts(world.ready(103))


def test_a_first_start_that_fails_ends_everything() -> None:
    """There is nothing to go back to: the others are killed, and the exit status is that of the worker."""
    world = Imagined(2)
    acts = world.ended(101, 2)
    assert Act("kill", pid=102, number=signal.SIGKILL) in acts
    assert world.ended(102, -9)[-1] == Act("exit", number=2)


def test_while_developing_a_first_start_that_fails_waits_for_a_change() -> None:
    """With `patient` nothing is restarted until the next reload, which starts it again."""
    world = Imagined(1, patient=True)
    assert kinds(world.ended(101, 1)) == ["say", "say"]
    assert world.slots.next() is None
    assert "fork" in kinds(world.hang_up())
    assert kinds(world.ended(102, 1)) == ["say", "say"]
    world.hang_up()
    assert "ready" in texts(world.ready(103))


def test_a_change_saved_while_the_last_one_fails_to_start_is_tried() -> None:
    """A restart that is asked for during one that fails is not forgotten."""
    world = Imagined(1).serving()
    world.hang_up()
    world.hang_up()
    assert kinds(world.ended(102, 1)) == ["say", "say", "fork"]
    world.ready(103)
    assert world.in_state("serving") == [103]


def test_hang_up_during_the_first_start_begins_it_anew() -> None:
    """Whoever starts may have loaded old code: it is killed and started again, which is no failure."""
    world = Imagined(2)
    world.ready(101)
    acts = world.hang_up()
    assert Act("kill", pid=102, number=signal.SIGKILL) in acts
    assert world.ready(102) == []  # it said so just before its end
    assert [(act.do, act.slot) for act in world.ended(102, -9)] == [("fork", 2)]
    assert "ready" in texts(world.ready(103))
    assert world.slots.restarting
    world.ready(104)
    assert not world.slots.stopping
    assert world.in_state("serving") == [103, 104]


def test_hang_up_starts_those_at_once_that_wait_after_a_failure() -> None:
    """The operator has mended the code: nobody waits for the end of a pause."""
    world = Imagined(2).serving()
    world.ended(101, -9)
    assert [(act.do, act.slot) for act in world.hang_up()] == [("say", 0), ("fork", 1)]
    assert kinds(world.ready(103)) == ["fork"]
    world.ready(104)
    assert world.in_state("serving") == [103, 104]


def test_an_old_worker_that_crashes_while_its_successor_waits_is_succeeded_once() -> None:
    """A pause that is pending, and a crash that is repaired at once, do not make two processes for one place."""
    world = Imagined(2).serving()
    world.now += STABLE
    world.hang_up()
    world.ready(103)
    world.ended(104, -9)  # its successor failed, and is tried again after a pause
    world.now += STABLE
    world.slots.slots[2].failures = 0
    world.ended(102, -9)
    world.tick(30)
    assert len([child for child in world.slots.children.values() if child.slot == 2]) == 1


def test_nothing_is_waited_for_in_vain_while_stopping() -> None:
    """A place that waits for its next attempt when SIGTERM comes waits no more; or the supervisor would spin."""
    world = Imagined(2).serving()
    world.ended(101, -9)
    world.do(world.slots.stop(world.now))
    due = world.slots.next()
    assert due is not None
    assert due > world.now + 20
    assert world.tick(10) == []


def test_stop_without_any_worker_ends_at_once() -> None:
    """SIGTERM while every place waits for its next attempt."""
    world = Imagined(1).serving()
    world.ended(101, -9)
    assert world.do(world.slots.stop(world.now)) == [Act("exit", number=0)]


def test_a_process_that_cannot_be_forked_is_tried_again() -> None:
    """No memory, too many processes: the others go on, and the place is filled later."""
    world = Imagined(2).serving()
    world.now += STABLE
    acts = world.slots.ended(101, -9, world.now)
    assert kinds(acts) == ["say", "fork"]
    acts = world.do(world.slots.not_forked(1, "no memory", world.now))
    assert "cannot be started: no memory" in texts(acts)
    assert kinds(world.tick(20)) == ["fork"]
    world.serving()
    assert world.slots.all_serving


def test_a_process_that_cannot_be_forked_at_the_first_start_ends_everything() -> None:
    """As for any first start that fails."""
    slots = Slots(2, Rules())
    slots.start()
    slots.forked(101, 1, 0.0)
    assert Act("kill", pid=101, number=signal.SIGKILL) in slots.not_forked(2, "no memory", 0.0)


def test_a_worker_that_somebody_else_told_to_end_is_replaced_while_it_drains() -> None:
    """SIGTERM to a worker: its queue must not wait for the length of a drain."""
    world = Imagined(2).serving()
    assert kinds(world.do(world.slots.leaves(101, world.now))) == ["say", "fork"]
    assert world.in_state("draining") == [101]
    assert world.ready(103) == []
    assert world.ended(101) == []
    assert world.slots.restarts == {1: 1, 2: 0}


def test_a_worker_that_leaves_during_a_restart_does_not_hold_it_up() -> None:
    """Its place gets one successor, and the restart comes to its end."""
    world = Imagined(2).serving()
    world.hang_up()
    assert kinds(world.do(world.slots.leaves(101, world.now))) == ["say"]  # its successor is on the way
    world.ready(103)
    assert kinds(world.ready(104)) == ["retire", "drain"]
    world.ended(102)
    assert texts(world.ended(101)) == "restarted"


def test_a_worker_is_judged_by_the_settings_it_was_started_with() -> None:
    """A reload that shortens `worker_timeout` is not the end of all workers that beat at the old pace."""
    world = Imagined(1, worker_timeout=60).serving()
    world.slots.rules = Rules(worker_timeout=4)
    assert kinds(world.hang_up()) == ["say", "fork"]
    assert world.tick(30) == []
    world.ready(102)
    assert [(act.pid, act.number) for act in world.tick(5) if act.do == "kill"] == [(102, signal.SIGABRT)]


def test_who_was_away_itself_does_not_take_silence_for_a_hang() -> None:
    """The machine slept, or the container was frozen: nobody could give a sign of life, and deadlines move."""
    world = Imagined(2, worker_timeout=30, start_timeout=40)
    world.ready(101)
    world.now += 100
    world.slots.away(98, world.now)
    assert world.tick(0) == []
    assert kinds(world.tick(31)) == ["say", "kill"]


def test_a_death_by_a_signal_without_a_name_is_told_all_the_same() -> None:
    """Most real-time signals have none."""
    world = Imagined(1).serving()
    assert "was killed by signal 40" in texts(world.ended(101, -40))


def test_a_crash_after_a_stable_time_is_repaired_at_once() -> None:
    """A worker that served for long is replaced without a pause."""
    world = Imagined(1).serving()
    world.now += STABLE
    assert kinds(world.ended(101, -9)) == ["say", "fork"]


def test_crashes_one_after_the_other_are_repaired_ever_more_slowly() -> None:
    """The pause doubles, up to a bound, and a worker that lasts ends the series."""
    world = Imagined(1).serving()
    pauses = []
    for _ in range(9):
        world.ended(world.pids, -11)
        due = world.slots.next()
        assert due is not None
        pauses.append(due - world.now)
        world.tick(pauses[-1])
        world.serving()
    assert all(later > earlier * 1.3 for earlier, later in itertools.pairwise(pauses[:5]))
    assert max(pauses) <= 18
    world.now += STABLE + 1
    assert kinds(world.ended(world.pids, -11)) == ["say", "fork"]


def test_a_rolling_restart_starts_one_and_waits_for_it() -> None:
    """Successors are started one at a time, each when the one before is ready; the old ones accept until then."""
    world = Imagined(3).serving()
    assert kinds(world.hang_up()) == ["say", "fork"]
    assert [(act.do, act.pid or act.slot) for act in world.ready(104)] == [("retire", 101), ("fork", 2)]
    assert [(act.do, act.pid or act.slot) for act in world.ready(105)] == [("retire", 102), ("fork", 3)]


def test_old_workers_drain_when_all_successors_are_ready() -> None:
    """Nobody is told to go before there is no old worker left to come back to."""
    world = Imagined(2).serving()
    world.hang_up()
    assert "drain" not in kinds(world.ready(103))
    assert kinds(world.ready(104)) == ["retire", "drain", "drain"]
    assert world.ended(101) == []
    assert texts(world.ended(102)) == "restarted"


def test_a_restart_whose_first_successor_fails_changes_nothing() -> None:
    """New code that does not start leaves all old workers serving."""
    world = Imagined(2).serving()
    world.hang_up()
    assert "go on" in texts(world.ended(103, 1))
    assert world.in_state("serving") == [101, 102]
    assert world.slots.next() == pytest.approx(60.0)  # only the signs of life are waited for
    assert kinds(world.hang_up()) == ["say", "fork"]


def test_a_later_successor_that_fails_is_tried_again() -> None:
    """Once the new code was seen to start, a failure is taken for an accident; its old worker serves meanwhile."""
    world = Imagined(2).serving()
    world.hang_up()
    world.ready(103)
    acts = world.ended(104, -9)
    assert "starts again" in texts(acts)
    assert sorted(world.in_state("serving")) == [102, 103]
    assert kinds(world.tick(20)) == ["fork"]
    assert kinds(world.ready(105)) == ["retire", "drain", "drain"]


def test_a_second_hang_up_follows_the_first() -> None:
    """A restart asked for during another one is done after it, once."""
    world = Imagined(1).serving()
    world.hang_up()
    assert kinds(world.hang_up()) == ["say"]
    world.hang_up()
    world.ready(102)
    acts = world.ended(101)
    assert kinds(acts) == ["say", "fork"]
    world.ready(103)
    assert kinds(world.ended(102)) == ["say"]


def test_an_old_worker_that_crashes_during_a_restart_is_replaced() -> None:
    """A crash in a slot whose turn has not come yet is repaired, and the restart comes to its end."""
    world = Imagined(2).serving()
    world.now += STABLE
    world.hang_up()
    assert kinds(world.ended(102, -9)) == ["say", "fork"]
    for _ in range(6):
        world.serving()
        for pid in world.in_state("draining"):
            world.ended(pid)
    assert texts(world.acts).count("restarted") == 1
    assert len(world.in_state("serving")) == 2


def test_a_successor_takes_the_place_of_one_that_has_just_crashed() -> None:
    """The old worker dies while its successor starts: no third one is forked."""
    world = Imagined(1).serving()
    world.hang_up()
    assert kinds(world.ended(101, -9)) == ["say"]
    assert "retire" not in kinds(world.ready(102))
    assert texts(world.acts).endswith("restarted")


def test_stop_drains_those_who_serve_and_kills_those_who_start() -> None:
    """SIGTERM: whoever has connections is asked to drain, whoever has none is not waited for."""
    world = Imagined(2)
    world.ready(101)
    acts = world.do(world.slots.stop(world.now))
    assert [(act.do, act.pid) for act in acts] == [("drain", 101), ("kill", 102)]
    assert world.ended(102, -9) == []
    assert world.ended(101) == [Act("exit", number=0)]


def test_a_second_stop_kills() -> None:
    """SIGTERM again: at once."""
    world = Imagined(2).serving()
    world.do(world.slots.stop(world.now))
    assert kinds(world.do(world.slots.stop(world.now))) == ["kill", "kill"]


def test_one_that_does_not_drain_is_killed_after_its_grace() -> None:
    """A worker that ignores its deadline is killed, in a stop and in a restart alike."""
    world = Imagined(1, grace=10).serving()
    world.hang_up()
    world.ready(102)
    assert world.tick(14) == []
    assert world.tick(2)[-1] == Act("kill", pid=101, number=signal.SIGABRT)
    assert world.tick(2) == [Act("kill", pid=101, number=signal.SIGKILL)]
    assert texts(world.ended(101, -9)) == "restarted"


def test_nothing_is_restarted_while_stopping() -> None:
    """A worker that crashes while all are drained stays dead, and SIGHUP is not heeded."""
    world = Imagined(2).serving()
    world.do(world.slots.stop(world.now))
    assert world.ended(101, -11) == []
    assert world.hang_up() == []
    world.tick(100)
    assert world.tick(100) == [Act("kill", pid=102, number=signal.SIGKILL)]


def test_one_that_does_not_get_ready_is_killed() -> None:
    """A start has a deadline."""
    world = Imagined(1, start_timeout=20)
    assert kinds(world.tick(21)) == ["say", "kill"]
    assert kinds(world.tick(2)) == ["kill"]
    assert world.ended(101, -9)[-1] == Act("exit", number=1)


def test_one_without_a_sign_of_life_is_aborted_then_killed() -> None:
    """A worker that hangs gets SIGABRT, which shows its stack, then SIGKILL; others are left alone."""
    world = Imagined(2, worker_timeout=30).serving()
    world.now += 20
    world.slots.alive(102, world.now)
    acts = world.tick(11)
    assert [(act.pid, act.number) for act in acts if act.do == "kill"] == [(101, signal.SIGABRT)]
    assert [(act.pid, act.number) for act in world.tick(3) if act.do == "kill"] == [(101, signal.SIGKILL)]


def test_without_a_worker_timeout_silence_is_no_fault() -> None:
    """`worker_timeout` None: nobody is killed for being silent."""
    world = Imagined(1, worker_timeout=None).serving()
    assert world.tick(1e6) == []
    assert world.slots.next() is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ready", "die", "fail", "hup", "time", "leave", "refuse"]), st.integers(0, 9)
        ),
        max_size=60,
    )
)
def test_whatever_happens_it_comes_to_rest_with_every_slot_served(steps: list[tuple[str, int]]) -> None:
    """When crashes, failures and restarts cease, one worker serves each slot and none is left over."""
    world = Imagined(3).serving()
    for what, number in steps:
        pids = sorted(world.slots.children)
        pid = pids[number % len(pids)] if pids else 0
        served = {child.slot for child in world.slots.children.values() if child.state == "serving"}
        if what == "ready":
            world.ready(pid)
            assert served <= {
                child.slot for child in world.slots.children.values() if child.state == "serving"
            }
        elif what == "die" and pid:
            world.ended(pid, -9)
        elif what == "leave":
            world.do(world.slots.leaves(pid, world.now))
        elif what == "refuse":
            world.refusing = True
            world.tick(number * 3.0)
            world.refusing = False
        elif what == "fail" and world.in_state("starting"):
            world.ended(world.in_state("starting")[0], 1)
        elif what == "hup":
            world.hang_up()
            assert served == {
                child.slot for child in world.slots.children.values() if child.state == "serving"
            }
        else:
            world.tick(number * 3.0)
        for slot in (1, 2, 3):
            mine = [child.state for child in world.slots.children.values() if child.slot == slot]
            assert mine.count("starting") <= 1
            assert mine.count("serving") <= 1
    for _ in range(60):
        for pid, child in list(world.slots.children.items()):
            if child.outdated:
                world.ended(pid, -9)
        world.serving()
        for pid in list(world.slots.children):
            world.slots.alive(pid, world.now)
        for act in world.tick(1.0):
            if act.do == "kill":
                world.ended(act.pid, -9)
        for pid in world.in_state("draining"):
            world.ended(pid)
    assert [child.state for child in world.slots.children.values()] == ["serving"] * 3
    assert sorted(child.slot for child in world.slots.children.values()) == [1, 2, 3]
    assert not world.in_state("retired")


def test_the_pause_has_a_bound_however_often_it_crashed():
    """Whatever crashes for days is started again at the same distance: the number of failures overflows nothing."""
    assert crash_pause(0) == 0
    assert crash_pause(10_000) <= BACKOFF_MOST * 1.2
