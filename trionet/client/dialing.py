"""From a URL to a connected descriptor: name resolution, TCP, Unix sockets, and the tunnel of an HTTP proxy.

Trio does the waiting (and the happy eyeballs, RFC 8305); what comes out is a descriptor, for an engine to take over.
Errors are `OSError` of the class that the system gave, and say whom we wanted to reach.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

import trio

from trionet.errors import ConfigurationError, ProtocolError, UpgradeRefused, first_error
from trionet.net import system
from trionet.wire.client_handshake import ResponseLimits, ResponseReader, build_connect_request
from trionet.wire.url import Target

__all__ = ["dial"]

_PROXY_LIMITS = ResponseLimits()
_UNIX: int = getattr(socket, "AF_UNIX", -1)
_BIND_ADDRESS_NO_PORT = 24  # ip(7); `socket` has it from Python 3.12 on


async def dial(target: Target, proxy: Target | None = None, local_address: str | None = None) -> int:
    """Return a connected, non-blocking descriptor. Raises `OSError`, and what a proxy refuses as `UpgradeRefused`.

    `local_address`: the address of ours to connect from.
    """
    if target.unix is not None:
        if proxy is not None or local_address is not None:
            raise ConfigurationError("a Unix socket is reached without a proxy and without a local address")
        return _taken(await _connect(_UNIX, target.unix, None))
    if proxy is None:
        return _taken(await _connect_tcp(target, local_address))
    sock = await _connect_tcp(proxy, local_address)
    try:
        await _tunnel(sock, target, proxy)
    except BaseException:
        sock.close()
        raise
    return _taken(sock)


def _taken(sock: trio.socket.SocketType) -> int:
    fd = sock.detach()
    return system.adopt(socket.socket(fileno=fd))


async def _connect_tcp(target: Target, local_address: str | None) -> trio.socket.SocketType:
    try:
        version = ipaddress.ip_address(target.host).version
    except ValueError:
        pass
    else:  # nothing to resolve, nothing to choose from: no tasks needed
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        return await _connect(family, (target.host, target.port), local_address)
    try:
        stream = await trio.open_tcp_stream(target.host, target.port, local_address=local_address)
    except socket.gaierror as error:
        message = f"cannot resolve the name {target.host!r}: {error.strerror}"
        raise socket.gaierror(error.errno, message) from error
    except OSError as error:
        raise _explained(_first(error), f"{target.host} port {target.port}") from error
    return stream.socket


async def _connect(
    family: int, address: str | tuple[str, int], local_address: str | None
) -> trio.socket.SocketType:
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != _UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if local_address is not None:
            if sys.platform == "linux":  # or a port would be taken for all destinations
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            await sock.bind((local_address, 0))
        await sock.connect(address)
    except OSError as error:
        sock.close()
        where = address if isinstance(address, str) else f"{address[0]} port {address[1]}"
        raise _explained(error, where) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _first(error: BaseException) -> OSError:
    """The error of the first attempt: Trio joins those of all addresses in a group."""
    while error.__cause__ is not None:
        error = first_error(error.__cause__)
    return error if isinstance(error, OSError) else OSError(str(error))


def _explained(error: OSError, where: str) -> OSError:
    """An error of the same class that says whom we wanted to reach."""
    hint = (
        "; does a server listen there?"
        if isinstance(error, ConnectionRefusedError | FileNotFoundError)
        else ""
    )
    if error.errno is None:
        return OSError(f"cannot connect to {where}: {error}")
    return OSError(error.errno, f"cannot connect to {where}: {os.strerror(error.errno)}{hint}")


async def _tunnel(sock: trio.socket.SocketType, target: Target, proxy: Target) -> None:
    request = memoryview(build_connect_request(target, proxy))
    reader = ResponseReader(_PROXY_LIMITS, final=range(200, 300))
    where = f"the proxy {proxy.authority}"
    try:
        while request:
            request = request[await sock.send(request) :]
        while True:
            data = await sock.recv(4096)
            if reader.feed(data) if data else reader.end():
                break
            if not data:
                raise ConnectionResetError(f"{where} closed the connection before it answered")
    except ProtocolError as error:
        raise ProtocolError(f"{where}: {error}") from None
    response = reader.response
    assert response is not None
    if not 200 <= response.status < 300:
        raise UpgradeRefused(
            response.status, response.reason, response.headers, reader.body, by="proxy", where=proxy.authority
        )
    if reader.rest:  # a TLS server and an HTTP server wait for us, so these bytes are not theirs
        raise ProtocolError(f"{where} sent bytes behind its response to CONNECT")
