"""Logs: three formats, and a handler that neither breaks a line nor waits for a reader."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionet.errors import ConfigurationError
from trionet.ops import logs
from trionet.ops.log_formats import FORMATS, Json, Logfmt, Text

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def restored():
    """Undo what `configure` does to the process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, sys.unraisablehook
    yield
    root.handlers[:], level, sys.excepthook, sys.unraisablehook = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logs.set_process(None)


def record(message="said", *args, level=logging.INFO, error=None, stack=None, **extra):
    """Return a record as a logger makes it."""
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.getLogger("app").makeRecord(
        "app", level, "app.py", 7, message, args, info, "f", extra, stack
    )
    made.process = 41
    return made


def raised(error):
    """Return `error` with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def parse_logfmt(line):
    """Return the pairs of a line, by a parser that knows only the format's definition."""
    pairs = {}
    position = 0
    for match in re.finditer(r'([A-Za-z0-9_.\-]+)=("(?:[^"\\]|\\.)*"|[^ "]*)(?: |$)', line):
        assert match.start() == position, line
        position = match.end()
        value = match[2]
        pairs[match[1]] = json.loads(value) if value.startswith('"') else value
    assert position == len(line), line
    return pairs


class Unshowable:
    """An object that cannot be shown."""

    def __repr__(self):
        raise RuntimeError


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.builds(lambda: 10**6000)
    | st.floats()
    | st.text(st.characters(), max_size=50)
    | st.binary(max_size=50)
    | st.builds(Unshowable)
    | st.just("\ud800\x1b[2J\r\n\u2028\x7f\x9b")
    | st.just("é\n" * 20_000),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)
NAMES = st.text(max_size=12).filter(lambda name: name not in vars(record()) | {"message": 0, "asctime": 0})
RECORDS = st.builds(
    lambda message, args, extra, error: record(message, *args, error=error, **extra),
    st.text(st.characters(), max_size=60) | st.just("%d"),
    st.lists(ANYTHING, max_size=2),
    st.dictionaries(NAMES | st.just("trionet"), ANYTHING, max_size=6),
    st.none() | st.builds(lambda text: raised(ValueError(text)), st.text(st.characters(), max_size=60)),
)


@settings(max_examples=40)
@given(RECORDS, st.sampled_from([512, 4096, 16384]))
def test_json_is_one_ascii_object_whatever_is_logged(made, limit):
    """Any message, fields and exception make one line within the limit, which any JSON reader takes."""
    shape = Json()
    shape.limit = limit
    line = shape.line(made, 3)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < limit
    document = json.loads(line, parse_constant=pytest.fail)
    assert (document["level"], document["logger"], document["worker"], document["pid"]) == (
        "info",
        "app",
        3,
        41,
    )
    json.dumps(document, ensure_ascii=False).encode()  # no lone surrogates


@settings(max_examples=40)
@given(RECORDS, st.sampled_from([512, 4096, 16384]))
def test_logfmt_is_one_line_whatever_is_logged(made, limit):
    """Any message, fields and exception make one line of well-formed pairs, within the limit."""
    shape = Logfmt()
    shape.limit = limit
    line = shape.line(made, "supervisor")
    assert line.isprintable()
    assert len(line.encode()) < limit
    pairs = parse_logfmt(line)
    assert (pairs["level"], pairs["process"], pairs["pid"]) == ("info", "supervisor", "41")


@settings(max_examples=40)
@given(RECORDS)
def test_text_never_acts_on_a_terminal(made):
    """Whatever is logged, each line but the first is indented, and holds nothing but printable characters."""
    first, *more = Text().line(made, None).split("\n")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO     app:", first)
    assert all(line.isprintable() for line in (first, *more))
    assert all(line.startswith("    ") for line in more)


