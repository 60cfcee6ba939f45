"""Who the client is when the connection comes from a proxy: `Forwarded` (RFC 7239), or the older X-Forwarded-*.

Each proxy appends the address of whoever connected to it, and the client may have sent such a header itself. So the
list is read from the right, from one trusted proxy to whom it heard, and the first that is not trusted is the client:
what stands further left was written by that client, or passed on by it, and proves nothing.

    header        says                                   as the proxy of the hop that is believed wrote it
    Forwarded     ``for=…;proto=…;host=…;by=…`` each     in the same element
    X-Forwarded   -For, a list; -Proto and -Host         one value; or a list as long as -For, then the one beside it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from trionet.errors import ConfigurationError
from trionet.wire.addresses import UNIX, TrustList, read_address
from trionet.wire.tokens import split_authority

__all__ = ["MAX_HOPS", "Client", "TrustedProxies", "parse_forwarded", "parse_node"]

MAX_HOPS: Final = 32  # proxies that are walked past, at most

_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# RFC 7239, 4, with a value's colons and brackets allowed outside quotes: proxies write ``for=[2001:db8::1]:80`` so.
_PAIR = re.compile(
    rf"[ \t]*+({_TCHAR}++)=(?:((?:{_TCHAR}|[:\[\]])++)|"
    r'"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*+)")[ \t]*+'
)
_BLANK = re.compile(r"[ \t]*+")
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.%]++)\]|([^:\[\]\"]++))(?::(?:([0-9]{1,5})|_[A-Za-z0-9._\-]++))?")
_HIDDEN = re.compile(r"_[A-Za-z0-9._\-]{1,255}+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,31}+")


@attrs.frozen
class Client:
    """Who is at the far end of a connection, as far as trusted proxies tell.

    `host`: its address; or what a proxy wrote to hide it ("unknown", "_gazonk"); None on a Unix socket, or when it is
    gone. `port`: None when not told. `scheme`: how it speaks with the first proxy, in lower case ("https"); None when
    nobody says. `authority`: the host it asked for, "host" or "host:port", in lower case.
    """

    host: str | None
    port: int | None = None
    scheme: str | None = None
    authority: str = ""

    @property
    def secure(self) -> bool | None:
        """Whether it came by TLS; None when nobody says."""
        return None if self.scheme is None else self.scheme in {"https", "wss"}


class TrustedProxies:
    """Proxies whose word is taken, by address (see `TrustList`), and the header in which they give it.

    `header`: "x-forwarded" (X-Forwarded-For, -Proto and -Host) or "forwarded" (RFC 7239). Only one, for a proxy that
    writes the one passes on the other as the client sent it.
    """

    __slots__ = ("_standard", "names", "trusted")

    def __init__(
        self, trusted: Iterable[str], *, header: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    ) -> None:
        if header not in {"x-forwarded", "forwarded"}:
            raise ConfigurationError(f'header is "x-forwarded" or "forwarded", not {header!r}')
        self.trusted = TrustList(trusted)
        self._standard = header == "forwarded"
        names = (
            {b"forwarded"}
            if self._standard
            else {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
        )
        self.names = frozenset(names)

    def client(
        self, headers: Mapping[str, Sequence[str]], peer: Any, authority: str = "", scheme: str | None = None
    ) -> Client:
        """Return the client of a request that came from `peer`.

        `headers`: by lower-case name, one string for each line. `peer`: ``(host, port, …)``, a str for a Unix socket,
        or None. `authority` and `scheme`: what is so if no proxy says otherwise.
        """
        host, port = (UNIX, None) if isinstance(peer, str) else peer[:2] if peer else (None, None)
        if host in self.trusted:
            walk = self._walk_standard if self._standard else self._walk_lists
            found = walk(headers, (host, port))
            (host, port), told_scheme, told_authority = found
            if told_scheme is not None and _SCHEME.fullmatch(told_scheme):
                scheme = told_scheme.lower()
            if told_authority is not None and _is_authority(told_authority):
                authority = told_authority.lower()
        return Client(None if host == UNIX else host, port, scheme, authority)

    def _walk_lists(
        self, headers: Mapping[str, Sequence[str]], node: tuple[str | None, int | None]
    ) -> tuple[tuple[str | None, int | None], str | None, str | None]:
        hops = 0
        for text in _from_the_right(headers.get("x-forwarded-for", ())):
            found = parse_node(text)
            if found is None:
                break  # a proxy that we trust wrote nonsense: as far as we can see
            node = found
            hops += 1
            if node[0] not in self.trusted:
                break
        scheme = _beside(headers.get("x-forwarded-proto", ()), hops)
        return node, scheme, _beside(headers.get("x-forwarded-host", ()), hops)

    def _walk_standard(
        self, headers: Mapping[str, Sequence[str]], node: tuple[str | None, int | None]
    ) -> tuple[tuple[str | None, int | None], str | None, str | None]:
        scheme = authority = None
        hops = 0
        for line in reversed(headers.get("forwarded", ())):
            elements = parse_forwarded(line)
            if elements is None:
                break  # nobody can say which commas separate elements; lines nearer to us were good
            for element in reversed(elements):
                found = parse_node(element.get("for", "unknown"))
                if found is None or hops == MAX_HOPS:
                    return node, scheme, authority
                node, scheme, authority = found, element.get("proto"), element.get("host")
                hops += 1
                if node[0] not in self.trusted:
                    return node, scheme, authority
        return node, scheme, authority


def _from_the_right(lines: Sequence[str]) -> Iterator[str]:
    """The elements of a list header, last first, `MAX_HOPS` of them at most; empty ones are skipped."""
    elements = ",".join(lines).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    return (element for part in reversed(elements) if (element := part.strip(" \t")))


def _beside(lines: Sequence[str], hops: int) -> str | None:
    """The value for a client that is `hops` from the right in X-Forwarded-For.

    Where every proxy appends, it is the one at the same place. Where each overwrites, there is one. Else only the last
    is known to be a proxy's.
    """
    values = [*_from_the_right(lines)]
    if not values:
        return None
    return values[hops - 1] if 0 < hops <= len(values) else values[0]


def _is_authority(text: str) -> bool:
    split = split_authority(text.encode("latin-1", "replace"))
    return split is not None and bool(split[0])


def parse_node(text: str) -> tuple[str, int | None] | None:
    """Return host and port of a node of `Forwarded` or X-Forwarded-For (RFC 7239, 6); None when it is none.

    The host is an address, written the usual way and without brackets, or "unknown", or an obfuscated identifier
    ("_gazonk"). A port that is hidden is None. An IPv6 address without brackets is accepted, as X-Forwarded-For has it.
    """
    if text.count(":") > 1 and text[:1] != "[":
        host, port = text, None
    else:
        match = _NODE.fullmatch(text)
        if match is None:
            return None
        host, port = match[1] or match[2], match[3]
    address = read_address(host)
    if address is not None:
        host = str(address)
    elif host.lower() == "unknown":
        host = "unknown"
    elif not _HIDDEN.fullmatch(host):
        return None
    number = int(port) if port else None
    return None if number is not None and number > 65535 else (host, number)


def parse_forwarded(line: str) -> list[dict[str, str]] | None:
    """Return the elements of a `Forwarded` line, names in lower case, values unquoted; None when it is malformed."""
    elements: list[dict[str, str]] = []
    element: dict[str, str] = {}
    at, end = 0, len(line)
    while True:
        match = _PAIR.match(line, at)
        if match is not None:
            name, value, quoted = match.groups()
            name = name.lower()
            if name in element:
                return None  # section 4: at most once in each element
            element[name] = value if value is not None else re.sub(r"\\(.)", r"\1", quoted)
            at = match.end()
        else:  # empty pairs and elements are allowed
            at = _BLANK.match(line, at).end()  # type: ignore[union-attr] # it matches the empty string
        if at == end or line[at] == ",":
            if element:
                elements.append(element)
                element = {}
            if at == end:
                return elements
        elif line[at] != ";":
            return None
        at += 1
