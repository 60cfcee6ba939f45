"""The client's half of the opening handshake: requests that are right, responses that are believed, and all others."""

from __future__ import annotations

import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ConfigurationError, ProtocolError
from trionet.wire.client_handshake import (
    ResponseLimits,
    ResponseReader,
    UpgradeResponse,
    build_connect_request,
    build_upgrade_request,
    check_upgrade_response,
)
from trionet.wire.handshake import (
    HeadScanner,
    OriginPolicy,
    accept_key,
    build_upgrade_response,
    check_upgrade,
)
from trionet.wire.url import parse_proxy, parse_url

KEY = b"the sample nonce"  # RFC 6455, 1.3
BASE64 = b"dGhlIHNhbXBsZSBub25jZQ=="
TARGET = parse_url("ws://example.org/chat")
GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def whole(data, **options):
    """Feed all at once."""
    reader = ResponseReader(**options)
    return reader, reader.feed(data)


def bytewise(data, **options):
    """Feed byte by byte, to the end of the answer; the rest in one piece."""
    reader = ResponseReader(**options)
    for i in range(len(data)):
        if reader.feed(data[i : i + 1]):
            reader.rest += data[i + 1 :]
            return reader, True
    return reader, False


feeds = pytest.mark.parametrize("feed", [whole, bytewise])


def head(*lines, status="101 Switching Protocols"):
    """Parse a response with these header lines."""
    reader, done = whole("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1"))
    assert done
    return reader.response


# ------------------------------------------------------------------ requests


def test_request_is_that_of_the_rfc():
    """The request has what 4.1 wants, and nothing else."""
    assert build_upgrade_request(TARGET, KEY) == (
        b"GET /chat HTTP/1.1\r\nHost: example.org\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: " + BASE64 + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


def test_our_own_server_understands_the_request():
    """What the client asks is what the server's half of the handshake accepts, with all options."""
    target = parse_url("wss://user:secret@[::1]:8443/a/b?c=d&e")
    data = build_upgrade_request(
        target,
        KEY,
        subprotocols=["chat", "superchat"],
        extensions="permessage-deflate; client_max_window_bits",
        headers=[("Cookie", "a=b"), ("Origin", "https://[::1]:8443")],
    )
    request = HeadScanner(names=frozenset({b"authorization"})).scan(data)
    assert request is not None
    check_upgrade(request, OriginPolicy(None), secure=True)
    assert request.size == len(data)
    assert request.target == "/a/b?c=d&e"
    assert request.host == "[::1]:8443"
    assert request.subprotocols == ("chat", "superchat")
    assert request.extensions == "permessage-deflate; client_max_window_bits"
    assert request.headers == {"authorization": ["Basic dXNlcjpzZWNyZXQ="]}


@pytest.mark.parametrize("name", ["Upgrade", "sec-websocket-key", "Content-Length", "Sec-WebSocket-Protocol"])
def test_headers_of_the_handshake_are_not_given(name):
    """A header that trionet sets itself is a mistake, not a second line."""
    with pytest.raises(ConfigurationError, match=r"sets the header"):
        build_upgrade_request(TARGET, KEY, headers=[(name, "x")])


def test_host_and_authorization_may_be_given():
    """A Host and an Authorization of the application take the place of ours."""
    data = build_upgrade_request(
        parse_url("ws://u:p@example.org/"), KEY, headers=[("host", "other"), ("Authorization", "Bearer x")]
    )
    assert data.count(b"ost: ") == 1
    assert b"Basic" not in data


@pytest.mark.parametrize(
    "options",
    [
        {"headers": [("X", "a\r\nEvil: 1")]},
        {"headers": [("X Y", "a")]},
        {"subprotocols": ["a b"]},
        {"subprotocols": ["a", "a"]},
        {"subprotocols": "chat"},
        {"key": b"short"},
    ],
    ids=str,
)
def test_bad_settings_are_refused(options):
    """What would break the request, or inject headers, is the application's mistake."""
    with pytest.raises(ConfigurationError):
        build_upgrade_request(TARGET, **{"key": KEY, **options})


def test_connect_request_names_the_port():
    """A proxy is told host and port, also the default one, and who asks."""
    proxy = parse_proxy("http://me:pw@proxy:3128")
    assert build_connect_request(parse_url("wss://[::1]/x"), proxy) == (
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Authorization: Basic bWU6cHc=\r\n\r\n"
    )


# ----------------------------------------------------------------- responses


@feeds
def test_good_response_is_read(feed):
    """The response of RFC 6455, 1.3 opens a WebSocket, however it is cut."""
    reader, done = feed(GOOD)
    assert done
    assert reader.rest == b""
    assert check_upgrade_response(reader.response, KEY) == (None, None)


@feeds
def test_frames_behind_the_head_are_kept(feed):
    """A server may send frames at once: they are not lost."""
    reader, done = feed(GOOD + b"\x81\x02hi\x89\x00")
    assert done
    assert reader.rest == b"\x81\x02hi\x89\x00"


@feeds
def test_informational_responses_are_skipped(feed):
    """100 and 103 are no answer (RFC 9110, 15.2)."""
    reader, done = feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + GOOD)
    assert done
    assert reader.response.status == 101


