"""The text protocol of NATS, names of subjects and of servers: without any server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.errors import BrokerDown, ConfigurationError, TopicError
from trionet.pubsub.brokers.nats.protocol import (
    MAX_LINE,
    Control,
    Message,
    Parser,
    header,
    needle,
    parse_status,
    publish,
)
from trionet.pubsub.brokers.nats.publications import read_plain, write_headers
from trionet.pubsub.brokers.nats.server import parse_servers
from trionet.pubsub.brokers.nats.streams import Streams, seconds, to_subject, to_topic
from trionet.pubsub.topics import HistoryLimits, TopicOptions, TopicRules, check_topic

HEAD = b"NATS/1.0\r\nA: 1\r\nNats-Sequence: 7\r\nA: 2\r\n\r\n"
SAID = [
    (b'INFO {"version":"2.11.0"} \r\n', Control("INFO", b'{"version":"2.11.0"}')),
    (b"PING\r\n", Control("PING", b"")),
    (b"MSG a.b 9 5\r\nhe\r\nl\r\n", Message(b"a.b", 9, b"", b"he\r\nl")),
    (b"pong\r\n", Control("PONG", b"")),
    (b"MSG a.b 12 _INBOX.x 0\r\n\r\n", Message(b"a.b", 12, b"", b"")),
    (b"+OK\r\n", Control("+OK", b"")),
    (b"HMSG s 3 %d %d\r\n%bdata\r\n" % (len(HEAD), len(HEAD) + 4, HEAD), Message(b"s", 3, HEAD, b"data")),
    (b"HMSG s 3 reply %d %d\r\n%b\r\n" % (len(HEAD), len(HEAD), HEAD), Message(b"s", 3, HEAD, b"")),
    (b"-ERR 'Slow Consumer'\r\n", Control("-ERR", b"'Slow Consumer'")),
]
ALL = b"".join(data for data, _ in SAID)
ITEMS = [item for _, item in SAID]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, len(ALL)])
def test_what_a_server_says_is_understood_however_it_is_cut(step):
    """Whole, byte by byte and in between, the same comes out."""
    parser = Parser()
    found = []
    for at in range(0, len(ALL), step):
        found += parser.feed(ALL[at : at + step])
    assert found == ITEMS
    assert parser.held == 0


@pytest.mark.parametrize("data, item", SAID)
def test_what_comes_behind_is_kept(data, item):
    """Bytes of the next line wait for the rest of it."""
    parser = Parser()
    assert parser.feed(data + b"MSG a 1 3\r\nab") == [item]
    assert parser.held == 13
    assert parser.feed(b"c\r\n") == [Message(b"a", 1, b"", b"abc")]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"MSG a 1\r\n",
        b"MSG a x 3\r\nabc\r\n",
        b"MSG a 1 b c 3\r\nabc\r\n",
        b"MSG a 1 -1\r\n\r\n",
        b"MSG a 1 3\r\nabcd\r\n",
        b"HMSG a 1 5 3\r\nabc\r\n",
        b"MSG a 1 2000\r\n",
        b"x" * (MAX_LINE + 1),
    ],
)
def test_what_is_not_the_protocol_ends_it(data):
    """Lines that are none, sizes that cannot be, and more than the limits allow raise `BrokerDown`."""
    with pytest.raises(BrokerDown):
        Parser(max_payload=1000).feed(data)


def test_the_last_of_several_headers_counts():
    """A publisher cannot forge what the server appends, nor is a part of a name or of a value taken for a header."""
    assert header(HEAD, needle("A")) == b"2"
    assert header(HEAD, needle("Nats-Sequence")) == b"7"
    assert header(HEAD, needle("Sequence")) == header(b"", needle("A")) == b""
    assert parse_status(HEAD) == parse_status(b"") == (0, "")
    assert parse_status(b"NATS/1.0 503\r\n\r\n") == (503, "")
    assert parse_status(b"NATS/1.0 404 Message Not Found\r\n\r\n") == (404, "Message Not Found")


@given(
    tag=st.text("aü日🎉\0\r\n %:", max_size=9),
    origin=st.text("abc.1", max_size=9),
    data=st.binary(max_size=9),
)
def test_headers_carry_any_text(tag, origin, data):
    """A tag or an origin comes back as it was, whatever it contains."""
    said = publish("a.b", data, write_headers("t", "", tag, origin, 12.5)).replace(
        b"HPUB a.b ", b"HMSG a.b 1 "
    )
    (message,) = Parser().feed(said)
    assert isinstance(message, Message)
    publication = read_plain("t", message.headers, message.payload)
    assert (publication.tag, publication.origin, publication.data, publication.at) == (
        tag,
        origin,
        data,
        12.5,
    )


# ------------------------------------------------------------------------ subjects

NAMES = st.text(st.sampled_from("ab.:/%>$_-2E日"), min_size=1, max_size=12)


def tokens_match(pattern: str, subject: str) -> bool:
    """Whether NATS gives a subject to a subscription."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(found) >= len(wanted) and found[: len(wanted) - 1] == wanted[:-1]
    return wanted == found


