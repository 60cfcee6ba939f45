"""A subscription as its reader holds it: what came, in a bounded buffer, and the position of what was read.

The buffer never stops the connection, which other subscriptions and the answers to requests share (a reader that
waits for its own `publish` would wait for ever). When it is full the subscription is given back to the server, and
taken up again, from its position, when half of it was read: a slow reader is served from the history, and misses
nothing that is kept there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio

from trionet.client.following import BusSubscribed, Following, State, Verdict
from trionet.errors import BusError
from trionet.pubsub.publication import Position

if TYPE_CHECKING:
    from trionet.client.bus import BusClient

__all__ = ["BusEvent", "BusMessage", "BusPresence", "BusReset", "BusSubscription", "fresh"]

MAX_HELD: Final = 8 * 2**20  # characters in a buffer, whatever the number of messages
_BREATH: Final = 64  # events read without giving others their turn


@attrs.frozen
class BusMessage:
    """Something was published. `position`: where it stands; None where nothing is kept. `at`: seconds since 1970.

    `replay`: it was published before we came, or while we were away. `broken`: messages before it may be missing.
    """

    topic: str
    data: Any
    position: Position | None
    at: float
    tag: str = ""
    replay: bool = False
    broken: bool = False

    @classmethod
    def read(
        cls, topic: str, message: dict[str, Any], position: Position | None, *, broken: bool = False
    ) -> BusMessage:
        """From the server's message."""
        tag, replay = message.get("tag", ""), message.get("replay", False)
        return cls(topic, message["data"], position, message["at"] / 1000, tag, replay, broken)


@attrs.frozen
class BusReset:
    """What was published before `position` may be missing: load anew what it was about."""

    topic: str
    position: Position | None


@attrs.frozen
class BusPresence:
    """A member came ("join") or left ("leave")."""

    topic: str
    event: str
    member: str
    info: Any


def fresh(error: BusError, key: str | None = None) -> BusError:
    """The same error, to be raised by one more task: an exception carries the traceback of where it was raised."""
    again = BusError(error.code, error.text, retry=error.retry, key=key)
    again.__cause__ = error.__cause__
    return again


BusEvent: TypeAlias = BusMessage | BusReset | BusPresence | BusSubscribed


class BusSubscription:
    """A subscription; made by `BusClient.subscribe`. Iterate over it for messages, over `events()` for all there is.

    ::

        async with bus.subscribe("mail:7", since=position) as mail:
            async for message in mail:
                ...

    The block begins when the server has agreed; it raises `BusError` if the server never will (``forbidden``). So does
    the iteration when the server has ended it for good. While the connection is lost it waits. Several tasks may read
    from it: each message goes to one of them.
    """

    def __init__(self, bus: BusClient, topic: str, since: Position | None, buffer: int) -> None:
        self.following = Following(topic, since)
        self.paused = False  # given back, for the buffer is full
        self.tries = 0
        self.asked_at = -float("inf")
        self._bus = bus
        self._position = since
        self._buffer = buffer
        self._held: deque[tuple[BusEvent, int]] = deque()  # with their sizes
        self._size = 0
        self._breath = _BREATH
        self._broken = False
        self._error: BusError | None = None
        self._left = False
        self._agreed = trio.Event()
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def topic(self) -> str:
        """The topic, or the pattern."""
        return self.following.topic

    @property
    def position(self) -> Position | None:
        """Behind the last message that was read from here: for `since`, another time. None where nothing is kept."""
        return self._position

    def __repr__(self) -> str:
        state = "paused" if self.paused else self.following.state.name.lower()
        return f"<BusSubscription {self.topic!r} {state} at {self._position}, {len(self._held)} held>"

    # --------------------------------------------------------------- reading

    async def __aenter__(self) -> BusSubscription:
        self._bus._add(self)
        try:
            await self._agreed.wait()
        except BaseException:
            self._leave()
            raise
        if self._error is not None and not self.following.begun:
            self._leave()
            raise fresh(self._error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _leave(self) -> None:
        self._left = True
        self._bus._remove(self)
        self._readers.unpark_all()

    def __aiter__(self) -> BusSubscription:
        return self

    async def __anext__(self) -> BusMessage:
        while True:
            event = await self.receive()
            if isinstance(event, BusMessage):
                return event

    def events(self) -> AsyncIterator[BusEvent]:
        """Iterate over all that happens, in order: messages, resets, members that come and go, each new beginning."""
        return _Events(self)

    async def receive(self) -> BusEvent:
        """Wait for the next event.

        Raises `BusError` when there will be none, `trio.ClosedResourceError` after the block.
        """
        self._check_left()
        self._breath -= 1
        if self._held and self._breath > 0:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._breath = _BREATH
            await trio.lowlevel.checkpoint()
        while not self._held:
            if self._left:
                raise trio.ClosedResourceError(
                    f"the block of the subscription to {self.topic!r:.80} was left"
                )
            if self._error is not None:
                raise fresh(self._error)
            await self._readers.park()
            self._check_left()
        event, size = self._held.popleft()
        self._size -= size
        if not isinstance(event, BusPresence):
            self._position = event.position
        if self.paused and len(self._held) <= self._buffer // 2 and self._size <= MAX_HELD // 2:
            self.paused = False
            self._bus._begin(self)
        return event

    def _check_left(self) -> None:
        if self._left:
            raise trio.ClosedResourceError(f"the block of the subscription to {self.topic!r:.80} was left")

    # --------------------------------------------------------- what has come

    def hear(self, message: dict[str, Any], size: int) -> None:
        """A message of the server to our topic."""
        kind = message["type"]
        if kind == "subscribed":
            begun = self.following.subscribed(message)
            if begun is not None:
                self._broken |= begun.broken
                self._put(begun)
                if begun.broken:
                    self._put(BusReset(self.topic, begun.position))
                self._agreed.set()
        elif kind == "message":
            self._message(message, size)
        elif kind == "reset":
            if self.following.reset(message):
                self._broken = True
                self._put(BusReset(message["topic"], self.following.position))
        elif self.following.state is State.LIVE:
            self._put(BusPresence(message["topic"], kind, message["member"], message.get("info")), size)

    def _message(self, message: dict[str, Any], size: int) -> None:
        verdict = self.following.judge(message)
        if verdict is Verdict.NEW:
            topic, ours = message["topic"], self.following.position
            position = None
            if ours is not None and "offset" in message and topic == self.topic:
                position = Position(
                    ours.epoch, message["offset"]
                )  # ours may be ahead: we published what follows
            self._put(BusMessage.read(topic, message, position, broken=self._broken), size)
            self._broken = False
        elif verdict is Verdict.GAP:
            self._bus._recover(self)

    def _put(self, event: BusEvent, size: int = 0) -> None:
        self._held.append((event, size))
        self._size += size
        self._readers.unpark()
        if not size:  # nothing that was published: the server has little to say by itself
            return
        if (len(self._held) >= self._buffer or self._size >= MAX_HELD) and not self.paused:
            self.paused = True
            self._bus._give_back(self)

    def ended(self, error: BusError) -> None:
        """There will be nothing more."""
        self._error = error
        self.following.idle()
        self._agreed.set()
        self._readers.unpark_all()


class _Events:
    """What `events` returns: not a generator, which would have to be closed by whoever leaves the loop early."""

    def __init__(self, subscription: BusSubscription) -> None:
        self._subscription = subscription

    def __aiter__(self) -> AsyncIterator[BusEvent]:
        return self

    async def __anext__(self) -> BusEvent:
        return await self._subscription.receive()
