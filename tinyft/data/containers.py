"""Files of data as people have them, read into objects: what a file is, its content says and not its name.

JSON: a list, objects one after the other (JSON lines among them), a list inside an object, columns. Tables: CSV and its
like, Parquet and Arrow (with pyarrow). Any of these compressed with gzip, bzip2 or xz.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from pathlib import Path
from typing import Any

try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
except ImportError:
    pyarrow = None

UNPACK = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
NOT_DATA = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard; unpack it with zstd -d",
    b"version https://git-lfs": "a git-lfs pointer, not the data; run 'git lfs pull' in that folder",
    b"<!DOCTYPE": "an HTML page, not data; the download failed, fetch the file again",
    b"<html": "an HTML page, not data; the download failed, fetch the file again",
    b"%PDF": "a PDF",
}
DELIMITERS = ",\t;|"


class Number(str):
    """A number of a JSON file, as its digits stand there."""


class Repeated(dict):
    """An object that has a key twice."""

    key = ""


def kind(value) -> str:
    """What a value is called in JSON."""
    names = {dict: "an object", Repeated: "an object", str: "a string", list: "a list", type(None): "null",
             bool: "true or false"}
    return names.get(type(value), "a number")


def read_objects(path: str | os.PathLike, known: frozenset[str] = frozenset()) -> tuple[list[Any], list[str]]:
    """The entries of a file, which should be objects, and the keys that stand beside a list of them.

    known: keys by which an object is known to be an entry itself. ValueError with the path, and the place where there
    is one, for what can't be read.
    """
    path = Path(path)
    content = _unpacked(path, path.read_bytes())
    for start, what in NOT_DATA.items():
        if content.lstrip()[: len(start)].lower() == start.lower():
            raise ValueError(f"{path} is {what}")
    if content[:4] == b"PAR1" or content[:6] == b"ARROW1":
        return _table(path, content), []
    text = _decoded(path, content)
    if text.lstrip()[:1] in ("[", "{") or _is_json(text):
        return _unwrapped(path, json_values(path, text), known)
    return delimited(path, text, known), []


def _unpacked(path: Path, content: bytes) -> bytes:
    for start, unpack in UNPACK.items():
        if content.startswith(start):
            try:
                return unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"{path}: compressed, but broken ({error}); copy or download it again") from None
    return content


def _decoded(path: Path, content: bytes) -> str:
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise ValueError(f"{path}: not UTF-8 text ({place}); save it as UTF-8") from None


# ---- JSON


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return not text.strip()
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        content = Repeated(content)
        content.key = next(key for i, key in enumerate(keys) if key in keys[:i])
    return content


def json_values(path: Path, text: str) -> list[Any]:
    """All values of a text, one after the other; numbers as `Number`, NaN as None."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number,
                               parse_constant=lambda name: None if name == "NaN" else Number(name))
    values, at = [], 0
    while True:
        at += len(text[at : at + 100]) - len(text[at : at + 100].lstrip(" \t\r\n"))
        if at < len(text) and text[at] in " \t\r\n":
            continue
        if at == len(text):
            return values
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError(f"{path}: JSON that is nested too deeply") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
        values.append(value)


def _unwrapped(path: Path, values: list[Any], known: frozenset[str]) -> tuple[list[Any], list[str]]:
    if len(values) == 1 and isinstance(values[0], dict):
        return _of_object(path, values[0], known)
    if len(values) == 1 and not isinstance(values[0], list):
        raise ValueError(f"{path}: the JSON is {_name(values[0])}, expected a list of objects")
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value], []
    return values, []


def _name(value) -> str:
    return "a number" if isinstance(value, Number) else kind(value)


