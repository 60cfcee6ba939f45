"""Restart workers under load and count what clients notice.

Starts ``trionet serve`` with some workers, connects from several processes and source addresses, echoes all the time,
sends SIGHUP twice and SIGKILL to one worker, and reports: connections refused, echoes lost or wrong, how connections
ended, how long each client was away, and how evenly workers were filled.

python tests/bench/rolling.py --connections 20000 --workers 4
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request

import bench
import trio

import trionet

PER_PROCESS = 10_000
AWAY = 2.0  # seconds over which clients spread their return


def client(args: argparse.Namespace) -> None:
    """One load process: tells its counters on stdout when told ``end`` on stdin."""
    trio.run(_client, args)


async def _client(args: argparse.Namespace) -> None:
    counts: collections.Counter[str] = collections.Counter()
    away: list[float] = []
    ends: list[tuple[float, int]] = []
    opened = 0
    running = True

    async def one(client: trionet.WebSocketClient, number: int) -> None:
        nonlocal opened
        source = f"127.0.{args.net}.{1 + number % 8}"
        left = None
        while running:
            try:
                ws = await client.connect(args.url, local_address=source, ping_interval=None, open_timeout=30)
            except (OSError, trionet.TrionetError) as error:
                cause = error.__cause__ or error
                counts[f"connect: {type(error).__name__}: {cause}"[:100]] += 1
                await trio.sleep(random.uniform(0.5, 1.5))
                continue
            opened += 1
            if left is not None:
                away.append(time.monotonic() - left)
            left = None
            sent = 0
            try:
                while running:
                    sent += 1
                    text = f"{number} {sent}"
                    await ws.send(text)
                    answer = await ws.receive(timeout=30)
                    counts["echoes"] += 1
                    if answer != text:
                        counts["wrong"] += 1
                    with trio.move_on_after(random.uniform(0.5, 1.5) * args.pause):
                        await ws.wait_closed()
                    if ws.closed is not None:
                        break
            except trionet.ConnectionClosed:
                pass
            except trio.TooSlowError:
                counts["no answer in 30 s"] += 1
            closed = ws.closed
            opened -= 1
            if not running:
                break
            if closed is not None:
                ends.append((time.time(), closed.code))
                counts[f"closed {closed.code}"] += 1
            left = time.monotonic()
            ws.abort()
            await trio.sleep(random.uniform(0, AWAY))

    async with trionet.open_client() as client, trio.open_nursery() as nursery:
        for number in range(args.count):
            nursery.start_soon(one, client, number)
            if number % 50 == 49:
                await trio.sleep(0.02)
        with trio.move_on_after(60):
            while opened < args.count:
                await trio.sleep(0.1)
        print(json.dumps({"open": opened}), flush=True)
        stdin = trio.lowlevel.FdStream(os.dup(0))
        while (data := await stdin.receive_some(100)) and b"end" not in data:
            print(json.dumps({"open": opened}), flush=True)
        running = False
        nursery.cancel_scope.cancel()
    print(json.dumps({"open": opened, "counts": counts, "away": away, "ends": ends}), flush=True)


def admin(port: int) -> list[dict[str, object]]:
    """Rows of /workers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/workers", timeout=10) as answer:
        return json.load(answer)["workers"]  # type: ignore[no-any-return]


def balance(port: int) -> list[int]:
    """Connections of each worker that serves."""
    return [int(row.get("connections", -1)) for row in admin(port) if row["state"] == "serving"]  # type: ignore[arg-type]


