"""Messages made beforehand: what we send, masked already, and what comes back, as it looks on the wire.

Links use different messages in turn, so that an answer that belongs to another link is noticed nearly always, and each
is masked with a few keys in turn: the server has the same work as with fresh ones (RFC 6455, 5.3), we have none.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from trionet.client.keys import fresh_key
from trionet.wire.frames import Opcode, encode_frame, mask_frames

__all__ = ["STAMP", "Bank", "stamp", "stamped"]

_KINDS = 64  # messages
_KEYS = 8  # for each
_ROOM = 2**22  # bytes of all of them

STAMP = 16  # hexadecimal digits: nanoseconds of the monotonic clock, which all processes of a machine share


class Bank:
    """The messages of a run. `kinds` is a power of two; a link uses the message number ``fd & (kinds - 1)``."""

    def __init__(self, size: int, *, text: str | None = None, binary: bool = False) -> None:
        opcode = Opcode.BINARY if binary else Opcode.TEXT
        kinds = 1 if text is not None else _KINDS
        size = len(text.encode()) if text is not None else size
        keys = _KEYS
        while kinds * (keys + 1) * size > _ROOM and kinds * keys > 2:
            kinds, keys = max(1, kinds // 2), max(2, keys // 2)
        payloads = [text.encode() if text is not None else _filler(size, number) for number in range(kinds)]
        frames = [encode_frame(opcode, payload) for payload in payloads]
        self.size = size
        self.last = kinds - 1
        self.messages: list[str | bytes] = [p if binary else p.decode() for p in payloads]
        self.answers = frames
        #: For each message a function that returns the next frame of it.
        self.next: list[Callable[[], bytes]] = [
            itertools.cycle([mask_frames(frame, fresh_key) for _ in range(keys)]).__next__ for frame in frames
        ]


def _filler(size: int, number: int) -> bytes:
    """Printable, of exactly `size` bytes, different for each `number` where there is room for that."""
    head = f"{number:02x}-{os.urandom(4).hex()}-"
    body = "the quick brown fox jumps over the lazy dog, "
    return (head + body * (size // len(body) + 1)).encode()[:size]


def stamp(size: int, now: float) -> bytes:
    """A payload of `size` bytes that begins with the time."""
    return b"%016x" % int(now * 1e9) + b"." * (size - STAMP)


def stamped(payload: bytes | str) -> float | None:
    """The time that `payload` begins with; None: it is no message of ours."""
    try:
        return int(payload[:STAMP], 16) / 1e9
    except ValueError:
        return None
