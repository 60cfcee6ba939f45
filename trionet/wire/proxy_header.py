"""The PROXY protocol, versions 1 and 2: what a proxy that passes bytes on says about the connection it passes on.

The header comes before anything else, TLS included. A listener either expects it or does not: there is no guessing,
for a client could send one just as well (proxy-protocol.txt of HAProxy, section 2 and 4).

    version 1   a line of at most 107 bytes: ``PROXY TCP4 192.0.2.7 198.51.100.1 56324 443``, or ``PROXY UNKNOWN``
    version 2   12 bytes of signature, version and command, family, length; addresses; then type-length-value records

`parse_proxy_header` looks at what has come so far and takes what belongs to the header, not a byte more.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache
from typing import Any, Final

import attrs

from trionet.errors import ProtocolError
from trionet.wire.addresses import read_address

__all__ = ["V1_MAX", "ProxyHeader", "parse_proxy_header"]

V1_MAX: Final = 107  # section 2.1: the longest line, of which 15 bytes are "PROXY UNKNOWN\r\n"

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1: Final = b"PROXY "
_LINE = re.compile(
    rb"PROXY (TCP[46]) ([0-9A-Fa-f.:]++) ([0-9A-Fa-f.:]++) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)

_STREAM: Final = 1
_INET, _INET6, _UNIX = 1, 2, 3
_SIZES: Final = {_INET: 12, _INET6: 36, _UNIX: 216}

_ALPN, _AUTHORITY, _CRC32C, _NOOP, _UNIQUE_ID, _SSL = 1, 2, 3, 4, 5, 0x20


@attrs.frozen
class ProxyHeader:
    """What a PROXY header says.

    `source` is the client, `destination` what it connected to: ``(host, port)``, or the path of a Unix socket; None
    when the header does not say (UNKNOWN, or a family that is not for streams) or does not speak of a client at all
    (`local`: the proxy connects for itself, to see whether we live). `tlvs` are the records of version 2 in order,
    ``(type, value)``. `size` is the length of the header in bytes.
    """

    version: int
    source: Any
    destination: Any
    local: bool = False
    tlvs: tuple[tuple[int, bytes], ...] = ()
    size: int = 0

    def tlv(self, kind: int) -> bytes | None:
        """The value of the first record of this type; None without one."""
        return next((value for number, value in self.tlvs if number == kind), None)

    @property
    def authority(self) -> str | None:
        """The host name the client asked for, as in SNI; None when not told."""
        value = self.tlv(_AUTHORITY)
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def alpn(self) -> str | None:
        """The protocol that client and proxy agreed on in TLS."""
        value = self.tlv(_ALPN)
        return None if value is None else value.decode("ascii", "replace")

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's number for this connection, at most 128 bytes; opaque."""
        return self.tlv(_UNIQUE_ID)

    @property
    def secure(self) -> bool | None:
        """Whether the client speaks TLS with the proxy; None when not told (2.2.5: the first bit of `client`)."""
        value = self.tlv(_SSL)
        return None if not value else bool(value[0] & 1)


