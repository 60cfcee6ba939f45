"""Fixtures of the tests of pubsub: real engines, started once and shared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).resolve().parent))  # importlib mode: test folders are no packages
from engines import Engine, found

from trionet.pubsub.brokers import linked


@pytest.fixture(scope="session")
def start_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[type[Engine]], Engine]]:
    """Return a function that returns the one engine of a class, started; they end with the session."""
    running: dict[type[Engine], Engine] = {}

    def start(kind: type[Engine]) -> Engine:
        if kind not in running:
            reason = kind.missing()
            if reason:
                pytest.skip(reason)
            running[kind] = kind(tmp_path_factory.mktemp(kind.name))
            trio.run(running[kind].start)
        return running[kind]

    yield start
    for engine in running.values():
        trio.run(engine.stop)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers try to connect again soon, however often they were cut off."""
    monkeypatch.setattr(linked, "LONGEST", 0.1)


ENGINES = [
    pytest.param(kind, id=kind.name, marks=[pytest.mark.processes] if kind.hurtable else [])
    for kind in found()
]
HURTABLE = [pytest.param(kind, id=kind.name) for kind in found() if kind.hurtable]


@pytest.fixture(params=ENGINES)
def engine(
    request: pytest.FixtureRequest, start_engine: Callable[[type[Engine]], Engine]
) -> Iterator[Engine]:
    """A running engine, each in its turn: use names made by `unique`, for it has been used before."""
    engine = start_engine(request.param)
    yield engine
    trio.run(engine.heal)


@pytest.fixture(params=HURTABLE)
def hurt(request: pytest.FixtureRequest, start_engine: Callable[[type[Engine]], Engine]) -> Iterator[Engine]:
    """The same, of those that can be killed; mark the test `processes`."""
    engine = start_engine(request.param)
    yield engine
    trio.run(engine.heal)


# Skips are fixtures, for a skip within an async test is shown without its reason.


def of_test(request: pytest.FixtureRequest) -> Engine:
    """The engine that a test runs on."""
    engine: Engine = request.getfixturevalue("engine" if "engine" in request.fixturenames else "hurt")
    return engine


@pytest.fixture
def with_members(request: pytest.FixtureRequest) -> None:
    """Skip an engine that knows no members."""
    engine = of_test(request)
    if not engine.broker().keeps_members:
        pytest.skip(f"{engine.name} keeps no members")


@pytest.fixture
def without_members(request: pytest.FixtureRequest) -> None:
    """Skip an engine that knows members."""
    engine = of_test(request)
    if engine.broker().keeps_members:
        pytest.skip(f"{engine.name} keeps members")


@pytest.fixture
def forgetful(request: pytest.FixtureRequest) -> None:
    """Skip an engine that has all it knew when it is started again."""
    engine = of_test(request)
    if not engine.forgets:
        pytest.skip(f"{engine.name} forgets nothing")
