"""The adapters' tests use the helpers of the protocols' tests."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages (importlib mode); this lets the tests import `ws_peer`.
sys.path.append(str(Path(__file__).resolve().parent.parent / "protocols"))
