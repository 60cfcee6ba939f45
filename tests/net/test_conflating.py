"""The conflating outbox beside a naive model, with a kernel that takes what it likes."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.net.conflating import TAG_COST, ConflatingOutbox, TaggedFrame
from trionet.net.counts import Counts
from trionet.net.outbox import FRAME_COST, Outbox


def message(number, tag=""):
    """Return a frame of six bytes that says which it is."""
    frame = b"<%04d>" % number
    return TaggedFrame.of(frame, tag) if tag else frame


def numbers(data):
    """Return which frames are in `data`, all of them whole."""
    assert len(data) % 6 == 0
    return [int(data[at + 1 : at + 5]) for at in range(0, len(data), 6)]


class Kernel:
    """Stands for `writev`: takes `room` bytes in all, then nothing."""

    def __init__(self):
        self.taken = b""
        self.room = 0

    def __call__(self, fd, buffers):
        data = b"".join(buffers)[: self.room]
        if not data:
            raise BlockingIOError
        self.room -= len(data)
        self.taken += data
        return len(data)

    def flush(self, out, room):
        """Have it take so many bytes more."""
        self.room = room
        return out.flush(0, 1, self)


def outbox(*frames):
    """Return one with these behind a frame that is begun."""
    out = ConflatingOutbox(1, Counts())
    for frame in (message(0), *frames):
        out.append(frame)
    return out


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["", "a", "b", "c", "d"]), st.integers(1, 60), st.sampled_from(["room", "last"])
    ),
    max_size=80,
)


@given(STEPS)
def test_against_a_model(steps):
    """What goes is whole and in order: all without a tag, and the newest of each tag; `size` counts what is left."""
    kernel, out = Kernel(), outbox()
    tags = {0: ""}
    dropped = 0
    for step in steps:
        if step == "room":
            taken, count = out.make_room(message(9999, "other"), out.size - 200)
            dropped += count
            assert taken or not out._tags
        elif step == "last":
            before = out.size
            frame = out.last
            assert out.replace_last(frame) or len(out) == 1
            assert out.size == before
        elif isinstance(step, int):
            if kernel.flush(out, step):
                assert len(out) == 0
                out.append(message(len(tags)))
                tags[len(tags)] = ""
        else:
            out.append(message(len(tags), step))
            tags[len(tags)] = step
        waiting = list(out._waiting.values())
        assert out.size == (
            sum(len(frame) + FRAME_COST for frame in [*out.frames[out._head :], *waiting])
            + TAG_COST * sum(isinstance(frame, TaggedFrame) for frame in waiting)
            - out._offset
        )
        assert len(out) == len(out.frames) - out._head + len(waiting)
    assert kernel.flush(out, 10**6)
    assert len(out) == out.size == 0
    got = numbers(kernel.taken)
    assert got == sorted(set(got))
    newest = {tag: number for number, tag in tags.items() if tag}
    assert {number for number, tag in tags.items() if not tag} <= set(got)
    if not dropped:
        assert set(newest.values()) <= set(got)
    assert len(got) + dropped + out._counts.slow_overflows == len(tags)


def test_the_newest_goes_to_the_end():
    """What waits with the same tag is driven out; the others keep their order, the first of all stays."""
    kernel = Kernel()
    out = outbox(
        message(1, "a"), message(2, "b"), message(3), message(4, "a"), message(5, "c"), message(6, "b")
    )
    assert len(out) == 5
    assert out._counts.slow_overflows == 2
    kernel.flush(out, 1000)
    assert numbers(kernel.taken) == [0, 3, 4, 5, 6]


def test_a_tag_that_never_rests_has_its_turn():
    """Published before every frame that goes, and each time behind all others, it arrives once in a while yet."""
    kernel, out = Kernel(), outbox()
    number = 0
    hot = []
    for turn in range(2000):
        for tag in ("hot", f"cold {turn * 2 % 100}", f"cold {(turn * 2 + 1) % 100}"):
            number += 1
            out.append(message(number, tag))
            if tag == "hot":
                hot.append(number)
        kernel.flush(out, 6)
    got = [n for n in numbers(kernel.taken) if n in set(hot)]
    assert len(got) >= 2000 / 102 / 3
    assert len(out) < 250


def test_a_queue_that_stands_still_does_not_grow():
    """However often each tag is published, one of it waits."""
    out = outbox(*[message(n % 100, f"tag {n % 7}") for n in range(5000)])
    assert len(out) == 1 + 7


def test_the_least_recent_tags_make_room():
    """Others than its own are dropped, as many as it takes; what has no tag stays, and its own does not count twice."""
    frames = [message(1, "a"), message(2), message(3, "b"), message(4, "c"), message(5, "a")]
    out = outbox(*frames)
    each = 6 + FRAME_COST + TAG_COST
    assert out.make_room(message(6, "b"), out.size) == (True, 0)
    assert out.make_room(message(6, "d"), out.size + 5) == (True, 1)  # c: b was just asked for
    assert [bytes(frame) for frame in out._waiting.values()] == [b"<0002>", b"<0003>", b"<0005>"]
    assert out.make_room(message(6, "d"), out.size - each) == (True, 2)
    assert out.make_room(message(6, "d"), 10) == (False, 0)
    assert [bytes(frame) for frame in out._waiting.values()] == [b"<0002>"]


def test_a_tag_that_is_queued_always_has_room():
    """At the limit it takes the place of its own, even if it is a little longer."""
    out = outbox(message(1), message(2, "a"))
    longer = TaggedFrame.of(b"longer than it was", "a")
    assert out.make_room(longer, 10) == (True, 0)
    out.append(longer)
    assert out.last == longer
    assert len(out) == 3


def test_the_rest_of_a_frame_is_not_driven_out():
    """Of a frame that the kernel has begun, the rest goes first, whatever comes."""
    kernel = Kernel()
    out = ConflatingOutbox(1, Counts())
    out.append(message(1, "a"), 2)
    out.append(message(2, "a"))
    out.append(message(3, "a"))
    assert not kernel.flush(out, 1)
    kernel.flush(out, 100)
    assert kernel.taken == b"001><0003>"


@pytest.mark.parametrize("taken, begun", [(0, 0), (6, 0), (8, 0), (0, 2), (18, 0)])
def test_taking_over(taken, begun):
    """What an ordinary outbox has goes on in order, and is conflated, but for what is begun."""
    kernel, plain = Kernel(), Outbox(1)
    for number, tag in enumerate("abcab"):
        plain.append(message(number, tag))
    kernel.flush(plain, taken)
    plain.begun = begun
    plain.waiters.append(None)
    out = ConflatingOutbox.of(plain, Counts())
    assert out.waiters is plain.waiters
    out.append(message(5, "b"))
    assert kernel.flush(out, 100)
    got = numbers(kernel.taken)
    assert got == sorted(got)
    assert {2, 3, 5} <= set(got)
    assert 4 not in got
    assert out.size == 0


def test_the_cost_does_not_grow_with_the_queue():
    """Driving out and dropping take as many calls in a queue of 20,000 as in one of 20."""

    def calls(function, *args):
        count = 0

        def note(*_):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            function(*args)
        finally:
            sys.setprofile(None)
        return count

    costs = []
    for length in (20, 20_000):
        out = outbox(*[message(n % 10_000, f"tag {n}" if n % 2 else "") for n in range(length)])
        newer, other = message(1, f"tag {length // 2 + 1}"), message(2, "other")
        costs.append((calls(out.append, newer), calls(out.make_room, other, out.size - 1)))
    assert costs[0] == costs[1]
