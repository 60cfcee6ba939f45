"""`trionet health` against servers that are well, that are not, and that say nothing."""

from __future__ import annotations

import json
import ssl

import pytest
import trio
import trustme

import trionet
from trionet.cli.health import health, parse_target
from trionet.errors import ConfigurationError


async def ready(_):
    """What /readyz says of a server that drains."""
    return trionet.Response.text("draining\nmore\n", 503)


async def echo(ws):
    """A handler."""
    async for message in ws:
        await ws.send(message)


PROTOCOL = trionet.WebSocketProtocol(
    echo, http=trionet.HttpProtocol({"/healthz": b"ok\n", "/readyz": ready, "/empty": b""})
)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """A folder without settings, and an environment without them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIONET_ADMIN", raising=False)


async def test_an_answer_of_200_is_well(capsys):
    """Exit code 0; the path is /healthz unless another is given."""
    async with trionet.open_server(PROTOCOL) as server:
        port = server.addresses[0][1]
        assert await health(f"http://127.0.0.1:{port}") == 0
        assert await health(f"127.0.0.1:{port}/empty") == 0
        assert await health(f"http://127.0.0.1:{port}/readyz", path="/healthz") == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"well: 200 ok (http://127.0.0.1:{port}, ")
    assert second.startswith(f"well: 200 (127.0.0.1:{port}/empty, ")


async def test_another_answer_is_not_well(capsys):
    """Exit code 1, and the first line of what the server said."""
    async with trionet.open_server(PROTOCOL) as server:
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        assert await health(url + "/readyz") == 1
        assert await health(url + "/nowhere", json=True) == 1
    text = capsys.readouterr().out
    assert text.startswith("NOT well: 503 draining (")
    document = json.loads(text.split("\n", 1)[1])
    assert (document["status"], document["well"], document["url"]) == (404, False, url + "/nowhere")


async def test_a_websocket_is_opened_and_closed(capsys):
    """ws:// asks whether the handshake succeeds."""
    async with trionet.open_server(PROTOCOL) as server:
        port = server.addresses[0][1]
        assert await health(f"ws://127.0.0.1:{port}/") == 0
    async with trionet.open_server(trionet.HttpProtocol({})) as server:
        assert await health(f"ws://127.0.0.1:{server.addresses[0][1]}/") == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("well: it opens WebSockets")
    assert "NOT well" in second
    assert "404" in second


async def test_a_unix_socket_is_asked(tmp_path):
    """As the admin address of a container."""
    path = str(tmp_path / "s")
    async with trionet.open_server([trionet.Endpoint(protocol=PROTOCOL, path=path)]):
        assert await health(f"unix:{path}") == 0
        assert await health(f"unix:{path}", path="/readyz") == 1


async def test_without_a_url_the_admin_address_of_the_settings_is_asked(monkeypatch, tmp_path):
    """From the environment, or the file; a wildcard is asked on the loopback address."""
    async with trionet.open_server(PROTOCOL) as server:
        port = server.addresses[0][1]
        monkeypatch.setenv("TRIONET_ADMIN", f"0.0.0.0:{port}")
        monkeypatch.setenv("TRIONET_ADMIN_PUBLIC", "1")
        assert await health() == 0
        monkeypatch.delenv("TRIONET_ADMIN")
        (tmp_path / "trionet.toml").write_text(f'[serve]\nadmin = "127.0.0.1:{port}"\n')
        assert await health(path="/readyz") == 1


async def test_a_certificate_is_verified_unless_told_not_to(capsys):
    """One that nobody knows is not well; with `insecure` only the answer counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with trionet.open_server(PROTOCOL, ssl_context=context) as server:
        port = server.addresses[0][1]
        assert await health(f"https://127.0.0.1:{port}") == 1
        assert "certificate" in capsys.readouterr().out
        assert await health(f"https://127.0.0.1:{port}", insecure=True) == 0
        assert await health(f"wss://127.0.0.1:{port}", insecure=True) == 0


async def test_a_server_that_says_nothing_is_not_well(capsys, autojump_clock):
    """The timeout is for all of it, whatever comes."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        assert await health(f"http://127.0.0.1:{port}", timeout=7) == 1
    assert "NOT well: no answer within 7 s" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
async def test_what_is_no_answer_is_not_well(answer):
    """Another protocol, an empty answer, one that is cut off."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:

        async def reply():
            async with await listener.accept() as stream:
                await stream.receive_some()
                await stream.send_all(answer)

        nursery.start_soon(reply)
        assert await health(f"http://127.0.0.1:{listener.socket.getsockname()[1]}") == 1


async def test_a_port_where_nobody_listens_is_not_well(capsys):
    """The reason is that of the system."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    assert await health(f"http://127.0.0.1:{port}") == 1
    assert await health("unix:/nowhere/at/all") == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("NOT well: Connection refused")
    assert second.startswith("NOT well: No such file or directory")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "unix:", "http://[::1"])
def test_what_is_no_url_is_refused(url):
    """A wrong URL is an error of the command line, not an answer."""
    with pytest.raises(ConfigurationError):
        parse_target(url)


async def test_what_cannot_be_asked_is_refused():
    """No URL, no time, no path."""
    for options in ({}, {"url": "http://x", "timeout": 0}, {"url": "http://x", "path": "x"}):
        with pytest.raises(ConfigurationError):
            await health(options.pop("url", None), **options)


def test_a_url_is_read():
    """Ports and paths have the defaults of their scheme."""
    assert parse_target("https://[::1]/x?y").port == 443
    assert parse_target("https://[::1]/x?y").path == "/x?y"
    assert parse_target("ws://h").path == "/"
    assert parse_target("h:81").port == 81
    assert parse_target("h:81").path == "/healthz"
