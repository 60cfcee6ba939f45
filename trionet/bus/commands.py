"""What each command of a client does, in a table: `ACTIONS`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from trionet.bus.control import RESERVED
from trionet.bus.encoder import as_json, as_message
from trionet.bus.sending import send, wait_room
from trionet.errors import BrokerDown, BrokerError, TopicError
from trionet.protocols.channel import PreparedMessage, WebSocket
from trionet.pubsub.bus import Joined
from trionet.pubsub.publication import NOWHERE, Position, Publication
from trionet.pubsub.topics import check_topic, is_pattern
from trionet.wire.bus import (
    History,
    Id,
    Presence,
    Publish,
    Refused,
    Since,
    Subscribe,
    Unsubscribe,
    encode_data,
    too_large,
)
from trionet.wire.bus_answers import (
    Kept,
    encode_history,
    encode_presence,
    encode_published,
    encode_reset,
    encode_subscribed,
    encode_unsubscribed,
)

if TYPE_CHECKING:
    from trionet.bus.handler import BusHandler

__all__ = ["ACTIONS", "Crowd"]

log = logging.getLogger("trionet.bus")

PATIENCE: Final = 8.0  # seconds: clients give a connection up whose ping is not answered for 10
_MEMBERS: Final = 1000  # named in one answer
_CROWD_AGE: Final = 2.0  # seconds; of topics that have more
_CROWDS: Final = 100  # of them that are remembered
_FIELDS: Final = 64  # bytes, about, of each in an answer besides what it is about


class _Joining:
    """A subscription on its way: what `Bus.subscribe` calls, as messages to the client."""

    def __init__(self, handler: BusHandler, ws: WebSocket, known: Id, topic: str) -> None:
        self.begun = False
        self._handler = handler
        self._ws = ws
        self._known = known
        self._topic = topic

    async def begin(self, joined: Joined) -> None:
        position = _counted(joined.position)
        if self.begun:
            text = encode_reset(self._topic, joined.position)
        else:
            conflated = self._handler.rules.of(self._topic).conflate
            text = encode_subscribed(
                self._known, self._topic, position, joined.recovered, conflated=conflated
            )
        self.begun = True
        await send(self._ws, text)

    async def replay(self, publications: list[Publication]) -> None:
        ws = self._ws
        for publication in publications:
            message = PreparedMessage(as_message(publication, replay=True))
            await wait_room(ws, message, spare=ws.protocol.high_water // 2)
            if not self._handler.bus.has(ws, self._topic):
                return
            await ws.send(message)


async def _subscribe(handler: BusHandler, ws: WebSocket, command: Subscribe) -> None:
    known, topic, since = command
    bus = handler.bus
    await _authorise(handler, ws, topic, pattern=True)
    if bus.has(ws, topic):
        raise Refused("already-subscribed", "you are subscribed to this topic already")
    if len(bus.hub.topics(ws)) >= handler.max_topics:
        raise Refused("too-many-topics", f"a connection has at most {handler.max_topics} topics")
    member: tuple[str, bytes] | None = None
    if handler.rules.of(topic).presence and not is_pattern(topic):
        # Now: if this fails there is no subscription, as the client is told.
        name, info = handler.member(ws.data.user, ws.data)
        member = name, b"" if info is None else encode_data(info)
    joining = _Joining(handler, ws, known, topic)
    position = None if since is None else Position(*since)
    try:
        await bus.subscribe(ws, topic, position, begin=joining.begin, replay=joining.replay)
    except BrokerError as error:
        refused = _refusal(ws, error)
        if not joining.begun:
            raise refused from error
        # It was subscribed, and is no more.
        ended = encode_unsubscribed(topic, code=refused.code, text=refused.text, retry=refused.retry)
        await send(ws, ended)
        return
    if not joining.begun:  # `unsubscribe_user` was faster
        raise Refused("forbidden", "you may not have this topic")
    if member is not None and bus.has(ws, topic):
        try:
            await bus.enter(ws, topic, *member)
        except BrokerError as error:  # noted when the broker is back
            log.debug("%r: presence on %s: %s", ws, topic, error)
        except Exception:
            bus.unsubscribe(ws, topic)  # the client will be told an error: then it has no subscription
            raise


async def _unsubscribe(handler: BusHandler, ws: WebSocket, command: Unsubscribe) -> None:
    if not handler.bus.unsubscribe(ws, command.topic):
        raise Refused("not-subscribed", "you are not subscribed to this topic")
    await send(ws, encode_unsubscribed(command.topic, known=command.id))


async def _publish(handler: BusHandler, ws: WebSocket, command: Publish) -> None:
    known, topic, data, key, tag, echo = command
    _check(topic)
    if len(data) > handler.max_message:
        raise too_large(handler.max_message)
    if key:  # nobody can keep others from publishing by guessing their keys
        user = handler.user_id(ws.data.user) or ""
        key = f"client:{len(user)}:{user}:{key}"
    allowed = False
    try:
        # A broker may have been told to wait for its engine, and a hook may hang; this client has more to say.
        with trio.fail_after(PATIENCE):
            allowed = await handler.may_publish(ws.data.user, topic, data)
            if not allowed:
                raise Refused("forbidden", "you may not publish on this topic")
            position = await handler.bus.publish(topic, data, key=key, tag=tag, exclude=None if echo else ws)
    except trio.TooSlowError as error:
        raise (_refusal(ws, error) if allowed else _stuck(ws, "may_publish")) from error
    except BrokerError as error:
        raise _refusal(ws, error) from error
    await send(ws, encode_published(known, _counted(position)))


async def _presence(handler: BusHandler, ws: WebSocket, command: Presence) -> None:
    known, topic = command
    await _authorise(handler, ws, topic)
    if not handler.rules.of(topic).presence:
        raise Refused("no-presence", "nobody notes who is on this topic")
    crowd = handler.crowds.get(topic)
    if crowd is None or crowd.until <= trio.current_time():
        try:
            crowd = _crowd(await handler.bus.members(topic), topic, handler.max_reply)
        except BrokerError as error:
            raise _refusal(ws, error) from error
        handler.crowds.pop(topic, None)
        if crowd.size > _MEMBERS:  # whoever asks without pause is not to keep the broker busy counting
            while len(handler.crowds) >= _CROWDS:
                del handler.crowds[next(iter(handler.crowds))]
            handler.crowds[topic] = crowd
    await send(ws, encode_presence(known, topic, crowd.shown, crowd.size))


class Crowd(NamedTuple):
    """Who is on a topic: so many in all, some of them by name. So it was a moment ago; `until` then it will do."""

    size: int
    shown: list[tuple[str, str]]
    until: float


def _crowd(members: dict[str, bytes], topic: str, limit: int) -> Crowd:
    shown: list[tuple[str, str]] = []
    size = 0
    for member, info in members.items():
        size += len(member) + len(info) + _FIELDS
        if len(shown) == _MEMBERS or size > limit:
            break
        shown.append((member, as_json(info, topic)))
    return Crowd(len(members), shown, trio.current_time() + _CROWD_AGE)


async def _history(handler: BusHandler, ws: WebSocket, command: History) -> None:
    known, topic, since, limit = command
    await _authorise(handler, ws, topic)
    if handler.rules.of(topic).history is None:
        raise Refused("no-history", "this topic keeps no history")
    try:
        page = await handler.bus.history(topic, None if since is None else Position(*since), limit)
    except BrokerError as error:
        raise _refusal(ws, error) from error
    if page.top == NOWHERE:
        raise Refused("no-history", "the broker keeps no history")
    kept = _that_fit(page.publications, handler.max_reply, newest=since is None)
    messages = [Kept(each.offset, each.at, each.tag, as_json(each.data, topic)) for each in kept]
    await send(ws, encode_history(known, topic, page.top, messages, complete=page.complete))


def _that_fit(publications: list[Publication], size: int, *, newest: bool) -> list[Publication]:
    """As many as have no more than `size` bytes, but at least one: the newest, or the oldest."""
    for count, each in enumerate(reversed(publications) if newest else publications):
        size -= len(each.data) + len(each.tag) + _FIELDS
        if size < 0 and count:
            return publications[-count:] if newest else publications[:count]
    return publications


async def _authorise(handler: BusHandler, ws: WebSocket, topic: str, *, pattern: bool = False) -> None:
    _check(topic, pattern=pattern)
    may = handler.may_subscribe_pattern if is_pattern(topic) else handler.may_subscribe
    try:
        with trio.fail_after(PATIENCE):
            allowed = await may(ws.data.user, topic)
    except trio.TooSlowError as error:
        raise _stuck(ws, may.__name__) from error
    if not allowed:
        raise Refused("forbidden", "you may not have this topic")


def _stuck(ws: WebSocket, hook: str) -> Refused:
    """A hook that hangs would keep the connection of a client for ever that has long given it up."""
    ws.engine.complain(ws, "%s took too long", hook, level=logging.WARNING)
    return Refused("unavailable", "the server cannot answer this now")


def _check(topic: str, *, pattern: bool = False) -> None:
    """Raise `Refused` for what is no topic's name, or none of a client's."""
    try:
        check_topic(topic, pattern=pattern)
    except TopicError as error:
        raise Refused("bad-topic", str(error)) from None
    if topic.startswith(RESERVED):
        raise Refused("forbidden", "these topics are the server's own")


def _refusal(ws: WebSocket, error: Exception) -> Refused:
    """What a client is told of it: not the broker's own words, which may name hosts."""
    if isinstance(error, BrokerDown | trio.TooSlowError):  # its state says it louder
        log.debug("%r: unavailable: %s", ws, error)
    else:
        ws.engine.complain(ws, "the broker refused: %s", error, level=logging.WARNING)
    return Refused("unavailable", "the bus cannot do this now")


def _counted(position: Position) -> Since | None:
    return None if position == NOWHERE else position


ACTIONS: Final[dict[type, Callable[[BusHandler, WebSocket, Any], Awaitable[None]]]] = {
    Subscribe: _subscribe,
    Unsubscribe: _unsubscribe,
    Publish: _publish,
    Presence: _presence,
    History: _history,
}
