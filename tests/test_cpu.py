"""What the CPU is said to be, from false /sys and /proc trees, from a false sysctl, and from this machine."""

import os
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyft.kernels import cpu
from tinyft.kernels.cpu import CAREFUL_SIZES, CacheSizes, cache_sizes, cpu_name, cpu_quota, default_threads
from tinyft.kernels.cpu import physical_cores as count_cores

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
real_sysctl = cpu._sysctl


@pytest.fixture(autouse=True)
def sysctl(monkeypatch):
    """The values of a false macOS; none of them at first, as on Linux."""
    values = {}
    monkeypatch.setattr(cpu, "_sysctl", lambda name: values.get(name, ""))
    return values


@pytest.fixture
def allow(monkeypatch):
    """Sets the affinity mask that the process seems to have."""
    return lambda *cpus: monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cpus), raising=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def lay_out_cpu(root, number, threads, caches):
    """threads: the CPUs of its core; caches: (level, type, size, CPUs that share it), all as Linux writes them."""
    folder = root / f"sys/devices/system/cpu/cpu{number}"
    write(folder / "topology/thread_siblings_list", threads)
    for index, values in enumerate(caches):
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            write(folder / f"cache/index{index}/{name}", value)


def own_caches(threads, everyone, l1d="32K", l2="1024K", l3="32768K"):
    """Of a core with an L2 of its own."""
    return [(1, "Data", l1d, threads), (1, "Instruction", "64K", threads), (2, "Unified", l2, threads),
            (3, "Unified", l3, everyone)]


def lay_out_virtual_machine(root):
    for number in range(2):
        lay_out_cpu(root, number, number, own_caches(number, "0-1", l1d="48K", l2="2048K"))


def lay_out_hyper_threads(root):
    """8 CPUs, 4 cores: CPU 5 is the second thread of core 1."""
    for number in range(8):
        threads = f"{number % 4},{number % 4 + 4}"
        lay_out_cpu(root, number, threads, own_caches(threads, "0-7"))


def lay_out_hybrid(root):
    """Two fast cores of two threads, and a module of four slow cores of one thread that share an L2."""
    for number in range(4):
        threads = "0-1" if number < 2 else "2-3"
        lay_out_cpu(root, number, threads, own_caches(threads, "0-7", l1d="48K", l2="2M", l3="24M"))
    for number in range(4, 8):
        lay_out_cpu(root, number, number, [(1, "Data", "32K", number), (2, "Unified", "2048K", "4-7"),
                                           (3, "Unified", "24M", "0-7")])


def test_virtual_machine(tmp_path, allow):
    lay_out_virtual_machine(tmp_path)
    allow(0, 1)
    assert cache_sizes(root=tmp_path) == CacheSizes(l1d=48 * KB, l2=2 * MB, l3=32 * MB)
    assert count_cores(root=tmp_path) == 2
    assert cpu_quota(root=tmp_path) is None
    assert default_threads(root=tmp_path) == 2


@pytest.mark.parametrize("mask, cores", [(range(8), 4), ([6], 1), ([1, 5], 1), ([0, 1, 5], 2), ([4, 5, 6, 7], 4)])
def test_hyper_threads(tmp_path, allow, mask, cores):
    lay_out_hyper_threads(tmp_path)
    allow(*mask)
    assert count_cores(root=tmp_path) == default_threads(root=tmp_path) == cores
    assert cache_sizes(root=tmp_path) == CacheSizes(l1d=32 * KB, l2=MB, l3=32 * MB)


@pytest.mark.parametrize("mask, cores, l1d, l2", [
    (range(8), 6, 32 * KB, 512 * KB),
    (range(4), 2, 48 * KB, 2 * MB),
    ([1, 2, 3], 2, 48 * KB, 2 * MB),
    ([5], 1, 32 * KB, 512 * KB),  # the other three cores still share its L2
])
def test_hybrid(tmp_path, allow, mask, cores, l1d, l2):
    lay_out_hybrid(tmp_path)
    allow(*mask)
    assert cache_sizes(root=tmp_path) == CacheSizes(l1d, l2, 24 * MB)
    assert count_cores(root=tmp_path) == default_threads(root=tmp_path) == cores


