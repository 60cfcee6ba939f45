"""Test folders are no packages (importlib mode): this lets the tests import `served_bus`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
