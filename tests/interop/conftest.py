"""Peers of others: an asyncio loop, a Node process, certificates; and which peers there are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

# Test folders are no packages (importlib mode); this lets the tests import their helpers.
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "protocols")]

from interop_peers import PEERS, NpmWs, Wish  # noqa: E402
from interop_servers import SERVERS, Config  # noqa: E402
from interop_threads import Loop, Node, install_packages  # noqa: E402
from tls_peer import authority, certificate, server_context  # noqa: E402


@pytest.fixture(scope="session")
def loop():
    """Return an asyncio event loop that runs in a thread."""
    running = Loop()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def node(pytestconfig, tmp_path_factory):
    """Return a Node process; skips where there is none, or where npm cannot install what it needs."""
    cache = getattr(pytestconfig, "cache", None)  # not there with -p no:cacheprovider
    folder = cache.mkdir("interop-npm") if cache is not None else tmp_path_factory.mktemp("npm")
    folder = Path(folder) / "packages"
    if reason := install_packages(folder):
        pytest.skip(reason)
    pem = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority().cert_pem.write_to_path(str(pem))
    running = Node(folder, pem)
    yield running
    running.stop()


@pytest.fixture
def connect(request, loop):
    """Return `connect(url, **wish)` of a peer: a context manager of a connection."""
    kind = PEERS[request.param]
    if reason := kind.missing():
        pytest.skip(reason)
    process = request.getfixturevalue("node") if issubclass(kind, NpmWs) else None

    def connect(url: str, **wish):
        return kind.connect(url, Wish(**wish), loop, process)

    connect.kind = kind
    return connect


@pytest.fixture(scope="session")
def pem():
    """Return certificate and key of 127.0.0.1 as text."""
    leaf = certificate("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return {"cert": chain.decode(), "key": leaf.private_key_pem.bytes().decode()}


@pytest.fixture
def foreign(request, loop, pem):
    """Return `foreign(**config)` of a server: a context manager of its port."""
    server = SERVERS[request.param]
    if server.needs != "node" and importlib.util.find_spec(server.needs) is None:
        pytest.skip(f"{server.needs} is not installed")
    process = request.getfixturevalue("node") if server.needs == "node" else None

    def foreign(*, tls: bool = False, **config):
        context = server_context("127.0.0.1") if tls else None
        return server.serve(Config(loop, process, context, pem if tls else None, **config))

    foreign.name = request.param
    return foreign
