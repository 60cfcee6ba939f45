"""The handshake table: which head is answered with which bytes, however it is cut into pieces."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trionet.errors import ConfigurationError, Rejection
from trionet.wire import handshake
from trionet.wire.handshake import (
    HeadLimits,
    HeadScanner,
    OriginPolicy,
    Request,
    accept_key,
    build_upgrade_response,
    check_upgrade,
    select_subprotocol,
)
from trionet.wire.http1 import build_rejection

DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455, 1.3
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
# A masked "Hello" and half a frame, sent without waiting for the answer.
FRAMES = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x82\xfe"

SCANNER = HeadScanner()
SMALL = HeadScanner(HeadLimits(request_line=40, header_line=60, headers=8, total=320))
ORIGINS = OriginPolicy()
SUBPROTOCOLS = ("chat", "superchat")

LINES = {
    "Host": b"example.com",
    "Upgrade": b"websocket",
    "Connection": b"Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": b"13",
}


def head(line=b"GET /chat HTTP/1.1", *extra, **changes):
    """Return a good handshake: lines changed (`upgrade=b"x"`), left out (`upgrade=None`), added (`extra`)."""
    changes = {name.lower().replace("_", "-"): value for name, value in changes.items()}
    lines = {name: changes.pop(name.lower(), value) for name, value in LINES.items()}
    assert not changes
    fields = [name.encode() + b": " + value for name, value in lines.items() if value is not None]
    return b"\r\n".join([line, *fields, *extra, b"", b""])


def more(*extra, **changes):
    """Return a good handshake with more header lines."""
    return head(b"GET /chat HTTP/1.1", *extra, **changes)


def get(*lines):
    """Return a head of just these lines after a GET."""
    return b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])


CHROME = (
    b"GET /chat?room=lobby HTTP/1.1\r\nHost: chat.example.com:8080\r\nConnection: Upgrade\r\n"
    b"Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) "
    b"AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\n"
    b"Origin: http://chat.example.com:8080\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: session=0123456789abcdef0123456789\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)

OK = SWITCH + b"\r\n"
CHAT = SWITCH + b"Sec-WebSocket-Protocol: chat\r\n\r\n"
SUPERCHAT = SWITCH + b"Sec-WebSocket-Protocol: superchat\r\n\r\n"

GOOD = {
    "rfc 6455 1.2": (
        (
            b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://server.example.com\r\n"
            b"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ),
        CHAT,
    ),
    "minimal": (head(), OK),
    "chrome": (CHROME, OK),
    "one empty line first": (b"\r\n" + head(), OK),
    "eight empty lines first": (b"\r\n" * 8 + head(), OK),
    "http 1.2": (head(b"GET / HTTP/1.2"), OK),
    "http 1.9": (head(b"GET / HTTP/1.9"), OK),
    "absolute form": (head(b"GET http://example.com/chat HTTP/1.1"), OK),
    "absolute form ws": (head(b"GET WS://example.com:80 HTTP/1.1"), OK),
    "absolute form beats host": (
        head(b"GET http://real.example/ HTTP/1.1", b"Origin: http://real.example", host=b"other.example"),
        OK,
    ),
    "absolute form, empty host": (head(b"GET http://real.example/ HTTP/1.1", host=b""), OK),
    "names in any case": (
        b"GET / HTTP/1.1\r\nhOST: a\r\nUPGRADE: WebSocket\r\nconnection: UPGRADE\r\n"
        b"sec-websocket-KEY: %b\r\nSEC-WEBSOCKET-version: 13\r\n\r\n" % KEY,
        OK,
    ),
    "no space after colons": (head().replace(b": ", b":"), OK),
    "white space around values": (
        head(
            host=b" \t example.com \t",
            upgrade=b"\twebsocket ",
            connection=b"Upgrade\t",
            sec_websocket_version=b"  13  ",
        ),
        OK,
    ),
    "connection list": (head(connection=b"keep-alive, Upgrade"), OK),
    "connection list, tabs, empties": (head(connection=b", ,\tkeep-alive\t,,upgrade,"), OK),
    "connection repeated": (more(b"Connection: Upgrade", connection=b"keep-alive"), OK),
    "upgrade list": (head(upgrade=b"h2c, websocket"), OK),
    "upgrade repeated": (more(b"Upgrade: websocket", upgrade=b"foo/1"), OK),
    "host with port": (head(host=b"Example.COM:8080"), OK),
    "host with empty port": (head(host=b"example.com:"), OK),
    "host ipv4": (head(host=b"127.0.0.1:65535"), OK),
    "host ipv6": (head(host=b"[::1]:8080"), OK),
    "host ipv6 with ipv4": (head(host=b"[::ffff:1.2.3.4]"), OK),
    "host percent": (head(host=b"a%20b"), OK),
    "port with zeros": (head(host=b"a:00000080"), OK),
    "empty value": (more(b"X-Empty:"), OK),
    "obs-text value": (more(b"X-Latin: caf\xe9"), OK),
    "tab in value": (more(b"X-Tab: a\tb"), OK),
    "odd but valid name": (more(b"!#$%&'*+-.^_`|~: 1"), OK),
    "expect is no concern": (more(b"Expect: 100-continue"), OK),
    "no body said": (more(b"Content-Length: 0"), OK),
    "no body said twice": (more(b"Content-Length: 0", b"Content-Length: 0"), OK),
    "subprotocol by the client's order": (more(b"Sec-WebSocket-Protocol: x, superchat, chat"), SUPERCHAT),
    "subprotocols on two lines": (more(b"Sec-WebSocket-Protocol: x", b"Sec-WebSocket-Protocol: chat"), CHAT),
    "subprotocols with empties": (more(b"Sec-WebSocket-Protocol: ,chat,, ,x"), CHAT),
    "subprotocol not ours": (more(b"Sec-WebSocket-Protocol: Chat"), OK),
    "extension quoted": (more(b'Sec-WebSocket-Extensions: a; b="c"; d = "\\e", f;g'), OK),
    "extensions on two lines": (more(b"Sec-WebSocket-Extensions: a", b"Sec-WebSocket-Extensions: b;c=1"), OK),
    "extensions with empties": (more(b"Sec-WebSocket-Extensions: , a ,,b ,"), OK),
    "own origin": (more(b"Origin: http://example.com"), OK),
    "own origin by tls": (more(b"Origin: https://example.com"), OK),
    "own origin, default port said": (more(b"Origin: http://example.com:80"), OK),
    "own origin, host says the default port": (
        more(b"Origin: https://example.com", host=b"example.com:443"),
        OK,
    ),
    "own origin in capitals": (more(b"Origin: HTTP://EXAMPLE.com"), OK),
    "own origin ipv6": (more(b"Origin: http://[::1]:81", host=b"[::1]:81"), OK),
    "key with every kind of letter": (
        head(sec_websocket_key=b"+/09AZaz+/09AZaz+/09Ag=="),
        SWITCH.replace(accept_key(KEY), accept_key(b"+/09AZaz+/09AZaz+/09Ag==")) + b"\r\n",
    ),
}

# Status line, body, and the lines that some statuses bring along.
BAD_REQUEST = b"400 Bad Request"
TOO_LONG = b"414 URI Too Long"
TOO_LARGE = b"431 Request Header Fields Too Large"
NOT_IMPLEMENTED = b"501 Not Implemented"
VERSION = b"505 HTTP Version Not Supported"
FORBIDDEN = b"403 Forbidden"
UPGRADE_REQUIRED = b"426 Upgrade Required"

NOT_A_LINE = b"Not a request line; send method, target and version with one space between."
NOT_A_TARGET = b"Bytes in the request target that an address cannot hold; percent-encode them."
NOT_A_PATH = b"Not a request target; send a path that begins with /."
NOT_A_HOST = b"The Host header is not host or host:port; send what the address says."
NO_HOST_IN_TARGET = b"The request target names no valid host; send a path that begins with /."
BARE_CR = b"A bare CR; end every line with CR LF."
BARE_LF = b"A bare LF; end every line with CR LF."
NUL = b"A NUL byte in the request head; leave it out."
BLANKS = b"Too many empty lines, or a bare CR, before the request line; begin with the method."
CONTROL = b"A control character in a header value; leave it out."
FOLDED = b"A folded header line (RFC 9112, 5.2); put the header on one line."
SPACE_IN_NAME = (
    b"White space in or behind a header name (RFC 9112, 5.1); put the colon right behind the name."
)
NAME = b"A character that a header name cannot hold; use letters, digits and hyphens."
NO_COLON = b"A header line without a colon; send name, colon and value."
METHOD = b"This method is not implemented here; methods are written in capitals."
ONLY_1_1 = b"Only HTTP/1.1 is spoken here; send the request as HTTP/1.1."
ONE_KEY = b"Send one Sec-WebSocket-Key: 16 random bytes in base64."
CODING = b"Transfer-Encoding must end with chunked, once; send just that."
UNKNOWN_CODING = b"This transfer coding is not implemented here; send just chunked."
LENGTH = b"Content-Length is not one number; send the bytes of the body in decimal digits."
PROTOCOLS = b"Sec-WebSocket-Protocol is not a list of tokens; separate them by commas."
OFFERS = b"Sec-WebSocket-Extensions is not a list of offers; see RFC 6455, 9.1."
ORIGIN = b"Pages of this Origin may not connect; ask the operator of the server to allow it."
BODY = b"A WebSocket handshake has no body; send none."
ONLY_13 = b"Only version 13 of WebSocket is spoken here; send Sec-WebSocket-Version: 13."
TLS = b"This looks like TLS, but TLS is not spoken here; use ws:// or http://."

BAD = {
    # The request line.
    "tls client hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BAD_REQUEST, TLS),
    "garbage": (b"\x00\x01\x02\x03", BAD_REQUEST, NUL),
    "latin garbage": (b"\xff\xfe\xfd", BAD_REQUEST, NOT_A_LINE),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", BAD_REQUEST, NOT_A_LINE),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", VERSION, ONLY_1_1),
    "http 0.9": (b"GET /\r\n", BAD_REQUEST, NOT_A_LINE),
    "http 0.9 with its version": (head(b"GET / HTTP/0.9"), VERSION, ONLY_1_1),
    "http 2.0": (head(b"GET / HTTP/2.0"), VERSION, ONLY_1_1),
    "version in small letters": (head(b"GET / http/1.1"), BAD_REQUEST, NOT_A_LINE),
    "version of three digits": (head(b"GET / HTTP/1.10"), BAD_REQUEST, NOT_A_LINE),
    "version without a dot": (head(b"GET / HTTP/1"), BAD_REQUEST, NOT_A_LINE),
    "no version": (head(b"GET / "), BAD_REQUEST, NOT_A_LINE),
    "space after the version": (head(b"GET / HTTP/1.1 "), BAD_REQUEST, NOT_A_LINE),
    "space before the method": (b" " + head(), BAD_REQUEST, NOT_A_LINE),
    "two spaces before the target": (head(b"GET  / HTTP/1.1"), BAD_REQUEST, NOT_A_LINE),
    "two spaces after the target": (head(b"GET /  HTTP/1.1"), BAD_REQUEST, NOT_A_LINE),
    "tab for a space": (head(b"GET\t/ HTTP/1.1"), BAD_REQUEST, NOT_A_LINE),
    "space in the target": (head(b"GET /a b HTTP/1.1"), BAD_REQUEST, NOT_A_LINE),
    "control in the target": (head(b"GET /\x01 HTTP/1.1"), BAD_REQUEST, NOT_A_TARGET),
    "delete in the target": (head(b"GET /\x7f HTTP/1.1"), BAD_REQUEST, NOT_A_TARGET),
    "utf-8 in the target": (head("GET /é HTTP/1.1".encode()), BAD_REQUEST, NOT_A_TARGET),
    "nul in the target": (head(b"GET /\x00 HTTP/1.1"), BAD_REQUEST, NUL),
    "fragment": (
        head(b"GET /a#b HTTP/1.1"),
        BAD_REQUEST,
        b"A fragment in the request target; leave out what follows the #.",
    ),
    "bare cr in the request line": (head(b"GET / HTTP/1.1\rX"), BAD_REQUEST, BARE_CR),
    "bare lf after the request line": (head().replace(b"\r\n", b"\n", 1), BAD_REQUEST, BARE_LF),
    "bare lf everywhere": (head().replace(b"\r\n", b"\n"), BAD_REQUEST, BARE_LF),
    "bare lf first": (b"\n" + head(), BAD_REQUEST, BARE_LF),
    "bare cr first": (b"\r" + head(), BAD_REQUEST, BLANKS),
    "nine empty lines first": (b"\r\n" * 9 + head(), BAD_REQUEST, BLANKS),
    "empty lines for ever": (b"\r\n" * 40, BAD_REQUEST, BLANKS),
    "method not a token": (head(b"G(T / HTTP/1.1"), BAD_REQUEST, NOT_A_LINE),
    "method unknown": (head(b"FETCH / HTTP/1.1"), NOT_IMPLEMENTED, METHOD),
    "method in small letters": (head(b"get / HTTP/1.1"), NOT_IMPLEMENTED, METHOD),
    "method of 32 bytes": (head(b"M" * 32 + b" / HTTP/1.1"), NOT_IMPLEMENTED, METHOD),
    "method of 33 bytes": (
        b"M" * 33,
        NOT_IMPLEMENTED,
        b"A method of more than 32 bytes is not implemented here.",
    ),
    "method of 32 bytes and a tab": (b"M" * 32 + b"\t", BAD_REQUEST, NOT_A_LINE),
    "target without a slash": (head(b"GET chat HTTP/1.1"), BAD_REQUEST, NOT_A_PATH),
    "asterisk form": (
        head(b"GET * HTTP/1.1"),
        BAD_REQUEST,
        b"Only OPTIONS can have * as its target; send a path.",
    ),
    "authority form": (head(b"GET example.com:80 HTTP/1.1"), BAD_REQUEST, NOT_A_PATH),
    "another scheme": (head(b"GET ftp://example.com/ HTTP/1.1"), BAD_REQUEST, NOT_A_PATH),
    "absolute form without a host": (head(b"GET http:/// HTTP/1.1"), BAD_REQUEST, NO_HOST_IN_TARGET),
    "absolute form with a port only": (head(b"GET http://:80/ HTTP/1.1"), BAD_REQUEST, NO_HOST_IN_TARGET),
    "absolute form with a user": (
        head(b"GET http://me@example.com/ HTTP/1.1"),
        BAD_REQUEST,
        NO_HOST_IN_TARGET,
    ),
    "connect with a path": (
        head(b"CONNECT / HTTP/1.1"),
        BAD_REQUEST,
        b"CONNECT needs host:port as its target.",
    ),
    "connect without a port": (
        head(b"CONNECT example.com HTTP/1.1"),
        BAD_REQUEST,
        b"CONNECT needs host:port as its target.",
    ),
    "connect without a host": (
        head(b"CONNECT :80 HTTP/1.1"),
        BAD_REQUEST,
        b"CONNECT needs host:port as its target.",
    ),
    # Header lines.
    "space before the first header": (
        get(b" Host: a"),
        BAD_REQUEST,
        b"White space before the first header (RFC 9112, 2.2); leave it out.",
    ),
    "folded": (more(b"X: a", b" b"), BAD_REQUEST, FOLDED),
    "folded with a tab": (more(b"X: a", b"\tb"), BAD_REQUEST, FOLDED),
    "folded and empty": (more(b"X: a", b" "), BAD_REQUEST, FOLDED),
    "space before the colon": (head().replace(b"Host:", b"Host :"), BAD_REQUEST, SPACE_IN_NAME),
    "tab before the colon": (head().replace(b"Host:", b"Host\t:"), BAD_REQUEST, SPACE_IN_NAME),
    "space in a name": (more(b"X Y: 1"), BAD_REQUEST, SPACE_IN_NAME),
    "no colon": (more(b"Nonsense"), BAD_REQUEST, NO_COLON),
    "no name": (more(b": x"), BAD_REQUEST, b"A header without a name; send name, colon and value."),
    "name with brackets": (more(b"X(Y): 1"), BAD_REQUEST, NAME),
    "name beyond ascii": (more(b"X\xe9: 1"), BAD_REQUEST, NAME),
    "name with a nul": (more(b"X\x00: 1"), BAD_REQUEST, NUL),
    "nul in a value": (more(b"X: \x00"), BAD_REQUEST, NUL),
    "control in a value": (more(b"X: \x1b[0m"), BAD_REQUEST, CONTROL),
    "delete in a value": (more(b"X: \x7f"), BAD_REQUEST, CONTROL),
    "bare cr in a value": (more(b"X: a\rb"), BAD_REQUEST, BARE_CR),
    "bare lf in a value": (more(b"X: a\nb"), BAD_REQUEST, BARE_LF),
    "bare lf after a header": (more(b"X: a\nY: b"), BAD_REQUEST, BARE_LF),
    "two crs": (more(b"X: a\r"), BAD_REQUEST, BARE_CR),
    "cr for the last line": (head()[:-1] + b"X", BAD_REQUEST, BARE_CR),
    "lf for the last line": (head()[:-2] + b"\n", BAD_REQUEST, BARE_LF),
    # Host and Origin.
    "no host": (head(host=None), BAD_REQUEST, b"No Host header; send one."),
    "no host beside an absolute target": (
        head(b"GET http://example.com/ HTTP/1.1", host=None),
        BAD_REQUEST,
        b"No Host header; send one.",
    ),
    "two hosts": (more(b"Host: example.com"), BAD_REQUEST, b"More than one Host header; send one."),
    "empty host": (head(host=b""), BAD_REQUEST, b"The Host header is empty; send what the address says."),
    "host with a user": (head(host=b"me@example.com"), BAD_REQUEST, NOT_A_HOST),
    "host with a space": (head(host=b"a b"), BAD_REQUEST, NOT_A_HOST),
    "host with a path": (head(host=b"a/b"), BAD_REQUEST, NOT_A_HOST),
    "host that is a list": (head(host=b"a, b"), BAD_REQUEST, NOT_A_HOST),
    "host with letters for a port": (head(host=b"a:http"), BAD_REQUEST, NOT_A_HOST),
    "host with port 65536": (head(host=b"a:65536"), BAD_REQUEST, NOT_A_HOST),
    "host with a huge port": (head(host=b"a:" + b"9" * 200), BAD_REQUEST, NOT_A_HOST),
    "host with a port only": (head(host=b":80"), BAD_REQUEST, NOT_A_HOST),
    "host of half an ipv6": (head(host=b"[::1"), BAD_REQUEST, NOT_A_HOST),
    "host of bad ipv6": (head(host=b"[1::2::3]"), BAD_REQUEST, NOT_A_HOST),
    "host of naked ipv6": (head(host=b"::1"), BAD_REQUEST, NOT_A_HOST),
    "host half percent": (head(host=b"a%2"), BAD_REQUEST, NOT_A_HOST),
    "host too long": (head(host=b"a" * 300), BAD_REQUEST, NOT_A_HOST),
    "two origins": (
        more(b"Origin: http://example.com", b"Origin: http://example.com"),
        BAD_REQUEST,
        b"More than one Origin header; send one.",
    ),
    # Bodies.
    "both framings": (
        more(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
        BAD_REQUEST,
        b"Both Transfer-Encoding and Content-Length; send one of them.",
    ),
    "chunked in http 1.0": (
        head(b"GET / HTTP/1.0", b"Transfer-Encoding: chunked"),
        BAD_REQUEST,
        b"Transfer-Encoding in HTTP/1.0; send Content-Length instead.",
    ),
    "chunked not last": (more(b"Transfer-Encoding: chunked, gzip"), BAD_REQUEST, CODING),
    "chunked before the unknown": (more(b"Transfer-Encoding: chunked, foo"), BAD_REQUEST, CODING),
    "chunked twice": (
        more(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        BAD_REQUEST,
        CODING,
    ),
    "chunked with a parameter": (more(b"Transfer-Encoding: chunked;a=b"), BAD_REQUEST, CODING),
    "chunked and nothing": (more(b"Transfer-Encoding: ,chunked"), BAD_REQUEST, CODING),
    "gzip without chunked": (more(b"Transfer-Encoding: gzip"), BAD_REQUEST, CODING),
    "identity": (more(b"Transfer-Encoding: identity"), BAD_REQUEST, CODING),
    "no coding": (more(b"Transfer-Encoding:"), BAD_REQUEST, CODING),
    "gzip, then chunked": (more(b"Transfer-Encoding: gzip, chunked"), NOT_IMPLEMENTED, UNKNOWN_CODING),
    "unknown coding": (more(b"Transfer-Encoding: xchunked"), NOT_IMPLEMENTED, UNKNOWN_CODING),
    "length not a number": (more(b"Content-Length: five"), BAD_REQUEST, LENGTH),
    "length negative": (more(b"Content-Length: -1"), BAD_REQUEST, LENGTH),
    "length with a sign": (more(b"Content-Length: +5"), BAD_REQUEST, LENGTH),
    "length in hexadecimal": (more(b"Content-Length: 0x5"), BAD_REQUEST, LENGTH),
    "length empty": (more(b"Content-Length:"), BAD_REQUEST, LENGTH),
    "lengths that differ": (more(b"Content-Length: 5", b"Content-Length: 6"), BAD_REQUEST, LENGTH),
    "lengths that differ in spelling": (more(b"Content-Length: 5, 05"), BAD_REQUEST, LENGTH),
    "length out of this world": (
        more(b"Content-Length: " + b"9" * 19),
        b"413 Content Too Large",
        b"A body of this length cannot be received; send less.",
    ),
    "body by length": (more(b"Content-Length: 5"), BAD_REQUEST, BODY),
    "body in chunks": (more(b"Transfer-Encoding: Chunked"), BAD_REQUEST, BODY),
    # The WebSocket handshake.
    "http 1.0": (
        head(b"GET / HTTP/1.0"),
        VERSION,
        b"WebSocket needs HTTP/1.1; send the request as HTTP/1.1.",
    ),
    "post": (
        head(b"POST / HTTP/1.1"),
        b"405 Method Not Allowed",
        b"A WebSocket is opened with GET; use that method.",
        b"Allow: GET\r\n",
    ),
    "connect": (
        head(b"CONNECT example.com:80 HTTP/1.1"),
        b"405 Method Not Allowed",
        b"A WebSocket is opened with GET; use that method.",
        b"Allow: GET\r\n",
    ),
    "plain get": (
        get(b"Host: a"),
        UPGRADE_REQUIRED,
        b"This address speaks WebSocket only; connect with a WebSocket client.",
    ),
    "no upgrade": (
        head(upgrade=None),
        BAD_REQUEST,
        b"No Upgrade: websocket; send it, and let proxies pass it on.",
    ),
    "upgrade to something else": (
        head(upgrade=b"h2c"),
        BAD_REQUEST,
        b"No Upgrade: websocket; send it, and let proxies pass it on.",
    ),
    "upgrade to a version of it": (
        head(upgrade=b"websocket/13"),
        BAD_REQUEST,
        b"No Upgrade: websocket; send it, and let proxies pass it on.",
    ),
    "no connection": (
        head(connection=None),
        BAD_REQUEST,
        b"No Connection: Upgrade; send it, and let proxies pass it on.",
    ),
    "connection keep-alive": (
        head(connection=b"keep-alive"),
        BAD_REQUEST,
        b"No Connection: Upgrade; send it, and let proxies pass it on.",
    ),
    "no key": (head(sec_websocket_key=None), BAD_REQUEST, ONE_KEY),
    "empty key": (head(sec_websocket_key=b""), BAD_REQUEST, ONE_KEY),
    "short key": (head(sec_websocket_key=KEY[4:]), BAD_REQUEST, ONE_KEY),
    "long key": (head(sec_websocket_key=b"AAAA" + KEY), BAD_REQUEST, ONE_KEY),
    "key without padding": (head(sec_websocket_key=KEY[:-2]), BAD_REQUEST, ONE_KEY),
    "key of 17 bytes": (head(sec_websocket_key=b"A" * 23 + b"="), BAD_REQUEST, ONE_KEY),
    "key with stray bits": (head(sec_websocket_key=KEY[:21] + b"R=="), BAD_REQUEST, ONE_KEY),
    "key for addresses": (head(sec_websocket_key=b"-_" + KEY[2:]), BAD_REQUEST, ONE_KEY),
    "two keys": (more(b"Sec-WebSocket-Key: " + KEY), BAD_REQUEST, ONE_KEY),
    "no version of it": (head(sec_websocket_version=None), UPGRADE_REQUIRED, ONLY_13),
    "version 8": (head(sec_websocket_version=b"8"), UPGRADE_REQUIRED, ONLY_13),
    "version 013": (head(sec_websocket_version=b"013"), UPGRADE_REQUIRED, ONLY_13),
    "version list": (head(sec_websocket_version=b"13, 8"), UPGRADE_REQUIRED, ONLY_13),
    "two versions": (
        more(b"Sec-WebSocket-Version: 13"),
        BAD_REQUEST,
        b"More than one Sec-WebSocket-Version header; send one.",
    ),
    "subprotocol with a space": (more(b"Sec-WebSocket-Protocol: a b"), BAD_REQUEST, PROTOCOLS),
    "subprotocol empty": (more(b"Sec-WebSocket-Protocol:"), BAD_REQUEST, PROTOCOLS),
    "subprotocol with a slash": (more(b"Sec-WebSocket-Protocol: a/b"), BAD_REQUEST, PROTOCOLS),
    "subprotocol twice": (
        more(b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Protocol: a"),
        BAD_REQUEST,
        b"Sec-WebSocket-Protocol names a subprotocol twice; name each once.",
    ),
    "extension empty": (more(b"Sec-WebSocket-Extensions:"), BAD_REQUEST, OFFERS),
    "extension only commas": (more(b"Sec-WebSocket-Extensions: , ,"), BAD_REQUEST, OFFERS),
    "extension without a name": (more(b"Sec-WebSocket-Extensions: ;a"), BAD_REQUEST, OFFERS),
    "extension without a parameter": (more(b"Sec-WebSocket-Extensions: a;"), BAD_REQUEST, OFFERS),
    "extension without a value": (more(b"Sec-WebSocket-Extensions: a;b="), BAD_REQUEST, OFFERS),
    "extension half quoted": (more(b'Sec-WebSocket-Extensions: a;b="c'), BAD_REQUEST, OFFERS),
    "extension with a space": (more(b"Sec-WebSocket-Extensions: a b"), BAD_REQUEST, OFFERS),
    "extension quoting no token": (more(b'Sec-WebSocket-Extensions: a;b="c d"'), BAD_REQUEST, OFFERS),
    "foreign origin": (more(b"Origin: http://evil.example"), FORBIDDEN, ORIGIN),
    "foreign port": (more(b"Origin: http://example.com:81"), FORBIDDEN, ORIGIN),
    "origin beside a port": (more(b"Origin: http://example.com", host=b"example.com:81"), FORBIDDEN, ORIGIN),
    "origin that begins alike": (more(b"Origin: http://example.com.evil.example"), FORBIDDEN, ORIGIN),
    "origin null": (more(b"Origin: null"), FORBIDDEN, ORIGIN),
    "origin empty": (more(b"Origin:"), FORBIDDEN, ORIGIN),
    "origin with a path": (more(b"Origin: http://example.com/"), FORBIDDEN, ORIGIN),
    "origin with a user": (more(b"Origin: http://x@example.com"), FORBIDDEN, ORIGIN),
    "origin without a host": (more(b"Origin: http://:80"), FORBIDDEN, ORIGIN),
    "origin of two": (more(b"Origin: http://example.com http://evil.example"), FORBIDDEN, ORIGIN),
    "origin of an extension": (more(b"Origin: chrome-extension://example.com"), FORBIDDEN, ORIGIN),
    "origin that the host header denies": (
        head(b"GET http://real.example/ HTTP/1.1", b"Origin: http://example.com"),
        FORBIDDEN,
        ORIGIN,
    ),
    # Which of several faults counts: the earliest of the head, then the order of the table.
    "version before target": (head(b"GET * HTTP/3.0"), VERSION, ONLY_1_1),
    "version before method": (head(b"FETCH / HTTP/2.0"), VERSION, ONLY_1_1),
    "method before target": (head(b"FETCH * HTTP/1.1"), NOT_IMPLEMENTED, METHOD),
    "request line before headers": (head(b"FETCH / HTTP/1.1", b"X: \x00"), NOT_IMPLEMENTED, METHOD),
    "headers before host": (more(b"X: \x00", host=None), BAD_REQUEST, NUL),
    "405 before 400": (
        head(b"POST / HTTP/1.1", upgrade=None),
        b"405 Method Not Allowed",
        b"A WebSocket is opened with GET; use that method.",
        b"Allow: GET\r\n",
    ),
    "400 before 426": (head(sec_websocket_key=None, sec_websocket_version=b"8"), BAD_REQUEST, ONE_KEY),
    "426 before 403": (more(b"Origin: null", sec_websocket_version=b"8"), UPGRADE_REQUIRED, ONLY_13),
}

# The limits of SMALL: 40 bytes of request line, 60 of a header line, 8 headers, 400 in all.
LINE_414 = b"A request line of more than 40 bytes; use a shorter address."
LINE_431 = b"A header line of more than 60 bytes; send less."
COUNT_431 = b"More than 8 header lines; send fewer."
TOTAL_431 = b"A request head of more than 320 bytes; send less."
FULL = head(b"GET /chat HTTP/1.1", b"X: " + b"x" * 57, b"X: " + b"x" * 57, b"Y: ")
FULL = FULL[:-4] + b"y" * (320 - len(FULL)) + FULL[-4:]
LIMITS = {
    "request line of 40": (head(b"GET /" + b"x" * 26 + b" HTTP/1.1"), b"101", b""),
    "request line of 41": (head(b"GET /" + b"x" * 27 + b" HTTP/1.1"), TOO_LONG, LINE_414),
    "request line without an end": (b"GET /" + b"x" * 36, TOO_LONG, LINE_414),
    "header line of 60": (more(b"X: " + b"x" * 57), b"101", b""),
    "header line of 61": (more(b"X: " + b"x" * 58), TOO_LARGE, LINE_431),
    "header line without an end": (get(b"X: " + b"x" * 58)[:-4], TOO_LARGE, LINE_431),
    "name without an end": (get(b"x" * 61)[:-4], TOO_LARGE, LINE_431),
    "eight headers": (more(b"X: 1", b"X: 1", b"X: 1"), b"101", b""),
    "nine headers": (more(b"X: 1", b"X: 1", b"X: 1", b"X: 1"), TOO_LARGE, COUNT_431),
    "nine headers begun": (more(b"X: 1", b"X: 1", b"X: 1")[:-2] + b"X", TOO_LARGE, COUNT_431),
    "320 bytes": (FULL, b"101", b""),
    "321 bytes": (FULL[:-4] + b"y" + FULL[-4:], TOO_LARGE, TOTAL_431),
    "320 bytes without an end": (FULL[:-4] + b"yyyy", TOO_LARGE, TOTAL_431),
    "321 bytes with empty lines": (b"\r\n" + FULL[:-5] + FULL[-4:], TOO_LARGE, TOTAL_431),
}


def feed(scanner, pieces):
    """Scan as a connection does: append a piece, scan, tell how much was searched before."""
    data = bytearray()
    for piece in pieces:
        searched = len(data)
        data += piece
        request = scanner.scan(data, searched)
        if request is not None:
            return request
    return None


def answer(scanner, pieces):
    """Return the response to a request, and the request (None when it was refused)."""
    request = None
    try:
        request = feed(scanner, pieces)
        if request is None:
            return b"", None
        check_upgrade(request, ORIGINS)
        subprotocol = select_subprotocol(request.subprotocols, SUBPROTOCOLS)
        return build_upgrade_response(request.key, subprotocol), request
    except Rejection as rejection:
        return build_rejection(rejection, DATE), request


def singly(data):
    """Return `data` as pieces of one byte."""
    return [data[at : at + 1] for at in range(len(data))]


def refusal(status, body, lines=b""):
    """Return the exact response of a refusal."""
    connection = b"close"
    if status == UPGRADE_REQUIRED:
        connection = b"Upgrade, close"
        lines = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    return (
        b"HTTP/1.1 %b\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nConnection: %b\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n%bContent-Length: %d\r\n\r\n%b\n"
        % (status, connection, lines, len(body) + 1, body)
    )


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "trailing", [b"", FRAMES, b"\r\n\r\n", b"\x00"], ids=["alone", "frames", "lines", "nul"]
)
def test_good_handshakes_to_the_byte(name, trailing):
    """A good handshake gets its exact answer, whole or byte by byte, and what is behind it is left alone."""
    data, expected = GOOD[name]
    response, request = answer(SCANNER, [data + trailing])
    assert (response, request.size) == (expected, len(data))
    response, request = answer(SCANNER, singly(data + trailing))
    assert (response, request.size) == (expected, len(data))
    assert request.websocket
    assert request.upgrade


@pytest.mark.parametrize("name", GOOD)
def test_no_good_handshake_is_seen_early(name):
    """Every proper beginning of a good handshake is waited for."""
    data, _ = GOOD[name]
    assert feed(SCANNER, singly(data[:-1])) is None


@pytest.mark.parametrize("name", BAD)
def test_bad_handshakes_to_the_byte(name):
    """A bad handshake gets its exact answer, whole, byte by byte, and with frames behind it."""
    data, *expected = BAD[name]
    expected = refusal(*expected)
    assert answer(SCANNER, [data])[0] == expected
    assert answer(SCANNER, singly(data))[0] == expected
    assert answer(SCANNER, [data + FRAMES])[0] == expected
    assert answer(SCANNER, [data[:20], data[20:]])[0] == expected


@pytest.mark.parametrize("name", LIMITS)
def test_limits_to_the_byte(name):
    """Each limit allows exactly what it says; the byte beyond is refused when its KiB is full, or sooner."""
    data, status, body = LIMITS[name]
    expected = OK if status == b"101" else refusal(status, body)
    assert answer(SMALL, [data])[0] == expected
    assert answer(SMALL, singly(data + b"x" * 1024))[0] == expected
    assert answer(SMALL, [data + FRAMES])[0] == expected


def test_the_default_limits():
    """8,190 bytes of a line, 100 lines and 16 KiB pass; one more of any is refused."""
    long = b"GET /" + b"x" * 8176 + b" HTTP/1.1"
    assert SCANNER.scan(head(long)).path == "/" + "x" * 8176
    many = [b"X: 1"] * 95
    assert SCANNER.scan(more(*many)).size > 500
    for data, status in [
        (head(long.replace(b"x", b"xx", 1)), 414),
        (more(b"X: " + b"x" * 8188), 431),
        (more(*many, b"X: 1"), 431),
        (more(b"X: " + b"x" * 8187, b"Y: " + b"y" * 8187), 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 100 + b"X", 431),
    ]:
        with pytest.raises(Rejection) as caught:
            SCANNER.scan(data)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "settings",
    [{"headers": 0}, {"request_line": -1}, {"total": 8190}, {"header_line": 20000}],
    ids=str,
)
def test_limits_that_contradict(settings):
    """Limits that allow no request, or lines longer than the whole, are refused when they are set."""
    with pytest.raises(ConfigurationError):
        HeadLimits(**settings)


# What a request says ----------------------------------------------------------------------------------------


def test_what_a_request_says():
    """Every attribute of the request that Chrome sends."""
    request = SCANNER.scan(CHROME)
    assert repr(request) == "<Request GET /chat HTTP/1.1 from chat.example.com:8080>"
    assert (request.method, request.target, request.version) == ("GET", "/chat?room=lobby", (1, 1))
    assert (request.path, request.query) == ("/chat", "room=lobby")
    assert (request.host, request.origin) == ("chat.example.com:8080", "http://chat.example.com:8080")
    assert request.headers == {"cookie": ["session=0123456789abcdef0123456789"]}
    assert request.subprotocols == ()
    assert request.extensions == "permessage-deflate; client_max_window_bits"
    assert (request.key, request.content_length, request.chunked) == (KEY, None, False)
    assert (request.size, request.skipped) == (len(CHROME), 0)


def test_a_plain_request():
    """A request that asks for no WebSocket is described too, for whoever answers it."""
    request = SCANNER.scan(
        b"\r\nPOST /form HTTP/1.0\r\nUpgrade: h2c\r\nContent-Length: 12\r\n\r\nlogin=me&pw="
    )
    assert repr(request) == "<Request POST /form HTTP/1.0 from nobody>"
    assert (request.websocket, request.upgrade, request.version) == (False, False, (1, 0))
    assert (request.content_length, request.host, request.query) == (12, "", "")
    assert (request.origin, request.extensions, request.key, request.headers) == (None, None, None, {})
    assert request.skipped == 2
    assert SCANNER.scan(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n").chunked


@pytest.mark.parametrize(
    "line, target, host",
    [
        (b"GET http://Real.example:81/a?b HTTP/1.1", "/a?b", "real.example:81"),
        (b"GET http://real.example?b HTTP/1.1", "/?b", "real.example"),
        (b"GET https://real.example HTTP/1.1", "/", "real.example"),
        (b"OPTIONS http://real.example HTTP/1.1", "*", "real.example"),
        (b"OPTIONS * HTTP/1.1", "*", "example.com"),
        (b"CONNECT real.example:443 HTTP/1.1", "real.example:443", "real.example:443"),
        (b"GET //example.net/x HTTP/1.1", "//example.net/x", "example.com"),
        (b"GET http://real.example/ HTTP/1.0", "/", "real.example"),
    ],
    ids=str,
)
def test_forms_of_the_target(line, target, host):
    """Each form of the request target is reduced to path and query, and its authority beats Host."""
    request = SCANNER.scan(head(line))
    assert (request.target, request.host) == (target, host)


def test_hosts_that_may_be_missing():
    """HTTP/1.0 may leave Host out, and a target that needs none may have an empty one (RFC 9112, 3.2)."""
    assert SCANNER.scan(b"GET http://a.example/ HTTP/1.0\r\n\r\n").host == "a.example"
    assert SCANNER.scan(b"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n").host == ""


def test_requests_cannot_be_changed():
    """No attribute can be set or added, and the headers are copies."""
    request = SCANNER.scan(CHROME)
    with pytest.raises(AttributeError):
        request.path = "/admin"
    with pytest.raises(AttributeError):
        request.user = "root"
    request.headers["cookie"].append("session=forged")
    assert request.headers == {"cookie": ["session=0123456789abcdef0123456789"]}


def test_requests_own_their_bytes():
    """A request stays what it was after the receive buffer was overwritten and shrunk."""
    data = bytearray(CHROME)
    request = SCANNER.scan(data)
    data[:] = b"\xff" * 10
    assert (request.path, request.host, request.key) == ("/chat", "chat.example.com:8080", KEY)


def test_a_broken_handshake_is_still_a_handshake():
    """What lacks a part of the handshake is not taken for a plain request; HTTP/1.0 never upgrades."""
    for data in (
        head(upgrade=None),
        head(connection=None),
        head(sec_websocket_key=None, upgrade=None),
        head(b"GET / HTTP/1.0"),
    ):
        request = SCANNER.scan(data)
        assert request.websocket
        assert not request.upgrade


def test_unreadable_offers_of_subprotocols():
    """A list of subprotocols that cannot be read offers none."""
    assert SCANNER.scan(more(b"Sec-WebSocket-Protocol: a b")).subprotocols == ()


# Headers the application asks for ---------------------------------------------------------------------------


def test_declared_headers_keep_every_value():
    """Only declared names are kept, in any case, with all values in order, Latin-1, trimmed."""
    scanner = HeadScanner(names=frozenset({b"cookie", b"x-user.id", b"host"}))
    request = scanner.scan(
        more(
            b"Cookie: a=1",
            b"X-User.Id: caf\xe9 ",
            b"COOKIE:  b=2\t",
            b"X-UserxId: no",
            b"Authorization: secret",
        )
    )
    assert request.headers == {"host": ["example.com"], "cookie": ["a=1", "b=2"], "x-user.id": ["café"]}


@pytest.mark.parametrize("name", [b"Cookie", b"a b", b"", b"a:"])
def test_declared_names_are_checked(name):
    """A name that no header has, or that is not in lower case, is refused when it is declared."""
    with pytest.raises(ConfigurationError, match="not a header name"):
        HeadScanner(names=frozenset({name}))


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_callback_sees_what_the_handshake_does_not_use(kind):
    """Each other header is shown once, in order, trimmed; its views are dead afterwards."""
    seen, views = [], []

    def on_header(name, value):
        seen.append((bytes(name), bytes(value)))
        views.extend([name, value])

    data = kind(more(b"X-A:  1 2\t", b"Cookie: a=1", b"X-Empty: ", b"x-a: 3") + FRAMES)
    request = HeadScanner(on_header=on_header).scan(data)
    assert seen == [(b"X-A", b"1 2"), (b"Cookie", b"a=1"), (b"X-Empty", b""), (b"x-a", b"3")]
    assert request.headers == {"cookie": ["a=1"]}
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)


def test_callback_may_refuse():
    """What the callback raises is passed on, and the receive buffer can be changed in spite of it."""
    views = []

    def on_header(name, value):
        views.append(value)
        raise Rejection(403)

    data = bytearray(more(b"X: 1"))
    with pytest.raises(Rejection):
        HeadScanner(on_header=on_header).scan(data)
    del data[:10]
    with pytest.raises(ValueError, match="released"):
        bytes(views[0])


def test_callback_sees_no_head_that_is_refused():
    """Nothing is shown before the whole head was found good."""
    scanner = HeadScanner(on_header=lambda _name, _value: pytest.fail("shown too early"))
    assert scanner.scan(more(b"X: 1")[:-1]) is None
    with pytest.raises(Rejection):
        scanner.scan(more(b"X: 1", host=None))


# Answers ----------------------------------------------------------------------------------------------------


def test_the_answer_with_everything():
    """Subprotocol, extensions and headers follow the accept key, in this order."""
    assert build_upgrade_response(KEY, "chat", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], "x; y=1") == (
        SWITCH + b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: x; y=1\r\n"
        b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n"
    )


def test_the_answer_cannot_be_split():
    """Line breaks and controls in what the application adds are refused, wherever it adds them."""
    for headers in ([("X", "a\r\nY: b")], [("X\r\nY", "b")], [("X", "\x00")], [("X", "\u010a")], [("", "b")]):
        with pytest.raises(ConfigurationError):
            build_upgrade_response(KEY, None, headers)
    for subprotocol in ("", "a b", "a\r\nX: y", "é"):
        with pytest.raises(ConfigurationError):
            build_upgrade_response(KEY, subprotocol)
    with pytest.raises(ConfigurationError):
        build_upgrade_response(KEY, extensions="a\r\nX: y")


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "SEC-WEBSOCKET-ACCEPT",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Version",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_the_handshake_cannot_be_overridden(name):
    """The headers that make the handshake are not the application's to set."""
    with pytest.raises(ConfigurationError, match="sets the header"):
        build_upgrade_response(KEY, None, [(name, "x")])


