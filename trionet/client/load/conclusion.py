"""From what the processes have said to the figures of a result. Pure."""

from __future__ import annotations

from typing import Any

import attrs

from trionet.client.load.meter import COUNTERS, HISTOGRAMS
from trionet.client.load.options import LoadOptions
from trionet.client.load.result import Result, summary
from trionet.client.load.verdict import judge, suspicions
from trionet.net.histogram import Histogram

__all__ = ["conclude", "given", "without_secrets"]


def conclude(
    result: Result,
    options: LoadOptions,
    results: dict[int, dict[str, Any]],
    ramped: dict[int, dict[str, Any]],
    busy: dict[int, list[float]],
    epoch: float,
) -> None:
    """Fill in `result`. By number of the process: what it said in the end, what it had connected at the end of the
    ramp, and its CPU use in each second of the measuring; `epoch`: where the seconds of the run count from.
    """  # noqa: D205 - the arguments need two lines
    said = [results[number] for number in sorted(results)]
    totals: Any = result["totals"]
    for name in COUNTERS:
        totals[name] = sum(each[name] for each in said)
    seen = max((point["open"] for point in result["series"]), default=0)
    totals["peak"] = max(seen, min(sum(each["peak"] for each in said), options.connections))
    merged = {name: Histogram() for name in HISTOGRAMS}
    for each in said:
        for name, document in each["histograms"].items():
            merged[name].merge(Histogram.from_json(document))
        for key in ("errors", "closed"):
            table: Any = result[key]
            for cause, count in each[key].items():
                table[cause] = table.get(cause, 0) + count
    result["histograms"] = {name: summary(h) for name, h in merged.items() if h.count}
    environment = result["environment"]
    environment["cpu_seconds"] = round(sum(each["cpu_total"] for each in said), 3)
    memories = [environment["pss_bytes"], *(each["pss"] for each in said)]
    known = [memory for memory in memories if memory is not None]
    environment["pss_bytes"] = sum(known) if len(known) == len(memories) else None
    _rates(result, options, said, ramped, epoch)
    warnings = result["warnings"]
    for cause, text in {c: t for each in said for c, t in each["examples"].items()}.items():
        warnings.append(f"{result['errors'].get(cause, 0)} connects failed: {cause} ({text})")
    warnings += suspicions(result, busy, merged["late"])
    if options.scenario == "fanout":
        _expect_deliveries(result)
    result["thresholds"] = judge(options, result)
    met = all(each["passed"] for each in result["thresholds"])
    if result["outcome"] == "passed" and not (met and totals["connected"]):
        result["outcome"] = "failed"


def _rates(
    result: Result,
    options: LoadOptions,
    said: list[dict[str, Any]],
    ramped: dict[int, dict[str, Any]],
    epoch: float,
) -> None:
    totals = result["totals"]
    ramp = next((phase for phase in result["phases"] if phase["name"] == "ramp"), None)
    connected = sum(each["connected"] for each in ramped.values())
    if ramp is not None and connected:
        # Up to the last one that was opened: others may have waited for a timeout after that.
        last = max(each["last_opened"] for each in ramped.values()) - epoch
        totals["connect_rate"] = round(connected / max(0.001, last - ramp["began"]), 1)
    storms = [p["ended"] - p["began"] for p in result["phases"] if p["name"].startswith("storm")]
    totals["reconnect_time"] = round(max(storms), 3) if storms else None
    windows = [each["window"] for each in said if "window" in each]
    if windows and options.scenario != "idle":
        totals["duration"] = round(max(w["seconds"] for w in windows), 3)
        totals["sent_rate"] = round(sum(w["sent"] / w["seconds"] for w in windows), 1)
        totals["received_rate"] = round(sum(w["received"] / w["seconds"] for w in windows), 1)


def _expect_deliveries(result: Result) -> None:
    """A server that broadcasts sends everything to everybody: what is missing is unanswered."""
    totals = result["totals"]
    if not totals["lost"]:
        expected = totals["sent"] * totals["peak"]
        totals["unanswered"] = max(0, expected - totals["received"])
        if totals["unanswered"]:
            result["warnings"].append(
                f"{totals['received']} deliveries of {expected}: does the server send each message to all?"
            )


def given(options: LoadOptions) -> dict[str, Any]:
    """Options that are not the default; headers without their values, which may be secrets."""
    found = {}
    for field in attrs.fields(LoadOptions):
        value = getattr(options, field.name)
        if field.name == "url" or value == field.default:
            continue
        if field.name == "header":
            value = [line.partition(":")[0] for line in value]
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def without_secrets(command: list[str], options: LoadOptions) -> list[str]:
    """The command without values of headers, and the URL without user, password and query."""
    headers = {line: line.partition(":")[0] + ": ***" for line in options.header}
    masked = []
    for word in command:
        name, equals, value = word.partition("=")
        if word == options.url:
            masked.append(str(options.target) + ("?***" if "?" in word else ""))
        elif equals and value in headers:
            masked.append(f"{name}={headers[value]}")
        else:
            masked.append(headers.get(word, word))
    return masked