def _of_object(path: Path, whole: dict, known: frozenset[str], depth: int = 0) -> tuple[list[Any], list[str]]:
    """The entries in an object: itself, its columns, or the one list of objects in it."""
    if isinstance(whole, Repeated):
        raise ValueError(f"{path}: the key '{whole.key}' stands twice in one object; remove one of them")
    values = list(whole.values())
    if whole.keys() >= {"columns", "data"} and all(isinstance(row, list) for row in whole["data"]):
        return _from_rows(path, whole["columns"], whole["data"]), []  # pandas, orient="split"
    if known & whole.keys():
        if values and all(isinstance(value, list) for value in values) and not _holds_objects(values):
            return _from_columns(path, whole), []
        if values and all(isinstance(value, dict) for value in values):  # pandas' default
            labels = list(values[0])
            if any(list(value) != labels for value in values):
                raise ValueError(f"{path}: its columns don't have the same rows")
            return [{key: value[label] for key, value in whole.items()} for label in labels], []
        return [whole], []
    lists = [key for key, value in whole.items() if value and isinstance(value, list) and _holds_objects([value])]
    if len(lists) == 1:
        rows = whole[lists[0]]
        if all(isinstance(row, dict) and isinstance(row.get("row"), dict) for row in rows):
            rows = [row["row"] for row in rows]  # as the Hugging Face hub's viewer gives them
        return rows, [key for key in whole if key != lists[0]]
    if len(lists) > 1:
        names = ", ".join(f"'{key}' ({len(whole[key])})" for key in lists)
        raise ValueError(f"{path}: there are several lists of entries, {names}; put the one to read into a file of its "
                         "own")
    objects = [key for key, value in whole.items() if isinstance(value, dict)]
    if values and len(objects) == len(values) and any(known & value.keys() for value in values):
        return values, []  # pandas, orient="index"
    if len(objects) == 1 and depth < 3:
        found, beside = _of_object(path, whole[objects[0]], known, depth + 1)
        return found, beside + [key for key in whole if key != objects[0]]
    if values and all(isinstance(value, list) for value in values):
        return _from_columns(path, whole), []
    return [whole], []


def _holds_objects(lists: list[list]) -> bool:
    return any(isinstance(item, dict) for content in lists for item in content)


def _from_columns(path: Path, columns: dict[str, list]) -> list[dict]:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"'{key}' {length}" for key, length in lengths.items())
        raise ValueError(f"{path}: its columns are of different lengths ({said})")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _from_rows(path: Path, names: list, rows: list[list]) -> list[dict]:
    for i, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"{path}: row {i} has {len(row)} values, but there are {len(names)} columns")
    return [dict(zip(map(str, names), row, strict=True)) for row in rows]


# ---- tables


def delimited(path: Path, text: str, known: frozenset[str] = frozenset()) -> list[dict]:
    """Rows of a CSV, TSV or the like, whose first row names the columns.

    ValueError with the line of a row that has another number of cells, or of a quote that doesn't end.
    """
    delimiter = max(DELIMITERS, key=lambda sign: _columns_if(text, sign, known))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    rows = []
    try:
        header = [name.strip() if name.strip() in known else name for name in next(reader)]
        if len(header) < 2 and not known & set(header):
            raise ValueError(f"{path} is neither JSON nor a table whose first line names columns: it begins with "
                             f"{text.strip()[:40]!r}")
        twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
        if twice is not None:
            raise ValueError(f"{path}: the column '{twice}' stands twice in the first line; remove one of them")
        for cells in reader:
            if len(cells) == len(header):
                rows.append(dict(zip(header, cells, strict=True)))
            elif any(cells):
                raise ValueError(f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)} as in "
                                 "the first line; is a quote missing?")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a table of cells divided by {delimiter!r} "
                         f"({error})") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _columns_if(text: str, delimiter: str, known: frozenset[str]) -> tuple[int, int]:
    """Known columns, and all columns, of the first line if cells were divided so."""
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:
        return 0, 0
    return len(known & {name.strip() for name in header}), len(header)


def _table(path: Path, content: bytes) -> list[dict]:
    if pyarrow is None:
        raise ValueError(f"{path} is a Parquet or Arrow file, which needs pyarrow: pip install pyarrow")
    try:
        if content[:4] == b"PAR1":
            table = pyarrow.parquet.read_table(io.BytesIO(content))
        else:
            table = pyarrow.ipc.open_file(io.BytesIO(content)).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole Parquet or Arrow file ({str(error).splitlines()[0]})") from None
    return table.to_pylist()
