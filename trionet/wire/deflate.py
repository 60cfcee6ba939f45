"""permessage-deflate, RFC 7692: negotiation for both roles, and the compression of messages.

`Deflate` is what one side wishes. `Deflate.accept` (a server, of the client's offers) and `Deflate.confirm` (a client,
of the server's response) make it a `Codec`: what both sides agreed on, seen from ours. A codec without context takeover
is shared by all connections that agreed on the same, and holds nothing; `Codec.private` gives a connection with
takeover its own.

Every message ends in an empty stored block whose last four bytes are not sent (7.2.1). What is inflated is
bounded *while* it is inflated: no more comes out of `Inflater.inflate` than was asked for.
"""

from __future__ import annotations

import functools
import importlib
import re
import zlib
from typing import Any, Final, NamedTuple

import attrs

from trionet.errors import ConfigurationError, ProtocolError
from trionet.wire.closing import CloseCode
from trionet.wire.tokens import offers_are_valid

__all__ = ["EXPANSION", "NEVER", "Agreement", "Codec", "Deflate", "Inflater", "Packer", "frame_bound"]

NAME: Final = "permessage-deflate"

try:
    _fast: Any = importlib.import_module("isal.isal_zlib")
except ImportError:
    _fast = None

# From here on isal's level 1 is faster than zlib's, at the same size (docs/howto/compression.md). Only what we send
# goes through it: bytes of strangers are inflated by zlib, which has been attacked for longer.
_LARGE: Final = 2048

#: A threshold that no message reaches.
NEVER: Final = 2**63

#: No bytes become more than this many times as many (one bit for each 258 bytes, and a little).
EXPANSION: Final = 1032

_TAIL: Final = b"\x00\x00\xff\xff"  # 7.2.1
# With a final block, empty, behind it: then the inflater says whether it stood where a block begins.
_END: Final = _TAIL + b"\x03\x00"
_STEP: Final = 1024  # bytes

_WINDOW = re.compile(r"[89]|1[0-5]")  # 7.1.2: 8 to 15, without leading zeros

_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")
_SIZES: Final = ("server_max_window_bits", "client_max_window_bits")


