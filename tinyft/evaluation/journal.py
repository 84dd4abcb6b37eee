"""Append-only files of JSON lines: what has been added is on disk, whatever happens to the process afterwards."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import decode_text, parse_line

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two processes aren't kept from writing to one file there
    fcntl = None

Check = Callable[[dict, str], object]  # of a record and where it stands; ValueError if it doesn't belong there


@dataclass(frozen=True)
class Snapshot:
    """What a journal holds at one moment. tail: what follows its last line's end, which may be a part of a record."""

    path: Path
    records: list[dict]
    tail: bytes = b""
    tail_is_record: bool = False


def read_journal(path: str | os.PathLike, check: Check | None = None) -> Snapshot:
    """The records of a journal that another process may be adding to; nothing is changed.

    A last line without its end counts if it is whole but for that. ValueError, with path and line, for a file that
    holds anything but objects, or one that `check` refuses; OSError for one that can't be read.
    """
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    lines, records = decode_text(content[:whole], path).split("\n"), []
    for number, line in enumerate(lines, 1):  # splitlines() cuts at more than line ends
        if line.strip():
            records.append(_checked(parse_line(line, f"{path}, line {number}"), f"{path}, line {number}", check))
    tail, is_record = content[whole:], False
    try:  # a part of an object's text is never an object
        last = json.loads(decode_text(tail, path))
        is_record = isinstance(last, dict)
    except (ValueError, RecursionError):
        pass
    if is_record:
        records.append(_checked(last, f"{path}, line {len(lines)}", check))
    elif tail and not (records or tail.startswith(b"{") or not tail.strip(b"\0")):
        raise ValueError(f"{path}: holds something else than lines with a JSON object each; choose another file")
    return Snapshot(Path(path), records, tail, is_record)


class Journal:
    """A file of JSON objects, one a line, that this process alone adds to.

    records: all of them, oldest first. repaired: what was done about a last line without its end, in words, or "".
    check: of each record; nothing in the file is changed before all have passed. Threads may share a journal.
    ValueError, with path and line, for a file that holds anything else, can't be written, or is being written by
    another process.
    """

    def __init__(self, path: str | os.PathLike, check: Check | None = None):
        self.path, self.repaired = Path(path), ""
        self._lock = threading.Lock()
        is_new = not self.path.exists()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ValueError(f"{path}: cannot write it ({error.strerror}); choose another file") from None
        try:
            self._claim()
            found = read_journal(self.path, check)
            self.records = found.records
            self._repair(found)
            if is_new:
                _flush_folder(self.path)
        except BaseException:
            self.close()
            raise

    def append(self, record: dict) -> None:
        """Add a record; it is on disk when this returns. OSError where it can't be, and then none of it is."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            before = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before)
                raise
            self.records.append(record)

    def close(self) -> None:
        """Let others write to the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _claim(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path} is being written by another process; stop that, or choose another "
                             "file") from None

    def _repair(self, found: Snapshot) -> None:
        """Cut a line that was being written when the process died, or end one that lacks nothing but its end."""
        if not found.tail:
            return
        if found.tail_is_record:
            os.write(self._file, b"\n")
            self.repaired = f"{self.path}: the last line had no end; it has one now"
        else:
            os.ftruncate(self._file, os.fstat(self._file).st_size - len(found.tail))
            self.repaired = (f"{self.path}: {len(found.tail)} bytes at the end were no whole line, from a write that "
                             "was broken off; they are gone")
        os.fsync(self._file)


def _checked(value: object, where: str, check: Check | None) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    if check:
        check(value, where)
    return value


def _flush_folder(path: Path) -> None:
    if os.name == "posix":  # a new name is part of the folder, which is flushed on its own
        folder = os.open(path.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
