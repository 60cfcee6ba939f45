#!/usr/bin/env python3
"""Run the Autobahn fuzzing client against examples/echo.py, or any echo server; all must be strict.

    autobahn.py [--url ws://127.0.0.1:9001/] [--cases 1.*,5.3] [--count 100] [--runner wstest|kosoku] [--keep FOLDER]

Sections 12 and 13 are about compression, and take most of the time: each of their 216 cases echoes `--count` messages,
1000 in the suite as it is. The server runs with `--compression` for them, and without it for the others;
`--takeover` has it keep its windows.

Standard library only; a runner is installed from PyPI, pinned, into `.nox/autobahn` (AUTOBAHN_CACHE):

wstest  the original, autobahntestsuite 25.10.1. Python 2.7 only (AUTOBAHN_PYTHON2, PATH or pyenv).
kosoku  the same cases translated to Python 3; taken where there is no Python 2.7.

Exit status: 0 every case OK or informational, 1 some case FAILED or NON-STRICT, 2 the check could not run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("AUTOBAHN_CACHE") or ROOT / ".nox" / "autobahn")

WSTEST_PINS = [
    "autobahntestsuite==25.10.1",
    "autobahn==0.10.9",
    "txaio==2.1.0",
    "Twisted==19.10.0",
    "zope.interface==4.6.0",
    "constantly==15.1.0",
    "incremental==16.10.1",
    "Automat==22.10.0",
    "hyperlink==21.0.0",
    "idna==2.10",
    "typing==3.10.0.0",
    "attrs==21.4.0",
    "PyHamcrest==1.10.1",
    "six==1.16.0",
    "Jinja2==2.11.3",
    "MarkupSafe==1.1.1",
    "Werkzeug==1.0.1",
    "klein==17.10.0",
    "pyOpenSSL==19.1.0",
    "cryptography==3.3.2",
    "cffi==1.15.1",
    "pycparser==2.21",
    "enum34==1.1.10",
    "ipaddress==1.0.23",
    "service-identity==18.1.0",
    "pyasn1==0.5.1",
    "pyasn1-modules==0.3.0",
    "unittest2==1.1.0",
    "traceback2==1.4.0",
    "linecache2==1.0.0",
    "argparse==1.4.0",
    "ujson==2.0.3",
    "setuptools==44.0.0",
]
WSTEST_SPEEDUPS = ["wsaccel==0.6.6"]  # C; needs a compiler, and only saves time
# The last virtualenv that makes environments for Python 2.7.
BOOT_PINS = ["virtualenv==20.21.1", "distlib==0.3.9", "filelock==3.16.1", "platformdirs==3.11.0"]
KOSOKU_PINS = ["kosoku==0.1.0"]

# How many cases each group of autobahntestsuite 25.10.1 has.
GROUPS = {
    "1.1": 8, "1.2": 8, "2": 11, "3": 7, "4.1": 5, "4.2": 5, "5": 20,
    "6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11, "6.7": 4, "6.8": 2, "6.9": 4, "6.10": 3,
    "6.11": 5, "6.12": 8, "6.13": 5, "6.14": 10, "6.15": 1, "6.16": 3, "6.17": 5, "6.18": 5, "6.19": 5,
    "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7,
    "7.1": 6, "7.3": 6, "7.5": 1, "7.7": 13, "7.9": 9, "7.13": 2,
    "9.1": 6, "9.2": 6, "9.3": 9, "9.4": 9, "9.5": 6, "9.6": 6, "9.7": 6, "9.8": 6, "10.1": 1,
    "12.1": 18, "12.2": 18, "12.3": 18, "12.4": 18, "12.5": 18,
    "13.1": 18, "13.2": 18, "13.3": 18, "13.4": 18, "13.5": 18, "13.6": 18, "13.7": 18,
}  # fmt: skip
CASES = [f"{group}.{number}" for group, count in GROUPS.items() for number in range(1, count + 1)]
SECTIONS = {
    "1": "Framing",
    "2": "Pings/Pongs",
    "3": "Reserved Bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8 Handling",
    "7": "Close Handling",
    "9": "Limits/Performance",
    "10": "Misc",
    "12": "Compression",
    "13": "Its parameters",
}

# The programs run inside the runner's own environment and write one JSON line a case.
WSTEST = r"""
import json, sys
import autobahntestsuite
from autobahntestsuite import fuzzing
from twisted.internet import reactor
spec = json.load(open(sys.argv[1]))
out = open(spec["results"], "a")
for case in fuzzing.Cases:
    if case.__name__.startswith(("Case12_", "Case13_")):
        case.COUNT = min(case.COUNT, spec["count"])
