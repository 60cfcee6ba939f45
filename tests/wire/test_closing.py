"""Close codes: one table for what may be received and what may be sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ConnectionClosed, ProtocolError
from trionet.wire.closing import CloseCode, check_sendable, encode_close, parse_close

MAY_TRAVEL = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
MAY_NOT = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("code", MAY_TRAVEL)
def test_a_code_that_may_travel_goes_both_ways(code):
    """RFC 6455, 7.4 and the registry: these codes are accepted from a peer and from the application."""
    check_sendable(code, "why")
    assert parse_close(encode_close(code, "why")) == (code, "why")


@pytest.mark.parametrize("code", MAY_NOT)
def test_a_code_that_may_not_travel_is_refused_both_ways(code):
    """Reserved and unregistered codes are a peer's protocol error and an application's mistake."""
    with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
        check_sendable(code, "")
    with pytest.raises(ProtocolError) as caught:
        parse_close(code.to_bytes(2, "big"))
    assert caught.value.code == 1002


@pytest.mark.parametrize(
    "payload,code",
    [
        (b"\x03", 1002),  # 5.5.1: a body has two bytes at least
        (b"\x03\xe8\xff", 1007),
        (b"\x03\xe8caf\xc3", 1007),  # cut inside a character
        (b"\x03\xe8\xed\xa0\x80", 1007),  # a surrogate
        (b"\x03\xed\xff", 1002),  # 1005: the code is judged first
    ],
)
def test_a_broken_close_says_what_is_broken(payload, code):
    """A Close that cannot be read is failed with 1002, one whose reason is no text with 1007."""
    with pytest.raises(ProtocolError) as caught:
        parse_close(payload)
    assert caught.value.code == code


def test_an_empty_close_is_1005():
    """No code in the frame is reported as 1005 and never sent as such (7.1.5)."""
    assert parse_close(b"") == (CloseCode.NO_STATUS, "")
    assert encode_close(CloseCode.NO_STATUS, "dropped with the code") == b""


def test_a_reason_has_room_for_123_bytes():
    """The limit counts bytes of UTF-8, not characters."""
    check_sendable(1000, "x" * 123)
    for reason in ("x" * 124, "é" * 62):
        with pytest.raises(ValueError, match="longer than 123 bytes"):
            check_sendable(1000, reason)


@given(st.text(max_size=200))
def test_a_long_reason_is_cut_between_characters(reason):
    """What is encoded always fits a control frame, and is readable text at the other end."""
    payload = encode_close(1011, reason)
    assert len(payload) <= 125
    code, text = parse_close(payload)
    assert code == 1011
    assert reason.startswith(text)
    assert text == reason or len(reason.encode()) > 123


@pytest.mark.parametrize(
    "code,clean", [(1000, True), (1001, True), (1005, True), (1006, False), (4000, False)]
)
def test_connection_closed_tells_how(code, clean):
    """`clean` is true for the two ordinary codes only, and the text names side, code and reason."""
    closed = ConnectionClosed(code, "so", "us")
    assert closed.clean is clean
    assert str(closed) == f"closed by us: {code} so"
    assert str(ConnectionClosed(code)) == f"closed by peer: {code}"
