"""From the bytes of a file to the objects in it, whatever they are packed in; the name of the file does not matter.

JSON: a list; objects one after the other, a line each or not; an object with the list in it; columns, as pandas
writes them. CSV with commas, semicolons or tabs. Parquet and Arrow where pyarrow is installed. Any of them compressed.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..files import decode_text, one_line
from ..untrusted import shown
from .arrow import is_arrow, read_rows
from .schemas import KNOWN, Number, is_conversation, is_entry, is_message, kind_of, quoted

DELIMITERS = ",;\t"
MAX_DEPTH = 20  # of objects around a list of entries
# Text shrinks to a tenth. What grows to more than this was made to fill a memory: a few bytes can be gigabytes.
MOST_COMPRESSED, LEAST_LIMIT = 200, 64 << 20
_BLANK = re.compile(r"[ \t\r\n]*")


def read_objects(path: Path, columns: Mapping[str, str] | None = None) -> list[Any]:
    """The objects of one file in their order, not yet looked into; ValueError in one line if it has none.

    columns: a mapping of one's own, whose keys help to tell columns from entries.
    """
    content = _decompress(path.read_bytes(), path)
    if is_arrow(content):
        return read_rows(content, path)
    text = decode_text(content, path)
    start = _BLANK.match(text).end()
    if start == len(text):
        raise ValueError(f"{path}, line 1, column 1: the file is empty: no entries, not JSON")
    names = _names(columns)
    if text[start] not in "[{" and (delimiter := _delimiter(text, names)):
        return _read_csv(text, delimiter, path)
    values, repeated = _parse_json(text, path)
    if len(values) == 1:
        objects = _unpack(values[0], str(path), columns)
    else:  # lists that were joined to one file count as one list
        objects = [item for value in values for item in (value if _is_list_of_entries(value) else [value])]
    if repeated:
        numbered = [(f", entry {number}", item) for number, item in enumerate(objects, 1)]
        found = ((place, _repeated(item)) for place, item in [*numbered, ("", values)])
        place, inside = next(pair for pair in found if pair[1] is not None)
        raise ValueError(f"{path}{place}: the key {shown(inside.name)} occurs twice; remove one")
    return objects


def _decompress(content: bytes, path: Path) -> bytes:
    """Contents of a compressed file, known by its first bytes; other files unchanged."""
    most = max(LEAST_LIMIT, MOST_COMPRESSED * len(content))
    for magic, decompress in MAGIC.items():
        if content.startswith(magic):
            try:
                with decompress(content) as file:
                    whole = file.read(most + 1)
                if len(whole) <= most:
                    return whole
                raise _NotDecompressed(f"compressed, and more than {most:,} bytes when it is not, which no text is; "
                                       "decompress it yourself if you trust it")
            except _NotDecompressed as error:
                raise ValueError(f"{path}: {error}") from None
            except Exception as error:  # these libraries raise some eight kinds for damaged content
                raise ValueError(f"{path}: a compressed file that is damaged ({one_line(error)}); fetch or make it "
                                 "again") from None
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError(f"{path}: compressed with zstd, which is not read; decompress it first (zstd -d)")
    return content


class _NotDecompressed(ValueError):
    pass


def _unzip(content: bytes) -> IO[bytes]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise _NotDecompressed(f"a zip archive of {len(names)} files ({quoted(names)}), expected one; unpack it and "
                               "name the files")
    return archive.open(names[0])


MAGIC = {b"\x1f\x8b": lambda content: gzip.GzipFile(fileobj=io.BytesIO(content)),
         b"BZh": lambda content: bz2.BZ2File(io.BytesIO(content)),
         b"\xfd7zXZ\x00": lambda content: lzma.LZMAFile(io.BytesIO(content)),
         b"PK\x03\x04": _unzip}


def _twice(names: list[str]) -> str | None:
    """The first name that occurs a second time."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


# ---- JSON


class _WithRepeatedKey(dict):
    """An object with a key that occurs twice. In which entry it stands is only known later."""

    name = ""


def _constant(name: str) -> float | Number:
    return float("nan") if name == "NaN" else Number(name)


