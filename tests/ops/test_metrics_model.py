"""Families as data: JSON, sums, totals of workers that come and go, and the two text formats."""

from __future__ import annotations

import json

import pytest

from trionet.errors import ConfigurationError
from trionet.net.histogram import Histogram
from trionet.ops.metrics import Family, Snapshot, Totals, merge, render
from trionet.ops.metrics.exposition import wants_openmetrics

openmetrics_parser = pytest.importorskip("prometheus_client.openmetrics.parser")
text_parser = pytest.importorskip("prometheus_client.parser")


def histogram(*values):
    """A histogram of these."""
    made = Histogram()
    for value in values:
        made.record(value)
    return made


def families(count=1, *times):
    """One of each kind."""
    return [
        Family("app_jobs", "counter", "Jobs.").add(count, kind="a").add(2 * count, kind="b"),
        Family("app_depth", "gauge", "Depth.").add(count),
        Family("app_lag", "gauge", "Lag.", across="each").add(count),
        Family("app_build", "info", "Build.", across="same").add(1, version="1"),
        Family("app_wait_seconds", "histogram", "Waits.", unit="seconds", bounds=(0.001, 1)).add(
            histogram(*times)
        ),
    ]


def values(found):
    """All samples; the count of a histogram."""
    return {
        (family.name, *sorted(labels.items())): value.count if isinstance(value, Histogram) else value
        for family in found
        for labels, value in family.samples
    }


def snapshot(pid, count, *, started=1.0, taken=2.0):
    """A worker's."""
    return Snapshot(pid, started, taken, families(count, *[500] * count))


def jobs(totals, **names):
    """The sum of a counter."""
    return values(totals.families(names))["app_jobs", ("kind", "a")]


# ------------------------------------------------------------------ JSON


def test_a_snapshot_survives_json():
    """What one process writes another reads, histograms included."""
    before = snapshot(7, 3)
    after = Snapshot.from_json(json.loads(json.dumps(before.to_json())))
    assert after == before


@pytest.mark.parametrize(
    "document",
    [{}, [], {"pid": 1, "started": 0, "taken": 0, "families": [{"name": "x"}]}, {"pid": "x"}],
)
def test_json_that_is_no_snapshot(document):
    """Anything else is a `ValueError`: it came from another process."""
    with pytest.raises(ValueError, match=r"not a|invalid"):
        Snapshot.from_json(document)


# ------------------------------------------------------------------ sums


def test_merge():
    """Counters, histograms and gauges of two workers are summed; what only means something for one is labelled."""
    found = values(merge([("1", families(1, 500)), ("2", families(10, 500, 2000))]))
    assert found == {
        ("app_jobs", ("kind", "a")): 11,
        ("app_jobs", ("kind", "b")): 22,
        ("app_depth",): 11,
        ("app_lag", ("worker", "1")): 1,
        ("app_lag", ("worker", "2")): 10,
        ("app_build", ("version", "1")): 1,
        ("app_wait_seconds",): 3,
    }


def test_merge_leaves_its_arguments_alone():
    """A pure function: a snapshot may be merged again."""
    one, other = families(1, 500), families(2, 600)
    before = values(one), values(other)
    merge([("1", one), ("2", other)])
    assert (values(one), values(other)) == before


def test_merge_of_kinds_that_differ():
    """Two workers of different versions, in which a name has changed its meaning, are an error that names it."""
    with pytest.raises(ConfigurationError, match="app_x"):
        merge([("1", [Family("app_x", "gauge", "")]), ("2", [Family("app_x", "counter", "")])])


def test_totals_never_go_back():
    """What a worker has counted stays counted when it is gone; its gauges do not."""
    totals = Totals()
    totals.update(snapshot(1, 5))
    totals.update(snapshot(2, 7))
    totals.gone(1)
    found = values(totals.families({2: "2"}))
    assert found["app_jobs", ("kind", "a")] == 12
    assert found["app_wait_seconds",] == 12
    assert found["app_depth",] == 7
    assert ("app_lag", ("worker", "1")) not in found


def test_a_late_snapshot_of_a_worker_that_is_gone():
    """It takes the place of the one before, once; an older one is ignored."""
    totals = Totals()
    totals.update(snapshot(1, 5, taken=2.0))
    totals.gone(1)
    totals.update(snapshot(1, 6, taken=3.0))
    assert jobs(totals) == 6
    totals.update(snapshot(1, 4, taken=1.5))
    assert jobs(totals) == 6


