#!/usr/bin/env python3
"""What the Redis broker costs: publishing, receiving, reading back, and being attached again, with a server of its own.

Processor time is counted apart for this process and for Redis; on a machine that does other things only that is worth
something. Needs redis-server and hiredis; with --local neither, and measures the local broker instead.

python tests/bench/redis_broker.py [--topics 100000] [--appendonly | --local]
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time

import trio

from trionet.pubsub.broker import Broker, open_broker
from trionet.pubsub.publication import Position

TASKS = 50
COUNT = 20_000
DATA = b"x" * 200


class Receiver:
    def __init__(self) -> None:
        self.count = 0
        self.want = 0
        self.enough = trio.Event()

    def deliver(self, _: object) -> None:
        self.count += 1
        if self.count == self.want:
            self.enough.set()

    def interrupted(self, *_: object) -> None: ...

    def presence(self, *_: object) -> None: ...

    async def wait_room(self) -> None: ...


class Clock:
    """Time gone by, and processor time of this process and of another."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.begin = self.read()

    def read(self) -> tuple[float, float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        theirs = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), used.ru_utime + used.ru_stime, theirs

    def gone(self) -> list[float]:
        return [after - before for after, before in zip(self.read(), self.begin, strict=True)]


async def publish(broker: Broker) -> None:
    async def some(topic: str) -> None:
        for _ in range(COUNT // TASKS):
            await broker.publish(topic, DATA)

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(some, f"t{number}")


async def measure(url: str, pid: int, topics: int, cut) -> None:
    broker = open_broker(url)
    engine = {"redis": "Redis"}.get(broker.name, "its process")
    async with broker.running(Receiver()):
        clock = Clock(pid)
        await publish(broker)
        gone, ours, theirs = clock.gone()
        each = f"here {ours / COUNT * 1e6:.1f} us, {engine} {theirs / COUNT * 1e6:.1f} us"
        print(f"publish, {TASKS} tasks      {COUNT / gone:10,.0f} /s   {each}")
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            await broker.publish("alone", DATA)
            times.append(time.perf_counter() - begin)
        times.sort()
        print(f"publish, alone         {times[1000] * 1e6:10.0f} us   p99 {times[1980] * 1e6:.0f} us")
        top = (await broker.history("alone", None, 1)).top
        begin = time.perf_counter()
        for _ in range(1000):
            page = await broker.history("alone", Position(top.epoch, top.offset - 20))
        assert len(page.publications) == 20
        print(f"read 20 missed         {(time.perf_counter() - begin) * 1e3:10.0f} us")

    receiver = Receiver()
    receiver.want = COUNT
    broker = open_broker(url)
    async with broker.running(receiver):
        await broker.subscribe([f"t{number}" for number in range(TASKS)])
        clock = Clock(pid)
        await trio.run_process([sys.executable, __file__, "--publish", url])
        await receiver.enough.wait()
        _, ours, theirs = clock.gone()
        print(f"receive                {ours / COUNT * 1e6:10.1f} us here")
        if engine != "Redis":
            print(f"publish and deliver    {theirs / COUNT * 1e6:10.1f} us in {engine}")

    broker = open_broker(url)
    async with broker.running(Receiver()):
        clock = Clock(pid)
        await broker.subscribe([f"mail:{number}" for number in range(topics)])
        print(f"subscribe to {topics:<9,} {clock.gone()[0]:10.2f} s")
        if cut is None:
            return
        cut()
        clock = Clock(pid)
        while broker.state.reconnects == 0:
            await trio.sleep(0.002)
        gone, ours, theirs = clock.gone()
        print(f"the same after a break {gone:10.2f} s    here {ours:.2f} s, {engine} {theirs:.2f} s")


async def publish_only(url: str) -> None:
    broker = open_broker(url)
    async with broker.running(Receiver()):
        await publish(broker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topics", type=int, default=100_000)
    parser.add_argument("--appendonly", action="store_true")
    parser.add_argument("--local", action="store_true", help="measure the local broker")
    parser.add_argument("--publish", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable()  # of a connection that is cut on purpose
    if args.publish:
        trio.run(publish_only, args.publish)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        if args.local:
            command = f"{sys.executable} -m trionet broker {path} --log-level error"
        else:
            command = f"redis-server --port 0 --unixsocket {path} --dir {folder} --save  --loglevel warning"
            command += f" --appendonly {'yes' if args.appendonly else 'no'}"
        server = subprocess.Popen(command.split(" "), stdout=subprocess.DEVNULL)
        try:
            while not os.path.exists(path):
                time.sleep(0.05)
            kill = ["redis-cli", "-s", path, "client", "kill", "type", "pubsub"]
            trio.run(
                measure,
                f"local:{path}" if args.local else f"redis+unix://{path}",
                server.pid,
                args.topics,
                None if args.local else lambda: subprocess.run(kill, check=True, stdout=subprocess.DEVNULL),
            )
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
