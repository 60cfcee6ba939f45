"""Very many connections quickly: one task for all, no cancel scope, no waiter and no socket object for each.

`Dialer.dial` makes a socket, starts to connect it and gives it to the engine; on this machine the kernel is done by
then, and the request goes out at once. Elsewhere it waits in the connection's queue until the socket is writable. A
connect that takes too long is ended by the engine's wheel.
"""

from __future__ import annotations

import _socket
import binascii
import errno
import heapq
import random
import socket
import ssl
import sys
import time
from typing import TYPE_CHECKING, Any

import trio

from trionet.client.load.attempt import Attempt, cause_of
from trionet.client.load.plan import Arrivals
from trionet.net import system
from trionet.net.tls import TlsHandshake
from trionet.wire.client_handshake import build_upgrade_request
from trionet.wire.handshake import accept_key

if TYPE_CHECKING:
    from trionet.client.load.links import LoadProtocol
    from trionet.client.load.meter import Meter
    from trionet.client.load.options import LoadOptions
    from trionet.net.engine import Engine
    from trionet.net.histogram import Histogram

__all__ = ["Dialer"]

_BIND_ADDRESS_NO_PORT = 24  # ip(7); `socket` has it from Python 3.12 on
_FULL = 0.005  # seconds to wait for room in the queue of a Unix socket
_AT_ONCE = 32  # connects without a pause: then events are served
_RETRY_FIRST, _RETRY_LAST = 0.1, 5.0  # seconds: a random wait, the bound doubles


