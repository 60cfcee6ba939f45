"""The protocol of the bus, pure: what a client says becomes a command or an error, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.wire import bus, bus_answers
from trionet.wire.bus import History, Ping, Presence, Publish, Refused, Subscribe, Unsubscribe

LIMIT = 2000


def parse(message):
    """Parse with the limit of these tests."""
    return bus.parse(message if isinstance(message, str | bytes) else json.dumps(message), LIMIT)


UNDERSTOOD = [
    ('{"type":"ping"}', Ping()),
    ('{ "type" : "ping", "id": [] }', Ping()),
    ({"type": "subscribe", "id": 1, "topic": "a"}, Subscribe(1, "a", None)),
    (
        {"type": "subscribe", "id": "x y", "topic": "a", "since": {"epoch": "e", "offset": 7}},
        Subscribe("x y", "a", ("e", 7)),
    ),
    ({"type": "subscribe", "id": 1, "topic": "a", "since": {"offset": 0}}, Subscribe(1, "a", ("", 0))),
    ({"type": "subscribe", "id": 1, "topic": "a", "since": None, "later": 1}, Subscribe(1, "a", None)),
    (
        {"type": "subscribe", "id": 1, "topic": "a", "since": {"epoch": "e", "offset": 7}, "recover": False},
        Subscribe(1, "a", None),
    ),
    ({"type": "unsubscribe", "id": -1, "topic": "a"}, Unsubscribe(-1, "a")),
    ({"type": "publish", "id": 1, "topic": "a", "data": None}, Publish(1, "a", b"null", "", "", True)),
    (
        {
            "type": "publish",
            "id": 1,
            "topic": "a",
            "data": {"x": [1, 2.5, "ж"]},
            "key": "k",
            "tag": "t",
            "echo": False,
        },
        Publish(1, "a", '{"x":[1,2.5,"ж"]}'.encode(), "k", "t", False),
    ),
    ({"type": "presence", "id": 1, "topic": "a"}, Presence(1, "a")),
    ({"type": "history", "id": 1, "topic": "a"}, History(1, "a", None, 100)),
    ({"type": "history", "id": 1, "topic": "a", "limit": 10**9}, History(1, "a", None, 1000)),
]


@pytest.mark.parametrize("message, command", UNDERSTOOD, ids=range(len(UNDERSTOOD)))
def test_what_is_understood(message, command):
    """Each message becomes its command; defaults are filled in, unknown fields left alone."""
    found = parse(message)
    assert found == command
    assert type(found) is type(command)


SUBSCRIBE = {"type": "subscribe", "id": 5, "topic": "a"}
PUBLISH = {"type": "publish", "id": 5, "topic": "a", "data": 1}
REFUSED = [
    (b"{}", "bad-request", None),
    ("", "bad-request", None),
    ("x", "bad-request", None),
    ("[1]", "bad-request", None),
    ("{}", "bad-request", None),
    ("[" * 100_000, "bad-request", None),
    ('{"id":5,"x":' + "[" * 100_000, "bad-request", None),
    ('{"type":"publish","id":5,"topic":"a","data":NaN}', "bad-request", None),
    ('{"type":"publish","id":5,"topic":"a","data":-Infinity}', "bad-request", None),
    ('{"type":"publish","id":5,"topic":"a","data":1e999}', "bad-request", 5),
    ('{"type":"publish","id":5,"topic":"a","data":' + "9" * 5000 + "}", "bad-request", None),
    ('{"type":"publish","id":5,"topic":"a","data":' + "[" * 101 + "]" * 101 + "}", "bad-request", 5),
    (PUBLISH | {"data": "x" * LIMIT}, "too-large", 5),
    ({"type": "publish", "id": 5, "topic": "a"}, "bad-request", 5),
    (PUBLISH | {"key": 1}, "bad-request", 5),
    (PUBLISH | {"key": "a\nb"}, "bad-request", 5),
    (PUBLISH | {"key": "ж" * 128}, "bad-request", 5),
    (PUBLISH | {"tag": "\ud83d"}, "bad-request", 5),
    (PUBLISH | {"echo": 0}, "bad-request", 5),
    ({"type": "dance", "id": 5}, "unknown-type", 5),
    ({"type": 1, "id": 5}, "bad-request", 5),
    ({"type": ["ping"], "id": 5}, "bad-request", 5),
    (SUBSCRIBE | {"id": True}, "bad-request", None),
    (SUBSCRIBE | {"id": 1.5}, "bad-request", None),
    (SUBSCRIBE | {"id": 2**53}, "bad-request", None),
    (SUBSCRIBE | {"id": ""}, "bad-request", None),
    (SUBSCRIBE | {"id": "x" * 65}, "bad-request", None),
    (SUBSCRIBE | {"id": "\ud83d"}, "bad-request", None),
    (SUBSCRIBE | {"topic": 7}, "bad-request", 5),
    (SUBSCRIBE | {"since": 7}, "bad-request", 5),
    (SUBSCRIBE | {"since": {"epoch": "e"}}, "bad-request", 5),
    (SUBSCRIBE | {"since": {"epoch": "e", "offset": -1}}, "bad-request", 5),
    (SUBSCRIBE | {"since": {"epoch": "e", "offset": 2**53}}, "bad-request", 5),
    (SUBSCRIBE | {"since": {"epoch": "e", "offset": 1.0}}, "bad-request", 5),
    (SUBSCRIBE | {"since": {"epoch": 1, "offset": 1}}, "bad-request", 5),
    (SUBSCRIBE | {"recover": "no"}, "bad-request", 5),
    ({"type": "history", "id": 5, "topic": "a", "limit": 0}, "bad-request", 5),
    ({"type": "history", "id": 5, "topic": "a", "limit": True}, "bad-request", 5),
]


@pytest.mark.parametrize("message, code, known", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(message, code, known):
    """Each broken message has its code, and the id of the request if that could be read."""
    with pytest.raises(Refused) as caught:
        parse(message)
    assert (caught.value.code, caught.value.id) == (code, known)
    assert json.loads(bus_answers.encode_error(caught.value))["text"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["type", "id", "topic", "data", "key", "tag", "echo", "since", "epoch", "offset", "recover", "limit"]
)
TYPES = st.sampled_from(["subscribe", "unsubscribe", "publish", "presence", "history", "ping"])
REQUESTS = st.builds(
    lambda kind, fields: fields | {"type": kind},
    TYPES,
    st.dictionaries(NAMES, SCALARS | st.dictionaries(NAMES, SCALARS, max_size=3) | VALUES, max_size=9),
)


@given(st.text() | st.binary() | REQUESTS.map(json.dumps) | VALUES.map(json.dumps))
def test_no_input_raises_anything_else(message):
    """Whatever comes, there is a command, or an error whose answer can be sent."""
    try:
        parse(message)
    except Refused as refused:
        bus_answers.encode_error(refused).encode()


@given(VALUES)
def test_published_values_survive(value):
    """What is published is read back as it was, or refused; what is not a number is."""
    try:
        data = bus.encode_data(value)
    except ValueError:
        assert any(word in json.dumps(value) for word in ("NaN", "Infinity"))
        return
    assert json.loads(data) == value
    assert b"\n" not in data


def test_half_a_character_is_published_escaped():
    """A script may cut a string within a character; others get what it sent."""
    assert bus.encode_data("ж\ud83d") == rb'"\u0436\ud83d"'


def test_what_cannot_be_published():
    """No form in JSON, or none that all could read."""
    with pytest.raises(TypeError):
        bus.encode_data({1, 2})
    circle = []
    circle.append(circle)
    deep = 1
    for level in range(bus.MAX_DEPTH):
        deep = [deep] if level % 2 else {"x": deep}
    for value in (float("nan"), circle, [deep], json.loads("[" * 900 + "]" * 900)):
        with pytest.raises(ValueError):
            bus.encode_data(value)
    assert bus.encode_data(deep)
    assert bus.encode_data([[]] * 1000)  # many, but not deep


HARD = 'say "hi" \\ / ж \u2028'  # what JSON has to escape, and what it need not

ANSWERS = [
    (
        bus_answers.encode_message(HARD, '{"a":1}', 1.5, offset=7, previous=6),
        {"type": "message", "topic": HARD, "offset": 7, "at": 1500, "data": {"a": 1}},
    ),
    (
        bus_answers.encode_message("t", "1", 0.0, offset=7, previous=3, tag=HARD, replay=True),
        {
            "type": "message",
            "topic": "t",
            "offset": 7,
            "previous": 3,
            "tag": HARD,
            "replay": True,
            "at": 0,
            "data": 1,
        },
    ),
    (
        bus_answers.encode_message("t", "null", 1.0),
        {"type": "message", "topic": "t", "at": 1000, "data": None},
    ),
    (
        bus_answers.encode_event("join", HARD, HARD, "null"),
        {"type": "join", "topic": HARD, "member": HARD, "info": None},
    ),
    (
        bus_answers.encode_subscribed(1, "t", ("e", 0), None),
        {"type": "subscribed", "id": 1, "topic": "t", "epoch": "e", "offset": 0, "recovered": None},
    ),
    (
        bus_answers.encode_subscribed("x", "t", None, False, conflated=True),
        {"type": "subscribed", "id": "x", "topic": "t", "recovered": False, "conflated": True},
    ),
    (bus_answers.encode_published(1, None), {"type": "published", "id": 1}),
    (bus_answers.encode_published(1, ("e", 2)), {"type": "published", "id": 1, "epoch": "e", "offset": 2}),
    (bus_answers.encode_unsubscribed("t", known=0), {"type": "unsubscribed", "id": 0, "topic": "t"}),
    (
        bus_answers.encode_presence(1, "t", [(HARD, "{}")], 2),
        {"type": "presence", "id": 1, "topic": "t", "count": 2, "members": [{"member": HARD, "info": {}}]},
    ),
    (
        bus_answers.encode_history(1, "t", ("e", 3), [bus_answers.Kept(3, 2.0, HARD, "[]")], complete=True),
        {
            "type": "history",
            "id": 1,
            "topic": "t",
            "epoch": "e",
            "offset": 3,
            "complete": True,
            "messages": [{"offset": 3, "at": 2000, "tag": HARD, "data": []}],
        },
    ),
]


@pytest.mark.parametrize("text, message", ANSWERS, ids=range(len(ANSWERS)))
def test_answers_are_json(text, message):
    """What is put together by hand is JSON, whatever the names are."""
    assert json.loads(text) == message


def test_who_comes_back():
    """Codes that would be the answer again end it; all others are an invitation to come back."""
    final = {1000, 1002, 1003, 1007, 1008, 1009, 1010, 4400, 4401, 4403, 4409, 4499}
    assert not any(map(bus.reconnects, final))
    assert all(
        map(bus.reconnects, [1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 3000, 4000, 4399, 4500, 4999])
    )
