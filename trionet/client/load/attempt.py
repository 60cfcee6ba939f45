"""One handshake of a load run under way, and why those that fail do."""

from __future__ import annotations

import binascii
import errno
import os
import ssl
import time
from typing import TYPE_CHECKING, Any

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.wire.client_handshake import ResponseReader, check_upgrade_response

if TYPE_CHECKING:
    from trionet.client.load.dialer import Dialer
    from trionet.client.load.links import Link

__all__ = ["Attempt", "cause_of"]

_CAUSES = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}
_BY_TEXT = {os.strerror(number): cause for number, cause in _CAUSES.items()}


def cause_of(error: OSError) -> str:
    """The class of an error, as results have it."""
    number = error.errno or 0
    return _CAUSES.get(number) or errno.errorcode.get(number, type(error).__name__)


class Attempt:
    """One handshake under way: in the place of the subprotocol of its link."""

    __slots__ = ("_error", "_reader", "began", "dialer", "due", "key", "number")

    def __init__(self, dialer: Dialer, number: int) -> None:
        self.dialer = dialer
        self.number = number
        self.key = binascii.b2a_base64(os.urandom(16), newline=False)
        self.began = time.monotonic()
        self.due = dialer.engine.tick + dialer.engine.wheel.ticks(dialer.timeout)
        self._reader: ResponseReader | None = None
        self._error: tuple[str, str] | None = None  # cause and text, known before the link has ended

    @property
    def request(self) -> bytes:
        """What to send."""
        return self.dialer.request(self.key)

    def heard(self, link: Any, data: bytes) -> bytes:
        """Bytes of the response have come; return what came behind it."""
        if self._reader is None and self.dialer.check(data, self.key):
            self._open(link)
            return b""
        try:
            return self._read(link, data)
        except ProtocolError as error:
            self.failed(error)
            link.abort(ConnectionClosed(1006, str(error), "us"))
            return b""

    def _read(self, link: Any, data: bytes) -> bytes:
        dialer = self.dialer
        whole = self._reader is None
        reader = self._reader = self._reader or ResponseReader()
        if not (reader.feed(data) if data else reader.end()):
            if not data:
                self._give_up(link, "hung up", "the server closed the connection before it answered")
            return b""
        response = reader.response
        assert response is not None
        if response.status != 101:
            self._give_up(link, f"status {response.status}", f"{response.status} {response.reason}")
            return b""
        deflate = dialer.protocol.compression
        _, extensions = check_upgrade_response(
            response, binascii.a2b_base64(self.key), dialer._subprotocols, extensions=deflate is not None
        )
        if deflate is not None and (codec := deflate.confirm(extensions)) is not None:
            link.codec = codec.private()
        elif whole and not reader.rest and deflate is None:
            dialer.learn(data, self.key)
        self._open(link)
        return reader.rest

    def _open(self, link: Link) -> None:
        dialer = self.dialer
        dialer.protocol.agreed(link)
        dialer.under_way -= 1
        dialer.left -= 1
        meter = dialer.meter
        began = self.began if dialer.since is None else dialer.since
        dialer.last_opened = now = time.monotonic()
        dialer.histogram.record(int((now - began) * 1e6))
        meter.connected += 1
        meter.open += 1
        meter.peak = max(meter.peak, meter.open)
        dialer.opened(link)
        dialer._change()

    def deadline(self, link: Any) -> int:
        """The wheel says: it may be too late."""
        if self.due > link.engine.tick:
            return self.due
        self._give_up(link, "timeout", f"no answer within {self.dialer.timeout:g} s")
        return 0

    def _give_up(self, link: Any, cause: str, text: str) -> None:
        link._agreed = None
        self.failed_with(cause, text)
        link.abort(ConnectionClosed(1006, text, "us"))

    def failed(self, error: Exception) -> None:
        """TLS, a rule that the server broke, or a mistake of ours; the link ends next, see `ended`."""
        kind = type(error).__name__
        if isinstance(error, ssl.SSLError):
            kind = "TLS"
        elif isinstance(error, ProtocolError):
            kind = "protocol"
        self._error = self._error or (kind, str(error))

    def ended(self, link: Any) -> None:
        """The link was closed before it was open."""
        link._agreed = None
        if self._error is None:
            closed = link.closed
            text = closed.reason if closed is not None else ""
            self._error = _BY_TEXT.get(text, "broken off"), text
        self.failed_with(*self._error)

    def failed_with(self, cause: str, text: str) -> None:
        """It has come to nothing."""
        dialer = self.dialer
        dialer.under_way -= 1
        dialer.meter.failure(cause, text)
        if dialer.retries:
            dialer._again(self.number + 1)
        else:
            dialer.left -= 1
        dialer._change()
