"""Open files: a connection is one, in its process, in the kernel's table, and in an epoll set."""

from __future__ import annotations

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.needs import Need, busiest, roomy, sensible_workers, workers_that_do

__all__ = ["CHECKS"]


def _grant(facts: Facts, descriptors: int) -> Fix:
    """A limit with room, but never above fs.nr_open: limits.conf would then lock out whoever logs in."""
    ceiling = facts.number("fs.nr_open")
    value = roomy(descriptors)
    return Fix(
        "nofile", "LimitNOFILE", str(min(value, ceiling) if ceiling and ceiling >= descriptors else value)
    )


def open_files(facts: Facts, need: Need) -> Finding:
    """RLIMIT_NOFILE against the fullest worker (setrlimit(2))."""
    name = "RLIMIT_NOFILE (hard)"
    if facts.nofile is None:
        return Finding(
            name=name, verdict="unknown", why="neither /proc nor getrlimit(2) told it", need=need.descriptors
        )
    soft, hard = facts.nofile
    enough = workers_that_do(facts, need.plan)
    alone = busiest(need.plan.connections, facts.cpus) + need.plan.reserve
    raiser = (
        ""
        if facts.may_raise
        else " Only who starts the server may raise it: systemd, the container runtime, root."
    )
    if hard < need.descriptors:
        fixes = [_grant(facts, need.descriptors)]
        instead = ""
        if enough is not None and enough <= sensible_workers(facts):
            instead = f" With --workers {enough} it would do as it is."
            fixes.append(Fix("instead", "nofile", f"--workers {enough}"))
        return Finding(
            name=name,
            verdict="fail",
            why=f"A connection is a descriptor: {need.busiest:,} in the fullest of {need.workers:,} "
            f"worker{'s' * (need.workers > 1)}, and {need.plan.reserve} for everything else.{instead}{raiser}",
            have=hard,
            need=need.descriptors,
            fixes=tuple(fixes),
        )
    if need.plan.workers is None and need.workers > facts.cpus:
        return Finding(
            name=name,
            verdict="warn",
            why=f"It suffices for --workers {need.workers}, more than the {facts.cpus} "
            f"processor{'s' * (facts.cpus > 1)} would need. That works, each worker costs some 28 MiB.{raiser}",
            have=hard,
            need=need.descriptors,
            fixes=(
                _grant(facts, alone),
                Fix("instead", "nofile", f"--workers {need.workers}"),
            ),
        )
    why = f"{need.busiest:,} connections in the fullest worker, and {need.plan.reserve} for everything else."
    if soft < need.descriptors:
        why += f" The soft limit is {soft:,}; trionet raises it to the hard one by itself."
    return Finding(name=name, verdict="ok", why=why, have=hard, need=need.descriptors)


def most_open_files(facts: Facts, need: Need) -> Finding:
    """fs.nr_open: the highest RLIMIT_NOFILE that anybody can set (proc_sys_fs(5))."""
    name = "fs.nr_open"
    have = facts.number(name)
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=need.descriptors)
    granted = facts.nofile is not None and facts.nofile[1] >= need.descriptors
    if have >= need.descriptors or granted:
        return Finding(
            name=name,
            verdict="ok",
            why="RLIMIT_NOFILE can be raised that far.",
            have=have,
            need=need.descriptors,
        )
    return Finding(
        name=name,
        verdict="fail",
        why="Nobody can raise RLIMIT_NOFILE above it, not even root: set it first. More workers need less.",
        have=have,
        need=need.descriptors,
        fixes=(Fix("sysctl", name, str(roomy(need.descriptors))),),
    )


def all_open_files(facts: Facts, need: Need) -> Finding:
    """fs.file-max: open files of the whole machine (proc_sys_fs(5))."""
    name = "fs.file-max"
    have, used = facts.number(name), facts.number("fs.file-nr") or 0
    wanted = used + need.sockets + need.processes * need.plan.reserve
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    why = f"All open files of the machine: {need.sockets:,} sockets"
    why += " (two a connection, as the clients are here too)" if need.side == 2 else ""
    why += f", {used:,} in use now, some for each process."
    if have >= wanted:
        return Finding(name=name, verdict="ok", why=why, have=have, need=wanted)
    return Finding(
        name=name,
        verdict="fail",
        why=why + " Beyond it accept() fails with ENFILE, for every program but those with CAP_SYS_ADMIN.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, str(roomy(wanted))),),
    )


def watches(facts: Facts, need: Need) -> Finding:
    """fs.epoll.max_user_watches: what one user may have in all epoll sets together (epoll(7))."""
    name = "fs.epoll.max_user_watches"
    have = facts.number(name)
    wanted = need.sockets + need.processes * need.plan.reserve
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    if have >= wanted:
        return Finding(
            name=name,
            verdict="ok",
            why="Each socket is watched once, counted per user.",
            have=have,
            need=wanted,
        )
    return Finding(
        name=name,
        verdict="fail",
        why="Each socket is watched once, and this counts per user. Beyond it epoll_ctl() fails with ENOSPC.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, str(roomy(wanted))),),
    )


CHECKS = (open_files, most_open_files, all_open_files, watches)
