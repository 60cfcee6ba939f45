"""What the tests of the bus share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # importlib mode: test folders are no packages
