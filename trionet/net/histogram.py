"""How often which value occurred: a histogram that answers quantiles within 0.8 %, for latencies above all.

Values are whole numbers from 0 to 2**40 - 1; by convention microseconds (up to 12 days), but bytes or recipients will
do. Below 128 every value has its own bucket. Above, every power of two is cut into 64 equal ones, so that a bucket is
1/64 of its values wide and its middle lies within 1/128 of each of them. That layout (a floating-point number's
exponent and six bits of its mantissa; HdrHistogram's idea) is the same in every histogram, therefore adding two up is
adding their lists: workers, processes and seconds merge exactly, which quantiles themselves never do.

A plain list of ints, as long as the largest value so far asks for: an unused histogram is some 150 bytes, one that saw
a second 8 KB, the list never exceeds 18 KB (and an int above 256 is 32 bytes more). `record` takes 0.3 us. Not locked:
one thread records; another that reads may see a value in its bucket and not yet in `sum`.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple

HIGHEST: Final = 2**40 - 1


def _index(value: int) -> int:
    """Return the bucket of `value`, which lies between 0 and HIGHEST."""
    shift = value.bit_length() - 7
    return (shift << 6) + (value >> shift) if shift > 0 else value


def _lowest(index: int) -> int:
    """Return the smallest value of a bucket; it ends before the smallest of the next."""
    shift = (index >> 6) - 1
    return (index - (shift << 6)) << shift if shift > 0 else index


def _middle(index: int) -> int:
    """Return the value that stands for all of a bucket."""
    return (_lowest(index) + _lowest(index + 1) - 1) // 2


class Percentile(NamedTuple):
    """A point of a percentile curve: the share `percentile` of all values does not exceed `value`.

    `reached` values lie at or below it, which is more than that share where many values are alike.
    """

    value: int
    percentile: float
    reached: int


class Histogram:
    """Counts of whole numbers in log-linear buckets.

    Attributes:
        counts: How many values each bucket holds; as long as the largest value asks for.
        sum: The values added up, exactly (those beyond the range with the value they were clamped to).
        clamped: Values that were below 0 or above `HIGHEST` and were counted as the nearest value in range.
    """

    __slots__ = ("_maximum", "_minimum", "clamped", "counts", "sum")

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything, and the memory it took."""
        self.counts.clear()
        self.sum = 0
        self.clamped = 0
        # An empty range: the first value is outside it, whatever it is.
        self._minimum = HIGHEST + 1
        self._maximum = -1

    def record(self, value: int, count: int = 1) -> None:
        """Count `value`, or `count` values of this size (a positive number, which is not checked)."""
        if not self._minimum <= value <= self._maximum:
            value = self._widen(value, count)
        shift = value.bit_length() - 7
        # `_index`, written out: a call would cost half as much as all of this.
        self.counts[(shift << 6) + (value >> shift) if shift > 0 else value] += count
        self.sum += value * count

    def _widen(self, value: int, count: int) -> int:
        """Make room for a value outside the range seen so far; return it, or the nearest that can be counted."""
        nearest = min(max(value, 0), HIGHEST)
        if nearest != value:
            self.clamped += count
        self._minimum = min(self._minimum, nearest)
        self._maximum = max(self._maximum, nearest)
        self._reach(_index(nearest))
        return nearest

    def _reach(self, index: int) -> None:
        """Lengthen the list to hold `index`, to the end of its power of two, so that it rarely grows."""
        missing = (index | 63) + 1 - len(self.counts)
        if missing > 0:
            self.counts.extend([0] * missing)

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.counts)

    @property
    def minimum(self) -> int:
        """The smallest value recorded, exactly; 0 of nothing."""
        return self._minimum if self._maximum >= 0 else 0

    @property
    def maximum(self) -> int:
        """The largest value recorded, exactly; 0 of nothing."""
        return max(self._maximum, 0)

    @property
    def mean(self) -> float:
        """The arithmetic mean, exactly; 0.0 of nothing."""
        return self.sum / (self.count or 1)

    @property
    def deviation(self) -> float:
        """The standard deviation, as near as the buckets tell; 0.0 of nothing."""
        mean = self.mean
        squares = sum(
            count * (_middle(index) - mean) ** 2 for index, count in enumerate(self.counts) if count
        )
        return math.sqrt(squares / (self.count or 1))

    def quantile(self, q: float) -> int:
        """Return the value that the share `q` of all values does not exceed, within 0.8 %; 0 of nothing.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, shares: Iterable[float]) -> list[int]:
        """Return `quantile` of each share, for little more than the price of one."""
        cumulative = list(accumulate(self.counts))
        return [self._at(_rank(q, cumulative[-1]), cumulative) if cumulative else _rank(q, 0) for q in shares]

    def _at(self, rank: int, cumulative: list[int]) -> int:
        """Return the value of the `rank`-th smallest (from 1), given the running totals of the buckets."""
        # The outermost buckets are seldom seen to their ends, and the ends that were seen are known.
        if rank >= cumulative[-1]:
            return self._maximum
        return min(max(_middle(bisect_left(cumulative, rank)), self._minimum), self._maximum)

    def percentiles(self, steps: int = 5) -> Iterator[Percentile]:
        """Walk the curve from the smallest value to the largest, `steps` points for each halving of what remains.

        So 50 %, 75 %, 87.5 % ... are `steps` apart, and the tail has as many points as the body (HdrHistogram's
        iteration). Nothing is yielded of nothing.
        """
        cumulative = list(accumulate(self.counts))
        total = cumulative[-1] if cumulative else 0
        share = 0.0
        reached = 0
        while reached < total:
            rank = _rank(share, total)
            reached = cumulative[bisect_left(cumulative, rank)]
            yield Percentile(self._at(rank, cumulative), share, reached)
            share += 1 / (steps * 2 ** (math.floor(-math.log2(1 - share)) + 1))
        if total:
            yield Percentile(self._maximum, 1.0, total)

    def buckets(self, bounds: Iterable[float]) -> list[int]:
        """Return for each bound how many values are at most that large, as Prometheus' `le` wants them.

        A value is never missing under a bound that it does not exceed; one that exceeds it by less than 1/64 may be
        counted too, always the same ones. So the numbers never decrease from one bound to a larger one, nor from one
        call to the next. Infinity gives `count`.
        """
        cumulative = list(accumulate(self.counts))
        last = len(cumulative) - 1
        found = []
        for bound in bounds:
            if bound < 0 or not cumulative:
                found.append(0)
            else:
                found.append(cumulative[min(_index(int(min(bound, HIGHEST))), last)])
        return found

    def merge(self, other: Histogram) -> None:
        """Add what `other` counted; `other` stays as it is."""
        if other.counts:
            self._reach(len(other.counts) - 1)
            for index, count in enumerate(other.counts):
                if count:
                    self.counts[index] += count
        self.sum += other.sum
        self.clamped += other.clamped
        self._minimum = min(self._minimum, other._minimum)
        self._maximum = max(self._maximum, other._maximum)

    def copy(self) -> Histogram:
        """Return a histogram of the same values that goes its own way."""
        twin = Histogram()
        twin.merge(self)
        return twin

    def to_json(self) -> dict[str, Any]:
        """Return the histogram as something `json.dumps` takes: each bucket in use as `[smallest value, count]`.

        `count` is in it for people and other programs; `from_json` counts for itself.
        """
        return {
            "count": self.count,
            "sum": self.sum,
            "min": self.minimum,
            "max": self.maximum,
            "clamped": self.clamped,
            "buckets": [[_lowest(index), count] for index, count in enumerate(self.counts) if count],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Histogram:
        """Return the histogram that `to_json` described.

        Raises:
            ValueError: The document is something else. It may have come from a file or from another process.
        """
        self = cls()
        try:
            for value, count in document["buckets"]:
                bucket = _index(_in_range(value))
                self._reach(bucket)
                self.counts[bucket] += _in_range(count)
            if self.counts:
                self.sum, self.clamped = operator.index(document["sum"]), operator.index(document["clamped"])
                self._minimum, self._maximum = _in_range(document["min"]), _in_range(document["max"])
                # `record` relies on it, and the document may lie.
                self._reach(_index(self._maximum))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a histogram: {error!r}") from error
        return self

    def text(self, scale: float = 1.0) -> str:
        """Return the percentile table that HdrHistogram and wrk2 print, for the plotters that read it.

        Args:
            scale: Values are divided by this: 1000 turns microseconds into the milliseconds plotters label.
        """
        lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
        for value, share, count in self.percentiles():
            line = f"{value / scale:12.3f} {share:2.12f} {count:10d}"
            lines.append(line if share == 1.0 else f"{line} {1 / (1 - share):14.2f}")
        lines += [
            f"#[Mean    = {self.mean / scale:12.3f}, StdDeviation   = {self.deviation / scale:12.3f}]",
            f"#[Max     = {self.maximum / scale:12.3f}, Total count    = {self.count:12d}]",
            f"#[Buckets = {len(self.counts) // 64:12d}, SubBuckets     = {64:12d}]",
        ]
        return "\n".join(lines) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes with every value

    def __repr__(self) -> str:
        p50, p99 = self.quantiles((0.5, 0.99))
        return f"<Histogram of {self.count}: p50 {p50}, p99 {p99}, max {self.maximum}>"


def _rank(q: float, total: int) -> int:
    """Return how many of `total` values the share `q` is, at least 1 of something."""
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is a share between 0 and 1, not {q!r}")
    # Rounded, because 0.07 * 100 is a little more than 7; more exactly than a million million values can tell.
    return min(max(math.ceil(round(q * total, 3)), 1), total)


def _in_range(value: Any) -> int:
    """Return a value or a count as it was read, if it can be one."""
    if not 0 <= (whole := operator.index(value)) <= HIGHEST:
        raise ValueError(f"out of range: {whole}")
    return whole
