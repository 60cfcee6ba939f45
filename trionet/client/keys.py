"""Masking keys: from the system, and used once."""

from __future__ import annotations

import os

__all__ = ["fresh_key"]

_KEYS = 1024  # masking keys fetched at once: a system call for each would cost as much as the masking

_keys: list[bytes] = []
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=_keys.clear)  # or parent and child would use the same ones


def fresh_key() -> bytes:
    """Return a masking key that nobody can predict (RFC 6455, 5.3; 10.3 says why)."""
    while True:
        try:
            return _keys.pop()
        except IndexError:
            block = os.urandom(4 * _KEYS)
            _keys.extend([block[i : i + 4] for i in range(0, 4 * _KEYS, 4)])
