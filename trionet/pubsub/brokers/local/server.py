"""The broker that the processes of one machine share: a `Store` behind a Unix socket, in one Trio process.

One task for each process that is connected reads, carries out what came in one read, and writes what that made for
whoever it is, each in one call. What a socket does not take is queued, up to a bound; a process that takes too little
is cut off, and recovers from the histories when it comes back.

Only processes of our own user, and of root, may connect: the socket's file has mode 0600, and the kernel is asked who
is at the other end (SO_PEERCRED, unix(7)). They are trusted; the limits are against mistakes.

``python -m trionet.pubsub.brokers.local.server PATH`` serves one; so does ``trionet broker``, which people should use.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, Final

import attrs
import trio

from trionet.errors import ProtocolError, TopicError
from trionet.pubsub.broker import PAGE, now, wall_clock
from trionet.pubsub.brokers.local import messages as say
from trionet.pubsub.brokers.local import wire
from trionet.pubsub.brokers.local.sockets import listen_local, peer, peer_may, receive
from trionet.pubsub.hub import Hub
from trionet.pubsub.publication import HistoryPage, Publication
from trionet.pubsub.store import MAX_BYTES, Change, Store, Uptime
from trionet.pubsub.topics import HistoryLimits

__all__ = ["LocalLimits", "LocalServer", "serve_local_broker", "serve_until_told"]

log = logging.getLogger("trionet.pubsub")

_ROOM: Final = 65536  # bytes of a message besides the data of a publication
_ACCEPT_PAUSE: Final = 0.1  # seconds, when there is no descriptor for a newcomer
_HELLO_TIMEOUT: Final = 5.0
_LONGEST_TTL: Final = 366 * 86_400
_LIMITS: Final = 1000  # of histories, kept as objects
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))


@attrs.frozen
class LocalLimits:
    """What a local broker takes.

    Bytes of a publication's data, topics of a process, bytes of all histories together, owners of members, bytes that
    wait for a process before it is cut off, and processes.
    """

    max_message: int = 8 * 2**20
    max_topics: int = 1_000_000
    max_bytes: int = MAX_BYTES
    max_members: int = 100_000
    max_queued: int = 32 * 2**20
    max_processes: int = 1000


class _Process:
    """One that is connected. `queued`: bytes that wait for it."""

    __slots__ = ("blocked", "name", "out", "queued", "room", "scope", "sock")

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name
        self.scope = trio.CancelScope()
        self.out: list[bytes] = []
        self.queued = 0
        self.blocked = False  # the socket takes no more now: its writer waits
        self.room = trio.Event()

    async def write(self) -> None:
        """Write what the socket did not take at once."""
        while True:
            await self.room.wait()
            self.room = trio.Event()
            while self.out:
                rest = memoryview(b"".join(self.out))
                self.out = []
                while rest:
                    await trio.lowlevel.wait_writable(self.sock)
                    with suppress(BlockingIOError):
                        sent = self.sock.send(rest)
                        self.queued -= sent
                        rest = rest[sent:]
            self.blocked = False

    def flush(self) -> None:
        """Write what was queued, as far as the socket takes it now."""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has gone; who reads notices it, too
            self.scope.cancel()
            sent = len(data)
        self.queued -= sent
        if sent == len(data):
            self.out = []
        else:
            self.out = [data[sent:]]
            self.blocked = True
            self.room.set()


class LocalServer:
    """See the module. `serve` is its life; everything else may be looked at."""

    def __init__(self, limits: LocalLimits | None = None) -> None:
        self.limits = limits or LocalLimits()
        self.hub: Hub[_Process, bytes] = Hub(
            self._send,
            max_topics=self.limits.max_topics,
            slice=self.limits.max_processes,
            on_last=self._released,
        )
        self.store = Store(secrets.token_hex(4), self.hub.__contains__, max_bytes=self.limits.max_bytes)
        self._uptime = Uptime()
        self.processes: set[_Process] = set()
        self.cut_off = 0  # processes that took too little
        self._waiting: list[_Process] = []  # those with something to write, when this read is worked off
        self._history: dict[tuple[int, int, float], HistoryLimits] = {}
        self._serial = count(1)
        self._commands: dict[int, Callable[[_Process, Any, float], bytes]] = {
            say.PUBLISH: self._publish,
            say.SUBSCRIBE: self._subscribe,
            say.UNSUBSCRIBE: self._unsubscribe,
            say.HISTORY: self._page,
            say.ENTER: self._enter,
            say.REFRESH: self._refresh,
            say.LEAVE: self._leave,
            say.MEMBERS: self._members,
            say.PING: lambda _process, message, _at: wire.pong(message.number),
        }

    # ----------------------------------------------------------- its life

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled. `listener` is a Unix socket that listens; it is not closed."""
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        raise
                    log.warning("the local broker cannot take another process: %s", error.strerror)
                    await trio.sleep(_ACCEPT_PAUSE)
                    continue
                nursery.start_soon(self._attend, sock)

    async def _attend(self, sock: socket.socket) -> None:
        """Serve one process until it goes."""
        with sock:
            sock.setblocking(False)
            name = f"process {peer(sock)[0] or next(self._serial)}"
            refusal = self._refusal(sock)
            if refusal:
                log.warning("the local broker refuses %s: %s", name, refusal)
                with suppress(OSError):
                    sock.send(wire.refused(0, refusal))
                return
            process = _Process(sock, name)
            self.processes.add(process)
            try:
                async with trio.open_nursery() as nursery:
                    process.scope = nursery.cancel_scope
                    nursery.start_soon(process.write)
                    await self._read(process)
                    nursery.cancel_scope.cancel()
            except* ProtocolError as group:
                log.warning("%s is cut off by the local broker: %s", name, group.exceptions[0])
            except* OSError as group:  # it has gone, with something to read
                log.debug("%s: %s", name, group.exceptions[0])
            finally:
                self.processes.discard(process)
                self.hub.forget(process)
                process.out = []

    def _refusal(self, sock: socket.socket) -> str:
        if not peer_may(sock):
            return f"it belongs to user {peer(sock)[1]}, and the broker to {os.geteuid()}"
        if len(self.processes) >= self.limits.max_processes:
            return f"there are {self.limits.max_processes} processes already"
        return ""

    async def _read(self, process: _Process) -> None:
        frames = wire.Frames(max(self.limits.max_message, 2 * 2**20) + _ROOM)
        found: list[bytes] = []
        with trio.move_on_after(_HELLO_TIMEOUT) as patience:
            while not found:
                data = await receive(process.sock)
                if not data:
                    return
                found = frames.feed(data)
        if patience.cancelled_caught:
            raise ProtocolError("it does not say who it is")
        self._greet(process, found.pop(0))
        self._carry_out(process, found)
        while data := await receive(process.sock):
            self._carry_out(process, frames.feed(data))

    def _greet(self, process: _Process, frame: bytes) -> None:
        """The first message says what is spoken."""
        message = wire.parse(frame)
        if not isinstance(message, say.Hello) or message.magic != say.MAGIC:
            raise ProtocolError("it does not speak to a broker")
        if message.version != say.VERSION:
            reason = (
                f"it speaks version {message.version}, and the broker {say.VERSION}: install the same trionet"
            )
            self._queue(process, wire.refused(0, reason))
            self._flush()
            raise ProtocolError(reason)
        self._queue(process, wire.welcome(message.number, self.limits.max_message, self.store.epoch))

    def _carry_out(self, process: _Process, frames: Iterable[bytes]) -> None:
        """Carry out what came in one read, and write all that it made."""
        at = wall_clock()
        try:
            for frame in frames:
                command = self._commands.get(frame[0])
                if command is None:
                    raise ProtocolError(f"a message of kind {frame[0]}")
                message = wire.parse(frame)
                try:
                    answer = command(process, message, at)
                except (_Refused, ValueError) as refusal:  # of a topic, or limits of its history
                    answer = wire.refused(message.number, str(refusal))
                if answer:
                    self._queue(process, answer)
        finally:
            self._flush()

    async def _sweep(self) -> None:
        """Once a second: what is too old goes, and who was not refreshed has left."""
        while True:
            await trio.sleep(1.0)
            for change in self.store.expire(wall_clock(), present=self._uptime.at(now())):
                self._tell(change)
            self._flush()

    # ------------------------------------------------------------ writing

    def _queue(self, process: _Process, data: bytes) -> None:
        if process.queued > self.limits.max_queued:
            if not process.scope.cancel_called:
                log.warning(
                    "%s does not read: %d bytes wait for it; cut off, it recovers when it comes back",
                    process.name,
                    process.queued,
                )
                self.cut_off += 1
                process.scope.cancel()
            return
        if not process.out and not process.blocked:
            self._waiting.append(process)
        process.out.append(data)
        process.queued += len(data)

    def _send(self, processes: Iterable[_Process], data: bytes) -> int:
        """For the hub."""
        number = 0
        for process in processes:
            self._queue(process, data)
            number += 1
        return number

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for process in waiting:
            process.flush()

    def _tell(self, change: Change | None) -> bool:
        """Tell who has subscribed to that very topic."""
        if change is None:
            return False
        topic, event, member, info = change
        found = self.hub.subscribers(topic)
        if found:
            self._send(found, wire.presence(event, topic, member, info))
        return True

    def _released(self, topic: str) -> None:
        self.store.released(topic)

    # ----------------------------------------------------------- commands

    def _publish(self, _process: _Process, message: say.Publish, at: float) -> bytes:
        number, limits, topic, key, tag, origin, data = message
        if len(data) > self.limits.max_message:
            raise _Refused(f"{len(data)} bytes; at most {self.limits.max_message} are taken")
        position, publication = self.store.publish(
            topic, data, self._limits(limits), at, key=key, tag=tag, origin=origin
        )
        if publication is not None and self.hub.wanted(topic):
            self.hub.publish(topic, wire.publication(publication))
        return wire.published(number, position.offset)

    def _limits(self, limits: tuple[int, int, float]) -> HistoryLimits | None:
        if not limits[0]:
            return None
        found = self._history.get(limits)
        if found is None:
            if len(self._history) >= _LIMITS:
                self._history.clear()
            found = self._history[limits] = HistoryLimits(*limits)
        return found

    def _subscribe(self, process: _Process, message: say.Topics, _at: float) -> bytes:
        added = []
        for topic in message.topics:
            try:
                if self.hub.subscribe(process, topic):
                    added.append(topic)
            except TopicError:
                for other in added:
                    self.hub.unsubscribe(process, other)
                raise
        return wire.subscribed(
            message.number, [self.store.position(topic).offset for topic in message.topics]
        )

    def _unsubscribe(self, process: _Process, message: say.Topics, _at: float) -> bytes:
        for topic in message.topics:
            self.hub.unsubscribe(process, topic)
        return b""

    def _page(self, _process: _Process, message: say.History, at: float) -> bytes:
        limit = min(message.limit, PAGE)
        page = self.store.history(message.topic, message.since, limit, at)
        kept, more = _light(page, newest=message.since is None)
        return wire.shown(message.number, kept, page.top.offset, complete=page.complete, more=more)

    def _enter(self, _process: _Process, message: say.Enter, _at: float) -> bytes:
        number, topic, member, owner, info, ttl = message
        if self.store.owners >= self.limits.max_members:
            raise _Refused(f"more than {self.limits.max_members} owners of members")
        return wire.done(number, self._tell(self.store.enter(topic, member, owner, info, self._until(ttl))))

    def _refresh(self, _process: _Process, message: say.Entries, _at: float) -> bytes:
        return wire.unknown(message.number, self.store.refresh(message.entries, self._until(message.ttl)))

    def _until(self, ttl: float) -> float:
        if not 0 <= ttl <= _LONGEST_TTL:
            raise _Refused(f"a ttl is 0 to {_LONGEST_TTL} seconds, not {ttl}")
        return self._uptime.at(now()) + ttl

    def _leave(self, _process: _Process, message: say.Entries, _at: float) -> bytes:
        return wire.done(message.number, self._tell(self.store.leave(*message.entries[0])))

    def _members(self, _process: _Process, message: say.Ask, _at: float) -> bytes:
        return wire.present(message.number, self.store.members(message.topic))


class _Refused(Exception):
    """A request that is not carried out: the reason."""


def _light(page: HistoryPage, *, newest: bool) -> tuple[list[Publication], bool]:
    """What of `page` fits into one message, from its beginning or, with `newest`, its end; whether there is more."""
    size, fit = 0, 0
    order = reversed(page.publications) if newest else iter(page.publications)
    for publication in order:
        if size > say.PAGE_BYTES:
            break
        size += len(publication.data)
        fit += 1
    if fit == len(page.publications):
        return page.publications, page.more
    return (page.publications[-fit:], page.more) if newest else (page.publications[:fit], True)


async def serve_local_broker(listener: socket.socket, limits: LocalLimits | None = None) -> None:
    """Be the broker of all who connect to `listener`, a Unix socket that listens, until cancelled."""
    await LocalServer(limits).serve(listener)


async def serve_until_told(listener: socket.socket, limits: LocalLimits | None = None) -> None:
    """The same until SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_local_broker, listener, limits)
            await anext(signals)
            nursery.cancel_scope.cancel()


def main(path: str) -> None:
    """Serve one at `path` until SIGTERM."""
    with listen_local(path) as listener:
        try:
            trio.run(serve_until_told, listener)
        finally:
            with suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    main(sys.argv[1])
