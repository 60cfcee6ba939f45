"""The engines that the tests of pubsub run on: real ones, that a test may kill, freeze, cut off and start again.

A backend has its engine in `engine_NAME.py` beside this file: each subclass of `Engine` that is defined there is found
by `found`, and every test that asks for the fixture `engine` runs on it. An engine is started once for a session (each
process of pytest-xdist has its own) and shared by the tests, which keep apart by names of topics (`unique`).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import selectors
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

import trio

from trionet.pubsub.broker import Broker, open_broker

NAMES = ("memory", "local", "redis", "nats")
_serial = itertools.count(1)


def unique(text: str = "t") -> str:
    """Return a topic's name that no other test, process or run has."""
    return f"{text}.{os.getpid():x}.{next(_serial)}.{os.urandom(3).hex()}"


class Engine:
    """One real engine. `url` is set by `start`; make brokers by `broker`.

    `start` and `stop` are each run in a `trio.run` of their own, so nothing of Trio may be kept between them: processes
    are `subprocess.Popen`, what must run besides is a thread (`Proxy`).
    """

    name: ClassVar[str] = ""
    #: `kill` loses what was published.
    forgets: ClassVar[bool] = True
    #: There is something to kill.
    hurtable: ClassVar[bool] = True
    #: Several brokers at once see each other.
    shared: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be started on this machine: a program or a package that is not there; "" if it can."""
        return ""

    async def start(self) -> None:
        """Start it; returns when it answers."""

    async def stop(self) -> None:
        """End it and whatever belongs to it, in whichever state it is."""

    def broker(self, **options: Any) -> Broker:
        """Return a new broker, not yet running."""
        return open_broker(self.url, **options)

    async def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Start it again at the same address, with the same data folder; returns when it answers."""
        raise NotImplementedError

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and bytes, and answers nothing."""
        raise NotImplementedError

    def thaw(self) -> None:
        """SIGCONT."""

    async def cut(self) -> None:
        """Break every connection to it. The engine lives on, and can be connected to at once."""
        raise NotImplementedError

    async def heal(self) -> None:
        """Make it usable for the next test, whatever the last one did to it."""


class ProcessEngine(Engine):
    """An engine that is one process. A subclass says how it is started, and how one knows that it answers."""

    process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program and its arguments: the same each time, so choose ports and paths in `__init__`."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it can be used now. Called until it can; may block shortly. OSError: not yet."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The environment it is started with."""
        return dict(os.environ)

    async def start(self) -> None:
        """Start the process."""
        log = self.folder / f"{self.name}.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - kept from one run of Trio to the next
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment(),
            )
        with trio.fail_after(20):
            while True:
                with contextlib.suppress(OSError):
                    if self.answers():
                        return
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {log.read_text()}")
                await trio.sleep(0.01)

    async def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def kill(self) -> None:
        """SIGKILL."""
        await self.stop()

    async def restart(self) -> None:
        """Start it once more."""
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)  # until then it may answer, on the other processor

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    async def heal(self) -> None:
        """Wake it, or start it."""
        self.thaw()
        if self.process is None or self.process.poll() is not None:
            self.process = None
            await self.start()


class MemoryEngine(Engine):
    """The broker within this process: nothing to start, nothing to hurt, and nothing shared."""

    name = "memory"
    hurtable = False
    shared = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = "memory"


class Proxy:
    """A link that can be cut, for an engine that cannot cut its own: forwards each connection to `target`, in a thread.

    `address` is where it listens: a (host, port) for TCP, or the path it was given.
    """

    def __init__(self, target: tuple[str, int] | str, path: str | None = None) -> None:
        self.target = target
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        self.address: tuple[str, int] | str = path or self._listener.getsockname()
        self._other: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._thread.start()

    def cut(self) -> None:
        """Break all connections there are; new ones are taken at once."""
        with self._lock:
            for sock in self._other:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break all connections, and take no more."""
        self._closing = True
        self.cut()
        self._wake.close()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                elif sock in self._other:
                    self._forward(sock)
        with self._lock:
            ends = list(self._other)
        for sock in (*ends, self._listener, self._woken):
            sock.close()
        self._selector.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
        try:
            far.connect(self.target)
        except OSError:
            near.close()
            far.close()
            return
        with self._lock:
            self._other[near], self._other[far] = far, near
        for sock in (near, far):
            self._selector.register(sock, selectors.EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        other = self._other[sock]
        try:
            data = sock.recv(2**16)
            other.settimeout(5)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            for end in (sock, other):
                self._selector.unregister(end)
                del self._other[end]
                end.close()


def found() -> list[type[Engine]]:
    """All engines there are, in a fixed order: `MemoryEngine`, and those of the `engine_NAME.py` beside this file."""
    classes: list[type[Engine]] = [MemoryEngine]
    for name in NAMES:
        if (Path(__file__).parent / f"engine_{name}.py").exists():
            module = importlib.import_module(f"engine_{name}")
            classes += [
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, Engine)
                and value.__module__ == module.__name__
            ]
    return classes
