"""Frame headers: each rule of RFC 6455, section 5.2 to 5.5, is one row of a table."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ProtocolError
from trionet.wire.frames import Header, Opcode, check_header, encode_frame, encode_header, parse_header
from trionet.wire.masking import apply_mask_py

KEY = b"\x37\xfa\x21\x3d"
LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, 2**32, 2**63 - 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_header_is_parsed_as_it_was_encoded(length, masked):
    """Every size class and its borders survive the way out and in, whatever stands around them."""
    for fin, rsv, opcode in itertools.product([False, True], range(8), Opcode):
        data = encode_header(opcode, length, fin=fin, rsv=rsv, masked=masked) + (KEY if masked else b"")
        expected = Header(fin, rsv, opcode, masked, length, KEY if masked else b"", len(data))
        assert parse_header(data) == expected
        assert parse_header(memoryview(b"zz" + data + b"payload"), 2) == expected


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_an_unfinished_header_is_no_header(length, masked):
    """Any byte may be the last of this read."""
    data = encode_header(Opcode.BINARY, length, masked=masked) + (KEY if masked else b"")
    for cut in range(len(data)):
        assert parse_header(data[:cut]) is None
        assert parse_header(b"zz" + data[:cut], 2) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x7e\x00\x7d",  # 125 in 16 bits
        b"\x82\x7e\x00\x00",
        b"\x82\xfe\x00\x7d",  # judged before the key has come
        b"\x82\x7f" + (65535).to_bytes(8, "big"),
        b"\x82\x7f" + bytes(8),
        b"\x82\xff" + (125).to_bytes(8, "big"),
        b"\x82\x7f" + (2**63).to_bytes(8, "big"),  # 5.2: the top bit must be 0
        b"\x82\x7f" + b"\xff" * 8,
    ],
)
def test_a_length_has_one_form(data):
    """A length that is not in its shortest form, or has the top bit set, is refused with 1002 (5.2)."""
    with pytest.raises(ProtocolError) as caught:
        parse_header(data)
    assert caught.value.code == 1002


# first byte, second byte, masked expected, inside a message, what is wrong (None: nothing)
TEXT, CONT, PING, CLOSE = 0x81, 0x80, 0x89, 0x88
RULES = [
    (TEXT, 0x85, True, False, None),
    (0x82, 0xFF, True, False, None),
    (0x01, 0x85, True, False, None),
    (CONT, 0x85, True, True, None),
    (0x00, 0x85, True, True, None),
    (PING, 0xFD, True, False, None),
    (PING, 0x80, True, True, None),  # 5.4: control frames may come between fragments
    (0x8A, 0x80, True, False, None),
    (CLOSE, 0x82, True, True, None),
    (TEXT, 0x05, False, False, None),
    (0xC1, 0x85, True, False, "reserved bits"),
    (0xA1, 0x85, True, False, "reserved bits"),
    (0x91, 0x85, True, False, "reserved bits"),
    (0xF0, 0x85, True, True, "reserved bits"),
    (TEXT, 0x05, True, False, "not masked"),  # 5.1
    (PING, 0x00, True, False, "not masked"),
    (TEXT, 0x85, False, False, "is masked"),
    (0x09, 0x80, True, False, "fragmented control"),  # 5.5
    (0x08, 0x80, True, True, "fragmented control"),
    (PING, 0xFE, True, False, "longer than 125"),
    (CLOSE, 0xFF, True, False, "longer than 125"),
    (CONT, 0x80, True, False, "nothing to continue"),
    (0x00, 0x80, True, False, "nothing to continue"),
    (TEXT, 0x80, True, True, "continuation expected"),
    (0x02, 0x80, True, True, "continuation expected"),
    *((0x80 | opcode, 0x80, True, False, "unknown opcode") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
]


@pytest.mark.parametrize("first,second,masked,fragmented,wrong", RULES)
def test_header_rules(first, second, masked, fragmented, wrong):
    """The first two bytes are judged by the RFC, with 1002 and words that name the rule."""
    if wrong is None:
        check_header(first, second, masked=masked, fragmented=fragmented)
    else:
        with pytest.raises(ProtocolError, match=wrong) as caught:
            check_header(first, second, masked=masked, fragmented=fragmented)
        assert caught.value.code == 1002


def test_an_extension_gives_a_reserved_bit_its_meaning():
    """A bit that was negotiated is allowed, its neighbours are not."""
    check_header(0xC1, 0x80, masked=True, fragmented=False, rsv_allowed=4)
    with pytest.raises(ProtocolError, match="reserved bits"):
        check_header(0xE1, 0x80, masked=True, fragmented=False, rsv_allowed=4)


@pytest.mark.parametrize(
    "opcode,payload,options,frame",
    [  # the examples of RFC 6455, 5.7
        (Opcode.TEXT, b"Hello", {}, b"\x81\x05Hello"),
        (Opcode.TEXT, b"Hello", {"key": KEY}, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"),
        (Opcode.TEXT, b"Hel", {"fin": False}, b"\x01\x03Hel"),
        (Opcode.CONTINUATION, b"lo", {}, b"\x80\x02lo"),
        (Opcode.PING, b"Hello", {}, b"\x89\x05Hello"),
        (Opcode.BINARY, bytes(256), {}, b"\x82\x7e\x01\x00" + bytes(256)),
        (Opcode.BINARY, bytes(65536), {}, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(65536)),
        (Opcode.TEXT, b"x", {"rsv": 4}, b"\xc1\x01x"),
        (Opcode.CLOSE, b"", {}, b"\x88\x00"),
        (Opcode.PONG, b"x", {}, b"\x8a\x01x"),
    ],
)
def test_frames_of_the_rfc(opcode, payload, options, frame):
    """What is encoded is, byte for byte, what the RFC prints."""
    assert encode_frame(opcode, payload, **options) == frame


@given(
    st.sampled_from(list(Opcode)),
    st.binary(max_size=300),
    st.booleans(),
    st.integers(0, 7),
    st.none() | st.binary(min_size=4, max_size=4),
)
def test_a_frame_is_read_as_it_was_written(opcode, payload, fin, rsv, key):
    """Header and payload of any frame come back, and every frame is its header and its payload long."""
    frame = encode_frame(opcode, payload, fin=fin, rsv=rsv, key=key)
    header = parse_header(frame)
    assert header == Header(
        fin, rsv, opcode, key is not None, len(payload), key or b"", len(frame) - len(payload)
    )
    body = frame[header.size :]
    assert (apply_mask_py(body, key) if key else body) == payload
