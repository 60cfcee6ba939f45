"""A key-value server that Redis's own tools can talk to: `python -m examples.keyvalue`."""
