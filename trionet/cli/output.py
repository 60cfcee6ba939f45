"""What the commands print: text for people by rich, JSON for programs.

Nothing here reads markup out of what it prints: paths, addresses and names come from outside, and ``[/dev]`` in one
of them is no tag. Style goes in through `rich.text.Text` or ``style=``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["console", "emit_json", "fail", "show_table", "warn"]

#: Columns of what is no terminal: lines are not folded there, a program or a log reads them.
UNFOLDED = 100_000


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout (or stderr) as it is now.

    NO_COLOR, FORCE_COLOR, TERM and COLUMNS are honoured. What goes to a pipe or a file has no colour and is neither
    folded nor cut, unless COLUMNS says how wide it shall be.
    """
    file = sys.stderr if stderr else sys.stdout
    if file is None:  # closed by whoever started us
        return Console(quiet=True)
    wide = None if file.isatty() or os.environ.get("COLUMNS", "").isdecimal() else UNFOLDED
    return Console(
        file=file, width=wide, markup=False, highlight=False, emoji=False, soft_wrap=wide is not None
    )


def emit_json(document: Any, *, compact: bool = False) -> None:
    """Print one JSON document on stdout and flush; `compact`: on one line, for a stream of them (``--json-lines``).

    Raises `ValueError` for NaN and infinities, which JSON has not: say null for what was not measured.
    """
    options: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 2}
    sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False, **options) + "\n")
    sys.stdout.flush()


def fail(message: str, *, hint: str | None = None) -> None:
    """Print an error to stderr, one line (or several, if the message has them), and a hint how to go on."""
    out = console(stderr=True)
    out.print(Text.assemble(("error: ", "bold red"), message))
    if hint:
        out.print(Text(hint, style="dim"))


def warn(message: str) -> None:
    """Print a warning to stderr."""
    console(stderr=True).print(Text.assemble(("warning: ", "bold yellow"), message))


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    right: Iterable[str] = (),
    out: Console | None = None,
) -> None:
    """Print a table; the columns named in `right` are flush right.

    On a terminal it is ruled and folds to the width there is; elsewhere it is columns apart by two blanks or more, so
    that ``awk`` and ``grep`` have whole lines.
    """
    out = out or console()
    flush = frozenset(right)
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    if not out.is_terminal:
        _plain_table(out, columns, cells, title, flush)
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in flush else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    out.print(table)


def _plain_table(
    out: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Text]],
    title: str | None,
    flush: frozenset[str],
) -> None:
    cells = [list(columns), *([cell.plain.replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(cell_len(row[number]) for row in cells) for number in range(len(columns))]
    if title:
        out.print(title)
    for row in cells:
        padded = []
        for column, cell, width in zip(columns, row, widths, strict=True):
            blanks = " " * (width - cell_len(cell))
            padded.append(blanks + cell if column in flush else cell + blanks)
        out.print("  ".join(padded).rstrip())
