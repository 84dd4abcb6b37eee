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
    assert not (folder / "checkpoints").exists()
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

    def files():  # the lock has the number of whoever asked last
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}

    before = files()
    common = ("--model", model_folder, "--data", data, "--output-dir", "mine", "--in-file-order", *SHORT)
    line = error_line(example("finetune_alpaca.py", *common, cwd=folder.parent))
    for part in ("mine holds a run", "--overwrite", "another folder"):
        assert part in line
    assert files() == before


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
    (["--train-share", "0.9", "--test-share", "0.2"], "a test share of 0.2, expected shares that add up to at most 1"),
    (["--train-share", "nan"], "a train share of nan and"),
    (["--lora-rank", "2", "--lora-layers", " , "], "--lora-layers is empty"),
    (["--lora-rank", "1000000000"], "--lora-rank 1000000000: expected at most"),
    (["--lora-rank", "2", "--lora-layers", "c_attn, c_nothing"], "no layer's name ends in 'c_nothing'"),
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
    assert "nothing to resume" in line and "checkpoints has no step-*.safetensors" in line
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
        (["--output-dir", tmp_path / "second", "--resume", *common[2:]],
         "fingerprint of the model at the start = "),
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


@pytest.mark.parametrize("script", SCRIPTS)
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


def write_run(folder: Path, losses: list[float], shift: float = 0.0) -> Path:
    """The metrics of a run: a loss at each step, and each looked at as well, a little higher."""
    folder.mkdir(parents=True)
    events = [{"kind": kind, "step": step, "loss": loss + shift + 0.5 * (kind == "evaluation")}
              for step, loss in enumerate(losses, 1) for kind in ("step", "evaluation", "notice")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder


@pytest.fixture
def drawn(tmp_path, monkeypatch, capsys):
    """f(*arguments) -> axes and what is printed: compare_runs.py, with its figure looked at and not its pixels."""
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed, and plots need it")
    saved = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: (saved.append(self), path.write_bytes(b"!")))

    def draw(*arguments):
        script = runpy.run_path(str(EXAMPLES / "compare_runs.py"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["compare_runs.py", *map(str, arguments)])
        script["main"]()
        return saved[-1].axes[0], capsys.readouterr().out

    return draw


def bands(axes) -> list[tuple[float, float]]:
    """Lower and upper edge of each band at its first step."""
    edges = []
    for band in axes.collections:
        corners = band.get_paths()[0].vertices
        first = corners[corners[:, 0] == corners[:, 0].min(), 1]
        edges.append((first.min(), first.max()))
    return edges


def test_compare_runs_draws_a_setting_of_three_runs_as_mean_and_deviation(tmp_path, drawn):
    for name, losses in (("a", [1.0, 3.0, 2.0]), ("b", [2.0, 3.0]), ("c", [6.0, 3.0, 2.5])):
        write_run(tmp_path / name, losses)
    axes, out = drawn("lora=a,b,c", "c")
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["training, lora (mean ± s.d. of 3 runs)", "validation, lora (mean ± s.d. of 3 runs)",
                      "training, c", "validation, c"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 2]] * 2 + [[1, 2, 3]] * 2, "up to the shortest"
    assert list(axes.lines[0].get_ydata()) == [3.0, 3.0] and list(axes.lines[1].get_ydata()) == [3.5, 3.5]
    deviation = np.std([1, 2, 6], ddof=1)
    np.testing.assert_allclose(bands(axes), [(3 - deviation, 3 + deviation), (3.5 - deviation, 3.5 + deviation)])
    assert "lora, b: best validation loss 2.5000 at step 1 of 2\n" in out
    assert "\nc: best validation loss 3.0000 at step 3 of 3\n" in out
    assert re.search(r"^lora +3 +2\.3333 ± 0\.7638 +1\.5000 +3\.0000$", out, re.MULTILINE)
    assert re.search(r"^c +1 +3\.0000 +3\.0000 +3\.0000$", out, re.MULTILINE)


def test_compare_runs_draws_two_runs_as_the_edges_of_a_band(tmp_path, drawn):
    write_run(tmp_path / "a", [1.0, 3.0])
    write_run(tmp_path / "b", [2.0, 3.0])
    axes, out = drawn("lora=a,b")
    assert axes.lines[0].get_label() == "training, lora (mean, band: both runs)"
    assert bands(axes) == [(1.0, 2.0), (1.5, 2.5)] and list(axes.lines[0].get_ydata()) == [1.5, 3.0]
    assert re.search(r"^lora +2 +2\.0000 ± 0\.7071 ", out, re.MULTILINE)


def test_compare_runs_joins_the_steps_of_runs_that_have_others(tmp_path, drawn):
    write_run(tmp_path / "a", [1.0, 2.0, 3.0, 4.0, 5.0])
    folder = write_run(tmp_path / "b", [])
    events = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 3.0), (3, 5.0), (5, 3.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    axes, out = drawn("lora=a,b")
    assert list(axes.lines[0].get_ydata()) == [2.0, 3.0, 4.0, 4.0, 4.0] and len(axes.lines) == 1
    assert re.search(r"^lora +1 +1\.5000 +1\.5000 +1\.5000$", out, re.MULTILINE), "b was never validated"


def test_compare_runs_takes_a_folder_with_an_equals_sign_as_a_run(tmp_path, drawn):
    write_run(tmp_path / "runs" / "rate=1e-3", [2.0, 1.0])
    axes, out = drawn("runs/rate=1e-3")
    assert out.startswith("runs/rate=1e-3: best validation loss 1.5000 at step 2 of 2\n") and "setting" not in out
    assert [line.get_label() for line in axes.lines] == ["training, runs/rate=1e-3", "validation, runs/rate=1e-3"]
    assert not axes.collections


def test_compare_runs_counts_no_loss_that_is_infinite(tmp_path, drawn):
    write_run(tmp_path / "a", [1.0, np.inf])
    write_run(tmp_path / "b", [np.inf])
    _, out = drawn("lora=a,b")
    assert "a: best validation loss 1.5000 at step 1 of 2\n" in out
    assert re.search(r"^lora +1 +1\.5000 +1\.5000 +1\.5000$", out, re.MULTILINE)


@pytest.mark.parametrize(("arguments", "expected"), [
    (["lora="], "'lora=': expected NAME=RUN,RUN,..., with a name and folders"),
    (["lora=a,,a"], "expected NAME=RUN,RUN"), (["=a"], "expected NAME=RUN,RUN"),
    (["lora=a,a"], "a run is given twice"), (["lora=a,./a"], "a run is given twice"),
    (["a=b", "a"], "the name 'a' is given twice"), (["lora=a", "lora=b"], "the name 'lora' is given twice"),
    (["lora=a,missing"], "missing/metrics.jsonl is missing"),
])
def test_compare_runs_refuses_settings_that_are_none(tmp_path, monkeypatch, arguments, expected):
    for name in "ab":
        write_run(tmp_path / name, [1.0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(expected)):
        runpy.run_path(str(EXAMPLES / "compare_runs.py"))["read_settings"](arguments)
