"""Reading replies and marking them: what is read, which mark belongs to what, shares, the page's server, the script."""

from __future__ import annotations

import json
import math
import re

import pytest
from fake_arena import serving
from hypothesis import given
from hypothesis import strategies as st
from tiny import example, in_process

from tinyft.evaluation.journal import Journal
from tinyft.evaluation.review import MARKS, Reply, Review, marks_path, read_replies, summary_table
from tinyft.evaluation.statistics import wilson_interval

ENTRIES = [
    {"instruction": "Plural?", "input": "a cat", "output": "cats", "family": "plural", "model_response": "cats"},
    {"instruction": "Plural?", "input": "a mouse", "output": "mice", "family": "plural", "model_response": "mouses"},
    {"instruction": "Capital?", "input": "", "output": "Paris", "family": "capital", "model_response": "Paris.",
     "before": "Paris? Paris!"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi", "input": "you"},
                  {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Name?"},
                  {"role": "assistant", "content": "Tom"}], "model_response": "Tim"},
]


@pytest.fixture
def file(tmp_path):
    """A file of replies."""
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    return path


def open_review(file) -> Review:
    return Review(read_replies(file), Journal(marks_path(file)))


@pytest.fixture
def review(file):
    review = open_review(file)
    yield review
    review.journal.close()


# ---- what is read


def test_replies_are_read(file):
    replies = read_replies(file)
    assert [reply.index for reply in replies] == [0, 1, 2, 3]
    first, last = replies[0], replies[3]
    assert (first.instruction, first.input, first.expected, first.reply, first.family, first.asked) == (
        "Plural?", "a cat", "cats", "cats", "plural", "")
    assert (last.instruction, last.input, last.expected, last.reply, last.family) == ("Name?", "", "Tom", "Tim", "")
    assert last.asked == "system: Be brief.\n\nuser: Hi\nyou\n\nassistant: Hello"


def test_another_key_has_the_reply(file):
    file.write_text(json.dumps(ENTRIES[2:3]))
    assert read_replies(file, "before")[0].reply == "Paris? Paris!"
    with pytest.raises(ValueError, match="entry 1: no reply; its keys are .*instruction.* expected 'after'.*--reply"):
        read_replies(file, "after")


@pytest.mark.parametrize("content, said", [
    ("[]", "no replies in it"), ("[3]", "entry 1"), ("[", "line 1, column 2"),
    ('[{"instruction": "a"}]', "entry 1: no reply; its keys are 'instruction', expected 'model_response'"),
    ('[{"model_response": "b"}]', "entry 1: nothing is asked"),
    ('[{"model_response": "", "messages": "a"}]', "'messages' is no list"),
    ('[{"model_response": "", "messages": [{"role": 3}]}]', "'messages' is no list"),
])
def test_files_that_are_none(file, content, said):
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_replies(file)
    with pytest.raises(ValueError, match="cannot read it"):
        read_replies(file.with_name("none.json"))


def test_texts_that_utf8_cannot_write(file):
    file.write_text('[{"instruction": "a", "model_response": "\\ud800b"}]')
    with pytest.raises(ValueError, match="entry 1: 'model_response' has an unpaired surrogate"):
        read_replies(file)


# ---- marks


def test_the_last_mark_stands_also_for_the_next_run(file, review):
    review.set(0, "wrong")
    review.set(1, "half", "nearly")
    review.set(0, "right", "after all\n\u202ereally")
    review.set(2, "wrong")
    review.set(2, "", "later")
    review.journal.close()
    again = open_review(file)
    for found in (review, again):
        assert [found.mark(i).mark for i in range(4)] == ["right", "half", "", ""]
        assert [found.mark(i).note for i in range(4)] == ["after all\n\u202ereally", "nearly", "later", ""]
        assert [row["mark"] for row in found.exported()] == ["right", "half", None]
    assert again.exported()[1] == {"index": 1, "mark": "half", "note": "nearly", "family": "plural",
                                   "instruction": "Plural?", "reply": "mouses"}


@pytest.mark.parametrize("key", ["instruction", "input", "output", "model_response"])
def test_marks_of_another_text_are_not_shown(file, review, key):
    review.set(0, "right")
    review.set(1, "wrong")
    review.journal.close()
    changed = [dict(entry) for entry in ENTRIES]
    changed[0][key] += "!"
    file.write_text(json.dumps(changed[::-1]))
    found = open_review(file)
    assert [found.mark(i).mark for i in range(4)] == ["", "", "wrong", ""] and found.n_others == 1
    file.write_text(json.dumps(ENTRIES))
    found.journal.close()
    assert open_review(file).mark(0).mark == "right", "it waits for its reply to come back"


