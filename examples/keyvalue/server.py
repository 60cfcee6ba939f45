"""A key-value server that Redis's own tools can talk to: strings, counters, expiry, publish and subscribe.

python -m examples.keyvalue --port 6379

It shows a protocol of one's own, in layers that can each be read and tested without the next: `resp` cuts commands out
of bytes, `store` keeps the keys, and here a `Protocol` runs commands, answers those of one read together, and pushes to
subscribers. Commands never wait, so no handler ever leaves its worker; an idle connection is the connection object and
nothing else, also when it is subscribed (but for its set of channels).
"""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from examples.keyvalue.resp import NIL, OK, Limits, Reader, array, bulk, integer
from examples.keyvalue.store import CommandFailed, Store
from trionet import Connection, ConnectionClosed, Protocol, Server, serve


class KeyValue(Protocol):
    """Serves a `Store`. ``connection.data`` is the set of channels of a connection that is subscribed, else None."""

    scheme = "redis"

    def __init__(self, limits: Limits | None = None) -> None:
        # A subscriber that does not read is closed when 8 MiB wait for it.
        self.limits = limits or Limits()
        room = max(2**23, 2 * self.limits.command)
        super().__init__(hard_limit=room, read_ahead=self.limits.command, idle_timeout=None)
        self.store = Store(self.limits)
        self.channels: dict[bytes, dict[Connection, None]] = {}
        self.commands = 0

    async def data_received(self, connection: Connection, data: bytes) -> None:
        """Run the commands that came, answer them in one write; wait only for a peer that does not read."""
        reader: Reader = connection._input or Reader(self.limits)
        commands, error = reader.read(data)
        connection._input = None if reader.idle else reader
        self.commands += len(commands)
        self.store.sweep()
        answers: list[bytes] = []
        size = 0
        for command in commands:
            answer = self.run(connection, command)
            answers.append(answer)
            size += len(answer)
            if size > 65536:
                connection.write(b"".join(answers))  # now, or a message pushed meanwhile would overtake it
                answers, size = [], 0
                await connection.wait_writable()
            if connection.closed is not None:
                return
            if command[0].upper() == b"QUIT":
                break
        else:
            if error is None:
                connection.write(answers[0] if len(answers) == 1 else b"".join(answers))
                return
            answers.append(b"-ERR Protocol error: %b\r\n" % str(error).encode())
        connection._input = None
        connection.write(b"".join(answers))
        connection.linger()

    def run(self, connection: Connection, command: list[bytes]) -> bytes:
        """The answer to a command."""
        name = command[0].upper()
        known = COMMANDS.get(name)
        if known is None:
            return b"-ERR unknown command '%b'\r\n" % re.sub(rb"[^!-~]", b"?", command[0][:64])
        function, least, most = known
        if not least <= len(command) - 1 <= most:
            return b"-ERR wrong number of arguments for '%b' command\r\n" % name.lower()
        if connection.data is not None and name not in WHILE_SUBSCRIBED:
            return (
                b"-ERR Can't execute '%b': only (UN)SUBSCRIBE / PING / QUIT in this context\r\n"
                % name.lower()
            )
        try:
            return function(self, connection, command)
        except CommandFailed as error:
            return b"-%b\r\n" % str(error).encode()

    def lost(self, connection: Connection) -> Coroutine[Any, Any, None] | None:
        """Forget a subscriber that has left."""
        for channel in connection.data or ():
            self._leave(connection, channel)
        return None

    def handler_failed(self, connection: Connection, error: Exception) -> None:
        """A peer that left while answers waited for it is no failure."""
        if not (isinstance(error, ConnectionClosed) and connection.closed is not None):
            super().handler_failed(connection, error)

    def _leave(self, connection: Connection, channel: bytes) -> None:
        members = self.channels.get(channel, {})
        members.pop(connection, None)
        if not members:
            self.channels.pop(channel, None)

    def _bound(self, size: int) -> None:
        if size > self.limits.answer:
            raise CommandFailed(f"ERR an answer of more than {self.limits.answer} bytes")

    # ------------------------------------------------------------ the connection

    def ping(self, connection: Connection, command: list[bytes]) -> bytes:
        """PING [message]."""
        if connection.data is not None:
            return array([bulk(b"pong"), bulk(command[1] if len(command) > 1 else b"")])
        return bulk(command[1]) if len(command) > 1 else b"+PONG\r\n"

    def echo(self, connection: Connection, command: list[bytes]) -> bytes:
        """ECHO message."""
        return bulk(command[1])

    def quit(self, connection: Connection, command: list[bytes]) -> bytes:
        """QUIT: what follows it is not looked at."""
        return OK

    def select(self, connection: Connection, command: list[bytes]) -> bytes:
        """SELECT 0: there is one database."""
        if number(command[1]) != 0:
            raise CommandFailed("ERR DB index is out of range")
        return OK

    def nothing(self, connection: Connection, command: list[bytes]) -> bytes:
        """COMMAND, CONFIG GET: clients ask at the start, and get on without an answer."""
        return array([])

    def fine(self, connection: Connection, command: list[bytes]) -> bytes:
        """CLIENT: names and the like are not kept."""
        return OK

    # ------------------------------------------------------------------ the keys

    def get(self, connection: Connection, command: list[bytes]) -> bytes:
        """GET key."""
        value = self.store.get(command[1])
        return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)

    def set(self, connection: Connection, command: list[bytes]) -> bytes:
        """SET key value [NX | XX] [EX seconds | PX milliseconds] [KEEPTTL]."""
        key, value = command[1], command[2]
        if len(command) == 3:
            self.store.set(key, value)
            return OK
        seconds = None
        words = iter(command[3:])
        found = set()
        for word in words:
            option = word.upper()
            found.add(option)
            if option in (b"EX", b"PX"):
                seconds = lifetime(next(words, b"")) / (1 if option == b"EX" else 1000)
            elif option not in (b"NX", b"XX", b"KEEPTTL"):
                raise CommandFailed("ERR syntax error")
        if {b"NX", b"XX"} <= found or len(found & {b"EX", b"PX", b"KEEPTTL"}) > 1:
            raise CommandFailed("ERR syntax error")
        exists = self.store.get(key) is not None
        if (b"NX" in found and exists) or (b"XX" in found and not exists):
            return NIL
        self.store.set(key, value, keep=b"KEEPTTL" in found)
        if seconds is not None:
            self.store.expire(key, seconds)
        return OK

    def mget(self, connection: Connection, command: list[bytes]) -> bytes:
        """MGET key ..."""
        values = []
        size = 0
        for key in command[1:]:
            values.append(value := self.store.get(key))
            size += len(value or b"") + 16
        self._bound(size)
        return array([bulk(value) for value in values])

    def mset(self, connection: Connection, command: list[bytes]) -> bytes:
        """MSET key value ..."""
        if len(command) % 2 == 0:
            raise CommandFailed("ERR wrong number of arguments for 'mset' command")
        for key, value in zip(command[1::2], command[2::2], strict=True):
            self.store.set(key, value)
        return OK

    def delete(self, connection: Connection, command: list[bytes]) -> bytes:
        """DEL key ..."""
        return integer(sum(self.store.get(key) is not None and self.store.remove(key) for key in command[1:]))

    def exists(self, connection: Connection, command: list[bytes]) -> bytes:
        """EXISTS key ..."""
        return integer(sum(self.store.get(key) is not None for key in command[1:]))

    def incr(self, connection: Connection, command: list[bytes]) -> bytes:
        """INCR key, DECR key."""
        value = number(self.store.get(command[1]) or b"0") + (-1 if command[0][:1] in b"dD" else 1)
        if not -(2**63) <= value < 2**63:
            raise CommandFailed("ERR increment or decrement would overflow")
        self.store.set(command[1], b"%d" % value, keep=True)
        return integer(value)

    def expire(self, connection: Connection, command: list[bytes]) -> bytes:
        """EXPIRE key seconds: none or less, and it is gone."""
        seconds = number(command[2])
        if seconds <= 0:
            return integer(self.store.get(command[1]) is not None and self.store.remove(command[1]))
        return integer(self.store.expire(command[1], seconds))

    def persist(self, connection: Connection, command: list[bytes]) -> bytes:
        """PERSIST key: it does not expire any more."""
        return integer(
            self.store.get(command[1]) is not None and self.store.expiries.pop(command[1], None) is not None
        )

    def ttl(self, connection: Connection, command: list[bytes]) -> bytes:
        """TTL key: seconds it has left, -1 without expiry, -2 without key."""
        if self.store.get(command[1]) is None:
            return integer(-2)
        left = self.store.left(command[1])
        return integer(-1 if left is None else int(left + 0.5))

    def keys(self, connection: Connection, command: list[bytes]) -> bytes:
        """KEYS pattern: a look at every key, during which nobody else is served."""
        if len(command[1]) > 256:
            raise CommandFailed("ERR pattern too long")
        matches = re.compile(fnmatch.translate(command[1].decode("latin-1"))).match
        found = [key for key in list(self.store.values) if matches(key.decode("latin-1"))]
        self._bound(sum(len(key) + 16 for key in found))
        return array([bulk(key) for key in found if self.store.get(key) is not None])

    def dbsize(self, connection: Connection, command: list[bytes]) -> bytes:
        """DBSIZE."""
        self.store.sweep(len(self.store.heap))
        return integer(len(self.store.values))

    def flushall(self, connection: Connection, command: list[bytes]) -> bytes:
        """FLUSHALL."""
        self.store = Store(self.limits, self.store.clock)
        return OK

    # --------------------------------------------------------------- subscribers

    def subscribe(self, connection: Connection, command: list[bytes]) -> bytes:
        """SUBSCRIBE channel ...: from now on messages are pushed to this connection, however idle it is."""
        mine: set[bytes] = set() if connection.data is None else connection.data
        if len(mine | set(command[1:])) > self.limits.channels:
            raise CommandFailed(f"ERR more than {self.limits.channels} channels")
        if max(map(len, command[1:])) > self.limits.channel:
            raise CommandFailed(f"ERR the name of a channel has {self.limits.channel} bytes at most")
        connection.data = mine
        answers = []
        for channel in command[1:]:
            mine.add(channel)
            self.channels.setdefault(channel, {})[connection] = None
            answers.append(array([bulk(b"subscribe"), bulk(channel), integer(len(mine))]))
        return b"".join(answers)

    def unsubscribe(self, connection: Connection, command: list[bytes]) -> bytes:
        """UNSUBSCRIBE [channel ...]: those, or all."""
        mine: set[bytes] = connection.data or set()
        answers = []
        for channel in command[1:] or sorted(mine):
            mine.discard(channel)
            self._leave(connection, channel)
            answers.append(array([bulk(b"unsubscribe"), bulk(channel), integer(len(mine))]))
        connection.data = mine or None
        return b"".join(answers) or array([bulk(b"unsubscribe"), NIL, integer(0)])

    def publish(self, connection: Connection, command: list[bytes]) -> bytes:
        """PUBLISH channel message: one write for each subscriber, none of which is waited for."""
        members = self.channels.get(command[1])
        if not members:
            return integer(0)
        message = array([bulk(b"message"), bulk(command[1]), bulk(command[2])])
        for member in list(members):
            member.write(message)
        return integer(len(members))


