"""Addresses of WebSocket servers: what an URL means, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import ConfigurationError
from trionet.wire.url import Target, parse_proxy, parse_url, redirected


@pytest.mark.parametrize(
    "url, target",
    [
        ("ws://example.org", Target(False, "example.org", 80)),
        ("WSS://Example.ORG/a", Target(True, "example.org", 443, "/a")),
        ("http://h:81/?q", Target(False, "h", 81, "/?q")),
        ("https://h/?", Target(True, "h", 443, "/?")),
        ("ws://[::1]:9/x%20y", Target(False, "::1", 9, "/x%20y")),
        ("ws://u%40:p%3a@h/", Target(False, "h", 80, "/", "u@", "p:")),
        ("ws://h/é?ü=1", Target(False, "h", 80, "/%C3%A9?%C3%BC=1")),
        ("ws://bücher.example/", Target(False, "xn--bcher-kva.example", 80)),
        ("ws+unix:/run/a.sock", Target(False, "localhost", 80, "/", unix="/run/a.sock")),
        ("wss+unix:/run/a.sock:/x?y", Target(True, "localhost", 443, "/x?y", unix="/run/a.sock")),
    ],
)
def test_url_says_where_and_what(url, target):
    """Scheme, host, port, path, query and user are where they belong."""
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org/",
        "ftp://h/",
        "ws:/h",
        "ws://",
        "ws:///path",
        "ws://h:0/",
        "ws://h:65536/",
        "ws://h:x/",
        "ws://h/#fragment",
        "ws://h/a b",
        "ws://h/\r\nEvil: 1",
        "ws://h\n/",
        "ws://[::g]/",
        "ws://[::1/",
        "ws://a%00b/",
        "ws://a:b%3ac@",
        "ws://us%3aer:p@h/",
        "ws://" + "a" * 300 + "/",
        "ws+unix:",
        "ws+unix:///a",
        "ws+unix:/a:b",
    ],
)
def test_what_is_no_address_is_refused(url):
    """Nothing is guessed."""
    with pytest.raises(ConfigurationError):
        parse_url(url)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text):
    """Whatever the URL holds, it is parsed or refused with the one error, and no line break gets through."""
    for url in (text, f"ws://{text}", f"ws://h/{text}"):
        try:
            target = parse_url(url)
        except ConfigurationError:
            continue
        assert target.resource.isascii()
        assert not set(target.resource + target.host) & set("\r\n \t\0")


def test_secrets_are_not_shown():
    """Neither text nor repr nor an error shows password or query."""
    target = parse_url("wss://me:secret@h/p?token=secret")
    assert str(target) == "wss://h/p"
    assert "secret" not in repr(target).replace("?token=secret", "")
    with pytest.raises(ConfigurationError) as caught:
        parse_url("ws://me:secret@h:0/?token=secret")
    assert "secret" not in str(caught.value)


def test_authority_leaves_the_default_port_out():
    """The Host header has the port only if it is not that of the scheme."""
    assert parse_url("ws://h:80/").authority == "h"
    assert parse_url("ws://h:443/").authority == "h:443"
    assert parse_url("wss://[::1]:443/").authority == "[::1]"


@pytest.mark.parametrize(
    "location, resource",
    [("/b", "/b"), ("b?c", "/x/b?c"), ("ws://h/b#f", "/b"), ("http://h:80/b", "/b")],
)
def test_redirect_within_the_origin_keeps_the_user(location, resource):
    """Relative and absolute locations are resolved; the user stays within the origin."""
    found = redirected(parse_url("ws://u:p@h/x/a"), location)
    assert found == Target(False, "h", 80, resource, "u", "p")


def test_redirect_to_elsewhere_forgets_the_user():
    """Another host does not get the password."""
    assert redirected(parse_url("ws://u:p@h/"), "wss://other/").user is None


@pytest.mark.parametrize("location", ["ws://h/", "http://h/", "ftp://h/", "data:x"])
def test_redirect_does_not_give_up_encryption(location):
    """From wss there is no way to ws, and none to what is no WebSocket."""
    with pytest.raises(ConfigurationError):
        redirected(parse_url("wss://h/"), location)


@pytest.mark.parametrize("location", ["ws+unix:/run/b:/x", "ws+unix:/run/a:/x", "http://[x", "//[/"])
@pytest.mark.parametrize("url", ["ws://h/", "ws+unix:/run/a:/x"])
def test_redirect_names_no_socket_and_no_nonsense(url, location):
    """A server cannot send its clients to a Unix socket of their machine; what is no URL is an error of ours."""
    with pytest.raises(ConfigurationError):
        redirected(parse_url(url), location)


def test_redirect_on_a_unix_socket_stays_there():
    """A relative redirect goes to the same socket; one to another host leaves it."""
    target = parse_url("ws+unix:/run/a:/x")
    assert redirected(target, "/y").unix == "/run/a"
    assert redirected(target, "ws://elsewhere/y").unix is None


def test_proxy_is_http():
    """Only plain HTTP proxies are spoken to, and the error says so."""
    assert parse_proxy("http://u:p@h:3128").port == 3128
    for url in ("https://h", "socks5://h", "h:3128"):
        with pytest.raises(ConfigurationError, match=r"proxy"):
            parse_proxy(url)