def test_l2_that_hyper_threads_of_two_cores_share(tmp_path, allow):
    for number in range(4):
        threads = "0-1" if number < 2 else "2-3"
        lay_out_cpu(tmp_path, number, threads, [(1, "Data", "64K", threads), (2, "Unified", "1M", "0-3")])
    allow(0, 1, 2, 3)
    assert cache_sizes(root=tmp_path) == CacheSizes(l1d=64 * KB, l2=512 * KB, l3=0)


def test_a_core_without_l3(tmp_path, allow):
    lay_out_cpu(tmp_path, 0, 0, own_caches(0, "0"))
    lay_out_cpu(tmp_path, 1, 1, own_caches(1, "1")[:3])
    allow(0, 1)
    assert cache_sizes(root=tmp_path).l3 == 0
    allow(0)
    assert cache_sizes(root=tmp_path).l3 == 32 * MB


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_either_name_of_the_threads_of_a_core(tmp_path, allow, name):
    for number in range(4):
        write(tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/{name}", "0-1" if number < 2 else "2-3")
    allow(0, 1, 2, 3)
    assert count_cores(root=tmp_path) == 2


@pytest.mark.parametrize("text, size", [
    ("48K", 48 * KB), ("2048K", 2 * MB), ("32M", 32 * MB), ("1G", GB), ("512", 512), ("0K", 0),
    ("", 0), ("K", 0), ("48k", 0), ("4.5M", 0), ("-1K", 0), ("48 K", 0), ("many", 0), ("²K", 0), ("9" * 5000, 0),
])
def test_sizes(text, size):
    assert cpu._parse_size(text) == size


def test_nothing_to_read(tmp_path, allow):
    allow(0, 1, 2)
    assert cache_sizes(root=tmp_path) == CAREFUL_SIZES == CacheSizes(32 * KB, 512 * KB, 0)
    assert count_cores(root=tmp_path) == default_threads(root=tmp_path) == 3
    assert cpu_quota(root=tmp_path) is None
    assert cpu_name(root=tmp_path)


def test_a_system_without_masks(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert count_cores(root=tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores(root=tmp_path) == default_threads(root=tmp_path) == 1


@pytest.mark.parametrize("junk", ["", "letters", "-1", "0-", "7-3", "0,,1", "0-99999999", "9" * 20 + "K", "\0"])
def test_garbage_in_every_file(tmp_path, allow, junk):
    lay_out_virtual_machine(tmp_path)
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"):
        write(tmp_path / "sys/fs/cgroup" / name, junk)
    write(tmp_path / "proc/self/cgroup", f"0::{junk}\n{junk}\n4:cpu:/{junk}")
    write(tmp_path / "proc/cpuinfo", junk)
    for path in (tmp_path / "sys/devices").rglob("*"):
        if path.is_file():
            path.write_text(junk)
    allow(0, 1)
    assert cache_sizes(root=tmp_path) == CAREFUL_SIZES
    assert count_cores(root=tmp_path) == 2
    assert cpu_quota(root=tmp_path) is None
    assert cpu_name(root=tmp_path)


def test_what_is_readable_counts(tmp_path, allow):
    """CPU 0 has no L2 that makes sense, CPU 1 no list of who shares, CPU 2 folders and bytes in place of text."""
    lay_out_cpu(tmp_path, 0, "0", own_caches(0, "0-2", l1d="48K", l2="big"))
    lay_out_cpu(tmp_path, 1, "", own_caches("", "", l1d="64K", l2="256K", l3="16M"))
    folder = tmp_path / "sys/devices/system/cpu/cpu2"
    (folder / "cache/index0/type").mkdir(parents=True)
    write(folder / "cache/index1/type", "Data")
    (folder / "cache/index1/size").write_bytes(b"\xff\xfe\x00")
    write(folder / "topology/core_cpus_list", "0-1")  # a core that CPU 2 itself is not one of
    allow(0, 1, 2)
    assert cache_sizes(root=tmp_path) == CacheSizes(l1d=48 * KB, l2=256 * KB, l3=16 * MB)
    assert count_cores(root=tmp_path) == 3


@settings(deadline=None)
@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cpus(cpus):
    ranges = []
    for number in sorted(cpus):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    assert cpu._parse_cpus(text) == cpus
    assert cpu._parse_cpus(",".join(map(str, cpus))) == cpus


@settings(deadline=None)
@given(st.text() | st.text("0123456789,- "))
def test_any_text_as_a_list_of_cpus(text):
    cpus = cpu._parse_cpus(text)
    numbers = [int(digits) for digits in re.findall("[0-9]+", text)]
    if cpus:
        assert (min(cpus), max(cpus)) == (min(numbers), max(numbers))
        assert re.fullmatch(r"[0-9,\-\s]+", text)


def test_a_list_of_cpus_by_hand():
    assert cpu._parse_cpus("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert cpu._parse_cpus("0-1,7-3") == set()


@pytest.mark.parametrize("text, quota", [
    ("150000 100000", 1.5), ("50000 100000", 0.5), ("400000 200000", 2.0),
    ("max 100000", None), ("max", None), ("100000", None), ("100000 0", None), ("0 100000", None), ("1 2 3", None),
    ("-1 -1", None), ("9" * 4000 + " 1", None),
])
def test_quota_of_version_2(tmp_path, text, quota):
    write(tmp_path / "proc/self/cgroup", "0::/")
    write(tmp_path / "sys/fs/cgroup/cpu.max", text)
    assert cpu_quota(root=tmp_path) == quota


@pytest.mark.parametrize("own, parent, quota", [
    ("400000 100000", "150000 100000", 1.5), ("150000 100000", "400000 100000", 1.5),
    ("max 100000", "250000 100000", 2.5), ("300000 100000", "max 100000", 3.0), ("max 100000", "max 100000", None),
])
def test_quota_of_the_groups_around(tmp_path, own, parent, quota):
    write(tmp_path / "proc/self/cgroup", "0::/work.slice/of a user/session:1.scope")
    group = tmp_path / "sys/fs/cgroup/work.slice/of a user"
    write(group / "session:1.scope/cpu.max", own)
    write(group.parent / "cpu.max", parent)
    write(tmp_path / "sys/fs/cgroup/other.slice/cpu.max", "1000 100000")
    assert cpu_quota(root=tmp_path) == quota


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../../elsewhere", ""])
def test_quota_of_a_container_that_is_told_a_path_of_its_host(tmp_path, path):
    write(tmp_path / "proc/self/cgroup", f"0::{path}")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000")
    write(tmp_path / "sys/elsewhere/cpu.max", "1000 100000")
    assert cpu_quota(root=tmp_path) == 2.0


@pytest.mark.parametrize("files", [
    {"cpu.max": "150000 100000"}, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
])
def test_quota_where_the_path_of_the_group_is_not_told(tmp_path, files):
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert cpu_quota(root=tmp_path) == 1.5


@pytest.mark.parametrize("time, quota", [(250000, 2.5), (-1, None)])
@pytest.mark.parametrize("line, folder", [
    ("4:cpu,cpuacct:/jobs/7", "cpu/jobs/7"), ("4:cpuacct,cpu:/jobs/7", "cpuacct,cpu/jobs/7"),
    ("1:cpu:/jobs/7", "cpu/jobs"), ("1:cpu:/docker/0123abcd", "cpu"), ("1:cpu:/", "cpu"),
])
def test_quota_of_version_1(tmp_path, line, folder, time, quota):
    write(tmp_path / "proc/self/cgroup", f"5:memory:/elsewhere\n{line}\n3:cpuset:/elsewhere\n0::/")
    write(tmp_path / "sys/fs/cgroup" / folder / "cpu.cfs_quota_us", time)
    write(tmp_path / "sys/fs/cgroup" / folder / "cpu.cfs_period_us", 100000)
    write(tmp_path / "sys/fs/cgroup/cpu/elsewhere/cpu.cfs_quota_us", 1000)
    write(tmp_path / "sys/fs/cgroup/cpu/elsewhere/cpu.cfs_period_us", 100000)
    assert cpu_quota(root=tmp_path) == quota


@pytest.mark.parametrize("quota, threads", [
    ("max 100000", 4), ("800000 100000", 4), ("400000 100000", 4), ("310000 100000", 4), ("300000 100000", 3),
    ("150000 100000", 2), ("100000 100000", 1), ("1000 100000", 1),
])
def test_threads_within_the_quota(tmp_path, allow, quota, threads):
    lay_out_hyper_threads(tmp_path)
    write(tmp_path / "sys/fs/cgroup/cpu.max", quota)
    allow(*range(8))
    assert default_threads(root=tmp_path) == threads


APPLE = {"hw.perflevel0.l1dcachesize": "131072", "hw.perflevel0.l2cachesize": "12582912",
         "hw.perflevel0.cpusperl2": "4", "hw.perflevel0.physicalcpu": "4", "hw.perflevel0.logicalcpu": "4",
         "hw.l1dcachesize": "65536", "hw.l2cachesize": "4194304", "hw.physicalcpu": "8"}
INTEL = {"hw.l1dcachesize": "32768", "hw.l2cachesize": "262144", "hw.l3cachesize": "8388608", "hw.physicalcpu": "4"}
HYPER_THREADS = {"hw.perflevel0.cpusperl2": "2", "hw.perflevel0.physicalcpu": "4", "hw.perflevel0.logicalcpu": "8"}


@pytest.mark.parametrize("values, sizes, cores", [
    (APPLE, CacheSizes(128 * KB, 3 * MB, 0), 4),
    (INTEL, CacheSizes(32 * KB, 256 * KB, 8 * MB), 4),
    (INTEL | HYPER_THREADS, CacheSizes(32 * KB, 256 * KB, 8 * MB), 4),
    ({"hw.physicalcpu": "2", "hw.l2cachesize": "letters"}, CAREFUL_SIZES, 2),
])
def test_macos(tmp_path, monkeypatch, sysctl, values, sizes, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    sysctl |= values | {"machdep.cpu.brand_string": "Apple M2"}
    assert cache_sizes(root=tmp_path) == sizes
    assert count_cores(root=tmp_path) == default_threads(root=tmp_path) == cores
    assert cpu_name(root=tmp_path) == "Apple M2"


@pytest.mark.parametrize("platform, run, text", [
    ("darwin", lambda command, **options: type("Done", (), {"stdout": f"{command[-1]}!\n"}), "hw.ncpu!"),
    ("darwin", lambda command, **options: open("/no such program"), ""),
    ("linux", None, ""),
])
def test_sysctl_is_asked_on_macos_alone(monkeypatch, platform, run, text):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("tinyft.kernels.cpu.subprocess.run", run)
    assert real_sysctl("hw.ncpu") == text


@pytest.mark.parametrize("text, name", [
    ("processor\t: 0\nmodel\t\t: 167\nmodel name\t: Some CPU       @ 2.60GHz\nmodel name\t: B", "Some CPU @ 2.60GHz"),
    ("processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\nCPU part\t: 0xd03", "ARMv7 Processor rev 4 (v7l)"),
    ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c", "aarch64, implementer 0x41, part 0xd0c"),
    ("model name\t: unknown", "a processor"), ("model name\t:", "a processor"), ("", "a processor"),
])
def test_names(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.processor", lambda: "a processor")
    write(tmp_path / "proc/cpuinfo", text)
    assert cpu_name(root=tmp_path) == name


def test_the_last_names(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert cpu_name(root=tmp_path) == "riscv64"
    monkeypatch.setattr("platform.machine", lambda: "")
    assert cpu_name(root=tmp_path) == "unknown CPU"


def test_this_machine(monkeypatch):
    monkeypatch.setattr(cpu, "_sysctl", real_sysctl)
    sizes = cache_sizes()
    assert 8 * KB <= sizes.l1d <= MB
    assert 64 * KB <= sizes.l2 <= 64 * MB
    assert sizes.l3 == 0 or MB <= sizes.l3 <= 4 * GB
    assert 1 <= default_threads() <= count_cores() <= os.cpu_count()
    assert cpu_quota() is None or cpu_quota() > 0
    assert cpu_name() == cpu_name().strip() != ""
