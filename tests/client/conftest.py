"""The client's tests use the helpers of the protocols' tests, and servers that do as the test says."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages (importlib mode); this lets the tests import `ws_peer` and `scripted`.
sys.path += [str(Path(__file__).resolve().parent.parent / "protocols"), str(Path(__file__).resolve().parent)]
