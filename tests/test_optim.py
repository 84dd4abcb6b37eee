"""AdamW and the learning rate's course against plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import make_model

from tinyft import AdamW, Tensor, cosine_with_warmup
from tinyft.kernels.adamw import BLOCK
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parameter_whose_columns_lie_together_is_updated(when):
    """Such an array's flat view is a copy, whether the optimizer was made before or after it was put there."""
    modules = [Params(np.random.default_rng(0)) for _ in range(2)]
    for module, order in zip(modules, "CF", strict=True):
        optimizer = AdamW(module) if when == "after" else None
        module.matrix.data = np.array(module.matrix.data, order=order)
        optimizer = optimizer or AdamW(module)
        for _ in range(3):
            module.matrix.grad = np.ones_like(module.matrix.data)
            optimizer.step(0.1)
    np.testing.assert_array_equal(modules[1].matrix.data, modules[0].matrix.data)


# ---- moments in bfloat16


def expanded(moments):
    return (moments.astype(np.uint32) << 16).view(np.float32)


def moments_after(grads, seeds, betas=(0.9, 0.999)):
    """m and v of one parameter after these gradients, once for each seed, and the float32 ones."""
    found = []
    for kept_as, seed in [("float32", 0), *(("bfloat16", seed) for seed in seeds)]:
        module = Module()
        module.vector = Tensor(np.zeros(grads.shape[1], np.float32), requires_grad=True)
        optimizer = AdamW(module, betas=betas, moments=kept_as, seed=seed)
        for grad in grads:
            module.vector.grad = grad.copy()
            optimizer.step(1e-3)
        found.append((optimizer.m["vector"], optimizer.v["vector"]))
    return found


def test_moments_are_right_on_average(rng):
    """Over many draws each is right to the error of their mean; to the nearest, it would be off by half a step."""
    grads = (rng.standard_normal((1, 300)) * 10.0 ** rng.integers(-6, 3, 300)).astype(np.float32)
    exact, *drawn = moments_after(grads, range(200))
    for which in (0, 1):
        numbers = np.array([expanded(moments[which]) for moments in drawn]).astype(np.float64)
        below = expanded((exact[which].view(np.uint32) >> 16).astype(np.uint16))
        above = expanded((exact[which].view(np.uint32) >> 16).astype(np.uint16) + np.uint16(1))
        assert ((numbers == below) | (numbers == above)).all()
        error = (numbers.mean(axis=0) - exact[which]) / np.abs(above - below)
        assert np.abs(error).max() < 5 * 0.5 / np.sqrt(200) and np.abs(error.mean()) < 5 * 0.5 / np.sqrt(200 * 300)


def test_an_average_of_squares_is_not_stuck(rng):
    """A step of beta2 = 0.999 is less than half a bfloat16: to the nearest, nothing would ever move."""
    grads = np.concatenate([np.ones((1, 4000)), np.full((400, 4000), 0.02)]).astype(np.float32)
    exact, rounded = moments_after(grads, [0])
    assert expanded(rounded[1]).mean() == pytest.approx(exact[1].mean(), rel=0.01)
    assert expanded(rounded[1]).std() < 0.1 * exact[1].mean()
    assert exact[1].mean() == pytest.approx(0.001 * 0.999**400 + 0.0004 * (1 - 0.999**400), rel=1e-3)


def test_what_is_drawn_depends_on_seed_step_parameter_and_element():
    class Two(Module):
        def __init__(self):
            self.one, self.other = (Tensor(np.zeros(40_000, np.float32), requires_grad=True) for _ in range(2))

    def rounded_up(seed, steps=1):
        """By parameter: which elements of m and of v, all of the same size before, were rounded up in the last step."""
        module = Two()
        optimizer = AdamW(module, moments="bfloat16", seed=seed)
        optimizer.steps = steps - 1
        for name, parameter in module.named_parameters():
            optimizer.m[name][...], optimizer.v[name][...] = 0x3E00, 0x3C00
            parameter.grad = np.full(40_000, 0.3, np.float32)
        optimizer.step(1e-3)
        return {name: [moments[name] == moments[name].max() for moments in (optimizer.m, optimizer.v)]
                for name in optimizer.m}

    first, again = rounded_up(1), rounded_up(1)
    np.testing.assert_array_equal(first["one"], again["one"])
    m, v = first["one"]
    for other in (rounded_up(2)["one"][0], rounded_up(1, steps=2)["one"][0], first["other"][0], v):
        assert abs(np.corrcoef(m, other)[0, 1]) < 5 / math.sqrt(m.size)
    for moments in m, v:
        for apart in (1, 2, 16, 256, BLOCK, 20_000):
            assert abs(np.corrcoef(moments[apart:], moments[:-apart])[0, 1]) < 5 / math.sqrt(m.size - apart)


def test_threads_change_nothing_in_rounded_moments(rng, one_and_two_threads):
    grads = rng.standard_normal((3, 3 * BLOCK + 11)).astype(np.float32)
    one, two = one_and_two_threads(lambda: moments_after(grads, [7])[1])
    np.testing.assert_array_equal(one, two)


def test_resumed_from_its_arrays_it_goes_on_the_same(rng):
    grads = rng.standard_normal((6, 50)).astype(np.float32)
    modules = [Module(), Module()]
    for module in modules:
        module.vector = Tensor(np.ones(50, np.float32), requires_grad=True)
    whole, part = (AdamW(module, moments="bfloat16", seed=3) for module in modules)
    for step, grad in enumerate(grads):
        if step == 3:
            resumed = AdamW(modules[1], moments="bfloat16", seed=3)
            resumed.m, resumed.v, resumed.steps, part = part.m, part.v, part.steps, resumed
        for module, optimizer in zip(modules, (whole, part), strict=True):
            module.vector.grad = grad.copy()
            optimizer.step(1e-2)
    np.testing.assert_array_equal(modules[0].vector.data, modules[1].vector.data)
    np.testing.assert_array_equal(whole.v["vector"], part.v["vector"])


def test_training_with_rounded_moments_stays_with_float32(rng):
    losses = {}
    ids = rng.integers(0, 97, (8, 24))
    for kept_as in ("float32", "bfloat16"):
        model = make_model(vocab_size=97, n_embd=32)
        optimizer, losses[kept_as] = AdamW(model, moments=kept_as), []
        for _ in range(60):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step(3e-3, max_norm=1.0)
            losses[kept_as].append(loss.item())
        assert optimizer.v["wte.weight"].dtype == (np.uint16 if kept_as == "bfloat16" else np.float32)
    assert losses["bfloat16"][-1] < 0.7 * losses["bfloat16"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


def test_moments_that_cannot_be():
    with pytest.raises(ValueError, match="moments are 'int8', expected float32 or bfloat16"):
        AdamW(Params(np.random.default_rng(0)), moments="int8")
    with pytest.raises(ValueError, match="moments in bfloat16 are for float32 parameters"):
        AdamW(Params(np.random.default_rng(0)), moments="bfloat16")
