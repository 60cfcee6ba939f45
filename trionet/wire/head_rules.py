"""What the lines of a well-formed request head mean: target, authority, body (RFC 9112, 3 and 6).

Pure functions from bytes to values; each raises the `Rejection` of `head.py`'s table that applies.
"""

from __future__ import annotations

import re

from trionet.wire.http1 import refuse
from trionet.wire.tokens import split_authority, split_list

__all__ = ["read_framing", "read_host", "read_request_line"]

# RFC 9110, 9.1 and RFC 5789. Others get 501 (RFC 9110, 15.6.2).
_METHODS = frozenset(b"GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH".split())

# Registered codings (RFC 9112, 7.2) that this server understands well enough to know they are no framing.
_CODINGS = frozenset(b"chunked compress deflate gzip identity x-compress x-gzip".split())

# 10 ** 18 bytes is an exabyte; more digits only test the reader's integers (RFC 9110, 8.6).
_LENGTH_DIGITS = 18

_ABSOLUTE = re.compile(rb"(?i:https?|wss?)://([^/?]*+)(.*+)")


def read_request_line(method: bytes, target: bytes, major: bytes) -> tuple[bytes | None, bytes]:
    """Return the authority that the target names, if any, and the target without it (RFC 9112, 3.2)."""
    if major != b"1":
        raise refuse(505, "Only HTTP/1.1 is spoken here; send the request as HTTP/1.1.")
    if method not in _METHODS:
        raise refuse(501, "This method is not implemented here; methods are written in capitals.")
    if method == b"CONNECT":  # authority-form, 3.2.3; and CONNECT has no other
        split = split_authority(target)
        if split is None or not split[0] or split[1] is None:
            raise refuse(400, "CONNECT needs host:port as its target.")
        return target, target
    if target.startswith(b"/"):  # origin-form, 3.2.1
        return None, target
    if target == b"*":  # asterisk-form, 3.2.4
        if method != b"OPTIONS":
            raise refuse(400, "Only OPTIONS can have * as its target; send a path.")
        return None, target
    match = _ABSOLUTE.fullmatch(target)  # absolute-form, 3.2.2
    if match is None:
        raise refuse(400, "Not a request target; send a path that begins with /.")
    authority, rest = match.groups()
    split = split_authority(authority)
    if split is None or not split[0]:
        raise refuse(400, "The request target names no valid host; send a path that begins with /.")
    if not rest:
        rest = b"*" if method == b"OPTIONS" else b"/"  # 3.2.4
    return authority, rest if rest[0] != 63 else b"/" + rest


def read_host(
    host: bytes | None, authority: bytes | None, repeated: frozenset[bytes], minor: int, target: bytes
) -> bytes:
    """Return the authority of the request in lower case (RFC 9112, 3.2 and 3.3)."""
    if host is None:
        if minor:
            raise refuse(400, "No Host header; send one.")
        return b"" if authority is None else authority.lower()
    if b"host" in repeated:
        raise refuse(400, "More than one Host header; send one.")
    split = split_authority(host)
    if split is None or (not split[0] and host):
        raise refuse(400, "The Host header is not host or host:port; send what the address says.")
    if authority is not None:
        return authority.lower()  # the target wins (RFC 9112, 3.2.2)
    if not host and target != b"*":
        raise refuse(400, "The Host header is empty; send what the address says.")
    return host.lower()


def read_framing(length: bytes | None, coding: bytes | None, minor: int) -> tuple[int | None, bool]:
    """Return Content-Length, and whether the body is chunked (RFC 9112, 6).

    Strict, because requests are smuggled where two readers disagree about a body.
    """
    if coding is not None:
        if not minor:
            raise refuse(400, "Transfer-Encoding in HTTP/1.0; send Content-Length instead.")
        if length is not None:
            raise refuse(400, "Both Transfer-Encoding and Content-Length; send one of them.")
        codings = split_list(coding.lower())
        if codings != [b"chunked"] or b"," in coding:
            _refuse_coding(codings)
        return None, True
    assert length is not None
    # Equal values, repeated by some intermediary, may be taken as one (RFC 9110, 8.6).
    values = {value.strip(b" \t") for value in length.split(b",")}
    digits = values.pop()
    if values or not digits.isdigit():
        raise refuse(400, "Content-Length is not one number; send the bytes of the body in decimal digits.")
    if len(digits) > _LENGTH_DIGITS:
        raise refuse(413, "A body of this length cannot be received; send less.")
    return int(digits), False


def _refuse_coding(codings: list[bytes]) -> None:
    """Raise what Transfer-Encoding deserves when it is not exactly "chunked".

    400 when the codings are known and "chunked" is not the last, or not once, or decorated: the length of
    the body cannot be known (RFC 9112, 6.3). An empty list element makes it 400 too, against RFC 9110,
    5.6.1.2: readers disagree about it, h11 among them.
    501 for codings unknown or not implemented (RFC 9112, 6.1).
    """
    names = [coding.partition(b";")[0].strip(b" \t") for coding in codings]
    last = bool(codings) and codings[-1] == b"chunked"
    odd = (b"chunked" in names and not last) or names.count(b"chunked") > 1 or names == [b"chunked"]
    if odd or (not last and _CODINGS.issuperset(names)):
        raise refuse(400, "Transfer-Encoding must end with chunked, once; send just that.")
    raise refuse(501, "This transfer coding is not implemented here; send just chunked.")