def test_the_first_offer_that_is_supported():
    """The client's order decides; nothing in common is no subprotocol."""
    assert select_subprotocol(("a", "b", "c"), {"c", "b"}) == "b"
    assert select_subprotocol(("a",), ("A",)) is None
    assert select_subprotocol((), ("a",)) is None


# Origins ----------------------------------------------------------------------------------------------------

LISTED = ["https://Chat.example", "http://a.example:8080", "https://b.example:443", "app://desktop"]


@pytest.mark.parametrize(
    "allowed, origin, verdict",
    [
        (LISTED, b"https://chat.example", True),
        (LISTED, b"https://chat.example:443", True),
        (LISTED, b"https://CHAT.example", True),
        (LISTED, b"http://chat.example", False),
        (LISTED, b"https://chat.example:444", False),
        (LISTED, b"http://a.example:8080", True),
        (LISTED, b"http://a.example", False),
        (LISTED, b"https://b.example", True),
        (LISTED, b"app://desktop", True),
        (LISTED, b"http://example.com", False),
        (LISTED, b"null", False),
        (LISTED, b"nonsense", False),
        (["null"], b"null", True),
        ("*", b"null", True),
        ("*", b"http://anywhere.example", True),
        (["*"], b"nonsense", True),
        ([], b"http://example.com", False),
        ([], None, True),
        (None, None, True),
    ],
    ids=str,
)
def test_lists_of_origins(allowed, origin, verdict):
    """A list is complete, its entries are compared without regard to case and default ports."""
    request = SCANNER.scan(more(*([] if origin is None else [b"Origin: " + origin])))
    assert OriginPolicy(allowed).allows(request) is verdict


