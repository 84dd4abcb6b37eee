"""Causal multi-head attention over rows of different lengths, without padding and without a T x T array.

A batch is its tokens one after the other, `qkv` (N, 3C), and where each row starts, `row_starts` (B+1,).
Every (row, head) pair is one task. Its queries run in blocks of QUERY_BLOCK; block by block the scores
against all keys up to the last query of the block are formed, turned into weights and used up. Queries
never meet the keys of later blocks, so that half of the square is not computed, and scores never leave the
cache (Dao et al., "FlashAttention", 2022, has the idea; a CPU's cache is large enough to hold whole rows
of scores, which saves the running softmax). The products are the register tiles of `matmul`.

In the backward pass the weights are formed again from the queries, the keys and `lse`, the logarithm of each
softmax's denominator, since softmax(s) = exp(s - lse): that is cheaper than to keep them.
"""

import numpy as np
from numba import prange

from .jit import jit
from .matmul import multiply_panels, round_up
from .packing import TILE_ROWS, TILE_VECTORS, pack_columns, pack_rows
from .simd import exp, fetch_and_increment, lanes_of, maximum, new_counter

QUERY_BLOCK = 4 * TILE_ROWS


@jit(reorder=True)
def _weights_from_scores(scores, visible, scale):
    """Softmax of scale * scores over the first `visible` keys, 0 for the others, in place; returns lse."""
    seen = scores[:visible]
    top = seen[0]
    for i in range(seen.size):
        top = maximum(top, seen[i])
    total = scores.dtype.type(0)
    for i in range(seen.size):
        seen[i] = exp((seen[i] - top) * scale)
        total += seen[i]
    inverse = scores.dtype.type(1) / total
    for i in range(seen.size):
        seen[i] *= inverse
    scores[visible:] = 0
    return top * scale + np.log(total)


@jit
def _attend(qkv, query, key, value, stride, length, size, scale, out, out_start, out_stride, lse,
            keys, values, rows, scores, partial_tile):
    """One (row, head): out = softmax(scale Q K^T) V. query, key, value: where each starts in `qkv`."""
    tile_columns = TILE_VECTORS * lanes_of(qkv)
    pack_columns(qkv, key, stride, True, length, size, keys, 0, size * tile_columns)
    pack_columns(qkv, value, stride, False, size, length, values, 0, length * tile_columns)
    for first in range(0, length, QUERY_BLOCK):
        last = min(length, first + QUERY_BLOCK)  # also the number of keys that this block can see
        n_rows = last - first
        pack_rows(qkv, query + first * stride, stride, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, keys, 0, size * tile_columns, size,
                        scores, 0, length, n_rows, last, partial_tile, False)
        for i in range(n_rows):
            lse[first + i] = _weights_from_scores(scores[i * length : i * length + last], first + i + 1, scale)
        pack_rows(scores, 0, length, False, n_rows, last, rows, last * TILE_ROWS)
        multiply_panels(rows, last * TILE_ROWS, values, 0, length * tile_columns, last,
                        out, out_start + first * out_stride, out_stride, n_rows, size, partial_tile, False)


@jit
def _longest(row_starts):
    longest = 0
    for row in range(row_starts.size - 1):
        longest = max(longest, row_starts[row + 1] - row_starts[row])
    return longest


@jit
def _scratch(qkv, size, row_starts):
    """What one thread needs for its rows and heads, one after the other, in both passes.

    Room to pack (size x longest row), (longest x size), and rows; to hold scores; and for a partial tile.
    """
    tile_columns, longest = TILE_VECTORS * lanes_of(qkv), _longest(row_starts)
    across = np.empty(round_up(longest, tile_columns) * size, qkv.dtype)
    down = np.empty(round_up(size, tile_columns) * longest, qkv.dtype)
    rows = np.empty(max(QUERY_BLOCK * max(longest, size), round_up(longest, TILE_ROWS) * QUERY_BLOCK) + tile_columns,
                    qkv.dtype)
    scores = np.empty(QUERY_BLOCK * longest, qkv.dtype)
    return across, down, rows, scores, np.empty(TILE_ROWS * tile_columns, qkv.dtype)


