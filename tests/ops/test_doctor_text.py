"""What the doctor prints: the verdict first, lines that fit and can be pasted, the command and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess

import attrs
import pytest

from trionet.ops.doctor import Facts, Plan, examine
from trionet.ops.doctor.facts import Cgroup, PythonBuild
from trionet.ops.doctor.fixes import SYSCTL, steps
from trionet.ops.doctor.text import render, shown

GIB = 2**30

#: A machine with something of everything: too small a table of files, doubtful settings, and much that is fine.
POOR = Facts(
    release="5.15.0",
    nofile=(1024, 4096),
    nproc=50,
    sysctls={
        "fs.file-max": "100000",
        "fs.nr_open": "1048576",
        "net.core.somaxconn": "128",
        "net.ipv4.ip_local_port_range": "1024 65535",
        "net.ipv4.tcp_rmem": "4096 131072 6291456",
        "net.ipv4.tcp_wmem": "65536 65536 4194304",
        "net.ipv4.tcp_timestamps": "0",
    },
    files={"net.core.somaxconn": ("128", "/etc/sysctl.conf")},
    memory={"MemTotal": 8 * GIB, "MemAvailable": 7 * GIB, "SwapTotal": 0},
    cgroup=Cgroup(version=2, memory_max=GIB, memory_at="/sys/fs/cgroup", pids_max=100),
    cpus=2,
    may_raise=False,
    python=PythonBuild(version="3.13.0"),
)
PLAN = Plan(connections=150_000, workers=2)


def printed(facts, plan=PLAN, **options):
    """The report as text."""
    return "\n".join(line.text for line in render(examine(facts, plan), **options))


def block(text, start):
    """The lines to paste that begin with `start`, up to the end of the here document."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(start))
    return lines[first : lines.index("EOF", first) + 1]


def test_the_verdict_comes_first():
    """Yes or no, how many fit, what limits it: in the first screen."""
    head = printed(POOR).split("Open files")[0]
    assert "NO: this machine cannot hold 150,000 connections as it is" in head
    assert "The first limit is RLIMIT_NOFILE (hard)." in " ".join(head.split())
    assert "The most that fits now: 7,5" in head
    good = attrs.evolve(POOR, nofile=(200_000, 200_000))
    assert "YES, as far as could be read" in printed(good, Plan(connections=100, workers=2))


@pytest.mark.parametrize("width", [60, 80, 100, 300])
@pytest.mark.parametrize("verbose", [False, True])
def test_lines_fit(width, verbose):
    """Nothing is wider than the terminal but what is to be pasted; more than 100 columns are not used."""
    for line in printed(POOR, width=width, verbose=verbose).splitlines():
        pasted = line.startswith(("cat ", "mkdir ", "sysctl ", "net.", "fs.", "# ", "* ", "systemctl "))
        assert len(line) <= max(80, min(width, 100)) or pasted
        assert line == line.rstrip()


def test_verbose_explains_what_is_in_order():
    """Otherwise only what is not gets a reason."""
    assert "RLIMIT_NOFILE can be raised that far" in printed(POOR, verbose=True)
    assert "RLIMIT_NOFILE can be raised that far" not in printed(POOR)


def test_unknown_is_told_by_reason():
    """What could not be read stands in one place, with what it would have to be."""
    text = printed(POOR)
    assert "Could not be read, so look yourself" in text
    assert "shown only in the host's network namespace" in " ".join(text.split())


def test_fixes_are_grouped_by_file():
    """One file for the kernel, one for the unit, one for logins; what is needed comes before what is better."""
    text = printed(POOR)
    conf = block(text, f"cat > {SYSCTL}")
    assert conf.index("# needed") < conf.index("fs.file-max = 170000") < conf.index("# better")
    warning = conf.index("# /etc/sysctl.conf sets it too, and may be read later: change it there")
    assert conf[warning + 1].startswith("net.core.somaxconn = ")
    assert {"[Service]", "LimitNOFILE=84000", "TasksMax=190"} <= set(text.splitlines())
    assert "* - nofile 84000" in text.splitlines()
    assert "sysctl -p /etc/sysctl.d/99-trionet.conf" in text.splitlines()


