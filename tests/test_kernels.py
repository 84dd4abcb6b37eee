"""Softmax, layer norm, GELU, loss, embedding, AdamW against the references, with tolerances counted in eps."""

import math

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_within, eps, sum_error, wide

from tinyft.kernels.adamw import BLOCK as ADAMW_BLOCK
from tinyft.kernels.adamw import adamw_step
from tinyft.kernels.embedding import COLUMNS, embedding_backward
from tinyft.kernels.gelu import BLOCK as GELU_BLOCK
from tinyft.kernels.gelu import exact_gelu_backward, exact_gelu_forward, gelu_backward, gelu_forward
from tinyft.kernels.loss import cross_entropy_and_gradient, cross_entropy_in_place, losses_and_likeliest
from tinyft.kernels.norm import layer_norm_backward, layer_norm_forward
from tinyft.kernels.softmax import softmax_backward, softmax_forward
from tinyft.kernels.sums import PARTS, sum_of_squares, sum_rows

ROWS_AND_WIDTHS = [(0, 3), (1, 1), (1, 2), (3, 1), (2, 16), (7, 17), (5, 31), (PARTS + 1, 33), (67, 101)]
EPSILON = 1e-5


def normal(rng, shape, dtype, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


# ---- softmax


def check_softmax(rng, shape, dtype, scale):
    x, dout = normal(rng, shape, dtype, scale), normal(rng, shape, dtype)
    width = shape[1]
    out = softmax_forward(x)
    expected = reference.softmax(wide(x)) if x.size else wide(x)
    # x - max is rounded once, which moves the exponential by |x - max| * eps, relatively; exp has 2 ulp, the
    # sum its own error, and the division and the product one rounding each.
    moved = np.abs(wide(x) - wide(x).max(axis=1, keepdims=True, initial=-np.inf)) * eps(dtype)
    # Below the smallest normal number exp gives 0.
    lost = float(np.finfo(dtype).tiny)
    assert_within(out, expected, expected * (4 * eps(dtype) + sum_error(width, dtype) + 2 * moved) + lost)
    assert out.dtype == dtype

    dx = softmax_backward(dout, out)
    magnitude = np.abs(wide(dout)) + (wide(out) * np.abs(wide(dout))).sum(axis=1, keepdims=True)
    bound = wide(out) * magnitude * (sum_error(width, dtype) + 2 * eps(dtype))
    assert_within(dx, reference.softmax_backward(wide(dout), wide(out)), bound)


@pytest.mark.parametrize("shape", ROWS_AND_WIDTHS)
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_softmax(rng, dtype, shape, scale):
    check_softmax(rng, shape, dtype, scale)


@given(rows=st.integers(1, 20), width=st.integers(1, 150), dtype=st.sampled_from([np.float32, np.float64]),
       scale=st.sampled_from([0.1, 5, 100]), seed=st.integers(0, 2**16))
def test_softmax_any_shape(rows, width, dtype, scale, seed):
    check_softmax(np.random.default_rng(seed), (rows, width), dtype, scale)


def test_softmax_of_huge_numbers(dtype):
    top = np.finfo(dtype).max / 4
    x = np.array([[top, 0, -top], [-top, -top, -top], [0, -np.inf, 0]], dtype)
    expected = [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]]
    np.testing.assert_allclose(softmax_forward(x), expected, rtol=4 * eps(dtype))


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_softmax_keeps_nan(dtype, width):
    for at in {0, width // 2, width - 1}:
        x = np.zeros((3, width), dtype)
        x[1, at] = np.nan
        out = softmax_forward(x)
        assert np.isnan(out[1]).all()
        assert np.isfinite(out[[0, 2]]).all()
        dx = softmax_backward(np.where(np.isnan(x), x, 1), np.full_like(x, 1 / width))
        assert np.isnan(dx[1]).all() and np.isfinite(dx[[0, 2]]).all()


# ---- layer norm


def check_layer_norm(rng, shape, dtype, shift=0.0):
    rows, width = shape
    x = normal(rng, shape, dtype) + dtype(shift)
    weight, bias, dout = normal(rng, width, dtype), normal(rng, width, dtype), normal(rng, shape, dtype)
    out, mean, rstd = layer_norm_forward(x, weight, bias, EPSILON)
    x64 = wide(x)
    centred = np.abs(x64 - x64.mean(axis=1, keepdims=True))
    r = 1 / np.sqrt(x64.var(axis=1, keepdims=True) + EPSILON)
    # The mean is wrong by a sum's error relative to mean |x|, and x - mean by a rounding of itself.
    e = sum_error(width, dtype)
    off = e * np.abs(x64).mean(axis=1, keepdims=True) + eps(dtype) * np.abs(x64)
    # 1 / std: half the relative error of the variance, to which a wrong mean contributes 2 off * |x - mean|.
    r_off = e + (r**2 * (centred * off + off**2).mean(axis=1, keepdims=True))
    bound = np.abs(wide(weight)) * r * (off + centred * (r_off + 2 * eps(dtype)))
    expected = reference.layer_norm(x64, wide(weight), wide(bias), EPSILON)
    assert_within(out, expected, bound + 2 * eps(dtype) * (np.abs(expected) + np.abs(wide(bias))))
    assert_within(mean, x64.mean(axis=1), e * np.abs(x64).mean(axis=1))
    assert_within(rstd, r[:, 0], r[:, 0] * (r_off[:, 0] + 3 * eps(dtype)))

    dx, dweight, dbias = layer_norm_backward(dout, x, weight, mean, rstd)
    expected = reference.layer_norm_backward(wide(dout), x64, wide(weight), EPSILON)
    n, n_off = centred * r, r * off + centred * r * (r_off + 2 * eps(dtype))
    g = np.abs(wide(dout) * wide(weight))
    # dx = r (g - mean(g) - n mean(g n)): each term's size times the relative error of what it is made of.
    size = g + g.mean(axis=1, keepdims=True) + n * (g * n).mean(axis=1, keepdims=True)
    bound = size * (2 * e + r_off) + n_off * (g * n).mean(axis=1, keepdims=True)
    bound = bound + n * (g * n_off).mean(axis=1, keepdims=True)
    assert_within(dx, expected[0], r * bound)
    row_error = sum_error(rows, dtype)
    bound = (np.abs(wide(dout)) * (n_off + n * row_error)).sum(axis=0)
    assert_within(dweight, expected[1], bound)
    assert_within(dbias, expected[2], row_error * np.abs(wide(dout)).sum(axis=0))
    assert {array.dtype for array in (out, mean, rstd, dx, dweight, dbias)} == {np.dtype(dtype)}


@pytest.mark.parametrize("shape", ROWS_AND_WIDTHS)
def test_layer_norm(rng, dtype, shape):
    check_layer_norm(rng, shape, dtype)


@pytest.mark.parametrize("shift", [-30.0, 1000.0])
def test_layer_norm_with_a_large_mean(rng, dtype, shift):
    """One pass with E[x^2] - E[x]^2 would lose all digits of a float32 here."""
    check_layer_norm(rng, (9, 53), dtype, shift)


@given(rows=st.integers(1, 40), width=st.integers(2, 150), dtype=st.sampled_from([np.float32, np.float64]),
       seed=st.integers(0, 2**16))
def test_layer_norm_any_shape(rows, width, dtype, seed):
    check_layer_norm(np.random.default_rng(seed), (rows, width), dtype)


def test_layer_norm_of_equal_numbers_is_the_bias(dtype):
    x, bias = np.full((3, 8), 2, dtype), np.arange(8, dtype=dtype)
    out, _, rstd = layer_norm_forward(x, np.ones(8, dtype), bias, EPSILON)
    np.testing.assert_array_equal(out, np.tile(bias, (3, 1)))
    np.testing.assert_allclose(rstd, EPSILON**-0.5, rtol=4 * eps(dtype))


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_layer_norm_keeps_nan(dtype, width):
    ones, zeros = np.ones(width, dtype), np.zeros(width, dtype)
    for at in {0, width // 2, width - 1}:
        x = np.zeros((3, width), dtype)
        x[1, at] = np.nan
        out, mean, rstd = layer_norm_forward(x, ones, zeros, EPSILON)
        assert np.isnan(out[1]).all() and np.isnan(mean[1]) and np.isnan(rstd[1])
        assert np.isfinite(out[[0, 2]]).all()
        dx, dweight, _ = layer_norm_backward(np.ones_like(x), x, ones, mean, rstd)
        assert np.isnan(dx[1]).all() and np.isnan(dweight).all() and np.isfinite(dx[[0, 2]]).all()


# ---- GELU


@pytest.mark.parametrize("size", [0, 1, 2, 31, 97, GELU_BLOCK + 1])
def test_gelu(rng, dtype, size):
    x, dout = normal(rng, size, dtype, 3), normal(rng, size, dtype)
    # x times the logistic function s of 2u. 2u has 5 roundings, |2u| * 2.5 eps at most, which moves s by
    # s (1 - s) |2u| * 2.5 eps < 0.6 eps (t e^-t / (1 + e^-t)^2 < 0.23); exp, the sum, the division: 2 eps s each
    # at most. In the backward pass the second term has slope (1 + ...) |x| s (1 - s) with ten such factors; the
    # reference's own 1 - tanh**2 loses digits to cancellation and is wrong by an eps or two.
    assert_within(gelu_forward(x), reference.gelu(wide(x)), 5 * eps(dtype) * np.abs(wide(x)))
    slope = np.abs(wide(x)) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * wide(x) ** 2)
    s = 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (wide(x) + 0.044715 * wide(x) ** 3)))
    twice_u = 2 * np.sqrt(2 / np.pi) * np.abs(wide(x) + 0.044715 * wide(x) ** 3)
    second = 2 * slope * s * (1 - s) * (2.5 * twice_u + 10) + 2 * slope * s
    bound = np.abs(wide(dout)) * (eps(dtype) * (5 + second) + 2 * eps(np.float64) * slope)
    assert_within(gelu_backward(dout, x), wide(dout) * reference.gelu_slope(wide(x)), bound)


