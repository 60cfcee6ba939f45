"""The accept gate: a connection that cannot be served is not accepted. Not doing something is the backpressure.

A listener is watched by the engine's poller and accepting is a job of the pool: a slot first, then accept. When all
slots are taken nobody polls, so nobody accepts. When too many handshakes are half open, too many handlers are
detached, or as many connections are open as fit, the gate stops watching its listeners and looks again after a
cool-down, which grows until a connection ends. Clients wait in the kernel's backlog meanwhile.

Admission policies (`trionet.net.admission`) may refuse for other reasons, and in other ways.
"""

from __future__ import annotations

import logging
import os
import select
from typing import Any, Final

import attrs
import trio

from trionet.net.doorkeeper import Book, Doorkeeper, PolicyStatistics, seated
from trionet.net.engine import Engine
from trionet.net.listener import PASSING, SHORTAGE, Listener
from trionet.net.overload import Overload
from trionet.net.pool import PlainJob

__all__ = ["AcceptGate", "GateStatistics"]

log = logging.getLogger("trionet")

_AT_ONCE: Final = 64  # accepts before others get their turn
_COOL_DOWN: Final = 0.005
_LONGEST: Final = 0.25  # the cool-down doubles up to this, unless a connection ends
_SHORTAGE_PAUSE: Final = 0.1


@attrs.frozen
class GateStatistics:
    """Counters of a gate.

    `held` counts the looks that accepted nothing, by reason; `errors` errors of connections that never were;
    `shortages` those of the system (no descriptors, no memory); `shed` connections closed unserved for that.
    `policies`: those of the admission policies; `lingering` connections wait for a 503 or read it, `answered` did.
    `overloads`: how often overload has begun.
    """

    accepted: int
    held: dict[str, int]
    errors: int
    shortages: int
    shed: int
    policies: tuple[PolicyStatistics, ...] = ()
    lingering: int = 0
    answered: int = 0
    overloads: int = 0


