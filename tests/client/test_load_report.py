"""Reports of load runs: everything is in them, nothing that came from outside is markup, and they can be read back."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from trionet.client.load import report
from trionet.client.load.report_plots import of_run, thinned
from trionet.client.load.result import empty, summary
from trionet.errors import ConfigurationError
from trionet.net.histogram import Histogram

HOSTILE = "\"'></script></style><img src=x onerror=alert(1)><!-- & ]]>"

# What a page consists of. Whatever else a parser finds, somebody got in.
ELEMENTS = frozenset(
    (
        *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "script"),
        *("h1", "h2", "h3", "p", "span", "b", "i", "div", "ul", "li", "dl", "dt", "dd", "pre", "code"),
        *("table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
        *("figure", "svg", "g", "rect", "path", "text"),
    )
)
VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would make of a page; fails when elements do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.words, self.titles = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.titles if self.open[-1:] == ["title"] else self.words).append(data)


def result(scale=1, seconds=20):
    """A run of an echo scenario as LOAD writes it, made up."""
    run = empty("ws://127.0.0.1:8000/", "echo", ["trionet", "load", "ws://127.0.0.1:8000/"])
    connect, message = Histogram(), Histogram()
    for value in range(1, 1001):
        connect.record(value * 10 * scale)
        message.record(value * scale, 7)
    run["histograms"] = {"message": summary(message), "connect": summary(connect)}
    run["phases"] = [
        {"name": "ramp", "began": 0.0, "ended": 2.0},
        {"name": "measure", "began": 2.0, "ended": float(seconds)},
    ]
    for t in range(1, seconds + 1):
        ramp = t <= 2
        run["series"].append(
            {
                "t": float(t),
                "phase": "ramp" if ramp else "measure",
                "open": min(t, 2) * 500,
                "connects_s": 500.0 if ramp else 0.0,
                "sent_s": 0.0 if ramp else 7000.0 * scale,
                "received_s": 0.0 if ramp else 7000.0 * scale,
                "sent_bytes_s": 0.0,
                "received_bytes_s": 0.0,
                "p50": 500 * scale,
                "p99": 90_000 if t == 7 else 990 * scale,
                "errors": 3 if t == 5 else 0,
                "lag": 100,
            }
        )
    run["totals"].update(
        connections=1000, connected=1000, peak=1000, connect_rate=500.0, received_rate=7000.0 * scale
    )
    run["totals"].update(sent_rate=7000.0 * scale, lost=3)
    run["errors"] = {"refused": 40, "status 503": 2}
    run["closed"] = {"1006 by network": 3}
    run["warnings"] = ["the generator was the bottleneck"]
    run["thresholds"] = [
        {"name": "max-p99", "limit": 1000.0, "value": 990.0, "unit": "us", "passed": True},
        {"name": "max-failures", "limit": 0.0, "value": 45.0, "unit": "1", "passed": False},
    ]
    run["outcome"] = "failed"
    return run


def poisoned(value):
    """The same document with hostile words in every string and every key that somebody else chooses."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value


def page_of(run, tmp_path):
    """The page of a run, parsed."""
    (path,) = report.write_report(run, tmp_path / "report.html")
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_says_it_all(tmp_path):
    """Target, outcome, warnings, thresholds, figures, plots, causes and the command line are in the page."""
    page = page_of(result(), tmp_path)
    text = " ".join(page.words)
    for words in (
        "echo: ws://127.0.0.1:8000/",
        "✗ failed",
        "the generator was the bottleneck",
        "✓ held",
        "✗ not held",
        "7,000/s",
        "990 µs",
        "Connections open",
        "Messages per second",
        "Latency over time",
        "Connecting: latency by percentile",
        "Message round trip: latency by percentile",
        "status 503",
        "1006 by network",
        "trionet load ws://127.0.0.1:8000/",
    ):
        assert words in text
    assert any("p99 90 ms" in title for title in page.titles)


def test_a_page_needs_nothing_else(tmp_path):
    """No attribute of the page names another file, no script in it is one that runs, and it forbids both."""
    page = page_of(result(), tmp_path)
    assert {name for _, name, _ in page.attributes}.isdisjoint({"src", "href", "srcset", "action", "data"})
    assert {value for tag, name, value in page.attributes if tag == "script" and name == "type"} == {
        "application/json"
    }
    assert ("meta", "content", "default-src 'none';style-src 'unsafe-inline'") in page.attributes


def test_nothing_from_outside_is_markup(tmp_path):
    """With markup in every string, the page has the same elements and attributes as without, and shows the markup."""
    clean = result()
    dirty = poisoned(clean)
    dirty.update(tool=clean["tool"])
    for name in ("errors", "closed", "options"):
        dirty[name] = {HOSTILE: 7}
    dirty["histograms"][HOSTILE] = dirty["histograms"]["message"]
    dirty["environment"]["limits"] = {HOSTILE: HOSTILE}
    for page in (page_of(dirty, tmp_path), compared({HOSTILE: dirty, "b": dirty}, tmp_path)):
        assert set(page.seen) <= ELEMENTS
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert "<img src=x onerror=alert(1)>" in " ".join(page.words)
    for path in (
        *report.write_report(dirty, tmp_path / "report.svg"),
        *report.compare({HOSTILE: dirty, "b": dirty}, tmp_path / "two.svg"),
    ):
        names = {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}
        assert names <= {"svg", "title", "style", "rect", "text", "g", "path"}


