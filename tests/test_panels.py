"""Weights kept as panels: products with them, to the last bit those with the rounded weights, and what rounds them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_within, eps, sum_error, wide

from tinyft.kernels.jit import VECTOR_BYTES
from tinyft.kernels.packing import TILE_ROWS, TILE_VECTORS
from tinyft.kernels.panels import (
    DEPTH,
    FEW_ROWS,
    GROUP,
    expand_panel,
    multiply_group,
    pack_group,
    prepare_bfloat16,
    prepare_floats,
    prepare_int8,
    rows_of_group,
    weight_at,
)

FORMS = ("float32", "float64", "bfloat16", "int8")
ROUNDED = ("bfloat16", "int8")
GROUPS = (1, FEW_ROWS, TILE_ROWS)
WIDTH = TILE_VECTORS * VECTOR_BYTES // 4  # columns of a panel of float32
# Less than a tile, a panel, a group of scales, or what is done at a time; exactly that; and more.
SHAPES = [(1, 1), (2, 3), (7, 13), (GROUP - 1, WIDTH - 1), (GROUP, WIDTH), (GROUP + 1, WIDTH + 1), (131, 3 * WIDTH - 5),
          (DEPTH, 5), (DEPTH + 7, WIDTH + 2), (2 * DEPTH + 67, 1)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
FORM = pytest.mark.parametrize("form", FORMS)


def number_of(form):
    return np.dtype(np.float64 if form == "float64" else np.float32)


def nearest_bfloat16(matrix):
    """Eight significant bits, ties to even, fewer where the exponent can't be lower; beyond the largest inf."""
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(wide(matrix))
        step = np.ldexp(1.0, np.maximum(exponent, -125) - 8)
        rounded = np.rint(wide(matrix) / step) * step
        return np.where(np.abs(rounded) < 2.0**128, rounded, np.copysign(np.inf, rounded)).astype(np.float32)


def scales_of(matrix):
    """(groups, columns): the largest absolute value of each group in a column, divided by 127."""
    groups = [matrix[first : first + GROUP] for first in range(0, len(matrix), GROUP)]
    return np.array([np.abs(group).max(axis=0) for group in groups], np.float32) / np.float32(127)


def nearest_int8(matrix):
    scales = np.repeat(scales_of(matrix), GROUP, axis=0)[: len(matrix)]
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(matrix * inverse) * scales


def rounded(matrix, form):
    """The numbers that are kept."""
    return {"bfloat16": nearest_bfloat16, "int8": nearest_int8}.get(form, np.copy)(matrix)


