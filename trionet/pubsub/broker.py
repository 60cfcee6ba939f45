"""The interface of an engine that the processes of a system share: `Broker`. Its backends are in `brokers/`.

What every one of them promises to the process that runs it (`Receiver`), whatever happens to the engine or the network:

- A topic that is subscribed to is delivered in order, each publication once, without a gap. When that cannot be kept
  up (the engine lost its past, or more came than is kept), `interrupted` says so, once, with the position from which it
  goes on. What comes by patterns, on topics without history, and of presence, while the engine cannot be reached, is
  lost, and nobody is told.
- `position` is that of the last publication that was given to `deliver`, from within that call on.
- `subscribe` returns when everything published from then on will be delivered.
- `publish` returns when the publication is in the topic's history, or, without one, with the engine. Raising
  `BrokerDown` it may be there, or not; published again with the same `key`, it is there once.
- Nothing waits for ever for an engine that does not answer: a frozen one is found out within `timeout`.
"""

from __future__ import annotations

import abc
import inspect
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import attrs
import trio

from trionet.errors import ConfigurationError
from trionet.pubsub.publication import HistoryPage, Position, Publication
from trionet.pubsub.surroundings import surroundings
from trionet.pubsub.topics import TopicOptions, TopicRules

__all__ = ["Broker", "BrokerState", "Receiver", "open_broker", "open_publisher"]

#: Publications a page of history has at most.
PAGE = 1000


class Receiver(Protocol):
    """What a broker calls; a `Bus` is one. All of it is synchronous, but for `wait_room`."""

    def deliver(self, publication: Publication) -> None:
        """A publication on a topic that is subscribed to."""

    def interrupted(self, topic: str, position: Position) -> None:
        """What came on `topic` before `position` may be incomplete; it goes on from there."""

    def presence(self, topic: str, event: str, member: str, info: bytes) -> None:
        """Somebody came ("join") to a topic that is subscribed to, or has left it ("leave")."""

    async def wait_room(self) -> None:
        """Wait while there is too much to deliver. Call it between reads."""


@attrs.frozen
class BrokerState:
    """How a broker is. `since`: Trio's time of the last change between up and down.

    `lag`: seconds the last answer, or sign of life, took; None if that cannot be told. `error`: why it went down last.
    """

    up: bool
    since: float
    lag: float | None = None
    reconnects: int = 0
    error: str = ""


