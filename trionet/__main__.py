"""Lets ``python -m trionet`` run the command."""

from __future__ import annotations

import sys

from trionet.cli import run

sys.exit(run())
