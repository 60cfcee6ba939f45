"""The settings of ``trionet serve``: from options, the environment and a TOML file, and which of them said what.

Pure: mappings in, `Settings` out, with every error there is, not the first one only. What settings there are, and what
is allowed for each, stands in `ServeSettings` alone. An option counts more than the environment, that more than a file.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from trionet.cli.values import FIELDS, convert
from trionet.errors import ConfigurationError
from trionet.ops.broker import check_broker
from trionet.ops.settings import ServeSettings
from trionet.ops.sockets import admin_endpoint

__all__ = ["TABLE", "Origin", "Settings", "error_text", "option", "read", "variable"]

#: The table of the file that has the settings; in pyproject.toml it is ``tool.trionet.serve``.
TABLE = "serve"

Kind = Literal["option", "environment", "file", "default"]
RANK: dict[Kind, int] = {"option": 3, "environment": 2, "file": 1, "default": 0}

#: Where to listen: one of them.
PLACES = (("fd",), ("unix", "unix_mode"), ("host", "port"))


@attrs.frozen
class Origin:
    """Where a value came from. `label` names it to people: ``option --port``, ``trionet.toml:3: port``."""

    kind: Kind
    label: str


@attrs.frozen
class Settings:
    """What was read: `values` is None if there are `errors`. `origins` has each setting; `warnings` are to be shown."""

    values: ServeSettings | None
    origins: dict[str, Origin]
    errors: list[str]
    warnings: list[str]

    def checked(self) -> ServeSettings:
        """Return the values, or raise `ConfigurationError` with all errors."""
        if self.values is None:
            raise ConfigurationError(error_text(self.errors))
        return self.values


def error_text(errors: Sequence[str]) -> str:
    """Return errors as one message."""
    if len(errors) == 1:
        return errors[0]
    return "\n".join([f"{len(errors)} settings are wrong", *(f"  {error}" for error in errors)])


def option(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-") if name != "app" else "APP"


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return "TRIONET_" + name.upper()


def read(
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    document: Mapping[str, Any] | None = None,
    *,
    file: str = "trionet.toml",
    table: Sequence[str] = (TABLE,),
    source: str = "",
    need_app: bool = True,
) -> Settings:
    """Join the three sources.

    `options`: those that were given, by the name of the setting. `document`: the TOML file, parsed; `file` is its name,
    `table` where in it the settings are, and `source` its text, from which the errors take the line. Without `need_app`
    there may be nothing to serve.
    """
    reader = _Reader()
    reader.read_file(document, file, table, source)
    reader.read_environment(environ)
    for name, value in options.items():
        label = f"option {option(name)}" if name != "app" else "argument APP"
        reader.take(name, value, Origin("option", label))
    if not need_app and "app" not in reader.wrong:
        reader.values.setdefault("app", "")
    return reader.finish()


class _Reader:
    """Gathers values, a more important source over a less important one."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins = {name: Origin("default", "default") for name in FIELDS}
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.wrong: set[str] = set()

    def take(self, name: str, value: Any, origin: Origin) -> None:
        """Convert and check one value. A wrong one is an error also where a more important source overrides it."""
        field = FIELDS[name]
        try:
            value = convert(name, value)
            if field.converter is not None and value is not None:
                value = typing.cast("Any", field.converter)(value)
            if field.validator is not None:
                field.validator(typing.cast("Any", None), field, value)
        except ValueError as error:
            self.wrong.add(name)
            self.errors.append(f"{origin.label} {str(error).removeprefix(name).strip()}")
            return
        self.values[name] = value
        self.origins[name] = origin

    def read_file(
        self, document: Mapping[str, Any] | None, file: str, table: Sequence[str], source: str
    ) -> None:
        """Take what the file has."""
        if document is None:
            return
        section: Any = document
        if table == (TABLE,):
            for key in section:
                if key in FIELDS:
                    where = locate(source, (), key, file)
                    self.errors.append(f"{where} belongs in the table [{TABLE}]; write [{TABLE}] above it")
                elif key not in {TABLE, "tool"}:
                    meant = suggestion(key, [TABLE])
                    self.errors.append(f"{locate(source, (), key, file)} is no table of this file{meant}")
        for part in table:
            section = section.get(part, {})
            if not isinstance(section, Mapping):
                self.errors.append(f"{file}: {'.'.join(table)} must be a table, [{'.'.join(table)}]")
                return
        for key, value in section.items():
            where = locate(source, table, key, file)
            if key in FIELDS:
                self.take(key, value, Origin("file", where))
            else:
                self.errors.append(f"{where} is no setting{suggestion(key, FIELDS)}")

    def read_environment(self, environ: Mapping[str, str]) -> None:
        """Take what begins with ``TRIONET_``; what is empty counts as not there (``${NAME:-}`` in a compose file).

        What is unknown there is no error: Kubernetes puts TRIONET_SERVICE_HOST and more into every pod beside a service
        named trionet.
        """
        names = {variable(name): name for name in FIELDS}
        for key in sorted(environ):
            value = environ[key]
            if not key.startswith("TRIONET_") or not value:
                continue
            if key in names:
                if value.startswith("tcp://") and key == "TRIONET_PORT":
                    self.warnings.append(
                        f"environment variable {key} is {value!r}, which Kubernetes sets for a service named "
                        "trionet, and is not heeded; enableServiceLinks: false in the pod keeps it out"
                    )
                    continue
                self.take(names[key], value, Origin("environment", f"environment variable {key}"))
            elif key != "TRIONET_CONFIG" and (near := nearest(key.removeprefix("TRIONET_").lower(), FIELDS)):
                self.warnings.append(
                    f"environment variable {key} is no setting; did you mean {variable(near)}?"
                )

    def finish(self) -> Settings:
        """Check what belongs together and make the settings."""
        self.choose_place()
        if not self.wrong:
            self.cross_check()
        if "app" not in self.values and "app" not in self.wrong:
            self.errors.append(
                f"nothing to serve: give module:attribute or a file, or {variable('app')}, or app in the file"
            )
        values = None
        if not self.errors:
            try:
                values = ServeSettings(**self.values)
            except ConfigurationError as error:  # what the class itself finds to disagree
                self.errors.append(str(error))
        return Settings(values, self.origins, self.errors, self.warnings)

    def choose_place(self) -> None:
        """Let the place to listen of the most important source win over those of others."""
        ranks = {place: max(self.rank(name) for name in place) for place in PLACES}
        best = max(ranks.values())
        if not best:
            return
        if len(winners := [place for place, rank in ranks.items() if rank == best]) > 1:
            given = [self.said(name) for place in winners for name in place if self.rank(name) == best]
            self.errors.append(f"{' and '.join(given)}: only one place to listen is possible")
            return
        for place in PLACES:
            if place not in winners:
                for name in place:
                    self.values.pop(name, None)
                    self.origins[name] = Origin("default", "default")

    def cross_check(self) -> None:
        """Add an error for each pair of settings that contradict each other."""
        get = self.get
        for key in ("tls_key", "tls_key_password"):
            if get(key) is not None and get("tls_cert") is None:
                self.errors.append(f"{self.said(key)}: there is no certificate to it; set tls_cert")
        if get("unix_mode") is not None and get("unix") is None:
            self.errors.append(f"{self.said('unix_mode')}: there is no Unix socket; set unix")
        window, grace = get("drain_window"), get("grace")
        if window is not None and window > grace:
            self.errors.append(
                f"{self.said('drain_window')} is {window:g}, longer than grace ({grace:g}): "
                "connections would be cut before they are told to go"
            )
        try:
            check_broker(get("broker"), get("workers"))
        except ConfigurationError as error:
            self.errors.append(f"{self.said('broker')} {str(error).removeprefix('broker').strip()}")
        if get("debug") and get("admin") is None:
            self.errors.append(f"{self.said('debug')}: /debug/ is served on the admin address; set admin")
        if get("unix") is not None and get("admin") == f"unix:{get('unix')}":
            self.errors.append(f"{self.said('admin')} is the path of the server itself; take another")
        elif get("admin") is not None:
            self.check_admin(get("admin"))

    def check_admin(self, admin: str) -> None:
        """Refuse an admin address that cannot be, and one that strangers reach unless that is meant."""
        said = self.said("admin")
        try:
            endpoint = admin_endpoint(admin)
        except ConfigurationError as error:
            self.errors.append(f"{said} {str(error).removeprefix('admin').strip()}")
            return
        if endpoint.path is not None:
            if not endpoint.path:
                self.errors.append(f"{said} names no path; write unix:/run/trionet/admin.sock")
        elif not is_loopback(endpoint.host or "") and not self.get("admin_public"):
            self.errors.append(
                f"{said} is {admin!r}, which other machines reach, and it tells about your users; take 127.0.0.1 or "
                f"unix:/path, or allow it by {option('admin_public')} ({variable('admin_public')}=1)"
            )
        elif endpoint.port and endpoint.port == self.get("port") and not {"unix", "fd"} & self.values.keys():
            self.errors.append(
                f"{said} is {admin!r}, and {endpoint.port} is the port of the server; take another"
            )

    def get(self, name: str) -> Any:
        """Return the value a setting will have."""
        if name in self.values:
            return self.values[name]
        return FIELDS[name].default

    def rank(self, name: str) -> int:
        """How important the source of a setting is."""
        return RANK[self.origins[name].kind]

    def said(self, name: str) -> str:
        """Name a setting by where it was set."""
        return self.origins[name].label if self.rank(name) else name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`."""
    return host in {"localhost", "::1"} or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """Return what may have been meant, as the end of a sentence."""
    near = nearest(name.replace("-", "_"), known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: typing.Iterable[str]) -> str | None:
    """Return the known name that is nearest, if one is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)), None)


def locate(source: str, table: Sequence[str], key: str, file: str) -> str:
    """Name a key of a file with its line: ``trionet.toml:3: port``. The line is left out if it cannot be told."""
    here: tuple[str, ...] = ()
    for number, line in enumerate(source.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            here = tuple(part.strip(" \"'") for part in header[1].split("."))
            if here == (*table, key):  # the key is a table
                return f"{file}:{number}: {key}"
        elif here == tuple(table) and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return f"{file}:{number}: {key}"
    return f"{file}: {key}"
