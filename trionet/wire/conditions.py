"""What the conditions of a request make of a representation: all of it, a part, nothing new, or a refusal.

`judge` decides, in the order of RFC 9110, 13.2.2. The first row that applies is answered:

    ======  ==========================================================================================
    status  when
    ======  ==========================================================================================
    412     If-Match has neither "*" nor our tag (strong comparison, 13.1.1)
    412     no If-Match, and If-Unmodified-Since is before the last change (13.1.4)
    304     If-None-Match has "*" or our tag (weak comparison, 13.1.2)
    304     no If-None-Match, and the last change is not after If-Modified-Since (13.1.3)
    200     no Range, another unit, a Range that is malformed, or an If-Range that is not our version (13.1.5)
    416     nothing of the Range is there (14.4)
    200     several parts that do not join: the whole is a right answer to any Range (14.2), and shorter to get
            right than multipart/byteranges, which clients hardly ever ask for
    206     one part
    ======  ==========================================================================================

Pure: times are seconds since the epoch, handed in.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Mapping
from typing import Final

import attrs

__all__ = ["Verdict", "judge", "parse_date", "parse_ranges"]

_MOST: Final = 16  # parts in a Range; more is not asked in good faith (RFC 9110, 17.15)
_DIGITS: Final = 18  # of a position; an exabyte

_RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
_TAG = re.compile(r'\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)|\s*,')

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_DATES = [
    re.compile(text, re.ASCII)
    for text in (
        rf"\w{{3}}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"\w{{6,9}}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_CLOCK} GMT",  # RFC 850
        rf"\w{{3}} {_MONTH} (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",  # asctime
    )
]


@attrs.frozen
class Verdict:
    """How to answer: `status`, and of a 206 the bytes from `start` up to, not including, `stop`."""

    status: int
    start: int = 0
    stop: int = 0


def judge(
    headers: Mapping[str, str],
    etag: str,
    modified: int,
    size: int | None = None,
    *,
    now: float = 0.0,
) -> Verdict:
    """Return how a GET or HEAD is to be answered; `headers` by lower-case name, repeated ones joined by commas.

    `etag`: a strong tag, with its quotes. `modified`: the last change. `size`: of the whole, None if no part may be
    asked for (as with HEAD: RFC 9110, 14.2). `now`: a last change less than a second before it is no strong validator
    (8.8.2.2), so an If-Range with that date gets the whole.
    """
    get = headers.get
    if (wanted := get("if-match")) is not None:
        if not _lists(wanted, etag, _strongly):
            return Verdict(412)
    elif (date := parse_date(get("if-unmodified-since"))) is not None and modified > date:
        return Verdict(412)
    if (known := get("if-none-match")) is not None:
        if _lists(known, etag, _weakly):
            return Verdict(304)
    elif (date := parse_date(get("if-modified-since"))) is not None and modified <= date:
        return Verdict(304)
    wanted = get("range")
    if wanted is None or size is None or not _is_version(get("if-range"), etag, modified, now):
        return Verdict(200)
    parts = parse_ranges(wanted, size)
    if parts is None or len(parts) > 1:
        return Verdict(200)
    return Verdict(206, *parts[0]) if parts else Verdict(416)


def parse_ranges(value: str, size: int) -> list[tuple[int, int]] | None:
    """Return the parts of `size` bytes that a Range asks for as (start, stop); joined where they touch, in order.

    None: to be ignored, as it is malformed, in another unit than bytes, of too many parts, or there is nothing to take
    part of (RFC 9110, 14.2). Empty: none of it is there (416).
    """
    unit, equals, text = value.partition("=")
    if unit.strip(" \t").lower() != "bytes" or not equals:  # range units are case-insensitive (14.1)
        return None
    if not size:
        return None  # Content-Range has no words for a part of nothing
    asked = [part for part in (part.strip(" \t") for part in text.split(",")) if part]
    if not 1 <= len(asked) <= _MOST:
        return None
    parts = []
    for part in asked:
        match = _RANGE.fullmatch(part)
        if match is None or max(map(len, match.groups())) > _DIGITS:
            return None
        first, last = match.groups()
        if first:
            start, stop = int(first), int(last) + 1 if last else size
            if last and stop <= start:
                return None
        elif last:
            start, stop = max(0, size - int(last)), size  # 14.1.2: the last so many bytes
        else:
            return None
        if start < min(stop, size):
            parts.append((start, min(stop, size)))
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def parse_date(text: str | None) -> int | None:
    """A date in one of the three forms of RFC 9110, 5.6.7, as seconds since the epoch; None if it is none of them."""
    match = next(filter(None, (form.fullmatch(text) for form in _DATES)), None) if text else None
    if match is None:
        return None
    day, hour, minute, second = (int(match[name]) for name in ("day", "hour", "minute", "second"))
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 1900 if year >= 70 else 2000
    if not (1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60 and year >= 1900):
        return None
    return calendar.timegm((year, _MONTHS.index(match["month"]) + 1, day, hour, minute, second))


def _is_version(validator: str | None, etag: str, modified: int, now: float) -> bool:
    """Whether what If-Range names, or no If-Range, lets a part be sent (RFC 9110, 13.1.5)."""
    if validator is None:
        return True
    if '"' in validator:
        return validator.strip(" \t") == etag  # strong comparison: a weak tag never is
    return parse_date(validator) == modified and modified <= now - 1


def _lists(value: str, etag: str, same: Callable[[str, str], bool]) -> bool:
    """Whether `etag` is in a list of entity tags, or the list is "*" (RFC 9110, 8.8.3, 13.1)."""
    if value.strip(" \t") == "*":
        return True
    place = 0
    while place < len(value):  # not split at commas: a tag may hold one
        match = _TAG.match(value, place)
        if match is None:
            return False
        if match[1] is not None and same(match[1], etag):
            return True
        place = match.end()
    return False


def _strongly(tag: str, etag: str) -> bool:
    return tag == etag and not tag.startswith("W/")


def _weakly(tag: str, etag: str) -> bool:
    return tag.removeprefix("W/") == etag.removeprefix("W/")
