"""Network: queues of new connections, connection tracking, ports, and what becomes of closed connections."""

from __future__ import annotations

from typing import Final

from trionet.ops.doctor.facts import Facts
from trionet.ops.doctor.finding import Finding, Fix
from trionet.ops.doctor.needs import Need, roomy

__all__ = ["CHECKS"]

#: New connections a worker takes in a second, and so a queue that empties before a refused client tries again: the SYN
#: is repeated after one second (RFC 6298, 2.1). Measured 11,000 handshakes a second on a core.
A_SECOND: Final = 10_000


def accept_queue(facts: Facts, need: Need) -> Finding:
    """net.core.somaxconn: the longest queue of connections that wait for accept (listen(2))."""
    name = "net.core.somaxconn"
    have = facts.number(name)
    wanted = min(A_SECOND, need.busiest)
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    if have > 65_535:
        return Finding(
            name=name,
            verdict="warn",
            why=f"A queue of {have:,} takes {have / A_SECOND:.0f} s to accept; clients at its end have given up by "
            "then, and each entry holds the memory of a socket.",
            have=have,
            need=wanted,
            fixes=(Fix("sysctl", name, "16384"),),
        )
    if have >= wanted:
        return Finding(
            name=name,
            verdict="ok",
            why="The queue holds what a worker takes in a second.",
            have=have,
            need=wanted,
        )
    return Finding(
        name=name,
        verdict="warn",
        why="When all come back at once, whoever finds the queue of its worker full repeats its SYN after 1, 3, 7 "
        "s. This much holds what a worker takes in a second.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, str(max(4096, 16384 if wanted > 4096 else 0))),),
    )


