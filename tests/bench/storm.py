#!/usr/bin/env python3
"""A reconnect storm on one worker, trionet beside websockets, interleaved in one run.

storm.py [--connections 15000] [--rounds 3] [--servers trionet-pool64,websockets-asyncio] [--json FILE] [--quick]

A control group is in first and echoes all the time, each connection ten times a second. Then:

    arrival     all the others connect at once
    calm        nothing happens: what the control group feels in the steady state, and its memory
    reconnect   all the others are cut at once (their process ends, the kernel closes its sockets) and come back at once

For each storm: how long until everyone is in, connects that failed and were made again, the control group's latency
while it lasted (counted from when a message should have been sent, so that one long stall counts for every message
that fell into it), and the server's peak memory (VmHWM) above the steady state (VmRSS once all are in and quiet).
What the kernel keeps for sockets is not in it: it is the same for every server. The control group is a process of
its own, preferred by the scheduler, but shares its core with the load generator: its latency is an upper bound.

Exit status 1 if trionet misses what it promises: everyone in within 30 s, no message of the control group lost, memory
within 64 MiB of the steady state. Linux, a C compiler, two cores; as root in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import bench

bench.SERVERS["trionet-pool64"] = bench.trionet("--pool", "64")
PROMISED = "trionet-pool64"
WITHIN, ABOVE = 30.0, 64 * 2**20  # seconds, bytes

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGE = b"\x81\xa0" + bytes(4) + b"x" * 32
ANSWER = b"\x81\x20" + b"x" * 32
INTERVAL = 0.1  # seconds between the messages of one connection
PATIENCE = 20.0  # seconds after the last storm in which what is missing may be answered

Result = dict[str, Any]


# --- the control group --------------------------------------------------------------------------------------


class Member:
    """A connection of the control group: the message under way and the time the next one is due."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(REQUEST)
        assert b" 101 " in self.sock.recv(4096)
        self.sock.setblocking(False)
        self.intended, self.due, self.waiting, self.data = 0.0, 0.0, False, b""

    def send(self) -> None:
        """Send what is due now; its time is when it became due."""
        self.intended, self.waiting = self.due, True
        self.due += INTERVAL
        self.sock.send(MESSAGE)

    def receive(self) -> int:
        """Return how many answers have come; pings are answered. EOFError when the server has hung up."""
        data = self.data + self.sock.recv(4096)
        if data == self.data:
            raise EOFError("end of stream")
        answers = 0
        while len(data) >= 2 and len(data) >= 2 + data[1]:
            frame, data = data[: 2 + data[1]], data[2 + data[1] :]
            answers += frame == ANSWER
            if frame[0] == 0x89:
                self.sock.send(bytes((0x8A, 0x80 | frame[1], 0, 0, 0, 0)) + frame[2:])
        self.data = data
        return answers


def control(pipe: Connection, port: int, count: int, core: int) -> None:
    """Echo on `count` connections until told to stop and all is answered; then give (due, seconds) of each."""
    os.sched_setaffinity(0, {core})
    members = [Member(port) for _ in range(count)]
    samples: list[tuple[float, float]] = []
    lost: list[str] = []
    epoll = select.epoll()
    owners = {}
    now = time.monotonic()
    for number, member in enumerate(members):
        member.due = now + INTERVAL * number / count  # spread over the interval
        owners[member.sock.fileno()] = member
        epoll.register(member.sock, select.EPOLLIN)
    epoll.register(pipe, select.EPOLLIN)
    pipe.send("ready")
    alive = set(members)
    until = float("inf")
    while (now := time.monotonic()) < until + PATIENCE:
        # What became due before the stop is sent, however late.
        for member in alive:
            if not member.waiting and member.due <= min(now, until):
                member.send()
        if now > until and not any(member.waiting for member in alive):
            break
        for fd, _ in epoll.poll(0.002):
            if fd == pipe.fileno():
                epoll.unregister(fd)
                until = time.monotonic()
                continue
            member = owners[fd]
            try:
                answered = member.receive()
            except (OSError, EOFError) as error:
                lost.append(str(error))
                epoll.unregister(fd)
                alive.discard(member)
                continue
            if answered:
                member.waiting = False
                samples.append((member.intended, time.monotonic() - member.intended))
    unanswered = sum(member.waiting for member in alive)
    pipe.send({"samples": samples, "unanswered": unanswered, "gone": count - len(alive), "errors": lost[:5]})


