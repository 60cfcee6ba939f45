"""What each command of a client does, in a table: `ACTIONS`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

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

__all__ = ["ACTIONS"]

log = logging.getLogger("trionet.bus")

PATIENCE: Final = 8.0  # seconds: clients give a connection up whose ping is not answered for 10
_MEMBERS: Final = 1000  # named in one answer


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
    if handler.rules.of(topic).presence and not is_pattern(topic) and bus.has(ws, topic):
        name, info = handler.member(ws.data.user, ws.data)
        try:
            await bus.enter(ws, topic, name, b"" if info is None else encode_data(info))
        except BrokerError as error:  # noted when the broker is back
            log.debug("%r: presence on %s: %s", ws, topic, error)


async def _unsubscribe(handler: BusHandler, ws: WebSocket, command: Unsubscribe) -> None:
    if not handler.bus.unsubscribe(ws, command.topic):
        raise Refused("not-subscribed", "you are not subscribed to this topic")
    await send(ws, encode_unsubscribed(command.topic, known=command.id))


async def _publish(handler: BusHandler, ws: WebSocket, command: Publish) -> None:
    known, topic, data, key, tag, echo = command
    _check(topic)
    if len(data) > handler.max_message:
        raise too_large(handler.max_message)
    if not await handler.may_publish(ws.data.user, topic, data):
        raise Refused("forbidden", "you may not publish on this topic")
    if key:  # nobody can keep others from publishing by guessing their keys
        user = handler.user_id(ws.data.user) or ""
        key = f"client:{len(user)}:{user}:{key}"
    try:
        # A broker may have been told to wait for its engine; this client has more to say.
        with trio.fail_after(PATIENCE):
            position = await handler.bus.publish(topic, data, key=key, tag=tag, exclude=None if echo else ws)
    except (BrokerError, trio.TooSlowError) as error:
        raise _refusal(ws, error) from error
    await send(ws, encode_published(known, _counted(position)))


async def _presence(handler: BusHandler, ws: WebSocket, command: Presence) -> None:
    known, topic = command
    await _authorise(handler, ws, topic)
    if not handler.rules.of(topic).presence:
        raise Refused("no-presence", "nobody notes who is on this topic")
    try:
        members = await handler.bus.members(topic)
    except BrokerError as error:
        raise _refusal(ws, error) from error
    shown: list[tuple[str, str]] = []
    size = 0
    for member, info in members.items():
        size += len(member) + len(info)
        if len(shown) == _MEMBERS or size > handler.max_reply:
            break
        shown.append((member, as_json(info, topic)))
    await send(ws, encode_presence(known, topic, shown, len(members)))


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
        size -= len(each.data)
        if size < 0 and count:
            return publications[-count:] if newest else publications[:count]
    return publications


async def _authorise(handler: BusHandler, ws: WebSocket, topic: str, *, pattern: bool = False) -> None:
    _check(topic, pattern=pattern)
    if not await handler.may_subscribe(ws.data.user, topic):
        raise Refused("forbidden", "you may not have this topic")


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
