"""The client of Redis without a server: what it makes of bytes, addresses and errors."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trionet.errors import BrokerDown, BrokerError, ConfigurationError
from trionet.pubsub.brokers.redis import RedisBroker, resp
from trionet.pubsub.brokers.redis.address import Address, parse_url
from trionet.pubsub.brokers.redis.keys import Keys, parse_presence, parse_publication, plain
from trionet.pubsub.publication import Publication

hiredis = pytest.importorskip("hiredis")

# What a server says: replies, a message, acknowledgements of names, an error, RESP3's booleans and null.
SAID = (
    b"+PONG\r\n"
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\nda\r\n\r\n"
    b":7\r\n"
    b"-ERR no\r\n"
    b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nx\r\n"
    b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"
    b"#f\r\n"
    b"_\r\n"
    b"-NOPERM this user may not\r\n"
    b"$3\r\nend\r\n"
)


class Talk:
    """A link, and the other end of its stream."""

    def __init__(self, **options):
        ours, self.server = trio.testing.memory_stream_pair()
        self.pushes = []
        self.link = resp.Link(
            ours, **{"timeout": 5.0, "ping_interval": 5.0, "on_push": self.pushes.append, **options}
        )


@pytest.mark.parametrize("step", [1, 7, len(SAID)])
async def test_replies_and_pushes_in_pieces(step, nursery):
    """However the bytes are cut, each answer reaches who asked for it, and each push is handed on."""
    talk = Talk()
    link = talk.link
    nursery.start_soon(link.run)
    first = link.post([b"1"])
    pair = link.post([b"2", b"3"])
    names = link.post([b"4"], names=2)
    rest = link.post([b"5", b"6"])
    refused = link.post([b"7"], names=3)
    last = link.post([b"8"])
    for begin in range(0, len(SAID), step):
        await talk.server.send_all(SAID[begin : begin + step])
    assert await first.wait() == [b"PONG"]
    seven, error = await pair.wait()
    assert (seven, str(error)) == (7, "ERR no")
    assert await names.wait() == []
    assert await rest.wait() == [False, None]
    assert [str(reply) for reply in await refused.wait()] == ["NOPERM this user may not"]
    assert await last.wait() == [b"end"]
    assert [push[-1] for push in talk.pushes] == [b"da\r\n", b"x"]
    nursery.cancel_scope.cancel()


async def test_a_cancelled_caller_takes_its_answer_along(nursery):
    """Who gave up waiting leaves its place: the next answer is the next caller's."""
    talk = Talk()
    nursery.start_soon(talk.link.run)
    with trio.CancelScope() as scope:
        scope.cancel()
        await talk.link.post([b"1"]).wait()
    second = talk.link.post([b"2"])
    await talk.server.send_all(b"+one\r\n+two\r\n")
    assert await second.wait() == [b"two"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said, why",
    [
        (b"+unasked\r\n", "nothing was asked"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not Redis"),
        (b"", "closed the connection"),
    ],
)
async def test_what_breaks_a_link_fails_its_calls(said, why, nursery):
    """An answer nobody asked for, another protocol and the end of the stream break it, with the reason."""
    talk = Talk()
    nursery.start_soon(talk.link.run)
    call = talk.link.post([b"1"]) if b"unasked" not in said else None
    if said:
        await talk.server.send_all(said)
    else:
        await talk.server.send_eof()
    await talk.link.broken.wait()
    assert why in str(talk.link.error)
    if call is not None:
        with pytest.raises(BrokerDown, match=why):
            await call.wait()
    with pytest.raises(BrokerDown, match=why):
        talk.link.post([b"2"])


async def test_silence_is_found_out_in_time(autojump_clock, nursery):
    """A server that takes everything and says nothing is given up within the timeout, asked or not."""
    talk = Talk()
    begin = trio.current_time()
    await talk.link.run()
    assert 4 <= trio.current_time() - begin <= 5
    assert "not answered for 5 s" in str(talk.link.error)


async def test_a_process_that_stood_still_does_not_accuse_the_server(autojump_clock, nursery):
    """A loop that was blocked, or frozen, for a minute has answers lying there unread."""
    talk = Talk()
    nursery.start_soon(talk.link.run)
    call = talk.link.post([b"1"])
    await trio.testing.wait_all_tasks_blocked()
    autojump_clock.jump(60)
    await trio.sleep(0.5)
    assert not talk.link.broken.is_set()
    await talk.server.send_all(b"+late\r\n")
    assert await call.wait() == [b"late"]
    nursery.cancel_scope.cancel()


async def test_a_reader_that_is_held_up_does_not_accuse_the_server(autojump_clock, nursery):
    """While `wait_room` waits nothing is read, and that is not the server's fault."""
    room = trio.Event()
    talk = Talk(wait_room=room.wait)
    nursery.start_soon(talk.link.run)
    call = talk.link.post([b"1"])
    await talk.server.send_all(b"+late\r\n")
    await trio.sleep(60)
    assert not talk.link.broken.is_set()
    room.set()
    assert await call.wait() == [b"late"]
    nursery.cancel_scope.cancel()


async def test_callers_wait_while_too_much_is_on_its_way(nursery, monkeypatch):
    """More calls than `MAX_CALLS` wait before they are sent, until answers come, or the link breaks."""
    monkeypatch.setattr(resp, "MAX_CALLS", 2)
    talk = Talk()
    nursery.start_soon(talk.link.run)
    talk.link.post([b"1", b"2"])
    with trio.move_on_after(0) as scope:
        await talk.link.call(b"3")
    assert scope.cancelled_caught
    await talk.server.send_all(b"+1\r\n+2\r\n")
    with trio.fail_after(5):
        await talk.link.room()
    talk.link.post([b"4", b"5"])
    talk.link.fail("over")
    with pytest.raises(BrokerDown, match="over"):
        await talk.link.call(b"6")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url, address",
    [
        ("redis://", Address()),
        ("redis://cache", Address("cache")),
        ("valkey://u:p%40ss@h:1/3", Address("h", 1, user="u", password="p@ss", db=3)),
        ("redis://:secret@h", Address("h", password="secret")),
        ("rediss://h", Address("h", tls=True)),
        ("redis://[::1]:7", Address("::1", 7)),
        ("redis+unix:///run/redis.sock?db=2", Address(path="/run/redis.sock", db=2)),
        ("redis+unix://u:p@/s", Address(path="/s", user="u", password="p")),
    ],
)
def test_addresses(url, address):
    """A URL says where, by what, as whom, and which database."""
    assert parse_url(url) == address
    assert "secret" not in repr(address) + str(address)


