"""permessage-deflate: what is negotiated, what is compressed, and what a peer may make us inflate."""

from __future__ import annotations

import sys
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.headers import build_extension, parse_extension

from trionet.errors import ConfigurationError, ProtocolError
from trionet.testing import FEEDS, splits
from trionet.wire import deflate
from trionet.wire.deflate import EXPANSION, Agreement, Deflate, frame_bound
from trionet.wire.frames import Opcode, encode_frame
from trionet.wire.messages import Chunk, Control, MessageDecoder

KEY = b"\x37\xfa\x21\x3d"
T, B, C = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
NAME = "permessage-deflate"
TAKEOVER = {"server_no_context_takeover": False, "client_no_context_takeover": False}
FLAGGED = "server_no_context_takeover; client_no_context_takeover"
WIDE = {"server_max_window_bits": 15, "client_max_window_bits": 15}
PLAIN = Deflate(**TAKEOVER, **WIDE)


# --- negotiation --------------------------------------------------------------------------------------------

ANSWERS = [
    # what the server wishes, what the client offers, what is answered (7.1)
    (PLAIN, NAME, NAME),
    (PLAIN, f"{NAME}; server_no_context_takeover", f"{NAME}; server_no_context_takeover"),
    (PLAIN, f"{NAME}; client_no_context_takeover", f"{NAME}; client_no_context_takeover"),
    (PLAIN, f"{NAME}; server_max_window_bits=10", f"{NAME}; server_max_window_bits=10"),
    (PLAIN, f"{NAME}; server_max_window_bits=15", f"{NAME}; server_max_window_bits=15"),
    (PLAIN, f"{NAME}; client_max_window_bits", f"{NAME}; client_max_window_bits=15"),
    (PLAIN, f"{NAME}; client_max_window_bits=8", f"{NAME}; client_max_window_bits=8"),
    (PLAIN, f'{NAME}; client_max_window_bits="1\\1"', f"{NAME}; client_max_window_bits=11"),
    (PLAIN, f'{NAME} ;\tserver_max_window_bits = "10" ,', f"{NAME}; server_max_window_bits=10"),
    (
        Deflate(),
        NAME,
        f"{NAME}; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12",
    ),
    (
        Deflate(),
        f"{NAME}; client_max_window_bits",
        f"{NAME}; {FLAGGED}; server_max_window_bits=12; client_max_window_bits=12",
    ),
    (
        Deflate(**TAKEOVER),
        f"{NAME}; client_max_window_bits=9; server_max_window_bits=14",
        f"{NAME}; server_max_window_bits=12; client_max_window_bits=9",
    ),
    # Several offers: the first that we can. Other extensions are passed over.
    (PLAIN, f"{NAME}; server_max_window_bits=8, {NAME}", NAME),
    (PLAIN, f"{NAME}; x, {NAME}; client_no_context_takeover, {NAME}", f"{NAME}; client_no_context_takeover"),
    (PLAIN, f"x-webkit-deflate-frame; no_context_takeover, {NAME}", NAME),
]


@pytest.mark.parametrize("wish,offers,response", ANSWERS)
def test_offers_are_answered(wish, offers, response):
    """The first acceptable offer is taken, with our wishes added as far as the RFC lets us."""
    codec, said = wish.accept(offers)
    assert said == response
    assert wish.accept(offers)[0] is codec


@pytest.mark.parametrize(
    "offers",
    [
        "foo",
        f"{NAME}x",
        f"{NAME}; unknown",
        f"{NAME}; server_no_context_takeover=1",
        f"{NAME}; client_no_context_takeover=true",
        f"{NAME}; server_no_context_takeover; server_no_context_takeover",
        f"{NAME}; client_max_window_bits; client_max_window_bits=10",
        f"{NAME}; server_max_window_bits",
        f"{NAME}; server_max_window_bits=7",
        f"{NAME}; server_max_window_bits=16",
        f"{NAME}; server_max_window_bits=010",
        f"{NAME}; server_max_window_bits=ten",
        f"{NAME}; server_max_window_bits=8",  # zlib has no such window for raw deflate
        f"{NAME}; client_max_window_bits=7",
        f"{NAME}; client_max_window_bits=+9",
    ],
)
def test_offers_are_declined(offers):
    """What is unknown, repeated, badly valued or beyond zlib declines that offer, and no other is left."""
    assert Deflate().accept(offers) is None


