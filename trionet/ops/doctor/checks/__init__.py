"""The checks: pure functions of facts and need that give one finding, or None where there is nothing to look at.

A new check is a function in one of these modules and its name in `GROUPS`. A check that fails must go on failing with
more connections: `report.greatest` searches by halving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trionet.ops.doctor.checks import descriptors, folklore, machine, memory, network, python
from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding
from trionet.ops.doctor.needs import Need

__all__ = ["GROUPS", "Check"]

Check = Callable[[Facts, Need], Finding | None]

GROUPS: Final[dict[str, tuple[Check, ...]]] = {
    "Open files": descriptors.CHECKS,
    "Memory": memory.CHECKS,
    "Network": network.CHECKS,
    "Folklore: settings that do harm": folklore.CHECKS,
    "Processes and processors": machine.CHECKS,
    "Python": python.CHECKS,
}
