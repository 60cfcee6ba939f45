"""Starts the API workers: ``python -m examples.notifications.api``. They read the rest from the environment (`server`).

``trionet serve examples.notifications`` does the same, with all options there are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from trionet.errors import TrionetError
from trionet.ops import logs, supervisor, worker
from trionet.ops.settings import ServeSettings

from .shared import end_with_our_parent

__all__ = ["serve"]


def serve(host: str, port: int, workers: int, broker: str, announce: Callable[[str], object]) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code. `announce` gets the address once it is served.

    With the memory broker this process is the worker; otherwise it looks after workers: one that is killed comes back.
    """
    logs.configure("text", "warning")
    settings = ServeSettings(
        app=f"{__package__}:app", host=host, port=port, workers=workers, broker=broker, grace=3.0
    )

    def say(url: str) -> None:
        announce(url.replace("ws://", "http://"))

    try:
        if broker == "memory":
            return worker.run_alone(settings, lambda server, _: say(server.endpoints[0].url))
        return supervisor.run(settings, announce=lambda urls: say(urls[0]))
    except (OSError, TrionetError) as error:
        print(f"error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1


def main() -> None:
    """Start them as a program."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--broker", required=True, metavar="URL")
    options = parser.parse_args()
    end_with_our_parent()
    sys.exit(serve(**vars(options), announce=lambda url: print(f"listening on {url}", flush=True)))


if __name__ == "__main__":
    main()
