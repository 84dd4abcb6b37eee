"""Files that are whole or not there, and what is said about bad ones."""

import json
import os
import stat

import pytest

from tinyft.files import (
    make_writable_folder,
    read_json,
    read_json_lines,
    read_text,
    replacing,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replacing_puts_the_new_content_in_place(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with replacing(path) as beside:
        assert beside.parent == path.parent
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_the_old_content_when_the_block_raises(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as beside:
        beside.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_replacing_leaves_nothing_when_there_was_nothing(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "note.txt") as beside:
        beside.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_replacing_keeps_the_old_content_when_nothing_was_written(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_replacing_keeps_the_old_content_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyft.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"), replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_replacing_leaves_devices_alone(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match="pipe' is a device, expected the name of a file"), replacing(path):
        raise AssertionError
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_replacing_follows_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_replacing_needs_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "note.txt", "text")
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, [], "größer 🙂", {"infinite": float("inf")}])
def test_json_round_trip(tmp_path, value):
    path = tmp_path / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text("utf-8").endswith("\n")
    assert names(tmp_path) == ["value.json"]


def test_json_is_written_for_people(tmp_path):
    write_json(tmp_path / "value.json", {"größe": 1})
    assert (tmp_path / "value.json").read_text("utf-8") == '{\n  "größe": 1\n}\n'


def test_write_json_of_what_json_has_no_words_for_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == 1
    assert names(tmp_path) == ["value.json"]


def test_read_text_takes_a_byte_order_mark(tmp_path):
    (tmp_path / "note.txt").write_bytes(b"\xef\xbb\xbfgr\xc3\xb6\xc3\x9fer")
    assert read_text(tmp_path / "note.txt") == "größer"


def test_read_text_names_the_byte_that_is_not_utf8(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 2 is 0xf6\); save it as UTF-8") as caught:
        read_text(path)
    assert str(path) in str(caught.value)


def test_read_json_names_the_place(tmp_path):
    path = tmp_path / "value.json"
    path.write_text('{\n  "a": 1,\n  "b": oops\n}')
    with pytest.raises(ValueError, match=r"value\.json, line 3, column 8: not JSON"):
        read_json(path)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{'a': 1}", "<html></html>"])
def test_read_json_refuses_what_is_none(tmp_path, text):
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not JSON") as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, json.JSONDecodeError)


def test_lines_that_end_within_a_character(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"[1]\n" + '"ä'.encode()[:2])
    assert read_json_lines(path, may_be_cut=True) == [(1, [1])]
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_json_lines(path)


def test_read_json_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n[2]\n"\xe2\x80\xa8"\n{"cut')
    assert read_json_lines(path, may_be_cut=True) == [(1, {"a": 1}), (3, [2]), (4, "\u2028")]
    with pytest.raises(ValueError, match="lines.jsonl, line 5: not JSON"):
        read_json_lines(path)
    path.write_text("1\n" + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="lines.jsonl, line 2: JSON that is nested too deeply"):
        read_json_lines(path, may_be_cut=True)


def test_reading_what_is_not_there_names_it(tmp_path):
    with pytest.raises(OSError, match="nowhere.json"):
        read_json(tmp_path / "nowhere.json")


def test_make_writable_folder(tmp_path):
    folder = make_writable_folder(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert names(folder) == []
    (folder / "kept").touch()
    assert make_writable_folder(folder) == folder
    assert names(folder) == ["kept"]


@pytest.mark.parametrize("below", ["", "folder", "deep/er"])
def test_make_writable_folder_where_a_file_stands(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="cannot write there .*; choose another folder") as caught:
        make_writable_folder(tmp_path / "file" / below)
    assert str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"