class Agreement(NamedTuple):
    """What was agreed on (7.1), with the values that hold where the response said nothing."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = 15


@attrs.frozen
class Deflate:
    """Compress messages by permessage-deflate (RFC 7692) with peers that can.

    `level`: zlib's, 1 is fast, 9 small. `threshold`: shorter messages (bytes) are sent as they are. `mem_level`:
    zlib's, 1 to 9; memory while compressing is about ``2 ** (bits + 2) + 2 ** (mem_level + 9)`` bytes.

    The four others are those of the RFC. Without context takeover (the default) each message stands for itself, and an
    idle connection holds nothing; with it short messages that resemble one another become much smaller, and each
    connection holds a window in each such direction for as long as it lives. `server_max_window_bits` bounds the
    server's window (9 to 15: ``2 ** bits`` bytes), `client_max_window_bits` the client's, if the client lets it.
    """

    level: int = 1
    threshold: int = 512
    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: int = 12
    client_max_window_bits: int = 12
    mem_level: int = 5

    def __attrs_post_init__(self) -> None:
        if not (1 <= self.level <= 9 and 1 <= self.mem_level <= 9 and self.threshold >= 0):
            raise ConfigurationError("level and mem_level are 1 to 9, threshold is not negative")
        if not (9 <= self.server_max_window_bits <= 15 and 9 <= self.client_max_window_bits <= 15):
            raise ConfigurationError("windows are 9 to 15 bits: zlib has no 8")

    @classmethod
    def of(cls, wish: Deflate | bool | None) -> Deflate | None:
        """What an option means: True is the defaults, None and False are no compression."""
        if wish is True:
            return cls()
        if isinstance(wish, cls):
            return wish
        if not wish:
            return None
        raise ConfigurationError(f"compression is Deflate(...), True or False, not {wish!r}")

    # ---------------------------------------------------------------- server

    def accept(self, offers: str) -> tuple[Codec, str] | None:
        """Take the first of a client's offers that we can: the codec, and the response to send.

        None when there is none; the connection then goes on without compression (5.1). An offer is declined if it has
        a parameter that is unknown, repeated or has a bad value (7), or if it wants our window to be 256 bytes:
        zlib cannot compress with that. `offers` is a valid Sec-WebSocket-Extensions, all lines joined.
        """
        return _accept(self, offers)

    def _answer(self, params: dict[str, str | None]) -> tuple[Agreement, str] | None:
        if any(params.get(name, "") is not None for name in _FLAGS if name in params):
            return None  # 7.1.1: they have no value
        wanted = params.get("server_max_window_bits", "15")
        theirs = params.get("client_max_window_bits")
        if wanted is None or not _WINDOW.fullmatch(wanted) or wanted == "8":
            return None
        if theirs is not None and not _WINDOW.fullmatch(theirs):
            return None
        agreed = Agreement(
            # 7.1.1.1: MUST be granted; either may be added by us.
            self.server_no_context_takeover or "server_no_context_takeover" in params,
            self.client_no_context_takeover or "client_no_context_takeover" in params,
            min(int(wanted), self.server_max_window_bits),
            # 7.1.2.2: not to be answered unless it was offered.
            min(int(theirs or 15), self.client_max_window_bits) if "client_max_window_bits" in params else 15,
        )
        words = [NAME, *(name for name in _FLAGS if getattr(agreed, name))]
        words += [
            f"{name}={bits}" for name in _SIZES if (bits := getattr(agreed, name)) < 15 or name in params
        ]
        return agreed, "; ".join(words)

    # ---------------------------------------------------------------- client

    @property
    def offer(self) -> str:
        """The Sec-WebSocket-Extensions of a client. Send it once: offers are not merged here."""
        words = [NAME, *(name for name in _FLAGS if getattr(self, name))]
        if not self.server_no_context_takeover and self.server_max_window_bits < 15:
            # Not many servers know it, and without takeover we hold the window during a message only.
            words.append(f"server_max_window_bits={self.server_max_window_bits}")
        bits = self.client_max_window_bits
        words.append(f"client_max_window_bits={bits}" if bits < 15 else "client_max_window_bits")
        return "; ".join(words)

    def confirm(self, response: str | None) -> Codec | None:
        """What a server's Sec-WebSocket-Extensions makes of `offer`: a codec, or None without compression.

        Raises `ProtocolError` for a response that does not fit the offer: the connection must be failed (7.1).
        """
        if response is None:
            return None
        if not offers_are_valid(response.encode("latin-1", "replace")):
            raise ProtocolError("Sec-WebSocket-Extensions is not a list of extensions")
        extensions = _parse(response)
        if len(extensions) != 1 or extensions[0][0] != NAME:
            raise ProtocolError("the server uses extensions that were not offered")
        params = extensions[0][1]
        if params is None:
            raise ProtocolError(f"{NAME}: a parameter is unknown or repeated")
        if any(params[name] is not None for name in _FLAGS if name in params):
            raise ProtocolError(f"{NAME}: a flag with a value")
        if not all(_WINDOW.fullmatch(params[name] or "") for name in _SIZES if name in params):
            raise ProtocolError(f"{NAME}: a window of a size that is none")
        agreed = Agreement(
            "server_no_context_takeover" in params,
            # 7.1.1.2: a promise of ours, which the server need not repeat.
            self.client_no_context_takeover or "client_no_context_takeover" in params,
            int(params.get("server_max_window_bits") or 15),
            min(int(params.get("client_max_window_bits") or 15), self.client_max_window_bits),
        )
        if self.server_no_context_takeover and not agreed.server_no_context_takeover:
            raise ProtocolError(f"{NAME}: the server does not do without context takeover")
        if (
            "server_max_window_bits=" in self.offer
            and agreed.server_max_window_bits > self.server_max_window_bits
        ):
            raise ProtocolError(f"{NAME}: the server's window is larger than was asked for")
        return _codec(self.level, self.threshold, self.mem_level, agreed, client=True)


def _parse(value: str) -> list[tuple[str, dict[str, str | None] | None]]:
    """Extensions with their parameters; None for those that permessage-deflate does not allow.

    `value` is well-formed. What is quoted holds nothing but a token (RFC 6455, 9.1), so it has no separators.
    """
    found: list[tuple[str, dict[str, str | None] | None]] = []
    for extension in filter(None, (part.strip(" \t") for part in value.split(","))):
        name, *rest = (word.strip(" \t") for word in extension.split(";"))
        params: dict[str, str | None] | None = {}
        for word in rest:
            key, is_given, text = word.partition("=")
            key = key.rstrip(" \t")
            if params is None or key in params or key not in _FLAGS + _SIZES:
                params = None
                break
            text = text.lstrip(" \t")
            if text.startswith('"'):
                text = re.sub(r"\\(.)", r"\1", text[1:-1])
            params[key] = text if is_given else None
        found.append((name, params))
    return found


# Browsers of one kind all offer the same; the bound is against a peer that offers ever new things.
@functools.lru_cache(maxsize=64)
def _accept(wish: Deflate, offers: str) -> tuple[Codec, str] | None:
    for name, params in _parse(offers):
        if name == NAME and params is not None and (answer := wish._answer(params)) is not None:
            agreed, response = answer
            return _codec(wish.level, wish.threshold, wish.mem_level, agreed, client=False), response
    return None


@functools.lru_cache(maxsize=512)
def _codec(level: int, threshold: int, mem_level: int, agreed: Agreement, *, client: bool) -> Codec:
    return Codec(level, threshold, mem_level, agreed, client=client)


def frame_bound(size: int) -> int:
    """The most bytes that a sensible sender makes of `size` bytes (the worst is a code of 9 bits for each)."""
    return size + size // 8 + 64


# --- messages -----------------------------------------------------------------------------------------------


class Codec:
    """Compresses our messages and inflates the peer's, as agreed on.

    `key` is equal for codecs that compress alike, so that a message for many is compressed once. `ordered`: our
    messages refer to those before them, so they must go out in the order in which they are compressed, all of them.
    """

    __slots__ = ("_takes_over", "_window", "agreed", "key", "ordered", "threshold")

    def __init__(
        self, level: int, threshold: int, mem_level: int, agreed: Agreement, *, client: bool
    ) -> None:
        ours, theirs = (agreed.client_max_window_bits, agreed.server_max_window_bits)
        keep, kept = (not agreed.client_no_context_takeover, not agreed.server_no_context_takeover)
        if not client:
            ours, theirs, keep, kept = theirs, ours, kept, keep
        self.agreed = agreed
        # A client may be told to use a window of 256 bytes, which zlib cannot: it sends all as it is.
        self.threshold = threshold if ours > 8 else NEVER
        self.key = (level, ours, mem_level, self.threshold)
        self.ordered = keep
        self._takes_over = kept
        # Some of the peers that said 8 use 9: zlib did that silently until 1.2.9.
        self._window = max(theirs, 9)

    def __repr__(self) -> str:
        words = [name for name in _FLAGS if getattr(self.agreed, name)]
        return f"<{type(self).__name__} {' '.join([*words, *(f'{n}={getattr(self.agreed, n)}' for n in _SIZES)])}>"

    @property
    def keeps(self) -> bool:
        """Whether a window outlives a message, in either direction."""
        return self.ordered or self._takes_over

    def private(self) -> Codec:
        """What one connection uses: this one, unless it keeps a window."""
        return _OwnCodec(self) if self.keeps else self

    def deflate(self, payload: bytes) -> bytes | None:
        """The compressed payload of a message; None if it is better sent as it is.

        `ordered`: the peer has to get it, whatever happens, or it cannot read what follows.
        """
        size = len(payload)
        if size < self.threshold or not size:
            return None
        level, bits, memory, _ = self.key
        module: Any = zlib if _fast is None or size < _LARGE or level > 1 else _fast
        stream = module.compressobj(level, zlib.DEFLATED, -bits, memory)
        packed: bytes = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
        return packed[:-4] if len(packed) - 4 < size else None

    def packer(self) -> Packer:
        """What compresses a message piece by piece. If they are `ordered`, no other may come before its end."""
        return Packer(self, self._compressor())

    def _compressor(self) -> Any:
        level, bits, memory, _ = self.key
        return zlib.compressobj(level, zlib.DEFLATED, -bits, memory)

    def release(self, stream: Any) -> None:
        """A `Packer` has ended; `stream` is what it compressed with."""

    def begin(self) -> Inflater:
        """What inflates the message that begins now."""
        return Inflater(self._window)

    def inflate(self, payload: bytes, limit: int) -> bytes:
        """Inflate a whole message, to `limit` bytes at most; what is lost beyond, and errors: as `Inflater.inflate`."""
        stream = zlib.decompressobj(-self._window)
        try:
            out = stream.decompress(payload + _END, limit)
        except zlib.error:
            pass
        else:
            if len(out) == limit or (stream.eof and not stream.unused_data):
                return out
        return self._carefully(payload, limit)  # it has final blocks, or is not deflate

    def _carefully(self, payload: bytes, limit: int) -> bytes:
        inflater = self.begin()
        out = inflater.inflate(payload, limit)
        return out + inflater.end(limit - len(out)) if len(out) < limit else out


class _OwnCodec(Codec):
    """The codec of one connection: it keeps a window for each direction with takeover, from the first message on."""

    __slots__ = ("_inflater", "_stream")

    def __init__(self, shared: Codec) -> None:
        for name in Codec.__slots__:
            setattr(self, name, getattr(shared, name))
        self._stream: Any = None
        self._inflater: Inflater | None = None

    def deflate(self, payload: bytes) -> bytes | None:
        if not self.ordered:
            return Codec.deflate(self, payload)
        # An empty one would leave nothing to flush, and so no tail.
        if len(payload) < self.threshold or not payload:
            return None
        stream = self._compressor()
        packed: bytes = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
        self.release(stream)
        return packed[:-4]

    def _compressor(self) -> Any:
        stream, self._stream = self._stream, None
        return stream or Codec._compressor(self)

    def release(self, stream: Any) -> None:
        if self.ordered:  # had it failed, the next message would begin anew, which is always right
            self._stream = stream

    def begin(self) -> Inflater:
        if not self._takes_over:
            return Codec.begin(self)
        if self._inflater is None:
            self._inflater = Inflater(self._window, takes_over=True)
        self._inflater.begin()
        return self._inflater

    def inflate(self, payload: bytes, limit: int) -> bytes:
        return self._carefully(payload, limit) if self._takes_over else Codec.inflate(self, payload, limit)


class Packer:
    """Compresses one message piece by piece, for frames of its own; what a piece needs is in its frame."""

    __slots__ = ("_codec", "_stream", "_tail")

    def __init__(self, codec: Codec, stream: Any) -> None:
        self._codec = codec
        self._stream = stream
        self._tail = b""  # of the last piece: not sent, unless another one follows

    def pack(self, data: bytes) -> bytes:
        """The payload of the frame for `data`."""
        if not data:
            return b""
        packed: bytes = self._tail + self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        self._tail = _TAIL
        return packed[:-4]

    def end(self) -> bytes:
        """What the payload of the last frame ends with."""
        self._codec.release(self._stream)
        return b"" if self._tail else b"\x00"  # 7.2.3.6: an empty message


class Inflater:
    """Inflates a message, or, if the window is taken over, one message after the other. Fed as the bytes come.

    Blocks marked as final may occur (7.2.3.4): what follows them is a stream of its own, without their window.
    """

    __slots__ = ("_any", "_bits", "_stream", "_takes_over")

    def __init__(self, bits: int, *, takes_over: bool = False) -> None:
        self._bits = -bits
        self._takes_over = takes_over
        self._stream: Any = zlib.decompressobj(-bits)
        self._any = False  # whether the message has any bytes

    def begin(self) -> None:
        """A message begins."""
        self._any = False

    def inflate(self, data: bytes, limit: int) -> bytes:
        """What `data` becomes, but at most `limit` bytes (1 at least): the rest is lost, so ask for one too many.

        Raises `ProtocolError` (1007) if it is not deflate.
        """
        if not data:
            return b""
        self._any = True
        stream = self._stream
        try:
            if not stream.eof:
                out: bytes = stream.decompress(data, limit)
                rest = stream.unused_data
                if not rest:  # nearly always
                    return out
            else:
                out, rest = b"", data
            # Behind a final block: step by step, so that a flood of such blocks is not copied again and again.
            pieces, room, at = [out], limit - len(out), 0
            while at < len(rest) and room:
                if stream.eof:
                    stream = self._stream = zlib.decompressobj(self._bits)
                piece = rest[at : at + _STEP]
                out = stream.decompress(piece, room)
                at += len(piece) - len(stream.unused_data)
                room -= len(out)
                pieces.append(out)
        except zlib.error:
            raise ProtocolError("not deflate", CloseCode.INVALID_DATA) from None
        return b"".join(pieces)

    def end(self, limit: int) -> bytes:
        """What is left at the end of the message, at most `limit` bytes.

        Raises `ProtocolError` (1007) if the message is not complete; with takeover that is noticed with the next.
        """
        # A message without a byte is an empty one, and one that ends in a final block is complete: neither has an
        # empty block that the tail could belong to, though the sender should have seen to it (7.2.1).
        if not self._any or self._stream.eof:
            return b""
        if self._takes_over:
            return self.inflate(_TAIL, limit)
        out = self.inflate(_END, limit)
        if len(out) < limit and not self._stream.eof:
            raise ProtocolError("deflate stops in the middle", CloseCode.INVALID_DATA)
        return out
