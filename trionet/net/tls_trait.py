"""TLS under the poller: a trait that enciphers where other connections make system calls.

    stage       what it means                           leaves by
    HANDSHAKE   the protocol is a `TlsHandshake`        done → READY, and the protocol's `connection_made`
                                                        alert, plain HTTP → FAILED · deadline, end of input → closed
    READY       records go both ways                    the peer's close_notify → ENDED · broken record → FAILED
    ENDED       the end of input; output goes on        our close_notify is sent before our FIN
    FAILED      the alert is sent, input is discarded   as LINGERING does

What the kernel does not take of a record is kept beside the queue, and the frames in it stay in the queue until it is
sent: so the queue's limits and deadlines hold, and whoever drops frames leaves those alone.
"""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from trionet.errors import ConnectionClosed
from trionet.net import system
from trionet.net.connection import BUSY, FLUSHING, LINGERING, OPEN, PINGED, Connection, ProtocolInterface
from trionet.net.tls_session import ENDED, FAILED, HANDSHAKE, READY, Session, why
from trionet.net.tls_stream import TlsStream
from trionet.net.traits import NO_SLOTS

if TYPE_CHECKING:
    from trionet.net.engine import Engine
    from trionet.net.stream import RawStream

__all__ = ["Tls"]

log = logging.getLogger("trionet")

_PIECE: Final = 65536  # plaintext enciphered at once
_STATE: Final = 7

_PLAIN_TEXT: Final = b"This port speaks TLS: use https:// or wss://.\n"
_PLAIN_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
    % (len(_PLAIN_TEXT), _PLAIN_TEXT)
)


