"""The doctor's judgement, on made-up machines: each check at its border, the greatest number, what limits it."""

from __future__ import annotations

import json

import attrs
import pytest

from trionet.errors import ConfigurationError
from trionet.ops.doctor import Facts, Plan, examine
from trionet.ops.doctor.checks import GROUPS
from trionet.ops.doctor.facts import UNLIMITED, Cgroup, PythonBuild
from trionet.ops.doctor.needs import HANDLERS, PROCESS, SOCKET, busiest, estimate, roomy
from trionet.ops.doctor.report import MOST

GIB = 2**30

#: A machine with room for anything that the tests ask of it.
SYSCTLS = {
    "fs.epoll.max_user_watches": "100000000",
    "fs.file-max": "9223372036854775807",
    "fs.file-nr": "1000 0 9223372036854775807",
    "fs.nr_open": "1048576",
    "kernel.pid_max": "4194304",
    "kernel.threads-max": "1000000",
    "net.core.somaxconn": "16384",
    "net.ipv4.ip_local_port_range": "32768 60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.tcp_abort_on_overflow": "0",
    "net.ipv4.tcp_max_orphans": "1000000",
    "net.ipv4.tcp_max_syn_backlog": "4096",
    "net.ipv4.tcp_mem": "4000000 5000000 8000000",
    "net.ipv4.tcp_migrate_req": "1",
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_sack": "1",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv4.tcp_timestamps": "1",
    "net.ipv4.tcp_tw_reuse": "2",
    "net.ipv4.tcp_window_scaling": "1",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
    "vm.max_map_count": "65530",
    "vm.overcommit_memory": "0",
    "vm.swappiness": "60",
}
MACHINE = Facts(
    nofile=(1024, 1048576),
    nproc=UNLIMITED,
    sysctls=SYSCTLS,
    memory={"MemTotal": 64 * GIB, "MemAvailable": 60 * GIB, "SwapTotal": 0},
    cgroup=Cgroup(version=2),
    tasks=500,
    cpus=8,
    may_raise=True,
    python=PythonBuild(version="3.13.0"),
)
PLAN = Plan(connections=100_000, workers=4)


def with_sysctl(name, value):
    """The machine with one setting changed, or taken away."""
    changed = {**SYSCTLS, name: value}
    if value is None:
        del changed[name]
    return attrs.evolve(MACHINE, sysctls=changed)


def finding_of(facts, name, plan=PLAN):
    """The one finding of that name."""
    [found] = [finding for finding in examine(facts, plan).findings if finding.name == name]
    return found


def test_a_good_machine_is_told_so():
    """Where everything suffices there is no other verdict than ok, and nothing to fix."""
    report = examine(MACHINE, PLAN)
    assert {finding.verdict for finding in report.findings} == {"ok"}
    assert report.suffices
    assert not any(finding.fixes for finding in report.findings)


