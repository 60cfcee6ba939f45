"""Close frames: which codes there are, and which may travel (RFC 6455, 7.4, and the IANA registry)."""

from __future__ import annotations

import enum

from trionet.errors import ProtocolError

__all__ = ["CloseCode", "check_sendable", "encode_close", "parse_close"]

_MAX_REASON = 123  # 5.5: a control frame carries 125 bytes, two of them are the code


class CloseCode(enum.IntEnum):
    """Registered close codes. Applications use 3000-3999 (registered) and 4000-4999 (private)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never travels: no code was in the frame
    ABNORMAL = 1006  # never travels: no Close frame came
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015  # never travels


_MAY_TRAVEL = frozenset(CloseCode) - {CloseCode.NO_STATUS, CloseCode.ABNORMAL, CloseCode.TLS_HANDSHAKE}


def _may_travel(code: int) -> bool:
    return code in _MAY_TRAVEL or 3000 <= code < 5000  # 7.4.2


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a received Close payload; 1005 when it is empty (7.1.5).

    Raises `ProtocolError`: 1002 for one byte or a code that may not travel, 1007 for a reason that is not UTF-8.
    """
    if payload == b"\x03\xe8":  # what nearly all clients send
        return 1000, ""
    if not payload:
        return CloseCode.NO_STATUS, ""
    if len(payload) == 1:
        raise ProtocolError("close frame with one byte")
    code = payload[0] << 8 | payload[1]
    if not _may_travel(code):
        raise ProtocolError(f"close code {code} may not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError("close reason is not UTF-8", CloseCode.INVALID_DATA) from None


def check_sendable(code: int, reason: str) -> None:
    """Raise `ValueError` for a close an application must not send."""
    if not _may_travel(code):
        raise ValueError(f"close code {code} may not be sent; use 1000-1014 (not 1004-1006) or 3000-4999")
    if reason and len(reason.encode()) > _MAX_REASON:
        raise ValueError(f"close reason longer than {_MAX_REASON} bytes of UTF-8")


def encode_close(code: int, reason: str = "") -> bytes:
    """The payload of a Close frame; empty for 1005. A reason that is too long is cut between characters."""
    if code == CloseCode.NO_STATUS:
        return b""
    text = reason.encode()[:_MAX_REASON].decode(errors="ignore")
    return code.to_bytes(2, "big") + text.encode()
