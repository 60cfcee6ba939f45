"""Random conversations with straight-line handlers, against a model: nothing is lost, doubled or reordered."""

from __future__ import annotations

import random

import pytest
import trio
from ws_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, serving, until

import trionet


async def one(ws, dice):
    """Receive one message in one of all the ways there are."""
    way = dice.randrange(9)
    if way == 0:
        return await ws.receive()
    if way == 1:
        with trio.fail_after(60):
            return await ws.receive()
    if way == 2:
        while True:
            with trio.move_on_after(dice.choice([0, 0.0005, 0.003])):
                return await ws.receive()
    if way == 3:
        return await ws.receive(timeout=60)
    if way == 4:
        while True:
            try:
                return await ws.receive(timeout=0.01)
            except trio.TooSlowError:
                pass
    if way == 5:
        got = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def child():
                got.append(await ws.receive())

        return got[0]
    if way == 6:
        async with ws.receive_stream() as pieces:
            got = [piece async for piece in pieces]
        return ("" if not got or isinstance(got[0], str) else b"").join(got)
    if way == 7:
        got = []

        async def task():
            try:
                got.append(await ws.receive())
            finally:
                done.set()

        done = trio.Event()
        ws.start_soon(task)
        await done.wait()
        return got[0] if got else None
    return await anext(ws, None)


async def talk(ws, dice):
    """Echo each message, however received, with pauses of all kinds."""
    while True:
        message = None
        try:
            message = await one(ws, dice)
        except* trionet.ConnectionClosed:
            pass
        if message is None:
            return
        pause = dice.randrange(8)
        if pause == 0:
            await trio.lowlevel.checkpoint()
        elif pause == 1:
            await trio.sleep(0.002)
        elif pause == 2:
            with trio.move_on_after(0.001):
                await trio.sleep_forever()
        how = dice.randrange(4)
        if how == 0:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ws.send, message)
        elif how == 1:
            with trio.CancelScope():
                await ws.send(message)
        else:
            await ws.send(message)


def script(dice, count):
    """Return the bytes of messages, whole and in fragments with pings between them, and the messages themselves."""
    data, messages = bytearray(), []
    for number in range(count):
        size = dice.choice([0, 1, 60, 130, 3000, 70_000 if number % 7 == 0 else 5])
        message = f"{number}:" + "ü€x"[number % 3] * size
        binary = dice.random() < 0.3
        payload = message.encode()
        messages.append(payload if binary else message)
        opcode = BINARY if binary else TEXT
        while dice.random() < 0.4:
            cut = dice.randint(0, len(payload))
            data += frame(opcode, payload[:cut], fin=False)
            payload, opcode = payload[cut:], CONTINUATION
            if dice.random() < 0.3:
                data += frame(PING, b"between")
        data += frame(opcode, payload)
    return bytes(data), messages


@pytest.mark.parametrize("seed", range(12))
async def test_a_random_conversation(seed):
    """Several peers at once: each gets the echo of each of its messages once and in order, and a clean end."""
    dice = random.Random(seed)
    options = {"max_stream": 2**21} if seed % 3 == 0 else {}

    async def handler(ws):
        await talk(ws, random.Random(seed * 1000 + int(ws.request.path[1:])))

    async def play(at, number):
        dice = random.Random(seed * 77 + number)
        data, messages = script(dice, 40)
        peer = await at.join(f"/{number}")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send():
                rest = data
                while rest:
                    size = dice.choice([1, 2, 7, 100, 5000, 200_000])
                    await peer.send(rest[:size])
                    rest = rest[size:]
                    if dice.random() < 0.2:
                        await trio.sleep(dice.choice([0, 0.001]))

            heard, kind, pieces = [], None, b""
            while len(heard) < len(messages):
                got = await peer.frame()
                assert got is not None
                assert got.opcode != CLOSE, got
                if got.opcode == PONG:
                    continue
                kind = got.opcode or kind
                pieces += got.payload
                if got.fin:
                    heard.append(pieces if kind == BINARY else pieces.decode())
                    pieces = b""
        assert heard == messages
        await peer.send(close())
        assert await peer.closed() == 1000
        await peer.ended()

    async with serving(
        handler,
        pool_size=dice.choice([1, 2, 128]),
        slot_grace=dice.choice([0.0005, 0.1]),
        resolution=0.005,
        **options,
    ) as at:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(play, at, number)
        await until(lambda: at.server.engine.pool.at_rest == 0)
        assert at.server.statistics().pool.failures == 0
        assert at.server.statistics().pool.pinned == 0
