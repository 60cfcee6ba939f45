"""Logs in three formats: "text" for people, "logfmt" (``key=value``) and "json" (an object a line) for programs.

`configure` gives the root logger one handler, so the records of the application and of its libraries come out in the
same format. A record's fields are those in ``extra={"trionet": {...}}``, as trionet's own have them, and every other
``extra``:

    log.info("paid", extra={"order": 4711, "cents": 1990})

What the handler promises, whatever is logged:

* a record of a structured format is one line, of 16 KiB at most, and of 4 KiB at most where the stream is a pipe:
  several processes write to it, and that is what pipe(7) keeps in one piece. What is longer is cut, and says so;
* nothing that was logged acts on the terminal or looks like another record: control characters are escaped;
* a reader that does not read does not stop the server: records that the pipe or socket has no room for are dropped,
  and their number is logged once there is room. For one that reads slowly a twentieth of the time is spent at most.
"""

from __future__ import annotations

import io
import logging
import os
import select
import socket
import stat
import sys
import threading
from time import monotonic
from types import TracebackType
from typing import Any, Final, TextIO

from trionet.errors import ConfigurationError
from trionet.net import system
from trionet.ops.log_formats import FORMATS, Format

__all__ = ["StreamHandler", "configure", "set_process"]

_PATIENCE: Final = 0.01  # seconds that a record may wait for a reader who keeps up with us otherwise
_SHARE: Final = 0.05  # of all time, that may be spent so
_LINE: Final = 16384
_PIPE_BUF: Final = getattr(select, "PIPE_BUF", 512)

log = logging.getLogger("trionet.ops")

_process: str | int | None = None


def set_process(name: str | int | None) -> None:
    """What each line says about the process it is from, besides its pid: a worker's number, or "supervisor".

    To be called in each process that was forked; None: the only one there is, about which nothing is said.
    """
    global _process
    _process = name


def configure(
    format: str = "text",  # noqa: A002 - the word of `logging` for it
    level: str | int = "info",
    stream: TextIO | None = None,
    *,
    color: bool | None = None,
) -> StreamHandler:
    """Have all records of `level` or above written to `stream` (standard error), in one of `FORMATS`.

    Warnings of Python's, and exceptions that nobody caught, become records too. `color`: None colours text on a
    terminal, unless the environment has NO_COLOR or ``TERM=dumb``. A second call takes the place of the first.
    Raises `ConfigurationError`. For programs: libraries leave it to them, as `trionet serve` does it.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"log format is {format!r}; it must be one of {', '.join(FORMATS)}")
    number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if number is None:
        raise ConfigurationError(
            f"log level is {level!r}; it must be debug, info, warning, error or critical"
        )
    stream = sys.stderr if stream is None else stream
    if color is None:
        color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, StreamHandler)]:
        root.removeHandler(old)
        old.close()
    handler = StreamHandler(stream, FORMATS[format](terminal=stream.isatty(), color=color))
    root.addHandler(handler)
    root.setLevel(number)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread
    return handler


class StreamHandler(logging.Handler):
    """Writes whole records, and never waits for long. `dropped` counts those for which there was no room."""

    def __init__(self, stream: TextIO, format: Format) -> None:  # noqa: A002
        super().__init__()
        self.dropped = 0
        self._untold = 0
        self._stream = stream
        self._format = format
        self._poll: Any = None
        self._torn = False  # the last record was written in part
        self._patience = _PATIENCE  # what is left
        self._asked = 0.0  # when it was last filled up
        try:
            self._fd = stream.fileno()
        except (OSError, ValueError, io.UnsupportedOperation):
            self._fd = -1  # not a file: a test's, or a wrapper's
        self._own = -1  # the same pipe, opened anew
        self._is_socket = False
        format.limit = _LINE
        if self._fd >= 0:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISFIFO(mode):
                format.limit = _PIPE_BUF
            if hasattr(select, "poll") and not stat.S_ISREG(mode):
                self._is_socket = stat.S_ISSOCK(mode)
                self._own = _open_anew(self._fd) if stat.S_ISFIFO(mode) else -1
                self._poll = select.poll()
                self._poll.register(self._fd, select.POLLOUT)

    def close(self) -> None:
        """Release what it has opened; the stream stays as it is."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write it (`logging` calls this, with the handler's lock held)."""
        try:
            if not self._room():
                self.dropped += 1
                self._untold += 1
                return
            if self._untold:
                count = self._untold
                self._write(
                    logging.makeLogRecord(
                        {
                            "name": log.name,
                            "levelno": logging.WARNING,
                            "levelname": "WARNING",
                            "msg": "%d records were dropped: whoever reads this log did not keep up",
                            "args": (count,),
                            "trionet": {"dropped": count},
                        }
                    )
                )
                self._untold = 0
            self._write(record)
        # A full disk, a reader that has gone or does not read: standard error is no help here.
        except OSError:
            self.dropped += 1
            self._untold += 1
        except Exception:  # noqa: BLE001 - what is wrong with a log is nobody's end
            self.handleError(record)

    def _room(self) -> bool:
        """Whether something can be written without waiting for long for whoever reads it."""
        if self._poll is None or self._poll.poll(0):
            return True
        begun = monotonic()
        self._patience = min(_PATIENCE, self._patience + (begun - self._asked) * _SHARE)
        self._asked = begun
        if self._patience < 0.001:
            return False
        room = bool(self._poll.poll(self._patience * 1000))
        self._patience -= monotonic() - begun
        return room

    def _write(self, record: logging.LogRecord) -> None:
        text = self._format.line(record, _process) + "\n"
        if self._fd < 0:
            self._stream.write(text)
            self._stream.flush()
            return
        if self._torn:
            text = "\n" + text
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        whole = len(data)
        while data:  # one call for each record, unless it is long, or a signal or a full disk cuts it
            data = data[self._put(data) :]
            if data and not self._room():
                self._torn = self._torn or len(data) < whole
                raise BlockingIOError
        self._torn = False

    def _put(self, data: bytes) -> int:
        try:
            if self._own >= 0:
                return os.write(self._own, data)
            if self._is_socket:
                with system.borrowed_socket(self._fd) as sock:
                    return sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:  # another process was quicker
            return 0
        # A pipe that has room at all has room for this much.
        return os.write(self._fd, data if self._poll is None else data[:_PIPE_BUF])


def _open_anew(pipe: int) -> int:
    """A descriptor that writes to the same pipe and never waits; -1 where that cannot be had (Linux, proc(5)).

    To have been told that there is room is not enough: another process may take it. And the flag that makes writing
    fail instead is one of what was opened, which other processes share, and which may expect to wait.
    """
    try:
        return os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("uncaught exception", exc_info=(kind, error, trace))


def _unraisable(hint: Any) -> None:
    error = hint.exc_value
    log.error("%s: %r", hint.err_msg or "exception ignored in", hint.object, exc_info=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread is not None else "?"
    log.error("uncaught exception in thread %s", name, exc_info=args.exc_value)
