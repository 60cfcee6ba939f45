"""The PROXY header: taken whole or byte by byte, never a byte too much, refused as soon as it cannot be one."""

from __future__ import annotations

import ipaddress
import struct

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet.errors import ProtocolError
from trionet.wire.proxy_header import V1_MAX, ProxyHeader, parse_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(body: bytes = b"", command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    """Return the bytes of a header of version 2."""
    return (
        SIGNATURE
        + bytes((command, family))
        + struct.pack("!H", len(body) if length is None else length)
        + body
    )


INET = bytes((192, 0, 2, 7, 198, 51, 100, 1)) + struct.pack("!HH", 56324, 443)
INET6 = (
    ipaddress.ip_address("2001:db8::7").packed
    + ipaddress.ip_address("2001:db8::1").packed
    + b"\xdc\x04\x01\xbb"
)


def tlv(kind: int, value: bytes) -> bytes:
    """Return the bytes of a record."""
    return bytes((kind,)) + struct.pack("!H", len(value)) + value


def crc32c(data: bytes) -> int:
    """Return the checksum, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    return value ^ 0xFFFFFFFF


def checked(body: bytes, *, wrong: int = 0) -> bytes:
    """Return a header whose records end with its checksum."""
    blank = v2(INET + body + tlv(3, bytes(4)))
    return blank[:-4] + struct.pack("!I", crc32c(blank) ^ wrong)


FOUR = (("192.0.2.7", 56324), ("198.51.100.1", 443))
SIX = (("2001:db8::7", 56324), ("2001:db8::1", 443))
GOOD = {
    "TCP4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", *FOUR),
    "TCP6": (b"PROXY TCP6 2001:DB8:0:0::7 2001:db8::1 56324 443\r\n", *SIX),
    "TCP6 for IPv4": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 56324 443\r\n", *FOUR),
    "port 0": (b"PROXY TCP4 192.0.2.7 198.51.100.1 0 65535\r\n", ("192.0.2.7", 0), ("198.51.100.1", 65535)),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", None, None),
    "UNKNOWN and more": (b"PROXY UNKNOWN ffff:f...f:ffff 65535 what ever\r\n", None, None),
    "longest": (b"PROXY UNKNOWN " + b"x" * (V1_MAX - 16) + b"\r\n", None, None),
    "v2 IPv4": (v2(INET), *FOUR),
    "v2 IPv6": (v2(INET6, family=0x21), *SIX),
    "v2 IPv4 in IPv6": (
        v2(
            bytes(10) + b"\xff\xff\xc0\0\2\7" + bytes(10) + b"\xff\xff\xc6\x33\x64\1" + b"\xdc\x04\x01\xbb",
            family=0x21,
        ),
        *FOUR,
    ),
    "v2 Unix": (
        v2(b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0"), family=0x31),
        "/run/a",
        "/run/b",
    ),
    "v2 Unix, abstract": (v2(b"\0name".ljust(108, b"\0") + bytes(108), family=0x31), "\0name", None),
    "v2 unspecified": (v2(b"whatever", family=0), None, None),
    "v2 datagrams": (v2(INET, family=0x12), None, None),
    "v2 local": (v2(b"what is here is ignored", command=0x20), None, None),
    "v2 records": (v2(INET + tlv(2, b"a.example") + tlv(4, bytes(9)) + tlv(0xE0, b"")), *FOUR),
    "v2 checksum": (checked(tlv(5, b"id")), *FOUR),
}


@pytest.mark.parametrize("rest", [b"", b"\x16\x03\x01", b"PROXY "])
@pytest.mark.parametrize("name", GOOD)
def test_a_good_header(name, rest):
    """It says what it says, at every length of what came; what follows is not looked at."""
    data, source, destination = GOOD[name]
    for end in range(len(data)):
        assert parse_proxy_header(data[:end]) is None
    header = parse_proxy_header(data + rest)
    assert (header.source, header.destination, header.size) == (source, destination, len(data))
    assert header.version == 2 - data.startswith(b"PROXY")
    assert header.local == (name == "v2 local")


BAD = {
    "nothing of the kind": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "another word": b"PROXZ",
    "lower case": b"PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n",
    "bare LF": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
    "two spaces": b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n",
    "no ports": b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
    "a port too large": b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
    "a port with a zero": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "an address too large": b"PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
    "IPv6 as IPv4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "IPv4 as IPv6": b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
    "too long": b"PROXY UNKNOWN " + b"x" * (V1_MAX - 15) + b"\r\n",
    "endless": b"PROXY TCP4 " + b"1" * V1_MAX,
    "unknown glued": b"PROXY UNKNOWNER\r\n",
    "signature": SIGNATURE[:8] + b"X",
    "version 1 in version 2": v2(INET, command=0x11),
    "version 3": v2(INET, command=0x31),
    "unknown command": v2(INET, command=0x22),
    "unknown family": v2(INET, family=0x41),
    "unknown transport": v2(INET, family=0x13),
    "short addresses": v2(INET[:-1]),
    "too large": v2(b"", length=2033),
    "a cut record": v2(INET + b"\x02\x00"),
    "a record too long": v2(INET + b"\x02\x00\x02a"),
    "wrong checksum": checked(b"", wrong=1),
    "short checksum": v2(INET + tlv(3, b"abc")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header(name):
    """It is refused, whole or byte by byte, whatever follows."""
    data = BAD[name]
    with pytest.raises(ProtocolError):
        parse_proxy_header(data)
    with pytest.raises(ProtocolError):
        parse_proxy_header(data + b" and more\r\n")
    with pytest.raises(ProtocolError):
        [parse_proxy_header(data[:end]) for end in range(len(data) + 1)]


def test_records():
    """The records that have names are told by name; the others by number; padding is none."""
    ssl = b"\x01" + bytes(4) + tlv(0x21, b"TLSv1.3")
    data = v2(
        INET + tlv(1, b"h2") + tlv(2, b"\xc3\xa9.example") + tlv(4, b"pad") + tlv(5, b"\0id") + tlv(0x20, ssl)
    )
    header = parse_proxy_header(data)
    assert (header.alpn, header.authority, header.unique_id, header.secure) == (
        "h2",
        "é.example",
        b"\0id",
        True,
    )
    assert header.tlv(0x20) == ssl
    assert header.tlv(4) is None
    plain = parse_proxy_header(v2(INET + tlv(0x20, b"\x00" + bytes(4))))
    assert plain.secure is False
    nothing = parse_proxy_header(v2(INET))
    assert (nothing.alpn, nothing.authority, nothing.unique_id, nothing.secure) == (None,) * 4


def test_the_limit():
    """A header of just the limit is read; the length alone decides, before what it announces has come."""
    data = v2(INET + tlv(0xE0, bytes(300)))
    assert parse_proxy_header(data, len(data)).size == len(data)
    with pytest.raises(ProtocolError, match=f"more than {len(data) - 1} bytes"):
        parse_proxy_header(data[:16], len(data) - 1)


ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)).filter(
        lambda pair: not any(a.ipv4_mapped for a in pair)
    ),
)
PORTS = st.tuples(st.integers(0, 65535), st.integers(0, 65535))


@hypothesis.given(ADDRESSES, PORTS, st.booleans(), st.binary(max_size=20))
def test_round_trip(addresses, ports, binary, rest):
    """What a proxy writes is what is read, in either version."""
    source, destination = addresses
    version = source.version
    if binary:
        body = source.packed + destination.packed + struct.pack("!HH", *ports)
        data = v2(body, family=0x11 if version == 4 else 0x21)
    else:
        data = f"PROXY TCP{version} {source} {destination} {ports[0]} {ports[1]}\r\n".encode()
    header = parse_proxy_header(data + rest)
    assert header == ProxyHeader(
        1 + binary, (str(source), ports[0]), (str(destination), ports[1]), size=len(data)
    )


@hypothesis.given(
    st.sampled_from(
        [b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11", v2(INET, length=90)]
    ),
    st.binary(max_size=120),
)
def test_anything(start, rest):
    """Whatever comes is a header, may become one, or is refused: nothing else happens."""
    try:
        header = parse_proxy_header(start + rest)
    except ProtocolError:
        return
    if header is not None:
        assert header.size <= len(start + rest)
