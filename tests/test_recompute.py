"""Blocks that are computed again in the backward pass: the very same numbers, from less memory."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from alive import kept_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Rows, make_model
from tiny import one_thread as one_thread

from tinyft import AdamW, Tensor, no_grad, ops
from tinyft.kernels.jit import HAS_BFLOAT16
from tinyft.lora import LoraConfig, add_lora
from tinyft.recompute import recompute
from tinyft.tensor import is_recording

ROWS = Rows(6, 40, 14, seed=1)


def with_lora(model, dropout=0.0):
    add_lora(model, LoraConfig(rank=2, dropout=dropout), np.random.default_rng(7))
    for _, parameter in model.trainable_parameters():
        parameter.data = parameter.data + 0.1  # B too, which would start at zero


def with_dropout(model):
    model.set_dropout(0.3)


CASES = {
    "all": lambda model: None,
    "dropout": with_dropout,
    "lora": with_lora,
    "lora-dropout": partial(with_lora, dropout=0.4),
    "frozen-below": lambda model: model.freeze("wte", "wpe", "h.0", "h.1"),
    "frozen-middle": lambda model: model.freeze("h.1"),
    "frozen-matrices": lambda model: model.freeze(*(f"h.{i}.{half}" for i in range(3) for half in ("attn", "mlp"))),
    "head-alone": lambda model: (model.freeze(), model.unfreeze("ln_f")),
    "first-block-alone": lambda model: (model.freeze(), model.unfreeze("h.0")),
    "biases": lambda model: (model.freeze(), model.unfreeze(*(f"h.{i}.mlp.c_fc.bias" for i in range(3)))),
}


def model_for(case, **changes):
    model = make_model(3, vocab_size=40, n_layer=3, **changes)
    CASES[case](model)
    return model


def losses_and_gradients(model, parts, seed=5):
    """Loss of each part, every gradient of their sum, and where the generator stands afterwards."""
    model.zero_grad()
    rng, losses = np.random.default_rng(seed), []
    for indices in parts:
        loss = model.loss(*ROWS.collate(indices), total=30, rng=rng)
        loss.backward()
        losses.append(loss.item())
    gradients = {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, rng.bit_generator.state


def assert_same(case, parts, **changes):
    model = model_for(case, **changes)
    plain = losses_and_gradients(model, parts)
    model.recompute = True
    losses, gradients, state = losses_and_gradients(model, parts)
    assert losses == plain[0] and state == plain[2]
    assert gradients.keys() == plain[1].keys() == dict(model.trainable_parameters()).keys()
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, plain[1][name], err_msg=name)
        assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize("parts", [[range(6)], [[0, 1], [2], [3, 4, 5]]], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_the_same(case, parts):
    assert_same(case, parts)


@settings(max_examples=15)
@given(case=st.sampled_from(sorted(CASES)), order=st.permutations(range(6)), cut=st.integers(1, 5), tied=st.booleans(),
       activation=st.sampled_from(["gelu_new", "gelu", "relu"]))
def test_of_any_batch(case, order, cut, tied, activation):
    assert_same(case, [order[:cut], order[cut:]], tie_word_embeddings=tied, activation_function=activation)


def test_dropout_does_drop():
    """Or the cases with dropout would say nothing."""
    for case in ("dropout", "lora-dropout"):
        model = model_for(case)
        model.recompute = True
        assert losses_and_gradients(model, [range(6)], 5)[0] != losses_and_gradients(model, [range(6)], 6)[0]


@pytest.mark.skipif(not HAS_BFLOAT16, reason="no bfloat16 products here")
def test_products_are_rounded_again_as_they_were():
    model, results = model_for("all"), []
    for model.recompute in (False, True):
        model.zero_grad()
        with ops.product_dtype("bfloat16"):
            loss = model.loss(*ROWS.collate(range(6)))
        loss.backward()  # outside
        results.append({name: p.grad.copy() for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(gradient, results[1][name], err_msg=name)


def test_steps_of_training_are_the_same():
    weights = []
    for again in (False, True):
        model = model_for("dropout")
        model.recompute, optimizer, rng = again, AdamW(model), np.random.default_rng(2)
        for step in range(4):
            model.loss(*ROWS.collate([step, step + 1]), rng=rng).backward()
            optimizer.step(1e-2, max_norm=1.0)
        weights.append({name: p.data.copy() for name, p in model.named_parameters()})
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


# ---- memory


@pytest.mark.parametrize("case", ["all", "lora", "dropout"])
def test_a_block_keeps_its_input_alone(case):
    kept = {}
    for layers in (2, 5):
        model = make_model(vocab_size=40, n_layer=layers, n_embd=24)
        CASES[case](model)
        inputs, targets = ROWS.collate(range(6))
        for model.recompute in (False, True):
            loss = model.loss(inputs, targets, rng=np.random.default_rng(0))
            kept[layers, model.recompute] = kept_bytes(loss, [p for _, p in model.named_parameters()])
    tokens = tokens_of(model, inputs, targets)
    assert kept[5, True] - kept[2, True] == 3 * tokens * 24 * 4
    assert kept[5, False] - kept[2, False] > 14 * (kept[5, True] - kept[2, True])


def tokens_of(model, inputs, targets):
    """How many tokens a pass computes."""
    counted, attend = [], model.attend_within_rows

    def count(segments, layer, qkv):
        counted.append(len(qkv.data))
        return attend(segments, layer, qkv)

    model.attend_within_rows = count
    model.loss(inputs, targets, rng=np.random.default_rng(0))
    return counted[0]


def test_the_peak_falls():
    """Of what NumPy allocates, the backward pass included; Numba's arrays are not counted here."""
    model = make_model(vocab_size=40, n_layer=12, n_embd=96, n_head=3, n_positions=16)
    rng, peaks = np.random.default_rng(0), []
    ids = rng.integers(40, size=(60, 16))
    for _ in range(2):  # gradients are there afterwards, and so don't count
        model.loss(ids, ids).backward()
    for model.recompute in (False, True):
        tracemalloc.start()
        try:
            model.loss(ids, ids).backward()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 0.35 * peaks[0]


