"""``trionet serve``: its options are the fields of `ServeSettings`, one for one."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import re
import socket
import ssl
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import attrs
from cyclopts import Group, Parameter

from trionet.cli import output
from trionet.cli.files import find_document
from trionet.cli.loading import show_loading_error
from trionet.cli.settings import Settings, option, read, variable
from trionet.cli.values import FIELDS, TYPES, is_secret
from trionet.cli.welcome import welcome, welcome_workers
from trionet.errors import ConfigurationError
from trionet.ops.settings import ServeSettings, without_password

__all__ = ["check_files", "gather", "serve"]

log = logging.getLogger("trionet.ops")

GROUPS = {
    "where": Group("Where to listen", sort_key=1),
    "processes": Group("Processes", sort_key=2),
    "limits": Group("Limits", sort_key=3),
    "overload": Group("Overload: when nobody is let in", sort_key=4),
    "operation": Group("Operation", sort_key=5),
}
COMMAND = Group("This command", sort_key=9)

#: What bind(2) says of an address that cannot be had.
ADDRESS = frozenset((errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM))
#: And of the path of a Unix socket.
NO_PATH = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EROFS))

#: What stands for the value in the help, where the type does not say it.
METAVARS = {
    "host": "ADDRESS",
    "broker": "URL",
    "admin": "ADDRESS",
    "port": "PORT",
    "unix": "PATH",
    "unix_mode": "MODE",
    "tls_cert": "FILE",
    "tls_key": "FILE",
    "workers": "N",
    "overload_exempt": "ADDRESS",
    "reload_dirs": "FOLDER",
    "proxy_protocol": "ADDRESS",
    "max_memory": "BYTES",
    "max_handshakes_per_second": "RATE",
    "log_level": "LEVEL",
}


def serve(
    spec: str | None = None,
    /,
    *,
    config: Annotated[str | None, Parameter(metavar="FILE", group=COMMAND)] = None,
    show_settings: Annotated[bool, Parameter(negative=(), show_default=False, group=COMMAND)] = False,
    json: Annotated[bool, Parameter(negative=(), show_default=False, group=COMMAND)] = False,
    **options: Any,
) -> int:
    """Serve an application until SIGTERM or Ctrl-C.

    APP is package.module:attribute or path/to/file.py:attribute; without an attribute it is the first there is of app,
    application, protocol and handler: an Application, a protocol, a WebSocketHandler, or a function that handles a
    WebSocket.

    Each setting is an option here, an environment variable (--max-connections is TRIONET_MAX_CONNECTIONS) or a
    key of a TOML file (max_connections in the table [serve] of trionet.toml, or [tool.trionet.serve] of
    pyproject.toml), and counts in this order. "none" takes back a limit that a file has set.

    Examples::

      trionet serve shop.web:app
      trionet serve chat.py --reload --log-level debug
      trionet serve shop.web:app --host 0.0.0.0 --workers auto --admin 127.0.0.1:9090
      trionet serve --config /etc/trionet.toml --show-settings

    Args:
        spec: what to serve
        config: the TOML file; without this, trionet.toml or pyproject.toml in the working directory
        show_settings: print each setting and where it comes from, and serve nothing
        json: print that as JSON
        options: the settings
    """
    given = {
        name: ",".join(value) if isinstance(value, tuple) else value
        for name, value in {"app": spec, **options}.items()
        if value is not None
    }
    if json and not show_settings:
        raise ConfigurationError("option --json goes with --show-settings; logs in JSON: --log-format json")
    found = gather(given, config, need_app=not show_settings)
    if show_settings or found.values is None or found.values.log_format == "text":
        for warning in found.warnings:
            output.warn(warning)
        found = attrs.evolve(found, warnings=[])
    settings = check_files(found)
    if show_settings:
        _show(found, settings, as_json=json)
        return 0
    return _run(settings, found.warnings, lambda: check_files(gather(given, config)))


def gather(options: dict[str, Any], config: str | None, *, need_app: bool = True) -> Settings:
    """Read the settings from all sources, as they are now."""
    document = find_document(config or os.environ.get("TRIONET_CONFIG") or None)
    if document is None:
        return read(options, os.environ, need_app=need_app)
    return read(
        options,
        os.environ,
        document.content,
        file=document.file,
        table=document.table,
        source=document.source,
        need_app=need_app,
    )


def check_files(found: Settings) -> ServeSettings:
    """Return the settings if the files they name are there and fit; raises `ConfigurationError`."""
    settings = found.checked()
    if settings.tls_cert is not None:
        for name in ("tls_cert", "tls_key"):
            path = getattr(settings, name)
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"{found.origins[name].label}: there is no file {path}")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_cert, settings.tls_key, lambda: settings.tls_key_password or _no_password()
            )
        except (OSError, ssl.SSLError) as error:
            why = f"{error} (is tls_key_password right?)" if settings.tls_key_password else str(error)
            raise ConfigurationError(f"{found.origins['tls_cert'].label}: {why}") from error
    for folder in settings.reload_dirs:
        if not Path(folder).is_dir():
            raise ConfigurationError(f"{found.origins['reload_dirs'].label}: there is no folder {folder}")
    return settings


def _no_password() -> NoReturn:
    """OpenSSL would ask for it on the terminal, once for each worker."""
    raise ConfigurationError(
        f"the private key is encrypted; set tls_key_password in the file, or {variable('tls_key_password')}"
    )


def _run(settings: ServeSettings, warnings: list[str], reload_settings: Callable[[], ServeSettings]) -> int:
    """Serve, in this process or by a supervisor."""
    from trionet.ops import logs, supervisor, worker

    logs.configure(settings.log_format, settings.log_level)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        if settings.workers > 1 or settings.reload:
            return supervisor.run(settings, reload_settings, lambda urls: welcome_workers(settings, urls))
        return worker.run_alone(settings, lambda server, desk: welcome(settings, server, desk))
    except Exception as error:
        if show_loading_error(settings.app, error):
            return 2 if isinstance(error, ConfigurationError) else 1
        if isinstance(error, socket.gaierror):
            output.fail(f"the host to listen on cannot be found: {error.strerror}")
            return 2
        if isinstance(error, OSError) and error.errno in ADDRESS | NO_PATH:
            output.fail(str(error.strerror or error), hint=_hint(error))
            return 2
        raise


def _hint(error: OSError) -> str | None:
    """Say what to do about an address that cannot be had."""
    port = re.search(r"port (\d+)", str(error))
    if error.errno == errno.EADDRINUSE and port:
        return f"Another process has it: ss -ltnp 'sport = :{port[1]}' names it."
    if error.errno == errno.EACCES and port and int(port[1]) < 1024:
        return "Ports below 1024 need CAP_NET_BIND_SERVICE, a socket of systemd, or a proxy in front."
    return None


# ------------------------------------------------------------- --show-settings


def _show(found: Settings, settings: ServeSettings, *, as_json: bool) -> None:
    values = {name: _shown(name, getattr(settings, name)) for name in FIELDS}
    if as_json:
        output.emit_json(
            {
                name: {"value": value or None if name == "app" else value}
                | {"from": found.origins[name].kind, "source": found.origins[name].label}
                for name, value in values.items()
            }
        )
        return
    rows = []
    for name, value in values.items():
        text = "none" if value in {None, ""} else str(value).lower() if isinstance(value, bool) else value
        if isinstance(text, list | tuple):
            text = ",".join(text) or "-"
        if isinstance(value, float):
            text = f"{value:g}"
        if name == "unix_mode" and value is not None:
            text = f"{value:o}"
        label = found.origins[name].label
        rows.append((name, str(text), "" if label == "default" else label))
    output.show_table(("setting", "value", "from (default if empty)"), rows)


def _shown(name: str, value: Any) -> Any:
    if name == "broker" and value is not None:
        return without_password(value)
    return "***" if value is not None and is_secret(name) else value


# ------------------------------------------------------------------ the options


def _parameters() -> list[inspect.Parameter]:
    """Make a parameter of each setting; values are taken as text (flags apart), `trionet.cli.settings` reads them."""
    made = []
    for name, field in FIELDS.items():
        if is_secret(name):
            continue
        flag = TYPES[name] is bool
        several = typing.get_origin(TYPES[name]) is tuple
        wanted: Any = bool if flag else tuple[str, ...] | None if several else str | None
        parameter = Parameter(
            name=None if name == "app" else option(name),
            help=field.metadata["help"],
            metavar=None if flag else _metavar(name),
            negative_iterable=(),
            show_default=functools.partial(default_text, field),
            # --port -1 is a wrong port, not an option "-1"
            allow_leading_hyphen=not flag and not several and name != "app",
        )
        if field.metadata["group"] in GROUPS:
            parameter = Parameter.combine(parameter, Parameter(group=GROUPS[field.metadata["group"]]))
        kind = inspect.Parameter.POSITIONAL_ONLY if name == "app" else inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(name, kind, default=None, annotation=Annotated[wanted, parameter]))
    return made


def _metavar(name: str) -> str:
    """What stands for the value in the help."""
    if name in METAVARS:
        return METAVARS[name]
    wanted = TYPES[name]
    if typing.get_origin(wanted) is Literal:
        return "|".join(typing.get_args(wanted))
    if FIELDS[name].metadata["help"].startswith("seconds"):
        return "SECONDS"
    return "N" if int in {wanted, *typing.get_args(wanted)} else "TEXT"


def default_text(field: attrs.Attribute[Any], _: object = None) -> str | None:
    """What the help says is taken; nothing for what is off or not limited."""
    if field.default is attrs.NOTHING or field.default in (None, False, ()):
        return None
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _extend(function: Any) -> None:
    """Give `serve` the options, beside those it has."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    kept = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    function.__signature__ = inspect.Signature([*_parameters(), *kept])


_extend(serve)
