"""A client for tests of HTTP: sends bytes, returns bytes."""

from __future__ import annotations

import re

import trio

DATE = rb"Date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n"
CLOSE = "Connection: close"
KEY = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", KEY)
HELLO = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"  # a masked "Hello"


def get(target="/", *lines, method="GET", version="1.1", body=b""):
    """Return a request."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *lines, "", ""]).encode() + body


def post(target, body, *lines):
    """Return a request with a body."""
    return get(target, f"Content-Length: {len(body)}", *lines, method="POST", body=body)


async def connect(server):
    """Connect to the only listener."""
    return await trio.open_tcp_stream(*server.addresses[0][:2])


async def ask(server, *pieces):
    """Send pieces, each in its own segment, and return all that comes until the server closes."""
    async with await connect(server) as stream:
        with trio.fail_after(10):
            for piece in pieces:
                await stream.send_all(piece)
                await trio.lowlevel.checkpoint()
            return await rest_of(stream)


async def rest_of(stream):
    """Return all that comes until the peer closes."""
    received = bytearray()
    with trio.fail_after(10):
        async for data in stream:
            received += data
    return bytes(received)


async def read(stream, end, *, at_once=None):
    """Return what comes up to `end`, where a read of `at_once` bytes must end too."""
    received = bytearray()
    with trio.fail_after(10):
        while not received.endswith(end):
            data = await stream.receive_some(at_once)
            assert data, bytes(received)
            received += data
    return bytes(received)


async def until(true):
    """Wait for something that no event tells."""
    with trio.fail_after(10):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.005)


def status(response):
    """Return the status of the first response."""
    return int(response.split()[1])


def statuses(received):
    """Return the statuses of all responses."""
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)]