@pytest.mark.parametrize(
    "name,value,verdict",
    [
        ("fs.file-max", "102000", "ok"),
        ("fs.file-max", "101000", "fail"),  # 1,000 are in use
        ("fs.nr_open", "20000", "ok"),  # a limit that was granted before stays
        ("fs.epoll.max_user_watches", "100000", "fail"),
        ("net.core.somaxconn", "128", "warn"),
        ("net.core.somaxconn", "10000", "ok"),
        ("net.core.somaxconn", "1000000", "warn"),
        ("net.ipv4.tcp_syncookies", "0", "warn"),
        ("net.ipv4.tcp_syncookies", "2", "warn"),
        ("net.ipv4.tcp_max_syn_backlog", "128", "ok"),  # SYN cookies are on
        ("net.netfilter.nf_conntrack_max", "262144", "ok"),
        ("net.netfilter.nf_conntrack_max", "150000", "warn"),  # not if all come back at once
        ("net.netfilter.nf_conntrack_max", "65536", "warn"),  # nothing is tracked
        ("net.ipv4.tcp_migrate_req", "0", "warn"),
        ("net.ipv4.tcp_max_orphans", "1000", "warn"),
        ("net.ipv4.tcp_tw_reuse", "0", "ok"),
        ("vm.max_map_count", "1000", "fail"),
        ("vm.overcommit_memory", "2", "fail"),
        ("net.ipv4.tcp_tw_recycle", "1", "warn"),
        ("net.ipv4.tcp_tw_recycle", "0", "ok"),
        ("net.ipv4.tcp_timestamps", "0", "warn"),
        ("net.ipv4.tcp_abort_on_overflow", "1", "warn"),
        ("net.ipv4.tcp_sack", "0", "warn"),
        ("net.ipv4.tcp_window_scaling", "0", "warn"),
    ],
)
def test_a_setting_at_its_border(name, value, verdict):
    """Each setting of the kernel is judged by what 100,000 connections ask of it, and what is wrong has a fix."""
    found = finding_of(with_sysctl(name, value), name)
    assert found.verdict == verdict
    assert bool(found.fixes) == (verdict != "ok")
    assert found.why.endswith((".", "!"))


@pytest.mark.parametrize(
    "name,value,finding,verdict",
    [
        ("kernel.pid_max", "700", "kernel.pid_max", "fail"),
        ("kernel.threads-max", "700", "kernel.threads-max", "fail"),
        ("net.ipv4.tcp_mem", "10000 20000 90000", "net.ipv4.tcp_mem (max)", "warn"),
        (
            "net.ipv4.tcp_mem",
            "4000000 8000000 16000000",
            "net.ipv4.tcp_mem (max)",
            "warn",
        ),  # all of the memory
        ("net.ipv4.tcp_rmem", "262144 524288 6291456", "net.ipv4.tcp_rmem (min)", "warn"),
        ("net.ipv4.tcp_wmem", "4096 16777216 16777216", "net.ipv4.tcp_wmem (min)", "warn"),
    ],
)
def test_a_setting_with_several_numbers(name, value, finding, verdict):
    """Of several numbers, or two settings, the one that matters is judged."""
    assert finding_of(with_sysctl(name, value), finding).verdict == verdict


@pytest.mark.parametrize("name", sorted(set(SYSCTLS) - {"fs.file-nr", "kernel.threads-max"}))
def test_what_cannot_be_read_is_unknown(name):
    """A setting that is missing is never taken for good or bad, and breaks nothing."""
    report = examine(with_sysctl(name, None), PLAN)
    folklore = {"net.ipv4.tcp_abort_on_overflow", "net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps"}
    folklore |= {"net.ipv4.tcp_window_scaling"}
    quiet = folklore | {
        "net.ipv4.ip_local_reserved_ports",
        "kernel.pid_max",
    }  # empty is the default; threads-max is there
    assert bool(report.unknown) == (name not in quiet)
    assert report.suffices


def test_tracking_that_is_in_use_and_too_small_fails():
    """A full table of connections drops packets, so it is no matter of taste."""
    facts = attrs.evolve(
        MACHINE,
        sysctls={
            **SYSCTLS,
            "net.netfilter.nf_conntrack_max": "65536",
            "net.netfilter.nf_conntrack_count": "300",
        },
    )
    report = examine(facts, PLAN)
    assert not report.suffices
    assert report.fits == 65_236
    assert report.limits[0].name == "net.netfilter.nf_conntrack_max"


def test_clients_on_the_same_machine_are_a_second_socket():
    """Both ends take files, watches and memory of the kernel; a remote client's end does not."""
    near = attrs.evolve(PLAN, local_clients=True)
    assert estimate(MACHINE, near).sockets == 2 * estimate(MACHINE, PLAN).sockets == 200_000
    assert estimate(MACHINE, near).kernel == 200_000 * SOCKET
    assert finding_of(with_sysctl("fs.file-max", "150000"), "fs.file-max", PLAN).verdict == "ok"
    assert finding_of(with_sysctl("fs.file-max", "150000"), "fs.file-max", near).verdict == "fail"
    assert finding_of(MACHINE, "net.ipv4.ip_local_port_range", near).need == "4 sources"
    assert (
        finding_of(with_sysctl("net.ipv4.tcp_tw_reuse", "0"), "net.ipv4.tcp_tw_reuse", near).verdict == "warn"
    )


