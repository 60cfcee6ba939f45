"""Who of this process is present where: told to the broker, kept alive there, and taken back when they have gone.

A member is present as long as one of its *owners* (connections, anywhere) is. An owner that was lost stays for `linger`
seconds: who comes back meanwhile, to whichever process, has not left, so nobody is told anything. That holds when this
process ends, too: it leaves word that its owners have `linger` seconds more. If it is killed they expire at the broker
after `TTL`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import attrs
import trio

from trionet.errors import BrokerError
from trionet.pubsub.broker import Broker

__all__ = ["TTL", "Attendance"]

log = logging.getLogger("trionet.pubsub")

TTL: Final = 30.0  # seconds an owner is present without being refreshed
_TICK: Final = 0.5
_BATCH: Final = 500  # owners that are refreshed by one call
_AT_ONCE: Final = 100  # leaves that are under way together


@attrs.frozen(eq=False)
class _Owner:
    topic: str
    member: str
    name: str
    info: bytes

    @property
    def entry(self) -> tuple[str, str, str]:
        return self.topic, self.member, self.name


class Attendance:
    """Members that subscribers of this process stand for. `linger`: seconds that one who was lost is waited for."""

    def __init__(self, broker: Broker, node: str, linger: float) -> None:
        self.linger = linger
        self._broker = broker
        self._node = node
        self._serial = 0
        self._owners: dict[Any, dict[str, _Owner]] = {}  # subscriber → topic → owner
        self._leaving: dict[_Owner, float] = {}  # → Trio's time when it has left

    async def enter(self, subscriber: Any, topic: str, member: str, info: bytes) -> bool:
        """`subscriber` stands for `member` on `topic`. Returns whether it is new there. Raises `BrokerError`."""
        own = self._owners.setdefault(subscriber, {})
        former = own.get(topic)
        if former is not None and (former.member, former.info) == (member, info):
            owner = former
        else:
            self._serial += 1
            owner = own[topic] = _Owner(topic, member, f"{self._node}.{self._serial}", info)
        try:
            return await self._broker.enter(topic, member, owner.name, info, TTL)
        finally:
            now = trio.current_time()
            if former is not None and former is not owner:  # behind the new one: who stays does not leave
                self._leaving.setdefault(former, now)
            if self._owners.get(subscriber, {}).get(topic) is not owner:
                self._leaving.setdefault(owner, now)  # it went meanwhile; its leave may have been too early

    def leave(self, subscriber: Any, topic: str) -> None:
        """It has unsubscribed: it leaves at once."""
        own = self._owners.get(subscriber, {})
        owner = own.pop(topic, None)
        if owner is not None:
            self._leaving[owner] = trio.current_time()
        if not own:
            self._owners.pop(subscriber, None)

    def forget(self, subscriber: Any) -> None:
        """Its connection was lost: it leaves if it does not come back in time."""
        due = trio.current_time() + self.linger
        for owner in self._owners.pop(subscriber, {}).values():
            self._leaving[owner] = due

    async def run(self) -> None:
        """Keep the broker up to date for as long as it runs."""
        refreshed, reconnects = trio.current_time(), self._broker.state.reconnects
        while True:
            await trio.sleep(_TICK)
            await self._send_leaves()
            now, state = trio.current_time(), self._broker.state
            if now < refreshed + TTL / 3 and state.reconnects == reconnects:
                continue
            try:
                await self._refresh()
            except BrokerError as error:
                log.debug("presence: %s", error)  # tried again; the broker's state says it louder
            else:
                refreshed, reconnects = now, state.reconnects

    async def hand_over(self) -> None:
        """The process ends. Who of its owners does not come back elsewhere leaves after `linger`, at the broker."""
        await self._send_leaves()
        for own in self._owners.values():
            for owner in own.values():
                self._leaving[owner] = trio.current_time() + self.linger
        self._owners.clear()
        owners = list(self._leaving)
        try:
            for begin in range(0, len(owners), _BATCH):
                batch = [owner.entry for owner in owners[begin : begin + _BATCH]]
                await self._broker.refresh(batch, max(_TICK, self.linger))
        except BrokerError as error:
            log.debug("presence: %s", error)
        self._leaving.clear()

    async def _send_leaves(self) -> None:
        """Tell the broker who has left. Fails nothing: what could not be told is tried again, until it has expired."""
        now = trio.current_time()
        due = [owner for owner, when in self._leaving.items() if when <= now]
        for begin in range(0, len(due), _AT_ONCE):
            failed: list[BrokerError] = []
            async with trio.open_nursery() as nursery:
                for owner in due[begin : begin + _AT_ONCE]:
                    nursery.start_soon(self._send_leave, owner, now, failed)
            if failed:
                log.debug("presence: %s", failed[0])
                return

    async def _send_leave(self, owner: _Owner, now: float, failed: list[BrokerError]) -> None:
        try:
            await self._broker.leave(*owner.entry)
        except BrokerError as error:
            failed.append(error)
            if now < self._leaving[owner] + TTL:
                return
        self._leaving.pop(owner, None)

    async def _refresh(self) -> None:
        """Owners that wait for their leave are kept alive, too; those that are late for it are not."""
        now = trio.current_time()
        owners = [owner for own in self._owners.values() for owner in own.values()]
        owners += [owner for owner, when in self._leaving.items() if when > now]
        for begin in range(0, len(owners), _BATCH):
            batch = {owner.entry: owner for owner in owners[begin : begin + _BATCH]}
            for entry in await self._broker.refresh(list(batch), TTL):
                owner = batch[entry]
                if owner not in self._leaving:  # the engine has lost its past
                    await self._broker.enter(*entry, owner.info, TTL)

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))
