"""Rows put together up to a number of tokens a step: within the budget, whole, and exact to rows one at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONTEXT, gradients, make_entries, make_model, make_set
from tiny import one_thread as one_thread

from tinyft import Entry
from tinyft.data.instructions import cut_by_tokens
from tinyft.data.text import TextSet
from tinyft.gpt2 import needed_lengths

SEEDS = st.none() | st.integers(0, 5)
SETS = {mask: make_set(make_entries(60), mask_prompt=mask, max_length=40) for mask in (False, True)}


def rng_of(seed):
    return None if seed is None else np.random.default_rng(seed)


def tokens_of(data, indices):
    """What `loss` computes of a batch whose rows share nothing."""
    return int(needed_lengths(data.collate(indices)[1]).sum())


@pytest.mark.parametrize("mask", SETS)
def test_a_row_is_as_long_as_what_is_computed_of_it(mask):
    data = SETS[mask]
    assert data.lengths().tolist() == [tokens_of(data, [i]) for i in range(len(data))]
    assert data.cut and len(set(data.lengths().tolist())) > 3
    longest = data.lengths()[data.longest_rows(7)].tolist()
    assert longest == sorted(data.lengths().tolist(), reverse=True)[:7]
    assert len(data.longest_rows(1000)) == len(data)


def test_what_stands_behind_the_last_target_does_not_count():
    """A conversation that ends with a question."""
    data = SETS[True]
    example = data.examples[0]
    longer = type(example)(np.append(example.ids, [1, 2, 3]), np.append(example.learned, [False] * 3))
    other = make_set(make_entries(1), mask_prompt=True)
    before = other.lengths()[0]
    other.examples = [longer]
    assert other.lengths()[0] == before == tokens_of(other, [0])
    other.mask_prompt = False
    assert other.lengths()[0] == before + 3 == tokens_of(other, [0])


@given(mask=st.booleans(), budget=st.integers(1, 400), seed=SEEDS)
def test_batches_hold_every_row_once_within_the_budget(mask, budget, seed):
    data = SETS[mask]
    batches = data.batches(2, rng_of(seed), batch_tokens=budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(data)))
    if seed is None:
        assert np.concatenate(batches).tolist() == list(range(len(data)))
    for batch in batches:
        assert tokens_of(data, batch) <= budget or len(batch) == 1


@given(lengths=st.lists(st.integers(1, 30), max_size=30), budget=st.integers(1, 60))
def test_no_batch_could_have_taken_the_row_that_follows_it(lengths, budget):
    batches = cut_by_tokens(np.arange(len(lengths)), np.array(lengths, int), budget)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    for total, following in zip(sums, batches[1:], strict=False):
        assert total + lengths[following[0]] > budget
    assert all(len(batch) for batch in batches)


@pytest.mark.parametrize("budget", [1, 77, 200, 10**6])
def test_the_number_of_batches_does_not_depend_on_the_order(budget):
    """Or the learning rate's course, which is laid out before the first epoch, would not end with the last."""
    data = SETS[False]
    counts = {len(data.batches(8, np.random.default_rng(seed), batch_tokens=budget)) for seed in range(40)}
    assert len(counts) == 1
    fewest = -(-int(data.lengths().sum()) // budget)
    assert min(fewest, len(data)) <= counts.pop() <= min(2 * fewest, len(data))


def test_shuffled_rows_come_in_other_company_but_of_similar_length():
    data = SETS[False]

    def batches(seed):
        return [batch.tolist() for batch in data.batches(8, np.random.default_rng(seed), batch_tokens=150)]

    assert batches(3) == batches(3) != batches(4)
    assert {frozenset(batch) for batch in batches(3)} != {frozenset(batch) for batch in batches(4)}
    lengths = data.lengths()
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches(3)])
    assert spread < 0.2 * np.mean([np.ptp(lengths[batch]) for batch in data.batches(8, None, batch_tokens=150)])
    means = [lengths[batch].mean() for batch in batches(3)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.6, "short ones first"


def test_without_a_budget_batches_are_as_they_were():
    data = SETS[False]
    for rng, same in ((None, None), (np.random.default_rng(1), np.random.default_rng(1))):
        left, right = data.batches(8, rng), data.batches(8, same, batch_tokens=None)
        assert [batch.tolist() for batch in left] == [batch.tolist() for batch in right]
        assert [len(batch) for batch in left].count(8) == len(left) - 1


def test_an_empty_set_has_no_batches():
    empty = make_set([])
    assert empty.batches(8, np.random.default_rng(0), batch_tokens=100) == empty.batches(8, batch_tokens=100) == []


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_of_nothing_is_refused(budget):
    for data in (SETS[False], TextSet(np.arange(100), 8)):
        with pytest.raises(ValueError, match=f"batch_tokens is {budget}, expected at least 1"):
            data.batches(8, np.random.default_rng(0), batch_tokens=budget)


@given(context=st.integers(1, 12), budget=st.integers(1, 60), seed=SEEDS)
def test_blocks_of_text_within_the_budget(context, budget, seed):
    data = TextSet(np.arange(200, dtype=np.uint16), context)
    batches = data.batches(7, rng_of(seed), batch_tokens=budget)
    rows = max(1, budget // context)
    assert {len(batch) for batch in batches[:-1]} <= {rows} and 1 <= len(batches[-1]) <= rows
    starts = np.concatenate(batches)
    assert len(set(starts.tolist())) == len(starts) and len(np.unique(starts % context)) == 1
    inputs, targets = data.collate(data.longest_rows(3))
    assert inputs.shape == targets.shape == (3, context)


@pytest.mark.parametrize("mask", SETS)
@pytest.mark.parametrize("budget", [45, 130, 400])
def test_a_step_equals_its_rows_one_at_a_time(mask, budget):
    """Loss and every gradient, each row's mean loss weighted by its number of targets."""
    data, model = SETS[mask], make_model(dtype=np.float64, n_positions=CONTEXT)
    batches = data.batches(8, np.random.default_rng(2), batch_tokens=budget)
    for indices in batches[:3]:
        inputs, targets = data.collate(indices)
        packed = model.loss(inputs, targets)
        packed.backward()
        found, expected, loss, total = gradients(model), None, 0.0, int((targets != -100).sum())
        for i in indices:
            row_inputs, row_targets = data.collate([i])
            weight = int((row_targets != -100).sum()) / total
            row = model.loss(row_inputs, row_targets)
            row.backward(np.array(weight))
            loss += weight * row.item()
            of_row = gradients(model)
            expected = of_row if expected is None else {name: expected[name] + of_row[name] for name in expected}
        assert packed.item() == pytest.approx(loss, rel=1e-13)
        for name, gradient in found.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-12 * scale, err_msg=name)


def test_rows_are_described_as_people_find_them():
    data = make_set(make_entries(3))
    assert [data.describe(i) for i in range(3)] == ["asks 'Say word 0.'", "asks 'Say word 1.'", "asks 'Say word 2.'"]
    data = make_set([Entry.single("", "", "no"), Entry.single("x" * 50, "", "yes")])
    assert data.describe(0) == f"asks '{'x' * 40}'", "entries that are left out do not count"
    assert TextSet(np.arange(100), 8).describe(16) == "tokens 16 to 24"
