"""The tables: what a peer sends, the rule it tests, and what must come back.

RFC 9110 is HTTP semantics, 9112 HTTP/1.1, 6455 WebSocket, 3986 URIs, 3629 UTF-8. Where a rule leaves a choice, all
that it allows are listed, except where this server has chosen the strict way: then the strict one alone.
"""

from __future__ import annotations

from typing import NamedTuple

from hostile_peer import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close, frame, head


class Request(NamedTuple):
    """A request head: it is answered with one of `statuses` (101: and then the connection must work)."""

    name: str
    rule: str
    sent: bytes
    statuses: tuple[int, ...]

    @property
    def method(self) -> str:
        """The method, where it matters to the reader of a response."""
        return "HEAD" if self.sent.startswith(b"HEAD ") else "GET"


def line(name: str, rule: str, text: bytes, *statuses: int) -> Request:
    """Return a good handshake but for its first line."""
    return Request(name, rule, head(line=text), statuses)


def lines(name: str, rule: str, *rest: bytes | int) -> Request:
    """Return a good handshake with more header lines."""
    return Request(name, rule, head(*(x for x in rest if isinstance(x, bytes))), _ints(rest))


def get(name: str, rule: str, *rest: bytes | int) -> Request:
    """Return a GET with just these header lines."""
    text = b"\r\n".join([b"GET / HTTP/1.1", *(x for x in rest if isinstance(x, bytes)), b"", b""])
    return Request(name, rule, text, _ints(rest))


def changed(name: str, rule: str, *statuses: int, **changes: bytes | None) -> Request:
    """Return a good handshake with some of its headers changed."""
    return Request(name, rule, head(**changes), statuses)


def _ints(rest: tuple[bytes | int, ...]) -> tuple[int, ...]:
    return tuple(x for x in rest if isinstance(x, int))


HOST = b"Host: example.com"
INVALID_LINE = "9112, 3: an invalid request-line SHOULD be answered with 400"
TARGET = "9112, 3.2 and 3986, 3.3: not in the grammar of a request-target, SHOULD be 400"
METHOD = "9110, 9.1: an unknown method SHOULD be 501, one not allowed 405"
VERSION = "9110, 2.5 and 15.6.6; 9112, 2.3"
HOST_RULE = "9112, 3.2: an invalid Host MUST be answered with 400"
LINE_END = (
    "9112, 2.2: a bare CR MUST be refused or replaced, a bare LF MAY be taken (refused here: smuggling)"
)
NAME = "9112, 5.1: field-name is a token, the colon follows at once; MUST be 400"
VALUE = "9110, 5.5: CR, LF, NUL in a value MUST be refused or replaced; other controls are invalid"
LENGTH = "9112, 6.3: an invalid Content-Length is unrecoverable: MUST be 400, then close"
CODING = "9112, 6.1 and 6.3: Transfer-Encoding"
WS = "6455, 4.2.1 and 4.2.2: no match of the description, MUST be an HTTP error"
LIST = "9110, 5.6.1: list syntax, any case, several lines"
EXTENSION = "6455, 9.1: malformed Sec-WebSocket-Extensions MUST fail the connection"