KEYS = ("id", "behavior", "behaviorClose", "duration", "remoteCloseCode", "result", "resultClose")
def log(self, case):
    out.write(json.dumps(dict((key, case[key]) for key in KEYS)) + "\n")
    out.flush()
fuzzing.FuzzingFactory.logCase = log
fuzzing.FuzzingFactory.createReports = lambda *a, **k: None
"""
WSTEST_CHILD = f"{WSTEST}fuzzing.startClient(spec)\nreactor.run()\n"
KOSOKU_CHILD = r"""
import asyncio, json, os, sys
import kosoku
from kosoku import _caseindex
spec = json.load(open(sys.argv[1]))
_caseindex.initialize_shims()
import case12_x_x
for case in case12_x_x.Case12_X_X + case12_x_x.Case13_X_X:
    case.COUNT = min(case.COUNT, spec["count"])
async def main():
    with open(spec["results"], "a") as out:
        for case in spec["cases"]:
            try:
                results = await kosoku.run_fuzzingclient(spec["servers"][0]["url"], [case])
            except kosoku.FailureError as failure:
                results = failure.results
            for r in results:
                out.write(json.dumps(dict(id=r.case_id, behavior=r.behavior.value, duration=r.duration,
                    behaviorClose=r.behavior_close.value, remoteCloseCode=r.remote_close_code,
                    result=r.result, resultClose=r.result_close)) + "\n")
            out.flush()
asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # kosoku 0.1.0 now and then aborts while the interpreter shuts down
"""

Result = dict[str, Any]


def stop(message: str) -> NoReturn:
    """End with exit status 2: the check could not run."""
    print(f"autobahn: NOT RUN ({message})")
    sys.exit(2)


# --- the runner ---------------------------------------------------------------------------------------------


def quietly(log: Path, *command: object) -> bool:
    """Run an installation step and return whether it worked."""
    with log.open("a") as out:
        print("$", *command, file=out, flush=True)
        argv = [str(part) for part in command]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=900, check=False
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            print(repr(error), file=out)
            return False
    return done.returncode == 0


def python2() -> str | None:
    """Return a Python 2.7 that works."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    candidates = [os.environ.get("AUTOBAHN_PYTHON2"), shutil.which("python2.7"), shutil.which("python2")]
    candidates += [str(path) for path in sorted(pyenv.glob("2.7*/bin/python2.7"), reverse=True)]
    for candidate in filter(None, candidates):
        ask = [candidate, "-c", "import sys, zlib; print(sys.version_info[:2])"]
        with contextlib.suppress(OSError):
            if b"(2, 7)" in subprocess.run(ask, capture_output=True, check=False).stdout:
                return candidate
    return None


