"""What one load process does: it follows the coordinator's commands, and says each second what has happened.

command    meaning                                                 ends by
ramp       connect all                                             done
settle     nothing: wait                                           done
measure    the scenario's work, until the time that is given       done
storm      (of `storm`) cut the crowd, and have it connect again   done
close      end all connections                                     done, and the result
stop       break off whatever is done, and close at once           the result
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import trio

from trionet.client.client import open_client
from trionet.client.load.dialer import Dialer
from trionet.client.load.environment import pss
from trionet.client.load.lines import Lines
from trionet.client.load.links import LoadProtocol
from trionet.client.load.meter import Meter
from trionet.client.load.options import LoadOptions
from trionet.client.load.plan import Share
from trionet.client.load.scenarios import make_scenario
from trionet.client.load.scenarios.storm import Storm

__all__ = ["Worker"]

_CLOSE_WITHIN = 10.0  # seconds for the closing handshakes; what is left is cut
_CLOSE_AT_ONCE = 64


class Worker:
    """See above."""

    def __init__(
        self,
        options: LoadOptions,
        share: Share,
        *,
        processes: int,
        address: str | None,
        leave: Callable[[], object] = lambda: None,
    ) -> None:
        self.options = options
        self.share = share
        self.processes = processes
        self.meter = Meter()
        self.scenario = make_scenario(self)
        self.dialer: Dialer
        self.memory: int | None = None
        self._address = address
        self._leave = leave  # called when the result is said
        self._began: dict[str, float] | None = None  # counters at the begin of the measuring, and at its end
        self._ended: dict[str, float] | None = None

    async def run(self, lines: Lines) -> None:
        """Work until the result is said, or the coordinator is gone."""
        quick = self.options.scenario in ("idle", "trickle")
        async with (
            open_client(pool_size=4, resolution=0.5 if quick else 0.05) as client,
            trio.open_nursery() as nursery,
        ):
            self._client = client
            protocol = LoadProtocol(
                self.scenario,
                ping_interval=self.options.ping_interval,
                compression=self.options.compression,
                max_message=2**24,
            )
            self.dialer = Dialer(
                client.engine,
                protocol,
                self.meter,
                self.options,
                address=self._address,
                sources=self.share.sources,
                opened=self.scenario.opened,
            )
            await lines.say({"say": "ready"})
            nursery.start_soon(self._obey, lines, nursery.cancel_scope)

    # ---------------------------------------------------------------- saying

    async def _tell(self, lines: Lines, epoch: float) -> None:
        second = 0
        while True:
            second += 1
            await trio.sleep(max(0.0, epoch + second - time.monotonic()))
            await lines.say({"say": "tick", "second": second, **self.seen()})

    def seen(self) -> dict[str, Any]:
        """What has happened since the last time."""
        engine = self._client.engine
        lag, engine.lag_max = engine.lag_max, 0.0
        return {**self.meter.second(), "lag": int(lag * 1e6)}

    def measured(self) -> None:
        """The scenario says: what comes from now on does not count for rates."""
        self._ended = self._counters()

    def _counters(self) -> dict[str, float]:
        return {**self.meter.counters(), "seconds": time.monotonic()}

    # --------------------------------------------------------------- obeying

    async def _obey(self, lines: Lines, everything: trio.CancelScope) -> None:
        async with trio.open_nursery() as nursery:
            doing = trio.CancelScope()
            while (command := await lines.hear()) is not None:
                if command["do"] == "stop":
                    doing.cancel()
                    self.scenario.closing = True
                    await self._report(lines)
                    break
                if command["do"] == "ramp":
                    nursery.start_soon(self._tell, lines, command["epoch"])
                doing = trio.CancelScope()
                nursery.start_soon(self._do, command, doing, lines)
            # Told to stop, or the coordinator is gone: it closes its end when it has our result.
            nursery.cancel_scope.cancel()
        everything.cancel()

    async def _do(self, command: dict[str, Any], scope: trio.CancelScope, lines: Lines) -> None:
        with scope:
            await getattr(self, f"_{command['do']}")(command)
            if command["do"] == "close":
                await self._report(lines)
            else:
                dialer = self.dialer
                done = {"connected": self.meter.connected, "last_opened": dialer.last_opened}
                await lines.say({"say": "done", "do": command["do"], **done})

    async def _report(self, lines: Lines) -> None:
        last = self.seen()
        document = {"say": "result", "last": last, "pss": self.memory, **self.meter.result()}
        if self._began is not None:
            ended = self._ended or self._counters()
            document["window"] = {name: ended[name] - n for name, n in self._began.items()}
        await lines.say(document)
        self._leave()

    async def _ramp(self, command: dict[str, Any]) -> None:  # noqa: ARG002
        await self.scenario.ramp()
        if self.options.reconnect:
            self._client.engine.start_soon(self.dialer.keep_up)
        if isinstance(self.scenario, Storm):
            self._client.engine.start_soon(self.scenario.echo_for_ever)
        gc.collect()

    async def _settle(self, command: dict[str, Any]) -> None:
        await trio.sleep(max(0.0, command["until"] - time.monotonic()))

    async def _measure(self, command: dict[str, Any]) -> None:
        self._began = self._counters()
        await self.scenario.measure(command["until"])
        if self._ended is None:
            self.measured()
        self.memory = pss()

    async def _storm(self, command: dict[str, Any]) -> None:
        assert isinstance(self.scenario, Storm)
        with trio.move_on_after(max(0.0, command["until"] - time.monotonic())) as scope:
            await self.scenario.storm()
        self.memory = pss()
        if scope.cancelled_caught:
            self.meter.failure("not in again", "the storm was not over in its time")

    async def _close(self, command: dict[str, Any]) -> None:  # noqa: ARG002
        self.scenario.conclude()
        self.scenario.closing = True
        end = time.monotonic() + _CLOSE_WITHIN
        await self._end_each(self.options.abrupt, end)
        while self._client.engine.connections and time.monotonic() < end:  # noqa: ASYNC110 - a state of many parts
            await trio.sleep(0.02)
        await self._end_each(True, end + _CLOSE_WITHIN)
        # What is left now the kernel closes, when the process ends: much quicker than we.

    async def _end_each(self, abrupt: bool, end: float) -> None:
        """Close, or cut, what is connected; until the monotonic clock says `end`."""
        links: list[Any] = list(self._client.engine)
        for count, link in enumerate(links, 1):
            if abrupt or not link.is_open:
                link.reset()
            else:
                link.close_nowait()
            if count % _CLOSE_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
                if time.monotonic() > end:
                    return
