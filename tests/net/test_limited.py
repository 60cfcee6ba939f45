"""Records that a flood cannot multiply, and what is logged about a connection."""

from __future__ import annotations

import logging
import socket
import sys

import pytest
import trio

import trionet
from trionet.net.describe import address_text, tcp_counters
from trionet.net.limited import LimitedLog

log = logging.getLogger("trionet.tests")


class Clock:
    """A time that tests set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def flood(caplog):
    """Return a `LimitedLog` of three at once and one in ten seconds, and its clock."""
    caplog.set_level(logging.INFO, log.name)
    clock = Clock()
    return LimitedLog(burst=3, period=10.0, clock=clock), clock


def texts(caplog):
    """What was logged."""
    return [record.getMessage() for record in caplog.records]


def test_the_first_few_then_one_in_a_period(flood, caplog):
    """A flood is logged `burst` times at once, and once in each period after that."""
    limited, clock = flood
    for number in range(50):
        limited.log(log, logging.WARNING, "peer %d", number)
    assert texts(caplog) == ["peer 0", "peer 1", "peer 2"]
    clock.now += 10
    for number in range(50, 100):
        limited.log(log, logging.WARNING, "peer %d", number)
    assert texts(caplog)[3:] == ["peer 50"]
    assert limited.suppressed == 47 + 49


def test_what_was_left_out_is_told_once_it_is_over(flood, caplog):
    """A period after the first was left out, their number is logged, with an example; then no more of it."""
    limited, clock = flood
    for number in range(10):
        limited.log(log, logging.ERROR, "peer %d", number)
    limited.flush()
    assert len(caplog.records) == 3
    assert limited.pending
    clock.now += 10
    limited.flush()
    limited.flush()
    assert texts(caplog)[3:] == ["7 similar in the last 10 s, not logged: peer 2"]
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.records[-1].trionet == {"suppressed": 7}
    assert not limited.pending


def test_the_end_tells_the_rest(flood, caplog):
    """Nothing that was left out is forgotten when there is no later."""
    limited, _ = flood
    for _ in range(4):
        limited.log(log, logging.WARNING, "again")
    limited.flush(everything=True)
    assert texts(caplog)[-1] == "1 similar in the last 0 s, not logged: again"


def test_a_flood_does_not_hide_another_error(flood, caplog):
    """Errors of another type, or raised elsewhere, are of another kind; so are those under another key."""
    limited, _ = flood

    def fail(error):
        try:
            raise error
        except Exception as raised:
            return raised

    def fail_elsewhere():
        try:
            int("x")
        except ValueError as raised:
            return raised

    for _ in range(20):
        limited.log(log, logging.ERROR, "failed", error=fail(ValueError("a")))
    limited.log(log, logging.ERROR, "failed", error=fail(KeyError("b")))
    limited.log(log, logging.ERROR, "failed", error=fail_elsewhere())
    limited.log(log, logging.ERROR, "failed", key="other")
    assert [r.exc_info and r.exc_info[0] for r in caplog.records[3:]] == [KeyError, ValueError, None]


def test_a_level_that_is_off_costs_nothing(flood, caplog):
    """Records nobody wants are not counted as left out, and their fields are not asked for."""
    limited, _ = flood
    for _ in range(10):
        limited.log(log, logging.DEBUG, "detail", fields=lambda: pytest.fail("asked"))
    assert (limited.suppressed, caplog.records) == (0, [])


def test_kinds_are_bounded(flood, caplog):
    """However many kinds there are, few are kept; what was left out of the old ones is told."""
    limited, _ = flood
    for number in range(1000):
        for _ in range(4):
            limited.log(log, logging.WARNING, "same", key=number)
    assert len(limited._kinds) <= 256
    assert sum("not logged" in text for text in texts(caplog)) == 768


# ------------------------------------------------------------------- connections


@pytest.mark.parametrize(
    "address, text",
    [(("127.0.0.1", 80), "127.0.0.1:80"), (("::1", 80, 0, 0), "[::1]:80"), (b"", "unix"), (None, "unknown")],
)
def test_addresses(address, text):
    """Addresses are written as in a URL."""
    assert address_text(address) == text


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO")
def test_the_kernel_has_counted():
    """Bytes of a TCP connection are known without counting them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            client.sendall(b"x" * 1000)
            server.recv(1000, socket.MSG_WAITALL)
            server.sendall(b"y" * 77)
            client.recv(100)
            found = tcp_counters(server.fileno())
    assert (found["received"], found["sent"], found["retransmits"]) == (1000, 77, 0)


