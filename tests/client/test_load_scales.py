"""Figures and axes of load reports: round ticks that hold the values, and labels that can be told apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.client.load import chart, scales

POSITIVE = st.floats(1e-3, 1e11)


@pytest.mark.parametrize(
    "function,value,text",
    [
        (scales.number, None, "\N{EN DASH}"),
        (scales.number, 0, "0"),
        (scales.number, 1234567, "1,234,567"),
        (scales.number, 1.234, "1.23"),
        (scales.number, 42157.4, "42,157"),
        (scales.short, 999, "999"),
        (scales.short, 999.6, "1k"),
        (scales.short, 12345, "12.3k"),
        (scales.short, 1e6, "1M"),
        (scales.latency, 0, "0 µs"),
        (scales.latency, 999.6, "1 ms"),
        (scales.latency, 12345, "12.3 ms"),
        (scales.latency, 999_999, "1 s"),
        (scales.latency, 75e6, "75 s"),
        (scales.seconds, 0.05, "0.05 s"),
        (scales.seconds, 59.99, "1 min"),
        (scales.seconds, 61, "1:01 min"),
        (scales.seconds, 3900, "1:05 h"),
        (scales.size, 512, "512 B"),
        (scales.size, 93 * 2**20, "93 MiB"),
        (scales.percent, 0.0, "0 %"),
        (scales.percent, 0.875, "87.5 %"),
        (scales.percent, 0.9999, "99.99 %"),
    ],
)
def test_figures(function, value, text):
    """A figure has three digits or so, and its unit changes where a person's would."""
    assert function(value) == text


@given(POSITIVE)
def test_a_linear_axis_holds_its_values(highest):
    """It reaches the highest value with at most six ticks, whose labels differ and which lie in order."""
    axis = scales.linear(highest, scales.short if highest >= 1 else str)
    assert axis.low == 0
    assert axis.high >= highest * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= 6
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert all(axis.at(one) < axis.at(two) for (one, _), (two, _) in itertools.pairwise(axis.ticks))


@given(st.lists(POSITIVE))
def test_a_latency_axis_holds_its_values(values):
    """All values lie between its ends, from 0 to 1, the larger the higher, and there are ticks to read them by."""
    axis = scales.latencies(values)
    assert axis.low <= min(values, default=1) * 1.01
    assert axis.high >= max(values, default=1) * 0.99
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert 2 <= len(axis.ticks) <= 16


@given(st.floats(0, 1e7))
def test_a_timeline_ends_where_the_run_ends(end):
    """Its ticks are whole steps that people count in, never beyond the end, and few."""
    axis = scales.timeline(end)
    assert axis.high == max(end, 0.1)
    assert len(axis.ticks) <= 8
    assert all(value <= axis.high * 1.001 for value, _ in axis.ticks)


@pytest.mark.parametrize(
    "count,labels",
    [
        (1, ["50 %", "90 %", "99 %"]),
        (10_000, ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]),
        (2_000_000, ["50 %", "90 %", "99 %", "", "99.99 %", "", "99.9999 %"]),
    ],
)
def test_percentiles_as_far_as_the_count_tells(count, labels):
    """Each nine is a tick, up to the one that a single value decides; labels are left out where they would touch."""
    axis = scales.percentiles(count)
    assert [label for _, label in axis.ticks] == labels
    assert scales.nines(0.999) == pytest.approx(3)


def test_a_sparkline_shows_the_latest():
    """Blocks from 0 to the largest, a blank for what was not measured, and no more than the width: the last ones."""
    assert chart.sparkline([0, 7, None, 3.5, 7]) == "▁█ ▅█"
    assert chart.sparkline(range(100), width=3) == "███"
    assert chart.sparkline([]) == ""
    assert chart.sparkline([0, 0]) == "▁▁"


def test_a_chart_has_its_size_and_its_axes():
    """A rising line goes from the lower left to the upper right, between the ticks, over the time axis."""
    lines = list(chart.lines([0, 1000, 2000, 3000, 4000], end=90, width=30, height=4, label=scales.latency))
    assert lines == [
        "4 ms ┤⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢸⠉⠉⠉⠉",
        "     │⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢸⠉⠉⠉⠉⠉",
        "2 ms ┤⠀⠀⠀⠀⠀⣀⣀⣀⣀⣀⡏⠉⠉⠉⠉",
        "0 µs ┤⣀⣀⣀⣀⣀⡇",
        "     └────────────────────────",
        "      0 s             1:30 min",
    ]


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=300), st.integers(20, 120), st.integers(2, 20))
def test_a_chart_is_never_wider_than_asked(values, width, height):
    """Whatever the values, no line is longer than the width, and there are two more than the height."""
    lines = list(chart.lines(values, end=10, width=width, height=height))
    assert len(lines) == height + 2
    assert max(map(len, lines)) <= width


def test_a_chart_loses_no_peak():
    """One value of a thousand, between two columns of dots or not, reaches the top line."""
    for place in range(0, 1000, 83):
        values = [10.0] * 1000
        values[place] = 100.0
        assert set(next(iter(chart.lines(values, end=1000)))) & {chr(code) for code in range(0x2801, 0x2900)}
