"""The rules of the chat: who may enter which room, what is said there, and how much of it is kept.

Nothing here does I/O, awaits or reads a clock. Each method decides at once, changes the state and returns
what the caller has to tell whom; a rule that forbids something raises `Refusal`. Times are seconds of any
clock that never goes back.

What one stranger can make grow has a bound in `Limits`: names, lines, rooms, people, history, and how fast
lines come.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import secrets
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trionet import WebSocket


MAX_NUMBER = 2**53 - 1  # beyond it a script cannot count


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of one chat. Lengths are characters, times are seconds."""

    name: int = 24
    room: int = 32
    text: int = 2000
    rooms: int = 100  # kept, empty ones too: their history outlives a night without guests
    people: int = 200  # in one room
    history: int = 50  # lines of one room
    listed: int = 30  # rooms named in the list that everyone sees
    grace: float = 10.0  # how long a lost connection may take to come back before the room hears "left"
    burst: int = 20  # lines at once ...
    rate: float = 4.0  # ... and lines a second after that


class Refusal(Exception):
    """Something the rules forbid: `code` for programs, a text for people, `details` for both."""

    def __init__(self, code: str, text: str, **details: float) -> None:
        super().__init__(text)
        self.code = code
        self.details = details


class Line(NamedTuple):
    """Something that was said. `author` and `n` together stay the same when a page has to send it again."""

    seq: int
    author: str
    n: int
    name: str
    at: int
    text: str


@dataclasses.dataclass(eq=False, slots=True)
class Person:
    """Somebody in a room. Outlives the connection, so that whoever holds `token` can come back on another."""

    name: str
    author: str
    room: Room
    connection: WebSocket | None
    allowance: float
    said_at: float
    token: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(16))
    last: int = 0  # the number of the newest line said: what comes again is not said again

    @property
    def key(self) -> str:
        """What makes two names the same."""
        return fold(self.name)


class Entry(NamedTuple):
    """What came of entering: `fresh` people are announced, a `replaced` connection has to be closed."""

    person: Person
    fresh: bool
    replaced: WebSocket | None


