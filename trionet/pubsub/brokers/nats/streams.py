"""How topics lie in NATS: names of subjects, and the JetStream streams that keep history. Pure.

    topic                    news/eu/berlin            a.b          x/         50%>
    as tokens                news/.eu/.berlin          a.b          x/.%       50%25%3E
    published to             PREFIX.in.RULE.tokens     captured by the stream PREFIX-RULE
    listened to at           PREFIX.live.RULE.tokens   where the stream republishes it, with its sequence number

A topic is split behind each of ``. : /``; so the pattern ``news/*`` is ``PREFIX.live.*.news/.>``. The ``.`` is what
NATS splits by anyway and is left out; what NATS forbids or gives a meaning to is percent-escaped; an empty token is
``%``. There is one stream for each rule that keeps history, so that other limits change a stream instead of making a
new one, and one ("once") by which keys work on topics that keep nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import unquote

from trionet.errors import ConfigurationError
from trionet.pubsub.topics import HistoryLimits, TopicRules, is_pattern

__all__ = ["Stream", "Streams", "seconds", "to_subject", "to_topic"]

KEY_AGE: Final = 300.0  # seconds in which publishing again with the same key changes nothing
NANO: Final = 1_000_000_000

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_BEHIND_SEPARATOR: Final = re.compile(r"(?<=[.:/])")
_ESCAPED: Final = re.compile(r"[%>]")


@lru_cache(maxsize=4096)
def to_subject(topic: str) -> str:
    """The tokens of a topic or of a pattern's beginning and all (``>``)."""
    if _PLAIN.fullmatch(topic):
        return topic
    name, end = (topic[:-1], ".>") if is_pattern(topic) else (topic, "")
    if not name:
        return ">"
    tokens = [
        _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", token.removesuffix(".")) or "%"
        for token in _BEHIND_SEPARATOR.split(name)
    ]
    if end:
        del tokens[-1]  # the empty one behind the separator
    return ".".join(tokens) + end


def to_topic(subject: str) -> str:
    """The topic whose tokens these are."""
    if "%" not in subject and "/" not in subject and ":" not in subject:
        return subject
    tokens = subject.split(".")
    parts = []
    for number, token in enumerate(tokens):
        part = unquote(token) if len(token) > 1 else token.strip("%")
        parts.append(part)
        if number < len(tokens) - 1 and part[-1:] not in {":", "/"}:
            parts.append(".")
    return "".join(parts)


def seconds(stamp: str) -> float:
    """A time as JetStream writes it (RFC 3339, to the nanosecond, UTC), in seconds since 1970; 0 if it is none."""
    try:
        return _whole_seconds(stamp[:19]) + float(stamp[19:-1] or 0)
    except ValueError:
        return 0.0


@lru_cache(maxsize=16)
def _whole_seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp + "Z").timestamp()


class Stream:
    """A stream of JetStream: what keeps the topics of one rule. `limits` None: it keeps nothing but keys."""

    __slots__ = ("_last", "_live", "_subject", "epoch", "limits", "name", "seen")

    def __init__(self, prefix: str, rule: str, limits: HistoryLimits | None) -> None:
        self.name = f"{prefix}-{rule}"
        self.limits = limits
        self._subject = f"{prefix}.in.{rule}."
        self._live = f"{prefix}.live.{rule}."
        self.epoch = ""  # of the stream as it was found last
        #: Everything up to this sequence has been delivered here, whatever is kept of it.
        self.seen = 0
        self._last = 0

    def subject(self, topic: str) -> str:
        """Where to publish for the stream."""
        return self._subject + to_subject(topic)

    def topic(self, subject: str) -> str:
        """The topic of such a subject."""
        return to_topic(subject[len(self._subject) :])

    def live(self, topic: str) -> str:
        """Where to listen, and where to publish what no stream is to see."""
        return self._live + to_subject(topic)

    def note(self, last: int) -> None:
        """The link has been alive since the previous note: what the stream ended with then has long arrived."""
        self.seen, self._last = self._last, last

    def lost(self) -> None:
        """The link was lost. What was noted as `seen` stays true; what was noted last may never have arrived."""
        self._last = self.seen

    def config(self, remember: float, max_bytes: int) -> dict[str, Any]:
        """What it must be configured like; everything else is the operator's."""
        limits = self.limits or HistoryLimits(count=1, age=KEY_AGE)
        age = max(limits.age, KEY_AGE, remember if self.limits else 0.0)
        return {
            "subjects": [self._subject + ">"],
            "retention": "limits",
            "discard": "old",
            "max_msgs_per_subject": limits.count + 1,  # one more, to see what the oldest follows
            "max_age": int(age * NANO),
            "max_bytes": max_bytes,
            "duplicate_window": int(KEY_AGE * NANO),
            "allow_direct": True,
            "republish": {"src": self._subject + ">", "dest": self._live + ">"},
        }


class Streams:
    """The stream of every topic, by the rules."""

    def __init__(self, rules: TopicRules, prefix: str) -> None:
        if not prefix.replace("-", "").replace("_", "").isalnum() or not prefix.isascii():
            raise ConfigurationError(f"a prefix has letters, digits, - and _: {prefix!r}")
        self.prefix = prefix
        self._rules = rules
        self._once = Stream(prefix, "once", None)
        self._streams = {
            rule: Stream(prefix, _label(rule), options.history) if options.history else self._once
            for rule, options in rules
        }

    def of(self, topic: str) -> Stream:
        """The stream of `topic`."""
        return self._streams[self._rules.rule(topic)]

    def everywhere(self, pattern: str) -> str:
        """Where to listen for a pattern: its topics may have different rules."""
        return f"{self.prefix}.live.*.{to_subject(pattern)}"

    def __iter__(self) -> Iterator[Stream]:
        """Each stream once."""
        return iter(dict.fromkeys(self._streams.values()))


def _label(rule: str) -> str:
    """A rule as a part of a stream's name, readable and unique."""
    if rule == "*":
        return "all"
    text = re.sub(r"[^A-Za-z0-9]+", "_", rule).strip("_")[:32]
    return f"{text}-{blake2b(rule.encode(), digest_size=4).hexdigest()}".lstrip("-")