def install(runner: str) -> Path | None:
    """Return the Python of an environment in which the runner is ready, or None."""
    pins = [*WSTEST_PINS, *WSTEST_SPEEDUPS] if runner == "wstest" else KOSOKU_PINS
    home, log = CACHE / runner, CACHE / f"{runner}-install.log"
    python, stamp = home / "bin" / "python", home / ".ready"
    wanted = " ".join([sys.version.split()[0], *sorted(pins)])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(home, ignore_errors=True)
    log.write_text("")
    pip = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
    start = time.monotonic()
    if runner == "wstest":
        old = python2()
        if old is None:
            print("autobahn: no Python 2.7 here (AUTOBAHN_PYTHON2), so not the original runner")
            return None
        print(f"autobahn: installing wstest with {old}", flush=True)
        boot = CACHE / "boot"
        make = ("-m", "virtualenv", "-q", "-p", old, "--no-download", "--no-periodic-update", home)
        ready = (
            quietly(log, sys.executable, "-m", "venv", "--clear", boot)
            and quietly(log, boot / "bin" / "python", *pip, *BOOT_PINS)
            and quietly(log, boot / "bin" / "python", *make)
            and quietly(log, python, *pip, "--no-deps", *WSTEST_PINS)
        )
        if ready and not quietly(log, python, *pip, "--no-deps", *WSTEST_SPEEDUPS):
            print("autobahn: wsaccel did not build; going on without it, slower")
        ready = ready and quietly(log, python, "-c", "from autobahntestsuite import fuzzing")
    else:
        print("autobahn: installing kosoku", flush=True)
        ready = (
            quietly(log, sys.executable, "-m", "venv", home)
            and quietly(log, python, *pip, *KOSOKU_PINS)
            and quietly(log, python, "-c", "import kosoku")
        )
    if not ready:
        print(f"autobahn: {runner} could not be installed, see {log}")
        return None
    print(f"autobahn: installed in {time.monotonic() - start:.0f} s")
    stamp.write_text(wanted)
    return python


