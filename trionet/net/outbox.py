"""What the kernel would not take yet: whole messages, in order, counted.

It exists only while there is something in it. A frame is in it entirely or not at all, so cancelling a sender
never cuts one. Frames that go to many connections are shared, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from trionet.net import system
from trionet.net.pool import Parked, Waiter

__all__ = ["FRAME_COST", "Outbox"]

Writev: TypeAlias = Callable[[int, Sequence[bytes | memoryview]], int]

#: Counted for each queued frame besides its bytes: the object's head and its place in the queue.
FRAME_COST = 64

_AT_ONCE = 64  # buffers in one writev; the kernel's limit is 1,024


class Outbox:
    """A queue of frames. `size` counts their bytes plus `FRAME_COST` each; `since` is the tick of the last progress."""

    __slots__ = ("_head", "_offset", "begun", "frames", "since", "size", "waiters")

    def __init__(self, since: int) -> None:
        self.frames: list[bytes] = []
        self.size = 0
        self.since = since
        self.waiters: list[Waiter | Parked] = []
        self._head = 0  # frames before it are sent
        self._offset = 0  # bytes of the first that are sent
        self.begun = (
            0  # so many are not to be dropped: the first is the rest of a frame, or TLS has enciphered them
        )

    def __len__(self) -> int:
        """How many frames are queued, the one that is begun among them."""
        return len(self.frames) - self._head

    def __bool__(self) -> bool:
        return True

    @property
    def last(self) -> bytes:
        """The frame that was queued last."""
        return self.frames[-1]

    def append(self, frame: bytes, sent: int = 0) -> None:
        """Queue `frame`; the kernel has taken its first `sent` bytes (then it is the first)."""
        if sent:
            frame = frame[sent:]  # or what is sent would be kept as well
            self.begun = 1
        self.frames.append(frame)
        self.size += len(frame) + FRAME_COST

    def replace_last(self, frame: bytes) -> bool:
        """Put `frame` in the place of the last one, unless that is begun."""
        last = len(self.frames) - 1
        if last < self._first():
            return False
        self.size += len(frame) - len(self.frames[last])
        self.frames[last] = frame
        return True

    def flush(self, fd: int, tick: int, writev: Writev | None = None) -> bool:
        """Write what the kernel takes. True: all is sent. Raises `OSError` when the connection is broken.

        `writev`: what takes the place of the system call, where bytes are enciphered on their way.
        """
        writev = writev or system.writev
        frames = self.frames
        while self._head < len(frames):
            batch: list[bytes | memoryview] = list(frames[self._head : self._head + _AT_ONCE])
            if self._offset:
                batch[0] = memoryview(batch[0])[self._offset :]
            try:
                sent = writev(fd, batch)
            except BlockingIOError:
                return False
            self.since = tick
            self._sent(sent)
        return True

    def _sent(self, count: int) -> None:
        frames, head = self.frames, self._head
        self.size -= count
        count += self._offset
        while head < len(frames) and count >= len(frames[head]):
            count -= len(frames[head])
            self.size -= FRAME_COST
            frames[head] = b""
            head += 1
            if self.begun:
                self.begun -= 1
        self._offset = count
        if head > 32 and head * 2 > len(frames):
            del frames[:head]
            head = 0
        self._head = head

    def _first(self) -> int:
        """The first frame of which nothing is sent."""
        return self._head + max(self.begun, self._offset > 0)

    def discard_oldest(self, room: int, limit: int, droppable: Callable[[bytes], bool]) -> int:
        """Drop the oldest frames not begun until `room` more bytes keep within `limit`; return how many."""
        frames = self.frames
        first = seen = self._first()
        kept: list[bytes] = []
        dropped = 0
        while self.size + room > limit and seen < len(frames):
            frame = frames[seen]
            seen += 1
            if droppable(frame):
                self.size -= len(frame) + FRAME_COST
                dropped += 1
            else:
                kept.append(frame)
        frames[first:seen] = kept
        return dropped

    def wake(self) -> None:
        """Let those who wait for room look again."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.wake()
