"""From bytes to messages: whole, byte by byte, cut anywhere, with more behind; against another implementation."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trionet.errors import ProtocolError
from trionet.testing import FEEDS, bytewise, splits, whole
from trionet.wire.closing import parse_close
from trionet.wire.frames import Opcode, encode_frame
from trionet.wire.messages import Chunk, Control, MessageDecoder

KEY = b"\x37\xfa\x21\x3d"
HELLO = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"  # RFC 6455, 5.7
T, B, C = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE


def frame(opcode, payload=b"", **options):
    """A frame of a client."""
    return encode_frame(opcode, payload, key=KEY, **options)


def part(opcode, payload=b""):
    """A fragment after which more follows."""
    return frame(opcode, payload, fin=False)


class Receiver:
    """One connection's use of a decoder: bytes in, events out, the fault kept."""

    def __init__(self, decoder=None):
        self.decoder = decoder or MessageDecoder()
        self.partial = None
        self.fault = None

    def receive(self, data):
        """Return the events that `data` completes; after a fault, none."""
        out = []
        if self.fault is None:
            try:
                self.partial = self.decoder.decode(data, self.partial, out)
            except ProtocolError as error:
                self.fault = error.code
        return out


ARRIVALS = {
    "hello": (HELLO, ["Hello"]),
    "empty text": (frame(T), [""]),
    "empty binary": (frame(B), [b""]),
    "125": (frame(B, bytes(125)), [bytes(125)]),
    "126": (frame(B, bytes(126)), [bytes(126)]),
    "300": (frame(T, b"x" * 300), ["x" * 300]),
    "two": (HELLO + frame(B, b"\x00\xff"), ["Hello", b"\x00\xff"]),
    "characters": (frame(T, "κόσμε 🎉".encode()), ["κόσμε 🎉"]),
    "fragments": (part(T, b"Hel") + frame(C, b"lo"), ["Hello"]),
    "empty fragments": (part(T) + part(C) + frame(C), [""]),
    "cut in a character": (part(T, b"\xf0\x9f") + part(C, b"\x8e") + frame(C, b"\x89"), ["🎉"]),
    "control": (
        frame(PING, b"1") + frame(PONG) + frame(CLOSE, b"\x03\xe8"),
        [Control(PING, b"1"), Control(PONG, b""), Control(CLOSE, b"\x03\xe8")],
    ),
    "control between fragments": (
        part(B, b"a") + frame(PING, b"x" * 125) + part(C, b"b") + frame(PONG, b"y") + frame(C, b"c") + HELLO,
        [Control(PING, b"x" * 125), Control(PONG, b"y"), b"abc", "Hello"],
    ),
}


@pytest.mark.parametrize("name", ARRIVALS)
@pytest.mark.parametrize("feed", FEEDS)
def test_events_do_not_depend_on_how_bytes_arrive(name, feed):
    """Whole or byte by byte, the same events come, and nothing is kept behind the last of them."""
    data, expected = ARRIVALS[name]
    receiver = Receiver()
    assert feed(receiver.receive, data) == expected
    assert receiver.fault is None
    assert receiver.partial is None


@pytest.mark.parametrize("name", ARRIVALS)
def test_a_cut_anywhere_changes_nothing(name):
    """Every way to cut the bytes in two yields the same events."""
    data, expected = ARRIVALS[name]
    for first, second in splits(data):
        receiver = Receiver()
        assert receiver.receive(first) + receiver.receive(second) == expected
        assert receiver.partial is None


@pytest.mark.parametrize("name", ARRIVALS)
def test_trailing_bytes_are_kept_for_the_next_read(name):
    """The beginning of another frame behind the last one is held, and only that."""
    data, expected = ARRIVALS[name]
    if isinstance(expected[-1], Control) and expected[-1].opcode == CLOSE:
        data, expected = data[: -len(frame(CLOSE, expected[-1].payload))], expected[:-1]
    for size in range(1, len(HELLO)):
        receiver = Receiver()
        assert receiver.receive(data + HELLO[:size]) == expected
        assert receiver.partial.held() <= size
        assert receiver.receive(HELLO[size:]) == ["Hello"]
        assert receiver.partial is None


