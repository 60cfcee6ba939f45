"""The bus from Python: `open_bus_client`, the counterpart of trionet.js. The protocol is in `trionet.wire.bus`.

One connection (`bus_link`) carries everything. It comes back by itself, and then

    requests       (publish, presence, history) that wait for their answer are sent again, in order; a publication
                   carries a key, so the second time finds it published
    subscriptions  are asked for again, each from its position: `following` decides what is new, `subscription` holds
                   what nobody has read yet

until the server says that it does not want us back; from then on everything raises `BusError` with code "closed".
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Unpack

import trio

from trionet.client.bus_link import BusLink
from trionet.client.bus_requests import BusHistory, BusMembers, Request
from trionet.client.client import OwnBlock, WebSocketClient
from trionet.client.following import State, place
from trionet.client.options import ConnectOptions
from trionet.client.reconnecting import reconnecting
from trionet.client.subscription import BusMessage, BusSubscription, fresh
from trionet.errors import BusError, ConfigurationError
from trionet.net.backoff import Backoff
from trionet.pubsub.publication import NOWHERE, Position
from trionet.pubsub.topics import is_pattern
from trionet.wire.bus import encode_data
from trionet.wire.url import parse_url

__all__ = ["BusClient", "open_bus_client"]

log = logging.getLogger("trionet.client")

BACKOFF: Final = Backoff(initial=0.5, maximum=30.0, reset_after=5.0)
MAX_MESSAGE: Final = 16 * 2**20  # a page of history is one message

_OF_SUBSCRIPTIONS: Final = frozenset({"message", "subscribed", "unsubscribed", "reset", "join", "leave"})


class BusClient:
    """A connection to a bus that comes back; made by `open_bus_client`. Any number of tasks may use it.

    `user`, `session` and `limits` are what the server's last welcome said. `error`: why there will be no connection.
    """

    def __init__(self, shown: str, buffer: int, max_waiting: int, backoff: Backoff) -> None:
        if min(buffer, max_waiting) < 1:
            raise ConfigurationError("buffer and max_waiting are at least 1")
        self.user: Any = None
        self.session = ""
        self.limits: dict[str, int] = {}
        self.error: BusError | None = None
        self._link = BusLink(shown, self)
        self._buffer = buffer
        self._max_waiting = max_waiting
        self._backoff = backoff
        self._name = secrets.token_hex(8)
        self._serial = 0
        self._subscriptions: dict[str, BusSubscription] = {}
        self._patterns: dict[str, BusSubscription] = {}  # those among them
        self._requests: dict[int, Request] = {}
        self._opened = trio.Event()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now. If not, there will be one unless there is an `error`."""
        return self._link.is_open

    async def wait_open(self) -> None:
        """Wait until there is a connection. Raises `BusError` if there will be none."""
        await self._opened.wait()
        if self.error is not None:
            raise fresh(self.error)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "waiting" if self.error is None else str(self.error)
        counts = f"{len(self._subscriptions)} subscriptions, {len(self._requests)} requests"
        return f"<BusClient {self._link.shown} {state}, {counts}>"

    # ----------------------------------------------------------------- usage

    def subscribe(
        self, topic: str, *, since: Position | None = None, buffer: int | None = None
    ) -> BusSubscription:
        """Subscribe to a topic or a pattern for the length of a block: see `BusSubscription`.

        `since`: the `position` of an earlier one, or of a `BusHistory`, to be given first what came behind it.
        `buffer`: how many events may wait for their reader.
        """
        return BusSubscription(self, topic, since, self._buffer if buffer is None else buffer)

    async def publish(
        self, topic: str, data: Any, *, key: str | None = None, tag: str = "", echo: bool = True
    ) -> Position | None:
        """Publish `data`, anything JSON has a form for. Returns when it is published: its position, if it has one.

        Waits for a connection, and for the next one if that is lost: bound it by a cancel scope. Cancelled, it is
        published or not; so it is after a `BusError` with `retry`. Published with the same `key` then (the error has
        it) it is there once. `tag`: what conflation goes by. `echo` False: not to our own subscription.
        """
        key = key or f"{self._name}.{self._serial + 1}"
        more: dict[str, Any] = {"tag": tag} if tag else {}
        if not echo:
            more["echo"] = False
        return place(await self._request("publish", topic, key=key, data=data, **more))

    async def presence(self, topic: str) -> BusMembers:
        """Who is there, in all processes of the server."""
        answer = await self._request("presence", topic)
        members = {each["member"]: each.get("info") for each in answer["members"]}
        return BusMembers(answer.get("count", len(members)), members)

    async def history(
        self, topic: str, *, since: Position | None = None, limit: int | None = None
    ) -> BusHistory:
        """What the topic keeps: behind `since`, or the newest; `limit` at most."""
        more: dict[str, Any] = {} if since is None else {"since": since._asdict()}
        if limit is not None:
            more["limit"] = limit
        answer = await self._request("history", topic, **more)
        top = place(answer) or NOWHERE
        messages = [
            BusMessage.read(topic, each, Position(top.epoch, each["offset"])) for each in answer["messages"]
        ]
        return BusHistory(messages, messages[-1].position or top if messages else top, answer["complete"])

    async def _request(self, kind: str, topic: str, **fields: Any) -> dict[str, Any]:
        if self.error is not None:
            raise fresh(self.error)
        if len(self._requests) >= self._max_waiting:
            raise BusError("queue-full", f"{self._max_waiting} requests wait already", retry=True)
        self._serial += 1
        number = self._serial
        text = encode_data({"type": kind, "id": number, "topic": topic, **fields}).decode()
        request = Request(text, topic, fields.get("key"), silent=fields.get("echo") is False)
        self._requests[number] = request
        self._post(request)
        try:
            await request.done.wait()
        finally:
            self._requests.pop(number, None)
            request.done.set()  # cancelled, it is not wanted any more
        if request.error is not None:
            raise fresh(request.error, request.key)
        assert request.answer is not None
        return request.answer

    def _post(self, request: Request) -> None:
        """Have it sent, now or on the next connection, if it is still wanted then."""

        def text() -> str | None:
            most = self.limits.get("message")
            size = len(request.text) if request.text.isascii() else len(request.text.encode())
            if most is not None and size > most:  # it would cost us the connection (1009)
                request.fail(BusError("too-large", f"{size} bytes, and the server takes {most}"))
            return None if request.done.is_set() else request.text

        if self.is_open:
            self._link.post(text)

    # --------------------------------------------------------- subscriptions

    def _add(self, subscription: BusSubscription) -> None:
        if self.error is not None:
            raise fresh(self.error)
        if self._subscriptions.setdefault(subscription.topic, subscription) is not subscription:
            raise BusError("already-subscribed", f"this client has subscribed to {subscription.topic!r:.80}")
        if is_pattern(subscription.topic):
            self._patterns[subscription.topic] = subscription
        self._begin(subscription)

    def _remove(self, subscription: BusSubscription) -> None:
        if self._subscriptions.get(subscription.topic) is subscription:
            self._drop(subscription.topic)
            self._give_back(subscription)

    def _drop(self, topic: str) -> None:
        del self._subscriptions[topic]
        self._patterns.pop(topic, None)

    def _begin(self, subscription: BusSubscription) -> None:
        """Ask for a subscription, if there is a connection; else it is done when there is one."""
        following = subscription.following
        if self.is_open and not subscription.paused and following.state is State.IDLE:
            self._serial += 1
            subscription.asked_at = trio.current_time()
            self._link.post(following.ask(self._serial))

    def _give_back(self, subscription: BusSubscription) -> None:
        if self.is_open and subscription.following.state is not State.IDLE:
            self._serial += 1
            self._link.post({"type": "unsubscribe", "id": self._serial, "topic": subscription.topic})
        subscription.following.idle()

    def _recover(self, subscription: BusSubscription) -> None:
        """The server left some out: get them from the history."""
        self._give_back(subscription)
        self._begin_later(subscription, at_once=True)

    def _refused(self, subscription: BusSubscription, error: BusError) -> None:
        subscription.following.idle()
        if error.retry:
            log.warning("%s: %s: %s; asking again", self._link.shown, subscription.topic, error)
            self._begin_later(subscription)
        else:
            self._drop(subscription.topic)
            subscription.ended(error)

    def _begin_later(self, subscription: BusSubscription, *, at_once: bool = False) -> None:
        """Once more, at growing distances: a server that always says no is not asked all the time."""
        if trio.current_time() - subscription.asked_at >= self._backoff.reset_after:
            subscription.tries = 0
        if at_once and not subscription.tries:
            self._begin(subscription)
        else:
            delay = self._backoff.delay(subscription.tries, random.random)
            self._link.later(delay, lambda: self._begin_if_wanted(subscription))
        subscription.tries += 1

    def _begin_if_wanted(self, subscription: BusSubscription) -> None:
        if self._subscriptions.get(subscription.topic) is subscription:
            self._begin(subscription)

    # --------------------------------------------------- called by the link

    def welcomed(self, welcome: dict[str, Any]) -> None:
        """See `Hearer`."""
        self.user, self.session = welcome.get("user"), welcome.get("session", "")
        self.limits = welcome.get("limits", {})
        for request in self._requests.values():
            self._post(request)
        for subscription in self._subscriptions.values():
            self._begin(subscription)
        self._opened.set()

    def lost(self) -> None:
        """See `Hearer`."""
        self._opened = trio.Event()
        for subscription in self._subscriptions.values():
            subscription.following.idle()

    def ended(self, error: BusError) -> None:
        """See `Hearer`."""
        self.error = error
        self._opened.set()
        for request in self._requests.values():
            request.fail(error)
        for subscription in self._subscriptions.values():
            subscription.ended(error)

    def heard(self, message: dict[str, Any], size: int) -> None:
        """See `Hearer`."""
        kind, number = message["type"], message.get("id")
        request = self._requests.get(number) if isinstance(number, int) else None
        if kind in _OF_SUBSCRIPTIONS:
            self._to_subscriptions(message, size)
        elif kind == "error":
            error = _error(message)
            if request is not None:
                request.fail(error)
            elif number is None:
                log.warning("%s: %s", self._link.shown, error)
            else:
                for subscription in list(self._subscriptions.values()):
                    if subscription.following.number == number:
                        self._refused(subscription, error)
        elif request is not None:
            own = self._subscriptions.get(request.topic) if request.silent else None
            if own is not None and (position := place(message)) is not None:
                own.following.published(position)
            request.answer = message
            request.done.set()

    def _to_subscriptions(self, message: dict[str, Any], size: int) -> None:
        kind, topic = message["type"], message["topic"]
        exact = self._subscriptions.get(topic)
        if kind == "unsubscribed":
            # Without a code it was us; another one than the present subscription has ended before that began.
            if exact is not None and "code" in message and exact.following.state is State.LIVE:
                self._refused(exact, _error(message))
            return
        if exact is not None:
            exact.hear(message, size)
        if self._patterns and kind != "subscribed" and not message.get("replay"):
            for pattern, subscription in list(self._patterns.items()):
                if subscription is not exact and topic.startswith(pattern[:-1]):
                    subscription.hear(message, size)


