"""`Partial.encoded`: an unfinished frame or message goes back to bytes that mean the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.wire.frames import encode_frame
from trionet.wire.messages import MessageDecoder, Partial

DECODER = MessageDecoder()

frames = st.lists(
    st.tuples(st.binary(max_size=300), st.booleans(), st.binary(min_size=4, max_size=4)),
    min_size=1,
    max_size=4,
)


def wire(parts, opcode=2):
    """Return one message in fragments, and a text message behind it; Pings in between."""
    data = b""
    for number, (payload, ping, key) in enumerate(parts):
        data += encode_frame(0 if number else opcode, payload, fin=number == len(parts) - 1, key=key)
        if ping:
            data += encode_frame(9, payload[:100], key=key)
    return data + encode_frame(1, b"end", key=b"abcd")


@given(frames, st.data())
def test_wherever_it_is_cut(parts, draw):
    """Decoding what `encoded` returns and the rest of the wire gives what decoding all at once gives."""
    data = wire(parts)
    cut = draw.draw(st.integers(0, len(data)))
    first, second, whole = [], [], []
    DECODER.decode(data, None, whole)
    partial = DECODER.decode(data[:cut], None, first)
    kept = partial.encoded() if partial is not None else b""
    assert DECODER.decode(kept + data[cut:], None, second) is None
    assert first + second == whole


def test_a_character_cut_in_two():
    """Text whose last character is not complete comes back with all its bytes."""
    data = encode_frame(1, "é".encode(), key=b"abcd")
    partial = DECODER.decode(data[:-1], None, [])
    out = []
    assert DECODER.decode(partial.encoded() + data[-1:], None, out) is None
    assert out == ["é"]


def test_from_a_server():
    """Frames of a server have no key."""
    decoder = MessageDecoder(masked=False)
    data = encode_frame(2, b"0123456789")
    partial = decoder.decode(data[:6], None, [])
    assert partial.encoded() + data[6:] == data


def test_delivered_pieces_cannot_come_back():
    """In the middle of a message whose pieces were delivered it says so; between messages it does not."""
    decoder = MessageDecoder(chunks=True)
    data = encode_frame(2, b"0123456789", key=b"abcd")
    partial = decoder.decode(data[:8], None, [])
    with pytest.raises(ValueError, match="delivered"):
        partial.encoded()
    partial = decoder.decode(data[:4], None, [])
    assert partial.encoded() == data[:4]
    assert Partial().encoded() == b""
