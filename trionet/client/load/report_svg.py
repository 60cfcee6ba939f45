"""Line plots as SVG, drawn by hand: what a `Plot` says, as markup that a page or a picture puts a frame around.

Colours, dashes and letter sizes are classes, for `report_style` to choose: light, dark, small screen, paper. Whatever
is written in a plot is escaped here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from html import escape

import attrs

from trionet.client.load.scales import Axis

__all__ = ["HEIGHT", "WIDTH", "Band", "Line", "Plot", "draw", "legend_mark"]

# Units of the drawing. A plot is shown between 0.6 and 1.1 pixels a unit, so the margins hold letters that are larger
# where the scale is small.
WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 22, 34


@attrs.frozen
class Line:
    """One line of a plot: points as (x, y), y None where nothing was measured; `style` 1 to 6 is colour and dash."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: int


@attrs.frozen
class Band:
    """A stretch of the x axis with a name, shaded when `dark`."""

    name: str
    begin: float
    end: float
    dark: bool


@attrs.frozen(kw_only=True)
class Plot:
    """What one plot shows.

    Attributes:
        title: What is seen, in a few words.
        note: How to read it, or its main figure; may be empty.
        x: The axis below.
        y: The axis at the left.
        lines: The lines, the first below the others.
        bands: Phases of the run.
        hints: (x, text) where a pointer shows a text: all lines' values at that place.
        filled: Whether the area under the first line is tinted.
    """

    title: str
    note: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    hints: Sequence[tuple[float, str]] = ()
    filled: bool = False


def draw(plot: Plot) -> str:
    """Return the plot as elements for an ``<svg>`` of WIDTH by HEIGHT."""

    def across(value: float) -> float:
        return _LEFT + plot.x.at(value) * (WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return HEIGHT - _BOTTOM - plot.y.at(value) * (HEIGHT - _TOP - _BOTTOM)

    parts = [*_bands(plot, across), *_grid(plot, across, down)]
    for order, line in enumerate(plot.lines):
        runs = _runs(line, across, down)
        if plot.filled and order == 0:
            floor = HEIGHT - _BOTTOM
            parts += [
                f'<path class="area" d="M{run[0][0]:.1f},{floor}L{_path(run)}L{run[-1][0]:.1f},{floor}z"/>'
                for run in runs
                if len(run) > 1
            ]
        # A path of one point draws nothing; to the same place again it is a dot, by its round ends.
        track = "".join(f"M{_path(run if len(run) > 1 else run * 2)}" for run in runs)
        if track:
            parts.append(f'<path class="line s{line.style}" d="{track}"/>')
    return "".join([*parts, *_hints(plot, across)])


def _bands(plot: Plot, across: Callable[[float], float]) -> list[str]:
    """The phases, each with its name at the top where there is room for it."""
    parts = []
    for band in plot.bands:
        left, width = across(band.begin), across(band.end) - across(band.begin)
        if band.dark and width > 0:
            parts.append(
                f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{width:.1f}" '
                f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
            )
        if width > 9 * len(band.name):
            parts.append(
                f'<text class="phase" x="{left + width / 2:.1f}" y="{_TOP - 6}">{escape(band.name)}</text>'
            )
    return parts


def _grid(plot: Plot, across: Callable[[float], float], down: Callable[[float], float]) -> list[str]:
    """The ticks: a line through the plot at each of the y axis, a mark and a label at each of the x axis."""
    parts = []
    for value, label in plot.y.ticks:
        y = down(value)
        parts.append(
            f'<path class="grid" d="M{_LEFT},{y:.1f}H{WIDTH - _RIGHT}"/>'
            f'<text class="tick y" x="{_LEFT - 8}" y="{y:.1f}" dy="0.35em">{escape(label)}</text>'
        )
    for value, label in plot.x.ticks:
        x = across(value)
        # The last label must not stick out of the picture.
        edge = " end" if x > WIDTH - 44 else ""
        parts.append(
            f'<path class="mark" d="M{x:.1f},{HEIGHT - _BOTTOM}v5"/>'
            f'<text class="tick x{edge}" x="{WIDTH - 2 if edge else x:.1f}" y="{HEIGHT - _BOTTOM + 8}" dy="0.9em">'
            f"{escape(label)}</text>"
        )
    parts.append(f'<path class="axis" d="M{_LEFT},{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    return parts


def _runs(
    line: Line, across: Callable[[float], float], down: Callable[[float], float]
) -> list[list[tuple[float, float]]]:
    """The line's points in the drawing, cut where nothing was measured."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is not None:
            runs[-1].append((across(x), down(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(run: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f},{y:.1f}" for x, y in run)


def _hints(plot: Plot, across: Callable[[float], float]) -> list[str]:
    """Columns nobody sees until the pointer is over one, each as wide as half the way to its neighbours."""
    places = [across(x) for x, _ in plot.hints]
    edges = [_LEFT, *((one + two) / 2 for one, two in itertools.pairwise(places)), WIDTH - _RIGHT]
    return [
        f'<g class="hint"><rect x="{edges[number]:.1f}" y="{_TOP}" '
        f'width="{max(edges[number + 1] - edges[number], 0):.1f}" height="{HEIGHT - _TOP - _BOTTOM}"/>'
        f'<path d="M{places[number]:.1f},{_TOP}V{HEIGHT - _BOTTOM}"/><title>{escape(text)}</title></g>'
        for number, (_, text) in enumerate(plot.hints)
    ]


def legend_mark(style: int) -> str:
    """Return a short piece of a line, to stand beside its name."""
    return f'<svg class="key" viewBox="0 0 28 10" aria-hidden="true"><path class="line s{style}" d="M2,5H26"/></svg>'