@pytest.mark.parametrize("size", [65535, 65536, 70_000])
def test_long_messages(size):
    """The 64-bit length works, in pieces of any size."""
    data = frame(B, bytes(size))
    for step in (1448, 65536, len(data)):
        receiver = Receiver()
        found = [
            event for at in range(0, len(data), step) for event in receiver.receive(data[at : at + step])
        ]
        assert found == [bytes(size)]
        assert receiver.partial is None


def test_a_client_reads_unmasked_frames():
    """`masked=False` reads what servers send, and refuses what clients send."""
    receiver = Receiver(MessageDecoder(masked=False))
    data = encode_frame(T, b"hi") + encode_frame(PING, b"p") + encode_frame(B, bytes(70_000))
    assert receiver.receive(data) == ["hi", Control(PING, b"p"), bytes(70_000)]
    receiver.receive(HELLO)
    assert receiver.fault == 1002


# --------------------------------------------------------------------- faults

FAULTS = {
    "rsv": (b"\xc1\x80", 1002),
    "opcode": (b"\x83\x80", 1002),
    "unmasked": (b"\x81\x05", 1002),
    "orphan": (b"\x80\x80", 1002),
    "text in text": (part(T) + b"\x81\x80", 1002),
    "fragmented ping": (b"\x09\x80", 1002),
    "long ping": (b"\x89\xfe", 1002),
    "16 bits for 125": (b"\x82\xfe\x00\x7d", 1002),
    "64 bits for 65535": (b"\x82\xff" + (65535).to_bytes(8, "big"), 1002),
    "64th bit": (b"\x82\xff" + (2**63).to_bytes(8, "big"), 1002),
    "not utf-8": (frame(T, b"a\xff"), 1007),
    "latin-1 in a fragment": (part(T, b"caf\xe9 "), 1007),
    "cut short": (frame(T, b"caf\xc3"), 1007),
    "fragments cut short": (part(T, b"caf") + frame(C, b"\xc3"), 1007),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("feed", [whole, bytewise])
def test_faults_come_after_what_was_good(name, feed):
    """A broken rule costs its connection, with the RFC's code, and no message that came before it."""
    data, code = FAULTS[name]
    receiver = Receiver()
    assert feed(receiver.receive, HELLO + frame(PING, b"p") + data) == ["Hello", Control(PING, b"p")]
    assert receiver.fault == code


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name][1] == 1002])
def test_a_broken_header_is_refused_at_the_byte_that_breaks_it(name):
    """Two bytes, or the length, suffice: nothing of the payload is waited for."""
    data, code = FAULTS[name]
    receiver = Receiver()
    for i in range(len(data)):
        assert receiver.fault is None
        receiver.receive(data[i : i + 1])
    assert receiver.fault == code


# bytes, and the index of the first one after which no continuation can be UTF-8 (Unicode, table 3-7)
UTF8 = [
    (b"\x80", 0),
    (b"ab\xff", 2),
    (b"\xc0\xaf", 0),  # overlong
    (b"\xc1\xbf", 0),
    (b"\xe0\x80\x80", 1),
    (b"\xe0\x9f\xbf", 1),
    (b"\xf0\x80\x80\x80", 1),
    (b"\xf0\x8f\xbf\xbf", 1),
    (b"\xed\xa0\x80", 1),  # D800, a surrogate
    (b"\xed\xbf\xbf", 1),  # DFFF
    (b"\xf4\x90\x80\x80", 1),  # 110000
    (b"\xf5\x80\x80\x80", 0),
    (b"\xf8\x88\x80\x80\x80", 0),
    (b"\xc3(", 1),
    (b"\xe2\x82(", 2),
    (b"\xf0\x9f\x8e(", 3),
    ("κόσμε".encode() + b"\xed\xa0\x80edited", 11),
]


@pytest.mark.parametrize("text,at", UTF8)
@pytest.mark.parametrize("chunks", [False, True])
def test_text_fails_at_the_exact_byte(text, at, chunks):
    """Invalid UTF-8 is refused as soon as it is certain, in the middle of a frame (8.1)."""
    data = frame(T, text + b"more than a hundred bytes follow" * 4)
    header = len(data) - len(text) - 128
    for fed in (at, at + 1):
        receiver = Receiver(MessageDecoder(chunks=chunks))
        bytewise(receiver.receive, data[: header + fed])
        assert receiver.fault == (1007 if fed > at else None)
        receiver = Receiver(MessageDecoder(chunks=chunks))
        whole(receiver.receive, data[: header + fed])
        assert receiver.fault == (1007 if fed > at else None)


