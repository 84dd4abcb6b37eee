"""Files that are either whole or not there: write beside, flush to disk, rename."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _umask() -> int:
    """The permissions that this process withholds from new files; they can only be read by setting them."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def check_replaceable(path: str | os.PathLike) -> None:
    """ValueError if a folder or a device stands at `path`, where a file is to be."""
    if Path(path).exists() and not Path(path).is_file():
        kind = "a folder" if Path(path).is_dir() else "a device"
        raise ValueError(f"'{path}' is {kind}, expected the name of a file")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name of `path` once it is safely on disk.

    If the block raises, or the machine stops, what stood at `path` before still does. Of a symbolic link the
    file that it points to is replaced. ValueError if `path` is a folder or a device.
    """
    check_replaceable(path)
    path = Path(path).resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())  # some writers make files that only their owner can read
        os.replace(beside, path)
        if os.name == "posix":  # the new name is part of the folder, which is flushed on its own
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def to_json(value) -> str:
    """Readable JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | os.PathLike, value) -> None:
    """Write readable JSON, whole or not at all."""
    write_text(path, to_json(value))


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 file; OSError or ValueError with the path in it."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a file")
    return decode_text(Path(path).read_bytes(), path)


def decode_text(content: bytes, path: str | os.PathLike) -> str:
    """UTF-8 text of a file's content, without a byte order mark; ValueError with the path in it."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                         "save it as UTF-8") from None


def one_line(error: Exception) -> str:
    """What an error of a library says, short enough for a line of ours."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def read_json(path: str | os.PathLike):
    """Read a JSON file; ValueError with path, line and column where it is none."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None


def read_json_lines(path: str | os.PathLike, may_be_cut: bool = False) -> list[tuple[int, Any]]:
    """(line number, value) of every line that isn't empty; ValueError with path and line where it is no JSON.

    may_be_cut: leave out a last line without its end, which is being written or was when the writer died.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a file")
    content = Path(path).read_bytes()
    if may_be_cut:  # before decoding: half a character may be the last
        content = content[: content.rfind(b"\n") + 1]
    text = decode_text(content, path)
    values = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() cuts at more than line ends
        if line.strip():
            values.append((number, parse_line(line, f"{path}, line {number}")))
    return values


def parse_line(line: str, where: str) -> Any:
    """A line of JSON; ValueError that says where it is none."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError(f"{where}: JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg})") from None


def make_writable_folder(path: str | os.PathLike) -> Path:
    """Make a folder if need be and try to write in it now, not after an hour of training."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise ValueError(f"{path}: cannot write there ({reason}); choose another folder") from None
    return path
