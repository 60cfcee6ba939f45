"""Admission policies: whether one more connection may come in, decided at the accept gate.

A policy only decides. Time and readings are given to it; the gate acts. What happens to those refused is each policy's
`action`:

    wait      they stay in the kernel's backlog, and the gate looks again soon. Costs nothing; clients see a slow server
    reset     accepted and reset: cheap, and clients know at once
    answer    accepted, and answered 503 with Retry-After when their request has come, after TLS if that is spoken.
              Those that speak no HTTP, and more than a few hundred at once, are reset

Give one, or a list, to ``open_server(admission=...)``. In a list the first refusal wins.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, Literal, TypeAlias

from trionet.errors import ConfigurationError
from trionet.net.load import Load

__all__ = ["MANY", "Action", "AdmissionPolicy", "positive"]

Action: TypeAlias = Literal["wait", "reset", "answer"]

MANY: Final = 2**31  # no limit
_TAKEN: Final = {"connections", "handshakes", "detached", "tasks", "descriptors"}


class AdmissionPolicy:
    """Override what it is about: `room` for the state of the server, `admit` and `left` for single connections.

    `name`: what it is called in logs and metrics: no other policy's, nor that of a limit of the gate ("connections",
    "handshakes", "detached", "tasks", "descriptors"). `action`: what happens to those refused. `retry_after`: the
    seconds of a 503's Retry-After, and up to twice as many, drawn by lot, so that those refused do not come back
    together. All methods are called in the Trio thread and must not wait. One that raises is logged: `admit` costs its
    connection, and `room` and `sample` count as not refusing.
    """

    name = "policy"
    action: Action = "wait"
    retry_after = 5.0
    #: Whether `admit` and `left` are asked, for each connection.
    per_connection: ClassVar[bool] = False

    def __init__(
        self, *, name: str | None = None, action: Action | None = None, retry_after: float | None = None
    ) -> None:
        """What is not given is that of the class."""
        if name is not None:
            self.name = name
        if action is not None:
            self.action = action
        if retry_after is not None:
            self.retry_after = retry_after
        self.check()

    def check(self) -> None:
        """Raise `ConfigurationError` if it cannot be done: servers ask, for `__init__` may have been overridden."""
        if self.action not in {"wait", "reset", "answer"}:
            raise ConfigurationError(f'action is "wait", "reset" or "answer", not {self.action!r}')
        if self.action == "wait" and self.per_connection:
            raise ConfigurationError(
                f"{type(self).__name__}: who it is that waits is known only after accepting, so nobody can be left in"
                ' the backlog: use "reset" or "answer"'
            )
        if not (self.name and isinstance(self.name, str)) or self.name in _TAKEN:
            raise ConfigurationError(f"a policy cannot be called {self.name!r}")
        positive(self.retry_after, "retry_after")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.action}>"

    def sample(self, load: Load) -> None:
        """Look at the state of the server; called four times a second, and once before the first `room`."""

    def room(self, load: Load) -> int:  # noqa: ARG002
        """How many connections may be accepted now; 0 refuses. Called before each accepting."""
        return MANY

    def accepted(self, count: int) -> None:
        """So many came in since `room` was asked."""

    def explain(self, load: Load) -> str:  # noqa: ARG002
        """The reason for refusing now, with its numbers, for the log and for who asks whether the server is ready."""
        return "refused"

    def admit(self, peer: Any) -> Any:  # noqa: ARG002
        """Whether this peer may come in: None refuses, anything else is told to `left` when the connection ends.

        `peer` is what accept(2) reports, ``(host, port, ...)``, or what a PROXY header says; no tuple on a Unix socket.
        """
        return True

    def left(self, admitted: Any) -> None:
        """The connection for which `admit` returned `admitted` has ended."""


def positive(value: float, name: str, least: float = 0) -> Any:
    """Return `value`, or raise `ConfigurationError` that says what it must be."""
    if not value > 0 or value < least or not math.isfinite(value):
        raise ConfigurationError(
            f"{name} must be {f'at least {least}' if least else 'positive'}, not {value!r}"
        )
    return value
