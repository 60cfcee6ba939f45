"""The admission policies there are, and how settings name them. What a policy is: `trionet.net.policy`."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Iterable
from typing import Any, Final

from trionet.errors import ConfigurationError
from trionet.net.load import Load
from trionet.net.policy import Action, AdmissionPolicy, positive
from trionet.net.thresholds import LoopLag, MemoryLimit, PoolWait

__all__ = [
    "Action",
    "AddressLimit",
    "AdmissionPolicy",
    "ConnectionLimit",
    "HandshakeRate",
    "LoopLag",
    "MemoryLimit",
    "PoolWait",
    "from_limits",
]


class ConnectionLimit(AdmissionPolicy):
    """At most `limit` connections. Unlike ``max_connections``, those beyond need not wait: with an `action`."""

    name = "connection_limit"

    def __init__(
        self, limit: int, *, name: str | None = None, action: Action = "wait", retry_after: float = 5.0
    ) -> None:
        super().__init__(name=name, action=action, retry_after=retry_after)
        self.limit: int = positive(limit, "limit")

    def room(self, load: Load) -> int:
        return max(0, self.limit - load.connections)

    def explain(self, load: Load) -> str:
        return f"{load.connections} connections of {self.limit}"


class HandshakeRate(AdmissionPolicy):
    """At most `rate` new connections in a second, and `burst` at once (a token bucket; None: a second's worth)."""

    name = "handshake_rate"

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        *,
        name: str | None = None,
        action: Action = "wait",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(name=name, action=action, retry_after=retry_after)
        self.rate = positive(rate, "rate")
        self.burst = positive(max(1.0, rate) if burst is None else burst, "burst", least=1)
        self._tokens = self.burst
        self._filled = -math.inf

    def room(self, load: Load) -> int:
        if load.now > self._filled:
            self._tokens = min(self.burst, self._tokens + (load.now - self._filled) * self.rate)
            self._filled = load.now
        return int(self._tokens)

    def accepted(self, count: int) -> None:
        self._tokens -= count

    def explain(self, load: Load) -> str:  # noqa: ARG002
        return f"more than {self.rate:g} new connections a second"


class AddressLimit(AdmissionPolicy):
    """At most `limit` connections from one IP address; for IPv6 from one /64, which is what one customer has.

    `prefix4` and `prefix6`: bits of an address that count. `exempt`: addresses and networks that may have any number,
    such as those of a proxy in front, from which all connections come. (With `ProxyProtocol` that is not needed: there
    the client's own address counts.) Unix sockets are not counted. Counts are exact; an address without connections is
    forgotten. Costs 40 bytes for each connection, and some 100 for each address.
    """

    name = "address"
    per_connection = True

    def __init__(
        self,
        limit: int,
        *,
        exempt: Iterable[str] = (),
        prefix4: int = 32,
        prefix6: int = 64,
        name: str | None = None,
        action: Action = "reset",
        retry_after: float = 5.0,
    ) -> None:
        super().__init__(name=name, action=action, retry_after=retry_after)
        self.limit = positive(limit, "limit")
        if not (0 < prefix4 <= 32 and 0 < prefix6 <= 128):
            raise ConfigurationError(f"prefix4 is 1 to 32 and prefix6 1 to 128, not {prefix4} and {prefix6}")
        if isinstance(exempt, str):
            raise ConfigurationError(f"exempt must be a list, not the string {exempt!r}")
        try:
            self._exempt = tuple(_network(network) for network in exempt)
        except ValueError as error:
            raise ConfigurationError(f"not an address or network to exempt: {error}") from error
        self._shift4, self._shift6 = 32 - prefix4, 128 - prefix6
        self.counts: dict[int, int] = {}

    def admit(self, peer: Any) -> int | None:
        """Count it. Returns what its address counts as, 0 for none."""
        if not isinstance(peer, tuple):
            return 0
        key = self._key(peer[0])
        count = self.counts.get(key, 0)
        if count >= self.limit and key and not self._is_exempt(peer[0]):
            return None
        if key:
            self.counts[key] = count + 1
        return key

    def left(self, admitted: Any) -> None:
        if admitted:
            count = self.counts[admitted] - 1
            if count:
                self.counts[admitted] = count
            else:
                del self.counts[admitted]

    def explain(self, load: Load) -> str:  # noqa: ARG002
        return f"more than {self.limit} connections from one address"

    def _key(self, host: str) -> int:
        """The bits that count, below a 1 that tells the family; 0 for what is no address."""
        try:
            if ":" not in host:
                return int.from_bytes(socket.inet_aton(host), "big") >> self._shift4 | 1 << 32
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, TypeError):  # AF_VSOCK has numbers
            return 0
        if packed.startswith(_MAPPED):
            return int.from_bytes(packed[12:], "big") >> self._shift4 | 1 << 32
        return int.from_bytes(packed, "big") >> self._shift6 | 1 << 128

    def _is_exempt(self, host: str) -> bool:
        if not self._exempt:  # asked only of those who are many already
            return False
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._exempt)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return ipaddress.ip_network((mapped, network.prefixlen - 96)) if mapped is not None else network


_MAPPED: Final = b"\0" * 10 + b"\xff\xff"  # RFC 4291, 2.5.5.2: an IPv4 peer of a listener for both families


def from_limits(
    *,
    max_connections_per_address: int | None = None,
    max_handshakes_per_second: float | None = None,
    max_loop_lag: float | None = None,
    max_pool_wait: float | None = None,
    max_memory: float | None = None,
    overload_action: Action = "wait",
    retry_after: float = 5.0,
    exempt: Iterable[str] = (),
) -> list[AdmissionPolicy]:
    """The policies for these limits, as settings name them; None is no limit. The list may be empty.

    `max_memory`: bytes of the process; up to 1, a part of its control group's limit. `overload_action` "wait" cannot
    be done for single addresses: those are reset. `exempt`: addresses of proxies in front (`AddressLimit`).
    """
    given: dict[str, Any] = {"action": overload_action, "retry_after": retry_after}
    policies: list[AdmissionPolicy] = []
    if max_memory is not None:
        policies.append(
            MemoryLimit(share=max_memory, **given)
            if max_memory <= 1
            else MemoryLimit(int(max_memory), **given)
        )
    if max_loop_lag is not None:
        policies.append(LoopLag(max_loop_lag, **given))
    if max_pool_wait is not None:
        policies.append(PoolWait(max_pool_wait, **given))
    if max_handshakes_per_second is not None:
        policies.append(HandshakeRate(max_handshakes_per_second, **given))
    if max_connections_per_address is not None:
        if overload_action == "wait":
            given["action"] = "reset"
        policies.append(AddressLimit(max_connections_per_address, exempt=exempt, **given))
    return policies