class Tls(Connection):
    """A connection that speaks TLS (a trait, see `trionet.net.traits`); plain until a `TlsHandshake` begins."""

    __slots__ = NO_SLOTS
    words = ("_tls",)

    _tls: Session | None

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self._tls = None

    @property
    def tls(self) -> ssl.SSLObject | None:
        session = self._tls
        return session.ssl if session is not None else None

    # --------------------------------------------------- the system's calls

    def _get(self, fd: int, size: int) -> bytes:
        """Read and decipher. May return some 16 KiB more than `size`: the rest of a record begun before."""
        session = self._tls
        if session is None or session.stage == FAILED:
            return super()._get(fd, size)
        if session.stage == ENDED:
            return b""
        raw = super()._get(fd, size)
        if not raw:
            self._cut(session)
            return b""
        try:
            if session.stage == READY:
                data = session.decipher(raw)
                if session.bench.outgoing.pending:
                    self._speak(session, session.output())
            else:
                data = self._shake(session, raw)
        except ssl.SSLError as error:
            raise self._failure(session, why(error), error) from error
        if self.fd < 0:
            raise BrokenPipeError(errno.EPIPE, "closed")
        if session.stage == ENDED and data:
            # RFC 8446, 6.1: what follows a close_notify is ignored. The end of input has to be told by a read of its
            # own, and the peer may wait for us before it sends a FIN: so have the kernel report the end.
            system.shutdown_read(self.fd)
        if data or session.stage == ENDED:
            return data
        self._seen = self.engine.tick
        if self._state & (PINGED | _STATE) == PINGED | OPEN:  # a partial record is a sign of life, too
            self._state -= PINGED
        raise BlockingIOError

    def _put(self, fd: int, data: bytes) -> int:
        """Encipher and write. A record is sent whole or stays in `Session.left`; then it is not taken yet."""
        session = self._tls
        if session is None:
            return super()._put(fd, data)
        size = len(data)
        if size <= _PIECE:
            return self._encipher(session, data) if size else 0
        taken = 0
        view = memoryview(data)
        while taken < size:
            try:
                taken += self._encipher(session, view[taken : taken + _PIECE])
            except BlockingIOError:
                if not taken:
                    raise
                break
        return taken

    def _put_many(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        session = self._tls
        if session is None:
            return self._plain(fd, buffers)
        if session.left:
            self._send_left(session)
            if session.owed:
                owed, session.owed = session.owed, 0
                return owed
        if not buffers[0]:
            return 0  # the place of what TLS itself had to say
        data, count = _join(buffers)
        try:
            return self._encipher(session, data)
        except BlockingIOError:
            if session.owed:  # they stay in the queue until the records are sent, but as they are
                self._out.begun = count  # type: ignore[union-attr]
            raise

    def _plain(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        inherited = super()._put_many
        return system.writev(fd, buffers) if inherited is None else inherited(fd, buffers)

    def _encipher(self, session: Session, data: bytes | memoryview) -> int:
        """Send all of `data`, or raise `BlockingIOError`: then it counts as sent when `Session.left` is."""
        if session.stage > ENDED:
            if session.stage == FAILED:
                raise BrokenPipeError(errno.EPIPE, "TLS has failed")
            if self._out is not None:
                self.engine.writer.modify(self.fd, 0)  # nobody but the peer can change that
            raise BlockingIOError
        try:
            records = session.encipher(data)
        except ssl.SSLWantReadError as error:
            raise OSError(errno.EPROTO, "TLS renegotiation is not supported") from error
        try:
            sent = super()._put(self.fd, records)
        except BlockingIOError:
            sent = 0
        if sent != len(records):
            session.left = records[sent:]
            session.owed = len(data)
            raise BlockingIOError
        return len(data)

    def _send_left(self, session: Session) -> None:
        sent = super()._put(self.fd, session.left)
        session.left = session.left[sent:]
        out = self._out
        if out is not None:
            out.since = self.engine.tick
        if session.left:
            raise BlockingIOError

    def _queue(self, data: bytes, sent: int) -> None:
        super()._queue(data, sent)
        if self._out is not None:
            self._out.begun = 1  # it is in a record, or a part of it is

    def _speak(self, session: Session, output: bytes) -> None:
        """Send what TLS itself has to say. What the kernel does not take is queued behind an empty frame."""
        if session.left:
            session.left += output
            if len(session.left) > 2 * _PIECE:  # an answer to each of many KeyUpdates
                self.abort(ConnectionClosed(1006, "the peer does not read what TLS answers", "us"))
            return
        try:
            sent = super()._put(self.fd, output)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the next read says so
        if sent != len(output):
            session.left = output[sent:]
            if self._out is None:
                self._queue(b"", 0)

    # -------------------------------------------------------------- handshake

    def _shake(self, session: Session, raw: bytes) -> bytes:
        """Go on with the handshake; what follows it, once it is done. Raises `ssl.SSLError`, `BlockingIOError`."""
        handshake: Any = self.protocol  # a `TlsHandshake`
        if session.ssl is None:
            # A capital letter begins no TLS record (RFC 8446, 5.1), but every HTTP request.
            if raw[:1].isupper():
                session.bench.plain_http += 1
                try:
                    super()._put(self.fd, _PLAIN_ANSWER)
                except OSError:
                    pass
                raise self._failure(session, "plain HTTP on a TLS port")
            handshake._start(session)
        done = session.shake(raw)
        output = session.output()
        data = session.rest() if done else b""
        output += session.output()
        if output:
            self._speak(session, output)
        if done:
            handshake._done(self, session)
        return data

    def _failure(self, session: Session, reason: str, error: ssl.SSLError | None = None) -> OSError:
        """Send the alert, and read on for a while, so that the peer gets it. Returns what `_get` is to raise."""
        alert = session.output()
        shaking = session.stage == HANDSHAKE
        session.stage = FAILED
        session.ssl = None
        self.note_closed(ConnectionClosed(1006, f"TLS: {reason}", "peer" if " alert " in reason else "us"))
        log.debug("%r: TLS: %s", self, reason)
        if shaking and error is not None:
            cast("Any", self.protocol).failed(self, error)
        if self._out is not None or session.left:
            return OSError(errno.EPROTO, f"TLS: {reason}")  # the alert would stand in the middle of a record
        try:
            if alert:
                super()._put(self.fd, alert)
        except OSError:
            pass
        self._input = None
        if self._state & _STATE < LINGERING:
            self.linger()
        return BlockingIOError()

    def _cut(self, session: Session) -> None:
        """The end of input, and no close_notify: somebody may have cut the connection (RFC 8446, 6.1)."""
        if session.stage == READY and self.closed is None:
            session.bench.truncated += 1
            if not self._state & BUSY:
                self.note_closed(
                    ConnectionClosed(1006, "TLS: the connection was cut, without close_notify", "network")
                )

    # ---------------------------------------------------------------- closing

    def _notify(self) -> None:
        """Send our close_notify, once."""
        session = self._tls
        if session is not None and not session.shut and self.fd >= 0:
            session.goodbye()
            if output := session.output():
                self._speak(session, output)

    def finish(self, closed: ConnectionClosed | None = None) -> None:
        if self._out is None:
            self._notify()
        super().finish(closed)

    def linger(self, seconds: float = 2.0) -> None:
        session = self._tls
        if session is not None and session.stage == HANDSHAKE:
            self.abort()  # there is no way to tell the peer anything
        else:
            super().linger(seconds)

    def _flushed(self) -> None:
        self._notify()
        if self._out is None:
            super()._flushed()
        else:  # not even that much had room: this is called once more
            self._state |= FLUSHING

    def _release(self) -> None:
        super()._release()
        if self._tls is not None:
            self._tls = None

    def _stream(self) -> RawStream:
        session = self._tls
        if session is None:
            return super()._stream()
        if session.stage > ENDED or session.left:
            raise RuntimeError("TLS is in the middle of something that cannot be given away")
        return TlsStream(super()._stream().socket, session)


def _join(buffers: Sequence[bytes | memoryview]) -> tuple[bytes | memoryview, int]:
    """The first 64 KiB of `buffers` in one piece, and of how many buffers it is."""
    first = buffers[0]
    if len(buffers) == 1 or len(first) >= _PIECE:
        return first[:_PIECE], 1
    pieces: list[bytes | memoryview] = []
    room = _PIECE
    for piece in buffers:
        pieces.append(piece[:room])
        room -= len(pieces[-1])
        if not room:
            break
    return b"".join(pieces), len(pieces)
