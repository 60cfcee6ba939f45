"""What a request head says, as a handler sees it. `head.HeadScanner` makes these."""

from __future__ import annotations

from trionet.wire.cookies import parse_cookies
from trionet.wire.tokens import has_element, tokens

__all__ = ["Request"]


class Request:
    """The head of one HTTP/1.1 request, already checked; cannot be changed.

    It keeps what the handshake needs and the headers whose names were declared, nothing else, and it owns
    its bytes: it stays valid after the receive buffer went on to other things. Text is decoded when asked
    for, so a handler that looks at nothing pays for nothing.
    """

    __slots__ = (
        "_chunked",
        "_found",
        "_headers",
        "_host",
        "_length",
        "_method",
        "_minor",
        "_parameters",
        "_repeated",
        "_size",
        "_skipped",
        "_target",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        minor: int,
        host: bytes,
        found: dict[bytes, bytes],
        headers: dict[str, list[str]],
        repeated: frozenset[bytes],
        size: int,
        skipped: int,
        length: int | None,
        chunked: bool,
    ) -> None:
        self._method = method
        self._target = target
        self._minor = minor
        self._host = host
        self._found = found  # the handshake's headers (and the declared ones), lines of one name joined
        self._headers = headers
        self._repeated = repeated  # names of headers that came more than once
        self._size = size
        self._skipped = skipped
        self._length = length
        self._chunked = chunked
        self._parameters: dict[str, str] | None = None  # set by whoever has found the route

    def __repr__(self) -> str:
        # No query, no headers: they hold tokens and cookies, and a repr ends up in logs.
        return f"<Request {self.method} {self.path} HTTP/1.{self._minor} from {self.host or 'nobody'}>"

    @property
    def method(self) -> str:
        """The method, "GET" for every WebSocket."""
        return self._method.decode()

    @property
    def target(self) -> str:
        """The request target as sent; of an absolute-form target (RFC 9112, 3.2.2) only path and query.

        It begins with "/", except for `OPTIONS *` ("*") and CONNECT ("host:port").
        """
        return self._target.decode()

    @property
    def path(self) -> str:
        """The target up to the first "?", not percent-decoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first "?" of the target; empty when there is none."""
        return self.target.partition("?")[2]

    @property
    def path_params(self) -> dict[str, str]:
        """What stands in the place of each ``{name}`` of a `Router`'s pattern, percent-decoded; empty without one."""
        return self._parameters or {}

    @property
    def version(self) -> tuple[int, int]:
        """(1, 0) or (1, 1); any later minor version is taken as 1.1 (RFC 9110, 2.5)."""
        return 1, self._minor

    @property
    def host(self) -> str:
        """The authority the client asked for, "host" or "host:port" in lower case.

        From the target if it names one, else from the Host header. Empty if HTTP/1.0 left it out.
        """
        return self._host.decode()

    @property
    def origin(self) -> str | None:
        """The Origin header: where the page that asks came from. None when no browser asks."""
        origin = self._found.get(b"origin")
        return None if origin is None else origin.decode("latin-1")

    @property
    def headers(self) -> dict[str, list[str]]:
        """The declared headers that came, by lower-case name; repeated ones keep every value, in order.

        Bytes above 127 are decoded as ISO 8859-1. A fresh copy: changing it changes nothing.
        """
        return {name: values[:] for name, values in self._headers.items()}

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that came, by name; a fresh dict. Where ``cookie`` is a declared header, as it is by default."""
        return parse_cookies(self._headers.get("cookie", ()))

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The subprotocols the client offers, best first; empty when it offers none, or not readably."""
        offered = self._found.get(b"sec-websocket-protocol")
        found = None if offered is None else tokens(offered)
        return tuple([name.decode() for name in found]) if found else ()

    @property
    def extensions(self) -> str | None:
        """The WebSocket extensions the client offers, all header lines joined; None when it offers none."""
        offered = self._found.get(b"sec-websocket-extensions")
        return None if offered is None else offered.decode("latin-1")

    @property
    def key(self) -> bytes | None:
        """The Sec-WebSocket-Key as sent; None without one. Checked by `check_upgrade`, not before."""
        return self._found.get(b"sec-websocket-key")

    @property
    def upgrade(self) -> bool:
        """Whether a switch to WebSocket is asked for: in Upgrade and in Connection, by HTTP/1.1 or later.

        An Upgrade header in HTTP/1.0 must be ignored (RFC 9110, 7.8).
        """
        return (
            self._minor > 0
            and self._lists(b"upgrade", b"websocket")
            and self._lists(b"connection", b"upgrade")
        )

    @property
    def websocket(self) -> bool:
        """Whether anything in the head belongs to a WebSocket handshake, be it complete or broken.

        Such a request goes to `check_upgrade`, which says what is missing, and never to an HTTP handler.
        """
        found = self._found
        return (
            b"sec-websocket-key" in found
            or b"sec-websocket-version" in found
            or self._lists(b"upgrade", b"websocket")
        )

    def _lists(self, name: bytes, element: bytes) -> bool:
        """Whether the header `name` came and its list has `element` (both in lower case)."""
        value = self._found.get(name)
        return value is not None and has_element(value, element)

    @property
    def expects_continue(self) -> bool:
        """Whether "100-continue" is expected: a 100 must be sent, also before a 101 (RFC 9110, 7.8)."""
        return self._minor > 0 and self._lists(b"expect", b"100-continue")

    @property
    def content_length(self) -> int | None:
        """The declared bytes of the body; None when not declared."""
        return self._length

    @property
    def chunked(self) -> bool:
        """Whether a body in chunks follows (RFC 9112, 7.1)."""
        return self._chunked

    @property
    def size(self) -> int:
        """Bytes that the head takes in the buffer, with skipped empty lines and the empty line at its end."""
        return self._size

    @property
    def skipped(self) -> int:
        """Bytes of the empty lines before the request line (RFC 9112, 2.2); h11 must not see them."""
        return self._skipped
