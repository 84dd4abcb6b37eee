"""Files of replies: the forms that are read, and what belongs together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyft import Turn
from tinyft.evaluation.reply_files import Answered, check_same_questions, read_answered


def answered(*replies: str) -> list[Answered]:
    return [Answered((Turn("user", f"Say word {i}."),), reply) for i, reply in enumerate(replies)]


def write(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_forms_of_files(tmp_path):
    ours = read_answered(write(tmp_path / "a", [
        {"instruction": "Plural.", "input": "mouse", "output": "mice", "family": "f", "model_response": "mouses",
         "model_response_before": "no"}]))
    assert ours == [Answered((Turn("user", "Plural.", "mouse"),), "mouses", "mice", "no", "f")]
    chat = read_answered(write(tmp_path / "b", [{"model_response": "7", "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "u", "input": "i"},
        {"role": "assistant", "content": "6"}]}]))
    assert chat == [Answered((Turn("system", "s"), Turn("user", "u", "i")), "7", "6")]
    lines = [{"prompt": "Hi", "reply": "Ho", "finish_reason": "stop"},
             {"messages": [{"role": "user", "content": "u"}], "reply": "v"}]
    generated = read_answered(write(tmp_path / "c", "".join(json.dumps(line) + "\n" for line in lines)))
    assert generated == [Answered((Turn("user", "Hi"),), "Ho"), Answered((Turn("user", "u"),), "v")]
    alpaca_eval = read_answered(write(tmp_path / "d", [{"instruction": "Hi", "output": "Ho", "generator": "mine"}]))
    assert alpaca_eval == [Answered((Turn("user", "Hi"),), "Ho", name="mine")]
    keyed = read_answered(write(tmp_path / "e", [{"instruction": "Hi", "output": "Ho", "mine": 7}]), "mine")
    assert keyed == [Answered((Turn("user", "Hi"),), "7", "Ho")]


@pytest.mark.parametrize("content, said", [
    ("[]", "no replies in it"), ("[3]", "entry 1 is a number"), ('[{"instruction": "Hi", "output": "Ho"}]', "no reply"),
    ('[{"model_response": "x"}]', "nothing is asked"),
    ('[{"instruction": "a", "model_response": [1]}]', "expected text"),
    ('[{"messages": 3, "model_response": "x"}]', "no list of messages"), ("nonsense", "not JSON"),
    ('[{"messages": [{"role": "x"}], "model_response": "x"}]', "no list of messages"),
])
def test_files_that_are_none(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        read_answered(write(tmp_path / "f.json", content))


def test_two_files_must_ask_the_same():
    ours, theirs = answered("a", "b", "c"), answered("x", "y", "z")
    moved = check_same_questions(Path("a"), ours, Path("b"), [theirs[2], theirs[0], theirs[1]])
    assert [item.reply for item in moved] == ["x", "y", "z"]
    with pytest.raises(ValueError, match='a, entry 3: "Say word 2." is not asked in b'):
        check_same_questions(Path("a"), ours, Path("b"), theirs[:2])
    with pytest.raises(ValueError, match="b has 3 entries and a 2"):
        check_same_questions(Path("a"), ours[:2], Path("b"), theirs)
    twice = check_same_questions(Path("a"), ours[:1] * 2, Path("b"), [theirs[0], Answered(theirs[0].turns, "second")])
    assert [item.reply for item in twice] == ["x", "second"]