@jit
def _attend_to_tasks(counter, qkv, heads, row_starts, scale, out, lse):
    """What one thread does in `attention_forward`: take (row, head) pairs until none is left."""
    stride, width = qkv.shape[1], qkv.shape[1] // 3
    size = width // heads
    flat_qkv, flat_out = qkv.reshape(-1), out.reshape(-1)
    keys, values, rows, scores, partial_tile = _scratch(flat_qkv, size, row_starts)
    while True:
        task = fetch_and_increment(counter)
        if task >= (row_starts.size - 1) * heads:
            break
        row, head = task // heads, task % heads
        start, end = row_starts[row], row_starts[row + 1]
        at = start * stride + head * size
        _attend(flat_qkv, at, at + width, at + 2 * width, stride, end - start, size, scale,
                flat_out, start * width + head * size, width, lse[head, start:end],
                keys, values, rows, scores, partial_tile)


@jit(parallel=True)
def attention_forward(qkv, heads, row_starts, scale, threads):
    """(N, 3C), heads, (B+1,) -> out (N, C), and lse (heads, N) for the backward pass.

    The columns of qkv are all queries, all keys, all values, each (heads, C / heads), as GPT-2's c_attn
    makes them. A token attends to itself and to those before it in its row. scale: what scores are multiplied by.
    """
    tokens = qkv.shape[0]
    out, lse = np.empty((tokens, qkv.shape[1] // 3), qkv.dtype), np.empty((heads, tokens), qkv.dtype)
    counter = new_counter()
    for _ in prange(threads):
        _attend_to_tasks(counter, qkv, heads, row_starts, qkv.dtype.type(scale), out, lse)
    return out, lse


@jit(reorder=True)
def _weights_again(scores, visible, scale, lse):
    """exp(scale * scores - lse) over the first `visible` keys, 0 for the others, in place."""
    seen = scores[:visible]
    for i in range(seen.size):
        seen[i] = exp(seen[i] * scale - lse)
    scores[visible:] = 0


@jit(reorder=True)
def _scores_backward(weights, dweights, scale):
    """Softmax's gradient, in place of dweights: scale * weights * (dweights - sum(dweights * weights)).

    For w = softmax(scale * scores), dw[i]/dscores[j] = scale * w[i] * ((i == j) - w[j]).
    """
    dot = weights.dtype.type(0)
    for i in range(weights.size):
        dot += weights[i] * dweights[i]
    for i in range(weights.size):
        dweights[i] = scale * weights[i] * (dweights[i] - dot)


@jit
def _attend_backward(qkv, query, key, value, stride, length, size, scale, dout, dout_start, dout_stride, lse, dqkv,
                     keys, values, keys_down, block, rows, scores, dscores, partial_tile):
    """One (row, head); dqkv has the places and strides of qkv. Forward: S = Q K^T, W = softmax(S), O = W V."""
    tile_columns = TILE_VECTORS * lanes_of(qkv)
    panel = size * tile_columns
    pack_columns(qkv, key, stride, True, length, size, keys, 0, panel)
    pack_columns(qkv, value, stride, True, length, size, values, 0, panel)
    pack_columns(qkv, key, stride, False, size, length, keys_down, 0, length * tile_columns)
    for i in range(length):
        dqkv[key + i * stride : key + i * stride + size] = 0
        dqkv[value + i * stride : value + i * stride + size] = 0
    for first in range(0, length, QUERY_BLOCK):
        last = min(length, first + QUERY_BLOCK)
        n_rows = last - first
        queries, douts = query + first * stride, dout_start + first * dout_stride

        # W again, and dW = dO V^T
        pack_rows(qkv, queries, stride, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, keys, 0, panel, size,
                        scores, 0, length, n_rows, last, partial_tile, False)
        pack_rows(dout, douts, dout_stride, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, values, 0, panel, size,
                        dscores, 0, length, n_rows, last, partial_tile, False)
        for i in range(n_rows):
            weights, dweights = scores[i * length : i * length + last], dscores[i * length : i * length + last]
            _weights_again(weights, first + i + 1, scale, lse[first + i])
            _scores_backward(weights, dweights, scale)

        # dQ = dS K
        pack_rows(dscores, 0, length, False, n_rows, last, rows, last * TILE_ROWS)
        multiply_panels(rows, last * TILE_ROWS, keys_down, 0, length * tile_columns, last,
                        dqkv, queries, stride, n_rows, size, partial_tile, False)
        # dV += W^T dO
        pack_rows(scores, 0, length, True, last, n_rows, rows, n_rows * TILE_ROWS)
        pack_columns(dout, douts, dout_stride, False, size, n_rows, block, 0, n_rows * tile_columns)
        multiply_panels(rows, n_rows * TILE_ROWS, block, 0, n_rows * tile_columns, n_rows,
                        dqkv, value, stride, last, size, partial_tile, True)
        # dK += dS^T Q
        pack_rows(dscores, 0, length, True, last, n_rows, rows, n_rows * TILE_ROWS)
        pack_columns(qkv, queries, stride, False, size, n_rows, block, 0, n_rows * tile_columns)
        multiply_panels(rows, n_rows * TILE_ROWS, block, 0, n_rows * tile_columns, n_rows,
                        dqkv, key, stride, last, size, partial_tile, True)


@jit
def _attend_to_tasks_backward(counter, dout, qkv, heads, row_starts, scale, lse, dqkv):
    """What one thread does in `attention_backward`."""
    stride, width = qkv.shape[1], qkv.shape[1] // 3
    size = width // heads
    flat_qkv, flat_dout, flat_dqkv = qkv.reshape(-1), dout.reshape(-1), dqkv.reshape(-1)
    keys, keys_down, rows, scores, partial_tile = _scratch(flat_qkv, size, row_starts)
    values, dscores = np.empty_like(keys), np.empty_like(scores)
    block = np.empty(round_up(size, TILE_VECTORS * lanes_of(flat_qkv)) * QUERY_BLOCK, qkv.dtype)
    while True:
        task = fetch_and_increment(counter)
        if task >= (row_starts.size - 1) * heads:
            break
        row, head = task // heads, task % heads
        start, end = row_starts[row], row_starts[row + 1]
        at = start * stride + head * size
        _attend_backward(flat_qkv, at, at + width, at + 2 * width, stride, end - start, size, scale,
                         flat_dout, start * width + head * size, width, lse[head, start:end], flat_dqkv,
                         keys, values, keys_down, block, rows, scores, dscores, partial_tile)


@jit(parallel=True)
def attention_backward(dout, qkv, heads, row_starts, scale, lse, threads):
    """Gradient of qkv (N, 3C) from that of the result, dout (N, C). A task owns its part of all three."""
    dqkv = np.empty_like(qkv)
    counter = new_counter()
    for _ in prange(threads):
        _attend_to_tasks_backward(counter, dout, qkv, heads, row_starts, qkv.dtype.type(scale), lse, dqkv)
    return dqkv


@jit(reorder=True)
def _attend_to_cache(query, keys, values, scale, scores, out):
    """One head of one new token: query (size,), keys and values (T, size), scores (T,) scratch."""
    for t in range(scores.size):
        key = keys[t]
        dot = query.dtype.type(0)
        for i in range(query.size):
            dot += query[i] * key[i]
        scores[t] = dot
    _weights_from_scores(scores, scores.size, scale)
    out[:] = 0
    for t in range(scores.size):
        weight, value = scores[t], values[t]
        for i in range(out.size):
            out[i] += weight * value[i]


@jit(parallel=True)
def attention_decode(query, keys, values, length, scale):
    """One new token against the first `length` cached ones: (heads, size), (heads, T, size) x 2 -> (heads, size).

    The keys and values of the new token itself already stand at length - 1.
    """
    out = np.empty_like(query)
    scores = np.empty((query.shape[0], length), query.dtype)
    for head in prange(query.shape[0]):
        _attend_to_cache(query[head], keys[head], values[head], query.dtype.type(scale), scores[head], out[head])
    return out
