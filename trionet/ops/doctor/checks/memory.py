"""Memory: of the machine, of the control group, and how the kernel behaves when it gets short."""

from __future__ import annotations

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix, size
from trionet.ops.doctor.needs import HANDLERS, PROCESS, SOCKET, Need, roomy

__all__ = ["CHECKS"]


def machine(facts: Facts, need: Need) -> Finding:
    """MemAvailable against sockets, connections and processes."""
    name = "MemAvailable"
    have = facts.memory.get("MemAvailable")
    if have is None:
        return Finding(
            name=name,
            verdict="unknown",
            why="/proc/meminfo could not be read",
            need=need.memory,
            unit="bytes",
        )
    return _enough(name, have, need, "More memory, or another machine: more workers only cost more.")


def group(facts: Facts, need: Need) -> Finding | None:
    """memory.max of the control group, less what is used (cgroup v2: kernel memory of sockets counts)."""
    limit = facts.cgroup.memory_max
    if limit is None:
        if facts.cgroup.version is None:
            return None
        return Finding(name="memory limit of the cgroup", verdict="ok", why="There is none.", have="none")
    used = facts.cgroup.memory_used
    name = "memory limit of the cgroup"
    return _enough(
        name,
        max(0, limit - used),
        need,
        f"{facts.cgroup.memory_at}: {size(limit)}, {size(used)} of it used. Raise MemoryMax= of the "
        "service, or the limit of the container.",
        Fix(
            "hand",
            "memory",
            f"Raise the memory limit of the cgroup to {size(used + need.memory * 1.25)}.",
        ),
    )


def _enough(name: str, have: int, need: Need, advice: str, *fixes: Fix) -> Finding:
    plan = need.plan
    parts = (
        f"{size(need.kernel)} are the kernel's ({SOCKET:,} B a socket), {size(need.user)} the "
        f"connections' ({HANDLERS[plan.handler]:,} B "
        f"each{' and TLS' * plan.tls}{' and their clients' * plan.local_clients}), {size(need.fixed)} the "
        f"{need.processes} processes' ({PROCESS // 2**20} MiB each)."
    )
    if have >= need.memory * 1.25:
        return Finding(name=name, verdict="ok", why=parts, have=have, need=need.memory, unit="bytes")
    if have >= need.memory:
        return Finding(
            name=name,
            verdict="warn",
            why=f"It fits, but less than a fifth is left for messages on their way, the application and the rest. "
            f"{parts}",
            have=have,
            need=need.memory,
            unit="bytes",
        )
    return Finding(
        name=name,
        verdict="fail",
        why=f"{parts} {advice}",
        have=have,
        need=need.memory,
        unit="bytes",
        fixes=fixes,
    )


