"""The bus as browsers speak to it, version 1: what clients say, and the codes. `bus_answers` has what they are told.

Pure. Every message is a JSON object in a text message; `parse` makes a command of a client's, or raises `Refused`.
Fields that nobody knows are left alone, so that later versions may add some.

What is published is any JSON value. It is read once, when it comes from a publisher, and written anew without spaces;
from there on it is text that is copied into messages (looked at once more by each process, for others publish, too).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from trionet.errors import TrionetError

__all__ = [
    "CODES",
    "Command",
    "History",
    "Ping",
    "Presence",
    "Publish",
    "Refused",
    "Subscribe",
    "Unsubscribe",
    "encode_data",
    "parse",
    "reconnects",
    "too_large",
]

VERSION: Final = 1
SUBPROTOCOL: Final = "trionet.bus.v1"

#: Error codes, and whether the same request may succeed later.
CODES: Final = {
    "bad-request": False,  # no JSON, a field is missing or of the wrong kind
    "unknown-type": False,
    "bad-topic": False,  # no name of a topic
    "forbidden": False,
    "not-subscribed": False,
    "already-subscribed": False,
    "too-many-topics": False,
    "too-large": False,
    "too-fast": True,
    "unavailable": True,  # the broker cannot be reached
    "no-history": False,  # the topic keeps none
    "no-presence": False,  # nobody notes who is there
    "internal": True,  # our fault
}

#: Close codes after which a client does not come back: it would be told the same again. (RFC 6455, 7.4.1, and our own.)
FINAL_CLOSES: Final = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010, *range(4400, 4500)})
BAD_REQUEST: Final = 4400
NOT_AUTHORISED: Final = 4401  # who you are is not known (any more)
FORBIDDEN: Final = 4403  # it is known, and you may not
REPLACED: Final = 4409  # another connection has taken your place

MAX_ID: Final = 64  # characters
MAX_WORD: Final = 255  # bytes of a key, a tag, an epoch
MAX_OFFSET: Final = 2**53 - 1  # what a double, JavaScript's number, counts to
MAX_DEPTH: Final = 100  # of what is published: every reader has to get through it
HISTORY: Final = 100  # messages, if no limit is asked for
MAX_HISTORY: Final = 1000

Id: TypeAlias = "int | str"
Since: TypeAlias = "tuple[str, int]"


class Refused(TrionetError):
    """A client asked for what it does not get: it is sent an error with `code` and `text`, and stays connected.

    `retry`: whether the same may work later; by default what `CODES` says. Hooks of a `BusHandler` may raise it, with
    codes of their own as well.
    """

    def __init__(self, code: str, text: str = "", *, retry: bool | None = None, id: Id | None = None) -> None:  # noqa: A002
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code
        self.text = text
        self.retry = CODES.get(code, False) if retry is None else retry
        self.id = id


def reconnects(code: int) -> bool:
    """Whether a client whose connection was closed with `code` comes back by itself."""
    return code not in FINAL_CLOSES


# ------------------------------------------------------------ what clients say


class Subscribe(NamedTuple):
    """`since`: send what came behind this position first."""

    id: Id
    topic: str
    since: Since | None


class Unsubscribe(NamedTuple):
    """Nothing more of `topic`."""

    id: Id
    topic: str


class Publish(NamedTuple):
    """`data` is JSON. `echo`: the publisher gets it, too, if it has subscribed."""

    id: Id
    topic: str
    data: bytes
    key: str
    tag: str
    echo: bool


class Presence(NamedTuple):
    """Who is on `topic`?"""

    id: Id
    topic: str


class History(NamedTuple):
    """At most `limit` messages behind `since`; None: the newest."""

    id: Id
    topic: str
    since: Since | None
    limit: int


class Ping(NamedTuple):
    """Answered by `PONG`: a script never sees the pings of the protocol."""


Command: TypeAlias = Subscribe | Unsubscribe | Publish | Presence | History | Ping

_PING: Final = Ping()


def parse(message: str | bytes, limit: int) -> Command:
    """Read a message of a client, of `limit` characters at most.

    Raises `Refused`, and nothing else; with the `id` of the request if it has one.
    """
    if message == '{"type":"ping"}':
        return _PING
    if not isinstance(message, str):
        raise Refused("bad-request", "messages are text")
    try:
        request = _decode(message)
    except (ValueError, RecursionError):
        raise Refused("bad-request", "this is not JSON") from None
    if not isinstance(request, dict):
        raise Refused("bad-request", "a message is a JSON object")
    known = _id(request)
    try:
        if (
            len(message) > limit
        ):  # read nevertheless, or the client would not know which of its requests it was
            raise too_large(limit)
        return _read(request, known)
    except Refused as refused:
        refused.id = known
        raise


def too_large(limit: int) -> Refused:
    """What somebody is told who says too much at once."""
    return Refused("too-large", f"a message has at most {limit} bytes")


def _read(request: dict[str, Any], known: Id | None) -> Command:
    kind = request.get("type")
    if kind == "ping":
        return _PING
    if not isinstance(kind, str):
        raise Refused("bad-request", "type is a string")
    read = _READERS.get(kind)
    if read is None:
        raise Refused("unknown-type", f"the types are {', '.join(_READERS)} and ping")
    if known is None:
        raise Refused("bad-request", f"id is an integer, or 1 to {MAX_ID} printable characters")
    topic = request.get("topic")
    if not isinstance(topic, str):
        raise Refused("bad-request", "topic is a string")
    return read(known, topic, request)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # Python reads NaN and Infinity, nobody else does


_decode: Final = json.JSONDecoder(parse_constant=_constant).decode


def _id(request: dict[str, Any]) -> Id | None:
    value = request.get("id")
    if type(value) is int:  # not isinstance: True is none
        return value if -MAX_OFFSET <= value <= MAX_OFFSET else None
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID and value.isprintable():
        return value
    return None


def _word(request: dict[str, Any], name: str) -> str:
    """A short text: what it is for is the sender's business. "" if it is not there."""
    value = request.get(name)
    if value is None:
        return ""
    # Printable: no line end gets into anybody's headers, and no half of a character, which is no UTF-8.
    if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > MAX_WORD:
        raise Refused("bad-request", f"{name} is a string of printable characters, {MAX_WORD} bytes at most")
    return value


