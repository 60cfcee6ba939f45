"""Addresses of WebSocket servers: what an URL says about where to connect to and what to ask for (RFC 6455, section 3).

`parse_url` takes ``ws``, ``wss``, ``http`` and ``https``, and for Unix sockets ``ws+unix:/the/socket:/the/path``.
Nothing is resolved here, and nothing is guessed: what cannot be an address raises `ConfigurationError`.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, unquote, urljoin, urlsplit

import attrs

from trionet.errors import ConfigurationError

__all__ = ["Target", "parse_proxy", "parse_url", "redirected"]

_SCHEMES = {"ws": False, "http": False, "wss": True, "https": True}

# What a request target may hold as it is (RFC 3986, 3.3 and 3.4, and the percent sign of what is encoded already).
_SAFE = "!$%&'()*+,-./:;=?@_~|[]"

# Control characters and spaces: `urlsplit` would silently drop some of them (and then `ws://a\n/` is another host).
_UNFIT = re.compile(r"[\x00-\x20\x7f]")

_NAME = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=-]+")


@attrs.frozen
class Target:
    """Where a WebSocket is: `host` has no brackets and is ASCII, `resource` is the request target (path and query).

    `unix` is the path of a Unix socket to connect to instead of host and port. `user` and `password` were in the URL.
    """

    secure: bool
    host: str
    port: int
    resource: str = "/"
    user: str | None = attrs.field(default=None, repr=False)
    password: str = attrs.field(default="", repr=False)
    unix: str | None = None

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them: the default port is left out (RFC 6455, 4.1 item 4)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[bool, str, int, str | None]:
        """What has to be the same for two targets to be of the same origin."""
        return self.secure, self.host, self.port, self.unix

    def __str__(self) -> str:
        # No user information and no query: they hold passwords and tokens, and this goes to logs and messages.
        scheme = "wss" if self.secure else "ws"
        path = self.resource.partition("?")[0]
        return f"{scheme}+unix:{self.unix}:{path}" if self.unix else f"{scheme}://{self.authority}{path}"


def parse_url(url: str) -> Target:
    """Return what `url` names. Characters beyond ASCII are encoded: by IDNA in the host, as UTF-8 in the rest."""
    if _UNFIT.search(url):
        raise ConfigurationError(f"spaces or control characters in the URL {url!r}; percent-encode them")
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme in ("ws+unix", "wss+unix") and colon:
        return _parse_unix(url, rest, secure=scheme[:3] == "wss")
    if scheme not in _SCHEMES or not rest.startswith("//"):
        raise ConfigurationError(f"not the URL of a WebSocket: {_shown(url)}; it begins with ws:// or wss://")
    secure = _SCHEMES[scheme]
    host, port, user, password = _parse_authority(url, 443 if secure else 80)
    parts = urlsplit(url)
    if "#" in url:  # RFC 6455, 3: MUST NOT be used, and a "#" in a path is to be written %23
        raise ConfigurationError(f"a fragment in the URL {_shown(url)}; leave it out, or write # as %23")
    return Target(secure, host, port, _resource(parts.path, parts.query, "?" in url), user, password)


def parse_proxy(url: str) -> Target:
    """Return what the URL of an HTTP proxy names: ``http://user:password@host:port``."""
    if _UNFIT.search(url) or not url.lower().startswith("http://"):
        raise ConfigurationError(
            f"not the URL of a proxy: {_shown(url)}; only http:// proxies (CONNECT) are spoken to"
        )
    host, port, user, password = _parse_authority(url, 80)
    return Target(False, host, port, "/", user, password)


def redirected(target: Target, location: str) -> Target:
    """Return where a redirect of `target` to `location` (absolute or relative) leads.

    Raises `ConfigurationError` when that is no WebSocket, is a Unix socket, or would give up encryption: a redirect
    must not do that behind the application's back. User information goes along to the same origin only.
    """
    scheme = "https" if target.secure else "http"
    try:
        where = urljoin(f"{scheme}://{target.authority}{target.resource}", location.partition("#")[0])
    except ValueError as error:
        raise ConfigurationError(f"{target} redirects to what is no URL: {error}") from None
    found = parse_url(where)
    if found.unix is not None:  # a server does not choose which sockets of our machine we talk to
        raise ConfigurationError(f"{target} redirects to a Unix socket")
    if target.secure and not found.secure:
        raise ConfigurationError(f"{target} redirects to {found}, which is not encrypted")
    if target.unix is not None and (found.secure, found.host, found.port) == (
        target.secure,
        target.host,
        target.port,
    ):
        found = attrs.evolve(found, unix=target.unix)
    if found.user is None and found.origin == target.origin:
        found = attrs.evolve(found, user=target.user, password=target.password)
    return found


def _parse_unix(url: str, rest: str, *, secure: bool) -> Target:
    path, colon, resource = rest.partition(":")
    if not path or path.startswith("//") or (colon and not resource.startswith("/")):
        raise ConfigurationError(f"not a Unix socket: {_shown(url)}; write ws+unix:/the/socket:/the/path")
    where, mark, query = resource.partition("?")
    # The host that is asked for is a matter of form: localhost, as curl does it.
    return Target(
        secure, "localhost", 443 if secure else 80, _resource(where, query, bool(mark)), unix=unquote(path)
    )


def _parse_authority(url: str, default: int) -> tuple[str, int, str | None, str]:
    """Host, port, user and password of an URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"not a URL: {_shown(url)}: {error}") from None
    if port == 0:
        raise ConfigurationError(f"port 0 in the URL {_shown(url)}: nothing can be connected to there")
    host = parts.hostname or ""
    if parts.netloc.rpartition("@")[2].startswith("["):
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigurationError(f"not an IPv6 address in the URL {_shown(url)}") from None
    else:
        host = _parse_name(host, url)
    user = None if parts.username is None else unquote(parts.username)
    if user is not None and ":" in user:  # RFC 7617, 2
        raise ConfigurationError("a user name for Basic authentication cannot hold a colon")
    return host, default if port is None else port, user, unquote(parts.password or "")


def _parse_name(host: str, url: str) -> str:
    name = unquote(host)
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError as error:
            raise ConfigurationError(f"not a host name: {name!r}: {error}") from None
    if len(name) > 255 or not _NAME.fullmatch(name):
        raise ConfigurationError(f"no host that can be connected to in the URL {_shown(url)}")
    return name


def _resource(path: str, query: str, asked: bool) -> str:
    """The request target: path, and the query if there is one, even an empty one."""
    resource = quote(path or "/", safe=_SAFE)
    return f"{resource}?{quote(query, safe=_SAFE)}" if asked else resource


def _shown(url: str) -> str:
    """The URL for a message, without user information and query."""
    head, at, rest = url.partition("?")[0].rpartition("@")
    return repr(f"{head.partition('//')[0]}//…{at}{rest}" if at else head)[:200]
