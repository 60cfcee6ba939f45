"""Ask a copy of the process: what would stop the server for seconds is done in a fork of it, as redis saves.

The copy has everything as it is at this moment and none of the work; the server pays for the fork, some
milliseconds for each 100 MB. The copy closes all descriptors at once (or a connection closed by the server would stay
open), runs at the lowest priority, and is killed after its time.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any, NoReturn

import trio

from trionet.ops.control import ControlError

__all__ = ["in_a_copy"]

_busy = False


async def in_a_copy(function: Callable[[], Any], *, timeout: float = 30.0) -> tuple[Any, float]:
    """Return what `function` returns (JSON values) in a copy of this process, and the seconds that copying took.

    One at a time. Raises `ControlError` if it fails there or takes longer than `timeout` seconds.
    """
    global _busy
    if _busy:
        raise ControlError("another copy of the process is being looked at")
    _busy = True
    try:
        return await _in_a_copy(function, timeout)
    finally:
        _busy = False


async def _in_a_copy(function: Callable[[], Any], timeout: float) -> tuple[Any, float]:
    if not hasattr(os, "fork") or sys.platform == "darwin":  # pragma: no cover - its libraries do not bear it
        return await trio.to_thread.run_sync(function), 0.0
    receiving, sending = os.pipe()
    begin = perf_counter()
    with warnings.catch_warnings():
        # 3.12 warns of a fork beside threads. The copy takes no lock that one of them may have held.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        _run(function, sending, timeout)
    pause = perf_counter() - begin
    os.close(sending)
    try:
        async with trio.lowlevel.FdStream(receiving) as stream:
            with trio.fail_after(timeout):
                answer = b"".join([bytes(piece) async for piece in stream])
    except trio.TooSlowError:
        raise ControlError(f"the copy of the process was not done after {timeout:g} s") from None
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_end, pid)
    document = json.loads(answer or b'{"error": "the copy of the process died"}')
    if "error" in document:
        raise ControlError(document["error"])
    return document["value"], round(pause, 6)


def _end(pid: int) -> None:
    """What it had to say is said, or too late."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):  # somebody else waits for all children
        pass


def _run(
    function: Callable[[], Any], sending: int, timeout: float
) -> NoReturn:  # pragma: no cover - in the copy
    try:
        gc.disable()  # finalizers are the server's affair
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)
        os.closerange(0, sending)
        os.closerange(sending + 1, os.sysconf("SC_OPEN_MAX"))
        os.nice(10)
        try:
            document = {"value": function()}
        except BaseException as error:  # noqa: BLE001 - there is nobody else to tell
            document = {"error": f"{type(error).__name__}: {error}"}
        left = json.dumps(document).encode()
        while left:
            left = left[os.write(sending, left) :]
    finally:
        os._exit(0)
