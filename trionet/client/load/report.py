"""Results as files for people: an HTML page, an SVG picture, percentile tables; and back from their files."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from trionet.client.load.report_compare import page_of_runs
from trionet.client.load.report_page import page_of_run
from trionet.client.load.report_plots import histograms, of_run, of_runs
from trionet.client.load.report_style import PICTURE
from trionet.client.load.report_svg import HEIGHT, WIDTH, Plot, draw
from trionet.client.load.result import SCHEMA, Result, to_json
from trionet.errors import ConfigurationError

__all__ = ["check_path", "compare", "read_results", "write_report"]

_SUFFIXES = (".html", ".svg", ".hgrm", ".json")
_EMBEDDED = re.compile(r'<script type="application/json" class="result">(.*?)</script>', re.DOTALL)


def check_path(path: str | Path) -> Path:
    """Return `path` when a report can be written there; to be asked before the run, not after it.

    Raises:
        ConfigurationError: The suffix is none of ours, or there is no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigurationError(
            f"a report is {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}, not {str(path)!r}"
        )
    if not path.parent.is_dir():
        raise ConfigurationError(f"no folder {str(path.parent)!r} for the report")
    return path


def write_report(result: Result, path: str | Path) -> list[Path]:
    """Write the report of one run, of the kind that the suffix of `path` names, and return the files written.

    ``.html`` is one page with everything, the result's JSON included; ``.svg`` its plots in one picture; ``.hgrm`` a
    percentile table in HdrHistogram's format, in milliseconds, for each latency that was measured: ``out.hgrm``
    becomes ``out-connect.hgrm`` and so on; ``.json`` the result itself.

    Raises:
        ConfigurationError: As `check_path`.
        OSError: The file cannot be written.
    """
    path = check_path(path)
    if path.suffix.lower() == ".hgrm":
        return _write_tables({"": result}, path)
    if path.suffix.lower() == ".svg":
        text = _picture(f"{result['scenario']}: {result['target']}", of_run(result))
    elif path.suffix.lower() == ".html":
        text = page_of_run(result)
    else:
        text = to_json(result)
    path.write_text(text, encoding="utf-8")
    return [path]


def compare(named: Mapping[str, Result], path: str | Path) -> list[Path]:
    """Write one report of several runs as `write_report` does; the first is what the others are held against.

    Raises:
        ConfigurationError: As `check_path`; JSON has no form for several.
        OSError: The file cannot be written.
    """
    path = check_path(path)
    if path.suffix.lower() == ".json":
        raise ConfigurationError("a comparison is .html, .svg or .hgrm")
    if path.suffix.lower() == ".hgrm":
        return _write_tables({f"-{name}": run for name, run in named.items()}, path)
    if path.suffix.lower() == ".svg":
        text = _picture(f"{len(named)} runs compared", of_runs(named))
    else:
        text = page_of_runs(named)
    path.write_text(text, encoding="utf-8")
    return [path]


def read_results(path: str | Path) -> list[Result]:
    """Return the results in a file: the JSON that ``--json`` prints, or a page that `write_report` has written.

    Raises:
        ConfigurationError: There is no such file, or it is something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = _EMBEDDED.findall(text) if text.lstrip().startswith("<") else [text]
        results = [json.loads(document, parse_constant=_no_number) for document in found]
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is no result of trionet load: {error}") from error
    for result in results or [None]:
        _check(result, path)
    return cast("list[Result]", results)


def _no_number(word: str) -> float:
    """NaN and the infinities are no JSON, though Python reads them."""
    raise ValueError(f"{word} is no number")


def _check(result: Any, path: str | Path) -> None:
    """Raise `ConfigurationError` unless this is a result whose keys mean what we take them to mean."""
    if not isinstance(result, dict) or result.get("tool") != "trionet load":
        raise ConfigurationError(f"{path} holds no result of trionet load")
    if result.get("schema") != SCHEMA:
        raise ConfigurationError(
            f"{path} is of schema {result.get('schema')!r}, this trionet reads {SCHEMA}: use the version that wrote it"
        )
    if missing := Result.__required_keys__ - result.keys():
        raise ConfigurationError(f"{path} lacks {', '.join(sorted(missing))}")


def _write_tables(named: Mapping[str, Result], path: Path) -> list[Path]:
    written = []
    for name, result in named.items():
        for kind, histogram in histograms(result).items():
            # A name may be anything; what is written is beside `path` all the same.
            table = path.with_name(re.sub(r"[^\w.-]", "_", f"{path.stem}{name}-{kind}") + path.suffix)
            table.write_text(histogram.text(scale=1000), encoding="utf-8")
            written.append(table)
    return written


def _picture(title: str, plots: list[Plot]) -> str:
    """The plots in two columns, each with the title, the note and the legend that a page puts around it."""
    gap, head, caption = 24, 56, 70
    rows = (len(plots) + 1) // 2
    width, height = 2 * WIDTH + 3 * gap, head + rows * (caption + HEIGHT + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{html.escape(title)}</title><style>{PICTURE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text class="head" x="{gap}" y="36">{html.escape(title)}</text>',
    ]
    for number, plot in enumerate(plots):
        x, y = gap + number % 2 * (WIDTH + gap), head + number // 2 * (caption + HEIGHT + gap)
        parts.append(
            f'<g transform="translate({x},{y})"><text class="title" y="18">{html.escape(plot.title)}</text>'
        )
        # One line, cut where the plot ends: there is nothing that would fold it.
        note = plot.note if len(plot.note) < 92 else plot.note[: plot.note.find(". ") + 1]
        parts.append(f'<text class="note" y="38">{html.escape(note)}</text>{_legend(plot)}')
        parts.append(f'<g transform="translate(0,{caption - 8})">{draw(plot)}</g></g>')
    return "\n".join([*parts, "</svg>\n"])


def _legend(plot: Plot) -> str:
    if len(plot.lines) < 2:
        return ""
    parts, x = [], 0
    for line in plot.lines:
        parts.append(f'<path class="line s{line.style}" d="M{x},54h26"/>')
        parts.append(f'<text class="name" x="{x + 32}" y="58">{html.escape(line.name)}</text>')
        x += 60 + 7 * len(line.name)
    return "".join(parts)
