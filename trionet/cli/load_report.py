"""``trionet load report``: results of earlier runs as a report, alone or compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trionet.cli import output as out
from trionet.client.load import chart, report
from trionet.client.load.report_compare import figures
from trionet.client.load.result import Result
from trionet.client.load.text import result_text
from trionet.errors import ConfigurationError

__all__ = ["load_report"]


def load_report(
    *files: Annotated[str, Parameter(metavar="[NAME=]FILE")],
    output: Annotated[
        tuple[str, ...], Parameter(name=("--output", "-o"), metavar="FILE", negative=(), show_default=False)
    ] = (),
) -> int:
    """Make a report of one run, or one that compares several, from their results.

    FILE is the JSON of trionet load, or an HTML report, which has it inside. The first run is what the others are held
    against. Without --output the report is printed.

    Examples::

      trionet load report run.json -o run.html
      trionet load report before=a.json after=b.json -o compared.html -o compared.svg
      trionet load report *.json

    Args:
        files: results, each with a name if that of the file will not do
        output: where to: .html (all in one page), .svg (the plots), .hgrm (percentiles for HdrHistogram plotters) or,
            of one run, .json
    """
    paths = [report.check_path(path) for path in output]
    named = read(files)
    try:
        for path in paths:
            result = next(iter(named.values()))
            written = report.write_report(result, path) if len(named) == 1 else report.compare(named, path)
            for file in written:
                out.console().print(str(file))
        if not paths:
            _print(named)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # The files say that they are results, and then are not: somebody has edited them.
        raise ConfigurationError(f"a result is damaged: {error!r}") from error
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be written: {error.strerror}") from error
    return 0


def read(files: Sequence[str]) -> dict[str, Result]:
    """Return the results of the files by name; one that a name was not given for is called as its file."""
    if not files:
        raise ConfigurationError(
            "a report of what? Name the JSON of a run: trionet load URL --json > run.json"
        )
    named: dict[str, Result] = {}
    for file in files:
        name, given, path = file.partition("=")
        # A file may have "=" in its name.
        if not given or Path(file).exists():
            name, path = Path(file).stem, file
        for result in report.read_results(path):
            unique, number = name, 1
            while unique in named:
                number += 1
                unique = f"{name} {number}"
            named[unique] = result
    return named


def _print(named: dict[str, Result]) -> None:
    if len(named) > 1:
        rows = [[cell.replace("\n", "  ") for cell in row] for row in figures(named)]
        out.show_table(("", *named), rows, right=list(named))
        return
    (result,) = named.values()
    console = out.console()
    console.print(result_text(result) + "\n")
    for line in chart.charts(result):
        console.print(line)
