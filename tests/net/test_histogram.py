"""The histogram: near the exact quantiles, mergeable, and never out of bounds."""

from __future__ import annotations

import itertools
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.net.histogram import HIGHEST, Histogram, _index, _lowest

# Every order of magnitude as likely as the others: uniform integers would all be huge.
VALUES = st.integers(0, 40).flatmap(lambda bits: st.integers(0, min(2**bits, HIGHEST)))
LISTS = st.lists(VALUES, min_size=1, max_size=60)
SHARES = st.floats(0, 1)


def of(values):
    """A histogram of these."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def exact(values, q):
    """The nearest-rank quantile of the values themselves."""
    return sorted(values)[max(math.ceil(round(q * len(values), 3)), 1) - 1]


@given(LISTS, SHARES)
def test_quantiles_are_within_a_hundredth(values, q):
    """Any quantile of any values is within 0.8 % of the exact one."""
    truth = exact(values, q)
    assert abs(of(values).quantile(q) - truth) <= truth / 128


@given(st.lists(st.integers(0, 127), min_size=1), SHARES)
def test_small_values_are_exact(values, q):
    """Below 128 each value has a bucket of its own."""
    assert of(values).quantile(q) == exact(values, q)


@given(LISTS)
def test_totals_are_exact(values):
    """Count, sum, mean, smallest and largest value suffer no rounding."""
    histogram = of(values)
    assert histogram.count == len(values)
    assert histogram.sum == sum(values)
    assert histogram.mean == sum(values) / len(values)
    assert (histogram.minimum, histogram.maximum) == (min(values), max(values))
    assert (histogram.quantile(0), histogram.quantile(1)) == pytest.approx(
        (min(values), max(values)), rel=0.008
    )


@given(LISTS)
def test_the_largest_value_is_the_last_quantile(values):
    """The 100th percentile is the maximum itself, not the middle of its bucket."""
    assert of(values).quantile(1) == max(values)


@given(VALUES)
def test_buckets_tile_the_range(value):
    """Each value lies between the smallest of its bucket and the smallest of the next."""
    index = _index(value)
    assert _lowest(index) <= value < _lowest(index + 1)
    assert _index(_lowest(index)) == index


@given(LISTS, LISTS)
def test_merging_is_recording_both(one, two):
    """A merge is the histogram of both sets of values, in either order, and spares what was merged in."""
    left, right = of(one), of(two)
    left.merge(right)
    assert left == of(one + two)
    assert right == of(two)
    right.merge(of(one))
    assert right == left


def test_merging_nothing_changes_nothing():
    """Empty histograms are neutral on both sides."""
    empty, full = Histogram(), of([5, 5000])
    full.merge(empty)
    assert full == of([5, 5000])
    empty.merge(full)
    assert empty == full


def test_a_copy_goes_its_own_way():
    """What is recorded in a copy is not in the original."""
    original = of([1])
    twin = original.copy()
    twin.record(900)
    assert (original.count, original.maximum, twin.count, twin.maximum) == (1, 1, 2, 900)


@given(st.lists(VALUES))
def test_json_round_trip(values):
    """Through JSON text and back comes the same histogram."""
    assert Histogram.from_json(json.loads(json.dumps(of(values).to_json()))) == of(values)


def test_json_is_sparse():
    """Only buckets in use are written, each as its smallest value and its count."""
    histogram = of([3, 3, 1_000_000])
    assert histogram.to_json() == {
        "count": 3,
        "sum": 1_000_006,
        "min": 3,
        "max": 1_000_000,
        "clamped": 0,
        "buckets": [[3, 2], [999_424, 1]],
    }


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"buckets": 7},
        {"buckets": [[1]]},
        {"buckets": [["1", 1]]},
        {"buckets": [[1.5, 1]], "sum": 1, "clamped": 0, "min": 1, "max": 1},
        {"buckets": [[-1, 1]], "sum": 1, "clamped": 0, "min": 1, "max": 1},
        {"buckets": [[2**60, 1]], "sum": 1, "clamped": 0, "min": 1, "max": 1},
        {"buckets": [[1, -1]], "sum": 1, "clamped": 0, "min": 1, "max": 1},
        {"buckets": [[1, 1]], "sum": 1, "clamped": 0, "min": -1, "max": 1},
        {"buckets": [[1, 1.5]], "sum": 1, "clamped": 0, "min": 1, "max": 1},
        {"buckets": [[1, 1]]},
    ],
    ids=repr,
)
def test_a_foreign_document_is_refused(document):
    """What is no histogram raises ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json(document)


