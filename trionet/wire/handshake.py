"""The opening handshake of RFC 6455, section 4.2: what a request must say, and what it is answered.

A server scans the head with `HeadScanner` (`head.py` has its table of faults), hands each request for which
`Request.websocket` is true to `check_upgrade`, asks the application, and sends `build_upgrade_response`;
a `Rejection` on the way is sent with `http1.build_rejection`.

`check_upgrade` answers the first fault of this table:

    ======  ==========================================================================================
    status  fault
    ======  ==========================================================================================
    505     HTTP/1.0 (RFC 6455, 4.2.1 item 1; Upgrade must be ignored there, RFC 9110, 7.8)
    405     another method than GET, with `Allow: GET`
    426     no sign of a WebSocket handshake at all: a plain request to a place that has only WebSocket
            (RFC 9110, 15.5.22)
    400     a handshake without "websocket" in Upgrade, or without "upgrade" in Connection (4.2.2: "such
            as 400")
    400     a body: what follows the head would be taken for frames
    400     Sec-WebSocket-Key missing, repeated (11.3.1), or not 16 bytes in base64
    400     Sec-WebSocket-Version repeated (11.3.5)
    400     Sec-WebSocket-Protocol: empty, not a list of tokens, or one of them twice (4.1 item 10)
    400     Sec-WebSocket-Extensions: not a list of offers (9.1), even though none is accepted
    426     Sec-WebSocket-Version missing or not 13, with `Sec-WebSocket-Version: 13` (4.2.2 item 4, 4.4)
    403     the Origin is not allowed (4.2.2 item 4)
    ======  ==========================================================================================
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Collection, Iterable

from trionet.errors import ConfigurationError
from trionet.wire.head import HeadLimits, HeadScanner
from trionet.wire.http1 import encode_fields, refuse
from trionet.wire.origin import OriginPolicy
from trionet.wire.request import Request
from trionet.wire.tokens import is_token, offers_are_valid, tokens

__all__ = [
    "HeadLimits",
    "HeadScanner",
    "OriginPolicy",
    "Request",
    "accept_key",
    "build_upgrade_response",
    "check_upgrade",
    "select_subprotocol",
]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # 1.3

# 16 bytes are 21 characters, one that carries two bits, and two of padding (RFC 4648, 4).
_is_key = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch

_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)

# What the handshake says itself; and a 101 has no body to describe (RFC 9110, 8.6; RFC 9112, 6.1).
_OURS = frozenset(
    {
        b"connection",
        b"content-length",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_ALLOW = (("Allow", "GET"),)
_VERSION = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


def check_upgrade(
    request: Request, origins: OriginPolicy, secure: bool | None = None, authority: str | None = None
) -> None:
    """Return if the request is a good opening handshake; if not, raise the `Rejection` to answer it with.

    `secure` says whether the client came by TLS, None if a proxy may have ended it; `authority` is the host it asked
    a trusted proxy for (`OriginPolicy.allows`).
    """
    if request._minor == 0:
        raise refuse(505, "WebSocket needs HTTP/1.1; send the request as HTTP/1.1.")
    if request._method != b"GET":
        raise refuse(405, "A WebSocket is opened with GET; use that method.", _ALLOW)
    found = request._found
    asked = request._lists(b"upgrade", b"websocket")
    if not (asked and request._lists(b"connection", b"upgrade")):
        if not request.websocket:
            raise refuse(
                426, "This address speaks WebSocket only; connect with a WebSocket client.", _VERSION
            )
        missing = "Connection: Upgrade" if asked else "Upgrade: websocket"
        raise refuse(400, f"No {missing}; send it, and let proxies pass it on.")
    if request._length or request._chunked:
        raise refuse(400, "A WebSocket handshake has no body; send none.")
    repeated = request._repeated
    key = found.get(b"sec-websocket-key")
    if key is None or b"sec-websocket-key" in repeated or not _is_key(key):
        raise refuse(400, "Send one Sec-WebSocket-Key: 16 random bytes in base64.")
    if b"sec-websocket-version" in repeated:
        raise refuse(400, "More than one Sec-WebSocket-Version header; send one.")
    protocols = found.get(b"sec-websocket-protocol")
    if protocols is not None:
        offered = tokens(protocols)
        if offered is None:
            raise refuse(400, "Sec-WebSocket-Protocol is not a list of tokens; separate them by commas.")
        if len(set(offered)) != len(offered):
            raise refuse(400, "Sec-WebSocket-Protocol names a subprotocol twice; name each once.")
    extensions = found.get(b"sec-websocket-extensions")
    if extensions is not None and not offers_are_valid(extensions):
        raise refuse(400, "Sec-WebSocket-Extensions is not a list of offers; see RFC 6455, 9.1.")
    if found.get(b"sec-websocket-version") != b"13":
        raise refuse(
            426, "Only version 13 of WebSocket is spoken here; send Sec-WebSocket-Version: 13.", _VERSION
        )
    if b"origin" in found and not origins.allows(request, secure, authority):
        raise refuse(403, "Pages of this Origin may not connect; ask the operator of the server to allow it.")


def accept_key(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept that proves a Sec-WebSocket-Key was understood (4.2.2 item 5.4)."""
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False)


def build_upgrade_response(
    key: bytes,
    subprotocol: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    extensions: str | None = None,
) -> bytes:
    """Return the 101 response to a request whose Sec-WebSocket-Key is `key` (4.2.2 item 5).

    `subprotocol` and `extensions` must be among the client's offers, or it will fail the connection (4.1);
    `headers` are added. Headers that belong to the handshake, and names or values that would inject
    others, raise `ConfigurationError`.
    """
    response = _SWITCH + accept_key(key) + b"\r\n"
    if subprotocol is not None:
        if not is_token(subprotocol.encode()):
            raise ConfigurationError(f"not a subprotocol: {subprotocol!r}")
        response += b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode()
    if extensions is not None:
        response += encode_fields([("Sec-WebSocket-Extensions", extensions)])
    if headers:
        response += encode_fields(headers, _OURS)
    return response + b"\r\n"


def select_subprotocol(offered: Iterable[str], supported: Collection[str]) -> str | None:
    """Return the first subprotocol of the client's offers that is supported; None when none is (4.2.2)."""
    return next((name for name in offered if name in supported), None)