@pytest.mark.parametrize("handler", HANDLERS)
def test_memory_is_what_was_measured(handler):
    """Sockets, connections by kind of handler, and processes; TLS on top."""
    need = estimate(MACHINE, Plan(connections=1000, workers=2, handler=handler))
    assert need.memory == 1000 * (SOCKET + HANDLERS[handler]) + 4 * PROCESS
    tls = estimate(MACHINE, Plan(connections=1000, workers=2, handler=handler, tls=True))
    assert 14_000_000 < tls.memory - need.memory < 15_000_000


@pytest.mark.parametrize(
    "available,verdict",
    [(int(0.7 * GIB), "ok"), (int(0.6 * GIB), "warn"), (int(0.5 * GIB), "fail")],
)
def test_memory_of_the_machine_and_of_the_group(available, verdict):
    """A fifth has to be left; the machine and the control group are judged alike."""
    little = attrs.evolve(MACHINE, memory={**MACHINE.memory, "MemAvailable": available})
    assert finding_of(little, "MemAvailable").verdict == verdict
    group = attrs.evolve(
        MACHINE,
        cgroup=Cgroup(version=2, memory_max=available + GIB, memory_used=GIB, memory_at="/sys/fs/cgroup/x"),
    )
    found = finding_of(group, "memory limit of the cgroup")
    assert found.verdict == verdict
    assert found.have == available
    assert group.available() == available


def test_a_limit_on_open_files_is_answered_by_more_workers():
    """Left open, the number of workers is what the limit makes necessary; the limit of the machine is said too."""
    facts = attrs.evolve(MACHINE, nofile=(1024, 20_000), may_raise=False)
    report = examine(facts, Plan(connections=1_000_000))
    assert report.need.workers == 52
    assert report.need.descriptors <= 20_000 < busiest(1_000_000, 51) + 64
    found = finding_of(facts, "RLIMIT_NOFILE (hard)", Plan(connections=1_000_000))
    assert found.verdict == "warn"
    assert "Only who starts the server may raise it" in found.why
    assert report.suffices


def test_a_number_of_workers_that_is_given_is_kept():
    """Then the limit fails, and both ways out are offered: a higher limit, and workers that would do without."""
    facts = attrs.evolve(MACHINE, nofile=(1024, 20_000))
    found = finding_of(facts, "RLIMIT_NOFILE (hard)", Plan(connections=1_000_000, workers=4))
    assert found.verdict == "fail"
    assert {fix.key: fix.value for fix in found.fixes} == {"LimitNOFILE": "280000", "nofile": "--workers 52"}


def test_a_limit_that_is_far_too_low_is_to_be_raised():
    """A thousand workers are no answer; the limit is then asked for as few as there are processors."""
    report = examine(attrs.evolve(MACHINE, nofile=(1024, 1024)), Plan(connections=1_000_000))
    assert report.need.workers == MACHINE.cpus
    assert report.limits[0].name == "RLIMIT_NOFILE (hard)"
    assert not report.suffices


def test_a_limit_that_is_to_be_raised_stays_below_what_can_be_set():
    """With fs.nr_open in the way, one more worker is simpler than one more setting."""
    facts = attrs.evolve(MACHINE, nofile=(1024, 1024), cpus=1)
    need = estimate(facts, Plan(connections=3_000_000))
    assert need.workers == 3
    assert need.descriptors <= 1_048_576


