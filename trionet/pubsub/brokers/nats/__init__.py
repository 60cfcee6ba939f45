"""NATS: `NatsBroker`. `protocol` is its text, without I/O; `link` the connection; `streams` has the names there."""

from __future__ import annotations

from trionet.pubsub.brokers.nats.broker import NatsBroker

__all__ = ["NatsBroker"]