REQUEST_LINES = [
    line("origin-form", "9112, 3.2.1", b"GET / HTTP/1.1", 101),
    line("query", "9112, 3.2.1", b"GET /a/b;c=1?d=e&f=%20/?@:!$'()*+,-._~ HTTP/1.1", 101),
    line("no-path-question", TARGET, b"GET ?a=b HTTP/1.1", 400),
    line("double-slash", "3986, 3.3: absolute-path may hold empty segments", b"GET //a//b HTTP/1.1", 101),
    line("absolute-form", "9112, 3.2.2: MUST be accepted", b"GET http://example.com/chat HTTP/1.1", 101),
    line("absolute-other-host", "9112, 3.2.2: MUST ignore Host", b"GET http://other.example/ HTTP/1.1", 101),
    line(
        "absolute-scheme-case",
        "3986, 3.1: schemes are case-insensitive",
        b"GET HTTP://example.com/ HTTP/1.1",
        101,
    ),
    line("absolute-no-path", "9112, 3.2.2", b"GET http://example.com HTTP/1.1", 101),
    line(
        "absolute-query-only", "3986, 3: empty path, then a query", b"GET http://example.com?a HTTP/1.1", 101
    ),
    line(
        "absolute-no-host",
        "9110, 4.2.1: an http URI without host MUST be rejected",
        b"GET http:///x HTTP/1.1",
        400,
    ),
    line("absolute-port-only", "9110, 4.2.1", b"GET http://:80/x HTTP/1.1", 400),
    line(
        "absolute-userinfo",
        "9110, 4.2.4: SHOULD be taken for an error",
        b"GET http://u@example.com/ HTTP/1.1",
        400,
    ),
    line("absolute-bad-host", TARGET, b"GET http://exa[mple/ HTTP/1.1", 400),
    line("absolute-bad-port", TARGET, b"GET http://example.com:8x/ HTTP/1.1", 400),
    line("absolute-fragment", TARGET, b"GET http://example.com/#x HTTP/1.1", 400),
    Request(
        "absolute-without-host-field",
        "9112, 3.2: MUST be 400",
        head(line=b"GET http://a/ HTTP/1.1", host=None),
        (400,),
    ),
    line("asterisk-with-get", "9112, 3.2.4: for OPTIONS only", b"GET * HTTP/1.1", 400),
    line("authority-with-get", "9112, 3.2.3: for CONNECT only", b"GET example.com:80 HTTP/1.1", 400),
    line("relative-target", TARGET, b"GET chat HTTP/1.1", 400),
    line("fragment", TARGET, b"GET /chat#x HTTP/1.1", 400),
    line("nul-in-target", TARGET, b"GET /a\x00b HTTP/1.1", 400),
    line("control-in-target", TARGET, b"GET /a\x1bb HTTP/1.1", 400),
    line("delete-in-target", TARGET, b"GET /a\x7fb HTTP/1.1", 400),
    line("raw-utf8-in-target", TARGET, "GET /é HTTP/1.1".encode(), 400),
    # Browsers send these as they are (WHATWG URL, the query percent-encode set), so the SHOULD is not followed.
    line("bad-percent", TARGET, b"GET /%zz?100% HTTP/1.1", 101, 400),
    line("browser-characters", TARGET, b"GET /[|]?{}^`\\[]| HTTP/1.1", 101, 400),
    # And these never.
    line("angle-brackets-in-target", TARGET, b"GET /<script> HTTP/1.1", 400),
    line("quotes-in-target", TARGET, b'GET /?"a" HTTP/1.1', 400),
    line("space-in-target", INVALID_LINE, b"GET /a b HTTP/1.1", 400),
    line("two-spaces", INVALID_LINE, b"GET  / HTTP/1.1", 400),
    line("two-spaces-before-version", INVALID_LINE, b"GET /  HTTP/1.1", 400),
    line("tabs", INVALID_LINE, b"GET\t/\tHTTP/1.1", 400),
    line("trailing-space", INVALID_LINE, b"GET / HTTP/1.1 ", 400),
    line("leading-space", INVALID_LINE, b" GET / HTTP/1.1", 400),
    line("fourth-word", INVALID_LINE, b"GET / HTTP/1.1 x", 400),
    line("no-method", INVALID_LINE, b"/ HTTP/1.1", 400),
    line("no-target", INVALID_LINE, b"GET HTTP/1.1", 400),
    line("no-version", INVALID_LINE, b"GET /", 400, 505),
    line("bad-method-character", INVALID_LINE, b"G@T / HTTP/1.1", 400),
    line("bare-cr-in-line", LINE_END, b"GET /\r HTTP/1.1", 400),
    Request(
        "tls-hello",
        INVALID_LINE,
        b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + b"\x7a" * 40 + b"\r\n\r\n",
        (400,),
    ),
    Request("garbage", INVALID_LINE, bytes(range(128, 256)) + b"\r\n\r\n", (400,)),
    Request("one-crlf-first", "9112, 2.2: SHOULD be ignored", b"\r\n" + head(), (101,)),
    Request(
        "three-crlf-first", "9112, 2.2: at least one SHOULD be ignored", b"\r\n" * 3 + head(), (101, 400)
    ),
    line("post", METHOD, b"POST / HTTP/1.1", 405, 501),
    line("put", METHOD, b"PUT / HTTP/1.1", 405, 501),
    line("trace", METHOD, b"TRACE / HTTP/1.1", 405, 501),
    line("options", METHOD, b"OPTIONS / HTTP/1.1", 200, 204, 405, 501),
    line("options-asterisk", METHOD, b"OPTIONS * HTTP/1.1", 200, 204, 405, 501),
    line("connect", METHOD, b"CONNECT example.com:80 HTTP/1.1", 400, 405, 501),
    line("connect-origin-form", "9112, 3.2.3", b"CONNECT / HTTP/1.1", 400, 405, 501),
    line("head", "9110, 9.3.2: no content", b"HEAD / HTTP/1.1", 405, 426),
    line("unknown-method", METHOD, b"BREW / HTTP/1.1", 501),
    line("method-is-case-sensitive", METHOD, b"get / HTTP/1.1", 400, 405, 501),
    line(
        "long-method", "9112, 3: longer than any implemented SHOULD be 501", b"A" * 1000 + b" / HTTP/1.1", 501
    ),
    line("http-1.0", VERSION + "; 6455, 4.2.1: HTTP/1.1 or higher", b"GET / HTTP/1.0", 400, 426, 505),
    line("http-1.2", VERSION + ": taken as the highest minor version known", b"GET / HTTP/1.2", 101),
    line("http-1.9", VERSION, b"GET / HTTP/1.9", 101),
    line("http-2.0", VERSION, b"GET / HTTP/2.0", 505),
    line("http-0.9", VERSION, b"GET / HTTP/0.9", 400, 505),
    line("http-9.9", VERSION, b"GET / HTTP/9.9", 505),
    line("http-2-preface", VERSION, b"PRI * HTTP/2.0", 400, 501, 505),
    line("version-lower-case", "9112, 2.3: HTTP-name is case-sensitive", b"GET / http/1.1", 400),
    line("version-two-digits", VERSION, b"GET / HTTP/1.10", 400),
    line("version-no-minor", VERSION, b"GET / HTTP/1", 400, 505),
    line("version-other-name", VERSION, b"GET / HTTQ/1.1", 400),
    line(
        "line-of-8000", "9112, 3: RECOMMENDED to take 8000 octets", b"GET /" + b"a" * 7986 + b" HTTP/1.1", 101
    ),
    line(
        "line-of-20000",
        "9112, 3: a too long target MUST be 414",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1",
        414,
    ),
    Request("line-without-end", "9112, 3: MUST be 414", b"GET /" + b"a" * 70_000, (414,)),
    Request("method-without-end", "9112, 3: SHOULD be 501", b"A" * 70_000, (400, 414, 501)),
]