def compared(named, tmp_path):
    """The page that compares, parsed."""
    (path,) = report.compare(named, tmp_path / "compared.html")
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_a_report_can_be_read_back(tmp_path, suffix):
    """The page holds the measurements as the JSON does, hostile words and all."""
    run = {**poisoned(result()), "tool": "trionet load"}
    (path,) = report.write_report(run, tmp_path / f"report{suffix}")
    assert report.read_results(path) == [run]


def test_a_comparison_can_be_read_back(tmp_path):
    """From a page that compares, all the runs come back, in order."""
    (path,) = report.compare({"one": result(), "two": result(2)}, tmp_path / "two.html")
    assert report.read_results(path) == [result(), result(2)]


def test_a_comparison_holds_runs_against_the_first(tmp_path):
    """Figures stand side by side, with what they are of the first run's, and what differs in kind is said on top."""
    other = result(3)
    other["environment"]["kernel"] = "Linux 9"
    page = compared({"before": result(), "after": other, "like before": result()}, tmp_path)
    text = " ".join(page.words)
    for words in ("before", "after", "3 times", "the same", "The kernels differ", "after: the generator was"):
        assert words in text


def test_a_picture_is_wellformed(tmp_path):
    """The SVG is XML, has every plot of the page and a size of its own."""
    (path,) = report.write_report(result(), tmp_path / "report.svg")
    root = ET.parse(path).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    titles = [plot.title for plot in of_run(result())]
    assert [text for text in texts if text in titles] == titles
    assert int(root.attrib["width"]) > 1000


def test_percentile_tables(tmp_path):
    """One table for each latency, in milliseconds, beside the path given, whatever a run is called."""
    files = report.write_report(result(), tmp_path / "out.hgrm")
    assert [file.name for file in files] == ["out-connect.hgrm", "out-message.hgrm"]
    assert "#[Max     =        1.000, Total count    =         7000]" in files[1].read_text()
    for file in report.compare({"../../x/y": result()}, tmp_path / "out.hgrm"):
        assert file.parent == tmp_path


def test_a_run_that_measured_nothing_has_a_page(tmp_path):
    """Interrupted before the first second, a run still has a report, without plots."""
    run = {**empty("ws://[::1]:1/", "idle", []), "outcome": "interrupted"}
    page = page_of(run, tmp_path)
    assert "figure" not in page.seen
    assert "■ interrupted" in " ".join(page.words)
    assert "figure" not in compared({"a": run, "b": run}, tmp_path).seen
    ET.parse(report.write_report(run, tmp_path / "empty.svg")[0])


def test_a_long_run_has_no_long_page(tmp_path):
    """Hours of seconds become a few hundred points, of which none hides a peak or loses an error."""
    long = result(seconds=20_000)["series"]
    series = thinned(long)
    assert len(series) <= 400
    assert max(point["p99"] for point in series) == 90_000
    assert sum(point["errors"] for point in series) == 3
    assert series[-1]["t"] == 20_000
    assert sum(point["sent_s"] for point in series) / 400 == pytest.approx(7000, rel=0.01)


def test_latencies_that_were_not_measured_leave_gaps():
    """None in the series is no point of the line, not even at zero."""
    run = copy.deepcopy(result())
    for point in run["series"][10:12]:
        point["p50"] = point["p99"] = None
    latency = next(plot for plot in of_run(run) if plot.title == "Latency over time")
    assert [y for _, y in latency.lines[0].points][9:13].count(None) == 2


@pytest.mark.parametrize(
    "name,text,complaint",
    [
        ("no.json", None, "No such file"),
        ("bad.json", "{", "no result"),
        ("other.json", '{"tool": "wrk"}', "no result"),
        ("list.json", "[1]", "no result"),
        ("other.html", "<!doctype html><p>hello", "no result"),
        ("new.json", '{"tool": "trionet load", "schema": 99}', "schema 99"),
        ("part.json", '{"tool": "trionet load", "schema": 1}', "lacks closed, command"),
        ("nan.json", '{"tool": NaN}', "NaN"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, name, text, complaint):
    """Each wrong file is named together with what is wrong with it."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=complaint) as info:
        report.read_results(tmp_path / name)
    assert name in str(info.value)


@pytest.mark.parametrize("name", ["report.pdf", "report", "missing/report.html"])
def test_a_path_is_checked_before_the_run(tmp_path, name):
    """A suffix that is not ours, or a folder that is not there, is said when asked."""
    with pytest.raises(ConfigurationError):
        report.check_path(tmp_path / name)


def test_a_comparison_is_no_json(tmp_path):
    """JSON holds one run."""
    with pytest.raises(ConfigurationError, match="comparison"):
        report.compare({"a": result()}, tmp_path / "x.json")


def test_the_json_of_a_page_is_that_of_the_run(tmp_path):
    """What is embedded is plain JSON, whatever is in it."""
    run = result()
    (path,) = report.write_report(run, tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    begin = text.index('class="result">') + len('class="result">')
    assert json.loads(text[begin : text.index("</script>", begin)]) == run