def test_informational_responses_are_bounded():
    """A server that only ever says 100 is not listened to for ever."""
    with pytest.raises(ProtocolError, match=r"informational"):
        whole(b"HTTP/1.1 100 Continue\r\n\r\n" * 9)


def test_our_own_server_is_understood():
    """The client's half accepts what the server's half answers."""
    data = build_upgrade_response(BASE64, "chat", [("X-A", "b")], "permessage-deflate")
    reader, _ = whole(data)
    assert check_upgrade_response(reader.response, KEY, ("chat",), extensions=True) == (
        "chat",
        "permessage-deflate",
    )
    assert reader.response.header("x-a") == "b"


@pytest.mark.parametrize(
    "old, new, words",
    [
        (b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOO=", "Accept is wrong"),
        (b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", b"", "Accept is missing"),
        (b"Upgrade: websocket\r\n", b"", "Upgrade in the 101"),
        (b"Upgrade: websocket\r\n", b"Upgrade: websocket, h2c\r\n", "Upgrade in the 101"),
        (b"Connection: Upgrade\r\n", b"Connection: keep-alive\r\n", "Connection in the 101"),
        (b"HTTP/1.1", b"HTTP/1.0", "not a switch"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n", "not offered"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "not offered"),
        (b"xOo=\r\n", b"xOo=\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", "Accept is wrong"),
    ],
)
def test_each_broken_rule_is_found(old, new, words):
    """A 101 with one thing wrong opens nothing (RFC 6455, 4.1)."""
    reader, done = whole(GOOD.replace(old, new, 1))
    assert done
    with pytest.raises(ProtocolError, match=words):
        check_upgrade_response(reader.response, KEY)


def test_subprotocol_comes_once_and_was_offered():
    """One that was offered is taken; two lines are refused, whatever they say (11.3.4)."""
    good = GOOD[:-2] + b"Sec-WebSocket-Protocol: b\r\n"
    reader, _ = whole(good + b"\r\n")
    assert check_upgrade_response(reader.response, KEY, ("a", "b"))[0] == "b"
    reader, _ = whole(good + b"Sec-WebSocket-Protocol: b\r\n\r\n")
    with pytest.raises(ProtocolError, match=r"more than one"):
        check_upgrade_response(reader.response, KEY, ("a", "b"))


def test_words_are_compared_as_the_rfc_says():
    """Upgrade and Connection ignore case, Connection is a list, Accept is exact."""
    data = GOOD.replace(b"Upgrade: websocket", b"UPGRADE:\tWebSocket ").replace(
        b"Connection: Upgrade", b"connection: keep-alive, UPGRADE"
    )
    reader, _ = whole(data)
    assert check_upgrade_response(reader.response, KEY) == (None, None)
    proof = accept_key(BASE64).swapcase().decode()
    with pytest.raises(ProtocolError):
        check_upgrade_response(
            head("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {proof}"), KEY
        )


@pytest.mark.parametrize(
    "data, words",
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "wss://"),
        (b"HTTP/2.0 101 x\r\n\r\n", "status line"),
        (b"HTTP/1.1 1010 x\r\n\r\n", "status line"),
        (b"HTTP/1.1 101 x\n\n" + b" " * 20000, "head of more|line of more"),
        (b"HTTP/1.1 101 x\r\nA : b\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 101 x\r\nA: b\r\n c\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 101 x\r\nA: b\nB: c\r\n\r\n", "malformed header"),
        (b"HTTP/1.1 101 x\r\nA: \x00\r\n\r\n", "malformed header"),
    ],
    ids=range(9),
)
@feeds
def test_what_is_no_response_is_refused(feed, data, words):
    """Other protocols and malformed heads are named, as soon as it is clear what they are."""
    with pytest.raises(ProtocolError, match=words):
        feed(data)


@feeds
def test_heads_are_bounded(feed):
    """A head, a line and the number of lines have limits, whether the head ever ends or not."""
    limits = ResponseLimits(total=300, line=100, headers=5)
    lines = b"X: y\r\n" * 6
    for data in (
        b"HTTP/1.1 101 " + b"x" * 100,
        b"HTTP/1.1 101 x\r\nA: " + b"b" * 100 + b"\r\n\r\n",
        b"HTTP/1.1 101 x\r\n" + lines + b"\r\n",
        b"HTTP/1.1 101 x\r\n" + b"A: %b\r\n" % (b"b" * 90) * 4 + b"\r\n",
        b"HTTP/1.1 101 x\r\n" + b"A: %b\r\n" % (b"b" * 90) * 4,
    ):
        with pytest.raises(ProtocolError, match=r"more than"):
            feed(data, limits=limits)


# ------------------------------------------------------------------ refusals


@feeds
def test_refusal_has_its_body(feed):
    """A refusal is read to the end of its body."""
    reader, done = feed(
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\nWWW-Authenticate: Basic\r\n\r\nWho? You?"
    )
    assert done
    assert reader.body == b"Who? You?"
    assert reader.complete
    assert reader.response.header("www-authenticate") == "Basic"


@feeds
def test_chunked_body_is_joined(feed):
    """A body in chunks comes without them."""
    reader, done = feed(
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nNo!\r\n5\r\n Not.\r\n0\r\n\r\n"
    )
    assert done
    assert reader.body == b"No! Not."


def test_body_to_the_end_of_the_connection():
    """Without a length the end of the connection ends the body; 101 and half a head it does not complete."""
    reader, done = whole(b"HTTP/1.0 400 Bad Request\r\n\r\nWhat?")
    assert not done
    assert reader.end()
    assert reader.body == b"What?"
    assert not whole(GOOD[:-2])[0].end()
    assert not ResponseReader().end()


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 100000\r\n", b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: nonsense\r\n"],
)
def test_body_is_bounded(head):
    """Of an endless body the beginning is enough."""
    reader = ResponseReader(ResponseLimits(body=10))
    assert not reader.feed(b"HTTP/1.1 500 Oops\r\n" + head + b"\r\n")
    data = b"ffff\r\n" + b"x" * 30 if b"chunked" in head else b"x" * 30
    assert reader.feed(data)
    assert reader.body == b"x" * 10
    assert not reader.complete