def test_the_family_does_not_matter_to_a_mark_and_earlier_turns_do(file, review):
    review.set(0, "right")
    review.set(3, "right")
    review.journal.close()
    changed = json.loads(json.dumps(ENTRIES))
    changed[0]["family"] = "other"
    changed[3]["messages"][0]["content"] = "Be long."
    file.write_text(json.dumps(changed))
    found = open_review(file)
    assert [found.mark(i).mark for i in (0, 3)] == ["right", ""]


def test_replies_that_are_the_same_share_a_mark(file):
    file.write_text(json.dumps([ENTRIES[0], ENTRIES[0]]))
    review = open_review(file)
    review.set(1, "half")
    assert review.same_as(0) == [0, 1]
    assert [row["index"] for row in review.exported()] == [0, 1] and review.summary()[0]["marked"] == 2


def test_a_journal_of_something_else(file):
    marks_path(file).write_text('{"id": "1", "winner": "tie"}\n')
    with pytest.raises(ValueError, match="mark 1: expected an object with entry, mark"):
        open_review(file)


@given(st.lists(st.sampled_from(["", *MARKS]), min_size=1, max_size=30))
def test_shares(marks):
    class Memory:
        records, path = [], ""

        def append(self, record):
            """Forget it."""

    review = Review([Reply(i, f"{i}", "", "", "", "ab"[i % 2]) for i in range(len(marks))], Memory())
    for i, mark in enumerate(marks):
        review.set(i, mark)
    for row, first, step in zip(review.summary(), (0, 0, 1), (1, 2, 2), strict=False):
        given_marks = [mark for mark in marks[first::step] if mark]
        right = given_marks.count("right") + given_marks.count("half") / 2
        assert row["marked"] == len(given_marks) and row["replies"] == len(marks[first::step])
        assert [row[mark] for mark in MARKS] == [given_marks.count(mark) for mark in MARKS]
        if given_marks:
            assert math.isclose(row["share"], right / len(given_marks))
            assert (row["low"], row["high"]) == wilson_interval(right, len(given_marks))
        else:
            assert row["share"] is row["low"] is row["high"] is None


def test_the_summary_as_text(review):
    review.set(0, "right")
    review.set(1, "half")
    rows = review.summary()
    assert [row["family"] for row in rows] == ["", "", "capital", "plural"]
    lines = summary_table(rows).splitlines()
    assert lines[1].split()[:6] == ["all", "replies", "2", "1", "1", "0"] and " 75%  " in lines[1]
    assert lines[2].startswith("(no family)") and lines[3].split() == ["capital", "0", "0", "0", "0"]


# ---- over HTTP


@pytest.fixture
def client(review):
    httpx = pytest.importorskip("httpx", reason="needs pip install httpx '.[arena]'")
    pytest.importorskip("uvicorn", reason="needs pip install httpx '.[arena]'")
    from tinyft.evaluation.review_server import ReviewServer

    with serving(ReviewServer(review, "replies.json")) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_mark_over_http(client, file):
    overview = client.get("/api/review").json()
    assert overview["title"] == "replies.json" and [reply["mark"] for reply in overview["replies"]] == [""] * 4
    reply = client.get("/api/replies/1").json()
    assert (reply["expected"], reply["reply"], reply["mark"]) == ("mice", "mouses", "")
    answer = client.post("/api/marks", json={"index": 1, "entry": reply["entry"], "mark": "half", "note": "s"}).json()
    assert answer["summary"][0]["half"] == 1
    assert json.loads(marks_path(file).read_text())["mark"] == "half", "on disk before the answer"
    assert client.get("/api/replies/1").json()["note"] == "s"
    download = client.get("/marks.json")
    assert 'filename="marks.json"' in download.headers["content-disposition"]
    assert [(row["index"], row["mark"]) for row in download.json()] == [(1, "half")]


def test_what_is_not_sent_stays(client, file):
    entry = client.get("/api/replies/1").json()["entry"]

    def send(**change):
        return client.post("/api/marks", json={"index": 1, "entry": entry} | change)

    assert send(mark="half").json()["mark"] == "half"
    assert send(note="s").json()["mark"] == "half"
    assert send(mark="wrong").json()["indices"] == [1]
    assert [client.get("/api/replies/1").json()[key] for key in ("mark", "note")] == ["wrong", "s"]
    send(mark="")
    assert [client.get("/api/replies/1").json()[key] for key in ("mark", "note")] == ["", "s"]
    send(note="")
    before = marks_path(file).read_text()
    refused = send()
    assert refused.status_code == 400 and "a mark or a note" in refused.json()["error"]["message"]
    assert marks_path(file).read_text() == before


