"""Several protocols on one port, by path: WebSockets, pages, events.

A `Router` is an `HttpProtocol` that also knows `WebSocketProtocol`. Its one scanner reads each head, keeping the
headers that any of them declared; then the connection becomes what the path asks for, and is that protocol's alone.
Nothing of the router stays with it: an idle WebSocket costs here what it costs without, but for the words that only
WebSockets of another path have a use for (one word for rate limits, say), because all have to fit the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trionet.errors import ConfigurationError, Rejection
from trionet.net.traits import room_for
from trionet.protocols.http import HttpProtocol, Route, _Exchange
from trionet.protocols.websocket import WebSocketProtocol
from trionet.wire.handshake import HeadScanner
from trionet.wire.http1 import refuse

__all__ = ["Router"]

_WEBSOCKET = "websocket"  # in place of a method


class Router(HttpProtocol):
    """Serves `routes` as `HttpProtocol` does; their values may also be of `WebSocketProtocol`.

    For example::

        Router({
            "/": StaticFile("index.html"),
            "/chat/{room}": WebSocketProtocol(chat),
            "/events": Events(),
        })

    A WebSocket's handler finds what stands for ``{room}`` in `Request.path_params`. The same path may have a page and
    a WebSocket: each request gets what it asks for. A plain request where there is only a WebSocket is answered with
    426, a WebSocket where there is only a page as if it did not ask. Options are those of `HttpProtocol`; they bound
    the head of every request. Where a `WebSocketProtocol` has `head_limits` of its own, or `on_header`, they hold too;
    `trusted_proxies` are each protocol's own.
    """

    def __init__(self, routes: Mapping[str, Route | WebSocketProtocol], **options: Any) -> None:
        self._websockets: list[WebSocketProtocol] = []
        super().__init__(routes, **options)  # type: ignore[arg-type]
        protocols = self._websockets
        names = self._scanner._names.union(*(protocol._scanner._names for protocol in protocols))
        self._scanner = HeadScanner(self._limits, names)
        self.connection_class = room_for(*(protocol.connection_class for protocol in protocols))

    async def adopt(self, connection: Any, data: bytes) -> None:  # noqa: ARG002
        """Not as ``WebSocketProtocol(http=...)``: the connections would lack the room."""
        raise ConfigurationError("put the WebSocketProtocol into the Router, not the Router into its http=")

    def _add(self, method: str, path: str, value: Any) -> None:
        if not isinstance(value, WebSocketProtocol):
            super()._add(method, path, value)
            return
        if method:
            raise ConfigurationError(f"a WebSocket is opened with GET; leave out {method!r} of {path!r}")
        if value.http is not None:
            raise ConfigurationError(
                f"the pages beside the WebSocket at {path!r} belong into the router, not in http="
            )
        self._websockets.append(value)
        self._put(path, (_WEBSOCKET,), value)

    def _no_such_method(self, methods: dict[str, Any]) -> None:
        if methods.keys() == {_WEBSOCKET}:
            raise refuse(426, "This address speaks WebSocket only; connect with a WebSocket client.")

    async def _leaves(self, connection: Any, exchange: _Exchange) -> bool:
        head = exchange.head
        assert head is not None
        if not head.websocket:
            return False
        match = self._routes.find(head.path, head.host)
        protocol: WebSocketProtocol | None = match.value.get(_WEBSOCKET) if match is not None else None
        if match is None or protocol is None:
            return await super()._leaves(connection, exchange)
        request, data = head, bytes(exchange.raw)
        data += self._becomes(connection, protocol)
        scanner = protocol._scanner
        if scanner._on_header is not None or scanner._limits != self._limits:
            try:
                request = scanner.scan(data) or head
            except Rejection as rejection:
                protocol.refuse(connection, rejection)
                return True
        if scanner._names != self._scanner._names:  # what others have declared is not this handler's business
            names = {name.decode() for name in scanner._names}
            request._headers = {name: values for name, values in request._headers.items() if name in names}
        request._parameters = match.parameters
        del exchange
        await protocol.opening(connection, data, request)
        return True
