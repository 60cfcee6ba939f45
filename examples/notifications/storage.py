"""The storage: takes mails in, keeps them, and publishes what has changed, until the bus has it.

Where the broker is shared by processes this is one of them, serving the API workers on a Unix socket that nobody else
may open (``python -m examples.notifications.storage``); with the memory broker the API worker runs it itself.

    POST /mails    {to, subject, text, [sender], [id]}    200; 400 with the reason in words; 503 when it is full
    GET  /mails/ada                                       the mails of one person, the newest first
    POST /read     {box, ids}                             200
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import logging
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import trio

import trionet
from trionet.errors import BrokerError, ConfigurationError

from .mailbox import Full, Mail, Mailbox
from .samples import sample
from .shared import RULES, answering, end_with_our_parent, read_json, socket_of

__all__ = ["Storage", "open_storage", "routes"]

log = logging.getLogger("notifications.storage")

T = TypeVar("T")
#: Publishes data (JSON) on a topic, with a key by which the bus knows what comes again. Raises `BrokerError`.
Publish = Callable[[str, bytes, str], Awaitable[object]]

PAUSES = (0.1, 0.2, 0.5, 1.0)  # seconds between tries while the bus is away


class Storage:
    """The mailbox for Trio, and the task that empties its outbox. Made by `open_storage`."""

    def __init__(self, mailbox: Mailbox, publish: Publish) -> None:
        self.mailbox = mailbox
        self.counts: collections.Counter[str] = collections.Counter()
        self._publish = publish
        self._one = trio.CapacityLimiter(1)  # SQLite works in a thread, one call at a time
        self._news = trio.Event()

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._one)

    async def add(self, mails: Sequence[Mail]) -> int:
        """Take mails in; returns how many were new. When this returns they are on the disk. Raises `Full`."""
        new = await self._in_thread(self.mailbox.add, mails)
        self.counts["mails"] += new
        self._news.set()
        return new

    async def inbox(self, box: str) -> list[dict[str, Any]]:
        """The mails of one person, the newest first."""
        return await self._in_thread(self.mailbox.inbox, box)

    async def mark_read(self, box: str, ids: Iterable[str]) -> None:
        """Note, and announce, that mails were read. Raises `Full`."""
        await self._in_thread(self.mailbox.mark_read, box, list(ids))
        self._news.set()

    async def publish(self) -> None:
        """Publish what is in the outbox, in order, for as long as this runs."""
        while True:
            self._news = trio.Event()
            while events := await self._in_thread(self.mailbox.outbox):
                for event in events:
                    await self._until_published(event.topic, event.data.encode(), event.key)
                # If we are killed before this line they are published once more, which the bus and the page notice.
                await self._in_thread(self.mailbox.published, events[-1])
            await self._news.wait()

    async def _until_published(self, topic: str, data: bytes, key: str) -> None:
        for attempt in range(10**9):
            try:
                await self._publish(topic, data, key)
            except BrokerError as error:
                log.log(logging.WARNING if attempt == 0 else logging.DEBUG, "mails wait: %s", error)
                await trio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            else:
                if attempt:
                    log.warning("the bus is back")
                self.counts["published"] += 1
                return

    async def generate(self, rate: float) -> None:
        """Deliver `rate` mails a second, to those who have a mailbox."""
        count = max(1, round(rate / 20))  # many at once, rather than more transactions than a disk likes
        while True:
            await trio.sleep(count / rate * random.uniform(0.5, 1.5))
            boxes = await self._in_thread(self.mailbox.boxes)
            mails = [Mail(random.choice(boxes), *sample()) for _ in range(count) if boxes]
            try:
                await self.add(mails)
            except Full:
                log.warning("no mail is taken in: too many events wait for the bus")

    async def report(self) -> None:
        """Say once a second how it is, on the topic ``ops:storage``."""
        while True:
            before = self.counts.copy()
            await trio.sleep(1.0)
            numbers = {name: self.counts[name] - before[name] for name in ("mails", "published")}
            numbers |= {"pid": os.getpid(), "waiting": await self._in_thread(self.mailbox.waiting)}
            with suppress(BrokerError):
                await self._publish("ops:storage", json.dumps(numbers).encode(), "")


@asynccontextmanager
async def open_storage(database: str, publish: Publish, rate: float) -> AsyncIterator[Storage]:
    """Run a `Storage` for as long as the block lasts. `rate`: mails a second that it makes up."""
    mailbox = await trio.to_thread.run_sync(Mailbox, database)
    try:
        async with trio.open_nursery() as nursery:
            storage = Storage(mailbox, publish)
            nursery.start_soon(storage.publish)
            nursery.start_soon(storage.report)
            if rate > 0:
                nursery.start_soon(storage.generate, rate)
            yield storage
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(mailbox.close)


# --- as a process of its own -------------------------------------------------------------------------


def routes(storage: Storage) -> dict[str, trionet.Responder]:
    """What API workers ask of it."""

    async def add(request: trionet.HttpRequest) -> trionet.Response:
        mail = Mail.of(await read_json(request))
        await storage.add([mail])
        return trionet.Response.json({"id": mail.id})

    async def inbox(request: trionet.HttpRequest) -> trionet.Response:
        return trionet.Response.json(await storage.inbox(request.path_params["box"]))

    async def read(request: trionet.HttpRequest) -> trionet.Response:
        fields = await read_json(request)
        await storage.mark_read(fields["box"], fields["ids"])
        return trionet.Response.json({})

    return {
        "POST /mails": answering(add),
        "/mails/{box}": inbox,
        "POST /read": answering(read),
    }


async def stay_connected(broker: trionet.Broker) -> None:
    """Hold the connection to the bus, also to one that is not there at first: mails are taken in meanwhile."""
    for attempt in itertools.count(1):
        try:
            async with trionet.open_publisher(broker):
                await trio.sleep_forever()
        except BrokerError as error:
            # Once is enough; and not at once, for the workers, who may bring it, start at the same time as we.
            log.log(logging.WARNING if attempt == 6 else logging.DEBUG, "there is no bus yet: %s", error)
        await trio.sleep(0.5)


async def serve(database: str, url: str, rate: float) -> None:
    """Run until SIGTERM or Ctrl-C."""
    broker = trionet.open_broker(url, rules=RULES)

    async def publish(topic: str, data: bytes, key: str) -> None:
        await broker.publish(topic, data, key=key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay_connected, broker)
        async with open_storage(database, publish, rate) as storage:
            http = trionet.HttpProtocol(routes(storage))
            await trionet.serve([trionet.Endpoint(protocol=http, path=socket_of(database), mode=0o600)])
        nursery.cancel_scope.cancel()


def main() -> None:
    """Start the storage as a program."""
    parser = argparse.ArgumentParser(prog="python -m examples.notifications.storage", description=__doc__)
    parser.add_argument("--database", required=True, metavar="FILE")
    parser.add_argument(
        "--broker", required=True, metavar="URL", help="local:/path/of/a/socket, redis://…, nats://…"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, metavar="N", help="mails a second that it makes up"
    )
    options = parser.parse_args()
    if options.broker == "memory":
        parser.error(
            "the memory broker does not reach beyond its process; take local:/path, redis:// or nats://"
        )
    if not Path(options.database).parent.is_dir():
        parser.error(f"there is no folder for {options.database}")
    end_with_our_parent()
    logging.basicConfig(format="storage: %(message)s")
    try:
        trio.run(serve, options.database, options.broker, options.rate)
    except ConfigurationError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