def buffers(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_mem: pages for what is queued in all sockets together (tcp(7))."""
    name = "net.ipv4.tcp_mem (max)"
    pressure, most = facts.number("net.ipv4.tcp_mem", 1), facts.number("net.ipv4.tcp_mem", 2)
    wanted = need.sockets
    if pressure is None or most is None:
        return Finding(
            name=name, verdict="unknown", why=facts.reason("net.ipv4.tcp_mem"), need=wanted, unit="pages"
        )
    page, total = facts.page_size, facts.memory.get("MemTotal")
    full = _pages(facts, 131_072, "net.ipv4.tcp_rmem") + _pages(facts, 16_384, "net.ipv4.tcp_wmem")
    why = (
        f"Idle sockets have nothing in it; one with a message on its way holds a page. With full buffers ({full} "
        f"pages, by default) {pressure // full:,} sockets reach pressure ({pressure:,}), where the kernel shrinks "
        "windows; at max it drops."
    )
    if total and most * page > total * 0.6:
        return Finding(
            name=name,
            verdict="warn",
            why=f"{size(most * page)} of buffers are allowed on a machine of {size(total)}: peers "
            f"that do not read can use up its memory before the kernel defends itself. {why}",
            have=most,
            need=wanted,
            unit="pages",
            fixes=(_tcp_mem(max(min(wanted, total // page // 2), total // page // 8)),),
        )
    if most >= wanted:
        return Finding(name=name, verdict="ok", why=why, have=most, need=wanted, unit="pages")
    half = total // page // 2 if total else wanted
    fixes = (_tcp_mem(min(roomy(wanted), half)),) if half > most * 1.1 else ()
    return Finding(
        name=name,
        verdict="warn",
        why=f"A message to all at once would not fit: a page each. {why}"
        + ("" if fixes else " More would be over half of the memory: spread such messages over time."),
        have=most,
        need=wanted,
        unit="pages",
        fixes=fixes,
    )


def _pages(facts: Facts, default: int, name: str) -> int:
    return -(-(facts.number(name, 1) or default) // facts.page_size)


def _tcp_mem(most: int) -> Fix:
    """The proportions are the kernel's own: pressure at two thirds, low at half."""
    return Fix("sysctl", "net.ipv4.tcp_mem", f"{most // 2} {most * 2 // 3} {most}")


def receive(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_rmem: least and first size of a receive buffer (tcp(7))."""
    return _buffer(facts, need, "net.ipv4.tcp_rmem", "4096 131072 6291456")


def send(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_wmem: the same of a send buffer."""
    return _buffer(facts, need, "net.ipv4.tcp_wmem", "4096 16384 4194304")


def _buffer(facts: Facts, need: Need, name: str, default: str) -> Finding:
    least, first = facts.number(name, 0), facts.number(name, 1)
    shown = f"{name} (min)"
    if least is None or first is None:
        return Finding(name=shown, verdict="unknown", why=facts.reason(name), need="16,384 at most")
    if least <= 16_384 and first <= 1_048_576:
        return Finding(
            name=shown,
            verdict="ok",
            why=f"A buffer takes memory only for what is in it. It starts at {first:,} B and grows with the traffic.",
            have=least,
            need="16,384 at most",
        )
    return Finding(
        name=shown,
        verdict="warn",
        why=f"Bigger is not faster: the kernel grows a buffer when the traffic asks for it. The least ({least:,} "
        f"B) is granted under memory pressure too: {size(need.sockets * least)} for all; the first size "
        f"({first:,} B) is what a peer that is not read from may fill.",
        have=least,
        need="16,384 at most",
        fixes=(Fix("sysctl", name, default),),
    )


def swap(facts: Facts, need: Need) -> Finding | None:
    """vm.swappiness, where there is swap."""
    name = "vm.swappiness"
    total = facts.memory.get("SwapTotal")
    have = facts.number(name)
    if total is None or have is None:
        return Finding(name=name, verdict="unknown", why="whether there is swap could not be read")
    if total == 0 or have <= 10:
        why = (
            "There is no swap." if total == 0 else "Idle connections stay in memory as long as there is any."
        )
        return Finding(
            name=name, verdict="ok", why=why, have="no swap" if total == 0 else have, need="10 at most"
        )
    return Finding(
        name=name,
        verdict="warn",
        why="Idle connections are what the kernel swaps out first; keepalive and every broadcast then wait for "
        "the disk.",
        have=have,
        need="10 at most",
        fixes=(Fix("sysctl", name, "10"),),
    )


def overcommit(facts: Facts, need: Need) -> Finding:
    """vm.overcommit_memory: 2 counts what is asked for, not what is used (proc_sys_vm(5))."""
    name = "vm.overcommit_memory"
    have = facts.number(name)
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need="0 or 1")
    if have != 2:
        return Finding(
            name=name, verdict="ok", why="Memory is counted when it is used.", have=have, need="0 or 1"
        )
    limit, promised = facts.memory.get("CommitLimit"), facts.memory.get("Committed_AS")
    wanted = (
        need.user + need.processes * 4 * PROCESS
    )  # address space of a forked worker, before it is touched
    if limit is None or promised is None or limit - promised < wanted:
        return Finding(
            name=name,
            verdict="fail",
            why="Strict accounting: forked workers are counted with all they could write to, and that is more than "
            "CommitLimit leaves. fork() or malloc() would fail with memory still free.",
            have=have,
            need="0 or 1",
            fixes=(Fix("sysctl", name, "0"),),
        )
    return Finding(
        name=name,
        verdict="ok",
        why="Strict accounting, and CommitLimit leaves enough.",
        have=have,
        need="0 or 1",
    )


CHECKS = (machine, group, buffers, receive, send, swap, overcommit)
