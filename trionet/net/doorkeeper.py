"""Asks the admission policies for the accept gate, and does with those refused what each policy says.

The gate asks `before` it accepts and `enter` for each connection; the policies only decide. Four times a second they
are shown the server's state, also while nobody comes, so that overload is known, and its end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio

from trionet.errors import ConfigurationError
from trionet.net import system
from trionet.net.connection import Connection, ProtocolInterface
from trionet.net.load import Readings
from trionet.net.lobby import Lobby
from trionet.net.policy import MANY, AdmissionPolicy
from trionet.net.traits import NO_SLOTS, compose

if TYPE_CHECKING:
    from trionet.net.engine import Engine

__all__ = ["Book", "Doorkeeper", "PolicyStatistics", "Seated", "seated"]

log = logging.getLogger("trionet")

_SAMPLE: Final = 0.25
_BATCHES: Final = 16  # of 64 connections, turned away after one sample


@attrs.frozen
class PolicyStatistics:
    """Counters of one policy.

    `asked`: how often, before accepting and about connections. `held`: looks that left everybody in the backlog.
    `refused`: connections turned away, by what was done: "reset" or "answer". `errors`: how often it raised.
    `refusing`: it refuses everybody now.
    """

    name: str
    action: str
    asked: int
    held: int
    refused: dict[str, int]
    errors: int
    refusing: bool


class Book:
    """A policy and its counters."""

    __slots__ = ("asked", "errors", "held", "policy", "refused", "refusing")

    def __init__(self, policy: AdmissionPolicy) -> None:
        self.policy = policy
        self.asked = 0
        self.held = 0
        self.refused: Counter[str] = Counter()
        self.errors = 0
        self.refusing = False


class Doorkeeper:
    """The policies of a server, in their order, and the lobby in which some of those refused get an answer.

    `lingering`: how many at once may wait for their 503; more are reset. `timeout`: seconds for each of them.
    """

    def __init__(
        self, policies: Iterable[AdmissionPolicy], *, lingering: int = 256, timeout: float = 5.0
    ) -> None:
        self._books = [Book(policy) for policy in policies]
        for book in self._books:
            if not isinstance(book.policy, AdmissionPolicy):
                raise ConfigurationError(f"admission: {book.policy!r} is no AdmissionPolicy")
            book.policy.check()
        names = [book.policy.name for book in self._books]
        if len(set(names)) != len(names):
            raise ConfigurationError(
                f"admission policies need different names (name=), not {', '.join(names)}"
            )
        #: Those that are asked about each connection.
        self.seating = tuple(book for book in self._books if book.policy.per_connection)
        self.lobby = Lobby(lingering, timeout)
        self.load: Readings
        self._engine: Engine

    @property
    def answers(self) -> bool:
        """Whether somebody may have to wait in the lobby."""
        return any(book.policy.action == "answer" for book in self._books)

    def attach(self, engine: Engine) -> None:
        """Belong to an engine. Raises `ConfigurationError` where a policy needs a reading that cannot be had here."""
        self._engine = engine
        engine.doorkeeper = self
        self.lobby.limited = engine.limited
        self.load = Readings(engine)
        try:
            for book in self._books:
                try:
                    book.policy.sample(self.load)
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - logged
                    self._failed(book, error)
        finally:
            self.load.close()  # files are opened again by `run`: this may not be the process that serves

    def statistics(self) -> tuple[PolicyStatistics, ...]:
        """Counters, a policy each."""
        return tuple(
            PolicyStatistics(
                book.policy.name,
                book.policy.action,
                book.asked,
                book.held,
                dict(book.refused),
                book.errors,
                book.refusing,
            )
            for book in self._books
        )

    async def run(
        self,
        turn_away: Callable[[], int],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Show the policies the server's state, and serve the lobby.

        `turn_away`: does that with some of those who wait, and returns how many. The gate accepts in the pool; when
        that is full for long, the policy that refuses for this reason must not wait for a slot to say so.
        """
        async with trio.open_nursery() as nursery:
            if self.answers:
                await nursery.start(self.lobby.run, self._engine._backend)
            task_status.started()
            try:
                while True:
                    self.sample()
                    for _ in range(_BATCHES):
                        if not turn_away():
                            break
                        await trio.lowlevel.checkpoint()
                    await trio.sleep(_SAMPLE)
            finally:
                self.load.close()

    def sample(self) -> None:
        """Show the policies the server's state."""
        load = self.load
        load.refresh()
        load.now = trio.current_time()
        for book in self._books:
            try:
                book.policy.sample(load)
            except Exception as error:  # noqa: BLE001 - logged
                self._failed(book, error)
            book.refusing = self._room(book) <= 0

    def overloaded(self) -> str | None:
        """Why everybody is refused now; None if that is not so."""
        self.load.now = trio.current_time()
        for book in self._books:
            if self._room(book) <= 0:
                return f"{book.policy.name}: {self.explain(book)}"
        return None

    # ------------------------------------------------------- asked by the gate

    def before(self) -> tuple[int, Book | None]:
        """How many may be accepted now; or which policy refuses them."""
        self.load.now = trio.current_time()
        least = MANY
        for book in self._books:
            book.asked += 1
            room = self._room(book)
            if room <= 0:
                return 0, book
            least = min(least, room)
        return least, None

    def accepted(self, count: int) -> None:
        """So many came in."""
        for book in self._books:
            try:
                book.policy.accepted(count)
            except Exception as error:  # noqa: BLE001 - logged
                self._failed(book, error)

    def enter(self, peer: Any) -> tuple[Any, Book | None]:
        """What `left` is to be told about this peer's connection at its end; or which policy refuses it."""
        seats: list[Any] = []
        for book in self.seating:
            book.asked += 1
            try:
                seat = book.policy.admit(peer)
            except Exception as error:  # noqa: BLE001 - it costs this connection
                self._failed(book, error)
                seat = None
            if seat is None:
                self._give_back(seats)
                return None, book
            seats.append(seat)
        return seats[0] if len(seats) == 1 else tuple(seats), None

    def left(self, seat: Any) -> None:
        """A connection that `enter` let in has ended."""
        self._give_back((seat,) if len(self.seating) == 1 else seat)

    def turn_away(self, fd: int, protocol: Any, book: Book) -> None:
        """Do with an accepted descriptor, meant for `protocol`, what the policy says."""
        policy = book.policy
        if policy.per_connection:
            self._engine.limited.log(
                log,
                logging.WARNING,
                "a connection was refused: %s: %s",
                policy.name,
                self.explain(book),
                burst=1,
            )
        if policy.action == "answer" and self.lobby.take(fd, protocol, policy.retry_after):
            book.refused["answer"] += 1
        else:
            book.refused["reset"] += 1
            system.reset(fd)

    # ------------------------------------------------- policies that may raise

    def _room(self, book: Book) -> int:
        try:
            return int(book.policy.room(self.load))
        except Exception as error:  # noqa: BLE001 - logged; a mistake in a policy does not close the server
            self._failed(book, error)
            return MANY

    def explain(self, book: Book) -> str:
        """Why, in the policy's words."""
        try:
            return str(book.policy.explain(self.load))
        except Exception as error:  # noqa: BLE001 - logged
            self._failed(book, error)
            return "refused"

    def _give_back(self, seats: Iterable[Any]) -> None:
        for book, seat in zip(self.seating, seats, strict=False):
            try:
                book.policy.left(seat)
            except Exception as error:  # noqa: BLE001 - logged
                self._failed(book, error)

    def _failed(self, book: Book, error: Exception) -> None:
        book.errors += 1
        self._engine.limited.log(
            log, logging.ERROR, "admission policy %r failed", book.policy.name, error=error, burst=1
        )


class Seated(Connection):
    """A connection that policies are told the end of (a trait, see `trionet.net.traits`).

    Only servers with such policies have it: a word, and what it refers to.
    """

    __slots__ = NO_SLOTS
    words = ("_seat",)

    _seat: Any  # set by whoever makes it: `seated`

    def _release(self) -> None:
        engine, seat = self.engine, self._seat
        heir = self._rare.heir if self._rare is not None else None
        super()._release()
        if seat is None:
            return
        self._seat = None
        if heir is None:
            cast("Any", engine.doorkeeper).left(seat)
        else:  # it counts until the stream is closed
            engine.streams[heir] = seat


@cache
def _class(connection_class: type[Connection]) -> type[Connection]:
    return compose(connection_class, Seated)


def seated(connection_class: type[Connection], seat: Any) -> Callable[..., Connection]:
    """What `Engine.add` makes such a connection with: the seat is taken before the protocol hears of it."""
    seated_class: Any = _class(connection_class)  # type: ignore[arg-type]  # it is hashable

    def make(engine: Engine, fd: int, protocol: ProtocolInterface) -> Connection:
        connection: Connection = seated_class(engine, fd, protocol)
        cast("Any", connection)._seat = seat
        return connection

    return make
