"""Who of this process is present where: told to the broker, kept alive there, and taken back when they have gone.

A member is present as long as one of its *owners* (connections, anywhere) is. An owner that was lost stays for `linger`
seconds: who comes back meanwhile, to whichever process, has not left, so nobody is told anything. If this process is
killed its owners expire at the broker after `TTL`.
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
_BATCH: Final = 500


@attrs.frozen
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
        self._serial += 1
        owner = _Owner(topic, member, f"{self._node}.{self._serial}", info)
        own = self._owners.setdefault(subscriber, {})
        former, own[topic] = own.get(topic), owner
        if former is not None:
            self._leaving[former] = trio.current_time()
        return await self._broker.enter(topic, member, owner.name, info, TTL)

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
        refresh_at = trio.current_time() + TTL / 3
        while True:
            await trio.sleep(_TICK)
            try:
                await self._send_leaves(trio.current_time())
                if trio.current_time() >= refresh_at:
                    await self._refresh()
                    refresh_at = trio.current_time() + TTL / 3
            except BrokerError as error:
                log.debug("presence: %s", error)  # tried again; the broker's state says it louder

    async def leave_all(self) -> None:
        """The process goes: its owners are given back now, without waiting for who might return."""
        for subscriber in list(self._owners):
            self.forget(subscriber)
        try:
            await self._send_leaves(trio.current_time() + self.linger)
        except BrokerError as error:
            log.debug("presence: %s", error)

    async def _send_leaves(self, now: float) -> None:
        for owner in [owner for owner, due in self._leaving.items() if due <= now]:
            await self._broker.leave(*owner.entry)
            self._leaving.pop(owner, None)

    async def _refresh(self) -> None:
        """Owners that wait for their leave are kept alive, too."""
        owners = [owner for own in self._owners.values() for owner in own.values()]
        owners += self._leaving
        for begin in range(0, len(owners), _BATCH):
            batch = {owner.entry: owner for owner in owners[begin : begin + _BATCH]}
            for entry in await self._broker.refresh(list(batch), TTL):
                owner = batch[entry]
                if owner not in self._leaving:  # the engine has lost its past
                    await self._broker.enter(*entry, owner.info, TTL)

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))
