"""What the operator's pages say of many workers, and how soon."""

from __future__ import annotations

import json
import time
from typing import Any

import trio

from trionet.ops import admin
from trionet.ops.control import ControlError, Worker


class Asked:
    """Workers by process id, with what they answer; None: nothing, in time."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {int(name[1:]): answer for name, answer in answers.items()}
        self.workers = {pid: Worker(pid) for pid in self.answers}

    async def ask(self, command: str, /, *, worker: int | None = None, timeout: float = 2.0, **_: Any) -> Any:
        asked = self.answers if worker is None else {worker: self.answers[worker]}
        if None in asked.values():
            await trio.sleep(timeout)
        return {pid: answer for pid, answer in asked.items() if answer is not None}


GOOD = {"draining": False, "overloaded": None}


async def ready(asked: Asked, state: str = "serving") -> tuple[int, str]:
    """What /readyz answers."""
    response = await admin.routes(asked, admin.Condition(state, []))["/readyz"](None)  # type: ignore[arg-type]
    return response.status, response.body.decode().strip()


async def test_ready_at_once_if_one_is(autojump_clock: Any) -> None:
    """A worker that hangs does not make a balancer wait, which may wait for a second only."""
    begun = trio.current_time()
    draining = {"draining": True, "overloaded": None}
    assert await ready(Asked(p1=None, p2=draining, p3=GOOD)) == (200, "ready")
    assert trio.current_time() == begun


async def test_not_ready_and_why(autojump_clock: Any) -> None:
    """The supervisor's word counts first, then those of the workers."""
    assert await ready(Asked(p1=GOOD), "stopping") == (503, "stopping")
    assert await ready(Asked()) == (503, "no worker answers")
    assert await ready(Asked(p1=None, p2=ControlError("no"))) == (503, "no worker answers")
    busy = {"draining": False, "overloaded": "connections: 9"}
    draining = {"draining": True, "overloaded": None}
    assert await ready(Asked(p1=busy, p2=draining)) == (503, "draining, overloaded: connections: 9")


async def test_the_workers_there_are() -> None:
    """The supervisor's rows, with an age, and with what those say who answer; none if it says that there is none."""
    rows = [{"number": number, "pid": number, "since": time.monotonic() - 60} for number in (1, 2)]
    for table, count in ((rows, 2), ([], 0), (None, 1)):
        pages = admin.routes(Asked(p1={"connections": 5}), admin.Condition("serving", table))
        found = json.loads((await pages["/workers"](None)).body)["workers"]  # type: ignore[arg-type]
        assert len(found) == count
        if table is rows:
            assert 59 < found[0]["age"] < 70
            assert "since" not in found[0]
            assert found[0]["connections"] == 5
            assert "connections" not in found[1]