class Dialer:
    """Connects the links of one process. `opened` is called with each link that is open."""

    def __init__(
        self,
        engine: Engine,
        protocol: LoadProtocol,
        meter: Meter,
        options: LoadOptions,
        *,
        address: str | None,
        sources: tuple[str, ...],
        opened: Any,
    ) -> None:
        target = options.target
        self.engine = engine
        self.protocol = protocol
        self.meter = meter
        self.opened = opened
        self.timeout = options.connect_timeout
        self.retries = options.reconnect or options.scenario == "storm"
        self.under_way = 0
        self.left = 0  # of those to be connected, those that are neither open nor given up
        self.histogram: Histogram = meter.connect
        self.since: float | None = None  # where their latency counts from; None: from when each was begun
        self.last_opened = 0.0
        self._limit = options.connecting
        self._waiting: list[
            tuple[float, int, int]
        ] = []  # when to try again, a tie-breaker, which attempt it is
        self._changed = trio.Event()
        self._target = target
        self._sources = sources or (None,)
        self._turn = 0
        if target.unix is not None:
            self._family: int = socket.AF_UNIX
            self._address: Any = target.unix
        else:
            assert address is not None
            self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._address = (address, target.port)
        self._own = address  # a connect from there may meet itself (see `_is_self`)
        self._subprotocols = options.subprotocol
        self._placeholder = binascii.b2a_base64(bytes(16), newline=False)
        headers = [_header(line) for line in options.header]
        if options.origin is not None:
            headers.append(("Origin", options.origin))
        request = build_upgrade_request(
            target,
            bytes(16),
            subprotocols=options.subprotocol,
            extensions=protocol.compression.offer if protocol.compression is not None else None,
            headers=headers,
        )
        self._before, self._after = request.split(self._placeholder, 1)
        self._known: tuple[bytes, bytes] | None = (
            None  # a response that was checked: what is around its proof
        )
        self._first = self._tls(options) if target.secure else protocol

    def _tls(self, options: LoadOptions) -> TlsHandshake:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if options.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return TlsHandshake(
            self.protocol,
            context,
            server_side=False,
            server_hostname=self._target.host,
            handshake_timeout=self.timeout,
            failed=self.protocol.tls_failed,
        )

    # ------------------------------------------------------------------ many

    async def connect(
        self, count: int, rate: float | None, *, phase: float = 0.0, limit: int | None = None
    ) -> None:
        """Connect `count` links, `rate` a second; return when each is open or has failed.

        At most `limit` are under way (by default as the options say; 0: no bound). With `retries`, failed ones are
        begun again after a random wait, and this ends when all are open.
        """
        limit = self._limit if limit is None else limit or sys.maxsize
        arrivals = Arrivals(time.monotonic(), rate, phase) if rate else None
        begun = 0
        self.left += count
        while self.left > 0:
            now = time.monotonic()
            due = count if arrivals is None else min(count, arrivals.due(now))
            room = min(limit - self.under_way, _AT_ONCE)
            again = self._take_waiting(now, room)
            for number in again:
                self.dial(number)
            for _ in range(min(due - begun, room - len(again))):
                begun += 1
                self.dial(0)
            if room > 0 and (begun < due or (self._waiting and self._waiting[0][0] <= now)):
                await trio.lowlevel.checkpoint()
                continue
            self._changed = trio.Event()
            if self.left <= 0:
                break
            wake = self._waiting[0][0] if self._waiting else now + 1
            if arrivals is not None and begun < count:
                wake = min(wake, arrivals.time(begun))
            if room <= 0:
                wake = now + 1
            with trio.move_on_after(max(0.0005, wake - now)):
                await self._changed.wait()

    async def keep_up(self) -> None:
        """Connect again what failed and what was lost, for ever."""
        while True:
            for number in self._take_waiting(time.monotonic(), _AT_ONCE):
                self.dial(number)
            with trio.move_on_after(0.05):
                await trio.sleep_forever()

    def _take_waiting(self, now: float, limit: int) -> list[int]:
        taken: list[int] = []
        while self._waiting and self._waiting[0][0] <= now and len(taken) < limit:
            taken.append(heapq.heappop(self._waiting)[2])
        return taken

    def lost(self) -> None:
        """One that was open has ended, and is to come back."""
        self.left += 1
        self._again(0)

    def _again(self, number: int) -> None:
        """Try again soon, the longer after the more attempts."""
        wait = random.uniform(0, min(_RETRY_LAST, _RETRY_FIRST * 2**number))
        heapq.heappush(self._waiting, (time.monotonic() + wait, random.getrandbits(32), number))

    def _change(self) -> None:
        if not self._changed.is_set():
            self._changed.set()

    # ------------------------------------------------------------------- one

    def dial(self, number: int) -> None:
        """Begin to connect one; the rest happens in the engine."""
        attempt = Attempt(self, number)
        self.under_way += 1
        source = self._sources[self._turn]
        self._turn = (self._turn + 1) % len(self._sources)
        try:
            fd = self._begin(source)
            link: Any = self.engine.add(fd, self._first, self._first.connection_class)
        except BlockingIOError:  # the queue of a Unix socket is full: it is no failure yet
            self.under_way -= 1
            heapq.heappush(self._waiting, (attempt.began + _FULL, random.getrandbits(32), number))
            return
        except OSError as error:
            attempt.failed_with(cause_of(error), str(error))
            return
        link._agreed = attempt
        if link.fd < 0:
            attempt.ended(link)
            return
        self.engine.set_deadline(link, attempt.due)
        if not self._target.secure:
            link.write(attempt.request)

    def _begin(self, source: str | None) -> int:
        """A socket that is connected, or about to be."""
        sock = _socket.socket(self._family, _FLAGS)
        try:
            if _FLAGS == socket.SOCK_STREAM:  # pragma: no cover - not on Linux
                sock.setblocking(False)
            if self._family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                if sys.platform == "linux":  # or a port would be taken for all destinations
                    sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
            try:
                sock.connect(self._address)
            except BlockingIOError as error:
                if error.errno != errno.EINPROGRESS:  # EAGAIN: the queue of a Unix socket is full
                    raise
            if self._own is not None and (source is None or source == self._own):
                self._refuse_self(sock)
        except OSError:
            sock.close()
            raise
        if sys.platform == "win32":  # pragma: no cover
            return system.adopt(socket.socket(fileno=sock.detach()))
        return sock.detach()

    @staticmethod
    def _refuse_self(sock: _socket.socket) -> None:
        """Where nobody listens at a port that the kernel may choose for us, a connect may meet itself."""
        try:
            peer = sock.getpeername()
        except OSError:  # not connected yet
            return
        if sock.getsockname() == peer:
            raise OSError(errno.ECONNREFUSED, "connected to itself: nobody listens there")

    # ------------------------------------------------------------- responses

    def request(self, key: bytes) -> bytes:
        """The opening handshake with this key (in base64)."""
        return b"".join((self._before, key, self._after))

    def check(self, response: bytes, key: bytes) -> bool:
        """Whether `response` is one that was found right before, but for its proof that `key` was understood."""
        known = self._known
        return known is not None and response == known[0] + accept_key(key) + known[1]

    def learn(self, response: bytes, key: bytes) -> None:
        """This response was found right, and nothing came behind it."""
        proof = accept_key(key)
        if response.count(proof) == 1:
            before, after = response.split(proof)
            self._known = before, after


_FLAGS = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
