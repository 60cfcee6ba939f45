"""Logs on a pipe that is full or read slowly: nothing waits for long, and what comes later is whole."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from trionet.ops import logs
from trionet.ops.log_formats import FORMATS, Json, Text


def record(size=10):
    """Return a record with a message so long."""
    return logging.makeLogRecord({"name": "app", "levelno": 20, "levelname": "INFO", "msg": "x" * size})


@pytest.fixture(params=["pipe", "pipe without /proc", "socket"])
def ends(request, monkeypatch):
    """Return a stream, and the descriptor where what is written to it is read."""
    if request.param == "pipe without /proc":
        monkeypatch.setattr(logs, "_open_anew", lambda pipe: -1)
    reader, writer = (
        (each.detach() for each in socket.socketpair()) if request.param == "socket" else os.pipe()
    )
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream, reader
    with contextlib.suppress(OSError):
        os.close(reader)


def read_all(reader) -> bytes:
    """Return what is there."""
    os.set_blocking(reader, False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 65536):
            received += data
    return received


@pytest.mark.parametrize("shape", FORMATS)
def test_long_records_do_not_wait_for_a_reader(ends, shape):
    """Records for people are not cut to what a pipe takes at once: where there is no room, a part is lost."""
    stream, reader = ends
    handler = logs.StreamHandler(stream, FORMATS[shape]())
    thread = threading.Thread(target=lambda: [handler.emit(record(50_000)) for _ in range(60)])
    thread.start()
    thread.join(10)
    stuck = thread.is_alive()
    if stuck:
        os.close(reader)  # lets it go
        thread.join()
    handler.close()
    assert not stuck
    assert handler.dropped > 0


def test_a_torn_record_is_no_part_of_the_next(ends):
    """A record of which only a part was written ends there: the next one has a line of its own."""
    stream, reader = ends
    handler = logs.StreamHandler(stream, Text())
    while not handler.dropped:
        handler.emit(record(50_000))
    read_all(reader)
    handler.emit(record())
    *_, told, last = read_all(reader).decode().rstrip("\n").split("\n")
    assert "1 records were dropped" in told
    assert told[:2] == last[:2] == "20"  # the year
    assert last.endswith("app: xxxxxxxxxx")
    handler.close()


def test_another_process_may_take_the_room(monkeypatch):
    """Between seeing room and writing, others who share the pipe may fill it: the record is dropped."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        handler = logs.StreamHandler(stream, Json())
        if handler._own < 0:
            pytest.skip("no /proc")
        really = handler._room

        def room():
            monkeypatch.setattr(handler, "_room", really)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(handler._own, bytes(4096))
            return True

        monkeypatch.setattr(handler, "_room", room)
        handler.emit(record())
        assert handler.dropped == 1
        assert os.get_blocking(writer)  # whoever shares it may expect to wait
        handler.close()
    os.close(reader)


def test_a_slow_reader_gets_a_twentieth_of_the_time(monkeypatch):
    """However many records there are, and however slow the reader: that is all the time spent in waiting for it."""
    now, waited = 100.0, 0.0

    class Full:
        def poll(self, timeout):
            nonlocal now, waited
            now += timeout / 1000
            waited += timeout / 1000

    monkeypatch.setattr(logs, "monotonic", lambda: now)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        handler = logs.StreamHandler(stream, Json())
        handler._poll = Full()
        for _ in range(10_000):
            handler.emit(record())
            now += 0.001
        handler.close()
    os.close(reader)
    assert handler.dropped == 10_000
    assert 0.2 < waited <= 0.01 + 0.05 * (now - 100)


def test_a_handler_that_is_replaced_keeps_no_descriptor():
    """Configuring again, as each reload does, opens nothing that stays open."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            logs.configure("json", stream=stream).close()
            open_before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
            for _ in range(3):
                last = logs.configure("json", stream=stream)
            last.close()
            if open_before:
                assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        os.close(reader)
