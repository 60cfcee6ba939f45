"""trionet: a server framework on Trio for very many persistent connections, WebSocket first.

Where things are, in the order to read them:

    errors              every exception
    protocols/line      the smallest complete protocol
    protocols/channel   `WebSocket`, what handlers hold
    protocols/websocket the upgrade, and `WebSocketHandler`, what you write
    server              `serve`, `open_server`
    ops/                running it: `supervisor` and `worker`, `metrics`, `debug`, `doctor`; cli/: the command
    client/client       `connect_websocket`, `open_client`; client/reconnecting: one that comes back
    pubsub/bus          topics shared by many processes; bus/: how pages speak to it
    net/engine          one turn of the machinery; below it poller, pool, connection, wheel, listener, gate
    wire/               frames, messages, close codes, request heads: bytes in, values out, no I/O
"""

from __future__ import annotations

from trionet._version import __version__ as __version__
from trionet.adapters.stream import StreamProtocol as StreamProtocol
from trionet.bus import BusHandler as BusHandler
from trionet.bus import bus_protocol as bus_protocol
from trionet.bus import client_module as client_module
from trionet.client.bus import BusClient as BusClient
from trionet.client.bus import open_bus_client as open_bus_client
from trionet.client.bus_requests import BusHistory as BusHistory
from trionet.client.bus_requests import BusMembers as BusMembers
from trionet.client.client import ClientStatistics as ClientStatistics
from trionet.client.client import Connecting as Connecting
from trionet.client.client import WebSocketClient as WebSocketClient
from trionet.client.client import connect_websocket as connect_websocket
from trionet.client.client import open_client as open_client
from trionet.client.following import BusSubscribed as BusSubscribed
from trionet.client.options import ConnectOptions as ConnectOptions
from trionet.client.reconnecting import Reconnecting as Reconnecting
from trionet.client.reconnecting import reconnecting as reconnecting
from trionet.client.subscription import BusEvent as BusEvent
from trionet.client.subscription import BusMessage as BusMessage
from trionet.client.subscription import BusPresence as BusPresence
from trionet.client.subscription import BusReset as BusReset
from trionet.client.subscription import BusSubscription as BusSubscription
from trionet.client.websocket import ClientWebSocket as ClientWebSocket
from trionet.errors import BrokerDown as BrokerDown
from trionet.errors import BrokerError as BrokerError
from trionet.errors import BusError as BusError
from trionet.errors import ConfigurationError as ConfigurationError
from trionet.errors import ConnectionClosed as ConnectionClosed
from trionet.errors import ProtocolError as ProtocolError
from trionet.errors import Rejection as Rejection
from trionet.errors import TopicError as TopicError
from trionet.errors import TrionetError as TrionetError
from trionet.errors import UpgradeRefused as UpgradeRefused
from trionet.net.admission import AddressLimit as AddressLimit
from trionet.net.admission import AdmissionPolicy as AdmissionPolicy
from trionet.net.admission import ConnectionLimit as ConnectionLimit
from trionet.net.admission import HandshakeRate as HandshakeRate
from trionet.net.admission import LoopLag as LoopLag
from trionet.net.admission import MemoryLimit as MemoryLimit
from trionet.net.admission import PoolWait as PoolWait
from trionet.net.backoff import Backoff as Backoff
from trionet.net.connection import Connection as Connection
from trionet.net.doorkeeper import PolicyStatistics as PolicyStatistics
from trionet.net.engine import Engine as Engine
from trionet.net.gate import GateStatistics as GateStatistics
from trionet.net.listener import Endpoint as Endpoint
from trionet.net.listener import Listener as Listener
from trionet.net.poller import Event as Event
from trionet.net.poller import Poller as Poller
from trionet.net.poller import PollerStatistics as PollerStatistics
from trionet.net.poller import open_poller as open_poller
from trionet.net.pool import PoolStatistics as PoolStatistics
from trionet.net.pool import TaskPool as TaskPool
from trionet.net.stream import DetachedStream as DetachedStream
from trionet.net.tls import TlsHandshake as TlsHandshake
from trionet.net.tls import server_tls_context as server_tls_context
from trionet.net.tls_session import TlsStatistics as TlsStatistics
from trionet.net.wheel import WheelStatistics as WheelStatistics
from trionet.ops.application import Application as Application
from trionet.protocols.base import Protocol as Protocol
from trionet.protocols.channel import MessageStream as MessageStream
from trionet.protocols.channel import PreparedMessage as PreparedMessage
from trionet.protocols.channel import SlowConsumer as SlowConsumer
from trionet.protocols.channel import WebSocket as WebSocket
from trionet.protocols.channel import broadcast as broadcast
from trionet.protocols.frame_stream import Frame as Frame
from trionet.protocols.frame_stream import read_frame as read_frame
from trionet.protocols.frame_stream import write_frame as write_frame
from trionet.protocols.http import HttpProtocol as HttpProtocol
from trionet.protocols.line import LineConnection as LineConnection
from trionet.protocols.line import LineProtocol as LineProtocol
from trionet.protocols.prefixed import LengthPrefixedConnection as LengthPrefixedConnection
from trionet.protocols.prefixed import LengthPrefixedProtocol as LengthPrefixedProtocol
from trionet.protocols.proxied import Proxied as Proxied
from trionet.protocols.proxied import ProxyProtocol as ProxyProtocol
from trionet.protocols.registry import Registry as Registry
from trionet.protocols.responders import Health as Health
from trionet.protocols.responders import HttpRequest as HttpRequest
from trionet.protocols.responders import Responder as Responder
from trionet.protocols.responders import Response as Response
from trionet.protocols.router import Router as Router
from trionet.protocols.sse import EventSource as EventSource
from trionet.protocols.sse import EventStream as EventStream
from trionet.protocols.sse import broadcast_events as broadcast_events
from trionet.protocols.static import StaticFile as StaticFile
from trionet.protocols.static import StaticFiles as StaticFiles
from trionet.protocols.websocket import Accept as Accept
from trionet.protocols.websocket import WebSocketHandler as WebSocketHandler
from trionet.protocols.websocket import WebSocketProtocol as WebSocketProtocol
from trionet.pubsub.broker import Broker as Broker
from trionet.pubsub.broker import BrokerState as BrokerState
from trionet.pubsub.broker import Receiver as Receiver
from trionet.pubsub.broker import open_broker as open_broker
from trionet.pubsub.broker import open_publisher as open_publisher
from trionet.pubsub.brokers.memory import MemoryBroker as MemoryBroker
from trionet.pubsub.bus import Bus as Bus
from trionet.pubsub.bus import BusStatistics as BusStatistics
from trionet.pubsub.bus import Encoder as Encoder
from trionet.pubsub.bus import Joined as Joined
from trionet.pubsub.bus import open_bus as open_bus
from trionet.pubsub.hub import Hub as Hub
from trionet.pubsub.hub import HubStatistics as HubStatistics
from trionet.pubsub.publication import HistoryPage as HistoryPage
from trionet.pubsub.publication import Position as Position
from trionet.pubsub.publication import Publication as Publication
from trionet.pubsub.topics import HistoryLimits as HistoryLimits
from trionet.pubsub.topics import TopicOptions as TopicOptions
from trionet.pubsub.topics import TopicRules as TopicRules
from trionet.server import Server as Server
from trionet.server import ServerStatistics as ServerStatistics
from trionet.server import open_server as open_server
from trionet.server import serve as serve
from trionet.wire.client_handshake import UpgradeResponse as UpgradeResponse
from trionet.wire.closing import CloseCode as CloseCode
from trionet.wire.deflate import Deflate as Deflate
from trionet.wire.forwarded import Client as Client
from trionet.wire.forwarded import TrustedProxies as TrustedProxies
from trionet.wire.handshake import HeadLimits as HeadLimits
from trionet.wire.proxy_header import ProxyHeader as ProxyHeader
from trionet.wire.request import Request as Request

