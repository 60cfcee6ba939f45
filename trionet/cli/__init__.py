"""The ``trionet`` command; what it needs beyond the library comes with the extra ``trionet[cli]``.

main      the command and its subcommands; each lives in a module of its own that is imported when it is called
output    what people see (rich) and what programs read (JSON)
settings  the settings of ``trionet serve``: options, environment, TOML, and which of them said what
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["run"]

#: What the extra brings; another module that is missing is an error like any other.
EXTRA = frozenset({"cyclopts", "rich"})


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `arguments` are those of the process if None.

    The console script and ``python -m trionet`` hand the code to `sys.exit`.
    """
    try:
        from trionet.cli.main import main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.stderr.write(
            f"trionet: the command needs {error.name}, which the extra brings: pip install 'trionet[cli]'\n"
        )
        return 2
    return main(arguments)
