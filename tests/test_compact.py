"""Frozen matrices in 16 and 8 bits: how they are rounded, and that ops do with them what they do with the arrays."""

import copy
import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model

from tinyft import AdamW, Tensor, losses, no_grad, ops
from tinyft.compact import CompactWeight, compact
from tinyft.kernels.jit import HAS_BFLOAT16
from tinyft.kernels.kept import PART, keep
from tinyft.kernels.matmul import K_BLOCK, TILE_ROWS, gemm

pytestmark = pytest.mark.heavy  # products with such matrices are kernels of their own, half a minute to compile

FORMS = ["bfloat16", "int8"]
sizes = st.integers(1, 80) | st.sampled_from([97, 128, 191, 256])


def matrix_of(rng, rows, columns):
    """Columns, and groups of rows, of very different size, one of zeros, and signs that matter."""
    matrix = rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-20, 20, columns)
    matrix *= 2.0 ** (np.arange(rows) // 64 % 5)[:, None]
    matrix[:, rng.integers(columns)] = 0
    return matrix.astype(np.float32)


def steps_of(matrix):
    """The distance of one int8 to the next for each element: 64 of a column share theirs."""
    return np.concatenate([np.broadcast_to(np.abs(matrix[i : i + 64]).max(axis=0) / 127, matrix[i : i + 64].shape)
                           for i in range(0, len(matrix), 64)])


def nearest(matrix, kept_as):
    """The rounded matrix, in float64 and by other means than the code's."""
    wide = matrix.astype(np.float64)
    if kept_as == "bfloat16":
        mantissa, exponent = np.frexp(wide)
        return np.ldexp(np.rint(mantissa * 256) / 256, exponent)
    scale = steps_of(wide)
    return np.where(scale > 0, np.rint(wide / np.where(scale > 0, scale, 1)) * scale, 0)


# ---- rounding


@pytest.mark.parametrize("kept_as", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (64, 33), (PART // 50 + 3, 101)])
def test_each_number_becomes_the_nearest(rng, kept_as, shape):
    matrix = matrix_of(rng, *shape)
    kept = keep(matrix, kept_as)
    assert kept.shape == shape and len(kept) == shape[0] and kept[...].dtype == np.float32
    expected, step = nearest(matrix, kept_as), steps_of(matrix)
    if kept_as == "bfloat16":
        np.testing.assert_array_equal(kept[...], expected)
    else:  # a tie in one arithmetic may be none in the other
        assert (np.abs(kept[...] - matrix) <= 0.50001 * step).all()
        assert (np.abs(kept[...] - expected) <= 1e-6 * 127 * step).mean() > 0.999
        assert (np.abs(kept.stored[:64]).max(axis=0) == np.where(step[0] > 0, 127, 0)).all()
    np.testing.assert_array_equal(kept.T[...], kept[...].T)
    ids = rng.integers(0, shape[0], (2, 3))
    np.testing.assert_array_equal(kept[ids], kept[...][ids])
    whole = kept[...]
    np.testing.assert_array_equal(kept[0], whole[0])
    np.testing.assert_array_equal(kept[...], whole)  # a look at one row leaves it as it was
    np.testing.assert_array_equal(kept.T[[0]], kept[...].T[[0]])


@pytest.mark.parametrize("order", ["F", "strided"])
@pytest.mark.parametrize("kept_as", FORMS)
def test_any_order_of_memory(rng, kept_as, order):
    matrix = matrix_of(rng, 30, 40)
    other = np.asfortranarray(matrix) if order == "F" else np.repeat(matrix, 2, axis=0)[::2]
    np.testing.assert_array_equal(keep(other, kept_as)[...], keep(matrix, kept_as)[...])
    assert keep(other, kept_as).stored.flags.c_contiguous


def test_infinities_and_nans():
    bits = np.array([[0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F7FFFFF, 0x80000000]], np.uint32)
    expanded = keep(bits.view(np.float32), "bfloat16")[...]
    np.testing.assert_array_equal(expanded, np.float32([[np.inf, -np.inf, np.nan, np.nan, np.nan, np.inf, 0]]))
    assert np.signbit(expanded[0, 6])
    for bad in np.inf, np.nan:
        with pytest.raises(ValueError, match="int8 has infinities or NaNs; use bfloat16"):
            keep(np.float32([[1, bad], [2, 3]]), "int8")


@pytest.mark.parametrize(("matrix", "kept_as", "says"), [
    (np.ones((2, 2), np.float32), "int4", r"'int4', expected one of bfloat16, int8"),
    (np.ones((2, 2)), "int8", r"kept as int8 is \(2, 2\) float64, expected \(rows, columns\) float32"),
    (np.ones(2, np.float32), "bfloat16", r"kept as bfloat16 is \(2,\) float32"),
])
def test_what_cannot_be_kept(matrix, kept_as, says):
    with pytest.raises(ValueError, match=says):
        keep(matrix, kept_as)


# ---- products


def check_products(rng, rows, depth, columns, kept_as, bfloat16=False):
    """Both products with a matrix (depth, columns) are those with the expanded one."""
    kept = keep(matrix_of(rng, depth, columns), kept_as)
    x, dout = rng.standard_normal((rows, depth), np.float32), rng.standard_normal((rows, columns), np.float32)
    bias, before = rng.standard_normal(columns, np.float32), rng.standard_normal((rows, depth), np.float32)
    for transposed, a, options in ((False, x, {}), (False, x, {"bias": bias}), (True, dout, {}),
                                   (True, dout, {"out": before, "accumulate": True})):
        b = kept.T if transposed else kept
        expected, got = (gemm(a, factor, bfloat16=bfloat16, **copy.deepcopy(options)) for factor in (b[...], b))
        if rows > 1:  # of the very same sums
            np.testing.assert_array_equal(got, expected)
        else:
            bound = (2 + len(b)) * np.finfo(np.float32).eps * (np.abs(a) @ np.abs(b[...]) + np.abs(expected))
            assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("kept_as", FORMS)
@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=pytest.mark.skipif(
    not HAS_BFLOAT16, reason="this CPU has no AVX-512 BF16 instructions"))])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 131), (2, 1, 3), (3, 5, 1), (TILE_ROWS, 16, 32), (14, 17, 33),
                                   (TILE_ROWS - 1, K_BLOCK, 31), (29, K_BLOCK + 1, 64), (61, 2 * K_BLOCK + 5, 127),
                                   (300, 97, 41), (31, 769, 2100)])
