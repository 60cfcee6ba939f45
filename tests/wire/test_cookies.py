"""The Cookie header, as browsers write it and as others might."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.wire.cookies import parse_cookies
from trionet.wire.handshake import HeadLimits, HeadScanner


@pytest.mark.parametrize(
    "lines, cookies",
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["a=1; b=2", "c=3"], {"a": "1", "b": "2", "c": "3"}),
        (["a=1;b=2 ;\tc = 3"], {"a": "1", "b": "2", "c": "3"}),
        (["a=1; a=2"], {"a": "1"}),
        (['a="1"; b="'], {"a": "1", "b": '"'}),
        (["a=x=y"], {"a": "x=y"}),
        (["a="], {"a": ""}),
        (["nonsense; =none; ;; [x]={; login=ada"], {"[x]": "{", "login": "ada"}),
    ],
)
def test_cookies_are_read(lines, cookies):
    """Every pair counts, the first of a name, and nonsense beside it hides none."""
    assert parse_cookies(lines) == cookies


@given(st.lists(st.text(alphabet=st.characters(max_codepoint=255))))
def test_no_header_is_an_error(lines):
    """Whatever a peer sends, the cookies that can be read are returned."""
    for name in parse_cookies(lines):
        assert name


def test_a_request_has_them():
    """`Request.cookies` has those of a head whose Cookie header was declared."""
    scanner = HeadScanner(HeadLimits(), frozenset([b"cookie"]), None)
    request = scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1; b=2\r\nCookie: c=3\r\n\r\n", 0)
    assert request is not None
    assert request.cookies == {"a": "1", "b": "2", "c": "3"}
