"""Publications as the messages that subscribers are sent: encoded once, however many they are."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from trionet.net.limited import LimitedLog
from trionet.protocols.channel import PreparedMessage
from trionet.pubsub.publication import Position, Publication
from trionet.pubsub.topics import TopicRules
from trionet.wire.bus_answers import encode_event, encode_message, encode_reset

__all__ = ["MessageEncoder", "as_json", "as_message"]

log = logging.getLogger("trionet.bus")

_limited = LimitedLog()


class MessageEncoder:
    """The `Encoder` of a bus whose subscribers are WebSockets."""

    def __init__(self, rules: TopicRules) -> None:
        self._rules = rules
        self._conflates = any(options.conflate for _, options in rules)

    def publication(self, publication: Publication, /) -> PreparedMessage:
        """Something was published."""
        text = as_message(publication)
        if self._conflates and self._rules.of(publication.topic).conflate:
            return PreparedMessage(text, tag=f"{publication.topic} {publication.tag}")
        return PreparedMessage(text)

    def interrupted(self, topic: str, position: Position, /) -> PreparedMessage:
        """Publications before `position` may be missing."""
        return PreparedMessage(encode_reset(topic, position))

    def presence(self, topic: str, event: str, member: str, info: bytes, /) -> PreparedMessage:
        """A member came or left."""
        return PreparedMessage(encode_event(event, topic, member, as_json(info, topic)))


def as_message(publication: Publication, *, replay: bool = False) -> str:
    """The message for a publication. `replay`: it comes from the history."""
    topic, data, epoch, offset, previous, at, tag, _ = publication
    if not epoch:
        return encode_message(topic, as_json(data, topic), at, tag=tag, replay=replay)
    return encode_message(
        topic, as_json(data, topic), at, offset=offset, previous=previous, tag=tag, replay=replay
    )


def as_json(data: bytes, topic: str) -> str:
    """`data` as text to be copied into a message: JSON, as its publisher promises; nothing is null.

    Other programs publish, too, and one that publishes something else must not cost the subscribers their connections,
    nor have them ask for ever for a message they cannot read: they get null instead.
    """
    if not data:
        return "null"
    try:
        text = data.decode()
        _decode(text)
    except (ValueError, RecursionError):
        _limited.log(log, logging.ERROR, "%s: what was published is not JSON in UTF-8; sent as null", topic)
        return "null"
    return text


def _no_json(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity, which Python's own encoder writes


_decode: Final = json.JSONDecoder(parse_constant=_no_json).decode
