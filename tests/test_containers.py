"""What entries are packed in: JSON, CSV, Parquet, compressed or not; and files that are none of these."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinyft import Entry, read_entries

ENTRY = {"instruction": "Name it.", "input": "a cat", "output": "Tom"}
TOM = Entry.single("Name it.", "a cat", "Tom")


def write(folder, content, name="data.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refusal(paths, columns=None) -> str:
    with pytest.raises(ValueError) as caught:
        read_entries(paths, columns)
    message = str(caught.value)
    assert "\n" not in message
    kinds = re.sub(r"\S*/", "", message)  # without folders
    assert not re.search(r"\b(NoneType|dict|int|float|bool(?!\.json)|Number)\b", kinds), message
    return message


def as_csv(raw, delimiter=",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for item in raw for key in item)), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(raw)
    return text.getvalue().encode()


def as_zip(raw) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("folder/data.json", json.dumps(raw))
    return made.getvalue()


def as_parquet(raw) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(raw), made)
    return made.getvalue()


def as_arrow(raw, new) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    made, table = io.BytesIO(), pyarrow.Table.from_pylist(raw)
    with getattr(pyarrow.ipc, new)(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


def lines(raw) -> bytes:
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in raw).encode()


CONTAINERS = {
    "list": lambda raw: json.dumps(raw).encode(),
    "list, BOM": lambda raw: b"\xef\xbb\xbf" + json.dumps(raw, indent=1, ensure_ascii=False).encode(),
    "lines": lines,
    "lines, blank ones, CRLF, BOM": lambda raw: b"\xef\xbb\xbf\r\n" + lines(raw).replace(b"\n", b"\r\n \r\n") + b"\r\n",
    "objects, indented": lambda raw: "\n".join(json.dumps(item, indent=2) for item in raw).encode(),
    "objects, nothing between": lambda raw: "".join(map(json.dumps, raw)).encode(),
    "lists joined": lambda raw: json.dumps(raw[:1]).encode() + b"\n" + json.dumps(raw[1:]).encode(),
    "data": lambda raw: json.dumps({"version": 1, "licence": {"name": "x"}, "tags": ["a"], "data": raw}).encode(),
    "nested wrapper": lambda raw: json.dumps({"dataset": {"train": raw}}).encode(),
    "wrapper deep beside another": lambda raw: json.dumps({"info": {"a": 1}, "data": {"train": raw}}).encode(),
    "lists of columns": lambda raw: json.dumps({key: [item[key] for item in raw] for key in raw[0]}).encode(),
    "pandas, columns": lambda raw: json.dumps(
        {key: {str(i): item[key] for i, item in enumerate(raw)} for key in raw[0]}).encode(),
    "pandas, index": lambda raw: json.dumps({str(i): item for i, item in enumerate(raw)}).encode(),
    "pandas, split": lambda raw: json.dumps({"columns": list(raw[0]), "index": list(range(len(raw))),
                                             "data": [list(item.values()) for item in raw]}).encode(),
    "csv": as_csv,
    "csv, BOM": lambda raw: b"\xef\xbb\xbf" + as_csv(raw),
    "csv, semicolons": lambda raw: as_csv(raw, ";"),
    "tsv": lambda raw: as_csv(raw, "\t"),
    "gzip": lambda raw: gzip.compress(json.dumps(raw).encode()),
    "gzipped csv": lambda raw: gzip.compress(as_csv(raw)),
    "bzip2": lambda raw: bz2.compress(lines(raw)),
    "xz": lambda raw: lzma.compress(lines(raw)),
    "zip": as_zip,
    "parquet": as_parquet,
    "arrow file": lambda raw: as_arrow(raw, "new_file"),
    "arrow stream": lambda raw: as_arrow(raw, "new_stream"),
}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
FILLED = TEXT.filter(str.strip)
INPUT = TEXT.map(lambda text: text if text.strip() and text.strip().casefold() != "<noinput>" else "")
ENTRIES = st.lists(st.builds(Entry.single, FILLED, INPUT, FILLED, TEXT), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENTRIES)
@example([TOM])
@example([Entry.single("Say \"hello\",\nthen; stop\t.", "", "a\u2028b\x85\r\nc", "x/y"), TOM])
def test_every_container_gives_the_same_entries(tmp_path, kind, entries):
    raw = [{"instruction": e.instruction, "input": e.input, "output": e.output, "family": e.family} for e in entries]
    assert read_entries(write(tmp_path, CONTAINERS[kind](raw), "name.of.no.meaning")) == entries


def test_csv_is_not_misled_by_its_cells(tmp_path):
    content = b"instruction;output\n\"a, b, c\";1\n\n\"d\ne\";\"2;3\"\n"
    assert read_entries(write(tmp_path, content)) == [Entry.single("a, b, c", "", "1"), Entry.single("d\ne", "", "2;3")]
    assert read_entries(write(tmp_path, b"\n\n\tinstruction\toutput\n0\ta\tb\n")) == [Entry.single("a", "", "b")]
    content = b"instruction,output\nlong," + b"x" * 200_000 + b"\n"
    assert len(read_entries(write(tmp_path, content))[0].output) == 200_000


def test_a_single_object_is_one_entry(tmp_path):
    assert read_entries(write(tmp_path, ENTRY)) == [TOM]
    assert read_entries(write(tmp_path, {**ENTRY, "sources": [{"a": 1}]})) == [TOM]
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert read_entries(write(tmp_path, conversation)) == [Entry.single("a", "", "b")]
    assert read_entries(write(tmp_path, {"conversations": [conversation]})) == [Entry.single("a", "", "b")]
    assert read_entries(write(tmp_path, conversation["messages"])) == [Entry.single("a", "", "b")]
    assert read_entries(write(tmp_path, lines([conversation["messages"]] * 2))) == [Entry.single("a", "", "b")] * 2
    column = {"messages": [conversation["messages"]] * 2}
    assert read_entries(write(tmp_path, column)) == [Entry.single("a", "", "b")] * 2


BAD_FILES = {
    "not JSON": (b'[\n  {"instruction": }]', ["line 2, column 19", "not JSON"]),
    "cut off": (b'[{"instruction": "x", "output": "y"}', ["line 1, column 37", "not JSON"]),
    "a bad line": (b'{"instruction": "x", "output": "y"}\n\n{"instruction"}\n', ["line 3, column 15", "not JSON"]),
    "nothing in it": (b"", ["line 1, column 1", "not JSON", "no entries"]),
    "blank lines": (b"\n\n", ["no entries"]),
    "mark after a blank line": (b"\n\xef\xbb\xbf[]", ["line 2, column 1", "not JSON"]),
    "prose": (b"Once upon a time there was a file.\n", ["line 1, column 1", "not JSON", "nor CSV"]),
    "a string": ("x", ["a string", "expected a list of objects"]),
    "a number": (7, ["a number", "expected a list of objects"]),
    "entry is a string": ([ENTRY, "x"], ["entry 2", "a string", "expected an object", "'instruction'", "'output'"]),
    "entry is a list": ([ENTRY, ENTRY, []], ["entry 3", "a list", "expected an object"]),
    "several lists": ({"train": [ENTRY], "test": [ENTRY, ENTRY]}, ["'train' (1)", "'test' (2)", "file of its own"]),
    "several lists within": ({"data": {"train": [ENTRY], "test": [ENTRY]}}, ["'data.train' (1)", "'data.test' (1)"]),
    "columns of unequal lengths": ({"instruction": ["a", "b"], "output": ["c"]}, ["'instruction' (2)", "'output' (1)"]),
    "columns of unequal index": ({"instruction": {"0": "a"}, "output": {"1": "b"}}, ["not the same index"]),
    "split, short row": ({"columns": ["instruction", "output"], "data": [["a"]]},
                         ["entry 1", "1 values", "expected 2"]),
    "key twice": (b'[{"instruction": "a", "output": "b"}, {"instruction": "x", "output": "y", "output": "z"}]',
                  ["entry 2", "'output'", "twice"]),
    "key twice in a message": (b'{"messages": [{"role": "user", "role": "user", "content": "x"}]}',
                               ["'role'", "twice"]),
    "key twice around": (b'{"d": {"data": [{"instruction": "a", "output": "b"}], "data": 1}}', ["'data'", "twice"]),
    "key twice in a column": (b'{"instruction": {"0": "a", "0": "b"}, "output": {"0": "c"}}', ["'0'", "twice"]),
    "deep objects": (b'{"a": ' * 900 + b"1" + b"}" * 900, ["none of the known forms"]),
    "column twice": (b"instruction,output,output\na,b,c\n", ["'output'", "twice"]),
    "csv, cell missing": (b"instruction,input,output\na,b,c\nd,e\n", ["line 3", "2 cells", "expected 3"]),
    "csv, quote open": (b'instruction,output\na,"b\n', ["line 2", "not CSV"]),
    "gzip cut off": (gzip.compress(json.dumps([ENTRY]).encode())[:-9], ["damaged"]),
    "xz cut off": (lzma.compress(json.dumps([ENTRY]).encode())[:-9], ["damaged"]),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"x" * 9, ["zstd", "decompress"]),
    "not UTF-8": ('[{"instruction": "Gr\xf6\xdfe", "output": "y"}]'.encode("latin-1"),
                  ["not UTF-8", "byte 20", "0xf6", "save it as UTF-8"]),
    "UTF-16": (json.dumps([ENTRY]).encode("utf-16"), ["not UTF-8", "save it as UTF-8"]),
    "nested deeply": (b"[" * 200_000, ["nested too deeply"]),
    "empty list": ([], ["no entries"]),
    "empty wrapper": ({"data": []}, ["no entries"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(tmp_path, kind):
    content, said = BAD_FILES[kind]
    path = write(tmp_path, content)
    message = refusal(path)
    assert [part for part in [str(path), *said] if part not in message] == [], message


def test_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.json", "[]")
        archive.writestr("b.json", "[]")
    assert "'a.json', 'b.json'" in refusal(tmp_path / "two.zip")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + b"x" * 40 + b"PAR1", b"ARROW1\0\0xx",
                                     b"\xff\xff\xff\xff\x10\0"])
def test_damaged_parquet_and_arrow(tmp_path, content):
    pytest.importorskip("pyarrow")
    assert "not a whole Parquet or Arrow file" in refusal(write(tmp_path, content))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(write(tmp_path, b"PAR1xxxxPAR1"))


STARTS = [b"", b"[", b"{", b'[{"instruction": ', b"instruction,output\n", b"PAR1", b"PK\x03\x04", b"BZh9", b'"',
          b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\xef\xbb\xbf"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(STARTS), st.binary(max_size=60))
def test_garbage_is_refused_in_one_line(tmp_path, start, garbage):
    try:
        read_entries(write(tmp_path, start + garbage))
    except ValueError as error:
        assert "\n" not in str(error) and "data.json" in str(error)


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, kind, data):
    content = bytearray(CONTAINERS[kind]([{**ENTRY, "family": "pets"}] * 3))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    try:
        read_entries(write(tmp_path, bytes(content)))
    except ValueError as error:
        assert "\n" not in str(error) and "data.json" in str(error)


WORDS = ["instruction", "output", "input", "prompt", "completion", "messages", "role", "content", "from", "value",
         "data", "columns", "history", "system", "weight", "0", "1", "x", "input\n"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(WORDS), inner, max_size=4), max_leaves=12)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_json_is_read_or_refused_in_one_line(tmp_path, value):
    try:
        read_entries(write(tmp_path, value))
    except ValueError as error:
        assert "\n" not in str(error) and "data.json" in str(error)
