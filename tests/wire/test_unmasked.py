"""The short way through a server's frames gives what the careful way gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ProtocolError
from trionet.wire.frames import encode_frame, mask_frames, parse_header
from trionet.wire.masking import apply_mask_py
from trionet.wire.messages import MessageDecoder
from trionet.wire.unmasked import take_messages

frames = st.builds(
    lambda opcode, payload, fin, rsv: encode_frame(opcode, payload, fin=fin, rsv=rsv),
    st.sampled_from([0, 1, 1, 1, 2, 2, 8, 9]),
    st.binary(max_size=130) | st.text(max_size=60).map(str.encode) | st.just(b"x" * 70_000),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 4]),
)


def careful(data, limit):
    """What the careful decoder says: events, and the fault."""
    out = []
    try:
        MessageDecoder(limit, masked=False).decode(data, None, out)
    except ProtocolError as error:
        return out, (error.code, error.reason)
    return out, None


@given(st.lists(frames, max_size=5).map(b"".join), st.integers(0, 20), st.sampled_from([100, 10**6]))
def test_both_ways_agree(data, cut, limit):
    """For any frames, right or wrong, cut anywhere, both ways together give what the careful one gives alone."""
    data = data[: max(0, len(data) - cut)]
    out = []
    done = take_messages(data, limit, out)
    rest, fault = careful(data[done:], limit)
    assert (out + rest, fault) == careful(data, limit)


def test_good_messages_go_the_short_way():
    """Whole messages of every length of header but the longest are taken."""
    messages = [b"", b"x", b"x" * 125, b"x" * 126, b"x" * 65535, "é"]
    data = b"".join(
        encode_frame(2 if isinstance(m, bytes) else 1, m if isinstance(m, bytes) else m.encode())
        for m in messages
    )
    out = []
    assert take_messages(data + b"\x89\x00", 10**6, out) == len(data)
    assert out == messages


@given(
    st.lists(frames, min_size=1, max_size=4),
    st.lists(st.binary(min_size=4, max_size=4), min_size=4, max_size=4),
)
def test_masked_frames_are_the_same_frames(pieces, keys):
    """`mask_frames` masks each of several frames with a key of its own, and changes nothing else."""
    given_keys = iter(keys)
    masked = mask_frames(b"".join(pieces), lambda: next(given_keys))
    pos = 0
    for piece, key in zip(pieces, keys, strict=False):
        header, plain = parse_header(masked, pos), parse_header(piece)
        assert (header.fin, header.rsv, header.opcode) == (plain.fin, plain.rsv, plain.opcode)
        assert (header.masked, header.key, header.length) == (True, key, plain.length)
        body = masked[pos + header.size : pos + header.size + header.length]
        assert apply_mask_py(body, key) == piece[plain.size :]
        pos += header.size + header.length
    assert pos == len(masked)
