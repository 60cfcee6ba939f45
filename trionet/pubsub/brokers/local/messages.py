"""What a `LocalBroker` and its server say to each other, as values; `wire` has their bytes, and the table."""

from __future__ import annotations

from typing import Final, NamedTuple

from trionet.pubsub.publication import Position, Publication

VERSION: Final = 1
MAGIC: Final = "trionet"
MAX_TEXT: Final = 1024  # bytes of a key, a tag, an origin, a member, an owner
PAGE_BYTES: Final = 4 * 2**20  # of a page of history, but for its last record

HELLO, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, HISTORY, ENTER, REFRESH, LEAVE, MEMBERS, PING = range(1, 11)
PUBLICATION, PRESENCE = 33, 34
WELCOME, PUBLISHED, SUBSCRIBED = 65, 66, 67
SHOWN, DONE, UNKNOWN = 69, 70, 71
PRESENT, PONG, REFUSED = 73, 74, 79


class Hello(NamedTuple):
    """Who is there."""

    number: int
    magic: str
    version: int


class Publish(NamedTuple):
    """See the table; `limits` are count, size and age."""

    number: int
    limits: tuple[int, int, float]
    topic: str
    key: str
    tag: str
    origin: str
    data: bytes


class Topics(NamedTuple):
    """Of `subscribe` and `unsubscribe`."""

    number: int
    topics: list[str]


class History(NamedTuple):
    """What came on `topic` behind `since`."""

    number: int
    topic: str
    since: Position | None
    limit: int


class Enter(NamedTuple):
    """`owner` stands for `member`."""

    number: int
    topic: str
    member: str
    owner: str
    info: bytes
    ttl: float


class Entries(NamedTuple):
    """Of `refresh`, `leave` (one of them, no ttl) and `unknown` (no ttl)."""

    number: int
    entries: list[tuple[str, str, str]]
    ttl: float = 0.0


class Ask(NamedTuple):
    """A request or an answer without more than a topic, if any: `members`, `ping`, `pong`."""

    number: int
    topic: str = ""


class Welcome(NamedTuple):
    """The server."""

    number: int
    version: int
    max_message: int
    epoch: str


class Published(NamedTuple):
    """Where it stands."""

    number: int
    offset: int


class Subscribed(NamedTuple):
    """Where the topics stand."""

    number: int
    offsets: list[int]


class Shown(NamedTuple):
    """A page of history."""

    number: int
    complete: bool
    more: bool
    top: int
    publications: list[Publication]


class Done(NamedTuple):
    """Whether it was the first, or last, of a member."""

    number: int
    whether: bool


class Present(NamedTuple):
    """Who is there."""

    number: int
    members: dict[str, bytes]


class Presence(NamedTuple):
    """Somebody came or left."""

    event: str
    topic: str
    member: str
    info: bytes


class Refused(NamedTuple):
    """Why not."""

    number: int
    reason: str