def parse_proxy_header(data: bytes, limit: int = 2048) -> ProxyHeader | None:
    """Return the header that `data` begins with; None while it is not whole, and then all of `data` belongs to it.

    Raises `ProtocolError` as soon as `data` cannot become one, or one of more than `limit` bytes.
    """
    if data[:1] == b"P":
        return _parse_v1(data)
    if data[:12] == _SIGNATURE[: len(data)]:
        return _parse_v2(data, limit) if len(data) >= 16 else None
    raise ProtocolError("no PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    if data[:6] != _V1[: len(data)]:
        raise ProtocolError("no PROXY header")
    end = data.find(b"\n", 0, V1_MAX) + 1
    if not end:
        if len(data) >= V1_MAX:
            raise ProtocolError(f"a PROXY line of more than {V1_MAX} bytes")
        return None
    line = data[:end]
    if line == b"PROXY UNKNOWN\r\n" or (line.startswith(b"PROXY UNKNOWN ") and line.endswith(b"\r\n")):
        return ProxyHeader(1, None, None, size=end)  # what follows the word must be ignored
    match = _LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("not a PROXY line")
    family, source, destination, source_port, destination_port = match.groups()
    return ProxyHeader(
        1,
        _read_address(family, source, source_port),
        _read_address(family, destination, destination_port),
        size=end,
    )


def _read_address(family: bytes, host: bytes, port: bytes) -> tuple[str, int]:
    # A proxy that got one address of each family writes both as IPv6.
    address = read_address(host.decode()) if (b":" in host) == (family == b"TCP6") else None
    number = int(port)
    if address is None or number > 65535:
        raise ProtocolError("an address in the PROXY line is none")
    return str(address), number


def _parse_v2(data: bytes, limit: int) -> ProxyHeader | None:
    version, command = data[12] >> 4, data[12] & 15
    family, transport = data[13] >> 4, data[13] & 15
    if version != 2 or command > 1 or family > _UNIX or transport > 2:
        raise ProtocolError(
            "a PROXY header with an unknown version, command or family"
        )  # 2.2: must be dropped
    size = 16 + int.from_bytes(data[14:16], "big")
    if size > limit:
        raise ProtocolError(f"a PROXY header of more than {limit} bytes")
    if len(data) < size:
        return None
    if command == 0:
        return ProxyHeader(2, None, None, local=True, size=size)  # whatever follows must be ignored
    body = data[16:size]
    length = _SIZES.get(family, 0)
    if len(body) < length:
        raise ProtocolError("a PROXY header too short for its addresses")
    source = destination = None
    if transport == _STREAM and length:
        source, destination = _unpack_addresses(family, body[:length])
    tlvs = _read_tlvs(body[length:]) if family else ()
    checksum = next((value for kind, value in tlvs if kind == _CRC32C), None)
    if checksum is not None:
        _verify(data[:size], checksum)
    return ProxyHeader(2, source, destination, tlvs=tlvs, size=size)


def _unpack_addresses(family: int, block: bytes) -> tuple[Any, Any]:
    if family == _UNIX:
        # A path ends at its first NUL; an abstract name begins with one (unix(7)) and is kept as far as it goes.
        paths = [block[start : start + 108] for start in (0, 108)]
        source, destination = (
            path[:1].decode() + path[1:].partition(b"\0")[0].decode("utf-8", "surrogateescape")
            for path in paths
        )
        return source.rstrip("\0") or None, destination.rstrip("\0") or None
    width = 4 if family == _INET else 16
    hosts = [_host(block[start : start + width]) for start in (0, width)]
    ports = [int.from_bytes(block[start : start + 2], "big") for start in (2 * width, 2 * width + 2)]
    return (hosts[0], ports[0]), (hosts[1], ports[1])


def _host(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)


def _read_tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found = []
    at = 0
    while at < len(data):
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        if at + 3 > len(data) or end > len(data):
            raise ProtocolError("a record in the PROXY header reaches beyond its end")
        if data[at] != _NOOP:  # padding
            found.append((data[at], data[at + 3 : end]))
        at = end
    return tuple(found)


def _verify(header: bytes, checksum: bytes) -> None:
    """Compare the CRC32c of the header, its own bytes taken as zeros (2.2.3)."""
    at = 16 + _SIZES[header[13] >> 4]
    while header[at] != _CRC32C:
        at += 3 + int.from_bytes(header[at + 1 : at + 3], "big")
    blank = header[: at + 3] + bytes(4) + header[at + 7 :]
    if len(checksum) != 4 or _crc32c(blank) != int.from_bytes(checksum, "big"):
        raise ProtocolError("the checksum of the PROXY header is wrong")


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    """The checksum of RFC 9260, appendix A."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF
