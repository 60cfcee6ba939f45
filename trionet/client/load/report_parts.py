"""The parts that pages are made of: the frame, tables, plots with their legends, the machine of a run.

Everything that is written into a page goes through `text`: a target's address, a server's status line, the name of a
file are whatever somebody else made of them.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from trionet.client.load import scales
from trionet.client.load.report_style import PAGE
from trionet.client.load.report_svg import HEIGHT, WIDTH, Plot, draw, legend_mark
from trionet.client.load.result import Environment, HistogramDocument, Result

__all__ = ["Markup", "at", "callout", "environment", "header", "page", "plots", "table", "text", "when"]

_BADGES = {"passed": "good", "done": "good", "failed": "bad", "interrupted": "warn"}
_MARKS = {"passed": "✓", "done": "✓", "failed": "✗", "interrupted": "■"}


class Markup(str):
    """A piece of a page that we have put together ourselves, what came from outside escaped in it."""

    __slots__ = ()


def text(value: object) -> str:
    """Return a value as it is written into a page."""
    return value if isinstance(value, Markup) else html.escape(str(value))


def page(title: str, body: Iterable[str], results: Iterable[Result]) -> str:
    """Return the whole file: its body, of which parts may be empty, and the results for whoever reads it back."""
    # In a script element only "<" can end it (HTML 13.1.2.6), and in JSON it occurs in strings only.
    data = "".join(
        '<script type="application/json" class="result">'
        + json.dumps(result, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        + "</script>\n"
        for result in results
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        # Nothing in this page needs to run or to fetch; a value that got past the escaping should find no use.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>\n{PAGE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n<footer>Made by trionet load. The measurements are in this file: "
        "<code>trionet load report</code> reads it like their JSON.</footer>\n</main>\n"
        f"{data}</body>\n</html>\n"
    )


def header(title: str, outcome: str | None) -> str:
    """Return the title, with a badge that says how the run went."""
    badge = ""
    if outcome is not None:
        badge = f'<span class="badge {_BADGES.get(outcome, "warn")}">{_MARKS.get(outcome, "")} {text(outcome)}</span>'
    return f"<header><h1>{text(title)}</h1>{badge}</header>"


def when(result: Result) -> str:
    """Return when a run was, how long, and by what."""
    ended = max((phase["ended"] for phase in result["phases"]), default=0.0)
    # ISO 8601; fractions of a second say nothing here.
    started = result["started"].partition(".")[0].removesuffix("Z").removesuffix("+00:00")
    parts = [
        f"{started.replace('T', ' ')} UTC" if started else "",
        f"{scales.seconds(ended)} long",
        f"trionet {result['version']}",
    ]
    return ", ".join(part for part in parts if part)


def callout(words: Sequence[str]) -> str:
    """Return warnings, in a box nobody misses; nothing when there are none."""
    if not words:
        return ""
    return f'<div class="callout"><ul>{"".join(f"<li>{text(word)}</li>" for word in words)}</ul></div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first cell of each row is its heading."""
    heads = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    lines = []
    for name, *cells in rows:
        shown = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{text(name)}</th>{shown}</tr>')
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def plots(shown: Sequence[Plot]) -> str:
    """Return the plots, each with its title, note and legend."""
    figures = []
    for plot in shown:
        note = f'<p class="note">{text(plot.note)}</p>' if plot.note else ""
        keys = "".join(f"<li>{legend_mark(line.style)}{text(line.name)}</li>" for line in plot.lines)
        legend = f'<ul class="legend">{keys}</ul>' if len(plot.lines) > 1 else ""
        figures.append(
            f"<figure><h3>{text(plot.title)}</h3>{note}{legend}"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(plot.title)}">'
            f"{draw(plot)}</svg></figure>"
        )
    return f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def environment(result: Result, heading: str = "h2") -> str:
    """Return the command line, the settings and the machine of a run, under headings of this level."""
    options = {name.replace("_", "-"): value for name, value in result["options"].items()}
    blocks = [("Settings of the run", options), ("Environment", _facts(result["environment"]))]
    parts = []
    for title, facts in blocks:
        if facts:
            items = "".join(
                f"<dt>{text(name)}</dt><dd>{text(_value(value))}</dd>" for name, value in facts.items()
            )
            parts.append(f"<div><{heading}>{title}</{heading}><dl>{items}</dl></div>")
    return f'<div class="pair">{"".join(parts)}</div><pre>{text(shlex.join(result["command"]))}</pre>'


def _facts(environment: Environment) -> dict[str, Any]:
    memory, used = environment["memory"], environment["pss_bytes"]
    processes = "1 process" if environment["processes"] == 1 else f"{environment['processes']} processes"
    generator = f"{processes}, {environment['cpu_seconds']:.1f} s of CPU"
    return {
        "Machine": f"{environment['machine']}, {environment['cpus']} CPUs, {scales.size(memory)}",
        "Kernel": environment["kernel"],
        "Python": f"{environment['python']}, Trio {environment['trio']}",
        "Generator": generator if used is None else f"{generator}, {scales.size(used)} of memory",
        "Descriptors": f"{environment['nofile']:,} a process",
        **environment["limits"],
    }


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def at(document: HistogramDocument, percentile: str) -> int | None:
    """Return a percentile of a latency; None where there are too few values to speak of it: 99.9 % of a hundred."""
    beyond = document["count"] * (100 - float(percentile)) / 100
    return document["percentiles"].get(percentile) if beyond > 0.999 else None
