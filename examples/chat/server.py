"""A chat with rooms: what an application on trionet looks like.

The rules are in `room`, the page in ``static/``. Messages are JSON objects in text messages, told apart by
``type``. From the page:

========  ======================  ========================================================================
enter     room, name, author,     go in; `author` is a random word of the page, `token` takes back the
          [token]                 name it was given for
say       n, text                 say a line; `n` grows, so a line that is sent twice is said once
leave                             go out, at once and for good
ping                              answered by ``pong``: a script never sees the pings of the protocol
========  ======================  ========================================================================

To the page:

========  ======================  ========================================================================
hello     rooms, limits           first message on every connection
welcome   room, name, token,      entered; `last` is the `n` of the newest line the page said here before,
          last, epoch, seq,       `seq` the number of the room's newest line, which counts the same lines
          people, history         as long as `epoch` is the same
said      seq, author, n, name,   a line; to its author too, who knows by it that the line arrived
          at, text
ack       n                       this line had arrived before
joined    name                    somebody came (one who comes back in time is not announced)
left      name                    somebody went
rooms     rooms                   names of rooms and how many are in each, when that changed
pong                              answer to ``ping``
error     code, text, [n],        refused, and why in words; `n` if a line was, and `wait` if it may come
          [wait]                  again after so many seconds
========  ======================  ========================================================================

Close code 4001 tells a page that a newer page took over its name with the same token.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pathlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

import trio

import trionet

from .room import House, Person, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Field = TypeVar("Field", str, int)

STATIC = pathlib.Path(__file__).parent / "static"
TAKEN_OVER = 4001
MAX_MESSAGE = 16 * 1024  # bytes: the longest line, each character escaped
QUEUE = 512 * 1024  # bytes waiting for one page


class Chat(trionet.WebSocketHandler):
    """The chat: one object for all connections. `ws.data` is the `Person` on it, or None before "enter"."""

    def __init__(self, house: House | None = None) -> None:
        self.house = house or House()
        self.connections: set[trionet.WebSocket] = set()

    async def on_open(self, ws: trionet.WebSocket) -> None:
        """Show what a visitor needs before they choose a name."""
        self.connections.add(ws)
        limits = self.house.limits
        sizes = {"name": limits.name, "room": limits.room, "text": limits.text}
        await ws.send(pack("hello", rooms=self.house.listing(), limits=sizes))

    async def on_message(self, ws: trionet.WebSocket, message: str | bytes) -> None:
        """Do what the page asks, or tell it why not."""
        try:
            await self.answer(ws, parse(message))
        except Refusal as refusal:
            await ws.send(pack("error", code=refusal.code, text=str(refusal), **refusal.details))

    async def on_close(self, ws: trionet.WebSocket, closed: trionet.ConnectionClosed) -> None:
        """Keep the name for a while: most who vanish are back in a moment."""
        self.connections.discard(ws)
        if isinstance(ws.data, Person) and ws.data.connection is ws:
            self.house.lose(ws.data, trio.current_time())

    async def answer(self, ws: trionet.WebSocket, request: dict[str, Any]) -> None:
        """Do what the page asks, or raise `Refusal`."""
        match request.get("type"):
            case "ping":
                await ws.send(pack("pong"))
            case "enter":
                self.enter(ws, request)
            case "say":
                await self.say(ws, request)
            case "leave":
                self.leave(entered(ws))
                await ws.close()
            case _:
                raise Refusal("bad-request", "Unknown type of message.")

    def enter(self, ws: trionet.WebSocket, request: dict[str, Any]) -> None:
        """Let somebody in, show them the room, and tell the others."""
        if ws.data is not None:
            raise Refusal("bad-request", "You are in a room already.")
        name, author = field(request, "name", str), field(request, "author", str)
        token = field(request, "token", str) if "token" in request else None
        person, fresh, replaced = self.house.enter(
            ws, field(request, "room", str), name, author, token, trio.current_time()
        )
        ws.data, room = person, person.room
        if replaced is not None:
            replaced.close_nowait(TAKEN_OVER, "continued elsewhere")
        if fresh:
            others = [connection for connection in room.connections if connection is not ws]
            trionet.broadcast(others, trionet.PreparedMessage(pack("joined", name=person.name)))
        # Not awaited: whatever is said from here on has to come after it.
        ws.send_nowait(
            pack(
                "welcome",
                room=room.name,
                name=person.name,
                token=person.token,
                last=person.last,
                epoch=room.epoch,
                seq=room.seq,
                people=[someone.name for someone in room.people.values()],
                history=[line._asdict() for line in room.history],
            )
        )

    async def say(self, ws: trionet.WebSocket, request: dict[str, Any]) -> None:
        """Send a line to everyone in the room, encoded once."""
        person, n = entered(ws), field(request, "n", int)
        try:
            line = person.room.say(
                person, n, field(request, "text", str), trio.current_time(), milliseconds()
            )
        except Refusal as refusal:
            refusal.details["n"] = n
            raise
        if line is None:
            await ws.send(pack("ack", n=n))
        else:
            message = trionet.PreparedMessage(pack("said", **line._asdict()))
            trionet.broadcast(person.room.connections, message)

    def leave(self, person: Person) -> None:
        """Let somebody go and tell those who stay."""
        self.house.leave(person)
        trionet.broadcast(person.room.connections, trionet.PreparedMessage(pack("left", name=person.name)))

    @contextlib.asynccontextmanager
    async def lifespan(self, server: trionet.Server) -> AsyncIterator[None]:
        """Run beside the server what no message sets off."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keep_house)
            yield
            nursery.cancel_scope.cancel()

    async def keep_house(self) -> None:
        """Once a second: announce who stayed away too long, and show the list of rooms if it changed."""
        shown = self.house.listing()
        while True:
            await trio.sleep(1)
            for person in self.house.expire(trio.current_time()):
                trionet.broadcast(
                    person.room.connections, trionet.PreparedMessage(pack("left", name=person.name))
                )
            if (rooms := self.house.listing()) != shown:
                trionet.broadcast(self.connections, trionet.PreparedMessage(pack("rooms", rooms=rooms)))
                shown = rooms


