"""The mailbox: mails, and the events that tell of them, in one SQLite file.

A mail and its event are written in one transaction (the *outbox*), so neither is ever without the other. Whoever
publishes takes events from the outbox in their order, and removes them when the bus has them: after a crash in between
they are published again, with the same key, by which the bus knows them.

Everything here blocks: `storage` calls it in a thread.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import attrs

__all__ = ["Event", "Full", "Invalid", "Mail", "Mailbox", "check_name"]

KEPT = 200  # mails of one person; older ones go
KEPT_IN_ALL = 100_000
UNPUBLISHED = 50_000  # events that may wait for the bus; beyond it nothing is taken any more
SUBJECT, TEXT = 200, 10_000  # characters

SCHEMA = """
CREATE TABLE IF NOT EXISTS mails (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, box TEXT NOT NULL, sender TEXT NOT NULL,
    subject TEXT NOT NULL, text TEXT NOT NULL, at INTEGER NOT NULL, read INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS mails_of_box ON mails (box, number);
CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, key TEXT NOT NULL, data TEXT NOT NULL
);
"""


class Invalid(ValueError):
    """A mail that is none; the text says why, for people."""


class Full(Exception):
    """Too many events wait for the bus."""


class Event(NamedTuple):
    """What is to be published: `data` is JSON, `key` the same however often that happens."""

    number: int
    topic: str
    key: str
    data: str


def check_name(name: object) -> str:
    """Return a person's name, which is also part of a topic. Raises `Invalid`."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,23}", name):
        raise Invalid("A name is 1 to 24 small letters, digits, dots and dashes.")
    return name


def _text(value: object, what: str, limit: int) -> str:
    if not isinstance(value, str) or "\0" in value or (not value.isascii() and _lone(value)):
        raise Invalid(f"The {what} is missing or no text.")
    if len(value) > limit:
        raise Invalid(f"The {what} has at most {limit:,} characters.")
    return value.strip()


def _lone(text: str) -> bool:
    """Whether there is half a character in it, which no encoding takes."""
    return any("\ud800" <= character <= "\udfff" for character in text)


@attrs.frozen
class Mail:
    """One mail. `id` is the sender's choice: what is delivered twice with it is one mail. `at`: ms since 1970."""

    box: str
    sender: str
    subject: str
    text: str
    id: str = attrs.field(factory=lambda: secrets.token_hex(8))
    at: int = attrs.field(factory=lambda: time.time_ns() // 1_000_000)

    @classmethod
    def of(cls, fields: object, sender: str | None = None) -> Mail:
        """Make one of JSON: `to`, `subject`, `text`, and `id` and `sender` unless given. Raises `Invalid`."""
        if not isinstance(fields, dict):
            raise Invalid("A mail is a JSON object.")
        key = fields.get("id", secrets.token_hex(8))
        if not isinstance(key, str) or not re.fullmatch(r"[\w-]{8,64}", key, re.ASCII):
            raise Invalid("An id is 8 to 64 letters, digits and dashes.")
        text = _text(fields.get("text", ""), "text", TEXT)
        subject = _text(fields.get("subject", ""), "subject", SUBJECT)
        if not text and not subject:
            raise Invalid("There is nothing in this mail.")
        if sender is None:
            sender = _text(fields.get("sender", "somebody"), "sender", 64)
        return cls(check_name(fields.get("to")), sender, " ".join(subject.split()), text, key)

    def shown(self, *, read: bool = False) -> dict[str, Any]:
        """The mail as pages get it."""
        shown = {"id": self.id, "sender": self.sender, "subject": self.subject, "text": self.text}
        return {**shown, "at": self.at, "read": read}


class Mailbox:
    """All mails of all people. One thread at a time may use it."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False)
        # Others may read while one writes. FULL: what was committed outlives a power cut, too.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, mails: Iterable[Mail]) -> int:
        """Take mails in; returns how many were new. All of them with their events, or, raising `Full`, none."""
        new = 0
        with self._db:  # one transaction
            for mail in mails:
                if self._insert(mail):
                    new += 1
                    self._announce(mail.box, mail.id, {"type": "mail", "mail": mail.shown()})
        return new

    def _insert(self, mail: Mail) -> bool:
        row = mail.id, mail.box, mail.sender, mail.subject, mail.text, mail.at
        insert = "INSERT OR IGNORE INTO mails (id, box, sender, subject, text, at) VALUES (?, ?, ?, ?, ?, ?)"
        cursor = self._db.execute(insert, row)
        if not cursor.rowcount:
            return False
        older = """
            DELETE FROM mails WHERE number IN
                (SELECT number FROM mails WHERE box = ? ORDER BY number DESC LIMIT -1 OFFSET ?)
        """
        self._db.execute(older, (mail.box, KEPT))
        self._db.execute("DELETE FROM mails WHERE number <= ?", ((cursor.lastrowid or 0) - KEPT_IN_ALL,))
        return True

    def _announce(self, box: str, key: str, event: dict[str, Any]) -> None:
        data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        row = f"mail:{box}", key, data
        self._db.execute("INSERT INTO outbox (topic, key, data) VALUES (?, ?, ?)", row)
        if self.waiting() > UNPUBLISHED:
            raise Full

    def inbox(self, box: str) -> list[dict[str, Any]]:
        """The mails of one person, the newest first."""
        select = "SELECT sender, subject, text, id, at, read FROM mails WHERE box = ? ORDER BY number DESC"
        return [Mail(box, *row).shown(read=bool(read)) for *row, read in self._db.execute(select, (box,))]

    def mark_read(self, box: str, ids: Iterable[str]) -> int:
        """Note that mails were read, and announce it, for there may be other pages. Returns how many were unread."""
        update = "UPDATE mails SET read = 1 WHERE id = ? AND box = ? AND NOT read"
        with self._db:
            changed = [key for key in ids if self._db.execute(update, (key, box)).rowcount]
            if changed:
                self._announce(box, secrets.token_hex(8), {"type": "read", "ids": changed})
        return len(changed)

    def boxes(self) -> list[str]:
        """Who has mail."""
        return [name for (name,) in self._db.execute("SELECT DISTINCT box FROM mails LIMIT 1000")]

    def outbox(self, limit: int = 100) -> list[Event]:
        """The events that are to be published next, in their order."""
        select = "SELECT number, topic, key, data FROM outbox ORDER BY number LIMIT ?"
        return [Event(*row) for row in self._db.execute(select, (limit,))]

    def published(self, event: Event) -> None:
        """The bus has all events up to this one."""
        with self._db:
            self._db.execute("DELETE FROM outbox WHERE number <= ?", (event.number,))

    def waiting(self) -> int:
        """How many events are to be published."""
        ends = (
            "SELECT (SELECT MAX(number) FROM outbox) - (SELECT MIN(number) FROM outbox) + 1"  # no gap between
        )
        return self._db.execute(ends).fetchone()[0] or 0
