"""What show_sharing.py says of a batch is so, and it draws it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from tiny import CONTEXT, EXAMPLES, TOKENIZER, error_line, example, make_entries, write_entries

from tinyft import Entry, InstructionSet, split
from tinyft.losses import IGNORE

SCRIPT = "show_sharing.py"
# Some begin alike beyond the prompt, two are the same, and one is the beginning of another but for its end.
ENTRIES = make_entries(36) + [Entry.single("Say word 1.", "", text) for text in ("same", "same", "sa", "Größe\n\t")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_entries(tmp_path_factory.mktemp("data") / "my.json", ENTRIES)


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(EXAMPLES / SCRIPT))


def epoch(batch_size: int, style: str = "alpaca", seed: int = 123) -> list[list[tuple]]:
    """The rows of each batch of finetune_alpaca.py's first epoch, as far as their last target."""
    rng = np.random.default_rng(seed)
    training = InstructionSet(split(ENTRIES, rng=rng)[0], TOKENIZER, prompt_style=style, max_length=CONTEXT)
    return [[tuple(training.examples[i].ids[:-1].tolist()) for i in indices]
            for indices in training.batches(batch_size, rng)]


def count(rows: list[tuple]) -> tuple[int, int]:
    """The tokens of the rows, and how many there are to compute: as many as the rows have different beginnings."""
    return sum(map(len, rows)), len({row[:end] for row in rows for end in range(1, len(row) + 1)})


def show(model_folder, data, cwd, *options):
    result = example(SCRIPT, "--model", model_folder, "--data", data, *options, cwd=cwd)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("options", [{}, {"batch": 2, "seed": 7}, {"batch_size": 1, "batch": 3},
                                     {"batch_size": 40, "prompt_style": "phi3", "no_mask_prompt": True}])
def test_numbers_are_those_of_different_beginnings(options, model_folder, data, tmp_path):
    arguments = [part for name, value in options.items()
                 for part in (f"--{name.replace('_', '-')}", *([] if value is True else [value]))]
    lines = show(model_folder, data, tmp_path, *arguments)
    batches = epoch(options.get("batch_size", 8), options.get("prompt_style", "alpaca"), options.get("seed", 123))
    rows = batches[options.get("batch", 0)]
    total, computed = count(rows)
    many = f"{len(rows)} row{'s' * (len(rows) != 1)} of {total:,} tokens; "
    assert lines[-2] == many + ("all are computed, none is shared" if computed == total else
                                f"{computed:,} are computed ({100 * computed / total:.0f} %), the others are shared")
    total, computed = map(sum, zip(*map(count, batches), strict=True))
    which = f"all {len(batches)} batches" if len(batches) > 1 else "the only batch"
    assert lines[-1] == f"{which}: {100 * computed / total:.0f} % of {total:,} tokens are computed"
    # The lines of the rows: each row once, and with what the rows before it don't have.
    shown = [tuple(map(int, re.match(r" *(\d+) +(\d+) +(\d+)  ", line).groups())) for line in lines[1:-3]]
    before: set = set()
    for number, shared, own in shown:
        beginnings = {rows[number][:end] for end in range(1, len(rows[number]) + 1)}
        assert (shared, own) == (len(beginnings & before), len(beginnings - before))
        before |= beginnings
    assert sorted(number for number, _, _ in shown) == list(range(len(rows)))


def test_it_is_the_batch_that_finetuning_begins_with(script, model_folder, data, tmp_path):
    result = example("finetune_alpaca.py", "--model", model_folder, "--data", data, "--output-dir", "run",
                     "--max-steps", "2", "--max-new-tokens", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    options = type("Options", (), dict(data=[str(data)], seed=123, prompt_style=None, mask_prompt=True, batch_size=8))
    batches = script["read_batches"](options, TOKENIZER, CONTEXT)
    assert ([event["tokens"] for event in events if event["kind"] == "step"]
            == [(targets != IGNORE).sum() for _, targets in batches[:2]])


def test_lines_fit_and_are_coloured_on_a_terminal_only(script, capsys, model_folder, data, tmp_path):
    assert "\x1b" not in "".join(show(model_folder, data, tmp_path))
    inputs = np.array([[5, 6, 7, 8] + [9] * 60, [5, 6, 7, 10] + [11] * 60])
    targets = np.full_like(inputs, IGNORE)
    targets[:, -1] = 1
    for width in (33, 40, 80, 200):
        script["show_rows"](script["lay_out_rows"](inputs, targets), TOKENIZER, width, in_colour=True)
        lines = capsys.readouterr().out.splitlines()[1:]
        assert all("\x1b[32m" in line for line in lines), "the last token has a target"
        assert "\x1b[90m···\x1b[0m" in lines[1] and "·" not in lines[0]
        assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines) <= width


def test_text_that_would_break_a_line(model_folder, data, tmp_path):
    lines = show(model_folder, data, tmp_path, "--batch-size", "40")
    assert len(lines) == 1 + 34 + 3 and not any("\t" in line for line in lines)
    assert any(r"\n" in line for line in lines)


def test_attention_is_that_of_the_rows_in_full(script):
    rows = [[1, 2, 3], [1, 2, 3], [1, 2, 4, 5], [1, 2], [6, 2], [1, 2, 4, 6]]
    inputs, targets = np.zeros((6, 5), int), np.full((6, 5), IGNORE)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = row
        targets[i, len(row) - 1] = 1
    laid_out = script["lay_out_rows"](inputs, targets)
    assert sorted(row.number for row in laid_out) == list(range(6))
    sees = script["attention_matrix"](laid_out)
    beginning = {}
    for row in laid_out:
        assert row.ids.tolist() == rows[row.number]
        for i, token in enumerate(row.computed_as.tolist()):
            assert beginning.setdefault(token, tuple(rows[row.number][: i + 1])) == tuple(rows[row.number][: i + 1])
    assert len(sees) == len(beginning) == len(set(beginning.values())) == count([tuple(row) for row in rows])[1]
    for query, words in beginning.items():
        for key, earlier in beginning.items():
            assert sees[query, key] == (words[: len(earlier)] == earlier)


@pytest.mark.heavy
@pytest.mark.parametrize("options", [(), ("--batch-size", "1"), ("--batch-size", "40", "--no-mask-prompt")])
def test_picture(options, model_folder, data, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, and pictures need it")
    lines = show(model_folder, data, tmp_path, "--output", "sharing.png", *options)
    assert lines[-1] == "drawn to sharing.png"
    assert (tmp_path / "sharing.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sharing.png"]


def test_a_batch_that_does_not_exist(model_folder, data, tmp_path):
    line = error_line(example(SCRIPT, "--model", model_folder, "--data", data, "--batch", "5", cwd=tmp_path))
    assert line == "error: --batch 5: the epoch has 5 batches, expected 0 to 4"


def test_nothing_to_show(model_folder, tmp_path):
    path = write_entries(tmp_path / "empty.json", [Entry.single("Say word.", "", "")] * 3)
    line = error_line(example(SCRIPT, "--model", model_folder, "--data", path, cwd=tmp_path))
    assert "empty.json: no entry to train on" in line


def test_an_output_folder_that_does_not_exist(model_folder, data, tmp_path):
    result = example(SCRIPT, "--model", model_folder, "--data", data, "--output", "no/sharing.png", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr and result.stdout == ""
    assert "no/sharing.png: there is no folder no; make it first" in result.stderr.splitlines()[-1]