@given(topic=NAMES)
def test_a_topic_is_a_subject_and_comes_back(topic):
    """Every token of the subject is one that NATS takes for itself, and the topic can be told from it."""
    subject = to_subject(topic)
    assert to_topic(subject) == topic
    assert all(token and token not in "*>" for token in subject.split("."))
    assert ">" not in subject


@given(beginning=NAMES, rest=NAMES, other=NAMES, separator=st.sampled_from(".:/"))
def test_a_pattern_is_a_wildcard_for_the_same_topics(beginning, rest, other, separator):
    """NATS matches exactly the topics that begin like it."""
    start = beginning + separator
    pattern = to_subject(check_topic(start + "*", pattern=True))
    for topic in (start, start + rest, beginning, beginning + rest, other):
        assert tokens_match(pattern, to_subject(topic)) == topic.startswith(start), topic
    assert tokens_match(to_subject("*"), to_subject(other))


def test_subjects_are_readable():
    """Names are what an operator can read in `nats sub`."""
    assert to_subject("news/eu/berlin") == "news/.eu/.berlin"
    assert to_subject("news.eu.berlin") == "news.eu.berlin"
    assert to_subject("news/*") == "news/.>"
    assert to_subject("mail:42") == "mail:.42"
    assert (to_subject("a..b"), to_subject("x/"), to_subject("50%>")) == ("a.%.b", "x/.%", "50%25%3E")


def test_every_rule_with_history_has_its_stream():
    """The longest rule decides, as in `TopicRules`; names differ; what keeps nothing shares a stream for keys."""
    rules = TopicRules(
        {
            "mail:*": TopicOptions(history=HistoryLimits(count=5, age=10)),
            "mail/*": TopicOptions(),
            "mail:tick": TopicOptions(history=None),
            "none.*": TopicOptions(history=None),
        }
    )
    streams = Streams(rules, "p")
    for topic in ("mail:1", "mail/1", "mail:tick", "none.x", "other"):
        assert streams.of(topic).limits == rules.of(topic).history
    assert streams.of("mail:tick") is streams.of("none.x")
    names = [stream.name for stream in streams]
    assert len(names) == len(set(names)) == 4
    assert {"p-all", "p-once"} < set(names)
    config = streams.of("mail:1").config(remember=100, max_bytes=7)
    assert (config["max_msgs_per_subject"], config["max_bytes"]) == (6, 7)
    assert (
        config["max_age"] == config["duplicate_window"] == 300 * 10**9
    )  # a server wants the window within the age


def test_times_are_read_to_the_microsecond():
    """With and without a fraction."""
    assert seconds("1970-01-02T00:00:00Z") == 86400
    assert seconds("2026-11-22T09:23:14.392831471Z") == pytest.approx(1795339394.392831, abs=1e-6)
    assert seconds("2026-11-22T09:23:14.5Z") == 1795339394.5


# ------------------------------------------------------------------------- servers


def test_urls_name_servers():
    """Several, with ports, users and tokens; secrets are not shown."""
    one, two, three, four = parse_servers("nats://a,nats://u:p%40@b:1, tls+nats://tok@[::1]:2,c:3")
    assert (str(one), one.port, one.tls, one.user, one.token) == ("a:4222", 4222, False, "", "")
    assert (str(two), two.user, two.password, two.token) == ("b:1", "u", "p@", "")
    assert (str(three), three.tls, three.user, three.token) == ("[::1]:2", True, "", "tok")
    assert (four.host, four.port) == ("c", 3)
    assert "p@" not in repr(two)
    assert "tok" not in repr(three)
    assert two.beside("[::2]:99").port == 99
    assert two.beside("d:99").user == "u"


@pytest.mark.parametrize(
    "url", ["", "nats://", "nats://a:x", "http://a", "nats://a/path", "nats://a,", "nats://a?x=1"]
)
def test_what_is_no_url_is_refused(url):
    """`ConfigurationError` says what a URL looks like."""
    with pytest.raises(ConfigurationError):
        parse_servers(url)


def test_a_topic_that_is_too_long_is_no_subject():
    """The limit on topics is one on subjects: a fifth of what a server takes as a line."""
    with pytest.raises(TopicError):
        check_topic("%" * 256)
    assert len(to_subject("%" * 255)) < 4096 - 500
