"""Where machine code is kept from one run to the next.

Numba's own cache only notices a change in the file that holds a kernel, not in a helper that the kernel calls from
another file, so tinyft gives it a folder named after everything the machine code depends on: the kernels' sources, the
Numba version and the CPU. Old folders are simply never looked at again.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(repr((numba.__version__, llvm.get_host_cpu_name(), *settings)).encode())
    return digest.hexdigest()[:16]


def cache_folder(*settings) -> Path | None:
    """A writable folder for kernels compiled with these settings, or None where there is none."""
    base = os.environ.get("TINYFT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "tinyft" / f"kernels-{_fingerprint(settings)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    with (folder / "lock").open("a") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file lets go of it
        yield


def save_one_at_a_time(dispatcher, folder: Path) -> None:
    """Let no two processes write into Numba's index of a kernel at once.

    The index says which file holds the code for which types of arguments. Numba counts the files, writes the next one,
    then the index: of two processes at it, one would write over the other's file, and the index could name the wrong
    code. Where locks don't work, the code isn't kept.
    """
    save = dispatcher._cache.save_overload

    def save_alone(signature, compiled):
        try:
            with _lock(folder):
                save(signature, compiled)
        except OSError:
            pass

    dispatcher._cache.save_overload = save_alone
