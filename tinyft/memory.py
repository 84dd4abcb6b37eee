"""Keep freed memory for the next step, and measure how much a run took."""

import ctypes
import math
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed arrays for the next ones; True if it listened (glibc only).

    This holds for the whole process from then on, for what isn't tinyft's as well: memory in use may fall,
    but what the process holds stays at its peak.

    By default each large array is fresh memory from the system, and every first touch of one of its pages is
    a fault that costs as much as the arithmetic on that page. A training step asks for the same sizes again
    and again, so that kept memory always fits.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_megabytes() -> float:
    """The most memory that this process has held so far, in MB (10**6 bytes); NaN where the system can't say."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, whose number begins with that of the process that started this one
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        return int(peak.split()[1]) * 1024 / 1e6 if peak else math.nan  # some sandboxes leave it out
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
