"""Connections whose protocol compresses. Nothing here exists for those that do not.

What is sent is compressed as a whole, where it is sent: messages that stand for themselves (no context takeover) before
they wait for room, so that less waits; messages that refer to those before them in the very step in which they are
written or queued, so that none is compressed and then not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import trio

from trionet.net.connection import OPEN, ProtocolInterface
from trionet.net.traits import NO_SLOTS
from trionet.protocols.channel import (
    PARKED,
    Message,
    MessageStream,
    PreparedMessage,
    WebSocket,
    compress_frame,
    is_message,
)
from trionet.wire.deflate import NEVER, Codec, Packer
from trionet.wire.frames import encode_frame

if TYPE_CHECKING:
    from trionet.net.engine import Engine
    from trionet.net.stream import DetachedStream

__all__ = ["BURST", "Deflated"]

# One read may bring many messages, and each of their bytes become a thousand (`EXPANSION`). So little is read at once:
# at most 4 MiB come of it; over TLS, where a record is read to its end, 20. Of a message under way more is read:
# `max_message` bounds what that becomes.
BURST: Final = 4096


class Deflated(WebSocket):
    """A `WebSocket` whose protocol compresses (a trait, see `trionet.net.traits`).

    `codec` is what was agreed on with this peer: shared by all that agreed on the same, unless a context is taken over.
    None if nothing was.
    """

    __slots__ = NO_SLOTS
    words = ("codec",)
    compresses = True

    codec: Codec | None

    def __init__(self, engine: Engine, fd: int, protocol: ProtocolInterface) -> None:
        super().__init__(engine, fd, protocol)
        self.codec = None

    # -------------------------------------------------------------- reading

    def _get(self, fd: int, size: int) -> bytes:
        if size > BURST and self.codec is not None:
            size = max(BURST, min(size, self._expected()))
        return super()._get(fd, size)

    def _expected(self) -> int:
        """How many bytes of a message under way may be read at once."""
        partial = self._input
        if partial is None:
            return 0
        if partial.inflater is not None and self.protocol._decoder.chunks:  # its pieces are delivered
            return 0
        return partial.remaining  # type: ignore[no-any-return]

    def give_away(self) -> DetachedStream:
        if self.codec is not None and self.codec.keeps:
            raise RuntimeError(
                f"{self!r} cannot be given away: what follows refers to what it has read or sent"
            )
        return super().give_away()

    # -------------------------------------------------------------- sending

    def send(self, message: Message) -> Coroutine[Any, Any, None]:
        codec = self.codec
        if codec is None or self._state & 7 != OPEN:
            return super().send(message)
        if codec.ordered:
            return self._send_in_order(PreparedMessage(message), codec)
        return super().send(_packed(message, codec))

    async def _send_in_order(self, message: PreparedMessage, codec: Codec) -> None:
        pool = self.engine.pool
        pool.credit -= 1
        if pool.credit < 0 or (task := pool.shown) is None or task._cancel_status is not pool.status:
            await pool.breathe()
        frame = message.frame
        while True:
            if self._state & 7 != OPEN:
                raise self._not_open()
            stream = self._rare.stream if self._rare is not None else None
            if stream is not None:
                await stream.wait_end()
            elif not self._full(frame, PARKED + len(frame)):
                frame = self._compressed_in_order(frame, codec)
                self.protocol.counts.sent += 1
                self._emit(frame)
                if self.fd < 0:
                    raise self.closed_error()
                return
            elif not self._waits(frame):
                self._overflow(frame)
                return
            else:
                self.protocol.counts.slow_waits += 1
                await self.wait_writable(len(frame) * 2 + self._held_back() + PARKED)

    def send_nowait(self, message: Message) -> None:
        codec = self.codec
        if codec is None or self._state & 7 != OPEN:
            super().send_nowait(message)
        elif not codec.ordered:
            super().send_nowait(_packed(message, codec))
        else:
            frame = PreparedMessage(message).frame
            if not self._offer_in_order(frame, codec) and (self._streams() or self._waits(frame)):
                raise trio.WouldBlock

    def _offer_prepared(self, message: PreparedMessage) -> bool:
        codec = self.codec
        if codec is None:
            return self._offer(message.frame)
        if not codec.ordered:
            return self._offer(message.compressed(codec))
        return self._offer_in_order(message.frame, codec)

    def _offer_in_order(self, frame: bytes, codec: Codec) -> bool:
        """`_offer`, with takeover. What the policy queues instead of an older one goes as it is."""
        if self._streams():
            return False
        if self._full(frame):
            return self._overflow(frame)
        frame = self._compressed_in_order(frame, codec)
        self._emit(frame)
        self.protocol.counts.sent += 1
        return True

    def _compressed_in_order(self, frame: bytes, codec: Codec) -> bytes:
        return compress_frame(frame, codec)

    def _message_stream(self, opcode: int) -> MessageStream:
        codec = self.codec
        if codec is None or codec.threshold == NEVER:
            return super()._message_stream(opcode)
        return _PackedStream(self, opcode, codec.packer())

    def _droppable(self) -> Callable[[bytes], bool]:
        codec = self.codec
        if codec is None:
            return is_message
        return _nothing if codec.ordered else _is_message


class _PackedStream(MessageStream):
    """A message that is compressed piece by piece; each is flushed, so that the peer has it when it comes."""

    def __init__(self, ws: WebSocket, opcode: int, packer: Packer) -> None:
        super().__init__(ws, opcode)
        self._packer = packer

    def _encoded(self, payload: bytes, *, fin: bool) -> bytes:
        packed = self._packer.pack(payload)
        if fin:
            packed += self._packer.end()
        return encode_frame(self._opcode, packed, fin=fin, rsv=0 if self.begun else 4)


def _packed(message: Message, codec: Codec) -> PreparedMessage:
    if isinstance(message, PreparedMessage):
        packed = PreparedMessage.__new__(PreparedMessage)
        packed.frame = message.compressed(codec)
        return packed
    packed = PreparedMessage(message)
    packed.frame = compress_frame(packed.frame, codec)
    return packed


def _is_message(frame: bytes) -> bool:
    """Whether a queued frame is a whole message, compressed or not, to which no other refers."""
    return frame[0] & 0xBF in (0x81, 0x82)


def _nothing(_frame: bytes) -> bool:
    """With takeover nothing that is queued may be dropped: what follows may refer to it."""
    return False
