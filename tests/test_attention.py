"""Attention against one query at a time, and what causal means, to the last bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import check_attention

from tinyft.kernels.attention import QUERY_BLOCK, attention_backward, attention_forward
from tinyft.kernels.matmul import TILE_ROWS
from tinyft.segments import segments_of

SCALE = 0.4


@pytest.mark.parametrize("heads_and_size", [(1, 1), (2, 3), (3, 16), (1, 67)])
@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [0],
        [1],
        [1, 1, 0, 1],
        [2, 0, 7, 13],
        [TILE_ROWS, TILE_ROWS + 1],
        [QUERY_BLOCK, QUERY_BLOCK - 1],
        [QUERY_BLOCK + 1, 0, 5],
        [2 * QUERY_BLOCK + 17, 3],
    ],
    ids=str,
)
def test_matches_one_query_at_a_time(rng, dtype, lengths, heads_and_size):
    check_attention(rng, segments_of(lengths), *heads_and_size, dtype)


@given(lengths=st.lists(st.integers(0, 70), max_size=4), heads=st.integers(1, 4), size=st.integers(1, 40),
       dtype=st.sampled_from([np.float32, np.float64]), threads=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_any_shape(lengths, heads, size, dtype, threads, seed):
    check_attention(np.random.default_rng(seed), segments_of(lengths), heads, size, dtype, threads)


def forward_and_backward(qkv, dout, heads, segments, threads=2):
    out, lse = attention_forward(qkv, heads, segments, SCALE, threads)
    return out, attention_backward(dout, qkv, heads, segments, SCALE, lse, threads)


def numbers(rng, tokens, columns, dtype):
    return rng.standard_normal((tokens, columns)).astype(dtype)


@pytest.mark.parametrize("changed", [1, 5, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 30])
def test_later_tokens_never_change_earlier_results(rng, dtype, changed):
    length, heads, size = QUERY_BLOCK + 31, 2, 7
    qkv = numbers(rng, length, 3 * heads * size, dtype)
    segments = segments_of([length])
    before, _ = attention_forward(qkv, heads, segments, SCALE, 2)
    qkv[changed:] = 1000 * numbers(rng, length - changed, 3 * heads * size, dtype)
    after, _ = attention_forward(qkv, heads, segments, SCALE, 2)
    np.testing.assert_array_equal(after[:changed], before[:changed])
    assert (after[changed:] != before[changed:]).any(axis=1).all()


def test_earlier_results_have_no_gradient_in_later_tokens(rng, dtype):
    length, heads, size, last = QUERY_BLOCK + 31, 2, 7, 40
    qkv, dout = numbers(rng, length, 3 * heads * size, dtype), numbers(rng, length, heads * size, dtype)
    dout[last:] = 0
    _, dqkv = forward_and_backward(qkv, dout, heads, segments_of([length]))
    np.testing.assert_array_equal(dqkv[last:], 0)
    assert (dqkv[:last] != 0).any(axis=1).all()


def test_row_alone_equals_row_in_batch(rng, dtype):
    lengths, heads, size = [13, 0, QUERY_BLOCK + 3, 1, 30], 3, 5
    segments = segments_of(lengths)
    qkv, dout = numbers(rng, sum(lengths), 3 * heads * size, dtype), numbers(rng, sum(lengths), heads * size, dtype)
    out, dqkv = forward_and_backward(qkv, dout, heads, segments)
    for start, end in pairwise(segments.starts):
        alone, dalone = forward_and_backward(qkv[start:end], dout[start:end], heads, segments_of([end - start]))
        np.testing.assert_array_equal(alone, out[start:end])
        np.testing.assert_array_equal(dalone, dqkv[start:end])


@pytest.mark.parametrize("tree", [(), ([-1, 0, 0, 2], [0, 30, 30, 80])], ids=["apart", "shared"])
def test_threads_change_nothing(rng, dtype, one_and_two_threads, tree):
    lengths, heads, size = [40, 3, 70, 11], 4, 23
    segments = segments_of(lengths, *tree)
    qkv, dout = numbers(rng, sum(lengths), 3 * heads * size, dtype), numbers(rng, sum(lengths), heads * size, dtype)
    threads = iter((1, 2))
    one, two = one_and_two_threads(lambda: forward_and_backward(qkv, dout, heads, segments, next(threads)))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_first_token_sees_itself_only(rng, dtype):
    qkv = numbers(rng, 9, 3 * 2 * 4, dtype)
    out, _ = attention_forward(qkv, 2, segments_of([4, 5]), SCALE, 2)
    np.testing.assert_array_equal(out[[0, 4]], qkv[[0, 4], 16:])


def test_large_scores_do_not_overflow(rng, dtype):
    qkv = 300 * numbers(rng, 50, 3 * 8, dtype)
    out, dqkv = forward_and_backward(qkv, np.ones((50, 8), dtype), 1, segments_of([50]))
    assert np.isfinite(out).all() and np.isfinite(dqkv).all()


def test_nan_stays_in_its_row_and_reaches_every_later_token(rng, dtype):
    qkv = numbers(rng, 30, 3 * 8, dtype)
    qkv[14, 8:16] = np.nan  # a key in the middle of the second of three rows
    out, dqkv = forward_and_backward(qkv, np.ones((30, 8), dtype), 1, segments_of([10, 10, 10]))
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), (np.arange(30) >= 14) & (np.arange(30) < 20))
    others = np.r_[0:10, 20:30]
    assert np.isfinite(dqkv[others]).all()
    assert np.isnan(dqkv[10:20]).any()


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scale_multiplies_the_scores(rng, dtype, scale):
    """Scaling all queries does the same."""
    length, heads, size = 9, 2, 4
    segments = segments_of([length])
    qkv, dout = numbers(rng, length, 3 * heads * size, dtype), numbers(rng, length, heads * size, dtype)
    scaled = qkv.copy()
    scaled[:, : heads * size] *= scale
    out, lse = attention_forward(qkv, heads, segments, scale, 2)
    expected, expected_lse = attention_forward(scaled, heads, segments, 1.0, 2)
    bound = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(out, expected, rtol=bound, atol=bound)
    dqkv = attention_backward(dout, qkv, heads, segments, scale, lse, 2)
    expected = attention_backward(dout, scaled, heads, segments, 1.0, expected_lse, 2)
    expected[:, : heads * size] *= scale
    np.testing.assert_allclose(dqkv, expected, rtol=bound, atol=bound)


# ---- tokens that rows share

# own tokens of each segment, which one it continues, and after how many of its row's tokens
TREES = {
    "nothing in common": ([5, 3, 4], [-1, 0, 1], [0, 0, 0]),
    "one row": ([9], [-1], [0]),
    "a row that another one begins with": ([7, 0, 0, 2], [-1, 0, 1, 0], [0, 7, 3, 7]),
    "no tokens at all": ([0, 0], [-1, 0], [0, 0]),
    "a tile": ([TILE_ROWS, 5, TILE_ROWS], [-1, 0, 1], [0, TILE_ROWS, TILE_ROWS]),
    "a tile and one": ([TILE_ROWS + 1, 1, 2], [-1, 0, 0], [0, TILE_ROWS + 1, TILE_ROWS + 1]),
    "a block": ([QUERY_BLOCK, 3, QUERY_BLOCK], [-1, 0, 0], [0, QUERY_BLOCK, QUERY_BLOCK]),
    "more than a block": ([QUERY_BLOCK + 1, QUERY_BLOCK - 1, 4], [-1, 0, 0], [0, QUERY_BLOCK + 1, QUERY_BLOCK + 1]),
    "several blocks": ([2 * QUERY_BLOCK + 17, QUERY_BLOCK + 2, 1], [-1, 0, 0], [0, 2 * QUERY_BLOCK + 3, QUERY_BLOCK]),
    "a chain": ([5, 6, 7, 8, 1], [-1, 0, 1, 2, 3], [0, 5, 11, 18, 26]),
    "a chain that is cut": ([30, 20, 10, 5, 40], [-1, 0, 1, 2, 3], [0, 20, 32, 15, 8]),
    "children at all depths": ([40, 3, 4, 5, 0, 6, 2], [-1, 0, 0, 0, 0, 1, 5], [0, 1, 20, 40, 39, 4, 2]),
    "two trees": ([8, 3, 9, 4], [-1, 0, 1, 2], [0, 6, 0, 9]),
}


@pytest.mark.parametrize("heads_and_size", [(1, 1), (3, 16), (1, 67)])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_shared_tokens_match_rows_in_full(rng, dtype, tree, heads_and_size):
    check_attention(rng, segments_of(*tree), *heads_and_size, dtype)


@st.composite
def trees(draw):
    """Segments, of which each may continue any earlier one after any of its row's tokens."""
    own, parents, shared, lengths = [], [], [], []
    for segment in range(draw(st.integers(1, 5))):
        parents.append(draw(st.integers(0, segment - 1)) if segment else -1)
        shared.append(draw(st.integers(0, lengths[parents[-1]])) if segment else 0)
        own.append(draw(st.integers(0, 70)))
        lengths.append(shared[-1] + own[-1])
    return segments_of(own, parents, shared)


