"""The accept gate: a connection that cannot be served is not accepted. Not doing something is the backpressure.

First a slot, then accept: when no worker comes free within 1 ms, when too many handshakes are half open, when too
many handlers are detached, or when there are as many connections as fit, nothing is accepted and the gate looks
again after a cool-down. Clients wait in the kernel's backlog meanwhile, or go to another server.
"""

from __future__ import annotations

import logging
import os

import attrs
import trio

from trionet.net.engine import Engine
from trionet.net.listener import PASSING, SHORTAGE, Listener

__all__ = ["AcceptGate", "GateStatistics"]

log = logging.getLogger("trionet")

_AT_ONCE = 64  # accepts before other tasks get their turn
_SLOT_WAIT = 0.001
_COOL_DOWN = 0.005
_SHORTAGE_PAUSE = 0.1
_LOG_EVERY = 5.0


@attrs.frozen
class GateStatistics:
    """`held` counts looks that accepted nothing, by reason; `shortages` accept errors, `shed` connections closed."""

    accepted: int
    held_pool: int
    held_handshakes: int
    held_detached: int
    held_connections: int
    errors: int
    shortages: int
    shed: int


class AcceptGate:
    """Accepts for an engine. `run` serves one listener; limits are shared by all."""

    def __init__(self, engine: Engine, *, max_connections: int, max_opening: int, max_detached: int) -> None:
        self.engine = engine
        self.max_connections = max_connections
        self.max_opening = max_opening
        self.max_detached = max_detached
        self.accepted = 0
        self.held = {"pool": 0, "handshakes": 0, "detached": 0, "connections": 0}
        self.errors = 0
        self.shortages = 0
        self.shed = 0
        self._spare = _open_spare()
        self._logged = -_LOG_EVERY

    def close(self) -> None:
        """Release the spare descriptor."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def statistics(self) -> GateStatistics:
        """Counters."""
        return GateStatistics(
            self.accepted,
            self.held["pool"],
            self.held["handshakes"],
            self.held["detached"],
            self.held["connections"],
            self.errors,
            self.shortages,
            self.shed,
        )

    async def run(self, listener: Listener) -> None:
        """Accept for ever."""
        limiter = self.engine.pool.limiter
        slot = object()  # stands for this task
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            reason = self._full()
            if reason is None:
                try:
                    limiter.acquire_on_behalf_of_nowait(slot)
                except trio.WouldBlock:
                    with trio.move_on_after(_SLOT_WAIT) as scope:
                        await limiter.acquire_on_behalf_of(slot)
                    if scope.cancelled_caught:
                        reason = "pool"
            if reason is not None:
                self.held[reason] += 1
                await trio.sleep(_COOL_DOWN)
                continue
            try:
                short = self._accept_some(listener)
            finally:
                limiter.release_on_behalf_of(slot)
            if short:
                await trio.sleep(_SHORTAGE_PAUSE)

    def _full(self) -> str | None:
        engine = self.engine
        if engine.connections >= self.max_connections:
            return "connections"
        if engine.opening >= self.max_opening:
            return "handshakes"
        if engine.pool.detached >= self.max_detached:
            return "detached"
        return None

    def _accept_some(self, listener: Listener) -> bool:
        """Accept what waits, within limits. True: the system ran out of something."""
        engine, protocol = self.engine, listener.protocol
        for _ in range(_AT_ONCE):
            try:
                fd = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in PASSING:
                    self.errors += 1
                    continue
                if error.errno not in SHORTAGE:
                    raise
                self._shortage(listener, error)
                return True
            self.accepted += 1
            engine.add(fd, protocol, protocol.connection_class)
            if self._full() is not None:
                return False
        return False

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
            return
        for _ in range(_AT_ONCE):
            os.close(self._spare)
            try:
                os.close(listener.accept())
                self.shed += 1
            except OSError:  # nothing waits (EMFILE is reported before the queue is looked at), or still short
                return
            finally:
                self._spare = _open_spare()
            if self._spare < 0:
                return


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1
