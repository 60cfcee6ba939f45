"""Hold very many WebSocket connections on this machine, and measure what they cost while they are silent.

``trionet serve`` with as many workers as the limit on open files asks for, `trionet load` with as many processes: a
connection is two sockets here, both on this machine. It says beforehand what the machine lacks, then:

ramp       all connect; seconds, failures, latency of a connect
quiet      CPU of the server while nothing happens, before the first keepalive
memory     PSS of all processes of the server, what the kernel's slab caches have grown by
keepalive  the same while each connection gets its Ping and sends its Pong, every `--ping-interval`
broadcast  one text to everybody through the control socket, three times: until the last byte is written, and heard
trickle    a few messages a second over connections chosen at random: latency

It ends by itself, within `--deadline`, and ends what it started.

nox -s million -- --connections 1000000 --json million.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import bench

HERE = Path(__file__).resolve().parent
RESERVE = 128  # descriptors of a worker that are no connections


def meminfo() -> dict[str, int]:
    """Bytes by name."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}


class Run:
    """One measurement; `figures` is what comes of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.figures: dict[str, Any] = {
            "connections": args.connections,
            "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} processors, "
            f"{meminfo()['MemTotal'] / 2**30:.0f} GiB, RLIMIT_NOFILE {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}",
            "python": platform.python_version(),
            "ping_interval": args.ping_interval,
        }
        self.ends_at = time.monotonic() + args.deadline
        self.server: subprocess.Popen[str] | None = None
        self.load: subprocess.Popen[str] | None = None
        self.point: dict[str, Any] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="million-")

    def say(self, text: str) -> None:
        print(text, flush=True)

    # ------------------------------------------------------------------ parts

    def examine(self) -> bool:
        """What the machine lacks."""
        args = self.args
        workers = [
            "--workers",
            str(args.workers),
            "--local-clients",
            "--ping-interval",
            str(args.ping_interval),
        ]
        command = [
            sys.executable,
            "-m",
            "trionet",
            "doctor",
            "--connections",
            str(args.connections),
            *workers,
        ]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode not in {0, 1}:
            self.say(done.stderr)
            return False
        found = json.loads(done.stdout)
        self.figures["doctor"] = {"suffices": found["suffices"], "fits": found["fits"]}
        for finding in found["findings"]:
            if finding["verdict"] in {"fail", "warn"}:
                self.say(
                    f"  {finding['verdict']}: {finding['name']}: have {finding['have']}, need {finding['need']}"
                )
        if not found["suffices"]:
            self.say(f"this machine holds {found['fits']} connections; --anyway tries more")
        return bool(found["suffices"]) or bool(args.anyway)

    def start_server(self) -> None:
        args = self.args
        command = [sys.executable, "-m", "trionet", "serve", str(HERE / "servers" / "echo_app.py")]
        command += ["--port", str(args.port), "--workers", str(args.workers), "--log-level", "warning"]
        command += [
            "--admin",
            f"127.0.0.1:{args.port + 1}",
            "--debug",
            "--start-timeout",
            "300",
            "--worker-timeout",
            "none",
        ]
        # A hundred processes on two cores are late all the time: that is not what the watch is for. And deadlines of
        # minutes need no ticks of a quarter second.
        command += ["--stall-threshold", "none", "--timer-resolution", "1"]
        # As an installed package is: else each worker compiles the application in its own memory, 0.3 MB.
        sources = [str(HERE / "servers"), str(HERE.parents[1] / "trionet")]
        subprocess.run([sys.executable, "-m", "compileall", "-q", *sources], check=False, timeout=120)
        began = time.monotonic()
        environment = {**os.environ, "BENCH_PING": str(args.ping_interval)}
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, text=True)
        while True:
            self.check()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{args.port + 1}/readyz", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        self.figures["server_start_seconds"] = round(time.monotonic() - began, 1)
        time.sleep(3)
        self.pids = bench.family(self.server.pid)
        self.worker_pids = [int(row["pid"]) for row in self.workers()]
        self.figures["workers"] = args.workers
        self.figures["empty_pss"] = bench.pss(self.pids)
        self.say(
            f"{args.workers} workers ready in {self.figures['server_start_seconds']} s; "
            f"they take {self.figures['empty_pss'] / 2**20:.0f} MiB"
        )

    def start_load(self) -> None:
        args = self.args
        report = str(Path(self.folder.name, "load.json"))
        settle = args.ping_interval + args.hold + 120
        command = [
            sys.executable,
            "-m",
            "trionet.client.load",
            f"ws://127.0.0.1:{args.port}/",
            "--scenario",
            "trickle",
        ]
        command += ["--connections", str(args.connections), "--connecting", str(args.connecting)]
        command += [
            "--connect-timeout",
            "120",
            "--settle",
            str(settle),
            "--rate",
            str(args.rate),
            "--duration",
            str(args.trickle),
        ]
        command += [
            "--deadline",
            str(max(1, int(self.ends_at - time.monotonic() - 30))),
            "--json-lines",
            "--report",
            report,
        ]
        self.report = Path(report)
        self.load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self.load is not None
        assert self.load.stdout is not None
        for line in self.load.stdout:
            self.point = json.loads(line)

    def ramp(self) -> None:
        """Wait until all are connected."""
        began = last = time.monotonic()
        before = meminfo()
        while self.point.get("phase", "ramp") in {"ramp", "start"}:
            self.check()
            time.sleep(0.5)
            if time.monotonic() - last > 10:
                last = time.monotonic()
                self.say(
                    f"  {self.point.get('open', 0):,} open, {self.point.get('connects_s', 0):,.0f} a second"
                )
        self.settled = time.monotonic()
        self.before = before
        self.say(f"{self.point['open']:,} connections after {self.settled - began:.0f} s")
        self.figures["ramp_seconds_seen"] = round(self.settled - began, 1)

    def idle(self, name: str, seconds: float) -> None:
        """CPU of the server over some seconds."""
        began, used = time.monotonic(), bench.cpu_seconds(self.pids)
        until = began + seconds
        while time.monotonic() < until:
            self.check()
            time.sleep(1)
        percent = (bench.cpu_seconds(self.pids) - used) / (time.monotonic() - began) * 100
        self.figures[f"cpu_{name}_percent_of_a_core"] = round(percent, 1)
        self.say(f"CPU of the server, {name}: {percent:.1f} % of a core")

    def memory(self, name: str) -> None:
        """User memory of the server, kernel memory of both sides."""
        total, workers, now, count = (
            bench.pss(self.pids),
            bench.pss(self.worker_pids),
            meminfo(),
            self.args.connections,
        )
        slab = now["Slab"] - self.before["Slab"]
        self.figures[f"memory_{name}"] = {
            "workers_pss": workers,
            "server_pss": total,
            "user_bytes_per_connection_workers": round(workers / count, 1),
            "user_bytes_per_connection_all_processes": round(total / count, 1),
            "user_bytes_per_connection_without_empty_processes": round(
                (total - self.figures["empty_pss"]) / count, 1
            ),
            "kernel_slab_bytes_per_pair": round(slab / count),
            "available": now["MemAvailable"],
        }
        self.say(
            f"memory, {name}: {workers / 2**20:,.0f} MiB in the workers, {workers / count:.0f} B a connection; "
            f"{total / 2**20:,.0f} MiB in all processes of the server, {total / count:.0f} B; "
            f"kernel {slab / count:,.0f} B a pair"
        )

    def workers(self) -> list[dict[str, Any]]:
        """Rows of /workers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.args.port + 1}/workers", timeout=30) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["workers"]
        return rows

    def balance(self) -> None:
        """How evenly the workers are filled."""
        counts = [row.get("connections", 0) for row in self.workers()]
        self.figures["connections_a_worker"] = {
            "min": min(counts),
            "median": statistics.median(counts),
            "max": max(counts),
            "sum": sum(counts),
        }
        self.say(f"connections of a worker: {min(counts):,} to {max(counts):,}, in all {sum(counts):,}")

    def broadcast(self) -> None:
        """Tell everybody something, and when."""
        body = json.dumps({"text": f"{time.monotonic_ns():016x} a maintenance notice to everybody"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.args.port + 1}/debug/broadcast",
            body,
            {"Content-Type": "application/json", "X-Trionet": "1"},
        )
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=180) as answer:
            document = json.load(answer)
        seconds = time.monotonic() - began
        sent = sum(each["value"]["sent"] for each in document["answers"])
        figures = {
            "sent": sent,
            "written_seconds": round(seconds, 2),
            "silent_workers": len(document["missing"]),
        }
        self.figures.setdefault("broadcasts", []).append(figures)
        self.say(f"broadcast: written to {sent:,} in {seconds:.2f} s")

    def trickle(self) -> None:
        """Wait for the messages, and the end of the load."""
        assert self.load is not None
        while self.point.get("phase") not in {"measure", "close"} and self.load.poll() is None:
            self.check()
            time.sleep(1)
        self.say("trickle")
        while self.load.poll() is None:
            if time.monotonic() > self.ends_at:
                raise TimeoutError("the deadline has come")
            time.sleep(1)
        result = json.loads(self.report.read_text())
        totals = result["totals"]
        keep = (
            "connected",
            "failed",
            "lost",
            "sent",
            "received",
            "wrong",
            "unanswered",
            "missed",
            "peak",
            "connect_rate",
        )
        self.figures["load"] = {name: totals.get(name) for name in keep}
        self.figures["load"]["outcome"] = result["outcome"]
        self.figures["load"]["warnings"] = result["warnings"]
        self.figures["load"]["errors"] = result["errors"]
        self.figures["load"]["processes"] = result["environment"]["processes"]
        self.figures["load"]["pss_bytes"] = result["environment"]["pss_bytes"]
        ramp = next(phase for phase in result["phases"] if phase["name"] == "ramp")
        self.figures["ramp_seconds"] = round(ramp["ended"] - ramp["began"], 1)
        for name, histogram in result["histograms"].items():
            if name in {"connect", "message", "delivery"}:
                percentiles = histogram["percentiles"]
                shown = {
                    f"p{key}": percentiles[key] / 1000
                    for key in ("50", "90", "99", "99.9")
                    if key in percentiles
                }
                self.figures[f"{name}_ms"] = {
                    "count": histogram["count"],
                    **shown,
                    "max": histogram["maximum"] / 1000,
                }

    def check(self) -> None:
        """Stop when time or memory runs out, or a part has ended."""
        if time.monotonic() > self.ends_at:
            raise TimeoutError("the deadline has come")
        if meminfo()["MemAvailable"] < self.args.spare * 2**30:
            raise MemoryError(f"less than {self.args.spare} GiB available")
        for part in (self.server, self.load):
            if part is not None and part.poll() is not None:
                raise RuntimeError(f"{part.args[:4]} ended with {part.returncode}")  # type: ignore[index]

    def run(self) -> None:
        args = self.args
        self.start_server()
        self.start_load()
        self.ramp()
        time.sleep(5)
        self.balance()
        self.memory("before keepalive")
        if args.ping_interval >= 60:
            self.idle("quiet", min(args.hold, 30))
        keepalive = (
            self.settled + args.ping_interval - min(self.figures["ramp_seconds_seen"], args.ping_interval) / 2
        )
        while time.monotonic() < keepalive:
            self.check()
            time.sleep(1)
        self.idle("during keepalive", args.hold)
        while time.monotonic() < self.settled + args.ping_interval + 10:
            self.check()
            time.sleep(1)
        self.memory("after a round of keepalive")
        for _ in range(3):
            self.broadcast()
            time.sleep(12)
        self.trickle()

    def end(self) -> None:
        """End what was started."""
        for part in (self.load, self.server):
            if part is None or part.poll() is not None:
                continue
            part.send_signal(signal.SIGINT if part is self.load else signal.SIGTERM)
            try:
                part.wait(60)
            except subprocess.TimeoutExpired:
                for pid in reversed(bench.family(part.pid)):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                part.wait()
        self.folder.cleanup()


