"""The key-value example: RESP cut anywhere, commands, limits, subscribers; and Redis's own tools."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager

import hypothesis
import hypothesis.strategies as st
import pytest
import trio

import trionet
from examples.keyvalue.resp import Limits, ProtocolBroken, Reader, array, bulk
from examples.keyvalue.server import COMMANDS, KeyValue
from examples.keyvalue.store import CommandFailed, Store

SMALL = Limits(bulk=64, command=300, arguments=8, memory=1000, keys=3, channels=2)


def pack(*words: bytes) -> bytes:
    """Return the bytes of a command."""
    return array([bulk(word) for word in words])


# ------------------------------------------------------------------------------ RESP


def read(reader: Reader, data: bytes, *, bytewise: bool) -> list[list[bytes]]:
    """Feed a reader; whole or byte by byte."""
    found = []
    for piece in [data[n : n + 1] for n in range(len(data))] if bytewise else [data]:
        commands, error = reader.read(piece)
        found += commands
        if error is not None:
            raise error
    return found


@pytest.mark.parametrize("bytewise", [False, True])
@hypothesis.given(
    commands=st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=8), max_size=5),
    rest=st.sampled_from(
        [b"", b"*", b"*2\r", b"*2\r\n", b"*2\r\n$", b"*2\r\n$3\r\nab", b"*2\r\n$3\r\nabc\r", b"PI"]
    ),
)
def test_commands_come_however_they_are_cut(bytewise, commands, rest):
    """What was packed is read, and what is not whole waits for its rest."""
    reader = Reader(SMALL)
    data = b"".join(pack(*command) for command in commands)
    assert read(reader, data + rest, bytewise=bytewise) == commands
    assert reader.idle == (not rest)


@pytest.mark.parametrize("bytewise", [False, True])
def test_inline_commands(bytewise):
    """A line of words is a command, an empty one is none, and both kinds may be mixed."""
    data = b"PING\r\n\r\n  set  a 1 \n" + pack(b"GET", b"a") + b"*0\r\nQUIT\r\n"
    expected = [[b"PING"], [b"set", b"a", b"1"], [b"GET", b"a"], [b"QUIT"]]
    assert read(Reader(SMALL), data, bytewise=bytewise) == expected


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b"*9\r\n",
        b"*-1\r\n",
        b"*x\r\n",
        b"*" + b"1" * 40,
        b"*1\r\n$65\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\nPING\r\n",
        b"*1\r\n$" + b"0" * 40,
        b"*1\r\n$1\r\nabc",
        pack(*[b"x" * 40] * 6),
        b"x" * 5000,
    ],
)
def test_what_is_not_resp(data, bytewise):
    """It is refused, and what came before it is read."""
    reader = Reader(SMALL)
    assert read(reader, pack(b"PING"), bytewise=bytewise) == [[b"PING"]]
    with pytest.raises(ProtocolBroken):
        read(reader, data, bytewise=bytewise)
    commands, error = Reader(SMALL).read(pack(b"PING") + data)
    assert commands == [[b"PING"]]
    assert error is not None


def test_a_large_string_is_looked_at_once():
    """While its bytes come, nothing is parsed again."""
    reader = Reader(Limits())
    head = b"*2\r\n$4\r\nECHO\r\n$500000\r\n"
    assert reader.read(head + b"x") == ([], None)
    assert reader.need == len(b"$500000\r\n") + 500_002
    parsed = []
    parse = reader._parse
    reader_class = type(
        "Counted", (Reader,), {"__slots__": (), "_parse": lambda s, *a: parsed.append(1) or parse(*a)}
    )
    reader.__class__ = reader_class
    for _ in range(499):
        assert reader.read(b"x" * 1000) == ([], None)
    commands, _ = reader.read(b"x" * 999 + b"\r\n")
    assert [len(word) for word in commands[0]] == [4, 500_000]
    assert len(parsed) == 1


# ------------------------------------------------------------------------------ the keys


def test_keys_expire():
    """An expired key is gone at once for who asks, and later for the memory; a key may be put again meanwhile."""
    now = [0.0]
    store = Store(Limits(), lambda: now[0])
    for key in (b"a", b"b", b"c"):
        store.set(key, b"1")
        assert store.expire(key, 10)
    store.set(b"b", b"2")
    assert store.left(b"a") == 10
    assert store.left(b"b") is None
    now[0] = 10.0
    assert store.get(b"a") is None
    assert store.values.keys() == {b"b", b"c"}
    store.sweep()
    assert store.values == {b"b": b"2"}
    assert not store.expiries
    store.remove(b"b")
    assert store.memory == 0


def test_expiries_that_change_leave_little_behind():
    """A key whose expiry is set again and again takes the room of one."""
    store = Store(Limits(), lambda: 0.0)
    store.set(b"a", b"1")
    for n in range(1000):
        store.expire(b"a", n + 1)
    assert len(store.heap) <= 66
    assert store.left(b"a") == 1000


def test_memory_is_bounded():
    """Beyond keys or bytes a new value is refused; what is there can still be changed, and removed."""
    store = Store(SMALL, lambda: 0.0)
    for n in range(3):
        store.set(b"%d" % n, b"x")
    with pytest.raises(CommandFailed, match="OOM"):
        store.set(b"4", b"x")
    store.set(b"1", b"y" * 200)
    with pytest.raises(CommandFailed, match="OOM"):
        store.set(b"2", b"y" * 500)
    store.remove(b"1")
    store.set(b"2", b"y" * 500)


# -------------------------------------------------------------------------- the protocol


class Client:
    """A raw connection."""

    def __init__(self, stream):
        self.stream = stream
        self.data = b""

    async def send(self, data):
        """Send bytes."""
        await self.stream.send_all(data)

    async def hears(self, data):
        """Expect exactly these bytes next."""
        while len(self.data) < len(data):
            piece = await self.stream.receive_some(65536)
            assert piece, self.data
            self.data += piece
        assert self.data[: len(data)] == data
        self.data = self.data[len(data) :]

    async def ask(self, *words):
        """Send a command, and return its answer: numbers, strings, None, lists, errors as strings."""
        await self.send(pack(*(word.encode() if isinstance(word, str) else word for word in words)))
        return await self.answer()

    async def answer(self):
        """Return the next answer."""
        line = await self.line()
        kind, rest = line[:1], line[1:].decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else await self.take(int(rest))
        if kind == b"*":
            return [await self.answer() for _ in range(int(rest))]
        return rest

    async def line(self):
        """Return the next line."""
        while b"\r\n" not in self.data:
            piece = await self.stream.receive_some(65536)
            assert piece, self.data
            self.data += piece
        line, _, self.data = self.data.partition(b"\r\n")
        return line

    async def take(self, size):
        """Return a string of so many bytes."""
        while len(self.data) < size + 2:
            self.data += await self.stream.receive_some(65536)
        value, self.data = self.data[:size], self.data[size + 2 :]
        return value


class Running:
    """A server and its clients."""

    def __init__(self, server, protocol, stack):
        self.server = server
        self.protocol = protocol
        self._stack = stack

    async def client(self, *, small=False):
        """Connect."""
        sock = trio.socket.socket()
        if small:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            for listener in self.server.listeners:
                listener.sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 4096)
        client = Client(trio.SocketStream(sock))
        await self._stack.enter_async_context(client.stream)
        await sock.connect(self.server.addresses[0])
        return client


@asynccontextmanager
async def running(limits=None):
    """Serve the example."""
    protocol = KeyValue(limits)
    with trio.fail_after(30):
        async with trionet.open_server(protocol) as server, AsyncExitStack() as stack:
            yield Running(server, protocol, stack)


async def test_strings():
    """The commands on strings, as Redis answers them."""
    async with running() as at:
        client = await at.client()
        conversation = [
            (("PING",), "PONG"),
            (("PING", "hello"), b"hello"),
            (("ECHO", b"\r\n\0"), b"\r\n\0"),
            (("SELECT", "0"), "OK"),
            (("SELECT", "1"), "ERR DB index is out of range"),
            (("GET", "a"), None),
            (("SET", "a", "1"), "OK"),
            (("get", "a"), b"1"),
            (("SET", "a", "2", "NX"), None),
            (("SET", "b", "2", "XX"), None),
            (("SET", "a", "2", "xx", "EX", "100"), "OK"),
            (("TTL", "a"), 100),
            (("SET", "a", "3", "KEEPTTL"), "OK"),
            (("TTL", "a"), 100),
            (("PERSIST", "a"), 1),
            (("TTL", "a"), -1),
            (("TTL", "no"), -2),
            (("EXPIRE", "a", "50"), 1),
            (("EXPIRE", "no", "50"), 0),
            (("SET", "a", "4"), "OK"),
            (("TTL", "a"), -1),
            (("INCR", "a"), 5),
            (("DECR", "a"), 4),
            (("INCR", "new"), 1),
            (("MSET", "x", "1", "y", "2"), "OK"),
            (("MGET", "x", "no", "y"), [b"1", None, b"2"]),
            (("EXISTS", "x", "x", "no"), 2),
            (("DEL", "x", "no", "y"), 2),
            (("DBSIZE",), 2),
            (("KEYS", "n?w"), [b"new"]),
            (("EXPIRE", "new", "0"), 1),
            (("EXISTS", "new"), 0),
            (("COMMAND",), []),
            (("CONFIG", "GET", "save"), []),
            (("CLIENT", "SETNAME", "me"), "OK"),
            (("FLUSHALL",), "OK"),
            (("DBSIZE",), 0),
        ]
        for words, answer in conversation:
            assert await client.ask(*words) == answer, words


async def test_answers_and_names_of_channels_are_bounded():
    """A command that names a large value often, or a channel at length, is refused, and the next one is run."""
    async with running(Limits(answer=100, channel=4)) as at:
        client = await at.client()
        await client.ask("SET", "k" * 60, b"x" * 60)
        assert await client.ask("MGET", "k" * 60) == [b"x" * 60]
        assert await client.ask("MGET", "k" * 60, "k" * 60) == "ERR an answer of more than 100 bytes"
        await client.ask("SET", "l" * 60, b"")
        assert await client.ask("KEYS", "k*") == [b"k" * 60]
        assert await client.ask("KEYS", "*") == "ERR an answer of more than 100 bytes"
        refusal = "ERR the name of a channel has 4 bytes at most"
        assert await client.ask("SUBSCRIBE", "abcd", "abcde") == refusal
        assert not at.protocol.channels
        assert await client.ask("SUBSCRIBE", "abcd") == [b"subscribe", b"abcd", 1]


async def test_errors():
    """A command that cannot be run is answered with an error, and the next one is run."""
    async with running() as at:
        client = await at.client()
        await client.ask("SET", "word", "abc")
        await client.ask("SET", "large", str(2**63 - 1))
        conversation = [
            (("NO\r\nSUCH",), "ERR unknown command 'NO??SUCH'"),
            (("GET",), "ERR wrong number of arguments for 'get' command"),
            (("MSET", "a", "1", "b"), "ERR wrong number of arguments for 'mset' command"),
            (("INCR", "word"), "ERR value is not an integer or out of range"),
            (("INCR", "large"), "ERR increment or decrement would overflow"),
            (("SET", "a", "1", "EX"), "ERR value is not an integer or out of range"),
            (("SET", "a", "1", "EX", "0"), "ERR invalid expire time in 'set' command"),
            (("SET", "a", "1", "NX", "XX"), "ERR syntax error"),
            (("SET", "a", "1", "SOON"), "ERR syntax error"),
            (("KEYS", "*" * 300), "ERR pattern too long"),
            (("PING",), "PONG"),
        ]
        for words, answer in conversation:
            assert await client.ask(*words) == answer, words


async def test_pipelining():
    """A thousand commands in one go are answered in order, cut anywhere."""
    async with running() as at:
        client = await at.client()
        data = b"".join(pack(b"SET", b"k%d" % n, b"%d" % n) + pack(b"GET", b"k%d" % n) for n in range(1000))
        answers = b"".join(b"+OK\r\n" + bulk(b"%d" % n) for n in range(1000))
        await client.send(data[:12345])
        await client.send(data[12345:])
        await client.hears(answers)
        assert not at.server.statistics().pool.detached


async def test_large_answers_wait_for_the_reader():
    """Whoever asks for more than it reads is not read from; the server holds little, and nothing is lost."""
    async with running() as at:
        client, other = await at.client(small=True), await at.client()
        await client.ask("SET", "big", b"x" * 100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, pack(b"GET", b"big") * 12)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert await other.ask("PING") == "PONG"
            assert max(connection.queued for connection in at.server.connections) < 500_000
            await client.hears(bulk(b"x" * 100_000) * 12)


@pytest.mark.parametrize("data", [b"*x\r\n", b"*1\r\n$9999999\r\n", b"x" * 9000])
async def test_a_peer_that_speaks_something_else(data):
    """What came before is answered, then it is told, and closed."""
    async with running() as at:
        client = await at.client()
        await client.send(pack(b"PING") + data)
        await client.hears(b"+PONG\r\n-ERR Protocol error: ")
        await client.line()
        assert not await client.stream.receive_some()


async def test_quit():
    """QUIT is answered, what follows it is not, and the connection ends."""
    async with running() as at:
        client = await at.client()
        await client.send(b"PING\r\nQUIT\r\nPING\r\n")
        await client.hears(b"+PONG\r\n+OK\r\n")
        assert not await client.stream.receive_some()


async def test_publish_and_subscribe():
    """Messages are pushed to connections that say nothing; those that leave are forgotten."""
    async with running() as at:
        publisher, one, two = [await at.client() for _ in range(3)]
        assert await publisher.ask("PUBLISH", "news", "x") == 0
        for client in (one, two):
            assert await client.ask("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        await two.send(pack(b"SUBSCRIBE", b"a", b"b"))
        assert [(await two.answer())[2] for _ in range(2)] == [2, 3]
        assert await publisher.ask("PUBLISH", "news", "hello") == 2
        for client in (one, two):
            assert await client.answer() == [b"message", b"news", b"hello"]
        assert await one.ask("PING") == [b"pong", b""]
        assert "only (UN)SUBSCRIBE" in await one.ask("GET", "a")
        assert await one.ask("UNSUBSCRIBE", "news") == [b"unsubscribe", b"news", 0]
        assert await one.ask("GET", "a") is None
        assert await one.ask("UNSUBSCRIBE") == [b"unsubscribe", None, 0]
        assert await publisher.ask("PUBLISH", "news", "again") == 1
        await two.stream.aclose()
        while at.protocol.channels:
            await trio.lowlevel.checkpoint()
        assert await publisher.ask("PUBLISH", "a", "x") == 0


async def test_limits():
    """Memory, keys and channels are bounded; the peer is told."""
    async with running(SMALL) as at:
        client = await at.client()
        for n in range(3):
            assert await client.ask("SET", str(n), "x") == "OK"
        assert (await client.ask("SET", "4", "x")).startswith("OOM")
        assert await client.ask("SUBSCRIBE", "1", "2", "3") == "ERR more than 2 channels"
        assert await client.ask("GET", "1") == b"x"


async def test_a_subscriber_that_does_not_read_is_closed():
    """The publisher never waits for it, and memory is bounded."""
    async with running() as at:
        slow, publisher = await at.client(small=True), await at.client()
        await slow.ask("SUBSCRIBE", "news")
        message = b"x" * 400_000
        while await publisher.ask("PUBLISH", "news", message):
            pass
        assert at.server.statistics().overflowed == 1


def test_every_command_says_what_it_is():
    """The table is complete: each has a docstring that begins with its name or names."""
    for name, (function, least, most) in COMMANDS.items():
        assert name.decode() in function.__doc__
        assert least <= most


# ------------------------------------------------------------------------- Redis's tools


@pytest.fixture
def keyvalue(start_program):
    """Return the port of the example, run as a program."""
    _, url = start_program("-m", "examples.keyvalue", "--port", "0")
    return url.rstrip("/").rpartition(":")[2]


def run(program, *args, stdin=None):
    """Run one of Redis's programs; skips where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} (Debian: redis-tools)")
    done = subprocess.run([path, *args], input=stdin, capture_output=True, check=True, timeout=50)
    return done.stdout.decode()


def test_redis_cli(keyvalue):
    """redis-cli gets the answers it knows how to print, one command or a pipe full of them."""
    say = "redis-cli", "-p", keyvalue
    assert run(*say, "SET", "a", "1") == "OK\n"
    assert run(*say, "INCR", "a") == "2\n"
    assert run(*say, "MGET", "a", "b") == "2\n\n"
    assert run(*say, stdin=b"PING\nECHO 'two words'\nDBSIZE\n") == "PONG\ntwo words\n1\n"
    data = b"".join(pack(b"SET", b"k%d" % n, b"x") for n in range(5000))
    assert "errors: 0, replies: 5000" in run(*say, "--pipe", stdin=data)
    assert run(*say, "DBSIZE") == "5001\n"


def test_redis_benchmark(keyvalue):
    """redis-benchmark, pipelined, finishes without an error."""
    args = (
        "-t",
        "set,get,incr,mset,ping_inline,ping_mbulk",
        "-n",
        "2000",
        "-c",
        "20",
        "-P",
        "16",
        "-r",
        "100",
        "-q",
    )
    told = run("redis-benchmark", "-p", keyvalue, *args)
    assert told.count("requests per second") >= 6
    assert "rror" not in told.replace("WARNING: Could not fetch server CONFIG", "")
