"""`BusHandler`: clients subscribe, publish, and come back without having missed anything.

What one connection asks for is done in order, one thing at a time: whoever waits for the broker keeps nobody waiting
but itself, and for no longer than the broker's timeout. What is published meanwhile comes by the hub, to everybody.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from trionet.bus.commands import ACTIONS, Crowd
from trionet.bus.control import ControlledBus
from trionet.bus.encoder import MessageEncoder
from trionet.bus.sending import send
from trionet.bus.session import Session, Users
from trionet.errors import (
    BrokerError,
    ConfigurationError,
    ConnectionClosed,
    Rejection,
    TopicError,
    first_error,
    nothing_but,
)
from trionet.protocols.channel import PreparedMessage, SlowConsumer, WebSocket, broadcast
from trionet.protocols.websocket import Accept, WebSocketHandler, WebSocketProtocol
from trionet.pubsub.broker import Broker, open_broker
from trionet.pubsub.publication import Position
from trionet.pubsub.topics import TopicOptions, TopicRules
from trionet.wire.bus import FORBIDDEN, NOT_AUTHORISED, SUBPROTOCOL, Ping, Refused, encode_data, parse
from trionet.wire.bus_answers import PONG, encode_error, encode_unsubscribed, encode_welcome
from trionet.wire.closing import check_sendable
from trionet.wire.request import Request

__all__ = ["BusHandler", "bus_protocol"]

log = logging.getLogger("trionet.bus")

#: What is said to a page instead of an HTTP status.
_CLOSES: Final = {401: (NOT_AUTHORISED, "not authorised"), 403: (FORBIDDEN, "forbidden")}
_CODES: Final = 100  # different codes of refusals that are counted


class BusHandler(WebSocketHandler):
    """The server side of the bus: one object for all connections. Override who may do what; without, nobody may.

    `broker`: a `Broker`, or a URL for `open_broker`; None: what the server was started with. `rules`: what each topic
    keeps; for a URL, a `Broker` has its own. `linger`: seconds a member that was lost is present. `max_topics`: of one
    connection. `max_message`: bytes of what a client says; twice as much closes it with 1009. `heartbeat`: seconds of
    silence after which a client sends a ping. `max_reply`: bytes of history, and members, in one answer. Other options
    are those of `Hub`.

    Run it by giving its `lifespan` to the server.

    Attributes:
        bus: The `Bus`: hub and broker.
        rules: What each topic keeps.
        users: Who is connected to this process: the WebSockets of each `user_id`.
        refusals: How many errors clients were sent, by code.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        rules: TopicRules | Mapping[str, TopicOptions] | None = None,
        linger: float = 5.0,
        max_topics: int = 128,
        max_message: int = 65536,
        heartbeat: float = 25.0,
        max_reply: int = 2**17,
        **options: Any,
    ) -> None:
        if isinstance(broker, Broker):
            if rules is not None:
                raise ConfigurationError("rules: the broker that is given has its own")
        else:
            broker = open_broker(broker, rules=rules)
        if min(max_topics, max_message, heartbeat, max_reply) <= 0:
            raise ConfigurationError("max_topics, max_message, heartbeat and max_reply must be positive")
        self.rules = broker.rules
        if not broker.keeps_members and any(each.presence for _, each in self.rules):
            raise ConfigurationError(f"presence: the {broker.name} broker does not note who is there")
        self.max_topics = max_topics
        self.max_message = max_message
        self.heartbeat = heartbeat
        self.max_reply = max_reply
        self.bus = ControlledBus(
            broker, broadcast, MessageEncoder(self.rules), linger=linger, max_topics=max_topics, **options
        )
        self.bus.orders = self
        self.users = Users()
        self.crowds: dict[str, Crowd] = {}
        self.refusals: Counter[str] = Counter()
        self._running = False
        self._sessions = 0

    # ----------------------------------------------------------- to override

    async def authenticate(self, ws: WebSocket, request: Request) -> Any:  # noqa: ARG002
        """Return who wants to connect; None: anybody. Raise `Rejection` to refuse them.

        A page is not shown the status of a refusal, and would come back for ever: one whose request has an Origin, as
        those of browsers have, is accepted and then closed, with 4401 instead of 401, and 4403 instead of 403.
        """
        return None

    async def may_subscribe(self, user: Any, topic: str) -> bool:  # noqa: ARG002
        """Whether `user` may hear `topic`, read its history, and see who is there. Patterns are not asked for here.

        `Refused` may be raised instead, to say more.
        """
        return False

    async def may_subscribe_pattern(self, user: Any, pattern: str) -> bool:  # noqa: ARG002
        """Whether `user` may hear every topic that `pattern` stands for: ``news/*`` all that begin with ``news/``."""
        return False

    async def may_publish(self, user: Any, topic: str, data: bytes) -> bool:  # noqa: ARG002
        """Whether `user` may publish `data`, JSON, on `topic`. `Refused` may be raised instead, to say more."""
        return False

    def user_id(self, user: Any) -> str | None:
        """What tells this user from others, always the same; None for nobody in particular. Here: a str or int."""
        return str(user) if isinstance(user, str | int) and user != "" else None

    def member(self, user: Any, session: Session) -> tuple[str, Any]:
        """How others see `user` where presence is noted: a name, the same for all their connections, and any JSON."""
        return self.user_id(user) or session.id, None

    # ------------------------------------------------------------ to be used

    async def publish(
        self, topic: str, value: Any, *, key: str = "", tag: str = "", exclude: WebSocket | None = None
    ) -> Position:
        """Publish `value`, any JSON, to all who have subscribed, in all processes. See `Bus.publish`.

        Raises `TypeError` or `ValueError` for what is no JSON, `TopicError`, `BrokerDown`, `BrokerError`.
        """
        return await self.bus.publish(topic, encode_data(value), key=key, tag=tag, exclude=exclude)

    async def disconnect(self, user: str, code: int = FORBIDDEN, reason: str = "") -> None:
        """Close all connections of the user with this `user_id`, in all processes; by default for good.

        Those of this process are closed at once, also if `BrokerDown` is raised because the others cannot be told.
        """
        check_sendable(code, reason)
        self.disconnect_here(user, code, reason)
        await self.bus.tell("disconnect", user=user, code=code, reason=reason)

    async def unsubscribe_user(self, user: str, topic: str) -> None:
        """End the subscriptions of the user with this `user_id` to `topic`, in all processes; they are told.

        A client of ours does not ask again; have `may_subscribe` refuse it all the same. Raises as `disconnect` does.
        """
        self.unsubscribe_here(user, topic)
        await self.bus.tell("unsubscribe", user=user, topic=topic)

    def disconnect_here(self, user: str, code: int, reason: str) -> None:
        """Close the connections of `user` to this process."""
        for ws in self.users.find(user):
            ws.close_nowait(code, reason)

    def unsubscribe_here(self, user: str, topic: str) -> None:
        """End the subscriptions of `user` to `topic` in this process."""
        ended = [ws for ws in self.users.find(user) if self.bus.unsubscribe(ws, topic)]
        if ended:
            text = encode_unsubscribed(topic, code="forbidden", text="you may not any more", retry=False)
            broadcast(ended, PreparedMessage(text))

    @asynccontextmanager
    async def lifespan(self, server: Any) -> AsyncIterator[ControlledBus]:  # noqa: ARG002
        """Run the bus beside the server: ``serve(protocol, lifespan=handler.lifespan)``.

        Raises `BrokerDown`, not wrapped in groups, if the broker cannot be reached at the start; later that is an error
        of each request, and the server goes on.
        """
        failure: Exception | None = None
        try:
            async with self.bus.running():
                self._running = True
                try:
                    yield self.bus
                except Exception as error:  # noqa: BLE001 - not ours: it goes on below, not wrapped in groups
                    failure = error
        except BaseExceptionGroup as group:
            if self._running or not nothing_but(BrokerError, group):
                raise
            raise first_error(group) from None
        finally:
            self._running = False
        if failure is not None:
            raise failure

    # ------------------------------------------------------- WebSocketHandler

    async def on_upgrade(self, ws: WebSocket, request: Request) -> Accept | None:
        """Ask `authenticate`."""
        if not self._running:
            raise RuntimeError("the bus does not run: give the server lifespan=handler.lifespan")
        try:
            user = await self.authenticate(ws, request)
        except Rejection as rejection:
            if request.origin is None or rejection.status not in _CLOSES:
                raise
            ws.data = _CLOSES[rejection.status]
            return None
        self._sessions += 1
        ws.data = Session(self.bus.node, self._sessions, user)
        return None

    async def on_open(self, ws: WebSocket) -> None:
        """Greet."""
        session = ws.data
        if not isinstance(session, Session):
            ws.close_nowait(*session)
            return
        user = self.user_id(session.user)
        if user is not None:
            self.users.add(user, ws)
        await send(
            ws,
            encode_welcome(
                session=session.id,
                user=user,
                heartbeat=self.heartbeat,
                max_topics=self.max_topics,
                max_message=self.max_message,
            ),
        )

    async def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        """Do what the client asks, or tell it why not."""
        known = None
        try:
            command = parse(message, self.max_message)
            if command.__class__ is Ping:
                await send(ws, PONG)
                return
            known = command.id  # type: ignore[union-attr]
            await ACTIONS[command.__class__](self, ws, command)
        except Refused as refused:
            await self._refuse(ws, refused, known)
        except TopicError as error:  # an engine may have rules of its own
            await self._refuse(ws, Refused("bad-topic", str(error)), known)
        except Exception as error:
            if ws.closed is not None and nothing_but(ConnectionClosed, error):
                raise
            ws.protocol.handler_failures += 1
            ws.engine.complain(ws, "a request failed", error=error)
            await self._refuse(ws, Refused("internal", "the server failed"), known)

    async def on_close(self, ws: WebSocket, closed: ConnectionClosed) -> None:  # noqa: ARG002
        """It is gone; it may be back soon."""
        if not isinstance(ws.data, Session):
            return
        self.bus.forget(ws)
        user = self.user_id(ws.data.user)
        if user is not None:
            self.users.remove(user, ws)

    # ---------------------------------------------------------------- inside

    async def _refuse(self, ws: WebSocket, refused: Refused, known: int | str | None) -> None:
        """Send an error."""
        if refused.id is None:
            refused.id = known
        code = refused.code if refused.code in self.refusals or len(self.refusals) < _CODES else "other"
        self.refusals[code] += 1
        await send(ws, encode_error(refused))


