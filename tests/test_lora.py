"""LoRA against what it stands for: a matrix of its own, W + scale (B A)^T."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from small import assert_same_weights, make_model, products_in, weights_of

from tinyft import AdamW, Tensor, lora, no_grad, ops
from tinyft.compact import compact
from tinyft.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    has_lora,
    lora_config,
    lora_layers,
    lora_linear,
    lora_parameters,
    merge_lora,
)
from tinyft.nn import Linear

IDS, TARGETS = np.random.default_rng(1).integers(340, size=(2, 3, 9))
TARGETS[:, :4] = -100
LINEAR_LAYERS = [f"h.{layer}.{name}" for layer in range(2)
                 for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


def adapted(config: LoraConfig | None = None, seed: int = 0, **shape):
    """A model with adapters that do something: B is not zero."""
    model = make_model(seed, **{"dtype": np.float64, **shape})
    add_lora(model, config or LoraConfig(rank=3, alpha=5), np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    for name, parameter in lora_parameters(model).items():
        if name.endswith("lora_B"):
            parameter.data = 0.1 * rng.standard_normal(parameter.shape).astype(parameter.dtype)
    return model


def logits_of(model):
    with no_grad():
        return model(IDS).data


# ---- settings


@pytest.mark.parametrize(("setting", "value"), [
    ("rank", 0), ("rank", -1), ("rank", 2.0), ("rank", True), ("rank", "8"), ("alpha", 0), ("alpha", -1),
    ("alpha", math.nan), ("alpha", math.inf), ("alpha", 10**400), ("alpha", "16"), ("alpha", True), ("dropout", 1),
    ("dropout", -0.1), ("dropout", math.nan), ("dropout", None), ("layers", ()), ("layers", "c_attn"),
    ("layers", ("",)), ("layers", (3,)), ("rank_stabilised", 1),
])
def test_settings_that_make_no_sense(setting, value):
    with pytest.raises(ValueError, match=f"LoraConfig: {setting}"):
        LoraConfig(**{setting: value})


def test_scale():
    assert LoraConfig(rank=4, alpha=16).scale == 4
    assert LoraConfig(rank=4, alpha=16, rank_stabilised=True).scale == 8


@pytest.mark.parametrize(("layers", "expected"), [
    (("c_attn", "c_proj", "c_fc"), LINEAR_LAYERS),
    (("c_proj",), [name for name in LINEAR_LAYERS if name.endswith("c_proj")]),
    (("mlp.c_proj", "c_attn"), ["h.0.attn.c_attn", "h.0.mlp.c_proj", "h.1.attn.c_attn", "h.1.mlp.c_proj"]),
    (("h.1.mlp.c_fc",), ["h.1.mlp.c_fc"]),
])
def test_layers_are_chosen_by_the_ends_of_their_names(layers, expected):
    model = make_model()
    add_lora(model, LoraConfig(layers=layers), np.random.default_rng(0))
    assert list(lora_layers(model)) == expected


@pytest.mark.parametrize("name", ["attn", "proj", "wte", "lm_head", "ln_1", "h.2.mlp.c_fc", ".c_fc"])
def test_a_layer_that_is_not_there_is_refused(name):
    model = make_model()
    with pytest.raises(ValueError, match=f"no layer's name ends in '{name}'.*mlp.c_proj"):
        add_lora(model, LoraConfig(layers=("c_attn", name)), np.random.default_rng(0))
    assert not has_lora(model) and model.n_parameters(trainable=True) == model.n_parameters()


# ---- fresh adapters


def test_fresh_adapters_change_nothing():
    model, plain = make_model(), make_model()
    assert lora_config(model) is None
    config = LoraConfig(rank=5)
    add_lora(model, config, np.random.default_rng(0))
    assert lora_config(model) is config and has_lora(model)
    np.testing.assert_array_equal(logits_of(model), logits_of(plain))
    names = [name for name, _ in model.named_parameters()]
    assert set(dict(plain.named_parameters())) == {name for name in names if ".lora_" not in name}
    assert list(dict(model.trainable_parameters())) == list(lora_parameters(model)) == [
        f"{name}.{letter}" for name in LINEAR_LAYERS for letter in ("lora_A", "lora_B")]
    channels, inner = 12, 48
    per_block = (channels + 3 * channels) + 2 * channels + (channels + inner) + (inner + channels)
    assert model.n_parameters(trainable=True) == 2 * 5 * per_block
    for layer in lora_layers(model).values():
        n_in, n_out = layer.weight.shape
        assert layer.lora_A.shape == (5, n_in) and layer.lora_B.shape == (n_out, 5)
        assert layer.lora_A.dtype == layer.lora_B.dtype == np.float32 and not layer.lora_B.data.any()
        # Uniform within 1 / sqrt(n_in), like a layer of PyTorch.
        largest = np.abs(layer.lora_A.data).max() * math.sqrt(n_in)
        assert 0.8 < largest <= 1 and abs(layer.lora_A.data.mean()) * math.sqrt(n_in) < 0.3


def test_the_same_generator_draws_the_same_adapters():
    one, other, third = (adapted(seed=seed) for seed in (0, 0, 1))
    assert_same_weights(one, other)
    name = "h.0.attn.c_attn.lora_A"
    assert (lora_parameters(one)[name].data != lora_parameters(third)[name].data).all()


def test_adapters_twice_are_refused():
    with pytest.raises(ValueError, match="has adapters already.*merge_lora"):
        add_lora(adapted(), LoraConfig(), np.random.default_rng(0))


# ---- what they stand for


@pytest.mark.parametrize("config", [
    LoraConfig(rank=1, alpha=3), LoraConfig(rank=20, alpha=0.5), LoraConfig(rank=3, alpha=2, rank_stabilised=True),
    LoraConfig(rank=2, layers=("attn.c_proj", "c_fc")),
])
def test_the_result_is_that_of_the_matrices_merged(config):
    model, plain = adapted(config), make_model(dtype=np.float64)
    for name, parameter in plain.named_parameters():
        layer = lora_layers(model).get(name.removesuffix(".weight"))
        if layer is not None:
            scale = config.alpha / (config.rank**0.5 if config.rank_stabilised else config.rank)
            parameter.data = parameter.data + scale * (layer.lora_B.data @ layer.lora_A.data).T
    expected = logits_of(plain)
    np.testing.assert_allclose(logits_of(model), expected, rtol=1e-11, atol=1e-13)
    kept = {name: p.data.copy() for name, p in model.named_parameters()}
    merge_lora(model)
    np.testing.assert_allclose(logits_of(model), expected, rtol=1e-11, atol=1e-13)
    assert not has_lora(model) and type(model.h[0].attn.c_proj) is Linear
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.data, dict(plain.named_parameters())[name].data, rtol=1e-14, atol=1e-16)
        assert (parameter.data != kept[name]).any() == name.removesuffix(".weight").endswith(config.layers)


def test_merging_leaves_the_frozen_weight_as_it_was():
    model = adapted(dtype=np.float32)
    layer = model.h[0].mlp.c_fc
    before = layer.weight.data.copy()
    merged = layer.effective_weight()
    np.testing.assert_array_equal(layer.weight.data, before)
    assert merged.dtype == np.float32 and (merged != before).all()
    exact = before.astype(np.float64) + layer.config.scale * (
        layer.lora_B.data.astype(np.float64) @ layer.lora_A.data.astype(np.float64)).T
    np.testing.assert_allclose(merged, exact, atol=2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_the_chain_rule_of_the_merged_matrix(recompute):
    """W' = W + scale (B A)^T, so that dA = scale B^T dW'^T and dB = scale dW'^T A^T."""
    model, merged = adapted(), adapted()
    merge_lora(merged)
    merged.unfreeze()
    model.recompute = recompute
    for each in (model, merged):
        each.loss(IDS, TARGETS).backward()
    full = dict(merged.named_parameters())
    for name, layer in lora_layers(model).items():
        dweight = full[f"{name}.weight"].grad
        A, B, scale = layer.lora_A.data, layer.lora_B.data, layer.config.scale
        expected_A, expected_B = scale * B.T @ dweight.T, scale * dweight.T @ A.T
        for got, expected in ((layer.lora_A.grad, expected_A), (layer.lora_B.grad, expected_B)):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13, err_msg=name)
    assert all(p.grad is None for name, p in model.named_parameters() if ".lora_" not in name)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (2, 5, 3)])
