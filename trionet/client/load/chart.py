"""Line charts and sparklines in a terminal, of braille dots and blocks: plain text without colour.

They need a font with braille patterns (U+2800), which every terminal's fallback has, and a UTF-8 locale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trionet.client.load import scales
from trionet.client.load.result import Result

__all__ = ["charts", "lines", "sparkline"]

# The bits of a braille pattern by row and column of its eight dots (Unicode 15, section 21.1).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Return `values` as one line of blocks from 0 to their largest; blank where nothing was measured.

    Never wider than `width`: then the last so many values are shown, because a live line tells what happens now.
    """
    shown = values[-width:]
    top = max((value for value in shown if value), default=0) or 1
    return "".join(
        " " if value is None else _BLOCKS[round(max(value, 0) / top * (len(_BLOCKS) - 1))] for value in shown
    )


def lines(
    values: Sequence[float | None],
    *,
    end: float,
    width: int = 60,
    height: int = 8,
    label: Callable[[float], str] = scales.short,
) -> Iterator[str]:
    """Yield the lines of a chart of `values`, taken at even distances over `end` seconds.

    Where several values share a column of dots, it reaches from the smallest to the largest: no peak gets lost.

    Args:
        values: What to show, from 0 up; None leaves a gap.
        end: The time of the last value, for the axis below.
        width: Columns of the whole chart, labels included.
        height: Lines of the chart; two more are its axis.
        label: How to write a value beside its tick.
    """
    axis = scales.linear(
        max((value for value in values if value is not None), default=1), label, ticks=max(2, height // 2)
    )
    beside = {round((1 - axis.at(value)) * (height - 1)): text for value, text in axis.ticks}
    margin = max(map(len, beside.values()))
    columns = max(width - margin - 2, 8)
    grid = [[0] * columns for _ in range(height)]
    previous: list[int] = []
    for x in range(columns * 2):
        first = x * len(values) // (columns * 2)
        last = max(first + 1, (x + 1) * len(values) // (columns * 2))
        rows = [round((1 - axis.at(v)) * (height * 4 - 1)) for v in values[first:last] if v is not None]
        # From where the line was to where it goes, so that a steep one stays in one piece.
        if rows:
            top, bottom = min(rows + previous), max(rows + previous)
            for y in range(top, bottom + 1):
                grid[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        previous = rows[-1:]
    for row, cells in enumerate(grid):
        edge = "┤" if row in beside else "│"
        yield f"{beside.get(row, ''):>{margin}} {edge}{''.join(chr(0x2800 + cell) for cell in cells)}".rstrip(
            "\u2800"
        )
    yield f"{'':{margin}} └{'─' * columns}"
    begin, finish = scales.seconds(0), scales.seconds(end)
    yield f"{'':{margin}}  {begin}{finish:>{max(columns - len(begin), 1)}}"


def charts(result: Result, width: int = 78) -> Iterator[str]:
    """Yield the lines of what is worth a look in a result: connections, rate and latency over time, if they change."""
    series = result["series"]
    for title, values, label in (
        ("Connections open", [point["open"] for point in series], scales.short),
        ("Messages received per second", [point["received_s"] for point in series], scales.short),
        ("Latency, p99 of each second", [point["p99"] for point in series], scales.latency),
    ):
        if len(set(values)) > 2:  # one value is not worth ten lines, nor is a step
            yield title
            yield from lines(values, end=series[-1]["t"], width=width, label=label)
            yield ""
