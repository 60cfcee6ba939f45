"""Coming back: the distances, what is tried again, and a server that dies and comes back."""

from __future__ import annotations

import ssl

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted, server_frame
from ws_peer import CLOSE, TEXT, Echo, serving

import trionet
from trionet.client.backoff import may_pass, parse_retry_after

NORMAL = (1000).to_bytes(2, "big")
SOON = trionet.Backoff(initial=0.001, maximum=0.002)


# -------------------------------------------------------------------- backoff


def test_delays_grow_and_are_bounded():
    """Without jitter: initial, times factor each time, up to the maximum, for ever."""
    backoff = trionet.Backoff(initial=1, factor=3, maximum=20, jitter=False)
    delays = [backoff.delay(failures, lambda: 0.5) for failures in (0, 1, 2, 3, 4, 10**6)]
    assert delays == [1, 3, 9, 20, 20, 20]


def test_jitter_is_full():
    """With jitter a delay is anything from nothing to the whole."""
    backoff = trionet.Backoff(initial=2, factor=2, maximum=100)
    assert [backoff.delay(2, lambda chance=chance: chance) for chance in (0.0, 0.25, 1.0)] == [0.0, 2.0, 8.0]


@given(st.integers(0, 10**9), st.floats(0, 1), st.none() | st.floats(0, 1e12))
def test_delays_stay_within_bounds(failures, chance, wish):
    """Whatever happens, and whatever a server wishes, the delay is bounded."""
    backoff = trionet.Backoff()
    delay = backoff.delay(failures, lambda: chance, wish)
    assert 0 <= delay <= backoff.longest_wish + backoff.maximum
    if wish is not None:
        assert delay >= min(wish, backoff.longest_wish)


@pytest.mark.parametrize("options", [{"initial": 0}, {"initial": 100}, {"factor": 0.5}, {"reset_after": -1}])
def test_bad_backoffs_are_refused(options):
    """Settings that make no sense are a `ConfigurationError`."""
    with pytest.raises(trionet.ConfigurationError):
        trionet.Backoff(**options)


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 50, 999999999999.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 59.0),
        ("Fri, 31 Dec 1999 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("Fri, 31 Dec 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 1999 00:00:00 +99999999999999999999", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value, seconds):
    """A number or a date (RFC 9110, 10.2.3); else nothing."""
    assert parse_retry_after(value, 946684740.0) == seconds  # 31 Dec 1999 23:59:00


@pytest.mark.parametrize(
    "error, passes",
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ssl.SSLError(), True),
        (ssl.SSLCertVerificationError(), False),
        (trionet.UpgradeRefused(503), True),
        (trionet.UpgradeRefused(429), True),
        (trionet.UpgradeRefused(401), False),
        (trionet.UpgradeRefused(302), False),
        (trionet.UpgradeRefused(501), False),
        (trionet.ProtocolError("?"), False),
        (trionet.ConfigurationError("?"), False),
        (KeyError(), False),
    ],
    ids=repr,
)
def test_what_may_pass(error, passes):
    """What time heals is tried again; mistakes are not."""
    assert may_pass(error) is passes


# --------------------------------------------------------------- reconnecting


async def greet(side):
    """Say hello, and part politely."""
    await side.accept(server_frame(TEXT, b"hello"))
    await side.frame()
    await side.send(server_frame(CLOSE, NORMAL))


async def first_of(connections):
    """Return the first connection."""
    async with connections:
        return await anext(connections)


def refusing(status, *headers):
    """A server that refuses."""

    async def refuse(side):
        await side.head()
        lines = b"".join(b"%b\r\n" % header for header in headers)
        await side.send(b"HTTP/1.1 %d No\r\n%bContent-Length: 0\r\n\r\n" % (status, lines))
        await side.ended()

    return refuse


async def hang_up(side):
    """Open, and break."""
    await side.accept()


async def test_server_that_dies_and_comes_back():
    """Connections follow one another: after a break, a refusal, a hang-up, and with nobody there."""
    got = []
    async with scripted(greet) as script:
        port = script.port
    with trio.fail_after(20):
        async with trionet.reconnecting(f"ws://127.0.0.1:{port}/", backoff=SOON) as connections:
            async with scripted(hang_up, refusing(503), greet, port=port):
                async for ws in connections:
                    try:
                        got.append(await ws.receive())
                        break
                    except trionet.ConnectionClosed as closed:
                        got.append(closed.code)
                await ws.close()
            # Nobody listens now; a task brings the server back.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_back, port)
                async for ws in connections:
                    got.append(await ws.receive())
                    break
                await ws.close()
                nursery.cancel_scope.cancel()
    assert got == [1006, "hello", "hello"]


