"""One run at a time in a folder: a lock of the operating system, which ends with the process that holds it."""

import contextlib
import os

from .files import NotWritable, make_writable_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None

NAME = "run.lock"  # it stays in the folder: deleting it could delete the file that the next run has just locked
BEHIND_THE_NUMBER = 1 << 30  # Windows lets nobody read the bytes that are locked

_held: dict[int, tuple[int, int]] = {}  # descriptors of the files that this process has locked: device and inode


def lock_folder(folder: str | os.PathLike) -> int | None:
    """Make a folder and let no other process run in it, until `unlock_folder` or the end of this process.

    Returns what `unlock_folder` takes; None if this process has locked it before, or the system has no such locks.
    ValueError if another process has it; NotWritable.
    """
    path = make_writable_folder(folder) / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise NotWritable(f"{path}: cannot be written ({error.strerror}); delete it, or choose another "
                          "folder") from None
    found = os.fstat(descriptor)
    file = found.st_dev, found.st_ino
    try:
        if file in _held.values() or not _lock(descriptor):
            os.close(descriptor)
            return None
    except (BlockingIOError, PermissionError):  # PermissionError: on Windows
        number = os.read(descriptor, 20).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f" (process {number})" if number.isdecimal() else ""
        raise ValueError(f"{folder}: another run{who} is writing there; wait for it, or choose another "
                         "folder") from None
    _held[descriptor] = file
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a number, too
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def unlock_folder(descriptor: int | None) -> None:
    """Let others run in a folder; takes what `lock_folder` has returned."""
    if descriptor is None:
        return
    if fcntl is not None:  # closing isn't enough: a process that was forked meanwhile has the file open
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
    del _held[descriptor]


def _lock(descriptor: int) -> bool:
    """Whether there are such locks here; BlockingIOError or PermissionError if another process has this one."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            os.lseek(descriptor, BEHIND_THE_NUMBER, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            return False
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # some network file systems have none
        return False
    return True
