"""An outbox in which the newest message of each tag is enough.

    frames     what goes next, a few at a time: it is not touched any more
    waiting    the rest: a frame with a tag drives out the one that waits with the same tag, and goes to the end

To the end, so that frames of one topic keep their order whatever their tags are. A tag that is published without pause
would be put off for ever; so each has its turn: once as many frames have gone as were before its first, the one that
waits keeps its place, and a newer one comes behind it.

Looking up, driving out and dropping take the same time however long the queue is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from trionet.net.counts import Counts
from trionet.net.outbox import FRAME_COST, Outbox, Writev

__all__ = ["ConflatingOutbox", "TaggedFrame"]

#: Counted for each frame that waits with a tag, besides FRAME_COST: its entries in two tables.
TAG_COST: Final = 256
_NEXT: Final = 16  # frames written at a time


class TaggedFrame(bytes):
    """A frame that a newer one with the same `tag` makes superfluous. One object, however many connections send it."""

    tag: str

    @classmethod
    def of(cls, frame: bytes, tag: str) -> TaggedFrame:
        """Return `frame` with a tag."""
        tagged = cls(frame)
        tagged.tag = tag
        return tagged


class ConflatingOutbox(Outbox):
    """See above. `size` counts all that is queued."""

    __slots__ = ("_counts", "_gone", "_serial", "_tags", "_waiting")

    def __init__(self, since: int, counts: Counts) -> None:
        super().__init__(since)
        self._counts = counts
        self._waiting: OrderedDict[int, bytes] = OrderedDict()
        self._tags: OrderedDict[str, tuple[int, int]] = OrderedDict()  # the newest frame, and its turn
        self._serial = 0
        self._gone = 0  # so many have waited, and went

    @classmethod
    def of(cls, out: Outbox, counts: Counts) -> ConflatingOutbox:
        """Take over what an ordinary one has."""
        new = cls(out.since, counts)
        begun = max(out._first(), out._head + 1)
        new.frames, rest = out.frames[:begun], out.frames[begun:]
        new.size = out.size - sum(len(frame) + FRAME_COST for frame in rest)
        new.waiters, new.begun, new._head, new._offset = out.waiters, out.begun, out._head, out._offset
        for frame in rest:
            new.append(frame)
        return new

    def __len__(self) -> int:
        return super().__len__() + len(self._waiting)

    def __bool__(self) -> bool:
        return True

    @property
    def last(self) -> bytes:
        return next(reversed(self._waiting.values())) if self._waiting else super().last

    def append(self, frame: bytes, sent: int = 0) -> None:
        if not self.frames:  # what the kernel did not take, or only in part
            super().append(frame, sent)
            return
        self._serial += 1
        if isinstance(frame, TaggedFrame):
            tag = frame.tag
            known = self._tags.get(tag)
            if known is not None and self._gone <= known[1]:
                self._forget(self._waiting.pop(known[0]))
                self._counts.slow_overflows += 1
                self._tags[tag] = self._serial, known[1]
            else:
                self._tags[tag] = self._serial, self._gone + len(self._waiting)
            self._tags.move_to_end(tag)
            self.size += TAG_COST
        self._waiting[self._serial] = frame
        self.size += len(frame) + FRAME_COST

    def _forget(self, frame: bytes) -> None:
        self.size -= len(frame) + FRAME_COST + TAG_COST

    def replace_last(self, frame: bytes) -> bool:
        if not self._waiting:
            return super().replace_last(frame)
        serial = next(reversed(self._waiting))
        self.size += len(frame) - len(self._waiting[serial])
        self._waiting[serial] = frame
        return True

    def flush(self, fd: int, tick: int, writev: Writev | None = None) -> bool:
        while super().flush(fd, tick, writev):
            if not self._waiting:
                return True
            self._fill()
        return False

    def _fill(self) -> None:
        """All of `frames` has gone: the next ones."""
        del self.frames[:]
        self._head = 0
        for _ in range(min(_NEXT, len(self._waiting))):
            serial, frame = self._waiting.popitem(last=False)
            self.frames.append(frame)
            if isinstance(frame, TaggedFrame):
                self.size -= TAG_COST
                known = self._tags.get(frame.tag)
                if known is not None and known[0] == serial:
                    del self._tags[frame.tag]
            self._gone += 1

    def make_room(self, frame: TaggedFrame, limit: int, *, drop: bool = True) -> tuple[bool, int]:
        """Drop frames with other tags, the least recently queued first, until there is room for `frame`.

        `drop` False: only where there is room without that. Returns whether there is, and how many were dropped. Frames
        without a tag, and those whose turn it is, stay.
        """
        known = self._tags.get(frame.tag)
        size = self.size + len(frame)
        own = known is not None and self._gone <= known[1]
        if known is not None:
            self._tags.move_to_end(frame.tag)
            if own:
                size -= len(self._waiting[known[0]]) + FRAME_COST + TAG_COST
        dropped = 0
        while drop and size > limit and len(self._tags) > (known is not None):
            _, (serial, _) = self._tags.popitem(last=False)
            before = self.size
            self._forget(self._waiting.pop(serial))
            size -= before - self.size
            dropped += 1
        return own or size <= limit, dropped
