"""What a run is said to need, beside what its graph holds and a process has taken; and what a machine has."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from alive import kept_bytes
from hypothesis import given
from hypothesis import strategies as st
from small import make_model
from tiny import make_entries, make_set
from tiny import one_thread as one_thread

from tinyft import memory
from tinyft.data.text import TextSet
from tinyft.gpt2 import needed_lengths
from tinyft.lora import LoraConfig, add_lora
from tinyft.memory import available_bytes, check_fits, estimate, longest_batch

GB = 10**9
SHAPE = dict(vocab_size=60, n_positions=32, n_embd=48, n_layer=3, n_head=4)


def learns(*names):
    return lambda model: (model.freeze(), model.unfreeze(*names))


def dropout(model):
    model.set_dropout(0.2)
    model.drop.p = 0.0  # its mask is the embeddings', which are small beside a block


CASES = {
    "all": lambda model: None,
    "dropout": dropout,
    "lora": lambda model: add_lora(model, LoraConfig(rank=4), np.random.default_rng(0)),
    "lora-dropout": lambda model: add_lora(model, LoraConfig(rank=4, dropout=0.1), np.random.default_rng(0)),
    "lora-attention": lambda model: add_lora(model, LoraConfig(rank=4, layers=("c_attn",)), np.random.default_rng(0)),
    "frozen-table": lambda model: model.freeze("wte"),
    "last-block": learns("h.2"),
    "middle-block": learns("h.1", "ln_f"),
    "last-norm": learns("ln_f"),
    "biases": learns(*(f"h.{i}.mlp.c_fc.bias" for i in range(3))),
}


def batch(rows=8, length=30, masked=0.5):
    rng = np.random.default_rng(0)
    ids = rng.integers(SHAPE["vocab_size"], size=(rows, length + 1))
    targets = ids[:, 1:].copy()
    targets[:, : int(length * masked)] = -100
    return ids[:, :-1], targets


@pytest.mark.parametrize("masked", [0.0, 0.7])
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {"activation_function": "gelu", "n_inner": 96}])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_what_the_graph_holds(case, recomputed, changes, masked):
    model = make_model(**SHAPE | changes)
    CASES[case](model)
    model.recompute = recomputed
    inputs, targets = batch(masked=masked)
    loss = model.loss(inputs, targets, rng=np.random.default_rng(0))
    kept = kept_bytes(loss, [p for _, p in model.named_parameters()])
    tokens, scored = inputs.size, int((targets != -100).sum())
    if model.output_weight.requires_grad:
        kept -= model.output_weight.size * 4  # its gradient, which is counted with the logits
    width, inner = 48, model.config.n_inner or 192
    passing = 4 * (width + inner) * (tokens if recomputed else scored)
    said = estimate(model, tokens, scored).activations - passing
    if recomputed:  # one block is there in full while it is computed again
        model.recompute = False
        blocks = [tokens * before + (scored if i == 2 else tokens) * behind
                  for i, (before, behind) in enumerate(memory._describe_blocks(model))]
        said -= 4 * max(0, max(blocks) - width * tokens)
    assert said == pytest.approx(kept, rel=0.01)


def test_weights_gradients_and_moments():
    model = make_model(**SHAPE)
    every = sum(p.data.nbytes for _, p in model.named_parameters())
    found = estimate(model, 100, 50)
    assert (found.weights, found.gradients, found.moments) == (every, every, 2 * every)
    assert estimate(model, 100, 50, moments="bfloat16").moments == every
    add_lora(model, LoraConfig(rank=4), np.random.default_rng(0))
    adapters = sum(p.data.nbytes for _, p in model.trainable_parameters())
    found = estimate(model, 100, 50)
    assert (found.weights, found.gradients, found.moments) == (every + adapters, adapters, 2 * adapters)
    assert found.logits == 50 * 60 * 4, "no gradient of a frozen table"
    double = estimate(make_model(dtype=np.float64, **SHAPE), 100, 50)
    assert (double.weights, double.gradients, double.moments) == (2 * every, 2 * every, 4 * every)


def test_a_part_of_the_logits_is_held_and_the_gradient_of_the_table(monkeypatch):
    model, table = make_model(**SHAPE), 60 * 48 * 4
    assert estimate(model, 100, 50).logits == 50 * 60 * 4 + table
    monkeypatch.setattr(memory, "LOGITS_BYTES", 1000)
    assert estimate(model, 100, 50).logits == 1000 + table


def test_what_is_there_at_one_time():
    """Gradients come as activations go; with several micro-batches they stay, and the next one's are beside them."""
    model = make_model(**SHAPE)
    one, several = estimate(model, 200, 100), estimate(model, 200, 100, several=True)
    always = one.program + one.weights + one.moments
    assert one.total == always + max(one.activations + one.logits, one.gradients)
    assert several.total == always + one.activations + one.logits + one.gradients
    few = estimate(model, 2, 1)
    assert few.total == few.program + few.weights + few.moments + few.gradients