def exact_gelu(x):
    """x Phi(x) and its slope in float64, from the C library's erfc."""
    distribution = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])
    return x * distribution, distribution + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("size", [0, 1, 2, 31, 97, GELU_BLOCK + 1])
def test_exact_gelu(rng, dtype, size):
    x, dout = normal(rng, size, dtype, 3), normal(rng, size, dtype)
    value, slope = exact_gelu(wide(x))
    # 6 ulp of Phi are 6 eps at most and the product is one rounding more. The reference rounds x / sqrt(2), which
    # moves erfc by x**2 of float64's eps. In the slope each of the two terms has its own 8 eps.
    rounded = 2 * eps(np.float64) * (1 + wide(x) ** 2)
    assert_within(exact_gelu_forward(x), value, (7 * eps(dtype) + rounded) * np.abs(value))
    terms = np.abs(value / wide(x)) + np.abs(slope - value / wide(x))
    assert_within(exact_gelu_backward(dout, x), wide(dout) * slope,
                  (8 * eps(dtype) + rounded) * np.abs(wide(dout)) * terms)


@pytest.mark.parametrize(("x", "expected"), [
    (-37, -2.1184613523340934e-298), (-25, -7.6417417659564023e-137), (-12.5, -4.6657053735971417e-35),
    (-6, -5.9195258702261888e-9), (-2.5, -0.015524163314440338), (-1, -0.15865525393145705),
    (-0.25, -0.10032341857926907),
])
def test_exact_gelu_keeps_its_digits_on_the_left(dtype, x, expected):
    """Worked out with 40 digits: 1 + erf would have none left beyond -6 in float32."""
    if abs(expected) < np.finfo(dtype).tiny:
        assert exact_gelu_forward(np.full(3, x, dtype)).tolist() == [0, 0, 0]
    else:
        np.testing.assert_allclose(exact_gelu_forward(np.full(3, x, dtype)), expected, rtol=7 * eps(dtype))


