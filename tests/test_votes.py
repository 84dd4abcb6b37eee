"""Append-only files, and what lines of votes hold."""

from __future__ import annotations

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyft.evaluation import journal as journal_module
from tinyft.evaluation.journal import Journal, read_journal
from tinyft.evaluation.votes import WINNERS, Vote, check_vote, read_votes, storable

VOTE = Vote("1", 1.5, "Hi?", "a", "b", "yes", "no", "model_a", "Ann").record()


def records_after(path) -> list[dict]:
    journal = Journal(path)
    journal.close()
    return journal.records


def test_what_is_added_is_there_for_the_next(tmp_path):
    path = tmp_path / "votes.jsonl"
    journal = Journal(path)
    assert journal.records == [] and journal.repaired == ""
    journal.append({"text": "eins\nzwei \u2028 drei \0 \x1b[31m \u202e"})
    journal.append({"n": 2})
    assert path.read_bytes().count(b"\n") == 2
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == journal.records
    journal.close()
    assert records_after(path) == journal.records == [{"text": "eins\nzwei \u2028 drei \0 \x1b[31m \u202e"}, {"n": 2}]


def test_each_record_is_on_disk_before_append_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(journal_module.os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), real(file)))
    journal = Journal(tmp_path / "votes.jsonl")
    synced.clear()
    for n in range(3):
        journal.append({"n": n})
        assert synced[-1] == (tmp_path / "votes.jsonl").stat().st_size and len(synced) == n + 1
    journal.close()