def test_a_merged_copy_counts_where_it_is_larger_than_a_step():
    model = make_model(**SHAPE)
    add_lora(model, LoraConfig(rank=1), np.random.default_rng(0))
    copied = 4 * sum(p.size for name, p in model.named_parameters() if p.ndim == 2 and "lora" not in name)
    small, large = (estimate(model, tokens, 1, merges=True) for tokens in (1, 20_000))
    assert small.total == small.program + small.weights + copied > estimate(model, 1, 1).total
    assert large.total == estimate(model, 20_000, 1).total


@pytest.mark.parametrize("kept_as, share", [("float32", 1), ("bfloat16", 0.5), ("int8", 0.265625)])
def test_an_engine_is_as_large_as_it_is(kept_as, share):
    from tinyft import Engine

    model = make_model(**SHAPE | {"n_embd": 128, "vocab_size": 2048})
    engine, found = Engine(model, weights=kept_as, max_rows=1), estimate(model, 8, 4, replies=kept_as)
    room = memory.ENGINE_ROWS * (3 * 128 + 2 * 512) * 4
    assert found.replies - room == pytest.approx(engine.weight_bytes, rel=0.03)
    more = estimate(model, 8, 4, replies=kept_as, reply_tokens=1000)
    assert more.replies - found.replies == 1000 * 3 * 2 * 128 * 4
    assert more.total == more.program + more.weights + more.moments + more.replies  # more than a step of 8 tokens


@given(tokens=st.integers(1, 500), more=st.integers(0, 500), several=st.booleans(), recomputed=st.booleans())
def test_more_tokens_never_take_less(tokens, more, several, recomputed):
    model = make_model(**SHAPE)
    model.recompute = recomputed
    less = estimate(model, tokens, tokens, several=several)
    assert less.total <= estimate(model, tokens + more, tokens + more, several=several).total
    assert all(saved > 0 for _, saved in less.remedies)
    assert [saved for _, saved in less.remedies] == sorted((saved for _, saved in less.remedies), reverse=True)


MEASURE = """
import json, re, sys
import numpy as np
from small import make_model
from tinyft import AdamW, warm_up
from tinyft.memory import estimate, keep_freed_memory, peak_megabytes

recomputed, part = json.loads(sys.argv[1])
warm_up()
keep_freed_memory()
before = int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
model = make_model(vocab_size=4000, n_positions=256, n_embd=256, n_layer=6, n_head=8)
model.recompute, optimizer, rng = recomputed, AdamW(model), np.random.default_rng(0)
ids = rng.integers(4000, size=(8, 257))
for _ in range(2):
    for i in range(0, 8, part):
        model.loss(ids[i : i + part, :-1], ids[i : i + part, 1:]).backward()
    optimizer.step(1e-4, max_norm=1.0)
found = estimate(model, part * 256, part * 256, several=part < 8)
print(json.dumps([1e6 * peak_megabytes() - before, found.total - found.program]))
"""


