"""Engines behind a bus, one module each; `open_broker` finds them by URL."""