def test_products_in_odd_shapes(rng, kept_as, bfloat16, shape):
    check_products(rng, *shape, kept_as, bfloat16)


@given(rows=sizes, depth=sizes, columns=sizes, kept_as=st.sampled_from(FORMS), seed=st.integers(0, 2**16))
def test_products_in_any_shape(rows, depth, columns, kept_as, seed):
    check_products(np.random.default_rng(seed), rows, depth, columns, kept_as)


@pytest.mark.parametrize("kept_as", FORMS)
def test_matrices_that_are_exact_in_few_bits(rng, kept_as):
    """The products are those of float32, in every bit."""
    matrix = rng.integers(-127, 128, (70, 50)).astype(np.float32) * np.float32(0.25)
    matrix[[0, 64]] = 127 * 0.25
    x, kept = rng.standard_normal((20, 70), np.float32), keep(matrix, kept_as)
    np.testing.assert_array_equal(kept[...], matrix)
    np.testing.assert_array_equal(gemm(x, kept), gemm(x, matrix))
    np.testing.assert_array_equal(gemm(x[:, :50], kept.T), gemm(x[:, :50], matrix.T))


def test_only_the_right_factor_may_be_kept():
    kept = keep(np.ones((3, 3), np.float32), "int8")
    with pytest.raises(TypeError, match="a is kept in fewer bits, expected an array"):
        gemm(kept, np.ones((3, 3), np.float32))
    with pytest.raises(TypeError, match="float64 and float32"):
        gemm(np.ones((3, 3)), kept)


# ---- ops


def both(rng, rows, columns, kept_as):
    """A CompactWeight and a frozen Tensor with the same values."""
    weight = CompactWeight(matrix_of(rng, rows, columns), kept_as)
    return weight, Tensor(weight.data)


@pytest.mark.parametrize("kept_as", FORMS)
def test_ops_do_what_they_do_with_arrays(rng, kept_as):
    layer, table = both(rng, 24, 37, kept_as), both(rng, 53, 24, kept_as)
    ids, targets = rng.integers(0, 53, (2, 5)), rng.integers(0, 53, 10)
    bias, x = rng.standard_normal(37).astype(np.float32), rng.standard_normal((2, 5, 24)).astype(np.float32)
    found = []
    for weight, words in zip(layer, table, strict=True):
        inputs, added = Tensor(x, requires_grad=True), Tensor(bias, requires_grad=True)
        out = ops.linear(inputs, weight, added)
        seen = ops.embedding(words, ids)
        logits = ops.matmul(inputs + seen, words.T)
        loss = losses.linear_cross_entropy((inputs + seen).reshape(10, 24), words, targets)
        (out.sum() + (logits * logits).sum() + loss).backward()
        found.append([out.data, seen.data, logits.data, loss.data, inputs.grad, added.grad])
        assert not seen.requires_grad and weight.grad is None and words.grad is None
    for compact_one, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(compact_one, plain)