@pytest.mark.heavy
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells of a process")
@pytest.mark.parametrize("recomputed, part", [(False, 8), (True, 8), (False, 2)])
def test_a_process_takes_what_was_said(recomputed, part, run_python):
    code = MEASURE.replace("sys.argv[1]", repr(json.dumps([recomputed, part])))
    result = run_python(code, NUMBA_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    taken, said = json.loads(result.stdout.splitlines()[-1])
    assert taken == pytest.approx(said, rel=0.15), (taken / 1e6, said / 1e6)


# ---- the longest batch


@pytest.mark.parametrize("mask", [False, True])
def test_no_batch_is_longer(mask):
    data = make_set(make_entries(40), mask_prompt=mask)
    tokens, targets = longest_batch(data, 8, share=False)
    rng = np.random.default_rng(0)
    found = [needed_lengths(data.collate(indices)[1]).sum() for _ in range(5) for indices in data.batches(8, rng)]
    assert max(found) == tokens and targets <= tokens
    shared, same = longest_batch(data, 8)
    assert shared < tokens and same == targets


def test_a_budget_of_tokens_ends_the_batch():
    data = make_set(make_entries(40))
    longest = data.lengths().max()
    for budget in (1, 50, 200, 10**6):
        tokens, _ = longest_batch(data, 40, batch_tokens=budget, share=False)
        assert tokens <= max(budget, longest) and tokens + longest > min(budget, data.lengths().sum())
    assert longest_batch(data, 2, batch_tokens=10**6, share=False) == longest_batch(data, 2, share=False)


def test_text_fills_every_block():
    assert longest_batch(TextSet(np.arange(1000), 16), 4) == (64, 64)


# ---- what the machine has


@pytest.fixture
def machine(tmp_path):
    """f(files) -> the root of a machine with these files."""

    def make(files):
        for name, content in {"proc/meminfo": "MemTotal:  9 kB\nMemAvailable:  8000 kB\n", **files}.items():
            if content is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content)
        return tmp_path

    return make


V2 = {"sys/fs/cgroup/a/b/memory.current": "3000000", "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 500000\n"}
V1 = {"proc/self/cgroup": "4:memory:/j/k\n2:cpu:/x\n", "sys/fs/cgroup/memory/j/k/memory.usage_in_bytes": "3000000\n"}


@pytest.mark.parametrize("files, expected", [
    ({}, 8_192_000),
    ({"proc/self/status": "Name: x\nRssAnon:\t    1000 kB\n"}, 8_192_000 + 1_024_000),
    ({**V2, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "4000000"}, 1_500_000),
    ({**V2, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max"}, 8_192_000),
    ({**V2, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "4000000",
      "proc/self/status": "RssAnon: 1000 kB"}, 2_524_000),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "70", "sys/fs/cgroup/a/memory.current": "50"}, 20),
    ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/memory.max": "70", "sys/fs/cgroup/memory.current": "90"}, 0),
    ({"proc/self/cgroup": "0::/../a\n", "sys/fs/a/memory.max": "70", "sys/fs/a/memory.current": "9"}, 8_192_000),
    ({**V1, "sys/fs/cgroup/memory/j/k/memory.limit_in_bytes": "5000000"}, 2_000_000),
    ({**V1, "sys/fs/cgroup/memory/j/k/memory.limit_in_bytes": "5000000",
      "sys/fs/cgroup/memory/j/k/memory.stat": "inactive_file 1\ntotal_inactive_file 700000\ntotal_active_file 300000"},
     3_000_000),
    ({**V1, "sys/fs/cgroup/memory/j/k/memory.limit_in_bytes": str(2**63 - 4096)}, 8_192_000),
    ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "500", "sys/fs/cgroup/memory/memory.usage_in_bytes": "100"}, 400),
    ({"proc/self/cgroup": "nonsense\n\n::", "sys/fs/cgroup/memory.max": "??"}, 8_192_000),
])
def test_what_is_available(files, expected, machine):
    assert available_bytes(root=machine(files)) == expected


def test_systems_without_proc(machine, monkeypatch):
    root = machine({"proc/meminfo": None})
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 16384}.get, raising=False)
    assert available_bytes(root=root) == 16_384_000

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert available_bytes(root=root) == math.inf
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory, "_free_on_windows", lambda: 77.0)
    assert available_bytes(root=root) == 77


def test_here():
    found = available_bytes()
    assert 10**8 < found and (found < 10**14 or found == math.inf)


# ---- what is said of it