def test_no_limit_is_recommended_that_nobody_can_set():
    """A limit above fs.nr_open in limits.conf would lock out whoever logs in."""
    found = finding_of(
        attrs.evolve(MACHINE, nofile=(1024, 4096)),
        "RLIMIT_NOFILE (hard)",
        Plan(connections=1_040_000, workers=1),
    )
    assert found.fixes[0].value == "1048576"
    found = finding_of(
        attrs.evolve(MACHINE, nofile=(1024, 4096)), "fs.nr_open", Plan(connections=1_040_000 * 2, workers=1)
    )
    assert found.verdict == "fail"
    assert int(found.fixes[0].value) > 2_080_000


@pytest.mark.parametrize("connections,workers", [(1, 1), (10, 4), (1_000_000, 66), (7, 7)])
def test_the_fullest_worker(connections, workers):
    """It gets more than the mean, never more than all; a single one gets exactly all."""
    assert connections / workers <= busiest(connections, workers) <= connections


def test_the_greatest_number_is_a_border():
    """What fits suffices, and one connection more does not."""
    facts = attrs.evolve(MACHINE, nofile=(1024, 20_000), sysctls={**SYSCTLS, "fs.file-max": "1500000"})
    for plan in (PLAN, Plan(connections=1), Plan(connections=1, workers=70, local_clients=True)):
        report = examine(facts, plan)
        assert examine(facts, attrs.evolve(plan, connections=report.fits)).suffices
        assert not examine(facts, attrs.evolve(plan, connections=report.fits + 1)).suffices
        assert [limit.connections for limit in report.limits] == sorted(
            limit.connections for limit in report.limits
        )


def test_without_limits_no_number_is_invented():
    """A machine of which nothing is known has no greatest number, and suffices as far as it is known."""
    report = examine(Facts(), attrs.evolve(PLAN, ping_interval=None))
    assert report.fits == MOST
    assert report.to_json()["fits"] is None
    assert report.suffices
    assert len(report.unknown) > 10


def test_the_port_must_not_be_one_of_those_that_clients_get():
    """The fix keeps what is reserved already, for writing replaces the list."""
    facts = with_sysctl("net.ipv4.ip_local_reserved_ports", "8125,9000-9100")
    name = "net.ipv4.ip_local_reserved_ports"
    assert finding_of(facts, name).verdict == "ok"
    found = finding_of(facts, name, attrs.evolve(PLAN, port=40_000))
    assert found.verdict == "warn"
    assert found.fixes[0].value == "8125,9000-9100,40000"
    facts = with_sysctl(name, "39990-40010")
    assert finding_of(facts, name, attrs.evolve(PLAN, port=40_000)).verdict == "ok"


def test_a_line_in_a_file_counts_although_it_is_not_in_force():
    """Folklore that waits in sysctl.conf for the next restart is found, and the file is named."""
    facts = attrs.evolve(MACHINE, files={"net.ipv4.tcp_tw_recycle": ("1", "/etc/sysctl.conf")})
    found = finding_of(facts, "net.ipv4.tcp_tw_recycle")
    assert found.verdict == "warn"
    assert "/etc/sysctl.conf" in found.why


@pytest.mark.parametrize(
    "changes,name,verdict",
    [
        ({"cgroup": Cgroup(pids_max=1000)}, "pids.max of the cgroup", "ok"),
        ({"cgroup": Cgroup(pids_max=100)}, "pids.max of the cgroup", "warn"),
        ({"cgroup": Cgroup(pids_max=10)}, "pids.max of the cgroup", "fail"),
        ({"cgroup": Cgroup(cpus=0.5)}, "CPU quota of the cgroup", "warn"),
        ({"nproc": 100}, "RLIMIT_NPROC", "warn"),
        ({"nproc": 5}, "RLIMIT_NPROC", "fail"),
        ({"governor": "powersave", "driver": "acpi-cpufreq"}, "CPU governor", "warn"),
        ({"governor": "powersave", "driver": "intel_pstate"}, "CPU governor", "ok"),
        ({"memory": {"MemAvailable": GIB, "SwapTotal": GIB}}, "vm.swappiness", "warn"),
        ({"python": PythonBuild(debug=True)}, "Python build", "warn"),
        ({"python": PythonBuild(gil=False)}, "Python build", "warn"),
        ({"python": PythonBuild(optimized=False)}, "Python build", "ok"),
        ({"python": PythonBuild(mask_in_c=False)}, "masking", "warn"),
        ({"python": PythonBuild(backend="tasks")}, "poller", "warn"),
    ],
)
def test_what_else_matters(changes, name, verdict):
    """Threads, quota, governor, swap and the Python itself are looked at."""
    assert finding_of(attrs.evolve(MACHINE, **changes), name).verdict == verdict


