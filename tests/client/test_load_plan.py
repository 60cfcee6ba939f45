"""What a load run decides without doing anything: shares, source addresses, times, verdicts."""

from __future__ import annotations

import ipaddress

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trionet
from trionet.client.load.options import LoadOptions, parse_duration
from trionet.client.load.plan import RESERVED, Arrivals, Machine, make_plan, split_evenly
from trionet.client.load.result import empty, summary
from trionet.client.load.series import Series
from trionet.client.load.text import duration_text, result_text
from trionet.client.load.verdict import judge, suspicions
from trionet.net.histogram import Histogram

HERE = "127.0.0.1"
MACHINE = Machine(nofile=20_000, ports=28_232, cpus=(0, 1))
URL = "ws://127.0.0.1:8080/"


def plan(**options):
    """The plan for these options."""
    return make_plan(LoadOptions(url=URL, **options), MACHINE, HERE)


@given(st.integers(0, 10**6), st.integers(1, 100))
def test_split_is_even(total, parts):
    """Parts add up to the total and differ by 1 at most."""
    sizes = split_evenly(total, parts)
    assert sum(sizes) == total
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("connections", [1, 100, 19_936, 19_937, 300_000, 1_000_000])
def test_nobody_runs_out_of_descriptors_or_quick_ports(connections):
    """No process gets more connections than it has descriptors, no source address more than half of its ports."""
    shares = plan(connections=connections).shares
    assert sum(share.connections for share in shares) == connections
    assert max(share.connections for share in shares) <= MACHINE.nofile - RESERVED
    assert [share.first for share in shares] == [
        sum(s.connections for s in shares[:i]) for i in range(len(shares))
    ]
    if connections > MACHINE.ports // 2:
        for share in shares:
            assert share.connections / len(share.sources) <= MACHINE.ports / 2


def test_source_addresses_are_those_of_hosts():
    """They are different for each process, on this machine, and neither a network, a broadcast nor the server's."""
    shares = make_plan(LoadOptions(url=URL, connections=8_000_000), MACHINE, "127.0.0.5").shares
    sources = [source for share in shares for source in share.sources]
    assert len(set(sources)) == len(sources) > 500
    assert "127.0.0.5" not in sources
    assert all(ipaddress.ip_address(source).is_loopback for source in sources)
    assert not {source.rpartition(".")[2] for source in sources} & {"0", "255"}


def test_few_connections_need_no_address():
    """The kernel chooses the address for what any client might do."""
    assert plan(connections=1000).shares[0].sources == ()


@pytest.mark.parametrize(
    "options, address, words",
    [
        ({"connections": 100_000, "processes": 3}, HERE, "need 6 processes of 19936 descriptors"),
        ({"connections": 100_000}, "10.1.2.3", "--source"),
        ({"connections": 60_000, "source": ("127.0.0.7",)}, HERE, "source addresses"),
    ],
)
def test_what_does_not_fit_is_said_before(options, address, words):
    """Too few processes, ports or addresses are an error that names what is missing."""
    with pytest.raises(trionet.ConfigurationError, match=words):
        make_plan(LoadOptions(url=URL, **options), MACHINE, address)


def test_rates_are_shared_out():
    """The rates of all processes add up to what was asked for, also where only some of them publish."""
    shares = plan(scenario="rate", connections=100_001, rate=500.0, connect_rate=1000.0).shares
    assert sum(share.rate for share in shares) == pytest.approx(500)
    assert sum(share.connect_rate for share in shares) == pytest.approx(1000)
    shares = plan(scenario="fanout", connections=100_000, publishers=2, rate=10.0).shares
    assert [share.rate for share in shares] == [5.0, 5.0, 0, 0, 0, 0]


@given(st.floats(0.1, 1e5), st.floats(0, 0.99), st.integers(0, 10**5))
def test_arrivals_are_due_when_their_time_has_come(rate, phase, number):
    """A thing is due from its time on, and not before."""
    arrivals = Arrivals(1000.0, rate, phase)
    when = arrivals.time(number)
    assert arrivals.due(when + 1e-6) >= number + 1
    assert arrivals.due(when - 1e-6) <= number
    assert arrivals.due(999.0) == 0


