"""From files, or the name of a data set, to entries."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .containers import read_objects
from .entries import Entry
from .hub import fetch_dataset
from .schemas import KNOWN_KEYS, Account, to_entry

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:\w+)?")
DATA_SUFFIX = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow)(\.\w+)?$", re.IGNORECASE)


@dataclass
class Reading:
    """Entries, and an account of how they were read, for a report."""

    entries: list[Entry] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def read_entries(paths: str | os.PathLike | Sequence[str | os.PathLike],
                 columns: dict[str, str] | None = None) -> list[Entry]:
    """The entries of one file or of several; as `read_data`."""
    return read_data(paths, columns).entries


def read_data(paths: str | os.PathLike | Sequence[str | os.PathLike], columns: dict[str, str] | None = None) -> Reading:
    """Entries of files of any kind and schema that `containers.py` and `schemas.py` know.

    paths: files, or names of data sets on the Hugging Face hub, "owner/name" or "owner/name:split" (without a split:
    train). columns: which of the file's keys stand for what, {"instruction": "ask", "output": "reply"}. ValueError
    names the file and the first entry that can't be read; entries are counted from 1.
    """
    reading = Reading()
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        for file in _files(path):
            _read(file, columns or {}, reading)
    return reading


def _files(path: str | os.PathLike) -> list[Path]:
    name = str(path)
    if not Path(path).exists() and HUB_NAME.fullmatch(name) and not DATA_SUFFIX.search(name):
        return fetch_dataset(name)
    if not Path(path).exists():
        raise ValueError(f"{path} is missing; expected a file of instructions (JSON, JSON lines, CSV, Parquet), or the "
                         "name of a data set on the Hugging Face hub")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, expected a file of instructions; several may be given")
    return [Path(path)]


def _read(path: Path, columns: dict[str, str], reading: Reading) -> None:
    objects, beside = read_objects(path, KNOWN_KEYS | set(columns.values()))
    if not objects:
        raise ValueError(f"{path}: no entries in it")
    keys = {key for item in objects if isinstance(item, dict) for key in item}
    for name, key in columns.items():
        if key not in keys:
            raise ValueError(f"{path}: no entry has the key '{key}' of --columns {name}={key}; there are "
                             f"{', '.join(sorted(map(str, keys))) or 'none'}")
    reading.account.ignored.update(f"{key} (beside the entries)" for key in beside)
    reading.entries += [to_entry(item, f"{path}, entry {i}", columns, reading.account)
                        for i, item in enumerate(objects, 1)]
