"""What plain requests are answered with: `HttpRequest`, `Response`, and the functions between them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias

import trio

from trionet.errors import ConfigurationError, Rejection
from trionet.net.connection import Connection
from trionet.wire.http1 import encode_fields, phrase
from trionet.wire.request import Request

__all__ = ["Health", "HttpRequest", "Responder", "Response", "as_responder", "as_response", "fixed"]

log = logging.getLogger("trionet")

# What decides where a response ends, and whether another follows, is said by the protocol.
_OURS: Final = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"trailer", b"transfer-encoding"}
)
_PLAIN: Final = "text/plain; charset=utf-8"


class HttpRequest:
    """A plain request, read whole. Responders get it; it stays valid after the answer.

    `headers`: by name in lower case; a header that was repeated is joined by commas, cookies by semicolons.
    `body`: bytes, empty without one. `rest`: what follows the prefix of the route, as sent.
    """

    __slots__ = ("_head", "body", "connection", "headers", "rest")

    def __init__(
        self, head: Request, headers: dict[str, str], body: bytes, rest: str, connection: Connection
    ) -> None:
        self._head = head
        self.headers = headers
        self.body = body
        self.rest = rest
        self.connection = connection

    def __repr__(self) -> str:
        # As for `Request`: no query, which may hold tokens.
        return f"<HttpRequest {self.method} {self.path}>"

    @property
    def method(self) -> str:
        """The method: one that the route has."""
        return self._head.method

    @property
    def path(self) -> str:
        """The target up to the first "?", as sent: not percent-decoded."""
        return self._head.path

    @property
    def query(self) -> str:
        """What follows the first "?"; empty without one."""
        return self._head.query

    @property
    def host(self) -> str:
        """The authority the client asked for, in lower case; empty if HTTP/1.0 left it out."""
        return self._head.host

    @property
    def peer(self) -> Any:
        """The client's address; None on a Unix socket or when it has left."""
        return self.connection.peer

    @property
    def draining(self) -> bool:
        """Whether the server is going away."""
        return self.connection.engine.draining


class Response:
    """An answer. Immutable, so one object may answer many requests, unless its body is an iterator.

    `body`: bytes, a str (sent as UTF-8), or an async iterable of bytes, sent as they come: `length` in all if
    that is given, else chunked. `content_type`: plain text for a str and application/octet-stream for bytes
    when None. Names or values that would inject a header raise `ConfigurationError`, and so do headers that
    the protocol sets itself: Date, Connection, Content-Length, Transfer-Encoding.
    """

    __slots__ = ("body", "headers", "length", "reason", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes | str | AsyncIterable[bytes] = b"",
        headers: Iterable[tuple[str, str]] = (),
        *,
        content_type: str | None = None,
        length: int | None = None,
        reason: str = "",
    ) -> None:
        if not 200 <= status <= 599:
            raise ConfigurationError(f"not the status of a final response: {status}")
        fields = list(headers)
        if content_type is None and body and not any(name.lower() == "content-type" for name, _ in fields):
            content_type = _PLAIN if isinstance(body, str) else "application/octet-stream"
        if content_type is not None:
            fields.insert(0, ("Content-Type", content_type))
        encode_fields([*fields, ("Reason", reason)], _OURS)  # for its errors
        self.status = status
        self.headers = tuple((name, value.strip(" \t")) for name, value in fields)
        self.body = body.encode() if isinstance(body, str) else body
        self.length = len(self.body) if isinstance(self.body, bytes) else length
        self.reason = reason or phrase(status)

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.reason}>"

    @classmethod
    def text(cls, body: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """Plain text."""
        return cls(status, body, headers, content_type=_PLAIN)

    @classmethod
    def html(cls, body: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """A page."""
        return cls(status, body, headers, content_type="text/html; charset=utf-8")

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """`value` as JSON."""
        import json

        body = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return cls(status, body, headers, content_type="application/json")


Responder: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]


class Health:
    """Answers 200 "ok"; 503 while the server drains, and when ``await check()`` raises or takes too long.

    `timeout`: seconds for the check.
    """

    def __init__(self, check: Callable[[], Awaitable[object]] | None = None, *, timeout: float = 5.0) -> None:
        self._check = check
        self._timeout = timeout
        self._failing = False

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer a probe. Why a check failed goes to the log, once until it passes, and not to the peer."""
        if request.draining:
            return self._answer(503, "draining\n")
        if self._check is not None:
            try:
                with trio.fail_after(self._timeout):
                    await self._check()
            except Exception as error:  # whatever it is, it is the answer
                if not self._failing:
                    log.warning("health check fails", exc_info=error)
                self._failing = True
                return self._answer(503, "failing\n")
            self._failing = False
        return self._answer(200, "ok\n")

    @staticmethod
    def _answer(status: int, word: str) -> Response:
        return Response.text(word, status, [("Cache-Control", "no-store")])


def as_responder(value: Responder | Response | bytes | str) -> Responder:
    """What a route may be given, as a responder; raises `ConfigurationError` for what is none."""
    if isinstance(value, Response):
        if not isinstance(value.body, bytes):
            raise ConfigurationError("a fixed answer needs a body of bytes or str")
        return fixed(value)
    if isinstance(value, bytes | str):
        try:
            return fixed(Response(body=value if isinstance(value, str) else value.decode()))
        except UnicodeDecodeError:
            return fixed(Response(body=value))
    if not callable(value):
        raise ConfigurationError(f"not a responder: {value!r}")
    if hasattr(value, "__code__"):  # Ctrl-C may stop it, though not the worker that runs it
        trio.lowlevel.disable_ki_protection(value)
    return value


def fixed(response: Response) -> Responder:
    """A responder that always gives `response`."""

    async def answer(_: HttpRequest) -> Response:
        return response

    return answer


def as_response(rejection: Rejection) -> Response:
    """A refusal after which the connection goes on, as the request was read whole."""
    body = rejection.body.encode() if isinstance(rejection.body, str) else rejection.body
    headers = list(rejection.headers)
    if body and not any(name.lower() == "content-type" for name, _ in headers):
        headers.insert(0, ("Content-Type", _PLAIN))
    return Response(rejection.status, body, headers, reason=rejection.reason)
