"""Files that are whole or not there, and what is said about bad ones."""

import json
import os
import stat

import pytest

import tinyft.files
from tinyft.files import (
    make_writable_folder,
    read_json,
    read_json_lines,
    read_text,
    recover_folder,
    remove_leftovers,
    replacing,
    replacing_folder,
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


# ---- folders


def tree(folder) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def no_exchange(monkeypatch, how):
    """A system that cannot exchange two names, or whose file system cannot."""
    monkeypatch.setattr("tinyft.files._exchanging", lambda: (None if how == "none" else lambda one, other: -1))


@pytest.fixture(params=["exchange", "none", "refused"])
def system(request, monkeypatch):
    if request.param != "exchange":
        no_exchange(monkeypatch, request.param)


@pytest.mark.parametrize("before", ["nothing", "empty", "full"])
def test_a_folder_is_replaced(tmp_path, system, before):
    path = tmp_path / "deep" / "model"
    if before != "nothing":
        write_folder(path, **({"config": "old", "stale": "old", "notes": "mine"} if before == "full" else {}))
    with replacing_folder(path, ["config", "stale"]) as beside:
        write_folder(beside, config="new", extra="new")
        assert not path.exists() or tree(path).get("config") != "new"
    assert tree(path) == {"config": "new", "extra": "new"} | ({"notes": "mine"} if before == "full" else {})
    assert names(tmp_path / "deep") == ["model"]


def test_all_that_is_not_replaced_goes_along(tmp_path, system):
    path = write_folder(tmp_path / "model", config="old", notes="mine")
    write_folder(path / "sub" / "deep", a="1", config="mine too")
    (path / "empty").mkdir()
    (path / "link").symlink_to("notes")
    (path / "nowhere").symlink_to("gone")
    (path / "loop").symlink_to(".")
    (path / ".x.7.part").write_text("left by a writer that was killed")
    (path / "film.part").write_text("mine")
    number = (path / "notes").stat().st_ino
    path.chmod(0o750)
    with replacing_folder(path, ["config", "sub/deep/a"]) as beside:
        write_folder(beside, config="new")
    assert names(path) == ["config", "empty", "film.part", "link", "loop", "notes", "nowhere", "sub"]
    assert tree(path / "sub") == {"deep/config": "mine too"} and (path / "link").read_text() == "mine"
    assert os.readlink(path / "nowhere") == "gone" and os.readlink(path / "loop") == "."
    assert (path / "notes").stat().st_ino == number, "a link, not a copy"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert names(tmp_path) == ["model"]


def test_files_go_along_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("tinyft.files.os.link", fail)
    path = write_folder(tmp_path / "model", notes="mine")
    with replacing_folder(path):
        pass
    assert tree(path) == {"notes": "mine"}


def test_what_comes_into_the_old_folder_meanwhile_goes_along(tmp_path, system, monkeypatch):
    path = write_folder(tmp_path / "model", config="old")
    exchange = tinyft.files._exchange

    def late(*arguments):
        (path / "notes").write_text("mine")
        exchange(*arguments)

    monkeypatch.setattr("tinyft.files._exchange", late)
    with replacing_folder(path, ["config"]) as beside:
        write_folder(beside, config="new")
    assert tree(path) == {"config": "new", "notes": "mine"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_stays_when_the_block_raises(tmp_path, system, error):
    path = write_folder(tmp_path / "model", config="old")
    with pytest.raises(error), replacing_folder(path, ["config"]) as beside:
        write_folder(beside, config="half")
        raise error
    assert tree(tmp_path) == {"model/config": "old"} and names(tmp_path) == ["model"]
    with pytest.raises(error), replacing_folder(tmp_path / "other") as beside:
        write_folder(beside, config="half")
        raise error
    assert names(tmp_path) == ["model"]


def test_a_link_to_a_folder_stays_one(tmp_path, system):
    write_folder(tmp_path / "disk" / "model", config="old")
    (tmp_path / "model").symlink_to("disk/model")
    with replacing_folder(tmp_path / "model", ["config"]) as beside:
        write_folder(beside, config="new")
    assert (tmp_path / "model").is_symlink() and tree(tmp_path / "disk") == {"model/config": "new"}


@pytest.mark.parametrize("why", ["mount point", "folder above"])
def test_a_folder_that_cannot_be_renamed_gets_its_files_replaced(tmp_path, monkeypatch, why):
    path = write_folder(tmp_path / "model", config="old", stale="old", notes="mine")
    number = path.stat().st_ino
    if why == "folder above":
        monkeypatch.setattr("tinyft.files.os.access", lambda folder, mode: False)
    else:
        no_exchange(monkeypatch, "refused")
        rename = os.rename

        def busy(old, new):
            if path in (old, new):
                raise OSError(16, "Device or resource busy")
            rename(old, new)

        monkeypatch.setattr("tinyft.files.os.rename", busy)
    with replacing_folder(path, ["config", "stale"]) as beside:
        assert (beside.parent == path) == (why == "folder above")
        write_folder(beside, config="new")
        write_folder(beside / "sub", a="new")
    assert tree(path) == {"config": "new", "notes": "mine", "sub/a": "new"} and path.stat().st_ino == number
    assert names(tmp_path) == ["model"] and names(path) == ["config", "notes", "sub"]


def test_a_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "model", config="old")
    no_exchange(monkeypatch, "none")
    rename = os.rename

    def fail(old, new):
        if str(old).endswith(".part"):
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr("tinyft.files.os.rename", fail)
    with pytest.raises(OSError, match="Input/output"), replacing_folder(path) as beside:
        write_folder(beside, config="new")
    assert tree(path) == {"config": "old"} and names(tmp_path) == ["model"]


def test_a_kill_between_two_renames_is_mended(tmp_path):
    path = tmp_path / "model"
    recover_folder(path)
    write_folder(tmp_path / ".model.old", config="old")
    recover_folder(path)
    assert tree(tmp_path) == {"model/config": "old"}
    write_folder(tmp_path / ".model.old", config="older")
    recover_folder(path)
    assert tree(tmp_path) == {"model/config": "old"} and names(tmp_path) == ["model"]


def test_a_folder_is_mended_before_it_is_replaced(tmp_path):
    write_folder(tmp_path / ".model.old", config="old", notes="mine")
    with replacing_folder(tmp_path / "model", ["config"]) as beside:
        write_folder(beside, config="new")
    assert tree(tmp_path) == {"model/config": "new", "model/notes": "mine"} and names(tmp_path) == ["model"]


def test_new_files_are_flushed_before_they_get_their_name(tmp_path, monkeypatch):
    """Or a machine that stops could leave a folder of empty files."""
    path, done = write_folder(tmp_path / "model", config="old"), []
    flush, exchange = tinyft.files.flush, tinyft.files._exchange
    monkeypatch.setattr("tinyft.files.flush", lambda which: (done.append(which.name), flush(which)))
    monkeypatch.setattr("tinyft.files._exchange", lambda *names: (exchange(*names), done.append("exchange")))
    with replacing_folder(path, ["config"]) as beside:
        write_folder(beside, config="new")
    assert done == ["config", beside.name, "exchange", tmp_path.name]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    write_folder(tmp_path, **{".a.json.12.part": "half", "b.part": "mine", ".c": "mine"})
    write_folder(tmp_path / ".model.12.part", config="half")
    (tmp_path / ".d.12.part").symlink_to("b.part")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".c", "b.part"]
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, read_json, read_json_lines):
        with pytest.raises(ValueError, match="pipe is a device, expected a file"):
            read(tmp_path / "pipe")


def test_a_number_with_too_many_digits_names_the_place(tmp_path):
    (tmp_path / "x").write_text("9" * 5000)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x'}: Exceeds the limit"):
        read_json(tmp_path / "x")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x'}, line 1: Exceeds the limit"):
        read_json_lines(tmp_path / "x")
