"""Pollers: every backend keeps the same contract; what only epoll does is said apart."""

from __future__ import annotations

import os
import select
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trionet.errors import ConfigurationError
from trionet.net import _kqueue
from trionet.net._tasks import TaskPoller
from trionet.net.poller import BACKENDS, Event, Poller, open_poller
from trionet.testing import check_poller

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")
PRESENT = [
    pytest.param(name, marks=pytest.mark.skipif(not (name == "tasks" or hasattr(select, name)), reason=name))
    for name in BACKENDS
]


@pytest.mark.parametrize("backend", PRESENT)
async def test_a_backend_keeps_the_contract(backend):
    """What `trionet.testing.check_poller` demands holds for every backend of this machine."""
    await check_poller(lambda nursery: open_poller(backend, nursery=nursery))


async def test_the_contract_finds_a_poller_that_breaks_it():
    """A poller that reports one-shot watches again is found out, and the step that found it is named."""

    class Forgetful(TaskPoller):
        def register(self, fd, interest=Event.READ, *, once=False):
            super().register(fd, interest, once=False)

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="nothing should be reported")) as caught:
        await check_poller(Forgetful)
    assert "one-shot" in caught.value.exceptions[0].__notes__[0]


async def test_the_contract_may_open_a_poller_asynchronously():
    """`check_poller` awaits what the factory returns, where that is an awaitable."""

    async def opened(nursery):
        await trio.lowlevel.checkpoint()
        return open_poller("tasks", nursery=nursery)

    await check_poller(opened)


async def test_the_platform_chooses_the_backend():
    """Without a name the best backend of the platform is opened, and a `with` block closes it."""
    best = next((name for name in ("epoll", "kqueue") if hasattr(select, name)), "tasks")
    async with trio.open_nursery() as nursery:
        async with open_poller(nursery=nursery) as poller:
            assert isinstance(poller, Poller)
            assert poller.statistics().backend == best
        with pytest.raises(trio.ClosedResourceError):
            await poller.wait()


async def test_wrong_names_and_missing_nurseries_are_said():
    """A backend that does not exist, or lacks what it needs, is a mistake in the settings."""
    with pytest.raises(ConfigurationError, match="'select' does not exist; there are epoll, kqueue, tasks"):
        open_poller("select")
    with pytest.raises(ConfigurationError, match="needs a nursery"):
        open_poller("tasks")


def test_kqueue_is_opened_by_name(monkeypatch):
    """`open_poller("kqueue")` opens the backend of that name."""
    monkeypatch.setattr(_kqueue, "KqueuePoller", lambda: "opened")
    assert open_poller("kqueue") == "opened"


@pytest.fixture
def pair():
    """Two connected, non-blocking sockets."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with ours, peer:
        yield ours, peer


@needs_epoll
async def test_epoll_modify_needs_a_descriptor_that_is_watched(pair):
    """Arming what was never registered is a mistake, and raises."""
    async with open_poller("epoll") as poller:
        with pytest.raises(FileNotFoundError):
            poller.modify(pair[0].fileno(), Event.READ)


@needs_epoll
async def test_epoll_tells_a_half_close_beside_the_data(pair):
    """A peer that sent its last bytes and shut its side is reported as readable and half closed at once."""
    ours, peer = pair
    async with open_poller("epoll") as poller:
        poller.register(ours.fileno())
        peer.send(b"x")
        peer.shutdown(socket.SHUT_WR)
        await poller.wait()
        assert poller.poll() == [(ours.fileno(), Event.READ | Event.HALF_CLOSE)]


@needs_epoll
async def test_epoll_events_of_a_duplicate_do_not_stop_the_poller(pair):
    """A descriptor closed while a duplicate lives keeps reporting; to forget it is counted as stale, not raised."""
    ours, peer = pair
    async with open_poller("epoll") as poller:
        fd = os.dup(ours.fileno())
        poller.register(fd)
        os.close(fd)  # without `unregister`: the wrong order
        peer.send(b"x")
        await poller.wait()
        assert [found for found, _ in poller.poll()] == [fd]
        poller.unregister(fd)
        assert poller.statistics().stale == 1


async def test_tasks_survive_a_descriptor_closed_under_them(pair):
    """The portable poller forgets a descriptor whose owner told Trio that it closes it."""
    ours, _ = pair
    async with trio.open_nursery() as nursery, open_poller("tasks", nursery=nursery) as poller:
        poller.register(ours.fileno())
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(ours)
        ours.close()
        await wait_all_tasks_blocked()
        assert poller.poll() == []
        assert not [task for task in nursery.child_tasks if "_watch" in task.name]


async def test_tasks_poll_beside_a_waiter_does_not_lose_its_wake_up(pair):
    """Whoever polls while another task waits takes events, never the wake-up for the next ones."""
    ours, peer = pair
    async with trio.open_nursery() as nursery, open_poller("tasks", nursery=nursery) as poller:
        poller.register(ours.fileno(), once=True)
        woken = trio.Event()

        async def wait():
            await poller.wait()
            woken.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert poller.poll() == []
        peer.send(b"x")
        with trio.fail_after(5):
            await woken.wait()
