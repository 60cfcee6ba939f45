"""A TLS connection given away: the records of its `Session` over a Trio socket."""

from __future__ import annotations

import ssl
from typing import Any

import trio

from trionet.net import system
from trionet.net.tls_session import ENDED, FAILED, Session, why

__all__ = ["TlsStream"]

_READ = 65536
_PIECE = 65536  # plaintext enciphered at once


class TlsStream:
    """What `trionet.net.stream.DetachedStream` reads and writes for a TLS connection.

    As with `trio.SSLStream`, the end of input without close_notify is an error, and `send_eof` is one too: TLS 1.2
    has no half-close. A `send_all` that is cancelled leaves no broken record: the rest of it goes out first next time.
    """

    def __init__(self, socket: Any, session: Session) -> None:
        self.socket = socket
        self._session = session
        self._ready = b""
        self._left = bytearray()  # ciphertext to be sent
        self._writes = trio.StrictFIFOLock()
        self._sender = _Conflict("another task is using this stream's send side")
        self._receiver = _Conflict("another task is using this stream's receive side")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream.receive_some`."""
        with self._receiver:
            if max_bytes is not None and max_bytes < 1:
                raise ValueError("max_bytes must be >= 1")
            if self._ready or self._session.stage == ENDED:
                await trio.lowlevel.checkpoint()
            while not self._ready and self._session.stage != ENDED:
                await self._receive()
            size = len(self._ready) if max_bytes is None else max_bytes
            data, self._ready = self._ready[:size], self._ready[size:]
            return data

    async def _receive(self) -> None:
        session = self._session
        try:
            raw = await self.socket.recv(_READ)
        except OSError as error:
            raise _broken(self.socket, error) from error
        if not raw or session.stage == FAILED:
            raise trio.BrokenResourceError("the connection was cut, without close_notify")
        try:
            self._ready = session.decipher(raw)
        except ssl.SSLError as error:
            session.stage = FAILED
            self._left += session.output()
            raise trio.BrokenResourceError(f"TLS: {why(error)}") from error
        if output := session.output():
            self._left += output
            await self._flush()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream.send_all`."""
        with self._sender:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._session.shut or self._session.stage == FAILED:
                raise trio.BrokenResourceError("TLS has ended")
            view = memoryview(data)
            await self._flush()
            for start in range(0, len(view), _PIECE):
                self._left += self._session.encipher(view[start : start + _PIECE])
                await self._flush()
            await trio.lowlevel.checkpoint()

    async def _flush(self) -> None:
        async with self._writes:
            while self._left:
                try:
                    sent = await self.socket.send(bytes(self._left[:_PIECE]))
                except OSError as error:
                    raise _broken(self.socket, error) from error
                del self._left[:sent]

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream.wait_send_all_might_not_block`."""
        with self._sender:
            try:
                await trio.lowlevel.wait_writable(self.socket)
            except (OSError, ValueError) as error:
                raise _broken(self.socket, error) from error

    async def send_eof(self) -> None:
        """TLS has no half-close that all peers understand."""
        raise NotImplementedError("a TLS stream cannot be closed in one direction")

    async def aclose(self) -> None:
        """Send our close_notify if there is room for it, and close."""
        session = self._session
        if self.socket.fileno() >= 0 and not self._left:
            session.goodbye()
            if output := session.output():
                try:
                    system.write(self.socket.fileno(), output)
                except OSError:
                    pass
        self.socket.close()
        await trio.lowlevel.checkpoint()


class _Conflict:
    """Says who came second."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._words)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


def _broken(socket: Any, error: Exception) -> Exception:
    if socket.fileno() < 0:
        return trio.ClosedResourceError("this stream was closed")
    return trio.BrokenResourceError(f"socket connection broken: {error}")