@pytest.mark.parametrize("interval,verdict", [(5, "fail"), (20, "warn"), (60, "ok"), (None, "ok")])
def test_keepalive_of_very_many(interval, verdict):
    """A million Pings in twenty seconds is more than a processor; the fix names an interval that is judged good."""
    plan = Plan(connections=1_000_000, workers=8, ping_interval=interval)
    facts = attrs.evolve(MACHINE, cpus=4)
    found = finding_of(facts, "keepalive", plan)
    assert found.verdict == verdict
    if verdict != "ok":
        better = int("".join(filter(str.isdecimal, found.fixes[0].value)))
        assert finding_of(facts, "keepalive", attrs.evolve(plan, ping_interval=better)).verdict == "ok"


def test_strict_accounting_with_room_is_fine():
    """Mode 2 of overcommit fails only if CommitLimit leaves too little."""
    memory = {**MACHINE.memory, "CommitLimit": 60 * GIB, "Committed_AS": GIB}
    facts = attrs.evolve(MACHINE, memory=memory, sysctls={**SYSCTLS, "vm.overcommit_memory": "2"})
    assert finding_of(facts, "vm.overcommit_memory").verdict == "ok"


def test_away_from_linux_only_what_is_known_is_judged():
    """On macOS there are the descriptors and the Python, and one line that says what was not looked at."""
    report = examine(Facts(system="Darwin", nofile=(256, 10_240)), Plan(connections=5000, workers=1))
    assert [finding.name for finding in report.unknown] == ["limits of the kernel"]
    assert report.fits == 10_240 - 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"connections": 0},
        {"workers": 0},
        {"handler": "none"},
        {"port": 65_536},
        {"reserve": -1},
        {"ping_interval": 0},
    ],
)
def test_what_is_no_plan_is_refused(wrong):
    """The error names the value."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Plan(**{"connections": 10, **wrong})


def test_round_numbers_have_room():
    """At least a tenth above what is needed, in two digits."""
    assert [roomy(number) for number in (1, 95, 2_011_667, 516_000)] == [2, 110, 2_300_000, 570_000]


def test_the_document_is_json():
    """Everything in it is plain; each fix of a setting comes with the command for now."""
    document = json.loads(
        json.dumps(examine(with_sysctl("fs.file-max", "1000"), PLAN).to_json(), allow_nan=False)
    )
    assert document["suffices"] is False
    [row] = [row for row in document["findings"] if row["name"] == "fs.file-max"]
    assert row["verdict"] == "fail"
    assert row["fixes"][0]["now"] == 'sysctl -w fs.file-max="120000"'


def test_every_check_says_something_about_a_machine():
    """No check is dead: each finds something, here or where the thing it looks at exists."""
    facts = attrs.evolve(
        MACHINE,
        governor="performance",
        cgroup=Cgroup(version=2, memory_max=50 * GIB, pids_max=1000, cpus=8.0),
        sysctls={**SYSCTLS, "net.ipv4.tcp_tw_recycle": "0"},
    )
    need = estimate(facts, PLAN)
    for checks in GROUPS.values():
        assert all(check(facts, need) is not None for check in checks)
