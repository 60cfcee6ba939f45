#!/usr/bin/env python3
"""Measure examples/echo.py over TLS beside a bare SSLSocket loop and websockets, interleaved in one run.

tls.py [--hold 3000] [--connections 50] [--seconds 4] [--rounds 3] [--size 32]

Memory: proportional set size of the server per connection that has done its handshakes and one echo (websockets: 500
of them). Echo: closed
loop, one message in flight on each connection; the client is Python too and often the limit, so compare the server's
CPU time per message. Server on one core, client on another, loopback only; needs trustme and websockets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trustme

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

WEBSOCKETS = """
import asyncio, ssl, sys
from websockets.asyncio.server import serve
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), ssl=context, compression=None, backlog=65535):
        await asyncio.Future()
asyncio.run(main())
"""
SERVERS = {
    "SSLSocket": lambda port, pem: [str(HERE / "servers/tlsfloor.py"), port, pem],
    "trionet": lambda port, pem: [str(ROOT / "examples/echo.py"), "--port", port, "--tls-cert", pem],
    "websockets": lambda port, pem: ["-c", WEBSOCKETS, port, pem],
}
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(size):
    """Return a masked text frame."""
    length = bytes((128 + size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + b"x" * size


def connect(port, context):
    """Return a connection that has shaken both hands and had one echo."""
    plain = socket.create_connection(("127.0.0.1", port), 20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = context.wrap_socket(plain, server_hostname="localhost")
    sock.sendall(REQUEST)
    assert b" 101 " in sock.recv(4096)
    sock.sendall(frame(32))
    assert sock.recv(4096) == b"\x81\x20" + b"x" * 32
    return sock


def client(pipe, port, ca, core, count, seconds, size):
    """Hold `count` connections; then, if `seconds`, echo on them."""
    os.sched_setaffinity(0, {core})
    context = ssl.create_default_context(cafile=ca)
    held = [connect(port, context) for _ in range(count)]
    pipe.send("held")
    pipe.recv()
    if seconds:
        message, whole = frame(size), size + (2 if size < 126 else 4)
        epoll = select.epoll()
        missing = {}
        for sock in held:
            sock.setblocking(False)
            epoll.register(sock, select.EPOLLIN)
            missing[sock.fileno()] = [sock, whole]
            sock.send(message)
        echoes, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for fd, _ in epoll.poll(1):
                entry = missing[fd]
                try:
                    entry[1] -= len(entry[0].recv(65536))
                except ssl.SSLWantReadError:
                    continue
                if not entry[1]:
                    echoes += 1
                    entry[1] = whole
                    entry[0].send(message)
        pipe.send(echoes)
    pipe.close()


def pss(pid):
    """Return the proportional set size in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def cpu(pid):
    """Return user and system time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name, pem, ca, count, seconds, size):
    """Run one server and one client; return bytes per connection, or (echoes/s, server µs per echo)."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    argv = ["taskset", "-c", str(first), sys.executable, *SERVERS[name](str(port), pem)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                try:
                    context = ssl.create_default_context(cafile=ca)
                    warm = [connect(port, context) for _ in range(20)]
                    break
                except OSError:
                    time.sleep(0.05)
            time.sleep(0.3)
            before = pss(server.pid)
            ours, theirs = multiprocessing.Pipe()
            arguments = (theirs, port, ca, last, count, seconds, size)
            worker = multiprocessing.Process(target=client, args=arguments, daemon=True)
            worker.start()
            assert ours.recv() == "held"
            time.sleep(0.5)
            held = pss(server.pid)
            start, clock = cpu(server.pid), time.monotonic()
            ours.send("go")
            if not seconds:
                return (held - before) / count
            echoes = ours.recv()
            spent, clock = cpu(server.pid) - start, time.monotonic() - clock
            worker.join(10)
            return echoes / clock, spent / echoes * 1e6
        finally:
            for sock in warm:
                sock.close()
            server.terminate()


def main():
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hold", type=int, default=3000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pem, ca = f"{folder}/server.pem", f"{folder}/ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(ca)
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
        memory, echo = {name: [] for name in SERVERS}, {name: [] for name in SERVERS}
        for _ in range(o.rounds):
            for name in SERVERS:
                few = name == "websockets"  # or it takes a gigabyte
                memory[name].append(measure(name, pem, ca, min(o.hold, 500) if few else o.hold, 0, 0))
                echo[name].append(measure(name, pem, ca, o.connections, o.seconds, o.size))
    base = statistics.median(memory["SSLSocket"])
    cost = statistics.median(us for _, us in echo["SSLSocket"])
    print(f"Python {sys.version.split()[0]}, {ssl.OPENSSL_VERSION}; {json.dumps(vars(o))}\n")
    print("| server | B/connection | to SSLSocket | echoes/s | server us/echo | to SSLSocket |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in SERVERS:
        held = statistics.median(memory[name])
        rate, us = (statistics.median(column) for column in zip(*echo[name], strict=True))
        print(f"| {name} | {held:,.0f} | {held / base:.2f} | {rate:,.0f} | {us:.1f} | {us / cost:.2f} |")


if __name__ == "__main__":
    main()
