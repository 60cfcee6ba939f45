"""What a server says in version 1 of the bus's protocol: each message as text. Pure.

`data` and `info` are JSON already, and copied in as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from json.encoder import encode_basestring as quote
from typing import Any, Final, NamedTuple

from trionet.wire.bus import VERSION, Id, Refused, Since, dumps

__all__ = [
    "PONG",
    "Kept",
    "encode_error",
    "encode_event",
    "encode_history",
    "encode_message",
    "encode_presence",
    "encode_published",
    "encode_reset",
    "encode_subscribed",
    "encode_unsubscribed",
    "encode_welcome",
]

PONG: Final = '{"type":"pong"}'


def _pack(kind: str, /, **fields: Any) -> str:
    """A message; fields that are None are left out."""
    present = {name: value for name, value in fields.items() if value is not None}
    return dumps({"type": kind, **present})


def encode_welcome(
    *, session: str, user: str | None, heartbeat: float, max_topics: int, max_message: int
) -> str:
    """The first message: what the client has to know."""
    limits = {"topics": max_topics, "message": max_message}
    return _pack("welcome", version=VERSION, session=session, user=user, heartbeat=heartbeat, limits=limits)


def encode_subscribed(
    known: Id, topic: str, position: Since | None, recovered: bool | None, *, conflated: bool = False
) -> str:
    """What follows is behind `position`; None: this topic counts nothing."""
    message: dict[str, Any] = {"type": "subscribed", "id": known, "topic": topic}
    if position is not None:
        message["epoch"], message["offset"] = position
    message["recovered"] = recovered
    if conflated:
        message["conflated"] = True
    return dumps(message)


def encode_message(
    topic: str,
    data: str,
    at: float,
    *,
    offset: int | None = None,
    previous: int | None = None,
    tag: str = "",
    replay: bool = False,
) -> str:
    """A publication. `offset` None: nobody counts. `previous`: left out where it is `offset` - 1."""
    text = f'{{"type":"message","topic":{quote(topic)}'
    if offset is not None:
        text += f',"offset":{offset}'
        if previous is not None and previous != offset - 1:
            text += f',"previous":{previous}'
    if tag:
        text += f',"tag":{quote(tag)}'
    if replay:
        text += ',"replay":true'
    return f'{text},"at":{int(at * 1000)},"data":{data}}}'


def encode_reset(topic: str, position: Since) -> str:
    """What came before `position` may be missing."""
    return _pack("reset", topic=topic, epoch=position[0], offset=position[1])


def encode_event(event: str, topic: str, member: str, info: str) -> str:
    """A member came ("join") or left ("leave")."""
    return f'{{"type":{quote(event)},"topic":{quote(topic)},"member":{quote(member)},"info":{info}}}'


def encode_unsubscribed(
    topic: str, *, known: Id | None = None, code: str | None = None, text: str = "", retry: bool | None = None
) -> str:
    """It was asked for (`known`), or the server has ended it (`code`); `retry`: subscribe again, with a position."""
    return _pack("unsubscribed", id=known, topic=topic, code=code, text=text or None, retry=retry)


def encode_published(known: Id, position: Since | None) -> str:
    """It is where `position` says; None: nobody counts."""
    epoch, offset = position if position is not None else (None, None)
    return _pack("published", id=known, epoch=epoch, offset=offset)


def encode_presence(known: Id, topic: str, members: Iterable[tuple[str, str]], count: int) -> str:
    """Who is there: `count` in all, some of them by name."""
    listed = ",".join(f'{{"member":{quote(member)},"info":{info}}}' for member, info in members)
    head = _pack("presence", id=known, topic=topic, count=count)
    return f'{head[:-1]},"members":[{listed}]}}'


class Kept(NamedTuple):
    """A message of a history."""

    offset: int
    at: float
    tag: str
    data: str


def encode_history(known: Id, topic: str, top: Since, messages: Iterable[Kept], *, complete: bool) -> str:
    """A piece of history, the oldest first. `top`: the position of the newest that was ever published."""
    listed = ",".join(
        f'{{"offset":{kept.offset},"at":{int(kept.at * 1000)},'
        + (f'"tag":{quote(kept.tag)},' if kept.tag else "")
        + f'"data":{kept.data}}}'
        for kept in messages
    )
    head = _pack("history", id=known, topic=topic, epoch=top[0], offset=top[1], complete=complete)
    return f'{head[:-1]},"messages":[{listed}]}}'


def encode_error(refused: Refused) -> str:
    """Why a request was refused."""
    return _pack(
        "error", id=refused.id, code=refused.code, text=refused.text or refused.code, retry=refused.retry
    )