@pytest.mark.parametrize(
    "secure, origin, host, verdict",
    [
        (True, b"https://example.com", b"example.com", True),
        (True, b"https://example.com", b"example.com:443", True),
        (True, b"http://example.com", b"example.com", False),
        (False, b"http://example.com", b"example.com", True),
        (False, b"https://example.com", b"example.com", False),
        (None, b"https://example.com", b"example.com", True),
        (None, b"https://example.com", b"example.com:80", False),
    ],
    ids=str,
)
def test_own_origin_and_tls(secure, origin, host, verdict):
    """Where the scheme of the connection is known, our own origin has it."""
    request = SCANNER.scan(more(b"Origin: " + origin, host=host))
    assert ORIGINS.allows(request, secure) is verdict


def test_no_host_no_own_origin():
    """A request that names no host has no origin of its own."""
    request = SCANNER.scan(b"OPTIONS * HTTP/1.1\r\nHost:\r\nOrigin: http://example.com\r\n\r\n")
    assert not ORIGINS.allows(request)


@pytest.mark.parametrize(
    "allowed", ["https://a.example", ["a.example"], ["https://a.example/"], [""]], ids=str
)
def test_origins_are_checked_when_they_are_set(allowed):
    """A string for a list, or an entry that no browser can send, is refused."""
    with pytest.raises(ConfigurationError, match="origin"):
        OriginPolicy(allowed)


