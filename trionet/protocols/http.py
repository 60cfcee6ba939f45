"""Plain HTTP/1.1: pages and health checks beside WebSockets, or on a port of their own. h11 does the parsing.

    OPENING   on a port of our own: no whole request head has come yet
    OPEN      idle: nothing is kept, no h11 object either
              reading a request, or answering it: an `_Exchange`

Every head passes `HeadScanner` before h11 sees it. Then a responder is called, any coroutine function from
`HttpRequest` to `Response`, which reads the body if it wants it (`trionet.protocols.http_body`). Requests sent
without waiting for the answers are answered one after the other. `trionet.protocols.static` has responders for
files, `trionet.protocols.sse` for events, `trionet.protocols.router` puts WebSockets beside them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from trionet.errors import ConfigurationError, ConnectionClosed, Rejection, nothing_but
from trionet.net.connection import BUSY, OPEN, OPENING, Connection
from trionet.net.traits import retarget
from trionet.protocols.base import Protocol
from trionet.protocols.forwarded import as_proxies
from trionet.protocols.http_body import RequestBody, next_event
from trionet.protocols.responders import (
    Handover,
    HttpRequest,
    Responder,
    Response,
    as_responder,
    as_response,
    fixed,
)
from trionet.protocols.websocket import http_date
from trionet.wire.forwarded import TrustedProxies
from trionet.wire.handshake import HeadLimits, HeadScanner, Request
from trionet.wire.http1 import build_rejection, encode_fields, refuse
from trionet.wire.routes import Routes

if TYPE_CHECKING:
    import h11  # at run time only with the first request: it is a megabyte that many servers never need

__all__ = ["HttpProtocol"]

log = logging.getLogger("trionet")

_BODILESS: Final = frozenset({204, 304})
_PIECE: Final = 65536  # bytes of a body written at once
_NESTED = "*"  # in place of a method: an `HttpProtocol` for all that is below a prefix


class _Exchange:
    """What a connection keeps from the first byte of a request until the last of its answer."""

    __slots__ = (
        "answered",
        "body",
        "due",
        "head",
        "headers",
        "last",
        "params",
        "parser",
        "raw",
        "responder",
        "rest",
    )

    def __init__(self) -> None:
        self.raw = bytearray()  # the head, until it is whole
        self.due = 0  # tick at which the head, or what is left of a body, must have come
        self.last = False  # the connection is to be closed after the answer
        self.answered = False  # the response is begun
        self.head: Request | None = None
        self.headers: dict[str, str] = {}
        self.body: RequestBody | None = None
        self.rest = ""
        self.params: dict[str, str] = {}
        self.parser: h11.Connection
        self.responder: Responder


class HttpProtocol(Protocol):
    """Serves `routes`, which maps paths to responders.

    A key is a path (``"/healthz"``), a prefix (``"/static/"``: all below it), or a pattern (``"/users/{name}"``,
    `HttpRequest.path_params`); `trionet.wire.routes` says which one wins. A key of one host begins with it:
    ``"//example.org/"``. Paths are compared as sent. Responders are asked GET and HEAD, unless the key begins with
    another method: ``"POST /login"``. A bytes or str value, or a `Response`, is a fixed answer. Another `HttpProtocol`
    below a prefix answers there by its own routes, which begin where the prefix ends, within its own `max_body` and
    `body_timeout`. A responder may raise `Rejection`; any other exception is logged and answered with 500.

    `max_body`: bytes of the largest request body, where the responder gives no limit of its own. Deadlines, in
    seconds, None for none: `header_timeout` (from the first byte of a head to its last), `body_timeout` (for a body
    that is waited for, and a second more for each 1,000 bytes of it), `idle_timeout` (no request in hand). Others: see
    `Protocol`. `trusted_proxies`: whose X-Forwarded headers `HttpRequest.client` believes; as for `WebSocketProtocol`.
    """

    scheme = "http"
    name = "http"

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        max_body: int = 65536,
        head_limits: HeadLimits | None = None,
        header_timeout: float | None = 10.0,
        body_timeout: float | None = 30.0,
        idle_timeout: float | None = 60.0,
        write_timeout: float | None = 60.0,
        high_water: int = 65536,
        read_ahead: int = 65536,
        trusted_proxies: TrustedProxies | Iterable[str] | None = None,
    ) -> None:
        super().__init__(
            high_water=high_water,
            hard_limit=max(2**20, 2 * high_water),
            read_ahead=read_ahead,
            idle_timeout=idle_timeout,
            write_timeout=write_timeout,
        )
        self.max_body = max_body
        self.header_timeout = header_timeout or 0.0
        self.body_timeout = body_timeout or 0.0
        self.responses: Counter[int] = Counter()
        self.handler_failures = 0
        self._limits = head_limits or HeadLimits()
        self.proxies = as_proxies(trusted_proxies)
        self._scanner = HeadScanner(self._limits, self.proxies.names if self.proxies else frozenset())
        self._others: list[Protocol] = []
        self._routes: Routes[dict[str, Any]] = Routes()
        for key, value in routes.items():
            method, _, path = key.rpartition(" ")
            if method and not method.isupper():
                raise ConfigurationError(f'a route is "/path", "/prefix/" or "METHOD /path", not {key!r}')
            self._add(method, path, value)

    # ---------------------------------------------------------------- routes

    def _add(self, method: str, path: str, value: Any) -> None:
        entry: Any
        if isinstance(value, HttpProtocol):
            if method or not path.endswith("/"):
                raise ConfigurationError(
                    f"an HttpProtocol is put below a prefix, for all methods, not at {path!r}"
                )
            names: tuple[str, ...] = (_NESTED,)
            entry = value
        else:
            names = ("GET", "HEAD") if method in {"", "GET"} else (method,)
            entry = as_responder(value)
        self._put(path, names, entry)

    def _put(self, path: str, names: tuple[str, ...], entry: Any) -> None:
        methods = self._routes.add(path, {})
        if isinstance(entry, Protocol):
            self._others.append(entry)
        for name in names:
            if name in methods:
                raise ConfigurationError(f"{path!r} has two answers to {name}")
            methods[name] = entry

    def others(self) -> Iterable[Protocol]:
        return self._others

    def _route(self, head: Request, path: str) -> _Found:
        """Who answers this request. Raises `Rejection`."""
        method = head.method
        if method == "CONNECT":
            raise refuse(501, "This is no proxy.")
        match = self._routes.find(path, head.host)
        if match is None:
            if path == "*":  # OPTIONS for the server as a whole (RFC 9110, 9.3.7)
                return fixed(Response(204)), "", {}, self
            raise refuse(404, "There is nothing here.")
        methods = match.value
        nested = methods.get(_NESTED)
        if nested is not None:
            responder, rest, parameters, protocol = nested._route(head, f"/{match.rest}")
            return responder, rest, match.parameters | parameters, protocol
        responder = methods.get(method)
        if responder is None:
            self._no_such_method(methods)
            allow = ", ".join(sorted({name for name in methods if name.isupper()} | {"OPTIONS"}))
            if method == "OPTIONS":
                return fixed(Response(204, headers=[("Allow", allow)])), "", {}, self
            raise refuse(405, f"{method} is not allowed here; use {allow}.", [("Allow", allow)])
        return responder, match.rest, match.parameters, self

    def _no_such_method(self, methods: dict[str, Any]) -> None:
        """What a `Router` has to say before a 405."""

    # ------------------------------------------------------------ connections

    def connection_made(self, connection: Connection) -> None:
        """Wait for the first head; until then the connection counts as half open."""
        self._expect(connection, None, self.header_timeout)

    async def adopt(self, connection: Any, data: bytes) -> None:
        """Take over a connection in state OPENING from another protocol; `data` is all it has sent.

        A later request on it that asks for a WebSocket goes back to that protocol, which is kept in
        ``connection.data``, a slot that plain HTTP has no other use for.
        """
        connection.data = connection.protocol
        connection.protocol = self
        # The same layout without the methods that read and write frames.
        connection.__class__ = retarget(type(connection), Connection)
        connection.opened()
        await self.data_received(connection, data)

    def _becomes(self, connection: Any, protocol: Any) -> bytes:
        """The connection goes to a `WebSocketProtocol`, as if it had just been accepted.

        Returns what came while an earlier request was answered: each protocol keeps such input in a form of its own.
        """
        connection.data = None
        connection.protocol = protocol
        connection.__class__ = retarget(type(connection), protocol.connection_class)
        connection._input = None
        connection._state += OPENING - OPEN
        connection.engine.opening += 1
        protocol.connection_made(connection)
        return self._take_held(connection)

    @staticmethod
    def _take_held(connection: Any) -> bytes:
        rare = connection._rare
        if rare is None or rare.held is None:
            return b""
        held: bytes = rare.held
        rare.held, rare.held_size = None, 0
        connection.resume_reading()
        return held

    async def _leaves(self, connection: Any, exchange: _Exchange) -> bool:
        """Whether this request, and with it the connection, has gone to another protocol."""
        head = exchange.head
        assert head is not None
        if not head.websocket or connection.data is None:
            return False
        protocol, data = connection.data, bytes(exchange.raw)
        data += self._becomes(connection, protocol)
        await protocol.data_received(connection, data)
        return True

    async def data_received(self, connection: Any, data: bytes) -> None:
        """Serve the requests that `data` completes, one after the other."""
        exchange: _Exchange | None
        while data and connection.closed is None:
            exchange = connection._input
            if exchange is None:
                exchange = connection._input = _Exchange()
            try:
                if exchange.answered:
                    exchange.parser.receive_data(data)
                    data = await self._skip(connection, exchange)
                    continue
                if not self._read_head(connection, exchange, data):
                    return
                if exchange.head is not None and await self._leaves(connection, exchange):
                    return
                data = b""
                request = self._begin(connection, exchange)
            except Rejection as rejection:
                await self._refuse(connection, rejection)
                return
            try:
                response = await exchange.responder(request)
            except Rejection as rejection:
                response = as_response(rejection)
            del request
            if connection.closed is None:
                data = await self._answer(connection, exchange, response)
            del exchange, response
            if data:
                await trio.lowlevel.checkpoint()  # others get their turn between requests sent in one go

    # ---------------------------------------------------------------- requests

    def _read_head(self, connection: Any, exchange: _Exchange, data: bytes) -> bool:
        """Whether the head has come whole. Raises `Rejection`."""
        searched = len(exchange.raw)
        exchange.raw += data
        exchange.head = self._scanner.scan(exchange.raw, searched)
        if exchange.head is None:
            if not searched:
                self._expect(connection, exchange, self.header_timeout)
            return False
        if connection._state & 7 == OPENING:
            connection.opened()
        return True

    def _begin(self, connection: Any, exchange: _Exchange) -> HttpRequest:
        """Let h11 have the head, and find out who answers. Raises `Rejection`."""
        import h11

        head = exchange.head
        assert head is not None
        parser = exchange.parser = h11.Connection(h11.SERVER)
        parser.receive_data(bytes(exchange.raw[head.skipped :]))
        exchange.raw.clear()
        exchange.due = 0
        event = next_event(parser)
        assert isinstance(event, h11.Request)
        headers = exchange.headers
        for raw_name, value in event.headers:
            name, text = raw_name.decode("ascii"), value.decode("latin-1")
            if name in headers:
                text = headers[name] + ("; " if name == "cookie" else ", ") + text
            headers[name] = text
        if headers.get("expect", "100-continue").lower() != "100-continue" and head.version >= (1, 1):
            raise refuse(417, "Nothing but 100-continue can be expected here.")  # RFC 9110, 10.1.1
        size = None if head.chunked else head.content_length or 0
        limits = self
        try:
            exchange.responder, exchange.rest, exchange.params, limits = self._route(head, head.path)
        except Rejection as rejection:
            if size != 0 or head.method == "CONNECT" or rejection.status == 426:
                raise  # do not ask for a body that nobody wants; closing spares us reading it
            exchange.responder = fixed(as_response(rejection))
        body = exchange.body = RequestBody(connection, parser, size, limits.max_body, limits.body_timeout)
        if size == 0:
            next_event(parser)  # the end of the message, or h11 would wait for it
        return HttpRequest(head, headers, body, exchange.rest, exchange.params, connection)

    def overheard(self, connection: Any, data: bytes) -> int:
        """Keep what comes while a responder runs: more of the body, or the next request."""
        kept = super().overheard(connection, data)
        self._wake(connection)
        return kept

    def eof_overheard(self, connection: Any) -> None:
        """The peer sends no more: whoever waits for a body must know."""
        self._wake(connection)

    @staticmethod
    def _wake(connection: Any) -> None:
        exchange: _Exchange | None = connection._input
        if exchange is not None and exchange.body is not None:
            exchange.body.wake()

    async def _skip(self, connection: Any, exchange: _Exchange) -> bytes:
        """Throw away what is left of a body behind its answer. Returns what has come of the next request."""
        body = exchange.body
        assert body is not None
        done = await body.skip()
        if connection.closed is not None:
            return b""
        if done:
            return self._next_request(connection, exchange)
        if done is False:
            self._last_word(connection)
        elif not exchange.due:
            self._expect(connection, exchange, self.body_timeout)
        return b""

    def _next_request(self, connection: Any, exchange: _Exchange) -> bytes:
        connection._input = None
        self._expect(connection, None, self.idle_timeout)
        rest: bytes = exchange.parser.trailing_data[0]
        return rest

    @staticmethod
    def _last_word(connection: Any) -> None:
        """All is said; what still comes is discarded."""
        connection._input = None
        connection.note_closed(ConnectionClosed(1000, "answered", "us"))
        connection.linger()

    # --------------------------------------------------------------- responses

    async def _answer(self, connection: Any, exchange: _Exchange, response: Response) -> bytes:
        """Send `response`. Returns what has come behind the request."""
        import h11

        parser, body, head = exchange.parser, exchange.body, exchange.head
        assert head is not None
        assert body is not None
        if isinstance(response, Handover) and head.method != "HEAD":
            await self._hand_over(connection, exchange, response)
            return b""
        bodiless = response.status in _BODILESS
        headers = [(b"Date", http_date())]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in response.headers]
        if response.length is not None and not bodiless:
            headers.append((b"Content-Length", b"%d" % response.length))
        if exchange.last or connection.engine.draining or not body.lets_go_on():
            headers.append((b"Connection", b"close"))
        first = parser.send(
            h11.Response(
                status_code=response.status, headers=headers, reason=response.reason.encode("latin-1")
            )
        )
        assert first is not None
        exchange.answered = True
        self.responses[response.status] += 1
        if not bodiless and head.method != "HEAD":
            if isinstance(response.body, bytes) and len(response.body) <= _PIECE:
                first += parser.send(h11.Data(data=response.body)) or b""
            else:
                first = await self._send_pieces(connection, parser, first, response.body)
        first += parser.send(h11.EndOfMessage()) or b""
        if first:
            await connection.wait_writable(len(first))
            connection.write(first)
        if connection.closed is not None:
            return b""
        if parser.our_state is h11.DONE:
            return await self._skip(connection, exchange)
        await connection.wait_writable(self.high_water)  # a lingering connection has two seconds
        self._last_word(connection)
        return b""

    async def _hand_over(self, connection: Any, exchange: _Exchange, response: Handover) -> None:
        """Send the head, and make the connection another protocol's. Its body ends when the connection does.

        By hand: h11 would cut it into chunks, and each writer would have to know who gets chunks and who, with
        HTTP/1.0, does not.
        """
        head = b"HTTP/1.1 %d OK\r\nDate: %b\r\nConnection: close\r\n" % (response.status, http_date())
        head += encode_fields(response.headers) + b"\r\n"
        await connection.wait_writable(len(head))
        self.responses[response.status] += 1
        request, protocol = response.request, response.protocol
        del response, exchange
        connection._input = connection.data = None
        self._take_held(connection)  # nobody will look at it
        connection.protocol = protocol
        connection.__class__ = retarget(type(connection), protocol.connection_class)
        connection.write(head)
        del head
        await protocol.taken_over(connection, request)  # type: ignore[attr-defined]

    @staticmethod
    async def _send_pieces(
        connection: Any, parser: h11.Connection, first: bytes, body: bytes | AsyncIterable[bytes]
    ) -> bytes:
        """Send `first` and a body, each piece when there is room for it. Returns what is left of `first`."""
        import h11

        async with aclosing(_pieces(body)) as pieces:
            async for piece in pieces:
                first += parser.send(h11.Data(data=piece)) or b""
                await connection.wait_writable(len(first))
                connection.write(first)
                first = b""
        return first

    async def _refuse(self, connection: Any, rejection: Rejection) -> None:
        """Answer a request that cannot be read on; nobody knows where the next one begins."""
        if connection._out is not None:
            await connection.wait_writable(self.high_water)
        self._refuse_now(connection, rejection)

    def _refuse_now(self, connection: Any, rejection: Rejection) -> None:
        exchange: _Exchange | None = connection._input
        connection._input = None
        head = exchange.head if exchange is not None else None
        self.responses[rejection.status] += 1
        log.debug("%r: request refused: %s", connection, rejection)
        connection.note_closed(ConnectionClosed(1006, f"refused with {rejection.status}", "us"))
        head_request = head is not None and head.method == "HEAD"
        connection.write(build_rejection(rejection, http_date(), head_request=head_request))
        connection.linger()

    def handler_failed(self, connection: Any, error: Exception) -> None:
        """A responder raised: 500, or, if the answer was begun, a reset, so that the peer can tell."""
        if connection.closed is not None and nothing_but(ConnectionClosed, error):
            return
        exchange: _Exchange | None = connection._input
        head = exchange.head if exchange is not None else None
        if isinstance(error, Rejection) and exchange is not None and exchange.answered:
            # Raised by a body that is read while the answer is sent: the peer's doing.
            log.debug("%r: %s: answer broken off: %s", connection, head, error)
        else:
            self.handler_failures += 1
            connection.engine.complain(connection, "%s failed", head or "HTTP", error=error)
        if connection.closed is not None:
            return
        if exchange is None or exchange.answered:
            connection.reset(ConnectionClosed(1011, "responder failed", "us"))
        else:
            self._refuse_now(connection, Rejection(500, body="The server failed to handle the request.\n"))

    # --------------------------------------------------------------- deadlines

    def _expect(self, connection: Any, exchange: _Exchange | None, seconds: float) -> None:
        """Something is to come within so many seconds, or `next_deadline` acts."""
        engine = connection.engine
        connection._seen = engine.tick
        if seconds and connection.fd >= 0:
            tick = engine.tick + engine.wheel.ticks(seconds)
            if exchange is not None:
                exchange.due = tick
            engine.set_deadline(connection, tick)

    def next_deadline(self, connection: Any) -> int:
        """Close what is idle, answer 408 to what is slow (RFC 9110, 15.5.9)."""
        engine = connection.engine
        exchange: _Exchange | None = connection._input
        if (
            connection._state & BUSY
        ):  # unless it waits for the body, the peer is not to blame for what takes long
            due = (
                exchange.body.judge(engine.tick) if exchange is not None and exchange.body is not None else 0
            )
            return due or engine.tick + engine.wheel.ticks(self.idle_timeout or 10.0)
        if exchange is not None:
            due = exchange.due
        else:
            seconds = self.header_timeout if connection._state & 7 == OPENING else self.idle_timeout
            due = connection._seen + engine.wheel.ticks(seconds) if seconds else 0
        if due > engine.tick or not due:
            return due
        if exchange is None or exchange.answered or (exchange.head is None and not exchange.raw.strip()):
            self.counts.idle += 1
            connection.finish(ConnectionClosed(1000, "idle", "us"))
        else:
            self._refuse_now(connection, Rejection(408, body="No complete request came in time.\n"))
        return 0

    def drain(self, connection: Any) -> None:
        """The server is going away: what is idle is closed, what has a request in hand after its answer."""
        exchange: _Exchange | None = connection._input
        if exchange is None or (exchange.answered and not connection._state & BUSY):
            connection.finish(ConnectionClosed(1001, "server is going away", "us"))
        else:
            exchange.last = True


async def _pieces(body: bytes | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The body in pieces of moderate size; no empty ones."""
    if isinstance(body, bytes):
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
        return
    try:
        async for piece in body:
            for start in range(0, len(piece), _PIECE):
                yield piece[start : start + _PIECE]
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()


Route: TypeAlias = "Responder | Response | HttpProtocol | bytes | str"
_Found: TypeAlias = tuple[Responder, str, dict[str, str], HttpProtocol]
