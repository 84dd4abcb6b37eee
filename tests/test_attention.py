"""Attention against one query at a time, and what causal means, to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import check_attention, check_decode

from tinyft.kernels.attention import QUERY_BLOCK, attention_backward, attention_decode, attention_forward
from tinyft.kernels.matmul import TILE_ROWS

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
    check_attention(rng, lengths, *heads_and_size, dtype)


@given(lengths=st.lists(st.integers(0, 70), max_size=4), heads=st.integers(1, 4), size=st.integers(1, 40),
       dtype=st.sampled_from([np.float32, np.float64]), threads=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_any_shape(lengths, heads, size, dtype, threads, seed):
    check_attention(np.random.default_rng(seed), lengths, heads, size, dtype, threads)


@pytest.mark.parametrize("length", [1, 2, 13, QUERY_BLOCK + 1])
@pytest.mark.parametrize("heads_and_size", [(1, 1), (2, 5), (3, 64)])
def test_decoding_is_the_last_row(rng, dtype, length, heads_and_size):
    check_decode(rng, length, *heads_and_size, dtype)


def forward_and_backward(qkv, dout, heads, row_starts, threads=2):
    out, lse = attention_forward(qkv, heads, row_starts, SCALE, threads)
    return out, attention_backward(dout, qkv, heads, row_starts, SCALE, lse, threads)


def numbers(rng, tokens, columns, dtype):
    return rng.standard_normal((tokens, columns)).astype(dtype)


@pytest.mark.parametrize("changed", [1, 5, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 30])
def test_later_tokens_never_change_earlier_results(rng, dtype, changed):
    length, heads, size = QUERY_BLOCK + 31, 2, 7
    qkv = numbers(rng, length, 3 * heads * size, dtype)
    row_starts = np.array([0, length])
    before, _ = attention_forward(qkv, heads, row_starts, SCALE, 2)
    qkv[changed:] = 1000 * numbers(rng, length - changed, 3 * heads * size, dtype)
    after, _ = attention_forward(qkv, heads, row_starts, SCALE, 2)
    np.testing.assert_array_equal(after[:changed], before[:changed])
    assert (after[changed:] != before[changed:]).any(axis=1).all()


def test_earlier_results_have_no_gradient_in_later_tokens(rng, dtype):
    length, heads, size, last = QUERY_BLOCK + 31, 2, 7, 40
    qkv, dout = numbers(rng, length, 3 * heads * size, dtype), numbers(rng, length, heads * size, dtype)
    dout[last:] = 0
    _, dqkv = forward_and_backward(qkv, dout, heads, np.array([0, length]))
    np.testing.assert_array_equal(dqkv[last:], 0)
    assert (dqkv[:last] != 0).any(axis=1).all()


def test_row_alone_equals_row_in_batch(rng, dtype):
    lengths, heads, size = [13, 0, QUERY_BLOCK + 3, 1, 30], 3, 5
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    qkv, dout = numbers(rng, sum(lengths), 3 * heads * size, dtype), numbers(rng, sum(lengths), heads * size, dtype)
    out, dqkv = forward_and_backward(qkv, dout, heads, row_starts)
    for start, end in zip(row_starts, row_starts[1:], strict=False):
        alone, dalone = forward_and_backward(qkv[start:end], dout[start:end], heads, np.array([0, end - start]))
        np.testing.assert_array_equal(alone, out[start:end])
        np.testing.assert_array_equal(dalone, dqkv[start:end])


def test_threads_change_nothing(rng, dtype, one_and_two_threads):
    lengths, heads, size = [40, 3, 70, 11], 4, 6
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    qkv, dout = numbers(rng, sum(lengths), 3 * heads * size, dtype), numbers(rng, sum(lengths), heads * size, dtype)
    threads = iter((1, 2))
    one, two = one_and_two_threads(lambda: forward_and_backward(qkv, dout, heads, row_starts, next(threads)))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_first_token_sees_itself_only(rng, dtype):
    qkv = numbers(rng, 9, 3 * 2 * 4, dtype)
    out, _ = attention_forward(qkv, 2, np.array([0, 4, 9]), SCALE, 2)
    np.testing.assert_array_equal(out[[0, 4]], qkv[[0, 4], 16:])


def test_large_scores_do_not_overflow(rng, dtype):
    qkv = 300 * numbers(rng, 50, 3 * 8, dtype)
    out, dqkv = forward_and_backward(qkv, np.ones((50, 8), dtype), 1, np.array([0, 50]))
    assert np.isfinite(out).all() and np.isfinite(dqkv).all()


def test_nan_stays_in_its_row_and_reaches_every_later_token(rng, dtype):
    qkv = numbers(rng, 30, 3 * 8, dtype)
    qkv[14, 8:16] = np.nan  # a key in the middle of the second of three rows
    out, dqkv = forward_and_backward(qkv, np.ones((30, 8), dtype), 1, np.array([0, 10, 20, 30]))
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), (np.arange(30) >= 14) & (np.arange(30) < 20))
    others = np.r_[0:10, 20:30]
    assert np.isfinite(dqkv[others]).all()
    assert np.isnan(dqkv[10:20]).any()


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_scale_multiplies_the_scores(rng, dtype, scale):
    """Scaling all queries does the same."""
    length, heads, size = 9, 2, 4
    row_starts = np.array([0, length])
    qkv, dout = numbers(rng, length, 3 * heads * size, dtype), numbers(rng, length, heads * size, dtype)
    scaled = qkv.copy()
    scaled[:, : heads * size] *= scale
    out, lse = attention_forward(qkv, heads, row_starts, scale, 2)
    expected, expected_lse = attention_forward(scaled, heads, row_starts, 1.0, 2)
    bound = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(out, expected, rtol=bound, atol=bound)
    dqkv = attention_backward(dout, qkv, heads, row_starts, scale, lse, 2)
    expected = attention_backward(dout, scaled, heads, row_starts, 1.0, expected_lse, 2)
    expected[:, : heads * size] *= scale
    np.testing.assert_allclose(dqkv, expected, rtol=bound, atol=bound)
    q, k, v = qkv.reshape(length, 3, heads, size).transpose(1, 2, 0, 3)
    keys, values = np.ascontiguousarray(k), np.ascontiguousarray(v)
    decoded = attention_decode(np.ascontiguousarray(q[:, -1]), keys, values, length, scale)
    np.testing.assert_allclose(decoded.reshape(-1), out[-1], rtol=bound, atol=bound)
