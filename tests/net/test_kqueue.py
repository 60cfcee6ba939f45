"""The kqueue backend, spoken to through a stand-in: which changes it asks for, and how it reads events."""

from __future__ import annotations

import os
import types

import pytest

from trionet.net._kqueue import KqueuePoller
from trionet.net.poller import Event

READ, WRITE, BOTH = Event.READ, Event.WRITE, Event.READ | Event.WRITE
API = types.SimpleNamespace(
    KQ_FILTER_READ=-1,
    KQ_FILTER_WRITE=-2,
    KQ_EV_ADD=0x1,
    KQ_EV_DELETE=0x2,
    KQ_EV_ONESHOT=0x10,
    KQ_EV_ERROR=0x4000,
    KQ_EV_EOF=0x8000,
    kevent=lambda ident, filter, flags: types.SimpleNamespace(ident=ident, filter=filter, flags=flags),  # noqa: A006
)
IN, OUT, ADD, DEL, ONCE, ERROR, EOF = -1, -2, 1, 2, 0x11, 0x4000, 0x8000


class FakeKqueue:
    """Keeps filters as the kernel does, and what was asked of it."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        self.filters = {}
        self.changes = []
        self.pending = []
        self.closed = False

    def fileno(self):
        return self.read_end

    def control(self, changes, limit, timeout=None):
        for change in changes or ():
            key = change.ident, change.filter
            self.changes.append((*key, change.flags))
            if change.flags & API.KQ_EV_DELETE:
                if key not in self.filters:
                    raise FileNotFoundError(2, "no such filter")
                del self.filters[key]
            else:
                self.filters[key] = change.flags
        assert timeout in (None, 0)
        found, self.pending = self.pending[:limit], self.pending[limit:]
        for event in found:
            if self.filters.get((event.ident, event.filter), 0) & API.KQ_EV_ONESHOT:
                del self.filters[event.ident, event.filter]
        return found

    def happen(self, fd, which, flags=0):
        self.pending.append(API.kevent(fd, which, flags))

    def close(self):
        self.closed = True
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture
async def kqueue():
    """A stand-in for the kernel."""
    return FakeKqueue()


@pytest.fixture
async def poller(kqueue):
    """A poller that speaks to it."""
    async with KqueuePoller(kqueue, API) as poller:
        yield poller
    assert kqueue.closed


@pytest.mark.parametrize(
    "interest,once,changes",
    [
        (READ, False, [(7, IN, ADD)]),
        (WRITE, False, [(7, OUT, ADD)]),
        (BOTH, False, [(7, IN, ADD), (7, OUT, ADD)]),
        (READ, True, [(7, IN, ONCE)]),
        (BOTH, True, [(7, IN, ONCE), (7, OUT, ONCE)]),
        (0, False, []),
    ],
)
async def test_register_adds_a_filter_for_each_direction(kqueue, poller, interest, once, changes):
    """READ and WRITE are filters of their own; one-shot is a flag of both."""
    poller.register(7, interest, once=once)
    assert kqueue.changes == changes
    assert poller.statistics().watched == 1


async def test_register_twice_is_a_mistake(kqueue, poller):
    """The kernel would replace the filter in silence; we say it."""
    poller.register(7)
    with pytest.raises(FileExistsError):
        poller.register(7)
    assert kqueue.changes == [(7, IN, ADD)]


@pytest.mark.parametrize(
    "before,after,filters",
    [
        (READ, 0, {}),
        (READ, WRITE, {(7, OUT): ADD}),
        (BOTH, READ, {(7, IN): ADD}),
        (WRITE, BOTH, {(7, IN): ADD, (7, OUT): ADD}),
        (0, READ, {(7, IN): ADD}),
    ],
)
async def test_modify_leaves_the_filters_that_are_wanted(kqueue, poller, before, after, filters):
    """Filters not wanted any more are deleted, the others are there."""
    poller.register(7, before)
    poller.modify(7, after)
    assert kqueue.filters == filters
    poller.unregister(7)
    assert kqueue.filters == {}


async def test_a_one_shot_filter_that_fired_is_gone(kqueue, poller):
    """Deleting it then is no error; arming it again is an ordinary addition."""
    poller.register(7, once=True)
    kqueue.happen(7, IN)
    assert poller.poll() == [(7, READ)]
    assert kqueue.filters == {}
    poller.modify(7, READ, once=True)
    assert kqueue.filters == {(7, IN): ONCE}
    kqueue.happen(7, IN)
    poller.poll()
    poller.modify(7, 0)
    poller.unregister(7)
    assert poller.statistics().watched == 0


async def test_unregister_what_is_not_watched(kqueue, poller):
    """It is counted, and the kernel is not asked."""
    poller.unregister(9)
    assert poller.statistics().stale == 1
    assert kqueue.changes == []


async def test_a_descriptor_closed_first_is_forgotten(kqueue, poller):
    """Closing drops the kernel's filters; `unregister` after that still keeps the books."""
    poller.register(7, BOTH)
    kqueue.filters.clear()
    poller.unregister(7)
    poller.register(7)
    assert kqueue.filters == {(7, IN): ADD}


@pytest.mark.parametrize(
    "events,bits",
    [
        ([(IN, 0)], READ),
        ([(OUT, 0)], WRITE),
        ([(IN, 0), (OUT, 0)], BOTH),
        ([(IN, EOF)], READ | Event.HALF_CLOSE),
        ([(OUT, EOF)], WRITE | Event.HANGUP),
        ([(IN, EOF), (OUT, EOF)], BOTH | Event.HALF_CLOSE | Event.HANGUP),
        ([(IN, ERROR)], READ | Event.ERROR),
    ],
)
async def test_events_are_translated_and_joined(kqueue, poller, events, bits):
    """The filters of a descriptor become one event, with end of file and error as bits."""
    poller.register(7, BOTH)
    for event in events:
        kqueue.happen(7, *event)
    assert poller.poll() == [(7, bits)]
    assert poller.statistics().events == 1


async def test_a_batch_is_bounded(kqueue, poller):
    """The kernel is asked for `limit` events and no more."""
    for fd in (7, 8, 9):
        poller.register(fd)
        kqueue.happen(fd, IN)
    assert poller.poll(2) == [(7, READ), (8, READ)]
    assert poller.poll(2) == [(9, READ)]
    assert poller.poll(2) == []
    assert poller.statistics().polls == 3
