"""One result as one HTML page that needs nothing else: no script runs in it, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trionet.client.load import scales
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
from trionet.client.load.report_plots import LATENCIES, of_run, thinned
from trionet.client.load.result import PERCENTILES, HistogramDocument, Result, Threshold, outcome_word

__all__ = ["FAILURES", "page_of_run"]

#: What may have gone wrong, by its name in the totals.
FAILURES = {
    "failed": "connects failed",
    "lost": "connections lost",
    "wrong": "wrong answers",
    "unanswered": "unanswered",
    "missed": "could not be sent",
}


def page_of_run(result: Result) -> str:
    """Return the page of one run."""
    title = f"{result['scenario']}: {result['target']}"
    body = [
        header(f"Load: {title}", outcome_word(result)),
        f'<p class="soft">{text(when(result))}</p>',
        callout(result["warnings"]),
        _tiles(result),
        _thresholds(result["thresholds"]),
        plots(of_run(result)),
        _latencies(result),
        _trouble(result),
        environment(result),
        _seconds(result),
    ]
    return page(title, body, [result])


def _tiles(result: Result) -> str:
    """The figures that most people open the page for."""
    totals, latency = result["totals"], result["histograms"]
    tiles = [
        ("Connections", f"{totals['peak']:,}", f"most at a time; asked for {totals['connections']:,}", "")
    ]
    if totals["reconnect_time"] is not None:
        each = latency.get("reconnect")
        note = f"each: {_ladder(each, '50', '99')}" if each else "after the storm began"
        tiles.append(("Everyone in again after", scales.seconds(totals["reconnect_time"]), note, ""))
    if connect := latency.get("connect"):
        rate = totals["connect_rate"]
        value = f"{_rate(rate)}/s" if rate is not None else scales.latency(at(connect, "50"))
        tiles.append(("Connecting", value, _ladder(connect, "50", "99"), ""))
    if totals["received_rate"]:
        note = f"{totals['received']:,} in all; sent {_rate(totals['sent_rate'])}/s"
        tiles.append(("Messages received", f"{_rate(totals['received_rate'])}/s", note, ""))
    for name in ("message", "control", "delivery"):
        if document := latency.get(name):
            value = scales.latency(at(document, "99"))
            tiles.append((f"{LATENCIES[name]}, p99", value, _ladder(document, "50", "99.9"), ""))
    wrong = totals["failed"] + totals["lost"] + totals["wrong"] + totals["unanswered"] + totals["missed"]
    parts = [f"{totals[key]:,} {words}" for key, words in FAILURES.items() if totals[key]]  # type: ignore[literal-required]
    tiles.append(
        (
            "Failures",
            f"{wrong:,}",
            ", ".join(parts) or "all connected, all answered",
            "bad" if wrong else "good",
        )
    )
    return '<div class="tiles">{}</div>'.format(
        "".join(
            f'<div class="tile"><span>{text(name)}</span><b class="{tone}">{text(value)}</b>'
            f"<span>{text(note)}</span></div>"
            for name, value, note, tone in tiles
        )
    )


def _rate(value: float | None) -> str:
    """As many digits as a tile has room for."""
    return scales.short(value) if value is not None and value >= 1e6 else scales.number(value)


def _ladder(document: HistogramDocument, *percentiles: str) -> str:
    values = {name: at(document, name) for name in percentiles}
    parts = [f"p{name} {scales.latency(value)}" for name, value in values.items() if value is not None]
    return f"{', '.join(parts)}, max {scales.latency(document['maximum'])}"


def _thresholds(thresholds: Sequence[Threshold]) -> str:
    if not thresholds:
        return ""
    rows = []
    for threshold in thresholds:
        mark = Markup(_HELD if threshold["passed"] else _NOT_HELD)
        value, limit = (_measure(threshold[key], threshold["unit"]) for key in ("value", "limit"))
        rows.append([threshold["name"], value, limit, mark])
    return "<h2>Thresholds</h2>" + table(["Threshold", "Measured", "Limit", ""], rows)


_HELD = '<b class="good">✓ held</b>'
_NOT_HELD = '<b class="bad">✗ not held</b>'


def _measure(value: float | None, unit: str) -> str:
    if unit == "us":
        return scales.latency(value)
    return scales.number(value) + ("/s" if unit == "1/s" and value is not None else "")


def _latencies(result: Result) -> str:
    known = {name: document for name, document in result["histograms"].items() if document["count"]}
    if not known:
        return ""
    rows = []
    for name in sorted(known, key=[*LATENCIES, *known].index):
        document = known[name]
        cells = [
            document["minimum"],
            document["mean"],
            *(at(document, p) for p in PERCENTILES),
            document["maximum"],
        ]
        rows.append([LATENCIES.get(name, name), f"{document['count']:,}", *map(scales.latency, cells)])
    head = ["", "Count", "Min", "Mean", *(f"{name} %" for name in PERCENTILES), "Max"]
    return f"<h2>Latencies</h2>{table(head, rows)}"


def _trouble(result: Result) -> str:
    """What failed, by cause, each with a bar of its share."""
    parts = [
        f"<div><h2>{title}</h2>{_counts(counts)}</div>"
        for title, counts in (
            ("Connects that failed", result["errors"]),
            ("Connections lost", result["closed"]),
        )
        if counts
    ]
    return f'<div class="pair">{"".join(parts)}</div>' if parts else ""


def _counts(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0) or 1
    rows = [
        f'<tr><td class="cause">{text(cause)}</td><td>{count:,}</td>'
        f'<td class="bar"><i style="width:{100 * count / most:.1f}%"></i></td></tr>'
        for cause, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _seconds(result: Result) -> str:
    """The series as a table, for those whom the plots do not reach."""
    head = ["Time", "Phase", "Open", "Connects/s", "Sent/s", "Received/s", "p50", "p99", "Errors", "Lag"]
    rows = [
        [
            scales.seconds(p["t"]),
            p["phase"],
            f"{p['open']:,}",
            *(scales.number(p[key]) for key in ("connects_s", "sent_s", "received_s")),
            scales.latency(p["p50"]),
            scales.latency(p["p99"]),
            f"{p['errors']:,}",
            scales.latency(p["lag"]),
        ]
        for p in thinned(result["series"])
    ]
    return f"<details><summary>Second by second</summary>{table(head, rows)}</details>" if rows else ""
