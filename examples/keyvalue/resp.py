"""RESP, the protocol of Redis (version 2): commands in, answers out. No I/O."""

from __future__ import annotations

import attrs

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
DOLLAR, STAR = b"$*"
INLINE = 4096  # bytes of the longest inline command
SHORT = {b"%c%d\r" % (kind, n): n for kind in b"$*" for n in range(100)}  # what most length lines are


class ProtocolBroken(Exception):
    """The peer does not speak RESP: it is told, and closed."""


@attrs.frozen(kw_only=True)
class Limits:
    """What a client may use, in bytes where nothing else is said."""

    bulk: int = 2**19  # one argument
    command: int = 2**20  # all arguments of one command, with 16 bytes for each
    arguments: int = 1024
    memory: int = 2**28  # all keys and values
    keys: int = 10**6
    channels: int = 1000  # subscriptions of one connection
    channel: int = 1024  # the name of a channel
    answer: int = 2**23  # the answer to one command, which may name a large value often


def bulk(value: bytes | None) -> bytes:
    """A string as an answer; None is the null string."""
    return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def integer(value: int) -> bytes:
    """A number as an answer."""
    return b":%d\r\n" % value


def array(items: list[bytes]) -> bytes:
    """A list of answers as an answer."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


class Reader:
    """Cuts commands out of what one peer sends. Made when a command is begun and not whole, dropped when it is."""

    __slots__ = ("arguments", "buffer", "left", "limits", "need", "size")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffer = bytearray()
        self.need = 1  # bytes in the buffer before it is worth while to look again
        self.left = 0  # arguments that the command in hand still lacks
        self.arguments: list[bytes] = []
        self.size = 0  # of these

    @property
    def idle(self) -> bool:
        """Whether nothing is begun."""
        return not self.buffer and not self.left

    def read(self, data: bytes) -> tuple[list[list[bytes]], ProtocolBroken | None]:
        """The commands that `data` completes, each a list of arguments; and what is wrong behind them."""
        commands: list[list[bytes]] = []
        if self.buffer:
            self.buffer += data
            if len(self.buffer) < self.need:
                return commands, None
            data = bytes(self.buffer)
        try:
            at, need = self._parse(data, commands)
        except ProtocolBroken as error:
            return commands, error
        self.buffer = bytearray(memoryview(data)[at:])
        self.need = need - at
        return commands, None

    def _parse(self, data: bytes, commands: list[list[bytes]]) -> tuple[int, int]:
        """Append commands. Returns where the first incomplete thing begins, and how long `data` must be for it."""
        at, end, limits = 0, len(data), self.limits
        arguments, left, size = self.arguments, self.left, self.size
        try:
            while at < end:
                if data[at] != (DOLLAR if left else STAR):
                    if left:
                        raise ProtocolBroken("expected '$'")
                    words, at = self._inline(data, at)
                    if words is None:
                        return at, end + 1
                    if words:
                        commands.append(words)
                    continue
                stop = data.find(b"\n", at, at + 32)  # one byte is found much faster than two
                if stop < 0:
                    if end - at >= 32:
                        raise ProtocolBroken("invalid length")
                    return at, end + 1
                line = data[at:stop]
                length = SHORT.get(line)
                if length is None:
                    length = decimal(line[1:])
                if not left:
                    if length > limits.arguments:
                        raise ProtocolBroken("invalid multibulk length")
                    at = stop + 1
                    arguments, left, size = [], length, 0
                    continue
                if length > limits.bulk:
                    raise ProtocolBroken("invalid bulk length")
                begin, stop = stop + 1, stop + 1 + length
                if end < stop + 2:
                    return at, stop + 2
                if data[stop : stop + 2] != b"\r\n":
                    raise ProtocolBroken("no line end behind a string")
                arguments.append(data[begin:stop])
                size += length + 16
                if size > limits.command:
                    raise ProtocolBroken("command too long")
                at = stop + 2
                left -= 1
                if not left:
                    commands.append(arguments)
            return at, at + 1
        finally:
            self.arguments, self.left, self.size = arguments, left, size

    @staticmethod
    def _inline(data: bytes, at: int) -> tuple[list[bytes] | None, int]:
        """The words of a line, and where the next begins; None when it is not whole."""
        stop = data.find(b"\n", at, at + INLINE)
        if stop >= 0:
            return data[at:stop].split(), stop + 1
        if len(data) - at >= INLINE:
            raise ProtocolBroken("too big inline request")
        return None, at


def decimal(digits: bytes) -> int:
    """A length, which a CR follows. Raises `ProtocolBroken`."""
    if digits[-1:] != b"\r" or not digits[:-1].isdigit():
        raise ProtocolBroken("invalid length")
    return int(digits[:-1])
