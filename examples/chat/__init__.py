"""A chat with rooms, served by trionet: run ``python -m examples.chat`` and open the address it prints.

``trionet serve examples.chat`` serves it too, with all its settings; ``trionet demo chat`` where it is installed.
"""

from __future__ import annotations

from .server import app as app
