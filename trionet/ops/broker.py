"""The local broker of a server: which servers have one, where it is found, and the process that serves it.

`Post` is the supervisor's part of it. The socket is the supervisor's and outlives that process:

    nobody has come yet   the supervisor waits at the socket: a server that uses no broker pays nothing for it
    somebody comes        the process is forked, and takes over
    it ends, or hangs     after a pause as for workers, the supervisor waits at the socket again: clients come back

A rolling restart leaves it alone, so that histories outlive the workers. It ends after the last of them.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import signal
import socket
from contextlib import suppress
from typing import Any

import attrs
import trio

from trionet.errors import ConfigurationError
from trionet.net.listener import Endpoint, bind_unix
from trionet.ops.collector import collector_policy
from trionet.ops.settings import ServeSettings
from trionet.ops.slots import MARGIN, STABLE, crash_pause
from trionet.ops.sockets import Sockets
from trionet.pubsub.surroundings import Surroundings

__all__ = [
    "Post",
    "check_broker",
    "has_local",
    "local_path",
    "open_post",
    "own_post",
    "run_broker",
    "surroundings_of",
]

log = logging.getLogger("trionet.ops")


def check_broker(url: str | None, workers: int) -> None:
    """Raise `ConfigurationError` for one that cannot do for so many workers."""
    if url == "memory" and workers > 1:
        raise ConfigurationError(
            f"broker is memory, which does not reach beyond its process, and there are {workers} workers: what one "
            "publishes the others would not see; take local, or a redis:// or nats:// URL"
        )


def has_local(settings: ServeSettings) -> bool:
    """Whether this server serves a local broker, if anybody wants it."""
    if settings.broker is None:
        return settings.workers > 1 and hasattr(socket, "AF_UNIX")
    return settings.broker.partition(":")[0] == "local"


def local_path(settings: ServeSettings) -> str | None:
    """The path that was asked for; None: one in a folder of the server's own will do."""
    return (settings.broker or "").partition(":")[2] or None


def surroundings_of(settings: ServeSettings, path: str | None) -> Surroundings:
    """What a process of this server has to know; `path`: where the local broker is, if there is one."""
    return Surroundings(workers=settings.workers, broker=settings.broker, broker_socket=path)


def own_post(settings: ServeSettings, folder: str | None) -> Post | None:
    """Where this server is to serve a local broker: at the path that was asked for, or in `folder`.

    None: it has none, or another process serves it at that path already (`trionet broker`, another server).
    """
    if not has_local(settings):
        return None
    path = local_path(settings)
    try:
        return open_post(path or f"{folder}/broker")
    except OSError as error:
        if path is None or error.errno != errno.EADDRINUSE:
            raise
        log.info("another process serves the local broker at %s", path)
        return None


def open_post(path: str) -> Post:
    """Listen on `path`, for our user only. Raises `OSError` with the path in its text, `ConfigurationError`."""
    try:
        sock = bind_unix(Endpoint(protocol=None, path=path, mode=0o600))
    except ConfigurationError as error:
        raise ConfigurationError(f"local broker: {error}") from None
    except OSError as error:
        text = str(error.strerror or error)
        error.strerror = f"local broker: {text}" if path in text else f"local broker: {text}: {path}"
        raise
    post = Post(Sockets({1: [sock]}, path), path)
    try:
        sock.listen(1024)
    except BaseException:
        post.close()
        raise
    return post


@attrs.define(eq=False)
class Post:
    """Where the broker is found, and what the supervisor knows of its process. Decides, and does nothing but listen.

    `waiting`: the supervisor waits at the socket. `retry_at`: when it does so again.
    """

    sockets: Sockets
    path: str
    pid: int = 0
    since: float = 0.0
    heard: float = 0.0
    failures: int = 0
    restarts: int = 0
    waiting: bool = False
    retry_at: float | None = None
    silence: float | None = None  # seconds after which a process that says nothing hangs

    @property
    def sock(self) -> socket.socket:
        """The socket that listens."""
        return self.sockets.of[1][0]

    def forked(self, pid: int, silence: float | None, now: float) -> None:
        """A process serves it."""
        self.pid, self.silence, self.since, self.heard, self.retry_at = pid, silence, now, now, None

    def not_forked(self, now: float) -> float:
        """It could not be started, which is as if it had ended at once."""
        self.since = now
        return self.ended(now)

    def ended(self, now: float) -> float:
        """It has ended: returns after how many seconds there may be another."""
        self.pid = 0
        self.restarts += 1
        self.failures = 0 if now - self.since >= STABLE else self.failures + 1
        pause = crash_pause(self.failures)
        self.retry_at = now + pause
        return pause

    def hangs(self, now: float) -> bool:
        """Whether it has given no sign of life for too long."""
        return bool(self.pid) and self.silence is not None and now - self.heard >= self.silence

    def next(self) -> float | None:
        """When it is to be looked after at the latest."""
        if self.pid:
            return None if self.silence is None else self.heard + self.silence
        return self.retry_at

    def row(self) -> dict[str, Any]:
        """For the operator's pages."""
        state = "serving" if self.pid else "restarting" if self.retry_at is not None else "not used yet"
        return {"path": self.path, "pid": self.pid or None, "state": state, "restarts": self.restarts}

    def close(self) -> None:
        """Close the socket; remove its file if it is still ours."""
        self.sockets.close()


# ------------------------------------------------------------- its process


def run_broker(settings: ServeSettings, life: socket.socket, post: Post, folder: str | None) -> int:
    """Be the broker until the supervisor says that it is over; returns the exit code.

    It ignores SIGTERM, which a service manager may send to all processes at once: workers publish while they drain. If
    the supervisor was killed it goes on until no worker is connected, and removes what that has left: `folder`.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    log.info("the local broker serves at %s", post.path)
    with collector_policy():
        orphaned = trio.run(_serve, settings, life, post.sock)
    if orphaned:
        post.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


async def _serve(settings: ServeSettings, life: socket.socket, listener: socket.socket) -> bool:
    """Returns whether the supervisor has gone without a word."""
    from trionet.pubsub.brokers.local.server import LocalServer

    server = LocalServer()
    life.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(life))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener)
        if settings.worker_timeout is not None:
            nursery.start_soon(_beat, stream, settings.worker_timeout / 4)
        orphaned = not await _told(stream)
        if orphaned:
            log.warning("the supervisor has gone; the local broker ends when nobody is connected")
            with trio.move_on_after(settings.grace + MARGIN):
                while server.processes:  # noqa: ASYNC110 - once, at the end
                    await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return orphaned


async def _told(stream: trio.SocketStream) -> bool:
    """Wait until the supervisor says that it is over: True; or has gone: False."""
    try:
        return bool(await stream.receive_some())
    except trio.BrokenResourceError:
        return False


async def _beat(stream: trio.SocketStream, interval: float) -> None:
    while True:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(json.dumps({"say": "alive"}).encode() + b"\n")
        await trio.sleep(interval)
