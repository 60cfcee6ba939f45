"""Talk to a WebSocket server: lines from the standard input go there, what comes is printed.

python examples/client.py ws://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import sys

import trio

from trionet import ConnectionClosed, TrionetError, WebSocket, connect_websocket


async def print_messages(ws: WebSocket, scope: trio.CancelScope) -> None:
    """Print what comes, until the connection ends; then nothing more needs to be typed."""
    try:
        async for message in ws:
            print(
                message if isinstance(message, str) else f"{len(message)} bytes: {message[:40]!r}", flush=True
            )
    except ConnectionClosed as closed:
        print(closed, file=sys.stderr)
    scope.cancel()


async def send_lines(ws: WebSocket) -> None:
    """Send what is typed, line by line, to the end of the input."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        await ws.send(line.rstrip("\n"))


async def talk(url: str, linger: float) -> None:
    """Do both at once."""
    async with connect_websocket(url, redirects=3) as ws, trio.open_nursery() as nursery:
        print(f"connected to {url}", file=sys.stderr)
        nursery.start_soon(print_messages, ws, nursery.cancel_scope)
        await send_lines(ws)
        await trio.sleep(linger)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Parse the command line and talk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument(
        "--linger", type=float, default=1.0, help="seconds to listen on after the end of the input"
    )
    args = parser.parse_args()
    try:
        trio.run(talk, args.url, args.linger)
    except (OSError, TrionetError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
