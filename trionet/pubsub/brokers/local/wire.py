"""The messages between a `LocalBroker` and its server: bytes in, values out. Pure.

A message is its length (4 bytes, without them), its kind (1 byte) and its fields. Numbers are big-endian; a text is its
length in bytes (2) and UTF-8, `bytes` are their length (4) and they; a list is its length (4) and its items. A request
has a number that its answer repeats; requests of one connection are carried out and answered in their order.

====  ===========  =================================================================================================
kind  name         fields
====  ===========  =================================================================================================
1     hello        number, "trionet" as text, version (2)
2     publish      number, count (4), size (8), age (float, 8): the topic's limits, count 0: it keeps nothing;
                   lengths of topic, key, tag, origin (2 each); these; the rest is the data
3     subscribe    number, list of topics
4     unsubscribe  number (0: there is no answer), list of topics
5     history      number, limit (4), 1 or 0 (1): whether a position is given, offset (8), epoch, topic
6     enter        number, ttl (float, 8), topic, member, owner, info (bytes)
7     refresh      number, ttl (float, 8), list of topic, member, owner
8     leave        number, topic, member, owner
9     members      number, topic
10    ping         number
====  ===========  =================================================================================================

====  ===========  =================================================================================================
65    welcome      number, version (2), the most bytes of data (4), epoch
66    published    number, offset (8; 0: the topic keeps nothing)
67    subscribed   number, list of offsets (8 each), one for each topic
69    page         number, 1 or 0 (1): complete, 1 or 0 (1): more, offset of the top (8), list of records (bytes)
70    done         number, 1 or 0 (1): whether it was the first, or last, of a member
71    unknown      number, list of topic, member, owner
73    present      number, list of member, info (bytes)
74    pong         number
79    refused      number (0: the whole connection is refused), reason as text
33    publication  a record: offset, offset of the one before, seconds since 1970 (8 each, the last a float), lengths of
                   topic, tag, origin (2 each); these; the rest is the data. Offset 0: its topic keeps nothing
34    presence     event, topic, member, info (bytes)
====  ===========  =================================================================================================

All positions are of the epoch that `welcome` has named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct, error
from typing import Any, Final

from trionet.errors import BrokerError, ProtocolError
from trionet.pubsub.brokers.local import messages as say
from trionet.pubsub.publication import Position, Publication

__all__ = ["Frames"]

_LENGTH: Final = Struct(">I")
_HEAD: Final = Struct(">IBI")  # length, kind, number
_PUBLISH: Final = Struct(">BIIQdHHHH")
_PUBLISHED: Final = Struct(">IBIQ")
_RECORD: Final = Struct(">QQdHHH")


# -------------------------------------------------------------- encoding


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > say.MAX_TEXT:
        raise BrokerError(
            f"a key, tag, origin, member or owner has at most {say.MAX_TEXT} bytes, not {len(raw)}"
        )
    return len(raw).to_bytes(2) + raw


def _blob(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _message(kind: int, number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _HEAD.pack(len(body) + 5, kind, number) + body


def _many(items: Sequence[bytes]) -> bytes:
    return _LENGTH.pack(len(items)) + b"".join(items)


def _entries(entries: Iterable[tuple[str, str, str]]) -> bytes:
    return _many([b"".join(map(_text, entry)) for entry in entries])


def hello(number: int) -> bytes:
    """See the table of the module, as for all of these."""
    return _message(say.HELLO, number, _text(say.MAGIC), say.VERSION.to_bytes(2))


def publish(
    number: int, limits: tuple[int, int, float], topic: str, key: str, tag: str, origin: str, data: bytes
) -> bytes:
    """Raises `BrokerError` for a key, tag or origin that is too long."""
    texts = [topic.encode(), key.encode(), tag.encode(), origin.encode()]
    lengths = [*map(len, texts)]
    if max(lengths) > say.MAX_TEXT:
        raise BrokerError(f"a key, tag or origin has at most {say.MAX_TEXT} bytes, not {max(lengths)}")
    head = _PUBLISH.pack(say.PUBLISH, number, *limits, *lengths)
    return b"".join((_LENGTH.pack(len(head) + sum(lengths) + len(data)), head, *texts, data))


def subscribe(number: int, topics: Sequence[str]) -> bytes:
    return _message(say.SUBSCRIBE, number, _many([*map(_text, topics)]))


def unsubscribe(topics: Sequence[str]) -> bytes:
    return _message(say.UNSUBSCRIBE, 0, _many([*map(_text, topics)]))


def history(number: int, topic: str, since: Position | None, limit: int) -> bytes:
    epoch, offset = since or ("", 0)
    head = limit.to_bytes(4) + bytes([since is not None]) + offset.to_bytes(8)
    return _message(say.HISTORY, number, head, _text(epoch), _text(topic))


def enter(number: int, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bytes:
    return _message(say.ENTER, number, _TTL.pack(ttl), *map(_text, (topic, member, owner)), _blob(info))


def refresh(number: int, entries: Iterable[tuple[str, str, str]], ttl: float) -> bytes:
    return _message(say.REFRESH, number, _TTL.pack(ttl), _entries(entries))


def leave(number: int, topic: str, member: str, owner: str) -> bytes:
    return _message(say.LEAVE, number, *map(_text, (topic, member, owner)))


def members(number: int, topic: str) -> bytes:
    return _message(say.MEMBERS, number, _text(topic))


def ping(number: int) -> bytes:
    return _message(say.PING, number)


def welcome(number: int, max_message: int, epoch: str) -> bytes:
    return _message(say.WELCOME, number, say.VERSION.to_bytes(2), max_message.to_bytes(4), _text(epoch))


def published(number: int, offset: int) -> bytes:
    return _PUBLISHED.pack(13, say.PUBLISHED, number, offset)


def subscribed(number: int, offsets: Sequence[int]) -> bytes:
    return _message(say.SUBSCRIBED, number, _many([offset.to_bytes(8) for offset in offsets]))


def shown(number: int, publications: Sequence[Publication], top: int, *, complete: bool, more: bool) -> bytes:
    """A page of history."""
    head = bytes([complete, more]) + top.to_bytes(8)
    return _message(say.SHOWN, number, head, _many([_blob(record(each)) for each in publications]))


def done(number: int, whether: bool) -> bytes:
    return _message(say.DONE, number, bytes([whether]))


def unknown(number: int, entries: Iterable[tuple[str, str, str]]) -> bytes:
    return _message(say.UNKNOWN, number, _entries(entries))


def present(number: int, found: dict[str, bytes]) -> bytes:
    return _message(
        say.PRESENT, number, _many([_text(member) + _blob(info) for member, info in found.items()])
    )


def pong(number: int) -> bytes:
    return _message(say.PONG, number)


def refused(number: int, reason: str) -> bytes:
    return _message(say.REFUSED, number, _text(reason[:200]))


def record(publication: Publication) -> bytes:
    """A publication without its epoch."""
    topic, data, _, offset, previous, at, tag, origin = publication
    texts = topic.encode(), tag.encode(), origin.encode()
    return b"".join((_RECORD.pack(offset, previous, at, *map(len, texts)), *texts, data))


def publication(found: Publication) -> bytes:
    """One that goes to who has subscribed."""
    body = record(found)
    return b"".join((_LENGTH.pack(len(body) + 1), b"\x21", body))


def presence(event: str, topic: str, member: str, info: bytes) -> bytes:
    body = b"".join((_text(event), _text(topic), _text(member), _blob(info)))
    return b"".join((_LENGTH.pack(len(body) + 1), b"\x22", body))


# -------------------------------------------------------------- decoding


class Frames:
    """Cuts what comes from a socket into messages, without their length. `max_length`: of one, in bytes."""

    __slots__ = ("_buffer", "_need", "max_length")

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._buffer = bytearray()
        self._need = 4

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete. Raises `ProtocolError` for one that is too long, or empty."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
        found: list[bytes] = []
        begin, end = 0, len(data)
        self._need = 4
        while end - begin >= 4:
            (size,) = _LENGTH.unpack_from(data, begin)
            if not 0 < size <= self.max_length:
                raise ProtocolError(f"a message of {size} bytes; at most {self.max_length} are read", 1009)
            if begin + 4 + size > end:
                self._need = 4 + size
                break
            found.append(data[begin + 4 : begin + 4 + size])
            begin += 4 + size
        self._buffer = bytearray(data[begin:])
        return found


_TTL: Final = Struct(">d")
_SMALL: Final = Struct(">H")
_LARGE: Final = Struct(">Q")


class _Fields:
    """Reads the fields of a message, behind its kind."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 1) -> None:
        self.data = data
        self.at = at

    def number(self, form: Struct = _LENGTH) -> Any:
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def flag(self) -> bool:
        self.at += 1
        return self.data[self.at - 1] != 0

    def bytes(self, form: Struct = _LENGTH) -> bytes:
        end = self.number(form) + self.at
        if end > len(self.data):
            raise IndexError("a field is longer than its message")
        self.at, begin = end, self.at
        return self.data[begin:end]

    def text(self) -> str:
        return str(self.bytes(_SMALL), "utf-8")

    def many(self, item: Callable[[], Any]) -> list[Any]:
        return [item() for _ in range(self.number())]

    def entry(self) -> tuple[str, str, str]:
        return self.text(), self.text(), self.text()


