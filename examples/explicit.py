"""A WebSocket echo server put together by hand: what `trionet.serve` does, without its deadlines, limits and drain.

    python examples/explicit.py [PORT]

One task waits for the poller and hands readable connections to the pool; while every worker is busy it waits, and
neither reads nor accepts. The handshake is fed from the poller too: a silent client holds no worker.
"""

from __future__ import annotations

import socket
import sys

import trio

from trionet import Endpoint, TaskPool, TrionetError, open_poller
from trionet.net.listener import open_listeners
from trionet.wire.frames import Opcode, encode_frame
from trionet.wire.handshake import HeadScanner, OriginPolicy, build_upgrade_response, check_upgrade
from trionet.wire.messages import Control, Event, MessageDecoder, Partial

SCANNER, DECODER, ORIGINS = HeadScanner(), MessageDecoder(), OriginPolicy("*")


class Peer(socket.socket):
    """A connection and what is unfinished of its input."""

    head: bytearray | None = bytearray()  # the request, until it is answered
    partial: Partial | None = None


def feed(peer: Peer, data: bytes) -> bytes:
    """What to answer to `data`; raises when the peer breaks a rule, or leaves."""
    if peer.head is not None:
        peer.head = peer.head + data
        if (request := SCANNER.scan(peer.head)) is None:
            return b""
        check_upgrade(request, ORIGINS)
        data, peer.head = bytes(peer.head[request.size :]), None
        return build_upgrade_response(request.key or b"") + feed(peer, data)
    messages: list[Event] = []
    peer.partial = DECODER.decode(data, peer.partial, messages)
    answers = []
    for message in messages:
        if isinstance(message, Control):
            if message.opcode == Opcode.CLOSE:
                raise ConnectionResetError
        elif isinstance(message, str):
            answers.append(encode_frame(Opcode.TEXT, message.encode()))
        elif isinstance(message, bytes):
            answers.append(encode_frame(Opcode.BINARY, message))
    return b"".join(answers)


async def main(port: int) -> None:
    """Serve for ever."""
    async with TaskPool(128) as pool, open_poller() as poller:
        [listener] = await open_listeners(Endpoint(protocol=None, port=port))

        async def receive(peer: Peer) -> None:
            try:
                data = peer.recv(65536)
                answer = feed(peer, data) if data else b""
                if not data or peer.send(answer) < len(answer):  # gone, or it does not read what it is sent
                    raise ConnectionResetError
            except BlockingIOError:
                poller.resume(peer)  # readiness is a hint
            except (TrionetError, OSError):
                poller.stop(peer)  # unregister first, then close
                peer.close()
            else:
                poller.resume(peer)  # one-shot: arm it again, or hear nothing more

        poller.start(listener, once=False)
        print(f"listening on ws://127.0.0.1:{listener.address[1]}/", flush=True)
        async for item, _ in poller:
            if item is listener:
                peer = Peer(fileno=listener.accept())
                peer.setblocking(False)
                poller.start(peer)
            else:
                await pool.schedule(receive, item)  # waits while every worker is busy


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8081)
