"""What this CPU is: its caches, its cores, how much of it this process may use. Read from the system, never assumed.

Linux says it in small files under /sys and /proc, macOS through `sysctl`. Nothing here raises: what the system
doesn't tell, or tells in a way that makes no sense, counts as not known, and each function says what it returns then.
Nothing is kept either, since an affinity mask can change; a caller that asks often keeps the answer.

`root` is the folder that holds /sys and /proc, for tests.
"""

import ctypes
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of cache. l1d and l2: what one core can count on; l3: one whole instance, 0 where there is none."""

    l1d: int
    l2: int
    l3: int


# Where the system says nothing: what most CPUs have at least. A block that is too small costs little, one that
# doesn't fit costs much.
CAREFUL_SIZES = CacheSizes(l1d=32 << 10, l2=512 << 10, l3=0)


def _read(path: Path) -> str:
    """What a small file says, without white space around it; "" where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return ""


def _sysctl(name: str) -> str:
    """A value of macOS as text; "" on other systems, and where it has none of that name."""
    if sys.platform != "darwin":
        return ""
    try:
        command = ["/usr/sbin/sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def _sysctl_number(*names: str) -> int:
    """The first of these values of macOS that is a positive number; 0 where none is."""
    values = (_sysctl(name) for name in names)
    return next((int(value) for value in values if re.fullmatch(r"0*[1-9][0-9]{0,17}", value)), 0)


def _parse_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list as Linux writes it, "0-3,8,10-11"; empty where it isn't one."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if match is None:
            return frozenset()
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            return frozenset()
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def _parse_size(text: str) -> int:
    """Bytes of a size as Linux writes it, "48K"; 0 where it isn't one."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def _allowed_cpus() -> set[int]:
    """The CPUs in the affinity mask of this thread; all there are where the system has no such mask."""
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return set(range(os.cpu_count() or 1))


def _caches_of(cpu: int, root: Path) -> CacheSizes:
    """What Linux says of one CPU's caches; 0 for each that it says nothing of."""
    sizes, sharing = {}, {}
    for number in range(8):  # more than any CPU has; listing the folder could raise
        cache = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{number}"
        if _read(cache / "type") in ("Data", "Unified"):
            level = _read(cache / "level")
            sizes[level] = _parse_size(_read(cache / "size"))
            sharing[level] = len(_parse_cpus(_read(cache / "shared_cpu_list"))) or 1
    # Who shares L1 are the hyper-threads of one core, who shares L2 those of one core or of several.
    cores = math.ceil(sharing.get("2", 1) / sharing.get("1", 1))
    return CacheSizes(sizes.get("1", 0), sizes.get("2", 0) // cores, sizes.get("3", 0))


def _caches_of_mac() -> CacheSizes:
    """What macOS says of the caches of its fastest cores; 0 for each that it says nothing of."""
    l1d = _sysctl_number("hw.perflevel0.l1dcachesize", "hw.l1dcachesize")
    l2 = _sysctl_number("hw.perflevel0.l2cachesize", "hw.l2cachesize")
    # The CPUs that share L2 may be hyper-threads, of which Intel's cores have two and Apple's one.
    logical, physical = _sysctl_number("hw.perflevel0.logicalcpu"), _sysctl_number("hw.perflevel0.physicalcpu")
    threads = logical / physical if logical and physical else 1
    cores = max(1, math.ceil(_sysctl_number("hw.perflevel0.cpusperl2") / threads))
    return CacheSizes(l1d, l2 // cores, _sysctl_number("hw.l3cachesize"))


def cache_sizes(*, root: Path = Path("/")) -> CacheSizes:
    """Bytes of cache: L1 data and L2 that one core can use, and one instance of L3.

    An L2 that several cores share counts as its size divided by their number; hyper-threads of one core don't
    divide. Each size is the smallest over the CPUs that this process may run on, so that it fits the small cores
    of a hybrid CPU as well; on macOS it is that of the fast ones. Where the system says nothing of a level, L1 is
    taken to have 32 KB (of 1024 bytes), L2 512 KB, and L3 nothing.
    """
    found = [_caches_of_mac(), *(_caches_of(cpu, root) for cpu in _allowed_cpus())]
    found = [caches for caches in found if caches.l1d or caches.l2]
    return CacheSizes(
        l1d=min((caches.l1d for caches in found if caches.l1d), default=CAREFUL_SIZES.l1d),
        l2=min((caches.l2 for caches in found if caches.l2), default=CAREFUL_SIZES.l2),
        l3=min((caches.l3 for caches in found), default=CAREFUL_SIZES.l3),
    )


def _core_of(cpu: int, root: Path) -> int:
    """The lowest CPU of the core that a CPU belongs to; itself where Linux doesn't say."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    # Newer kernels have both files, older ones the second alone.
    threads = _parse_cpus(_read(topology / "core_cpus_list")) or _parse_cpus(_read(topology / "thread_siblings_list"))
    return min(threads) if cpu in threads else cpu


def physical_cores(*, root: Path = Path("/")) -> int:
    """How many cores this process may use, at least 1; hyper-threads of one core count once.

    Linux: those with a CPU in the affinity mask of the calling thread, so that `taskset` and a container's set of
    CPUs count. macOS, which has no masks: the performance cores; the others are left to the rest of the system.
    Where the system doesn't say which CPUs are hyper-threads of one core, each CPU counts.
    """
    on_mac = _sysctl_number("hw.perflevel0.physicalcpu", "hw.physicalcpu")
    return on_mac or len({_core_of(cpu, root) for cpu in _allowed_cpus()})


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, up to where they are mounted; some may not exist."""
    mount = root / "sys/fs/cgroup"
    # A container sees its own group here, and may be told a path that only the machine around it has.
    yield from (mount, mount / "cpu")
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        group = PurePosixPath(path)
        if ".." in group.parts:  # outside of what is mounted
            continue
        for folder in (group, *group.parents):
            below = str(folder).lstrip("/")
            if not controllers:  # version 2, which has one tree for all
                yield mount / below
            elif "cpu" in controllers.split(","):  # version 1; the folder bears one name or all
                yield from (mount / "cpu" / below, mount / controllers / below)


def cpu_quota(*, root: Path = Path("/")) -> float | None:
    """The CPU time that this process may use, in cores (1.5: 150 ms of every 100 ms); None where nothing limits it.

    The smallest limit of its control groups, version 1 or 2, and of those around them. None as well where they
    can't be read, and on systems without.
    """
    quotas = []
    for folder in _cgroups(root):
        limit = _read(folder / "cpu.max").split()
        if not limit:
            limit = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        with suppress(ValueError, ArithmeticError):  # version 2 writes "max" where there is no limit, version 1 -1
            time, period = map(int, limit)
            if time > 0 and period > 0:
                quotas.append(time / period)
    return min(quotas, default=None)


def default_threads(*, root: Path = Path("/")) -> int:
    """How many threads to compute with: one for each core that this process may use, and not more than its quota.

    At least 1. Hyper-threads of one core share its multiply-adders, so that a second one adds next to nothing. On
    Linux the slow cores of a hybrid CPU count like the fast ones: work is taken in small pieces from a counter, and
    each core takes as many as it can.
    """
    # Rounded up: a quota is time, which any number of threads may spend, and what they don't spend is lost. One
    # thread would leave a third of 1.5 cores; two use all of it, and wait together once it is spent.
    quota = cpu_quota(root=root)
    cores = physical_cores(root=root)
    return cores if quota is None else min(cores, math.ceil(quota))


def may_use_matrix_unit() -> bool:
    """Ask Linux for the matrix registers of AMX, for this process and those it forks; whether it may use them.

    They are 8 KB more that the system saves for each thread that uses them, so it wants to be asked first. False on
    other systems, and where Linux refuses.
    """
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # Linux: asm/unistd_64.h, asm/prctl.h
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
    except (OSError, AttributeError):
        return False


def cpu_name(*, root: Path = Path("/")) -> str:
    """What the CPU calls itself, for people to read; where it has no name, its maker's numbers or its kind.

    "unknown CPU" where the system says nothing at all.
    """
    said: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), " ".join(value.split()))
    name = _sysctl("machdep.cpu.brand_string") or said.get("model name", "")
    if name and name != "unknown":  # as some sandboxes write
        return name
    if said.get("CPU implementer") and said.get("CPU part"):  # ARM
        return f"{platform.machine()}, implementer {said['CPU implementer']}, part {said['CPU part']}"
    return platform.processor() or platform.machine() or "unknown CPU"
