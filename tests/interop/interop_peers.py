"""The clients of others that the tests know."""

from __future__ import annotations

from interop_base import Peer, Refused, Wish
from interop_frames import Libcurl, Wsproto
from interop_node import NpmWs, Undici
from interop_whole import Aiohttp, TrioWebsocket, Websockets, WebsocketsAsyncio

__all__ = ["PEERS", "NpmWs", "Peer", "Refused", "Wish"]

PEERS: dict[str, type[Peer]] = {
    kind.name: kind
    for kind in (Websockets, WebsocketsAsyncio, Aiohttp, TrioWebsocket, Wsproto, Libcurl, NpmWs, Undici)
}
