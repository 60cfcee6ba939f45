"""WebSocket frames, RFC 6455 section 5: header values, the rules a header must keep, and encoding.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-------+-+-------------+-------------------------------+
    |F|R|R|R| opcode|M| length (7)  |  length (16 or 64, if 126/127) |
    +-+-+-+-+-------+-+-------------+-------------------------------+
    |  masking key (if M)           |  payload ...                   |

Parsing, checking and masking are separate and pure: a rule is one row of a test table.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, NamedTuple

from trionet.errors import ProtocolError
from trionet.wire.masking import apply_mask

__all__ = [
    "MAX_CONTROL",
    "Header",
    "Opcode",
    "check_header",
    "encode_frame",
    "encode_header",
    "mask_frames",
    "parse_header",
]

MAX_CONTROL: Final = 125  # 5.5


class Opcode(enum.IntEnum):
    """What a frame carries (5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_OPCODES: Final = frozenset(Opcode)


class Header(NamedTuple):
    """A frame header. `size` is its own length in bytes, `length` that of the payload."""

    fin: bool
    rsv: int
    opcode: int
    masked: bool
    length: int
    key: bytes
    size: int


def parse_header(data: bytes | bytearray | memoryview, start: int = 0) -> Header | None:
    """The header at `start`, or None when it is not all there yet.

    Raises `ProtocolError` for a length not in its shortest form, or with the top bit set (5.2).
    """
    have = len(data) - start
    if have < 2:
        return None
    first, second = data[start], data[start + 1]
    length, size = second & 0x7F, 2
    if length == 126:
        if have < 4:
            return None
        length, size = data[start + 2] << 8 | data[start + 3], 4
        if length < 126:
            raise ProtocolError("length not in its shortest form")
    elif length == 127:
        if have < 10:
            return None
        length, size = int.from_bytes(data[start + 2 : start + 10], "big"), 10
        if length < 65536:
            raise ProtocolError("length not in its shortest form")
        if length >> 63:
            raise ProtocolError("length with the top bit set")
    masked = second >= 0x80
    key = b""
    if masked:
        if have < size + 4:
            return None
        key = bytes(data[start + size : start + size + 4])
        size += 4
    return Header(first >= 0x80, first >> 4 & 7, first & 15, masked, length, key, size)


def check_header(first: int, second: int, *, masked: bool, fragmented: bool, rsv_allowed: int = 0) -> None:
    """Raise `ProtocolError` where RFC 6455 forbids a frame that begins with these two bytes at this point.

    `masked`: frames of this peer must be masked (they come from a client). `fragmented`: a message is under way.
    Two bytes suffice, so a broken frame is refused before any of its payload is waited for.
    """
    opcode = first & 15
    if first >> 4 & 7 & ~rsv_allowed:  # 5.2: no extension gave these bits a meaning
        raise ProtocolError("reserved bits set")
    if opcode not in _OPCODES:
        raise ProtocolError(f"unknown opcode {opcode}")
    if (second >= 0x80) is not masked:  # 5.1: clients mask, servers must not
        raise ProtocolError("frame is not masked" if masked else "frame is masked")
    if opcode >= Opcode.CLOSE:  # 5.5: control frames are short and whole
        if first < 0x80:
            raise ProtocolError("fragmented control frame")
        if second & 0x7F > MAX_CONTROL:
            raise ProtocolError("control frame longer than 125 bytes")
    elif fragmented is not (opcode == Opcode.CONTINUATION):  # 5.4
        raise ProtocolError("continuation expected" if fragmented else "nothing to continue")


# Nearly all frames sent are short: their two bytes are looked up, not built.
_SHORT: Final = {b0: [bytes((b0, n)) for n in range(126)] for b0 in (0x80, 0x81, 0x82, 0x88, 0x89, 0x8A)}


def encode_header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, masked: bool = False) -> bytes:
    """Header bytes in the shortest form, without the masking key."""
    first = fin << 7 | rsv << 4 | opcode
    bit = masked << 7
    if length < 126:
        return bytes((first, bit | length))
    if length < 65536:
        return bytes((first, bit | 126, length >> 8, length & 0xFF))
    return bytes((first, bit | 127)) + length.to_bytes(8, "big")


def encode_frame(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, key: bytes | None = None
) -> bytes:
    """A whole frame. A client passes its masking `key` (4 bytes, unpredictable: 5.3); a server none."""
    if key is not None:
        header = encode_header(opcode, len(payload), fin=fin, rsv=rsv, masked=True)
        return header + key + apply_mask(payload, key)
    length = len(payload)
    if length < 126 and fin and not rsv:
        return _SHORT[0x80 | opcode][length] + payload
    return encode_header(opcode, length, fin=fin, rsv=rsv) + payload


_MASKED: Final = tuple(bytes((0x80 | n,)) for n in range(128))


def mask_frames(data: bytes, fresh_key: Callable[[], bytes]) -> bytes:
    """Whole unmasked frames as a client has to send them (5.3), each with a key of its own."""
    second = data[1]
    if second < 126 and len(data) == second + 2:  # what nearly all are: one, and short
        key = fresh_key()
        return data[:1] + _MASKED[second] + key + apply_mask(data[2:], key)
    pieces: list[bytes] = []
    pos, end = 0, len(data)
    while pos < end:
        header = parse_header(data, pos)
        assert header is not None
        body = pos + header.size
        stop = body + header.length
        key = fresh_key()
        pieces += data[pos : pos + 1], _MASKED[data[pos + 1]], data[pos + 2 : body], key
        pieces.append(apply_mask(data[body:stop], key))
        pos = stop
    return b"".join(pieces)
