"""What is known of a connection, and which connections a user has."""

from __future__ import annotations

from typing import Any

from trionet.protocols.channel import WebSocket

__all__ = ["Session", "Users"]


class Session:
    """A connection of the bus: `ws.data`."""

    __slots__ = ("_node", "_serial", "_user")

    def __init__(self, node: str, serial: int, user: Any) -> None:
        self._node = node  # shared by all of a process: an id of its own would cost each session 60 bytes
        self._serial = serial
        self._user = user

    @property
    def user(self) -> Any:
        """What `authenticate` has returned; it stays."""
        return self._user

    @property
    def id(self) -> str:
        """Unlike that of any other connection, in all processes."""
        return f"{self._node}-{self._serial:x}"

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.user!r}>"


class _Several(set[WebSocket]):
    """Connections of one user who has more than one."""

    __slots__ = ()


class Users:
    """The connections of each user. One who has a single one costs an entry in a dict."""

    def __init__(self) -> None:
        self._found: dict[str, WebSocket | _Several] = {}

    def add(self, user: str, ws: WebSocket) -> None:
        """`ws` is a connection of `user`."""
        found = self._found.setdefault(user, ws)
        if isinstance(found, _Several):
            found.add(ws)
        elif found is not ws:
            self._found[user] = _Several((found, ws))

    def remove(self, user: str, ws: WebSocket) -> None:
        """`ws` has ended."""
        found = self._found.get(user)
        if isinstance(found, _Several):
            found.discard(ws)
            if len(found) == 1:
                self._found[user] = found.pop()
        elif found is ws:
            del self._found[user]

    def find(self, user: str) -> tuple[WebSocket, ...]:
        """All connections of `user`."""
        found = self._found.get(user)
        return () if found is None else tuple(found) if isinstance(found, _Several) else (found,)

    def __len__(self) -> int:
        """Users who are connected."""
        return len(self._found)
