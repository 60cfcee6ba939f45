"""Where those who are turned away are told so: 503, and when to come back.

    stage      what it means                               leaves by
    PREAMBLE   a PROXY header comes first                  it is whole → SHAKING or READING · malformed → reset
    SHAKING    the TLS handshake                           done → READING · failed → closed
    READING    the request's head comes, 16 KiB at most    it is whole → answered, DISCARDING
    DISCARDING our side is shut, input is thrown away      the end of input · too much of it → closed

All of it in `timeout` seconds. These are no connections of the server: a task of its own serves them, with a poller of
its own, so they count nowhere, run no handler and take no slot of the pool, also while that is full.

A request is read before it is answered, because a reset for unread input would overtake the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import errno
import logging
import random
import ssl
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import trio

from trionet.errors import ProtocolError
from trionet.net import system
from trionet.net.limited import LimitedLog
from trionet.net.poller import Poller, open_poller
from trionet.net.tls import TlsHandshake
from trionet.net.tls_session import ENDED, Session, Workbench

__all__ = ["Lobby"]

log = logging.getLogger("trionet")

PREAMBLE: Final = 0
SHAKING: Final = 1
READING: Final = 2
DISCARDING: Final = 3

_MAX_HEAD: Final = 16384
_MAX_DISCARDED: Final = 65536
_READ: Final = 8192
_SLICE: Final = (
    0.001  # seconds of work after which other tasks get their turn; a TLS handshake takes that long
)
_HTTP: Final = frozenset({"http", "https", "ws", "wss"})


class _Guest:
    """One who is to be told."""

    __slots__ = ("due", "fd", "preamble", "received", "retry_after", "size", "stage", "tls")

    def __init__(self, fd: int, due: float, retry_after: int) -> None:
        self.fd = fd
        self.due = due
        self.retry_after = retry_after
        self.received = b""
        self.size = 0  # of what was thrown away
        self.stage = READING
        self.preamble: Callable[[bytes], int | None] | None = None
        self.tls: tuple[Session, TlsHandshake] | None = None


class Lobby:
    """Answers connections that were accepted and are not served: `limit` at once, each within `timeout` seconds.

    `answered` counts those that got their answer; `failed` those that left before, sent no whole head in time, or with
    whom TLS was not possible.
    """

    def __init__(self, limit: int = 256, timeout: float = 5.0) -> None:
        self.limit = limit
        self.timeout = timeout
        self.answered = 0
        self.failed = 0
        self.limited = LimitedLog()  # until there is an engine
        self._guests: dict[int, _Guest] = {}
        self._bench = Workbench()
        self._poller: Poller | None = None
        self._arrived = trio.Event()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._guests)

    def take(self, fd: int, protocol: Any, retry_after: float) -> bool:
        """Take over an accepted descriptor. False: there is no room, or nothing that `protocol` could be told."""
        inner, preamble, handshake = protocol, None, None
        if hasattr(inner, "preamble"):
            preamble, inner = inner.preamble, inner.served
        if isinstance(inner, TlsHandshake):
            handshake = inner
        scheme = getattr(inner, "scheme", "tcp")
        if self._poller is None or len(self._guests) >= self.limit or scheme not in _HTTP:
            return False
        wish = int(retry_after * (1 + random.random()) + 1)
        guest = _Guest(fd, trio.current_time() + self.timeout, wish)
        if handshake is not None:
            guest.tls = Session(self._bench), handshake
            guest.stage = SHAKING
        if preamble is not None:
            guest.preamble = preamble
            guest.stage = PREAMBLE
        try:
            self._poller.register(fd)
        except OSError:
            return False
        if not self._guests:
            self._arrived.set()
        self._guests[fd] = guest
        return True

    async def run(
        self, backend: str | None = None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve them until cancelled; then all are closed."""
        async with trio.open_nursery() as nursery:
            poller = self._poller = open_poller(backend, nursery=nursery)
            task_status.started()
            try:
                while True:
                    await self._arrived.wait()
                    while self._guests:
                        with trio.move_on_at(self._first().due):
                            await poller.wait()
                        await self._turn(poller)
                    self._arrived = trio.Event()
            finally:
                self._poller = None
                for fd in self._guests:
                    system.close(fd)
                self._guests.clear()
                poller.close()
                nursery.cancel_scope.cancel()

    async def _turn(self, poller: Poller) -> None:
        slice_end = perf_counter() + _SLICE
        for fd, _ in poller.poll(64):
            guest = self._guests.get(fd)
            if guest is None:
                continue
            try:
                self._readable(guest)
            except BlockingIOError:
                continue  # readiness is a hint
            except (OSError, ProtocolError) as error:  # ssl.SSLError is an OSError
                log.debug("turned away without an answer: %s", error)
                self._end(guest, reset=True)
            except Exception as error:  # noqa: BLE001 - logged; the context's SNI callback, say
                self.limited.log(
                    log, logging.ERROR, "a connection that is turned away failed", error=error, burst=1
                )
                self._end(guest, reset=True)
            if perf_counter() > slice_end:
                await trio.lowlevel.checkpoint()
                slice_end = perf_counter() + _SLICE
        now = trio.current_time()
        while self._guests and (first := self._first()).due <= now:
            self._end(first, reset=first.stage != DISCARDING)

    def _first(self) -> _Guest:
        """The one whose time is up next: all get the same time, and the table keeps the order in which they came."""
        return next(iter(self._guests.values()))

    def _end(self, guest: _Guest, *, reset: bool = False) -> None:
        fd, guest.fd = guest.fd, -1
        if guest.stage != DISCARDING:
            self.failed += 1
        del self._guests[fd]
        assert self._poller is not None
        self._poller.unregister(fd)
        if reset:
            system.reset(fd)
        else:
            system.close(fd)

    # ---------------------------------------------------------------- stages

    def _readable(self, guest: _Guest) -> None:
        """Something has come. Raises `OSError`, `ProtocolError`; what else is raised is a mistake of ours."""
        data = system.read(guest.fd, _READ)
        if guest.stage == DISCARDING:
            guest.size += len(data)
        if not data or guest.size > _MAX_DISCARDED:
            self._end(guest)
            return
        if guest.stage == PREAMBLE:
            data = self._skip_preamble(guest, data)
        if data and guest.tls is not None and guest.stage != DISCARDING:
            data = self._decipher(guest, *guest.tls, data)
        if data and guest.stage == READING:
            guest.received += data
            if b"\r\n\r\n" in guest.received or b"\n\n" in guest.received or len(guest.received) > _MAX_HEAD:
                self._answer(guest)

    @staticmethod
    def _skip_preamble(guest: _Guest, data: bytes) -> bytes:
        """What stands behind the header, once it is whole."""
        assert guest.preamble is not None
        guest.received += data
        size = guest.preamble(guest.received)
        if size is None:
            return b""
        rest, guest.received = guest.received[size:], b""
        guest.stage = READING if guest.tls is None else SHAKING
        return rest

    @staticmethod
    def _decipher(guest: _Guest, session: Session, handshake: TlsHandshake, data: bytes) -> bytes:
        """Go on with the handshake; the plaintext that `data` completes."""
        if guest.stage == READING:
            plain = session.decipher(data)
            if session.stage == ENDED and not plain:
                raise OSError(errno.ECONNRESET, "close_notify before a request")
        else:
            if session.ssl is None:
                handshake._start(session)
            try:
                done = session.shake(data)
            except ssl.SSLError:
                _send(guest.fd, session.output())  # the alert
                raise
            plain = b""
            if done:
                guest.stage = READING
                plain = session.rest()
        _send(guest.fd, session.output())
        return plain

    def _answer(self, guest: _Guest) -> None:
        body = b"Too busy. Try again in %d seconds.\n" % guest.retry_after
        answer = (
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %d\r\nContent-Type: text/plain\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n"
        ) % (guest.retry_after, len(body))
        if not guest.received.lstrip(b"\r\n").startswith(b"HEAD "):  # RFC 9112, 2.2
            answer += body
        guest.received = b""
        if guest.tls is not None:
            session, _ = guest.tls
            records = session.encipher(answer)
            session.goodbye()
            answer = records + session.output()
        _send(guest.fd, answer)
        system.shutdown_write(guest.fd)
        guest.stage = DISCARDING
        self.answered += 1


def _send(fd: int, data: bytes) -> None:
    """Send little on a fresh connection. A peer that has no room even for that gets nothing."""
    if not data:
        return
    try:
        sent = system.write(fd, data)
    except BlockingIOError:
        sent = 0
    if sent != len(data):
        raise OSError(errno.ENOBUFS, "no room for an answer")
