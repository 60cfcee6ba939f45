"""Processes, threads, mappings and processors."""

from __future__ import annotations

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.needs import PING, THREADS, Need, roomy

__all__ = ["CHECKS"]


def threads(facts: Facts, need: Need) -> Finding:
    """kernel.pid_max and kernel.threads-max: each thread has a number of its own (proc_sys_kernel(5))."""
    name = "kernel.pid_max"
    limits = [(facts.number(key), key) for key in ("kernel.pid_max", "kernel.threads-max")]
    known = [(have, key) for have, key in limits if have is not None]
    wanted = (facts.tasks or 0) + need.processes * THREADS
    if not known:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    have, name = min(known)
    why = f"{need.processes:,} processes of up to {THREADS} threads, and the {facts.tasks or 0:,} there are."
    if have >= wanted:
        return Finding(name=name, verdict="ok", why=why, have=have, need=wanted)
    return Finding(
        name=name,
        verdict="fail",
        why=f"{why} Beyond it fork() and new threads fail with EAGAIN.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, str(roomy(wanted))),),
    )


def group_threads(facts: Facts, need: Need) -> Finding | None:
    """pids.max of the control group; systemd sets it as TasksMax= (cgroup v2: the pids controller)."""
    limit = facts.cgroup.pids_max
    if limit is None:
        return None
    wanted = facts.cgroup.pids_used + need.processes * THREADS
    verdict = (
        "ok"
        if limit >= wanted
        else "warn"
        if limit >= facts.cgroup.pids_used + need.processes * 4
        else "fail"
    )
    return Finding(
        name="pids.max of the cgroup",
        verdict=verdict,  # type: ignore[arg-type]
        why=f"{need.processes:,} processes of up to {THREADS} threads ({THREADS - 1} of them for `trio.to_thread`)."
        + ("" if verdict == "ok" else " Beyond it fork() and new threads fail with EAGAIN."),
        have=limit,
        need=wanted,
        fixes=() if verdict == "ok" else (Fix("pids", "TasksMax", str(roomy(wanted))),),
    )


def user_threads(facts: Facts, need: Need) -> Finding | None:
    """RLIMIT_NPROC: threads of one user (setrlimit(2)); root is exempt."""
    if facts.nproc is None:
        return None
    wanted = need.processes * THREADS
    if facts.nproc >= wanted:
        why = "Threads that the user may have."
        return Finding(name="RLIMIT_NPROC", verdict="ok", why=why, have=facts.nproc, need=wanted)
    return Finding(
        name="RLIMIT_NPROC",
        verdict="warn" if facts.nproc >= need.processes * 4 else "fail",
        why="Threads that the user may have, in all programs. Beyond it fork() and new threads fail with EAGAIN.",
        have=facts.nproc,
        need=wanted,
        fixes=(
            Fix(
                "hand",
                "nproc",
                f"Raise RLIMIT_NPROC: LimitNPROC={roomy(wanted)} in the unit, or nproc in limits.conf.",
            ),
        ),
    )


def mappings(facts: Facts, need: Need) -> Finding:
    """vm.max_map_count: pieces of address space; CPython takes memory a MiB at a time (proc_sys_vm(5))."""
    name = "vm.max_map_count"
    have = facts.number(name)
    wanted = 2_000 + need.user // need.workers // 2**20
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    if have >= wanted:
        why = "Python takes memory a MiB at a time; connections are small."
        return Finding(name=name, verdict="ok", why=why, have=have, need=wanted)
    return Finding(
        name=name,
        verdict="fail",
        why="Python takes memory a MiB at a time, each may be a mapping of its own; beyond it comes MemoryError.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, str(roomy(max(wanted, 65_530)))),),
    )


def keepalive(facts: Facts, need: Need) -> Finding:
    """The processors against keepalive, which is all that idle connections do."""
    interval = need.plan.ping_interval
    have = facts.processors()
    shown = f"{have:g} CPU{'s' * (have != 1)}"
    if interval is None:
        return Finding(name="keepalive", verdict="ok", why="There is none.", have=shown, need="0 CPUs")
    share = need.plan.connections / interval * PING * need.side
    why = (
        f"{need.plan.connections / interval:,.0f} Pings a second at one in {interval:g} s; with its Pong each takes "
        f"{PING * 1e6:.0f} us{', and the client as much' * (need.side == 2)}."
    )
    if share <= 0.25 * have:
        return Finding(name="keepalive", verdict="ok", why=why, have=shown, need=f"{share:.1f} CPUs")
    better = max(interval, need.plan.connections * PING * need.side / (0.1 * have))
    return Finding(
        name="keepalive",
        verdict="warn" if share <= have else "fail",
        why=f"{why} {share / have:.0%} of the processors, with nobody saying a word. A longer interval must stay "
        "below the idle timeout of proxies in between.",
        have=shown,
        need=f"{share:.1f} CPUs",
        fixes=(
            Fix(
                "hand",
                "ping_interval",
                f"Ping less often: WebSocketProtocol(..., ping_interval={_interval(better)}).",
            ),
        ),
    )


def _interval(seconds: float) -> int:
    return -(-int(seconds + 1) // 10) * 10


def quota(facts: Facts, need: Need) -> Finding | None:
    """cpu.max of the control group: a group that has used up its share stands still until the next period."""
    have = facts.cgroup.cpus
    if have is None:
        return None
    return Finding(
        name="CPU quota of the cgroup",
        verdict="warn" if have < facts.cpus else "ok",
        why=f"Of {facts.cpus} processors. A group that has used it up stands still for the rest of each 100 ms: "
        "that is seen as latency. `--workers auto` counts processors, not quota.",
        have=f"{have:g} CPUs",
        need="no quota",
        fixes=(
            (Fix("hand", "quota", "Use CPU weights or a cpuset instead of a quota, where latency matters."),)
            if have < facts.cpus
            else ()
        ),
    )


def governor(facts: Facts, need: Need) -> Finding | None:
    """The frequency governor; "powersave" of intel_pstate and amd-pstate is a dynamic one (kernel: pm/intel_pstate)."""
    have = facts.governor
    if have is None:
        return None
    slow = have == "powersave" and not (facts.driver or "").startswith(
        ("intel_pstate", "amd-pstate", "amd_pstate")
    )
    return Finding(
        name="CPU governor",
        verdict="warn" if slow else "ok",
        why="It keeps the processors at their lowest frequency."
        if slow
        else f"Driver {facts.driver or 'unknown'}.",
        have=have,
        need="performance" if slow else "any",
        fixes=(
            Fix(
                "hand",
                "governor",
                "Let the processors run: cpupower frequency-set -g schedutil (or performance).",
            ),
        )
        if slow
        else (),
    )


CHECKS = (threads, group_threads, user_threads, mappings, keepalive, quota, governor)