@pytest.mark.parametrize("text,at", UTF8)
def test_text_fails_at_the_exact_byte_of_a_fragment(text, at):
    """A character may be cut by fragments, and is judged as if it were not."""
    receiver = Receiver()
    receiver.receive(part(T, b"ok"))
    for i in range(len(text)):
        assert receiver.fault is None
        receiver.receive(part(C, text[i : i + 1]))
        if i == at:
            break
    assert receiver.fault == 1007


@pytest.mark.parametrize(
    "last", ["\ud7ff", "\ue000", "\uffff", "\U0010ffff", "\x7f", "\x80", "\u07ff", "\u0800"]
)
def test_the_borders_of_unicode_are_text(last):
    """The code points next to what is forbidden pass, byte by byte."""
    receiver = Receiver()
    assert bytewise(receiver.receive, frame(T, last.encode())) == [last]


# --------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "decoder,data",
    [
        (MessageDecoder(max_message=125), b"\x82\xfe\x00\x7e"),
        (MessageDecoder(max_message=2**20), b"\x82\xff" + (2**20 + 1).to_bytes(8, "big")),
        (MessageDecoder(max_message=2**20), b"\x81\xff" + (2**63 - 1).to_bytes(8, "big")),
        (MessageDecoder(max_message=100, max_frame=10), b"\x82\x8b"),
        (MessageDecoder(max_message=100, max_frame=10, chunks=True), b"\x82\x8b"),
        (MessageDecoder(max_message=5), part(B, b"123") + b"\x80\x83"),
        (MessageDecoder(max_message=5, chunks=True), part(B, b"123") + b"\x80\x83"),
    ],
)
@pytest.mark.measured
def test_too_much_is_refused_when_it_is_declared(decoder, data):
    """1009 comes with the header, before a byte of payload, and nothing is allocated for what was declared."""
    tracemalloc.start()
    try:
        receiver = Receiver(decoder)
        receiver.receive(data + KEY)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
    assert receiver.fault == 1009


def test_limits_are_inclusive_and_count_each_message_anew():
    """Exactly `max_message` bytes pass, whole or in fragments, again and again."""
    receiver = Receiver(MessageDecoder(max_message=6, max_frame=6))
    message = frame(B, b"123456") + part(B, b"123") + frame(C, b"456")
    assert receiver.receive(message * 3) == [b"123456"] * 6
    assert receiver.fault is None


def test_a_declared_length_costs_nothing():
    """A peer that announces a megabyte and sends ten bytes makes us hold ten bytes."""
    receiver = Receiver()
    tracemalloc.start()
    try:
        assert receiver.receive(frame(B, bytes(2**20))[:24]) == []
        assert receiver.partial.held() == 10
        assert tracemalloc.get_traced_memory()[0] < 5_000
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------- chunks


def test_chunks_come_as_they_arrive():
    """With `chunks` each piece is delivered at once, text cut between characters, and nothing is collected."""
    receiver = Receiver(MessageDecoder(chunks=True))
    data = frame(T, "héllo".encode())
    assert receiver.receive(data[:8]) == [Chunk("h", last=False)]  # the é is not whole yet
    assert receiver.receive(data[8:9]) == [Chunk("é", last=False)]
    assert receiver.partial.held() == 0
    assert receiver.receive(data[9:]) == [Chunk("llo", last=True)]
    assert receiver.partial is None


def test_chunks_of_fragments_and_empty_messages():
    """The end of a message is always told, if need be with an empty chunk; a piece that is empty is not."""
    receiver = Receiver(MessageDecoder(chunks=True))
    data = part(B, b"ab") + part(C) + frame(PING) + frame(C) + frame(T) + frame(B) + part(T) + frame(C, b"x")
    assert receiver.receive(data) == [
        Chunk(b"ab", last=False),
        Control(PING, b""),
        Chunk(b"", last=True),
        Chunk("", last=True),
        Chunk(b"", last=True),
        Chunk("x", last=True),
    ]


