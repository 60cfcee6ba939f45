"""What a client of the bus makes of the messages of one topic: new, had already, some are missing. Pure.

    state   what it means                          subscribed   message, join, leave, reset   lost, gap, full
    IDLE    not asked for: no connection, a pause  -            not for us                    -
    ASKED   subscribe was sent, with our `number`  LIVE (*)     not for us                    IDLE
    LIVE    subscribed                             -            judged                        IDLE
    (*) if it answers our number; another one's is the answer to an earlier request

    LIVE, a message with an offset      and then
    of an epoch that is not ours        GAP: nobody has told us of a new one
    offset <= ours                      SEEN
    its previous > ours                 GAP: the server left some out, for we read slowly; NEW if the topic conflates
    else                                NEW, or OWN: published by us, for the others

From any GAP, and from any connection that was lost, `ask` takes up where `position` is; what the server cannot fill in
it says (`subscribed` with recovered: false, or `reset`). So what is NEW, taken together, is the topic without a gap and
without a double from one reset to the next. trionet.js does the same by the same table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from trionet.pubsub.publication import Position

__all__ = ["BusSubscribed", "Following", "State", "Verdict", "place"]


class State(enum.Enum):
    """See the module's table."""

    IDLE = enum.auto()
    ASKED = enum.auto()
    LIVE = enum.auto()


class Verdict(enum.Enum):
    """What a message is to us."""

    NEW = enum.auto()
    OWN = enum.auto()
    SEEN = enum.auto()
    GAP = enum.auto()
    STRAY = enum.auto()  # of an earlier subscription to the same topic


@attrs.frozen
class BusSubscribed:
    """The server has subscribed us. `recovered`: nothing is missing since the position we gave; None: we gave none.

    `again`: it had done so before. `broken`: messages may be missing between then and now.
    """

    recovered: bool | None
    again: bool
    broken: bool
    position: Position | None
    conflated: bool


def place(message: Mapping[str, Any]) -> Position | None:
    """The position that a message of the server names; None: it names none."""
    epoch, offset = message.get("epoch"), message.get("offset")
    return Position(epoch, offset) if isinstance(epoch, str) and isinstance(offset, int) else None


class Following:
    """A subscription to `topic`, or to a pattern: see the module. `position`: behind the last message that was NEW."""

    def __init__(self, topic: str, since: Position | None = None) -> None:
        self.topic = topic
        self.position = since
        self.state = State.IDLE
        self.number: int | None = None
        self.conflated = False
        self.begun = False
        self._own: set[int] = (
            set()
        )  # offsets ahead of ours that we published for the others: at most our publications

    def ask(self, number: int) -> dict[str, Any]:
        """The request, with `number` as its id, for all that we lack and all that follows."""
        self.state, self.number = State.ASKED, number
        request: dict[str, Any] = {"type": "subscribe", "id": number, "topic": self.topic}
        if self.position is not None:
            request["since"] = self.position._asdict()
        return request

    def idle(self) -> None:
        """The connection was lost, or we have given the subscription back."""
        self.state, self.number = State.IDLE, None

    def subscribed(self, message: Mapping[str, Any]) -> BusSubscribed | None:
        """The server says subscribed; None: it answers something else."""
        if self.state is not State.ASKED or message.get("id") != self.number:
            return None
        recovered = message.get("recovered")
        again, self.begun = self.begun, True
        self.state = State.LIVE
        self.conflated = bool(message.get("conflated"))
        self.position = place(message)
        if recovered and self.position is not None:
            self._advance(self.position.offset)
        else:
            self._own.clear()
        broken = recovered is False or (again and not recovered)
        return BusSubscribed(recovered, again, broken, self.position, self.conflated)

    def judge(self, message: Mapping[str, Any]) -> Verdict:
        """What a message is; NEW and OWN move our position. After a GAP give it back, and `ask` again."""
        if self.state is not State.LIVE:
            return Verdict.STRAY
        ours, offset = self.position, message.get("offset")
        if ours is None or offset is None or message.get("topic") != self.topic:
            return Verdict.NEW  # nobody counts: a topic without history, or one that a pattern stands for
        if message.get("epoch", ours.epoch) != ours.epoch:
            return Verdict.GAP
        if offset <= ours.offset:
            return Verdict.SEEN
        if message.get("previous", offset - 1) > ours.offset and not self.conflated:
            return Verdict.GAP
        own = offset in self._own
        self._own.discard(offset)
        self._advance(offset)
        return Verdict.OWN if own else Verdict.NEW

    def reset(self, message: Mapping[str, Any]) -> bool:
        """The server says that messages before a position may be missing. False: that is not for us."""
        if self.state is not State.LIVE:
            return False
        if self.position is not None:
            self.position = place(message)
        self._own.clear()
        return True

    def published(self, position: Position) -> None:
        """We have published this for the others, so it will not come: it is no gap."""
        ours = self.position
        if ours is not None and position.epoch == ours.epoch and position.offset > ours.offset:
            self._own.add(position.offset)
            if self.state is State.LIVE:  # else what we have asked for begins before it
                self._advance(ours.offset)

    def _advance(self, offset: int) -> None:
        while offset + 1 in self._own:
            offset += 1
            self._own.discard(offset)
        assert self.position is not None
        self.position = Position(self.position.epoch, offset)
