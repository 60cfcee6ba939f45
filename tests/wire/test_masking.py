"""Masking: three ways to the same bytes."""

from __future__ import annotations

import importlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.wire import masking
from trionet.wire.masking import apply_mask, apply_mask_py, rotate_key

KEYS = [b"\x37\xfa\x21\x3d", b"\0\0\0\0", b"\xff\0\xff\0", b"\0\0\0\x80"]


def naive(data, key):
    """Mask as RFC 6455, 5.3 writes it down."""
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize("key", KEYS)
def test_every_length_up_to_600_is_masked_as_the_rfc_writes_it(key):
    """Pure Python, the routine in C and the RFC's formula agree at every length, on both sides of the crossover."""
    data = bytes(i * 7 & 0xFF for i in range(600))
    for size in range(601):
        expected = naive(data[:size], key)
        assert apply_mask_py(data[:size], key) == expected
        assert apply_mask(data[:size], key) == expected


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [5, 500])
def test_what_is_given_stays_as_it_is(kind, size):
    """The result is new bytes; the buffer that was masked is left alone."""
    data = kind(range(size % 256)) * (size // 256 + 1)
    before = bytes(data)
    masked = apply_mask_py(data, KEYS[0])
    assert bytes(data) == before
    assert type(masked) is bytes


@given(st.binary(max_size=700), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_not_masking(data, key):
    """The operation undoes itself (5.3)."""
    assert apply_mask_py(apply_mask_py(data, key), key) == data
    assert apply_mask(apply_mask_py(data, key), key) == data


@given(st.binary(max_size=80), st.binary(min_size=4, max_size=4), st.integers(0, 80))
def test_a_payload_may_be_unmasked_in_two_pieces(data, key, cut):
    """With its key rotated, the second piece continues where the first ended."""
    first, second = data[:cut], data[cut:]
    assert apply_mask_py(first, key) + apply_mask_py(second, rotate_key(key, len(first))) == naive(data, key)


@pytest.mark.parametrize(
    "offset,rotated",
    [(0, b"abcd"), (1, b"bcda"), (2, b"cdab"), (3, b"dabc"), (4, b"abcd"), (70_001, b"bcda")],
)
def test_rotate_key(offset, rotated):
    """The key begins at the byte that masks position `offset`."""
    assert rotate_key(b"abcd", offset) == rotated


def test_without_the_routine_in_c_the_one_in_python_is_used(monkeypatch):
    """The package works where `websockets.speedups` is not installed."""
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    try:
        importlib.reload(masking)
        assert masking.apply_mask is masking.apply_mask_py
    finally:
        monkeypatch.undo()
        importlib.reload(masking)