def _error(message: dict[str, Any]) -> BusError:
    return BusError(message["code"], message.get("text", ""), retry=message.get("retry", False))


@asynccontextmanager
async def open_bus_client(
    url: str,
    *,
    client: WebSocketClient | None = None,
    backoff: Backoff = BACKOFF,
    buffer: int = 1000,
    max_waiting: int = 1000,
    **options: Unpack[ConnectOptions],
) -> AsyncIterator[BusClient]:
    """Connect to a bus for the length of the block, and again whenever the connection is lost.

    ::

        async with open_bus_client("wss://example.org/bus") as bus:
            async with bus.subscribe("mail:7") as mail:
                async for message in mail:
                    print(message.data)

    The block begins at once: what needs a connection waits for it. No task outlives it; at its end the connection is
    closed with 1000, and the server's answer waited for, `close_timeout` at most.

    `backoff`: between attempts; half a second to half a minute. `client`, `options`, and what is tried again:
    `reconnecting`. `buffer`: events that wait for the reader of a subscription, see `BusSubscription`. `max_waiting`:
    requests that wait for their answer; more raise `BusError` "queue-full". A link that broke without a word is found
    out by `ping_interval` (25) and `ping_timeout` (10).
    """
    options.setdefault("max_message", MAX_MESSAGE)
    options.setdefault("ping_interval", 25.0)
    options.setdefault("ping_timeout", 10.0)
    bus = BusClient(str(parse_url(url)), buffer, max_waiting, backoff)
    connections = reconnecting(url, client=client, backoff=backoff, **options)
    block = OwnBlock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus._link.run, connections)
        try:
            with block:
                yield bus
        finally:
            bus._link.leave()
    block.go_on()
