"""The version, read by the build and by `trionet.__version__`."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