@given(st.lists(VALUES), st.lists(VALUES), st.lists(st.floats(-1, 2.0**41), min_size=1))
def test_prometheus_buckets_never_decrease(before, after, bounds):
    """Counts under rising bounds rise, later counts are not below earlier ones, and what must be in is in."""
    bounds = sorted(bounds)
    histogram = of(before)
    first = histogram.buckets(bounds)
    for value in after:
        histogram.record(value)
    second = histogram.buckets([*bounds, math.inf])
    assert second == sorted(second)
    assert all(late >= early for early, late in zip(first, second, strict=False))
    assert second[-1] == histogram.count
    for bound, found in zip(bounds, second, strict=False):
        assert found >= sum(value <= bound for value in before + after)
        assert found <= sum(value * 64 / 65 <= bound for value in before + after)


def test_values_beyond_the_range_are_clamped_and_counted():
    """Below zero counts as zero, above the range as its end, and `clamped` tells how many."""
    histogram = of([-5, 10, 2**50])
    histogram.record(2**60, 2)
    assert (histogram.minimum, histogram.maximum, histogram.count) == (0, HIGHEST, 5)
    assert histogram.clamped == 4
    assert histogram.sum == 10 + 3 * HIGHEST
    assert Histogram.from_json(histogram.to_json()).clamped == 4


def test_a_document_that_lies_about_its_range_breaks_nothing():
    """What `record` relies on holds after `from_json`, whatever the document said."""
    histogram = Histogram.from_json({"buckets": [[1, 1]], "sum": 1, "clamped": 0, "min": 0, "max": 10**9})
    histogram.record(10**8)
    assert histogram.count == 2


def test_recording_many_at_once():
    """A count records that many values."""
    histogram = Histogram()
    histogram.record(20, 99)
    histogram.record(4000, 1)
    assert histogram == of([20] * 99 + [4000])
    assert histogram.quantiles((0.5, 0.99, 0.999)) == [20, 20, 4000]


def test_nothing_has_quantiles_of_zero():
    """An empty histogram answers every question with 0, and reports nothing."""
    histogram = Histogram()
    assert (histogram.count, histogram.minimum, histogram.maximum, histogram.mean) == (0, 0, 0, 0.0)
    assert (histogram.quantile(0.99), histogram.deviation) == (0, 0.0)
    assert histogram.buckets([1, math.inf]) == [0, 0]
    assert list(histogram.percentiles()) == []
    assert "Total count    =            0" in histogram.text()


def test_cleared_is_new():
    """After `clear` nothing of the old values is left."""
    histogram = of([7, 2**50])
    histogram.clear()
    assert histogram == Histogram()


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_no_quantile_outside_the_unit_interval(q):
    """A share outside 0...1 (99 instead of 0.99) is an error, of nothing too."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        of([1]).quantile(q)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Histogram().quantile(q)


def test_memory_follows_the_values():
    """Unused it is next to nothing; used it is a list no longer than the largest value asks for, and bounded."""
    histogram = Histogram()
    assert sys.getsizeof(histogram) + sys.getsizeof(histogram.counts) < 200
    histogram.record(1_000_000)
    assert len(histogram.counts) < 1000
    histogram.record(2**60)
    assert len(histogram.counts) == 64 * 35


@given(LISTS)
def test_the_percentile_curve_rises_to_the_maximum(values):
    """Values, shares and counts rise together and end at the maximum, 1 and all."""
    curve = list(of(values).percentiles())
    for earlier, later in itertools.pairwise(curve):
        assert earlier.value <= later.value
        assert earlier.percentile < later.percentile
        assert earlier.reached <= later.reached
    assert curve[-1] == (max(values), 1.0, len(values))


def test_the_text_is_hdrhistograms():
    """The table has HdrHistogram's columns, scaled, with five steps a halving and no inverse on the last line."""
    lines = of(range(1, 101)).text(scale=10).splitlines()
    assert lines[0] == "       Value     Percentile TotalCount 1/(1-Percentile)"
    assert lines[1] == ""
    assert lines[2] == "       0.100 0.000000000000          1           1.00"
    assert lines[7] == "       5.000 0.500000000000         50           2.00"
    assert lines[-4] == "      10.000 1.000000000000        100"
    assert lines[-3] == "#[Mean    =        5.050, StdDeviation   =        2.887]"
    assert lines[-2] == "#[Max     =       10.000, Total count    =          100]"


def test_repr_tells_the_shape():
    """The repr names count, median, tail and maximum; equality compares values, and hashing is refused."""
    assert repr(of([1, 2, 100])) == "<Histogram of 3: p50 2, p99 100, max 100>"
    assert of([1]) != of([2])
    with pytest.raises(TypeError):
        hash(of([1]))
