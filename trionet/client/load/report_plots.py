"""What of a result is plotted, and how: results in, `Plot`s out. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from trionet.client.load import scales
from trionet.client.load.report_svg import Band, Line, Plot
from trionet.client.load.result import Point, Result
from trionet.net.histogram import Histogram

__all__ = ["LATENCIES", "histograms", "of_run", "of_runs", "thinned"]

#: The histograms of a result, in the order in which they are shown, and what each is called.
LATENCIES: Final = {
    "connect": "Connecting",
    "reconnect": "Reconnecting",
    "message": "Message round trip",
    "control": "Round trip of the control group",
    "delivery": "Delivery of a broadcast",
    "late": "Sent later than intended",
}

# More points than a plot has pixels only make the file large.
_POINTS = 400
_PEAKS = ("p50", "p99", "lag")


def histograms(result: Result) -> dict[str, Histogram]:
    """Return the histograms of a result in which something was counted, in the order of `LATENCIES`."""
    found = {
        name: Histogram.from_json(document["data"])
        for name, document in result["histograms"].items()
        if document["count"]
    }
    return {name: found[name] for name in sorted(found, key=[*LATENCIES, *found].index)}


def of_run(result: Result) -> list[Plot]:
    """Return the plots of one run, those of which there is something to see."""
    series = thinned(result["series"])
    bands = [
        Band(phase["name"], phase["began"], phase["ended"], number % 2 == 0)
        for number, phase in enumerate(result["phases"])
    ]
    makers: list[Plot | None] = [_open(result, series, bands)] if series else []
    if series:
        makers += [
            _over_time(
                "Messages per second",
                "How many the clients sent and received in each second.",
                series,
                bands,
                {"received": "received_s", "sent": "sent_s"},
                scales.short,
            ),
            _over_time(
                "New connections per second",
                "And how many failed to connect or were lost.",
                series,
                bands,
                {"connected": "connects_s", "failed or lost": "errors"},
                scales.short,
            ),
            _over_time(
                "Latency over time",
                "Of each second's messages; of its connects while there are no messages. "
                "Where the generator's own lag comes near, it is part of what was measured.",
                series,
                bands,
                {"p99": "p99", "p50": "p50", "generator's lag": "lag"},
                scales.latency,
            ),
        ]
    shown = histograms(result)
    for names in (("connect", "reconnect"), ("message", "control", "delivery", "late")):
        group = {
            name: shown[name]
            for name in shown
            if name in names or (name not in LATENCIES and names[0] == "message")
        }
        if group:
            title = f"{_called(next(iter(group)))}: latency by percentile"
            makers.append(_by_percentile(title, {_called(name): group[name] for name in group}))
    return [plot for plot in makers if plot is not None]


def of_runs(named: Mapping[str, Result]) -> list[Plot]:
    """Return the plots that show several runs together, a line for each, by the names given."""
    makers: list[Plot | None] = []
    for title, note, key, label in (
        ("Connections open", "Each run from its own beginning.", "open", scales.short),
        ("Messages received per second", "", "received_s", scales.short),
        ("New connections per second", "", "connects_s", scales.short),
        ("Latency over time: p99 of each second", "", "p99", scales.latency),
    ):
        lines = {name: [(p["t"], p[key]) for p in thinned(run["series"])] for name, run in named.items()}  # type: ignore[literal-required]
        makers.append(_compared(title, note, lines, label))
    found = {name: histograms(run) for name, run in named.items()}
    for kind in dict.fromkeys(itertools.chain.from_iterable(found.values())):
        group = {name: found[name][kind] for name in named if kind in found[name]}
        makers.append(_by_percentile(f"{_called(kind)}: latency by percentile", group))
    return [plot for plot in makers if plot is not None]


def _called(name: str) -> str:
    return LATENCIES.get(name, name)


def _open(result: Result, series: Sequence[Point], bands: Sequence[Band]) -> Plot:
    asked, peak = result["totals"]["connections"], result["totals"]["peak"]
    note = f"Asked for {asked:,}; most at a time {peak:,}."
    points = [(0.0, 0), *((point["t"], point["open"]) for point in series)]
    return Plot(
        title="Connections open",
        note=note,
        x=scales.timeline(series[-1]["t"]),
        y=scales.linear(max(1, *(point["open"] for point in series)), scales.short),
        lines=[Line("open", points, 1)],
        bands=bands,
        hints=[
            (
                p["t"],
                f"{scales.seconds(p['t'])} ({p['phase']})\n{p['open']:,} open\n{p['errors']:,} errors in this second",
            )
            for p in series
        ],
        filled=True,
    )


def _over_time(
    title: str,
    note: str,
    series: Sequence[Point],
    bands: Sequence[Band],
    keys: Mapping[str, str],
    label: Callable[[float | None], str],
) -> Plot | None:
    """Some columns of the series as lines; None when all of it is 0 or absent."""
    rows: Sequence[Mapping[str, Any]] = series
    values = [row[key] for row in rows for key in keys.values() if row[key]]
    if not values or not any(row[key] for row in rows for key in [*keys.values()][:2]):
        return None
    return Plot(
        title=title,
        note=note,
        x=scales.timeline(series[-1]["t"]),
        y=scales.latencies(values) if label is scales.latency else scales.linear(max(values), label),
        lines=[
            Line(name, [(row["t"], row[key]) for row in rows], style)
            for style, (name, key) in enumerate(keys.items(), 1)
        ],
        bands=bands,
        hints=[
            (
                row["t"],
                f"{scales.seconds(row['t'])} ({row['phase']})\n"
                + "\n".join(f"{name} {label(row[key])}" for name, key in keys.items()),
            )
            for row in rows
        ],
    )


def _compared(
    title: str,
    note: str,
    lines: Mapping[str, Sequence[tuple[float, float | None]]],
    label: Callable[[float | None], str],
) -> Plot | None:
    """One measure of several runs; None when there is none above 0."""
    values = [value for points in lines.values() for _, value in points if value]
    if not values:
        return None
    return Plot(
        title=title,
        note=note,
        x=scales.timeline(max(points[-1][0] for points in lines.values() if points)),
        y=scales.latencies(values) if label is scales.latency else scales.linear(max(values), label),
        lines=[Line(name, points, _style(number)) for number, (name, points) in enumerate(lines.items())],
    )


def _by_percentile(title: str, group: Mapping[str, Histogram]) -> Plot:
    """Latency against the share of values that it covers; each nine takes the same room, so the tail is seen."""
    x = scales.percentiles(max(histogram.count for histogram in group.values()))
    steps = [step / 20 for step in range(int(x.high * 20) + 1)]
    lines = []
    for number, (name, histogram) in enumerate(group.items()):
        end = max(math.log10(histogram.count), 0.0)
        places = [step for step in steps if step < end]
        values = histogram.quantiles(1 - 10.0**-place for place in places)
        # The largest value is the one of which the others are all but a count-th.
        points = [*zip(places, values, strict=True), (end, histogram.maximum)]
        lines.append(Line(f"{name} ({histogram.count:,})", points, _style(number)))
    shares = [
        0.0,
        0.25,
        0.5,
        0.75,
        *itertools.chain(*((1 - 10.0**-n, 1 - 10.0**-n / 2) for n in range(1, 12))),
    ]
    hints = []
    for share in shares:
        known = {n: h for n, h in group.items() if 1 / (1 - share) <= max(h.count, 2)}
        if known and scales.nines(share) <= x.high:
            values_ = "\n".join(f"{n} {scales.latency(h.quantile(share))}" for n, h in known.items())
            hints.append((scales.nines(share), f"{scales.percent(share)}\n{values_}"))
    return Plot(
        title=title,
        note="The share of all that were at least as quick. Each further nine takes the same room.",
        x=x,
        y=scales.latencies([value for line in lines for _, value in line.points if value]),
        lines=lines,
        hints=hints,
    )


def _style(number: int) -> int:
    return number % 6 + 1


def thinned(series: Sequence[Point]) -> list[Point]:
    """Return a series of at most 400 points.

    One that stands for many has their mean rates, their last state, their worst latencies and all of their errors.
    """
    every = math.ceil(len(series) / _POINTS)
    if every <= 1:
        return list(series)
    fewer = []
    for first in range(0, len(series), every):
        group = series[first : first + every]
        point: dict[str, Any] = {**group[-1]}
        for key in point:
            values: list[Any] = [one[key] for one in group if one[key] is not None]  # type: ignore[literal-required]
            if key in _PEAKS:
                point[key] = max(values, default=None)
            elif key.endswith("_s"):
                point[key] = sum(values) / len(values) if values else None
            elif key == "errors":
                point[key] = sum(values)
        fewer.append(point)
    return fewer  # type: ignore[return-value]
