"""The contract of a poller backend, as one function that runs it."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import trio
import trio.testing

from trionet.net.poller import Event, Poller

__all__ = ["check_poller"]

_READ = int(Event.READ)
_WRITE = int(Event.WRITE)


class _Check:
    """A poller under test, and socket pairs that are closed at the end. One step is one method named `step_…`."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self._sockets: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two connected, non-blocking sockets: ours and the peer's."""
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        self._sockets += pair
        return pair

    def close(self) -> None:
        self.poller.close()
        for sock in self._sockets:
            sock.close()

    async def some(self, limit: int = 256) -> dict[int, int]:
        """Wait for events; at most one for each descriptor."""
        found: list[tuple[int, int]] = []
        while not found:  # a wake-up is a hint
            await self.poller.wait()
            found = self.poller.poll(limit)
        assert len(found) <= limit, f"poll({limit}) returned {len(found)} events"
        events = dict(found)
        assert len(events) == len(found), f"a descriptor was reported twice: {found}"
        return events

    async def silent(self) -> None:
        """Nothing is reported, however long one waits."""
        await trio.testing.wait_all_tasks_blocked()
        found = self.poller.poll()
        assert not found, f"nothing should be reported, but {found} was"

    # ------------------------------------------------------------- the steps

    async def step_readable(self) -> None:
        """What is readable is reported, again and again until it is read; what is silent is not."""
        ours, peer = self.pair()
        quiet, _ = self.pair()
        self.poller.register(ours.fileno())
        self.poller.register(quiet.fileno())
        await self.silent()
        peer.send(b"x")
        for _ in range(3):
            events = await self.some()
            assert list(events) == [ours.fileno()]
            assert events[ours.fileno()] & _READ
        ours.recv(10)
        await trio.testing.wait_all_tasks_blocked()
        self.poller.poll()  # a report that was under way when the bytes were read: a hint, once
        await self.silent()

    async def step_writable(self) -> None:
        """Room to write is reported when asked for, as WRITE and not as READ."""
        ours, _ = self.pair()
        self.poller.register(ours.fileno(), Event.WRITE)
        assert await self.some() == {ours.fileno(): _WRITE}

    async def step_both(self) -> None:
        """Both directions can be watched at once."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno(), Event.READ | Event.WRITE)
        peer.send(b"x")
        seen = 0
        while seen != _READ | _WRITE:
            seen |= (await self.some())[ours.fileno()] & (_READ | _WRITE)

    async def step_once(self) -> None:
        """A one-shot watch reports one event and sleeps until it is armed again."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno(), once=True)
        peer.send(b"x")
        assert list(await self.some()) == [ours.fileno()]
        peer.send(b"y")
        await self.silent()
        self.poller.modify(ours.fileno(), Event.READ, once=True)
        assert list(await self.some()) == [ours.fileno()]
        await self.silent()

    async def step_pause(self) -> None:
        """With interest 0 no data is reported, and a hang-up once at most: it must not spin."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno())
        self.poller.modify(ours.fileno(), 0)
        peer.send(b"x")
        await self.silent()
        peer.close()
        await trio.testing.wait_all_tasks_blocked()
        events = dict(self.poller.poll())
        assert not events.get(ours.fileno(), 0) & (_READ | _WRITE)
        await self.silent()
        self.poller.modify(ours.fileno(), Event.READ)
        assert (await self.some())[ours.fileno()] & _READ
        assert ours.recv(10) == b"x"

    async def step_turn(self) -> None:
        """Interest may be changed before the change before it had an effect."""
        ours, peer = self.pair()
        fd = ours.fileno()
        peer.send(b"x")
        self.poller.register(fd)
        for interest in (Event.WRITE, 0, Event.READ, 0, Event.WRITE):
            self.poller.modify(fd, interest)
        assert await self.some() == {fd: _WRITE}
        self.poller.modify(fd, 0)
        await self.silent()

    async def step_again(self) -> None:
        """A descriptor may be forgotten and watched again at once, as often as one likes."""
        for interest in (_READ, _WRITE):
            ours, peer = self.pair()
            fd = ours.fileno()
            peer.send(b"x")
            self.poller.register(fd, interest)
            for _ in range(3):
                assert list(await self.some()) == [fd]
                self.poller.unregister(fd)
                self.poller.register(fd, interest)
            self.poller.unregister(fd)

    async def step_taken_back(self) -> None:
        """An event that has come but was not fetched is not reported after `modify` or `unregister` took it back."""
        first, peer = self.pair()
        second, other = self.pair()
        self.poller.register(first.fileno())
        self.poller.register(second.fileno())
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")
        other.send(b"x")
        await self.poller.wait()
        self.poller.modify(first.fileno(), 0)
        self.poller.unregister(second.fileno())
        await self.silent()

    async def step_hang_up(self) -> None:
        """Data that comes together with a hang-up is announced as readable, so that it is read first."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno())
        peer.send(b"last words")
        peer.close()
        assert (await self.some())[ours.fileno()] & _READ
        assert ours.recv(100) == b"last words"
        assert list(await self.some()) == [ours.fileno()]
        assert ours.recv(100) == b""

    async def step_batch(self) -> None:
        """A bounded batch is fair: what did not fit comes with the next one."""
        pairs = [self.pair() for _ in range(6)]
        for ours, peer in pairs:
            self.poller.register(ours.fileno())
            peer.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        found = [fd for _ in range(3) for fd in await self.some(2)]
        assert sorted(found) == sorted(ours.fileno() for ours, _ in pairs)

    async def step_registered(self) -> None:
        """A descriptor is registered once; to forget one that is not watched, or closed, is no error."""
        ours, _ = self.pair()
        fd = ours.fileno()
        before = self.poller.statistics()
        self.poller.register(fd)
        try:
            self.poller.register(fd)
        except FileExistsError:
            pass
        else:
            raise AssertionError("a second register() must raise FileExistsError")
        assert self.poller.statistics().watched == before.watched + 1
        self.poller.unregister(fd)
        self.poller.unregister(fd)
        ours.close()
        self.poller.unregister(fd)
        after = self.poller.statistics()
        assert after.watched == before.watched
        assert after.stale == before.stale + 2

    async def step_reuse(self) -> None:
        """An event that came for a descriptor before it was forgotten and closed is not one of its next owner."""
        ours, peer = self.pair()
        fd = ours.fileno()
        self.poller.register(fd)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"x")
        await self.poller.wait()
        self.poller.unregister(fd)
        ours.close()
        fresh, other = self.pair()
        if fresh.fileno() != fd:  # another thread may have taken the number meanwhile
            os.dup2(fresh.fileno(), fd)
            fresh.close()
            fresh = socket.socket(fileno=fd)
            self._sockets.append(fresh)
        self.poller.register(fd)
        await self.silent()
        other.send(b"y")
        assert list(await self.some()) == [fd]

    async def step_objects(self) -> None:
        """`start`, iteration, `resume` and `stop` do the same for objects, one-shot unless told otherwise."""
        ours, peer = self.pair()
        self.poller.start(ours)
        peer.send(b"x")
        rounds = 0
        iterator = cast("AsyncGenerator[tuple[Any, Event], None]", aiter(self.poller))
        async with contextlib.aclosing(iterator) as events:
            async for item, event in events:
                assert item is ours
                assert event & Event.READ
                rounds += 1
                if rounds == 2:
                    break
                await self.silent()
                self.poller.resume(ours)
        self.poller.stop(ours)
        self.poller.stop(ours)
        await self.silent()

    async def step_one_waiter(self) -> None:
        """One task waits at a time; a waiter that is cancelled leaves the place free and loses nothing."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.poller.wait)
            await trio.testing.wait_all_tasks_blocked()
            try:
                await self.poller.wait()
            except trio.BusyResourceError:
                nursery.cancel_scope.cancel()
            else:
                raise AssertionError("a second wait() must raise trio.BusyResourceError")
        peer.send(b"x")
        assert list(await self.some()) == [ours.fileno()]

    async def step_counters(self) -> None:
        """`statistics` counts polls and events, and names the backend."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno(), once=True)
        peer.send(b"x")
        before = self.poller.statistics()
        await self.some()
        after = self.poller.statistics()
        assert after.backend == self.poller.backend
        assert after.polls > before.polls
        assert after.events == before.events + 1

    async def step_close(self) -> None:
        """Closing ends the waiter with `ClosedResourceError`, and leaves the descriptors open."""
        ours, peer = self.pair()
        self.poller.register(ours.fileno())
        ended: list[str] = []

        async def wait() -> None:
            try:
                await self.poller.wait()
            except trio.ClosedResourceError:
                ended.append("closed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            self.poller.close()
        await wait()
        assert ended == ["closed", "closed"], "close() must end wait() with trio.ClosedResourceError"
        self.poller.close()
        peer.send(b"x")
        assert ours.recv(10) == b"x"


async def check_poller(
    open_poller: Callable[[trio.Nursery], Poller | Awaitable[Poller]], *, timeout: float = 10.0
) -> None:
    """Hold a poller backend to its contract, with real sockets; raises `AssertionError` where it fails.

    `open_poller` is given a nursery and returns a new `Poller`, or an awaitable of one; it is called for each step,
    so that steps do not depend on each other. Ends within a second, `trio.TooSlowError` after `timeout`::

        async def test_my_poller():
            await check_poller(MyPoller)
    """
    for name, step in vars(_Check).items():
        if not name.startswith("step_"):
            continue
        with trio.fail_after(timeout):
            async with trio.open_nursery() as nursery:
                opened = open_poller(nursery)
                check = _Check(await opened if inspect.isawaitable(opened) else opened)
                try:
                    await step(check)
                except Exception as error:
                    error.add_note(f"poller contract: {step.__doc__}")
                    raise
                finally:
                    check.close()
                    nursery.cancel_scope.cancel()
