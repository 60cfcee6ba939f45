"""The TLS state of one connection, as a machine without I/O: ciphertext in, plaintext out, and the other way round.

OpenSSL is given memory to read from and to write to (`ssl.MemoryBIO`), not the socket. A read is fed in and worked
off to its end, so nothing that would need another look stays behind in the TLS object; a partial record does, and
the readiness event for its rest is still to come. An answer that a read calls for (KeyUpdate, alerts, tickets) is in
the output afterwards: no read ever waits for writability, and no write for readability.

One pair of such buffers serves all connections of an engine, for each operation leaves them empty: an idle TLS
connection has no buffer of its own, and is no larger than an `ssl.SSLSocket`.
"""

from __future__ import annotations

import ssl
from typing import Final

import attrs

__all__ = ["ENDED", "FAILED", "HANDSHAKE", "READY", "Session", "TlsStatistics", "Workbench", "why"]

READY: Final = 0  # records go both ways
ENDED: Final = 1  # the peer has sent its close_notify: no more input, output as before
HANDSHAKE: Final = 2
FAILED: Final = 3  # an alert has ended it: what still comes is discarded

_PIECE: Final = 16384  # plaintext of the largest record (RFC 8446, 5.1)


@attrs.frozen
class TlsStatistics:
    """Counters of all TLS connections of a server.

    `handshakes` succeeded, `resumed` among them began with a session ticket. `failures` did not, whoever was to
    blame; `plain_http` among them were plain HTTP. `truncated`: the peer was cut off, or left without close_notify.
    """

    handshakes: int
    resumed: int
    failures: int
    plain_http: int
    truncated: int


class Workbench:
    """What the TLS connections of an engine share: the buffers, empty between any two operations, and counters."""

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.busy = False  # a handshake, from which OpenSSL may call the application (SNI)
        self.handshakes = 0
        self.resumed = 0
        self.failures = 0
        self.plain_http = 0
        self.truncated = 0

    def clear(self) -> None:
        """Throw away what an operation left that was broken off by a signal: it is of another connection."""
        self.incoming.read()
        self.outgoing.read()

    def statistics(self) -> TlsStatistics:
        """Counters."""
        return TlsStatistics(self.handshakes, self.resumed, self.failures, self.plain_http, self.truncated)


class Session:
    """TLS of one connection. After each call of `shake`, `decipher` or `goodbye` send what `output` returns."""

    __slots__ = ("bench", "due", "left", "owed", "shut", "ssl", "stage")

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.ssl: ssl.SSLObject | None = None  # made when the first bytes come
        self.stage = HANDSHAKE
        self.shut = False  # our close_notify is sent
        self.due = 0  # tick at which the handshake must be done; 0: whenever
        self.left = b""  # ciphertext that the kernel did not take
        self.owed = 0  # bytes of plaintext in it that count as sent when it is

    def start(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """Make the TLS object. Raises `ValueError` for a name that is none, or a context of the other side."""
        bench = self.bench
        self.ssl = context.wrap_bio(
            bench.incoming, bench.outgoing, server_side=server_side, server_hostname=server_hostname
        )

    def shake(self, raw: bytes) -> bool:
        """Go on with the handshake; whether it is done. Then call `rest`. Raises `ssl.SSLError`."""
        bench = self.bench
        assert self.ssl is not None
        if bench.incoming.pending or bench.outgoing.pending:
            bench.clear()
        bench.incoming.write(raw)
        bench.busy = True
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            bench.busy = False
        self.stage = READY
        return True

    def rest(self) -> bytes:
        """What came behind the handshake. Raises `ssl.SSLError`."""
        return b"".join(self._drain([]))

    def decipher(self, raw: bytes) -> bytes:
        """The plaintext that `raw` completes, b"" if none. Sets `stage` at a close_notify. Raises `ssl.SSLError`."""
        bench = self.bench
        incoming = bench.incoming
        if incoming.pending or bench.outgoing.pending:
            bench.clear()
        incoming.write(raw)
        size = len(raw)
        try:
            data = self.ssl.read(size)  # type: ignore[union-attr]
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        if not data:
            self.stage = ENDED
            return b""
        # Less than asked for is the end of a record; more than one read's worth comes of a record begun before.
        if len(data) < size and not incoming.pending:
            return data  # type: ignore[no-any-return, unused-ignore]
        return b"".join(self._drain([data]))

    def _drain(self, pieces: list[bytes]) -> list[bytes]:
        assert self.ssl is not None
        while True:
            try:
                data = self.ssl.read(_PIECE)
            except ssl.SSLWantReadError:
                return pieces
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                self.stage = ENDED
                return pieces
            pieces.append(data)

    def encipher(self, data: bytes | memoryview) -> bytes:
        """The records for `data`, which is not empty. Raises `BlockingIOError` during a handshake, `ssl.SSLError`."""
        bench = self.bench
        if bench.busy:
            raise BlockingIOError
        outgoing = bench.outgoing
        if outgoing.pending or bench.incoming.pending:
            bench.clear()
        self.ssl.write(data)  # type: ignore[union-attr]
        return outgoing.read()

    def goodbye(self) -> None:
        """Have a close_notify in the output, once (RFC 8446, 6.1)."""
        if self.shut or self.stage > ENDED or self.bench.busy:
            return
        assert self.ssl is not None
        self.shut = True
        self.bench.clear()
        try:
            self.ssl.unwrap()
        except OSError:  # the peer's close_notify is not here, and we do not wait for it
            pass

    def output(self) -> bytes:
        """What is to be sent."""
        outgoing = self.bench.outgoing
        return outgoing.read() if outgoing.pending else b""


def why(error: ssl.SSLError) -> str:
    """What went wrong, in OpenSSL's words without its decoration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).replace("_", " ").lower()
