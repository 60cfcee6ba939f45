"""Starts the load processes, has them do the phases in step, joins what they say to a `Result`.

    ramp → settle → measure → close        (storm: ramp → settle → storm 1 → measure → storm 2 → … → close)

Every wait is bounded by the deadline of the plan. A process that dies is a warning, and the run has failed; the others
go on. The first Ctrl-C (or SIGTERM) ends the run with a report of what there is, the second ends it at once.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
import trio

from trionet.client.load import environment
from trionet.client.load.conclusion import conclude, given, without_secrets
from trionet.client.load.lines import Lines
from trionet.client.load.options import LoadOptions
from trionet.client.load.plan import Plan, make_plan
from trionet.client.load.result import Point, Result, empty
from trionet.client.load.series import Series

__all__ = ["Coordinator", "run_load"]

_START_WITHIN = 60.0  # seconds for the processes to be ready
_RESULT_WITHIN = 30.0  # seconds for them to say what they have


async def run_load(
    options: LoadOptions,
    *,
    command: list[str] | None = None,
    show: Callable[[Point, Result], None] | None = None,
) -> Result:
    """Run it. `show` is called each second.

    Raises `ConfigurationError` for what cannot be, `OSError` for a name that cannot be resolved.
    """
    options.check()
    target = options.target
    address = None
    if target.unix is None:
        found = await trio.to_thread.run_sync(environment.resolve, target.host, target.port)
        address = found
    options.check_reach(address)
    plan = make_plan(options, environment.look(), address)
    coordinator = Coordinator(options, plan, address, command or list(sys.argv), show)
    return await coordinator.run()


class Coordinator:
    """One run."""

    def __init__(
        self,
        options: LoadOptions,
        plan: Plan,
        address: str | None,
        command: list[str],
        show: Callable[[Point, Result], None] | None = None,
    ) -> None:
        self.options = options
        self.plan = plan
        self.result: Result = empty(str(options.target), options.scenario, without_secrets(command, options))
        self.result["options"] = given(options)
        self.result["environment"] = environment.describe(len(plan.shares))
        self.result["totals"]["connections"] = options.connections
        self._address = address
        self._show = show
        count = len(plan.shares)
        self._series = Series(count)
        self._lines: list[Lines] = []
        self._phase = "start"
        self._epoch = 0.0
        self._pid = 0
        self._heard: set[int] = set()  # who has done what was asked last
        self._changed = trio.Event()
        self._results: dict[int, dict[str, Any]] = {}
        self._busy: dict[int, list[float]] = {number: [] for number in range(count)}
        self._exits: dict[int, int] = {}
        self._ramped: dict[
            int, dict[str, Any]
        ] = {}  # what each had connected at the end of the ramp, and when
        self._work = trio.CancelScope()

    async def run(self) -> Result:
        """All of it."""
        process, ends = self._spawn()
        self._pid = process.pid
        try:
            with trio.CancelScope() as everything:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_signals, everything)
                    nursery.start_soon(self._watch_exits, process)
                    for number, end in enumerate(ends):
                        self._lines.append(Lines(end))
                        nursery.start_soon(self._listen, number)
                    await self._conduct()
                    nursery.cancel_scope.cancel()
        finally:
            for lines in self._lines:
                lines.close()
            with trio.CancelScope(shield=True):
                await self._reap(process)
        conclude(self.result, self.options, self._results, self._ramped, self._busy, self._epoch)
        return self.result

    # ------------------------------------------------------------- processes

    def _spawn(self) -> tuple[subprocess.Popen[bytes], list[socket.socket]]:
        """Start the process that forks the others; return it and our ends of their sockets."""
        pairs = [socket.socketpair() for _ in self.plan.shares]
        theirs = [their.fileno() for _, their in pairs]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "trionet.client.load.process", *map(str, theirs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=theirs,
        )
        for _, their in pairs:
            their.close()
        return process, [ours for ours, _ in pairs]

    async def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """The processes end when their sockets are closed; see to it."""
        with trio.move_on_after(5):
            while process.poll() is None:  # noqa: ASYNC110 - it has no event
                await trio.sleep(0.02)
        if process.poll() is None:
            process.kill()  # and what it forked has lost its sockets
            process.wait()
        assert process.stdout is not None
        process.stdout.close()

    async def _watch_exits(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        rest = b""
        while True:
            await trio.lowlevel.wait_readable(process.stdout)
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                self._exits[said["ended"]] = said["code"]

    async def _watch_signals(self, everything: trio.CancelScope) -> None:
        try:
            receiver = trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM)
            with receiver as signals:
                async for _ in signals:
                    if self._work.cancel_called:
                        everything.cancel()
                    self.result["outcome"] = "interrupted"
                    self._work.cancel()
        except RuntimeError:  # not in the main thread: the caller's to handle
            return

    # --------------------------------------------------------------- hearing

    async def _listen(self, number: int) -> None:
        while (said := await self._lines[number].hear()) is not None:
            if said["say"] == "tick":
                if self._phase == "measure":
                    self._busy[number].append(said["cpu"])
                self._points(self._series.add(number, said["second"], said, self._phase))
            elif said["say"] == "result":
                self._results[number] = said
                self._note(number)
            else:
                if said.get("do") == "ramp":
                    self._ramped[number] = said
                self._note(number)
        self._points(self._series.died(number, self._phase))
        if number not in self._results:
            await trio.sleep(0.1)  # its parent may know more
            code = self._exits.get(number)
            how = "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
            self._warn(
                f"load process {number} has died{how} during {self._phase}; its connections went with it"
            )
            self.result["outcome"] = "failed"
        self._note(number)

    def _note(self, number: int) -> None:
        self._heard.add(number)
        if self._heard >= self._series.alive:
            self._changed.set()

    def _points(self, points: Any) -> None:
        for point in points:
            self.result["series"].append(point)
            if self._show is not None:
                self._show(point, self.result)

    def _warn(self, text: str) -> None:
        self.result["warnings"].append(text)

    def _failed(self) -> None:
        if self.result["outcome"] == "passed":
            self.result["outcome"] = "failed"

    # ------------------------------------------------------------ conducting

    async def _conduct(self) -> None:
        with trio.move_on_after(self.plan.deadline) as bound, self._work:
            await self._start()
            await self._phases()
        if bound.cancelled_caught:
            self._warn(f"the run was ended by its deadline of {self.plan.deadline:.0f} s")
            self._failed()
        with trio.move_on_after(_RESULT_WITHIN):
            if len(self._results) < len(self._series.alive):
                self._heard.clear()
                self._heard.update(self._results)
                await self._ask({"do": "stop"})

    async def _start(self) -> None:
        for share, lines in zip(self.plan.shares, self._lines, strict=True):
            await lines.say(
                {
                    "options": attrs.asdict(self.options),
                    "share": attrs.asdict(share),
                    "processes": len(self.plan.shares),
                    "address": self._address,
                }
            )
        with trio.move_on_after(_START_WITHIN) as scope:
            await self._all()
        if scope.cancelled_caught:
            self._warn(f"only {len(self._heard)} load processes started within {_START_WITHIN:.0f} s")
            self._failed()
        self._epoch = time.monotonic()
        self.result["started"] = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")

    async def _phases(self) -> None:
        options = self.options
        await self._do("ramp")
        if options.settle:
            await self._do("settle", options.settle)
        if options.scenario == "storm":
            for number in range(1, options.storms + 1):
                await self._do("storm", options.duration, name=f"storm {number}")
                if number < options.storms:
                    await self._do("settle", max(1.0, options.settle), name="rest")
        else:
            await self._do("measure", options.duration)
        await self._do("close")

    async def _do(self, what: str, seconds: float = 0.0, name: str | None = None) -> None:
        """Have all processes do it, and wait for all."""
        if not self._series.alive:
            return
        self._phase = name or what
        began = time.monotonic()
        phase: Any = {"name": self._phase, "began": self._since(began), "ended": 0.0}
        self.result["phases"].append(phase)
        try:
            await self._ask({"do": what, "until": began + seconds, "epoch": self._epoch})
        finally:
            phase["ended"] = self._since(time.monotonic())
            if what in ("measure", "storm"):  # of the process that has forked the others
                self.result["environment"]["pss_bytes"] = environment.pss(self._pid)

    def _since(self, when: float) -> float:
        return round(max(0.0, when - self._epoch), 3)

    async def _ask(self, what: dict[str, Any]) -> None:
        self._heard.clear()
        if what["do"] in ("close", "stop"):
            self._heard.update(self._results)
        for number in sorted(self._series.alive):
            try:
                await self._lines[number].say(what)
            except trio.BrokenResourceError:
                self._heard.add(number)
        await self._all()

    async def _all(self) -> None:
        self._changed = trio.Event()
        if not self._heard >= self._series.alive:
            await self._changed.wait()
