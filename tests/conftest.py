"""What every test may use: the checkout on the path, hypothesis profiles, example programs, a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Behind site-packages: tests can import `examples`, and yet test an installed package where there is one.
sys.path.append(str(ROOT))

# No deadline: how long one example takes on a shared machine says nothing about the code.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "default")


@pytest.fixture
def start_program():
    """Return a function that starts a program of the checkout and returns its process and its URL.

    `process, url = start_program("examples/echo.py", "--port", "0")`

    The program must print one line `listening on URL`. Whatever still runs at the end of the test is ended.
    """
    running: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-u", "-X", "dev", *argv]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("listening on "):
                return process, line.split()[2]
        pytest.fail(f"{argv} ended with {process.wait()} before it listened")

    yield start
    for process in running:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a Chromium, or skip the test."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: not on PATH, and CHROMIUM is not set")
    return path


@pytest.fixture(scope="session")
def browser(chromium):
    """Return a running headless browser (Playwright's synchronous API, for plain `def` tests)."""
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = "--no-sandbox --disable-gpu --disable-sync --no-first-run --disable-background-networking"
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=quiet.split())
        yield running
        running.close()
