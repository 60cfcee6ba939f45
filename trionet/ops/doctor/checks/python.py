"""The Python that serves, and the optional parts in C."""

from __future__ import annotations

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.needs import Need

__all__ = ["CHECKS"]


def build(facts: Facts, need: Need) -> Finding:
    """Debug, free-threaded or not optimized."""
    python = facts.python
    have = f"{python.implementation} {python.version}"
    if python.debug:
        why = "A debug build: several times slower, and objects are bigger than measured."
        return Finding(name="Python build", verdict="warn", why=why, have=f"{have} debug", need="release")
    if not python.gil:
        why = "Free threading: objects are bigger than measured, and a worker is one thread all the same."
        return Finding(
            name="Python build", verdict="warn", why=why, have=f"{have} free-threaded", need="release"
        )
    if python.optimized is False:
        why = "Built without --enable-optimizations: 10 to 30 % slower than the packages of distributions."
        return Finding(name="Python build", verdict="ok", why=why, have=have, need="any")
    return Finding(name="Python build", verdict="ok", why="A release build.", have=have, need="any")


def poller(facts: Facts, need: Need) -> Finding:
    """What watches the sockets."""
    have = facts.python.backend
    if have in {"epoll", "kqueue"}:
        return Finding(
            name="poller", verdict="ok", why="One system call for a batch of events.", have=have, need="any"
        )
    return Finding(
        name="poller",
        verdict="warn",
        why="A task for each connection, 2.6 KB and more: this Python has neither epoll nor kqueue.",
        have=have,
        need="epoll",
    )


def masking(facts: Facts, need: Need) -> Finding:
    """The masking routine in C."""
    if facts.python.mask_in_c:
        return Finding(
            name="masking", verdict="ok", why="websockets.speedups is there.", have="in C", need="any"
        )
    return Finding(
        name="masking",
        verdict="warn",
        why="Every message of a client is unmasked. In pure Python that takes as long as all the rest from 4 KiB on.",
        have="in Python",
        need="in C",
        fixes=(Fix("hand", "speed", "Unmask in C: pip install 'trionet[speed]'"),),
    )


def compression(facts: Facts, need: Need) -> Finding:
    """isal: only for those who compress large messages."""
    why = "Compresses messages from 2 KiB on faster than zlib, for those who do: pip install 'trionet[isal]'"
    return Finding(
        name="isal",
        verdict="ok",
        why=why,
        have="installed" if facts.python.isal else "not installed",
        need="any",
    )


CHECKS = (build, poller, masking, compression)