def pack(kind: str, /, **fields: Any) -> str:
    """Make a message for the page."""
    return json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))


def parse(message: str | bytes) -> dict[str, Any]:
    """Read a message of the page, as far as its being an object; `field` checks what is in it."""
    if isinstance(message, str):
        with contextlib.suppress(ValueError, RecursionError):  # no JSON; nested without end
            request = json.loads(message)
            if isinstance(request, dict):
                return request
    raise Refusal("bad-request", "A message is a JSON object in a text message.")


def field(request: dict[str, Any], name: str, kind: type[Field]) -> Field:
    """Take a field out of a message."""
    value = request.get(name)
    if type(value) is not kind:  # not isinstance: True is no number here
        raise Refusal("bad-request", f"The field {name} is missing or of the wrong kind.")
    return value


def entered(ws: trionet.WebSocket) -> Person:
    """Who is on this connection and in a room."""
    person = ws.data
    if not isinstance(person, Person) or person.connection is not ws:
        raise Refusal("bad-request", "Enter a room first.")
    return person


def milliseconds() -> int:
    """The time of day as browsers count it."""
    return time.time_ns() // 1_000_000


def protocol(chat: Chat) -> trionet.WebSocketProtocol:
    """The chat, its page and a health check on one port."""
    http = trionet.HttpProtocol(
        {
            "/": trionet.StaticFile(STATIC / "index.html"),
            "/static/": trionet.StaticFiles(STATIC),
            "/healthz": b"ok\n",
        }
    )
    return trionet.WebSocketProtocol(
        chat,
        http=http,
        max_message=MAX_MESSAGE,
        # A page that cannot keep up comes back later and reads the history; left out, it would miss a line
        # and not know. The queue has room for a "welcome" with the longest history there can be.
        slow_consumer=trionet.SlowConsumer.CLOSE,
        high_water=QUEUE,
    )


def app() -> trionet.Application:
    """What ``trionet serve examples.chat`` serves: a chat of its own for each process."""
    chat = Chat()
    return trionet.Application(protocol(chat), lifespan=chat.lifespan)


def main(arguments: list[str] | None = None) -> None:
    """Serve the chat until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.chat", description="A chat with rooms, in the browser."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="port to listen on (default: %(default)s)")
    options = parser.parse_args(arguments)
    chat = Chat()
    serve = functools.partial(trionet.serve, lifespan=chat.lifespan, announce=announce)
    trio.run(serve, protocol(chat), options.host, options.port)


def announce(server: trionet.Server) -> None:
    """Say where to find the chat."""
    address = server.endpoints[0].url.replace("ws://", "http://")
    print(f"listening on {address} (open it in two windows)", flush=True)
