"""Causal multi-head attention over rows of different lengths, without padding and without a T x T array.

A batch is its tokens one after the other, `qkv` (N, 3C), and which of them see which: `Segments`, with the numbers
of the tokens in each row. Every (segment, head) pair is one task. Its keys and values are gathered, those that it
shares with other rows first; then its queries run in blocks of QUERY_BLOCK; block by block the scores
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
from .pieces import WORKERS, new_counter, pieces
from .simd import exp, lanes_of, maximum

QUERY_BLOCK = 4 * TILE_ROWS
COLUMNS = 128  # that a thread adds up at a time


@jit(reorder=True, inline=True)
def weights_from_scores(scores, visible, scale):
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
    for i in range(visible, scores.size):
        scores[i] = 0
    return top * scale + np.log(total)


@jit
def _gather(qkv, column, stride, tokens, size, rows):
    """Copy `size` columns of some tokens' rows, from `column` on, to rows[i * size : (i + 1) * size]."""
    # Loops, here and below: Numba compiles an assignment to a slice into a hundred times as much code.
    for i in range(tokens.size):
        at = tokens[i] * stride + column
        for j in range(size):
            rows[i * size + j] = qkv[at + j]


@jit(merge=True)
def _attend(qkv, first_query, head, tokens, shared, size, scale, out, lse,
            gathered, keys, values, rows, scores, partial_tile):
    """One (segment, head): out = softmax(scale Q K^T) V; Q from the row's own tokens, K and V from all of them."""
    length, stride, width = tokens.size, 3 * out.shape[1], out.shape[1]
    flat_qkv, flat_out = qkv.reshape(-1), out.reshape(-1)
    column, tile_columns, no_bias = head * size, TILE_VECTORS * lanes_of(flat_qkv), partial_tile[:0]
    _gather(flat_qkv, column + width, stride, tokens, size, gathered)
    pack_columns(gathered, gathered, 0, size, True, length, size, keys, 0, size * tile_columns)
    _gather(flat_qkv, column + 2 * width, stride, tokens, size, gathered)
    pack_columns(gathered, gathered, 0, size, False, size, length, values, 0, length * tile_columns)
    for first in range(shared, length, QUERY_BLOCK):
        last = min(length, first + QUERY_BLOCK)  # also the number of keys that this block can see
        n_rows, query = last - first, first_query + first - shared
        pack_rows(flat_qkv, query * stride + column, stride, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, keys, 0, size * tile_columns, size,
                        scores, 0, length, n_rows, last, no_bias, partial_tile, False, False)
        for i in range(n_rows):
            lse[query + i] = weights_from_scores(scores[i * length : i * length + last], first + i + 1, scale)
        pack_rows(scores, 0, length, False, n_rows, last, rows, last * TILE_ROWS)
        multiply_panels(rows, last * TILE_ROWS, values, 0, length * tile_columns, last,
                        flat_out, query * width + column, width, n_rows, size, no_bias, partial_tile, False, False)


@jit
def _longest(starts):
    longest = 0
    for row in range(starts.size - 1):
        longest = max(longest, starts[row + 1] - starts[row])
    return longest


@jit
def _scratch(flat_qkv, size, longest):
    """What one thread needs for its rows and heads, one after the other, in both passes.

    Room to gather (longest row x size), to pack (size x longest row), (longest x size), and rows; to hold scores; and
    for a partial tile.
    """
    tile_columns = TILE_VECTORS * lanes_of(flat_qkv)
    gathered = np.empty(longest * size, flat_qkv.dtype)
    across = np.empty(round_up(longest, tile_columns) * size, flat_qkv.dtype)
    down = np.empty(round_up(size, tile_columns) * longest, flat_qkv.dtype)
    rows = np.empty(max(QUERY_BLOCK * max(longest, size), round_up(longest, TILE_ROWS) * QUERY_BLOCK) + tile_columns,
                    flat_qkv.dtype)
    scores = np.empty(QUERY_BLOCK * longest, flat_qkv.dtype)
    return gathered, across, down, rows, scores, np.empty(TILE_ROWS * tile_columns, flat_qkv.dtype)


@jit
def _row_of(segments, segment):
    """The numbers of a row's tokens, that of the first of its own, and how many it shares with earlier rows."""
    tokens = segments.seen[segments.seen_starts[segment] : segments.seen_starts[segment + 1]]
    own = segments.starts[segment]
    return tokens, own, tokens.size - (segments.starts[segment + 1] - own)


