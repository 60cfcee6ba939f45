"""The report for people: plain lines that need no colour, each with the style a terminal may give it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final, Literal

import attrs

from trionet.ops.doctor.facts import UNLIMITED
from trionet.ops.doctor.finding import Finding, Unit, size
from trionet.ops.doctor.fixes import steps
from trionet.ops.doctor.report import MOST, Report

__all__ = ["Line", "Style", "render"]

Style = Literal["", "title", "ok", "warn", "fail", "unknown", "quiet"]

KINDS: Final = {"events": "event methods", "straight": "one coroutine each", "task": "a task each"}
LABELS: Final = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "unknown": "?"}
INDENT: Final = 8
#: Columns of name, have and need; with the indent 79 of them.
NAME, NUMBER = 37, 16


@attrs.frozen
class Line:
    """A line, its style, and how many of its characters have that (None: all)."""

    text: str
    style: Style = ""
    styled: int | None = None


def render(report: Report, *, width: int = 80, verbose: bool = False) -> Iterator[Line]:
    """The whole report; `verbose` explains what is in order too. Lines to be pasted are never folded."""
    width = max(60, min(width, 100))
    yield from _summary(report, width)
    yield from _table(report, width, verbose)
    yield from _unknown(report, width)
    yield from _to_fix(report, width)


def _fold(text: str, width: int, indent: int = 0, first: str = "") -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=first or " " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(report: Report, width: int) -> Iterator[Line]:
    need, facts, plan = report.need, report.facts, report.need.plan
    wish = [KINDS[plan.handler]]
    wish += ["TLS"] if plan.tls else []
    wish += ["clients on this machine"] if plan.local_clients else []
    yield Line(f"trionet doctor: {plan.connections:,} connections ({', '.join(wish)})", "title")
    about = [f"{facts.system} {facts.release}", f"{facts.cpus} CPU{'s' * (facts.cpus != 1)}"]
    total, free = facts.memory.get("MemTotal"), facts.available()
    if total is not None and free is not None:
        about.append(f"{size(total)} of memory, {size(free)} to be had")
    about.append(f"{facts.python.implementation} {facts.python.version}")
    about += [f"in a container ({facts.container})"] if facts.container else []
    about.append("limits of this shell" if facts.pid is None else f"limits of process {facts.pid}")
    for line in _fold(", ".join(about), width):
        yield Line(line, "quiet")
    yield Line("")
    yield from _verdict(report, width)
    parts = (
        f"Memory for so many: {size(need.memory)} (kernel {size(need.kernel)}, connections {size(need.user)}, "
        f"{need.processes} processes {size(need.fixed)})."
    )
    yield from (Line(line) for line in _fold(parts, width))


def _verdict(report: Report, width: int) -> Iterator[Line]:
    plan, workers = report.need.plan, report.need.workers
    number = f"{plan.connections:,} connection{'s' * (plan.connections != 1)}"
    how = f"with {workers} worker{'s' * (workers != 1)} (trionet serve --workers {workers})"
    failed = [finding.name for finding in report.findings if finding.verdict == "fail"]
    if failed:
        first = next(
            (limit.name for limit in report.limits if limit.connections < plan.connections), failed[0]
        )
        yield from _styled(
            f"NO: this machine cannot hold {number} as it is. The first limit is {first}.", width, "fail"
        )
    elif report.unknown:
        yield from _styled(
            f"YES, as far as could be read: this machine can hold {number}, {how}.", width, "warn"
        )
    else:
        yield from _styled(f"YES: this machine can hold {number}, {how}.", width, "ok")
    if report.fits >= MOST:
        text = f"No limit was found below {MOST:,}."
    elif not report.limits[1:]:
        text = f"The most that fits now: {report.fits:,}, because of {report.limits[0].name}."
    else:
        others = ", ".join(f"{limit.name} at {limit.connections:,}" for limit in report.limits[1:4])
        text = f"The most that fits now: {report.fits:,}, because of {report.limits[0].name}; then come {others}."
    for line in _fold(text, width):
        yield Line(line)


def _styled(text: str, width: int, style: Style) -> Iterator[Line]:
    for number, line in enumerate(_fold(text, width)):
        yield Line(line, style, text.index(":") if number == 0 and ":" in line else 0)


def _table(report: Report, width: int, verbose: bool) -> Iterator[Line]:
    group = None
    for finding in report.findings:
        if finding.verdict == "unknown":
            continue
        if finding.group != group:
            group = finding.group
            yield Line("")
            head = f"{group:<{INDENT + NAME}}{'have':>{NUMBER}}{'need':>{NUMBER}}"
            yield Line(head, "title")
        have, need = shown(finding.have, finding.unit), shown(finding.need, finding.unit)
        row = f"  {LABELS[finding.verdict]:<{INDENT - 2}}{finding.name:<{NAME}}{have:>{NUMBER}} {need:>{NUMBER - 1}}"
        yield Line(row.rstrip(), finding.verdict, INDENT)
        if verbose or finding.verdict != "ok":
            for line in _fold(finding.why, width, INDENT):
                yield Line(line, "quiet" if finding.verdict == "ok" else "")


def _unknown(report: Report, width: int) -> Iterator[Line]:
    """What could not be read, by the reason."""
    reasons: dict[str, list[Finding]] = {}
    for finding in report.unknown:
        reasons.setdefault(finding.why, []).append(finding)
    if not reasons:
        return
    yield Line("")
    yield Line("Could not be read, so look yourself", "title")
    for reason, findings in reasons.items():
        names = ", ".join(
            finding.name
            + (f" (needs {shown(finding.need, finding.unit)})" if finding.need not in {None, "any"} else "")
            for finding in findings
        )
        lines = list(_fold(f"{names}: {reason}.", width, INDENT))
        yield Line(f"  {LABELS['unknown']:<{INDENT - 2}}{lines[0][INDENT:]}", "unknown", INDENT)
        yield from (Line(line) for line in lines[1:])


def _to_fix(report: Report, width: int) -> Iterator[Line]:
    todo = steps(report)
    if not todo:
        return
    yield Line("")
    yield Line("To fix" if not report.suffices else "To make it better", "title")
    for number, step in enumerate(todo, 1):
        if step.lines or (number > 1 and todo[number - 2].lines):
            yield Line("")
        for line in _fold(step.title, width, 3, f"{number}. "):
            yield Line(line)
        if step.lines:
            yield Line("")
        yield from (Line(line) for line in step.lines)


def shown(value: int | str | None, unit: Unit) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if value >= UNLIMITED:
        return "unlimited"
    if unit == "bytes":
        return size(value)
    return f"{value:,}{' pages' if unit == 'pages' else ''}"