@given(cut=st.integers(0, 60))
def test_a_torn_last_line(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "votes.jsonl"
    first, second = (json.dumps({"text": text, "more": {"n": [1]}}).encode() for text in ("ä{}", "a" * 20))
    whole = first + b"\n" + second + b"\n"
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = [json.loads(line) for line in (first, second)
            if path.read_bytes().startswith(line, 0 if line == first else len(first) + 1)]
    journal = Journal(path)
    assert journal.records == kept
    assert bool(journal.repaired) == (not whole[: max(0, len(whole) - cut)].endswith(b"\n") and cut < len(whole))
    journal.append({"n": 3})
    journal.close()
    assert records_after(path) == [*kept, {"n": 3}]


def test_a_tail_of_zeros_or_half_a_character_is_cut(tmp_path):
    path = tmp_path / "votes.jsonl"
    for tail in (b"\0" * 4096, '{"a": "ä'.encode()[:-1], b"{"):
        path.write_bytes(b'{"n": 1}\n' + tail)
        journal = Journal(path)
        assert f"{len(tail)} bytes" in journal.repaired and journal.records == [{"n": 1}]
        journal.close()
        assert path.read_bytes() == b'{"n": 1}\n'


def test_a_bad_line_within_is_named_and_nothing_changed(tmp_path):
    path = tmp_path / "votes.jsonl"
    for content, said in ((b'{"n": 1}\n{"n": \n{"n": 3}\n', "line 2: not JSON"), (b"[1]\n", "line 1: expected a JSON"),
                          (b'"\xff"\n', "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            Journal(path)
        assert path.read_bytes() == content
    path.write_bytes(b'{"n": 1}\n')
    assert records_after(path) == [{"n": 1}], "the failed tries let go of the file"


@pytest.mark.parametrize("content", [
    b"A text.", b"[1, 2]", b'[{"n": 1}]', b"[" * 100_000, b"first line\nsecond", b'[\n  {"n": 1}\n]', b"\n\n[1]",
    '{"n": 1}'.encode("utf-16-be"), b'"{}"', b"7", b'{"n": 1}\n[1]\n{"n', b'{"n": 1}\n' + b"[" * 100_000 + b"\n{",
])
def test_a_file_that_is_no_journal_is_refused_as_it_is(tmp_path, content):
    path = tmp_path / "replies.json"
    path.write_bytes(content)
    for read in (Journal, read_journal):
        with pytest.raises(ValueError, match="replies.json"):
            read(path)
        assert path.read_bytes() == content


def test_a_deep_tail_after_a_record_is_cut(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"n": 1}\n{"a": ' + b"[" * 100_000)
    assert records_after(path) == [{"n": 1}] and path.read_bytes() == b'{"n": 1}\n'


@pytest.mark.parametrize("content", [b'{"n": 1}\n{"n": ', b'{"n": 1}', b'{"n": 0}\n{"n": 1}', b'{"n": 1}\n'])
def test_what_does_not_belong_there_keeps_the_file_from_being_changed(tmp_path, content):
    path, seen = tmp_path / "settings.jsonl", []

    def check(record, where):
        seen.append(where)
        if record["n"]:
            raise ValueError(f"{where}: no such records")

    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"line \d: no such records"):
        Journal(path, check)
    assert path.read_bytes() == content and seen[-1] == f"{path}, line {content.count(b': 0') + 1}"


def test_a_journal_is_read_while_another_writes(tmp_path):
    path = tmp_path / "votes.jsonl"
    journal = Journal(path)
    journal.append({"n": 1})
    with path.open("ab") as file:
        file.write('{"a": "ä'.encode()[:-1])
    found = read_journal(path)
    assert found.records == [{"n": 1}] and found.tail and not found.tail_is_record
    assert path.read_bytes().endswith(found.tail)
    journal.close()
    path.write_bytes(b'{"n": 1}')
    assert read_journal(path).records == [{"n": 1}] and path.read_bytes() == b'{"n": 1}'


def test_a_disk_that_is_full_leaves_no_part_of_a_record(tmp_path, monkeypatch):
    path = tmp_path / "votes.jsonl"
    journal = Journal(path)
    journal.append({"n": 1})
    real, writes = os.write, []

    def full(file, data):
        writes.append(data)
        if len(writes) > 1:
            raise OSError(28, "No space left on device")
        return real(file, data[:5])

    monkeypatch.setattr(journal_module.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.append({"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n' and journal.records == [{"n": 1}]
    monkeypatch.setattr(journal_module.os, "write", lambda file, data: real(file, data[:3]))  # in parts
    journal.append({"n": 3})
    journal.close()
    assert records_after(path) == [{"n": 1}, {"n": 3}]


def test_one_process_at_a_time(tmp_path, run_python):
    path = tmp_path / "votes.jsonl"
    journal = Journal(path)
    with pytest.raises(ValueError, match="being written by another process; stop that"):
        Journal(path)
    other = run_python(f"from tinyft.evaluation.journal import Journal; Journal({str(path)!r})")
    assert "being written by another process" in other.stderr
    journal.close()
    assert records_after(path) == []


def test_threads_share_a_journal(tmp_path):
    journal = Journal(tmp_path / "votes.jsonl")
    threads = [threading.Thread(target=lambda i=i: [journal.append({"i": i, "n": n}) for n in range(20)])
               for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    found = records_after(tmp_path / "votes.jsonl")
    assert sorted((record["i"], record["n"]) for record in found) == [(i, n) for i in range(4) for n in range(20)]


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="cannot write it"):
        Journal(tmp_path / "nowhere" / "votes.jsonl")
    with pytest.raises(ValueError, match="cannot write it"):
        Journal(tmp_path)


@pytest.mark.parametrize("changes, said", [
    ({"winner": "model_c"}, "'winner' is 'model_c'"), ({"model_b": "a"}, "both 'a'"), ({"reply_a": None}, "'reply_a'"),
    ({"prompt": 3}, "'prompt' is 3"), ({"id": None}, "'id'"),
])
def test_votes_that_are_none(tmp_path, changes, said):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(VOTE) + "\n" + json.dumps(VOTE | changes) + "\n")
    with pytest.raises(ValueError, match=f"line 2: .*{said}"):
        read_votes(path)
    assert all(check_vote(VOTE | {"winner": winner}, "") for winner in WINNERS.values())
    with pytest.raises(ValueError, match="expected a JSON object"):
        check_vote([], "here")


def test_votes_are_read_while_one_is_written(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(VOTE) + '\n{"id": "2", "ti')
    assert read_votes(path) == [VOTE]
    with pytest.raises(ValueError, match="cannot read it"):
        read_votes(tmp_path / "none.jsonl")


@given(st.text(st.characters(exclude_categories=[]), max_size=8))
def test_storable(text):
    kept = storable(text)
    assert kept.encode() is not None
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert kept == text


def test_storable_joins_pairs_and_replaces_halves():
    assert storable("a\ud83d\ude00b") == "a\U0001f600b"
    assert storable("\ud800a\udc00") == "\ufffda\ufffd"
