"""Every exception trionet raises on purpose: whose fault it is, and what the peer is told.

    TrionetError
    ├── ProtocolError        the peer broke RFC 6455        peer is sent Close `code`
    ├── Rejection            a request head is refused      peer is sent an HTTP response
    ├── UpgradeRefused       a server (or a proxy) refused us: the HTTP response it sent
    ├── ConnectionClosed     you used a connection that has ended; says how it ended
    ├── ConfigurationError   you passed settings that cannot work (also a `ValueError`)
    ├── TopicError           a topic's name, or a number of topics, that is not allowed (also a `ValueError`)
    ├── BrokerError          a broker refused; BrokerDown: it cannot be reached now
    └── BusError             a server's bus refused a client of it, which was told a `code`

Waiting that is not allowed (`send_nowait` to a full queue) raises `trio.WouldBlock`; two tasks in one
place raise `trio.BusyResourceError`; both are Trio's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

__all__ = [
    "BrokerDown",
    "BrokerError",
    "BusError",
    "ConfigurationError",
    "ConnectionClosed",
    "ProtocolError",
    "Rejection",
    "TopicError",
    "TrionetError",
    "UpgradeRefused",
    "first_error",
    "nothing_but",
    "printable",
]


class TrionetError(Exception):
    """Base of every exception defined by trionet."""


class ConfigurationError(TrionetError, ValueError):
    """Settings that contradict each other or cannot work on this machine."""


class TopicError(TrionetError, ValueError):
    """A topic's name is not allowed, or somebody wants more topics than they may have."""


class BrokerError(TrionetError):
    """The broker refused, or failed at, what it was asked: its own words."""


class BrokerDown(BrokerError):
    """The broker cannot be reached now, or did not answer in time.

    What was being published may have arrived or not: publish it again with the same `key`, and it is there once.
    """


class BusError(TrionetError):
    """What a client of a bus asked for was refused, or cannot be had any more.

    `code` is one of the protocol's (``forbidden``, ``unavailable``, …), or the client's own: ``closed`` (no connection,
    and none will be made), ``queue-full``. `retry`: whether the same may work later. `key`: of a publication that may
    have arrived or not; published again with it, it is there once.
    """

    def __init__(self, code: str, text: str = "", *, retry: bool = False, key: str | None = None) -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code
        self.text = text
        self.retry = retry
        self.key = key


class ProtocolError(TrionetError):
    """The peer sent what RFC 6455 forbids; the connection is failed with `code` (section 7.1.7)."""

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Rejection(TrionetError):
    """A request that is answered with an HTTP error instead of being served.

    Raise it from an upgrade hook to refuse a WebSocket::

        raise Rejection(401, headers=[("WWW-Authenticate", "Bearer")], body="Who are you?")

    `status` is 300 to 599 (a redirect is a refusal too). `reason` is the phrase of the status line, taken
    from the registry when omitted. `headers` are added to the response; names or values that would inject
    a header raise `ConfigurationError` when the response is built. `body` is sent as UTF-8 text.
    """

    def __init__(
        self,
        status: int,
        reason: str = "",
        headers: Iterable[tuple[str, str]] = (),
        body: str | bytes = "",
    ) -> None:
        super().__init__(f"{status} {reason}".rstrip())
        self.status = status
        self.reason = reason
        self.headers = tuple(headers)
        self.body = body


class UpgradeRefused(TrionetError):
    """The server has answered a client's opening handshake by an HTTP response that is no switch to WebSocket.

    `status`, `reason` and `headers` are those of the response, `body` is the beginning of its body (bytes, 4 KiB at
    most). `by` is "proxy" when it was an HTTP proxy that would not connect us. `where` is whom we asked.
    """

    def __init__(
        self,
        status: int,
        reason: str = "",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        by: Literal["server", "proxy"] = "server",
        where: str = "",
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = tuple(headers)
        self.body = body
        self.by = by
        self.where = where

    def header(self, name: str) -> str | None:
        """The value of a header of the response, its lines joined by commas; None when it did not come."""
        values = [value for other, value in self.headers if other.lower() == name.lower()]
        return ", ".join(values) if values else None

    def __str__(self) -> str:
        text = f"the {self.by} {self.where} answered {self.status} {printable(self.reason)}".rstrip()
        if location := self.header("location"):
            text += f" to {printable(location[:200])} (redirects are followed if the option `redirects` says how many)"
        elif self.body:
            first = self.body.decode(errors="replace").strip().partition("\n")[0][:120]
            text += f": {first}" if first.isprintable() else ""
        return text


class ConnectionClosed(TrionetError):
    """The connection has ended, or is ending: nothing more can be sent or received.

    `code` and `reason` are those of the Close frame that decided it: 1005 when a Close frame came without
    a code, 1006 when the connection broke without one (RFC 6455, 7.1.5). `by` says who ended it:
    "peer", "us" (the application or a broken rule), or "network".
    """

    def __init__(self, code: int, reason: str = "", by: Literal["peer", "us", "network"] = "peer") -> None:
        self.code = code  # `args` are set by BaseException.__new__
        self.reason = reason
        self.by = by

    def __str__(self) -> str:
        return f"closed by {self.by}: {self.code}" + (f" {printable(self.reason)}" if self.reason else "")

    @property
    def clean(self) -> bool:
        """Whether a closing handshake ended it the ordinary way: with 1000, 1001 or no code (1005)."""
        return self.code in (1000, 1001, 1005)


def printable(text: str) -> str:
    """The same without what would act on a terminal or forge a line of a log: escaped as Python writes it."""
    return text if text.isprintable() else repr(text)[1:-1]


def first_error(error: BaseException) -> BaseException:
    """The error itself, or the first that is in a group of errors, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def nothing_but(kind: type[BaseException], error: BaseException) -> bool:
    """Whether `error` is a `kind`, or a group in which there is nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)[1] is None
    return isinstance(error, kind)
