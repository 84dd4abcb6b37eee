"""Parquet and Arrow files as rows of Python's values, within bounds. Needs pyarrow (pip install pyarrow).

A few bytes of such a file can stand for any number of rows, values or nulls. So it is read a batch at a time, and only
types whose values take room in the file are taken. What pyarrow decompresses at once is bounded only by what a Parquet
file says of itself; open files of people you trust.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import one_line
from ..untrusted import shown

BATCH_ROWS = 64
# Rows and bytes of values that a file may have: so many for each of its bytes, and some more.
ROWS_PER_BYTE, BYTES_PER_BYTE, SPARE_ROWS, SPARE_BYTES = 1, 200, 100_000, 64 << 20
OBJECT_BYTES = 32  # of an object of Python, about
STARTS = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"


def is_arrow(content: bytes) -> bool:
    """Whether a file's content begins as Parquet and Arrow files do."""
    return content.startswith(STARTS)


def read_rows(content: bytes, path: Path) -> list[dict[str, Any]]:
    """All rows; ValueError in one line if it is not whole, or is too large for what it is."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"{path}: a Parquet or Arrow file, which needs pyarrow: pip install pyarrow, or save it as "
                         "JSON lines") from None
    rows, size = [], 0
    most_rows, most_bytes = SPARE_ROWS + ROWS_PER_BYTE * len(content), SPARE_BYTES + BYTES_PER_BYTE * len(content)
    try:
        for batch in _batches(content, most_bytes):
            _check_types(batch.schema)
            if len(rows) + batch.num_rows > most_rows:
                raise ValueError(f"it has more than {most_rows:,} rows in {len(content):,} bytes, which no texts have")
            batch.validate(full=True)  # offsets of a damaged file can point anywhere
            size += sum(map(_size, batch.columns))
            _check_size(size, most_bytes)
            rows += batch.to_pylist()
        return rows
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a whole Parquet or Arrow file ({shown(one_line(error), 200)[1:-1]})") from None


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it has more than {most:,} bytes of values, which was made to fill a memory")


def _batches(content: bytes, most_bytes: int) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    if content.startswith(b"PAR1"):
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        groups, schema = map(file.metadata.row_group, range(file.num_row_groups)), file.schema
        _check_size(sum(group.total_byte_size for group in groups), most_bytes)
        columns = [schema.column(i) for i in range(len(schema))]
        # Texts that repeat stay together until it is known how much they are one by one.
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY" and "." not in column.path]
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content), read_dictionary=texts)
        _check_types(file.schema_arrow)
        yield from file.iter_batches(BATCH_ROWS, use_threads=False)
    elif content.startswith(b"ARROW1"):
        file = pyarrow.ipc.open_file(content)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(content)


def _check_types(schema) -> None:
    """ValueError for a column that occurs twice, or whose values may be more than the file's bytes say."""
    names = set()
    for field in schema:
        if field.name in names:
            raise ValueError(f"the column {shown(field.name)} occurs twice")
        names.add(field.name)
        _check_type(field.type, field.name, 0)


def _check_type(kind, name: str, depth: int) -> None:
    import pyarrow.types as types

    if types.is_dictionary(kind) and depth == 0:
        return _check_type(kind.value_type, name, depth + 1)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_struct(kind) or types.is_map(kind):
        if depth < 8:
            for i in range(kind.num_fields):
                _check_type(kind.field(i).type, name, depth + 1)
            return
    elif types.is_primitive(kind) or types.is_null(kind) and depth == 0 or types.is_decimal(kind) or (
            types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)
            or types.is_large_binary(kind)):
        return
    raise ValueError(f"the column {shown(name)} is of the type {shown(str(kind))[1:-1]}, expected texts, numbers, or "
                     "lists of them; save it as JSON lines")


def _size(column) -> int:
    """Bytes of a column's values; of a dictionary, each as large as the largest.

    What lists hold counts as Python's objects do: an item of a list may be a single bit in the file, or, if it is a
    struct without fields, nothing at all.
    """
    import pyarrow.types as types

    kind = column.type
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        return len(column) * max((value.as_buffer().size if value.is_valid else 0
                                  for value in column.dictionary.cast("binary")), default=0)
    if types.is_struct(kind):
        return OBJECT_BYTES * len(column) + sum(map(_size, column.flatten()))
    if types.is_map(kind) and len(column):  # keys and items are those of the whole array, even in a slice of it
        first, last = column.offsets[0].as_py(), column.offsets[len(column)].as_py()
        inner = [part.slice(first, last - first) for part in (column.keys, column.items)]
    elif types.is_list(kind) or types.is_large_list(kind):
        inner = [column.flatten()]
    else:
        return column.nbytes
    return OBJECT_BYTES * (len(column) + len(inner[0])) + sum(map(_size, inner))
