"""The outbox: whole frames, counted, in order, however little the kernel takes at a time."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.net import outbox as module
from trionet.net import system
from trionet.net.outbox import FRAME_COST, Outbox


class Kernel:
    """Stands for `writev`: takes `portions` bytes at a time, None is "no room"; the last portion repeats."""

    def __init__(self, *portions):
        self.portions = list(portions)
        self.taken = b""
        self.calls = 0

    def __call__(self, fd, buffers):
        self.calls += 1
        assert len(buffers) <= module._AT_ONCE
        room = self.portions[0]
        if len(self.portions) > 1:
            del self.portions[0]
        if room is None:
            raise BlockingIOError
        data = b"".join(buffers)[:room]
        self.taken += data
        return len(data)


@pytest.fixture
def kernel(monkeypatch):
    """Return a function that makes `writev` take what it is told."""

    def install(*portions):
        kernel = Kernel(*portions)
        monkeypatch.setattr(system, "writev", kernel)
        return kernel

    return install


def filled(*frames):
    """Return an outbox with these frames."""
    out = Outbox(1)
    for frame in frames:
        out.append(frame)
    return out


def assert_counted(out):
    """`size` is what `frames` still hold."""
    left = [len(frame) + FRAME_COST for frame in out.frames[out._head :]]
    assert out.size == sum(left) - out._offset


def test_all_is_sent_with_one_call(kernel):
    """Many small frames go out in one system call, and nothing is counted afterwards."""
    kernel = kernel(1000)
    out = filled(b"one", b"two", b"three")
    assert out.size == 11 + 3 * FRAME_COST
    assert out.flush(3, 5)
    assert (kernel.taken, kernel.calls) == (b"onetwothree", 1)
    assert out.size == 0
    assert out.since == 5


@pytest.mark.parametrize("portion", range(1, 14))
def test_a_cut_at_every_byte(kernel, portion):
    """Whatever portion the kernel takes, bytes come in order and once, and the count is right at each step."""
    frames = [b"one", b"", b"two", b"three"]
    kernel = kernel(*[portion, None] * 20)
    out = filled(*frames)
    for tick in range(2, 30):
        done = out.flush(3, tick)
        assert_counted(out)
        if done:
            break
    assert kernel.taken == b"onetwothree"
    assert out.size == 0


@pytest.mark.parametrize("sent", range(6))
def test_a_frame_that_the_kernel_began(kernel, sent):
    """The first frame may be sent in part already: the rest follows, and only the rest is counted."""
    kernel = kernel(2, None, 1000)
    out = Outbox(1)
    out.append(b"begun!", sent)
    out.append(b"next")
    assert out.size == 6 - sent + 4 + 2 * FRAME_COST
    assert not out.flush(3, 2)
    assert out.flush(3, 3)
    assert kernel.taken == b"begun!next"[sent:]
    assert out.size == 0


def test_many_frames_go_in_portions_of_64(kernel):
    """One call takes as many buffers as the kernel allows; what is sent is not kept."""
    kernel = kernel(100, None, 10_000)
    out = filled(*[b"%03d" % i for i in range(200)])
    assert not out.flush(3, 2)
    assert len(out.frames) <= 200 - 33 + 33
    assert_counted(out)
    assert out.flush(3, 2)
    assert kernel.taken == b"".join(b"%03d" % i for i in range(200))
    assert kernel.calls == 2 + 3
    assert out.size == 0


def test_a_full_kernel_is_no_progress(kernel):
    """`since` moves when bytes move, and not when the kernel has no room: that is what the stall deadline reads."""
    kernel(1, None, None)
    out = filled(b"ab")
    assert not out.flush(3, 7)
    assert out.since == 7
    assert not out.flush(3, 9)
    assert out.since == 7


def test_a_broken_connection_is_told(kernel, monkeypatch):
    """Errors of the connection come out of `flush`."""

    def broken(fd, buffers):
        raise ConnectionResetError

    monkeypatch.setattr(system, "writev", broken)
    with pytest.raises(ConnectionResetError):
        filled(b"x").flush(3, 1)


def test_replace_last(kernel):
    """The last frame can be replaced until a byte of it is out."""
    kernel = kernel(3, None, 1, None, 100)
    out = filled(b"one", b"two")
    assert out.replace_last(b"second")
    assert out.size == 9 + 2 * FRAME_COST
    assert not out.flush(3, 1)
    assert out.replace_last(b"2")
    assert out.replace_last(b"22")
    assert not out.flush(3, 1)
    assert not out.replace_last(b"late")
    assert out.flush(3, 1)
    assert kernel.taken == b"one22"
    assert out.size == 0
    assert not out.replace_last(b"empty")


def test_replace_last_never_touches_a_frame_that_the_kernel_began():
    """A frame that is begun when it is queued is as begun as one begun later."""
    out = Outbox(1)
    out.append(b"begun", 1)
    assert not out.replace_last(b"other")


@pytest.mark.parametrize(
    "begun,room,limit,kept,dropped",
    [
        (0, 10, 10 * (10 + FRAME_COST), ["0", "1", "2", "3"], 0),
        (0, 0, 2 * (10 + FRAME_COST), ["2", "3"], 2),
        (0, 1, 2 * (10 + FRAME_COST), ["3"], 3),
        (0, 10, 0, [], 4),
        (1, 10, 0, ["0"], 3),  # never the one that is begun
        (9, 0, 2 * (10 + FRAME_COST), ["0", "3"], 2),
    ],
)
def test_drop_oldest(begun, room, limit, kept, dropped):
    """The oldest go first, only as many as must, and never a frame that is begun."""
    out = Outbox(1)
    out.append(b"0" * 10, begun)
    for digit in b"123":
        out.append(bytes([digit]) * 10)
    assert out.discard_oldest(room, limit, lambda _: True) == dropped
    assert [chr(frame[0]) for frame in out.frames] == kept
    assert_counted(out)


def test_drop_oldest_asks_which_may_be_dropped():
    """Control frames and fragments stay where they are; the messages around them go."""
    out = filled(b"m1", b"c", b"m2", b"c", b"m3")
    assert out.discard_oldest(0, 3 * (2 + FRAME_COST), lambda frame: frame[:1] == b"m") == 2
    assert out.frames == [b"c", b"c", b"m3"]
    assert_counted(out)


def test_drop_oldest_after_progress(kernel):
    """Frames that were sent are no longer there to be dropped or counted."""
    kernel(25, None)
    out = filled(*[b"%d" % i * 10 for i in range(5)])
    out.flush(3, 1)
    assert out.discard_oldest(0, 0, lambda _: True) == 2
    assert [frame[:1] for frame in out.frames[out._head :]] == [b"2"]
    assert_counted(out)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 30)),
        st.tuples(st.just("flush"), st.integers(0, 60)),
        st.tuples(st.just("replace"), st.integers(0, 30)),
        st.tuples(st.just("drop"), st.integers(0, 300)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_any_sequence_keeps_frames_whole(operations):
    """Whatever is queued, replaced and dropped in between, the peer sees whole frames in order; the count ends at 0."""
    kernel = Kernel(None)
    before, system.writev = system.writev, kernel
    try:
        out = Outbox(0)
        for number, (operation, size) in enumerate(operations):
            frame = b"<%d:%s>" % (number, b"x" * size)
            if operation == "append":
                out.append(frame)
            elif operation == "replace":
                out.replace_last(frame)
            elif operation == "drop":
                out.discard_oldest(0, size, lambda _: True)
            else:
                kernel.portions = [size, None]
                out.flush(3, number)
            assert_counted(out)
        kernel.portions = [10_000]
        assert out.flush(3, 99)
    finally:
        system.writev = before
    assert out.size == 0
    frames = kernel.taken.decode().replace("><", ">|<").split("|") if kernel.taken else []
    numbers = [int(frame[1:].split(":")[0]) for frame in frames]
    assert numbers == sorted(numbers)
    assert all(frame[0] == "<" and frame[-1] == ">" and frame.count("<") == 1 for frame in frames)


def test_a_real_socket_with_a_tiny_buffer():
    """A peer that reads slowly gets every byte, in order, through partial writes of the real kernel."""
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ours.setblocking(False)
        peer.setblocking(False)
        frames = [bytes([i]) * (i * 97) for i in range(100)]
        out = filled(*frames)
        got, blocked = b"", 0
        while not out.flush(ours.fileno(), 1):
            assert_counted(out)
            blocked += 1
            got += peer.recv(3001)
        ours.close()
        peer.setblocking(True)
        while data := peer.recv(65536):
            got += data
    assert got == b"".join(frames)
    assert blocked > 3
    assert out.size == 0


def test_wake_lets_each_waiter_look_once():
    """Everyone who waits for room is woken once, and those who begin to wait meanwhile are not lost."""
    out = Outbox(1)
    woken = []

    class Waiter:
        def wake(self):
            woken.append(self)
            out.waiters.append("next")

    out.waiters += [Waiter(), Waiter()]
    out.wake()
    assert len(woken) == 2
    assert out.waiters == ["next", "next"]