class AcceptGate:
    """Accepts for an engine. Limits are shared by all listeners."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_connections: int,
        max_opening: int,
        max_detached: int,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self.engine = engine
        self.doorkeeper = doorkeeper
        if doorkeeper is not None:
            doorkeeper.attach(engine)
        self.max_connections = max_connections
        self.max_opening = max_opening
        self.max_detached = max_detached
        self.accepted = 0
        self.held = {"handshakes": 0, "detached": 0, "connections": 0, "tasks": 0}
        self.errors = 0
        self.errnos: dict[int, int] = {}  # errors of accept(2) by number
        self.shortages = 0
        self.shed = 0
        self._doors: list[_Door] = []
        self._spare = _open_spare()
        self._shut = trio.Event()
        self._pause = _COOL_DOWN
        self._short = False  # the last accepting found no descriptor
        self._overload = Overload()

    def statistics(self) -> GateStatistics:
        """Counters."""
        doorkeeper = self.doorkeeper
        return GateStatistics(
            self.accepted,
            dict(self.held),
            self.errors,
            self.shortages,
            self.shed,
            () if doorkeeper is None else doorkeeper.statistics(),
            0 if doorkeeper is None else len(doorkeeper.lobby),
            0 if doorkeeper is None else doorkeeper.lobby.answered,
            self._overload.episodes,
        )

    def overloaded(self) -> str | None:
        """Why nobody new is served now, in words with numbers; None if that is not so."""
        if self.doorkeeper is not None and (reason := self.doorkeeper.overloaded()) is not None:
            return reason
        found = self.full()
        if found is None and any(door.listener.protocol.full() for door in self._doors):
            found = "tasks"
        if found is None and self._short:
            found = "descriptors"
        return f"{found}: {self._explain(found)}" if found is not None else None

    def open(self, listener: Listener) -> None:
        """Begin to accept from `listener`."""
        door = _Door(self, listener)
        self._doors.append(door)
        self.engine.watch(listener.fileno(), door)

    def close(self) -> None:
        """Accept no more. Call it before the listeners are closed. A second call does nothing."""
        doors, self._doors = self._doors, []
        for door in doors:
            self.engine.unwatch(door.listener.fileno())
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reopen the gate after each cool-down, once there is room; and what admission policies need to have run."""
        async with trio.open_nursery() as nursery:
            if self.doorkeeper is not None:
                await nursery.start(self.doorkeeper.run, self._turn_all_away)
            task_status.started()
            while True:
                with trio.move_on_at(self._overload.ends):
                    await self._shut.wait()
                self._overload.look(trio.current_time())
                if self._shut.is_set():
                    self._shut = trio.Event()
                    await self._wait_for_room(self._pause)
                    self._reopen()

    async def _wait_for_room(self, seconds: float) -> None:
        """Wait until a connection ends, but the cool-down at least, and so long at most."""
        begun = trio.current_time()
        if seconds > _COOL_DOWN:
            room = self.engine.room = trio.Event()
            with trio.move_on_after(seconds):
                await room.wait()
            self.engine.room = None
        if trio.current_time() < begun + _COOL_DOWN:
            await trio.sleep_until(begun + _COOL_DOWN)

    def _reopen(self) -> None:
        """Watch the listeners again, if there is room."""
        self._short = False
        _, reason, book = self._verdict()
        if reason is not None and (book is None or book.policy.action == "wait"):
            self._hold(reason, book)
            self._wait_on()
            return
        full = False
        for door in self._doors:
            if door.listener.protocol.full():
                self._hold("tasks")
                full = True
            else:
                self.engine.poller.modify(door.listener.fileno(), 1)
        if full:
            self._wait_on()
        else:
            self._pause = _COOL_DOWN

    def _wait_on(self) -> None:
        self._pause = min(2 * self._pause, _LONGEST)
        self._shut.set()

    def _verdict(self) -> tuple[int, str | None, Book | None]:
        """How many may be accepted now; if none, why not, and which policy says so, if one does."""
        engine, room = self.engine, _AT_ONCE
        if self.doorkeeper is not None:
            room, book = self.doorkeeper.before()
            if book is not None:
                return 0, book.policy.name, book
            room = min(room, _AT_ONCE)
        reason = self.full()
        if reason is None:
            room = min(self.max_connections - engine.connections, self.max_opening - engine.opening, room)
        return room, reason, None

    def _hold(self, reason: str, book: Book | None = None) -> None:
        """Nothing is accepted: count that."""
        if book is not None:
            book.held += 1
        else:
            self.held[reason] += 1
        self._refused(reason, book)

    def _refused(self, reason: str, book: Book | None, turned_away: int = 0) -> None:
        begins = self._overload.refused(
            trio.current_time(), reason, lambda: self._explain(reason, book), turned_away
        )
        if begins:
            self._shut.set()  # `run` is to wait for its end

    def _explain(self, reason: str, book: Book | None = None) -> str:
        """The numbers behind it."""
        if book is not None and self.doorkeeper is not None:
            return self.doorkeeper.explain(book)
        return _WORDS[reason].format(engine=self.engine, gate=self)

    def full(self) -> str | None:
        """Why nothing is accepted; None if there is no reason."""
        engine = self.engine
        if engine.connections >= self.max_connections:
            return "connections"
        if engine.opening >= self.max_opening:
            return "handshakes"
        if engine.pool.detached >= self.max_detached:
            return "detached"
        return None

    def shut(self, pause: float = _COOL_DOWN) -> None:
        """Stop accepting for a while."""
        self._pause = max(self._pause, pause)
        for door in self._doors:
            self.engine.poller.modify(door.listener.fileno(), 0)
        self._shut.set()

    def accept_some(self, listener: Listener) -> None:
        """Accept what waits, within limits."""
        room, reason, book = self._verdict()
        if reason is not None:
            if book is not None and book.policy.action != "wait":
                self._turn_away(listener, book)
            else:
                self._hold(reason, book)
                self.shut()
            return
        if listener.protocol.full():  # the other listeners go on
            self._hold("tasks")
            self.engine.poller.modify(listener.fileno(), 0)
            self._shut.set()
            return
        doorkeeper, before = self.doorkeeper, self.accepted
        try:
            self._let_in(listener, room)
        finally:
            if doorkeeper is not None and self.accepted != before:
                doorkeeper.accepted(self.accepted - before)

    def _let_in(self, listener: Listener, room: int) -> None:
        engine, protocol, doorkeeper = self.engine, listener.protocol, self.doorkeeper
        asks = doorkeeper is not None and doorkeeper.seating and not getattr(protocol, "seats_later", False)
        connection_class: Any = protocol.connection_class
        for _ in range(room):
            try:
                fd = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self._passes(listener, error):
                    continue
                return
            if asks:
                seat, book = doorkeeper.enter(listener.peer)  # type: ignore[union-attr]
                if book is not None:
                    doorkeeper.turn_away(fd, protocol, book)  # type: ignore[union-attr]
                    continue
                connection_class = seated(protocol.connection_class, seat)
            self.accepted += 1
            try:
                engine.add(fd, protocol, connection_class)
            except OSError as error:  # it is closed
                self.shed += 1
                self._shortage(listener, error)
                self.shut(_SHORTAGE_PAUSE)
                return

    def _turn_all_away(self) -> int:
        """If a policy wants that: turn away some of those who wait, at each listener. Returns how many."""
        _, _, book = self._verdict()
        if book is None or self._short:  # the gate has looked, and will again
            return 0
        if book.policy.action == "wait":
            if not self.engine.pool.limiter.available_tokens and self._somebody_waits():
                self._hold(book.policy.name, book)  # for accepting, which would say so, there is no slot
            return 0
        return sum([self._turn_away(door.listener, book) for door in self._doors])

    def _somebody_waits(self) -> bool:
        if not hasattr(select, "poll"):  # pragma: no cover - Windows
            return False
        poll = select.poll()
        for door in self._doors:
            poll.register(door.listener.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _turn_away(self, listener: Listener, book: Book) -> int:
        """A policy refuses everybody, and not by letting them wait."""
        assert self.doorkeeper is not None
        count = 0
        for _ in range(_AT_ONCE):
            try:
                fd = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if self._passes(listener, error):
                    continue
                break
            self.doorkeeper.turn_away(fd, listener.protocol, book)
            count += 1
        if count:
            self._refused(book.policy.name, book, count)
        return count

    def _passes(self, listener: Listener, error: OSError) -> bool:
        """What an error of accept(2) means: True, that connection's; False, a shortage. Raises what is neither."""
        number = error.errno or 0
        self.errnos[number] = self.errnos.get(number, 0) + 1
        if error.errno in PASSING:
            self.errors += 1
            return True
        if error.errno not in SHORTAGE:
            raise error
        self._shortage(listener, error)
        self.shut(_SHORTAGE_PAUSE)
        return False

    def _shortage(self, listener: Listener, error: OSError) -> None:
        """Out of descriptors: use the spare one to accept and close what waits, so that clients get an answer."""
        self.shortages += 1
        self._short = True
        self.engine.limited.log(
            log,
            logging.WARNING,
            "accept failed: %s; %d connections are open. Raise the limit (ulimit -n, LimitNOFILE=), or lower "
            "max_connections. Trying again every %g s.",
            error.strerror,
            self.engine.connections,
            _SHORTAGE_PAUSE,
            burst=1,
        )
        if self._spare < 0:
            self._spare = _open_spare()
        for _ in range(_AT_ONCE):
            if self._spare < 0:
                return
            os.close(self._spare)
            try:
                os.close(listener.accept())
                self.shed += 1
            except OSError:
                return  # nothing waits (EMFILE is reported before the queue is looked at), or still short
            finally:
                self._spare = _open_spare()


_WORDS: Final = {
    "connections": "{engine.connections} connections, max_connections is {gate.max_connections}",
    "handshakes": "{engine.opening} half-open handshakes, max_opening is {gate.max_opening}",
    "detached": "{engine.pool.detached} handlers wait, max_detached is {gate.max_detached}",
    "tasks": "a protocol has all the tasks it may have",
    "descriptors": "{engine.connections} connections, and no descriptor for one more",
}


class _Door(PlainJob):
    """A listener as a job of the pool."""

    __slots__ = ("_due", "_state", "gate", "listener")

    def __init__(self, gate: AcceptGate, listener: Listener) -> None:
        self.gate = gate
        self.listener = listener
        self._state = 0  # never busy
        self._due = 0  # nor due: its number may have an entry in the wheel that a closed connection left

    async def run(self) -> None:
        # Else the gate was closed while this job was queued, and the listener with it.
        if self in self.gate._doors:
            self.gate.accept_some(self.listener)

    # `failed`: accept(2) failed for a reason that does not pass. The listener is broken, and the server with it.


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1
