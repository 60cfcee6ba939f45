"""Engines behind a bus, found by URL (`open_broker`); `linked` is what those behind a connection share."""
