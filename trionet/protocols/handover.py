"""Giving a WebSocket away: what was decoded and not handled yet goes back to the bytes it may have come in."""

from __future__ import annotations

import copy
from typing import Any

from trionet.errors import ProtocolError
from trionet.net.connection import OPENING
from trionet.protocols.channel import WebSocket
from trionet.wire.frames import Opcode, encode_frame
from trionet.wire.messages import Chunk, Control, Event

__all__ = ["frames_not_handled"]

_KEY = bytes(4)  # the frames of a client are masked (RFC 6455, 5.1), be it with zeros


def frames_not_handled(ws: WebSocket) -> bytes:
    """What has come behind the message in hand, as frames. Nothing of it will be handled by `ws` any more.

    Raises `RuntimeError` in the middle of a message that is delivered, or sent, in pieces, and where the frames
    are not what the peer's would be (compression). Then nothing has changed.
    """
    partial, rare, pool = ws._input, ws._rare, ws.engine.pool
    if ws._state & 7 == OPENING:
        return bytes(partial or b"")
    if ws._out is not None or ws._streams():
        raise RuntimeError("something is being sent to it: await that, then detach")
    events: list[Any] = list(rare.held or ()) if rare is not None else []
    rest = pool.rest if pool.job is ws else None
    if rest is not None:
        events += [*copy.copy(rest[0]), rest[1]]
    try:
        frames = [_frame(event) for event in events]
        if partial is not None:
            frames.append(partial.encoded())
    except ValueError as error:
        raise RuntimeError(f"{ws!r} cannot be given away: {error}") from None
    if rest is not None:
        for _ in rest[0]:  # whoever is iterating finds the end
            pass
        pool.rest = None
    return b"".join(frames)


def _frame(event: Event | ProtocolError) -> bytes:
    if isinstance(event, str):
        return encode_frame(Opcode.TEXT, event.encode(), key=_KEY)
    if isinstance(event, bytes):
        return encode_frame(Opcode.BINARY, event, key=_KEY)
    if isinstance(event, Control):
        return encode_frame(event.opcode, event.payload, key=_KEY)
    reason = (
        "a part of the message was delivered"
        if isinstance(event, Chunk)
        else f"the peer broke a rule: {event}"
    )
    raise ValueError(reason)
