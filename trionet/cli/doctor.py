"""``trionet doctor``: say what this machine lacks for so many connections, and what would fix it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from cyclopts import Parameter
from rich.text import Text

from trionet.cli import output
from trionet.errors import ConfigurationError
from trionet.ops.doctor import Plan, examine, read_facts
from trionet.ops.doctor.text import Line, Style, render

__all__ = ["doctor"]

STYLES: Final[dict[Style, str]] = {
    "": "",
    "title": "bold",
    "ok": "bold green",
    "warn": "bold yellow",
    "fail": "bold red",
    "unknown": "bold magenta",
    "quiet": "dim",
}

#: Columns where there is no terminal to ask.
WIDTH: Final = 80


def doctor(
    *,
    connections: Annotated[int, Parameter(name=["--connections", "-n"])] = 10_000,
    workers: str = "auto",
    handler: Literal["events", "straight", "task"] = "events",
    tls: Annotated[bool, Parameter(negative=())] = False,
    local_clients: Annotated[bool, Parameter(negative=())] = False,
    port: int = 8080,
    ping_interval: float = 20.0,
    reserve: int = 64,
    pid: int | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Say what this machine lacks for so many connections, and what would fix it.

    Reads limits of the kernel, the process and its control group; changes nothing and needs no privileges. The limits
    are those of this shell: a service has its own, ask for them by `--pid`. Exit code 0: it suffices; 1: it does not.

    Parameters
    ----------
    connections:
        How many connections the server shall hold.
    workers:
        Worker processes; auto: as many as processors, or as the limit on open files makes necessary.
    handler:
        What serves them: event methods, one coroutine each, or a Trio task each.
    tls:
        Connections speak TLS.
    local_clients:
        The clients, or a proxy in front, run on this machine too.
    port:
        Port the server listens on.
    ping_interval:
        Seconds between keepalive pings; 0: none.
    reserve:
        Descriptors of a worker besides its connections (databases, files).
    pid:
        Ask for the limits of this process instead of the shell's.
    verbose:
        Explain what is in order, too.
    json:
        Print one JSON document.
    """
    plan = Plan(
        connections=connections,
        workers=_workers(workers),
        handler=handler,
        tls=tls,
        local_clients=local_clients,
        port=port,
        ping_interval=ping_interval or None,
        reserve=reserve,
    )
    report = examine(read_facts(pid=pid), plan)
    if json:
        output.emit_json(report.to_json())
        return 0 if report.suffices else 1
    out = output.console()
    for line in render(report, width=out.width if out.is_terminal else WIDTH, verbose=verbose):
        out.print(_text(line), soft_wrap=True)
    return 0 if report.suffices else 1


def _workers(value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal():
        raise ConfigurationError(f"workers is {value!r}; it must be a number, or auto")
    return int(value)


def _text(line: Line) -> Text:
    text = Text(line.text)
    if line.style:
        text.stylize(STYLES[line.style], 0, line.styled)
    return text
