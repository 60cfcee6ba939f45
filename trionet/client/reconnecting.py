"""A connection that comes back: an iterator over open connections, with a growing distance between attempts."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Unpack

import trio

from trionet.client.backoff import may_pass, parse_retry_after
from trionet.client.client import WebSocketClient, leave, open_client
from trionet.client.options import ConnectOptions
from trionet.client.websocket import ClientWebSocket
from trionet.errors import UpgradeRefused
from trionet.net.backoff import Backoff
from trionet.wire.url import parse_url

__all__ = ["Reconnecting", "reconnecting"]

log = logging.getLogger("trionet.client")


def reconnecting(
    url: str,
    *,
    client: WebSocketClient | None = None,
    backoff: Backoff | None = None,
    retry: Callable[[Exception], bool] = may_pass,
    max_attempts: int | None = None,
    **options: Unpack[ConnectOptions],
) -> Reconnecting:
    """Connect to `url`, again and again.

    ::

        async with reconnecting("wss://example.org/feed") as connections:
            async for ws in connections:
                try:
                    async for message in ws:
                        ...
                except ConnectionClosed:
                    pass  # the next one comes after a pause

    Each item is an open connection; going on with the loop closes it, if it is still open, and waits: see `Backoff`.
    Leaving the block closes the last one. With a `client` (see `open_client`) the block may be left out; who breaks
    the loop then has to close the connection.

    An attempt that fails is logged and repeated if ``retry(error)`` says so, `max_attempts` times in a row at most
    (None: for ever); else its error is raised. A 503 with Retry-After is waited for. A cancel scope bounds it all.
    """
    return Reconnecting(url, client, backoff or Backoff(), retry, max_attempts, options)


class Reconnecting:
    """What `reconnecting` returns. `failures`: attempts, and connections that ended soon, since the last success."""

    def __init__(
        self,
        url: str,
        client: WebSocketClient | None,
        backoff: Backoff,
        retry: Callable[[Exception], bool],
        max_attempts: int | None,
        options: ConnectOptions,
    ) -> None:
        self.failures = 0
        self._url = url
        self._shown = str(parse_url(url))
        self._client = client
        self._backoff = backoff
        self._retry = retry
        self._max_attempts = max_attempts
        self._options = options
        self._chance: Callable[[], float] = random.random
        self._stack = AsyncExitStack()
        self._ws: ClientWebSocket | None = None
        self._since = 0.0  # when it was opened
        self._attempts = 0  # that failed since the last connection
        self._first = True

    async def __aenter__(self) -> Reconnecting:
        if self._client is None:
            self._client = await self._stack.enter_async_context(open_client(pool_size=1))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            if self._ws is not None:
                await leave(self._ws, error)
        finally:
            done = await self._stack.__aexit__(kind, error, trace)
        return done

    def __aiter__(self) -> Reconnecting:
        return self

    async def __anext__(self) -> ClientWebSocket:
        if self._client is None:
            raise RuntimeError("write `async with reconnecting(...) as connections`, or give it a client")
        await self._end_last()
        wish = None
        while True:
            if not self._first:
                delay = self._backoff.delay(self.failures, self._chance, wish)
                self._say(logging.INFO, "%s: connecting again in %.1f s", self._shown, delay)
                await trio.sleep(delay)
            self._first = False
            try:
                ws = await self._client.connect(self._url, **self._options)
            except Exception as error:
                self.failures += 1
                self._attempts += 1
                enough = self._max_attempts is not None and self._attempts >= self._max_attempts
                if enough or not self._retry(error):
                    raise
                self._say(logging.WARNING, "%s: attempt %d failed: %s", self._shown, self._attempts, error)
                wish = None
                if isinstance(error, UpgradeRefused):
                    wish = parse_retry_after(error.header("retry-after"), time.time())
            else:
                self._ws, self._since, self._attempts = ws, trio.current_time(), 0
                return ws

    async def _end_last(self) -> None:
        ws, self._ws = self._ws, None
        if ws is None:
            return
        lived = trio.current_time() - self._since
        self.failures = 0 if lived >= self._backoff.reset_after else self.failures + 1
        ended = ws.closed or "by us"
        self._say(logging.INFO, "%s: the connection ended after %.1f s: %s", self._shown, lived, ended)
        await leave(ws, None)

    def _say(self, level: int, message: str, *args: object) -> None:
        """Log it, unless many connections of this client have just said so about this server."""
        assert self._client is not None
        self._client.engine.limited.log(log, level, message, *args, key=self._shown)