def test_broken_chunks_end_the_body():
    """A chunk that is none ends what is read; nothing raises."""
    reader, done = whole(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n")
    assert done
    assert reader.body == b"ab"


def test_no_content_has_no_body():
    """204 is complete with its head."""
    reader, done = whole(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")
    assert done
    assert reader.body == b""


def test_headers_of_one_name_are_joined():
    """`header` joins the lines of a header, `count` counts them."""
    response = UpgradeResponse(200, "", (("A", "1"), ("b", "2"), ("a", "3")))
    assert response.header("a") == "1, 3"
    assert response.count("A") == 2
    assert response.header("c") is None


def test_key_is_sent_in_base64():
    """The key on the wire is the one that the response is checked with."""
    key = bytes(range(16))
    data = build_upgrade_request(TARGET, key)
    assert b"Sec-WebSocket-Key: " + binascii.b2a_base64(key, newline=False) in data
    response, _ = whole(build_upgrade_response(binascii.b2a_base64(key, newline=False)))
    assert check_upgrade_response(response.response, key) == (None, None)


PIECES = [
    GOOD,
    GOOD[:-2],
    b"HTTP/1.1 ",
    b"404 x",
    b"\r\n",
    b"A: b\r\n",
    b"Content-Length: 3\r\n",
    b"abc",
    b"\n",
]
PIECES += [
    b"HTTP/1.1 403 No\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"\x16\x03",
]


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=8).map(b"".join),
    st.lists(st.integers(1, 40), max_size=5),
)
def test_any_bytes_are_an_answer_or_refused(data, sizes):
    """Whatever a server sends, and however it is cut: the same answer, or `ProtocolError`, and nothing else."""

    def outcome(pieces):
        reader = ResponseReader()
        for number, piece in enumerate(pieces):
            try:
                if reader.feed(piece):
                    rest = reader.rest + (
                        b"".join(pieces[number + 1 :]) if reader.response.status == 101 else b""
                    )
                    return reader.response, rest, reader.body
            except ProtocolError:
                return "refused"
        return "more", reader.end()

    cuts, pos = [], 0
    for size in sizes:
        cuts.append(data[pos : pos + size])
        pos += size
    cuts.append(data[pos:])
    assert outcome(cuts) == outcome([data])
