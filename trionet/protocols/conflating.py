"""Connections whose slow-consumer policy is CONFLATE. Nothing here exists for those of another policy.

A message with a tag (`PreparedMessage`) that finds the peer behind takes the place of the one queued with the same tag:
see `trionet.net.conflating`. At `high_water`:

    a message with a tag      drives out those with other tags, the least recent first; never waits
    without                   as with WAIT: `send` waits, `send_nowait` raises, `broadcast` leaves this peer out

If the protocol says `close_behind` both are as with CLOSE: the peer is closed with 1013.
"""

from __future__ import annotations

from typing import Any

from trionet.net.conflating import ConflatingOutbox, TaggedFrame
from trionet.net.outbox import Outbox
from trionet.net.traits import NO_SLOTS
from trionet.protocols.channel import WebSocket
from trionet.wire.closing import CloseCode

__all__ = ["Conflating"]


class Conflating(WebSocket):
    """A `WebSocket` to which the newest message of each tag is enough (a trait, see `trionet.net.traits`)."""

    __slots__ = NO_SLOTS
    words = ()

    def _new_outbox(self) -> Outbox:
        return ConflatingOutbox(self.engine.tick, self.protocol.counts)

    def _waits(self, frame: bytes) -> bool:
        return not isinstance(frame, TaggedFrame) and not self.protocol.close_behind

    def _overflow(self, frame: bytes) -> bool:
        out, protocol = self._out, self.protocol
        if not isinstance(frame, TaggedFrame):
            if protocol.close_behind:
                return self._too_slow()
            protocol.counts.slow_skips += 1
            return False
        if not isinstance(out, ConflatingOutbox):  # from before the upgrade
            assert out is not None
            out = self._out = ConflatingOutbox.of(out, protocol.counts)
        taken, dropped = out.make_room(frame, protocol.high_water, drop=not protocol.close_behind)
        if not taken and protocol.close_behind:
            return self._too_slow()
        if taken:
            self.write(frame)
            protocol.counts.sent += 1
        else:
            dropped += 1
        if dropped:
            protocol.counts.slow_overflows += 1
            protocol.dropped(self, dropped)
        return taken

    def _too_slow(self) -> bool:
        self.protocol.counts.slow_overflows += 1
        self.protocol.dropped(self, 1)
        self.close_nowait(CloseCode.TRY_AGAIN_LATER, "too slow")
        return False

    def _compressed_in_order(self, frame: bytes, codec: Any) -> bytes:
        """What is queued with a tag may be dropped yet. So it goes as it is, and no other refers to it."""
        if self._out is not None and isinstance(frame, TaggedFrame):
            return frame
        return super()._compressed_in_order(frame, codec)  # type: ignore[misc,no-any-return] # of `Deflated`

    def _sealed(self, frame: bytes) -> bytes:
        sealed = super()._sealed(frame)
        return TaggedFrame.of(sealed, frame.tag) if isinstance(frame, TaggedFrame) else sealed
