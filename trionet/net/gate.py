"""The accept gate: a connection that cannot be served is not accepted. Not doing something is the backpressure.

A listener is watched by the engine's poller and accepting is a job of the pool: a slot first, then accept. When all
slots are taken nobody polls, so nobody accepts. When too many handshakes are half open, too many handlers are
detached, or as many connections are open as fit, the gate stops watching its listeners and looks again after a
cool-down. Clients wait in the kernel's backlog meanwhile, or go to another server.
"""

from __future__ import annotations

import logging
import os
from typing import Final

import attrs
import trio

from trionet.net.engine import Engine
from trionet.net.listener import PASSING, SHORTAGE, Listener

__all__ = ["AcceptGate", "GateStatistics"]

log = logging.getLogger("trionet")

_AT_ONCE: Final = 64  # accepts before others get their turn
_COOL_DOWN: Final = 0.005
_SHORTAGE_PAUSE: Final = 0.1
_LOG_EVERY: Final = 5.0


@attrs.frozen
class GateStatistics:
    """Counters of a gate.

    `held` counts the looks that accepted nothing, by reason; `errors` errors of connections that never were;
    `shortages` those of the system (no descriptors, no memory); `shed` connections closed unserved for that.
    """

    accepted: int
    held: dict[str, int]
    errors: int
    shortages: int
    shed: int


class AcceptGate:
    """Accepts for an engine. Limits are shared by all listeners."""

    def __init__(self, engine: Engine, *, max_connections: int, max_opening: int, max_detached: int) -> None:
        self.engine = engine
        self.max_connections = max_connections
        self.max_opening = max_opening
        self.max_detached = max_detached
        self.accepted = 0
        self.held = {"handshakes": 0, "detached": 0, "connections": 0, "tasks": 0}
        self.errors = 0
        self.shortages = 0
        self.shed = 0
        self._doors: list[_Door] = []
        self._spare = _open_spare()
        self._logged = -_LOG_EVERY
        self._shut = trio.Event()
        self._pause = _COOL_DOWN

    def statistics(self) -> GateStatistics:
        """Counters."""
        return GateStatistics(self.accepted, dict(self.held), self.errors, self.shortages, self.shed)

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

    async def run(self) -> None:
        """Reopen the gate after each cool-down, once there is room."""
        while True:
            await self._shut.wait()
            self._shut = trio.Event()
            await trio.sleep(self._pause)
            self._pause = _COOL_DOWN
            reason = self.full()
            if reason is not None:
                self.held[reason] += 1
                self._shut.set()
                continue
            for door in self._doors:
                if door.listener.protocol.full():
                    self.held["tasks"] += 1
                    self._shut.set()
                else:
                    self.engine.poller.modify(door.listener.fileno(), 1)

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
        self._pause = pause
        for door in self._doors:
            self.engine.poller.modify(door.listener.fileno(), 0)
        self._shut.set()

    def accept_some(self, listener: Listener) -> None:
        """Accept what waits, within limits."""
        engine, protocol = self.engine, listener.protocol
        reason = self.full()
        if reason is not None:
            self.held[reason] += 1
            self.shut()
            return
        if protocol.full():  # the other listeners go on
            self.held["tasks"] += 1
            engine.poller.modify(listener.fileno(), 0)
            self._shut.set()
            return
        room = min(self.max_connections - engine.connections, self.max_opening - engine.opening, _AT_ONCE)
        for _ in range(room):
            try:
                fd = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in PASSING:
                    self.errors += 1
                    continue
                if error.errno not in SHORTAGE:
                    raise
                self._shortage(listener, error)
                self.shut(_SHORTAGE_PAUSE)
                return
            self.accepted += 1
            try:
                engine.add(fd, protocol, protocol.connection_class)
            except OSError as error:  # it is closed
                self.shed += 1
                self._shortage(listener, error)
                self.shut(_SHORTAGE_PAUSE)
                return

    def _shortage(self, listener: Listener, error: OSError) -> None:
        """Out of descriptors: use the spare one to accept and close what waits, so that clients get an answer."""
        self.shortages += 1
        now = trio.current_time()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            log.warning(
                "accept failed: %s; %d connections are open. Raise the limit (ulimit -n, LimitNOFILE=), or lower "
                "max_connections. Trying again every %g s.",
                error.strerror,
                self.engine.connections,
                _SHORTAGE_PAUSE,
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
            except (
                OSError
            ):  # nothing waits (EMFILE is reported before the queue is looked at), or still short
                return
            finally:
                self._spare = _open_spare()


class _Door:
    """A listener as a job of the pool."""

    __slots__ = ("_due", "_state", "gate", "listener")

    def __init__(self, gate: AcceptGate, listener: Listener) -> None:
        self.gate = gate
        self.listener = listener
        self._state = 0  # never busy
        self._due = 0  # nor due: its number may have an entry in the wheel that a closed connection left

    async def run(self) -> None:
        self.gate.accept_some(self.listener)

    def suspended(self) -> None: ...

    def cut_off(self) -> None: ...

    def context_changed(self, context: object) -> None: ...

    def failed(self, error: Exception) -> None:
        # accept(2) failed for a reason that does not pass: the listener is broken, and the server with it.
        raise error


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1