def test_what_is_frozen_below_is_not_computed_again():
    model, calls = model_for("frozen-below"), []
    model.recompute = True
    for layer, block in enumerate(model.h):
        plain = block.mlp.activation
        block.mlp.activation = lambda x, layer=layer, plain=plain: (calls.append(layer), plain(x))[1]
    model.loss(*ROWS.collate(range(6))).backward()
    assert calls == [0, 1, 2, 2]


# ---- as any other graph


def test_a_second_backward_raises():
    model = model_for("all")
    model.recompute = True
    loss = model.loss(*ROWS.collate(range(6)))
    loss.backward()
    before = {name: p.grad.copy() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="was freed by an earlier backward"):
        loss.backward()
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.grad, before[name], err_msg=name)


def test_without_recording_it_is_the_function_itself():
    model = model_for("all")
    inputs, targets = ROWS.collate(range(6))
    with no_grad():
        expected = model.loss(inputs, targets).item()
        model.recompute = True
        found = model.loss(inputs, targets)
    assert found.item() == expected and found.node is None and not found.requires_grad
    calls = []
    with no_grad():
        recompute(lambda x: calls.append(is_recording()) or x, Tensor([1.0], requires_grad=True))
    assert calls == [False] and is_recording()


def test_the_function_is_called_once_without_recording_and_once_with_it():
    calls, x, y = [], Tensor([2.0, 3.0], requires_grad=True), Tensor([5.0, 7.0])

    def function(a, b):
        calls.append(is_recording())
        return a * a * b

    out = recompute(function, x, y)
    assert calls == [False] and out.requires_grad and x.grad is None
    out.backward(np.array([1.0, 10.0], np.float32))
    assert calls == [False, True]
    assert x.grad.tolist() == [20.0, 420.0] and y.grad is None


def test_gradients_of_parameters_within_and_inputs_without():
    """Where the input is data, what the function holds still learns."""
    w, x = Tensor([2.0], requires_grad=True), Tensor([3.0])
    recompute(lambda a: a * w, x).backward()
    assert w.grad.tolist() == [3.0] and x.grad is None
    out = recompute(lambda a: a * 2, x)
    out.backward()  # nothing learns, and nothing breaks
    assert x.grad is None


def test_an_input_that_is_used_twice():
    x = Tensor([3.0], requires_grad=True)
    y = x * 2
    (recompute(lambda a, b: a * b, y, y) + y).backward()
    assert x.grad.tolist() == [2 * 2 * 6 + 2]


def test_nested():
    x = Tensor([3.0], requires_grad=True)
    recompute(lambda a: recompute(lambda b: b * b, a) * a, x).backward()
    assert x.grad.tolist() == [27.0]


def test_an_error_of_the_second_call_comes_through_and_recording_goes_on():
    calls = []

    def function(a):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("second")
        return a * 2

    out = recompute(function, Tensor([1.0], requires_grad=True))
    with pytest.raises(KeyError, match="second"):
        out.backward()
    assert is_recording()
    with pytest.raises(KeyError, match="first"):
        recompute(lambda a: {}["first"], Tensor([1.0], requires_grad=True))
    assert is_recording()


def test_blocks_are_announced_from_the_last_to_the_first_with_all_their_gradients():
    model, told = model_for("all"), []

    def done(layer):
        told.append(layer)
        for name, p in model.h[layer].named_parameters():
            np.testing.assert_array_equal(p.grad.copy(), plain[1][f"h.{layer}.{name}"], err_msg=name)

    plain = losses_and_gradients(model, [range(6)])
    model.recompute, model.on_block_done = True, done
    losses_and_gradients(model, [range(6)])
    assert told == [2, 1, 0]