def syn_cookies(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_syncookies: what happens when the queue of half-open handshakes is full (tcp(7))."""
    name = "net.ipv4.tcp_syncookies"
    have = facts.number(name)
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=1)
    if have == 1:
        return Finding(
            name=name, verdict="ok", why="A storm or a flood of SYNs is answered by cookies.", have=1, need=1
        )
    why = (
        "Without them a flood of SYNs, or everybody coming back at once, keeps new clients out."
        if have == 0
        else "2 is for tests: every connection gets a cookie, and loses the options that do not fit into it."
    )
    return Finding(name=name, verdict="warn", why=why, have=have, need=1, fixes=(Fix("sysctl", name, "1"),))


def syn_backlog(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_max_syn_backlog: half-open handshakes of a listener; counts only without SYN cookies (tcp(7))."""
    name = "net.ipv4.tcp_max_syn_backlog"
    have, cookies = facts.number(name), facts.number("net.ipv4.tcp_syncookies")
    # The kernel keeps a quarter of it for peers it knows.
    wanted = min(A_SECOND, need.busiest) * 4 // 3
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    if cookies or have >= wanted:
        why = (
            "With SYN cookies on, the listener's backlog is the limit, not this."
            if cookies
            else "It suffices."
        )
        return Finding(name=name, verdict="ok", why=why, have=have, need="any" if cookies else wanted)
    return Finding(
        name=name,
        verdict="warn",
        why="SYN cookies are off: beyond three quarters of it the SYNs of strangers are dropped.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, "16384"),),
    )


def tracking(facts: Facts, need: Need) -> Finding:
    """net.netfilter.nf_conntrack_max, where the module is loaded (kernel: networking/nf_conntrack-sysctl)."""
    name = "net.netfilter.nf_conntrack_max"
    have, used = facts.number(name), facts.number("net.netfilter.nf_conntrack_count") or 0
    if have is None and name not in facts.refused and "net.core.somaxconn" in facts.sysctls:
        return Finding(
            name=name, verdict="ok", why="Connection tracking is not loaded.", have="not loaded", need="any"
        )
    # A connection is one entry in a network namespace, over loopback too.
    wanted = used + need.plan.connections
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    fixes = (
        Fix("sysctl", name, str(roomy(wanted + need.plan.connections))),
        Fix(
            "hand",
            "conntrack",
            "That nf_conntrack_max survives a restart takes the module to be loaded before the settings: "
            "echo nf_conntrack > /etc/modules-load.d/nf_conntrack.conf",
        ),
        Fix(
            "hand",
            "notrack",
            f"Better than a bigger table: do not track port {need.plan.port} at all (nftables, `notrack`).",
        ),
    )
    why = (
        "Each connection is an entry, for two minutes after its end too. When the table is full, packets of "
        "new ones are dropped"
    )
    if have >= wanted + need.plan.connections:
        return Finding(name=name, verdict="ok", why=why + ".", have=have, need=wanted)
    if have >= wanted:
        return Finding(
            name=name,
            verdict="warn",
            why=f"{why}: if everybody drops out and comes back, it needs {wanted + need.plan.connections:,}.",
            have=have,
            need=wanted,
            fixes=fixes,
        )
    if used == 0:
        return Finding(
            name=name,
            verdict="warn",
            why="The module is loaded but tracks nothing (0 entries), so this is no limit now. It becomes one with "
            f"the first firewall rule that asks for a connection's state, or NAT. {why}.",
            have=have,
            need=wanted,
            fixes=fixes,
        )
    return Finding(
        name=name,
        verdict="fail",
        why=f"{why}: clients see timeouts, dmesg says 'table full'.",
        have=have,
        need=wanted,
        fixes=fixes,
    )


def local_ports(facts: Facts, need: Need) -> Finding:
    """net.ipv4.ip_local_port_range: ports of those who connect from here: clients, and a proxy in front (ip(7))."""
    name = "net.ipv4.ip_local_port_range"
    ports = _local_ports(facts)
    if ports is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name))
    usable = max(1, len(ports) - len(_reserved(facts) & set(ports)))
    if not need.plan.local_clients:
        return Finding(
            name=name,
            verdict="ok",
            why=f"No matter to a server. A client, or a proxy on this machine, has {usable:,} connections to one "
            "address and port: a proxy with more needs several (or a Unix socket).",
            have=f"{usable:,} ports",
            need="any",
        )
    sources = -(-need.plan.connections // usable)
    return Finding(
        name=name,
        verdict="ok",
        why=f"So many to one address and port from each source address: clients here take {sources:,} of "
        "127.0.0.0/8.",
        have=f"{usable:,} ports",
        need=f"{sources:,} sources",
    )


def own_port(facts: Facts, need: Need) -> Finding | None:
    """net.ipv4.ip_local_reserved_ports: keeps the listening port out of the hands of local clients."""
    name = "net.ipv4.ip_local_reserved_ports"
    port, ports, held = need.plan.port, _local_ports(facts), _reserved(facts)
    if ports is None or port == 0:
        return None
    if port not in ports or port in held:
        why = f"Port {port} is " + (
            "reserved." if port in held else "outside of the range that clients take."
        )
        return Finding(name=name, verdict="ok", why=why, have=facts.sysctls.get(name) or "none", need="any")
    # Writing replaces the list, so what is in it comes along.
    listed = ",".join(filter(None, [facts.sysctls.get(name, ""), str(port)]))
    return Finding(
        name=name,
        verdict="warn",
        why=f"Port {port} is one of those the kernel hands to clients on this machine. While the server is down "
        "one may get it, and the server cannot bind (EADDRINUSE); or a client that tries again connects to itself.",
        have=facts.sysctls.get(name) or "none",
        need=port,
        fixes=(Fix("sysctl", name, listed),),
    )


def _local_ports(facts: Facts) -> range | None:
    name = "net.ipv4.ip_local_port_range"
    first, last = facts.number(name, 0), facts.number(name, 1)
    return None if first is None or last is None else range(first, last + 1)


def _reserved(facts: Facts) -> set[int]:
    found: set[int] = set()
    for part in facts.sysctls.get("net.ipv4.ip_local_reserved_ports", "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def migration(facts: Facts, need: Need) -> Finding | None:
    """net.ipv4.tcp_migrate_req: what becomes of a closed SO_REUSEPORT listener's queue (Linux 5.14)."""
    name = "net.ipv4.tcp_migrate_req"
    have = facts.number(name)
    if need.workers < 2:
        return None
    if have is None:
        return Finding(
            name=name, verdict="unknown", why=f"{facts.reason(name)} (Linux 5.14 brought it)", need=1
        )
    if have:
        return Finding(
            name=name, verdict="ok", why="A closed queue moves to the other workers.", have=have, need=1
        )
    return Finding(
        name=name,
        verdict="warn",
        why="A worker that crashes or restarts leaves its queue to its successor. But when fewer workers come "
        "back, or a second server beside this one ends, what waits in the closed queue is reset (measured: 210 of "
        "400; 0 with 1).",
        have=have,
        need=1,
        fixes=(Fix("sysctl", name, "1"),),
    )


def orphans(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_max_orphans: connections that are closed here and not yet at the peer (tcp(7))."""
    name = "net.ipv4.tcp_max_orphans"
    have = facts.number(name)
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=need.busiest)
    if have >= need.busiest:
        return Finding(
            name=name,
            verdict="ok",
            why="It holds all connections of a worker that dies.",
            have=have,
            need=need.busiest,
        )
    return Finding(
        name=name,
        verdict="warn",
        why="When a worker dies, all its connections end at once and are orphans until the peer has answered. "
        "Those beyond are reset, and dmesg fills with warnings.",
        have=have,
        need=need.busiest,
        fixes=(Fix("sysctl", name, str(roomy(need.busiest))),),
    )


def time_wait(facts: Facts, need: Need) -> Finding:
    """net.ipv4.tcp_tw_reuse: whether a client may take a port again that waits out its minute (kernel: ip-sysctl)."""
    name = "net.ipv4.tcp_tw_reuse"
    have = facts.number(name)
    wanted = "1 or 2" if need.plan.local_clients else "any"
    if have is None:
        return Finding(name=name, verdict="unknown", why=facts.reason(name), need=wanted)
    if have or not need.plan.local_clients:
        why = "Of use to those who connect, never to a server."
        return Finding(name=name, verdict="ok", why=why, have=have, need=wanted)
    return Finding(
        name=name,
        verdict="warn",
        why="Clients on this machine that reconnect run out of ports while the old ones wait a minute. 2 is for "
        "loopback.",
        have=have,
        need=wanted,
        fixes=(Fix("sysctl", name, "2"),),
    )


CHECKS = (
    accept_queue,
    syn_cookies,
    syn_backlog,
    tracking,
    local_ports,
    own_port,
    migration,
    orphans,
    time_wait,
)
