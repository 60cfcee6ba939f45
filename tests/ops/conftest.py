"""Fixtures of the tests that run a supervisor and its workers."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # importlib mode: test folders are no packages
from served import APP, Nursery, Served

import trionet


@pytest.fixture(scope="session")
def nursery_process() -> Iterator[Nursery | None]:
    """What forks supervisors. Coverage follows new interpreters only."""
    if "coverage" in sys.modules or not hasattr(socket, "SOCK_SEQPACKET"):
        yield None
        return
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(tmp_path: Path, nursery_process: Nursery | None) -> Iterator[Callable[..., Served]]:
    """Start supervisors; each is ended with the test."""
    started: list[Served] = []

    def begin(app: str = APP, **settings: Any) -> Served:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Served(folder, app, nursery=nursery_process, **settings))
        return started[-1]

    yield begin
    for served in started:
        served.end()


@pytest.fixture
async def client() -> AsyncIterator[trionet.WebSocketClient]:
    """A client that sends no pings."""
    async with trionet.open_client(ping_interval=None) as client:
        yield client