def parse(frame: bytes, epoch: str = "") -> Any:
    """Return the message that `Frames` has found; `epoch`: of its positions. Raises `ProtocolError`."""
    try:
        decode = _DECODERS.get(frame[0])
        if decode is None:
            raise ProtocolError(f"a message of unknown kind {frame[0]}")
        return decode(frame, epoch)
    except (error, IndexError, UnicodeDecodeError) as problem:
        raise ProtocolError(f"a message of kind {frame[0]} makes no sense: {problem}") from problem


def _parse_publish(frame: bytes, _: str) -> say.Publish:
    _, number, count, size, age, topic, key, tag, origin = _PUBLISH.unpack_from(frame)
    topic += _PUBLISH.size
    key += topic
    tag += key
    origin += tag
    if origin > len(frame):
        raise IndexError("it is too short")
    return say.Publish(
        number,
        (count, size, age),
        str(frame[_PUBLISH.size : topic], "utf-8"),
        str(frame[topic:key], "utf-8") if key > topic else "",
        str(frame[key:tag], "utf-8") if tag > key else "",
        str(frame[tag:origin], "utf-8") if origin > tag else "",
        frame[origin:],
    )


def _parse_record(data: bytes, epoch: str, begin: int = 1) -> Publication:
    offset, previous, at, topic, tag, origin = _RECORD.unpack_from(data, begin)
    begin += _RECORD.size
    topic += begin
    tag += topic
    origin += tag
    if origin > len(data):
        raise IndexError("it is too short")
    return Publication(
        str(data[begin:topic], "utf-8"),
        data[origin:],
        epoch if offset else "",
        offset,
        previous,
        at,
        str(data[topic:tag], "utf-8") if tag > topic else "",
        str(data[tag:origin], "utf-8") if origin > tag else "",
    )