class Control:
    """The control group's process; `result` is there when the block is left."""

    def __init__(self, port: int, count: int) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, port, count, max(os.sched_getaffinity(0)))
        self.process = multiprocessing.Process(target=control, args=arguments, daemon=True)
        self.result: Result = {}

    def __enter__(self) -> Control:
        self.process.start()
        assert self.pipe.poll(30)
        assert self.pipe.recv() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """End it and take its samples."""
        self.pipe.send("stop")
        assert self.pipe.poll(PATIENCE + 10)
        self.result = self.pipe.recv()

    def between(self, begin: float, end: float) -> Result:
        """Return the latency of messages that should have been sent in this time, in microseconds."""
        found = sorted(1e6 * took for intended, took in self.result["samples"] if begin <= intended < end)
        if not found:
            return {"n": 0}
        at = lambda q: found[min(int(q * len(found)), len(found) - 1)]  # noqa: E731
        return {"n": len(found), "p50": at(0.5), "p99": at(0.99), "max": found[-1]}


# --- the storm ----------------------------------------------------------------------------------------------


class Crowd:
    """Connections that came at once: processes of wsload that hold them."""

    def __init__(self, server: bench.Server, count: int, hold: float) -> None:
        self.server, self.count, self.hold = server, count, hold
        self.processes: list[subprocess.Popen[str]] = []
        self.missing, self.again = count, 0
        self.began = self.took = 0.0

    def gather(self) -> None:
        """Have everyone connect, those that failed once more, for a minute at most."""
        self.began = time.monotonic()
        while self.missing and time.monotonic() < self.began + 60:
            # All at once: as many connects under way as there are connections.
            arguments = (
                "--hold",
                self.hold,
                "--pending",
                self.missing,
                "--src",
                20,
                "connect",
                self.missing,
                0,
            )
            command = ["nice", "-n", "5", *self.server.command(*arguments, limit=90 + self.hold)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.processes.append(process)
            assert process.stdout is not None
            self.missing -= json.loads(process.stdout.readline() or "{}").get("open", 0)
            self.again += self.missing
        self.took = time.monotonic() - self.began

    def hang_up(self) -> Result:
        """Wait until the first process has held long enough and return what it says; the others end, too."""
        assert self.processes[0].stdout is not None
        said = bench.last_json(self.processes[0].stdout.read())
        for process in self.processes[1:]:
            process.kill()
        return said

    def end(self) -> None:
        """Wait for the processes, by force."""
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def crowd(server: bench.Server, count: int, hold: float) -> Iterator[Crowd]:
    """Connections for the length of a block."""
    made = Crowd(server, count, hold)
    try:
        yield made
    finally:
        made.end()


def memory(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(name: str, port: int, o: argparse.Namespace) -> Result:
    """Run one server through both storms."""
    with bench.running(name, "echo", port) as server:
        (pid,) = server.pids
        server.load("--warm", 0.2, "echo", 100, 1, 32, 0.5)
        others = o.connections - o.control
        with Control(port, o.control) as group:
            forget_peak(pid)
            before, cpu = memory(pid, "VmRSS"), bench.cpu_seconds([pid])
            with crowd(server, others, o.calm + 4) as first, crowd(server, others, PATIENCE / 2) as second:
                first.gather()
                arrival_cpu = bench.cpu_seconds([pid]) - cpu
                time.sleep(2)
                arrival_peak, calm = memory(pid, "VmHWM"), time.monotonic()
                time.sleep(o.calm)
                steady = memory(pid, "VmRSS")
                calm_end = time.monotonic()
                forget_peak(pid)
                cpu = bench.cpu_seconds([pid])
                said = [first.hang_up()]
                second.gather()
                reconnect_cpu = bench.cpu_seconds([pid]) - cpu
                time.sleep(2)
                reconnect_peak, after = memory(pid, "VmHWM"), memory(pid, "VmRSS")
                group.stop()
                said.append(second.hang_up())
    return {
        "server": name,
        "steady": steady,
        "before": before,
        "after": after,
        "calm": group.between(calm, calm_end),
        "gone": group.result["gone"],
        "errors": group.result["errors"],
        "unanswered": group.result["unanswered"],
        **{
            storm: {
                "in": made.took,
                "missing": made.missing,
                "again": made.again,
                "cpu": cpu,
                "above": max(0, peak - steady),
                "control": group.between(made.began, made.began + made.took),
                "connect": hs.get("hs_us", {}),
                "trouble": hs.get("first_error", ""),
            }
            for storm, made, cpu, peak, hs in (
                ("arrival", first, arrival_cpu, arrival_peak, said[0]),
                ("reconnect", second, reconnect_cpu, reconnect_peak, said[1]),
            )
        },
    }


# --- report -------------------------------------------------------------------------------------------------


def broken(result: Result) -> list[str]:
    """Return the promises that a result breaks."""
    found = []
    for storm in ("arrival", "reconnect"):
        one = result[storm]
        if one["missing"] or one["in"] > WITHIN:
            found.append(f"{storm}: {one['missing']} were not in after {one['in']:.1f} s")
        if one["above"] > ABOVE:
            found.append(f"{storm}: memory {one['above'] / 2**20:.0f} MiB above the steady state")
    if result["gone"] or result["unanswered"]:
        found.append(f"of the control group {result['gone']} were lost, {result['unanswered']} not answered")
    return found


def report(results: list[Result]) -> str:
    """Return a Markdown table of medians."""
    lines = [
        (
            "| server | storm | everyone in, s | connect p50 / p99, s | again | control p50 / p99 / max, ms "
            "| calm p50 / p99, ms | memory above, MiB | steady, MiB | server CPU, s |"
        ),
        "|---|---|" + "---:|" * 8,
    ]
    for name in dict.fromkeys(result["server"] for result in results):
        rounds = [result for result in results if result["server"] == name]

        def median(*keys: str, by: float = 1.0, rounds: list[Result] = rounds) -> float:
            values = []
            for value in rounds:
                for key in keys:
                    value = value.get(key, {})  # noqa: PLW2901
                values.append(value or 0.0)
            return statistics.median(values) / by

        for storm in ("arrival", "reconnect"):
            control = " / ".join(f"{median(storm, 'control', q, by=1e3):.1f}" for q in ("p50", "p99", "max"))
            calm = " / ".join(f"{median('calm', q, by=1e3):.2f}" for q in ("p50", "p99"))
            connect = " / ".join(f"{median(storm, 'connect', q, by=1e6):.2f}" for q in ("p50", "p99"))
            lines.append(
                f"| {name} | {storm} | {median(storm, 'in'):.2f} | {connect} | {median(storm, 'again'):.0f} "
                f"| {control} | {calm} | {median(storm, 'above', by=2**20):.1f} "
                f"| {median('steady', by=2**20):.1f} | {median(storm, 'cpu'):.1f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the storms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    quick = "--quick" in sys.argv
    parser.add_argument("--quick", action="store_true", help="short: one round of 3,000")
    parser.add_argument(
        "--connections", type=int, default=3000 if quick else 15_000, help="the control group's included"
    )
    parser.add_argument("--control", type=int, default=200, help="connections that echo all the time")
    parser.add_argument("--calm", type=float, default=3.0, help="seconds between the storms")
    parser.add_argument("--rounds", type=int, default=1 if quick else 3)
    parser.add_argument(
        "--servers", default=f"{PROMISED},websockets-asyncio", help=f"of {' '.join(bench.SERVERS)}"
    )
    parser.add_argument("--json", type=Path, help="write every result")
    o = parser.parse_args()
    bench.enter_namespace()
    bench.build()
    results, port = [], 25_000
    for turn in range(o.rounds):
        names = o.servers.split(",")
        for name in names if turn % 2 == 0 else names[::-1]:
            port += 1
            result = measure(name, port, o)
            results.append(result)
            print(report([result]).splitlines()[-2], "\n" + report([result]).splitlines()[-1], flush=True)
    print("\n" + report(results))
    if o.json:
        o.json.write_text(json.dumps(results, indent=1))
    misses = [miss for result in results if result["server"] == PROMISED for miss in broken(result)]
    for miss in misses:
        print("storm:", miss)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