HEADERS = [
    changed("no-host", HOST_RULE, 400, host=None),
    lines("host-twice", "9112, 3.2: more than one Host MUST be 400", HOST, 400),
    lines("host-twice-different", "9112, 3.2: MUST be 400", b"host: other.example", 400),
    changed("host-list", HOST_RULE, 400, host=b"a.example, b.example"),
    changed("host-space", HOST_RULE, 400, host=b"exa mple.com"),
    changed("host-path", HOST_RULE, 400, host=b"example.com/x"),
    changed("host-userinfo", HOST_RULE, 400, host=b"user@example.com"),
    changed("host-bad-port", HOST_RULE, 400, host=b"example.com:abc"),
    changed("host-two-ports", HOST_RULE, 400, host=b"example.com:80:80"),
    changed("host-open-bracket", HOST_RULE, 400, host=b"[::1"),
    changed("host-after-bracket", HOST_RULE, 400, host=b"[::1]x"),
    changed("host-bad-v6", HOST_RULE, 400, host=b"[1::2::3]"),
    changed("host-bare-v6", HOST_RULE, 400, host=b"::1"),
    changed("host-bad-percent", HOST_RULE, 400, host=b"exa%zzmple"),
    changed("host-markup", HOST_RULE, 400, host=b"<example>"),
    changed("host-obs-text", HOST_RULE, 400, host=b"ex\xe4mple.com"),
    changed("host-empty", "9112, 3.2: valid, and 3.3: MAY be refused for http", 101, 400, host=b""),
    changed("host-port", "9110, 7.2", 101, host=b"example.com:8080"),
    changed("host-empty-port", "3986, 3.2.3: port is *DIGIT", 101, host=b"example.com:"),
    changed("host-v4", "9110, 7.2", 101, host=b"127.0.0.1:80"),
    changed("host-v6", "3986, 3.2.2", 101, host=b"[2001:db8::1]:80"),
    changed("host-v6-v4", "3986, 3.2.2", 101, host=b"[::ffff:192.0.2.1]"),
    changed("host-underscore", "3986, 3.2.2: reg-name", 101, host=b"my_service"),
    changed("host-upper-case", "3986, 3.2.2", 101, host=b"EXAMPLE.com"),
    lines("space-before-colon", NAME, b"X : y", 400),
    lines("tab-before-colon", NAME, b"X\t: y", 400),
    changed("space-before-colon-of-a-known-one", NAME, 400, host=None)._replace(
        sent=head(host=None).replace(b"Upgrade:", b"Host : example.com\r\nUpgrade:", 1)
    ),
    lines("empty-name", NAME, b": y", 400),
    lines("no-colon", NAME, b"no colon here", 400),
    lines("delimiter-in-name", NAME, b"X(y): z", 400),
    lines("quote-in-name", NAME, b'"X": z', 400),
    lines("obs-text-in-name", NAME, b"X\xe4: z", 400),
    lines("nul-in-name", NAME, b"X\x00: z", 400),
    lines("obs-fold", "9112, 5.2: MUST be 400 or replaced (400 here)", b"X: a\r\n b", 400),
    lines("obs-fold-tab", "9112, 5.2", b"X: a\r\n\tb", 400),
    Request(
        "space-before-first-header",
        "9112, 2.2: MUST be refused or dropped",
        b"GET / HTTP/1.1\r\n " + head()[20:],
        (400,),
    ),
    Request("bare-lf-everywhere", LINE_END, head().replace(b"\r\n", b"\n"), (400,)),
    Request("bare-lf-once", LINE_END, head().replace(b"\r\n", b"\n", 1), (400,)),
    lines("bare-lf-in-value", LINE_END, b"X: a\nY: b", 400),
    Request("bare-lf-at-end", LINE_END, head()[:-2] + b"\n", (400,)),
    Request("crlf-lf", LINE_END, head().replace(b"\r\n\r\n", b"\r\n\n"), (400,)),
    Request("bare-cr-everywhere", LINE_END, head().replace(b"\r\n", b"\r"), (400,)),
    lines("bare-cr-in-value", LINE_END, b"X: a\rb", 400),
    lines("cr-cr-lf", LINE_END, b"X: a\r", 400),
    lines("nul-in-value", VALUE, b"X: a\x00b", 400),
    lines("control-in-value", VALUE, b"X: a\x01b", 101, 400),
    lines("delete-in-value", VALUE, b"X: a\x7fb", 101, 400),
    lines("obs-text-in-value", "9110, 5.5: obs-text SHOULD be taken as opaque", b"X: \xe4\xff\x80", 101),
    lines("tab-in-value", "9110, 5.5", b"X: a\tb", 101),
    lines("empty-value", "9110, 5.5", b"X:", b"Y: ", 101),
    lines("unknown-headers", "9110, 5.1: SHOULD be ignored", b"X-Strange_~!#$%&'*+.^`|: 1", 101),
    Request("no-space-after-colon", "9112, 5", head().replace(b": ", b":"), (101,)),
    Request(
        "much-space-around-values",
        "9112, 5.1: excluded",
        head()
        .replace(b": ", b":\t  ")
        .replace(b"\r\n", b" \t\r\n")
        .replace(b"HTTP/1.1 \t", b"HTTP/1.1")
        .removesuffix(b" \t\r\n")
        + b"\r\n",
        (101,),
    ),
    Request(
        "names-of-any-case",
        "9110, 5.1",
        head().replace(b"Sec-WebSocket", b"sEC-wEBsOCKET").replace(b"Host", b"HOST"),
        (101,),
    ),
    lines("too-many-headers", "9110, 5.4 and 6585, 5", *[b"X: y"] * 5000, 431),
    lines("header-too-long", "9110, 5.4 and 6585, 5", b"X: " + b"y" * 70_000, 431),
    lines("many-long-headers", "9110, 5.4 and 6585, 5", *[b"X: " + b"y" * 4000] * 20, 431),
    Request("header-without-end", "6585, 5", head()[:-2] + b"X: " + b"y" * 70_000, (431,)),
    Request("header-name-without-end", "6585, 5", head()[:-2] + b"y" * 70_000, (400, 431)),
    lines("length-zero", "9110, 8.6", b"Content-Length: 0", 101),
    Request(
        "body",
        "6455, 4.2.1; 9112, 6.3: the body is no frame",
        head(b"Content-Length: 5") + b"hello",
        (400, 413),
    ),
    lines("length-word", LENGTH, b"Content-Length: five", 400),
    lines("length-minus", LENGTH, b"Content-Length: -1", 400),
    lines("length-plus", LENGTH, b"Content-Length: +0", 400),
    lines("length-hex", LENGTH, b"Content-Length: 0x0", 400),
    lines("length-empty", LENGTH, b"Content-Length:", 400),
    lines("length-underscore", LENGTH, b"Content-Length: 0_0", 400),
    lines("length-list", LENGTH, b"Content-Length: 0, 5", 400),
    lines("length-twice", LENGTH, b"Content-Length: 0", b"Content-Length: 5", 400),
    lines(
        "length-same-twice", LENGTH + " or taken as one", b"Content-Length: 0", b"Content-Length: 0", 101, 400
    ),
    lines(
        "length-huge",
        LENGTH + "; 9110, 8.6: MUST NOT overflow",
        b"Content-Length: 18446744073709551616",
        400,
        413,
    ),
    lines("length-arabic-digits", LENGTH, b"Content-Length: \xd9\xa0", 400),
    lines(
        "coding-and-length",
        "9112, 6.3: ought to be an error",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 0",
        400,
    ),
    lines("length-and-coding", "9112, 6.3", b"Content-Length: 5", b"Transfer-Encoding: chunked", 400),
    lines("chunked", CODING, b"Transfer-Encoding: chunked", 400, 411, 413, 501),
    lines("coding-unknown", "9112, 6.1: SHOULD be 501", b"Transfer-Encoding: zork", 501),
    lines("coding-gzip-chunked", "9112, 6.1: SHOULD be 501", b"Transfer-Encoding: gzip, chunked", 400, 501),
    lines("chunked-not-last", "9112, 6.3: MUST be 400", b"Transfer-Encoding: chunked, gzip", 400, 501),
    lines("chunked-twice", CODING, b"Transfer-Encoding: chunked, chunked", 400, 501),
    lines(
        "chunked-in-two-lines",
        CODING,
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        400,
        501,
    ),
    lines("xchunked", CODING, b"Transfer-Encoding: xchunked", 400, 501),
    lines("chunked-after-vtab", CODING, b"Transfer-Encoding: \x0bchunked", 400, 501),
    lines("coding-empty", CODING, b"Transfer-Encoding:", 400, 501),
    lines("te-is-harmless", "9110, 10.1.4", b"TE: trailers", 101),
    Request(
        "post-with-body",
        METHOD,
        b"POST / HTTP/1.1\r\n" + HOST + b"\r\nContent-Length: 3\r\n\r\nabc",
        (405, 501),
    ),
    Request(
        "post-chunked",
        METHOD,
        b"POST / HTTP/1.1\r\n" + HOST + b"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        (405, 501),
    ),
    Request(
        "coding-in-1.0",
        "9112, 6.1: MUST be taken as faulty",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (400, 405, 501, 505),
    ),
    lines("expect-other", "9110, 10.1.1: MAY be 417", b"Expect: the-impossible", 101, 417),
]

