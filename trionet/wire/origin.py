"""Who may open a WebSocket from a browser: the origin check (RFC 6455, 4.2.2 step 4 and 10.2; RFC 6454)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from trionet.errors import ConfigurationError
from trionet.wire.request import Request
from trionet.wire.tokens import split_authority

__all__ = ["OriginPolicy"]

_PORTS = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}
_ORIGIN = re.compile(rb"([A-Za-z][A-Za-z0-9+\-.]*+)://([^/?#]++)")


def _normalise(origin: bytes) -> tuple[bytes, bytes, int | None] | None:
    """Return scheme, host and port of a serialised origin, None if it is not one ("null" is not)."""
    match = _ORIGIN.fullmatch(origin)
    split = match and split_authority(match[2])
    if not match or not split or not split[0]:
        return None
    scheme = match[1].lower()
    return scheme, split[0], split[1] if split[1] is not None else _PORTS.get(scheme)


class OriginPolicy:
    """Says which `Origin` a handshake may have; a browser sends one always, other programs seldom.

    `allowed` None (the default): our own host only, that is, host and port of the Origin equal those of the
    request (which an attacker who makes his own name resolve to this server, DNS rebinding, can arrange:
    list the origins if that matters). "*": any. Else the complete list of origins, such as
    "https://chat.example.com"; our own host must be in it to be allowed. "null" is the origin of sandboxed
    frames and local files: refused unless listed. No `Origin` is allowed always: it protects browser users.
    """

    __slots__ = ("_any", "_listed", "_null")

    def __init__(self, allowed: Literal["*"] | Iterable[str] | None = None) -> None:
        if isinstance(allowed, str) and allowed != "*":
            raise ConfigurationError(f"origins must be a list, not the string {allowed!r}")
        listed = None if allowed is None else set(allowed)
        self._any = listed is not None and "*" in listed
        self._null = listed is not None and "null" in listed
        self._listed: frozenset[tuple[bytes, bytes, int | None]] | None = None
        if listed is not None:
            known = {origin: _normalise(origin.encode()) for origin in listed - {"*", "null"}}
            for origin, parts in known.items():
                if parts is None:
                    raise ConfigurationError(f"not an origin (scheme://host[:port]): {origin!r}")
            self._listed = frozenset(filter(None, known.values()))

    def allows(self, request: Request, secure: bool | None = None, authority: str | None = None) -> bool:
        """Whether the handshake may go on.

        `secure` says whether the client came by TLS; None when that is not known, as behind a proxy that
        ends TLS: then `http` and `https` origins count alike, and a missing port is the default of the
        scheme that the Origin has. `authority`: the host that the client asked for, where a trusted proxy
        says it; it takes the place of the request's own.
        """
        origin = request._found.get(b"origin")
        if origin is None or self._any:
            return True
        if origin == b"null":
            return self._null
        parts = _normalise(origin)
        if parts is None:
            return False
        if self._listed is not None:
            return parts in self._listed
        scheme, host, port = parts
        if scheme not in {b"http", b"https"} or (secure is not None and secure != (scheme == b"https")):
            return False
        own = split_authority(request._host if authority is None else authority.encode("latin-1", "replace"))
        return own is not None and (own[0], _PORTS[scheme] if own[1] is None else own[1]) == (host, port)
