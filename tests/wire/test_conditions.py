"""Conditional and range requests as a table: RFC 9110, 13 and 14."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet.wire.conditions import Verdict, judge, parse_date, parse_ranges

OLD = 784_111_777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"


@pytest.mark.parametrize(
    "headers, expected",
    [
        ({}, 200),
        ({"if-none-match": '"x"'}, 304),
        ({"if-none-match": 'W/"x"'}, 304),
        ({"if-none-match": '"a", W/"b" , "x"'}, 304),
        ({"if-none-match": ', "a",, "x",'}, 304),
        ({"if-none-match": '"a,b", "x"'}, 304),
        ({"if-none-match": '"a, "x"'}, 200),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": " * "}, 304),
        ({"if-none-match": '*, "a"'}, 200),
        ({"if-none-match": "x"}, 200),
        ({"if-none-match": ""}, 200),
        ({"if-match": '"x"'}, 200),
        ({"if-match": '"a", "x"'}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": 'W/"x"'}, 412),
        ({"if-match": ""}, 412),
        ({"if-match": '"a"', "if-none-match": '"x"'}, 412),
        ({"if-match": '"x"', "if-none-match": '"x"'}, 304),
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": "Sunday, 06-Nov-94 08:49:37 GMT"}, 304),
        ({"if-modified-since": "Sun Nov  6 08:49:37 1994"}, 304),
        ({"if-modified-since": EARLIER}, 200),
        ({"if-modified-since": "yesterday"}, 200),
        ({"if-modified-since": "Sun, 06 Nov 1994 08:49:37 +9999999999"}, 200),
        ({"if-none-match": '"a"', "if-modified-since": DATE}, 200),
        ({"if-unmodified-since": EARLIER}, 412),
        ({"if-unmodified-since": DATE}, 200),
        ({"if-unmodified-since": "never"}, 200),
        ({"if-match": '"x"', "if-unmodified-since": EARLIER}, 200),
        ({"range": "bytes=0-0", "if-none-match": '"x"'}, 304),
        ({"range": "bytes=0-0", "if-match": '"a"'}, 412),
        ({"range": "bytes=0-0"}, 206),
        ({"range": "bytes=100-"}, 416),
        ({"range": "bytes=0-0", "if-range": '"x"'}, 206),
        ({"range": "bytes=0-0", "if-range": 'W/"x"'}, 200),
        ({"range": "bytes=0-0", "if-range": '"a"'}, 200),
        ({"range": "bytes=100-", "if-range": '"a"'}, 200),
        ({"range": "bytes=0-0", "if-range": DATE}, 206),
        ({"range": "bytes=0-0", "if-range": EARLIER}, 200),
        ({"range": "bytes=0-0", "if-range": ""}, 200),
        ({"if-range": '"x"'}, 200),
    ],
    ids=repr,
)
def test_conditions_count_in_their_order(headers, expected):
    """RFC 9110, 13.2.2, with weak and strong comparison, and dates in all three forms."""
    assert judge(headers, '"x"', OLD, 100, now=OLD + 1).status == expected


def test_a_date_that_is_too_young_validates_no_part():
    """A file changed in this very second may change again in it (RFC 9110, 8.8.2.2)."""
    headers = {"range": "bytes=0-0", "if-range": DATE}
    assert judge(headers, '"x"', OLD, 100, now=OLD + 0.5) == Verdict(200)


def test_a_range_is_for_get_only():
    """Where no size is given, as for HEAD, Range is ignored (RFC 9110, 14.2)."""
    assert judge({"range": "bytes=0-0"}, '"x"', OLD) == Verdict(200)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("bytes=0-499", [(0, 500)]),
        ("bytes=500-999", [(500, 1000)]),
        ("bytes=500-", [(500, 1000)]),
        ("bytes=-500", [(500, 1000)]),
        ("bytes=-5000", [(0, 1000)]),
        ("bytes=999-5000", [(999, 1000)]),
        ("BYTES= 0-0 , -1 ", [(0, 1), (999, 1000)]),
        ("bytes=0-0,,1-1", [(0, 2)]),
        ("bytes=500-600,0-10,5-499", [(0, 601)]),
        ("bytes=0-5,2000-", [(0, 6)]),
        ("bytes=1000-", []),
        ("bytes=-0", []),
        ("bytes=1-0", None),
        ("bytes=5-4,0-1", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("bytes=1", None),
        ("bytes=+1-2", None),
        ("bytes=1-2-3", None),
        ("bytes=\u0661-2", None),
        ("bytes=" + "9" * 19 + "-", None),
        ("bytes=" + ",".join("0-0" for _ in range(17)), None),
        ("lines=0-1", None),
        ("0-1", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_ranges_of_a_thousand_bytes(value, expected):
    """Single, suffix, open-ended and joined ranges; None where the header is to be ignored."""
    assert parse_ranges(value, 1000) == expected


def test_of_nothing_there_are_no_parts():
    """Range is ignored for an empty file: Content-Range could not say which part it is."""
    assert parse_ranges("bytes=0-", 0) is None


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(0, 60)), min_size=1, max_size=6),
    st.integers(1, 50),
)
def test_parts_hold_exactly_the_bytes_that_were_asked_for(asked, size):
    """Joined parts are in order, apart, within the file, and hold each byte asked for once."""
    asked = [(first, last) for first, last in asked if last is None or last >= first]
    value = "bytes=" + ",".join(f"{first}-{'' if last is None else last}" for first, last in asked)
    wanted = {n for first, last in asked for n in range(first, size if last is None else min(last + 1, size))}
    parts = parse_ranges(value, size)
    if not asked:
        assert parts is None
        return
    assert [n for start, stop in parts for n in range(start, stop)] == sorted(wanted)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(parts))


@pytest.mark.parametrize(
    "text, seconds",
    [
        (DATE, OLD),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Tuesday, 19-Jan-38 03:14:08 GMT", 2**31),
        ("Sun Nov 16 08:49:37 1994", OLD + 10 * 86400),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("Sun, 06 Nov 1994 24:00:00 GMT", None),
        ("Sun, 00 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1894 08:49:37 GMT", None),
        ("sun, 06 nov 1994 08:49:37 gmt", None),
        (f" {DATE}", None),
        ("", None),
        (None, None),
    ],
)
def test_dates_of_http(text, seconds):
    """The three forms of RFC 9110, 5.6.7, and nothing else."""
    assert parse_date(text) == seconds