HANDSHAKE = [
    get("plain-get", "9110, 15.5.22: Upgrade", HOST, 426),
    changed("no-upgrade", WS, 400, 426, upgrade=None),
    changed("upgrade-empty", WS, 400, 426, upgrade=b""),
    changed("upgrade-other", WS, 400, 426, upgrade=b"h2c"),
    changed("upgrade-longer", WS, 400, 426, upgrade=b"websockets"),
    changed("upgrade-with-version", WS, 400, 426, upgrade=b"websocket/13"),
    changed("upgrade-case", "6455, 4.2.1: ASCII case-insensitive", 101, upgrade=b"WebSocket"),
    changed("upgrade-list", LIST, 101, upgrade=b"h2c, HTTP/2.0,websocket"),
    changed("upgrade-two-lines", LIST, 101, upgrade=b"h2c\r\nUpgrade: websocket"),
    changed("no-connection", WS, 400, 426, connection=None),
    changed("connection-other", WS, 400, 426, connection=b"keep-alive"),
    changed("connection-longer", WS, 400, 426, connection=b"Upgraded"),
    changed("connection-quoted", WS, 400, 426, connection=b'"Upgrade"'),
    changed("connection-case", LIST, 101, connection=b"uPGRADE"),
    changed("connection-list", LIST, 101, connection=b"keep-alive, Upgrade"),
    changed("connection-list-tight", LIST, 101, connection=b"keep-alive,upgrade"),
    changed(
        "connection-empty-elements", "9110, 5.6.1.2: MUST be ignored", 101, connection=b", ,\t, Upgrade , ,"
    ),
    changed("connection-two-lines", LIST, 101, connection=b"keep-alive\r\nConnection: Upgrade"),
    changed("no-key", WS, 400, sec_websocket_key=None),
    changed("key-empty", WS, 400, sec_websocket_key=b""),
    changed(
        "key-of-15", "6455, 4.2.1: 16 bytes when decoded", 400, sec_websocket_key=b"MTIzNDU2Nzg5MDEyMzQ1"
    ),
    changed("key-of-17", "6455, 4.2.1", 400, sec_websocket_key=b"MTIzNDU2Nzg5MDEyMzQ1Njc="),
    changed(
        "key-of-32", "6455, 4.2.1", 400, sec_websocket_key=b"MTIzNDU2Nzg5MDEyMzQ1NjEyMzQ1Njc4OTAxMjM0NTY="
    ),
    changed("key-no-base64", "6455, 4.1: base64", 400, sec_websocket_key=b"!" * 22 + b"=="),
    changed("key-unpadded", "4648, 3.2: MUST be padded", 400, sec_websocket_key=KEY[:-2]),
    changed("key-half-padded", "4648, 3.2", 400, sec_websocket_key=KEY[:-1]),
    changed("key-padding-first", "4648, 3.3", 400, sec_websocket_key=b"==" + KEY[:-2]),
    changed("key-url-alphabet", "4648, 5: not base64", 400, sec_websocket_key=b"-_-_-_-_-_-_-_-_-_-_-A=="),
    changed(
        "key-inner-space", "4648, 3.3: MUST be rejected", 400, sec_websocket_key=b"dGhlIHNhbX BsZSBub25jZQ=="
    ),
    changed("key-list", "6455, 4.2.1", 400, sec_websocket_key=KEY + b", " + KEY),
    lines("key-twice", "6455, 11.3.1: MUST NOT appear more than once", b"Sec-WebSocket-Key: " + KEY, 400),
    changed("no-ws-version", WS, 400, 426, sec_websocket_version=None),
    changed("version-empty", WS, 400, 426, sec_websocket_version=b""),
    changed("version-8", "6455, 4.2.2: 426 with the versions understood", 426, sec_websocket_version=b"8"),
    changed("version-14", "6455, 4.4", 426, sec_websocket_version=b"14"),
    changed("version-255", "6455, 4.4", 426, sec_websocket_version=b"255"),
    changed("version-word", WS, 400, 426, sec_websocket_version=b"thirteen"),
    changed("version-leading-zero", WS, 400, 426, sec_websocket_version=b"013"),
    changed("version-plus", WS, 400, 426, sec_websocket_version=b"+13"),
    changed("version-list", "6455, 4.3: one version", 400, 426, sec_websocket_version=b"13, 8"),
    lines(
        "version-twice",
        "6455, 11.3.5: MUST NOT appear more than once",
        b"Sec-WebSocket-Version: 13",
        400,
        426,
    ),
    lines(
        "subprotocol-unknown", "6455, 4.2.2: none agreed, no header", b"Sec-WebSocket-Protocol: chat, x", 101
    ),
    lines(
        "subprotocol-two-lines",
        "6455, 11.3.4",
        b"Sec-WebSocket-Protocol: a",
        b"Sec-WebSocket-Protocol: b",
        101,
    ),
    lines("subprotocol-malformed", "6455, 4.1: tokens", b"Sec-WebSocket-Protocol: a b", 101, 400),
    lines("subprotocol-twice", "6455, 4.1: MUST be unique", b"Sec-WebSocket-Protocol: a, a", 101, 400),
    lines("extension-unknown", "6455, 9.1: MUST be ignored", b"Sec-WebSocket-Extensions: x-foo", 101),
    lines(
        "extension-deflate",
        "6455, 9.1",
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        101,
    ),
    lines(
        "extension-list",
        "6455, 9.1",
        b'Sec-WebSocket-Extensions: a; b=1; c="d", a;e',
        b"Sec-WebSocket-Extensions: f",
        101,
    ),
    lines("extension-two-words", EXTENSION, b"Sec-WebSocket-Extensions: foo bar", 400),
    lines("extension-no-name", EXTENSION, b"Sec-WebSocket-Extensions: ;a=b", 400),
    lines("extension-no-parameter", EXTENSION, b"Sec-WebSocket-Extensions: foo;", 400),
    lines("extension-no-parameter-name", EXTENSION, b"Sec-WebSocket-Extensions: foo; =b", 400),
    lines("extension-no-value", EXTENSION, b"Sec-WebSocket-Extensions: foo; a=", 400),
    lines("extension-open-quote", EXTENSION, b'Sec-WebSocket-Extensions: foo; a="b', 400),
    lines(
        "extension-quoted-space",
        EXTENSION + " (a quoted value MUST be a token)",
        b'Sec-WebSocket-Extensions: foo; a="b c"',
        400,
    ),
    lines("extension-delimiter", EXTENSION, b"Sec-WebSocket-Extensions: f@o", 400),
    lines("accept-in-request", "6455, 11.3.3: not meant for requests", b"Sec-WebSocket-Accept: x", 101),
    lines("any-origin", "6455, 10.2: this server allows all", b"Origin: http://evil.example", 101),
]

