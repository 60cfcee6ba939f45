"""`trionet load report`: results of earlier runs, printed, written and compared."""

from __future__ import annotations

import json

import pytest

from trionet.client.load.report import read_results
from trionet.client.load.result import empty, summary
from trionet.errors import ConfigurationError
from trionet.net.histogram import Histogram

pytest.importorskip("cyclopts", reason="the command line needs trionet[cli]")

from trionet.cli.load_report import load_report, read
from trionet.cli.main import main


@pytest.fixture(autouse=True)
def unfolded(monkeypatch):
    """Lines are printed as long as they are; test runners set COLUMNS, which would fold them."""
    monkeypatch.delenv("COLUMNS", raising=False)


def saved(path, p50=1000, seconds=9):
    """Write the result of a made-up run of that median and return its path."""
    run = empty("ws://127.0.0.1:1/", "echo", ["trionet", "load"])
    latency = Histogram()
    latency.record(p50, 100)
    run["histograms"]["message"] = summary(latency)
    run["totals"].update(connections=5, peak=5, received_rate=p50 / 2)
    for t in range(1, seconds + 1):
        point = {
            "t": float(t),
            "phase": "measure",
            "open": 5,
            "connects_s": 0.0,
            "sent_s": 9.0,
            "received_s": 9.0 + t,
        }
        point |= {"sent_bytes_s": 0.0, "received_bytes_s": 0.0, "p50": p50, "p99": p50, "errors": 0, "lag": 0}
        run["series"].append(point)
    path.write_text(json.dumps(run))
    return str(path)


def test_one_result_is_printed(tmp_path, capsys):
    """Without --output there are the figures and, where something moved, a chart of it."""
    assert load_report(saved(tmp_path / "a.json")) == 0
    printed = capsys.readouterr().out
    assert "echo against ws://127.0.0.1:1/" in printed
    assert "Messages received per second" in printed
    assert "Connections open" not in printed


def test_two_results_are_compared_in_a_table(tmp_path, capsys):
    """Several results stand side by side under their names, with what the others are of the first."""
    files = [f"before={saved(tmp_path / 'a.json')}", saved(tmp_path / "b.json", 4000)]
    assert load_report(*files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["before", "b"]
    (median,) = [line.split() for line in lines if line.startswith("Message round trip, p50")]
    assert median[4:] == ["1", "ms", "4", "ms", "4", "times"]


def test_reports_are_written(tmp_path, capsys):
    """Every --output is written and named, and a page of a comparison is a source of results itself."""
    one, two = saved(tmp_path / "a.json"), saved(tmp_path / "b.json", 2000)
    outputs = [str(tmp_path / name) for name in ("c.html", "c.svg")]
    assert load_report(one, two, output=tuple(outputs)) == 0
    assert capsys.readouterr().out.split() == outputs
    assert len(read_results(outputs[0])) == 2
    assert list(read([outputs[0], one, one])) == ["c", "c 2", "a", "a 2"]


def test_a_name_that_looks_like_a_name_may_be_a_file(tmp_path):
    """A file with "=" in its name is that file."""
    path = saved(tmp_path / "rate=5.json")
    assert list(read([path])) == ["rate=5"]


@pytest.mark.parametrize("change", [{"totals": {}}, {"series": [{}]}, {"started": 5, "phases": 7}])
def test_a_damaged_result_is_a_usage_error(tmp_path, change):
    """Whatever somebody has done to a result, it is said in one line, without a traceback."""
    path = tmp_path / "a.json"
    saved(path)
    run = json.loads(path.read_text()) | change
    path.write_text(json.dumps(run))
    with pytest.raises(ConfigurationError, match="damaged"):
        load_report(str(path), output=(str(tmp_path / "x.html"),))


def test_nothing_is_written_when_one_path_is_wrong(tmp_path):
    """All paths are checked before the first report is made."""
    path = saved(tmp_path / "a.json")
    with pytest.raises(ConfigurationError, match="not "):
        load_report(path, output=(str(tmp_path / "x.html"), str(tmp_path / "x.pdf")))
    assert not (tmp_path / "x.html").exists()
    with pytest.raises(ConfigurationError, match="of what"):
        load_report()


def test_it_is_a_command_of_load(tmp_path, capsys):
    """`trionet load report FILE` comes here, its wrong files end with exit code 2, and the help of load names it."""
    assert main(["load", "report", saved(tmp_path / "a.json")]) == 0
    assert main(["load", "report", str(tmp_path / "b.json")]) == 2
    assert "b.json: No such file" in capsys.readouterr().err
    assert main(["load", "--help"]) == 0
    assert "Make a report of one run" in capsys.readouterr().out
