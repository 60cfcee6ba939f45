"""trionet: a server framework on Trio for very many persistent connections, WebSocket first.

Where things are, in the order to read them:

    errors              every exception
    protocols/line      the smallest complete protocol
    protocols/channel   `WebSocket`, what handlers hold
    protocols/websocket the upgrade, and `WebSocketHandler`, what you write
    server              `serve`, `open_server`
    net/engine          one turn of the machinery; below it poller, pool, connection, wheel, listener, gate
    wire/               frames, messages, close codes, request heads: bytes in, values out, no I/O
"""

from __future__ import annotations

from trionet._version import __version__ as __version__
from trionet.errors import ConfigurationError as ConfigurationError
from trionet.errors import ConnectionClosed as ConnectionClosed
from trionet.errors import ProtocolError as ProtocolError
from trionet.errors import Rejection as Rejection
from trionet.errors import TrionetError as TrionetError
from trionet.net.connection import Connection as Connection
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
from trionet.net.wheel import WheelStatistics as WheelStatistics
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
from trionet.protocols.registry import Registry as Registry
from trionet.protocols.responders import Health as Health
from trionet.protocols.responders import HttpRequest as HttpRequest
from trionet.protocols.responders import Responder as Responder
from trionet.protocols.responders import Response as Response
from trionet.protocols.static import StaticFile as StaticFile
from trionet.protocols.static import StaticFiles as StaticFiles
from trionet.protocols.websocket import Accept as Accept
from trionet.protocols.websocket import WebSocketHandler as WebSocketHandler
from trionet.protocols.websocket import WebSocketProtocol as WebSocketProtocol
from trionet.server import Server as Server
from trionet.server import ServerStatistics as ServerStatistics
from trionet.server import open_server as open_server
from trionet.server import serve as serve
from trionet.wire.closing import CloseCode as CloseCode
from trionet.wire.handshake import HeadLimits as HeadLimits
from trionet.wire.request import Request as Request

__all__ = [
    "Accept",
    "CloseCode",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Endpoint",
    "Engine",
    "Event",
    "Frame",
    "GateStatistics",
    "HeadLimits",
    "Health",
    "HttpProtocol",
    "HttpRequest",
    "LineConnection",
    "LineProtocol",
    "Listener",
    "MessageStream",
    "Poller",
    "PollerStatistics",
    "PoolStatistics",
    "PreparedMessage",
    "Protocol",
    "ProtocolError",
    "Registry",
    "Rejection",
    "Request",
    "Responder",
    "Response",
    "Server",
    "ServerStatistics",
    "SlowConsumer",
    "StaticFile",
    "StaticFiles",
    "TaskPool",
    "TrionetError",
    "WebSocket",
    "WebSocketHandler",
    "WebSocketProtocol",
    "WheelStatistics",
    "__version__",
    "broadcast",
    "open_poller",
    "open_server",
    "read_frame",
    "serve",
    "write_frame",
]
