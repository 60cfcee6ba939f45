#!/usr/bin/env python3
"""Measure examples/echo.py against floors and peers, interleaved in one run; README.md says more.

Only the standard library. Server on core 0, load generator on core 1, loopback only. Everything that is
started here is ended here, and every load has a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path(
    os.environ.get("TRIONET_BENCH_BUILD") or Path(tempfile.gettempdir(), f"trionet-bench-{os.getuid()}")
)
IN_NAMESPACE = "BENCH_NAMESPACE"
FLOOR = "py-floor"

Result = dict[str, Any]
Command = Callable[[int, str], list[str]]  # (port, "echo" or "bcast") -> argv


# --- what is measured ---------------------------------------------------------------------------------------


def trionet(*options: str, masking: str = "c") -> Command:
    """Return the checkout's echo example; `int` hides the C mask from it."""
    run = [str(ROOT / "examples/echo.py")]
    if masking == "int":
        hide = "import runpy, sys; sys.modules['websockets.speedups'] = None; sys.argv = sys.argv[1:]; "
        run = ["-c", hide + "runpy.run_path(sys.argv[0], run_name='__main__')", *run]

    def argv(port: int, mode: str) -> list[str]:
        fanout = ["--broadcast"] if mode == "bcast" else []
        fixed = ["--host", "127.0.0.1", "--port", str(port), "--max-message", str(2**24)]
        return [sys.executable, *run, *fixed, *options, *fanout]

    return argv


def peer(library: str, loop: str, *options: str) -> Command:
    """Return the server of `servers/peer.py` for a library."""
    return lambda port, mode: [
        sys.executable,
        str(HERE / "servers/peer.py"),
        library,
        str(port),
        mode,
        loop,
        *options,
    ]


def hub(kind: str) -> Command:
    """Return the server that publishes by a `Hub`, or by a `Bus`; it is for fan-out only."""
    return lambda port, _: [sys.executable, str(HERE / "servers/hub.py"), str(port), kind]


def python_floor(masking: str) -> Command:
    """Return the pure-Python bound."""
    return lambda port, mode: [sys.executable, str(HERE / "servers/pyfloor.py"), str(port), mode, masking]


SERVERS: dict[str, Command] = {
    "c-floor": lambda port, mode: [str(BUILD / "floor"), str(port), mode],
    FLOOR: python_floor("c"),
    "py-floor-int": python_floor("int"),
    "trionet": trionet("--handler", "events"),
    "trionet-straight": trionet("--handler", "straight"),
    "trionet-task": trionet("--handler", "task"),
    "trionet-int": trionet("--handler", "events", masking="int"),
    "trionet-hub": hub("hub"),
    "trionet-bus": hub("bus"),
    "picows-uvloop": peer("picows", "uvloop"),
    "picows-asyncio": peer("picows", "asyncio"),
    "websockets-uvloop": peer("websockets", "uvloop"),
    "websockets-asyncio": peer("websockets", "asyncio"),
    "websockets-trio": peer("wstrio", "trio"),
    "aiohttp-uvloop": peer("aiohttp", "uvloop"),
    "tornado-asyncio": peer("tornado", "asyncio"),
    "uvicorn-websockets-uvloop": peer("uvicorn", "uvloop", "ws=websockets-sansio"),
    "uvicorn-wsproto-uvloop": peer("uvicorn", "uvloop", "ws=wsproto"),
    "hypercorn-trio": peer("hypercorn", "trio", "trio"),
    "trio-websocket": peer("triows", "trio"),
}
DEFAULT_SERVERS = "c-floor,py-floor,trionet,picows-uvloop,websockets-asyncio,websockets-trio,trio-websocket"
QUICK_SERVERS = "py-floor,trionet,websockets-asyncio"


# --- asking the kernel --------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            todo += map(int, children.read_text().split())
    return found


