"""Files of instructions as people have them, read into entries."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..files import read_json, read_json_lines


@dataclass(frozen=True)
class Entry:
    """One instruction with the reply to learn. `family` groups entries in reports; it may be empty."""

    instruction: str
    input: str
    output: str
    family: str = ""


def read_entries(path: str | os.PathLike) -> list[Entry]:
    """Entries of an Alpaca file: a JSON list of objects, or JSONL with one object a line.

    ValueError names the file and the first entry that has no 'instruction' or 'output', or other than text
    in them. 'input' and 'family' may be missing.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is missing; expected a JSON list of objects with 'instruction', 'input', 'output'")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a JSON or JSONL file of instructions")
    if path.suffix.lower() == ".jsonl":
        raw = [value for _, value in read_json_lines(path)]
    else:
        try:
            raw = read_json(path)
        except ValueError as error:
            hint = "; if every line is an object of its own, name the file .jsonl" * ("Extra data" in str(error))
            raise ValueError(f"{error}{hint}") from None
    if not isinstance(raw, list):
        raise ValueError(f"{path}: the JSON is {_kind(raw)}, expected a list of objects; "
                         "if every line is an object of its own, name the file .jsonl")
    if not raw:
        raise ValueError(f"{path}: no entries in it")
    return [_entry(item, f"{path}, entry {i}") for i, item in enumerate(raw, 1)]


def _kind(value) -> str:
    names = {dict: "an object", str: "a string", list: "a list", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


def _entry(item, where: str) -> Entry:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {_kind(item)}, expected an object with 'instruction' and 'output'")
    values = {}
    for name in ("instruction", "input", "output", "family"):
        value = item.get(name, "")
        if name in ("instruction", "output") and name not in item:
            raise ValueError(f"{where}: '{name}' is missing")
        if value is None and name in ("input", "family"):
            value = ""
        if not isinstance(value, str):
            raise ValueError(f"{where}: '{name}' is {_kind(value)}, expected text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{where}: '{name}' has half of a surrogate pair (\\ud800 to \\udfff) that is no "
                             "character; remove it") from None
        values[name] = value
    if not values["instruction"].strip():
        raise ValueError(f"{where}: 'instruction' is empty")
    return Entry(**values)