# Properties -------------------------------------------------------------------------------------------------

PIECES = [
    b"GET", b"POST", b"OPTIONS", b"PRI", b" ", b" / ", b"/", b"*", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0",
    b"HTTP/1.", b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\t", b"\x00", b"\x16\x03", b"\x7f",
    b"\xe9", b":", b": ", b",", b";", b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"Host: a:1\r\n", b"Host:",
    b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"Content-Length: 5\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"gzip", b"chunked", b"0", b"5", b"X: y\r\n",
    b"X", b"Origin: http://a\r\n", b"http://b", b"x" * 30, b"[::1]", b"#", b"%",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join)
LINE = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"GET http://b/ HTTP/1.0", b"OPTIONS * HTTP/1.7"]
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Host", b"X", b"content-length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"\xe9"]
        ),
        st.sampled_from([b":", b": ", b":\t", b" : "]),
        st.sampled_from(
            [
                b"a",
                b"5",
                b"5, 5",
                b"05",
                b"chunked",
                b"Chunked ",
                b"gzip",
                b"",
                b",",
                b"\x80",
                b"\x01",
                b"a\tb",
            ]
        ),
    ).map(b"".join),
    max_size=6,
)
HEADS = st.tuples(LINE, FIELDS).map(lambda parts: b"\r\n".join([parts[0], b"Host: a", *parts[1], b"", b""]))
DATA = st.one_of(st.binary(max_size=200), SOUP, HEADS)


