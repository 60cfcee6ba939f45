"""A result, and a second of one, as plain text. Pure."""

from __future__ import annotations

from trionet.client.load.result import Point, Result, outcome_word

__all__ = ["duration_text", "point_line", "result_text"]

_LADDER = ("50", "90", "99", "99.9", "99.99")


def duration_text(us: float | None) -> str:
    """Microseconds in the unit that fits."""
    if us is None:
        return "-"
    for unit, size in (("us", 1), ("ms", 1000), ("s", 1_000_000)):
        value = us / size
        if value < 9.95:
            return f"{value:.0f} {unit}" if unit == "us" else f"{value:.1f} {unit}"
        if value < 999.5 or unit == "s":
            return f"{value:.0f} {unit}"
    raise AssertionError


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def point_line(point: Point, result: Result) -> str:
    """One line for one second."""
    words = [
        f"{point['t']:4.0f} s",
        f"{point['phase']:<8}",
        f"{_number(point['open']):>9}/{_number(result['totals']['connections'])} open",
        f"{_number(point['connects_s']):>7} connects/s",
    ]
    if point["received_s"] or point["sent_s"]:
        words.append(f"{_number(point['sent_s']):>8} sent/s {_number(point['received_s']):>8} received/s")
    if point["p99"] is not None:
        words.append(f"p50 {duration_text(point['p50'])}, p99 {duration_text(point['p99'])}")
    if point["errors"]:
        words.append(f"{_number(point['errors'])} errors")
    if point["lag"] > 50_000:
        words.append(f"(generator late by {duration_text(point['lag'])})")
    return "  ".join(words)


def result_text(result: Result) -> str:
    """What a person wants to know in the end."""
    totals, environment = result["totals"], result["environment"]
    lines = [f"{result['scenario']} against {result['target']}: {outcome_word(result)}", ""]
    lines.extend(
        f"  {phase['name']:<12} {phase['ended'] - phase['began']:8.2f} s" for phase in result["phases"]
    )
    lines += [
        "",
        f"  connections  {_number(totals['peak'])} open of {_number(totals['connections'])}, "
        f"{_number(totals['failed'])} failed, {_number(totals['lost'])} lost"
        + (f"; {_number(totals['connect_rate'])} connects/s" if totals["connect_rate"] else ""),
    ]
    if totals["reconnect_time"] is not None:
        lines.append(f"  storm        all in after {totals['reconnect_time']:.2f} s")
    if totals["sent"]:
        lines.append(
            "  messages     "
            + (
                f"{_number(totals['sent_rate'])} sent/s, {_number(totals['received_rate'])} received/s; "
                if totals["sent_rate"] is not None
                else ""
            )
            + f"{_number(totals['sent'])} sent, {_number(totals['received'])} received, "
            f"{_number(totals['unanswered'])} unanswered, {_number(totals['wrong'])} wrong"
            + (f", {_number(totals['missed'])} not sent" if totals["missed"] else "")
        )
    if result["histograms"]:
        lines += [
            "",
            "  latency   " + "".join(f"{'p' + name:>10}" for name in _LADDER) + "       max     count",
        ]
        for name, histogram in result["histograms"].items():
            ladder = "".join(f"{duration_text(histogram['percentiles'].get(p)):>10}" for p in _LADDER)
            lines.append(
                f"  {name:<10}{ladder}{duration_text(histogram['maximum']):>10}{_number(histogram['count']):>10}"
            )
    for title, table in (("errors", result["errors"]), ("closed", result["closed"])):
        if table:
            said = ", ".join(f"{cause} {_number(count)}" for cause, count in sorted(table.items()))
            lines += ["", f"  {title}: {said}"]
    memory = environment["pss_bytes"]
    lines += [
        "",
        f"  generator    {environment['processes']} process{'es' if environment['processes'] > 1 else ''}, "
        f"{environment['cpu_seconds']:.1f} s of CPU"
        + (f", {memory / 2**20:.0f} MiB" if memory is not None else ""),
    ]
    for threshold in result["thresholds"]:
        mark = "ok    " if threshold["passed"] else "FAILED"
        value, limit = (
            (duration_text(x) if threshold["unit"] == "us" else _number(x))
            for x in (threshold["value"], threshold["limit"])
        )
        lines.append(f"  {mark}  --{threshold['name']} {limit}: {value}")
    lines += [f"  warning: {text}" for text in result["warnings"]]
    return "\n".join(lines)
