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
    connections: Annotated[int, Parameter(name=["--connections", "-n"], metavar="N")] = 10_000,
    workers: Annotated[str, Parameter(metavar="N")] = "auto",
    handler: Annotated[
        Literal["events", "straight", "task"], Parameter(metavar="events|straight|task", show_choices=False)
    ] = "events",
    tls: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    local_clients: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    port: Annotated[int, Parameter(metavar="PORT")] = 8080,
    ping_interval: Annotated[float, Parameter(metavar="SECONDS")] = 20.0,
    reserve: Annotated[int, Parameter(metavar="N")] = 64,
    pid: Annotated[int | None, Parameter(metavar="PID")] = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative=(), show_default=False)] = False,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Say what this machine lacks for so many connections, and what would fix it.

    Reads limits of the kernel, the process and its control group; changes nothing and needs no privileges. The limits
    are those of this shell: a service has its own, ask for them by `--pid`. Exit code 0: it suffices; 1: it does not.

    Examples::

      trionet doctor --connections 100000
      trionet doctor -n 50000 --handler straight --tls
      trionet doctor -n 50000 --pid "$(systemctl show -p MainPID --value shop)"

    Args:
        connections: how many connections the server shall hold
        workers: worker processes; auto: as many as processors, or as the limit on open files makes necessary
        handler: what serves them: event methods, one coroutine each, or a Trio task each
        tls: connections speak TLS
        local_clients: the clients, or a proxy in front, run on this machine too
        port: port the server listens on
        ping_interval: seconds between keepalive pings; 0: none
        reserve: descriptors of a worker besides its connections (databases, files)
        pid: ask for the limits of this process instead of the shell's
        verbose: explain what is in order, too
        json: print one JSON document
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
