"""Files of instructions as people have them, read into entries."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..files import read_json, read_json_lines


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. role: "system", "user" or "assistant"; input: Alpaca's second part of a user's."""

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Entry:
    """A conversation: what is asked and what is to be learned. `family` groups entries in reports; it may be empty."""

    turns: tuple[Turn, ...]
    family: str = ""

    @classmethod
    def single(cls, instruction: str, input: str = "", output: str = "", family: str = "") -> "Entry":
        """One instruction and the reply to it."""
        return cls((Turn("user", instruction, input), Turn("assistant", output)), family)

    @property
    def system(self) -> str:
        """The text of a leading system turn."""
        return self.turns[0].content if self.turns and self.turns[0].role == "system" else ""

    def _last(self) -> tuple[Turn, Turn]:
        """The last turn of the assistant, and that of the user before it; empty ones where there is none."""
        at = max((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), default=len(self.turns))
        asked = next((turn for turn in self.turns[:at][::-1] if turn.role == "user"), Turn("user", ""))
        return asked, self.turns[at] if at < len(self.turns) else Turn("assistant", "")

    @property
    def instruction(self) -> str:
        """What was asked last."""
        return self._last()[0].content

    @property
    def input(self) -> str:
        """What that is about, if it came apart."""
        return self._last()[0].input

    @property
    def output(self) -> str:
        """The last reply."""
        return self._last()[1].content


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
    return Entry.single(**values)
