"""XOR with the four byte masking key of RFC 6455, 5.3: the one place to speed it up.

`apply_mask` is `websockets.speedups.apply_mask` (C, SIMD) where that package is installed
(``pip install trionet[speed]``), else `apply_mask_py`.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["apply_mask", "apply_mask_py", "rotate_key"]

# Measured on CPython 3.11: one big integer is fastest below some 300 bytes, translate tables above.
_INT_BELOW = 300
_TABLES: list[bytes | None] = [None] * 256


def _table(byte: int) -> bytes:
    table = _TABLES[byte]
    if table is None:
        table = _TABLES[byte] = bytes(i ^ byte for i in range(256))
    return table


def apply_mask_py(data: bytes | bytearray, key: bytes) -> bytes:
    """`data` XOR `key` repeated, in pure Python; masking and unmasking are the same operation."""
    size = len(data)
    if size < _INT_BELOW:
        keys = (key * ((size + 3) >> 2))[:size]
        return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(size, "little")
    out = bytearray(data)
    for i in range(4):
        if key[i]:
            out[i::4] = out[i::4].translate(_table(key[i]))
    return bytes(out)


def rotate_key(key: bytes, offset: int) -> bytes:
    """The key for a payload whose first `offset` bytes were masked before."""
    offset &= 3
    return key[offset:] + key[:offset] if offset else key


apply_mask: Callable[[bytes | bytearray, bytes], bytes]
try:
    from websockets.speedups import apply_mask
except ImportError:
    apply_mask = apply_mask_py