async def _back(port):
    await trio.sleep(0.02)
    async with scripted(greet, port=port):
        await trio.sleep_forever()


async def test_going_on_closes_the_last_one():
    """The next turn of the loop closes a connection that is still open, and leaving the block the last."""
    seen = []
    async with serving(Echo()) as s:
        async with trionet.reconnecting(s.url, backoff=SOON) as connections:
            async for ws in connections:
                if seen:
                    assert seen[-1].closed.code == 1000
                seen.append(ws)
                await ws.send("x")
                assert await ws.receive() == "x"
                if len(seen) == 3:
                    break
            assert seen[-1].closed is None
        assert seen[-1].closed.code == 1000


async def test_exception_in_the_loop_ends_it():
    """An exception that the body does not catch goes on, unwrapped; the connection is closed with 1011."""
    async with serving(Echo()) as s:
        with pytest.raises(KeyError, match=r"mine"):
            await _raise_in_loop(s.url)


async def _raise_in_loop(url):
    async with trionet.reconnecting(url) as connections:
        async for _ in connections:
            raise KeyError("mine")


async def test_with_a_client_no_block_is_needed():
    """With a client of the caller's, the loop stands alone."""
    async with serving(Echo()) as s, trionet.open_client() as client:
        async for ws in trionet.reconnecting(s.url, client=client):
            await ws.send("x")
            assert await ws.receive() == "x"
            break
        assert list(client.connections) == [ws]


async def test_without_either_it_says_how():
    """Neither block nor client: the error shows both."""
    with pytest.raises(RuntimeError, match=r"async with reconnecting"):
        async for _ in trionet.reconnecting("ws://127.0.0.1/"):
            pass


async def test_hopeless_refusals_are_raised():
    """401 is not tried again."""
    async with scripted(refusing(401)) as script:
        with pytest.raises(trionet.UpgradeRefused, match=r"401"):
            await first_of(trionet.reconnecting(script.url, backoff=SOON))
        assert script.count == 1


async def test_own_rule_for_retrying():
    """`retry` decides instead."""
    async with scripted(refusing(401), refusing(404)) as script:
        with pytest.raises(trionet.UpgradeRefused, match=r"404"):
            await first_of(
                trionet.reconnecting(script.url, backoff=SOON, retry=lambda error: error.status == 401)
            )
        assert script.count == 2


async def test_attempts_are_bounded():
    """After `max_attempts` failures in a row the last one is raised."""
    async with scripted(refusing(503)) as script:
        with pytest.raises(trionet.UpgradeRefused, match=r"503"):
            await first_of(trionet.reconnecting(script.url, backoff=SOON, max_attempts=3))
        assert script.count == 3


async def test_cancelled_while_it_waits():
    """A cancel scope bounds attempts and pauses."""
    long = trionet.Backoff(initial=100, maximum=100, jitter=False)
    async with scripted(refusing(503)) as script:
        with trio.move_on_after(0.1) as scope:
            await first_of(trionet.reconnecting(script.url, backoff=long))
        assert scope.cancelled_caught


async def test_pauses_are_those_of_the_backoff(monkeypatch):
    """Failures lengthen the pause, a connection that lived long resets it, Retry-After is honoured."""
    pauses = []
    now = [0.0]

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("trionet.client.reconnecting.trio.sleep", sleep)
    monkeypatch.setattr("trionet.client.reconnecting.trio.current_time", lambda: now[0])
    scripts = [refusing(503), refusing(503, b"Retry-After: 7"), hang_up, hang_up, hang_up]
    backoff = trionet.Backoff(initial=1, factor=2, maximum=100, reset_after=30)
    async with scripted(*scripts) as script, trionet.open_client() as client:
        connections = trionet.reconnecting(script.url, client=client, backoff=backoff)
        connections._chance = lambda: 1.0
        count = 0
        async for ws in connections:
            await ws.wait_closed()
            count += 1
            if count == 2:
                now[0] += 31
            if count == 3:
                break
    # 503: 2 · 503 with a wish: 7 + 4 · open, ended at once: 8 · open, lived 31 s: 1
    assert pauses == [2, 7 + 4, 8, 1]


async def test_attempts_are_logged(caplog):
    """What fails is logged with its reason, without the secrets of the URL."""
    caplog.set_level("INFO", "trionet.client")
    async with scripted(refusing(503), greet) as script:
        url = f"ws://me:secret@127.0.0.1:{script.port}/?token=secret"
        async with trionet.reconnecting(url, backoff=SOON) as connections:
            async for _ in connections:
                break
    assert "attempt 1 failed" in caplog.text
    assert "503" in caplog.text
    assert "secret" not in caplog.text
