"""From history to live: how a subscriber that comes back is brought to where this process stands.

Its topic is attached first, so that all that is published later comes to this process. Then pages of the history are
sent to it, each as fast as its peer reads, until one ends where this process stands, or behind that. Nothing is
buffered: what is published meanwhile is in the history. If it grows out of the history before the peer has read the
rest, `begin` is called again and says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import attrs
import trio

from trionet.errors import BrokerError
from trionet.pubsub.broker import Broker
from trionet.pubsub.publication import NOWHERE, HistoryPage, Position, Publication

__all__ = ["Joined", "Place", "Recoveries", "catch_up"]

S = TypeVar("S")

_PAGE: Final = 100  # publications in hand for one that catches up: thousands may come back at once
_FRUITLESS: Final = 100  # empty pages after which the engine is taken to be at fault


@attrs.frozen
class Joined:
    """How a subscription begins: behind `position`. `recovered`: nothing is missing since the position asked for.

    None: no position was asked for. False: what came before `position` may be missing.
    """

    topic: str
    position: Position
    recovered: bool | None


@attrs.define
class Recoveries:
    """What became of those who came back."""

    complete: int = 0  # missed nothing
    publications: int = 0  # that they had missed and got
    lost: int = 0  # were told that some are missing


class _Attempt:
    """One try to subscribe at the broker, that others wait for."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: BrokerError | None = None


class Place(Generic[S]):
    """A topic on its way: attached by the first who wants it, while others wait."""

    __slots__ = ("ahead", "attached", "attempt", "joining")

    def __init__(self) -> None:
        self.joining: dict[S, bool] = {}  # False: it has left meanwhile
        self.attached = False  # by one of these, so that the last of them has to end it if the hub has nobody
        self.attempt: _Attempt | None = None
        self.ahead: dict[S, Position] = {}  # who has more than was delivered here: up to this

    async def attach(self, broker: Broker, topic: str, attached: Callable[[], bool]) -> None:
        """Have `broker` deliver `topic`, unless it is `attached` by others.

        Several at once do it once, and share its failure.
        """
        while not attached() and not self.attached:
            attempt = self.attempt
            if attempt is not None:
                await attempt.done.wait()
                if attempt.error is not None:
                    raise type(attempt.error)(str(attempt.error)) from attempt.error
                continue  # it is attached; or who tried was cancelled, so it is our turn
            attempt = self.attempt = _Attempt()
            try:
                await broker.subscribe([topic])
                self.attached = True
            except BrokerError as error:
                attempt.error = error
                raise
            finally:
                self.attempt = None
                attempt.done.set()
                if not self.attached:
                    broker.unsubscribe([topic])  # cancelled, it may have been done


async def catch_up(
    broker: Broker,
    topic: str,
    since: Position | None,
    gone: Callable[[], bool],
    counts: Recoveries,
    begin: Callable[[Joined], Awaitable[object]],
    replay: Callable[[list[Publication]], Awaitable[object]],
) -> Position | None:
    """Send what came behind `since`, until nothing is missing up to `Broker.position`; returns where that ends.

    None: it is `gone`. No checkpoint lies between the last look and the return, so that whoever is put into the hub
    by the caller, in the same step, misses nothing. Raises `BrokerError`, and what `begin` and `replay` raise.
    """
    position = broker.position(topic)
    page: HistoryPage | None = None
    recovered: bool | None = None
    if since is not None:
        recovered = since == position and position != NOWHERE
        if not recovered and position != NOWHERE:
            page = await broker.history(topic, since, _PAGE)
            position = broker.position(topic)
            # The history may have gone on far beyond what was delivered here, which `since` may be ahead of.
            recovered = page.complete or (
                since.epoch == position.epoch == page.top.epoch
                and position.offset <= since.offset <= page.top.offset
            )
        start = since if recovered else position
        if not recovered:
            page = None
            counts.lost += 1
    else:
        start = position
    if gone():
        return None
    await begin(Joined(topic, start, recovered))
    last = start
    level = False  # whether the engine has nothing behind `last`
    fruitless = 0
    while fruitless < _FRUITLESS:
        if gone():
            return None
        position = broker.position(topic)
        if last.epoch == position.epoch and last.offset >= position.offset:
            break  # it has what was delivered here, or more (of a topic without history: nothing to have)
        if level and last.epoch != position.epoch:
            break  # what was delivered here is of an epoch that has ended, as `interrupted` will say
        if page is None:
            page = await broker.history(topic, last, _PAGE)
            if gone():
                return None
        if not page.complete:  # more was published than is kept, while it was sent the rest
            last = broker.position(topic)
            recovered = False
            counts.lost += 1
            await begin(Joined(topic, last, recovered))
        elif page.publications:
            last = page.publications[-1].position
            counts.publications += len(page.publications)
            await replay(page.publications)
        level = page.complete and not page.publications
        fruitless += level
        page = None
    else:
        raise BrokerError(f"{topic!r:.80}: the broker has not what it says it has delivered")
    if recovered:
        counts.complete += 1
    return last
