"""Paths to whatever answers there.

    pattern                 matches
    "/chat"                 this path
    "/rooms/{room}"         one segment in the place of {room}, not empty; also "/rooms/{room}.json"
    "/static/"              this path and all below it
    "/users/{name}/"        the same below a segment
    "//example.org/chat"    "/chat", asked of this host (whatever the port)

A path without parameters goes before patterns with some, these before prefixes, and the longer prefix before the
shorter; in the same place, a literal segment before a parameter. Routes of a host go before those of any host. The
order in which they were given does not count.
"""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar
from urllib.parse import unquote

import attrs

from trionet.errors import ConfigurationError
from trionet.wire.tokens import split_authority

__all__ = ["Match", "Routes"]

T = TypeVar("T")

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@attrs.frozen
class Match(Generic[T]):
    """What was found: its value, the path behind a prefix as sent, and the parameters, percent-decoded as UTF-8."""

    value: T
    rest: str
    parameters: dict[str, str]


class _Pattern(Generic[T]):
    """A path with parameters."""

    def __init__(self, path: str, value: T) -> None:
        self.path = path
        self.value = value
        self.prefix = path.endswith("/")
        segments = path.split("/")
        names = _PARAMETER.findall(path)
        if len(set(names)) != len(names) or any(len(_PARAMETER.findall(part)) > 1 for part in segments):
            raise ConfigurationError(f"one parameter a segment, each with a name of its own: {path!r}")
        literals = _PARAMETER.split(path)[::2]
        if any(brace in literal for literal in literals for brace in "{}"):
            raise ConfigurationError(f"a parameter is written {{name}}: {path!r}")
        expression = "".join(
            re.escape(part) if number % 2 == 0 else f"(?P<{part}>[^/]+)"
            for number, part in enumerate(_PARAMETER.split(path))
        )
        self.match = re.compile(expression).match if self.prefix else re.compile(expression).fullmatch
        self.shape = _PARAMETER.sub("{}", path)
        parameters = [_PARAMETER.search(part) is not None for part in segments]
        # Longest first; then literal segments before parameters; then the one with more literal characters.
        self.order = -len(segments), parameters, -sum(map(len, literals)), path


class _Table(Generic[T]):
    """The routes of one host."""

    def __init__(self) -> None:
        self.exact: dict[str, T] = {}
        self.prefixes: dict[str, T] = {}
        self.patterns: list[_Pattern[T]] = []

    def add(self, path: str, value: T) -> T:
        if "{" not in path and "}" not in path:
            table = self.prefixes if path.endswith("/") else self.exact
            value = table.setdefault(path, value)
            # Longest first; `find` takes the first that fits.
            self.prefixes = dict(sorted(self.prefixes.items(), key=lambda item: -len(item[0])))
            return value
        pattern = _Pattern(path, value)
        for other in self.patterns:
            if other.path == path:
                return other.value
            if other.shape == pattern.shape:
                raise ConfigurationError(f"two names for the same parameter: {other.path!r} and {path!r}")
        self.patterns.append(pattern)
        self.patterns.sort(key=lambda pattern: pattern.order)
        return value

    def find(self, path: str) -> Match[T] | None:
        if path in self.exact:
            return Match(self.exact[path], "", {})
        for pattern in self.patterns:
            if not pattern.prefix and (found := _matched(pattern, path)) is not None:
                return found
        return self._find_prefix(path)

    def _find_prefix(self, path: str) -> Match[T] | None:
        best: Match[T] | None = None
        for prefix, value in self.prefixes.items():
            if path.startswith(prefix):
                best = Match(value, path[len(prefix) :], {})
                break
        for pattern in self.patterns:
            if pattern.prefix and (found := _matched(pattern, path)) is not None:
                # At the same depth a prefix without parameters wins.
                if best is None or found.rest.count("/") < best.rest.count("/"):
                    return found
                break
        return best


def _matched(pattern: _Pattern[T], path: str) -> Match[T] | None:
    match = pattern.match(path)
    if match is None:
        return None
    try:
        parameters = {name: unquote(text, errors="strict") for name, text in match.groupdict().items()}
    except UnicodeDecodeError:
        return None
    return Match(pattern.value, path[match.end() :], parameters)


class Routes(Generic[T]):
    """A table of patterns. Fill it before it is used; then it is only read."""

    def __init__(self) -> None:
        self._any: _Table[T] = _Table()
        self._hosts: dict[str, _Table[T]] = {}

    def add(self, pattern: str, value: T) -> T:
        """Put `value` there, and return it; or return what the same pattern has already.

        Raises `ConfigurationError` for what is no pattern, or means the same as another.
        """
        table = self._any
        path = pattern
        if pattern.startswith("//"):
            host, slash, path = pattern[2:].partition("/")
            path = slash + path
            split = split_authority(host.encode())
            if split is None or not split[0] or split[1] is not None:
                raise ConfigurationError(
                    f'a route for a host is "//host/path", without port, not {pattern!r}'
                )
            table = self._hosts.setdefault(host.lower(), _Table())
        if not path.startswith("/") or any(character in path for character in " ?#"):
            raise ConfigurationError(f'a route is "/path" or "/prefix/", not {pattern!r}')
        return table.add(path, value)

    def find(self, path: str, host: str = "") -> Match[T] | None:
        """Look up a path, as sent; `host` is "host" or "host:port" in lower case."""
        if self._hosts and host:
            split = split_authority(host.encode())
            table = self._hosts.get(split[0].decode()) if split is not None else None
            found = table.find(path) if table is not None else None
            if found is not None:
                return found
        return self._any.find(path)
