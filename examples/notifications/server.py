"""The notification API: what each API worker serves. Here is the bus; `web` has what is asked by plain HTTP.

Nothing is kept here, so any number of workers may do it, and die. ``trionet serve examples.notifications`` serves it
too. With the memory broker the storage runs in this process, otherwise it is its own (`storage`). From the environment:
NOTIFICATIONS_DATABASE (file; without, in a temporary folder), NOTIFICATIONS_RATE (mails a second that are made up),
NOTIFICATIONS_OPERATORS (names of those who may see ``/operator``; without, everybody).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import trio

import trionet
from trionet.bus import BusHandler, bus_protocol
from trionet.errors import ConfigurationError
from trionet.ops.metrics.bus import bus_families

from .numbers import Meter, report
from .remote import RemoteStorage
from .session import Sessions, read_secret
from .shared import RULES
from .storage import Storage, open_storage
from .web import Web

__all__ = ["Notifications", "Settings", "make"]


@attrs.frozen
class Settings:
    """What differs from one installation to the next. `operators` None: everybody is."""

    database: str | None = None
    rate: float = 0.0
    operators: frozenset[str] | None = None

    @classmethod
    def of_environment(cls) -> Settings:
        """See the module."""
        operators = os.environ.get("NOTIFICATIONS_OPERATORS", "").replace(",", " ").split()
        return cls(
            os.environ.get("NOTIFICATIONS_DATABASE") or None,
            float(os.environ.get("NOTIFICATIONS_RATE") or 0.1),
            frozenset(operators) or None,
        )


class Notifications(BusHandler):
    """Who may hear what: one's own mailbox; and operators the numbers. Nobody but the storage publishes."""

    storage: Storage | RemoteStorage
    sessions: Sessions

    def __init__(self, settings: Settings) -> None:
        super().__init__(rules=RULES)
        if settings.database is None and self.bus.broker.name != "memory":
            raise ConfigurationError(
                f"with the {self.bus.broker.name} broker the storage is a process of its own: start it by "
                f"python -m {__package__}.storage, set NOTIFICATIONS_DATABASE to the same file, and give both the "
                "same --broker: local:/path, redis:// or nats://"
            )
        self.settings = settings
        self.meter = self.bus.encoder = Meter(self.bus)

    async def authenticate(self, ws: trionet.WebSocket, request: trionet.Request) -> str | None:
        """Who has this cookie. Others may connect, which tells their page why: they may not subscribe to anything."""
        return self.sessions.user(request.cookies)

    async def may_subscribe(self, user: str | None, topic: str) -> bool:
        """See the class."""
        return user is not None and topic == f"mail:{user}"

    async def may_subscribe_pattern(self, user: str | None, pattern: str) -> bool:
        """Operators see the numbers of all parts."""
        return user is not None and pattern == "ops:*" and self.is_operator(user)

    def is_operator(self, user: str) -> bool:
        """Whether `user` may see the numbers."""
        return self.settings.operators is None or user in self.settings.operators

    @asynccontextmanager
    async def lifespan(self, server: trionet.Server) -> AsyncIterator[Any]:
        """Run the bus, the report, and the storage if it belongs here."""
        async with AsyncExitStack() as stack:
            database = self.settings.database
            if database is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="notifications-"))
                database = f"{folder}/mails.db"
            self.sessions = Sessions(read_secret(database))
            bus = await stack.enter_async_context(super().lifespan(server))
            if bus.broker.name == "memory":
                storage = open_storage(database, self._publish, self.settings.rate)
                self.storage = await stack.enter_async_context(storage)
            else:
                self.storage = RemoteStorage(database)
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(report, self, server)
            yield bus
            nursery.cancel_scope.cancel()

    async def _publish(self, topic: str, data: bytes, key: str) -> None:
        await self.bus.publish(topic, data, key=key)


def make(settings: Settings | None = None) -> trionet.Application:
    """The application of one worker; its settings, if not given, come from the environment."""
    handler = Notifications(settings or Settings.of_environment())
    http = trionet.HttpProtocol(Web(handler).routes())
    return trionet.Application(
        bus_protocol(handler, http=http),
        lifespan=handler.lifespan,
        families=lambda _: bus_families(handler),
    )
