#!/usr/bin/env python3
"""Run trionet's client against the Autobahn fuzzing server (the original, wstest); all must be strict.

    autobahn_client.py [--cases 1.*,5.3] [--count 100] [--keep FOLDER]

Needs trionet and what `autobahn.py` needs for wstest: a Python 2.7. Sections 12 and 13 run with compression offered.
Exit status: 0 every case OK or informational, 1 some case FAILED or NON-STRICT, 2 the check could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import autobahn
import trio

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import trionet  # noqa: E402 - the checkout's

SERVER_CHILD = (
    autobahn.WSTEST
    + r"""
def listen(factory, context):
    port = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
    factory.port = factory.externalPort = port
    open(spec["port"], "w").write("%d\n" % port)
fuzzing.listenWS = listen
fuzzing.startServer(spec, None)
reactor.run()
"""
)

ANY = trionet.Deflate(
    server_no_context_takeover=False,
    client_no_context_takeover=False,
    server_max_window_bits=15,
    client_max_window_bits=15,
    threshold=0,
)


async def run_case(client: trionet.WebSocketClient, url: str, *, compressed: bool) -> None:
    """Echo until the server closes."""
    try:
        async with client.connect(url, compression=ANY if compressed else False) as ws:
            async for message in ws:
                await ws.send(message)
    except trionet.ConnectionClosed:
        pass


async def run_cases(port: int, cases: list[str], limit: float) -> None:
    """Connect once for each case; the server knows the cases by their place in its list."""
    with trio.move_on_after(limit):
        async with trionet.open_client(max_message=2**25, ping_interval=None) as client:
            for number, case in enumerate(cases, 1):
                url = f"ws://127.0.0.1:{port}/runCase?case={number}&agent=trionet"
                with trio.move_on_after(120):
                    try:
                        await run_case(client, url, compressed=case.startswith(("12.", "13.")))
                    except (OSError, trionet.TrionetError) as error:
                        print(f"{case}: {error!r}")


def main() -> int:
    """Install wstest, start its server, run the cases, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(autobahn.SECTIONS), help="comma list of ids, patterns")
    parser.add_argument("--count", type=int, default=1000, help="messages in a case of 12 and 13")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds for the cases")
    parser.add_argument("--keep", type=Path, help="keep logs and results.jsonl in this folder")
    o = parser.parse_args()
    cases = autobahn.chosen(o.cases)
    python = autobahn.install("wstest")
    if python is None:
        autobahn.stop("wstest could not be installed")
    with tempfile.TemporaryDirectory() as temporary:
        out = (o.keep or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        child, lines = out / "server.py", out / "results.jsonl"
        child.write_text(SERVER_CHILD)
        lines.write_text("")
        place = out / "port"
        place.unlink(missing_ok=True)
        spec = {"url": "ws://127.0.0.1:9001", "outdir": str(out), "cases": cases, "exclude-cases": []}
        spec |= {"exclude-agent-cases": {}, "results": str(lines), "count": o.count, "port": str(place)}
        (out / "spec.json").write_text(json.dumps(spec))
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with (out / "server.log").open("w") as log:
            process = subprocess.Popen(
                [python, "-u", child, out / "spec.json"],
                cwd=out,
                env=env | {"PYTHONWARNINGS": "ignore"},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                begin = time.monotonic()
                while not (place.exists() and place.read_text().endswith("\n")):
                    if process.poll() is not None or time.monotonic() - begin > 60:
                        autobahn.stop("the fuzzing server did not start")
                    time.sleep(0.05)
                print(f"autobahn: {len(cases)} cases against trionet's client", flush=True)
                start = time.monotonic()
                trio.run(run_cases, int(place.read_text()), cases, o.time_limit)
                print(f"autobahn: {time.monotonic() - start:.0f} s")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        found = {result["id"]: result for result in map(json.loads, lines.read_text().splitlines())}
    return autobahn.report([found.get(case) or autobahn.no_result(case, "not run") for case in cases])


if __name__ == "__main__":
    sys.exit(main())