BOTH_GELUS = pytest.mark.parametrize(("forward", "backward"), [
    (gelu_forward, gelu_backward), (exact_gelu_forward, exact_gelu_backward)], ids=["tanh", "exact"])


@BOTH_GELUS
def test_gelu_far_out(dtype, forward, backward):
    x = np.array([-1e6, -100, -40, 40, 100, 1e6], dtype)
    np.testing.assert_array_equal(forward(x), np.maximum(x, 0))
    np.testing.assert_array_equal(backward(np.ones_like(x), x), x > 0)


@BOTH_GELUS
def test_gelu_keeps_nan(dtype, forward, backward):
    for at in range(35):
        x = np.linspace(-3, 3, 35).astype(dtype)
        x[at] = np.nan
        np.testing.assert_array_equal(np.isnan(forward(x)), np.isnan(x))
        np.testing.assert_array_equal(np.isnan(backward(np.ones_like(x), x)), np.isnan(x))
        np.testing.assert_array_equal(np.isnan(backward(x, np.ones_like(x))), np.isnan(x))


# ---- cross-entropy


@pytest.mark.parametrize(("rows", "width"), [(0, 3), (1, 1), (1, 2), (3, 17), (5, 31), (11, 257)])
@pytest.mark.parametrize("logit_size", [1, 40])
def test_cross_entropy(rng, dtype, rows, width, logit_size):
    logits, targets = normal(rng, (rows, width), dtype, logit_size), rng.integers(0, width, rows)
    scales = rng.uniform(0.1, 1, rows).astype(dtype)
    gradient = logits.copy()
    losses = cross_entropy_in_place(gradient, targets, scales)
    expected_losses, expected = reference.cross_entropy(wide(logits), targets) if rows else (wide(losses), wide(logits))
    x = wide(logits)
    gap = np.abs(x - x.max(axis=1, keepdims=True, initial=-np.inf))
    # As for softmax; the logarithm turns the sum's relative error into an absolute one and rounds once.
    e = sum_error(width, dtype) + 4 * eps(dtype)
    p = reference.softmax(x) if rows else x
    moved = (p * gap).sum(axis=1) * eps(dtype)
    bound = e + moved + eps(dtype) * (gap[np.arange(rows), targets] + np.abs(expected_losses))
    assert_within(losses, expected_losses, bound)
    bound = p * (e + 2 * gap * eps(dtype) + moved[:, None]) + 2 * eps(dtype) * np.abs(expected)
    bound += eps(dtype) * (np.arange(width) == targets[:, None])
    each = wide(scales)[:, None]
    assert_within(gradient, each * expected, each * bound + float(np.finfo(dtype).tiny))
    scale, before, some = 0.3, logits.copy(), np.where(np.arange(rows) % 3 == 1, -100, targets)
    gradient = logits.copy()
    losses = cross_entropy_in_place(gradient, targets, np.full(rows, scale, dtype))
    apart_losses, apart = cross_entropy_and_gradient(logits, some, scale)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(apart_losses, np.where(some < 0, 0, losses))
    np.testing.assert_array_equal(apart, np.where(some[:, None] < 0, 0, gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, -1.0])
