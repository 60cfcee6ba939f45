"""Run the key-value server."""

from __future__ import annotations

from examples.keyvalue.server import main

main()
