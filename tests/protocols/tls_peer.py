"""Certificates, contexts, and clients that speak TLS, for tests."""

from __future__ import annotations

import functools
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing
import trustme
from ws_peer import Peer, Serving, serving

import trionet


@functools.cache
def authority() -> trustme.CA:
    """Return the authority that issues every certificate of a test run."""
    return trustme.CA()


@functools.cache
def certificate(name: str = "localhost") -> trustme.LeafCert:
    """Return a certificate for `name`."""
    return authority().issue_cert(name)


def write_pem(path: Path, name: str = "localhost") -> Path:
    """Write key and certificate for `name` into a file."""
    certificate(name).private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def server_context(name: str = "localhost", **options) -> ssl.SSLContext:
    """Return what a server needs."""
    with certificate(name).private_key_and_cert_chain_pem.tempfile() as path:
        return trionet.server_tls_context(path, **options)


def client_context(version: str | None = None) -> ssl.SSLContext:
    """Return what a client needs; `version`: "TLSv1.2" or "TLSv1.3" and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    if version:
        context.minimum_version = context.maximum_version = {
            "TLSv1.2": ssl.TLSVersion.TLSv1_2,
            "TLSv1.3": ssl.TLSVersion.TLSv1_3,
        }[version]
    return context


class TlsPeer(Peer):
    """A client of raw frames over TLS."""

    async def reset(self) -> None:
        """Leave with a reset."""
        await Peer(self.stream.transport_stream).reset()

    async def vanish(self) -> None:
        """Leave without close_notify."""
        await self.stream.transport_stream.aclose()


class Bytewise(trio.abc.Stream):
    """Sends each byte on its own, and sees to it that it is read on its own."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes) -> None:
        for byte in bytes(data):
            await self.stream.send_all(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.stream.receive_some(1)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


class TlsServing(Serving):
    """A server under test that speaks TLS, and its clients."""

    client: ssl.SSLContext

    async def dial(
        self, address=None, *, small: bool = False, bytewise: bool = False, name="localhost"
    ) -> TlsPeer:
        """Connect; the handshake is made with the first bytes."""
        transport = (await self.dial_plain(address, small=small)).stream
        stream = trio.SSLStream(
            Bytewise(transport) if bytewise else transport, self.client, server_hostname=name
        )
        return TlsPeer(stream)

    async def dial_plain(self, address=None, *, small: bool = False) -> Peer:
        """Connect, and no more."""
        return await super().dial(address, small=small)


@asynccontextmanager
async def serving_tls(handler, *, context=None, client=None, **options):
    """Like `serving`, over TLS. `context` and `client`: those of the two sides."""
    async with serving(handler, ssl_context=context or server_context(), **options) as at:
        secure = TlsServing(at.server, at.protocol, at._stack)
        secure.client = client or client_context()
        yield secure