def _parse_history(frame: bytes, _: str) -> say.History:
    fields = _Fields(frame)
    number, limit, given, offset = fields.number(), fields.number(), fields.flag(), fields.number(_LARGE)
    since = Position(fields.text(), offset)
    return say.History(number, fields.text(), since if given else None, limit)


def _parse_enter(frame: bytes, _: str) -> say.Enter:
    fields = _Fields(frame)
    number, ttl = fields.number(), fields.number(_TTL)
    return say.Enter(number, *fields.entry(), fields.bytes(), ttl)


def _parse_shown(frame: bytes, epoch: str) -> say.Shown:
    fields = _Fields(frame)
    number, complete, more, top = fields.number(), fields.flag(), fields.flag(), fields.number(_LARGE)
    records = fields.many(lambda: _parse_record(fields.bytes(), epoch, 0))
    return say.Shown(number, complete, more, top, records)


def _fields(make: Callable[[_Fields], Any]) -> Callable[[bytes, str], Any]:
    return lambda frame, _: make(_Fields(frame))


_DECODERS: Final[dict[int, Callable[[bytes, str], Any]]] = {
    say.HELLO: _fields(lambda fields: say.Hello(fields.number(), fields.text(), fields.number(_SMALL))),
    say.PUBLISH: _parse_publish,
    say.SUBSCRIBE: _fields(lambda fields: say.Topics(fields.number(), fields.many(fields.text))),
    say.UNSUBSCRIBE: _fields(lambda fields: say.Topics(fields.number(), fields.many(fields.text))),
    say.HISTORY: _parse_history,
    say.ENTER: _parse_enter,
    say.REFRESH: _fields(
        lambda fields: say.Entries(
            fields.number(), ttl=fields.number(_TTL), entries=fields.many(fields.entry)
        )
    ),
    say.LEAVE: _fields(lambda fields: say.Entries(fields.number(), [fields.entry()])),
    say.MEMBERS: _fields(lambda fields: say.Ask(fields.number(), fields.text())),
    say.PING: _fields(lambda fields: say.Ask(fields.number())),
    say.WELCOME: _fields(
        lambda fields: say.Welcome(fields.number(), fields.number(_SMALL), fields.number(), fields.text())
    ),
    say.PUBLISHED: _fields(lambda fields: say.Published(fields.number(), fields.number(_LARGE))),
    say.SUBSCRIBED: _fields(
        lambda fields: say.Subscribed(fields.number(), fields.many(lambda: fields.number(_LARGE)))
    ),
    say.SHOWN: _parse_shown,
    say.DONE: _fields(lambda fields: say.Done(fields.number(), fields.flag())),
    say.UNKNOWN: _fields(lambda fields: say.Entries(fields.number(), fields.many(fields.entry))),
    say.PRESENT: _fields(
        lambda fields: say.Present(
            fields.number(), dict(fields.many(lambda: (fields.text(), fields.bytes())))
        )
    ),
    say.PONG: _fields(lambda fields: say.Ask(fields.number())),
    say.REFUSED: _fields(lambda fields: say.Refused(fields.number(), fields.text())),
    say.PUBLICATION: _parse_record,
    say.PRESENCE: _fields(
        lambda fields: say.Presence(fields.text(), fields.text(), fields.text(), fields.bytes())
    ),
}
