"""What the connections of one protocol have done since it was made: plain ints, added to where it happens.

Nothing here is called for a message, nothing is formatted, no lock is held: a metrics library's counter would cost
more than handling the message does. `trionet.ops.metrics` turns the numbers into metrics when somebody asks. All of it
belongs to the Trio thread; another may read.
"""

from __future__ import annotations

from trionet.net.histogram import Histogram, _index

__all__ = ["Counts", "durations"]


def durations() -> Histogram:
    """A histogram of microseconds with room up to ten seconds: one that grows for days looks like a leak."""
    histogram = Histogram()
    histogram._reach(_index(10_000_000))
    return histogram


class Counts:
    """Counters of a protocol object, in its `counts`. They only ever go up.

    Bytes are those that the protocol sees: not enciphered, but compressed where a connection compresses.

    Attributes:
        opened: Connections that were greeted (`Connection.opened`); again where TLS begins in the middle.
        closed: Those of them that have ended, by close code and `ConnectionClosed.by`. Code 0: given away as a stream.
        handshakes: Microseconds from accepting a connection to its being open, where the peer had to say something.
        received: WebSocket messages.
        sent: WebSocket messages that the kernel or the queue took; those that were dropped from the queue later, too.
        received_bytes: Of all reads.
        sent_bytes: Of all that was written or queued.
        sent_events: Server-Sent Events.
        keepalives_lost: Connections closed because no answer came to a ping.
        idle: Connections closed because nothing was said on them.
        expired: Connections closed because their time was up (`Registry.expire`).
        stalled: Connections reset because the peer has read nothing for `write_timeout`.
        overflowed: Connections closed because more than `hard_limit` was queued.
        slow_waits: Times a `send` had to wait for a slow peer.
        slow_skips: Messages not taken from whoever does not wait (`broadcast`, `send_nowait`), policy WAIT.
        slow_overflows: Times another policy had to act, whatever it then did.
    """

    __slots__ = (
        "closed",
        "expired",
        "handshakes",
        "idle",
        "keepalives_lost",
        "opened",
        "overflowed",
        "received",
        "received_bytes",
        "sent",
        "sent_bytes",
        "sent_events",
        "slow_overflows",
        "slow_skips",
        "slow_waits",
        "stalled",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.closed: dict[tuple[int, str], int] = {}
        self.handshakes = durations()
        self.received = self.sent = self.received_bytes = self.sent_bytes = self.sent_events = 0
        self.keepalives_lost = self.idle = self.expired = self.stalled = self.overflowed = 0
        self.slow_waits = self.slow_skips = self.slow_overflows = 0

    def note_closed(self, code: int, by: str) -> None:
        """Count the end of a connection that was open."""
        key = code, by
        self.closed[key] = self.closed.get(key, 0) + 1

    def note_sent(self, count: int, size: int) -> None:
        """Count messages whose frames, of `size` bytes each, went out directly."""
        self.sent += count
        self.sent_bytes += count * size