@pytest.mark.parametrize(
    "url", ["http://h", "redis://h:port", "redis://h/x", "redis+unix://", "redis://h?ttl=1", "redis://h#1"]
)
def test_what_is_no_address(url):
    """It says what a URL looks like."""
    with pytest.raises(ConfigurationError, match="redis://user:password@host"):
        parse_url(url)


@pytest.mark.parametrize(
    "options", [{"when_down": "wait"}, {"timeout": 0}, {"max_waiting": -1}, {"remember": 1}]
)
def test_settings_that_cannot_work(options):
    """They are refused when the broker is made."""
    with pytest.raises(ConfigurationError):
        RedisBroker("redis://", **options)


def test_without_hiredis(monkeypatch):
    """The error says what to install."""
    monkeypatch.setattr(resp, "hiredis", None)
    with pytest.raises(ConfigurationError, match=r"trionet\[redis\]"):
        RedisBroker("redis://")


@pytest.mark.parametrize(
    "said, kind, words",
    [
        ("LOADING Redis is loading the dataset in memory", BrokerDown, "loading"),
        ("READONLY You can't write against a read only replica.", BrokerDown, "replica"),
        ("OOM command not allowed", BrokerError, "maxmemory"),
        (
            "ERR Error running script (call to f_1): @user_script:3: -OOM command not allowed",
            BrokerError,
            "maxmemory",
        ),
        ("WRONGPASS invalid username-password pair", BrokerError, "does not know this user"),
        ("MOVED 1 h:1", BrokerError, "Cluster is not supported"),
    ],
)
def test_errors_say_what_to_do(said, kind, words):
    """What passes by itself is `BrokerDown`; the rest is a `BrokerError` with advice."""
    error = resp.error_of(hiredis.ReplyError(said))
    assert type(error) is kind
    assert words in str(error)


def test_payloads_come_back_as_they_were_given():
    """Data, tag and origin may hold anything, separators included."""
    payload = plain(b"1:2:\0\xff", 12.5, "t:1", "o:\u00e9")
    assert parse_publication("x", payload) == Publication(
        "x", b"1:2:\0\xff", at=12.5, tag="t:1", origin="o:\u00e9"
    )
    assert parse_presence(b"+3:a:bin:fo") == ("join", "a:b", b"in:fo")
    for nonsense in (b"", b"hello", b"1:2:3", b"a:b:c:d:e:f:g"):
        with pytest.raises(ValueError):
            parse_publication("x", nonsense)


def test_names():
    """Keys of one topic share a hash tag, those of two topics differ, and globs stand for themselves."""
    keys = Keys("p:", 60)
    assert keys.line("a") == ["p:m:{a}", "p:h:{a}"]
    assert keys.key("a", "b}:c") != keys.key("a}:b", "c")
    assert keys.topic(keys.channel("m\u00e9:*")) == "m\u00e9:*"
    assert keys.pattern("a[1]?/*") == rb"p:t:a\[1\]\?/*"
