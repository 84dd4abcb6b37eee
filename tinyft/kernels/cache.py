"""Where machine code is kept from one run to the next.

Numba's own cache only notices a change in the file that holds a kernel, not in a helper that the kernel calls from
another file, so tinyft gives it a folder named after everything the machine code depends on: the kernels' sources, the
versions of Numba and Python, and the CPU. Where the sources lie and how old they are counts as well, since Numba asks
for that too. Old folders are simply never looked at again.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import llvmlite.binding as llvm
import numba

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

CAN_LOCK = fcntl is not None


def _fingerprint(settings: tuple) -> str:
    """A short hash of the sources, the versions, the CPU and `settings`."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).resolve().parent.glob("*.py")):
        digest.update(source.read_bytes())
        digest.update(repr((str(source), source.stat().st_mtime_ns)).encode())
    versions = numba.__version__, sys.implementation.cache_tag, llvm.get_host_cpu_name()
    digest.update(repr((*versions, *settings)).encode())
    return digest.hexdigest()[:16]


def cache_folder(*settings) -> Path | None:
    """A writable folder for kernels compiled with these settings, or None where there is none."""
    base = os.environ.get("TINYFT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).absolute() / "tinyft" / f"kernels-{_fingerprint(settings)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here. On Windows nobody waits."""
    with (folder / "lock").open("a") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fcntl:  # closing the file isn't enough: a process that was forked meanwhile has it open
                fcntl.flock(file, fcntl.LOCK_UN)


def make_dependable(dispatcher, folder: Path) -> None:
    """Let no two processes write into Numba's index of a kernel at once, and have what can't be read compiled again.

    The index says which file holds the code for which types of arguments. Numba reads it, adds the next number that is
    free, writes it, and then the file of that number: two processes at it could choose the same number, and the index
    would name the wrong code. Where a lock can't be had, the code isn't kept. A file that a full disk has cut off makes
    Numba fail at every start; here its kernel is forgotten.
    """
    save, load = dispatcher._cache.save_overload, dispatcher._cache.load_overload

    def save_alone(signature, compiled):
        with suppress(OSError), _lock(folder):
            save(signature, compiled)

    def load_or_forget(signature, context):
        try:
            return load(signature, context)
        except Exception:  # whatever unpickling raises
            with suppress(OSError), _lock(folder):
                dispatcher._cache.flush()
            return None

    dispatcher._cache.save_overload, dispatcher._cache.load_overload = save_alone, load_or_forget