@given(segments=trees(), heads=st.integers(1, 3), size=st.integers(1, 40),
       dtype=st.sampled_from([np.float32, np.float64]), threads=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_any_tree(segments, heads, size, dtype, threads, seed):
    check_attention(np.random.default_rng(seed), segments, heads, size, dtype, threads)


@given(segments=trees(), heads=st.integers(1, 3), size=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_threads_change_nothing_in_any_tree(segments, heads, size, seed):
    rng, tokens = np.random.default_rng(seed), segments.starts[-1]
    qkv, dout = numbers(rng, tokens, 3 * heads * size, np.float32), numbers(rng, tokens, heads * size, np.float32)
    one, two = (forward_and_backward(qkv, dout, heads, segments, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


# Tokens 0 to 9 are a row; 10 to 14 continue its first eight, 15 to 19 the whole second row, 20 to 24 the first three,
# and 25 to 29 stand alone.
BRANCHES = segments_of([10, 5, 5, 5, 5], [-1, 0, 1, 0, 0], [0, 8, 13, 3, 0])


def test_nan_in_a_shared_key_reaches_all_rows_that_see_it_and_no_other(rng, dtype):
    qkv = numbers(rng, 30, 3 * 8, dtype)
    qkv[5, 8:16] = np.nan
    out, dqkv = forward_and_backward(qkv, np.ones((30, 8), dtype), 1, BRANCHES)
    reached = np.r_[5:20]
    others = np.r_[0:5, 20:30]
    assert np.isnan(out[reached]).all() and np.isfinite(out[others]).all()
    assert np.isnan(dqkv[reached]).any(axis=1).all() and np.isnan(dqkv[:5]).any(axis=1).all()
    assert np.isfinite(dqkv[20:]).all()


def test_rows_do_not_see_what_others_go_on_with(rng, dtype):
    qkv = numbers(rng, 30, 3 * 14, dtype)
    before, _ = attention_forward(qkv, 2, BRANCHES, SCALE, 2)
    qkv[10:15] *= 1000
    after, _ = attention_forward(qkv, 2, BRANCHES, SCALE, 2)
    changed = np.r_[10:20]
    assert (after[changed] != before[changed]).any(axis=1).all()
    others = np.delete(np.arange(30), changed)
    np.testing.assert_array_equal(after[others], before[others])


def test_a_row_has_a_gradient_in_the_tokens_that_it_sees_and_no_other(rng, dtype):
    qkv, dout = numbers(rng, 30, 3 * 14, dtype), numbers(rng, 30, 14, dtype)
    dout[:15] = dout[20:] = 0
    _, dqkv = forward_and_backward(qkv, dout, 2, BRANCHES)
    seen = BRANCHES.row(2)
    assert seen.tolist() == [*range(8), *range(10, 20)]
    assert (dqkv[seen] != 0).any(axis=1).all()
    np.testing.assert_array_equal(np.delete(dqkv, seen, axis=0), 0)
