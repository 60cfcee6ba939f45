"""How long to wait before the next attempt. Pure: chance is handed in.

The exponential back-off with full jitter of the AWS Architecture Blog ("Exponential Backoff And Jitter", 2015): after
`n` failures in a row wait for anything between nothing and ``min(maximum, initial * factor ** n)``. Clients that lost
their server together do not come back together, which is worth more than a regular distance.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from trionet.errors import ConfigurationError

__all__ = ["Backoff"]


@attrs.frozen
class Backoff:
    """Seconds between attempts: see the module. `jitter` False takes the whole of each delay, for tests.

    `reset_after`: a connection that lived so long counts as a success; one that ended sooner counts as a failure, so
    that a server that accepts and hangs up is not hammered. `longest_wish`: the most that is granted to a Retry-After.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: bool = True
    reset_after: float = 30.0
    longest_wish: float = 600.0

    def __attrs_post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum and self.factor >= 1 and self.reset_after >= 0):
            raise ConfigurationError(f"need 0 < initial <= maximum, factor >= 1, reset_after >= 0: {self}")

    def delay(self, failures: float, chance: Callable[[], float], wish: float | None = None) -> float:
        """Seconds to wait after so many failures in a row; of several places that are tried in turn, on average.

        `chance` returns numbers from 0 to 1. `wish`: what the server asked for (Retry-After); it is the least, and
        the jitter comes on top, for the server has told all the others the same.
        """
        try:
            most = min(self.maximum, self.initial * self.factor**failures)
        except OverflowError:
            most = self.maximum
        delay = most * chance() if self.jitter else most
        return delay if wish is None else min(wish, self.longest_wish) + (delay if self.jitter else 0.0)
