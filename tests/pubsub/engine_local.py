"""The local broker as a program of its own, behind a proxy that can cut its connections."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from engines import ProcessEngine, Proxy


class LocalEngine(ProcessEngine):
    """`python -m trionet.pubsub.brokers.local.server`; clients connect through the proxy."""

    name = "local"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.short = tempfile.TemporaryDirectory(prefix="tl-")  # a socket's path has at most 107 bytes
        self.path = f"{self.short.name}/broker"
        self.proxy: Proxy | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "trionet.pubsub.brokers.local.server", self.path]

    def environment(self) -> dict[str, str]:
        root = str(Path(__file__).resolve().parents[2])
        return os.environ | {"PYTHONPATH": root}

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
        return True

    async def start(self) -> None:
        await super().start()
        if self.proxy is None:
            self.proxy = Proxy(self.path, f"{self.short.name}/proxy")
            self.url = f"local:{self.proxy.address}"

    async def stop(self) -> None:
        await super().stop()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None
        self.short.cleanup()

    async def kill(self) -> None:
        await super().stop()

    async def cut(self) -> None:
        assert self.proxy is not None
        self.proxy.cut()