def test_gradient_of_a_loss_has_no_numbers_below_the_normal_ones(dtype, scale):
    """A product with some of them takes ten times as long; a gradient that small is none."""
    smallest = np.finfo(dtype).tiny
    logits = np.log(smallest) * np.linspace(0, 1.05, 2001, dtype=dtype)[None]
    exact = scale * np.exp(logits.astype(np.longdouble))
    exact /= np.exp(logits.astype(np.longdouble)).sum()
    targets, before = np.array([2000]), logits.copy()
    gradient = cross_entropy_and_gradient(logits, targets, scale)[1][0, :-1]
    assert not np.any((gradient != 0) & (np.abs(gradient) < smallest))
    # As for softmax: the exponent's rounding, relative to the largest logit, becomes a relative error.
    np.testing.assert_allclose(gradient, exact[0, :-1], rtol=2 * np.abs(before).max() * eps(dtype), atol=smallest)
    assert (gradient == 0).any() and (gradient != 0).any()
    cross_entropy_in_place(logits, targets, np.array([scale], dtype))
    assert not np.any((logits != 0) & (np.abs(logits) < smallest))


@pytest.mark.parametrize("width", [2, 3, 17, 257])
def test_loss_does_not_depend_on_where_logits_lie(rng, dtype, width):
    """Near a loss of 0, adding the largest logit and taking it off again would leave its rounding alone."""
    logits = rng.integers(-40, 1, (20, width)).astype(dtype)
    logits[:, 0] = 0
    targets = np.zeros(20, np.int64)
    expected, _ = losses_and_likeliest(logits.copy(), targets)
    bound = sum_error(width, dtype) + 4 * eps(dtype)
    for offset in (-(2**12), 2**12):  # exact in either type
        moved = logits + dtype(offset)
        assert_within(losses_and_likeliest(moved, targets)[0], wide(expected), bound)
        assert_within(cross_entropy_and_gradient(moved, targets, 1.0)[0], wide(expected), bound)
        assert_within(cross_entropy_in_place(moved, targets, np.ones(20, dtype)), wide(expected), bound)


