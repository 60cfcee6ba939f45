"""Asking other processes: answers, errors, deadlines, and peers that go."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from trionet.ops.control import Agent, ControlError, Fleet, Link, Local


def agent(number: int = 1, **commands: Any) -> Agent:
    """One without a server."""
    made = Agent(None, number)  # type: ignore[arg-type]
    made.commands.update(commands)
    return made


@asynccontextmanager
async def joined(*agents: Agent) -> AsyncIterator[tuple[Fleet, list[Link]]]:
    """A fleet of these; their process ids count from 101."""
    fleet = Fleet()
    links = []
    async with trio.open_nursery() as nursery:
        for pid, each in enumerate(agents, 101):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(fleet.serve, ours)
            link = Link(theirs, each.run)
            nursery.start_soon(link.run)
            await link.tell("here", pid=pid, number=each.number, generation=1)
            links.append(link)
        await trio.testing.wait_all_tasks_blocked()
        yield fleet, links
        nursery.cancel_scope.cancel()


async def slow() -> None:
    """Never answers."""
    await trio.sleep_forever()


def fails() -> None:
    """A command with a mistake."""
    raise LookupError("nothing there")


async def test_every_worker_answers() -> None:
    """Arguments go there, values come back, plain and awaited; one worker may be asked alone."""

    async def later(x: int) -> list[int]:
        await trio.lowlevel.checkpoint()
        return [x]

    async with joined(agent(1, twice=lambda x: 2 * x), agent(2, twice=later)) as (fleet, _):
        assert await fleet.ask("twice", x=21) == {101: 42, 102: [21]}
        assert await fleet.ask("twice", worker=102, x=1) == {102: [1]}
        assert await fleet.ask("twice", worker=7, x=1) == {}
        assert {pid: worker.number for pid, worker in fleet.workers.items()} == {101: 1, 102: 2}


async def test_one_that_hangs_does_not_hold_up_the_others(autojump_clock: Any) -> None:
    """It is missing from the answers, after the deadline; what it says too late is nobody's answer."""
    late = trio.Event()

    async def waits() -> str:
        await late.wait()
        return "late"

    async with joined(agent(1, look=waits), agent(2, look=lambda: "here")) as (fleet, _):
        with trio.fail_after(3):
            assert await fleet.ask("look") == {102: "here"}
        late.set()
        assert await fleet.ask("look") == {101: "late", 102: "here"}


async def test_errors_are_values(caplog: pytest.LogCaptureFixture) -> None:
    """What fails there is told here, in words; the traceback is in the log of the process that failed."""
    async with joined(agent(1, look=fails), agent(2)) as (fleet, _):
        answers = await fleet.ask("look")
        assert {pid: str(error) for pid, error in answers.items()} == {
            101: "look: LookupError: nothing there",
            102: "unknown command 'look'",
        }
        assert all(isinstance(error, ControlError) for error in answers.values())
    assert "command look failed" in caplog.text


@pytest.mark.parametrize("value", [object(), "x" * 100], ids=["no-json", "too-long"])
async def test_an_answer_that_cannot_be_sent(value: object, monkeypatch: Any) -> None:
    """That is the answer then, and the link goes on."""
    monkeypatch.setattr("trionet.ops.control.MAX_MESSAGE", 100)
    async with joined(agent(1, look=lambda: value)) as (fleet, _):
        [error] = (await fleet.ask("look")).values()
        assert "cannot be sent" in str(error)
        assert await fleet.ask("ping") == {101: os.getpid()}


async def test_a_worker_that_goes_while_it_is_asked() -> None:
    """Whoever asks hears so at once, and it is no member any more."""
    async with joined(agent(1, look=slow)) as (fleet, links):
        gone: list[int] = []
        fleet.gone.append(lambda worker: gone.append(worker.pid))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_gone, fleet)
            await trio.testing.wait_all_tasks_blocked()
            await links[0]._stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert gone == [101]
        assert not fleet.workers


async def _expect_gone(fleet: Fleet) -> None:
    [error] = (await fleet.ask("look", timeout=60)).values()
    assert str(error) == "the process has gone"


@pytest.mark.parametrize("data", [b"\xff" * 8, b"\0\0\0\3{]}"], ids=["too-long", "no-json"])
async def test_a_peer_that_talks_nonsense(data: bytes) -> None:
    """Its link ends; the fleet goes on."""
    fleet = Fleet()
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.serve, ours)
        await theirs.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await theirs.send_all(b"x")


async def test_one_process_asks_itself(autojump_clock: Any) -> None:
    """The same interface, without a socket."""
    asking = Local(agent(3, look=lambda x: x, slow=slow, fails=fails))
    pid = os.getpid()
    assert asking.workers[pid].number == 3
    assert await asking.ask("look", x=1) == {pid: 1}
    assert await asking.ask("look", worker=pid + 1, x=1) == {}
    assert await asking.ask("slow") == {}
    assert isinstance((await asking.ask("fails"))[pid], ControlError)
