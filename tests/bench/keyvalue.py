"""Measures examples/keyvalue beside redis-server, in turns: throughput, CPU for each command, bytes for connections.

python tests/bench/keyvalue.py [ROUNDS]      needs redis-server and redis-benchmark (Debian: redis-server, redis-tools)

Throughput is what redis-benchmark says (50 connections, 100,000 commands). CPU is the server's user and system time
from /proc. Memory is the growth of the server's PSS by 10,000 connections that were each answered a PING, beyond 500
others.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT, CONNECTIONS = 100_000, 10_000


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    def __init__(self, name):
        self.name, self.port = name, free_port()
        command = {
            "trionet": [sys.executable, "-m", "examples.keyvalue", "--port", str(self.port)],
            "redis": ["redis-server", "--port", str(self.port), "--save", "", "--appendonly", "no"]
            + ["--maxclients", "15000", "--tcp-backlog", "4096", "--protected-mode", "no"]
            + ["--bind", "127.0.0.1"],
        }[name]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd="/" if name == "redis" else ROOT, env=env, stdout=subprocess.DEVNULL
        )
        while True:
            time.sleep(0.5)
            assert self.process.poll() is None, "somebody else has the port; try again"
            try:  # from another address, as a port that is free yet may connect to itself
                socket.create_connection(("127.0.0.1", self.port), source_address=("127.0.0.2", 0)).close()
                return
            except OSError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pss(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text("ascii")
        return int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) * 1024

    def benchmark(self, test, pipeline):
        command = [
            "redis-benchmark",
            "-p",
            str(self.port),
            "-t",
            test,
            "-n",
            str(COUNT),
            "-c",
            "50",
            "-P",
            str(pipeline),
            "-q",
        ]
        before = self.cpu()
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate = float(re.findall(r"([\d.]+) requests per second", told)[-1])
        return rate, (self.cpu() - before) / COUNT * 1e6

    def connect(self, count):
        socks = []
        for n in range(count):
            sock = socket.socket()
            sock.settimeout(30)
            sock.bind((f"127.0.0.{2 + n % 4}", 0))
            sock.connect(("127.0.0.1", self.port))
            sock.sendall(b"PING\r\n")
            socks.append(sock)
        for sock in socks:
            assert sock.recv(100) == b"+PONG\r\n"
        return socks


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if not (shutil.which("redis-server") and shutil.which("redis-benchmark")):
        sys.exit("needs redis-server and redis-benchmark")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in ("trionet", "redis"):
        with Server(name) as server:
            warm = server.connect(500)
            time.sleep(2)
            before = server.pss()
            socks = server.connect(CONNECTIONS)
            time.sleep(3)
            print(f"{name}: {(server.pss() - before) / CONNECTIONS:.0f} bytes for each idle connection")
            for sock in socks + warm:
                sock.close()
        print(flush=True, end="")
    results = {}
    with Server("trionet") as one, Server("redis") as two:
        for _ in range(rounds):
            for pipeline in (1, 16):
                for test in ("set", "get"):
                    for server in (one, two):
                        found = server.benchmark(test, pipeline)
                        results.setdefault((pipeline, test, server.name), []).append(found)
    for (pipeline, test, name), found in sorted(results.items()):
        rates, costs = zip(*found, strict=True)
        print(
            f"{test} -P {pipeline} {name}: {statistics.median(rates):.0f}/s ({min(rates):.0f} to {max(rates):.0f}), "
            f"{statistics.median(costs):.1f} us CPU each"
        )


if __name__ == "__main__":
    main()