def test_a_stall_does_not_move_what_is_due():
    """After a stall all that fell into it is due at once, each with its own time: nothing is omitted."""
    arrivals = Arrivals(0.0, 100.0)
    before, after = arrivals.due(1.0), arrivals.due(3.0)
    assert after - before == 200
    latencies = [3.0 - arrivals.time(number) for number in range(before, after)]
    assert max(latencies) == pytest.approx(1.99)
    assert sum(latencies) / len(latencies) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "text, seconds",
    [("20ms", 0.02), ("1.5s", 1.5), ("2m", 120), ("90", 90), ("250us", 0.00025), ("1h", 3600)],
)
def test_durations(text, seconds):
    """A duration has a unit, or is in seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "1 week", "1e3", "nan"])
def test_no_durations(text):
    """Anything else is refused with an example."""
    with pytest.raises(trionet.ConfigurationError, match="20ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"scenario": "flood"}, "no scenario"),
        ({"connections": 0}, "connections must be at least 1"),
        ({"connect_rate": -1.0}, "connect-rate must be positive"),
        ({"duration": float("nan")}, "duration must be positive"),
        ({"size": 0}, "size"),
        ({"scenario": "fanout", "size": 15}, "size"),
        ({"scenario": "storm", "connections": 100, "control": 100}, "control"),
        ({"scenario": "fanout", "connections": 1, "publishers": 2}, "publishers"),
        ({"header": ("no colon",)}, "header"),
        ({"source": ("localhost",)}, "source"),
        ({"url": "tcp://127.0.0.1/"}, "ws://"),
    ],
)
def test_wrong_options_are_named(options, words):
    """An option that cannot be is an error that names it."""
    with pytest.raises(trionet.ConfigurationError, match=words):
        LoadOptions(**{"url": URL, **options}).check()


def test_other_machines_have_to_be_named_twice():
    """Nothing but loopback is a target, unless it is allowed and named again."""
    options = LoadOptions(url="ws://server.example/", allow_remote=True)
    options.check_reach("127.9.9.9")
    options.check_reach("::1")
    options.check_reach(None)
    for wrong in (
        options,
        attrs.evolve(options, i_may_load="other.example"),
        attrs.evolve(options, allow_remote=False, i_may_load="server.example"),
    ):
        with pytest.raises(trionet.ConfigurationError, match=r"--i-may-load server\.example"):
            wrong.check_reach("192.0.2.1")
    attrs.evolve(options, i_may_load="server.example").check_reach("192.0.2.1")


# ------------------------------------------------------------------- results


def second(**changes):
    """What a process says of a second."""
    return {"open": 0, "cpu": 0.1, "lag": 5, "histograms": {}, **changes}


def latencies(*values):
    """A histogram of these."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def test_a_second_is_complete_when_all_have_told_it():
    """Points come in order, with the sums of all processes, and one that died is not waited for."""
    series = Series(3)
    assert list(series.add(0, 1, second(open=5, sent=2), "ramp")) == []
    assert list(series.add(1, 1, second(open=6, failed=1, lag=70), "ramp")) == []
    assert list(series.add(0, 2, second(open=9), "ramp")) == []
    points = list(series.died(2, "ramp"))
    assert [(p["t"], p["open"], p["sent_s"], p["errors"], p["lag"]) for p in points] == [(1.0, 11, 2, 1, 70)]
    points = list(series.add(1, 2, second(open=1), "measure"))
    assert [(p["t"], p["open"], p["phase"]) for p in points] == [(2.0, 10, "measure")]


def test_latency_of_a_second_is_that_of_messages_if_there_are_any():
    """Connects count only in seconds in which no message was answered."""
    series = Series(1)
    both = {"connect": latencies(1000).to_json(), "message": latencies(10, 12).to_json()}
    [point] = series.add(0, 1, second(histograms=both), "measure")
    assert (point["p50"], point["p99"]) == (10, 12)
    [point] = series.add(0, 2, second(histograms={"connect": latencies(100).to_json()}), "measure")
    assert point["p50"] == 100
    [point] = series.add(0, 3, second(), "measure")
    assert point["p50"] is None


def test_verdict():
    """A condition is held against its figure; one whose figure was not measured has failed."""
    result = empty(URL, "echo", [])
    result["histograms"]["message"] = summary(latencies(*range(1, 101)))
    result["totals"]["lost"] = 3
    options = LoadOptions(url=URL, scenario="echo", max_p99=0.0001, max_failures=2, min_rate=5.0)
    found = {threshold["name"]: threshold["passed"] for threshold in judge(options, result)}
    assert found == {"max-p99": True, "max-failures": False, "min-rate": False}
    result["totals"]["received_rate"] = 5.0
    assert judge(options, result)[-1]["passed"]
    assert judge(attrs.evolve(options, max_p99=0.00005), result)[0]["passed"] is False


def test_suspicions():
    """A busy, late or tardy generator is mentioned, an idle one is not."""
    result = empty(URL, "rate", [])
    assert suspicions(result, {0: [0.2, 0.3], 1: []}, None) == []
    [word] = suspicions(result, {0: [0.2, 0.3], 1: [0.99, 0.98]}, None)
    assert "1 of its processes" in word
    assert "98%" in word
    assert suspicions(result, {}, latencies(20_000)) == []  # one says little
    [word] = suspicions(result, {}, latencies(*[20_000] * 100))
    assert "20.1 ms" in word or "20.0 ms" in word or "19.9 ms" in word


@pytest.mark.parametrize(
    "us, text",
    [
        (None, "-"),
        (7, "7 us"),
        (85, "85 us"),
        (1234, "1.2 ms"),
        (45_600, "46 ms"),
        (1_500_000, "1.5 s"),
        (9e8, "900 s"),
    ],
)
def test_durations_for_people(us, text):
    """Two figures, and the unit that fits."""
    assert duration_text(us) == text


def test_text_says_what_was_not_measured():
    """The summary of a run in which nothing happened has no figures made up."""
    text = result_text(empty(URL, "echo", []))
    assert "0 open of 0" in text
    assert "nan" not in text.lower()
    assert "None" not in text
