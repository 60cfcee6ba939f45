"""From options to what each process does, and when. Pure: no clock, no socket, no process.

A descriptor is the first thing that runs out (RLIMIT_NOFILE of a process), a port the second: to one address and port
of a server, one source address gives as many connections as there are ephemeral ports (ip(7), ip_local_port_range).
Half of them come easily: Linux gives out every second one first, and when those are taken, each connect(2) searches
all of them in vain before it looks at the others (measured: 7,500 connects a second before, 550 after). All of
127.0.0.0/8 is this machine, so each process gets source addresses of its own there, and uses the quick half.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator, Sequence

import attrs

from trionet.client.load.options import LoadOptions
from trionet.errors import ConfigurationError

__all__ = ["Arrivals", "Machine", "Plan", "Share", "make_plan", "split_evenly"]

RESERVED = 64  # descriptors of a process that are not connections
EASY = 0.97 / 2  # of the ports: the quick half, without some that others use
_FIRST = int(ipaddress.IPv4Address("127.0.0.2"))


@attrs.frozen
class Machine:
    """What limits us here."""

    nofile: int  # descriptors of a process
    ports: int  # ephemeral ports of one source address
    cpus: tuple[int, ...]  # those we may use


@attrs.frozen
class Share:
    """What one process does. `first` is the number of its first connection; `sources` () leaves it to the kernel."""

    number: int
    first: int
    connections: int
    publishers: int
    control: int
    connect_rate: float | None
    rate: float
    sources: tuple[str, ...]
    cpu: int | None


@attrs.frozen
class Plan:
    """All shares, and how long the parts of the run ought to take, in seconds."""

    shares: tuple[Share, ...]
    ramp: float
    deadline: float


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` in whole `parts` that differ by 1 at most."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def make_plan(options: LoadOptions, machine: Machine, address: str | None) -> Plan:
    """Share the work out. `address`: the server's, resolved; None: a Unix socket.

    Raises `ConfigurationError` when descriptors or ports do not suffice.
    """
    per_process = machine.nofile - RESERVED
    if per_process < 1:
        raise ConfigurationError(f"RLIMIT_NOFILE is {machine.nofile}: too few descriptors for any connection")
    least = math.ceil(options.connections / per_process)
    count = options.processes or max(least, _wished(options, machine))
    if count < least:
        raise ConfigurationError(
            f"{options.connections} connections need {least} processes of {per_process} descriptors each "
            f"(RLIMIT_NOFILE {machine.nofile}), not {count}"
        )
    count = min(count, options.connections)
    sizes = split_evenly(options.connections, count)
    publishers = _shares_of(options.publishers if options.scenario == "fanout" else 0, sizes)
    control = _shares_of(options.control if options.scenario == "storm" else 0, sizes)
    sources = _sources(options, sizes, machine, address)
    shares = tuple(
        Share(
            number=i,
            first=sum(sizes[:i]),
            connections=sizes[i],
            publishers=publishers[i],
            control=control[i],
            connect_rate=options.connect_rate and options.connect_rate * sizes[i] / options.connections,
            rate=options.pace * _weight(options, sizes, publishers, i),
            sources=sources[i],
            cpu=options.cpu[i % len(options.cpu)] if options.cpu else None,
        )
        for i in range(count)
    )
    ramp = options.connections / options.connect_rate if options.connect_rate else 0.0
    storms = options.storms if options.scenario == "storm" else 1
    # A slow machine opens 500 connections a second, over all processes; each part has the time of one connect more.
    slack = options.connections / 500 + options.connect_timeout
    expected = ramp + options.settle + storms * (options.duration + slack) + 10 + count
    return Plan(shares, ramp, options.deadline or 2 * expected)


def _wished(options: LoadOptions, machine: Machine) -> int:
    """How many processes are good for the load: half of the machine, the other half is for the server."""
    if options.scenario == "idle":
        return 1
    return max(1, min(len(machine.cpus) // 2, options.connections // 50))


def _shares_of(total: int, sizes: Sequence[int]) -> list[int]:
    """Share out something that some of the connections do, no process more than it has connections."""
    shares = split_evenly(total, len(sizes))
    return [min(share, size) for share, size in zip(shares, sizes, strict=True)]


def _weight(options: LoadOptions, sizes: Sequence[int], publishers: Sequence[int], number: int) -> float:
    """Which part of the messages a process sends."""
    if options.scenario == "fanout":
        return publishers[number] / sum(publishers)
    return sizes[number] / options.connections


def _sources(
    options: LoadOptions, sizes: Sequence[int], machine: Machine, address: str | None
) -> list[tuple[str, ...]]:
    """Source addresses of each process."""
    if address is None:
        return [()] * len(sizes)
    easy = int(machine.ports * EASY)
    if options.source:
        if options.connections > machine.ports * len(options.source):
            raise ConfigurationError(
                f"{options.connections} connections need {math.ceil(options.connections / easy)} source "
                f"addresses of {easy} ports each, not {len(options.source)}"
            )
        if len(options.source) < len(sizes):
            return [options.source] * len(sizes)
        return [options.source[i :: len(sizes)] for i in range(len(sizes))]
    if options.connections <= easy:
        return [()] * len(sizes)  # the kernel chooses, as for any client
    ip = ipaddress.ip_address(address)
    if ip.version != 4 or not ip.is_loopback:
        if options.connections <= machine.ports:
            return [()] * len(sizes)
        raise ConfigurationError(
            f"{options.connections} connections to {address} need "
            f"{math.ceil(options.connections / easy)} source addresses of {easy} ports each: "
            "name addresses of this machine with --source"
        )
    fresh = _addresses(int(ip))
    return [tuple(next(fresh) for _ in range(max(1, math.ceil(size / easy)))) for size in sizes]


def _addresses(server: int) -> Iterator[str]:
    """127.0.0.2, 127.0.0.3, … without those of a network or a broadcast, and without the server's."""
    for number in range(_FIRST, int(ipaddress.IPv4Address("127.255.255.255"))):
        if number & 255 not in (0, 255) and number != server:
            yield str(ipaddress.IPv4Address(number))


@attrs.frozen
class Arrivals:
    """When things are due that come at a fixed rate: the i-th at ``start + (i + phase) / rate``.

    Latency counts from there, not from when the thing was really done: a server that stalls makes all that was due
    meanwhile late, and a generator that waited for it would not notice (the "coordinated omission").
    """

    start: float
    rate: float
    phase: float = (
        0.0  # between 0 and 1; different in each process, so that they do not send at the same time
    )

    def time(self, number: int) -> float:
        """When `number` is due."""
        return self.start + (number + self.phase) / self.rate

    def due(self, now: float) -> int:
        """How many are due at `now`."""
        return max(0, math.floor((now - self.start) * self.rate - self.phase) + 1)
