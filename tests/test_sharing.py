"""GPT-2's loss where rows begin alike: the same as row by row, every gradient too, and less work."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import make_model
from tiny import one_thread as one_thread

from tinyft import no_grad, ops
from tinyft.gpt2 import needed_lengths
from tinyft.kernels.attention import QUERY_BLOCK
from tinyft.kernels.jit import HAS_BFLOAT16

_ = -100  # a target that is not learned
VOCABULARY = 11


def model_for(length=8, dtype=np.float64, **changes):
    return make_model(seed=3, dtype=dtype, vocab_size=VOCABULARY, n_positions=length, n_embd=6, n_head=2, **changes)


def loss_and_gradients(model, parts, total, **options):
    """The sum of the losses of some batches, and every gradient of it by name."""
    model.zero_grad()
    losses = [model.loss(*part, total=total, **options) for part in parts]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), {name: p.grad.copy() for name, p in model.named_parameters()}


def assert_equals_row_by_row(model, inputs, targets, total=None, tolerance=1e-12, **options):
    """Rows that are batches of their own have nobody to share with."""
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    loss, gradients = loss_and_gradients(model, [(inputs, targets)], total, **options)
    total = max(1, int((targets != -100).sum())) if total is None else total
    expected, expected_gradients = loss_and_gradients(model, zip(inputs, targets, strict=True), total)
    assert abs(loss - expected) <= tolerance * abs(expected)
    for name, gradient in gradients.items():
        error, size = np.abs(gradient - expected_gradients[name]).max(), np.abs(expected_gradients[name]).max()
        assert error <= tolerance * size, (name, error, size)


def tokens_computed(model, inputs, targets, **options):
    """How many tokens go through the model, and how many of them through the end of its last block."""
    seen, hidden = [], model.hidden

    def counting(ids, segments, rng=None, keep=None):
        seen.append((len(ids), len(keep)))
        return hidden(ids, segments, rng, keep)

    model.hidden = counting
    try:
        with no_grad():
            model.loss(np.asarray(inputs), np.asarray(targets), **options)
    finally:
        del model.hidden
    return seen.pop()


# name: inputs, targets, and the tokens that have to be computed, all of them and those with targets
BATCHES = {
    "no common token": ([[1, 2, 3], [2, 2, 3], [3, 2, 3]], [[_, 3, 4], [_, 3, 5], [2, 3, 6]], (9, 7)),
    "one row": ([[1, 2, 3]], [[_, 3, 4]], (3, 2)),
    "a masked prompt": ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7]], [[_, _, _, 8], [_, _, _, 9], [_, _, 7, 8]], (7, 4)),
    "a row that is all prefix": ([[1, 2, 3, 4], [1, 2, 0, 0]], [[_, _, 4, 5], [_, 9, _, _]], (4, 3)),
    "equal rows": ([[1, 2, 3]] * 3, [[_, 3, 4]] * 3, (3, 2)),
    "equal rows, learned differently": ([[1, 2, 3]] * 3, [[2, 3, 4], [_, 3, _], [_, _, 4]], (3, 3)),
    "empty rows": ([[1, 2, 3], [1, 2, 3], [1, 2, 4]], [[_, 3, 4], [_, _, _], [_, _, 5]], (4, 3)),
    "nothing but empty rows": ([[1, 2, 3], [1, 2, 4]], [[_, _, _], [_, _, _]], (0, 0)),
    "a learned prompt": ([[1, 2, 3, 4], [1, 2, 3, 5]], [[2, 3, 4, 8], [2, 3, 5, 9]], (5, 5)),
    "a prompt learned in one row": ([[1, 2, 3, 4], [1, 2, 3, 5]], [[2, 3, 4, 8], [_, _, _, 9]], (5, 5)),
    "different targets behind one token": ([[1, 2], [1, 2], [1, 2], [1, 2]], [[_, 3], [_, 4], [_, 3], [_, 5]], (2, 1)),
    "branches": ([[1, 2, 3, 4], [2, 9, 0, 0], [1, 2, 8, 0], [1, 7, 3, 4], [1, 2, 3, 0], [2, 9, 9, 0]],
                 [[2, 3, 4, 5], [_, 1, _, _], [2, 8, 1, _], [_, _, _, 1], [2, _, 0, 6], [9, 9, 0, _]], (12, 10)),
}
EACH = pytest.mark.parametrize(("inputs", "targets", "tokens"), BATCHES.values(), ids=BATCHES)


@EACH
@pytest.mark.parametrize("total", [None, 5])
def test_loss_and_gradients_are_those_of_the_rows(inputs, targets, tokens, total):
    assert_equals_row_by_row(model_for(), inputs, targets, total)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", [QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 3])
def test_prefix_longer_than_a_tile(rng, prefix, tied):
    model = model_for(prefix + 9, tie_word_embeddings=tied)
    inputs = rng.integers(VOCABULARY, size=(4, prefix + 9))
    inputs[:, :prefix] = inputs[0, :prefix]
    targets = np.where(rng.random(inputs.shape) < 0.5, -100, rng.integers(VOCABULARY, size=inputs.shape))
    assert_equals_row_by_row(model, inputs, targets)


@st.composite
def batches(draw):
    """Rows of few different tokens, so that many begin alike, and targets of any kind."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    numbers = st.lists(st.integers(0, 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    learned = st.lists(st.sampled_from([-100, -100, 3, 4]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return np.reshape(draw(numbers), shape), np.reshape(draw(learned), shape)


