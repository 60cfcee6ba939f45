"""How ``--help`` looks: headings and two columns, the same on a terminal and in a pipe.

cyclopts gathers what there is to say and calls a formatter for each part (its `HelpFormatter`). Its own two draw boxes
around everything, or fold nothing; forty settings read better without either.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions
from rich.text import Text

__all__ = ["HelpFormatter", "paragraphs"]

#: Columns after which text is hard to read, however wide the terminal is.
WIDEST = 110
#: Names longer than this have their text on the next line.
NAMES = 30


class HelpFormatter:
    """Prints the parts of a help page."""

    def render_usage(self, console: Console, _: ConsoleOptions, usage: Any) -> None:
        """Print the line that shows how the command is called."""
        if usage:
            # On its own line for `[OPTIONS]`: brackets are no markup here.
            console.print(Text.assemble(("Usage: ", "bold"), plain(usage).removeprefix("Usage: ")))
            console.print()

    def render_description(self, console: Console, _: ConsoleOptions, description: Any) -> None:
        """Print what the command does."""
        for paragraph in paragraphs(plain(description), width(console)):
            console.print(Text(paragraph), soft_wrap=True)
            console.print()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002 - its interface
        """Print one group of options or commands."""
        if not panel.entries:
            return
        console.print(Text(f"{panel.title}:", style="bold"))
        if remark := plain(panel.description):
            for line in textwrap.wrap(remark, width(console) - 2):
                console.print(Text("  " + line), soft_wrap=True)
        column = min(NAMES, max(len(names(entry)) for entry in panel.entries)) + 4
        for entry in panel.entries:
            _print_entry(console, entry, column)
        console.print()


def _print_entry(console: Console, entry: HelpEntry, column: int) -> None:
    shown = names(entry)
    lines = textwrap.wrap(about(entry), width(console) - column, break_on_hyphens=False) or [""]
    if len(shown) > column - 4:
        lines.insert(0, "")
    first = Text.assemble("  ", (shown, "cyan"), " " * (column - 2 - len(shown)), lines[0])
    first.rstrip()
    console.print(first, soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(" " * column + line), soft_wrap=True)


def names(entry: HelpEntry) -> str:
    """Return what to type: ``-o, --option VALUE``, ``--[no-]flag``, or the name of an argument."""
    options = [*entry.positive_shorts, *entry.positive_names]
    negatives = list(entry.negative_names)
    for number, name in enumerate(options):
        negative = f"--no-{name.removeprefix('--')}"
        if negative in negatives:
            negatives.remove(negative)
            options[number] = f"--[no-]{name.removeprefix('--')}"
    if entry.positional_label:
        return entry.positional_label
    return ", ".join([*options, *negatives]) + (f" {entry.metavar}" if entry.metavar else "")


def about(entry: HelpEntry) -> str:
    """Return what an option means, and what is taken if it is not given."""
    text = plain(entry.description)
    if entry.choices and not all(choice in text for choice in entry.choices):
        text += f" ({', '.join(entry.choices)})"
    if entry.default not in {None, "False", "None", "()"}:
        text += f" [default: {entry.default}]"
    return text.strip()


def paragraphs(text: str, columns: int) -> list[str]:
    """Fold the paragraphs of a docstring to `columns`; what is indented or a list keeps its lines."""
    text = text.replace("``", "").replace("::\n", ":\n").strip()
    return [
        block.rstrip() if re.match(r"\s|- ", block) else "\n".join(textwrap.wrap(block, columns))
        for block in re.split(r"\n\s*?\n", text)
        if block.strip()
    ]


def plain(value: Any) -> str:
    """Return the text of what cyclopts hands over: a string, a `Text`, or its wrapper around one."""
    value = getattr(value, "primary_renderable", value)
    return str(getattr(value, "plain", value) or "").rstrip()


def width(console: Console) -> int:
    """Columns of text."""
    return min(console.width, WIDEST)
