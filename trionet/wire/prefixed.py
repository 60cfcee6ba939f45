"""Messages that begin with their length: 1, 2, 4 or 8 bytes, then so many bytes."""

from __future__ import annotations

from typing import Final, Literal

from trionet.errors import ConfigurationError, ProtocolError

__all__ = ["PrefixedFormat"]

_WIDTHS: Final = (1, 2, 4, 8)


class PrefixedFormat:
    """The format of one protocol. `max_length` bounds messages in both directions, in bytes without the prefix."""

    __slots__ = ("byteorder", "max_length", "width")

    def __init__(
        self, width: int = 4, byteorder: Literal["big", "little"] = "big", max_length: int = 2**20
    ) -> None:
        if width not in _WIDTHS or byteorder not in {"big", "little"}:
            raise ConfigurationError(
                f"a prefix has 1, 2, 4 or 8 bytes, big or little end first, not {width} bytes, {byteorder!r}"
            )
        if not 0 <= max_length < 1 << 8 * width:
            raise ConfigurationError(f"a prefix of {width} bytes cannot tell a length of {max_length}")
        self.width = width
        self.byteorder: Literal["big", "little"] = byteorder
        self.max_length = max_length

    def encode(self, message: bytes) -> bytes:
        """Return `message` behind its length. Raises `ValueError` if it is longer than `max_length`."""
        size = len(message)
        if size > self.max_length:
            raise ValueError(f"a message of {size} bytes; at most {self.max_length} can be sent")
        return size.to_bytes(self.width, self.byteorder) + message

    def need(self, data: bytes | bytearray, start: int = 0) -> int:
        """Return how many bytes `data` must have for the message at `start` to be whole, as far as is known yet.

        Raises `ProtocolError` when the message is too long, as soon as its prefix is there.
        """
        begin = start + self.width
        if len(data) < begin:
            return begin
        length = int.from_bytes(data[start:begin], self.byteorder)
        if length > self.max_length:
            raise ProtocolError(f"a message of {length} bytes; at most {self.max_length} are read", 1009)
        return begin + length
