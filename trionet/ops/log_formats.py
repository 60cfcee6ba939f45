"""How a record becomes text: `Text` for people, `Logfmt` and `Json` for programs. No I/O; never raises.

A value may be anything, of any size, from anybody. What is put into a line is made plain first (`plain`): a string, a
number, a list or a dict of such, cut where it is long. Then each format quotes it, so that nothing is left in it that
ends a line or acts on a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import time
import traceback
from typing import Any, Final

__all__ = ["FORMATS", "Format", "Json", "Logfmt", "Text", "plain"]

_VALUE: Final = 8192  # characters of one value
_PAGE: Final = 65536  # of a message to people
_ITEMS: Final = 64  # of all lists and dicts in one value
_DEPTH: Final = 4
_STANDARD: Final = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "trionet"])
_ORIGIN: Final = frozenset(["time", "level", "logger", "pid", "worker", "process"])
_OWN: Final = _ORIGIN | {"msg", "error", "error_type", "stack"}


def plain(value: object, depth: int = _DEPTH, room: list[int] | None = None) -> Any:
    """Return `value` as JSON can write it, within bounds. Strings hold no lone surrogates; others may not read them."""
    if type(value) is str:  # nearly all are
        return value if len(value) <= _VALUE and value.isascii() else _cut(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _cut(hex(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _cut(bytes(value[: _VALUE + 1]).decode("utf-8", "backslashreplace"))
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _plain_items(value, depth, [_ITEMS] if room is None else room)
    try:
        return _cut(str(value))
    except Exception as error:  # noqa: BLE001 - a broken `__str__` is not the log's affair
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _plain_items(value: Any, depth: int, room: list[int]) -> Any:
    if not depth:
        return f"<{type(value).__name__} of {len(value)}>"
    of_dict: dict[str, Any] = {}
    of_list: list[Any] = []
    for key in value:
        room[0] -= 1
        if room[0] < 0:
            of_dict["…"] = len(value)
            of_list.append(f"… {len(value)} in all")
            break
        if isinstance(value, dict):
            of_dict[_cut(str(plain(key)), 128)] = plain(value[key], depth - 1, room)
        else:
            of_list.append(plain(key, depth - 1, room))
    return of_dict if isinstance(value, dict) else of_list


def _cut(text: str, size: int = _VALUE) -> str:
    """Without its middle, if it is longer: of a stack both ends matter."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= size:
        return text
    return f"{text[: size // 3]} …[{len(text) - size} more]… {text[len(text) - size + size // 3 :]}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - placeholders and arguments that do not fit, or a broken `__repr__`
        return f"{plain(record.msg)} % {plain(record.args)} ({type(error).__name__})"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, plain."""
    found = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    own = getattr(record, "trionet", None)
    if isinstance(own, dict):
        found.update(own)
    return {(f"{name}_" if name in _OWN else str(name)): plain(value) for name, value in found.items()}


def _stack(record: logging.LogRecord) -> str:
    """The exception's traceback, and the stack if one was asked for."""
    texts = []
    if record.exc_info and record.exc_info[1] is not None:
        try:
            sink = io.StringIO()
            traceback.print_exception(record.exc_info[1], file=sink)
            texts.append(sink.getvalue())
        except Exception as error:  # noqa: BLE001 - an exception that cannot even be shown
            texts.append(f"<traceback that cannot be shown: {type(error).__name__}>")
    if record.stack_info:
        texts.append(record.stack_info)
    return "\n".join(text.rstrip("\n") for text in texts)


