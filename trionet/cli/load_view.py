"""The live view of a load run on a terminal: what is open, how much goes through, how long it takes."""

from __future__ import annotations

from types import TracebackType

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trionet.cli import output
from trionet.client.load.chart import sparkline
from trionet.client.load.options import LoadOptions
from trionet.client.load.result import Point, Result
from trionet.client.load.text import duration_text

__all__ = ["LiveView"]

_WIDTH = 40  # columns of bar and sparklines


class LiveView:
    """A context manager; `show` renews it. What was shown last stays on the screen."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._errors = 0
        self._live = Live(
            Text(f"starting: {options.scenario} against {options.target}"),
            console=output.console(stderr=True),
            auto_refresh=False,
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, point: Point, result: Result) -> None:
        """A second is over."""
        self._errors += point["errors"]
        self._live.update(self.table(point, result), refresh=True)

    def table(self, point: Point, result: Result) -> Table:
        """What is shown: a line each, with the last seconds as a sparkline."""
        series = result["series"]
        total = self._options.connections
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="right", min_width=12)
        table.add_column(width=_WIDTH)
        table.add_column(style="dim")
        table.add_row(point["phase"], f"{point['t']:.0f} s", "", str(self._options.target))
        table.add_row(
            "open", f"{point['open']:,}", ProgressBar(total, point["open"], _WIDTH), f"of {total:,}"
        )

        def row(name: str, value: str, history: list[float | None], remark: str = "") -> None:
            table.add_row(name, value, Text(sparkline(history, _WIDTH), style="cyan"), remark)

        row("connects/s", f"{point['connects_s']:,.0f}", [p["connects_s"] for p in series])
        if self._options.scenario != "idle":
            row("received/s", f"{point['received_s']:,.0f}", [p["received_s"] for p in series])
        row(
            "p99",
            duration_text(point["p99"]),
            [p["p99"] for p in series],
            f"p50 {duration_text(point['p50'])}" if point["p50"] is not None else "",
        )
        style = "bold red" if self._errors else ""
        table.add_row("errors", Text(f"{self._errors:,}", style=style), "", _lag(point))
        return table


def _lag(point: Point) -> str:
    return f"the generator itself is late: {duration_text(point['lag'])}" if point["lag"] > 50_000 else ""
