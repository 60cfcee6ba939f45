"""Forking: what has a child cost little, keeps it from going on as a second supervisor, and ends it."""

from __future__ import annotations

import atexit
import errno
import importlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from trionet.ops.broker import has_local
from trionet.ops.metrics.process import build_info
from trionet.ops.settings import ServeSettings
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol

__all__ = ["await_end", "be_child", "fork_quietly", "kill", "preload"]

log = logging.getLogger("trionet.ops")


def preload(settings: ServeSettings) -> None:
    """Import what workers would import one by one: memory of the supervisor is shared, theirs is not."""
    names = ["encodings.idna", "resource", "trionet.ops.metrics", "trionet.ops.stalls"]
    names += ["trionet.net._epoll"] if hasattr(select, "epoll") else []
    names += ["trionet.ops.debug"] if settings.debug else []
    names += ["h11"] if settings.admin else []
    names += ["trionet.pubsub.brokers.local"] if has_local(settings) else []
    for name in names:
        importlib.import_module(name)
    WebSocketProtocol(WebSocketHandler())  # compiles the usual regular expressions, which `re` keeps
    build_info()  # reads the metadata of installed packages, through `email` and `zipfile`: 2.3 MB in each worker
    if hasattr(sys, "_clear_type_cache"):
        # It is full of what importing looked up. Entries that a worker replaces are reference counts written.
        sys._clear_type_cache()


def fork_quietly(signals: Iterable[signal.Signals]) -> int:
    """fork(2), with what is buffered written once; the child is not to be interrupted by what its parent heeds.

    `signals` are blocked in the child until it lets them through. Raises `OSError`.
    """
    _flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # None if it was closed at the start; whoever reads it may have gone.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def be_child(life: Callable[[], int]) -> None:
    """Be a child: whatever happens, this process ends here, and does not go on as a second supervisor.

    What the application has registered with `atexit` is called, and what the supervisor has is not.
    """
    status = 1
    try:
        atexit._clear()
        status = life()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        log.exception("process %d failed", os.getpid())
    finally:
        try:
            atexit._run_exitfuncs()
            logging.shutdown()
            _flush()
        finally:
            os._exit(status & 0xFF)


def kill(pid: int, number: int) -> None:
    """Send a signal to a child, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def await_end(pid: int, seconds: float = 3.0) -> None:
    """Wait for a child that was told to end; kill it if it does not."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except OSError as error:
            if error.errno == errno.ECHILD:
                return
            raise
        time.sleep(0.02)
    kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
