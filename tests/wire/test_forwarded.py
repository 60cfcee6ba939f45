"""Who the client is: read from the right, through those that are trusted, and never further."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet.errors import ConfigurationError
from trionet.wire.addresses import TrustList, read_address
from trionet.wire.forwarded import MAX_HOPS, Client, TrustedProxies, parse_forwarded, parse_node

LISTS = TrustedProxies(["127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48", "unix:"])
STANDARD = TrustedProxies(["127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48", "unix:"], header="forwarded")
PROXY = ("127.0.0.1", 40000)

FOR = "x-forwarded-for"


@pytest.mark.parametrize(
    "lines, host",
    [
        pytest.param([], "127.0.0.1", id="nothing"),
        pytest.param(["192.0.2.1"], "192.0.2.1", id="one"),
        pytest.param(["6.6.6.6, 192.0.2.1"], "192.0.2.1", id="spoofed"),
        pytest.param(["6.6.6.6", "192.0.2.1"], "192.0.2.1", id="spoofed in a line of its own"),
        pytest.param(["10.0.0.9, 192.0.2.1"], "192.0.2.1", id="spoofed with a trusted address"),
        pytest.param(["6.6.6.6, 192.0.2.1, 10.0.0.1"], "192.0.2.1", id="two proxies"),
        pytest.param(["6.6.6.6, 192.0.2.1", "10.0.0.1", "10.0.0.2"], "192.0.2.1", id="three proxies"),
        pytest.param(["10.0.0.3, 10.0.0.2"], "10.0.0.3", id="all trusted"),
        pytest.param(["192.0.2.1,,10.0.0.1, ,"], "192.0.2.1", id="empty elements"),
        pytest.param(["\t192.0.2.1\t"], "192.0.2.1", id="tabs"),
        pytest.param(["::ffff:192.0.2.1"], "192.0.2.1", id="mapped"),
        pytest.param(["2001:DB8::1"], "2001:db8::1", id="IPv6"),
        pytest.param(["192.0.2.1, 2001:db8:1::5"], "192.0.2.1", id="a proxy with IPv6"),
        pytest.param(["6.6.6.6, unknown, 10.0.0.1"], "unknown", id="unknown"),
        pytest.param(["6.6.6.6, <script>, 10.0.0.1"], "10.0.0.1", id="nonsense"),
        pytest.param(["6.6.6.6, unix:"], "127.0.0.1", id="a word of ours"),
        pytest.param(["6.6.6.6, 1.2.3"], "127.0.0.1", id="half an address"),
    ],
)
def test_the_list_is_read_from_the_right(lines, host):
    """The first that is not trusted, from the right, is the client; nonsense ends the walk at whoever wrote it."""
    assert LISTS.client({FOR: lines}, PROXY).host == host


@pytest.mark.parametrize(
    "peer", [("192.0.2.9", 1), ("::1", 1), None, ("127.0.0.2", 5), ("fe80::1%eth0", 1, 0, 3)]
)
@pytest.mark.parametrize("proxies", [LISTS, STANDARD], ids=["lists", "standard"])
def test_headers_of_others_are_not_read(peer, proxies):
    """Whoever is not trusted is the client itself, whatever it says."""
    headers = {
        FOR: ["6.6.6.6"],
        "x-forwarded-proto": ["https"],
        "x-forwarded-host": ["bank.example"],
        "forwarded": ["for=6.6.6.6;proto=https;host=bank.example"],
    }
    client = proxies.client(headers, peer, "own.example", "http")
    host, port = peer[:2] if peer else (None, None)
    assert client == Client(host, port, "http", "own.example")


@pytest.mark.parametrize("proxies", [LISTS, STANDARD], ids=["lists", "standard"])
def test_only_the_configured_header_counts(proxies):
    """The other one is passed on by proxies as the client wrote it."""
    headers = {FOR: ["192.0.2.1"], "forwarded": ["for=192.0.2.2"]}
    assert proxies.client(headers, PROXY).host == ("192.0.2.1" if proxies is LISTS else "192.0.2.2")


def test_unix_sockets():
    """A peer without an address is trusted by "unix:"; a peer that is gone, None, is not."""
    assert LISTS.client({FOR: ["192.0.2.1"]}, "").host == "192.0.2.1"
    assert LISTS.client({FOR: ["192.0.2.1"]}, None).host is None
    assert TrustedProxies(["127.0.0.1"]).client({FOR: ["192.0.2.1"]}, "/run/x").host is None


@pytest.mark.parametrize(
    "hops, protos, proto",
    [
        pytest.param("192.0.2.1", ["https"], "https", id="one"),
        pytest.param("192.0.2.1", ["WSS"], "wss", id="upper case"),
        pytest.param("192.0.2.1, 10.0.0.1", ["https"], "https", id="overwritten"),
        pytest.param("192.0.2.1, 10.0.0.1", ["https, http"], "https", id="appended"),
        pytest.param("192.0.2.1, 10.0.0.1", ["https", "http"], "https", id="appended as lines"),
        pytest.param(
            "6.6.6.6, 192.0.2.1, 10.0.0.1", ["wss, https, http"], "https", id="spoofed and appended"
        ),
        pytest.param("192.0.2.1", ["https, http"], "http", id="spoofed before one proxy"),
        pytest.param("192.0.2.1, 10.0.0.2, 10.0.0.1", ["https, http"], "http", id="not as many: the last"),
        pytest.param("", ["https"], "https", id="without addresses"),
        pytest.param("192.0.2.1", [], "own", id="none"),
        pytest.param("192.0.2.1", ["<b>"], "own", id="nonsense"),
    ],
)
def test_the_scheme_beside_the_client(hops, protos, proto):
    """X-Forwarded-Proto is one value, or a list that goes with the addresses; a spoofed left part never wins."""
    client = LISTS.client({FOR: [hops] if hops else [], "x-forwarded-proto": protos}, PROXY, scheme="own")
    assert client.scheme == proto


@pytest.mark.parametrize(
    "told, authority",
    [("Chat.Example:8443", "chat.example:8443"), ("a b", "own"), ("", "own"), ("[::1]", "[::1]")],
)
def test_the_host_is_checked(told, authority):
    """X-Forwarded-Host has to be an authority; else the request's own counts."""
    headers = {FOR: ["192.0.2.1"], "x-forwarded-host": [told]}
    assert LISTS.client(headers, PROXY, "own").authority == authority