@pytest.mark.parametrize("kept_as", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
def test_looking_rows_up_changes_nothing(rng, kept_as, shape):
    table, plain = both(rng, 53, 24, kept_as)
    ids = rng.integers(0, 53, shape)
    np.testing.assert_array_equal(ops.embedding(table, ids).data, plain.data[ids], strict=True)
    np.testing.assert_array_equal(table.data, plain.data)


@pytest.mark.parametrize("kept_as", FORMS)
def test_row_losses(rng, kept_as):
    weight, plain = both(rng, 53, 24, kept_as)
    hidden, targets = rng.standard_normal((6, 24), np.float32), np.array([0, 52, -100, 3, 4, 5])
    for got, expected in zip(losses.row_losses(hidden, weight.operand, targets),
                             losses.row_losses(hidden, plain.data, targets), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_shapes_that_do_not_fit_are_named(rng):
    weight, x = CompactWeight(matrix_of(rng, 4, 6), "int8"), Tensor(np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"linear: x \(2, 5\), weight \(4, 6\)"):
        ops.linear(x, weight, np.zeros(6, np.float32))
    with pytest.raises(IndexError, match="expected 0 to 3"):
        ops.embedding(weight, np.array([4]))
    with pytest.raises(ValueError, match=r"shapes \(2, 5\) and \(6, 4\) do not fit"):
        ops.matmul(x, weight.T)


def test_other_ops_refuse_it(rng):
    weight = CompactWeight(matrix_of(rng, 4, 4), "int8")
    for use in (lambda: Tensor(np.ones((4, 4), np.float32)) * weight, lambda: ops.exp(weight)):
        with pytest.raises(TypeError):
            use()


def test_it_is_a_frozen_tensor(rng):
    matrix = matrix_of(rng, 8, 6)
    weight = CompactWeight(matrix, "bfloat16")
    assert (weight.shape, weight.size, weight.ndim, len(weight)) == ((8, 6), 48, 2, 8)
    assert weight.dtype == weight.data.dtype == np.float32 and weight.nbytes == 2 * 48
    assert CompactWeight(matrix, "int8").nbytes == 48 + 4 * 6 and "int8" in repr(CompactWeight(matrix, "int8"))
    assert weight.requires_grad is False
    weight.requires_grad = False
    with pytest.raises(ValueError, match="kept as bfloat16 cannot learn; leave it frozen"):
        weight.requires_grad = True
    weight.data = 2 * matrix
    np.testing.assert_array_equal(weight.data, nearest(2 * matrix, "bfloat16"))


# ---- models


def few_frozen(kept_as=None, rounded=None, **changes):
    """A model in which only norms and biases learn. rounded: a model from which matrices are copied."""
    model = make_model(**changes)
    model.freeze(*(name for name, p in model.named_parameters() if p.ndim > 1))
    if kept_as:
        compact(model, kept_as)
    if rounded:
        for (_, p), (_, q) in zip(model.named_parameters(), rounded.named_parameters(), strict=True):
            p.data = q.data
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept_as", FORMS)
def test_a_model_trains_as_with_rounded_weights(rng, kept_as, tied):
    model = few_frozen(kept_as, tie_word_embeddings=tied)
    plain = few_frozen(rounded=model, tie_word_embeddings=tied)
    names = [name for name, p in model.named_parameters() if isinstance(p, CompactWeight)]
    assert len(names) == 2 * 4 + (1 if tied else 2) and "wte.weight" in names and "wpe.weight" not in names
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    inputs = rng.integers(0, model.config.vocab_size, (3, 20))
    optimizers = AdamW(model), AdamW(plain)
    for _ in range(3):
        for each, optimizer in zip((model, plain), optimizers, strict=True):
            each.loss(inputs[:, :-1], inputs[:, 1:]).backward()
            optimizer.step(1e-2)
    with no_grad():
        np.testing.assert_array_equal(model(inputs).data, plain(inputs).data)
    for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)


def test_what_learns_is_not_touched():
    model = make_model()
    model.freeze("h.0")
    compact(model, "int8")
    kept = {name for name, p in model.named_parameters() if isinstance(p, CompactWeight)}
    assert kept == {f"h.0.{layer}.weight" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    with pytest.raises(ValueError, match="no matrix of the model is frozen"):
        compact(make_model(), "int8")


def test_the_matrix_that_cannot_be_kept_is_named():
    model = make_model()
    model.freeze()
    model.h[1].mlp.c_fc.weight.data[2, 3] = np.nan
    with pytest.raises(ValueError, match="^h.1.mlp.c_fc.weight: a matrix .* has infinities or NaNs"):
        compact(model, "int8")


def test_float64_models_are_refused():
    model = make_model(dtype=np.float64)
    model.freeze()
    with pytest.raises(ValueError, match="float64, expected"):
        compact(model, "bfloat16")
    assert not any(isinstance(p, CompactWeight) for _, p in model.named_parameters())


@pytest.mark.parametrize("kept_as", FORMS)
def test_memory_of_the_arrays_is_freed(kept_as):
    model = make_model()
    model.freeze()
    arrays = [weakref.ref(p.data) for name, p in model.named_parameters() if p.ndim == 2 and name != "wpe.weight"]
    compact(model, kept_as)
    gc.collect()
    assert len(arrays) == 9 and all(array() is None for array in arrays)
