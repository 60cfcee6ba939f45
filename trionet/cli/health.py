"""``trionet health``: one question to a running server, for container health checks and scripts."""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

import attrs
import h11
import trio
from cyclopts import Parameter

from trionet.cli import output
from trionet.cli.serve import gather
from trionet.errors import ConfigurationError, TrionetError, first_error
from trionet.ops.sockets import admin_endpoint

__all__ = ["Target", "health", "parse_target"]

_MOST = 65536  # bytes of an answer that are read


@attrs.frozen(kw_only=True)
class Target:
    """Whom to ask. `unix`: the path of a socket, or None for `host` and `port`; `websocket`: shake hands instead."""

    url: str
    host: str = "localhost"
    port: int = 0
    unix: str | None = None
    path: str = "/healthz"
    tls: bool = False
    websocket: bool = False


@attrs.frozen
class Answer:
    """`well`, and in `text` what was said or what went wrong."""

    well: bool
    text: str
    status: int | None = None


async def health(
    url: str | None = None,
    /,
    *,
    path: Annotated[str | None, Parameter(metavar="PATH")] = None,
    timeout: Annotated[float, Parameter(metavar="SECONDS")] = 3.0,
    insecure: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Ask a server whether it is well: exit code 0 for an answer of 200 to 299 in time, else 1.

    URL is http://host:port/path or https://, ws:// or wss:// (a WebSocket is opened and closed), or unix:/path of a
    socket. Without a path: /healthz, which the admin address of trionet serve has; /readyz there is 503 while it
    starts, drains or is overloaded. Without a URL: the admin address of the settings in the environment or TOML file.

    Examples::

      trionet health http://127.0.0.1:9090/readyz
      trionet health unix:/run/shop/admin.sock --path /readyz
      HEALTHCHECK CMD ["trionet", "health"]       in a container with TRIONET_ADMIN set

    Args:
        url: whom to ask
        path: what to ask for, instead of the path of the URL
        timeout: seconds for all of it
        insecure: take any certificate, as of a server that asks itself by another name
        json: print the answer as JSON
    """
    if timeout <= 0:
        raise ConfigurationError(f"option --timeout is {timeout:g}; it must be greater than 0")
    target = parse_target(url or _own_admin(), path)
    start = time.perf_counter()
    answer = await _ask(target, timeout, insecure=insecure)
    seconds = time.perf_counter() - start
    if json:
        output.emit_json({"url": target.url, **attrs.asdict(answer), "seconds": round(seconds, 6)})
    else:
        output.console().print(
            f"{'well' if answer.well else 'NOT well'}: {answer.text} ({target.url}, {seconds * 1000:.0f} ms)"
        )
    return 0 if answer.well else 1


def _own_admin() -> str:
    """The admin address of the settings that `trionet serve` would find here."""
    settings = gather({}, None, need_app=False).checked()
    if settings.admin is None:
        raise ConfigurationError("whom to ask? Give a URL; no admin address is set here (TRIONET_ADMIN)")
    endpoint = admin_endpoint(settings.admin)
    if endpoint.path is not None:
        return settings.admin
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(endpoint.host), str(endpoint.host))
    return f"http://[{host}]:{endpoint.port}" if ":" in host else f"http://{host}:{endpoint.port}"


def parse_target(url: str, path: str | None = None) -> Target:
    """Read a URL; raises `ConfigurationError` that says what a URL is."""
    if path is not None and not path.startswith("/"):
        raise ConfigurationError(f"option --path is {path!r}; it must begin with a slash")
    if url.startswith("unix:"):
        if not url.removeprefix("unix:"):
            raise ConfigurationError("unix: names no socket; write unix:/path")
        return Target(url=url, unix=url.removeprefix("unix:"), path=path or "/healthz")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no URL: {error}") from error
    # "ws+unix:/path" has the form of a host without a port
    if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.hostname or parts.netloc.endswith(":"):
        raise ConfigurationError(
            f"{url!r} is not what can be asked; write http://host:port/path or unix:/path"
        )
    tls = parts.scheme in {"https", "wss"}
    websocket = parts.scheme.startswith("ws")
    own = parts.path + (f"?{parts.query}" if parts.query else "")
    if own in {"", "/"}:
        own = "/" if websocket else "/healthz"
    return Target(
        url=url,
        host=parts.hostname,
        port=port if port is not None else 443 if tls else 80,
        path=path or own,
        tls=tls,
        websocket=websocket,
    )


async def _ask(target: Target, timeout: float, *, insecure: bool) -> Answer:
    context = _context(insecure=insecure) if target.tls else None
    with trio.move_on_after(timeout):
        try:
            if target.websocket:
                return await _shake_hands(target, context)
            return await _get(target, context)
        except (OSError, trio.BrokenResourceError) as error:
            return Answer(False, _reason(error))
        except (h11.ProtocolError, TrionetError) as error:
            return Answer(False, str(error))
    return Answer(False, f"no answer within {timeout:g} s")


async def _shake_hands(target: Target, context: ssl.SSLContext | None) -> Answer:
    from trionet.client.client import connect_websocket

    host = f"[{target.host}]" if ":" in target.host else target.host
    url = f"{'wss' if target.tls else 'ws'}://{host}:{target.port}{target.path}"
    async with connect_websocket(url, ssl_context=context):
        return Answer(True, "it opens WebSockets", 101)


async def _get(target: Target, context: ssl.SSLContext | None) -> Answer:
    stream: Any
    if target.unix is not None:
        stream = await trio.open_unix_socket(target.unix)
    else:
        stream = await trio.open_tcp_stream(target.host, target.port)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)
    async with stream:
        client = h11.Connection(h11.CLIENT)
        host = f"[{target.host}]" if ":" in target.host else target.host
        headers = [
            ("Host", host if target.unix else f"{host}:{target.port}"),
            ("Connection", "close"),
            ("User-Agent", "trionet-health"),
        ]
        request = h11.Request(method="GET", target=target.path, headers=headers)
        await stream.send_all(client.send(request) + client.send(h11.EndOfMessage()))
        return await _read(client, stream)


async def _read(client: h11.Connection, stream: Any) -> Answer:
    status, body = 0, b""
    while len(body) < _MOST:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await stream.receive_some(_MOST))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            break
    lines = body.decode("utf-8", "replace").strip().splitlines()
    said = lines[0][:200] if lines else ""
    return Answer(200 <= status <= 299, f"{status} {said}".strip(), status)


def _context(*, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: BaseException) -> str:
    """What went wrong, without the wrapping of others."""
    error = first_error(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    if isinstance(error, socket.gaierror):  # its numbers are not those of errno
        return f"the host cannot be found: {error.strerror}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    if error.__cause__ is not None:
        return _reason(error.__cause__)
    return str(error) or type(error).__name__
