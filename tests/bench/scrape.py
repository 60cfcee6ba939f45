"""What scraping /metrics costs: throughput of an echo beside many idle connections, with scrapes and without, in turns.

    python tests/bench/scrape.py [--connections 15000] [--rate 10] [--seconds 3] [--rounds 6]

The server is one process; connections and load come from others. Prints each pair, the median of the ratios, the time
and size of one scrape.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from typing import Any

import trio

import trionet
from trionet.ops.limits import raise_descriptor_limit
from trionet.ops.metrics import Metrics

_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_FRAME = b"\x82\xa0" + bytes(4) + bytes(32)
_ACTIVE = 64  # connections that echo all the time


class _Echo(trionet.WebSocketHandler):
    async def on_message(self, ws: trionet.WebSocket, message: str | bytes) -> None:
        await ws.send(message)


def _serve(ports: Any) -> None:
    async def main() -> None:
        protocol = trionet.WebSocketProtocol(_Echo(), ping_interval=300)
        async with trionet.open_server(protocol) as server:
            async with trionet.open_server(trionet.HttpProtocol({"/metrics": Metrics(server)})) as admin:
                ports.send((server.addresses[0][1], admin.addresses[0][1]))
                await trio.sleep_forever()

    raise_descriptor_limit()
    trio.run(main)


def _connect(port: int, count: int) -> list[socket.socket]:
    made = []
    for n in range(count):
        sock = socket.socket()
        sock.bind((f"127.0.0.{2 + n % 8}", 0))
        sock.connect(("127.0.0.1", port))
        sock.sendall(_UPGRADE)
        made.append(sock)
    for sock in made:
        if not sock.recv(4096).startswith(b"HTTP/1.1 101"):
            sys.exit("a handshake failed")
    return made


def _hold(port: int, count: int, ready: Any) -> None:
    raise_descriptor_limit()
    held: list[socket.socket] = []
    while len(held) < count:
        held += _connect(port, min(500, count - len(held)))
    ready.send(len(held))
    time.sleep(3600)


def _load(port: int, orders: Any) -> None:
    """Echo on `_ACTIVE` connections for as many seconds as told; answer how many there were."""
    socks = _connect(port, _ACTIVE)
    while True:
        end = time.perf_counter() + orders.recv()
        count = 0
        while time.perf_counter() < end:
            for sock in socks:
                sock.send(_FRAME)
            for sock in socks:
                sock.recv(4096)
            count += len(socks)
        orders.send(count)


def _scrape(port: int) -> tuple[float, int]:
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        while piece := sock.recv(1 << 20):
            size += len(piece)
    return time.perf_counter() - begin, size


def _scrapes(port: int, rate: float, running: Any) -> None:
    while True:
        running.wait()
        begin = time.perf_counter()
        _scrape(port)
        time.sleep(max(0.0, 1 / rate - (time.perf_counter() - begin)))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="what scraping /metrics costs")
    parser.add_argument("--connections", type=int, default=15_000)
    parser.add_argument("--rate", type=float, default=10.0, help="scrapes a second")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    orders, worker = multiprocessing.Pipe()
    running = multiprocessing.Event()
    processes = [multiprocessing.Process(target=_serve, args=(there,), daemon=True)]
    processes[0].start()
    try:
        port, admin = here.recv()
        for function, args in (
            (_hold, (port, options.connections, there)),
            (_load, (port, worker)),
            (_scrapes, (admin, options.rate, running)),
        ):
            process = multiprocessing.Process(target=function, args=args, daemon=True)
            process.start()
            processes.append(process)
        print(f"{here.recv()} connections, {os.uname().release}, Python {sys.version.split()[0]}")
        alone = sorted(_scrape(admin) for _ in range(20))
        print(f"a scrape alone: median {alone[10][0] * 1000:.1f} ms, {alone[10][1]} bytes")
        ratios = []
        for number in range(2 * options.rounds):
            with_scrapes = bool((number + number // 2) % 2)
            (running.set if with_scrapes else running.clear)()
            orders.send(options.seconds)
            rate = orders.recv() / options.seconds
            print(f"{'with' if with_scrapes else 'without':8} {rate:8.0f} echoes/s")
            if number % 2 == 0:
                first = with_scrapes, rate
            else:
                with_rate, without = (first[1], rate) if first[0] else (rate, first[1])
                ratios.append(with_rate / without)
        print(f"with / without: median {statistics.median(ratios):.4f} of {[round(r, 3) for r in ratios]}")
    finally:
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