def test_fields_are_values_of_json():
    """Fields of trionet's own and of the application stand beside the message, numbers as numbers."""
    made = record(
        "paid %d", 7, order=4711, trionet={"peer": "127.0.0.1:80", "secure": True}, time=1, parts=(1, 2.5)
    )
    document = json.loads(Json().line(made, None))
    assert document.pop("time").endswith("Z")
    assert document == {
        "level": "info",
        "logger": "app",
        "msg": "paid 7",
        "pid": 41,
        "order": 4711,
        "time_": 1,
        "parts": [1, 2.5],
        "peer": "127.0.0.1:80",
        "secure": True,
    }


def test_an_exception_is_a_field():
    """Its type, its text and its traceback, in one line."""
    document = json.loads(Json().line(record(error=raised(KeyError("a\nb"))), None))
    assert (document["error_type"], document["error"]) == ("KeyError", "'a\\nb'")
    assert document["stack"].startswith("Traceback (most recent call last):\n  File ")
    assert document["stack"].endswith("\nKeyError: 'a\\nb'")


def test_the_message_of_a_large_record_survives():
    """When something must be cut, it is the longest part, in its middle; when and where stay whole."""
    shape = Json()
    shape.limit = 4096
    made = record("a short message", error=raised(ValueError("x")), stack="line\n" * 5000, note="kept")
    document = json.loads(shape.line(made, 2))
    assert (document["msg"], document["note"], document["error"]) == ("a short message", "kept", "x")
    assert "more]…" in document["stack"]
    assert document["stack"].startswith("Traceback")


@pytest.mark.parametrize(
    "value, written",
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("é", "é"),
        ("\x9b", r'"\u009b"'),
        (True, "true"),
        (None, "null"),
        (1.5, "1.5"),
        (float("inf"), "inf"),
        ([1, "a"], r'"[1, \"a\"]"'),
        (b"\xff", r'"\\xff"'),
    ],
)
def test_logfmt_quotes_what_needs_it(value, written):
    """Values without spaces, quotes and signs of equality stand as they are; the others are quoted as in JSON."""
    assert Logfmt().line(record(x=value), None).endswith(f" x={written}")


def test_text_says_things_once():
    """Fields that the message has said already are not said again."""
    made = record(
        "127.0.0.1:80 closed by peer: 1000", trionet={"peer": "127.0.0.1:80", "code": 1000, "sent": 5}
    )
    assert (
        Text().line(made, 2).endswith("worker 2 (41)        app: 127.0.0.1:80 closed by peer: 1000  sent=5")
    )


def test_text_is_coloured_only_where_asked():
    """Colours are there when wanted, and are nothing but colours."""
    made = record("said", level=logging.ERROR, x=1)
    colored = Text(terminal=True, color=True).line(made, None)
    assert "\x1b[31mERROR   \x1b[0m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == Text(terminal=True).line(made, None)


# ------------------------------------------------------------------------ configure


@pytest.mark.parametrize("name", FORMATS)
def test_configure(restored, name):
    """The root logger writes in the format asked for, from the level asked for; a second call replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure("text", "debug", first)
    logs.configure(name, "warning", second)
    logging.getLogger("app").info("unheard")
    logging.getLogger("app").warning("heard")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1
    assert "heard" in second.getvalue()


@pytest.mark.parametrize(
    "name, level, error", [("xml", "info", "log format is 'xml'"), ("json", "loud", "log level")]
)
def test_settings_that_do_not_exist(restored, name, level, error):
    """A format or level there is not is refused by name."""
    with pytest.raises(ConfigurationError, match=error):
        logs.configure(name, level, io.StringIO())


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "environment, stream, colored",
    [
        ({}, Terminal, True),
        ({"NO_COLOR": "1"}, Terminal, False),
        ({"TERM": "dumb"}, Terminal, False),
        ({}, io.StringIO, False),
    ],
)
def test_colours_are_for_terminals(restored, monkeypatch, environment, stream, colored):
    """Nothing is coloured in a file, with NO_COLOR, or on a terminal that cannot."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = stream()
    logs.configure("text", stream=out)
    logging.getLogger("app").error("said")
    assert ("\x1b" in out.getvalue()) is colored


