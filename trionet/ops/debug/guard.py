"""Who may ask. A debug page shows what peers said and closes connections, so it is for the machine's own people.

attack                                    what stops it
the address is open to the world          our side of the connection must be loopback or a Unix socket
DNS rebinding: a foreign name that        `Host` must be an IP address, localhost, or a name that was configured
resolves to 127.0.0.1
a foreign page that posts a form          a header that a form cannot set, and `Origin` must be our own
a foreign page that shows ours            frames are refused
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from trionet.errors import ConfigurationError
from trionet.protocols.responders import HttpRequest
from trionet.wire.http1 import refuse

__all__ = ["HEADER", "Guard", "is_private"]

#: What a POST must have: only a page of ours, or a program, can send it. A foreign page would have to ask first (CORS).
HEADER: Final = "X-Trionet"


class Guard:
    """`hosts`: names under which the pages may be asked for. `public`: whether any address will do."""

    def __init__(self, hosts: Iterable[str] = (), *, public: bool = False) -> None:
        if isinstance(hosts, str):
            raise ConfigurationError("hosts is a list of names, not one name")
        self._hosts = frozenset(host.lower() for host in hosts)
        self._public = public

    def check(self, request: HttpRequest) -> None:
        """Raise `Rejection` if this request is not to be answered."""
        if not self._public and not is_private(request.connection.local):
            raise refuse(
                403,
                "The debug pages are for loopback and Unix sockets. Ask on such an address (ssh -L brings it to "
                "you), or mount them with public=True.",
            )
        name = _name(request.host)
        if name and not _is_address(name) and name != "localhost" and name not in self._hosts:
            raise refuse(
                403,
                f"{name!r} is no name of this server. Ask by IP address or as localhost; or configure the name.",
            )
        foreign = request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}
        followed = request.method in {"GET", "HEAD"} and request.headers.get("sec-fetch-dest") == "document"
        if foreign and not followed:  # a link that somebody clicks on shows us, and only to them
            raise refuse(403, "Another site's page has asked for this.")

    def check_change(self, request: HttpRequest) -> None:
        """The same for a request that changes something."""
        self.check(request)
        if HEADER.lower() not in request.headers:
            raise refuse(
                403, f"A change needs the header {HEADER}: 1, so that no foreign page can ask for it."
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != request.host:
            raise refuse(403, "Another site's page has asked for this.")


def is_private(local: Any) -> bool:
    """Whether only this machine can reach this address of ours: loopback, or a Unix socket."""
    if not isinstance(local, tuple):
        return True
    try:
        address = ipaddress.ip_address(str(local[0]).partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _name(host: str) -> str:
    """The host without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
