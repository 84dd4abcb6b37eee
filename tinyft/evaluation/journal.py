"""Append-only files of JSON lines: what has been added is on disk, whatever happens to the process afterwards."""

import json
import os
import threading
from pathlib import Path

from ..files import read_json_lines

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two processes aren't kept from writing to one file there
    fcntl = None


class Journal:
    """A file of JSON objects, one a line, that this process alone adds to.

    records: all of them, oldest first. repaired: what was done about a last line without its end, in words, or "".
    Threads may share it. ValueError, with path and line, for a file that holds anything else, can't be written, or is
    being written by another process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.repaired = Path(path), ""
        self._lock = threading.Lock()
        is_new = not self.path.exists()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise ValueError(f"{path}: cannot write it ({error.strerror}); choose another file") from None
        try:
            self._claim()
            self._repair()
            self.records = [_checked(value, f"{path}, line {number}") for number, value in read_json_lines(self.path)]
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

    def _repair(self) -> None:
        """Cut a line that was being written when the process died, or end one that lacks nothing but its end."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        torn = content[whole:]
        if not torn:
            return
        try:  # a part of an object's text is never an object
            missing = isinstance(json.loads(torn), dict)
        except ValueError:
            missing = False
        if missing:
            os.write(self._file, b"\n")
            self.repaired = f"{self.path}: the last line had no end; it has one now"
        else:
            os.ftruncate(self._file, whole)
            self.repaired = (f"{self.path}: {len(torn)} bytes at the end were no whole line, from a write that was "
                             "broken off; they are gone")
        os.fsync(self._file)


def _checked(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    return value


def _flush_folder(path: Path) -> None:
    if os.name == "posix":  # a new name is part of the folder, which is flushed on its own
        folder = os.open(path.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