@given(
    st.booleans(),
    st.booleans(),
    st.integers(9, 15),
    st.integers(9, 15),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(9, 15),
    st.none() | st.just(True) | st.integers(9, 15),
)
def test_clients_of_others_understand_the_answer(
    server_nct, client_nct, server_bits, client_bits, their_server, their_client, their_bits, own_bits
):
    """Whatever websockets offers as a client, it accepts what we answer, and understands the same by it."""
    wish = Deflate(
        server_no_context_takeover=server_nct,
        client_no_context_takeover=client_nct,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
    )
    theirs = ClientPerMessageDeflateFactory(their_server, their_client, their_bits, own_bits)
    codec, response = wish.accept(build_extension([(theirs.name, theirs.get_request_params())]))
    [(_, params)] = parse_extension(response)
    extension = theirs.process_response_params(params, [])
    assert codec.agreed == Agreement(
        extension.remote_no_context_takeover,
        extension.local_no_context_takeover,
        extension.remote_max_window_bits,
        codec.agreed.client_max_window_bits,
    )
    assert extension.local_max_window_bits <= codec.agreed.client_max_window_bits


@given(
    st.booleans(),
    st.booleans(),
    st.integers(9, 15),
    st.integers(9, 15),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(9, 15),
    st.none() | st.integers(9, 15),
)
def test_servers_of_others_understand_the_offer(
    server_nct, client_nct, server_bits, client_bits, their_server, their_client, their_bits, own_bits
):
    """Whatever websockets answers as a server to our offer, we accept, and understand the same by it."""
    wish = Deflate(
        server_no_context_takeover=server_nct,
        client_no_context_takeover=client_nct,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
    )
    [(_, params)] = parse_extension(wish.offer)
    theirs = ServerPerMessageDeflateFactory(their_server, their_client, their_bits, own_bits)
    answer, extension = theirs.process_request_params(params, [])
    agreed = wish.confirm(build_extension([(theirs.name, answer)])).agreed
    assert agreed.server_no_context_takeover is extension.local_no_context_takeover
    assert agreed.client_no_context_takeover >= extension.remote_no_context_takeover
    assert agreed.server_max_window_bits == extension.local_max_window_bits
    assert agreed.client_max_window_bits <= extension.remote_max_window_bits


def test_offers_of_a_client():
    """The defaults ask for no takeover; the server's window is bounded where it would be kept."""
    assert Deflate().offer == (
        f"{NAME}; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=12"
    )
    assert PLAIN.offer == f"{NAME}; client_max_window_bits"
    assert Deflate(**TAKEOVER).offer == f"{NAME}; server_max_window_bits=12; client_max_window_bits=12"


def test_a_server_without_compression():
    """No response, no compression, no fault."""
    assert Deflate().confirm(None) is None


@pytest.mark.parametrize(
    "wish,response",
    [
        (PLAIN, "foo"),
        (PLAIN, ""),
        (PLAIN, "permessage-deflate; ="),
        (PLAIN, f"{NAME}, {NAME}"),
        (PLAIN, f"{NAME}, foo"),
        (PLAIN, f"{NAME}; unknown"),
        (PLAIN, f"{NAME}; client_no_context_takeover=1"),
        (PLAIN, f"{NAME}; client_no_context_takeover; client_no_context_takeover"),
        (PLAIN, f"{NAME}; server_max_window_bits"),
        (PLAIN, f"{NAME}; server_max_window_bits=7"),
        (PLAIN, f"{NAME}; client_max_window_bits"),
        (PLAIN, f"{NAME}; client_max_window_bits=16"),
        (PLAIN, f"{NAME}; client_max_window_bits=\u0661"),
        (Deflate(), NAME),  # without the takeover that was to be
        (Deflate(), f"{NAME}; client_no_context_takeover"),
        (Deflate(**TAKEOVER), NAME),  # a larger window than we hold
        (Deflate(**TAKEOVER), f"{NAME}; server_max_window_bits=13"),
    ],
)
def test_a_response_that_does_not_fit_fails_the_connection(wish, response):
    """A client goes on with nothing that it did not offer (7.1)."""
    with pytest.raises(ProtocolError):
        wish.confirm(response)