__all__ = [
    "Accept",
    "AddressLimit",
    "AdmissionPolicy",
    "Application",
    "Backoff",
    "Broker",
    "BrokerDown",
    "BrokerError",
    "BrokerState",
    "Bus",
    "BusClient",
    "BusError",
    "BusEvent",
    "BusHandler",
    "BusHistory",
    "BusMembers",
    "BusMessage",
    "BusPresence",
    "BusReset",
    "BusStatistics",
    "BusSubscribed",
    "BusSubscription",
    "Client",
    "ClientStatistics",
    "ClientWebSocket",
    "CloseCode",
    "ConfigurationError",
    "ConnectOptions",
    "Connecting",
    "Connection",
    "ConnectionClosed",
    "ConnectionLimit",
    "Deflate",
    "DetachedStream",
    "Encoder",
    "Endpoint",
    "Engine",
    "Event",
    "EventSource",
    "EventStream",
    "Frame",
    "GateStatistics",
    "HandshakeRate",
    "HeadLimits",
    "Health",
    "HistoryLimits",
    "HistoryPage",
    "HttpProtocol",
    "HttpRequest",
    "Hub",
    "HubStatistics",
    "Joined",
    "LengthPrefixedConnection",
    "LengthPrefixedProtocol",
    "LineConnection",
    "LineProtocol",
    "Listener",
    "LoopLag",
    "MemoryBroker",
    "MemoryLimit",
    "MessageStream",
    "PolicyStatistics",
    "Poller",
    "PollerStatistics",
    "PoolStatistics",
    "PoolWait",
    "Position",
    "PreparedMessage",
    "Protocol",
    "ProtocolError",
    "Proxied",
    "ProxyHeader",
    "ProxyProtocol",
    "Publication",
    "Receiver",
    "Reconnecting",
    "Registry",
    "Rejection",
    "Request",
    "Responder",
    "Response",
    "Router",
    "Server",
    "ServerStatistics",
    "SlowConsumer",
    "StaticFile",
    "StaticFiles",
    "StreamProtocol",
    "TaskPool",
    "TlsHandshake",
    "TlsStatistics",
    "TopicError",
    "TopicOptions",
    "TopicRules",
    "TrionetError",
    "TrustedProxies",
    "UpgradeRefused",
    "UpgradeResponse",
    "WebSocket",
    "WebSocketClient",
    "WebSocketHandler",
    "WebSocketProtocol",
    "WheelStatistics",
    "__version__",
    "broadcast",
    "broadcast_events",
    "bus_protocol",
    "client_module",
    "connect_websocket",
    "open_broker",
    "open_bus",
    "open_bus_client",
    "open_client",
    "open_poller",
    "open_publisher",
    "open_server",
    "read_frame",
    "reconnecting",
    "serve",
    "server_tls_context",
    "write_frame",
]
