"""The scripts in examples/, run as a user runs them, on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import (
    CONTEXT,
    EXAMPLES,
    TOKENIZER,
    error_line,
    example,
    in_process,
    make_entries,
    write_entries,
)

from tinyft import Entry, load_model, load_model_and_tokenizer, reply
from tinyft.data.prompts import PROMPT_STYLES, encode_prompt

SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
ENTRIES = make_entries(40)
SHORT = ("--max-steps", "3", "--batch-size", "4", "--max-new-tokens", "3")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_entries(tmp_path_factory.mktemp("data") / "my.json", ENTRIES)


@pytest.fixture(scope="module")
def tuned(model_folder, data, tmp_path_factory):
    """One run of finetune_alpaca.py from end to end."""
    folder = tmp_path_factory.mktemp("runs")
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "mine",
                     "--in-file-order", *SHORT, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "mine", result


# ---- finetune_alpaca.py


def test_finetune_leaves_a_model_and_replies(tuned):
    folder, result = tuned
    model, tokenizer = load_model_and_tokenizer(folder / "model")
    records = json.loads((folder / "replies.json").read_text(encoding="utf-8"))
    assert len(records) == 4
    for entry, record in zip(ENTRIES[34:38], records, strict=True):
        assert list(record) == ["instruction", "input", "output", "model_response_before", "model_response"]
        assert (record["instruction"], record["input"], record["output"]) == (entry.instruction, entry.input,
                                                                              entry.output)
        prompt = encode_prompt(entry.turns[:-1], PROMPT_STYLES["alpaca"], tokenizer)
        assert record["model_response"] == reply(model, tokenizer, prompt, max_new_tokens=3)
    assert not (folder / "training_state.safetensors").exists()
    assert not [path for path in folder.rglob("*.part")]


def test_finetune_leaves_metrics_and_a_plot(tuned):
    folder, _ = tuned
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]
    assert [event["step"] for event in events if event["kind"] == "evaluation"][0] == 0
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_finetune_says_what_it_does(tuned):
    folder, result = tuned
    assert "34 entries to train on, 2 to validate, 4 test entries" in result.stdout
    assert re.search(r"model +\S+: 0\.0 M parameters, context 128", result.stdout)
    assert "validation " in result.stdout and "saved to mine" in result.stdout
    head = next(line for line in result.stdout.splitlines() if line.startswith("instruction"))
    assert head.split(" | ")[0].strip() == "instruction" and head.split("|")[-1].strip() == "after"
    for entry in ENTRIES[34:38]:
        assert entry.instruction in result.stdout
    assert "Traceback" not in result.stderr


def test_finetune_refuses_to_overwrite(tuned, model_folder, data):
    folder, _ = tuned
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    common = ("--model", model_folder, "--data", data, "--output-dir", "mine", "--in-file-order", *SHORT)
    line = error_line(example("finetune_alpaca.py", *common, cwd=folder.parent))
    for part in ("mine holds a run", "--overwrite", "another folder"):
        assert part in line
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finetune_overwrites_when_told(model_folder, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("old\n")
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "mine",
                     "--overwrite", "--test-share", "0", "--no-mask-prompt", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "old" not in (tmp_path / "mine" / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "mine" / "replies.json").read_text(encoding="utf-8")) == []
    assert not [line for line in result.stdout.splitlines() if line.rstrip().endswith(",")]


def test_finetune_with_an_entry_that_the_context_cannot_hold(model_folder, tmp_path):
    """Too long a prompt: left out of training and validation, an empty reply in the test."""
    too_long = Entry.single("x" * CONTEXT, "", "yes")
    entries = [too_long, *ENTRIES[1:34], too_long, *ENTRIES[35:38], too_long, ENTRIES[39]]
    data = write_entries(tmp_path / "long.json", entries)
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "mine",
                     "--in-file-order", *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search("dropped +2  with a prompt of more than 128 tokens", result.stdout)
    records = json.loads((tmp_path / "mine" / "replies.json").read_text(encoding="utf-8"))
    assert len(records) == 4 and records[0]["model_response"] == ""


def test_finetune_show_mask(model_folder, data, tmp_path):
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--show-mask", "--in-file-order",
                     cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = result.stdout.split("\n\n\x1b")
    assert result.stdout.count("<|endoftext|>") == 3
    for entry in ENTRIES[:3]:
        green = f"\x1b[32m{entry.output}<|endoftext|>\x1b[0m"
        assert "\\n\n\x1b[0m" + green in result.stdout, shown
    assert result.stdout.count("\x1b[32m") == 3
    assert [path.name for path in tmp_path.iterdir()] == []


def test_finetune_on_data_as_people_have_them(model_folder, tmp_path):
    """Two files, one of other columns and one of conversations; tests of their own; the report says what was read."""
    lines = [json.dumps({"id": i, "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Say {i}"},
        {"role": "assistant", "content": f"{i}<|endoftext|>"}]}) for i in range(9)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    rows = "".join(f"Say word {i}.,{'ab'[i % 2] * 3}\n" for i in range(30))
    (tmp_path / "table.csv").write_text(f"question,answer\n{rows}")
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", "chat.jsonl", "--data", "table.csv",
                     "--test-data", "chat.jsonl", "--prompt-style", "chatml", "--output-dir", "mine", *SHORT,
                     cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for line in ("39 entries: 30 question/answer, 9 messages; from 2 files", "ignored keys +9  'id'",
                 "9 entries with an end of text that is written out in a reply"):
        assert re.search(line, result.stdout), result.stdout
    records = json.loads((tmp_path / "mine" / "replies.json").read_text(encoding="utf-8"))
    assert records[3]["messages"][-1] == {"role": "assistant", "content": "3"}


def test_finetune_with_columns_of_ones_own(model_folder, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"ask": f"Say {i}", "reply": "yes"} for i in range(20)]))
    arguments = ("finetune_alpaca.py", "--model", model_folder, "--data", "data.json", "--show-mask")
    line = error_line(example(*arguments, cwd=tmp_path))
    assert "none of the known forms; its keys are 'ask', 'reply'; say which are meant with --columns" in line
    assert "NAME=KEY" in error_line(example(*arguments, "--columns", "ask", cwd=tmp_path))
    result = example(*arguments, "--columns", "instruction=ask,output=reply", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("\x1b[32myes<|endoftext|>\x1b[0m") == 3, result.stderr


def test_finetune_into_a_folder_that_cannot_be(model_folder, data, tmp_path):
    (tmp_path / "file").write_text("x")
    line = error_line(example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir",
                              "file/below", *SHORT, cwd=tmp_path))
    assert "file/below: cannot write there" in line and "choose another folder" in line


@pytest.mark.parametrize("content, said", [
    (None, "bad.json is missing"),
    (b'[{"instruction": ', "bad.json, line 1, column 18: not JSON"),
    (b'[{"instruction": "x", "output": "y"}, {"instruction": "x"}]', "bad.json, entry 2: 'output' is missing"),
    (b'[{"instruction": "\xff", "output": "y"}]', "bad.json: not UTF-8 text"),
    (b"[]", "bad.json: no entries"),
    (b'[{"instruction": "x", "output": ""}, {"instruction": "y", "output": ""}]', "bad.json: no entry to train on"),
])
def test_finetune_with_bad_data(content, said, model_folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    code = in_process("finetune_alpaca.py", ["--model", model_folder, "--data", path, "--output-dir",
                                             tmp_path / "run"], monkeypatch, capsys)
    assert code.startswith("error: ") and said in code and "\n" not in code
    assert not (tmp_path / "run").exists()


def test_finetune_with_bad_data_as_a_program(model_folder, tmp_path):
    (tmp_path / "bad.json").write_text('[{"instruction": "x"}]')
    line = error_line(example("finetune_alpaca.py", "--model", model_folder, "--data", "bad.json", cwd=tmp_path))
    assert line == "error: bad.json, entry 1: 'output' is missing"


@pytest.mark.parametrize("options, said", [
    (["--max-length", "129"], "--max-length 129: this model sees at most 128 tokens"),
    (["--dropout", "1"], "--dropout 1.0: expected a probability below 1"),
    (["--train-share", "0.9", "--test-share", "0.2"], "expected shares that add up to at most 1"),
    (["--threads", "1000"], "--threads 1000: this machine gives"),
    (["--resume"], "--resume needs --output-dir"),
    (["--model", "no-such-model"], "no-such-model: neither a folder nor a model of the Hugging Face hub"),
])
def test_finetune_with_options_that_do_not_fit(options, said, model_folder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = in_process("finetune_alpaca.py", ["--model", model_folder, "--data", data, *options], monkeypatch, capsys)
    assert code.startswith("error: ") and said in code and "\n" not in code
    assert [path.name for path in tmp_path.iterdir()] == []


def test_finetune_cannot_fetch_a_model(data, tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed, and fetching needs it")
    line = error_line(example("finetune_alpaca.py", "--model", "gpt2", "--data", data, cwd=tmp_path))
    assert "gpt2 is no folder, and no model that is in the cache or could be fetched" in line
    assert "give a folder" in line


def test_finetune_resume_without_a_state_is_refused_before_any_work(model_folder, data, tmp_path):
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "none",
                     "--resume", *SHORT, cwd=tmp_path)
    line = error_line(result)
    assert "nothing to resume" in line and "training_state.safetensors is missing" in line
    assert "replies before" not in result.stderr, "the replies before are not needed to see that"
    assert not (tmp_path / "none").exists()


# ---- pretrain.py


@pytest.fixture(scope="module")
def pretrain() -> Iterator[dict]:
    yield runpy.run_path(str(EXAMPLES / "pretrain.py"))


def test_pretrain_runs_and_resumes(model_folder, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"Word {i} is a word." for i in range(200)), encoding="utf-8")
    common = ("--corpus", "corpus.txt", "--tokenizer", model_folder, "--output-dir", "base", "--n-layer", "1",
              "--n-head", "2", "--n-embd", "8", "--context", "32", "--batch-size", "2", "--max-steps", "3",
              "--prompt", "Word")
    result = example("pretrain.py", *common, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "saved the model to base/model" in result.stdout.replace("\\", "/")
    model = load_model(tmp_path / "base" / "model")
    assert (model.config.n_layer, model.config.n_positions, model.config.n_embd) == (1, 32, 8)
    lines = (tmp_path / "base" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [event["step"] for event in map(json.loads, lines) if event["kind"] == "step"] == [1, 2, 3]
    result = example("pretrain.py", *common, "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "base" / "metrics.jsonl").read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize("text, options, said", [
    (None, [], "corpus.txt is missing"),
    ("Too short.", [], "expected at least"),
    ("Word. " * 400, ["--model", "too"], "give either --tokenizer, for a new model, or --model"),
    ("Word. " * 400, ["--n-embd", "9", "--n-head", "2"], "n_embd = 9 is not divisible by n_head = 2"),
])
def test_pretrain_with_bad_input(text, options, said, model_folder, tmp_path, monkeypatch, capsys):
    if text is not None:
        (tmp_path / "corpus.txt").write_text(text)
    code = in_process("pretrain.py", ["--corpus", tmp_path / "corpus.txt", "--tokenizer", model_folder, "--output-dir",
                                      tmp_path / "base", *options], monkeypatch, capsys)
    assert code.startswith("error: ") and said in code and "\n" not in code


@pytest.mark.heavy
def test_pretrain_goes_on_with_a_model(model_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"Word {i} is a word." for i in range(200)), encoding="utf-8")
    common = ["--corpus", tmp_path / "corpus.txt", "--context", "16", "--batch-size", "2", "--max-steps", "3",
              "--prompt", "Word"]

    def losses(run, *arguments):
        result = example("pretrain.py", *common, "--output-dir", run, *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [event["loss"] for event in map(json.loads, lines) if event["kind"] == "evaluation"]

    first = losses("first", "--tokenizer", model_folder, "--n-layer", "1", "--n-head", "2", "--n-embd", "8")
    second = losses("second", "--model", tmp_path / "first" / "model")
    assert second[0] == min(first) > second[-1]
    assert load_model(tmp_path / "second" / "model").config.n_embd == 8
    before = (tmp_path / "first" / "model" / "model.safetensors").read_bytes()
    for options, said in [
        (["--context", "17"], "--context 17: this model sees at most 16 tokens"),
        (["--context", "1"], "must see at least 2 tokens"),
        (["--n-layer", "3"], "--n-layer, --n-head and --n-embd are for a new model"),
        (["--output-dir", tmp_path / "first", "--overwrite"], "would be replaced by this run's model"),
        (["--output-dir", tmp_path / "second", "--resume", *common[2:]], "was started with fingerprint of --model = "),
    ]:
        model = model_folder if "--resume" in options else tmp_path / "first" / "model"
        code = in_process("pretrain.py", ["--corpus", tmp_path / "corpus.txt", "--model", model, *options],
                          monkeypatch, capsys)
        assert code.startswith("error: ") and said in code and "\n" not in code
    assert (tmp_path / "first" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("blocks", [3, 10, 33, 40, 67])
def test_pretrain_batches(pretrain, blocks):
    data = pretrain["TextSet"](np.arange(blocks * 8 + 5, dtype=np.uint16), 8)
    plain = data.batches(16)
    assert len({len(data.batches(16, np.random.default_rng(seed))) for seed in range(20)}) == 1
    assert sum(map(len, plain)) == blocks
    for batches in (plain, data.batches(16, np.random.default_rng(0))):
        starts = np.concatenate(batches)
        assert len(set(starts.tolist())) == len(starts)
        inputs, targets = data.collate(batches[0])
        assert inputs.shape == targets.shape == (len(batches[0]), 8)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert max(map(len, batches)) <= 16


def test_pretrain_puts_end_of_text_behind_every_document(pretrain):
    ids = pretrain["encode_documents"]("One word.\n\n\n\nA word\nand\n\n", TOKENIZER)
    assert TOKENIZER.decode(ids.tolist()) == "One word.<|endoftext|>A word\nand<|endoftext|>"


# ---- all scripts


def test_add_an_op(tmp_path):
    result = example("add_an_op.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "silu: the gradient agrees with central differences"
    assert lines[1].startswith("caught: ") and "wrong_silu" in lines[1]
    errors = [float(line.split()[-1]) for line in lines[-4:]]
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "add_an_op.py"])
def test_help(script, monkeypatch, capsys):
    assert in_process(script, ["--help"], monkeypatch, capsys) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ") and f"python examples/{script} " in text


# ---- compare_runs.py


def test_compare_runs_draws_and_says_where_each_ended(tuned, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    folder, _ = tuned
    result = example("compare_runs.py", folder, folder, "--log", "--output", tmp_path / "both.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"best validation loss \d\.\d+ at step \d of 3", result.stdout)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("text", "expected"), [
    (None, "is missing"), ("", "no steps yet"), ('{"kind": "other"}\n', "line 1: not an event"),
    ("nonsense\n", "line 1"), ('{"kind": "step"}\n', "line 1: not an event"),
    ('{"kind": "step", "step": 1, "loss": null}\n', "line 1: not an event"),
    ('{"kind": "step", "step": Infinity, "loss": 1}\n', "line 1: not an event"),
])
def test_compare_runs_refuses_what_is_no_run(tmp_path, text, expected):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and plots need it")
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    result = example("compare_runs.py", tmp_path, cwd=tmp_path)
    assert result.returncode != 0
    assert expected in error_line(result)
