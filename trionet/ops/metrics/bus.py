"""A bus's numbers as families: for `trionet.Application(…, families=lambda server: bus_families(handler))`.

No label holds a topic or a user: they would be as many time series as there are mailboxes.
"""

from __future__ import annotations

from typing import Any

from trionet.bus.handler import BusHandler
from trionet.ops.metrics.model import Family
from trionet.pubsub.bus import Bus

__all__ = ["bus_families"]


def bus_families(bus: Bus[Any, Any] | BusHandler) -> list[Family]:
    """What `bus` has counted, and how its broker is; of a `BusHandler` also the errors that clients were sent."""
    refusals: dict[str, int] = {}
    if isinstance(bus, BusHandler):
        refusals, bus = bus.refusals, bus.bus
    families = [*_broker(bus), *_topics(bus), *_deliveries(bus), *_recoveries(bus)]
    if refusals:
        family = Family("trionet_bus_refusals", "counter", "Errors that clients were sent.")
        families.append(family)
        for code, count in refusals.items():
            family.add(count, code=code)
    return families


def _broker(bus: Bus[Any, Any]) -> list[Family]:
    name, state, numbers = bus.broker.name, bus.broker.state, bus.statistics()
    families = [
        Family("trionet_bus_connected", "gauge", "1 while the broker can be reached.", across="each").add(
            int(state.up), broker=name
        ),
        Family("trionet_bus_reconnects", "counter", "Times the broker was reached again.").add(
            state.reconnects, broker=name
        ),
        Family("trionet_publish", "counter", "Publications that the broker has taken.").add(
            numbers.published, broker=name
        ),
        Family("trionet_publish_failures", "counter", "Publications that the broker has not taken.").add(
            numbers.publish_failures, broker=name
        ),
        Family("trionet_bus_interruptions", "counter", "Topics of which the broker has lost the thread.").add(
            numbers.interrupted, broker=name
        ),
    ]
    if state.lag is not None:
        lag = Family(
            "trionet_bus_lag_seconds",
            "gauge",
            "How long the broker took to answer last.",
            unit="seconds",
            across="each",
        )
        families.append(lag.add(state.lag, broker=name))
    return families


def _topics(bus: Bus[Any, Any]) -> list[Family]:
    hub, numbers = bus.hub.statistics(), bus.statistics()
    return [
        Family("trionet_topics", "gauge", "Topics and patterns with subscribers.").add(hub.topics),
        Family("trionet_subscribers", "gauge", "Connections that have subscribed.").add(hub.subscribers),
        Family("trionet_subscriptions", "gauge", "Subscriptions.").add(hub.subscriptions),
        Family("trionet_subscriptions_joining", "gauge", "Those that are being sent what they missed.").add(
            numbers.joining
        ),
        Family("trionet_members", "gauge", "Connections whose presence is noted.").add(len(bus.attendance)),
    ]


def _deliveries(bus: Bus[Any, Any]) -> list[Family]:
    hub, numbers = bus.hub.statistics(), bus.statistics()
    return [
        Family("trionet_bus_received", "counter", "Publications that came from the broker.").add(
            numbers.received
        ),
        Family(
            "trionet_delivery_seconds",
            "histogram",
            "From the broker's taking a publication to its fan-out here, by the clocks of both.",
            unit="seconds",
        ).add(bus.delays),
        Family("trionet_fanouts", "counter", "Messages given to all subscribers of a topic.").add(
            hub.published
        ),
        Family("trionet_fanout_messages", "counter", "What came of them: one for each subscriber.")
        .add(hub.delivered, result="taken")
        .add(hub.left_out, result="left_out"),
        Family("trionet_fanouts_behind", "gauge", "Fan-outs that are not finished.").add(hub.behind),
    ]


def _recoveries(bus: Bus[Any, Any]) -> list[Family]:
    numbers = bus.statistics()
    return [
        Family("trionet_recoveries", "counter", "Subscribers that came back with a position.")
        .add(numbers.recoveries, result="complete")
        .add(numbers.lost, result="incomplete"),
        Family("trionet_recovered_messages", "counter", "Publications they had missed, and got.").add(
            numbers.recovered
        ),
    ]