def outcome(scanner, pieces):
    """Return what scanning led to, in a form that can be compared."""
    try:
        request = feed(scanner, pieces)
    except Rejection as rejection:
        return rejection.status, rejection.reason, rejection.headers, rejection.body
    if request is None:
        return None
    assert type(request) is Request
    return [getattr(request, name) for name in Request.__slots__]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(DATA, st.lists(st.integers(0, 1400), max_size=6), st.booleans())
@example(b"\r\n" * 8 + b"\r", [17], False)
def test_cutting_changes_nothing(data, cuts, small):
    """Any bytes are a request, a refusal or not enough, and the same one however they are cut."""
    scanner = SMALL if small else SCANNER
    if small:
        data += b"x" * 1024  # a limit may be noticed a KiB late, but then with the same words
    expected = outcome(scanner, [data])
    places = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert outcome(scanner, pieces) == expected
    assert outcome(scanner, singly(data)) == expected


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.one_of(SOUP, HEADS))
def test_what_we_accept_h11_accepts(data):
    """h11, which sees only the heads accepted here, never refuses one of them."""
    try:
        request = SCANNER.scan(data)
    except Rejection:
        return
    if request is None:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(data[request.skipped : request.size])
    event = server.next_event()
    assert type(event) is h11.Request
    assert event.method.decode() == request.method
    lengths = [int(value) for name, value in event.headers if name == b"content-length"]
    assert lengths == ([] if request.content_length is None else [request.content_length])
    codings = [value for name, value in event.headers if name == b"transfer-encoding"]
    assert codings == ([b"chunked"] if request.chunked else [])


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.text(max_size=30))
def test_any_text_can_be_a_header(text):
    """Extension and subprotocol lists of any content are judged, never crashed on."""
    value = text.encode("latin-1", "replace")
    data = more(
        b"Sec-WebSocket-Extensions: " + value, b"Sec-WebSocket-Protocol: " + value, b"Origin: " + value
    )
    assert answer(SCANNER, [data])[0].startswith(b"HTTP/1.1 ")


