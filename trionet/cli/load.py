"""``trionet load``: its options are the fields of `LoadOptions`, one for one, and what to do with the result."""

from __future__ import annotations

import inspect
import sys
import typing
from contextlib import nullcontext
from typing import Annotated, Any

import attrs
import trio
from cyclopts import Group, Parameter

from trionet.cli import output
from trionet.cli.load_view import LiveView
from trionet.client.load.coordinator import run_load
from trionet.client.load.options import SCENARIOS, LoadOptions, parse_duration
from trionet.client.load.report import check_path, write_report
from trionet.client.load.result import Point, Result
from trionet.client.load.text import point_line, result_text
from trionet.errors import ConfigurationError

__all__ = ["load"]

_TYPES = typing.get_type_hints(LoadOptions)
_GROUPS = {
    "Connections": "connections connect_rate connecting connect_timeout reconnect ping_interval abrupt source",
    "Messages": "rate in_flight publishers control storms size message binary any_answer",
    "Time": "settle duration deadline",
    "The request": "subprotocol header origin insecure compression",
    "Processes": "processes cpu",
    "Conditions: exit code 1 when one does not hold": "max_p99 max_connect_p99 max_failures min_rate",
    "Other machines": "allow_remote i_may_load",
}
_OUTPUT = Group("Output", sort_key=9)


def load(  # noqa: D417 - `given` is `LoadOptions`, which has its own help
    url: str,
    scenario: str | None = None,
    *,
    report: Annotated[
        tuple[str, ...], Parameter(metavar="FILE", negative=(), show_default=False, group=_OUTPUT)
    ] = (),
    json: Annotated[bool, Parameter(negative=(), show_default=False, group=_OUTPUT)] = False,
    json_lines: Annotated[bool, Parameter(negative=(), show_default=False, group=_OUTPUT)] = False,
    **given: Any,
) -> int:
    """Put load on a WebSocket server, and measure what it does.

    Scenarios:
    SCENARIOS

    Examples::

      trionet load ws://127.0.0.1:8080/ --connections 10000
      trionet load ws://127.0.0.1:8080/ echo --connections 100 --in-flight 16
      trionet load ws://127.0.0.1:8080/ rate --rate 5000 --duration 1m --max-p99 20ms --report out.html

    The exit code is 0, or 1 when a condition does not hold, nothing could be connected or a load process died, 2 for
    options that cannot be, 130 after Ctrl-C (which still reports).

    Args:
        url: ws://…, wss://… or ws+unix:/the/socket:/path
        scenario: one of those above; without one, idle
        report: write a report: FILE.html, FILE.svg, FILE.hgrm or FILE.json
        json: print the result as one JSON document
        json_lines: print a JSON object a second
    """
    given = {"scenario": scenario, **given}
    options = LoadOptions(
        url=url, **{name: _value(name, value) for name, value in given.items() if value is not None}
    )
    for path in report:
        check_path(path)
    terminal = not (json or json_lines) and output.console(stderr=True).is_terminal
    view = LiveView(options) if terminal else None

    def show(point: Point, result: Result) -> None:
        if json_lines:
            output.emit_json(point, compact=True)
        elif view is not None:
            view.show(point, result)
        else:
            sys.stderr.write(point_line(point, result) + "\n")
            sys.stderr.flush()

    async def run() -> Result:
        return await run_load(options, command=["trionet", *sys.argv[1:]], show=show)

    try:
        with view or nullcontext():
            result = trio.run(run)
    except OSError as error:
        raise ConfigurationError(f"{options.target.host}: {error.strerror or error}") from error
    if json:
        output.emit_json(result)
    elif not json_lines:
        output.console().print(result_text(result))
    for path in report:
        for written in write_report(result, path):
            output.console(stderr=True).print(f"written: {written}")
    return {"passed": 0, "interrupted": 130}.get(result["outcome"], 1)


# ---------------------------------------------------------------- the options


def _value(name: str, value: Any) -> Any:
    """What cyclopts has read, as `LoadOptions` wants it."""
    if _FIELDS[name].metadata.get("duration"):
        try:
            return parse_duration(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"--{name.replace('_', '-')}: {error}") from None
    return value


_FIELDS = {field.name: field for field in attrs.fields(LoadOptions)}


def _parameters() -> list[inspect.Parameter]:
    """A parameter for each option."""
    groups = {
        name: Group(title, sort_key=number)
        for number, (title, names) in enumerate(_GROUPS.items(), 1)
        for name in names.split()
    }
    made = []
    for name, field in _FIELDS.items():
        wanted = str | None if field.metadata.get("duration") else _TYPES[name]
        flag = wanted is bool
        several = typing.get_origin(wanted) is tuple
        extra: dict[str, Any] = {"group": groups[name]} if name in groups else {}
        parameter = Parameter(
            help=field.metadata["help"],
            metavar=None if flag else _metavar(name, field),
            negative=(),
            show_default=_shown(field),
            allow_leading_hyphen=not flag and not several and name not in ("url", "scenario"),
            **extra,
        )
        positional = name in ("url", "scenario")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
        default = inspect.Parameter.empty if name == "url" else None
        wanted = wanted if name == "url" else wanted | None
        made.append(inspect.Parameter(name, kind, default=default, annotation=Annotated[wanted, parameter]))
    return made


def _metavar(name: str, field: Any) -> str:
    """What stands for the value in the help."""
    if "metavar" in field.metadata:
        return str(field.metadata["metavar"])
    if field.metadata.get("duration"):
        return "TIME"
    return "N" if any(kind in str(_TYPES[name]) for kind in ("int", "float")) else "TEXT"


def _shown(field: Any) -> Any:
    """What `Parameter` wants for the default that the help tells; None: nothing."""
    text: str | None = None
    if field.default not in (None, False, ()) and field.default is not attrs.NOTHING:
        text = f"{field.default:g}s" if field.metadata.get("duration") else str(field.default)
    return lambda _: text


def _extend(function: Any) -> None:
    """Give `load` the options, beside those it has."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    kept = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    made = _parameters()
    positional = [p for p in made if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [p for p in made if p.kind is inspect.Parameter.KEYWORD_ONLY]
    function.__signature__ = inspect.Signature([*positional, *others, *kept])
    lines = "\n".join(f"  {name:<8} {text}" for name, text in SCENARIOS.items())
    text = inspect.cleandoc(function.__doc__)  # Python 3.13 has done that already
    function.__doc__ = text.replace("Scenarios:\nSCENARIOS\n", f"Scenarios::\n\n{lines}\n")


_extend(load)