PROGRAM = """
import logging, os, threading, warnings
from trionet.ops import logs
logs.configure("json")
logs.set_process("supervisor")
warnings.warn("careful\\nnow")
thread = threading.Thread(target=lambda: 1 / 0, name="helper")
thread.start(); thread.join()
class Bad:
    def __del__(self): raise KeyError("x")
Bad()
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 may still count the thread that has ended
if os.fork() == 0:
    logs.set_process(3)
    logging.getLogger("app").info("forked")
    os._exit(0)
os.wait()
raise ValueError("the end")
"""


def test_everything_a_program_says_is_a_record():
    """Warnings, and exceptions nobody caught, in any thread, are lines of JSON; a forked process says which it is."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        check=False,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [(each.get("process") or each["worker"], each["level"]) for each in said] == [
        ("supervisor", "warning"),
        ("supervisor", "error"),
        ("supervisor", "error"),
        (3, "info"),
        ("supervisor", "critical"),
    ]
    assert [each.get("error_type") for each in said] == [
        None,
        "ZeroDivisionError",
        "KeyError",
        None,
        "ValueError",
    ]
    assert said[3]["pid"] != said[0]["pid"]


# ---------------------------------------------------------------------- the handler


@pytest.fixture(params=["pipe", "socket"])
def ends(request):
    """Return a stream, and the descriptor where what is written to it is read."""
    if request.param == "pipe":
        reader, writer = os.pipe()
    else:
        pair = socket.socketpair()
        reader, writer = (each.detach() for each in pair)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream, reader
    os.close(reader)


def test_a_reader_that_does_not_read_stops_nobody(ends):
    """Lines for which there is no room are dropped and counted; their number is the first thing said afterwards."""
    stream, reader = ends
    handler = logs.StreamHandler(stream, Json())
    began = time.monotonic()
    for _ in range(3000):
        handler.emit(record("x" * 1000))
    assert time.monotonic() - began < 10  # it would be for ever
    dropped = handler.dropped
    assert dropped > 1000
    received = b""
    while dropped == handler.dropped:  # once enough is read, there is room
        received += os.read(reader, 65536)
        handler.emit(record("there is room"))
        if received.endswith(b"\n") and b"there is room" in received:
            break
        dropped = handler.dropped
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            received += os.read(reader, 65536)
    lines = [json.loads(line) for line in received.splitlines()]
    told = [line["dropped"] for line in lines if "dropped" in line]
    assert told
    assert sum(told) == handler.dropped


CHATTER = """
import logging, os
from trionet.ops import logs
logs.configure("json")
name = "a" if os.fork() else "b"
for n in range(200):
    logging.getLogger("app").info("%s", name * 9000, extra={"n": n})
if name == "b":
    os._exit(0)
os.wait()
"""


def test_lines_from_several_processes_do_not_mix():
    """What is written to a pipe by several processes at once comes out in whole lines, however long the records."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", CHATTER], stderr=subprocess.PIPE, env=environment
    ) as process:
        lines = [json.loads(line) for line in process.stderr]
    assert process.returncode == 0
    for name in "ab":
        numbers = [line["n"] for line in lines if "n" in line and line["msg"].startswith(name)]
        assert numbers == sorted(numbers)
        assert numbers


def test_a_reader_that_has_gone_is_no_error(capsys):
    """A broken pipe costs the records, and nothing else."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        handler = logs.StreamHandler(stream, Text())
        os.close(reader)
        handler.emit(record())
    assert handler.dropped == 1
    assert capsys.readouterr().err == ""


def test_a_file_gets_every_record(tmp_path):
    """A file has room always, and keeps letters of any alphabet."""
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        handler = logs.StreamHandler(stream, Logfmt())
        for number in range(100):
            handler.emit(record("é%d", number))
    assert [parse_logfmt(line)["msg"] for line in path.read_text("utf-8").splitlines()] == [
        f"é{n}" for n in range(100)
    ]
