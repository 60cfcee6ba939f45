"""What plain requests are answered with: `HttpRequest`, `Response`, and the functions between them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

import trio

from trionet.errors import ConfigurationError, Rejection
from trionet.net.connection import Connection
from trionet.protocols.forwarded import find_client
from trionet.protocols.http_body import BodyStream, RequestBody
from trionet.wire.cookies import parse_cookies
from trionet.wire.forwarded import Client, TrustedProxies
from trionet.wire.http1 import encode_fields, phrase, refuse
from trionet.wire.request import Request

if TYPE_CHECKING:
    from trionet.protocols.base import Protocol

__all__ = [
    "Handover",
    "Health",
    "HttpRequest",
    "Responder",
    "Response",
    "as_responder",
    "as_response",
    "fixed",
]

log = logging.getLogger("trionet")

# What decides where a response ends, and whether another follows, is said by the protocol.
_OURS: Final = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"trailer", b"transfer-encoding"}
)
_PLAIN: Final = "text/plain; charset=utf-8"


class HttpRequest:
    """A plain request. Responders get it; what it says stays valid after the answer, its body is read before.

    `headers`: by name in lower case; a header that was repeated is joined by commas, cookies by semicolons.
    `path_params`: what stands in the place of each ``{name}`` of the route, percent-decoded. `rest`: what follows the
    route's prefix, as sent.
    """

    __slots__ = ("_body", "_head", "_proxies", "connection", "headers", "path_params", "rest")

    def __init__(
        self,
        head: Request,
        headers: dict[str, str],
        body: RequestBody,
        rest: str,
        path_params: dict[str, str],
        connection: Connection,
    ) -> None:
        self._head = head
        self._body = body
        # Asked now: the connection may become another protocol's.
        self._proxies: TrustedProxies | None = getattr(connection.protocol, "proxies", None)
        self.headers = headers
        self.rest = rest
        self.path_params = path_params
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
    def cookies(self) -> dict[str, str]:
        """The cookies that came, by name; of two with one name the first (RFC 6265, 5.4)."""
        return parse_cookies([self.headers.get("cookie", "")])

    @property
    def last_event_id(self) -> str:
        """The id of the last Server-Sent Event that the client got; empty when it comes for the first time."""
        # Written as UTF-8 (WHATWG HTML, 9.2.4); headers are decoded as ISO 8859-1.
        return self.headers.get("last-event-id", "").encode("latin-1").decode("utf-8", "replace")

    @property
    def peer(self) -> Any:
        """The client's address; None on a Unix socket or when it has left."""
        return self.connection.peer

    @property
    def client(self) -> Client:
        """Who asks: as trusted proxies say, if the protocol has `trusted_proxies`; else the peer."""
        return find_client(self.connection, self._head, self._proxies)

    @property
    def draining(self) -> bool:
        """Whether the server is going away."""
        return self.connection.engine.draining

    def stream(self, *, limit: int | None = None) -> AsyncIterator[bytes]:
        """The body, to be read as it comes: ``async for piece in request.stream(limit=2**30)``.

        It is asked for (`Expect: 100-continue`) and read when you iterate; what you do not take waits with the peer.
        `limit`: bytes, instead of the protocol's `max_body`. The loop raises `Rejection` (413 beyond the limit, 408
        when it is too slow, 400 when it is malformed), which is answered if you let it pass, and `ConnectionClosed`.
        """
        return BodyStream(self._body, self._body.limit if limit is None else limit)

    async def body(self, *, limit: int | None = None) -> bytes:
        """The whole body, empty without one. A second call returns the same. Raises as `stream` does.

        Raises `RuntimeError` if pieces of it were taken from `stream` before.
        """
        return await self._body.read(self._body.limit if limit is None else limit)

    async def json(self, *, limit: int | None = None) -> Any:
        """The body as JSON. Raises `Rejection` (400) where it is none, and as `stream` does."""
        import json

        try:
            return json.loads(await self.body(limit=limit))
        except (ValueError, RecursionError) as error:
            raise refuse(400, "The body is not JSON.") from error


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

    @classmethod
    def redirect(cls, location: str, status: int = 302, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """Go there instead. 302, or 303 after a form; 307 and 308 keep method and body, 301 and 308 are for ever."""
        if status not in {301, 302, 303, 307, 308}:
            raise ConfigurationError(f"not the status of a redirect: {status}")
        # What is no character of a URI is encoded; what is encoded already stays (RFC 3986, 2).
        target = quote(location, safe="%:/?#[]@!$&'()*+,;=~")
        return cls(status, b"", [("Location", target), *headers])


class Handover(Response):
    """An answer whose body is another protocol's affair: after the head the connection is `protocol`'s.

    Its ``taken_over(connection, request)`` is awaited then. The body ends with the connection.
    """

    __slots__ = ("protocol", "request")

    def __init__(
        self, protocol: Protocol, request: HttpRequest, headers: Iterable[tuple[str, str]], content_type: str
    ) -> None:
        super().__init__(200, b"", headers, content_type=content_type)
        self.length = None  # nobody knows
        self.protocol = protocol
        self.request = request


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
        raise ConfigurationError(f"not a responder: {value!r} (a WebSocketProtocol goes into a Router)")
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
