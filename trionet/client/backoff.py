"""How long to wait before the next attempt, and whether to make one. Pure: chance and time are handed in.

The exponential back-off with full jitter of the AWS Architecture Blog ("Exponential Backoff And Jitter", 2015): after
`n` failures in a row wait for anything between nothing and ``min(maximum, initial * factor ** n)``. Clients that lost
their server together do not come back together, which is worth more than a regular distance.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime

import attrs

from trionet.errors import ConfigurationError, UpgradeRefused

__all__ = ["Backoff", "may_pass", "parse_retry_after"]

# Refusals that pass by themselves: too early, too many, too slow, and what stands between us and a server that starts.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


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

    def delay(self, failures: int, chance: Callable[[], float], wish: float | None = None) -> float:
        """Seconds to wait after so many failures in a row.

        `chance` returns numbers from 0 to 1. `wish`: what the server asked for (Retry-After); it is the least, and
        the jitter comes on top, for the server has told all the others the same.
        """
        try:
            most = min(self.maximum, self.initial * self.factor**failures)
        except OverflowError:
            most = self.maximum
        delay = most * chance() if self.jitter else most
        return delay if wish is None else min(wish, self.longest_wish) + (delay if self.jitter else 0.0)


def may_pass(error: Exception) -> bool:
    """Whether an attempt that failed like this may succeed later, if nobody changes anything.

    Network errors may (also a name that is not known: that is what having no network looks like), and refusals with
    408, 425, 429 and most of 5xx. Other refusals, certificates that do not fit, and servers that do not speak
    WebSocket need somebody to look at them.
    """
    if isinstance(error, UpgradeRefused):
        return error.status in _PASSING
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLCertVerificationError)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After asks for (RFC 9110, 10.2.3: a number or a date); None for what cannot be read."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    from email.utils import parsedate_to_datetime  # here, because it imports much

    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for years and zones of many digits
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(now, UTC)).total_seconds())