@pytest.mark.parametrize(
    "wish,response,agreed",
    [
        (PLAIN, NAME, Agreement()),
        (PLAIN, f"{NAME}; {FLAGGED}", Agreement(True, True)),
        (PLAIN, f"{NAME}; server_max_window_bits=8", Agreement(server_max_window_bits=8)),
        (PLAIN, f"{NAME}; client_max_window_bits=10", Agreement(client_max_window_bits=10)),
        (Deflate(), f"{NAME}; server_no_context_takeover", Agreement(True, True, 15, 12)),
    ],
)
def test_a_response_that_fits(wish, response, agreed):
    """What the response leaves open holds as we promised it, or by default."""
    assert wish.confirm(response).agreed == agreed


def test_a_client_that_shall_use_the_smallest_window_sends_all_as_it_is():
    """Zlib cannot compress with 256 bytes; not compressing is always allowed (6)."""
    codec = PLAIN.confirm(f"{NAME}; client_max_window_bits=8")
    assert codec.private().deflate(b"x" * 10_000) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 0},
        {"level": 10},
        {"mem_level": 0},
        {"threshold": -1},
        {"server_max_window_bits": 8},
        {"client_max_window_bits": 16},
    ],
)
def test_settings_are_checked(settings):
    """What zlib would refuse later is refused at once."""
    with pytest.raises(ConfigurationError):
        Deflate(**settings)


def test_the_option():
    """True is the defaults, False and None are off; anything else is a mistake."""
    assert Deflate.of(True) == Deflate()
    assert Deflate.of(False) is Deflate.of(None) is None
    assert Deflate.of(PLAIN) is PLAIN
    with pytest.raises(ConfigurationError, match="not 'yes'"):
        Deflate.of("yes")


def test_the_repr_says_what_was_agreed_on():
    """A log line tells the parameters."""
    codec, _ = Deflate().accept(f"{NAME}; client_max_window_bits")
    assert repr(codec) == (
        "<Codec server_no_context_takeover client_no_context_takeover "
        "server_max_window_bits=12 client_max_window_bits=12>"
    )


def test_every_offer_is_answered_by_the_same_codec():
    """Connections that agreed on the same share what they agreed on, unless a window is kept."""
    first, _ = Deflate().accept(f"{NAME}; client_max_window_bits")
    second, _ = Deflate().accept(f"{NAME}; client_max_window_bits=12")
    assert first.private() is second.private() is first
    assert not first.keeps
    kept, _ = PLAIN.accept(NAME)
    assert kept.keeps
    assert kept.private() is not kept.private()


# --- receiving ----------------------------------------------------------------------------------------------


def codec(wish=PLAIN, offers=NAME):
    """The codec of a server's connection."""
    return wish.accept(offers)[0].private()


NO_TAKEOVER = f"{NAME}; {FLAGGED}"
BOTH = pytest.mark.parametrize("offers", [NAME, NO_TAKEOVER], ids=["takeover", "alone"])


class Receiver:
    """One connection's use of decoder and codec."""

    def __init__(self, own=None, **limits):
        self.decoder = MessageDecoder(**limits)
        self.codec = own or codec()
        self.partial = None
        self.fault = None

    def receive(self, data):
        """Return the events that `data` completes; after a fault, none."""
        out = []
        if self.fault is None:
            try:
                self.partial = self.decoder.decode(data, self.partial, out, self.codec)
            except ProtocolError as error:
                self.fault = error.code
        return out


def frame(opcode, payload=b"", *, fin=True, rsv=4):
    """A frame of a client, the first of a compressed message."""
    return encode_frame(opcode, payload, fin=fin, rsv=0 if opcode in (C, 8, 9, 10) else rsv, key=KEY)


def hexed(opcode, text, *, fin=True):
    """A frame of a client, with a payload as the RFC writes it."""
    return frame(opcode, bytes.fromhex(text), fin=fin)


