"""What `trionet serve` serves: an `Application`, found by its name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from os.path import isfile, realpath, split
from types import TracebackType
from typing import Any

import attrs

from trionet.errors import ConfigurationError
from trionet.protocols.base import Protocol
from trionet.protocols.websocket import WebSocketHandler, WebSocketProtocol
from trionet.server import Server

__all__ = ["Application", "load", "own_failure"]

#: Looked for in a module, in this order, when the name says no attribute.
ATTRIBUTES = ("app", "application", "protocol", "handler")


@attrs.frozen
class Application:
    """A protocol, and what runs beside it: what a module offers to ``trionet serve module:app``.

    `lifespan`: see `open_server`. `families`: called for each scrape of /metrics with the `Server`; returns metrics of
    the application's own (`trionet.ops.metrics`).
    """

    protocol: Any
    lifespan: Callable[[Server], AbstractAsyncContextManager[Any]] | None = attrs.field(
        default=None, kw_only=True
    )
    families: Callable[[Server], Any] | None = attrs.field(default=None, kw_only=True)


def load(spec: str) -> Application:
    """Import what `spec` names: ``package.module:attribute``, or ``path/to/file.py:attribute``.

    Without an attribute: the first of `ATTRIBUTES` that is there. It may be an `Application`, a protocol, a
    `WebSocketHandler`, a coroutine function that takes a `WebSocket`, or a function without parameters that returns one
    of these. Raises `ConfigurationError` for what does not exist or is none of them; an error in the module itself goes
    through as it is.
    """
    where, _, attribute = spec.partition(":")
    if not where:
        raise ConfigurationError(
            f"{spec!r} names no module; write package.module:attribute, or path/to/file.py"
        )
    module = _import_file(where) if where.endswith(".py") or "/" in where else _import_module(where)
    if attribute:
        value: Any = module
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise ConfigurationError(f"{where} has no attribute {attribute!r}; it has {_offers(module)}")
            value = getattr(value, part)
    else:
        found = next((name for name in ATTRIBUTES if hasattr(module, name)), None)
        if found is None:
            raise ConfigurationError(
                f"{where} has none of {', '.join(ATTRIBUTES)}; say which attribute to serve, "
                f"as in {where}:{_offers(module)}"
            )
        attribute, value = found, getattr(module, found)
    return _as_application(value, f"{where}:{attribute}")


def own_failure(error: BaseException) -> tuple[str, TracebackType | None]:
    """What failed of the application when it was loaded and started, and the traceback without our part of it.

    "" if that is not what `error` comes from. A syntax error has no traceback: where it is stands in the error itself.
    """
    trace = error.__traceback__
    while trace is not None and _ours(trace) not in {__name__, "lifespan"}:
        trace = trace.tb_next
    if trace is None:
        return "", None
    what = "cannot be loaded" if _ours(trace) == __name__ else "did not start: its lifespan failed"
    last = trace
    while trace is not None and _ours(trace) in {__name__, "lifespan", "importlib", "contextlib"}:
        last, trace = trace, trace.tb_next
    if trace is not None:
        return ("", None) if _ours(trace).startswith("trionet.") else (what, trace)
    if isinstance(error, SyntaxError):
        return what, None
    # The loader's own errors say it all. A lifespan that is called wrongly has no frame either.
    return (what, last) if _ours(last) == "contextlib" else ("", None)


def _ours(trace: TracebackType) -> str:
    """The module a frame is in; "lifespan" for the function of trionet that calls the application's."""
    code, name = trace.tb_frame.f_code, str(trace.tb_frame.f_globals.get("__name__", ""))
    if name == "trionet.server" and code.co_name == "open_server":
        return "lifespan"
    return "importlib" if name.startswith("importlib.") or "<frozen importlib" in code.co_filename else name


def _as_application(value: Any, name: str, *, made: bool = False) -> Application:
    if isinstance(value, Application):
        return value
    if isinstance(value, Protocol):
        return Application(value)
    if isinstance(value, WebSocketHandler):
        return Application(WebSocketProtocol(value))
    if isinstance(value, type):
        raise ConfigurationError(f"{name} is a class; serve an object of it, as in app = {value.__name__}()")
    if callable(value):
        parameters = _parameters(value)
        if inspect.iscoroutinefunction(value):
            if len(parameters) == 1:
                return Application(WebSocketProtocol(value))
            raise ConfigurationError(
                f"{name}: a handler takes one argument, the WebSocket; this one takes {len(parameters)}"
            )
        if not parameters and not made:
            return _as_application(value(), f"{name}()", made=True)
        if len(parameters) == 1 and inspect.isfunction(value):
            raise ConfigurationError(f"{name} is no coroutine function; write async def {value.__name__}(ws)")
    raise ConfigurationError(
        f"{name} is of type {type(value).__name__}; it must be an Application, a protocol, a WebSocketHandler, "
        "a coroutine function of a WebSocket, or a function without parameters that returns one of these"
    )


def _parameters(function: Any) -> list[str]:
    """Names of the parameters that must be given."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, and does not say
        return ["?"]
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]


def _import_module(name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {error.name!r}, neither in {here} nor installed; is it spelled right?"
            ) from None
        raise  # it is there, and imports something that is not


def _import_file(path: str) -> Any:
    file = realpath(path)  # `pathlib` would make 0.2 MB of it the worker's own
    if not isfile(file):  # noqa: PTH113
        raise ConfigurationError(f"there is no file {path}")
    folder, base = split(file)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python file.py` does
    name = base.removesuffix(".py")
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) != file:
        name = f"served_{name}"  # json.py is not to become everybody's json
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for what looks itself up, as dataclasses do
    spec.loader.exec_module(module)
    return module


def _offers(module: Any) -> str:
    """Names that may be meant, for an error message."""
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, Application | Protocol | WebSocketHandler)
            or (inspect.isfunction(value) and value.__module__ == module.__name__)
        )
    ]
    return ", ".join(sorted(names)[:10]) or "nothing that can be served"