def test_what_is_pasted_is_a_shell_script(tmp_path):
    """All blocks together are accepted by sh; nothing of them is run here."""
    script = "\n".join(line for step in steps(examine(POOR, PLAN)) for line in step.lines)
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("no sh here")
    assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0
    contained = attrs.evolve(POOR, container="docker")
    for step in steps(examine(contained, PLAN)):
        text = "\n".join(step.lines)
        text = f"docker run {text}" if text.lstrip().startswith("--") else text
        assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0


def test_a_container_gets_options_for_its_runtime():
    """What the kernel keeps for each namespace goes to the runtime, the rest to the host."""
    found = steps(examine(attrs.evolve(POOR, container="docker"), PLAN))
    options = next(step.lines for step in found if step.lines and step.lines[0].startswith("  --"))
    assert any("--ulimit nofile=84000:84000" in line for line in options)
    assert any("--sysctl 'net.ipv4.tcp_wmem=4096 16384 4194304'" in line for line in options)
    assert any("--pids-limit 190" in line for line in options)
    host = next(step.lines for step in found if step.lines and step.lines[0].startswith("cat"))
    assert "fs.file-max = 170000" in host
    assert not any("somaxconn" in line for line in host)
    assert not any("systemd" in line for step in found for line in step.lines)
    shared = attrs.evolve(POOR, container="docker", sysctls={**POOR.sysctls, "net.ipv4.tcp_mem": "1 2 3"})
    assert not any("--sysctl" in line for step in steps(examine(shared, PLAN)) for line in step.lines)


def test_nothing_to_do_is_not_mentioned():
    """A machine without a fault has no heading for fixes."""
    fine = attrs.evolve(
        POOR,
        nofile=(4096, 4096),
        nproc=None,
        cgroup=Cgroup(),
        sysctls={"fs.file-max": "100000", "net.core.somaxconn": "4096"},
    )
    assert "To fix" not in printed(fine, Plan(connections=100, workers=1))
    assert "To make it better" not in printed(fine, Plan(connections=100, workers=1))


@pytest.mark.parametrize(
    "value,unit,text",
    [
        (None, "", ""),
        (2**63 - 1, "", "unlimited"),
        (1_048_576, "", "1,048,576"),
        (3 * GIB, "bytes", "3.0 GiB"),
        (5 * 2**20, "bytes", "5 MiB"),
        (12_000, "pages", "12,000 pages"),
        ("none", "", "none"),
    ],
)
def test_values_as_people_read_them(value, unit, text):
    """Thousands are separated, bytes have a unit, unlimited is a word."""
    assert shown(value, unit) == text


@pytest.fixture
def command(monkeypatch):
    """Return the command, run on a machine of ours."""
    pytest.importorskip("cyclopts")
    pytest.importorskip("rich")
    from trionet.cli import doctor, run

    monkeypatch.setattr(doctor, "read_facts", lambda pid=None: attrs.evolve(POOR, pid=pid))
    monkeypatch.setenv("NO_COLOR", "1")
    return run


def test_exit_codes_of_the_command(command, capsys):
    """0: it suffices; 1: it does not; 2: that is no plan, and the error names it."""
    assert command(["doctor", "--connections", "100"]) == 0
    assert "YES" in capsys.readouterr().out
    assert command(["doctor", "-n", "10_000_000", "--handler", "task", "--tls"]) == 1
    assert "NO:" in capsys.readouterr().out
    for wrong in (
        ["--connections", "0"],
        ["--workers", "some"],
        ["--handler", "none"],
        ["--ping-interval", "-1"],
    ):
        assert command(["doctor", *wrong]) == 2
        assert wrong[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_the_document_of_the_command(command, capsys):
    """``--json`` prints one document and nothing else, with the same exit code."""
    assert command(["doctor", "-n", "150000", "--workers", "2", "--pid", "7", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["suffices"] is False
    assert document["machine"]["pid"] == 7
    assert document["plan"]["workers"] == 2


def test_in_a_pipe_there_is_no_colour_and_no_folding(command, capsys):
    """What is to be pasted arrives as it is."""
    command(["doctor", "-n", "150000", "--workers", "2"])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert text.rstrip("\n") == printed(POOR)
