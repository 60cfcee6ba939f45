"""Single frames over any Trio stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from trionet import ConnectionClosed, Frame, ProtocolError, read_frame, write_frame

KEY = b"\x01\x02\x03\x04"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
@pytest.mark.parametrize("key", [None, KEY], ids=["server", "client"])
async def test_a_frame_goes_through(size, key):
    """At each length form, masked and not."""
    ours, theirs = memory_stream_pair()
    sent = Frame(2, bytes(n & 255 for n in range(size)), fin=False, rsv=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: write_frame(ours, sent, key=key))
        received = await read_frame(theirs)
    assert received == sent._replace(masked=key is not None)


@pytest.mark.parametrize("key", [None, KEY], ids=["server", "client"])
async def test_byte_by_byte(key):
    """A frame may arrive in pieces of any size; nothing behind it is read."""
    ours, theirs = memory_stream_pair()
    for size in (3, 200, 70_000):
        await write_frame(ours, Frame(1, b"x" * size), key=key)
    await ours.send_all(b"behind")

    class Slow(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes=None):
            assert max_bytes is not None
            return await theirs.receive_some(min(max_bytes, 1 if max_bytes < 300 else 999))

        async def aclose(self):
            await theirs.aclose()

    for size in (3, 200, 70_000):
        assert (await read_frame(Slow())).payload == b"x" * size
    assert await theirs.receive_some() == b"behind"


@pytest.mark.parametrize("length", [1001, 70_000, 2**62])
async def test_the_limit_comes_before_the_payload(length):
    """1009, with the header alone."""
    ours, theirs = memory_stream_pair()
    extended = b"\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x7f" + length.to_bytes(8, "big")
    await ours.send_all(b"\x82" + extended)
    with pytest.raises(ProtocolError) as caught:
        await read_frame(theirs, max_length=1000)
    assert caught.value.code == 1009


@pytest.mark.parametrize(
    "header", [b"\x82\x7e\x00\x7d", b"\x82\x7f" + bytes(6) + b"\xff\xff", b"\x82\x7f\xff" + bytes(7)]
)
async def test_a_length_in_the_wrong_form(header):
    """Not the shortest form, or beyond 63 bits: 1002 (RFC 6455, 5.2)."""
    ours, theirs = memory_stream_pair()
    await ours.send_all(header)
    with pytest.raises(ProtocolError) as caught:
        await read_frame(theirs)
    assert caught.value.code == 1002


@pytest.mark.parametrize("sent", [b"", b"\x82", b"\x82\x7e\x00", b"\x82\x85\x00\x00", b"\x82\x05abc"])
async def test_the_end_of_the_stream(sent):
    """At any byte: `ConnectionClosed` with 1006."""
    ours, theirs = memory_stream_pair()
    await ours.send_all(sent)
    await ours.aclose()
    with pytest.raises(ConnectionClosed) as caught:
        await read_frame(theirs)
    assert (caught.value.code, caught.value.by) == (1006, "network")


async def test_the_example_of_the_rfc():
    """The masked "Hello" of RFC 6455, 5.7."""
    ours, theirs = memory_stream_pair()
    await write_frame(ours, Frame(1, b"Hello"), key=b"\x37\xfa\x21\x3d")
    assert await theirs.receive_some() == b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
