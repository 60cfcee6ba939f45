"""What is shown when the application itself cannot be imported: its traceback, without our part of it."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from trionet.cli import output

__all__ = ["show_loading_error"]


def show_loading_error(app: str, error: Exception) -> bool:
    """Print why `app` could not be loaded, and return True; False if the error is not one of its own code."""
    trace = error.__traceback__
    inside: TracebackType | None = None
    while trace is not None:
        if _module(trace) == "trionet.ops.application":
            inside = trace
        trace = trace.tb_next
    if inside is None:
        return False
    shown: TracebackType | None = inside.tb_next
    while shown is not None and _module(shown).partition(".")[0] == "importlib":
        shown = shown.tb_next
    if shown is None:  # the loader's own: its text says it all
        return False
    traceback.print_exception(type(error), error, shown, file=sys.stderr)
    output.fail(f"{app} cannot be loaded, for the error above")
    return True


def _module(trace: TracebackType) -> str:
    name = str(trace.tb_frame.f_globals.get("__name__", ""))
    return (
        "importlib"
        if name.startswith("importlib") or trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")
        else name
    )
