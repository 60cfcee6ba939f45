"""IP addresses as peers and proxies write them, and lists of those that are trusted."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

from trionet.errors import ConfigurationError

__all__ = ["UNIX", "Address", "TrustList", "read_address"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

UNIX = "unix:"  # stands for a peer on a Unix socket, which has no address


def read_address(text: str) -> Address | None:
    """Return the address that `text` writes, without its zone; None when it writes none.

    An IPv4 address in IPv6's clothes (``::ffff:192.0.2.1``, RFC 4291, 2.5.5.2) is the IPv4 address: a listener for
    both families reports such peers.
    """
    # 39 characters and a zone; the bound also bounds the cache.
    return _read(text) if len(text) <= 64 else None


@functools.lru_cache(maxsize=64)  # the addresses of a few proxies are read over and over
def _read(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class TrustList:
    """Addresses (``"127.0.0.1"``), networks (``"10.0.0.0/8"``) and ``"unix:"``, any peer on a Unix socket."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, trusted: Iterable[str]) -> None:
        if isinstance(trusted, str):
            raise ConfigurationError(f"trusted addresses must be a list, not the string {trusted!r}")
        names = list(trusted)
        self._unix = UNIX in names
        try:
            self._networks = tuple(ipaddress.ip_network(name) for name in names if name != UNIX)
        except ValueError as error:
            raise ConfigurationError(f"not an address or network to trust: {error}") from error

    def __bool__(self) -> bool:
        """Whether anybody is trusted."""
        return self._unix or bool(self._networks)

    def __contains__(self, host: str | None) -> bool:
        """Whether `host`, an address or ``"unix:"``, is trusted; what is neither is not."""
        if host == UNIX:
            return self._unix
        address = read_address(host) if host else None
        return address is not None and any(address in network for network in self._networks)
