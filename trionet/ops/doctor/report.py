"""All checks together: the verdict, the greatest number that fits, and what limits it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from trionet.ops.doctor.checks import GROUPS, Check
from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding
from trionet.ops.doctor.needs import Need, Plan, estimate

__all__ = ["MOST", "Limit", "Report", "examine"]

#: Nobody has held more on one machine; the search for a limit ends here.
MOST: Final = 100_000_000


@attrs.frozen
class Limit:
    """A check, and the greatest number of connections it allows as things are."""

    name: str
    connections: int


@attrs.frozen(kw_only=True)
class Report:
    """What the doctor found. `fits` is the greatest number that fits now, `MOST` where no limit was found below it."""

    facts: Facts
    need: Need
    findings: tuple[Finding, ...]
    fits: int
    limits: tuple[Limit, ...]  # the tightest first

    @property
    def suffices(self) -> bool:
        """Whether nothing that could be read stands against it."""
        return not any(finding.verdict == "fail" for finding in self.findings)

    @property
    def unknown(self) -> tuple[Finding, ...]:
        """What could not be read."""
        return tuple(finding for finding in self.findings if finding.verdict == "unknown")

    def to_json(self) -> dict[str, Any]:
        """One document for programs; numbers are numbers, memory is in bytes."""
        need = {
            name: value for name, value in attrs.asdict(self.need, recurse=False).items() if name != "plan"
        }
        facts = self.facts
        return {
            "suffices": self.suffices,
            "connections": self.need.plan.connections,
            "fits": self.fits if self.fits < MOST else None,
            "limits": [attrs.asdict(limit) for limit in self.limits],
            "unknown": [finding.name for finding in self.unknown],
            "plan": attrs.asdict(self.need.plan),
            "need": {**need, "memory": self.need.memory},
            "machine": {
                "system": facts.system,
                "release": facts.release,
                "cpus": facts.cpus,
                "memory": facts.memory.get("MemTotal"),
                "available": facts.available(),
                "container": facts.container,
                "python": facts.python.version,
                "pid": facts.pid,
            },
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(facts: Facts, plan: Plan) -> Report:
    """Hold the plan against the facts. Pure: no I/O, nothing is changed."""
    need = estimate(facts, plan)
    findings = []
    for group, check in _checks(facts):
        finding = check(facts, need)
        if finding is not None:
            findings.append(attrs.evolve(finding, group=group))
    if facts.system != "Linux":
        findings.append(
            Finding(
                name="limits of the kernel",
                verdict="unknown",
                why=f"this knows where Linux keeps them, not {facts.system}",
                group="Network",
            )
        )
    limits = []
    for _, check in _checks(facts):
        most = greatest(facts, plan, check)
        if most < MOST:
            finding = check(facts, estimate(facts, attrs.evolve(plan, connections=most + 1)))
            limits.append(Limit(finding.name if finding is not None else check.__name__, most))
    limits.sort(key=lambda limit: limit.connections)
    return Report(
        facts=facts,
        need=need,
        findings=tuple(findings),
        fits=limits[0].connections if limits else MOST,
        limits=tuple(limits),
    )


def greatest(facts: Facts, plan: Plan, check: Check) -> int:
    """The greatest number of connections for which the check does not fail, by halving; 0 if it always does."""

    def fails(connections: int) -> bool:
        finding = check(facts, estimate(facts, attrs.evolve(plan, connections=connections)))
        return finding is not None and finding.verdict == "fail"

    if not fails(MOST):  # as most checks
        return MOST
    low, high = 0, MOST - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fails(middle):
            high = middle - 1
        else:
            low = middle
    return low


def _checks(facts: Facts) -> Iterator[tuple[str, Check]]:
    """The checks with their group; away from Linux only those that need nothing of its kernel."""
    everywhere = {"open_files", "keepalive", "build", "poller", "masking", "compression"}
    for group, checks in GROUPS.items():
        for check in checks:
            if facts.system == "Linux" or check.__name__ in everywhere:
                yield group, check