@jit(merge=True)
def _attend_to_tasks(counter, qkv, heads, segments, scale, out, lse):
    """What one thread does in `attention_forward`: take (segment, head) pairs until none is left."""
    size, starts = out.shape[1] // heads, segments.seen_starts
    gathered, keys, values, rows, scores, partial_tile = _scratch(qkv.reshape(-1), size, _longest(starts))
    for task in pieces(counter, (starts.size - 1) * heads):
        segment, head = task // heads, task % heads
        tokens, own, shared = _row_of(segments, segment)
        _attend(qkv, own, head, tokens, shared, size, scale, out, lse[head],
                gathered, keys, values, rows, scores, partial_tile)


@jit(parallel=True)
def attention_forward(qkv, heads, segments, scale, threads):
    """(N, 3C), heads, `Segments` -> out (N, C), and lse (heads, N) for the backward pass.

    The columns of qkv are all queries, all keys, all values, each (heads, C / heads), as GPT-2's c_attn
    makes them. A token attends to itself and to those before it in its row. scale: what scores are multiplied by.
    """
    tokens = qkv.shape[0]
    out, lse = np.empty((tokens, qkv.shape[1] // 3), qkv.dtype), np.empty((heads, tokens), qkv.dtype)
    counter = new_counter()
    for _ in prange(threads):
        _attend_to_tasks(counter, qkv, heads, segments, qkv.dtype.type(scale), out, lse)
    return out, lse


@jit(reorder=True)
def _weights_again(scores, visible, scale, lse):
    """exp(scale * scores - lse) over the first `visible` keys, 0 for the others, in place."""
    seen = scores[:visible]
    for i in range(seen.size):
        seen[i] = exp(seen[i] * scale - lse)
    for i in range(visible, scores.size):
        scores[i] = 0


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


@jit(merge=True)
def _attend_backward(qkv, first_query, head, tokens, shared, size, scale, dout, lse, dqkv, dkeys, dvalues,
                     gathered, keys, values, keys_down, block, rows, scores, dscores, partial_tile):
    """One (segment, head): queries' gradients into dqkv, those of all keys and values that it saw into dkeys, dvalues.

    Forward: S = Q K^T, W = softmax(S), O = W V. The gradients are derived in examples/tour/derivations.md.
    """
    length, stride, width = tokens.size, qkv.shape[1], dout.shape[1]
    flat_qkv, flat_dout, flat_dqkv = qkv.reshape(-1), dout.reshape(-1), dqkv.reshape(-1)
    column, tile_columns, no_bias = head * size, TILE_VECTORS * lanes_of(flat_qkv), partial_tile[:0]
    panel = size * tile_columns
    _gather(flat_qkv, column + 2 * width, stride, tokens, size, gathered)
    pack_columns(gathered, gathered, 0, size, True, length, size, values, 0, panel)
    _gather(flat_qkv, column + width, stride, tokens, size, gathered)
    pack_columns(gathered, gathered, 0, size, True, length, size, keys, 0, panel)
    pack_columns(gathered, gathered, 0, size, False, size, length, keys_down, 0, length * tile_columns)
    for i in range(length * size):
        dkeys[i] = dvalues[i] = 0
    for first in range(shared, length, QUERY_BLOCK):
        last = min(length, first + QUERY_BLOCK)
        n_rows, query = last - first, first_query + first - shared
        queries, douts = query * stride + column, query * width + column

        # W again, and dW = dO V^T
        pack_rows(flat_qkv, queries, stride, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, keys, 0, panel, size,
                        scores, 0, length, n_rows, last, no_bias, partial_tile, False, False)
        pack_rows(flat_dout, douts, width, False, n_rows, size, rows, size * TILE_ROWS)
        multiply_panels(rows, size * TILE_ROWS, values, 0, panel, size,
                        dscores, 0, length, n_rows, last, no_bias, partial_tile, False, False)
        for i in range(n_rows):
            weights, dweights = scores[i * length : i * length + last], dscores[i * length : i * length + last]
            _weights_again(weights, first + i + 1, scale, lse[query + i])
            _scores_backward(weights, dweights, scale)

        # dQ = dS K
        pack_rows(dscores, 0, length, False, n_rows, last, rows, last * TILE_ROWS)
        multiply_panels(rows, last * TILE_ROWS, keys_down, 0, length * tile_columns, last,
                        flat_dqkv, queries, stride, n_rows, size, no_bias, partial_tile, False, False)
        # dV += W^T dO
        pack_rows(scores, 0, length, True, last, n_rows, rows, n_rows * TILE_ROWS)
        pack_columns(flat_dout, flat_dout, douts, width, False, size, n_rows, block, 0, n_rows * tile_columns)
        multiply_panels(rows, n_rows * TILE_ROWS, block, 0, n_rows * tile_columns, n_rows,
                        dvalues, 0, size, last, size, no_bias, partial_tile, True, False)
        # dK += dS^T Q
        pack_rows(dscores, 0, length, True, last, n_rows, rows, n_rows * TILE_ROWS)
        pack_columns(flat_qkv, flat_qkv, queries, stride, False, size, n_rows, block, 0, n_rows * tile_columns)
        multiply_panels(rows, n_rows * TILE_ROWS, block, 0, n_rows * tile_columns, n_rows,
                        dkeys, 0, size, last, size, no_bias, partial_tile, True, False)


@jit(merge=True)
def _hand_out(dkeys, dvalues, head, size, own, shared, length, dqkv, dshared):
    """Copy the gradients of one (segment, head): its own tokens' into dqkv, from row `own` on, others' into dshared.

    dshared: (shared, 2C), keys and values side by side.
    """
    width = dshared.shape[1] // 2
    for i in range(length):
        into = dshared[i] if i < shared else dqkv[own + i - shared, width:]
        for j in range(size):
            into[head * size + j] = dkeys[i * size + j]
            into[width + head * size + j] = dvalues[i * size + j]


@jit(merge=True)
def _attend_to_tasks_backward(counter, dout, qkv, heads, segments, scale, lse, dqkv, dshared):
    """What one thread does in `attention_backward`."""
    size, starts = dout.shape[1] // heads, segments.seen_starts
    longest = _longest(starts)
    gathered, keys, keys_down, rows, scores, partial_tile = _scratch(qkv.reshape(-1), size, longest)
    values, dscores = np.empty_like(keys), np.empty_like(scores)
    dkeys, dvalues = np.empty_like(gathered), np.empty_like(gathered)
    block = np.empty(round_up(size, TILE_VECTORS * lanes_of(scores)) * QUERY_BLOCK, qkv.dtype)
    for task in pieces(counter, (starts.size - 1) * heads):
        segment, head = task // heads, task % heads
        tokens, own, shared = _row_of(segments, segment)
        _attend_backward(qkv, own, head, tokens, shared, size, scale, dout, lse[head], dqkv, dkeys, dvalues,
                         gathered, keys, values, keys_down, block, rows, scores, dscores, partial_tile)
        before = starts[segment] - own  # shared tokens of all segments before this one
        _hand_out(dkeys, dvalues, head, size, own, shared, tokens.size, dqkv, dshared[before : before + shared])


@jit(merge=True)
def _add_shared(block, segments, dshared, dqkv):
    """Add to the gradients of keys and values what came from segments that share them: one block of columns."""
    width, row = dshared.shape[1] // 2, 0
    low, high = block * COLUMNS, min(2 * width, (block + 1) * COLUMNS)
    for segment in range(segments.starts.size - 1):
        tokens, _, shared = _row_of(segments, segment)
        for i in range(shared):
            source, target = dshared[row, low:high], dqkv[tokens[i], width + low : width + high]
            for j in range(source.size):
                target[j] += source[j]
            row += 1


@jit(parallel=True)
def attention_backward(dout, qkv, heads, segments, scale, lse, threads):
    """Gradient of qkv (N, 3C) from that of the result, dout (N, C).

    Several segments see a token that they share, and threads would race for its gradient: what does not belong to a
    segment's own tokens is put aside and added when all are done, in the order of the segments.
    """
    dqkv = np.empty_like(qkv)
    dshared = np.empty((segments.seen.size - qkv.shape[0], 2 * dout.shape[1]), qkv.dtype)
    counter = new_counter()
    for _ in prange(threads):
        _attend_to_tasks_backward(counter, dout, qkv, heads, segments, qkv.dtype.type(scale), lse, dqkv, dshared)
    if dshared.shape[0] > 0:
        counter[0] = 0
        for _ in prange(WORKERS):
            for block in pieces(counter, (dshared.shape[1] + COLUMNS - 1) // COLUMNS):
                _add_shared(block, segments, dshared, dqkv)
    return dqkv
