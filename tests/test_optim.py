"""AdamW and the learning rate's course against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import make_model

from tinyft import AdamW, Tensor, cosine_with_warmup
from tinyft.nn import Module


class Params(Module):
    """A matrix, a vector, a table, and a vector that never gets a gradient."""

    def __init__(self, rng, dtype=np.float64):
        for name, shape in (("matrix", (5, 7)), ("vector", (9,)), ("table", (3, 2, 4)), ("unused", (4,))):
            setattr(self, name, Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True))


def adamw_in_numpy(data, grads, m, v, step, lr, beta1, beta2, eps, decay):
    """Loshchilov and Hutter, algorithm 2: decay beside the adaptive step, only for matrices."""
    m = beta1 * m + (1 - beta1) * grads
    v = beta2 * v + (1 - beta2) * grads**2
    update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return data - lr * (update + (decay if data.ndim > 1 else 0.0) * data), m, v


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("betas, decay", [((0.9, 0.999), 0.1), ((0.8, 0.95), 0.0)])
def test_adamw_against_numpy(max_norm, betas, decay):
    rng = np.random.default_rng(0)
    module = Params(rng)
    optimizer = AdamW(module, betas=betas, weight_decay=decay, eps=1e-8)
    used = ("matrix", "vector", "table")
    data = {name: getattr(module, name).data.copy() for name in used}
    m, v = ({name: np.zeros_like(array) for name, array in data.items()} for _ in range(2))
    unused = module.unused.data.copy()
    for step in range(1, 9):
        lr = 0.01 * step
        grads = {name: rng.standard_normal(array.shape) for name, array in data.items()}
        for name, grad in grads.items():
            getattr(module, name).grad = grad.copy()
        norm = math.sqrt(sum((grad**2).sum() for grad in grads.values()))
        scale = 1.0 if max_norm is None else min(1.0, max_norm / norm)
        assert optimizer.step(lr, max_norm=max_norm) == pytest.approx(norm, rel=1e-13)
        for name in used:
            data[name], m[name], v[name] = adamw_in_numpy(data[name], scale * grads[name], m[name], v[name], step, lr,
                                                          *betas, 1e-8, decay)
            np.testing.assert_allclose(getattr(module, name).data, data[name], rtol=1e-12, atol=1e-13)
            assert getattr(module, name).grad is None
    np.testing.assert_array_equal(module.unused.data, unused)


def test_decay_is_for_matrices_only():
    module = Params(np.random.default_rng(0))
    before = {name: p.data.copy() for name, p in module.named_parameters()}
    for _, parameter in module.named_parameters():
        parameter.grad = np.zeros_like(parameter.data)
    AdamW(module, weight_decay=0.5).step(0.1)
    for name, parameter in module.named_parameters():
        shrunk = 0.95 if parameter.ndim > 1 else 1.0
        np.testing.assert_allclose(parameter.data, shrunk * before[name], rtol=1e-14)


def test_decay_groups_of_gpt2():
    model = make_model()
    decayed = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_proj.weight"} <= decayed
    assert all(name.endswith(".weight") and ".ln_" not in name and "ln_f" not in name for name in decayed)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_changes_nothing(bad):
    module = Params(np.random.default_rng(0))
    optimizer = AdamW(module)
    before = {name: p.data.copy() for name, p in module.named_parameters()}
    module.matrix.grad = np.ones_like(module.matrix.data)
    module.vector.grad = np.full_like(module.vector.data, bad)
    assert not math.isfinite(optimizer.step(0.1, max_norm=1.0))
    assert optimizer.steps == 0
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(parameter.data, before[name])
        assert parameter.grad is None
        assert not optimizer.m[name].any() and not optimizer.v[name].any()


def test_float32_step_is_close_to_float64():
    modules = [Params(np.random.default_rng(0), dtype) for dtype in (np.float32, np.float64)]
    optimizers = [AdamW(module) for module in modules]
    rng = np.random.default_rng(1)
    for _ in range(5):
        grads = {name: rng.standard_normal(p.shape) for name, p in modules[0].named_parameters()}
        for module, optimizer in zip(modules, optimizers, strict=True):
            for name, parameter in module.named_parameters():
                parameter.grad = grads[name].astype(parameter.dtype)
            optimizer.step(0.01, max_norm=1.0)
    assert modules[0].matrix.dtype == np.float32
    np.testing.assert_allclose(modules[0].matrix.data, modules[1].matrix.data, atol=1e-6)


def test_learning_rate_at_the_ends():
    course = [cosine_with_warmup(step, 100, peak=2.0, warmup=10, floor=0.2) for step in range(101)]
    assert course[0] == pytest.approx(0.2)
    assert course[4] == pytest.approx(1.0)
    assert course[9] == course[10] == pytest.approx(2.0)
    assert course[55] == pytest.approx(1.1)
    assert course[100] == pytest.approx(0.2)
    assert course[99] == pytest.approx(0.2, rel=0.01)
    assert np.all(np.diff(course[:10]) > 0) and np.all(np.diff(course[10:]) < 0)


@pytest.mark.parametrize("steps, warmup", [(1, 1), (2, 1), (3, 3)])
def test_learning_rate_of_very_short_runs(steps, warmup):
    course = [cosine_with_warmup(step, steps, peak=1.0, warmup=warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in course)
    assert course[warmup - 1] == 1.0
