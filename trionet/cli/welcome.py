"""What ``trionet serve`` says once connections are accepted: a line for each thing a stranger wants to know.

Where the log has another format than text, nothing but its lines is wanted: it gets one with the same facts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress

from rich.text import Text

from trionet.cli import output
from trionet.ops.limits import DEFAULT_RESERVE, descriptor_limit
from trionet.ops.settings import ServeSettings, without_password
from trionet.server import Server

__all__ = ["addresses", "lines", "welcome", "welcome_workers"]

log = logging.getLogger("trionet")


def welcome(settings: ServeSettings, server: Server, desk: Server | None) -> None:
    """Say what one process serves."""
    admin = [endpoint.url for endpoint in desk.endpoints] if desk is not None else []
    _say(settings, [endpoint.url for endpoint in server.endpoints], admin, server.gate.max_connections)


def welcome_workers(settings: ServeSettings, urls: Sequence[str]) -> None:
    """Say what the workers of a supervisor serve."""
    admin = []
    if settings.admin is not None:
        admin = [settings.admin if settings.admin.startswith("unix:") else f"http://{settings.admin}/"]
    _say(settings, urls, admin, _room(settings))


def _room(settings: ServeSettings) -> int:
    """Connections of one worker: it raises its limit on descriptors to the hard one."""
    limit = descriptor_limit()
    most = 2**31 if limit is None else max(1, limit[1] - DEFAULT_RESERVE)
    return most if settings.max_connections is None else settings.max_connections


def _say(settings: ServeSettings, urls: Sequence[str], admin: Sequence[str], room: int) -> None:
    if settings.log_format != "text":
        log.info(
            "serving %s on %s; room for %d connections",
            settings.app,
            ", ".join(urls),
            room * settings.workers,
        )
        return
    out = output.console()
    # A reader of stdout that has gone is no reason to stop serving (rich makes a SystemExit of it).
    with suppress(OSError, SystemExit):
        for label, text in lines(settings, urls, admin, room):
            out.print(Text.assemble((f"  {label:<9}", "dim"), text), soft_wrap=True)
        out.file.flush()


def lines(
    settings: ServeSettings, urls: Sequence[str], admin: Sequence[str], room: int
) -> list[tuple[str, Text]]:
    """Return the lines: what each is about, and the text."""
    found = [("serving", Text(settings.app, "bold"))]
    found += [("at", Text.assemble((url, "bold cyan"), remark)) for url, remark in addresses(settings, urls)]
    if settings.workers > 1:
        found.append(("workers", Text(f"{settings.workers}; SIGHUP replaces them one after the other")))
    if settings.reload:
        found.append(
            (
                "reload",
                Text(
                    "when a file changes in " + (", ".join(settings.reload_dirs) or "the working directory")
                ),
            )
        )
    if settings.broker is not None:
        found.append(("broker", Text(without_password(settings.broker))))
    pages = "/metrics /healthz /readyz /workers" + (" /debug/" if settings.debug else "")
    found += [("admin", Text(f"{url.removeprefix('http+')}  {pages}")) for url in admin]
    each = f" ({settings.workers} times {room:,})" if settings.workers > 1 else ""
    found.append(("room for", Text(f"{room * settings.workers:,} connections{each}")))
    found.append(
        ("stop", Text(f"Ctrl-C or SIGTERM: drains within {settings.grace:g} s; a second one: at once"))
    )
    return found


def addresses(settings: ServeSettings, urls: Sequence[str]) -> list[tuple[str, str]]:
    """Return what to connect to, and a remark: a browser wants http where a script wants ws."""
    found = []
    for url in urls:
        remark = ""
        if match := re.fullmatch(r"ws(s?)://(.*)", url):
            remark = f"  http{match[1]}://{match[2]}"
        if settings.unix is None and settings.fd is None and settings.host in {"0.0.0.0", "::", None}:
            remark += "  (and all other addresses of this machine)"
        found.append((url, remark))
    return found
