"""What is shown when the application itself cannot be imported or started: its traceback, without our part of it."""

from __future__ import annotations

import sys
import traceback

from trionet.cli import output
from trionet.errors import BrokerError, ConfigurationError
from trionet.ops.application import own_failure

__all__ = ["show_loading_error"]


def show_loading_error(app: str, error: Exception) -> bool:
    """Print why `app` could not be loaded or started, and return True; False if its own code is not to blame."""
    if isinstance(error, BrokerError):  # its lifespan has found out, and is not to blame
        output.fail(f"{app} did not start: {error}")
        return True
    what, trace = own_failure(error)
    if not what:
        return False
    if isinstance(error, ConfigurationError) and trace is not None:  # says it all, but where
        theirs = [
            f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
            for frame, line in traceback.walk_tb(trace)
            if not str(frame.f_globals.get("__name__", "")).startswith("trionet.")
            and not frame.f_code.co_filename.startswith("<")  # made by attrs
        ]
        output.fail(f"{app} {what}: {error}", hint=theirs[-1] if theirs else None)
        return True
    traceback.print_exception(type(error), error, trace, file=sys.stderr)
    output.fail(f"{app} {what}, for the error above")
    return True
