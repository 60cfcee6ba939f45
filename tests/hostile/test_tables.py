"""Every row of the tables, however it arrives, against the echo example running as a program."""

from __future__ import annotations

import pytest
import trio
from hostile_cases import AFTER_CLOSE, FRAMES, ORIGINS, REQUESTS, codes
from hostile_peer import (
    CLOSE,
    FIN,
    RST,
    check_error_response,
    check_serves,
    check_switch,
    connect,
    head,
    parse_response,
)

JUNK = bytes(range(256)) * 2048  # 512 KiB that nobody reads


def pieces(data):
    """Return the size to cut `data` into: bytes, unless that would take all day."""
    return 1 if len(data) < 1500 else len(data) // 300


async def ask(peer, case, how):
    """Send one request and check the answer."""
    # 9112, 9.6: a server that closes with unread input sends RST and the answer may be lost, unless it lingers.
    junk = JUNK if how == "trailing" and 101 not in case.statuses else b""
    await peer.send(case.sent + junk, chunk=pieces(case.sent) if how == "dribbled" else None)
    if 101 in case.statuses:
        response = await peer.read_response()
        if response.status == 101:
            check_switch(response)
            await peer.echo()
            await peer.leave()
            return
        assert response.status in case.statuses, (response.status, response.reason)
        check_error_response(response._replace(body=await peer.read_rest()), method=case.method)
        assert peer.ended == FIN
        return
    response = parse_response(await peer.read_rest())
    assert response.status in case.statuses, (response.status, response.body)
    check_error_response(response, method=case.method)
    assert peer.ended == FIN
    assert peer.cut is None, "no RST while we were still sending"


@pytest.mark.parametrize("how", ["whole", "dribbled", "trailing"])
@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
async def test_a_request_gets_the_answer_of_its_rule(echo_program, case, how):
    """Each request of the table gets one of the statuses its rule allows, complete, then FIN and no RST."""
    async with connect(echo_program.address) as peer:
        await ask(peer, case, how)
    if how == "whole":  # else the next case shows it
        await check_serves(echo_program.address)


async def talk(peer, case, how):
    """Send the frames of a case and check the replies."""
    if how == "behind-handshake":  # sent without waiting for the 101
        await peer.send(head() + case.sent)
        check_switch(await peer.read_response())
    else:
        await peer.open()
        junk = (
            JUNK if how == "trailing" and case.code is not None else b""
        )  # 7.1.1: trailing bytes are discarded
        await peer.send(case.sent + junk, chunk=pieces(case.sent) if how == "dribbled" else None)
    got = [await peer.read_frame() for _ in case.replies]
    assert got == [(*reply, True) for reply in case.replies]
    if case.code is None:
        await peer.echo(b"goes on")
        await peer.leave()
        return
    last = await peer.read_frame()
    assert last is not None, f"{peer.ended} without a Close frame (6455, 7.1.7: SHOULD send one)"
    assert last.opcode == CLOSE
    assert (last.code or 0) in codes(case), last
    last.payload[2:].decode()
    assert await peer.read_frame() is None, "6455, 5.5.1: MUST NOT send more after a Close"
    if how == "dribbled" and case.rule == AFTER_CLOSE:
        # A Close that came alone is answered by Close and FIN at once (channel.py, `_goodbye`): what is sent after
        # that finds the socket closed. Bytes that come with the Close, or with answers still on their way, do not.
        assert peer.ended in {FIN, RST}
    else:
        assert peer.ended == FIN


@pytest.mark.parametrize("how", ["whole", "dribbled", "trailing", "behind-handshake"])
@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case.name)
async def test_frames_get_the_answer_of_their_rule(echo_program, case, how):
    """Each row of frames is answered as its rule says, then the connection goes on, or Close and FIN come."""
    async with connect(echo_program.address) as peer:
        await talk(peer, case, how)
    if how == "whole":  # else the next case shows it
        await check_serves(echo_program.address)


@pytest.mark.parametrize("case", ORIGINS, ids=lambda case: case[0])
async def test_origins(serving, echo_handler, case):
    """By default a page of our own host may connect, and a client that is no browser; others get 403 (6455, 10.2)."""
    _, target, host, origins, statuses = case
    sent = head(*(b"Origin: " + o for o in origins), line=b"GET " + target + b" HTTP/1.1", host=host)
    async with serving(echo_handler) as server, connect(server.addresses[0]) as peer:
        await peer.send(sent)
        response = await peer.read_response()
        assert response.status in statuses
        if response.status == 101:
            check_switch(response)
            await peer.echo()
        else:
            response = response._replace(body=await peer.read_rest())
            check_error_response(response)
            assert peer.ended == FIN


@pytest.mark.parametrize("rounds", [3])
async def test_everything_at_once(serving, echo_handler, rounds):
    """All rows at the same time, in one process: each handler is opened and closed once, nothing stays behind."""
    async with serving(echo_handler, origins="*") as server:
        address = server.addresses[0]

        async def one(act, case, how):
            async with limit, connect(address) as peer:
                await act(peer, case, how)

        limit = trio.CapacityLimiter(200)
        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                for _ in range(rounds):
                    for case in REQUESTS:
                        nursery.start_soon(one, ask, case, "whole")
                    for case in FRAMES:
                        nursery.start_soon(one, talk, case, "behind-handshake")
            while server.statistics().connections:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await check_serves(address)
        while server.statistics().connections:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert echo_handler.opened == len(echo_handler.closed) > rounds * len(FRAMES)
