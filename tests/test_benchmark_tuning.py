"""The benchmark of tuning on a tiny model: which rows, who takes part, what is refused, and that steps are trained."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny import EXAMPLES
from tiny import one_thread as one_thread

sys.path.append(str(EXAMPLES))

from benchmarks import processes, tuning, tuning_process  # noqa: E402
from benchmarks.timing import Table  # noqa: E402

TINY = dict(vocab_size=500, n_positions=128, n_embd=32, n_layer=2, n_head=2)
ROW = tuning.Row("tiny", TINY, 0.5, peers=("tinyft",), rounds=1)


def test_rows_are_chosen_by_name():
    assert chosen_names(None) == chosen_names("") == list(tuning.ROWS)
    assert chosen_names("XL-lora, 124M") == ["XL-lora", "124M"]
    with pytest.raises(ValueError, match="TINYFT_TUNING names '125M', expected some of 124M, 124M-lora, 355M"):
        tuning.chosen("124M,125M")


def chosen_names(wanted):
    return list(tuning.chosen(wanted))


def test_large_models_are_alone():
    assert {name for name, row in tuning.ROWS.items() if not row.alone} == {"124M", "124M-lora"}
    assert all(row.gigabytes <= 22 for row in tuning.ROWS.values())


def test_pytorch_can_be_left_out():
    assert tuning.peers_of(tuning.ROWS["124M"], True) == ["tinyft"]
    assert tuning.peers_of(ROW, False) == ["tinyft"]


@pytest.mark.heavy
@pytest.mark.parametrize("changes", [{}, {"recompute": True, "moments": "bfloat16"}, {"lora": True},
                                     {"lora": True, "base": "int8"}, {"lora": True, "base": "bfloat16"}])
def test_steps_learn(changes):
    row = replace(ROW, **changes)
    step = tuning_process.tinyft_step(vars(row))
    batch = processes.make_batch(tuning.BATCH, TINY["vocab_size"])
    losses = [step(*batch) for _ in range(12)]
    assert abs(losses[0] - math.log(500)) < 1 and losses[-1] < losses[0]


def test_random_weights_in_fewer_bits():
    from tinyft import GPT2, GPT2Config

    model = GPT2(GPT2Config(**TINY))
    tuning_process.fill(model, "int8")
    assert model.wte.weight.nbytes < 1.2 * model.wte.weight.size
    for weight in (model.wte.weight.data, model.wpe.weight.data, model.h[1].mlp.c_fc.weight.data):
        assert np.std(weight) == pytest.approx(0.02, rel=0.1)


@pytest.mark.heavy
def test_a_table_from_a_process(capsys):
    table = Table()
    rows = {"a": ROW, "b": replace(ROW, title="memory alone", rounds=0), "c": replace(ROW, gigabytes=10**9)}
    tuning.measure(table, True, 1, rows)
    found = {row["what"]: row for row in table.rows}
    assert list(found) == ["tiny", "  peak memory", "memory alone"]
    assert found["tiny"]["unit"] == "s" and 0 < found["tiny"]["tinyft"] < 60
    assert 50 < found["memory alone"]["tinyft"] < 2000 or not sys.platform.startswith("linux")
    assert "c is left out: it takes about 1000000000 GB" in capsys.readouterr().out


def test_a_loss_that_cannot_be_is_refused():
    tuning.check_losses({"tinyft": [{"loss": math.log(500) + 0.1}]}, 500)
    for loss in (0.0, math.nan, 9.0):
        with pytest.raises(RuntimeError, match="the loss of peft is .*, expected about 6.2"):
            tuning.check_losses({"tinyft": [{"loss": 6.2}], "peft": [{"loss": loss}]}, 500)


def test_both_beside_each_other(capsys):
    answers = {peer: [{"seconds": seconds, "peak": peak}] * 3 for peer, seconds, peak in
               (("tinyft", 0.5, 400), ("peft", 2.0, 1000))}
    table = Table()
    table.title("tuning", "")
    tuning._add(table, ROW, answers)
    assert table.rows[0]["ratio"] == 4 and table.rows[1]["of_theirs"] == 0.4


@pytest.mark.referee
@pytest.mark.heavy
@pytest.mark.parametrize("changes", [{"lora": True}, {"recompute": True}, {"lora": True, "their_base": "bfloat16"}])
def test_steps_of_pytorch_learn(changes, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    step = tuning_process.peft_step(vars(replace(ROW, **changes)))
    batch = processes.make_batch(tuning.BATCH, TINY["vocab_size"])
    losses = [step(*batch) for _ in range(12)]
    assert abs(losses[0] - math.log(500)) < 1 and losses[-1] < losses[0]
