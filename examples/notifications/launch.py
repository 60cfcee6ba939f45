"""Everything with one command: ``python -m examples.notifications``.

With the memory broker all of it is this one process. With another one this process starts two more, the storage and
the one that looks after the API workers; a storage that is killed is started again, and where anything else ends,
everything does.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from trionet.errors import ConfigurationError
from trionet.ops.settings import ServeSettings

from .api import serve

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="notifications-") as folder:
        options.kept = options.database is not None
        options.database = str(Path(options.database or f"{folder}/mails.db").resolve())
        os.environ["NOTIFICATIONS_DATABASE"] = options.database
        os.environ["NOTIFICATIONS_RATE"] = str(options.rate)
        os.environ["NOTIFICATIONS_OPERATORS"] = " ".join(options.operator)
        if options.broker == "memory":
            code = serve(options.host, options.port, 1, "memory", lambda url: welcome(options, url))
        else:
            if options.broker == "local":  # of the API's supervisor, where the storage finds it
                options.broker = f"local:{folder}/bus.sock"
            code = trio.run(Launch(options).run)
    sys.exit(code)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="Mail, the moment it comes: storage, bus, API workers, browsers.",
    )
    add = parser.add_argument
    add("--broker", metavar="URL", help="memory, local, redis://… or nats://…; local with several workers")
    add("--workers", type=int, default=1, metavar="N", help="API workers (default: %(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    add(
        "--rate",
        type=float,
        default=0.1,
        metavar="N",
        help="mails a second that are made up (default: %(default)s)",
    )
    add("--database", metavar="FILE", help="keep the mails in this file, beyond the end")
    add(
        "--operator",
        action="append",
        default=[],
        metavar="NAME",
        help="who may see the numbers (default: everybody)",
    )
    options = parser.parse_args(arguments)
    options.broker = options.broker or ("memory" if options.workers == 1 else "local")
    if options.workers < 1 or options.rate < 0 or not 0 <= options.port <= 65535:
        parser.error("--workers is 1 or more, --rate 0 or more, --port 0 to 65535")
    if options.broker == "memory" and options.workers > 1:
        parser.error(
            "the memory broker does not reach beyond its process; with --workers take local, redis:// or nats://"
        )
    if options.database and not Path(options.database).parent.is_dir():
        parser.error(f"there is no folder for {options.database}")
    try:
        ServeSettings(app="", workers=options.workers, broker=options.broker)
    except ConfigurationError as error:
        parser.error(str(error))
    return options


def welcome(options: argparse.Namespace, url: str, parts: dict[str, int] | None = None) -> None:
    """Say what runs, and how to try it."""
    url = url.rstrip("/")
    runs = f"storage and API in process {os.getpid()}, broker {options.broker}"
    if parts is not None:
        workers = "an API worker" if options.workers == 1 else f"{options.workers} API workers"
        runs = f"storage (process {parts['storage']}), {workers} (below process {parts['api']})"
        runs += f", broker {options.broker.partition(':')[0]}"
    kept = "" if options.kept else " (gone afterwards; --database FILE keeps them)"
    lines = {
        "inbox": f"{url}/ (any name; open it in two windows)",
        "operator": f"{url}/operator",
        "a mail": f"""curl --json '{{"to": "ada", "sender": "curl", "subject": "Hello"}}' {url}/mails""",
        "runs": runs,
        "mails": f"{options.database}{kept}",
        "stop": "Ctrl-C",
    }
    print(f"listening on {url}/")
    for name, text in lines.items():
        print(f"  {name:<10}{text}")
    sys.stdout.flush()


def flags(**options: object) -> list[str]:
    """Options as a command line has them."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


class Launch:
    """Storage and API as processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.parts: dict[str, int] = {}
        self.code = 0

    async def run(self) -> int:
        """Run them until a signal comes or one ends; returns the exit code."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._storage, nursery)
                nursery.start_soon(self._api, nursery)
                await anext(signals)
                nursery.cancel_scope.cancel()
        return self.code

    async def _storage(self, nursery: trio.Nursery) -> None:
        options = self.options
        command = flags(database=options.database, broker=options.broker, rate=options.rate)
        while (code := await self._part("storage", command)) <= 0:  # killed, or told to go
            print("the storage has ended; starting it again", file=sys.stderr)
            await trio.sleep(0.2)
        self._end(code, nursery)

    async def _api(self, nursery: trio.Nursery) -> None:
        options = self.options
        command = flags(host=options.host, port=options.port, workers=options.workers, broker=options.broker)
        self._end(await self._part("api", command), nursery)

    def _end(self, code: int, nursery: trio.Nursery) -> None:
        self.code = code if code > 0 else 1
        nursery.cancel_scope.cancel()

    async def _part(self, name: str, command: list[str]) -> int:
        """Run a part to its end; returns its exit code."""
        part = partial(
            trio.run_process,
            [sys.executable, "-m", f"{__package__}.{name}", *command],
            # They notice the end of this when we are killed. And Ctrl-C is ours alone: we tell our parts.
            stdin=subprocess.PIPE,
            start_new_session=True,
            stdout=subprocess.PIPE,
            check=False,
        )
        async with trio.open_nursery() as nursery:
            process = await nursery.start(part)
            self.parts[name] = process.pid
            rest = b""
            async for data in process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"listening on"):
                        welcome(self.options, line.decode().split()[2], self.parts)
        return process.returncode or 0
