"""AlpacaEval: instructions are read, answered, and written as alpaca_eval reads them."""

import json

import pytest
from tiny import CONTEXT, TOKENIZER, make_model, one_thread  # noqa: F401

from tinyft import Engine, ask
from tinyft.evaluation.alpaca_eval import Written, output_rows, read_instructions, write_outputs

ENTRIES = [{"instruction": f"Say word {number}.", "dataset": f"set {number % 2}"} for number in range(4)]
STYLE = "phi3"  # its prompts are short


@pytest.fixture(scope="module")
def engine():
    return Engine(make_model())


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_what_is_read(tmp_path):
    path = write(tmp_path / "set.json", [{**ENTRIES[0], "output": "yes", "generator": "x"}, {"instruction": "Ünder"}])
    assert read_instructions(path) == [ENTRIES[0], {"instruction": "Ünder", "dataset": ""}]


@pytest.mark.parametrize(("value", "message"), [
    ({"instruction": "x"}, "expected a JSON list"), ([], "expected a JSON list"),
    ([ENTRIES[0], "x"], "entry 2: expected an object"), ([{"instruction": ""}], "entry 1: expected an object"),
    ([{"dataset": "x"}], "entry 1: expected an object"),
    ([{"instruction": "x", "dataset": 3}], "entry 1: \"dataset\" is 3, expected a text"),
])
def test_what_is_no_set_of_instructions_is_named(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_instructions(write(tmp_path / "set.json", value))


def test_answers_are_the_models_own_in_its_style(engine, tmp_path):
    path = tmp_path / "out.json"
    written = write_outputs(engine, TOKENIZER, ENTRIES, path, "tuned", max_new_tokens=6, prompt_style=STYLE, what="")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [list(row) for row in rows] == [["dataset", "instruction", "output", "generator"]] * 4
    for entry, row in zip(ENTRIES, rows, strict=True):
        expected = ask(engine, TOKENIZER, entry["instruction"], prompt_style=STYLE, max_new_tokens=6)
        assert row == {**entry, "output": expected, "generator": "tuned"} and expected
    assert written.answers == 4 and written.empty == written.not_asked == 0
    plain = write_outputs(engine, TOKENIZER, ENTRIES[:1], path, "tuned", max_new_tokens=6, what="")
    assert json.loads(path.read_text(encoding="utf-8"))[0]["output"] == ask(
        engine, TOKENIZER, ENTRIES[0]["instruction"], max_new_tokens=6)
    assert plain.answers == 1


def test_only_the_first_are_asked(engine, tmp_path):
    path = tmp_path / "out.json"
    assert write_outputs(engine, TOKENIZER, ENTRIES, path, "tuned", limit=2, max_new_tokens=1, prompt_style=STYLE,
                         what="").answers == 2
    assert [row["instruction"] for row in json.loads(path.read_text())] == ["Say word 0.", "Say word 1."]


def test_answers_that_are_cut_empty_or_lack_room_are_counted(engine, tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    first = ask(engine, TOKENIZER, ENTRIES[0]["instruction"], prompt_style=STYLE, max_new_tokens=6)
    assert first
    entries = [{"instruction": "word " * CONTEXT, "dataset": ""}, *ENTRIES]
    written = write_outputs(engine, TOKENIZER, entries, path, "tuned", max_new_tokens=3, prompt_style=STYLE, what="")
    assert written == Written(answers=5, cut=4, empty=0, not_asked=1)
    assert [bool(row["output"]) for row in json.loads(path.read_text())] == [False] + [True] * 4
    # Every token ends the answer, so that nothing is written and nothing is cut.
    monkeypatch.setattr(TOKENIZER, "stop_tokens", tuple(range(TOKENIZER.n_vocab)))
    written = write_outputs(engine, TOKENIZER, entries, path, "tuned", max_new_tokens=3, prompt_style=STYLE, what="")
    assert written == Written(answers=5, cut=0, empty=4, not_asked=1)
    assert str(written) == ("5 answers, of which 4 empty, 1 empty, since their prompts leave no room in the context")


def test_an_answer_ends_where_the_context_is_full(engine, tmp_path):
    path = tmp_path / "out.json"
    written = write_outputs(engine, TOKENIZER, ENTRIES[:1], path, "tuned", max_new_tokens=10 * CONTEXT,
                            prompt_style=STYLE, what="")
    assert written.cut == 1 and "1 cut" in str(written)


def test_nobody_is_asked_in_vain(tmp_path):
    """A name or a place that won't do is found before the model works."""
    for path, generator, message in ((tmp_path, "tuned", "is a folder"), (tmp_path / "out.json", " ", "needs a name")):
        with pytest.raises(ValueError, match=message):
            write_outputs(None, TOKENIZER, ENTRIES, path, generator)


def test_rows_and_answers_belong_together():
    assert str(Written(3, 0, 0, 0)) == "3 answers"
    with pytest.raises(ValueError):
        output_rows(ENTRIES, ["one"], "tuned")