def bus_protocol(handler: BusHandler, *, http: Any = None, **options: Any) -> WebSocketProtocol:
    """Return a protocol that serves `handler`, with `http` for plain requests. `options`: of `WebSocketProtocol`.

    Its defaults differ in what is of use to a bus: a client that reads slowly is closed with 1013 when 256 KiB are
    queued for it, comes back, and catches up from the history; more messages in a second than twice `max_topics`, and
    more than 16 of the largest, wait. Where a rule says `conflate`, what is queued is conflated first.
    Raises `ConfigurationError` for other policies: whom they leave out of the last message is never told.
    """
    if options.get("slow_consumer", SlowConsumer.CLOSE) not in (SlowConsumer.CLOSE, SlowConsumer.CONFLATE):
        raise ConfigurationError("slow_consumer: a bus has CLOSE, or CONFLATE; clients come back from these")
    conflates = any(options.conflate for _, options in handler.rules)
    settings: dict[str, Any] = {
        "subprotocols": (SUBPROTOCOL,),
        "headers": ("cookie", "authorization"),  # what `authenticate` goes by
        "slow_consumer": SlowConsumer.CONFLATE if conflates else SlowConsumer.CLOSE,
        # An answer that is being read slowly leaves room for what is published meanwhile.
        "high_water": max(2**18, 2 * handler.max_reply),
        "max_message": 2 * handler.max_message,
        # A client subscribes to all its topics at once when it comes back.
        "max_messages_per_second": 2 * handler.max_topics,
        "max_bytes_per_second": 16 * handler.max_message,
        # Clients speak first: whoever does their part is never pinged.
        "ping_interval": handler.heartbeat + 10.0,
    }
    protocol = WebSocketProtocol(handler, http=http, **{**settings, **options})
    protocol.close_behind = True  # left out, it would not know
    return protocol
