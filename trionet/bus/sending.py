"""Answers, to peers that may read slowly: whoever asks for much waits, and is not closed for being slow."""

from __future__ import annotations

from trionet.protocols.channel import PARKED, PreparedMessage, WebSocket

__all__ = ["send", "wait_room"]


async def send(ws: WebSocket, text: str) -> None:
    """Send an answer when there is room for it. Raises `ConnectionClosed`."""
    if ws._out is None:
        await ws.send(text)
        return
    message = PreparedMessage(text)
    await wait_room(ws, message)
    await ws.send(message)


async def wait_room(ws: WebSocket, message: PreparedMessage, spare: int = 0) -> None:
    """Wait until `ws` takes `message`, whatever its policy is, and has `spare` bytes left for what is published.

    Raises `ConnectionClosed`.
    """
    if ws._out is not None:
        await ws.wait_writable(2 * len(message.frame) + PARKED + ws._held_back() + spare)
