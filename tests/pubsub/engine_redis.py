"""Redis for the tests of pubsub: a real redis-server on a Unix socket in a temporary folder."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import tempfile
from pathlib import Path

from engines import ProcessEngine


class RedisEngine(ProcessEngine):
    """With an append-only file: what was acknowledged survives SIGKILL.

    "everysec" holds back what is written while the disk is slow (redis.conf, appendfsync); "no" hands it on at once.
    """

    name = "redis"
    forgets = False
    options: tuple[str, ...] = ("--appendonly", "yes", "--appendfsync", "no")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._short = tempfile.TemporaryDirectory(prefix="tr-")  # a path of at most 107 bytes (unix(7))
        self.path = f"{self._short.name}/s"
        self.url = f"redis+unix://{self.path}"

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be started."""
        if shutil.which("redis-server") is None:
            return "redis-server is not installed"
        return "" if importlib.util.find_spec("hiredis") else "hiredis is not installed"

    def command(self) -> list[str]:
        """The server, without snapshots: they would be a past that is neither kept nor lost."""
        return [
            "redis-server",
            *("--port", "0", "--unixsocket", self.path, "--dir", str(self.folder)),
            *("--save", "", "--daemonize", "no", "--loglevel", "warning", "--enable-debug-command", "yes"),
            *self.options,
        ]

    def answers(self) -> bool:
        """Whether it has loaded its data."""
        return self.ask("PING").startswith(b"+PONG")

    def ask(self, *words: str) -> bytes:
        """Send one command on a connection of its own; returns the beginning of the answer."""
        command = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(self.path)
            sock.sendall(command.encode())
            return sock.recv(2**16)

    async def stop(self) -> None:
        """End it, and remove its socket's folder."""
        await super().stop()
        self._short.cleanup()

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    async def cut(self) -> None:
        """CLIENT KILL, of all kinds but the connection that says so."""
        for kind in ("normal", "pubsub"):
            self.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
