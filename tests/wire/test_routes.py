"""Routes as tables: which pattern gets a path, and what is refused as one."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from trionet import ConfigurationError
from trionet.wire.routes import Routes

PATTERNS = [
    "/",
    "/a",
    "/a/",
    "/a/b/",
    "/a/b/c",
    "/a/{x}",
    "/a/{x}/c",
    "/a/{x}.json",
    "/{x}/{y}/deep",
    "/u/{name}/",
    "/u/{name}/f/",
    "/u/ada/",
    "/d.t/(.*)",
    "//example.org/a",
    "//example.org/u/",
    "//[::1]/six",
]


@pytest.fixture(params=[PATTERNS, PATTERNS[::-1]], ids=["forwards", "backwards"])
def routes(request):
    """Return a table in which each pattern leads to itself."""
    table = Routes()
    for pattern in request.param:
        assert table.add(pattern, pattern) == pattern
    return table


@pytest.mark.parametrize(
    "path, expected",
    [
        ("/", ("/", "", {})),
        ("/x/y", ("/", "x/y", {})),
        ("/a", ("/a", "", {})),
        ("/a/", ("/a/", "", {})),
        ("/a/x", ("/a/{x}", "", {"x": "x"})),
        ("/a/b", ("/a/{x}", "", {"x": "b"})),
        ("/a/b/", ("/a/b/", "", {})),
        ("/a/b/c", ("/a/b/c", "", {})),
        ("/a/x/c", ("/a/{x}/c", "", {"x": "x"})),
        ("/a/x/c/d", ("/a/", "x/c/d", {})),
        ("/a/x.json", ("/a/{x}.json", "", {"x": "x"})),
        ("/a/.json", ("/a/{x}", "", {"x": ".json"})),
        ("/a/%C3%A9%2F", ("/a/{x}", "", {"x": "\u00e9/"})),
        ("/a/%ff", ("/a/", "%ff", {})),
        ("/a//c", ("/a/", "/c", {})),
        ("/p/q/deep", ("/{x}/{y}/deep", "", {"x": "p", "y": "q"})),
        ("/u/ada/f/x", ("/u/{name}/f/", "x", {"name": "ada"})),
        ("/u/ada/x", ("/u/ada/", "x", {})),
        ("/u/bob/", ("/u/{name}/", "", {"name": "bob"})),
        ("/u/bob/x/y", ("/u/{name}/", "x/y", {"name": "bob"})),
        ("/d.t/(.*)", ("/d.t/(.*)", "", {})),
        ("/d_t/(.*)", ("/", "d_t/(.*)", {})),
        ("*", None),
        ("", None),
    ],
)
def test_the_closest_pattern_wins_in_whatever_order_they_came(routes, path, expected):
    """Exact, then with parameters, then the longest prefix; literal before parameter."""
    found = routes.find(path)
    assert (found and (found.value, found.rest, found.parameters)) == expected


@pytest.mark.parametrize(
    "path, host, expected",
    [
        ("/a", "example.org", "//example.org/a"),
        ("/a", "example.org:8080", "//example.org/a"),
        ("/a", "www.example.org", "/a"),
        ("/a", "", "/a"),
        ("/u/ada/x", "example.org", "//example.org/u/"),
        ("/a/x", "example.org", "/a/{x}"),
        ("/six", "[::1]:80", "//[::1]/six"),
        ("/six", "[::2]", "/"),
    ],
)
def test_routes_of_a_host_come_first(routes, path, host, expected):
    """What the host does not have is looked for among the routes of all hosts."""
    assert routes.find(path, host).value == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a",
        "/a b",
        "/a?b",
        "/a#b",
        "/{}",
        "/{a",
        "/a}",
        "/{a-b}",
        "/{1}",
        "/{a}{b}",
        "/{a}-{b}",
        "/{a}/{a}",
        "//host",
        "//host:80/",
        "///",
        "//a b/",
        "/a/{y}",
        "/u/{other}/",
    ],
)
def test_what_is_no_pattern_is_refused(routes, pattern):
    """Also a pattern that another one in the table cannot be told from."""
    with pytest.raises(ConfigurationError):
        routes.add(pattern, "x")


def test_the_same_pattern_keeps_its_first_value(routes):
    """`add` returns what is there, so that several methods of a path share an entry."""
    for pattern in PATTERNS:
        assert routes.add(pattern, "other") == pattern


@hypothesis.given(st.text("/ab%.", max_size=12))
def test_whatever_is_asked_for_is_found_or_not(path):
    """No path raises, and what is found fits: prefix and rest are the path, parameters have no empty value."""
    table = Routes()
    for pattern in PATTERNS:
        table.add(pattern, pattern)
    found = table.find(path)
    assert (found is not None) == path.startswith("/")
    if found is not None:
        assert path.endswith(found.rest)
        assert all(found.parameters.values())