class Kept:
    """A matrix (depth, columns) as panels, in the middle of other numbers that must stay as they are."""

    def __init__(self, matrix, form, transposed=False, threads=2):
        self.form, self.number, (self.depth, self.columns) = form, number_of(form), matrix.shape
        self.width = TILE_VECTORS * VECTOR_BYTES // self.number.itemsize
        self.count = -(-self.columns // self.width)
        per_panel = self.depth * self.width // (2 if form == "bfloat16" else 1)
        kind = {"bfloat16": np.uint32, "int8": np.int8}.get(form, self.number)
        self.start, self.scales_start = 37, 11
        self.panels = np.full(self.start + self.count * per_panel + 9, 99, kind)
        per_panel_scales = -(-self.depth // GROUP) * self.width if form == "int8" else 0
        self.scales = np.full(self.scales_start + self.count * per_panel_scales + 9, 99, self.number)
        self.starts = [(self.start + i * per_panel, self.scales_start + i * per_panel_scales)
                       for i in range(self.count)]
        source = np.ascontiguousarray(matrix.T if transposed else matrix, self.number).reshape(-1)
        common = source, transposed, self.depth, self.columns, self.panels, self.start
        if form == "bfloat16":
            prepare_bfloat16(*common, threads)
        elif form == "int8":
            prepare_int8(*common, self.scales, self.scales_start, threads)
        else:
            prepare_floats(*common)
        for array, before in ((self.panels, self.start), (self.scales, self.scales_start)):
            assert (array[:before] == 99).all() and (array[-9:] == 99).all()

    def expanded(self):
        """The matrix that is kept, filled up to whole panels."""
        whole = np.full((self.count, self.depth * self.width), np.nan, self.number)
        for out, (start, scales_start) in zip(whole, self.starts, strict=True):
            expand_panel(self.panels, start, self.scales, scales_start, self.depth, out)
        return whole.reshape(self.count, self.depth, self.width).transpose(1, 0, 2).reshape(self.depth, -1)

    def times(self, rows, group, begin=None):
        """rows (at most `group`, depth) times the matrix, plus what the result begins with."""
        n, c_start = len(rows), 5
        a_start, packed = 3, np.full(3 + group * self.depth + self.width, np.nan, self.number)
        flat = np.concatenate([np.full(2, np.nan, self.number), np.ascontiguousarray(rows, self.number).reshape(-1)])
        pack_group(flat, 2, self.depth, n, self.depth, group, packed, a_start)
        out = np.full((n, self.count * self.width), np.nan, self.number)
        for panel, (start, scales_start) in enumerate(self.starts):
            columns = slice(panel * self.width, min(self.columns, (panel + 1) * self.width))
            tile = np.full(c_start + group * self.width + 7, np.nan, self.number)
            into = tile[c_start : c_start + group * self.width].reshape(group, self.width)
            if begin is not None:
                into[:] = 0
                into[:n, : columns.stop - columns.start] = begin[:, columns]
            multiply_group(group, packed, a_start, self.panels, start, self.scales, scales_start, self.depth,
                           tile, c_start, begin is None)
            assert np.isnan(tile[:c_start]).all() and np.isnan(tile[-7:]).all()
            out[:, panel * self.width : (panel + 1) * self.width] = into[:n]
        return out[:, : self.columns]

    def times_many(self, rows):
        """As a step does it: in groups of a tile's rows, and the rest in a smaller one."""
        parts = [rows[first : first + TILE_ROWS] for first in range(0, len(rows), TILE_ROWS)]
        return np.concatenate([self.times(part, rows_of_group(len(part))) for part in parts])


def matrix_of(rng, shape, form):
    return rng.standard_normal(shape).astype(number_of(form))


def check_product(rng, shape, form, transposed, begins):
    matrix = matrix_of(rng, shape, form)
    kept, exact = Kept(matrix, form, transposed), rounded(matrix, form)
    floats = Kept(exact, number_of(form).name)
    for group in GROUPS:
        for n in sorted({1, (group + 1) // 2, group}):
            a = matrix_of(rng, (n, shape[0]), form)
            begin = matrix_of(rng, (n, shape[1]), form) if begins else None
            got = kept.times(a, group, begin)
            expected, magnitude = wide(a) @ wide(exact), np.abs(wide(a)) @ np.abs(wide(exact))
            if begins:
                expected, magnitude = expected + wide(begin), magnitude + np.abs(wide(begin))
            assert got.dtype == kept.number
            assert_within(got, expected, sum_error(shape[0], got.dtype) * magnitude)
            if form in ROUNDED:
                np.testing.assert_array_equal(got, floats.times(a, group, begin))


# ---- products


@FORM
@SHAPE
@pytest.mark.parametrize("begins", [False, True], ids=["fresh", "on top"])
def test_products(rng, form, shape, begins):
    check_product(rng, shape, form, begins, begins)


@settings(max_examples=40)
@given(form=st.sampled_from(FORMS), depth=st.integers(1, 3 * GROUP), columns=st.integers(1, 3 * WIDTH),
       transposed=st.booleans(), begins=st.booleans(), seed=st.integers(0, 2**16))
def test_products_of_any_shape(form, depth, columns, transposed, begins, seed):
    check_product(np.random.default_rng(seed), (depth, columns), form, transposed, begins)


def test_products_in_float64_have_its_digits(rng):
    matrix, a = matrix_of(rng, (131, 67), "float64"), matrix_of(rng, (TILE_ROWS, 131), "float64")
    expected = a.astype(np.longdouble) @ matrix.astype(np.longdouble)
    bound = 1e-13 * (np.abs(a) @ np.abs(matrix))
    assert_within(Kept(matrix, "float64").times(a, TILE_ROWS), wide(expected), bound)


def test_groups_of_rows():
    assert 1 < FEW_ROWS < TILE_ROWS
    assert [rows_of_group(n) for n in (1, 2, FEW_ROWS, FEW_ROWS + 1, TILE_ROWS)] == [
        1, FEW_ROWS, FEW_ROWS, TILE_ROWS, TILE_ROWS]


@FORM
@pytest.mark.parametrize("shape", [(67, WIDTH + 3), (DEPTH + 65, 5)], ids=str)
def test_a_row_has_the_same_result_in_any_company(rng, form, shape):
    kept, a = Kept(matrix_of(rng, shape, form), form), matrix_of(rng, (3 * TILE_ROWS + 2, shape[0]), form)
    alone = np.concatenate([kept.times(row[None], 1) for row in a])
    for n in sorted({1, 2, FEW_ROWS, FEW_ROWS + 1, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS + FEW_ROWS, len(a)}):
        np.testing.assert_array_equal(kept.times_many(a[:n]), alone[:n])
        np.testing.assert_array_equal(kept.times_many(a[-n:]), alone[-n:])


@FORM
@pytest.mark.parametrize("group", GROUPS)
def test_terms_are_added_in_their_order(form, group):
    """0 + 2**30 + 1 - 2**30 is 0 in float32 where 1 is added in between, and 1 where it comes last."""
    big = 2.0 ** (60 if form == "float64" else 30)
    for order, expected in (([1, big, -big], 0), ([big, 1, -big], 0), ([big, -big, 1], 1)):
        for spread in (1, GROUP):  # also from one group of scales to the next
            matrix, a = np.zeros((3 * spread, 2), number_of(form)), np.zeros((group, 3 * spread), number_of(form))
            matrix[::spread] = 127  # is kept exactly
            a[:, ::spread] = order
            np.testing.assert_array_equal(Kept(matrix, form).times(a, group), 127 * expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group", GROUPS)
def test_packing_a_group(rng, dtype, group):
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    for n in range(1, group + 1):
        for depth in (1, 2, lanes - 1, lanes, lanes + 1, 5 * lanes + 3):
            stride, start, at = depth + 3, 4, 6
            source = rng.standard_normal(start + n * stride).astype(dtype)
            packed = np.full(at + group * depth + lanes + 2, np.nan, dtype)
            pack_group(source, start, stride, n, depth, group, packed, at)
            expected = np.zeros((depth, group), dtype)
            expected[:, :n] = source[start:].reshape(n, stride)[:, :depth].T
            np.testing.assert_array_equal(packed[at : at + group * depth].reshape(depth, group), expected)
            assert np.isnan(packed[:at]).all() and np.isnan(packed[-2:]).all()


# ---- what is kept


@FORM
@SHAPE
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_kept(rng, form, shape, transposed):
    matrix = matrix_of(rng, shape, form) * np.exp(3 * rng.standard_normal(shape[1])).astype(number_of(form))
    kept, expected = Kept(matrix, form, transposed), rounded(matrix, form)
    whole = kept.expanded()
    np.testing.assert_array_equal(whole[:, : shape[1]], expected, strict=True)
    np.testing.assert_array_equal(whole[:, shape[1] :], 0)  # what fills the last panel
    like = np.zeros(1, kept.number)
    for k, column in zip(rng.integers(shape[0], size=60), rng.integers(shape[1], size=60), strict=True):
        got = weight_at(kept.panels, kept.start, kept.scales, kept.scales_start, shape[0], k, column, like)
        assert got == expected[k, column]


def test_every_bfloat16_weight_is_the_nearest(rng):
    """Ties, both zeros, numbers below the normal ones and near the largest."""
    bits = rng.integers(2**32, size=(500, 33), dtype=np.uint64).astype(np.uint32)
    ends = np.array([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits[: len(ends)] = bits[: len(ends)] & 0xFFFF0000 | ends[:, None]
    bits[10:20] &= 0x807FFFFF
    bits[20:22], bits[22], bits[23] = [[0], [0x80000000]], 0x7F7F7FFF, 0x7F7F8000
    matrix = bits.view(np.float32)
    matrix[~np.isfinite(matrix)] = 1
    got, expected = Kept(matrix, "bfloat16").expanded()[:, :33], nearest_bfloat16(matrix)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert np.isinf(got[23]).all() and np.isfinite(got[22]).all()


@pytest.mark.parametrize("size", [1, 1e-20, 1e20, 3e37])
def test_int8_weights_are_the_nearest_multiples_of_their_scale(rng, size):
    matrix = (size * rng.uniform(-3, 3, (3 * GROUP + 5, 41))).astype(np.float32)
    matrix[0, :10], matrix[1, :10] = size * np.arange(10), -size * np.arange(10)
    got = Kept(matrix, "int8").expanded()[:, :41]
    scales = wide(np.repeat(scales_of(matrix), GROUP, axis=0)[: len(matrix)])
    # The quotient has two roundings, and its product with the scale one.
    assert_within(got, wide(matrix), scales * (0.5 + 127 * 3 * eps(np.float32)))
    largest = np.abs(matrix) / np.float32(127) == scales
    np.testing.assert_allclose(got[largest], matrix[largest], rtol=2 * eps(np.float32))


@pytest.mark.parametrize("size", [1e-36, 1e-37, 1e-38, 1e-40, 1e-44])
def test_tiny_weights_stay_tiny(rng, size):
    """Also where the reciprocal of a scale, or the scale itself, is no number any more: they count as 0, then."""
    matrix = (size * rng.uniform(-1, 1, (GROUP + 3, 5))).astype(np.float32)
    below_normal = float(np.finfo(np.float32).smallest_subnormal)
    got = Kept(matrix, "int8").expanded()[:, :5]
    assert_within(got, wide(matrix), (size / 254 if size > 4e-37 else size) + 127 * below_normal)


@FORM
def test_zeros(form):
    matrix = np.zeros((GROUP + 1, 5), number_of(form))
    matrix[GROUP, 2] = 3  # the only one in its group and column
    kept = Kept(matrix, form)
    np.testing.assert_array_equal(kept.expanded()[:, :5], rounded(matrix, form))
    expected = np.zeros((2, 5))
    expected[:, 2] = kept.expanded()[GROUP, 2]
    np.testing.assert_array_equal(kept.times(np.ones((2, GROUP + 1)), FEW_ROWS), expected)


# A quiet one, a negative one, and one whose only digit is lost in 16 bits.
NOT_NUMBERS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)


@FORM
@pytest.mark.parametrize("bad", NOT_NUMBERS, ids=["nan", "-nan", "small nan", "inf", "-inf"])
def test_what_is_no_number_does_not_become_one(rng, form, bad):
    matrix = matrix_of(rng, (3 * GROUP, WIDTH + 3), form)
    clean = Kept(matrix, form).expanded()
    for k, column in ((0, 0), (GROUP + 5, 3), (2 * GROUP - 1, WIDTH), (3 * GROUP - 1, WIDTH - 1)):
        broken = matrix.copy()
        broken[k, column] = number_of(form).type(bad)
        kept = Kept(broken, form)
        # In int8 a group has one scale, and with it goes the whole group.
        group = slice(k // GROUP * GROUP, (k // GROUP + 1) * GROUP) if form == "int8" else k
        whole, others = kept.expanded(), np.ones_like(clean, bool)
        others[group, column] = False
        assert not np.isfinite(whole[~others]).any()
        np.testing.assert_array_equal(whole[others], clean[others])
        if form != "int8":
            np.testing.assert_array_equal(whole[k, column], broken[k, column])
        out = kept.times(matrix_of(rng, (TILE_ROWS, len(matrix)), form), TILE_ROWS)
        assert not np.isfinite(out[:, column]).any()
        assert np.isfinite(np.delete(out, column, axis=1)).all()


@FORM
def test_what_is_no_number_in_a_row_stays_in_it(rng, form):
    kept, a = Kept(matrix_of(rng, (20, 5), form), form), matrix_of(rng, (TILE_ROWS, 20), form)
    a[1, 7] = np.nan
    out = kept.times(a, TILE_ROWS)
    assert np.isnan(out[1]).all() and np.isfinite(np.delete(out, 1, axis=0)).all()


@FORM
def test_threads_keep_the_same(rng, form, one_and_two_threads):
    matrix, threads = matrix_of(rng, (70, 5 * WIDTH + 1), form), iter((1, 2))
    one, two = one_and_two_threads(lambda: Kept(matrix, form, threads=next(threads)))
    np.testing.assert_array_equal(one.panels, two.panels)
    np.testing.assert_array_equal(one.scales, two.scales)