REQUESTS = REQUEST_LINES + HEADERS + HANDSHAKE

# Pages of which origin may open a connection, with the settings as they come (origins=None): our own host's.
ORIGINS = [
    # name, target, Host, Origin lines, statuses
    ("none", b"/", b"example.com", [], (101,)),
    ("own", b"/", b"example.com", [b"http://example.com"], (101,)),
    ("own-port", b"/", b"example.com:8080", [b"http://example.com:8080"], (101,)),
    (
        "own-default-port-in-origin",
        b"/",
        b"example.com",
        [b"http://example.com:80"],
        (101, 403),
    ),  # not serialized so
    ("own-default-port-in-host", b"/", b"example.com:80", [b"http://example.com"], (101,)),
    ("own-empty-port", b"/", b"example.com:", [b"http://example.com"], (101,)),
    ("own-case", b"/", b"EXAMPLE.com", [b"http://example.com"], (101,)),
    ("own-v6", b"/", b"[::1]:8080", [b"http://[::1]:8080"], (101,)),
    ("own-v6-default-port", b"/", b"[::1]", [b"http://[::1]"], (101,)),
    ("own-by-absolute-form", b"http://example.com/", b"other.example", [b"http://example.com"], (101,)),
    (
        "host-ignored-with-absolute-form",
        b"http://example.com/",
        b"evil.example",
        [b"http://evil.example"],
        (403,),
    ),
    ("other", b"/", b"example.com", [b"http://evil.example"], (403,)),
    ("other-port", b"/", b"example.com:8080", [b"http://example.com:8081"], (403,)),
    ("other-port-than-default", b"/", b"example.com", [b"http://example.com:8080"], (403,)),
    ("suffix", b"/", b"example.com", [b"http://example.com.evil.example"], (403,)),
    ("prefix", b"/", b"example.com", [b"http://notexample.com"], (403,)),
    ("subdomain", b"/", b"example.com", [b"http://a.example.com"], (403,)),
    ("userinfo", b"/", b"example.com", [b"http://example.com@evil.example"], (400, 403)),
    ("userinfo-own", b"/", b"example.com", [b"http://evil@example.com"], (400, 403)),
    ("null", b"/", b"example.com", [b"null"], (403,)),
    ("null-and-host-null", b"/", b"null", [b"null"], (403,)),
    ("empty", b"/", b"example.com", [b""], (400, 403)),
    ("no-scheme", b"/", b"example.com", [b"example.com"], (400, 403)),
    ("file", b"/", b"example.com", [b"file://"], (400, 403)),
    ("other-scheme", b"/", b"example.com", [b"ftp://example.com"], (403,)),
    ("extension", b"/", b"example.com", [b"chrome-extension://abcdef"], (403,)),
    ("twice-own-first", b"/", b"example.com", [b"http://example.com", b"http://evil.example"], (400, 403)),
    ("twice-own-last", b"/", b"example.com", [b"http://evil.example", b"http://example.com"], (400, 403)),
    ("list", b"/", b"example.com", [b"http://example.com http://evil.example"], (400, 403)),
    ("comma-list", b"/", b"example.com", [b"http://example.com, http://evil.example"], (400, 403)),
    ("v6-other", b"/", b"[::1]", [b"http://[::2]"], (403,)),
    ("backslash", b"/", b"example.com", [b"http://example.com\\evil.example"], (400, 403)),
]


