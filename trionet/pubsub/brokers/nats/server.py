"""Where NATS servers are, and how a connection to one begins: TCP, INFO, TLS.

The server speaks first: INFO, in plain text unless it is configured with ``handshake_first``. Then, if it asks for TLS
or we do, the connection is encrypted, and only then we say who we are (CONNECT).
"""

from __future__ import annotations

import ssl
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs
import trio

from trionet._version import __version__
from trionet.errors import BrokerDown, ConfigurationError
from trionet.pubsub.brokers.linked import words
from trionet.pubsub.brokers.nats.protocol import Message, Parser, read_object

__all__ = ["LinkOptions", "Server", "dial", "introduction", "parse_servers"]

PORT: Final = 4222
READ: Final = 65_536


@attrs.frozen
class Server:
    """Where a server is, and who we are there. `tls`: nothing is said before the connection is encrypted."""

    host: str
    port: int = PORT
    tls: bool = False
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    token: str = attrs.field(default="", repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def beside(self, address: str) -> Server:
        """Another server of the same cluster, as its INFO names it: ``host:port``."""
        host, _, port = address.rpartition(":")
        return attrs.evolve(self, host=host.strip("[]"), port=int(port) if port.isdigit() else PORT)


def parse_servers(url: str, user: str = "", password: str = "", token: str = "") -> list[Server]:
    """Servers of one cluster: ``nats://user:password@host:4222,nats://…``. Raises `ConfigurationError`.

    What is given besides holds instead of what the URLs say.
    """
    servers = []
    for text in map(str.strip, url.split(",")):
        try:
            parts = urlsplit(text if "://" in text else f"nats://{text}")
            host, port = parts.hostname, parts.port or PORT
        except ValueError:  # its text may have a part of a password
            raise ConfigurationError(
                "no URL of a NATS server: nats://[user:password@]host[:port]; in a password / ? # @ are %2F %3F %23 %40"
            ) from None
        if parts.scheme not in {"nats", "tls+nats", "tls"} or not host:
            raise ConfigurationError(
                "the URL of a NATS server is nats://[user:password@]host[:port], or tls+nats://…"
            )
        if parts.path.strip("/") or parts.query:
            raise ConfigurationError(
                "the URL of a NATS server has no path and no options: pass them to NatsBroker"
            )
        who, secret = unquote(parts.username or ""), unquote(parts.password or "")
        alone = who if parts.password is None else ""  # a user without a password is a token
        who = "" if alone else who
        servers.append(
            Server(host, port, parts.scheme != "nats", user or who, password or secret, token or alone)
        )
    return servers


@attrs.frozen
class LinkOptions:
    """`timeout`: seconds for an answer. `ping_interval`: seconds after which a silent server is asked.

    `tls`: the context; None makes the ordinary one. `tls_first`: the server is configured with ``handshake_first``.
    `inbox`: what subjects for answers begin with.
    """

    timeout: float = 5.0
    ping_interval: float = 5.0
    tls: ssl.SSLContext | None = None
    tls_first: bool = False
    inbox: str = "_INBOX"


async def dial(server: Server, options: LinkOptions) -> tuple[trio.abc.Stream, Parser, dict[str, Any]]:
    """Connect, in time. Returns what to read from, what has read INFO, and what INFO said. Raises `BrokerDown`."""
    try:
        with trio.fail_after(options.timeout):
            return await _dial(server, options)
    except BrokerDown as error:
        raise BrokerDown(f"NATS at {server}: {error}") from None
    except trio.TooSlowError:
        raise BrokerDown(f"NATS at {server}: no answer within {options.timeout:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise BrokerDown(f"NATS at {server}: {words(error)}") from error


async def _dial(server: Server, options: LinkOptions) -> tuple[trio.abc.Stream, Parser, dict[str, Any]]:
    stream: trio.abc.Stream = await trio.open_tcp_stream(server.host, server.port)
    try:
        parser = Parser()
        if options.tls_first:
            stream = await _encrypt(stream, server, options)
        info = await _first_info(stream, parser)
        if not options.tls_first and (server.tls or options.tls is not None or info.get("tls_required")):
            _check_plain(parser, info)
            stream = await _encrypt(stream, server, options)
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        raise
    return stream, parser, info


def _check_plain(parser: Parser, info: dict[str, Any]) -> None:
    """TLS can begin: nobody has taken it out of INFO, nor added anything behind it."""
    if not (info.get("tls_required") or info.get("tls_available")):
        raise BrokerDown("it does not speak TLS, which it was to")
    if parser.held:
        raise BrokerDown("it sent something before TLS began")


async def _encrypt(stream: trio.abc.Stream, server: Server, options: LinkOptions) -> trio.abc.Stream:
    context = options.tls or ssl.create_default_context()
    encrypted = trio.SSLStream(stream, context, server_hostname=server.host, https_compatible=True)
    await encrypted.do_handshake()
    return encrypted


async def _first_info(stream: trio.abc.Stream, parser: Parser) -> dict[str, Any]:
    while True:
        data = await stream.receive_some(READ)
        if not data:
            raise BrokerDown("it has closed the connection before it said anything")
        items = parser.feed(bytes(data))
        if items:
            first = items[0]
            if len(items) > 1 or isinstance(first, Message) or first.verb != "INFO":
                raise BrokerDown("this is not the protocol of NATS: no INFO at first")
            return read_object(first.text)


def introduction(server: Server, *, encrypted: bool) -> dict[str, Any]:
    """What CONNECT says. `protocol` 1: INFO may come again, with the servers of the cluster."""
    said = {
        "verbose": False,
        "pedantic": False,
        "tls_required": encrypted,
        "name": "trionet",
        "lang": "python-trionet",
        "version": __version__,
        "protocol": 1,
        "echo": True,
        "headers": True,
        "no_responders": True,
    }
    if server.token:
        said["auth_token"] = server.token
    elif server.user:
        said |= {"user": server.user, "pass": server.password}
    return said