def pss(pids: list[int]) -> int:
    """Return the proportional set size in bytes."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def descriptors(pids: list[int]) -> int:
    """Return how many descriptors the processes hold."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def cpu_seconds(pids: list[int]) -> float:
    """Return user and system time of the processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- servers and loads --------------------------------------------------------------------------------------


class Server:
    """One running server, pinned to core 0."""

    def __init__(self, name: str, mode: str, port: int) -> None:
        self.port = port
        self.log = (BUILD / f"{name}.log").open("wb")
        pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *SERVERS[name](port, mode)]
        self.process = subprocess.Popen(pinned, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.end()
                    raise RuntimeError(f"{name} did not start, see {self.log.name}") from None
                time.sleep(0.05)
        time.sleep(0.6)
        self.pids = family(self.process.pid)
        self.idle_descriptors = descriptors(self.pids)

    def end(self) -> None:
        """Stop the server, by force after three seconds."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def settle(self) -> None:
        """Wait until the connections of the last load are gone."""
        deadline = time.monotonic() + 20
        while descriptors(self.pids) > self.idle_descriptors + 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)

    def command(self, *arguments: object, limit: float) -> list[str]:
        """Return the load generator's command line."""
        cores = sorted(os.sched_getaffinity(0))
        pids = ",".join(map(str, self.pids))
        fixed = ["--cpu", cores[-1], "--port", self.port, "--spid", pids, "--timeout", int(limit)]
        return [str(BUILD / "wsload"), *map(str, fixed), *map(str, arguments)]

    def load(self, *arguments: object, limit: float = 120) -> Result:
        """Run one load to its end and return what it measured."""
        command = self.command(*arguments, limit=limit)
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 60, check=False)
        self.settle()
        return last_json(done.stdout) or {
            "error": done.stderr.strip()[:300] or f"exit status {done.returncode}"
        }


def last_json(output: str) -> Result:
    """Return the last JSON line of a load's output."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


@contextmanager
def running(name: str, mode: str, port: int) -> Iterator[Server]:
    """Run a server for the length of a block."""
    server = Server(name, mode, port)
    try:
        yield server
    finally:
        server.end()


# --- scenarios ----------------------------------------------------------------------------------------------


def echo(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Closed loop, one message in flight on each connection."""
    for connections, size, binary in (
        (100, 32, False),
        (1000, 128, False),
        (100, 4096, True),
        (16, 65536, True),
    ):
        kind = ["--binary"] if binary else []
        yield (
            f"echo {connections} x {size} B",
            server.load(*kind, "--warm", o.warm, "echo", connections, 1, size, o.secs),
        )


