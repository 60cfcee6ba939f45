"""The small grammars that HTTP/1.1 and the WebSocket handshake share: tokens, lists, authorities, offers.

Every pattern uses possessive quantifiers (Python 3.11), so no input makes one of them backtrack: the time
is proportional to the bytes. Bytes go in; nothing is decoded before it was found to be well-formed.
"""

from __future__ import annotations

import functools
import ipaddress
import re

__all__ = [
    "TOKEN",
    "VALUE",
    "has_element",
    "is_token",
    "offers_are_valid",
    "split_authority",
    "split_list",
    "tokens",
]

# Insides of character classes. RFC 9110, 5.6.2 (tchar) and 5.5 (field-vchar, obs-text, SP and HTAB).
TOKEN = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
VALUE = rb"\t\x20-\x7e\x80-\xff"

_TOKEN = re.compile(rb"[%b]++" % TOKEN)

# uri-host [ ":" port ], RFC 9110, 7.2 with RFC 3986, 3.2.2. IPvFuture is left out: no such address exists.
_AUTHORITY = re.compile(
    rb"((?>[A-Za-z0-9\-._~!$&'()*+,;=]++|%[0-9A-Fa-f]{2})*+|\[([0-9A-Fa-f:.]++)\])(?::([0-9]*+))?"
)

# Sec-WebSocket-Extensions, RFC 6455, 9.1: a quoted value must be a token once it is unquoted.
_OFFER = rb"[%b]++(?:[ \t]*+;[ \t]*+[%b]++(?:[ \t]*+=[ \t]*+(?:[%b]++|\"(?>[%b]|\\[%b])++\"))?+)*+" % (
    (TOKEN,) * 5
)
_OFFERS = re.compile(rb"[ \t,]*+%b(?:[ \t]*+,[ \t,]*+%b)*+[ \t,]*+" % (_OFFER, _OFFER))


def is_token(value: bytes) -> bool:
    """Whether `value` is one token: not empty, no separators, no spaces, no controls (RFC 9110, 5.6.2)."""
    return _TOKEN.fullmatch(value) is not None


def split_list(value: bytes) -> list[bytes]:
    """Return the elements of a comma separated list; empty ones are skipped (RFC 9110, 5.6.1.2).

    For lists whose elements hold no quoted commas. Their number is bounded by the size of a header line.
    """
    return [element for part in value.split(b",") if (element := part.strip(b" \t"))]


def has_element(value: bytes, element: bytes) -> bool:
    """Whether the list `value` has `element` (given in lower case), whatever the case of its letters."""
    # Nearly every client sends the one element alone.
    return value == element or (lower := value.lower()) == element or element in split_list(lower)


def tokens(value: bytes) -> tuple[bytes, ...] | None:
    """Return the tokens of a list that must have at least one; None when an element is not a token."""
    found = split_list(value)
    return tuple(found) if found and all(map(is_token, found)) else None


def offers_are_valid(value: bytes) -> bool:
    """Whether `value` is a list of extension offers with their parameters (RFC 6455, 9.1)."""
    return _OFFERS.fullmatch(value) is not None


def split_authority(value: bytes) -> tuple[bytes, int | None] | None:
    """Return host (lower case, brackets kept) and port (None when not given) of `host[:port]`.

    None when it is neither a name, an IPv4 address nor an IPv6 address in brackets, with a port up to
    65535. User information makes it invalid (RFC 9110, 4.2.4). The host may be empty: callers decide.
    """
    # A name has at most 255 characters (RFC 3986, 3.2.2); the bound also bounds the cache below.
    return _split_authority(value) if len(value) <= 255 + len(":65535") else None


# A server is asked for by few names: remembering them saves 2 of the 15 microseconds of a handshake. A peer
# that sends ever new ones makes this a plain function and fills some 20 KiB, no more.
@functools.lru_cache(maxsize=64)
def _split_authority(value: bytes) -> tuple[bytes, int | None] | None:
    match = _AUTHORITY.fullmatch(value)
    if match is None:
        return None
    host, address, digits = match.groups()
    if address is not None:
        try:
            ipaddress.IPv6Address(address.decode())
        except ValueError:
            return None
    if not digits:
        return host.lower(), None  # "host:" is the default port too (RFC 3986, 3.2.3)
    # int() refuses more than 4,300 digits with an error of its own; no port needs more than five.
    digits = digits.lstrip(b"0")
    if len(digits) > 5 or (port := int(digits or b"0")) > 65535:
        return None
    return host.lower(), port
