"""Redis and Valkey: `RedisBroker`. `resp` is the connection, `scripts` what Redis runs, `topics` what is delivered."""

from __future__ import annotations

from trionet.pubsub.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