# Cost -------------------------------------------------------------------------------------------------------

DRIBBLES = {
    "long line": b"GET /" + b"x" * 8000 + b" HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 8000,
    "many lines": b"GET / HTTP/1.1\r\n" + b"X: 1234567890\r\n" * 100,
    "long lines": b"GET / HTTP/1.1\r\n" + (b"X: " + b"x" * 1990 + b"\r\n") * 8,
}


@pytest.mark.parametrize("name", DRIBBLES)
def test_dribbling_costs_in_proportion(monkeypatch, name):
    """A peer that sends byte by byte makes us judge each byte a few times, not once per byte after it."""
    data = DRIBBLES[name]
    judged = 0
    judge = HeadScanner._judge

    def count(self, data, line):
        nonlocal judged
        judged += len(data) - line
        judge(self, data, line)

    monkeypatch.setattr(HeadScanner, "_judge", count)
    assert feed(SCANNER, singly(data)) is None
    # The first 64 bytes are judged each time, the rest when a line ends (twice) and once per KiB of the line.
    assert judged < 64 * 64 + 7 * len(data)


def test_one_scanner_holds_nothing_of_a_connection():
    """Heads that arrive interleaved on two connections do not disturb each other."""
    first, second = bytearray(), bytearray()
    for one, other in zip(singly(CHROME[:-1]), singly(GOOD["minimal"][0][:-1] + b"x" * 600), strict=False):
        first += one
        assert SCANNER.scan(first, len(first) - 1) is None
        if len(second) < len(GOOD["minimal"][0]) - 1:
            second += other
            assert SCANNER.scan(second, len(second) - 1) is None
    assert SCANNER.scan(first + b"\n", len(first)).path == "/chat"
    assert SCANNER.scan(second + b"\n", len(second)).path == "/chat"


def test_every_name_is_exported():
    """The module offers what it lists."""
    assert all(hasattr(handshake, name) for name in handshake.__all__)
