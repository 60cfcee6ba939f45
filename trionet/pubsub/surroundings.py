"""What a process knows of the server it is part of: workers set it before they load what they serve."""

from __future__ import annotations

import attrs

__all__ = ["Surroundings", "surround", "surroundings"]


@attrs.frozen
class Surroundings:
    """`workers`: how many processes serve together. `broker`: the URL the server was started with, if any.

    `broker_socket`: the path of the socket where its local broker is served; None if there is none.
    """

    workers: int = 1
    broker: str | None = None
    broker_socket: str | None = None


_here = Surroundings()


def surroundings() -> Surroundings:
    """Where this process stands; alone, unless a server says otherwise."""
    return _here


def surround(place: Surroundings) -> None:
    """Say where this process stands."""
    global _here
    _here = place
