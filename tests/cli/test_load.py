"""`trionet load` as a command: options, exit codes, output."""

from __future__ import annotations

import json
import socket

import attrs
import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("rich")

from trionet.cli.load_view import LiveView
from trionet.cli.main import main
from trionet.client.load.options import SCENARIOS, LoadOptions
from trionet.client.load.result import empty


@pytest.fixture
def url(start_program):
    """The URL of an echo server in a process of its own."""
    return start_program("examples/echo.py", "--port", "0")[1]


def test_json_and_report(url, capsys, tmp_path):
    """One JSON document on standard output, the report where it was asked for, exit code 0."""
    page = tmp_path / "out.html"
    command = [
        "load",
        url,
        "echo",
        "--connections",
        "3",
        "--duration",
        "300ms",
        "--json",
        "--report",
        str(page),
    ]
    assert main([*command, "--max-failures", "0", "--header", "X-Token: secret"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["scenario"] == "echo"
    assert result["totals"]["received"] > 0
    assert result["thresholds"][0] == {
        "name": "max-failures",
        "limit": 0,
        "value": 0,
        "unit": "1",
        "passed": True,
    }
    assert "<svg" in page.read_text()
    assert "secret" not in output.out


def test_failed_condition(capsys):
    """Where nobody listens the causes and the condition that does not hold are shown, and the exit code is 1."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/"
        assert main(["load", url, "--connections", "2", "--duration", "0.1", "--max-connect-p99", "1s"]) == 1
    text = capsys.readouterr().out
    assert "errors: refused 2" in text
    assert "FAILED  --max-connect-p99" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["ws://192.0.2.1/"], "--allow-remote --i-may-load 192.0.2.1"),
        (["ws://127.0.0.1:9/", "flood"], "no scenario"),
        (["ws://127.0.0.1:9/", "--max-p99", "soon"], "--max-p99: not a duration"),
        (["ws://127.0.0.1:9/", "--connections", "0"], "connections must be at least 1"),
        (["ws://127.0.0.1:9/", "--report", "out.pdf"], "out.pdf"),
        (["ftp://127.0.0.1/"], "ws://"),
    ],
)
def test_wrong_usage(arguments, words, capsys):
    """What cannot be is said before anything is started, with exit code 2."""
    assert main(["load", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_has_every_option_and_scenario(capsys):
    """The help says all there is."""
    assert main(["load", "--help"]) == 0
    text = capsys.readouterr().out
    for field in attrs.fields(LoadOptions):
        name = (
            field.name.upper() if field.name in ("url", "scenario") else "--" + field.name.replace("_", "-")
        )
        assert name in text
    for scenario in SCENARIOS:
        assert f"  {scenario} " in text


def test_live_view(capsys):
    """The view of a second has its figures, and those before as a sparkline."""
    from trionet.cli import output

    options = LoadOptions(url="ws://127.0.0.1:8080/", scenario="echo", connections=2000)
    result = empty(str(options.target), "echo", [])
    point = {
        "t": 3.0, "phase": "measure", "open": 1500, "connects_s": 0, "sent_s": 9000, "received_s": 8999,
        "sent_bytes_s": 0, "received_bytes_s": 0, "p50": 120, "p99": 4500, "errors": 2, "lag": 80_000,
    }  # fmt: skip
    result["series"] += [{**point, "received_s": 4000}, point]
    output.console().print(LiveView(options).table(point, result))
    text = capsys.readouterr().out
    for word in ("measure", "1,500", "of 2,000", "8,999", "▄█", "4.5 ms", "p50 120 us", "late: 80 ms"):
        assert word in text
