"""Where the doctor gets its facts: trees of /proc and /sys as containers and old machines show them, and our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trionet.errors import ConfigurationError
from trionet.ops.doctor import Plan, examine, read_facts
from trionet.ops.doctor.facts import UNLIMITED

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max processes             unlimited            unlimited            processes
Max open files            1024                 524288               files
"""
V2 = "35 30 0:30 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
"""


@pytest.fixture
def tree(tmp_path):
    """Return a function that writes files below a root of its own and reads the facts from there."""

    def read(files, **options):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return read_facts(tmp_path, system="Linux", limits=lambda: None, **options)

    return read


def test_nothing_there_is_no_error(tree):
    """A root without /proc gives facts that know nothing, and a report."""
    facts = tree({})
    assert facts.nofile is None
    assert facts.sysctls == facts.memory == {}
    assert facts.available() is None
    assert examine(facts, Plan(connections=1000)).suffices


def test_limits_and_settings(tree):
    """Limits of the process, settings of the kernel, memory and processors are read as the kernel writes them."""
    facts = tree(
        {
            "proc/self/limits": LIMITS,
            "proc/self/status": "Name:\tpython\nCapEff:\t0000000001000000\nCpus_allowed_list:\t0-3,6\n",
            "sys/devices/system/cpu/online": "0-2,6-7\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "proc/meminfo": "MemTotal:       1000 kB\nHugePages_Total:       7\n",
            "proc/loadavg": "0.2 0.1 0.1 1/1180 11206\n",
            "proc/sys/net/ipv4/tcp_mem": "1\t2\t3\n",
            "proc/sys/fs/file-max": "12345\n",
            "proc/sys/kernel/osrelease": "5.15.0-91-generic\n",
        }
    )
    assert facts.nofile == (1024, 524288)
    assert facts.nproc == UNLIMITED
    assert facts.may_raise is True
    assert facts.cpus == 4
    assert facts.governor == "schedutil"
    assert facts.memory == {"MemTotal": 1_024_000, "HugePages_Total": 7 * 1024}
    assert facts.tasks == 1180
    assert facts.sysctls == {"net.ipv4.tcp_mem": "1 2 3", "fs.file-max": "12345"}
    assert facts.number("net.ipv4.tcp_mem", 2) == 3
    assert facts.number("net.ipv4.tcp_mem", 3) is None
    assert facts.release == "5.15.0-91-generic"


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/limits": "garbage\n\nMax open files many few\n"},
        {"proc/meminfo": "MemTotal\nMemFree: lots kB\n", "proc/loadavg": "\n"},
        {"proc/self/cgroup": "::\nnonsense\n", "proc/self/mountinfo": "1 2 3\n - cgroup2\n"},
        {"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/a/memory.max": "what\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/cpu.max": "1 0\n"},
        {
            "proc/sys/net/ipv4/ip_local_port_range": "x y\n",
            "proc/sys/net/ipv4/ip_local_reserved_ports": "a-b,,7\n",
        },
        {"proc/self/status": "Cpus_allowed_list:\tall\n"},
        {"proc/sys/net/ipv4/tcp_mem": "\n", "proc/sys/net/ipv4/tcp_rmem": "1\n"},
    ],
)
def test_what_makes_no_sense_is_unknown(tree, files):
    """No text in those files makes the doctor fail."""
    assert examine(tree(files), Plan(connections=1000)).findings


def test_control_groups_of_version_2_on_every_level(tree):
    """The level that leaves least is the one that counts, wherever it is; page cache that can be dropped is free."""
    facts = tree(
        {
            "proc/self/cgroup": "0::/system.slice/chat.service\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/system.slice/chat.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/chat.service/pids.max": "4915\n",
            "sys/fs/cgroup/system.slice/chat.service/pids.current": "8\n",
            "sys/fs/cgroup/system.slice/memory.max": "1000000\n",
            "sys/fs/cgroup/system.slice/memory.current": "700000\n",
            "sys/fs/cgroup/system.slice/memory.stat": "anon 5\ninactive_file 200000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
            "proc/meminfo": "MemAvailable: 9000 kB\n",
        }
    )
    group = facts.cgroup
    assert (group.version, group.memory_max, group.memory_used) == (2, 1_000_000, 500_000)
    assert group.memory_at == "/sys/fs/cgroup/system.slice"
    assert (group.pids_max, group.pids_used) == (4915, 8)
    assert group.cpus == 1.5
    assert facts.available() == 500_000


def test_control_groups_of_version_1_in_a_container(tree):
    """The path is the host's and the mount shows only the container's part of it; a huge number is no limit."""
    facts = tree(
        {
            "proc/self/cgroup": "9:pids:/docker/abc\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
            "proc/self/mountinfo": V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 5000\n",
            "sys/fs/cgroup/pids/pids.max": "max\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        }
    )
    group = facts.cgroup
    assert (group.version, group.memory_max, group.memory_used) == (1, 536_870_912, 0)
    assert group.pids_max is None
    assert group.cpus is None
    facts = tree({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert facts.cgroup.memory_max is None


@pytest.mark.parametrize(
    "files,kind",
    [
        ({}, None),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/x\n"}, "kubernetes"),
        ({"proc/self/cgroup": "4:memory:/lxc/web\n"}, "lxc"),
        ({"run/systemd/container": "systemd-nspawn\n"}, "systemd-nspawn"),
    ],
)
def test_containers_are_recognized(tree, files, kind):
    """Each runtime leaves its mark."""
    assert tree(files).container == kind


def test_files_are_read_in_the_order_of_the_system(tree):
    """A name in /etc hides the same in /usr/lib, later names win, /etc/sysctl.conf comes last."""
    facts = tree(
        {
            "usr/lib/sysctl.d/10-a.conf": "vm.swappiness=1\nfs.file-max=1\n",
            "etc/sysctl.d/10-a.conf": "vm.swappiness = 2\n",
            "etc/sysctl.d/90-b.conf": "# a comment = 1\n; another = 1\n-net/core/somaxconn=77\nvm.max_map_count = 5\n",
            "etc/sysctl.conf": "vm.max_map_count = 6\nno line\n",
        }
    )
    assert facts.files == {
        "vm.swappiness": ("2", "/etc/sysctl.d/10-a.conf"),
        "net.core.somaxconn": ("77", "/etc/sysctl.d/90-b.conf"),
        "vm.max_map_count": ("6", "/etc/sysctl.conf"),
    }


def test_a_network_namespace_hides_what_belongs_to_the_host(tree):
    """Then the reason says where to look."""
    facts = tree({"proc/sys/net/ipv4/tcp_rmem": "4096 131072 6291456\n"})
    assert "host" in facts.reason("net.ipv4.tcp_mem")
    assert "host" not in facts.reason("net.core.somaxconn")


def test_limits_of_another_process(tree):
    """A service is asked for by its number; one that is not there is an error that says so."""
    facts = tree({"proc/42/limits": LIMITS, "proc/42/cgroup": "0::/\n"}, pid=42)
    assert facts.nofile == (1024, 524288)
    assert facts.pid == 42
    with pytest.raises(ConfigurationError, match="43"):
        tree({}, pid=43)


def test_what_may_not_be_read_is_told_from_what_is_not_there(tree, monkeypatch):
    """Some kernels let only root see a setting."""
    real = Path.read_text

    def read_text(path, *args, **kwargs):
        if path.name == "nf_conntrack_max":
            raise PermissionError
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    facts = tree({"proc/sys/net/netfilter/nf_conntrack_max": "1\n", "proc/sys/net/core/somaxconn": "1\n"})
    assert facts.refused == {"net.netfilter.nf_conntrack_max"}
    assert "user" in facts.reason("net.netfilter.nf_conntrack_max")
    [found] = [f for f in examine(facts, Plan(connections=9)).findings if "conntrack" in f.name]
    assert found.verdict == "unknown"


def test_this_machine():
    """The real one can be read too, and holds at least one connection."""
    facts = read_facts(pid=os.getpid() if Path("/proc/self").exists() else None)
    report = examine(facts, Plan(connections=1))
    assert report.suffices
    assert report.fits > 1
    assert facts.nofile is not None
    assert facts.cpus >= 1