@pytest.mark.parametrize("width", [1, 2, 17, 64])
def test_cross_entropy_keeps_nan(dtype, width):
    for at in {0, width // 2, width - 1}:
        logits = np.zeros((3, width), dtype)
        logits[1, at] = np.nan
        losses = cross_entropy_in_place(logits, np.zeros(3, np.int64), np.ones(3, dtype))
        np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
        assert np.isnan(logits[1]).all() and np.isfinite(logits[[0, 2]]).all()


# ---- embedding and bias


@pytest.mark.parametrize(
    ("rows", "width", "table"), [(0, 3, 2), (1, 1, 1), (7, 5, 3), (31, COLUMNS + 1, 2), (67, 300, 11)]
)
def test_embedding_backward(rng, dtype, rows, width, table):
    dout, dweight = normal(rng, (rows, width), dtype), normal(rng, (table, width), dtype)
    ids = rng.integers(0, table, rows)
    got = dweight.copy()
    embedding_backward(dout, ids, got)
    expected = reference.embedding_backward(wide(dout), ids, wide(dweight))
    magnitude = reference.embedding_backward(np.abs(wide(dout)), ids, np.abs(wide(dweight)))
    assert_within(got, expected, sum_error(rows, dtype) * magnitude)


@pytest.mark.parametrize(("rows", "width"), [(0, 3), (1, 1), (2, COLUMNS), (5, COLUMNS + 1), (131, 7), (67, 300)])
def test_sum_rows(rng, dtype, rows, width):
    x = normal(rng, (rows, width), dtype)
    got = sum_rows(x)
    assert got.dtype == dtype
    assert_within(got, wide(x).sum(axis=0), sum_error(rows, dtype) * np.abs(wide(x)).sum(axis=0))


# ---- AdamW


def adamw_state(rng, size, dtype):
    weight, grad, m = (normal(rng, size, dtype) for _ in range(3))
    return weight, grad, m, np.square(normal(rng, size, dtype))


@pytest.mark.parametrize("size", [0, 1, 17, ADAMW_BLOCK + 3])
@pytest.mark.parametrize(("grad_scale", "weight_decay", "step"), [(1.0, 0.0, 1), (0.25, 0.1, 2), (1.0, 0.5, 10_000)])
def test_adamw(rng, dtype, size, grad_scale, weight_decay, step):
    arrays = adamw_state(rng, size, dtype)
    settings = (grad_scale, 1e-2, 0.9, 0.99, 1e-8, weight_decay, step)
    weight, m, v, update = reference.adamw(*wide(*arrays), *settings)
    got = [array.copy() for array in arrays]
    adamw_step(*got, *settings, 0)
    e, (weight0, grad, m0, v0) = eps(dtype), np.abs(wide(*arrays))
    np.testing.assert_array_equal(got[1], arrays[1])  # the gradient is read only
    # m and v: a product, a difference, a product, a sum, relative to what goes in.
    m_bound, v_bound = 3 * e * (m0 + grad * grad_scale), 3 * e * (v0 + (grad * grad_scale) ** 2)
    assert_within(got[2], m, m_bound)
    assert_within(got[3], v, v_bound)
    # The update: m's error and half of v's, and some six roundings of its factors.
    with np.errstate(invalid="ignore", divide="ignore"):
        u_bound = np.abs(update) * (np.where(m == 0, 0, m_bound / np.abs(m)) + 0.5 * v_bound / v + 6 * e)
    assert_within(got[0], weight, u_bound + 2 * e * (weight0 + np.abs(update)))


def test_adamw_with_zero_gradient_only_decays(dtype):
    weight = np.array([1, -2, 3], dtype)
    zeros = np.zeros(3, dtype)
    got = weight.copy()
    adamw_step(got, zeros, zeros.copy(), zeros.copy(), 1.0, 0.1, 0.9, 0.99, 1e-8, 0.5, 1, 0)
    np.testing.assert_allclose(got, weight * 0.95, rtol=2 * eps(dtype))


@pytest.mark.parametrize("size", [0, 1, 2, 97, ADAMW_BLOCK, 2 * ADAMW_BLOCK + 5])
def test_sum_of_squares(rng, dtype, size):
    x = normal(rng, size, dtype)
    expected = np.sum(wide(x) ** 2)
    assert_within(np.asarray(sum_of_squares(x)), expected, sum_error(min(size, ADAMW_BLOCK), dtype) * expected)


def test_sum_of_squares_of_many_float32():
    """One float32 sum stops growing at 2**24 ones."""
    assert sum_of_squares(np.ones(2**24 + 2**22, np.float32)) == 2**24 + 2**22


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sum_of_squares_keeps_nan_and_inf(dtype, bad):
    for at in (0, 5, 63, ADAMW_BLOCK, ADAMW_BLOCK + 6):
        x = np.ones(ADAMW_BLOCK + 7, dtype)
        x[at] = bad
        assert not np.isfinite(sum_of_squares(x))
        assert np.isnan(sum_of_squares(x)) == np.isnan(bad)


# ---- threads


def same(results):
    one, two = results
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_change_nothing_in_layer_norm(rng, dtype, one_and_two_threads):
    x, weight, bias, dout = (normal(rng, shape, dtype) for shape in ((61, 37), 37, 37, (61, 37)))

    def compute():
        out, mean, rstd = layer_norm_forward(x, weight, bias, EPSILON)
        return out, mean, rstd, *layer_norm_backward(dout, x, weight, mean, rstd)

    same(one_and_two_threads(compute))


def test_threads_change_nothing_in_embedding(rng, dtype, one_and_two_threads):
    dout, ids = normal(rng, (200, 300), dtype), rng.integers(0, 3, 200)

    def compute():
        dweight = np.zeros((3, 300), dtype)
        embedding_backward(dout, ids, dweight)
        return dweight, sum_rows(dout)

    same(one_and_two_threads(compute))


def test_threads_change_nothing_in_adamw(rng, dtype, one_and_two_threads):
    arrays = adamw_state(rng, 3 * ADAMW_BLOCK + 11, dtype)

    def compute():
        copies = [array.copy() for array in arrays]
        adamw_step(*copies, 1.0, 1e-2, 0.9, 0.99, 1e-8, 0.1, 3, 0)
        return *copies, np.asarray(sum_of_squares(arrays[0]))

    same(one_and_two_threads(compute))
