"""Files, patterns of files and data sets of the Hugging Face hub, read into entries."""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .containers import read_objects
from .entries import Entry
from .hub import fetch_dataset
from .schemas import Account, check_columns, quoted, to_entry

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def read_entries(paths: Paths, columns: Mapping[str, str] | None = None,
                 max_entries: int | None = None) -> list[Entry]:
    """Entries of one or several files; see `read_with_account`, which also tells what became of each.

    >>> entries = read_entries("examples/data/train.json", max_entries=2)
    >>> entries[0].instruction, entries[0].output
    ('Give the opposite of the word "below".', 'above')
    """
    return read_with_account(paths, columns, max_entries)[0]


def read_with_account(paths: Paths, columns: Mapping[str, str] | None = None,
                      max_entries: int | None = None) -> tuple[list[Entry], Account]:
    """Entries of one or several files in their order, and what was dropped, changed and ignored.

    paths: a file, a pattern such as "data/*.jsonl", the name of a data set on the Hugging Face hub ("owner/name",
    "owner/name:split"), or a list of these. What a file is, is told by its content (containers.py), which form an
    entry has, by its keys (schemas.py). columns: a mapping of one's own, our name -> the file's key, see
    `parse_columns`. max_entries: read no more than the first of each file.

    An entry without a reply to learn, or with nothing asked, is dropped and counted. ValueError in one line names
    the file and the entry, counted from 1 in each file, that cannot be read, and what to do.

    >>> entries, account = read_with_account("examples/data/*_items.json", max_entries=3)
    >>> len(entries), dict(account.schemas)
    (3, {'Alpaca': 3})
    """
    if columns:
        check_columns(columns)
    account, entries = Account(), []
    keys: dict[str, None] = {}  # in their order
    read = {}
    for path in _files(paths):
        objects = read_objects(path, columns)
        if not objects:
            raise ValueError(f"{path}: no entries in it")
        read[path] = objects = objects[:max_entries]
        for item in objects:
            keys.update(dict.fromkeys(item) if isinstance(item, dict) else {})
    for name, key in (columns or {}).items():
        if key not in keys:
            raise ValueError(f"{', '.join(map(str, read))}: no entry has the key {key!r} that is to be '{name}'; "
                             f"the keys are {quoted(keys)}")
    for path, objects in read.items():
        account.files.append(str(path))
        for number, item in enumerate(objects, 1):
            entry = to_entry(item, f"{path}, entry {number}", account, columns)
            if entry is not None:
                entries.append(entry)
    if not entries:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in account.dropped.items())
        raise ValueError(f"{', '.join(account.files)}: no entry to train on: {reasons}")
    return entries, account


def _files(paths: Paths) -> list[Path]:
    """All files that are meant; each once, in the order in which they are named."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ValueError("no file of entries is named")
    files: dict[Path, None] = {}
    for name in given:
        files.update(dict.fromkeys(_matching(name)))
    return list(files)


def _matching(name: str | os.PathLike) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if child.is_file())
        raise ValueError(f"{path} is a folder, expected a JSON or JSONL file or another of entries; name its files, "
                         f"or a pattern such as '{path / '*.json'}'; there are {quoted(inside)}")
    if path.exists():
        raise ValueError(f"{path} is a device, expected a file of entries")
    if any(mark in str(name) for mark in "*?["):
        matches = sorted(match for match in glob.glob(str(name), recursive=True) if os.path.isfile(match))
        if not matches:
            raise ValueError(f"{name}: no file matches this pattern")
        return [Path(match) for match in matches]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", str(name)) and not path.parent.exists() and not re.search(
            r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gz|bz2|xz|zip|zst)$", str(name), re.IGNORECASE):
        return fetch_dataset(str(name))
    raise ValueError(f"{path} is missing; expected a JSON list of objects with 'instruction', 'input', 'output', or "
                     "another file of entries")