def settled(port: int, workers: int, old: set[int], limit: float) -> bool:
    """Wait until `workers` serve, none of them `old`, and nobody else is there."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        rows = admin(port)
        if (
            len(rows) == workers
            and all(row["state"] == "serving" for row in rows)
            and not old & {int(row["pid"]) for row in rows}
        ):  # type: ignore[call-overload]
            return True
        time.sleep(0.2)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--window", type=float, default=10, help="seconds over which clients are told to go")
    parser.add_argument(
        "--pause", type=float, default=10, help="seconds between two echoes of a client, on average"
    )
    parser.add_argument("--port", type=int, default=8620)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--net", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.url:
        client(args)
        return
    bench.enter_namespace()
    port, desk = args.port, args.port + 1
    here = os.path.dirname(os.path.abspath(__file__))
    command = [
        sys.executable,
        "-m",
        "trionet",
        "serve",
        os.path.join(here, "servers", "echo_app.py"),
        "--port",
        str(port),
    ]
    command += [
        "--workers",
        str(args.workers),
        "--admin",
        f"127.0.0.1:{desk}",
        "--drain-window",
        str(args.window),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    clients: list[subprocess.Popen[str]] = []
    report: dict[str, object] = {
        "connections": args.connections,
        "workers": args.workers,
        "window": args.window,
    }
    try:
        for _ in range(200):
            try:
                if len(admin(desk)) == args.workers and all(row["state"] == "serving" for row in admin(desk)):
                    break
            except OSError:
                pass
            time.sleep(0.1)
        left = args.connections
        while left > 0:
            count = min(PER_PROCESS, left)
            left -= count
            own = [sys.executable, __file__, "--url", f"ws://127.0.0.1:{port}/", "--count", str(count)]
            own += ["--net", str(10 + len(clients)), "--pause", str(args.pause)]
            clients.append(subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for each in clients:
            assert each.stdout is not None
            print("open:", each.stdout.readline().strip(), flush=True)
        report["balance"] = [balance(desk)]
        for step in ("SIGHUP", "SIGHUP", "SIGKILL"):
            rows = admin(desk)
            began = time.time()
            if step == "SIGHUP":
                os.kill(server.pid, signal.SIGHUP)
                ok = settled(desk, args.workers, {int(row["pid"]) for row in rows}, 120)  # type: ignore[call-overload]
            else:
                victim = rows[0]
                report["killed_held"] = victim["connections"]
                os.kill(int(victim["pid"]), signal.SIGKILL)  # type: ignore[call-overload]
                ok = settled(desk, args.workers, {int(victim["pid"])}, 60)  # type: ignore[call-overload]
            took = time.time() - began
            time.sleep(8)
            counts = balance(desk)
            report["balance"].append(counts)  # type: ignore[attr-defined]
            print(f"{step}: settled {ok} in {took:.1f} s; connections {counts}", flush=True)
            report.setdefault("steps", []).append({"step": step, "began": began, "ok": ok, "seconds": took})  # type: ignore[attr-defined]
        totals: collections.Counter[str] = collections.Counter()
        away: list[float] = []
        ends: list[tuple[float, int]] = []
        still = 0
        for each in clients:
            out, _ = each.communicate("end\n", timeout=60)
            last = json.loads(out.strip().splitlines()[-1])
            totals.update(last["counts"])
            away += last["away"]
            ends += [tuple(end) for end in last["ends"]]
            still += last["open"]
        away.sort()
        report["counts"] = dict(totals)
        report["open_at_end"] = still
        if away:
            report["away"] = {
                "returns": len(away),
                "median": away[len(away) // 2],
                "p99": away[len(away) * 99 // 100],
                "max": away[-1],
            }
        spread = collections.Counter((int(when - report["steps"][0]["began"]), code) for when, code in ends)  # type: ignore[index]
        report["ends_by_second"] = [
            f"{second} s: {count} x {code}" for (second, code), count in sorted(spread.items())
        ]
        print(json.dumps(report, indent=1))
    finally:
        for process in clients:
            if process.poll() is None:
                process.kill()
            process.wait()
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(40)
            except subprocess.TimeoutExpired:
                server.kill()
        assert server.stderr is not None
        lines = [re.sub(r"\s+", " ", line) for line in server.stderr.read().splitlines()]
        print("server said:", *lines[-40:], sep="\n  ")


if __name__ == "__main__":
    main()