def _repeated(value) -> _WithRepeatedKey | None:
    """The first object with a key that occurs twice, at any depth."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, _WithRepeatedKey):
            return value
        if isinstance(value, dict | list):
            stack.extend(value.values() if isinstance(value, dict) else value)
    return None


def _parse_json(text: str, path: Path) -> tuple[list[Any], bool]:
    """All JSON values that stand one after the other in a text, and whether a key occurs twice in some object."""
    repeated = False

    def make_object(pairs: list[tuple[str, Any]]) -> dict:
        nonlocal repeated
        made = dict(pairs)
        if len(made) < len(pairs):
            made, repeated, seen = _WithRepeatedKey(made), True, set()
            made.name = next(key for key, _ in pairs if key in seen or seen.add(key))
        return made

    decoder = json.JSONDecoder(object_pairs_hook=make_object, parse_int=Number, parse_float=Number,
                               parse_constant=_constant)
    values, position = [], _BLANK.match(text).end()
    try:
        while position < len(text):
            value, position = decoder.raw_decode(text, position)
            values.append(value)
            position = _BLANK.match(text, position).end()
    except RecursionError:
        raise ValueError(f"{path}: JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = ", nor CSV with a header" if not values and error.pos == 0 else ""
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}){hint}") from None
    return values, repeated


def _unpack(value, where: str, columns: Mapping[str, str] | None) -> list[Any]:
    """The list of objects that a single JSON value is or holds."""
    if isinstance(value, list):
        return value if _is_list_of_entries(value) else [value]
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the JSON is {kind_of(value)}, expected a list of objects")
    if is_entry(value, columns):
        return [value]
    within = [] if value.keys() & _names(columns) else list(_lists_within(value))
    within = within or [((key,), inner) for key, inner in value.items() if _is_list_of_objects(inner)]
    if len(within) > 1:
        counts = ", ".join(f"{shown('.'.join(keys), 60)} ({len(inner)})" for keys, inner in within[:12])
        raise ValueError(f"{where}: an object with several lists of entries: {counts}; save the one to be read in a "
                         "file of its own")
    if within:
        return within[0][1]
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if set(value) >= {"columns", "data"} and all(isinstance(row, list) for row in lists.get("data", [None])):
        return _rows(lists.get("columns", []), lists["data"], where)  # pandas' orient="split"
    if lists:
        return _from_columns(lists, where)
    inner = {key: item for key, item in value.items() if isinstance(item, dict)}
    if inner and len(inner) == len(value):
        return _from_objects(inner, where, columns)
    return [value]


def _is_list_of_entries(value) -> bool:
    """Is it a list, and not one of messages, which is an entry itself?"""
    return isinstance(value, list) and not is_conversation(value)


def _is_list_of_objects(value) -> bool:
    return (isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
            and not is_message(value[0]))


def _lists_within(value: dict, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list]]:
    """(path of keys, list) for all lists of objects in an object and in the objects that it holds."""
    for key, inner in value.items():
        if _is_list_of_objects(inner):
            yield (*outer, key), inner
        elif isinstance(inner, dict) and len(outer) < MAX_DEPTH:
            yield from _lists_within(inner, (*outer, key))


def _names(columns: Mapping[str, str] | None) -> set[str]:
    return {*KNOWN, *(columns or {}).values()}


def _rows(header: list, rows: list[list], where: str) -> list[dict]:
    names = [str(name) for name in header]  # once: a name that isn't text can be as long as the file
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: a column occurs twice among {quoted(header)}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"{where}, entry {number}: {len(row)} values, expected {len(header)} as in 'columns'")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _from_columns(lists: dict[str, list], where: str) -> list[dict]:
    """Columns {"instruction": [...], "output": [...]} as objects."""
    lengths = {key: len(column) for key, column in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{shown(key)} ({n})" for key, n in list(lengths.items())[:12])
        raise ValueError(f"{where}: columns of unequal lengths: {counts}; expected a list of objects, or columns with "
                         "a value for every entry")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _from_objects(outer: dict[str, dict], where: str, columns: Mapping[str, str] | None) -> list[dict]:
    """pandas' orient="columns" (column -> index -> value) or "index" (index -> column -> value) as objects."""
    names = _names(columns)
    if not set(outer) & names and (names & set().union(*outer.values()) or all(key.isdecimal() for key in outer)):
        return list(outer.values())
    index = next(iter(outer.values()))
    for key, column in outer.items():
        if column.keys() != index.keys():
            raise ValueError(f"{where}: the columns {shown(next(iter(outer)))} and {shown(key)} have not the same "
                             "index; expected a value for every entry")
    return [{key: column[i] for key, column in outer.items()} for i in index]


# ---- CSV


def _delimiter(text: str, names: set[str]) -> str | None:
    """The character between the cells of a table's header; None if the text does not begin with a header."""
    best, best_score = None, (0, 1)
    text = text.lstrip("\r\n")[:100_000]
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except (csv.Error, StopIteration):
            continue
        if max(map(len, header), default=0) > 80:
            continue
        score = sum(cell.strip().casefold() in names for cell in header), len(header)
        if len(header) > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _read_csv(text: str, delimiter: str, path: Path) -> list[dict[str, str]]:
    """Rows of a table with a header; cells may be quoted and then hold line ends."""
    limit = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = []
        header: list[str] = []
        for row in reader:
            if not header:
                header = row
                if (repeated := _twice(header)) is not None:
                    raise ValueError(f"{path}: the column {shown(repeated)} occurs twice in the header; rename one")
            elif row:
                surplus = row[len(header) :]
                if len(row) < len(header) or any(surplus):
                    raise ValueError(f"{path}, line {reader.line_num}: {len(row)} cells, expected {len(header)} as in "
                                     "the header; put cells with the delimiter in them in quotes")
                rows.append(dict(zip(header, row, strict=False)))
        return rows
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)
