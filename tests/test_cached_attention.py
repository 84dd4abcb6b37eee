"""Attention to a cache in blocks against one query at a time, and that it is the same however tokens come in."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_within, attention, attention_error, split_heads, wide

from tinyft.kernels.cached_attention import BLOCK, attend_to_cache, keep_tokens
from tinyft.kernels.jit import VECTOR_BYTES
from tinyft.kernels.packing import TILE_ROWS, TILE_VECTORS
from tinyft.kernels.panels import FEW_ROWS
from tinyft.segments import segments_of

N_BLOCKS = 9
SIZES = [1, 7, 32, 64, 65]


def width_of(dtype):
    return TILE_VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize


class BlockCache:
    """Keys and values of all heads. What nobody has put there is NaN, so that it can't be looked at unnoticed."""

    def __init__(self, heads, size, dtype):
        self.heads, self.size, self.dtype, width = heads, size, np.dtype(dtype), width_of(dtype)
        self.keys = np.full((N_BLOCKS, heads, BLOCK * size), np.nan, dtype)
        self.values = np.full((N_BLOCKS, heads, BLOCK * -(-size // width) * width), np.nan, dtype)

    def attend(self, qkv, cuts, table, before=0, at=0):
        """The tokens of qkv, some at a time, the rest at once -> what each sees, mixed."""
        mixed, flat = np.full((len(qkv), self.heads * self.size), np.nan, self.dtype), qkv.reshape(-1)
        longest = -(-(before + len(qkv)) // width_of(self.dtype)) * width_of(self.dtype)
        packed = np.full(TILE_ROWS * max(longest, self.size) + 2 * width_of(self.dtype), np.nan, self.dtype)
        scores = np.full(TILE_ROWS * longest, np.nan, self.dtype)
        tile = np.full(TILE_ROWS * width_of(self.dtype), np.nan, self.dtype)
        ends = [*np.cumsum(cuts), len(qkv)]
        for first, end in zip([at, *ends], ends, strict=False):
            for head in range(self.heads):
                attend_to_cache(flat, first, end - first, self.heads, head, before + first - at,
                                self.dtype.type(1 / math.sqrt(self.size)), table, self.keys, self.values,
                                mixed.reshape(-1), packed, scores, tile)
        return mixed

    def token(self, head, block, place):
        """The key and the value of a token, by the layout in the module's docstring."""
        width = width_of(self.dtype)
        keys = self.keys[block, head].reshape(BLOCK // width, self.size, width)
        values = self.values[block, head].reshape(-1, BLOCK, width)
        return keys[place // width, :, place % width], values[:, place].reshape(-1)[: self.size]


def a_table(rng, tokens):
    return rng.permutation(N_BLOCKS)[: -(-tokens // BLOCK)]


def bound_of(qkv, heads):
    """What results may be off: see `reference.check_attention`."""
    segments, third = segments_of([len(qkv)]), qkv.shape[1] // 3
    magnitudes = np.concatenate([wide(qkv)[:, : 2 * third], np.abs(wide(qkv))[:, 2 * third :]], axis=1)
    return attention_error(qkv, heads, segments) * attention(magnitudes, heads, segments)


def check(rng, before, rows, heads, size, dtype):
    qkv = rng.standard_normal((before + rows, 3 * heads * size)).astype(dtype)
    cache, table = BlockCache(heads, size, dtype), a_table(rng, len(qkv))
    mixed = cache.attend(qkv, [before] if before else [], table)
    assert mixed.dtype == dtype
    assert_within(mixed, attention(wide(qkv), heads, segments_of([len(qkv)])), bound_of(qkv, heads))

    _, k, v = split_heads(qkv, heads)
    for t in range(len(qkv)):
        for head in range(heads):
            key, value = cache.token(head, table[t // BLOCK], t % BLOCK)
            np.testing.assert_array_equal(key, k[head, t])
            np.testing.assert_array_equal(value, v[head, t])
    # All else is as it was: the other blocks, and what comes after the last token.
    assert np.isfinite(cache.keys).sum() == np.isfinite(cache.values).sum() == 2 * qkv.size // 6
    assert np.isnan(np.delete(cache.keys, table, axis=0)).all()
    assert np.isnan(np.delete(cache.values, table, axis=0)).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before, rows", [
    (0, 1), (0, 2), (1, 1), (0, FEW_ROWS), (3, FEW_ROWS + 1), (0, TILE_ROWS), (2, TILE_ROWS + 1),
    (BLOCK - 1, 1), (BLOCK, 1), (BLOCK - 1, 2),
    (2 * BLOCK, 3), (0, BLOCK), (1, BLOCK), (BLOCK + 5, 40), (3 * BLOCK - 2, 2 * TILE_ROWS + 3),
])
def test_matches_one_query_at_a_time(rng, dtype, before, rows, size):
    check(rng, before, rows, 2, size, dtype)


@settings(max_examples=40)
@given(before=st.integers(0, 100), rows=st.integers(1, 40), heads=st.integers(1, 3), size=st.integers(1, 70),
       dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**16))
def test_any_shape(before, rows, heads, size, dtype, seed):
    check(np.random.default_rng(seed), before, rows, heads, size, dtype)


@settings(max_examples=60)
@given(length=st.integers(1, 110), heads=st.integers(1, 2), size=st.sampled_from(SIZES), data=st.data(),
       dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**16))
def test_tokens_may_come_in_any_pieces(length, heads, size, data, dtype, seed):
    """To the last bit: also in the blocks that they are given."""
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((length, 3 * heads * size)).astype(dtype)
    places = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=8))) if length > 1 else []
    whole, table = BlockCache(heads, size, dtype), a_table(rng, length)
    pieces, other = BlockCache(heads, size, dtype), a_table(rng, length)
    expected = whole.attend(qkv, [], table)
    np.testing.assert_array_equal(pieces.attend(qkv, np.diff([0, *places]), other), expected)
    np.testing.assert_array_equal(pieces.keys[other], whole.keys[table])
    np.testing.assert_array_equal(pieces.values[other], whole.values[table])


def test_one_token_at_a_time_is_all_at_once(rng, dtype):
    qkv = rng.standard_normal((2 * BLOCK + 9, 3 * 2 * 7)).astype(dtype)
    one, all_of_them = BlockCache(2, 7, dtype), BlockCache(2, 7, dtype)
    np.testing.assert_array_equal(one.attend(qkv, [1] * (len(qkv) - 1), a_table(rng, len(qkv))),
                                  all_of_them.attend(qkv, [], a_table(rng, len(qkv))))


def test_sequences_beside_each_other_do_not_meet(rng, dtype):
    """Two in one array of rows and one cache, in blocks that lie between each other."""
    heads, size, lengths, tables = 2, 7, (40, 50), (np.array([5, 2]), np.array([4, 0]))
    qkv = rng.standard_normal((sum(lengths), 3 * heads * size)).astype(dtype)
    together = BlockCache(heads, size, dtype)
    second = together.attend(qkv, [], tables[1], at=lengths[0])
    assert np.isnan(second[: lengths[0]]).all()
    first = together.attend(qkv[: lengths[0]], [], tables[0])
    for got, part in ((first, qkv[: lengths[0]]), (second[lengths[0] :], qkv[lengths[0] :])):
        alone = BlockCache(heads, size, dtype).attend(part, [], np.array([0, 1]))
        np.testing.assert_array_equal(got, alone)


def test_a_block_may_be_shared(rng, dtype):
    """A sequence goes on after another's block as if it had computed it itself."""
    heads, size = 2, 7
    qkv = rng.standard_normal((BLOCK + 20, 3 * heads * size)).astype(dtype)
    cache = BlockCache(heads, size, dtype)
    cache.attend(qkv[:BLOCK], [], np.array([3]))
    kept = cache.keys[3].copy(), cache.values[3].copy()
    for other in (1, 6):
        got = cache.attend(qkv[BLOCK:], [], np.array([3, other]), before=BLOCK)
        alone = BlockCache(heads, size, dtype).attend(qkv, [], np.array([0, 1]))
        np.testing.assert_array_equal(got, alone[BLOCK:])
    np.testing.assert_array_equal(cache.keys[3], kept[0])
    np.testing.assert_array_equal(cache.values[3], kept[1])


@pytest.mark.parametrize("changed", [1, 13, BLOCK - 1, BLOCK, BLOCK + 9])
def test_later_tokens_never_change_earlier_results(rng, dtype, changed):
    qkv = rng.standard_normal((BLOCK + 20, 3 * 14)).astype(dtype)
    before = BlockCache(2, 7, dtype).attend(qkv, [], np.array([1, 0]))
    qkv[changed:] *= 1000
    after = BlockCache(2, 7, dtype).attend(qkv, [], np.array([1, 0]))
    np.testing.assert_array_equal(after[:changed], before[:changed])
    assert (after[changed:] != before[changed:]).any(axis=1).all()


def test_large_scores_do_not_overflow(rng, dtype):
    qkv = (300 * rng.standard_normal((50, 24))).astype(dtype)
    assert np.isfinite(BlockCache(1, 8, dtype).attend(qkv, [20], np.array([2, 7]))).all()


def test_nan_reaches_every_later_token_of_its_sequence(rng, dtype):
    qkv = rng.standard_normal((40, 24)).astype(dtype)
    qkv[14, 8:16] = np.nan  # a key
    mixed = BlockCache(1, 8, dtype).attend(qkv, [], np.array([2, 7]))
    np.testing.assert_array_equal(np.isnan(mixed).all(axis=1), np.arange(40) >= 14)
    assert np.isfinite(mixed[:14]).all()


def test_the_scale_multiplies_the_scores(rng, dtype):
    """A scale of 0 gives the mean of the values."""
    qkv, cache, mixed = rng.standard_normal((5, 6)).astype(dtype), BlockCache(1, 2, dtype), np.zeros((5, 2), dtype)
    scratch = [np.zeros(TILE_ROWS * 2 * width_of(dtype), dtype) for _ in range(3)]
    attend_to_cache(qkv.reshape(-1), 0, 5, 1, 0, 0, dtype(0), np.array([4]), cache.keys, cache.values,
                    mixed.reshape(-1), *scratch)
    means = np.cumsum(wide(qkv)[:, 4:], axis=0) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(mixed, means, rtol=0, atol=10 * np.finfo(dtype).eps)


def test_keeping_tokens_alone(rng, dtype):
    qkv, cache = rng.standard_normal((4, 3 * 2 * 7)).astype(dtype), BlockCache(2, 7, dtype)
    keep_tokens(qkv.reshape(-1), 1, 3, 2, 1, BLOCK - 2, np.array([8, 3]), cache.keys, cache.values)
    _, k, v = split_heads(qkv, 2)
    for row, (block, place) in enumerate([(8, BLOCK - 2), (8, BLOCK - 1), (3, 0)], start=1):
        key, value = cache.token(1, block, place)
        np.testing.assert_array_equal(key, k[1, row])
        np.testing.assert_array_equal(value, v[1, row])
    assert np.isfinite(cache.keys).sum() == np.isfinite(cache.values).sum() == 3 * 7
