"""What ``trionet serve`` can serve, and what it says of anything else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trionet
from trionet.errors import ConfigurationError
from trionet.ops.application import Application, load

HANDLER = """
import trionet
class Echo(trionet.WebSocketHandler): ...
async def handle(ws): ...
def make(): return trionet.WebSocketProtocol(Echo())
def make_twice(): return make
async def two(ws, more): ...
def one(ws): ...
class space:
    echo = Echo()
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Write a module; what is imported is forgotten afterwards."""
    modules, path = dict(sys.modules), list(sys.path)

    def file(text: str, name: str = "served_here.py") -> str:
        (tmp_path / name).write_text(HANDLER + text)
        return str(tmp_path / name)

    yield file
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


@pytest.mark.parametrize(
    "text",
    [
        "app = trionet.WebSocketProtocol(Echo())",
        "app = Echo()",
        "app = handle",
        "app = make",
        "application = Echo()",
        "protocol = make()",
        "handler = handle",
        "app = lambda: handle",
    ],
)
def test_what_is_served_by_its_usual_name(text: str, write: Callable[[str], str]) -> None:
    """A protocol, a handler of either kind, or a function that makes one."""
    assert isinstance(load(write(text)).protocol, trionet.WebSocketProtocol)


@pytest.mark.parametrize("name", ["make", "handle", "space.echo"])
def test_what_is_served_by_its_own_name(name: str, write: Callable[[str], str]) -> None:
    """Behind a colon, with dots if need be."""
    assert isinstance(load(f"{write('')}:{name}").protocol, trionet.WebSocketProtocol)


def test_an_application_is_taken_as_it_is(write: Callable[[str], str]) -> None:
    """With its lifespan."""
    file = write("from trionet.ops.application import Application\napp = Application(make(), lifespan=print)")
    assert isinstance(found := load(file), Application)
    assert found.lifespan is print


def test_a_module_is_found_in_the_working_directory(
    write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``python -m`` finds it."""
    monkeypatch.chdir(Path(write("app = Echo()")).parent)
    assert load("served_here").protocol is not None


@pytest.mark.parametrize(
    "spec, says",
    [
        (":app", "names no module"),
        ("no_such_module_here:app", "there is no module 'no_such_module_here'"),
        ("no/such/file.py", "there is no file no/such/file.py"),
        ("{file}:nothing", "has no attribute 'nothing'; it has handle, make, make_twice, one, two"),
        ("{file}", "has none of app, application, protocol, handler; say which"),
        ("{file}:Echo", "is a class; serve an object of it, as in app = Echo()"),
        ("{file}:two", "a handler takes one argument, the WebSocket; this one takes 2"),
        ("{file}:one", "is no coroutine function; write async def one(ws)"),
        ("{file}:make_twice", "is of type function; it must be"),
        ("{file}:space", "is a class"),
        ("{file}:HERE", "is of type int; it must be"),
        ("{file}:PRINT", "is of type builtin_function_or_method; it must be"),
    ],
)
def test_what_cannot_be_served(spec: str, says: str, write: Callable[[str], str]) -> None:
    """The error says why, and what to write instead."""
    file = write("HERE = 3\nPRINT = max")
    with pytest.raises(ConfigurationError) as caught:
        load(spec.format(file=file))
    assert says in str(caught.value)


def test_a_module_that_lacks_a_module(write: Callable[[str], str]) -> None:
    """The error is its own, not that the application was not found."""
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load(write("import no_such_library"))


def test_a_file_that_is_called_like_a_module_in_use(write: Callable[..., str]) -> None:
    """``json.py`` is served, and does not become everybody's json."""
    import json

    assert load(write("app = Echo()", "json.py")).protocol is not None
    assert sys.modules["json"] is json
