"""The history of one topic: what its limits leave, and what is found behind an offset."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trionet.pubsub.history import BASE, COST, History
from trionet.pubsub.publication import Publication
from trionet.pubsub.topics import HistoryLimits


def filled(count: int, limits: HistoryLimits, *, size: int = 1, step: float = 0.0) -> History:
    """A history with `count` publications, one each `step` seconds."""
    history = History(0)
    for number in range(1, count + 1):
        history.append(Publication("t", b"x" * size, "e", number, number - 1, number * step), limits)
    return history


def offsets(history: History) -> list[int]:
    """What is kept."""
    return [publication.offset for publication in history.kept]


def test_each_limit_drops_the_oldest():
    """Number, bytes and age; what alone exceeds the bytes is not kept, but counted."""
    assert offsets(filled(5, HistoryLimits(count=3))) == [3, 4, 5]
    assert offsets(filled(5, HistoryLimits(size=250), size=100)) == [4, 5]
    assert offsets(filled(5, HistoryLimits(age=10), step=6.0)) == [4, 5]
    big = filled(1, HistoryLimits(size=99), size=100)
    assert (offsets(big), big.last, big.weight) == ([], 1, 0)
    assert big.after(1, 10) == ([], True)
    assert big.after(0, 10) == ([], False)


def test_what_is_behind_an_offset():
    """Complete from the oldest that is kept; nothing, and not complete, before it and beyond the newest."""
    history = filled(10, HistoryLimits(count=4))
    for offset, found, complete in (
        (6, [7, 8, 9, 10], True),
        (8, [9, 10], True),
        (10, [], True),
        (11, [], False),
    ):
        publications, whole = history.after(offset, 100)
        assert ([publication.offset for publication in publications], whole) == (found, complete)
    assert not history.after(5, 100)[1]
    assert [publication.offset for publication in history.after(6, 2)[0]] == [7, 8]
    assert [publication.offset for publication in history.newest(2)] == [9, 10]
    assert [publication.offset for publication in history.newest(9)] == [7, 8, 9, 10]


def test_an_empty_history_costs_nothing():
    """Expired or cleared, it shares what is empty, and says how much that set free."""
    history = filled(3, HistoryLimits(age=10), size=50, step=1.0)
    assert history.weight == 3 * (50 + COST) + BASE
    other = filled(3, HistoryLimits(age=10), size=50, step=1.0)
    assert history.expire(100.0) == other.clear() == 3 * (50 + COST) + BASE
    assert history.kept is other.kept
    assert (history.weight, history.size, history.last) == (0, 0, 3)
    assert history.append(Publication("t", b"y", "e", 4, 3, 101.0), HistoryLimits()) == 1 + COST + BASE
    assert (offsets(history), offsets(other)) == ([4], [])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 3), st.booleans()), max_size=60),
    st.integers(1, 6),
    st.integers(1, 90),
    st.floats(0.5, 8),
)
def test_it_is_what_a_plain_list_would_be(steps, count, size, age):
    """Appends and the passing of time leave what the limits say, and the weights add up."""
    limits = HistoryLimits(count, size, age)
    history = History(7)
    model: list[Publication] = []
    now, weight, last = 100.0, 0, 7
    for length, wait, append in steps:
        now += wait
        if append:
            publication = Publication("t", bytes(length), "e", last + 1, last, now)
            last += 1
            model.append(publication)
            weight += history.append(publication, limits)
        elif history.age:
            weight -= history.expire(now)
        if append or history.age:
            while model and (
                len(model) > count or sum(len(one.data) for one in model) > size or model[0].at < now - age
            ):
                model.pop(0)
        assert list(history.kept) == model
        assert history.last == last
        assert history.weight == weight
        first = last - len(model)
        for offset in range(5, last + 2):
            found = (model[max(0, offset - first) :][:3], offset >= first) if offset <= last else ([], False)
            assert history.after(offset, 3) == found
