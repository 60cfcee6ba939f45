"""`examples/client.py`, run as a program: lines go out, messages come back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent.parent


def test_lines_go_out_and_come_back(start_program):
    """What is typed is echoed, and the end of the input ends the program."""
    _, url = start_program("-m", "examples.echo", "--port", "0")
    command = [sys.executable, "-X", "dev", "-m", "examples.client", url, "--linger", "0.5"]
    done = subprocess.run(
        command, input="hello\nwörld\n", capture_output=True, text=True, cwd=ROOT, timeout=30, check=True
    )
    assert done.stdout == "hello\nwörld\n"
    assert done.stderr.startswith("connected to")


def test_nobody_there():
    """Without a server the error says where it looked."""
    command = [sys.executable, "-m", "examples.client", "ws://127.0.0.1:1/"]
    done = subprocess.run(
        command, input="", capture_output=True, text=True, cwd=ROOT, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "cannot connect to 127.0.0.1 port 1: Connection refused" in done.stderr
