"""Single frames over any Trio stream: the lowest level, for tools, tests and protocols of your own.

No state is kept: nothing is read beyond the frame, so `read_frame` and the stream's own methods can take turns.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.wire.closing import CloseCode
from trionet.wire.frames import Header, encode_frame, parse_header
from trionet.wire.masking import apply_mask

__all__ = ["Frame", "read_frame", "write_frame"]


class Frame(NamedTuple):
    """A frame, unmasked: `opcode` and `payload`, `fin`, the three reserved bits, whether it came masked."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0
    masked: bool = False


async def read_frame(stream: trio.abc.ReceiveStream, *, max_length: int = 2**20) -> Frame:
    """Read one frame from `stream`.

    Checks the length's form (RFC 6455, 5.2) and nothing else: see `check_header` for the rules of a conversation.
    Raises `ProtocolError` (1009 beyond `max_length` bytes of payload, before any of it is read), `ConnectionClosed`
    (1006) when the stream ends, and what the stream raises. Cancelled in the middle of a frame, it leaves the rest
    of that frame in the stream: use the stream no further then.
    """
    head = await _read(stream, 2)
    header: Header | None = None
    while (header := parse_header(head)) is None:
        head += await _read(stream, _missing(head))
    if header.length > max_length:
        raise ProtocolError(f"frame longer than {max_length} bytes", CloseCode.MESSAGE_TOO_BIG)
    payload = await _read(stream, header.length) if header.length else b""
    if header.masked:
        payload = apply_mask(payload, header.key)
    return Frame(header.opcode, payload, header.fin, header.rsv, header.masked)


def _missing(head: bytes) -> int:
    """Bytes of the header that are still to come, as its first two tell."""
    length = head[1] & 0x7F
    extended = 2 if length == 126 else 8 if length == 127 else 0
    return 2 + extended + (4 if head[1] >= 0x80 else 0) - len(head)


async def _read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = await stream.receive_some(size)
    while len(data) < size:
        more = await stream.receive_some(size - len(data)) if data else b""
        if not more:
            raise ConnectionClosed(CloseCode.ABNORMAL, "the stream ended within a frame", "network")
        data += more
    return bytes(data)


async def write_frame(stream: trio.abc.SendStream, frame: Frame, *, key: bytes | None = None) -> None:
    """Write one frame to `stream`. A client passes its masking `key`: four unpredictable bytes, new for each frame.

    Cancelled, it may have written a part of the frame: use the stream no further then.
    """
    await stream.send_all(encode_frame(frame.opcode, frame.payload, fin=frame.fin, rsv=frame.rsv, key=key))
