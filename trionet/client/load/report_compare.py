"""Several results on one page: their figures side by side, their lines in the same plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trionet.client.load import scales
from trionet.client.load.report_page import FAILURES
from trionet.client.load.report_parts import (
    Markup,
    at,
    callout,
    environment,
    header,
    page,
    plots,
    table,
    text,
    when,
)
from trionet.client.load.report_plots import LATENCIES, of_runs
from trionet.client.load.result import Result

__all__ = ["figures", "page_of_runs"]


def page_of_runs(named: Mapping[str, Result]) -> str:
    """Return the page that compares runs; the first is what the others are measured against."""
    title = f"{len(named)} runs compared"
    words = [f"{name}: {warning}" for name, run in named.items() for warning in run["warnings"]]
    body = [
        header(title, None),
        callout([*_differences(named), *words]),
        _figures(named),
        plots(of_runs(named)),
        *(
            f"<h2>{text(name)}</h2><p>{text(when(run))}</p>{environment(run, 'h3')}"
            for name, run in named.items()
        ),
    ]
    return page(title, body, named.values())


def _differences(named: Mapping[str, Result]) -> list[str]:
    """What makes a comparison doubtful: runs that are not of the same kind, or not on the same machine."""
    found = []
    for what, values in (
        ("The scenarios differ", {run["scenario"] for run in named.values()}),
        (
            "The numbers of connections differ",
            {f"{run['totals']['connections']:,}" for run in named.values()},
        ),
        ("The kernels differ", {run["environment"]["kernel"] for run in named.values()}),
        ("The numbers of CPUs differ", {str(run["environment"]["cpus"]) for run in named.values()}),
    ):
        if len(values) > 1:
            found.append(f"{what}: {', '.join(sorted(values))}.")
    return found


def figures(named: Mapping[str, Result]) -> list[list[str]]:
    """Return the main figures: rows of a name, the first run's, and of each other run its figure and its ratio."""
    rows: list[list[str]] = []
    runs = list(named.values())

    def row(name: str, values: Sequence[float | None], label: Callable[[float | None], str]) -> None:
        if any(value is not None for value in values):
            others = [f"{label(value)}\n{_ratio(value, values[0])}".rstrip() for value in values[1:]]
            rows.append([name, label(values[0]), *others])

    rows.append(["Outcome", *(run["outcome"] for run in runs)])
    row("Connections, most at a time", [run["totals"]["peak"] for run in runs], scales.number)
    for name, key in _RATES.items():
        row(name, [run["totals"][key] for run in runs], scales.number)  # type: ignore[literal-required]
    row("Everyone in again after", [run["totals"]["reconnect_time"] for run in runs], scales.seconds)
    for kind, called in LATENCIES.items():
        for percentile in ("50", "99", "99.9"):
            documents = [run["histograms"].get(kind) for run in runs]
            values = [document and at(document, percentile) for document in documents]
            row(f"{called}, p{percentile}", values, scales.latency)
    for key, words in FAILURES.items():
        values = [run["totals"][key] for run in runs]  # type: ignore[literal-required]
        if any(values):
            row(words.capitalize(), values, scales.number)
    row("CPU of the generator, seconds", [run["environment"]["cpu_seconds"] for run in runs], scales.number)
    return rows


def _figures(named: Mapping[str, Result]) -> str:
    """The same as a table of the page, the ratios below the figures."""
    rows = []
    for name, *cells in figures(named):
        parts = [cell.partition("\n") for cell in cells]
        rows.append(
            [
                name,
                *(
                    Markup(f'{text(value)}<span class="delta">{text(ratio)}</span>')
                    for value, _, ratio in parts
                ),
            ]
        )
    return f"<h2>Figures</h2>{table(['', *named], rows)}"


_RATES = {
    "Connects per second": "connect_rate",
    "Messages sent per second": "sent_rate",
    "Messages received per second": "received_rate",
}


def _ratio(value: float | None, first: float | None) -> str:
    """``+12 %``, or ``3.4 times``: `value` against the first run's."""
    if value is None or not first:
        return ""
    ratio = value / first
    if 0.5 < ratio < 2:
        return (
            f"{(ratio - 1) * 100:+.0f} %".replace("-", "\N{MINUS SIGN}")
            if abs(ratio - 1) >= 0.005
            else "the same"
        )
    return f"{scales.short(ratio)} times"
