"""What of the benchmark can be tested without measuring: batches, sums, words, and that nothing is left running."""

import sys

import numpy as np
import pytest
from tiny import EXAMPLES

from tinyft.kernels.threads import BRIEF_WAITING
from tinyft.segments import lay_out

sys.path.append(str(EXAMPLES))

from benchmarks import account, busy, charts, machine, processes  # noqa: E402
from benchmarks.timing import Table  # noqa: E402

PREFIX = processes.PREFIX


def rows_of(targets):
    """How long each row is: up to its last target, which is the token that ends it."""
    return [int(np.flatnonzero(row != -100)[-1]) + 1 for row in targets]


@pytest.mark.parametrize("vocabulary", [processes.VOCABULARY, 4000])
@pytest.mark.parametrize("name", processes.BATCHES)
def test_targets_are_the_next_tokens(name, vocabulary):
    inputs, targets = processes.make_batch(name, vocabulary)
    assert inputs.shape == targets.shape and inputs.max() < vocabulary
    for ids, row, length in zip(inputs, targets, rows_of(targets), strict=True):
        first = int(np.flatnonzero(row != -100)[0])
        np.testing.assert_array_equal(row[first : length - 1], ids[first + 1 : length])
        assert row[length - 1] == vocabulary - 1 and (row[:first] == -100).all() and (row[length:] == -100).all()
        assert 40 <= length <= 75 and (first == 0) != name.endswith("masked")


@pytest.mark.parametrize("learned", ["full", "masked"])
def test_shared_batches_differ_from_the_others_in_their_first_tokens_only(learned):
    inputs, targets = processes.make_batch(learned)
    shared_inputs, shared_targets = processes.make_batch(f"shared_{learned}")
    np.testing.assert_array_equal(shared_inputs[:, PREFIX:], inputs[:, PREFIX:])
    np.testing.assert_array_equal(shared_targets[:, PREFIX:], targets[:, PREFIX:])
    np.testing.assert_array_equal(shared_targets == -100, targets == -100)
    assert (shared_inputs[:, :PREFIX] == shared_inputs[0, :PREFIX]).all()
    for ids, share in ((inputs, 0), (shared_inputs, PREFIX * (len(inputs) - 1))):
        lengths = np.array(rows_of(targets))
        assert lay_out(ids, lengths)[0].starts[-1] == lengths.sum() - share


def test_descriptions_say_what_rows_share():
    said = {name: processes.describe(name) for name in processes.BATCHES}
    assert said["shared_full"] == "8 rows, 413 targets (prompts learned, rows share 24 tokens)"
    assert said["masked"] == "8 rows, 132 targets (prompts masked, rows share nothing)"


def test_peers_wait_as_they_usually_do():
    ours = {**BRIEF_WAITING, "PATH": "/bin"}
    assert processes.waiting_of("tinyft_small", ours) == processes.waiting_of("account", ours) == {}
    assert processes.waiting_of("transformers_bf16", ours) == processes.USUAL_WAITING
    assert processes.waiting_of("transformers", {}) == {}, "the user set OMP_WAIT_POLICY"
    user = processes.waiting_of("transformers", {**ours, "GOMP_SPINCOUNT": "7"})
    assert user == {"KMP_BLOCKTIME": processes.USUAL_WAITING["KMP_BLOCKTIME"]}


@pytest.mark.parametrize(("cores", "threads", "others", "expected"), [
    (2, 2, 0, 1), (2, 2, 1, 1.5), (2, 2, 2, 2), (8, 8, 2, 1.25),  # (c + n) / c
    (4, 2, 1, 1), (4, 2, 2, 1), (2, 1, 2, 1.5),  # fewer threads than cores
    (2, 4, 2, 1.5), (1.5, 2, 1, 1.5),  # more
])
def test_fair_share(cores, threads, others, expected):
    assert busy.fair_share(cores, threads, others) == expected


def test_columns_compare_with_alone_and_with_tinyft_beside_as_many():
    row = busy.columns({0: 300.0, 1: 600.0, 2: 1200.0}, {0: 100.0, 1: 150.0, 2: 200.0})
    assert row == {"alone": 300, "ratio": 3, "beside_1": 600, "slower_1": 2, "ratio_1": 4,
                   "beside_2": 1200, "slower_2": 4, "ratio_2": 6}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_busy_processes_end_in_whatever_way(error, monkeypatch):
    monkeypatch.setattr(busy, "SETTLE", 0)
    with pytest.raises(error), busy.busy_processes(2) as running:
        assert [process.poll() for process in running] == [None, None]
        raise error
    assert all(process.returncode is not None for process in running)


def test_sum_of_the_products(capsys):
    assert account.sum_of([[1, 20, 3], [4, 50, 6]]) == [5, 70, 9]
    step = {account.OUTPUT: [1.0, 80e9, 0], account.FORWARD: [2.0, 160e9, 0], account.FOR_INPUTS: [1.0, 60e9, 0],
            "AdamW": [0.5, 0, 10e9], account.BETWEEN: [0.5, 0, 0]}
    table = Table()
    table.title("account_of_a_test", "")
    account._show(table, [step], {"peak": 100.0, "bandwidth": 40.0})
    rows = {row["what"]: row for row in table.rows}
    products, whole = rows["sum of the products"], rows["whole step: sum of the rows"]
    assert (products["time"], products["share"], products["GFLOP/s"], products["of_limit"]) == (4000, 0.8, 75, 0.75)
    assert products["GB/s"] is whole["GB/s"] is None
    assert (whole["time"], whole["floor"]) == (5000, 3250)


def test_the_cpu_in_words():
    found = {"name": "A CPU", "L1d": 48 << 10, "L2": 2 << 20, "L3": 0, "cores": 2, "quota": None, "threads": 2,
             "threading_layer": "omp", "vector_bits": 512, "bfloat16": True, "matrix_unit": True,
             "tile_rows": 14, "tile_vectors": 2, "piece_bytes": 512 << 10, "shared_bytes": 8 << 20}
    assert machine.describe(found) == (
        "CPU: A CPU; 2 cores, no quota; L1d 48 KB, L2 2 MB a core, L3 none\n"
        "chosen: 2 threads (omp), vectors of 512 bits, bfloat16 in the matrix unit; "
        "matmul: tiles of 14 rows x 2 vectors, pieces of 512 KB, up to 8 MB shared")
    assert "a quota of 1.5;" in machine.describe({**found, "quota": 1.5})
    assert "bfloat16 in vectors;" in machine.describe({**found, "matrix_unit": False})
    assert "no bfloat16;" in machine.describe({**found, "matrix_unit": False, "bfloat16": False})


def test_the_chart_shows_steps_of_shared_batches():
    rows = [{"table": f"step_{batch}_bfloat16", "what": "tinyft_bf16", "whole_step": milliseconds}
            for milliseconds, batch in enumerate(processes.BATCHES, start=1)]
    bars = {heading: lengths for heading, lengths in charts._training_bars(rows).items() if lengths}
    assert bars == {"bfloat16, prompts learned": {"tinyft": 0.001}, "bfloat16, prompts masked": {"tinyft": 0.002}}
