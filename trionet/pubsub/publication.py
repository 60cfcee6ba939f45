"""What is published, and where it stands in its topic."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NOWHERE", "HistoryPage", "Position", "Publication"]


class Position(NamedTuple):
    """A place in a topic: behind the publication with this offset. Offsets count on within an `epoch`.

    An epoch ends when the topic's past is lost; positions of different epochs cannot be compared. Where nothing is
    kept there are no positions: offset 0 of epoch "".
    """

    epoch: str
    offset: int


NOWHERE = Position("", 0)


class Publication(NamedTuple):
    """One message on a topic. `data` is the publisher's bytes, `at` when the broker took it (seconds since 1970).

    `previous` is the offset of the one before it, `tag` what conflation goes by, `origin` who published it, if
    they said so.
    """

    topic: str
    data: bytes
    epoch: str = ""
    offset: int = 0
    previous: int = 0
    at: float = 0.0
    tag: str = ""
    origin: str = ""

    @property
    def position(self) -> Position:
        """Where it stands; `NOWHERE` if its topic keeps nothing."""
        return Position(self.epoch, self.offset)


class HistoryPage(NamedTuple):
    """A piece of a topic's history, the oldest first.

    `top` is the position of the newest that was published so far. `complete`: nothing is missing between the position
    that was asked for and the first of these. `more`: there is more behind the last of them.
    """

    publications: list[Publication]
    top: Position
    complete: bool
    more: bool = False