def pipe(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Sixteen messages in flight on each connection."""
    yield "echo 100 x 32 B, 16 in flight", server.load("--warm", o.warm, "echo", 100, 16, 32, o.secs)


def upgrade(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Connect, shake hands, close, again."""
    yield "handshakes", server.load("--warm", o.warm, "upgrade", o.secs, 32)


def trickle(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Open loop: latency counts from when a message should have been sent."""
    many = min(10_000, o.connections)
    yield (
        f"trickle {many}, 5,000/s",
        server.load("--warm", 1, "--size", 64, "trickle", many, 0, 5000, o.secs + 1),
    )


def fanout(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """One publisher, everybody else hears it: as fast as it goes, then at 80 % of that, which shows the latency."""
    many = min(5000, o.connections)
    most = server.load("--warm", 1, "--window", 2, "--size", 64, "fanout", many, o.secs + 1)
    yield f"fan-out {many}", most
    if rate := 0.8 * most.get("published_s", 0.0):
        yield (
            f"latency of fan-out {many} at 80 %",
            server.load("--warm", 1, "--rate", rate, "--size", 64, "fanout", many, o.secs + 1),
        )


def memory(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Proportional set size per connection that has done its handshake and nothing else."""
    server.load("--warm", 0.2, "echo", 100, 1, 32, 0.5)
    time.sleep(1)
    before = pss(server.pids)
    command = server.command("--hold", o.hold + 6, "connect", o.connections, 0, limit=o.hold + 120)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        opened = json.loads(client.stdout.readline() or "{}").get("open", 0)
        time.sleep(2.5)
        busy, start = cpu_seconds(server.pids), time.monotonic()
        time.sleep(o.hold)
        idle = (cpu_seconds(server.pids) - busy) / (time.monotonic() - start)
        held = pss(server.pids)
        result = last_json(client.communicate(timeout=120)[0])
    server.settle()
    result.update(pss_before=before, bytes_each=(held - before) / max(1, opened), idle_cpu=idle)
    yield f"memory {o.connections} idle", result


def memhot(server: Server, o: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Return the same after every connection has exchanged about two messages."""
    server.load("--warm", 0.2, "echo", 100, 1, 32, 0.5)
    time.sleep(1)
    before, base = pss(server.pids), server.idle_descriptors
    # `trickle` sends about two messages on each connection while it lasts; look before it hangs up.
    lasts = max(10, o.hold)
    arguments = ("--warm", 0.1, "--size", 64, "trickle", o.connections, 0, o.connections * 2 / lasts, lasts)
    with subprocess.Popen(
        server.command(*arguments, limit=lasts + 120), stdout=subprocess.PIPE, text=True
    ) as client:
        deadline = time.monotonic() + 60
        while descriptors(server.pids) < base + o.connections and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(lasts - 1.5)
        held = pss(server.pids)
        result = last_json(client.communicate(timeout=120)[0])
    server.settle()
    result.update(pss_before=before, bytes_each=(held - before) / o.connections)
    yield f"memory {o.connections} after traffic", result


SCENARIOS = {f.__name__: f for f in (echo, pipe, upgrade, trickle, fanout, memory, memhot)}
TROUBLE = "error fail_connect fail_handshake lost proto_err mismatch unanswered undelivered_end".split()


def trouble(result: Result) -> Result:
    """Return what went wrong in a load."""
    return {key: result[key] for key in TROUBLE if result.get(key)}


# --- report -------------------------------------------------------------------------------------------------


def latency(result: Result) -> bool:
    """Return whether the load had a rate to keep, so that its figure is how long things took."""
    return result.get("mode") in ("trickle", "fanout") and result.get("rate", 0) > 0


def score(result: Result) -> float:
    """Return the figure that a scenario is about."""
    for key in ("bytes_each", "handshakes_s", "delivered_s", "msgs_s"):
        if key in result and not latency(result):
            return result[key]
    return result.get("lat_us", {}).get("p99", 0.0)


def unit(scenario: str) -> str:
    """Return what `score` counts."""
    first, _, _ = scenario.partition(" ")
    units = {"memory": "B/conn", "trickle": "us p99", "latency": "us p99", "handshakes": "/s"}
    return {**units, "fan-out": "delivered/s"}.get(first, "echoes/s")


def server_us(result: Result) -> float:
    """Return the server's CPU time per message (or handshake), in microseconds."""
    messages = (
        result.get("msgs") or result.get("delivered") or result.get("handshakes") or result.get("sent") or 0
    )
    spent = result.get("server_user_s", 0.0) + result.get("server_sys_s", 0.0)
    return 1e6 * spent / messages if messages else 0.0


def row(scenario: str, rounds: list[Result]) -> str:
    """Return the cells behind the ratio: medians of what else is worth knowing."""
    if "memory" in scenario:
        base = statistics.median(r.get("pss_before", 0) for r in rounds) / 2**20
        idle = statistics.median(r.get("idle_cpu", 0.0) for r in rounds)
        return f"{base:.1f} | {100 * idle:.2f}"
    lat = [r.get("lat_us") or r.get("hs_us") or {} for r in rounds]
    p50, p99 = (statistics.median(x.get(p, 0.0) for x in lat) for p in ("p50", "p99"))
    return f"{p50:,.0f} | {p99:,.0f} | {statistics.median(map(server_us, rounds)):.1f}"


def report(results: list[Result]) -> str:
    """Return one Markdown table a scenario: medians, and the ratio to the floor of the same run."""
    table: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        table.setdefault(result["scenario"], {}).setdefault(result["server"], []).append(result)
    lines = []
    for scenario, by_server in table.items():
        good = {name: [r for r in rs if "error" not in r] for name, rs in by_server.items()}
        medians = {name: statistics.median(map(score, rs)) for name, rs in good.items() if rs}
        more = "MiB at 0 | idle CPU %" if "memory" in scenario else "p50 us | p99 us | server us/msg"
        lines += [f"\n### {scenario}\n", f"| server | {unit(scenario)} | to floor | {more} | rounds |"]
        lines += ["|---" + "|---:" * (more.count("|") + 4) + "|"]
        for name, rounds in good.items():
            if not rounds:
                lines.append(f"| {name} | failed: {by_server[name][0]['error']} |")
                continue
            base = medians.get(f"{FLOOR}-int" if name.endswith("-int") else FLOOR)  # the same masking
            ratio = f"{medians[name] / base:.2f}" if base else "-"
            bad = sum(bool(trouble(r)) for r in by_server[name])
            count = f"{len(rounds)}" + (f" ({bad} with trouble)" if bad else "")
            lines.append(f"| {name} | {medians[name]:,.0f} | {ratio} | {row(scenario, rounds)} | {count} |")
    return "\n".join(lines)


# --- the run ------------------------------------------------------------------------------------------------


def build() -> None:
    """Compile the load generator and the C floor where they are older than their source."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("bench: no C compiler (cc, gcc or $CC)")
    BUILD.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "wsload.c", HERE / "servers/floor.c"):
        target = BUILD / source.stem
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.run([compiler, "-O2", "-w", "-o", target, source, "-lm"], check=True)


def enter_namespace() -> None:
    """Start again in a network namespace of its own, if that is permitted; else say so and go on."""
    if IN_NAMESPACE in os.environ:
        return
    tools = all(shutil.which(tool) for tool in ("unshare", "ip", "bash"))
    allowed = (
        tools and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    )
    if not allowed:
        print("bench: no network namespace (needs root, unshare and ip): the machine's own network, with")
        print(
            "bench: its backlog and port limits; runs of many connections may fail, and figures vary more",
            flush=True,
        )
        return
    os.environ[IN_NAMESPACE] = "1"
    os.execvp(
        "bash", ["bash", str(HERE / "ns.sh"), sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]
    )


def options() -> argparse.Namespace:
    """Parse the command line; `--quick` changes the defaults."""
    quick = "--quick" in sys.argv
    scenarios = (
        "echo,pipe,upgrade,trickle,memory" if quick else "echo,pipe,upgrade,trickle,fanout,memory,memhot"
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="short: few servers, short loads, fewer connections"
    )
    parser.add_argument("--list", action="store_true", help="list servers and scenarios")
    parser.add_argument("--servers", default=QUICK_SERVERS if quick else DEFAULT_SERVERS, help="comma list")
    parser.add_argument("--scenarios", default=scenarios, help="comma list")
    parser.add_argument("--rounds", type=int, default=1 if quick else 7, help="rounds that count")
    parser.add_argument(
        "--discard", type=int, default=0 if quick else 1, help="rounds before them that do not"
    )
    parser.add_argument("--secs", type=float, default=0.7 if quick else 1.5, help="length of a load")
    parser.add_argument("--warm", type=float, default=0.2 if quick else 0.5, help="warm-up of a load")
    parser.add_argument(
        "--connections", type=int, default=3000 if quick else 15_000, help="of memory and trickle"
    )
    parser.add_argument("--hold", type=float, default=2 if quick else 10, help="seconds of silence in memory")
    parser.add_argument("--budget", type=float, default=3600, help="stop after so many seconds")
    parser.add_argument("--out", type=Path, help="append every result as a JSON line")
    return parser.parse_args()


def run(o: argparse.Namespace) -> list[Result]:
    """Run all rounds and return the results that count."""
    names, scenarios = o.servers.split(","), o.scenarios.split(",")
    results: list[Result] = []
    start, port = time.monotonic(), 24_000
    for turn in range(-o.discard, o.rounds):
        for name in names:
            # Memory starts from a fresh process, fan-out needs the other mode, the rest shares one server.
            calm = [s for s in scenarios if s in ("echo", "pipe", "upgrade", "trickle")]
            groups = [("echo", calm)] + [("echo", [s]) for s in scenarios if s.startswith("mem")]
            groups += [("bcast", ["fanout"])] if "fanout" in scenarios else []
            for mode, group in groups:
                if not group or time.monotonic() - start > o.budget:
                    continue
                port += 1
                found: list[tuple[str, Result]] = []
                try:
                    with running(name, mode, port) as server:
                        for scenario in group:
                            found += SCENARIOS[scenario](server, o)
                except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                    found.append((group[0], {"error": f"{type(error).__name__}: {error}"}))
                for scenario, result in found:
                    result.update(scenario=scenario, server=name, round=turn)
                    note = f"  {trouble(result)}" if trouble(result) else ""
                    when = time.monotonic() - start
                    what = f"{name:26} {scenario:30} {score(result):12,.0f}{note}"
                    print(f"{when:7.1f} s  round {turn:2}  {what}", flush=True)
                    if o.out:
                        with o.out.open("a") as out:
                            out.write(json.dumps(result) + "\n")
                    if turn >= 0:
                        results.append(result)
    return results


def main() -> int:
    """Run the benchmark; exit status 1 if any load of trionet had trouble."""
    o = options()
    if o.list:
        print("servers:  ", " ".join(SERVERS), "\nscenarios:", " ".join(SCENARIOS))
        return 0
    unknown = (set(o.servers.split(",")) - set(SERVERS)) | (set(o.scenarios.split(",")) - set(SCENARIOS))
    if unknown:
        sys.exit(f"bench: unknown: {', '.join(sorted(unknown))} (--list)")
    if o.out:
        o.out = o.out.resolve()
    enter_namespace()
    build()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    o.connections = min(o.connections, hard - 500, 19_900)  # what wsload opens in one process
    results = run(o)
    print(report(results))
    return int(any(trouble(r) for r in results if r["server"].startswith("trionet")))


if __name__ == "__main__":
    sys.exit(main())