class Room:
    """One room: the people in it and its last lines."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        # A page that comes back compares this, and knows whether `seq` still counts the same lines.
        self.epoch = secrets.token_hex(4)
        self.seq = 0
        self.people: dict[str, Person] = {}
        self.history: collections.deque[Line] = collections.deque(maxlen=limits.history)
        # By token: those who left, so that a line they send again is still known. Oldest first, bounded.
        self.departed: dict[str, Person] = {}

    @property
    def connections(self) -> list[WebSocket]:
        """Where to send what everyone here shall see."""
        return [person.connection for person in self.people.values() if person.connection is not None]

    def enter(self, connection: WebSocket, name: str, author: str, token: str | None, now: float) -> Entry:
        """Let somebody in under `name`, or back in if `token` proves that the name is theirs."""
        limits = self.limits
        present = self.people.get(fold(name))
        if present is not None:
            if token is None or not secrets.compare_digest(present.token, token):
                raise Refusal(
                    "name-taken", f"“{present.name}” is taken in this room. Please choose another name."
                )
            replaced, present.connection = present.connection, connection
            return Entry(present, fresh=False, replaced=replaced)
        if len(self.people) >= limits.people:
            raise Refusal("room-full", f"This room is full ({limits.people} people). Please try another one.")
        person = self.departed.get(token) if token else None
        if person is not None and person.key == fold(name):
            del self.departed[person.token]
            person.connection = connection
        else:
            person = Person(name, author, self, connection, allowance=limits.burst, said_at=now)
        self.people[person.key] = person
        return Entry(person, fresh=True, replaced=None)

    def say(self, person: Person, n: int, text: str, now: float, at: int) -> Line | None:
        """Add a line to the history; None if it was there already: a page that cannot know sends it again.

        A page sends its next line only after the answer to this one. So lines stay in order, and one number
        tells what is new.
        """
        if n <= person.last:
            return None
        if n > MAX_NUMBER:
            raise Refusal("bad-request", "The number of this line is too large.")
        text = clean_text(text, self.limits.text)
        limits = self.limits
        person.allowance = min(limits.burst, person.allowance + (now - person.said_at) * limits.rate)
        person.said_at = now
        if person.allowance < 1:
            wait = (1 - person.allowance) / limits.rate
            raise Refusal(
                "too-fast", "That was fast. The next line goes out in a moment.", wait=round(wait, 2)
            )
        person.allowance -= 1
        person.last = n
        self.seq += 1
        line = Line(self.seq, person.author, n, person.name, at, text)
        self.history.append(line)
        return line

    def remove(self, person: Person) -> None:
        """Take somebody off the list; their token stays known until enough others have left."""
        del self.people[person.key]
        person.connection = None
        self.departed[person.token] = person
        if len(self.departed) > self.limits.people:
            del self.departed[next(iter(self.departed))]


class House:
    """All rooms of one chat. Rooms come into being when somebody enters them."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.rooms: dict[str, Room] = {}
        # Those whose connection broke, and when: they have `grace` seconds to come back. Oldest first.
        self.lost: dict[Person, float] = {}

    def enter(
        self, connection: WebSocket, room: str, name: str, author: str, token: str | None, now: float
    ) -> Entry:
        """Let somebody into a room, which is opened if need be. Raises `Refusal` and then leaves no trace."""
        name = clean_name(name, self.limits.name, "name")
        room = clean_name(room, self.limits.room, "room")
        if not re.fullmatch(r"[A-Za-z0-9_-]{8,32}", author):
            raise Refusal("bad-request", "An author is 8 to 32 letters and digits.")
        if token is not None and not token.isascii():
            token = None
        here = self.rooms.get(fold(room)) or Room(room, self.limits)
        if fold(room) not in self.rooms:
            self._make_space()
        entry = here.enter(connection, name, author, token, now)
        self.rooms[fold(room)] = here
        self.lost.pop(entry.person, None)
        return entry

    def lose(self, person: Person, now: float) -> None:
        """Note that the connection of `person` broke. Their name stays theirs for a while."""
        person.connection = None
        self.lost[person] = now

    def leave(self, person: Person) -> None:
        """Let `person` go for good, whether they said so or stayed away too long."""
        self.lost.pop(person, None)
        person.room.remove(person)
        if not person.room.people:
            # To the end: the room that has stood empty longest is the first empty one, see `_make_space`.
            key = fold(person.room.name)
            self.rooms[key] = self.rooms.pop(key)

    def expire(self, now: float) -> list[Person]:
        """Let everyone go who stayed away too long, and return them."""
        gone = []
        for person, since in self.lost.items():
            if now - since < self.limits.grace:
                break
            gone.append(person)
        for person in gone:
            self.leave(person)
        return gone

    def listing(self) -> list[dict[str, str | int]]:
        """Name the rooms with people in them, fullest first."""
        open_rooms = sorted(
            (room for room in self.rooms.values() if room.people), key=lambda room: -len(room.people)
        )
        return [{"name": room.name, "people": len(room.people)} for room in open_rooms[: self.limits.listed]]

    def _make_space(self) -> None:
        """Forget the room that has been empty longest if there are too many."""
        if len(self.rooms) < self.limits.rooms:
            return
        for key, room in self.rooms.items():
            if not room.people:
                del self.rooms[key]
                return
        raise Refusal("too-many-rooms", "All rooms are in use. Please join one of them.")


def fold(name: str) -> str:
    """Reduce a name to what has to differ: "ADA" and "ada" are one name, wide letters or not."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def clean_name(name: str, limit: int, what: str) -> str:
    """Return a name of a person or a room as it will be shown, or refuse it."""
    name = unicodedata.normalize("NFC", name.strip(" "))
    # Category C: control and formatting characters (also those that turn the direction of the text), lone
    # surrogates, unassigned.
    if any(unicodedata.category(char)[0] == "C" for char in name):
        raise Refusal(f"bad-{what}", f"A {what} cannot contain control characters or invisible ones.")
    name = " ".join(name.split())
    if not any(unicodedata.category(char)[0] in "LNS" for char in name):
        raise Refusal(f"bad-{what}", f"A {what} needs at least one letter, digit or symbol.")
    if len(name) > limit:
        raise Refusal(f"bad-{what}", f"A {what} has at most {limit} characters; this one has {len(name)}.")
    return name


def clean_text(text: str, limit: int) -> str:
    """Return a line as it will be shown, or refuse it."""
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise Refusal("bad-text", "There is nothing to send.")
    if len(text) > limit:
        raise Refusal("bad-text", f"A message has at most {limit} characters; this one has {len(text)}.")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in text):
        raise Refusal("bad-text", "A message cannot contain control characters.")
    return text
