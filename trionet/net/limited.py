"""Warnings that a peer or a load can cause a thousand times a second, in a log that people read.

The first few of a kind are logged as they come, then one for each period; what was left out is counted and told in one
line. Records are of one kind when they have the same text before its arguments are put in, and, with an exception, the
same type raised in the same line: a flood of one error does not hide another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["LimitedLog"]

_KINDS: Final = 256  # kept apart; beyond that all begin anew
_SHOWN: Final = 200


class _Kind:
    __slots__ = ("begun", "example", "left_out", "level", "logger", "stamp", "tokens")

    def __init__(self, logger: logging.Logger, level: int, now: float, burst: float) -> None:
        self.logger = logger
        self.level = level
        self.tokens = burst
        self.stamp = now  # when `tokens` was right
        self.example = ""
        self.left_out = 0
        self.begun = now  # when the first of those was left out


class LimitedLog:
    """Logs at most `burst` records of a kind at once, and one in `period` seconds after that.

    An engine has one (`Engine.limited`) and calls `flush` as time goes by. One thread at a time may use it.
    """

    def __init__(
        self, *, burst: int = 5, period: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.burst = burst
        self.period = period
        #: Records left out so far.
        self.suppressed = 0
        #: Whether some were left out that `flush` has not told of.
        self.pending = False
        self._clock = clock
        self._kinds: dict[object, _Kind] = {}

    def log(
        self,
        logger: logging.Logger,
        level: int,
        message: str,
        *args: object,
        error: BaseException | None = None,
        fields: Callable[[], dict[str, Any]] | None = None,
        burst: int | None = None,
        key: object = None,
        stack: str | None = None,
    ) -> None:
        """Log `message`, or count it. `error`: goes into the record as its exception.

        `fields`: called if it is logged, for what a structured log shows beside the message. `burst`: instead of the
        default. `key`: tells kinds apart further. `stack`: goes into the record as if ``stack_info`` had found it.
        """
        if not logger.isEnabledFor(level):
            return
        most = float(self.burst if burst is None else burst)
        kind_of = (message, key, type(error), _place(error))
        now = self._clock()
        kind = self._kinds.get(kind_of)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                self.flush(everything=True)
                self._kinds.clear()
            kind = self._kinds[kind_of] = _Kind(logger, level, now, most)
        kind.tokens = min(most, kind.tokens + (now - kind.stamp) / self.period)
        kind.stamp = now
        if kind.tokens < 1:
            if not kind.left_out:
                kind.begun = now
            kind.left_out += 1
            self.suppressed += 1
            self.pending = True
            return
        kind.tokens -= 1
        kind.example = _example(message, args, error)
        extra = {"trionet": fields()} if fields is not None else None
        trace = (type(error), error, error.__traceback__) if error is not None else None
        file, line, function, _ = logger.findCaller(stacklevel=2)
        record = logger.makeRecord(
            logger.name, level, file, line, message, args, trace, function, extra, stack
        )
        logger.handle(record)

    def flush(self, *, everything: bool = False) -> None:
        """Tell of what was left out for a period or longer; `everything`: of all there is, as at an end."""
        now = self._clock()
        self.pending = False
        for kind in self._kinds.values():
            if not kind.left_out:
                continue
            if not everything and now - kind.begun < self.period:
                self.pending = True
                continue
            count, kind.left_out = kind.left_out, 0
            kind.logger.log(
                kind.level,
                "%d similar in the last %.0f s, not logged: %s",
                count,
                now - kind.begun,
                kind.example,
                extra={"trionet": {"suppressed": count}},
            )


def _place(error: BaseException | None) -> object:
    """Where it was raised."""
    trace = error.__traceback__ if error is not None else None
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code, trace.tb_lineno


def _example(message: str, args: tuple[object, ...], error: BaseException | None) -> str:
    try:
        text = message % args if args else message
    except Exception:  # noqa: BLE001 - a broken `__repr__`, say; `logging` tells of it when it formats the record
        text = message
    if error is not None:
        text += f" ({type(error).__name__})"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