@pytest.mark.parametrize("changes, status, said", [
    ({"entry": "other"}, 409, "load it again"), ({"index": 4}, 400, "from 0 to 3"), ({"index": -1}, 400, "from 0 to 3"),
    ({"index": True}, 400, "from 0 to 3"), ({"index": None}, 400, "from 0 to 3"),
    ({"mark": "good"}, 400, "one of right"), ({"mark": None}, 400, "one of right"),
    ({"mark": ["right"]}, 400, "one of right"), ({"note": 3}, 400, "a text"),
    ({"more": 3}, 400, "'more'"),
])
def test_marks_that_are_none(client, file, changes, status, said):
    entry = client.get("/api/replies/1").json()["entry"]
    answer = client.post("/api/marks", json={"index": 1, "entry": entry, "mark": "half", "note": ""} | changes)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert marks_path(file).read_text() == ""


def test_who_may_ask(client, file):
    entry = client.get("/api/replies/1").json()["entry"]
    body = json.dumps({"index": 1, "entry": entry, "mark": "half"}).encode()
    assert client.post("/api/marks", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    for path in ("/", "/api/review", "/api/replies/1", "/marks.json"):
        assert client.get(path, headers={"Host": "example.org"}).status_code == 403
        assert client.get(path).status_code == 200
    assert client.get("/api/replies/9").status_code == 404 and marks_path(file).read_text() == ""
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not any(sign in page.text for sign in ("http://", "https://", "src=\"", "@import", "url("))


def test_a_mark_that_cannot_be_written(client, review, monkeypatch):
    entry = client.get("/api/replies/1").json()["entry"]

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(review.journal, "append", full)
    answer = client.post("/api/marks", json={"index": 1, "entry": entry, "mark": "half"})
    assert answer.status_code == 507 and "doesn't count: No space left" in answer.json()["error"]["message"]
    assert client.get("/api/replies/1").json()["mark"] == ""


# ---- the script


def test_export(file, review, tmp_path):
    review.set(0, "right")
    review.set(1, "wrong", "no such word")
    review.set(2, note="see")
    review.journal.close()
    with marks_path(file).open("ab") as torn:
        torn.write(b'{"entry": ')
    result = example("review.py", file, "--export", "marks.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 marks, and 1 of notes alone, written to marks.json" in result.stdout
    assert marks_path(file).read_bytes().endswith(b'{"entry": '), "nothing is repaired, the page may be writing"
    assert "all replies       2      1     0      1  50%" in result.stdout
    exported = json.loads((tmp_path / "marks.json").read_text(encoding="utf-8"))
    assert [set(row) for row in exported] == [{"index", "mark", "note", "family", "instruction", "reply"}] * 3
    assert [(row["mark"], row["note"]) for row in exported] == [("right", ""), ("wrong", "no such word"), (None, "see")]


def test_export_while_the_page_is_open(file, review, tmp_path):
    review.set(0, "right")
    result = example("review.py", file, "--export", "m.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["mark"] for row in json.loads((tmp_path / "m.json").read_text())] == ["right"]


@pytest.mark.parametrize("name", ["replies.json", "replies.marks.jsonl", "link.json"])
def test_an_export_never_replaces_what_it_reads(file, review, monkeypatch, capsys, name):
    review.set(0, "right")
    file.with_name("link.json").symlink_to(marks_path(file))
    before = [path.read_bytes() for path in (file, marks_path(file))]
    code = in_process("review.py", [str(file), "--export", str(file.with_name(name))], monkeypatch, capsys)
    assert "would be lost" in str(code) and [path.read_bytes() for path in (file, marks_path(file))] == before


@pytest.mark.parametrize("content", ['{"instruction": "a", "model_response": "b"}', '[{"entry": "e"}]', "a text", ""])
def test_another_file_in_place_of_the_marks_stays_as_it_is(file, monkeypatch, capsys, content):
    other = file.with_name("other.json")
    other.write_text(content or '{"time": 1}')
    code = in_process("review.py", [str(file), "--marks", str(other), "--port", "0"], monkeypatch, capsys)
    assert str(code).startswith("error: ") and str(other) in str(code)
    assert other.read_text() == (content or '{"time": 1}')


@pytest.mark.parametrize("arguments, said", [
    (["none.json"], "none.json: cannot read it"), (["replies.json", "--export", "m.json"], "there are no marks yet"),
    (["replies.json", "--reply", "after"], "expected 'after'"),
    (["replies.json", "--port", "70000"], "at most 65535"),
])
def test_a_start_that_fails_says_why(file, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(file.parent)
    code = in_process("review.py", arguments, monkeypatch, capsys)
    assert str(code).startswith("error: ") and said in str(code)
    assert not marks_path(file).exists()
