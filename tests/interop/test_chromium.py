"""Chromium's WebSocket against our server, plain and over TLS; it offers permessage-deflate by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tls_peer import certificate

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
pytest.importorskip("playwright.sync_api", reason="needs playwright")

HOST = str(Path(__file__).with_name("browser_host.py"))

# What the scripts below share: a socket whose events can be awaited one by one.
PRELUDE = """
window.dial = (path, protocols) => new Promise((resolve) => {
  const socket = new WebSocket(location.origin.replace("http", "ws") + path, protocols ?? []);
  const events = [], wanted = [];
  const put = (event) => (wanted.length ? wanted.shift()(event) : events.push(event));
  socket.binaryType = "arraybuffer";
  socket.next = () => (events.length ? Promise.resolve(events.shift()) : new Promise((want) => wanted.push(want)));
  socket.onmessage = ({ data }) => put(data);
  socket.onclose = ({ code, reason, wasClean }) => { put([code, reason, wasClean]); resolve(socket); };
  socket.onopen = () => resolve(socket);
});
"""


@pytest.fixture(scope="module", params=["plain", "tls"])
def url(request, tmp_path_factory):
    """Return the URL of our server; it serves all tests of this file."""
    args = []
    if request.param == "tls":
        pem = tmp_path_factory.mktemp("certificate") / "server.pem"
        # Nobody vouches for it: the context below is told to take it all the same.
        certificate("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
        args = ["--tls", str(pem)]
    with subprocess.Popen([sys.executable, HOST, *args], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("listening on https:" if args else "listening on http:"), line
        yield line.split()[2]
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def page(browser, url):
    """Return a page of our server, with `dial` in it."""
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.add_init_script(PRELUDE)
    page.goto(url)
    yield page
    context.close()


def test_messages_of_every_length_come_back_as_they_were(page):
    """Text and binary, compressed: it offers that, and we agree."""
    result = page.evaluate(
        """async () => {
          const socket = await dial("/", ["none", "chat"]);
          const wrong = [];
          const noise = new Uint8Array(2 ** 20);
          for (let i = 0; i < noise.length; i += 65536) crypto.getRandomValues(noise.subarray(i, i + 65536));
          for (const size of [0, 1, 125, 126, 127, 65535, 65536, 2 ** 20]) {
            for (const text of ["x".repeat(size), "😀é".repeat(size / 4)]) {
              socket.send(text);
              if ((await socket.next()) !== text) wrong.push(["text", size]);
            }
            socket.send(noise.subarray(0, size));
            const back = new Uint8Array(await socket.next());
            if (back.length !== size || back.some((byte, i) => byte !== noise[i])) wrong.push(["binary", size]);
          }
          return { wrong, extensions: socket.extensions, protocol: socket.protocol };
        }"""
    )
    assert result["wrong"] == []
    assert result["protocol"] == "chat"
    assert result["extensions"].startswith("permessage-deflate")


def test_the_offer_and_the_cookie_arrive(page):
    """The cookie that the first handshake set comes with the second."""
    assert page.evaluate(
        """async () => {
          await dial("/");
          const socket = await dial("/");
          socket.send("/request");
          return socket.next();
        }"""
    ) == ("['agreed=yes'] ['permessage-deflate; client_max_window_bits']")


def test_pings_pieces_and_many_in_a_row(page):
    """It answers our Ping, joins our pieces, and gets hundreds of answers in order."""
    result = page.evaluate(
        """async () => {
          const socket = await dial("/");
          socket.send("/ping");
          const pong = await socket.next();
          socket.send("/pieces");
          const pieces = await socket.next();
          for (let n = 0; n < 500; n++) socket.send(`message ${n} is like message ${n - 1}`);
          let inOrder = true;
          for (let n = 0; n < 500; n++)
            inOrder &&= (await socket.next()) === `message ${n} is like message ${n - 1}`;
          return { pong, pieces, inOrder };
        }"""
    )
    assert result == {"pong": "pong", "pieces": "one größer " + "three " * 5000, "inOrder": True}


def test_how_connections_end(page):
    """With the codes of either side; 1006 where there was no Close, or no 101."""
    assert page.evaluate(
        """async () => {
          const ends = {};
          let socket = await dial("/");
          socket.close(3001, "größer");
          ends.theirs = await socket.next();
          socket = await dial("/");
          socket.send("/close 4001 größer");
          ends.ours = await socket.next();
          socket = await dial("/");
          socket.send("/vanish");
          ends.vanished = await socket.next();
          socket = await dial("/");
          socket.send("x".repeat(2 ** 21 + 1));
          ends.large = await socket.next();
          socket = await dial("/forbidden");
          ends.refused = await socket.next();
          return ends;
        }"""
    ) == {
        "theirs": [3001, "", True],  # our answer has the code
        "ours": [4001, "größer", True],
        "vanished": [1006, "", False],
        "large": [1009, "message longer than 2097152 bytes", True],
        "refused": [1006, "", False],
    }


def test_one_broadcast_reaches_ten_sockets(page):
    """Each hears the same, compressed by a window of its own."""
    assert page.evaluate(
        """async () => {
          const sockets = [];
          for (let n = 0; n < 10; n++) sockets.push(await dial("/"));  // many at once it would slow down
          for (let round = 0; round < 3; round++) {
            sockets[round].send(`/broadcast ${"all".repeat(1000)}${round}`);
            for (const socket of sockets)
              if ((await socket.next()) !== `${"all".repeat(1000)}${round}`) return false;
          }
          return true;
        }"""
    )