EXAMPLES = {
    "one block (7.2.3.1)": (hexed(T, "f2 48 cd c9 c9 07 00"), ["Hello"]),
    "fragments (7.2.3.1)": (hexed(T, "f2 48 cd", fin=False) + hexed(C, "c9 c9 07 00"), ["Hello"]),
    "stored (7.2.3.3)": (hexed(T, "00 05 00 fa ff 48 65 6c 6c 6f 00"), ["Hello"]),
    "final block (7.2.3.4)": (hexed(T, "f3 48 cd c9 c9 07 00 00"), ["Hello"]),
    "two blocks (7.2.3.5)": (hexed(T, "f2 48 05 00 00 00 ff ff ca c9 c9 07 00"), ["Hello"]),
    "empty (7.2.3.6)": (hexed(B, "00"), [b""]),
    "empty, otherwise": (hexed(B, "02 00"), [b""]),
    "not a byte": (frame(T), [""]),
    "not a byte, in fragments": (frame(B, fin=False) + frame(C), [b""]),
    "final block at the end": (hexed(T, "f3 48 cd c9 c9 07 00"), ["Hello"]),
    "two final blocks": (hexed(T, "f3 48 cd c9 c9 07 00 f3 48 cd c9 c9 07 00 00"), ["HelloHello"]),
    "in its middle a Ping": (
        hexed(B, "f2 48", fin=False) + frame(9, b"?") + hexed(C, "cd", fin=False) + hexed(C, "c9 c9 07 00"),
        [Control(9, b"?"), b"Hello"],
    ),
    "between others": (
        frame(T, b"before", rsv=0) + hexed(T, "f2 48 cd c9 c9 07 00") + frame(T, b"aft", fin=False, rsv=0)
        + frame(C, b"er") + hexed(B, "f2 48 cd c9 c9 07 00"),
        ["before", "Hello", "after", b"Hello"],
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("feed", FEEDS)
def test_the_examples_of_the_rfc(name, feed, offers):
    """Each kind of block, whole and byte by byte; nothing is kept but a window, and the next message is right."""
    data, expected = EXAMPLES[name]
    receiver = Receiver(codec(PLAIN, offers))
    assert feed(receiver.receive, data) == expected
    assert receiver.fault is None
    assert receiver.partial is None
    assert receiver.receive(hexed(T, "f2 48 cd c9 c9 07 00")) == ["Hello"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cut_anywhere_changes_nothing(name):
    """Every way to cut the bytes in two yields the same events."""
    data, expected = EXAMPLES[name]
    for first, second in splits(data):
        receiver = Receiver()
        assert receiver.receive(first) + receiver.receive(second) == expected
        assert receiver.partial is None


def test_the_window_is_taken_over():
    """A message may refer to the one before it (7.2.3.2); without takeover that is an error."""
    data = hexed(T, "f2 48 cd c9 c9 07 00") + hexed(T, "f2 00 11 00 00")
    assert Receiver().receive(data) == ["Hello", "Hello"]
    receiver = Receiver(codec(PLAIN, NO_TAKEOVER))
    assert receiver.receive(data) == ["Hello"]
    assert receiver.fault == 1007


def test_a_client_receives_too():
    """The frames of a server are not masked, and inflated alike."""
    receiver = Receiver(PLAIN.confirm(NAME).private(), masked=False)
    data = encode_frame(T, bytes.fromhex("f2 48 cd c9 c9 07 00"), rsv=4)
    assert receiver.receive(data + encode_frame(T, bytes.fromhex("f2 00 11 00 00"), rsv=4)) == ["Hello"] * 2


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(9, b"", rsv=4, key=KEY),
        encode_frame(10, b"", rsv=4, key=KEY),
        encode_frame(8, b"", rsv=4, key=KEY),
        hexed(T, "f2 48", fin=False) + encode_frame(C, b"", rsv=4, key=KEY),
        frame(T, b"x", fin=False, rsv=0) + encode_frame(C, b"", rsv=4, key=KEY),
        encode_frame(T, b"", rsv=2, key=KEY),
        encode_frame(T, b"", rsv=1, key=KEY),
        encode_frame(B, b"", rsv=5, key=KEY),
        encode_frame(3, b"", rsv=4, key=KEY),
        hexed(T, "f2 48", fin=False) + hexed(T, "f2 48 cd c9 c9 07 00"),
    ],
)
def test_rsv1_belongs_to_the_first_frame_of_a_message(data):
    """On control frames and continuations it is an error, and so are the other two bits (6)."""
    receiver = Receiver()
    assert receiver.receive(data) == []
    assert receiver.fault == 1002


def test_rsv1_without_an_agreement():
    """Nobody agreed on what it means: 1002 (RFC 6455, 5.2)."""
    with pytest.raises(ProtocolError, match="reserved bits") as info:
        MessageDecoder().decode(hexed(T, "f2 48 cd c9 c9 07 00"), None, [])
    assert info.value.code == 1002


@BOTH
@pytest.mark.parametrize(
    "payload", [b"\xff", b"\x07\x00", b"\x01\x05\x00\x00\x00hello", b"\xf2\x48\xcd\xff\xff"]
)
def test_what_is_not_deflate(payload, offers):
    """Bytes that no compressor makes fail the connection with 1007."""
    receiver = Receiver(codec(PLAIN, offers))
    receiver.receive(frame(B, payload) + frame(B, payload))
    assert receiver.fault == 1007


def test_half_a_message():
    """Without takeover a message that stops within a block is noticed, wherever it is cut."""
    payload = codec(PLAIN, NO_TAKEOVER).deflate(b"a text that is compressed, " * 30)
    for size in range(1, len(payload) - 1):
        receiver = Receiver(codec(PLAIN, NO_TAKEOVER))
        assert receiver.receive(frame(B, payload[:size])) == []
        assert receiver.fault == 1007


def pack(data, level=6):
    """What a peer with zlib makes of a message."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_text_is_checked_inflated():
    """Invalid UTF-8 fails the connection as soon as it is inflated, in the middle of the message."""
    for text, good in ((b"\xce\xba\xed\xa0\x80" + b"x" * 200, False), ("κόσμε".encode() * 30, True)):
        receiver = Receiver()
        assert receiver.receive(frame(T, pack(text))) == ([text.decode()] if good else [])
        assert receiver.fault == (None if good else 1007)
    receiver = Receiver()
    receiver.receive(encode_frame(T, pack(b"\xff" * 1000), rsv=4, fin=False, key=KEY))
    assert receiver.fault == 1007


@BOTH
@pytest.mark.parametrize("feed", FEEDS)
def test_the_limit_is_exact(feed, offers):
    """A message of `max_message` bytes passes, of one byte more it does not."""
    for data in (bytes(999), bytes(range(256)) * 8):
        for limit, fault in ((len(data), None), (len(data) - 1, 1009)):
            receiver = Receiver(codec(PLAIN, offers), max_message=limit)
            assert feed(receiver.receive, frame(B, pack(data))) == ([] if fault else [data])
            assert receiver.fault == fault


@BOTH
def test_a_bomb_is_stopped_while_it_is_inflated(offers):
    """32 KB that would become 32 MB cost no more memory than the limit, and are refused with 1009."""
    bomb = frame(B, pack(bytes(2**25)))
    assert len(bomb) < 2**16
    receiver = Receiver(codec(PLAIN, offers), max_message=2**16)
    tracemalloc.start()
    try:
        assert receiver.receive(bomb) == []
        assert tracemalloc.get_traced_memory()[1] < 6 * 2**16
    finally:
        tracemalloc.stop()
    assert receiver.fault == 1009


def test_a_bomb_in_fragments():
    """The limit is that of the message, not of its frames."""
    payload = pack(bytes(2**22))
    receiver = Receiver(max_message=2**16)
    receiver.receive(frame(B, payload[:10], fin=False))
    for at in range(10, len(payload), 10):
        receiver.receive(frame(C, payload[at : at + 10], fin=False))
    assert receiver.fault == 1009


def test_nothing_expands_more():
    """`EXPANSION` is the most that becomes of a byte."""
    size = 2**24
    assert size / EXPANSION < len(pack(bytes(size), 9)) < 1.01 * size / EXPANSION + 64


@pytest.mark.parametrize("mem_level", [1, 8])
def test_no_sensible_frame_is_too_long(mem_level):
    """What cannot be compressed fits in `frame_bound`, whatever the sender's zlib does about it."""
    noise = bytes((i * i * 31 + i // 7 * 193) & 0xFF for i in range(70_000))
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY):
        for level in (0, 1, 9):
            stream = zlib.compressobj(level, zlib.DEFLATED, -9, mem_level, strategy)
            payload = stream.compress(noise) + stream.flush(zlib.Z_SYNC_FLUSH)
            assert len(payload) <= frame_bound(len(noise))


def test_frames_are_limited_as_they_are_on_the_wire():
    """`max_frame` is about wire bytes, compressed or not."""
    payload = pack(bytes(5000))
    assert Receiver(max_frame=len(payload)).receive(frame(B, payload)) == [bytes(5000)]
    receiver = Receiver(max_frame=len(payload) - 1)
    receiver.receive(frame(B, payload))
    assert receiver.fault == 1009


def test_a_flood_of_final_blocks():
    """Each begins a stream of its own; their number does not make the work grow faster than the bytes."""
    receiver = Receiver(max_message=100)
    assert receiver.receive(frame(B, b"\x03\x00" * 20_000 + b"\x00")) == [b""]


def test_a_message_in_pieces():
    """With `chunks` the pieces are inflated as they come, text never cut within a character; the last says so."""
    text = "".join(chr(0x3B1 + (i * i + i * i * i // 7) % 25) for i in range(5000))
    payload = pack(text.encode())
    receiver = Receiver(chunks=True)
    events = [e for at in range(0, len(payload), 50) for e in receiver.receive(frame(
        C if at else T, payload[at : at + 50], fin=at + 50 >= len(payload)))]  # fmt: skip
    assert all(isinstance(event, Chunk) for event in events)
    assert [event.last for event in events] == [False] * (len(events) - 1) + [True]
    assert "".join(event.data for event in events) == text
    assert len(events) > 2
    receiver = Receiver(chunks=True, max_message=100)
    receiver.receive(frame(B, pack(bytes(200))))
    assert receiver.fault == 1009


def test_a_partial_message_cannot_be_given_back():
    """What was inflated cannot become the bytes it came from."""
    receiver = Receiver()
    receiver.receive(hexed(T, "f2 48 cd", fin=False))
    with pytest.raises(ValueError, match="inflated"):
        receiver.partial.encoded()


# --- sending ------------------------------------------------------------------------------------------------


def inflate(*payloads):
    """What a peer with zlib makes of messages that follow one another."""
    stream = zlib.decompressobj(-15)
    return [stream.decompress(payload + b"\0\0\xff\xff") for payload in payloads]


TEXT = b"a text that is compressed, " * 40


def test_messages_stand_for_themselves():
    """Without takeover the same message is the same bytes each time."""
    own = codec(PLAIN, NO_TAKEOVER)
    payload = own.deflate(TEXT)
    assert own.deflate(TEXT) == payload
    assert inflate(payload) == [TEXT]
    assert not own.ordered


def test_messages_refer_to_those_before():
    """With takeover the second is much shorter."""
    own = codec(PLAIN)
    first, second = own.deflate(TEXT), own.deflate(TEXT)
    assert len(second) < len(first) / 2
    assert inflate(first, second) == [TEXT, TEXT]
    assert own.ordered


def test_takeover_in_one_direction():
    """Each direction has its own rule, seen from either role."""
    own = codec(PLAIN, f"{NAME}; server_no_context_takeover")
    assert own.keeps
    assert not own.ordered
    assert own.deflate(TEXT) == own.deflate(TEXT)
    assert own.begin() is own.begin()
    own = codec(PLAIN, f"{NAME}; client_no_context_takeover")
    assert own.ordered
    assert own.begin() is not own.begin()
    own = PLAIN.confirm(f"{NAME}; client_no_context_takeover").private()
    assert not own.ordered
    assert own.begin() is own.begin()


def test_after_a_failure_it_begins_anew(monkeypatch):
    """A compressor that failed may have eaten half a message; nothing refers to that one."""
    own = codec(PLAIN)
    first = own.deflate(TEXT)
    with pytest.raises(TypeError):
        own.deflate("x" * 1000)
    second = own.deflate(TEXT)
    assert inflate(first, second) == [TEXT, TEXT]
    assert len(second) == len(first)


@BOTH
def test_a_message_piece_by_piece(offers):
    """The peer has each piece when its frame has come; the message ends like any other."""
    own = codec(PLAIN, offers)
    stream = zlib.decompressobj(-15)
    for _ in range(2):
        packer = own.packer()
        for piece in (b"one ", TEXT, b"", TEXT, b"last"):
            assert stream.decompress(packer.pack(piece)) == piece
        assert stream.decompress(packer.end() + b"\0\0\xff\xff") == b""
        assert stream.decompress(own.deflate(TEXT) + b"\0\0\xff\xff") == TEXT
    assert own.packer().end() == b"\0"


def test_a_message_that_is_broken_off():
    """Nothing refers to what was not sent: the next begins anew."""
    own = codec()
    first = own.deflate(TEXT)
    own.packer().pack(b"lost " * 100)
    assert inflate(first, own.deflate(TEXT)) == [TEXT, TEXT]


@BOTH
def test_short_messages_go_as_they_are(offers):
    """Below the threshold, and empty, nothing is compressed."""
    own = codec(Deflate(**TAKEOVER, threshold=100), offers)
    assert own.deflate(b"x" * 99) is None
    assert own.deflate(b"x" * 100) is not None
    own = codec(Deflate(**TAKEOVER, threshold=0), offers)
    assert own.deflate(b"") is None
    assert inflate(own.deflate(b"x" * 9)) == [b"x" * 9]


def test_what_does_not_become_shorter_goes_as_it_is():
    """Noise is sent uncompressed, unless the peer's window needs it."""
    noise = zlib.compress(bytes(range(256)) * 100, 9)
    noise = b"".join(bytes([(i * 7919 >> 3) & 0xFF]) for i in range(600))[:600] + noise
    noise = bytes((a * 167 + i * i * 13 + (i >> 3)) & 0xFF for i, a in enumerate(noise))
    assert codec(PLAIN, NO_TAKEOVER).deflate(noise) is None
    assert inflate(codec(PLAIN).deflate(noise)) == [noise]


def test_a_window_is_made_with_the_first_message():
    """An agreement with takeover costs a few words until a message is compressed or inflated."""
    codec().deflate(TEXT)
    tracemalloc.start()
    try:
        own = codec()
        before = tracemalloc.get_traced_memory()[0]
        assert before < 2000
        assert own.deflate(TEXT)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", range(9, 16))
def test_large_messages_by_isal(bits, monkeypatch):
    """With isal installed large messages go through it, within the window agreed on; inflating stays with zlib."""
    isal_zlib = pytest.importorskip("isal.isal_zlib")
    monkeypatch.setattr(deflate, "_fast", isal_zlib)
    text = b"".join(b"%d, %d; " % (i, i * i) for i in range(10_000))
    payload = Deflate(server_max_window_bits=bits).accept(NO_TAKEOVER)[0].deflate(text)
    assert zlib.decompressobj(-bits).decompress(payload + b"\0\0\xff\xff") == text
    assert len(payload) < len(text) / 2


# --- round trips --------------------------------------------------------------------------------------------

WORDS = st.sampled_from([b"", b"the ", b"quick ", b"brown fox", "κόσμε".encode(), bytes(300), b"{}" * 700])
MESSAGES = st.lists(st.lists(WORDS, max_size=12).map(b"".join) | st.binary(max_size=300), max_size=6)
PARAMETERS = st.builds(
    Deflate,
    level=st.integers(1, 9),
    threshold=st.sampled_from([0, 20, 500]),
    server_no_context_takeover=st.booleans(),
    client_no_context_takeover=st.booleans(),
    server_max_window_bits=st.integers(9, 15),
    client_max_window_bits=st.integers(9, 15),
    mem_level=st.integers(1, 9),
)


def fragments(data, payload, *, rsv, key):
    """The frames of a binary message, cut where `data` says."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    return b"".join(
        encode_frame(
            C if n else B, piece, fin=n == len(pieces) - 1, rsv=0 if n else rsv, key=key
        )
        for n, piece in enumerate(pieces)
    )  # fmt: skip


@given(st.data(), MESSAGES, PARAMETERS, PARAMETERS, st.booleans())
def test_what_one_sends_the_other_receives(data, messages, server, client, to_server):
    """Any messages, any parameters, any fragments and any chunks of bytes, in both directions."""
    ours, response = server.accept(client.offer)
    try:
        theirs = client.confirm(response)
    except ProtocolError:  # the two do not get on
        assert client.server_no_context_takeover
        return
    sender, receiver = (theirs, ours) if to_server else (ours, theirs)
    sender = sender.private()
    stream = Receiver(receiver.private(), masked=to_server)
    found = []
    key = KEY if to_server else None
    for message in messages:
        if data.draw(st.booleans()):
            cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=4)))
            pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True)]
            packer, wire = sender.packer(), b""
            for n, piece in enumerate(pieces):
                wire += encode_frame(C if n else B, packer.pack(piece), fin=False, rsv=0 if n else 4, key=key)
            wire += encode_frame(C, packer.end(), key=key)
        else:
            payload = sender.deflate(message)
            rsv, payload = (0, message) if payload is None else (4, payload)
            wire = fragments(data, payload, rsv=rsv, key=key)
        step = data.draw(st.integers(1, len(wire)))
        for at in range(0, len(wire), step):
            found += stream.receive(wire[at : at + step])
    assert stream.fault is None
    assert found == messages
    assert stream.partial is None


@given(MESSAGES, st.booleans(), st.integers(9, 15), st.data())
def test_what_websockets_sends_and_receives(messages, alone, bits, data):
    """Another implementation understands us, and we it; it flushes at each fragment."""
    theirs = PerMessageDeflate(alone, alone, bits, bits)
    wish = Deflate(**dict.fromkeys(TAKEOVER, alone), **dict.fromkeys(WIDE, bits), threshold=0)
    own = wish.accept(f"{NAME}; client_max_window_bits")[0].private()
    receiver = Receiver(own)
    for message in messages:
        if not message:
            continue  # it has an assertion of its own about empty messages that follow others
        cut = data.draw(st.integers(1, len(message)))
        pieces = [(TheirOpcode.BINARY, message[:cut])]
        if cut < len(message):
            pieces.append((TheirOpcode.CONT, message[cut:]))
        wire = b""
        for n, (opcode, piece) in enumerate(pieces):
            sent = theirs.encode(Frame(opcode, piece, n == len(pieces) - 1))
            wire += encode_frame(int(opcode), bytes(sent.data), fin=sent.fin, rsv=sent.rsv1 << 2, key=KEY)
        assert receiver.receive(wire) == [message]
        payload = own.deflate(message)
        if payload is not None:
            got = theirs.decode(Frame(TheirOpcode.BINARY, payload, fin=True, rsv1=True))
            assert bytes(got.data) == message


# Pieces of streams: whole messages, final blocks, stored blocks, beginnings and ends, long runs.
BLOCKS = [
    *map(
        bytes.fromhex,
        ("f248cdc9c90700", "f348cdc9c90700", "00", "0300", "0200", "000500faff48656c6c6f", "f2", "ff"),
    ),
    zlib.compress(bytes(990), wbits=-15),
    zlib.compress(bytes(5000), wbits=-15)[:9],
]


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from(BLOCKS), max_size=5).map(b"".join),
    st.integers(1, 50),
    st.booleans(),
)
def test_any_bytes_are_inflated_or_refused(payload, step, chunks):
    """Garbage raises nothing but a `ProtocolError`, yields no more than the limit, and the same however it comes."""
    receiver = Receiver(codec(PLAIN, NO_TAKEOVER), max_message=1000, chunks=chunks)
    wire = frame(B, payload)
    found = [event for at in range(0, len(wire), step) for event in receiver.receive(wire[at : at + step])]
    assert receiver.fault in {None, 1007, 1009}
    assert sum(len(event.data if chunks else event) for event in found) <= 1000
    if not chunks:
        at_once = Receiver(codec(PLAIN, NO_TAKEOVER), max_message=1000)
        assert at_once.receive(wire) == found
        # What is too long and broken too is one or the other, as it comes.
        assert (at_once.fault is None) is (receiver.fault is None)


def test_the_size_of_an_agreement():
    """What each connection with takeover has beside its windows is two words more than what all share."""
    assert sys.getsizeof(codec()) <= sys.getsizeof(codec(PLAIN, NO_TAKEOVER)) + 16
