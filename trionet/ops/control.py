"""How a process is asked what it does: commands by name, answered by an `Agent` beside the server.

One process asks itself (`Local`). With several workers each of them connects to the admin process over a Unix socket
and is one member of its `Fleet`. Both sides speak JSON messages behind a length of four bytes:

    {"ask": 7, "command": "metrics", "arguments": {}}      answer this
    {"answer": 7, "value": …}   {"answer": 7, "error": "…"}
    {"tell": "gone", "arguments": {}}                      no answer

The peers are processes of ours. Still, nothing waits for one without a deadline, and a message has a bound: a worker
that hangs must not take the admin pages with it.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import attrs
import trio

from trionet.errors import ProtocolError, TrionetError
from trionet.server import Server
from trionet.wire.prefixed import PrefixedFormat

__all__ = ["Agent", "Asking", "ControlError", "Fleet", "Link", "Local", "Worker"]

log = logging.getLogger("trionet.ops")

MAX_MESSAGE = 64 * 2**20
SEND_TIMEOUT = 5.0
_CHUNK = 65536


class ControlError(TrionetError):
    """A command failed, or is not known, in the process that was asked; or that process has gone."""


class Agent:
    """Answers for one server. `commands`: functions of keyword arguments, plain or async, that return JSON values.

    `number`: of the worker, counted from 1. `generation`: how often it was started anew.
    """

    def __init__(self, server: Server, number: int = 1, generation: int = 1) -> None:
        self.server = server
        self.number = number
        self.generation = generation
        self.commands: dict[str, Callable[..., Any]] = {"ping": os.getpid}
        self.tell: Callable[..., Awaitable[None]] | None = None  # set while there is somebody to tell
        self.families: Any = None  # metrics of the application's own, see `Application`
        self.stalls: Any = None  # the stall watch, if there is one

    async def run(self, command: str, arguments: dict[str, Any]) -> Any:
        """Carry a command out. Raises `ControlError` if that fails; why is in the log, with the traceback."""
        function = self.commands.get(command)
        if function is None:
            raise ControlError(f"unknown command {command!r}")
        try:
            value = function(**arguments)
            return await value if inspect.isawaitable(value) else value
        except ControlError:
            raise
        except Exception as error:
            log.exception("command %s failed", command)
            raise ControlError(f"{command}: {type(error).__name__}: {error}") from error


@attrs.define(eq=False)
class Worker:
    """A process that can be asked."""

    pid: int
    number: int = 1
    generation: int = 1
    link: Any = None


class Asking(Protocol):
    """What `Fleet` and `Local` have in common. Workers are told apart by their process id."""

    workers: dict[int, Worker]

    async def ask(
        self, command: str, /, *, worker: int | None = None, timeout: float = 2.0, **arguments: Any
    ) -> dict[int, Any]:
        """Have every worker (or the one with this process id) carry `command` out; answers by process id.

        One that fails answers with a `ControlError`, as a value; one that does not answer within `timeout` is missing.
        """


class Local:
    """The process itself, asked without a socket."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.workers = {os.getpid(): Worker(os.getpid(), agent.number, agent.generation)}

    async def ask(
        self, command: str, /, *, worker: int | None = None, timeout: float = 2.0, **arguments: Any
    ) -> dict[int, Any]:
        """See `Asking`."""
        answers: dict[int, Any] = {}
        pid = os.getpid()
        if worker in {None, pid}:
            with trio.move_on_after(timeout):
                try:
                    answers[pid] = await self.agent.run(command, arguments)
                except ControlError as error:
                    answers[pid] = error
        return answers


