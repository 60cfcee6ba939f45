"""One machine: `LocalBroker`, and `server`, which it speaks to through a Unix socket in the format of `wire`."""

from __future__ import annotations

from trionet.pubsub.brokers.local.broker import LocalBroker

__all__ = ["LocalBroker"]