@pytest.mark.parametrize("name", ARRIVALS)
@pytest.mark.parametrize("feed", FEEDS)
def test_chunks_join_to_the_messages(name, feed):
    """Joined, the chunks are the messages that come without `chunks`."""
    data, expected = ARRIVALS[name]
    joined, pieces = [], []
    for event in feed(Receiver(MessageDecoder(chunks=True)).receive, data):
        if isinstance(event, Control):
            joined.append(event)
            continue
        pieces.append(event.data)
        if event.last:
            joined.append(pieces[0][:0].join(pieces))
            pieces = []
    assert joined == expected
    assert not pieces


# ---------------------------------------------------------- another opinion

wsproto = pytest.importorskip("wsproto.frame_protocol")


def theirs(pieces):
    """What wsproto makes of the same bytes: events as ours, and the code of the fault."""
    protocol = wsproto.FrameProtocol(client=False, extensions=[])
    events, body, code = [], None, None
    try:
        for piece in pieces:
            protocol.receive_bytes(piece)
            for got in protocol.received_frames():
                if got.opcode is wsproto.Opcode.CLOSE:
                    events.append((CLOSE, got.payload[0], got.payload[1] or ""))
                elif got.opcode.iscontrol():
                    events.append((int(got.opcode), bytes(got.payload)))
                else:
                    payload = got.payload if isinstance(got.payload, str) else bytes(got.payload)
                    body = payload if body is None else body + payload
                    if got.message_finished:
                        events.append(body)
                        body = None
    except wsproto.ParseFailed as error:
        code = int(error.code)
    return events, code


def ours(pieces):
    """What we make of them, in the same form."""
    receiver = Receiver()
    events = []
    for piece in pieces:
        for event in receiver.receive(piece):
            if not isinstance(event, Control):
                events.append(event)
            elif event.opcode == CLOSE:
                try:
                    events.append((CLOSE, *parse_close(event.payload)))
                except ProtocolError as error:
                    return events, error.code
            else:
                events.append((event.opcode, event.payload))
    return events, receiver.fault


TEXTS = st.text(max_size=40).map(str.encode)
PAYLOADS = st.one_of(
    TEXTS, st.binary(max_size=40), st.sampled_from([case[0] for case in UTF8]), st.just(b"x" * 130)
)


@st.composite
def frames(draw):
    """A frame that is mostly right: opcode, fragments, and now and then a bit that is wrong."""
    opcode = draw(st.sampled_from([T, T, B, C, C, PING, PONG]))
    fin = draw(st.booleans()) or opcode >= 8
    payload = draw(PAYLOADS)[: 125 if opcode >= 8 else None]
    data = frame(opcode, payload, fin=fin)
    spoil = draw(st.integers(0, 40))
    if spoil == 0:
        return bytes([data[0] | draw(st.sampled_from([0x10, 0x40, 0x0B]))]) + data[1:]
    if spoil == 1:
        return encode_frame(opcode, payload, fin=fin)  # not masked
    if spoil == 2 and len(payload) < 126:
        return data[:1] + b"\xfe" + len(payload).to_bytes(2, "big") + data[2:]  # not minimal
    return data


CLOSES = st.one_of(
    st.just(b""),
    st.sampled_from(
        [b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x03", b"\x03\xe8\xff", b"\x0f\xa0", b"\x13\x88"]
    ),
).map(lambda payload: frame(CLOSE, payload))


@given(st.lists(frames(), max_size=8), st.none() | CLOSES, st.lists(st.integers(0, 400), max_size=4))
@example([part(T, b"\xed"), frame(C, b"\xa0")], None, [])
@settings(derandomize=True, max_examples=150)
def test_wsproto_agrees(sent, close, cuts):
    """Strict as wsproto: the same events, the same fault, for good and for broken frames, cut anywhere."""
    data = b"".join(sent) + (close or b"")
    cuts = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    assert ours(pieces) == theirs(pieces)


@given(st.binary(max_size=60))
@settings(derandomize=True, max_examples=150)
def test_any_bytes_end_in_events_or_a_protocol_error(data):
    """Noise never raises anything else, and what is held is never more than what came."""
    for decoder in (MessageDecoder(), MessageDecoder(chunks=True), MessageDecoder(masked=False)):
        receiver = Receiver(decoder)
        bytewise(receiver.receive, data)
        assert receiver.partial is None or receiver.partial.held() <= len(data)