def test_the_op_is_its_parts(p, shape):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(size) for size in (shape, (3, 4), (4,), (2, 3), (4, 2))]
    dout = rng.standard_normal((*shape[:-1], 4))
    one, other = ([Tensor(array, requires_grad=True) for array in arrays] for _ in range(2))
    out = lora_linear(*one, scale=1.5, p=p, rng=np.random.default_rng(3))
    x, weight, bias, A, B = other
    dropped = ops.dropout(x, p=p, rng=np.random.default_rng(3)) if p else x
    expected = ops.linear(x, weight, bias) + 1.5 * ((dropped @ A.T) @ B.T)
    np.testing.assert_allclose(out.data, expected.data, rtol=1e-12, atol=1e-14)
    out.backward(dout)
    expected.backward(dout)
    for got, wanted in zip(one, other, strict=True):
        np.testing.assert_allclose(got.grad, wanted.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("i", "shape"), [(0, (5, 4)), (1, (4, 4)), (2, (3,)), (3, (2, 4)), (4, (3, 2)), (4, (4, 3))])
def test_shapes_that_do_not_fit_are_named(i, shape):
    arrays = [np.ones(size) for size in ((5, 3), (3, 4), (4,), (2, 3), (4, 2))]
    arrays[i] = np.ones(shape)
    with pytest.raises(ValueError, match=r"lora_linear: x .* do not fit, expected \(..., C\)"):
        lora_linear(*arrays, scale=1.0)