async def closings(caplog, level, end):
    """Serve one connection that ends by `end`, and return what the log says of closed connections."""
    caplog.set_level(level, "trionet.connections")

    async def echo(ws):
        async for message in ws:
            if message == "detach":
                stream = await ws.detach()
                await stream.aclose()
                return
            await ws.send(message)

    protocol = trionet.WebSocketProtocol(echo)
    async with trionet.open_server(protocol) as server:
        stream = await trio.open_tcp_stream(*server.addresses[0])
        async with stream:
            if end != "silent":
                await stream.send_all(
                    b"GET /?token=secret HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Cookie: secret\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                assert b" 101 " in await stream.receive_some()
            if end == "close":  # 1000, and a reason that would clear a terminal
                await stream.send_all(b"\x88\x89\0\0\0\0\x03\xe8\x1b[2Jbye")
            elif end == "detach":
                await stream.send_all(b"\x81\x86\0\0\0\0detach")
            if end != "silent":
                while await stream.receive_some():
                    pass
        with trio.fail_after(5):
            while server.engine.connections:  # noqa: ASYNC110 - bounded
                await trio.sleep(0.01)
    return [record for record in caplog.records if record.name == "trionet.connections"]


async def test_one_line_for_each_closed_connection(caplog):
    """At debug level there is one record for each end: who, how, and how much was sent; no query, no cookie."""
    (record,) = await closings(caplog, logging.DEBUG, "close")
    fields = record.trionet
    assert fields["peer"].startswith("127.0.0.1:")
    assert (fields["code"], fields["by"], fields["protocol"]) == (1000, "peer", "WebSocketProtocol")
    if sys.platform == "linux":
        assert fields["received"] > 100
    assert "secret" not in f"{vars(record)} {record.getMessage()}"
    assert record.getMessage().isprintable()
    assert fields["reason"] == "\x1b[2Jbye"  # as it is: formats escape it


async def test_a_connection_that_never_spoke_has_its_line(caplog):
    """One that left before its handshake is not forgotten."""
    (record,) = await closings(caplog, logging.DEBUG, "silent")
    assert record.trionet["code"] == 1006


async def test_a_connection_given_away_has_one_line(caplog):
    """It is logged when the stream it became is closed, not when it was given away."""
    (record,) = await closings(caplog, logging.DEBUG, "detach")
    assert record.trionet["protocol"] == "stream"
    assert record.trionet["peer"].startswith("127.0.0.1:")


async def test_nothing_at_other_levels(caplog):
    """Above debug nothing is said of connections that end."""
    assert await closings(caplog, logging.INFO, "close") == []


async def test_a_flood_of_failing_handlers(caplog):
    """A handler that fails for each of many connections is logged a few times, and counted."""

    async def fail(ws):
        raise ZeroDivisionError

    async with trionet.open_server(trionet.WebSocketProtocol(fail)) as server:
        url = f"ws://127.0.0.1:{server.addresses[0][1]}/"
        for _ in range(12):
            async with trionet.connect_websocket(url) as ws:
                with pytest.raises(trionet.ConnectionClosed):
                    await ws.receive()
    failed = [record for record in caplog.records if record.getMessage().endswith("handler failed")]
    assert len(failed) == 5
    assert failed[0].trionet["peer"].startswith("127.0.0.1:")
    (rest,) = [record for record in caplog.records if "not logged" in record.getMessage()]
    assert rest.trionet == {"suppressed": 7}