@pytest.mark.parametrize(
    "lines, client",
    [
        pytest.param([], Client("127.0.0.1", 40000, None, "own"), id="nothing"),
        pytest.param(["for=192.0.2.1"], Client("192.0.2.1", None, None, "own"), id="one"),
        pytest.param(
            ['For="[2001:db8::7]:4711";Proto=HTTPS;host="Chat.example:8443";by=_x'],
            Client("2001:db8::7", 4711, "https", "chat.example:8443"),
            id="everything",
        ),
        pytest.param(
            [
                "for=6.6.6.6;proto=wss, for=192.0.2.1;proto=https;host=a.example, for=10.0.0.1;proto=http;host=b"
            ],
            Client("192.0.2.1", None, "https", "a.example"),
            id="from the client's own element",
        ),
        pytest.param(
            ["for=192.0.2.1;proto=https", "for=10.0.0.1"],
            Client("192.0.2.1", None, "https", "own"),
            id="lines",
        ),
        pytest.param(
            ['for="unclosed, for=6.6.6.6', "for=192.0.2.1"],
            Client("192.0.2.1", None, None, "own"),
            id="left is broken",
        ),
        pytest.param(
            ['for="unclosed', "for=10.0.0.1;proto=https"],
            Client("10.0.0.1", None, "https", "own"),
            id="broken behind a proxy",
        ),
        pytest.param(["for=6.6.6.6, for=unknown"], Client("unknown", None, None, "own"), id="unknown"),
        pytest.param(["for=6.6.6.6, for=_gazonk"], Client("_gazonk", None, None, "own"), id="obfuscated"),
        pytest.param(["for=6.6.6.6, proto=https"], Client("unknown", None, "https", "own"), id="not told"),
        pytest.param(["for=6.6.6.6, for=10.0.0"], Client("127.0.0.1", 40000, None, "own"), id="nonsense"),
        pytest.param(['for="192.0.2.1:_port"'], Client("192.0.2.1", None, None, "own"), id="a hidden port"),
        pytest.param(["for=192.0.2.1:80"], Client("192.0.2.1", 80, None, "own"), id="a port without quotes"),
    ],
)
def test_the_standard_header(lines, client):
    """RFC 7239: each element is one hop's; the client's own element says scheme and host."""
    assert STANDARD.client({"forwarded": lines}, PROXY, "own") == client


