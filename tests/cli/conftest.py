"""What the tests of the command line share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment changes what is printed or served: test runners and CI set some of these."""
    for name in list(os.environ):
        if name in {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"} or name.startswith(
            "TRIONET_"
        ):
            monkeypatch.delenv(name)
