"""What is served and shown beside the bus: the module for pages, the numbers for operators."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from bus_peer import Desk, Peer, serving

import trionet
from trionet.bus import bus_protocol, client_module
from trionet.ops.metrics import render
from trionet.ops.metrics.bus import bus_families
from trionet.ops.metrics.own import Own

ROOT = Path(__file__).resolve().parents[2]


async def get(server, path, *lines):
    """Return head and body of an answer."""
    async with await trio.open_tcp_stream(*server.addresses[0][:2]) as stream:
        request = "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""])
        await stream.send_all(request.encode())
        answer = b""
        with trio.fail_after(10):
            async for data in stream:
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


async def test_the_module_is_served():
    """A browser gets the module as a script, asks again with its ETag, and is told that nothing has changed."""
    module = client_module()
    http = trionet.HttpProtocol({"/trionet.js": module, "/trionet.d.ts": module})
    async with serving(http=http) as at:
        head, body = await get(at.server, "/trionet.js")
        assert head.startswith("HTTP/1.1 200 ")
        assert "Content-Type: text/javascript; charset=utf-8" in head
        assert "export class Bus" in body
        etag = re.search(r"ETag: (\S+)", head)[1]
        head, body = await get(at.server, "/trionet.js", f"If-None-Match: {etag}")
        assert head.startswith("HTTP/1.1 304 ")
        assert not body
        head, body = await get(at.server, "/trionet.d.ts")
        assert "Content-Type: application/typescript; charset=utf-8" in head
        assert "export" in body
        head, _ = await get(at.server, "/trionet.js/more")
        assert head.startswith("HTTP/1.1 404 ")


async def test_one_path_of_many():
    """A `Router` serves the bus at a path of its own, beside pages."""
    handler = Desk("memory")
    router = trionet.Router({"/bus": bus_protocol(handler), "/trionet.js": client_module()})
    async with (
        trionet.open_client() as client,
        trionet.open_server(router, lifespan=handler.lifespan) as server,
    ):
        url = server.endpoints[0].url.replace("http://", "ws://").rstrip("/")
        ada = Peer(await client.connect(f"{url}/bus?ada"))
        assert (await ada.next("welcome"))["user"] == "ada"
        await ada.ask("subscribe", "news")
        await handler.publish("news", 1)
        assert (await ada.next("message"))["data"] == 1
        assert "export class Bus" in (await get(server, "/trionet.js"))[1]


async def test_compressed():
    """Publications are compressed once for all who can; answers, too."""
    async with serving(compression=True) as at:
        ada, plain = await at.join("ada", compression=True), await at.join("bob")
        for peer in (ada, plain):
            await peer.ask("subscribe", "news")
        await at.handler.publish("news", "x" * 10_000)
        for peer in (ada, plain):
            assert (await peer.next())["data"] == "x" * 10_000
        assert len((await ada.ask("history", "news"))["messages"]) == 1


async def test_metrics():
    """What the bus has counted is shown in the form Prometheus reads, and no topic or user is a label."""
    async with serving() as at:
        ada = await at.join("ada")
        begun = await ada.ask("subscribe", "news")
        await at.handler.publish("news", 1)
        await ada.ask("subscribe", "room:1", since={"epoch": begun["epoch"], "offset": 0})
        await ada.ask("subscribe", "old", since={"epoch": "another", "offset": 0})
        await ada.ask("subscribe", "secret:1")
        own = Own()
        text = render(own.ask(lambda _: bus_families(at.handler), at.server, ())).decode()
        assert own.failures == 0
        for line in (
            'trionet_bus_connected{broker="memory"} 1',
            'trionet_publish_total{broker="memory"} 1',
            "trionet_topics 3",
            "trionet_subscribers 1",
            "trionet_subscriptions 3",
            "trionet_members 1",
            "trionet_delivery_seconds_count 1",
            'trionet_recoveries_total{result="complete"} 1',
            'trionet_recoveries_total{result="incomplete"} 1',
            'trionet_bus_refusals_total{code="forbidden"} 1',
        ):
            assert f"\n{line}\n" in text, line
        assert not re.search("ada|news|secret", text)
        assert 'code="' not in render(bus_families(at.bus)).decode()


APP = """
import trionet
from trionet.bus import BusHandler, bus_protocol

handler = BusHandler("local:/nowhere/broker")
app = trionet.Application(bus_protocol(handler), lifespan=handler.lifespan)
"""


@pytest.mark.processes
def test_a_server_without_its_broker_says_so(tmp_path):
    """`trionet serve` ends with a line that names the broker: no traceback, for no program is to blame."""
    pytest.importorskip("cyclopts")  # the command's, an extra
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "trionet", "serve", "app.py", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)  # pytest-xdist's processes have it, and it folds the line
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 1
    assert "/nowhere/broker" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