def number(text: bytes) -> int:
    """A signed 64-bit number as commands have it. Raises `CommandFailed`."""
    if re.fullmatch(rb"-?[0-9]{1,19}", text) and -(2**63) <= (value := int(text)) < 2**63:
        return value
    raise CommandFailed("ERR value is not an integer or out of range")


def lifetime(text: bytes) -> int:
    """A number of seconds or milliseconds in SET. Raises `CommandFailed`."""
    value = number(text)
    if value <= 0:
        raise CommandFailed("ERR invalid expire time in 'set' command")
    return value


Command = Callable[[KeyValue, Connection, list[bytes]], bytes]

MANY = 10**9
# Name: what runs it, and how few and how many arguments it has.
COMMANDS: dict[bytes, tuple[Command, int, int]] = {
    b"CLIENT": (KeyValue.fine, 1, MANY),
    b"COMMAND": (KeyValue.nothing, 0, MANY),
    b"CONFIG": (KeyValue.nothing, 1, MANY),
    b"DBSIZE": (KeyValue.dbsize, 0, 0),
    b"DECR": (KeyValue.incr, 1, 1),
    b"DEL": (KeyValue.delete, 1, MANY),
    b"ECHO": (KeyValue.echo, 1, 1),
    b"EXISTS": (KeyValue.exists, 1, MANY),
    b"EXPIRE": (KeyValue.expire, 2, 2),
    b"FLUSHALL": (KeyValue.flushall, 0, 1),
    b"GET": (KeyValue.get, 1, 1),
    b"INCR": (KeyValue.incr, 1, 1),
    b"KEYS": (KeyValue.keys, 1, 1),
    b"MGET": (KeyValue.mget, 1, MANY),
    b"MSET": (KeyValue.mset, 2, MANY),
    b"PERSIST": (KeyValue.persist, 1, 1),
    b"PING": (KeyValue.ping, 0, 1),
    b"PUBLISH": (KeyValue.publish, 2, 2),
    b"QUIT": (KeyValue.quit, 0, MANY),
    b"SELECT": (KeyValue.select, 1, 1),
    b"SET": (KeyValue.set, 2, 7),
    b"SUBSCRIBE": (KeyValue.subscribe, 1, MANY),
    b"TTL": (KeyValue.ttl, 1, 1),
    b"UNSUBSCRIBE": (KeyValue.unsubscribe, 0, MANY),
}
WHILE_SUBSCRIBED = {b"PING", b"QUIT", b"SUBSCRIBE", b"UNSUBSCRIBE"}


def announce(server: Server) -> None:
    """Say that it is ready."""
    for listener in server.listeners:
        print(f"listening on {listener.url}", flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6379, help="0: any free one")
    parser.add_argument("--max-memory", type=int, default=2**28, metavar="BYTES")
    parser.add_argument("--max-keys", type=int, default=10**6, metavar="N")
    args = parser.parse_args()

    async def run() -> None:
        protocol = KeyValue(Limits(memory=args.max_memory, keys=args.max_keys))
        await serve(protocol, args.host, args.port, announce=announce)

    trio.run(run)


if __name__ == "__main__":
    main()
