"""The ``trionet`` command: one table of subcommands, each imported when it is called.

A subcommand is a function with annotated parameters (or a `cyclopts.App`); its docstring is its help. It returns its
exit code, None being 0, and may raise `ConfigurationError` for what the user has to change.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from typing import NamedTuple

import cyclopts

from trionet._version import __version__
from trionet.cli import output
from trionet.cli.help import HelpFormatter
from trionet.errors import ConfigurationError

__all__ = ["COMMANDS", "build", "main"]


class Command(NamedTuple):
    """Where the function of a subcommand is, its line in the list of commands, and what stands behind its name."""

    where: str
    line: str
    usage: str | None = None


COMMANDS = {
    "serve": Command("trionet.cli.serve:serve", "serve an application", "[OPTIONS] [APP]"),
    "demo": Command(
        "trionet.cli.demo:demo", "run an example, with an address to open in the browser", "[OPTIONS] [NAME]"
    ),
    "load": Command(
        "trionet.cli.load:load", "put a server under load and measure it", "[OPTIONS] URL [SCENARIO]"
    ),
    "broker": Command("trionet.cli.broker:broker", "serve a local broker by itself", "[OPTIONS] PATH"),
    "doctor": Command("trionet.cli.doctor:doctor", "say what this machine lacks for so many connections"),
    "health": Command(
        "trionet.cli.health:health",
        "ask a server whether it is well (container health checks)",
        "[OPTIONS] [URL]",
    ),
    "completion": Command(
        "trionet.cli.completion:completion", "print the completion script of a shell", "[SHELL]"
    ),
}

NUMBERS = {int: "a whole number", float: "a number"}

EPILOGUE = """\
Examples:
  trionet demo chat --open
  trionet serve shop.web:app --workers auto --port 8000
  trionet doctor --connections 100000

Exit codes:
  0    all is well
  1    a check or a threshold failed, or a server ended by an error
  2    the command line or a setting is wrong
  130  interrupted

trionet COMMAND --help says more about each."""


def version() -> str:
    """Return what a report of a problem should begin with."""
    from importlib import metadata

    return f"trionet {__version__} (Python {platform.python_version()}, Trio {metadata.version('trio')})"


def build(chosen: str | None = None) -> cyclopts.App:
    """Make the command; of the subcommands at most the `chosen` one is imported."""
    app = cyclopts.App(
        name="trionet",
        help="Servers on Trio that hold very many connections.",
        help_format="plaintext",
        help_formatter=HelpFormatter(),
        group_parameters=cyclopts.Group("Options"),
        help_epilogue=None if chosen else EPILOGUE,
        version=version,
        version_format="plaintext",
        backend="trio",
        result_action="return_int_as_exit_code_else_zero",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    app["--help"].help = "show this and exit"
    app["--version"].help = "show the version and exit"
    for number, (name, command) in enumerate(COMMANDS.items()):
        # The line is for the list of commands; the page of a command shows its docstring.
        line = None if name == chosen else command.line
        usage = {"usage": f"trionet {name} {command.usage}"} if command.usage else {}
        app.command(command.where, name=name, help=line, sort_key=number, **usage)
    if chosen == "load":
        # A command of a command. `app["load"]` imports the one, so we may as well import the other.
        from trionet.cli.load_report import load_report

        app["load"].command(load_report, name="report", usage="trionet load report [OPTIONS] [NAME=]FILE...")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1, 2 or 130, see `EPILOGUE`."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    chosen = tokens[0] if tokens and tokens[0] in COMMANDS else None
    if tokens and chosen is None and tokens[0] not in {"-h", "--help", "--version"}:
        return _unknown(tokens[0])
    try:
        return int(build(chosen)(tokens))
    except cyclopts.CycloptsError as error:
        output.fail(_wording(error), hint=f"See trionet {f'{chosen} ' if chosen else ''}--help")
        return 2
    except ConfigurationError as error:
        output.fail(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `trionet ... | head` had enough. Python would flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _wording(error: cyclopts.CycloptsError) -> str:
    """Say what is wrong with the command line."""
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"there is one argument too many: {(error.unused_tokens or [''])[0]!r}"
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        return (
            f"{name.lstrip('-').upper()} is missing"
            if error.argument.index is not None
            else f"{name} needs a value"
        )
    if isinstance(error, cyclopts.CoercionError) and error.token is not None and error.target_type in NUMBERS:
        token = error.token
        return (
            f"{token.keyword or 'the argument'} is {token.value!r}; it must be {NUMBERS[error.target_type]}"
        )
    error.verbose = False
    return str(error)


def _unknown(name: str) -> int:
    """Say which command may have been meant; cyclopts would import all of them to find out."""
    import difflib

    near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    what = "option" if name.startswith("-") else "command"
    output.fail(f"there is no {what} {name!r} here{meant}", hint=f"Commands: {', '.join(COMMANDS)}")
    return 2
