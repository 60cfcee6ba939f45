"""Lets ``python -m examples.notifications`` start everything."""

from __future__ import annotations

from .launch import main

main()
