"""The serving side: pages for people, JSON for programs, for one process or many.

    GET /debug/, /debug/tasks, …     the page; as JSON for whoever does not accept HTML
    GET /debug/tasks.json?worker=2   {"answers": [{"worker": 2, "pid": …, "value": …}], "missing": []}
    POST /debug/kick                 a change: parameters as a JSON object, and the header `X-Trionet: 1`

A worker that fails, or does not answer in time, is an entry of the answer and keeps nobody waiting.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl

from trionet.errors import ConfigurationError
from trionet.ops.control import Agent, Asking, ControlError, Local
from trionet.ops.debug.commands import install
from trionet.ops.debug.guard import Guard, is_private
from trionet.ops.debug.profile import collapsed, speedscope
from trionet.ops.debug.tasks import tasks_as_text
from trionet.protocols.http import HttpProtocol
from trionet.protocols.responders import HttpRequest, Responder, Response
from trionet.server import Server
from trionet.wire.http1 import refuse

__all__ = ["DebugProtocol", "routes"]


def _flag(text: Any) -> bool:
    if isinstance(text, bool):
        return text
    if str(text).lower() in {"1", "true", "yes", "on"}:
        return True
    if str(text).lower() in {"", "0", "false", "no", "off"}:
        return False
    raise ValueError(text)


def _text(value: Any) -> str:
    """What JSON could say and UTF-8 could not: half of a surrogate pair. It would come back as an error of ours."""
    if not isinstance(value, str | int):
        raise ValueError(value)  # noqa: TRY004 - one kind of error for what cannot be read
    str(value).encode()
    return str(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


_Parameters = Mapping[str, Callable[[Any], Any]]

#: What can be looked at: its parameters, and the seconds a worker has to answer.
VIEWS: Final[dict[str, tuple[_Parameters, float]]] = {
    "overview": ({}, 2.0),
    "connections": (
        {
            "state": _text,
            "flag": _text,
            "protocol": _text,
            "peer": _text,
            "min_queued": int,
            "min_silent": _finite,
            "sort": _text,
            "limit": int,
        },
        5.0,
    ),
    "connection": ({"id": _text}, 5.0),
    "tasks": ({"limit": int}, 5.0),
    "handlers": ({"limit": int}, 2.0),
    "heap": ({"top": int, "objects": _flag}, 60.0),
}

#: What can be done.
CHANGES: Final[dict[str, tuple[_Parameters, float]]] = {
    "kick": ({"id": _text, "code": int, "reason": _text, "reset": _flag}, 5.0),
    "broadcast": ({"text": _text}, 120.0),
    "timing": ({"on": _flag}, 2.0),
    "tracemalloc": ({"on": _flag, "frames": int}, 5.0),
    "profile": ({"seconds": _finite, "rate": int, "method": _text}, 20.0),
}


#: Parameters that have no default.
REQUIRED: Final = {"connection": "id", "kick": "id", "broadcast": "text", "timing": "on", "tracemalloc": "on"}


def routes(fleet: Asking, *, hosts: Iterable[str] = (), public: bool = False) -> dict[str, Responder]:
    """What an `HttpProtocol` or `Router` serves below ``/debug/``.

    `fleet`: whose workers are asked; their agents have had `install`. `hosts`: names, besides IP addresses and
    localhost, under which the pages may be asked for. `public`: answer on addresses that others can reach, too.
    """
    pages = _Pages(fleet, Guard(hosts, public=public))
    return {
        "/debug": pages.home,
        "/debug/": pages.get,
        "/debug/profile": pages.get,  # a page; what is posted there takes one
        **{f"POST /debug/{name}": functools.partial(pages.post, name) for name in CHANGES},
    }


class DebugProtocol(HttpProtocol):
    """The same as a protocol of its own, for a server in your program, on a private port or a Unix socket.

    ::

        async with (
            open_server(chat, "0.0.0.0", 8080) as server,
            open_server([Endpoint(protocol=DebugProtocol(server), path="/run/chat/debug.sock", mode=0o600)]),
        ):

    A server of its own answers although the pool of the other is full. An address that is neither loopback nor a Unix
    socket is refused with `ConfigurationError` when it would be listened on, unless `public`. `hosts`: see `routes`.
    """

    def __init__(
        self, server: Server, *, hosts: Iterable[str] = (), public: bool = False, **options: Any
    ) -> None:
        agent = Agent(server)
        install(agent)
        self._public = public
        super().__init__(routes(Local(agent), hosts=hosts, public=public), **options)

    def listening(self, listener: Any) -> None:
        """Refuse a public address, unless told."""
        if not self._public and not is_private(listener.address):
            raise ConfigurationError(
                f"DebugProtocol shows and closes connections; {listener.url} is reachable by others. Mount it on a "
                "loopback address or a Unix socket, or say public=True"
            )


class _Pages:
    def __init__(self, fleet: Asking, guard: Guard) -> None:
        self._fleet = fleet
        self._guard = guard

    async def home(self, request: HttpRequest) -> Response:
        """``/debug`` is meant as ``/debug/``."""
        self._guard.check(request)
        return Response.redirect("/debug/")

    async def get(self, request: HttpRequest) -> Response:
        """A page or a document."""
        self._guard.check(request)
        name = request.rest or request.path.rpartition("/")[2]
        view, _, kind = name.partition(".")
        if name == "tasks.txt":
            return await self._tasks_text(request)
        if kind not in {"", "json"} or (view or "overview") not in {*VIEWS, "profile"}:
            raise refuse(404, f"There is no view {name!r}; there are {', '.join(VIEWS)}.")
        if not kind and "text/html" in request.headers.get("accept", ""):
            return _page()
        if not view:
            return _json({"views": [f"{name}.json" for name in VIEWS], "changes": list(CHANGES)})
        if view == "profile":
            raise refuse(405, "A profile is taken by POST.", [("Allow", "POST")])
        document = await self._ask(view, VIEWS[view], dict(parse_qsl(request.query)))
        return _json(document, _status(document))

    async def post(self, name: str, request: HttpRequest) -> Response:
        """A change."""
        self._guard.check_change(request)
        given = await request.json(limit=2**20) if request.headers.get("content-length", "0") != "0" else {}
        if not isinstance(given, dict):
            raise refuse(400, "The parameters are a JSON object.")
        form = given.pop("format", "json")
        if form not in (("json", "collapsed", "speedscope") if name == "profile" else ("json",)):
            raise refuse(400, "format is json, or, of a profile, collapsed or speedscope.")
        document = await self._ask(name, CHANGES[name], given)
        if form != "json" and document["answers"] and "value" in document["answers"][0]:
            value = document["answers"][0]["value"]
            return Response.text(collapsed(value)) if form == "collapsed" else _json(speedscope(value))
        return _json(document, _status(document))

    async def _tasks_text(self, request: HttpRequest) -> Response:
        document = await self._ask("tasks", VIEWS["tasks"], dict(parse_qsl(request.query)))
        parts = []
        for answer in document["answers"]:
            text = tasks_as_text(answer["value"]) if "value" in answer else answer["error"] + "\n"
            parts.append(f"worker {answer['worker']}, process {answer['pid']}: {text}")
        parts += [f"worker {number} did not answer in time\n" for number in document["missing"]]
        return Response.text("\n".join(parts), headers=_HEADERS)

    async def _ask(self, name: str, how: tuple[_Parameters, float], given: dict[str, Any]) -> dict[str, Any]:
        """Ask the worker, or all, and put the answers in order."""
        parameters, timeout = how
        workers = sorted(self._fleet.workers.values(), key=lambda each: each.number)
        chosen = self._chosen(given.pop("worker", None))
        arguments: dict[str, Any] = {}
        for key, value in given.items():
            if key not in parameters:
                raise refuse(
                    400, f"{name} has no parameter {key!r}; it has {', '.join([*parameters, 'worker'])}."
                )
            if value is None or value == "":
                continue
            try:
                arguments[key] = parameters[key](value)
            except (TypeError, ValueError, OverflowError):
                raise refuse(400, f"{key} is {value!r:.100}, which cannot be read.") from None
        if name in REQUIRED and REQUIRED[name] not in arguments:
            raise refuse(400, f"{name} needs the parameter {REQUIRED[name]!r}.")
        timeout += float(arguments.get("seconds", 0)) if name == "profile" else 0.0
        began = time.perf_counter()
        answers = await self._fleet.ask(f"debug.{name}", worker=chosen, timeout=timeout, **arguments)
        asked = [each for each in workers if chosen in {None, each.pid}]
        shown = []
        for each in asked:
            if each.pid in answers:
                answer = answers[each.pid]
                word = "error" if isinstance(answer, ControlError) else "value"
                value = str(answer) if word == "error" else answer
                shown.append({"worker": each.number, "pid": each.pid, word: value})
        return {
            "asked": name,
            "workers": [{"worker": each.number, "pid": each.pid} for each in workers],
            "answers": shown,
            "missing": [each.number for each in asked if each.pid not in answers],
            "timeout": timeout,
            "seconds": round(time.perf_counter() - began, 4),
        }

    def _chosen(self, worker: Any) -> int | None:
        """The process id of a worker, given its number or that; None for all."""
        if worker in (None, "", "all"):
            return None
        # Of two with one number, an old one that drains and its successor, the new one.
        for each in sorted(self._fleet.workers.values(), key=lambda each: -each.generation):
            if str(worker) in {str(each.number), str(each.pid)}:
                return each.pid
        raise refuse(404, f"There is no worker {worker!r:.100}.")


def _status(document: dict[str, Any]) -> int:
    """An error only if nobody has an answer."""
    if any("value" in answer for answer in document["answers"]):
        return 200
    return 502 if document["answers"] else 504


# A page of ours loads nothing from elsewhere, is shown in no frame, and is not kept.
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


def _json(document: Any, status: int = 200) -> Response:
    return Response.json(document, status, _HEADERS)


@functools.cache
def _page() -> Response:
    """The page in one piece: what it may run is named in its policy by a hash."""
    folder = resources.files("trionet.ops.debug") / "page"
    html, style, script = (
        (folder / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    return Response.html(
        page, headers=[*_HEADERS, ("Content-Security-Policy", policy), ("X-Frame-Options", "DENY")]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
