"""Where a Redis is, from its URL; and a stream to it."""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import trio

from trionet.errors import ConfigurationError

__all__ = ["Address", "open_stream", "parse_url"]

_PLAIN: Final = frozenset({"redis", "valkey"})
_TLS: Final = frozenset({"rediss", "valkeys"})
_UNIX: Final = "redis+unix"
_FORMS: Final = "redis://user:password@host:6379/0, rediss://… for TLS, redis+unix:///path?db=0"


@attrs.frozen
class Address:
    """`path` of a Unix socket, or `host` and `port`. `str` of it shows no password."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    tls: bool = False
    user: str = "default"
    password: str = attrs.field(default="", repr=False)
    db: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may have a part of a password
        raise ConfigurationError(
            f"no URL of a Redis: write {_FORMS}; in a password / ? # @ are %2F %3F %23 %40"
        ) from None
    query = parse_qs(parts.query, keep_blank_values=True)
    if unknown := set(query) - {"db"}:
        raise ConfigurationError(f"a Redis URL has no {', '.join(sorted(unknown))}: {_FORMS}")
    unix = parts.scheme == _UNIX
    number = query["db"][-1] if "db" in query else "" if unix else parts.path.strip("/")
    if number and not (number.isascii() and number.isdigit() and len(number) < 6):
        raise ConfigurationError(f"the database of a Redis is a number, not {number!r:.40}: {_FORMS}")
    if parts.scheme not in _PLAIN | _TLS | {_UNIX} or parts.fragment or (unix and not parts.path):
        raise ConfigurationError(f"no URL of a Redis: {_FORMS}")
    return Address(
        host=parts.hostname or "localhost",
        port=port or 6379,
        path=unquote(parts.path) if unix else "",
        tls=parts.scheme in _TLS,
        user=unquote(parts.username or "") or "default",
        password=unquote(parts.password or ""),
        db=int(number or 0),
    )


async def open_stream(address: Address, context: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connect. Raises OSError, and `trio.BrokenResourceError` when TLS fails."""
    if address.path:
        return await trio.open_unix_socket(address.path)
    stream = await trio.open_tcp_stream(address.host, address.port)
    if not address.tls:
        return stream
    secured = trio.SSLStream(
        stream, context or ssl.create_default_context(), server_hostname=address.host, https_compatible=True
    )
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(secured)
        raise
    return secured