def test_an_older_snapshot_of_a_worker_is_ignored():
    """Answers may overtake each other."""
    totals = Totals()
    totals.update(snapshot(1, 5, taken=3.0))
    totals.update(snapshot(1, 4, taken=2.0))
    assert jobs(totals) == 5


def test_a_process_number_used_again():
    """The process that had it before is gone, though nobody said so."""
    totals = Totals()
    totals.update(snapshot(1, 5, started=1.0))
    totals.update(snapshot(1, 2, started=9.0))
    assert jobs(totals) == 7
    totals.update(snapshot(1, 6, started=1.0, taken=4.0))
    assert jobs(totals) == 8


def test_very_many_restarts():
    """A thousand dead workers are one sum: nothing is lost, memory does not grow, late words change nothing."""
    totals = Totals()
    for pid in range(1, 1001):
        totals.update(snapshot(pid, 1))
        totals.gone(pid)
    assert jobs(totals) == 1000
    assert len(totals._gone) < 100
    totals.update(snapshot(1, 50, taken=9.0))
    assert jobs(totals) == 1000


# ------------------------------------------------------------------ text


def read(text, *, openmetrics):
    """What Prometheus' own parser makes of it."""
    parser = openmetrics_parser if openmetrics else text_parser
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_formats(openmetrics):
    """Prometheus' own parsers read each value back."""
    found = read(
        render(families(3, 500, 500_000, 2_000_000), openmetrics=openmetrics), openmetrics=openmetrics
    )
    assert found == {
        ("app_jobs_total", ("kind", "a")): 3,
        ("app_jobs_total", ("kind", "b")): 6,
        ("app_depth",): 3,
        ("app_lag",): 3,
        ("app_build_info", ("version", "1")): 1,
        ("app_wait_seconds_bucket", ("le", "0.001")): 1,
        ("app_wait_seconds_bucket", ("le", "1.0")): 2,
        ("app_wait_seconds_bucket", ("le", "+Inf")): 3,
        ("app_wait_seconds_sum",): 2.5005,
        ("app_wait_seconds_count",): 3,
    }


def test_openmetrics_says_when_counters_began():
    """`_created` for counters and histograms, a unit, and the end of the text."""
    text = render(families(1, 500), openmetrics=True, created=1234.5).decode()
    assert 'app_jobs_created{kind="a"} 1234.5' in text
    assert "app_wait_seconds_created 1234.5" in text
    assert "# UNIT app_wait_seconds seconds" in text
    assert text.endswith("# EOF\n")
    assert "created" not in render(families(1), created=1234.5).decode()


@pytest.mark.parametrize("openmetrics", [False, True])
def test_escapes(openmetrics):
    """Backslashes, quotes and line ends in help texts and label values."""
    nasty = 'a\\b"c\nd{}=,'
    text = render([Family("x", "gauge", nasty).add(1, path=nasty)], openmetrics=openmetrics)
    assert read(text, openmetrics=openmetrics) == {("x", ("path", nasty)): 1}
    parser = openmetrics_parser if openmetrics else text_parser
    (family,) = parser.text_string_to_metric_families(text.decode())
    assert family.documentation == nasty


def test_numbers_that_are_none():
    """Infinity and NaN have names of their own."""
    text = render(
        [Family("x", "gauge", "").add(float("inf"), a="1").add(float("-inf"), a="2").add(float("nan"), a="3")]
    )
    assert b'{a="1"} +Inf\n' in text
    assert b'{a="2"} -Inf\n' in text
    assert b'{a="3"} NaN\n' in text


@pytest.mark.parametrize(
    "family",
    [
        Family("a-b", "gauge", "").add(1),
        Family("jobs_total", "counter", "").add(1),
        Family("jobs", "counter", "").add(1, **{"a-b": "x"}),
        Family("jobs", "counter", "").add(1, __name__="x"),
    ],
)
def test_names_that_are_not_allowed(family):
    """They would spoil the whole answer for the scraper: an error says which."""
    with pytest.raises(ConfigurationError, match="name"):
        render([family])


def test_a_name_that_is_there_twice():
    """Scrapers refuse it; a family of the application's own must not take one of ours."""
    with pytest.raises(ConfigurationError, match="twice"):
        render([*families(), *families()])


@pytest.mark.parametrize(
    "accept, wanted",
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/openmetrics-text", True),
        # What Prometheus 2.50 sends.
        (
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
                "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
            ),
            True,
        ),
        ("application/openmetrics-text;q=0.2, text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
    ],
)
def test_accept(accept, wanted):
    """OpenMetrics for who prefers it, the plain format for all others."""
    assert wants_openmetrics(accept) is wanted
