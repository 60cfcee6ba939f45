"""The timing wheel: it touches what is due, and shares what can be shared."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.net.wheel import Wheel


@pytest.mark.parametrize(
    "resolution,seconds,ticks",
    [
        (0.25, 0, 1),
        (0.25, 0.001, 1),
        (0.25, 0.25, 1),
        (0.25, 0.2501, 2),
        (0.25, 10, 40),
        (1.0, 59.5, 60),
        (0.25, 1e9, 4 * 10**9),
    ],
)
def test_a_deadline_is_never_early(resolution, seconds, ticks):
    """Seconds become whole ticks that last at least as long, and at least one; asked twice, the same."""
    wheel = Wheel(resolution)
    assert wheel.ticks(seconds) == wheel.ticks(seconds) == ticks


def test_each_tick_returns_its_own():
    """Descriptors come at their tick, in the order in which they were added, and once."""
    wheel = Wheel()
    for fd, tick in [(5, 3), (6, 2), (7, 3), (5, 3)]:
        wheel.add(fd, tick)
    assert [wheel.advance() for _ in range(4)] == [[6], [5, 7, 5], [], []]
    assert wheel.tick == 5


def test_a_tick_touches_only_what_is_due():
    """`visited` moves by what is listed for the tick, whatever else waits."""
    wheel = Wheel()
    for fd in range(10_000):
        wheel.add(fd, 1000)
    wheel.add(1, 3)
    for _ in range(900):
        wheel.advance()
    statistics = wheel.statistics()
    assert statistics.visited == 1
    assert statistics.waiting == 10_000
    assert statistics.ticks == 901


def test_owners_share_the_number():
    """All who wait for one tick keep the same int object, so a deadline costs a connection eight bytes."""
    wheel = Wheel()
    tick = 5000  # beyond the small numbers that CPython shares anyway
    kept = [wheel.add(fd, int(str(tick))) for fd in range(50)]
    assert all(number is kept[0] for number in kept)
    assert kept[0] == tick


def test_an_entry_costs_a_list_slot():
    """Ten thousand entries in one tick cost about ten thousand list slots: no object for each."""
    wheel = Wheel()
    fds = list(range(10_000))
    tracemalloc.start()
    try:
        for fd in fds:
            wheel.add(fd, 700)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / len(fds) < 10


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30)), max_size=60))
def test_nothing_is_lost_and_nothing_comes_twice(entries):
    """Every entry comes exactly at its tick, and after the last tick nothing is kept."""
    wheel = Wheel()
    expected = {}
    for fd, ahead in entries:
        tick = wheel.tick + ahead
        wheel.add(fd, tick)
        expected.setdefault(tick, []).append(fd)
    found = {}
    for _ in range(31):
        due = wheel.advance()
        if due:
            found[wheel.tick] = due
    assert found == expected
    assert wheel.statistics().waiting == 0
    assert wheel.statistics().visited == len(entries)


def test_lengths_of_many_timeouts_are_not_collected():
    """The memory of how long a timeout is has a bound, whatever an application asks for."""
    wheel = Wheel()
    for i in range(1000):
        assert wheel.ticks(i * 0.25 + 1) == i + 4
    assert len(wheel._lengths) <= 100