def _since(request: dict[str, Any]) -> Since | None:
    value = request.get("since")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Refused("bad-request", "since is an object with epoch and offset")
    offset = value.get("offset")
    if type(offset) is not int or not 0 <= offset <= MAX_OFFSET:
        raise Refused("bad-request", "since.offset is an integer, 0 or more")
    return _word(value, "epoch"), offset


def _flag(request: dict[str, Any], name: str) -> bool:
    """True if it is not there."""
    value = request.get(name, True)
    if not isinstance(value, bool):
        raise Refused("bad-request", f"{name} is true or false")
    return value


def _read_subscribe(known: Id, topic: str, request: dict[str, Any]) -> Subscribe:
    since = _since(request)
    return Subscribe(known, topic, since if _flag(request, "recover") else None)


def _read_publish(known: Id, topic: str, request: dict[str, Any]) -> Publish:
    if "data" not in request:
        raise Refused("bad-request", "data is missing")
    try:
        data = encode_data(request["data"])
    except ValueError as error:
        raise Refused("bad-request", f"data: {error}") from None
    return Publish(known, topic, data, _word(request, "key"), _word(request, "tag"), _flag(request, "echo"))


def _read_history(known: Id, topic: str, request: dict[str, Any]) -> History:
    limit = request.get("limit", HISTORY)
    if type(limit) is not int or limit < 1:
        raise Refused("bad-request", "limit is an integer, 1 or more")
    return History(known, topic, _since(request), min(limit, MAX_HISTORY))


_READERS: Final[dict[str, Callable[[Id, str, dict[str, Any]], Command]]] = {
    "subscribe": _read_subscribe,
    "unsubscribe": lambda known, topic, _: Unsubscribe(known, topic),
    "publish": _read_publish,
    "presence": lambda known, topic, _: Presence(known, topic),
    "history": _read_history,
}


# ------------------------------------------------------- what is published


def encode_data(value: Any) -> bytes:
    """`value` as what is published: JSON, in UTF-8, without spaces.

    Raises `TypeError` for what JSON has no form for; `ValueError` for NaN, infinity, what contains itself, or is nested
    deeper than `MAX_DEPTH`.
    """
    try:
        text = dumps(value)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    try:
        return text.encode()
    except (
        UnicodeEncodeError
    ):  # half a character, as scripts make by cutting strings: it is written as \ud83d
        return json.dumps(value, separators=(",", ":")).encode()


dumps: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list | tuple)]
        if not level:
            return
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(f"nested deeper than {MAX_DEPTH}")