class Format:
    """A format. `limit`: bytes of a line; text for people is not cut. `terminal`: a person is looking on."""

    limit = 16384

    def __init__(self, *, terminal: bool = False, color: bool = False) -> None:
        self.terminal = terminal
        self.color = color

    def line(self, record: logging.LogRecord, process: str | int | None) -> str:
        """The record as text, without the newline at its end."""
        document = self._document(record, process)
        text = self.write(document)
        for size in (None, None, None, None, 256, 64, 16):
            excess = len(text.encode()) + 1 - self.limit
            if excess <= 0:
                return text
            if size is None:  # its longest part; escapes make it hard to foretell by how much
                longest = max(document, key=lambda name: len(self.write({name: document[name]})))
                value = _as_text(document[longest])
                length = len(self.write({longest: value}).encode())
                document[longest] = _cut(value, max(64, int(len(value) * (length - excess - 64) / length)))
            else:
                document = {
                    name: value if name in _ORIGIN else _cut(_as_text(value), size)
                    for name, value in document.items()
                }
            text = self.write(document)
        return self.write(
            dict(list(document.items())[:7])
        )  # hundreds of fields: when, where, and what was said

    def write(self, document: dict[str, Any]) -> str:
        """One line that holds all of it."""
        raise NotImplementedError

    @staticmethod
    def _document(record: logging.LogRecord, process: str | int | None) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{now}.{int(record.created * 1000) % 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": _cut(_message(record).rstrip("\n")),
            "pid": record.process,
        }
        if process is not None:
            document["worker" if isinstance(process, int) else "process"] = process
        document.update(_fields(record))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            document["error_type"] = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix(
                "builtins."
            )
            document["error"] = plain(error)
        if stack := _stack(record):
            document["stack"] = _cut(stack)
        return document


class Json(Format):
    """One object a line, in ASCII: whatever the stream's encoding is, it goes through."""

    def write(self, document: dict[str, Any]) -> str:
        return json.dumps(document).replace("\x7f", "\\u007f")


_BARE: Final = re.compile(r"[^\s\"=\\]+")
_NO_KEY: Final = re.compile(r"[^A-Za-z0-9_.\-]")


class Logfmt(Format):
    """``key=value`` with a space between; values that need it in double quotes, escaped as in JSON."""

    def write(self, document: dict[str, Any]) -> str:
        return " ".join(
            f"{_NO_KEY.sub('_', name) or '_'}={_quoted(value)}" for name, value in document.items()
        )


def _quoted(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _as_text(value)
    if text.isprintable() and _BARE.fullmatch(text):
        return text
    text = json.dumps(text, ensure_ascii=False)
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    )


_COLORS: Final = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31", "INFO": "32", "DEBUG": "36"}
_DIM: Final = "2"
_INDENT: Final = "\n    "


class Text(Format):
    """For people. What follows a record's first line is indented: nothing in it passes for a record of its own."""

    def line(self, record: logging.LogRecord, process: str | int | None) -> str:
        local = time.strftime(
            "%H:%M:%S" if self.terminal else "%Y-%m-%d %H:%M:%S", time.localtime(record.created)
        )
        parts = [
            self._paint(f"{local}.{int(record.created * 1000) % 1000:03d}", _DIM),
            self._paint(f"{record.levelname:<8}", _COLORS.get(record.levelname, "0")),
        ]
        if process is not None:
            name = f"worker {process}" if isinstance(process, int) else process
            parts.append(self._paint(f"{f'{name} ({record.process})':<20}", _DIM))
        message = _cut(_message(record), _PAGE)
        first, _, more = _shown(message).partition(_INDENT)
        parts.append(f"{_shown(record.name)}: {first}")
        words = set(re.split(r"[\s:,;()<>=]+", message))
        rest = {
            name: value if type(value) is int else _cut(_as_text(value), 256)
            for name, value in _fields(record).items()
            if value not in ("", None)
            and str(value) not in words
            and not (isinstance(value, str) and value in message)
        }
        if rest:
            parts.append(self._paint(" " + _LOGFMT.write(rest), _DIM))
        below = [more, _shown(_cut(_stack(record), _PAGE))]
        return _INDENT.join([" ".join(parts), *filter(None, below)])

    def _paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self.color else text


_LOGFMT: Final = Logfmt()


def _shown(text: str) -> str:
    """Its lines, indented but for the first, without anything that acts on a terminal."""
    if text.isprintable():
        return text
    lines = (line.expandtabs(4) for line in text.rstrip("\n").split("\n"))
    return _INDENT.join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


FORMATS: Final[dict[str, type[Format]]] = {"text": Text, "logfmt": Logfmt, "json": Json}
