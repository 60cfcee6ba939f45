"""NATS: `NatsBroker`. `protocol` is its text, without I/O; `link` the connection; `streams` turns topics into subjects."""

from __future__ import annotations

from trionet.pubsub.brokers.nats.broker import NatsBroker

__all__ = ["NatsBroker"]
