"""Lets ``python -m examples.chat`` start the chat."""

from __future__ import annotations

from .server import main

main()
