#!/usr/bin/env python3
"""What the bus takes in memory, and whether publishing costs more where more are connected.

Two servers of `BusHandler` with the memory broker, one with few connections, one with many. Each connection has three
topics: its user's own, a group of a hundred, one of all. Counted is the proportional set size of the server's process:
connected, then subscribed. Then one client after the other publishes to users' topics, in turns, one at a time; what
counts is the CPU time of the server. The clients are in this process: plain sockets in one epoll loop.

python tests/bench/pubsub.py [--connections 15000]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

HERE = Path(__file__).resolve().parent
HEAD = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n"
)
PENDING = 128  # handshakes at a time


def masked(text: str) -> bytes:
    """Return the frame of a text message, masked with zeros (RFC 6455, 5.3: any key will do here)."""
    data = text.encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


class Client:
    """One connection: counts the messages it got, keeps the last of them if asked to."""

    def __init__(self, port: int, number: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((f"127.0.0.{2 + number % 20}", 0))
        self.socket.connect_ex(("127.0.0.1", port))
        self.data = b""
        self.open = False
        self.greeted = False
        self.received = 0

    def writable(self) -> None:
        """It is connected: ask for the upgrade."""
        if not self.greeted:
            self.greeted = True
            self.socket.send(HEAD.format(base64.b64encode(os.urandom(16)).decode()).encode())

    def readable(self) -> None:
        """Count what came."""
        data = self.data + self.socket.recv(65536)
        if not data:
            raise SystemExit("pubsub: the server closed a connection")
        if not self.open and b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            assert b" 101 " in head, head
            self.open = True
        while self.open and len(data) > 1:
            size, header = data[1], 2
            if size == 126:
                size, header = int.from_bytes(data[2:4], "big"), 4
            if len(data) < header + size or (header == 4 and len(data) < 4):
                break
            assert b'"error"' not in data[header : header + 20], data[:300]
            self.received += 1
            data = data[header + size :]
        self.data = data


class Crowd:
    """The clients of one server."""

    def __init__(self, port: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        command = [
            "taskset",
            "-c",
            str(cores[0]),
            sys.executable,
            str(HERE / "servers/hub.py"),
            str(port),
            "json",
        ]
        self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.port = port
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}

    def start(self) -> None:
        """Wait until the server listens."""
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.server.poll() is None, "the server has ended"
                time.sleep(0.05)
            else:
                return
        raise SystemExit("pubsub: the server does not start")

    def end(self) -> None:
        """End the server."""
        self.server.terminate()
        try:
            self.server.wait(5)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def pump(self, done: Callable[[], bool], limit: float = 60) -> None:
        """Handle events until it is `done`."""
        deadline = time.monotonic() + limit
        while not done():
            for fd, event in self.epoll.poll(0.05):
                client = self.clients[fd]
                if event & select.EPOLLOUT and not client.greeted:
                    client.writable()
                    self.epoll.modify(fd, select.EPOLLIN)
                elif event & ~select.EPOLLOUT:
                    client.readable()
            if time.monotonic() > deadline:
                raise SystemExit("pubsub: the server does not answer")

    def connect(self, count: int) -> list[Client]:
        """Open so many more connections, and wait for the greeting."""
        new: list[Client] = []
        while len(new) < count:
            some = [Client(self.port, len(self.clients) + n) for n in range(min(PENDING, count - len(new)))]
            for client in some:
                self.clients[client.socket.fileno()] = client
                self.epoll.register(client.socket, select.EPOLLOUT | select.EPOLLIN)
            self.pump(lambda some=some: all(client.received for client in some))  # type: ignore[misc]
            new += some
        return new

    def subscribe(self, clients: list[Client]) -> None:
        """Each to three topics."""
        for first in range(0, len(clients), PENDING):
            some = clients[first : first + PENDING]
            for n, client in enumerate(some, first):
                topics = (f"user:{n}", f"group:{n // 100}", "all")
                asked = [json.dumps({"type": "subscribe", "id": i, "topic": t}) for i, t in enumerate(topics)]
                client.socket.send(b"".join(map(masked, asked)))
            self.pump(lambda some=some: all(client.received >= 4 for client in some))  # type: ignore[misc]

    def publish(self, publisher: Client, count: int, users: int) -> None:
        """So many publications, one after the other, each to the topic of a user; wait for the answer and the event."""
        for n in range(count):
            before, hearer = publisher.received, self.hearers[n * 7919 % users]
            heard = hearer.received
            text = json.dumps(
                {"type": "publish", "id": n, "topic": f"user:{n * 7919 % users}", "data": {"n": n}}
            )
            publisher.socket.send(masked(text))
            self.pump(
                lambda b=before, c=hearer, h=heard: publisher.received > b and c.received > h  # type: ignore[misc]
            )

    hearers: list[Client]

    def pss(self) -> int:
        """What the server's process takes, in bytes."""
        time.sleep(1.5)
        return bench.pss([self.server.pid])

    def cpu(self) -> int:
        """CPU time of the server, in nanoseconds."""
        return int(Path(f"/proc/{self.server.pid}/schedstat").read_text().split()[0])


def measure(few: Crowd, many: Crowd, o: argparse.Namespace) -> dict[str, Any]:
    """Do it all."""
    figures: dict[str, Any] = {"connections": o.connections, "python": sys.version.split()[0]}
    for crowd, count in ((few, 100), (many, o.connections)):
        crowd.start()
        publisher = crowd.connect(1)[0]  # has been through everything once
        crowd.subscribe([publisher])
        crowd.hearers = crowd.connect(100)
        before = crowd.pss()
        crowd.hearers += crowd.connect(count - 100)
        connected = crowd.pss()
        crowd.subscribe(crowd.hearers)
        subscribed = crowd.pss()
        if crowd is many:
            figures["bytes_connected"] = (connected - before) / (count - 100)
            figures["bytes_of_three_topics"] = (subscribed - connected) / count
        for client in crowd.clients.values():
            client.received = 1
        crowd.clients[publisher.socket.fileno()].greeted = True
    costs: dict[Crowd, list[float]] = {few: [], many: []}
    for turn in range(o.rounds + 1):
        for crowd in (few, many) if turn % 2 else (many, few):
            publisher = next(iter(crowd.clients.values()))
            begun = crowd.cpu()
            crowd.publish(publisher, o.publications, 100)
            if turn:
                costs[crowd].append((crowd.cpu() - begun) / 1000 / o.publications)
    figures["us_of_a_publication_at_100"] = statistics.median(costs[few])
    figures[f"us_of_a_publication_at_{o.connections}"] = statistics.median(costs[many])
    figures["ratio"] = statistics.median(b / a for a, b in zip(costs[few], costs[many], strict=True))
    return figures


def main() -> None:
    """Run it, print figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=15_000, help="of the larger server")
    parser.add_argument("--rounds", type=int, default=9, help="turns of publishing that count")
    parser.add_argument("--publications", type=int, default=400, help="in a turn")
    o = parser.parse_args()
    bench.enter_namespace()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    o.connections = min(o.connections, hard - 600)
    crowds: list[Crowd] = []
    try:
        crowds += [Crowd(24_500)]
        crowds += [Crowd(24_501)]
        figures = measure(*crowds, o)
    finally:
        for crowd in crowds:
            crowd.end()
    print(
        json.dumps(
            {name: round(f, 2) if isinstance(f, float) else f for name, f in figures.items()}, indent=1
        )
    )


if __name__ == "__main__":
    main()
