"""The stall watch on a machine that has too much to do: code is accused only of what it does itself."""

from __future__ import annotations

import os
import sys
from time import perf_counter, sleep

import pytest
import trio

from trionet.ops.stalls import StallWatch


def over(watch, took):
    """Have a turn of that length end."""
    watch._busy += took
    watch._over(1.0, took)


def block(until):
    """Hold the loop up until something is so."""
    begun = perf_counter()
    while not until():
        sleep(0.001)
        assert perf_counter() < begun + 20


async def test_time_without_a_processor_is_no_stall(monkeypatch, caplog):
    """What the machine did not give is taken off and counted apart, and told once; the rest decides."""
    waited = 0.0
    monkeypatch.setattr(StallWatch, "_waited_for_processor", lambda watch: waited)
    with StallWatch(threshold=10) as watch:
        for _ in range(3):
            waited += 9.0
            over(watch, 12.0)
        starved = watch.statistics()
        assert (starved.stalls, starved.longest, starved.stalled) == (0, 0.0, 0.0)
        assert starved.starved == pytest.approx(27, rel=0.01)
        [line] = caplog.messages
        assert "of which it had no processor for 9.00 s: the machine has too much to do" in line
        caplog.clear()
        watch._look = watch._look_at(0.0, 0.0)
        waited += 2.0
        over(watch, 14.0)
        found = watch.statistics()
        assert found.stalls == 1
        assert found.longest == found.stalled == pytest.approx(12, rel=0.01)
        [line] = caplog.messages
        assert "held up for 14.00 s" in line
    assert "2 similar" in caplog.messages[-1]  # at the end, of the first kind


async def test_nobody_is_accused_while_the_machine_is_busy(monkeypatch, caplog):
    """A turn that waits for a processor is not told, however long; when it then blocks, it is told while it does."""
    looks = 0
    stopped = None

    def waited(watch):
        nonlocal looks
        looks += 1
        return perf_counter() if stopped is None else stopped

    monkeypatch.setattr(StallWatch, "_waited_for_processor", waited)
    with StallWatch(threshold=0.05) as watch:
        await trio.lowlevel.checkpoint()
        begun = perf_counter()
        block(lambda: looks >= 10 and perf_counter() > begun + 0.1)
        assert "held up, so far" not in caplog.text
        stopped = perf_counter()
        block(lambda: "held up, so far" in caplog.text)
        await trio.lowlevel.checkpoint()
        assert watch.statistics().stalls == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_kernel_is_asked():
    """The numbers are of the loop's own thread, never go back, and the file is closed at the end."""
    with StallWatch(threshold=10) as watch:
        if watch._schedstat < 0:
            pytest.skip("this kernel does not count it")
        first = await trio.to_thread.run_sync(watch._waited_for_processor)
        assert 0 <= first <= watch._waited_for_processor()
        fd = watch._schedstat
        assert f"/task/{os.getpid()}/" in os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    assert watch._schedstat == -1
