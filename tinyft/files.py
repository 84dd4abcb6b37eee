"""Files and folders that are either whole or not there: write beside, flush to disk, rename."""

import contextlib
import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2  # linux/fcntl.h, linux/fs.h, macOS' stdio.h


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
        flush(beside)
        os.chmod(beside, 0o666 & ~_umask())  # some writers make files that only their owner can read
        os.replace(beside, path)
        flush(path.parent)  # the new name is part of the folder
    finally:
        beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on disk and not only in memory."""
    if path.is_dir() and os.name != "posix":
        return  # Windows flushes names by itself, and opens no folders
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


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


def check_readable(path: str | os.PathLike) -> None:
    """ValueError if a folder, or a device that may never end, stands at `path`, where a file is to be read."""
    if Path(path).exists() and not Path(path).is_file():
        kind = "folder" if Path(path).is_dir() else "device"
        raise ValueError(f"{path} is a {kind}, expected a file")


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 file; OSError or ValueError with the path in it."""
    check_readable(path)
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
    return _parse(read_text(path), f"{path}", with_place=True)


def parse_line(line: str, where: str) -> Any:
    """A line of JSON; ValueError that says where it is none."""
    return _parse(line, where)


def _parse(text: str, where: str, with_place: bool = False) -> Any:
    """JSON; ValueError that says where it is none, with_place: in which line and column."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}, column {error.colno}" if with_place else ""
        raise ValueError(f"{where}{place}: not JSON ({error.msg})") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise ValueError(f"{where}: {one_line(error)}") from None


def read_json_lines(path: str | os.PathLike, may_be_cut: bool = False) -> list[tuple[int, Any]]:
    """(line number, value) of every line that isn't empty; ValueError with path and line where it is no JSON.

    may_be_cut: leave out a last line without its end, which is being written or was when the writer died.
    """
    check_readable(path)
    content = Path(path).read_bytes()
    if may_be_cut:  # before decoding: half a character may be the last
        content = content[: content.rfind(b"\n") + 1]
    text = decode_text(content, path)
    values = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() cuts at more than line ends
        if line.strip():
            values.append((number, parse_line(line, f"{path}, line {number}")))
    return values


class NotWritable(ValueError):
    """A folder that cannot be made, or written to."""


def make_writable_folder(path: str | os.PathLike) -> Path:
    """Make a folder if need be and try to write in it now, not after an hour of training. Else NotWritable."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise NotWritable(f"{path}: cannot write there ({reason}); choose another folder") from None
    return path


# ---- folders


@contextmanager
def replacing_folder(path: str | os.PathLike, replaced: Collection[str] = ()) -> Iterator[Path]:
    """A new folder beside `path` to fill; in the end it takes the name of `path`, on Linux and macOS in one step.

    replaced: names of the old folder, with / for those further down, that vanish if the new one has none such; all
    other files of the old folder go along. If the block raises, or the machine stops, the old folder stays as it was.
    Where a system cannot exchange two folders, `recover_folder` mends what a kill between two renames has left; where
    `path` cannot be renamed (a mount point, a folder above that cannot be written), file after file is replaced.
    NotWritable if nothing can be written there.
    """
    path = Path(path).resolve()
    recover_folder(path)
    make_writable_folder(path if path.exists() else path.parent)
    inside = path.is_dir() and not os.access(path.parent, os.W_OK)
    beside = (path / ".new" if inside else path).with_name(f".{'new' if inside else path.name}.{os.getpid()}.part")
    _remove(beside)
    try:
        beside.mkdir(parents=True)
        if path.is_dir():
            beside.chmod(stat.S_IMODE(path.stat().st_mode))
        yield beside
        for name in _files(beside):
            flush(beside / name)
        if inside:
            _move_files(beside, path, replaced)
        else:
            _take_along(path, beside, replaced)
            _exchange(beside, path, replaced)
            _take_along(beside, path, replaced)  # what came into the old folder in the meantime
            flush(path.parent)
    finally:
        _remove(beside)


def recover_folder(path: str | os.PathLike) -> None:
    """Give a folder its name back that a kill between two renames has taken, on systems that cannot exchange two."""
    path = Path(path).resolve()
    waiting = _waiting(path)
    if waiting.is_dir() and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and was faster
            waiting.rename(path)
    elif waiting.is_dir():
        _remove(waiting)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the `.part` files and folders that writers left in a folder when they were killed."""
    for path in Path(folder).glob(".*.part"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _waiting(path: Path) -> Path:
    """Where the old folder lies in the moment in which none has its name."""
    return path.with_name(f".{path.name}.old")


def _files(folder: Path) -> list[str]:
    """All files below a folder, links and empty folders included, as names relative to it."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        empty = [] if folders or names else ["."]
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in [*names, *links, *empty]]
    return [name for name in found if name != "."]


def _take_along(old: Path, new: Path, replaced: Collection[str]) -> None:
    """Give a new folder the files of an old one that have nothing to do with what is replaced: by links, not copies."""
    for name in _files(old) if old.is_dir() else []:
        source, target = old / name, new / name
        leftover = source.name.startswith(".") and source.name.endswith(".part")
        if name in replaced or leftover or os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
            continue
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a file system without hard links
            shutil.copy2(source, target, follow_symlinks=False)


def _exchange(beside: Path, path: Path, replaced: Collection[str]) -> None:
    """Give `beside` the name of `path`, and the folder that stood there the name of `beside`."""
    for parent, _, _ in os.walk(beside):
        flush(Path(parent))
    if not path.exists():
        os.rename(beside, path)
        return
    exchange = _exchanging()
    if exchange is not None and exchange(os.fsencode(beside), os.fsencode(path)) == 0:
        return
    try:
        os.rename(path, _waiting(path))
    except OSError:  # a mount point
        _move_files(beside, path, replaced)
        return
    try:
        os.rename(beside, path)
    except OSError:
        os.rename(_waiting(path), path)
        raise
    with contextlib.suppress(FileNotFoundError):  # somebody has looked after it with `recover_folder`
        os.rename(_waiting(path), beside)


def _move_files(beside: Path, path: Path, replaced: Collection[str]) -> None:
    """Replace files one right after the other: the best there is where the folder itself cannot be renamed."""
    names = _files(beside)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside / name, path / name)
    for name in set(replaced) - set(names):
        (path / name).unlink(missing_ok=True)
    flush(path)


def _exchanging() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two names at once: 0 if it worked; None where there is none."""
    library = None if os.name != "posix" else ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, RENAME_SWAP)
    return None
