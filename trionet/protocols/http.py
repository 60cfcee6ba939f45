"""Plain HTTP/1.1: pages and health checks beside WebSockets, or on a port of their own. h11 does the parsing.

    OPENING   on a port of our own: no whole request head has come yet
    OPEN      idle: nothing is kept, no h11 object either
              reading a request, or answering it: an `_Exchange`

Every head passes `HeadScanner` before h11 sees it. A request is read whole, within limits, then answered by
a responder: any coroutine function from `HttpRequest` to `Response`. Requests sent without waiting for the
answers are answered one after the other. `trionet.protocols.static` has responders for files.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import trio

from trionet.errors import ConfigurationError, ConnectionClosed, Rejection
from trionet.net.connection import BUSY, OPEN, OPENING, Connection
from trionet.net.traits import retarget
from trionet.protocols.base import Protocol
from trionet.protocols.responders import HttpRequest, Responder, Response, as_responder, as_response, fixed
from trionet.protocols.websocket import http_date
from trionet.wire.handshake import HeadLimits, HeadScanner, Request
from trionet.wire.http1 import build_rejection, refuse

if TYPE_CHECKING:
    import h11  # at run time only with the first request: it is a megabyte that many servers never need

__all__ = ["HttpProtocol"]

log = logging.getLogger("trionet")

_BODILESS: Final = frozenset({204, 304})
_PIECE: Final = 65536  # bytes of a body written at once
_EVENTS: Final = 64  # of h11, after which others get a turn: a body may come in chunks of one byte


class _Exchange:
    """What a connection keeps from the first byte of a request until the last of its answer."""

    __slots__ = ("answered", "body", "due", "head", "headers", "last", "parser", "raw", "responder", "rest")

    def __init__(self) -> None:
        self.raw = bytearray()  # the head, until it is whole
        self.due = 0  # tick at which head or body must have come
        self.last = False  # the connection is to be closed after the answer
        self.answered = False  # the response is begun
        self.head: Request | None = None
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.rest = ""
        self.parser: h11.Connection
        self.responder: Responder


class HttpProtocol(Protocol):
    """Serves `routes`, which maps paths to responders.

    A key is a path (``"/healthz"``) or, ending with a slash, a prefix (``"/static/"``: all below it; the
    longest prefix wins, an exact path before any). Paths are compared as sent. Responders are asked GET and
    HEAD, unless the key begins with another method: ``"POST /login"``. A bytes or str value, or a `Response`,
    is a fixed answer. A responder may raise `Rejection`; any other exception is logged and answered with 500.

    `max_body`: bytes of the largest request body; it is read before the responder is called. Deadlines, in
    seconds, None for none: `header_timeout` (from the first byte of a head to its last), `body_timeout` (the
    same for a body), `idle_timeout` (no request in hand). Others: see `Protocol`.
    """

    scheme = "http"

    def __init__(
        self,
        routes: Mapping[str, Responder | Response | bytes | str],
        *,
        max_body: int = 65536,
        head_limits: HeadLimits | None = None,
        header_timeout: float | None = 10.0,
        body_timeout: float | None = 30.0,
        idle_timeout: float | None = 60.0,
        write_timeout: float | None = 60.0,
        high_water: int = 65536,
        read_ahead: int = 65536,
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
        self._scanner = HeadScanner(head_limits or HeadLimits(), frozenset())
        self._exact: dict[str, dict[str, Responder]] = {}
        self._prefixes: dict[str, dict[str, Responder]] = {}
        for key, value in routes.items():
            self._add(key, as_responder(value))
        self._prefixes = dict(sorted(self._prefixes.items(), key=lambda item: -len(item[0])))

    # ---------------------------------------------------------------- routes

    def _add(self, key: str, responder: Responder) -> None:
        method, _, path = key.rpartition(" ")
        if not path.startswith("/") or (method and not method.isupper()):
            raise ConfigurationError(f'a route is "/path", "/prefix/" or "METHOD /path", not {key!r}')
        methods = (self._prefixes if path.endswith("/") else self._exact).setdefault(path, {})
        for name in ("GET", "HEAD") if method in ("", "GET") else (method,):
            methods[name] = responder

    def _route(self, head: Request) -> tuple[Responder, str]:
        """Who answers this request, and what follows the route's prefix. Raises `Rejection`."""
        path, method = head.path, head.method
        if method == "CONNECT":
            raise refuse(501, "This is no proxy.")
        methods, rest = self._exact.get(path), ""
        if methods is None:
            for prefix, methods in self._prefixes.items():  # noqa: B007
                if path.startswith(prefix):
                    rest = path[len(prefix) :]
                    break
            else:
                if path == "*":  # OPTIONS for the server as a whole (RFC 9110, 9.3.7)
                    return fixed(Response(204)), ""
                raise refuse(404, "There is nothing here.")
        responder = methods.get(method)
        if responder is None:
            allow = ", ".join(sorted({*methods, "OPTIONS"}))
            if method == "OPTIONS":
                return fixed(Response(204, headers=[("Allow", allow)])), ""
            raise refuse(405, f"{method} is not allowed here; use {allow}.", [("Allow", allow)])
        return responder, rest

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

    async def _give_back(self, connection: Any, data: bytes) -> None:
        protocol, connection.data = connection.data, None
        connection.protocol = protocol
        connection.__class__ = retarget(type(connection), protocol.connection_class)
        connection._input = None
        connection._state += OPENING - OPEN
        connection.engine.opening += 1
        protocol.connection_made(connection)
        await protocol.data_received(connection, data)

    async def data_received(self, connection: Any, data: bytes) -> None:
        """Serve the requests that `data` completes, one after the other."""
        exchange: _Exchange | None
        while data and connection.closed is None:
            exchange = connection._input
            if exchange is None:
                exchange = connection._input = _Exchange()
            try:
                if exchange.head is not None:
                    exchange.parser.receive_data(data)
                elif not self._read_head(connection, exchange, data):
                    return
                elif self._begin(connection, exchange):
                    await self._give_back(connection, bytes(exchange.raw))
                    return
                data = b""
                if not await self._read_body(connection, exchange):
                    return
            except Rejection as rejection:
                await self._refuse(connection, rejection)
                return
            head = exchange.head
            assert head is not None
            request = HttpRequest(head, exchange.headers, bytes(exchange.body), exchange.rest, connection)
            try:
                response = await exchange.responder(request)
            except Rejection as rejection:
                response = as_response(rejection)
            del request
            if connection.closed is None:
                data = await self._answer(connection, exchange, response)
            del exchange
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

    def _begin(self, connection: Any, exchange: _Exchange) -> bool:
        """Let h11 have the head, and find out who answers. True: WebSocket does. Raises `Rejection`."""
        import h11

        head = exchange.head
        assert head is not None
        if head.websocket and connection.data is not None:
            return True
        parser = exchange.parser = h11.Connection(h11.SERVER)
        parser.receive_data(bytes(exchange.raw[head.skipped :]))
        exchange.raw.clear()
        exchange.due = 0
        event = _next_event(parser)
        assert isinstance(event, h11.Request)
        headers = exchange.headers
        for raw_name, value in event.headers:
            name, text = raw_name.decode("ascii"), value.decode("latin-1")
            if name in headers:
                text = headers[name] + ("; " if name == "cookie" else ", ") + text
            headers[name] = text
        if (head.content_length or 0) > self.max_body:
            raise refuse(413, f"A body of more than {self.max_body} bytes; send less.")
        if headers.get("expect", "100-continue").lower() != "100-continue" and head.version >= (1, 1):
            raise refuse(417, "Nothing but 100-continue can be expected here.")  # RFC 9110, 10.1.1
        try:
            exchange.responder, exchange.rest = self._route(head)
        except Rejection as rejection:
            if head.content_length or head.chunked or head.method == "CONNECT":
                raise  # do not ask for a body that nobody wants; closing spares us reading it
            exchange.responder = fixed(as_response(rejection))
        return False

    async def _read_body(self, connection: Any, exchange: _Exchange) -> bool:
        """Whether the body has come whole. Raises `Rejection`."""
        import h11

        parser, body, count = exchange.parser, exchange.body, 0
        while True:
            event = _next_event(parser)
            if isinstance(event, h11.EndOfMessage):
                exchange.due = 0
                return True
            if isinstance(event, h11.Data):
                if len(body) + len(event.data) > self.max_body:
                    raise refuse(413, f"A body of more than {self.max_body} bytes; send less.")
                body += event.data
            else:
                break
            count += 1
            if count % _EVENTS == 0:
                await trio.lowlevel.checkpoint()
        if parser.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            connection.write(parser.send(go_on))
        if not exchange.due:
            self._expect(connection, exchange, self.body_timeout)
        return False

    # --------------------------------------------------------------- responses

    async def _answer(self, connection: Any, exchange: _Exchange, response: Response) -> bytes:
        """Send `response`. Returns what has come behind the request."""
        import h11

        parser = exchange.parser
        assert exchange.head is not None
        bodiless = response.status in _BODILESS
        headers = [(b"Date", http_date())]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in response.headers]
        if response.length is not None and not bodiless:
            headers.append((b"Content-Length", b"%d" % response.length))
        if exchange.last or connection.engine.draining:
            headers.append((b"Connection", b"close"))
        first = parser.send(
            h11.Response(
                status_code=response.status, headers=headers, reason=response.reason.encode("latin-1")
            )
        )
        assert first is not None
        exchange.answered = True
        self.responses[response.status] += 1
        if not bodiless and exchange.head.method != "HEAD":
            if isinstance(response.body, bytes) and len(response.body) <= _PIECE:
                first += parser.send(h11.Data(data=response.body)) or b""
            else:
                first = await self._send_pieces(connection, parser, first, response.body)
        first += parser.send(h11.EndOfMessage()) or b""
        if first:
            await connection.wait_writable(len(first))
            connection.write(first)
        connection._input = None
        if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
            rest: bytes = parser.trailing_data[0]
            self._expect(connection, None, self.idle_timeout)
            return rest
        if connection.closed is None:
            await connection.wait_writable(self.high_water)  # a lingering connection has two seconds
            connection.note_closed(ConnectionClosed(1000, "answered", "us"))
            connection.linger()
        return b""

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
        if connection.closed is not None and _only_closed(error):
            return
        self.handler_failures += 1
        exchange: _Exchange | None = connection._input
        head = exchange.head if exchange is not None else None
        log.error("%r: %s failed", connection, head or "HTTP", exc_info=error)
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
        if connection._state & BUSY:  # the responder takes its time; the peer is not to blame
            return engine.tick + engine.wheel.ticks(self.idle_timeout or 10.0)  # type: ignore[no-any-return]
        if exchange is not None:
            due = exchange.due
        else:
            seconds = self.header_timeout if connection._state & 7 == OPENING else self.idle_timeout
            due = connection._seen + engine.wheel.ticks(seconds) if seconds else 0
        if due > engine.tick or not due:
            return due
        if exchange is None or (exchange.head is None and not exchange.raw.strip()):
            connection.finish(ConnectionClosed(1000, "idle", "us"))
        else:
            self._refuse_now(connection, Rejection(408, body="No complete request came in time.\n"))
        return 0

    def drain(self, connection: Any) -> None:
        """The server is going away: what is idle is closed, what has a request in hand after its answer."""
        exchange: _Exchange | None = connection._input
        if exchange is None:
            connection.finish(ConnectionClosed(1001, "server is going away", "us"))
        else:
            exchange.last = True


def _next_event(parser: h11.Connection) -> Any:
    """Like `next_event`; what h11 finds wrong becomes a `Rejection`."""
    import h11

    try:
        return parser.next_event()
    except h11.RemoteProtocolError as error:
        raise refuse(error.error_status_hint, "Not HTTP/1.1; check how the body is framed.") from error


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


def _only_closed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_only_closed, error.exceptions))
    return isinstance(error, ConnectionClosed)
