"""Whether to make another attempt, and how long a server wants to be left alone. Pure: time is handed in."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from trionet.errors import UpgradeRefused

__all__ = ["may_pass", "parse_retry_after"]

# Refusals that pass by themselves: too early, too many, too slow, and what stands between us and a server that starts.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


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
