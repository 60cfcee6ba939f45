"""The lines that would fix it, ready to be pasted, grouped by the place they belong into."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import attrs

from trionet.ops.doctor.facts import HOST_ONLY
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.report import Report

__all__ = ["LIMITS", "SYSCTL", "UNIT", "Step", "steps"]

#: The last names in their folders win; these sort behind what distributions bring.
SYSCTL = "/etc/sysctl.d/99-trionet.conf"
UNIT = "/etc/systemd/system/trionet.service.d/limits.conf"
LIMITS = "/etc/security/limits.d/99-trionet.conf"

Found = tuple[Finding, Fix]


@attrs.frozen(kw_only=True)
class Step:
    """Something to do: a sentence, and what to paste into a root shell (nothing, if it is to be done by hand)."""

    title: str
    lines: tuple[str, ...] = ()


def steps(report: Report) -> list[Step]:
    """What to do, in this order. Empty if all is well."""
    sysctls = list(_fixes(report, "sysctl"))
    limits = list(_fixes(report, "nofile", "pids"))
    own = [found for found in sysctls if _namespaced(report, found[1].key)]
    found: list[Step] = []
    if report.facts.container:
        shared = [found for found in sysctls if found not in own]
        found += _kernel(
            report, shared, "Settings of the host's kernel (on the host, not in the container), for good:"
        )
        found += _runtime(report, own, limits)
    else:
        found += _kernel(report, sysctls, "Settings of the kernel, now and after a restart:")
        found += _unit(report, limits)
        found += _login(limits)
    return found + [Step(title=fix.value) for _, fix in _fixes(report, "hand")]


def _fixes(report: Report, *kinds: str) -> Iterator[Found]:
    """The fixes of these kinds; what makes it fail comes first."""
    for verdict in ("fail", "warn"):
        for finding in report.findings:
            if finding.verdict == verdict:
                yield from ((finding, fix) for fix in finding.fixes if fix.kind in kinds)


def _namespaced(report: Report, key: str) -> bool:
    """Whether a container has a value of its own. One that shares the host's network has none (it sees HOST_ONLY)."""
    shared = any(name in report.facts.sysctls for name in HOST_ONLY)
    return key.startswith("net.") and "conntrack" not in key and key not in HOST_ONLY and not shared


def _kernel(report: Report, found: list[Found], title: str) -> Iterator[Step]:
    lines: list[str] = []
    heading = ""
    for finding, fix in found:
        wanted = "# needed" if finding.verdict == "fail" else "# better"
        if wanted != heading:
            heading = wanted
            lines.append(heading)
        _, path = report.facts.files.get(fix.key, ("", SYSCTL))
        if path > SYSCTL or path == "/etc/sysctl.conf":
            lines.append(f"# {path} sets it too, and may be read later: change it there")
        lines.append(f"{fix.key} = {fix.value}")
    if lines:
        yield Step(title=title, lines=(f"cat > {SYSCTL} <<'EOF'", *lines, "EOF", f"sysctl -p {SYSCTL}"))


def _otherwise(report: Report) -> str:
    instead = [fix.value for _, fix in _fixes(report, "instead") if fix.key == "nofile"]
    return f" Or leave the limit on open files as it is, and serve with {instead[0]}." if instead else ""


def _unit(report: Report, limits: list[Found]) -> Iterator[Step]:
    if not limits:
        return
    yield Step(
        title="Limits of the service from its next start on, where systemd starts it (here as trionet.service)."
        + _otherwise(report),
        lines=(
            f"mkdir -p {UNIT.rpartition('/')[0]}",
            f"cat > {UNIT} <<'EOF'",
            "[Service]",
            *(f"{fix.key}={fix.value}" for _, fix in limits),
            "EOF",
            "systemctl daemon-reload",
        ),
    )


def _login(limits: list[Found]) -> Iterator[Step]:
    for _, fix in limits:
        if fix.kind == "nofile":
            lines = (
                f"cat > {LIMITS} <<'EOF'",
                f"* - nofile {fix.value}",
                f"root - nofile {fix.value}",
                "EOF",
            )
            yield Step(title="The same limit for logins from now on (`*` does not cover root):", lines=lines)


def _runtime(report: Report, sysctls: list[Found], limits: list[Found]) -> Iterator[Step]:
    """Options of docker and podman; other runtimes have the same under other names."""
    options = [f"--sysctl {shlex.quote(f'{fix.key}={fix.value}')}" for _, fix in sysctls]
    options += [
        f"--ulimit nofile={fix.value}:{fix.value}" if fix.kind == "nofile" else f"--pids-limit {fix.value}"
        for _, fix in limits
    ]
    if options:
        yield Step(
            title=f"This is a container ({report.facts.container}): its limits are set where it is started, for "
            f"instance with these options of docker run.{_otherwise(report)}",
            lines=(*(f"  {option} \\" for option in options[:-1]), f"  {options[-1]}"),
        )
