"""Whether this machine can hold so many connections, what stops it first, and the lines that would change that.

    facts      what kernel, limits, cgroup and Python say: plain values, None where nothing could be read
    read       fetches them: the only module here that touches the machine (with `cgroups`)
    needs      what a plan (so many connections, of this kind) asks for, from measured costs
    finding    what one check says
    checks/    the checks, pure: facts and need in, one finding out
    report     all of them, the greatest number that fits, and what limits it
    fixes      the lines that would fix it, by the file they belong into
    text       the report for people

``trionet doctor`` is the command over it (`trionet.cli.doctor`).
"""

from __future__ import annotations

from trionet.ops.doctor.facts import Facts as Facts
from trionet.ops.doctor.finding import Finding as Finding
from trionet.ops.doctor.finding import Fix as Fix
from trionet.ops.doctor.needs import Plan as Plan
from trionet.ops.doctor.read import read_facts as read_facts
from trionet.ops.doctor.report import Report as Report
from trionet.ops.doctor.report import examine as examine

__all__ = ["Facts", "Finding", "Fix", "Plan", "Report", "examine", "read_facts"]