class Link:
    """Messages both ways over a Trio stream. `serve` answers what the other side asks; `noted` hears what it tells."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        serve: Callable[[str, dict[str, Any]], Awaitable[Any]],
        noted: Callable[[str, dict[str, Any]], object] = lambda name, arguments: None,  # noqa: ARG005
    ) -> None:
        self._stream = stream
        self._serve = serve
        self._noted = noted
        self._format = PrefixedFormat(max_length=MAX_MESSAGE)
        self._sending = trio.Lock()
        self._waiting: dict[int, tuple[trio.Event, list[dict[str, Any]]]] = {}
        self._asked = 0
        self._ended = False

    async def run(self) -> None:
        """Read until the other side has gone. Raises `ProtocolError` for what is no message."""
        buffer = bytearray()
        need = self._format.need
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        data = await self._stream.receive_some(_CHUNK)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        break
                    if not data:
                        break
                    buffer += data
                    while len(buffer) >= (end := need(buffer)) > self._format.width:
                        self._got(bytes(buffer[self._format.width : end]), nursery)
                        del buffer[:end]
                nursery.cancel_scope.cancel()
        finally:
            self._ended = True
            for event, _ in self._waiting.values():
                event.set()
            await trio.aclose_forcefully(self._stream)

    def _got(self, piece: bytes, nursery: trio.Nursery) -> None:
        try:
            message = json.loads(piece)
        except ValueError as error:
            raise ProtocolError("control link: a message is no JSON") from error
        if "answer" in message:
            waiting = self._waiting.get(message["answer"])
            if waiting is not None:  # else it came too late
                waiting[1].append(message)
                waiting[0].set()
        elif "ask" in message:
            nursery.start_soon(self._answer, message)
        elif "tell" in message:
            self._noted(message["tell"], message.get("arguments", {}))

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"answer": message["ask"]}
        try:
            answer["value"] = await self._serve(message["command"], message.get("arguments", {}))
        except ControlError as error:
            answer["error"] = str(error)
        with suppress(ControlError):
            try:
                await self._send(answer)
            except (TypeError, ValueError) as error:  # no JSON, or too long
                log.error("the answer to %s cannot be sent: %s", message["command"], error)  # noqa: TRY400
                await self._send({"answer": message["ask"], "error": f"the answer cannot be sent: {error}"})

    async def ask(self, command: str, /, **arguments: Any) -> Any:
        """Have the other side carry a command out. Raises `ControlError`."""
        self._asked = number = self._asked + 1
        event, box = self._waiting[number] = (trio.Event(), [])
        try:
            await self._send({"ask": number, "command": command, "arguments": arguments})
            if not self._ended:
                await event.wait()
        finally:
            del self._waiting[number]
        if not box:
            raise ControlError("the process has gone")
        if "error" in box[0]:
            raise ControlError(box[0]["error"])
        return box[0]["value"]

    async def tell(self, name: str, /, **arguments: Any) -> None:
        """Say something that needs no answer. Raises `ControlError` if the other side has gone or does not listen."""
        await self._send({"tell": name, "arguments": arguments})

    async def _send(self, message: dict[str, Any]) -> None:
        frame = self._format.encode(json.dumps(message, separators=(",", ":")).encode())
        try:
            # Shielded: a message that is cut by somebody's deadline would be the end of the link.
            with trio.fail_after(SEND_TIMEOUT, shield=True):
                async with self._sending:
                    await self._stream.send_all(frame)
        except trio.TooSlowError:
            self._ended = True
            await trio.aclose_forcefully(self._stream)
            raise ControlError(f"the process took nothing for {SEND_TIMEOUT:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ControlError("the process has gone") from None


class Fleet:
    """The admin side: all workers that are connected. `joined` and `gone` are told of each, `noted` what it tells."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.joined: list[Callable[[Worker], object]] = []
        self.gone: list[Callable[[Worker], object]] = []
        self.noted: dict[str, Callable[..., object]] = {}  # called with the Worker and keyword arguments

    async def ask(
        self, command: str, /, *, worker: int | None = None, timeout: float = 2.0, **arguments: Any
    ) -> dict[int, Any]:
        """See `Asking`."""
        answers: dict[int, Any] = {}

        async def one(each: Worker) -> None:
            try:
                answers[each.pid] = await each.link.ask(command, **arguments)
            except ControlError as error:
                answers[each.pid] = error

        asked: Iterable[Worker] = list(self.workers.values())
        if worker is not None:
            asked = [self.workers[worker]] if worker in self.workers else []
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:
                for each in asked:
                    nursery.start_soon(one, each)
        return answers

    async def serve(self, stream: trio.abc.Stream) -> None:
        """A worker has connected: hear it until it goes. It says first who it is: ``tell("here", pid=…, …)``."""
        member: Worker | None = None

        def noted(name: str, arguments: dict[str, Any]) -> None:
            nonlocal member
            if name == "here":
                member = Worker(**arguments, link=link)
                self.workers[member.pid] = member
                for call in self.joined:
                    call(member)
            elif member is not None and name in self.noted:
                self.noted[name](member, **arguments)

        async def serve(command: str, arguments: dict[str, Any]) -> Any:  # noqa: ARG001 - the broker's place
            raise ControlError(f"unknown command {command!r}")

        link = Link(stream, serve, noted)
        try:
            await link.run()
        except* (ProtocolError, TypeError) as group:
            log.warning("control link of worker %s: %s", member.pid if member else "?", group.exceptions[0])
        finally:
            if member is not None and self.workers.get(member.pid) is member:
                del self.workers[member.pid]
                for call in self.gone:
                    call(member)