class Frames(NamedTuple):
    """Frames after a good handshake: `replies` come back, then `code` closes (None: the connection goes on)."""

    name: str
    rule: str
    sent: bytes
    replies: list[tuple[int, bytes]]
    code: int | tuple[int, ...] | None = None


def fails(
    name: str, rule: str, sent: bytes, code: int = 1002, replies: list[tuple[int, bytes]] | None = None
) -> Frames:
    """Return frames the server must fail the connection for."""
    return Frames(name, rule, sent, replies or [], code)


def echoes(name: str, rule: str, sent: bytes, *replies: tuple[int, bytes]) -> Frames:
    """Return frames that are answered, after which the connection goes on."""
    return Frames(name, rule, sent, list(replies))


def sizes() -> list[Frames]:
    """Return messages of the sizes where the length field changes, of both kinds."""
    table = []
    for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 65537, 2**20):
        kind = BINARY if size % 2 else TEXT
        data = (b"\x00\xff" if kind == BINARY else b"ab") * (size // 2 + 1)
        table.append(echoes(f"size-{size}", "6455, 5.2", frame(kind, data[:size]), (kind, data[:size])))
    return table


SPLIT = "κόσμε \U0001f600 " * 3
BAD_UTF8 = {
    "lone-continuation": b"\x80",
    "two-continuations": b"\xbf\x80",
    "overlong-2": b"\xc0\xaf",
    "overlong-2-c1": b"\xc1\xbf",
    "overlong-nul": b"\xc0\x80",
    "overlong-3": b"\xe0\x80\xaf",
    "overlong-3-max": b"\xe0\x9f\xbf",
    "overlong-4": b"\xf0\x80\x80\xaf",
    "overlong-4-max": b"\xf0\x8f\xbf\xbf",
    "surrogate-first": b"\xed\xa0\x80",
    "surrogate-last": b"\xed\xbf\xbf",
    "surrogate-pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "above-10ffff": b"\xf4\x90\x80\x80",
    "f5": b"\xf5\x80\x80\x80",
    "five-bytes": b"\xf8\x88\x80\x80\x80",
    "six-bytes": b"\xfc\x84\x80\x80\x80\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
    "cut-2": b"abc\xc3",
    "cut-3": b"abc\xe2\x82",
    "cut-4": b"abc\xf0\x9f\x98",
    "cut-then-ascii": b"\xe2\x82abc",
    "latin-1": "é".encode("latin-1"),
    "utf-16": b"\xff\xfea\x00",
}
GOOD_UTF8 = [
    "\x00",
    "\x7f",
    "\x80",
    "߿",
    "ࠀ",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\ufffe\uffff",
    "\U00010000",
    "\U0010ffff",
    "\ufeffbom",
]

CONTROL = "6455, 5.5: control frames MUST be short and whole"
RSV = "6455, 5.2: RSV MUST be 0 without an extension, else fail"
OPCODE = "6455, 5.2: an unknown opcode MUST fail the connection"
MASKED = "6455, 5.1: the server MUST close on a frame that is not masked"
MINIMAL = "6455, 5.2: the minimal number of bytes MUST be used for the length"
ORDER = "6455, 5.4: fragments in order, not interleaved"
UTF8 = "6455, 8.1: invalid UTF-8 MUST fail the connection; 3629, 3"
CODE = "6455, 7.4"
AFTER_CLOSE = "6455, 5.5.1 and 1.4: what follows a Close is discarded"
TOO_BIG = "6455, 10.4 and 7.4.1: a limit, 1009; nothing is allocated because it was declared"

FRAMES = [
    *sizes(),
    echoes("mask-of-zeros", "6455, 5.3", frame(TEXT, b"hello", mask=bytes(4)), (TEXT, b"hello")),
    echoes(
        "mask-of-ones", "6455, 5.3", frame(TEXT, b"hello world", mask=b"\xff" * 4), (TEXT, b"hello world")
    ),
    echoes("ping-empty", "6455, 5.5.2: MUST be answered", frame(PING), (PONG, b"")),
    echoes(
        "ping-125", "6455, 5.5.3: identical data", frame(PING, bytes(range(125))), (PONG, bytes(range(125)))
    ),
    echoes(
        "pong-unsolicited",
        "6455, 5.5.3: no answer",
        frame(PONG, b"x") + frame(PONG) + frame(TEXT, b"a"),
        (TEXT, b"a"),
    ),
    echoes(
        "two-fragments", "6455, 5.4", frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b"), (TEXT, b"ab")
    ),
    echoes(
        "empty-fragments",
        "6455, 5.4",
        frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * 3 + frame(CONTINUATION),
        (BINARY, b""),
    ),
    echoes(
        "ping-between-fragments",
        "6455, 5.4: control frames MAY be injected, 5.5.2: answered",
        frame(TEXT, b"a", fin=False)
        + frame(PING, b"p")
        + frame(CONTINUATION, b"b", fin=False)
        + frame(PING, b"q")
        + frame(CONTINUATION, b"c"),
        (PONG, b"p"),
        (PONG, b"q"),
        (TEXT, b"abc"),
    ),
    echoes(
        "pong-between-fragments",
        "6455, 5.4",
        frame(TEXT, b"a", fin=False) + frame(PONG, b"p") + frame(CONTINUATION, b"b"),
        (TEXT, b"ab"),
    ),
    Frames(
        "close-between-fragments",
        "6455, 5.4 and 5.5.1",
        frame(TEXT, b"a", fin=False) + close(1000) + frame(CONTINUATION, b"b"),
        [],
        1000,
    ),
    echoes(
        "utf8-cut-at-each-byte",
        "6455, 5.6: a fragment may end in mid-character",
        frame(TEXT, fin=False)
        + b"".join(frame(0, bytes([b]), fin=False) for b in SPLIT.encode())
        + frame(CONTINUATION),
        (TEXT, SPLIT.encode()),
    ),
    *[
        echoes(
            f"utf8-good-{good.encode('utf-8').hex()}",
            "3629, 3 and 4",
            frame(TEXT, good.encode()),
            (TEXT, good.encode()),
        )
        for good in GOOD_UTF8
    ],
    echoes(
        "binary-is-any",
        "6455, 5.6",
        frame(BINARY, b"\xff\xfe\xed\xa0\x80"),
        (BINARY, b"\xff\xfe\xed\xa0\x80"),
    ),
    echoes(
        "hundred-in-one-write",
        "6455, 5: in order",
        b"".join(frame(TEXT, str(i).encode()) for i in range(100)),
        *((TEXT, str(i).encode()) for i in range(100)),
    ),
    *[
        fails(f"rsv{4 - bit}-{op}", RSV, frame(op, rsv=1 << (bit - 1)))
        for op in (TEXT, BINARY, PING, PONG, CLOSE)
        for bit in (1, 2, 3)
    ],
    fails("rsv1-continuation", RSV, frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=4)),
    fails("rsv-after-message", RSV, frame(TEXT, b"a") + frame(TEXT, b"b", rsv=4), replies=[(TEXT, b"a")]),
    *[fails(f"opcode-{op}", OPCODE, frame(op, b"x")) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
    fails("opcode-3-in-fragments", OPCODE, frame(TEXT, b"a", fin=False) + frame(3, b"b")),
    *[
        fails(f"unmasked-{op}", MASKED, frame(op, b"\x03\xe8", mask=None))
        for op in (TEXT, BINARY, PING, PONG, CLOSE)
    ],
    fails("unmasked-empty", MASKED, frame(TEXT, mask=None)),
    fails(
        "unmasked-continuation", MASKED, frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", mask=None)
    ),
    *[fails(f"control-126-{op}", CONTROL, frame(op, b"\x03\xe8" + b"x" * 124)) for op in (PING, PONG, CLOSE)],
    *[
        fails(f"control-65536-{op}", CONTROL, frame(op, b"\x03\xe8" + b"x" * 65534))
        for op in (PING, PONG, CLOSE)
    ],
    *[
        fails(f"control-fragmented-{op}", CONTROL, frame(op, b"\x03\xe8", fin=False) + frame(CONTINUATION))
        for op in (PING, PONG, CLOSE)
    ],
    fails("control-length-2-bytes", CONTROL, frame(PING, b"x", width=2)),
    fails("control-length-8-bytes", CONTROL, frame(PING, b"x", width=8)),
    fails("length-0-in-2", MINIMAL, frame(TEXT, width=2)),
    fails("length-125-in-2", MINIMAL, frame(TEXT, b"x" * 125, width=2)),
    fails("length-0-in-8", MINIMAL, frame(TEXT, width=8)),
    fails("length-65535-in-8", MINIMAL, frame(TEXT, b"x" * 65535, width=8)),
    fails(
        "length-msb", "6455, 5.2: the most significant bit MUST be 0", frame(BINARY, declared=2**63, width=8)
    ),
    fails("length-all-ones", "6455, 5.2", frame(BINARY, declared=2**64 - 1, width=8)),
    fails("length-2**63-1", TOO_BIG, frame(BINARY, declared=2**63 - 1), 1009),
    fails("length-2**32", TOO_BIG, frame(BINARY, declared=2**32), 1009),
    fails("length-1-too-many", TOO_BIG, frame(TEXT, declared=2**20 + 1), 1009),
    fails(
        "fragments-too-big",
        TOO_BIG,
        frame(BINARY, bytes(2**19), fin=False) + frame(0, bytes(2**19), fin=False) + frame(0, b"x"),
        1009,
    ),
    fails(
        "second-fragment-too-big",
        TOO_BIG,
        frame(BINARY, b"x", fin=False) + frame(CONTINUATION, declared=2**20),
        1009,
    ),
    fails("continuation-first", ORDER, frame(CONTINUATION, b"a")),
    fails("continuation-first-unfinished", ORDER, frame(CONTINUATION, b"a", fin=False)),
    fails(
        "continuation-after-message",
        ORDER,
        frame(TEXT, b"a") + frame(CONTINUATION, b"b"),
        replies=[(TEXT, b"a")],
    ),
    fails("text-in-fragments", ORDER, frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")),
    fails("binary-in-fragments", ORDER, frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False)),
    fails("text-in-binary-fragments", ORDER, frame(BINARY, b"a", fin=False) + frame(TEXT, b"b")),
    *[fails(f"utf8-{name}", UTF8, frame(TEXT, bad), 1007) for name, bad in BAD_UTF8.items()],
    fails("utf8-bad-in-first-fragment", UTF8 + " (at once)", frame(TEXT, b"a\xff", fin=False), 1007),
    fails(
        "utf8-bad-in-second-fragment",
        UTF8,
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xff", fin=False),
        1007,
    ),
    fails(
        "utf8-bad-across-fragments",
        UTF8,
        frame(TEXT, b"\xed", fin=False) + frame(CONTINUATION, b"\xa0", fin=False),
        1007,
    ),
    fails(
        "utf8-cut-in-last-fragment",
        UTF8,
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xe2\x82"),
        1007,
    ),
    fails(
        "utf8-cut-by-empty-last-fragment",
        UTF8,
        frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION),
        1007,
    ),
    fails("utf8-bad-in-half-a-frame", UTF8 + " (at once)", frame(TEXT, b"a\xff" + b"a" * 98)[:20], 1007),
    fails(
        "utf8-bad-after-good-message", UTF8, frame(TEXT, b"ok") + frame(TEXT, b"\xff"), 1007, [(TEXT, b"ok")]
    ),
    Frames("close-empty", CODE + ".1: 1005 is not sent", close(), [], (1000, 0)),
    *[
        Frames(f"close-{code}", CODE, close(code), [], code)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011)
    ],
    *[
        Frames(f"close-{code}", "the registry of 7.4", close(code), [], (code, 1002))
        for code in (1012, 1013, 1014)
    ],
    *[
        Frames(f"close-{code}", CODE + ".2: libraries, applications", close(code), [], code)
        for code in (3000, 3999, 4000, 4999)
    ],
    *[
        fails(f"close-{code}", CODE + ".1 and .2: MUST NOT be sent", close(code))
        for code in (0, 1, 999, 1004, 1005, 1006, 1015)
    ],
    *[
        fails(f"close-{code}", CODE + ".2: reserved, or out of range", close(code))
        for code in (1016, 1100, 2000, 2999, 5000, 65535)
    ],
    fails("close-one-byte", "6455, 5.5.1: a body MUST begin with 2 bytes", frame(CLOSE, b"\x03")),
    Frames("close-reason", "6455, 5.5.1", close(1000, "bye κόσμε".encode()), [], 1000),
    Frames("close-reason-123", "6455, 5.5", close(1000, b"x" * 123), [], 1000),
    fails("close-reason-bad-utf8", UTF8 + "; 5.5.1", close(1000, b"\xff"), 1007),
    fails("close-reason-cut-utf8", UTF8 + "; 5.5.1", close(1000, b"\xe2\x82"), 1007),
    Frames("text-after-close", AFTER_CLOSE, close(1000) + frame(TEXT, b"late"), [], 1000),
    Frames("ping-after-close", AFTER_CLOSE, close(1000) + frame(PING, b"late"), [], 1000),
    Frames("close-after-close", AFTER_CLOSE, close(1000) + close(4000), [], 1000),
    Frames("bad-frame-after-close", AFTER_CLOSE, close(1000) + b"\xff\xff\xff", [], 1000),
    Frames("message-then-close", "6455, 5.5.1", frame(TEXT, b"last") + close(1000), [(TEXT, b"last")], 1000),
    Frames("fragment-then-close", "6455, 5.5.1", frame(TEXT, b"a", fin=False) + close(4001), [], 4001),
]


def codes(case: Frames) -> tuple[int, ...]:
    """Return the close codes that are right (0: an empty Close)."""
    return case.code if isinstance(case.code, tuple) else (case.code,) if case.code is not None else ()
