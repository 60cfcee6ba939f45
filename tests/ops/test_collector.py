"""The collector policy: applied for the length of a block, and taken back."""

from __future__ import annotations

import gc

import pytest

from trionet.ops import collector
from trionet.ops.collector import collector_policy


@pytest.fixture(autouse=True)
def collector_as_before():
    """Leave the collector as it was found."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_is_imported_is_frozen_and_the_young_generation_is_larger():
    """Inside the block the objects of the program are not walked; behind it all is as before."""
    before = gc.get_threshold()
    frozen = gc.get_freeze_count()  # CPython 3.12 begins with some
    with collector_policy():
        assert gc.get_freeze_count() > frozen + 1000
        assert gc.get_threshold()[0] == collector.THRESHOLD
        assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen
    assert gc.get_threshold() == before


def test_the_threshold_may_be_chosen():
    """It is the argument; the older generations keep theirs."""
    before = gc.get_threshold()
    with collector_policy(2345):
        assert gc.get_threshold() == (2345, *before[1:])


def test_an_exception_takes_the_policy_back():
    """Leaving by an exception is leaving."""
    before = gc.get_threshold()
    with pytest.raises(KeyError), collector_policy():
        raise KeyError
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_cycles_are_still_collected():
    """Garbage that a handler makes inside the block is found by an ordinary collection."""

    class Node:
        gone = 0

        def __del__(self):
            Node.gone += 1

    with collector_policy():
        for _ in range(10):
            node = Node()
            node.self = node
        del node
        gc.collect()
        assert Node.gone == 10
