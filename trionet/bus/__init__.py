"""The bus for browsers: topics of `trionet.pubsub` over WebSockets, in the protocol of `trionet.wire.bus`.

handler    `BusHandler`, what you write: who may do what; `bus_protocol` serves it
session    what is known of a connection; which connections a user has
control    what handlers in different processes tell each other: to let a user go
encoder    a publication → the message that all its subscribers are sent, encoded once
module     `client_module`: trionet.js, the other end
"""

from __future__ import annotations

from trionet.bus.handler import BusHandler, bus_protocol
from trionet.bus.module import client_module
from trionet.bus.session import Session
from trionet.wire.bus import Refused, encode_data

__all__ = ["BusHandler", "Refused", "Session", "bus_protocol", "client_module", "encode_data"]
