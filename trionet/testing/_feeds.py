r"""Ways in which the same bytes may arrive. A codec must not care which.

A test is given each of them::

    @pytest.mark.parametrize("feed", trionet.testing.FEEDS)
    def test_a_line(feed):
        splitter = Splitter()
        assert list(feed(splitter.receive, b"hello\r\n")) == [b"hello"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

__all__ = ["FEEDS", "Feed", "bytewise", "splits", "whole"]

T = TypeVar("T")
Receive: TypeAlias = Callable[[bytes], Iterable[T]]
Feed: TypeAlias = Callable[[Callable[[bytes], Iterable[object]], bytes], list[object]]


def whole(receive: Receive[T], data: bytes) -> list[T]:
    """All in one piece."""
    return list(receive(data))


def bytewise(receive: Receive[T], data: bytes) -> list[T]:
    """Byte by byte."""
    found: list[T] = []
    for i in range(len(data)):
        found += receive(data[i : i + 1])
    return found


def splits(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every way to cut `data` in two, the empty pieces at both ends left out."""
    for i in range(1, len(data)):
        yield data[:i], data[i:]


#: The feeds for ``pytest.mark.parametrize``.
FEEDS: tuple[Feed, ...] = (whole, bytewise)