# ---- dropout


def test_dropout_is_for_training_only():
    model = adapted(LoraConfig(rank=3, dropout=0.5))
    without = adapted(LoraConfig(rank=3))
    np.testing.assert_array_equal(logits_of(model), logits_of(without))
    losses = [model.loss(IDS, TARGETS, rng=np.random.default_rng(seed)).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert without.loss(IDS, TARGETS, rng=np.random.default_rng(0)).item() == without.loss(IDS, TARGETS).item()


def test_rows_that_begin_alike_are_dropped_each_on_its_own():
    """Tokens that rows share are computed once only where nothing is drawn."""
    model = adapted(LoraConfig(dropout=0.5))
    assert model.draws_dropout(np.random.default_rng(0)) and not model.draws_dropout(None)
    assert not adapted().draws_dropout(np.random.default_rng(0))


def test_dropout_keeps_the_mean_and_leaves_the_frozen_part_alone():
    x, A, B = np.ones((4000, 8)), np.full((1, 8), 0.5), np.ones((1, 1))
    out = lora_linear(x, np.ones((8, 1)), np.zeros(1), A, B, scale=2.0, p=0.25, rng=np.random.default_rng(0)).data
    assert set(np.round((out[:, 0] - 8) * 0.75, 9)) <= set(range(9))  # 8 of W; each kept input adds 1 / (1 - p)
    assert abs(out.mean() - 16) < 0.1  # 32,000 draws: a standard deviation of 0.026


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_draw_the_same(dropout):
    results = []
    for recompute in (False, True):
        model = adapted(LoraConfig(rank=3, dropout=dropout))
        model.recompute = recompute
        loss = model.loss(IDS, TARGETS, rng=np.random.default_rng(5))
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in lora_parameters(model).items()}))
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        np.testing.assert_array_equal(results[1][1][name], gradient, err_msg=name)


