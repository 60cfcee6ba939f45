"""How to connect: the options of every way to do so."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from trionet.protocols.channel import SlowConsumer
from trionet.wire.deflate import Deflate

__all__ = ["OPEN_TIMEOUT", "ConnectOptions", "split"]

OPEN_TIMEOUT = 30.0


class ConnectOptions(TypedDict, total=False):
    """How to connect; every option has a default. Times are seconds (None: no limit), sizes are bytes.

    `subprotocols`: those offered, best first. `headers`: added to the request, pairs or a mapping. `origin`: the Origin
    header, for servers that want one. `redirects`: how many to follow (0), never from ``wss`` to ``ws``, and to
    another origin without credentials. `open_timeout`: for all of it, from the name to the response (30).

    `ssl_context`: for ``wss``; the default one verifies certificates against those of the system. `server_hostname`:
    the name to verify, if it is not that of the URL. `unix_path`: a Unix socket to connect to instead of host and
    port. `proxy`: ``http://user:password@host:port``, asked to CONNECT. `local_address`: an address of ours to connect
    from.

    `compression`: a `Deflate`, or True for its defaults, to offer permessage-deflate (off).

    The rest is as in `WebSocketProtocol`: `max_message` (1 MiB), `max_stream`, `max_frame`, `ping_interval` (30),
    `ping_timeout` (20), `close_timeout` (10), `write_timeout` (60), `slow_consumer`, `high_water`, `low_water`,
    `hard_limit`, `read_ahead` (64 KiB; what may be kept of a server that sends faster than we receive).
    """

    subprotocols: Sequence[str]
    headers: Mapping[str, str] | Sequence[tuple[str, str]]
    origin: str | None
    redirects: int
    open_timeout: float | None
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    unix_path: str | None
    proxy: str | None
    local_address: str | None
    compression: Deflate | bool
    max_message: int
    max_stream: int | None
    max_frame: int | None
    ping_interval: float | None
    ping_timeout: float | None
    close_timeout: float
    write_timeout: float | None
    slow_consumer: SlowConsumer
    high_water: int
    low_water: int | None
    hard_limit: int | None
    read_ahead: int


# Options of the dialing; all others are settings of the protocol.
_DIALING = frozenset(
    {
        "headers",
        "local_address",
        "open_timeout",
        "origin",
        "proxy",
        "redirects",
        "server_hostname",
        "ssl_context",
        "subprotocols",
        "unix_path",
    }
)


def split(options: ConnectOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the dialing, and settings of the protocol."""
    if unknown := options.keys() - ConnectOptions.__annotations__.keys():
        raise TypeError(f"unknown option {min(unknown)!r}; see trionet.ConnectOptions")
    dialing = {name: value for name, value in options.items() if name in _DIALING}
    return dialing, {name: value for name, value in options.items() if name not in _DIALING}
