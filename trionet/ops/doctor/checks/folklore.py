"""Settings that guides recommend and that do harm. They never fail: they cost some clients, but set no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.needs import Need

__all__ = ["CHECKS"]


class Folklore(NamedTuple):
    """A setting that guides recommend: the value that does harm, why, and the value it should have."""

    name: str
    harmful: int
    why: str
    value: str


FOLKLORE: Final = (
    Folklore(
        "net.ipv4.tcp_tw_recycle",
        1,
        "It drops the SYNs of all but one client behind the same NAT. Linux 4.12 removed it for that.",
        "0",
    ),
    Folklore(
        "net.ipv4.tcp_timestamps",
        0,
        "Without timestamps connections made under SYN cookies lose window scaling and SACK, ports in TIME-WAIT "
        "cannot be taken again, and old duplicates of packets are not told apart. The 12 bytes saved are worth "
        "none of it.",
        "1",
    ),
    Folklore(
        "net.ipv4.tcp_abort_on_overflow",
        1,
        "A client that finds the accept queue full is reset and comes back at once, instead of repeating its SYN a "
        "second later: it turns a short storm into a long one.",
        "0",
    ),
    Folklore("net.ipv4.tcp_sack", 0, "One lost packet makes the sender repeat everything behind it.", "1"),
    Folklore("net.ipv4.tcp_window_scaling", 0, "No connection has more than 64 KiB on its way.", "1"),
)


def _check(row: Folklore) -> Callable[[Facts, Need], Finding | None]:
    def check(facts: Facts, need: Need) -> Finding | None:
        have = facts.number(row.name)
        value, path = facts.files.get(row.name, ("", ""))
        if have == row.harmful:
            return Finding(
                name=row.name,
                verdict="warn",
                why=row.why,
                have=have,
                need=row.value,
                fixes=(Fix("sysctl", row.name, row.value),),
            )
        if value == str(row.harmful):
            return Finding(
                name=row.name,
                verdict="warn",
                why=f"{path} sets it, though it is not in force now. {row.why}",
                have=f"in {path}",
                need=row.value,
                fixes=(Fix("hand", row.name, f"Remove {row.name} from {path}."),),
            )
        if have is None:
            return None
        return Finding(name=row.name, verdict="ok", why="As it should be.", have=have, need=row.value)

    check.__name__ = row.name
    return check


CHECKS = tuple(_check(row) for row in FOLKLORE)