# --- the server ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def echo_server(*options: str) -> Iterator[str]:
    """Run the checkout's echo example on a free port for the length of a block."""
    command = [sys.executable, "-u", "examples/echo.py", "--host", "127.0.0.1", "--port", "0"]
    command += ["--max-message", str(2 * 16_777_216), *options]  # section 9 sends 16 MiB
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("listening on "):
                    yield line.split()[2]
                    break
            else:
                stop(f"examples/echo.py ended with {process.wait()} before it listened")
            if process.poll() is not None:
                print(f"autobahn: the server ended by itself with {process.returncode}")
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def listens(url: str) -> bool:
    """Return whether the server still accepts connections."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port or 80), 5).close()
    except OSError:
        return False
    return True


# --- the cases ----------------------------------------------------------------------------------------------


def chosen(patterns: str) -> list[str]:
    """Return the cases that a comma list of ids, prefixes and `*` patterns names."""
    found: set[str] = set()
    for pattern in filter(None, patterns.split(",")):
        exact = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        hits = [case for case in CASES if exact.fullmatch(case) or case.startswith(f"{pattern}.")]
        if not hits:
            stop(f"no case matches {pattern!r}")
        found.update(hits)
    return [case for case in CASES if case in found]


def no_result(case: str, why: str) -> Result:
    """Return what stands for a case that has no result."""
    blank = {"duration": 0, "remoteCloseCode": None, "resultClose": ""}
    return {"id": case, "behavior": "FAILED", "behaviorClose": "FAILED", "result": why, **blank}


def run_cases(
    python: Path, runner: str, url: str, cases: list[str], count: int, limit: float, out: Path
) -> list[Result]:
    """Run the cases; a runner that gives up at one is started again behind it."""
    child, lines = out / "child.py", out / "results.jsonl"
    child.write_text(WSTEST_CHILD if runner == "wstest" else KOSOKU_CHILD)
    lines.write_text("")
    env = dict(os.environ, PYTHONWARNINGS="ignore")
    env.pop("PYTHONPATH", None)
    deadline, todo = time.monotonic() + limit, list(cases)
    results: dict[str, Result] = {}
    why = "not run"
    while todo:
        spec = {"outdir": str(out), "servers": [{"agent": "server", "url": url}], "cases": todo}
        spec |= {"exclude-cases": [], "exclude-agent-cases": {}, "results": str(lines), "count": count}
        (out / "spec.json").write_text(json.dumps(spec))
        with (out / "runner.log").open("a") as log:
            process = subprocess.Popen(
                [python, child, out / "spec.json"],
                cwd=out,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                why = f"time limit of {limit:.0f} s reached"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        results.update((result["id"], result) for result in map(json.loads, lines.read_text().splitlines()))
        todo = [case for case in todo if case not in results]
        if not todo or why.startswith("time limit"):
            break
        if not listens(url):
            why = f"the server no longer accepts connections, at the latest after case {todo[0]}"
            break
        gave_up = todo.pop(0)
        results[gave_up] = no_result(gave_up, "the runner gave up here")
    return [results.get(case) or no_result(case, why) for case in cases]


def verdict(result: Result) -> str:
    """Return OK, INFORMATIONAL, NON-STRICT or FAILED, the worse of behaviour and closing behaviour."""
    behaviour, closing = result["behavior"], result["behaviorClose"]
    if behaviour not in ("OK", "NON-STRICT", "INFORMATIONAL"):
        return "FAILED"
    if closing in ("FAILED", "UNCLEAN", "WRONG CODE"):
        return "FAILED"
    if behaviour == "OK" and closing == "FAILED BY CLIENT":  # the server should drop TCP first
        return "NON-STRICT"
    return "FAILED" if behaviour == "UNIMPLEMENTED" else behaviour  # of 12 and 13: it was not negotiated


def report(results: list[Result]) -> int:
    """Print a row a section, every case that is not strict, and the totals; return the exit status."""
    kinds = ["OK", "INFORMATIONAL", "NON-STRICT", "FAILED"]
    table: dict[str, collections.Counter[str]] = {}
    for result in results:
        table.setdefault(result["id"].split(".")[0], collections.Counter())[verdict(result)] += 1
    print(f"{'section':24}" + "".join(f"{kind:>15}" for kind in kinds))
    for section, counts in table.items():
        print(f"{section:>3} {SECTIONS[section]:20}" + "".join(f"{counts[kind]:15}" for kind in kinds))
    bad = [result for result in results if verdict(result) in ("FAILED", "NON-STRICT")]
    for result in bad:
        print(
            f"{verdict(result)} {result['id']}: {result['behavior']} ({result['result']}); closing "
            f"{result['behaviorClose']} ({result['resultClose']}; code {result['remoteCloseCode']})"
        )
    total = sum(table.values(), collections.Counter())
    print("autobahn: " + ", ".join(f"{kind} {total[kind]}" for kind in kinds) + f" of {len(results)}")
    print(f"{len(results) - len(bad)} passed, {len(bad)} failed")
    return int(bool(bad))


def main() -> int:
    """Install a runner, start the server, run the cases, report."""
    parser = argparse.ArgumentParser(description="Autobahn fuzzing client against the echo example")
    parser.add_argument("--url", help="an echo server that runs already (default: start examples/echo.py)")
    parser.add_argument("--cases", default=",".join(SECTIONS), help="comma list of ids, sections, patterns")
    parser.add_argument("--runner", choices=["wstest", "kosoku"], help="default: wstest if it can be had")
    parser.add_argument("--count", type=int, default=1000, help="messages in a case of 12 and 13")
    parser.add_argument("--takeover", action="store_true", help="12 and 13 with context takeover")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds for the cases")
    parser.add_argument("--keep", type=Path, help="keep logs and results.jsonl in this folder")
    parser.add_argument("--install-only", action="store_true", help="install the runner and stop")
    o = parser.parse_args()
    cases = chosen(o.cases)
    for runner in [o.runner] if o.runner else ["wstest", "kosoku"]:
        if python := install(runner):
            break
    else:
        stop("no runner could be installed")
    if o.install_only:
        return 0
    with contextlib.ExitStack() as stack:
        out = o.keep.resolve() if o.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        compressed = [case for case in cases if case.startswith(("12.", "13."))]
        parts = [(cases, o.url)]
        if not o.url:
            option = ("--compression", *(["takeover"] if o.takeover else ["on"]))
            plain = [case for case in cases if case not in compressed]
            parts = [
                (some, stack.enter_context(echo_server(*options)))
                for some, options in [(plain, ()), (compressed, option)]
                if some
            ]
        start = time.monotonic()
        results = []
        for some, url in parts:
            print(f"autobahn: {runner}, {len(some)} cases against {url}", flush=True)
            left = o.time_limit - (time.monotonic() - start)
            results += run_cases(python, runner, url, some, o.count, left, out)
        print(f"autobahn: {time.monotonic() - start:.0f} s")
        return report(results)


if __name__ == "__main__":
    sys.exit(main())
