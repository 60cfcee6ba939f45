"""The short way through what servers send nearly always: whole, unmasked text and binary frames.

Everything else, and every fault, is for the careful way of `messages.MessageDecoder`.
"""

from __future__ import annotations

from trionet.wire.messages import Event

__all__ = ["take_messages"]


def take_messages(data: bytes, limit: int, out: list[Event]) -> int:
    """Append the messages that `data` begins with to `out`; return where the first other thing is.

    `data` begins at a frame and outside of any message. Messages of more than `limit` bytes are left alone.
    """
    pos, end = 0, len(data)
    while end - pos >= 2:
        first, length = data[pos], data[pos + 1]
        if first not in (0x81, 0x82):  # RFC 6455, 5.2: whole, text or binary, nothing reserved
            break
        body = pos + 2
        if length > 125:
            if length != 126 or end - pos < 4 or (length := data[pos + 2] << 8 | data[pos + 3]) < 126:
                break
            body += 2
        stop = body + length
        if stop > end or length > limit:
            break
        if first == 0x82:
            out.append(data[body:stop])
        else:
            try:
                out.append(data[body:stop].decode())
            except UnicodeDecodeError:
                break
        pos = stop
    return pos