def test_merging_says_which_matrices_it_is_done_with():
    model, done = adapted(), []
    bases = [layer.weight.data for layer in lora_layers(model).values()]
    merge_lora(model, done_with=done.append)
    assert len(done) == len(bases) and all(one is other for one, other in zip(done, bases, strict=True))


def test_merging_freezes_nothing_that_was_trainable():
    model = adapted()
    model.unfreeze("h.0")
    merge_lora(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("h.0."), name


# ---- work and memory


@pytest.mark.parametrize("wants_x", [False, True])
def test_no_gradient_of_the_frozen_matrix_is_formed(monkeypatch, wants_x):
    rows, n_in, n_out, rank = 7, 30, 40, 2
    layer = Linear(n_in, n_out, rng=np.random.default_rng(0))
    layer.freeze()
    thin = [np.ones(shape, np.float32) for shape in ((rank, n_in), (n_out, rank))]
    layer = LoraLinear(layer, LoraConfig(rank=rank), *thin)
    x = Tensor(np.ones((rows, n_in), np.float32), requires_grad=wants_x)
    forward, out = products_in(monkeypatch, lambda: layer(x))
    assert forward == [(rows, n_in, n_out), (rows, n_in, rank), (rows, rank, n_out)]
    backward, _ = products_in(monkeypatch, lambda: out.backward(np.ones(out.shape, np.float32)))
    of_x = [(rows, n_out, n_in), (rows, rank, n_in)] if wants_x else []
    assert sorted(backward) == sorted([(rows, n_out, rank), *of_x, (rank, rows, n_in), (n_out, rows, rank)])
    assert (x.grad is not None) == wants_x and layer.weight.grad is None and layer.bias.grad is None


def test_both_terms_are_summed_in_one_array():
    rows, n_in, n_out = 64, 8, 4096
    arrays = [np.ones(size, np.float32) for size in ((rows, n_in), (n_in, n_out), (n_out,), (2, n_in), (n_out, 2))]
    inputs = [Tensor(array, requires_grad=i in (0, 3, 4)) for i, array in enumerate(arrays)]
    lora_linear(*inputs, scale=1.0)  # compiled, and buffers made
    tracemalloc.start()
    try:
        out = lora_linear(*inputs, scale=1.0)
        peak = tracemalloc.get_traced_memory()[1]
        del out
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * rows * n_out * 4


def test_training_moves_the_adapters_alone():
    model = make_model()
    add_lora(model, LoraConfig(rank=2), np.random.default_rng(0))
    before = weights_of(model)
    optimizer = AdamW(model, weight_decay=0.1)
    losses = []
    for _ in range(5):
        loss = model.loss(IDS, TARGETS)
        losses.append(loss.item())
        loss.backward()
        optimizer.step(0.02)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert list(optimizer.parameters) == list(lora_parameters(model))
    for name, after in weights_of(model).items():
        assert (after != before[name]).any() == (".lora_" in name), name


def test_the_op_is_exported_as_one():
    assert lora.lora_linear.is_op


@pytest.mark.parametrize("kept_as", ["bfloat16", "int8"])
def test_on_a_base_in_few_bits(kept_as):
    """The same as on a float32 base with the rounded weights."""
    model, rounded = adapted(dtype=np.float32), adapted(dtype=np.float32)
    compact(model, kept_as)
    for name, parameter in rounded.named_parameters():
        parameter.data = dict(model.named_parameters())[name].data
    results = []
    for each in (model, rounded):
        loss = each.loss(IDS, TARGETS)
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in lora_parameters(each).items()}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for name, gradient in results[0][1].items():
        np.testing.assert_allclose(gradient, results[1][1][name], rtol=1e-3, atol=1e-6, err_msg=name)
    merge_lora(model)
    assert model.h[0].mlp.c_fc.weight.dtype == np.float32 and not has_lora(model)
    np.testing.assert_allclose(logits_of(model), logits_of(rounded), rtol=1e-3, atol=1e-4)
