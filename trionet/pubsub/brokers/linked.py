"""What all brokers behind a connection share: their state, publishers that wait, pauses between attempts, and words.

What a connection is, and how one catches up on it, differs too much between engines: that is theirs.
"""

from __future__ import annotations

import abc
import logging
import os
import random
import secrets
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import trio

from trionet.errors import BrokerDown, ConfigurationError, first_error
from trionet.net.backoff import Backoff
from trionet.pubsub.broker import Broker, BrokerState, as_rules, now
from trionet.pubsub.publication import Position
from trionet.pubsub.topics import TopicOptions, TopicRules, check_topic

__all__ = ["Attempts", "LinkedBroker", "words"]

log = logging.getLogger("trionet.pubsub")

#: Engines remember a key for 300 seconds. Later than this, what may have arrived is not published again by itself.
RETRY_FOR: Final = 270.0
FIRST: Final = 0.05  # seconds between attempts to connect, at most
LONGEST: Final = 2.0
LOUD: Final = 10  # failures, some 6 seconds, after which the log says it again
STABLE: Final = 1.0  # seconds; a connection that did not last so long was a failure, too


class LinkedBroker(Broker):
    """A `Broker` that may be down. A subclass has `_publish`, runs within `_life`, and says when it comes and goes.

    With `when_down` "queue" at most `max_waiting` publishers wait while it is down. What they publish gets a key if it
    has none, so that it is there once, however often it was tried.
    """

    def __init__(
        self, rules: TopicRules | Mapping[str, TopicOptions] | None, when_down: str, max_waiting: int
    ) -> None:
        if when_down not in {"error", "queue"}:
            raise ConfigurationError(f"when_down is {when_down!r}; it must be 'error' or 'queue'")
        if max_waiting < 0:
            raise ConfigurationError(f"max_waiting is {max_waiting}; it must be 0 or more")
        self.rules = as_rules(rules)
        self.when_down = when_down
        self.max_waiting = max_waiting
        self._runs = False
        self._up = trio.Event()  # set while it is up
        self._since = 0.0
        self._ups = 0
        self._error = ""
        self._waiting = 0  # publishers
        self._own = f"{secrets.token_hex(6)}."  # what keys begin with that were made here
        self._serial = 0

    # ----------------------------------------------------------------- state

    @property
    def state(self) -> BrokerState:
        return BrokerState(self._up.is_set(), self._since, self._lag(), max(0, self._ups - 1), self._error)

    @abc.abstractmethod
    def _lag(self) -> float | None:
        """See `BrokerState`."""

    @contextmanager
    def _life(self) -> Iterator[None]:
        """It runs. Afterwards those who wait are told that it does no longer."""
        if self._runs:
            raise trio.BusyResourceError("this broker runs already")
        self._runs, self._ups, self._since, self._error = True, 0, 0.0, ""
        try:
            yield
        finally:
            self._runs = False
            self._went_down("the broker was left")
            self._up.set()
            self._up = trio.Event()

    def _went_up(self) -> None:
        if not self._up.is_set():
            self._ups += 1
            self._since = now()
            self._up.set()

    def _went_down(self, reason: str) -> None:
        """It is down, or still is, for another reason."""
        self._error = reason
        if self._up.is_set():
            self._up = trio.Event()
            self._since = now()

    # ------------------------------------------------------------ publishing

    @abc.abstractmethod
    async def _publish(self, topic: str, data: bytes, key: str, tag: str, origin: str) -> Position:
        """Try once. Raises `BrokerDown` where that may be repeated."""

    def _open(self) -> trio.Event:
        """Set while publications can be sent."""
        return self._up

    async def publish(
        self, topic: str, data: bytes, *, key: str = "", tag: str = "", origin: str = ""
    ) -> Position:
        check_topic(topic)
        if self.when_down == "error":
            return await self._publish(topic, data, key, tag, origin)
        if not key:
            self._serial += 1
            key = f"{self._own}{self._serial}"
        sent: float | None = None  # when it was tried first, and may have arrived
        waits = False
        try:
            while True:
                if sent is None and self._open().is_set():
                    sent = now()
                try:
                    return await self._publish(topic, data, key, tag, origin)
                except BrokerDown as error:
                    if not self._runs:
                        raise
                    if not waits and self._waiting >= self.max_waiting:
                        raise BrokerDown(
                            f"{error}; {self._waiting} publishers wait for it already"
                        ) from error
                    self._waiting += not waits  # and keeps its place until it is done
                    waits = True
                    if not self._open().is_set():
                        await self._open().wait()
                    else:  # it is there, and refuses for the time being
                        await trio.sleep(random.uniform(0.05, 0.5))
                    if sent is not None and now() - sent > RETRY_FOR:
                        raise BrokerDown(
                            f"{error}; since then its key may be forgotten, so it is not tried again"
                        ) from error
        finally:
            self._waiting -= waits


class Attempts:
    """Pauses between attempts to connect: any of 0 to twice as much each time, lest processes come together.

    `what` is connected to: the log says once that it stays away, and why, which is not always why it went.
    """

    def __init__(self, what: object) -> None:
        self.failures = 0
        self._what = what

    def pause(self, why: str, lasted: float | None = None, *, places: int = 1) -> float:
        """Seconds to wait after a failure, or after having been up for `lasted`. `places`: that are tried in turn."""
        self.failures = 0 if lasted is not None and lasted >= STABLE else self.failures + 1
        if self.failures == LOUD:
            log.warning("%s is still down: %s", self._what, why)
        return Backoff(FIRST, maximum=LONGEST).delay(self.failures / places, random.random)


def words(error: BaseException) -> str:
    """What the system said, below what Trio has wrapped it in; of several attempts the first."""
    error = first_error(error)
    while error.__cause__ is not None:
        error = first_error(error.__cause__)
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror | ssl.SSLError) and error.errno:
        return os.strerror(error.errno)  # Trio's own text has the address, too
    said = error.strerror if isinstance(error, OSError) else ""
    return said or str(error) or type(error).__name__
