"""Reading the Cookie header (RFC 6265, 4.2.1 and 5.4)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["parse_cookies"]


def parse_cookies(lines: Iterable[str]) -> dict[str, str]:
    """The cookies in the values of Cookie headers, by name; of two with one name the first, which is the more specific.

    A pair that is none is left out, and the others are there. (`http.cookies` stops at the first it does not like, so
    any page of the domain could hide the cookie of a login.) Quotes around a value are taken off, nothing is decoded.
    """
    cookies: dict[str, str] = {}
    for line in lines:
        for pair in line.split(";"):
            name, equals, value = pair.partition("=")
            name, value = name.strip(" \t"), value.strip(" \t")
            if equals and name:
                if len(value) > 1 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                cookies.setdefault(name, value)
    return cookies
