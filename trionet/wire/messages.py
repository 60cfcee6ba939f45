"""From received bytes to messages: unmasking, fragments, inflating, UTF-8, limits; resumable at any byte.

`MessageDecoder` is configuration, one for all connections. What a connection has to remember between two reads
is a `Partial`, and None at nearly all times: an idle connection holds nothing.

Nothing is allocated because a peer declared a length: a payload is kept as it arrives. Text is checked as it
arrives too (8.1), so invalid UTF-8 fails the connection at the offending byte, in the middle of a frame if need be.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import NamedTuple, TypeAlias

import attrs

from trionet.errors import ProtocolError
from trionet.wire.closing import CloseCode
from trionet.wire.deflate import Codec, Inflater
from trionet.wire.frames import Header, Opcode, check_header, encode_header, parse_header
from trionet.wire.masking import apply_mask, rotate_key

__all__ = ["Chunk", "Control", "Event", "MessageDecoder", "Partial"]


class Control(NamedTuple):
    """A control frame: Close, Ping or Pong."""

    opcode: int
    payload: bytes


@attrs.frozen
class Chunk:
    """A piece of a message that is delivered as it arrives; `data` may be empty, `last` ends the message."""

    data: str | bytes
    last: bool


# The first byte of whole control frames: Close, Ping, Pong.
_CONTROL = frozenset((0x88, 0x89, 0x8A))

_RSV1 = 4
_PACKED = (0xC1, 0xC2)  # whole messages, compressed: text, binary

Event: TypeAlias = str | bytes | Control | Chunk


class Partial:
    """What was received of an unfinished frame or message."""

    __slots__ = ("body", "fin", "head", "inflater", "key", "opcode", "remaining", "size", "tail")

    def __init__(self) -> None:
        self.head = b""  # bytes of a frame that cannot be begun: its header, or a whole control frame
        self.opcode = 0  # of the message under way; 0: none
        self.body = bytearray()  # its payload so far, unmasked
        self.size = 0  # its payload so far in bytes, delivered chunks included; inflated, if it is compressed
        self.inflater: Inflater | None = None  # what inflates it; None: it is not compressed
        self.tail = b""  # the beginning of a character whose rest is still to come
        self.remaining = 0  # payload bytes of the data frame under way that are still to come
        self.key = b""  # its masking key, rotated to the next byte
        self.fin = True  # whether that frame ends the message

    def held(self) -> int:
        """Bytes held in memory."""
        return len(self.head) + len(self.body) + len(self.tail)

    def encoded(self) -> bytes:
        """The bytes it may have come from: decoding them, and what follows on the wire, gives the same messages.

        Fragments that were joined come back as one. Raises `ValueError` where parts of a message were delivered.
        """
        if not self.opcode:
            return self.head
        if self.inflater is not None or len(self.body) != self.size - self.remaining:
            raise ValueError("a part of the message was delivered, or inflated")
        done = len(self.body)
        key = rotate_key(self.key, -done)  # so that it fits what is still to come
        header = encode_header(self.opcode, done + self.remaining, fin=self.fin, masked=bool(key))
        return header + key + (apply_mask(self.body, key) if key else bytes(self.body)) + self.head


@attrs.frozen
class MessageDecoder:
    """Turns bytes into `Event` values. `masked` is True for the frames of clients.

    `max_message` and `max_frame` are bytes of payload; more is refused with 1009 when the header arrives. What is
    compressed counts in `max_frame` as it is on the wire, and in `max_message` as it is inflated: no more than that
    is ever inflated of a message.
    With `chunks`, data messages come as `Chunk` values, each as soon as its bytes are there.
    """

    max_message: int = 2**20
    max_frame: int = 2**63
    masked: bool = True
    chunks: bool = False

    def decode(
        self, data: bytes, partial: Partial | None, out: list[Event], codec: Codec | None = None
    ) -> Partial | None:
        """Append what `data` completes to `out`; return what to pass with the next bytes.

        With a `codec`, messages may be compressed.

        What follows a Close is discarded (1.4), be it right or wrong; the caller discards later bytes.
        Raises `ProtocolError` (1002, 1007, 1009); `out` then holds what came before the fault.
        """
        pos = 0
        if partial is not None:
            if partial.remaining:
                pos = self._payload(partial, data, 0, out)
                if partial.remaining:
                    return partial
            if partial.head:
                data, partial.head = partial.head + data, b""
        end = len(data)
        limit = -1 if self.chunks or not self.masked else min(self.max_message, self.max_frame)
        between = partial is None or not partial.opcode  # no message is under way
        unmask, append = apply_mask, out.append
        while end - pos >= 2:
            first, second = data[pos], data[pos + 1]
            # The common case, open-coded: a whole, masked, unfragmented text or binary frame.
            if (first == 0x81 or first == 0x82) and second >= 0x80 and between:  # noqa: PLR1714
                length, body = second - 0x80, pos + 6
                if length >= 126:
                    body += 2
                    length = data[pos + 2] << 8 | data[pos + 3] if length == 126 and end - pos >= 8 else 0
                    if length < 126:
                        length = end  # long, not there yet, or not minimal: the careful way decides
                stop = body + length
                if stop <= end and length <= limit:
                    payload = unmask(data[body:stop], data[body - 4 : body])
                    pos = stop
                    if first == 0x82:
                        append(payload)
                        continue
                    try:
                        append(payload.decode())
                    except UnicodeDecodeError:
                        raise _not_utf8() from None
                    continue
            elif first in _CONTROL and 0x80 <= second <= 0xFD and self.masked:
                stop = pos + second - 0x7A  # 6 + length
                if stop > end:
                    break
                out.append(Control(first & 15, apply_mask(data[pos + 6 : stop], data[pos + 2 : pos + 6])))
                if first == 0x88:
                    return None
                pos = stop
                continue
            elif codec is not None and first in _PACKED and between and not self.chunks:
                # A whole compressed message, if it is masked as it must be, and all here.
                header = parse_header(data, pos)
                if header is not None and header.masked is self.masked and header.length <= self.max_frame:
                    body = pos + header.size
                    stop = body + header.length
                    if stop <= end:
                        payload = data[body:stop]
                        out.append(
                            self._unpack(first, unmask(payload, header.key) if header.key else payload, codec)
                        )
                        pos = stop
                        continue
            if partial is None:
                partial = Partial()
            rsv = 0
            if codec is not None and first & 15 in (Opcode.TEXT, Opcode.BINARY):
                rsv = _RSV1  # RFC 7692, 6: on the first frame of a message, and on no other
            check_header(first, second, masked=self.masked, fragmented=partial.opcode != 0, rsv_allowed=rsv)
            header = parse_header(data, pos)
            if header is None:
                break
            pos += header.size
            if header.opcode >= Opcode.CLOSE:  # not masked: the peer is a server
                if end - pos < header.length:
                    pos -= header.size
                    break
                out.append(Control(header.opcode, data[pos : pos + header.length]))
                if header.opcode == Opcode.CLOSE:
                    return None
                pos += header.length
                continue
            if header.rsv and codec is not None:
                partial.inflater = codec.begin()
            self._begin(partial, header)
            pos = self._payload(partial, data, pos, out)
            between = not partial.opcode
        if partial is not None:
            partial.head = data[pos:] if pos else data
            if not (partial.head or partial.opcode):
                return None
        elif pos < end:
            partial = Partial()
            partial.head = data[pos:] if pos else data
        return partial

    def _begin(self, partial: Partial, header: Header) -> None:
        if header.length > self.max_frame:
            raise ProtocolError(f"frame longer than {self.max_frame} bytes", CloseCode.MESSAGE_TOO_BIG)
        if partial.inflater is None:
            if partial.size + header.length > self.max_message:
                raise self._too_big()
            partial.size += header.length
        if header.opcode:
            partial.opcode = header.opcode
        partial.remaining = header.length
        partial.key = header.key
        partial.fin = header.fin

    def _payload(self, partial: Partial, data: bytes, pos: int, out: list[Event]) -> int:
        """Take what is there of the payload under way; finish the frame, and the message, where they end."""
        piece = data[pos : pos + partial.remaining]
        size = len(piece)
        partial.remaining -= size
        if partial.key:
            piece = apply_mask(piece, partial.key)
            partial.key = rotate_key(partial.key, size)
        last = partial.fin and not partial.remaining
        if partial.inflater is not None:
            piece = self._inflate(partial, partial.inflater, piece, last=last)
        if self.chunks:
            self._chunk(partial, piece, out, last=last)
        else:
            partial.body += piece
            if partial.opcode == Opcode.TEXT:
                _check_utf8(partial, piece, last=last)
            if last:
                out.append(partial.body.decode() if partial.opcode == Opcode.TEXT else bytes(partial.body))
        if last:
            partial.opcode = partial.size = 0
            partial.inflater = None
            partial.body = bytearray()
        return pos + size

    def _unpack(self, first: int, payload: bytes, codec: Codec) -> str | bytes:
        inflated = codec.inflate(payload, self.max_message + 1)
        if len(inflated) > self.max_message:
            raise self._too_big()
        if first == 0xC2:
            return inflated
        try:
            return inflated.decode()
        except UnicodeDecodeError:
            raise _not_utf8() from None

    def _inflate(self, partial: Partial, inflater: Inflater, piece: bytes, *, last: bool) -> bytes:
        """`piece` inflated; not a byte beyond what the message may have."""
        room = self.max_message - partial.size + 1
        inflated = inflater.inflate(piece, room)
        if last and len(inflated) < room:
            inflated += inflater.end(room - len(inflated))
        if len(inflated) == room:
            raise self._too_big()
        partial.size += len(inflated)
        return inflated

    def _too_big(self) -> ProtocolError:
        return ProtocolError(f"message longer than {self.max_message} bytes", CloseCode.MESSAGE_TOO_BIG)

    @staticmethod
    def _chunk(partial: Partial, piece: bytes, out: list[Event], *, last: bool) -> None:
        if partial.opcode == Opcode.TEXT:
            text = _check_utf8(partial, piece, last=last)
            if text or last:
                out.append(Chunk(text, last))
        elif piece or last:
            out.append(Chunk(piece, last))


def _check_utf8(partial: Partial, piece: bytes, *, last: bool) -> str:
    """Decode `piece` behind what was left of the one before; keep an unfinished character (3 bytes at most)."""
    if partial.tail:
        piece = partial.tail + piece
    try:
        text, used = utf_8_decode(piece, "strict", last)
    except UnicodeDecodeError:
        raise _not_utf8() from None
    partial.tail = piece[used:]
    # The codec waits for the third byte before it refuses a surrogate (ED A0..BF) or a code point above 10FFFF
    # in some versions; the second byte is enough to know (Unicode, table 3-7).
    tail = partial.tail
    if len(tail) >= 2 and ((tail[0] == 0xED and tail[1] > 0x9F) or (tail[0] == 0xF4 and tail[1] > 0x8F)):
        raise _not_utf8()
    return text


def _not_utf8() -> ProtocolError:
    return ProtocolError("text is not UTF-8", CloseCode.INVALID_DATA)