class Broker(abc.ABC):
    """An engine as one process sees it. Use it inside ``async with broker.running(receiver):``; a `Bus` does.

    Methods belong to the Trio thread and may be called by any number of tasks. A wait that is cancelled leaves nothing
    behind; what was to be done may be done, or not.
    """

    #: What it is called in URLs and metrics.
    name: str = ""
    #: Whether it has what these need; where not, `history` finds nothing complete, `enter` raises `BrokerError`.
    keeps_history = True
    keeps_members = True

    rules: TopicRules

    @property
    @abc.abstractmethod
    def state(self) -> BrokerState:
        """How it is now."""

    @abc.abstractmethod
    def running(self, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        """Connect, and stay so until the block is left. Entered when it is up; raises `BrokerDown` if that fails.

        Left, it has no subscriptions any more, and who still waits to publish gets `BrokerDown`.
        """

    @abc.abstractmethod
    async def publish(
        self, topic: str, data: bytes, *, key: str = "", tag: str = "", origin: str = ""
    ) -> Position:
        """Publish `data`; returns where it stands. `key`: published again with it within 5 minutes, nothing happens.

        Raises `BrokerDown`, `BrokerError`; `TopicError` for a name that is none.
        """

    @abc.abstractmethod
    async def subscribe(self, topics: Sequence[str]) -> None:
        """Have topics or patterns delivered, until `unsubscribe`: also after the engine was away. Each of them once.

        Raises `BrokerDown`: then none of them is.
        """

    @abc.abstractmethod
    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Have them delivered no more. Does not wait, whether the engine is up or not."""

    @abc.abstractmethod
    def position(self, topic: str) -> Position:
        """Of a topic that is subscribed to: what was delivered last; `NOWHERE` if it keeps nothing."""

    @abc.abstractmethod
    async def history(self, topic: str, since: Position | None, limit: int = PAGE) -> HistoryPage:
        """What came behind `since`, at most `limit` (and `PAGE`) publications; None: the newest ones.

        Raises `BrokerDown`, `BrokerError`.
        """

    @abc.abstractmethod
    async def enter(self, topic: str, member: str, owner: str, info: bytes, ttl: float) -> bool:
        """`owner`, a connection, stands for `member` on `topic`, for `ttl` seconds unless it is refreshed.

        Returns whether it is the member's first; then all who have subscribed are told that it joined.
        """

    @abc.abstractmethod
    async def refresh(
        self, entries: Sequence[tuple[str, str, str]], ttl: float
    ) -> list[tuple[str, str, str]]:
        """These (topic, member, owner) are there for `ttl` seconds from now, be it less than before.

        Returns those the engine does not know (it lost them, or they have expired).
        """

    @abc.abstractmethod
    async def leave(self, topic: str, member: str, owner: str) -> bool:
        """`owner` has gone. Returns whether it was the member's last; then all are told that it left."""

    @abc.abstractmethod
    async def members(self, topic: str) -> dict[str, bytes]:
        """Who is there, with the `info` each has."""


class _Nobody:
    """The receiver of a process that only publishes."""

    def deliver(self, publication: Publication) -> None: ...

    def interrupted(self, topic: str, position: Position) -> None: ...

    def presence(self, topic: str, event: str, member: str, info: bytes) -> None: ...

    async def wait_room(self) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_publisher(
    broker: Broker | str | None = None,
    *,
    rules: TopicRules | Mapping[str, TopicOptions] | None = None,
    when_down: Literal["error", "queue"] = "queue",
    **options: Any,
) -> AsyncIterator[Broker]:
    """A broker for a program that publishes, reads history, or asks who is there, and subscribes to nothing.

    ``async with trionet.open_publisher("redis://localhost") as bus: await bus.publish("mail:7", b"…", key=mail_id)``.
    Arguments are those of `open_broker`, with the `rules` of those who subscribe; here publishing waits for an engine
    that is away, unless told otherwise. Raises `BrokerDown` if it is away at the start, and `ConfigurationError` also
    for a URL, or surroundings, that mean ``memory``: nobody else would hear it.
    """
    if not isinstance(broker, Broker):
        broker = open_broker(broker, rules=rules, when_down=when_down, **options)
        if broker.name == "memory":
            raise ConfigurationError(
                "a memory broker of a publisher's own reaches nobody; give it the URL of the bus (local:/path, "
                "redis://…, nats://…), or publish by the Bus or BusHandler that has the broker"
            )
    async with broker.running(_Nobody()):
        yield broker


def as_rules(rules: TopicRules | Mapping[str, TopicOptions] | None) -> TopicRules:
    """`rules`, whichever way they are given."""
    return rules if isinstance(rules, TopicRules) else TopicRules(rules)


def open_broker(
    url: str | None = None,
    *,
    rules: TopicRules | Mapping[str, TopicOptions] | None = None,
    when_down: Literal["error", "queue"] = "error",
    **options: Any,
) -> Broker:
    """Return the broker of `url`, not yet running: ``memory``, ``local``, ``redis://host:port/0``, ``nats://host``.

    ``local:/path/of/a/socket`` names the socket, which other programs may use as well. None: what the server was
    started with (``trionet serve --broker``): ``memory`` in one process, ``local`` in several.
    `when_down`, while the engine cannot be reached: "error": `publish` raises `BrokerDown` at once; "queue": it waits,
    at most `max_waiting` (1,000) callers do, and publishes when the engine is back.
    `options` are those of the backend's class. Raises `ConfigurationError`.
    """
    place = surroundings()
    if url is None:
        url = place.broker or ("memory" if place.workers == 1 else "local")
    scheme = url.partition(":")[0]
    options["rules"] = as_rules(rules)
    if scheme == "memory":
        from trionet.pubsub.brokers.memory import MemoryBroker

        if place.workers > 1:
            raise ConfigurationError(
                f"the memory broker does not reach beyond its process, and there are {place.workers} workers: what one "
                "publishes the others would not see; use --broker local, or a redis:// or nats:// URL"
            )
        return _made(MemoryBroker, scheme, options)
    options["when_down"] = when_down
    if scheme == "local":
        from trionet.pubsub.brokers.local import LocalBroker

        path = url.partition(":")[2] or place.broker_socket
        if not path:
            raise ConfigurationError(
                "there is no local broker here: it is served by trionet serve --broker local; "
                "elsewhere write local:/path/of/its/socket"
            )
        return _made(LocalBroker, scheme, options, path)
    if scheme in {"redis", "rediss", "valkey", "valkeys", "redis+unix"}:
        from trionet.pubsub.brokers.redis import RedisBroker

        return _made(RedisBroker, scheme, options, url)
    if scheme in {"nats", "tls+nats"}:
        from trionet.pubsub.brokers.nats import NatsBroker

        return _made(NatsBroker, scheme, options, url)
    raise ConfigurationError(
        f"unknown broker {urlsplit(url).scheme or url!r}: memory, local, redis://…, rediss://… or nats://…"
    )


def _made(kind: type[Broker], scheme: str, options: dict[str, Any], *where: str) -> Broker:
    try:
        inspect.signature(kind).bind(*where, **options)
    except TypeError as error:
        raise ConfigurationError(f"{scheme} broker: {error}") from None
    return kind(*where, **options)


def wall_clock() -> float:
    """Seconds since 1970: what publications carry."""
    return time.time()


def now() -> float:
    """Trio's time, for `BrokerState.since`."""
    return trio.current_time()
