"""Waiting for a point in time to within some 50 microseconds.

epoll_wait(2), and so `trio.sleep`, counts whole milliseconds and rounds up, which would be the larger part of the
latency of a quick server. On Linux a timerfd (timerfd_create(2)) is exact; elsewhere this is `trio.sleep`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time

import trio

__all__ = ["Alarm"]

_MONOTONIC, _ABSOLUTE = 1, 1  # CLOCK_MONOTONIC, TFD_TIMER_ABSTIME
_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Alarm:
    """One waiter at a time. Close it when it is no longer needed."""

    def __init__(self) -> None:
        self._fd = -1
        if sys.platform == "linux":  # pragma: no branch - `os.timerfd_create` is there from Python 3.13 on
            self._library = ctypes.CDLL(None, use_errno=True)
            self._fd = self._library.timerfd_create(_MONOTONIC, _FLAGS)

    async def wait_until(self, when: float) -> None:
        """Wait until `time.monotonic` says `when`; if it is past, let others run."""
        wait = when - time.monotonic()
        if wait <= 0:
            await trio.lowlevel.checkpoint()
        elif self._fd < 0:
            await trio.sleep(wait)
        else:
            seconds = int(when)
            timer = struct.pack("llll", 0, 0, seconds, int((when - seconds) * 1e9))  # struct itimerspec
            self._library.timerfd_settime(self._fd, _ABSOLUTE, timer, None)
            await trio.lowlevel.wait_readable(self._fd)
            os.read(self._fd, 8)

    def close(self) -> None:
        """Release it."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