def workers_for(connections: int, room: int) -> int:
    """Workers, so that the fullest has room: the kernel spreads by a hash, which leaves a deviation of the root."""
    count = math.ceil(connections / room)
    while (mean := connections / count) + 4 * math.sqrt(mean) > room:
        count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, help="as many as descriptors ask for")
    parser.add_argument("--ping-interval", type=float, default=300.0, help="seconds between keepalives")
    parser.add_argument("--hold", type=float, default=60.0, help="seconds over which idle CPU is measured")
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second of the trickle")
    parser.add_argument("--trickle", type=float, default=30.0, help="seconds of it")
    parser.add_argument("--connecting", type=int, default=16, help="connects under way in each load process")
    parser.add_argument(
        "--deadline", type=float, default=1800.0, help="seconds after which it ends, whatever it does"
    )
    parser.add_argument("--spare", type=float, default=1.0, help="GiB of memory that must stay available")
    parser.add_argument("--port", type=int, default=8640)
    parser.add_argument("--anyway", action="store_true", help="try although the machine lacks something")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    bench.enter_namespace()  # its ports are its own: a million connections leave none to anybody else
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    if args.workers is None:
        args.workers = max(2, workers_for(args.connections, hard - RESERVE))
    run = Run(args)
    run.say(f"{args.connections:,} connections, {args.workers} workers; {run.figures['machine']}")
    if not run.examine():
        return 1
    status = 0
    try:
        run.run()
    except (TimeoutError, MemoryError, RuntimeError, OSError, KeyboardInterrupt) as error:
        run.say(f"ended early: {type(error).__name__}: {error}")
        run.figures["ended_early"] = str(error)
        status = 1
    finally:
        run.end()
        text = json.dumps(run.figures, indent=1)
        print(text)
        if args.json:
            Path(args.json).write_text(text + "\n")
    failures = run.figures.get("load", {})
    return status or int(bool(failures.get("failed") or failures.get("lost")))


if __name__ == "__main__":
    sys.exit(main())
