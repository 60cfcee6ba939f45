"""A link to Redis that comes back: connect, greet, prepare, be up until it breaks, wait a little, again."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from trionet.errors import BrokerDown, BrokerError
from trionet.pubsub.broker import now
from trionet.pubsub.brokers.linked import Attempts, words
from trionet.pubsub.brokers.redis.address import Address, open_stream
from trionet.pubsub.brokers.redis.resp import Link, error_of, pack
from trionet.pubsub.brokers.redis.scripts import SCRIPTS

__all__ = ["Server", "Supervised", "forgotten", "load_scripts"]

log = logging.getLogger("trionet.pubsub")

OLDEST: Final = (6, 2)  # of Redis; Valkey, which began with 7.2, says 7.2.4 for ever


@attrs.frozen
class Server:
    """What scripts are told of the server: which run of it this is, and whether its data outlives it."""

    run: str = ""
    durable: bool = False


@attrs.define
class Settings:
    """How to reach it, and how to behave there."""

    address: Address
    context: ssl.SSLContext | None
    timeout: float
    ping_interval: float
    client_name: str


class Supervised:
    """One link at a time, in `link` while it is up. `run` it in a task.

    `prepare` is awaited with each new link before it is up, `serve` runs beside it from then on. `changed` is called
    with every change.
    """

    def __init__(
        self,
        settings: Settings,
        what: str,
        changed: Callable[[], None],
        *,
        prepare: Callable[[Link, Server], Awaitable[None]] | None = None,
        serve: Callable[[Link, Server], Awaitable[None]] | None = None,
        **options: Any,
    ) -> None:
        self.link: Link | None = None
        self._coming: Link | None = None  # the same, from before it is up
        self.server = Server()
        self.error: BrokerError = BrokerDown("the broker does not run")
        self.up = trio.Event()  # a new one each time it goes down
        self._settings = settings
        self._what = what
        self._changed = changed
        self._prepare = prepare
        self._serve = serve
        self._options = options

    def require(self) -> Link:
        """The link. Raises `BrokerDown`."""
        if self.link is None:
            raise BrokerDown(f"Redis at {self.address}: {self.error}")
        return self.link

    @property
    def address(self) -> Address:
        """Where it goes."""
        return self._settings.address

    async def calls(self, link: Link, commands: list[bytes]) -> list[Any]:
        """Send commands together; returns the answers, errors among them. Scripts may be gone: then they are loaded.

        Raises `BrokerDown`.
        """
        if not commands:
            return []
        await link.room()
        replies = await link.post(commands).wait()
        gone = [index for index, reply in enumerate(replies) if forgotten(reply)]
        if gone:
            load = load_scripts()
            again = await link.post([*load, *[commands[index] for index in gone]]).wait()
            for index, reply in zip(gone, again[len(load) :], strict=True):
                replies[index] = reply
        if any(str(reply).startswith("READONLY") for reply in replies if isinstance(reply, Exception)):
            link.fail("Redis has become a read-only replica")  # by that name there may be another one now
        return replies

    async def call(self, link: Link, command: bytes) -> Any:
        """The same with one command. Raises `BrokerDown`, `BrokerError`."""
        (reply,) = await self.calls(link, [command])
        if isinstance(reply, Exception):
            raise error_of(reply)
        return reply

    def leave(self) -> None:
        """The broker was left: who waits for it learns of it."""
        self.error = BrokerDown("the broker was left")
        self.up.set()
        self.up = trio.Event()

    def tell(self, command: bytes, names: int) -> None:
        """Send one UNSUBSCRIBE or the like, if there is a link, even one that is only being prepared."""
        link = self._coming
        if link is not None and not link.broken.is_set():
            link.post([command], names=names)

    async def run(self, task_status: trio.TaskStatus[BrokerError | None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started when the first attempt is decided: with None if it is up, else with the error, and then it ends."""
        started = False
        since: float | None = None  # it is up
        attempts = Attempts(f"redis {self.address}: the connection for {self._what}")

        def now_up() -> None:
            nonlocal started, since
            since = now()
            if started:
                log.info("redis %s: the connection for %s is up again", self.address, self._what)
            else:
                started = True
                task_status.started(None)

        while True:
            error = await self._once(now_up)
            if not started:
                task_status.started(type(error)(f"Redis at {self.address}: {error}"))
                return
            level = logging.DEBUG if since is None else logging.WARNING  # once for an outage
            log.log(level, "redis %s: the connection for %s is down: %s", self.address, self._what, error)
            self.error = error
            self._changed()
            await trio.sleep(attempts.pause(str(error), None if since is None else now() - since))
            since = None

    async def _once(self, now_up: Callable[[], None]) -> BrokerError:
        """One connection, from its beginning to its end. Returns why it ended."""
        settings = self._settings
        try:
            with trio.fail_after(settings.timeout):
                stream = await open_stream(settings.address, settings.context)
        except trio.TooSlowError:
            return BrokerDown(f"it does not answer within {settings.timeout:g} s")
        except (OSError, trio.BrokenResourceError) as error:
            return BrokerDown(words(error))
        link = Link(stream, timeout=settings.timeout, ping_interval=settings.ping_interval, **self._options)
        self._coming = link
        result: BrokerError = link.error
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                try:
                    self.server = await self._greet(link)
                    if self._prepare is not None:
                        await self._prepare(link, self.server)
                    self.link = link
                    self.up.set()
                    self._changed()
                    now_up()
                    if self._serve is not None:
                        nursery.start_soon(self._serving, self._serve, link)
                    await link.broken.wait()
                    result = link.error
                except BrokerError as error:
                    result = error
                nursery.cancel_scope.cancel()
        finally:
            self.error = result
            self._coming = None
            if self.link is not None:
                self.link = None
                self.up = trio.Event()
                self._changed()
            await trio.aclose_forcefully(stream)
        return result

    async def _serving(self, serve: Callable[[Link, Server], Awaitable[None]], link: Link) -> None:
        try:
            await serve(link, self.server)
        except BrokerError as error:
            link.fail(str(error))  # the next one begins with all that is to be done

    async def _greet(self, link: Link) -> Server:
        """Say who we are, and make the scripts known; learn which server this is."""
        settings = self._settings
        address = settings.address
        hello = ["HELLO", "3"]
        if address.password or address.user != "default":
            hello += ["AUTH", address.user, address.password]
        hello += ["SETNAME", settings.client_name]
        commands = [pack(*hello)]
        if address.db:
            commands.append(pack("SELECT", address.db))
        commands += load_scripts()
        commands += [pack("INFO", "server"), pack("INFO", "persistence")]
        greeting, *replies, server, persistence = await link.post(commands).wait()
        if "unknown command" in str(greeting):
            raise BrokerError("it knows no HELLO, so it is older than Redis 6")
        for reply in (greeting, *replies):
            if isinstance(reply, Exception):
                raise error_of(reply)
        if not isinstance(greeting, dict):
            raise BrokerDown(f"what answers is not Redis: {greeting!r:.80}")
        version = text_of(greeting.get(b"version", b"0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise BrokerError(f"Redis {version} is too old: 6.2 is the oldest that will do")
        known = info_of(server) | info_of(persistence)
        return Server(known.get("run_id", ""), known.get("aof_enabled") == "1")


def load_scripts() -> list[bytes]:
    """Commands that make the scripts known."""
    return [pack("SCRIPT", "LOAD", script.text) for script in SCRIPTS]


def forgotten(reply: object) -> bool:
    """Whether Redis does not know the script (any more): load it, and ask again."""
    return isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT")


def text_of(value: object) -> str:
    """A string of Redis; "" for what is none."""
    return (
        value.decode(errors="replace")
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else ""
    )


def info_of(reply: object) -> dict[str, str]:
    """The lines of an INFO; none if an ACL has refused it."""
    lines = text_of(reply).splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines) if value}