@given(batch=batches(), total=st.sampled_from([None, 1, 7]))
def test_any_batch(batch, total):
    inputs, targets = batch
    model = model_for(n_layer=2)
    assert_equals_row_by_row(model, inputs, targets, total)
    rows = [tuple(row[:length]) for row, length in zip(inputs.tolist(), needed_lengths(targets), strict=True)]
    prefixes = {row[:end] for row in rows for end in range(1, len(row) + 1)}
    learned = {tuple(inputs[b, : t + 1].tolist()) for b, t in np.argwhere(targets != -100)}
    assert tokens_computed(model, inputs, targets) == (len(prefixes), len(learned))


def test_every_gradient_by_central_differences():
    """Along random directions in each parameter."""
    inputs, targets, _tokens = BATCHES["branches"]
    inputs, targets, rng = np.array(inputs), np.array(targets), np.random.default_rng(0)
    model = model_for(scale=0.4, tie_word_embeddings=False)
    _loss, gradients = loss_and_gradients(model, [(inputs, targets)], None)
    for name, parameter in model.named_parameters():
        kept = parameter.data
        for _direction in range(3):
            direction, losses = rng.standard_normal(kept.shape), []
            for step in (1e-5, -1e-5):
                parameter.data = kept + step * direction
                with no_grad():
                    losses.append(model.loss(inputs, targets).item())
            parameter.data = kept
            expected = (losses[0] - losses[1]) / 2e-5
            np.testing.assert_allclose((gradients[name] * direction).sum(), expected, rtol=1e-6, atol=1e-9,
                                       err_msg=name)


def test_rows_in_another_order_are_the_same_batch():
    inputs, targets, _tokens = BATCHES["branches"]
    model, inputs, targets = model_for(), np.array(inputs), np.array(targets)
    loss = model.loss(inputs, targets).item()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(inputs))
        assert abs(model.loss(inputs[order], targets[order]).item() - loss) <= 1e-13 * loss


# ---- work


@EACH
def test_tokens_that_are_computed(inputs, targets, tokens):
    assert tokens_computed(model_for(), inputs, targets) == tokens


def test_a_prompt_is_computed_once_for_many_replies(rng):
    inputs = rng.integers(VOCABULARY, size=(8, 25))
    inputs[:, :20], inputs[:, 20] = inputs[0, :20], np.arange(8)
    targets = np.full_like(inputs, -100)
    targets[:, 20:] = 1
    assert tokens_computed(model_for(25), inputs, targets) == (20 + 8 * 5, 8 * 5)


def drop_from_embeddings(model):
    model.drop.p = 0.5


def drop_in_last_block(model):
    model.h[-1].drop.p = 0.5


@pytest.mark.parametrize("drop", [drop_from_embeddings, drop_in_last_block])
def test_with_dropout_nothing_is_shared(drop):
    """Equal rows drop different numbers."""
    inputs, targets = np.array([[1, 2, 3]] * 3), np.array([[_, 3, 4]] * 3)
    model = model_for()
    drop(model)
    assert tokens_computed(model, inputs, targets, rng=np.random.default_rng(0)) == (9, 6)
    assert tokens_computed(model, inputs, targets) == (3, 2), "without a generator nothing is dropped"


def test_a_generator_that_drops_nothing_does_no_harm():
    inputs, targets, tokens = BATCHES["branches"]
    model = model_for()
    model.set_dropout(0.0)
    rng = np.random.default_rng(0)
    assert tokens_computed(model, inputs, targets, rng=rng) == tokens
    assert_equals_row_by_row(model, inputs, targets, rng=rng)


@pytest.mark.parametrize("total", [None, 5])
def test_in_float32(total):
    for inputs, targets, _tokens in BATCHES.values():
        assert_equals_row_by_row(model_for(dtype=np.float32), inputs, targets, total, tolerance=2e-5)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no AVX-512 BF16 instructions")
def test_with_products_of_bfloat16():
    """As close as training with them is to training in float32, see test_bfloat16.py."""
    inputs, targets, _tokens = BATCHES["branches"]
    model = model_for(dtype=np.float32)
    loss, _gradients = loss_and_gradients(model, [(np.array(inputs), np.array(targets))], None)
    with ops.product_dtype("bfloat16"):
        rounded, _gradients = loss_and_gradients(model, [(np.array(inputs), np.array(targets))], None)
        assert_equals_row_by_row(model, inputs, targets, tolerance=0.01)
    assert rounded != loss and abs(rounded - loss) <= 0.01 * loss


# ---- what does not fit


def test_shared_tokens_count_in_a_row_s_length():
    model = model_for(4)
    inputs, targets = np.array([[1, 2, 0, 0, 0], [1, 2, 3, 4, 5]]), np.array([[2, 3, _, _, _], [2, 3, 4, 5, 6]])
    with pytest.raises(ValueError, match="a row has 5 tokens, expected at most n_positions = 4"):
        model.loss(inputs, targets)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_integers_of_any_kind(kind):
    model, ids = model_for(), np.array([[1, 0, 1], [1, 1, 0]])
    assert model.loss(ids.astype(kind), ids.astype(kind)).item() == model.loss(ids, ids).item()


@pytest.mark.parametrize("kind", [np.float64, np.bool_])
@pytest.mark.parametrize("which", ["inputs", "targets"])
def test_ids_that_are_no_integers_are_refused(which, kind):
    ids = np.array([[1, 0, 1]])
    batch = {"inputs": ids, "targets": ids} | {which: ids.astype(kind)}
    with pytest.raises(TypeError, match=f"^GPT2.loss: {which} are {np.dtype(kind)}, expected integers$"):
        model_for().loss(**batch)