@pytest.mark.parametrize(
    "line, elements",
    [
        ("", []),
        (" , ;; ,", []),
        ("for=a", [{"for": "a"}]),
        (" for=a ;by=b , for=c ", [{"for": "a", "by": "b"}, {"for": "c"}]),
        ('for="a,b;c=\\"d\\\\"', [{"for": 'a,b;c="d\\'}]),
        ('for="";x=y', [{"for": "", "x": "y"}]),
        ("FOR=A;Ext=1", [{"for": "A", "ext": "1"}]),
        ("for", None),
        ("for=", None),
        ("=a", None),
        ("for=a b", None),
        ("for = a", None),
        ("for=a;for=b", None),
        ('for="a', None),
        ('for="a"b', None),
        ('for="a\\', None),
        ("for=a;{}=b", None),
    ],
)
def test_the_grammar(line, elements):
    """RFC 7239, section 4: quoted strings hide separators, names are told once, white space only at separators."""
    assert parse_forwarded(line) == elements


@pytest.mark.parametrize(
    "text, node",
    [
        ("192.0.2.1", ("192.0.2.1", None)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("fe80::1%eth0", ("fe80::1", None)),
        ("UNKNOWN", ("unknown", None)),
        ("_a.b-c:_port", ("_a.b-c", None)),
        ("192.0.2.1:65536", None),
        ("192.0.2.1:123456", None),
        ("host.example", None),
        ("192.0.2.1:", None),
        ("[2001:db8::1", None),
        ("_", None),
        ("_" + "x" * 256, None),
        ("", None),
        ("1" * 5000, None),
    ],
)
def test_nodes(text, node):
    """RFC 7239, section 6, and an IPv6 address without brackets."""
    assert parse_node(text) == node


@pytest.mark.parametrize("proxies", [LISTS, STANDARD], ids=["lists", "standard"])
def test_a_long_chain_ends(proxies):
    """No more than `MAX_HOPS` proxies are walked past."""
    hops = [f"10.0.{n // 250}.{n % 250}" for n in range(100)]
    headers = {FOR: [", ".join(hops)], "forwarded": [", ".join(f"for={hop}" for hop in hops)]}
    assert proxies.client(headers, PROXY).host == hops[-MAX_HOPS]


def test_trust():
    """Networks hold their addresses, of both families, also in the other one's clothes; nothing else is in."""
    trust = TrustList(["10.0.0.0/8", "2001:db8::/32", "192.0.2.1", "unix:"])
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "2001:db8::1%1", "192.0.2.1", "unix:"):
        assert host in trust
    for host in ("11.1.2.3", "2001:db9::1", "192.0.2.2", "", None, "localhost", "unix", "10.1.2"):
        assert host not in trust
    assert trust
    assert not TrustList([])
    assert "unix:" not in TrustList(["0.0.0.0/0", "::/0"])
    assert read_address("0" * 100) is None


@pytest.mark.parametrize("wrong", ["10.0.0.0/8", ["10.0.0.1/8"], ["localhost"], [""], ["10.0.0.0/33"]])
def test_a_wrong_trust_list(wrong):
    """A string, a network with host bits, a name: a mistake that is told."""
    with pytest.raises(ConfigurationError):
        TrustList(wrong)


def test_a_wrong_header():
    """There are two kinds of headers."""
    with pytest.raises(ConfigurationError, match="x-real-ip"):
        TrustedProxies(["127.0.0.1"], header="x-real-ip")


def test_secure():
    """An answer for https and wss, for http and ws, and for silence."""
    told = [Client("a", scheme=scheme).secure for scheme in ("https", "wss", "http", "ws", None)]
    assert told == [True, True, False, False, None]


HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@hypothesis.given(
    st.text(max_size=60), HOSTS, st.lists(st.sampled_from(["10.0.0.1", "10.9.8.7", "2001:db8:1::1"]))
)
def test_what_the_client_wrote_never_matters(spoof, host, hops):
    """Whatever stands left of what the first proxy wrote, the client is whom that proxy saw."""
    seen = str(read_address(host))
    hypothesis.assume(seen not in LISTS.trusted)
    rest = [host, *hops[: MAX_HOPS - 1]]
    told = LISTS.client({FOR: [spoof, ", ".join(rest)], "x-forwarded-proto": [spoof]}, PROXY)
    assert told.host == seen
    nodes = [f'"[{node}]"' if ":" in node else node for node in rest]
    lines = [spoof, ", ".join(f"for={node};proto=https" for node in nodes)]
    assert STANDARD.client({"forwarded": lines}, PROXY) == Client(seen, None, "https", "")


@hypothesis.given(st.text(alphabet=st.sampled_from('for=;,"\\_[]:1 \tab'), max_size=40))
def test_any_line(line):
    """Whatever comes is elements of pairs, or malformed: nothing else happens."""
    elements = parse_forwarded(line)
    assert elements is None or all(elements)
    assert STANDARD.client({"forwarded": [line]}, PROXY).host
