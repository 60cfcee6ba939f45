"""Names of topics, and what each topic keeps.

A topic is 1 to 255 bytes of UTF-8 without spaces, control characters and ``*``: ``mail:42``, ``news/eu/berlin``. A
pattern is a beginning and ``*``: ``news/*`` stands for every topic that begins with ``news/``. The beginning is empty
or ends in one of ``. : /``, so that every engine can match it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from trionet.errors import ConfigurationError, TopicError

__all__ = [
    "DEFAULT_HISTORY",
    "HistoryLimits",
    "PatternLengths",
    "TopicOptions",
    "TopicRules",
    "TopicSet",
    "check_topic",
    "is_pattern",
]

MAX_TOPIC: Final = 255  # bytes
SEPARATORS: Final = ".:/"


def is_pattern(topic: str) -> bool:
    """Whether `topic` stands for all topics with the same beginning."""
    return topic.endswith("*")


def check_topic(topic: object, *, pattern: bool = False) -> str:
    """Return `topic` if it is a topic's name (or, with `pattern`, a pattern). Raises `TopicError`."""
    if not isinstance(topic, str):
        raise TopicError(f"a topic is a str, not {type(topic).__name__}")
    name = topic
    if pattern and is_pattern(topic):
        name = topic[:-1]
        if name and name[-1] not in SEPARATORS:
            raise TopicError(f"a pattern's * stands alone or behind one of {SEPARATORS}: {topic!r:.80}")
    elif not topic:
        raise TopicError("a topic has at least one character")
    if "*" in name or " " in name or not name.isprintable():
        raise TopicError(f"a topic has no *, no space and no control character: {topic!r:.80}")
    try:
        size = len(topic) if topic.isascii() else len(topic.encode())
    except UnicodeEncodeError:
        raise TopicError("a topic is UTF-8") from None
    if size > MAX_TOPIC:
        raise TopicError(f"a topic has at most {MAX_TOPIC} bytes, not {size}")
    return topic


class PatternLengths(dict[int, int]):
    """Lengths that the beginnings of patterns have → how many have it: what a topic has to be tried with."""

    __slots__ = ()

    def add(self, topic: str) -> None:
        """`topic` is there now; it counts if it is a pattern."""
        if is_pattern(topic):
            length = len(topic) - 1
            self[length] = self.get(length, 0) + 1

    def discard(self, topic: str) -> None:
        """It is not there any more."""
        if is_pattern(topic):
            length = len(topic) - 1
            self[length] -= 1
            if not self[length]:
                del self[length]


class TopicSet:
    """Names and patterns. `wants` costs one look for the name, and one for each length that patterns have."""

    __slots__ = ("_lengths", "_names")

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lengths = PatternLengths()

    def add(self, topic: str) -> None:
        """Add a name or a pattern, if it is not in it."""
        if topic not in self._names:
            self._names.add(topic)
            self._lengths.add(topic)

    def discard(self, topic: str) -> None:
        """Take it out, if it is in it."""
        if topic in self._names:
            self._names.discard(topic)
            self._lengths.discard(topic)

    def wants(self, topic: str) -> bool:
        """Whether the name is in it, or a pattern that fits."""
        return topic in self._names or any(topic[:length] + "*" in self._names for length in self._lengths)

    def __contains__(self, topic: object) -> bool:
        """Whether exactly this name or pattern is in it."""
        return topic in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@attrs.frozen
class HistoryLimits:
    """How much of a topic is kept: publications, their bytes, and seconds. What exceeds any of them is dropped."""

    count: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    size: int = attrs.field(default=2**20, validator=attrs.validators.ge(1))
    age: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))


DEFAULT_HISTORY: Final = HistoryLimits()


@attrs.frozen
class TopicOptions:
    """What a topic does. `history` None: nothing is kept, and nothing can be recovered.

    `presence`: who is subscribed is known, and announced to the others. `conflate`: of publications with the same `tag`
    only the newest matters, so a peer that reads slowly gets that one; the gaps are not recovered.
    """

    history: HistoryLimits | None = DEFAULT_HISTORY
    presence: bool = False
    conflate: bool = False


class TopicRules:
    """Options by topic: ``TopicRules({"mail:*": TopicOptions(…), "tick": …})``. The longest rule that fits holds.

    Where none fits: `TopicOptions` as it comes. All processes of a system need the same rules.
    """

    def __init__(self, rules: Mapping[str, TopicOptions] | None = None) -> None:
        self._rules = {"*": TopicOptions(), **(rules or {})}
        for rule, options in self._rules.items():
            if not isinstance(options, TopicOptions):
                raise ConfigurationError(f"the rule for {rule!r} is no TopicOptions")
            check_topic(rule, pattern=True)
        self._patterns = {rule[:-1]: rule for rule in self._rules if is_pattern(rule)}
        self._lengths = sorted({len(beginning) for beginning in self._patterns}, reverse=True)

    def rule(self, topic: str) -> str:
        """The name or pattern of the rule that holds for `topic`."""
        if topic in self._rules:
            return topic
        for length in self._lengths:
            rule = self._patterns.get(topic[:length])
            if rule is not None:
                return rule
        raise AssertionError("the empty beginning of * fits")  # pragma: no cover

    def of(self, topic: str) -> TopicOptions:
        """The options of `topic`."""
        return self._rules[self.rule(topic)]

    def __iter__(self) -> Iterator[tuple[str, TopicOptions]]:
        return iter(self._rules.items())