def test_a_run_that_fits_is_let_through():
    found = estimate(make_model(**SHAPE), 100, 50)
    check_fits(found, found.total)
    check_fits(found, math.inf)
    with pytest.raises(ValueError, match="this run needs about"):
        check_fits(found, found.total - 1)


def test_remedies_are_named_with_what_they_save():
    found = replace(estimate(make_model(**SHAPE), 100, 50), total=6 * GB, remedies=(("--a", 3 * GB), ("--b 1", GB)))
    with pytest.raises(ValueError) as caught:
        check_fits(found, 4 * GB)
    assert str(caught.value) == ("this run needs about 6,000 MB of memory, and 4,000 MB are available; "
                                 "--a saves 3,000 MB (enough); --b 1 saves 1,000 MB")
    with pytest.raises(ValueError, match="1,000 MB are available; take a smaller model"):
        check_fits(replace(found, remedies=()), GB)


@pytest.fixture
def no_program(monkeypatch):
    """Without what the program takes, small models show what large ones would."""
    for name in ("PROGRAM_BYTES", "TOKEN_BYTES", "SHARED_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(memory, name, 0)


def test_which_remedies_there_are(no_program):
    """Those that would change something, and as much as they do."""
    model = make_model(**SHAPE)
    options = dict(rows=8, replies=None)
    full = estimate(model, 240, 120, **options)
    saved = dict(full.remedies)
    assert {"--recompute", "--micro-batch-size 1", "--max-length 15", "--lora-rank 8"} <= saved.keys()
    assert "--lora-rank 8 --base-weights int8" in saved and "--base-weights int8" not in saved
    assert saved["--moments bfloat16"] == full.total - estimate(model, 240, 120, moments="bfloat16", **options).total
    assert saved["--micro-batch-size 1"] == full.total - estimate(model, 30, 15, several=True).total
    assert saved["--max-length 15"] == full.total - estimate(model, 120, 120, **options).total
    model.recompute = True
    again = estimate(model, 240, 120, **options)
    assert saved["--recompute"] == full.total - again.total and "--recompute" not in dict(again.remedies)
    assert "--micro-batch-size 1" not in dict(estimate(model, 30, 15).remedies)


def test_what_lora_would_save_is_what_it_saves(no_program):
    model = make_model(**SHAPE | {"n_embd": 192, "n_layer": 4})
    full = estimate(model, 60, 30)
    add_lora(model, LoraConfig(rank=8), np.random.default_rng(0))
    adapted = estimate(model, 60, 30)
    assert dict(full.remedies)["--lora-rank 8"] == pytest.approx(full.total - adapted.total, rel=0.02)
    left = dict(adapted.remedies)
    assert "--lora-rank 8" not in left
    matrices = sum(p.size for name, p in model.named_parameters() if p.ndim == 2 and "lora" not in name)
    assert left["--base-weights bfloat16"] == pytest.approx(2 * matrices, rel=0.05)
    assert left["--base-weights int8"] > left["--base-weights bfloat16"]


def test_lines_are_few_and_add_up():
    lines = estimate(make_model(**SHAPE), 240, 120, several=True, replies="float32").lines()
    assert 3 <= len(lines) <= 5 and max(map(len, lines)) <= 110
    assert lines[0].startswith("about ") and "240 tokens" in " ".join(lines) and "replies" in lines[-1]
    assert "replies" not in " ".join(estimate(make_model(**SHAPE), 240, 120).lines())



def test_plots_and_ranks_on_one_host():
    model = make_model(**SHAPE)
    plain, drawn = estimate(model, 240, 120), estimate(model, 240, 120, plots=True)
    assert drawn.total - plain.total == drawn.program - plain.program == 35 * 10**6
    check_fits(plain, 2 * plain.total, processes=2)
    with pytest.raises(ValueError, match=r"available to each of the 2 ranks on this host; fewer ranks help"):
        check_fits(plain, 1.9 * plain.total, processes=2)


def test_rows_of_one_token_cannot_be_made_shorter():
    assert all("--max-length 0" not in option for option, _ in estimate(make_model(**SHAPE), 8, 4, rows=8).remedies)
