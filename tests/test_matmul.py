"""The matrix product against NumPy in float64, in the shapes where tiles, panels and blocks end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_within, check_matmul, sum_error, wide

from tinyft.kernels.matmul import K_BLOCK, TILE_ROWS, gemm

ORDERS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(("a_transposed", "b_transposed"), ORDERS)
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [
        (1, 1, 1),
        (1, 7, 131),
        (2, 1, 3),
        (TILE_ROWS, 16, 32),  # exactly one tile in float32
        (TILE_ROWS + 1, 17, 33),
        (TILE_ROWS - 1, K_BLOCK, 31),
        (2 * TILE_ROWS, K_BLOCK + 1, 64),
        (61, 2 * K_BLOCK + 5, 127),
        (257, 13, 5),
    ],
)
def test_matches_numpy(rng, dtype, rows, depth, columns, a_transposed, b_transposed):
    check_matmul(rng, rows, depth, columns, dtype, a_transposed, b_transposed)
    check_matmul(rng, rows, depth, columns, dtype, a_transposed, b_transposed, bias=True)
    check_matmul(rng, rows, depth, columns, dtype, a_transposed, b_transposed, accumulate=True)


sizes = st.integers(1, 80) | st.sampled_from([97, 128, 191, 256])


@given(rows=sizes, depth=sizes, columns=sizes, orders=st.sampled_from(ORDERS), dtype=st.sampled_from(["f4", "f8"]),
       extra=st.sampled_from([{}, {"bias": True}, {"accumulate": True}]), seed=st.integers(0, 2**16))
def test_any_shape(rows, depth, columns, orders, dtype, extra, seed):
    check_matmul(np.random.default_rng(seed), rows, depth, columns, np.dtype(dtype), *orders, **extra)


@pytest.mark.parametrize("a_transposed", [False, True])
def test_more_rows_and_columns_than_one_block(rng, a_transposed):
    # 1,100 rows are three blocks of A; 2,100 columns more than the packed panels of B hold at once (float32:
    # 8 MB / (1,024 x 4 bytes) = 2,048).
    check_matmul(rng, 1100, 400, 50, np.float32, a_transposed=a_transposed)
    check_matmul(rng, 30, K_BLOCK, 2100, np.float32, a_transposed=a_transposed, bias=True)
    check_matmul(rng, 30, 2 * K_BLOCK - 1, 2100, np.float32, b_transposed=True, accumulate=True)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(0, 3, 4), (3, 4, 0), (0, 0, 0), (1, 5, 0)])
def test_empty_result(rows, depth, columns):
    assert gemm(np.ones((rows, depth)), np.ones((depth, columns))).shape == (rows, columns)


@pytest.mark.parametrize("rows", [1, 3])
def test_sum_over_nothing_is_zero(dtype, rows):
    a, b, bias = np.ones((rows, 0), dtype), np.ones((0, 5), dtype), np.arange(5, dtype=dtype)
    np.testing.assert_array_equal(gemm(a, b), np.zeros((rows, 5)))
    np.testing.assert_array_equal(gemm(a, b, bias=bias), np.tile(bias, (rows, 1)))
    out = np.full((rows, 5), 7, dtype)
    np.testing.assert_array_equal(gemm(a, b, out=out, accumulate=True), np.full((rows, 5), 7))
    np.testing.assert_array_equal(gemm(a, b, out=out), np.zeros((rows, 5)))


@pytest.mark.parametrize("rows", [1, 20])
def test_out_is_written_and_returned(rng, rows):
    a, b = rng.standard_normal((rows, 9)), rng.standard_normal((9, 17))
    out = np.full((rows, 17), np.nan)  # what stood there must not matter
    assert gemm(a, b, out=out) is out
    np.testing.assert_array_equal(out, gemm(a, b))


def test_rows_around_out_stay(rng):
    a, b = rng.standard_normal((15, 9)), rng.standard_normal((9, 33))
    room = np.full((35, 33), 7.0)
    gemm(a, b, out=room[10:25])
    np.testing.assert_array_equal(room[:10], 7)
    np.testing.assert_array_equal(room[25:], 7)


@pytest.mark.parametrize("rows", [1, 20])
def test_strided_and_read_only_inputs(rng, rows):
    a, b = rng.standard_normal((2 * rows, 3 * 11))[::2, ::3], rng.standard_normal((11, 4, 18))[:, 1, ::-1]
    expected = wide(a) @ wide(b)
    bound = sum_error(11, np.float64) * (np.abs(a) @ np.abs(b))
    assert_within(gemm(a, b), expected, bound)
    a, b = np.ascontiguousarray(a), np.asfortranarray(b)
    a.flags.writeable = b.flags.writeable = False
    assert_within(gemm(a, b), expected, bound)
    assert_within(gemm(np.broadcast_to(a[0], (4, 11)), b), np.tile(expected[0], (4, 1)), np.tile(bound[0], (4, 1)))


def test_inputs_stay(rng):
    a, b, bias = rng.standard_normal((15, 20)), rng.standard_normal((20, 33)), rng.standard_normal(33)
    copies = a.copy(), b.copy(), bias.copy()
    gemm(a, b, bias=bias)
    for array, copy in zip((a, b, bias), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_their_row_only(rng, bad):
    a, b = rng.standard_normal((30, 40)).astype(np.float32), rng.standard_normal((40, 50)).astype(np.float32)
    a[3, 5] = bad
    out = gemm(a, b)
    assert not np.isfinite(out[3]).any()
    assert np.isfinite(np.delete(out, 3, axis=0)).all()


def test_same_product_again_is_the_same(rng):
    """Buffers are used again; what an earlier, larger product left in them must not show."""
    a, b = rng.standard_normal((17, 19)), rng.standard_normal((19, 21))
    first = gemm(a, b)
    gemm(np.full((200, 700), np.nan), np.full((700, 300), np.nan))
    np.testing.assert_array_equal(gemm(a, b), first)


F32, F64 = np.float32, np.float64


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "says"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), {}, ValueError, [r"\(2, 3\)", r"\(4, 5\)"]),
        (np.ones(3), np.ones((3, 5)), {}, ValueError, [r"\(3,\)", r"\(3, 5\)"]),
        (np.ones((2, 2, 3)), np.ones((3, 5)), {}, ValueError, [r"\(2, 2, 3\)"]),
        (np.ones((2, 3), F32), np.ones((3, 5)), {}, TypeError, ["float32", "float64"]),
        (np.ones((2, 3), int), np.ones((3, 5), int), {}, TypeError, ["int64"]),
        (np.ones((2, 3), np.float16), np.ones((3, 5), np.float16), {}, TypeError, ["float16"]),
        (np.ones((2, 3)), np.ones((3, 5)), {"out": np.ones((5, 2))}, ValueError, ["out", r"\(5, 2\)", r"\(2, 5\)"]),
        (np.ones((2, 3)), np.ones((3, 5)), {"out": np.ones((2, 5), F32)}, ValueError, ["out", "float32", "float64"]),
        (np.ones((2, 3)), np.ones((3, 5)), {"out": np.ones((5, 2)).T}, ValueError, ["out", "contiguous"]),
    ],
)
def test_error_names_what_is_wrong(a, b, options, error, says):
    with pytest.raises(error, match=".*".join(says)):
        gemm(a, b, **options)


@pytest.mark.parametrize("rows", [1, 2])
def test_read_only_out_is_refused(rows):
    out = np.zeros((rows, 5))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only|writ"):
        gemm(np.ones((rows, 3)), np.ones((3, 5)), out=out)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("bias", [np.ones(0), np.ones(1), np.ones(4), np.ones(6), np.ones((1, 5)), np.ones(5, F32)],
                         ids=lambda bias: f"{bias.shape}-{bias.dtype}")
def test_bias_that_does_not_fit_is_refused(rows, bias):
    with pytest.raises((ValueError, TypeError), match="bias"):
        gemm(np.ones((rows, 3)), np.ones((3, 5)), bias=bias)


@pytest.mark.parametrize("rows", [1, 2])
def test_bias_and_accumulate_together_are_refused(rows):
    with pytest.raises(ValueError, match="bias.*accumulate|accumulate.*bias"):
        gemm(np.ones((rows, 3)), np.ones((3, 5)), out=np.ones((rows, 5)), accumulate=True, bias=np.ones(5))


def test_accumulate_needs_out():
    with pytest.raises(ValueError, match="accumulate.*out|out.*accumulate"):
        gemm(np.ones((2, 3)), np.ones((3, 5)), accumulate=True)
