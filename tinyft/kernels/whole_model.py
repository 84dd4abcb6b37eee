"""All of GPT-2 in one compiled call: new tokens of several sequences in, what comes after them out.

Between two kernels that Python calls, threads go to sleep or have to be woken, and for a single token there are a
hundred kernels of a tenth of a millisecond. So here one parallel loop holds the whole model. Its work is cut into
STAGES, each of many pieces that threads take from the stage's counter; a thread goes on to the next stage when all
pieces of this one are finished, whoever did them. One that is late, because another program has its core, finds them
finished and catches up.

The arithmetic is that of `gpt2.py`, without what only training needs.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from .cached_attention import attend_to_cache
from .gelu import exact_gelu_of, gelu_of
from .jit import jit
from .norm import normalise_row
from .packing import TILE_ROWS, TILE_VECTORS
from .panels import (
    DEPTH,
    expand_panel,
    is_rounded,
    items_per_k,
    multiply_group,
    pack_group,
    rows_of_group,
    scales_per_panel,
    weight_at,
)
from .pieces import LINE, finish, new_counters, pieces, pieces_in_order, wait_for
from .simd import lanes_of

# What a product's result is put through.
PLAIN, GELU, EXACT_GELU, RELU, RESIDUAL = range(5)
# Matrices of a block in the order of `Weights.matrices`; then come the token table and the output layer.
QKV, PROJECTION, INNER, OUTER = range(4)
# Vectors of a block in `Weights.vectors`: the four biases, weight and bias of both norms. Then come those of the last
# norm, and the table of positions.
NORM_1, NORM_2, N_VECTORS = 4, 6, 8


class Shape(NamedTuple):
    """The numbers of a GPT2Config that the computation needs."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    vocab_size: int
    activation: int  # GELU, EXACT_GELU or RELU
    epsilon: float


class Weights(NamedTuple):
    """A model's weights, flat, and where each stands in them."""

    panels: np.ndarray  # all matrices as panels, see `panels.py`
    scales: np.ndarray  # their scales, if they are int8
    plain: np.ndarray  # norms, biases, and the positions' table
    matrices: np.ndarray  # (4 n_layer + 2, 2): where a matrix begins in `panels` and in `scales`
    vectors: np.ndarray  # (8 n_layer + 3,): where a vector begins in `plain`
    attention_scales: np.ndarray  # (n_layer,)


class Rows(NamedTuple):
    """What a step computes: N new tokens of S sequences, one sequence after the other."""

    ids: np.ndarray  # (N,)
    starts: np.ndarray  # (S+1,): sequence s has the tokens starts[s] to starts[s+1] - 1
    before: np.ndarray  # (S,): how many tokens of it are in the cache
    tables: np.ndarray  # (S, blocks): which blocks of the cache it stands in
    keep: np.ndarray  # (K,): the only tokens whose result is wanted, in ascending order


class Team(NamedTuple):
    """The threads of a step, as one of them sees it."""

    counters: np.ndarray  # for each stage a line for each thread, and one for what is finished
    worker: int
    threads: int


class Scratch(NamedTuple):
    """Room for what flows through the model; row after row, but for `packed`."""

    x: np.ndarray  # (rows * C,): the stream
    wide: np.ndarray  # (rows * max(3C, inner),): queries, keys and values, or the inside of the MLP
    narrow: np.ndarray  # (rows * C,): normalised, or mixed by attention
    packed: np.ndarray  # the rows of a product, in groups
    own: np.ndarray  # (threads, elements): tiles of one panel of results, and an expanded panel
    packed_own: np.ndarray  # (threads, elements): attention's rows
    scores: np.ndarray  # (threads, elements): of attention


@jit
def _counters(stages, threads):
    return new_counters(stages * (threads + 1) * LINE)


@jit
def _taken(team, stage):
    """Where the counters of a stage begin."""
    return stage * (team.threads + 1) * LINE


@jit
def _finish(team, stage):
    finish(team.counters, _taken(team, stage) + team.threads * LINE)


@jit
def _wait_for(team, stage, count):
    wait_for(team.counters, _taken(team, stage) + team.threads * LINE, count)


@jit
def _groups(rows):
    """How many groups so many rows are multiplied in."""
    return (rows + TILE_ROWS - 1) // TILE_ROWS


@jit
def _group_start(group, depth, like):
    """Where a packed group begins. Packing spills up to a vector over its end."""
    return group * (TILE_ROWS * depth + lanes_of(like))


@jit
def _pack_stage(team, stage, source, rows, depth, packed):
    """Pack rows for a product."""
    for group in pieces(team.counters, _groups(rows), _taken(team, stage)):
        n = min(TILE_ROWS, rows - group * TILE_ROWS)
        pack_group(source, group * TILE_ROWS * depth, depth, n, depth, rows_of_group(n), packed,
                   _group_start(group, depth, packed))
        _finish(team, stage)
    _wait_for(team, stage, _groups(rows))


@jit
def _norm_stage(team, stage, x, rows, width, plain, vectors, epsilon, out, packed):
    """Normalise rows and pack them for a product. vectors: where weight and bias of the norm begin in `plain`."""
    weight, bias = plain[vectors[0] : vectors[0] + width], plain[vectors[1] : vectors[1] + width]
    for group in pieces(team.counters, _groups(rows), _taken(team, stage)):
        first = group * TILE_ROWS
        n = min(TILE_ROWS, rows - first)
        for row in range(first, first + n):
            normalise_row(x[row * width : (row + 1) * width], weight, bias, epsilon,
                          out[row * width : (row + 1) * width])
        pack_group(out, first * width, width, n, width, rows_of_group(n), packed, _group_start(group, width, packed))
        _finish(team, stage)
    _wait_for(team, stage, _groups(rows))


@jit(merge=True)
def _finish_tiles(tiles, rows, width, n_columns, bias, out, at, stride, kind):
    """Add the bias, and put results where they belong."""
    for row in range(rows):
        tile = tiles[row * width : row * width + n_columns]
        into = out[at + row * stride : at + row * stride + n_columns]
        for j in range(bias.size):
            tile[j] += bias[j]
        if kind == GELU:
            gelu_of(tile, into)
        elif kind == EXACT_GELU:
            exact_gelu_of(tile, into)
        elif kind == RELU:
            for j in range(n_columns):
                into[j] = max(tile[j], tile.dtype.type(0))
        elif kind == RESIDUAL:
            for j in range(n_columns):
                into[j] += tile[j]
        else:
            for j in range(n_columns):
                into[j] = tile[j]


@jit(merge=True)
def _multiply_panel(weights, start, scales_start, depth, packed, rows, tiles, expanded):
    """tiles = packed rows times one panel. It is read once; for many rows from L2, and expanded before."""
    width, panels = TILE_VECTORS * lanes_of(tiles), weights.panels
    items, groups = items_per_k(panels, tiles), _groups(rows)
    for k in range(0, depth, DEPTH):
        n, at = min(DEPTH, depth - k), start + k * items
        scale = scales_start + scales_per_panel(k, width)
        expand = is_rounded(panels) and groups > 1
        if expand:
            expand_panel(panels, at, weights.scales, scale, n, expanded)
        for group in range(groups):
            some = rows_of_group(min(TILE_ROWS, rows - group * TILE_ROWS))
            a = _group_start(group, depth, tiles) + k * some
            if expand:
                multiply_group(some, packed, a, expanded, 0, weights.scales, 0, n,
                               tiles, group * TILE_ROWS * width, k == 0)
            else:
                multiply_group(some, packed, a, panels, at, weights.scales, scale, n,
                               tiles, group * TILE_ROWS * width, k == 0)


@jit
def _product_stage(team, stage, weights, matrix, depth, columns, bias, packed, rows, out, kind, own):
    """out = rows times a matrix, plus a bias, and then what `kind` says. out: flat, (rows, columns)."""
    width = TILE_VECTORS * lanes_of(out)
    count, per_panel = (columns + width - 1) // width, depth * items_per_k(weights.panels, out)
    start, scales_start = weights.matrices[matrix, 0], weights.matrices[matrix, 1]
    tiles, expanded = own[: (rows + TILE_ROWS) * width], own[own.size - DEPTH * width :]
    for panel in pieces_in_order(team.counters, count, _taken(team, stage), team.worker, team.threads):
        left = panel * width
        n_columns = min(width, columns - left)
        _multiply_panel(weights, start + panel * per_panel,
                        scales_start + panel * scales_per_panel(depth, width),
                        depth, packed, rows, tiles, expanded)
        _finish_tiles(tiles, rows, width, n_columns, bias[left : left + n_columns], out, left, columns, kind)
        _finish(team, stage)
    _wait_for(team, stage, count)


@jit(merge=True)
def _embedding_stage(team, stage, shape, weights, rows, x):
    """x = the tokens' rows of the token table, which is kept as panels, plus those of their positions."""
    width, table = shape.n_embd, 4 * shape.n_layer
    positions = weights.vectors[N_VECTORS * shape.n_layer + 2]
    for sequence in pieces(team.counters, rows.before.size, _taken(team, stage)):
        for row in range(rows.starts[sequence], rows.starts[sequence + 1]):
            place = positions + (rows.before[sequence] + row - rows.starts[sequence]) * width
            for k in range(width):
                x[row * width + k] = weights.plain[place + k] + weight_at(
                    weights.panels, weights.matrices[table, 0], weights.scales, weights.matrices[table, 1],
                    width, k, rows.ids[row], x)
        _finish(team, stage)
    _wait_for(team, stage, rows.before.size)


@jit
def _attention_stage(team, stage, heads, scale, rows, qkv, keys, values, mixed, packed, scores, partial_tile):
    """Keep keys and values of the new tokens, and mix."""
    count = rows.before.size * heads
    for task in pieces_in_order(team.counters, count, _taken(team, stage), team.worker, team.threads):
        sequence, head = task // heads, task % heads
        first = rows.starts[sequence]
        attend_to_cache(qkv, first, rows.starts[sequence + 1] - first, heads, head, rows.before[sequence], scale,
                        rows.tables[sequence], keys, values, mixed, packed, scores, partial_tile)
        _finish(team, stage)
    _wait_for(team, stage, count)


@jit(merge=True)
def _keep_stage(team, stage, keep, width, x, mixed):
    """Move the tokens whose result is wanted to the front; the others are done with."""
    for _ in pieces(team.counters, 1, _taken(team, stage)):
        for i in range(keep.size):
            for j in range(width):
                x[i * width + j] = x[keep[i] * width + j]
                mixed[i * width + j] = mixed[keep[i] * width + j]
        _finish(team, stage)
    _wait_for(team, stage, 1)


@jit
def _head_stages(team, stage, shape, weights, packed, rows, logits, own):
    """Rows that are packed times the output layer."""
    _product_stage(team, stage, weights, 4 * shape.n_layer + 1, shape.n_embd, shape.vocab_size,
                   weights.plain[:0], packed, rows, logits, PLAIN, own)


@jit
def _run_worker(team, shape, weights, rows, keys, values, hidden, logits, scratch, own, packed_own, scores):
    """What one thread does."""
    width, inner, n = shape.n_embd, shape.n_inner, rows.ids.size
    x, wide, narrow, packed, plain = scratch.x, scratch.wide, scratch.narrow, scratch.packed, weights.plain
    epsilon, stage = shape.epsilon, 0
    _embedding_stage(team, stage, shape, weights, rows, x)
    for layer in range(shape.n_layer):
        matrix, vector = 4 * layer, weights.vectors[N_VECTORS * layer : N_VECTORS * (layer + 1)]
        _norm_stage(team, stage + 1, x, n, width, plain, vector[NORM_1:], epsilon, narrow, packed)
        _product_stage(team, stage + 2, weights, matrix + QKV, width, 3 * width,
                       plain[vector[QKV] : vector[QKV] + 3 * width], packed, n, wide, PLAIN, own)
        _attention_stage(team, stage + 3, shape.n_head, weights.attention_scales[layer], rows, wide,
                         keys[layer], values[layer], narrow, packed_own, scores, own)
        if layer == shape.n_layer - 1 and rows.keep.size < n:
            _keep_stage(team, stage + 4, rows.keep, width, x, narrow)
            n = rows.keep.size
        _pack_stage(team, stage + 5, narrow, n, width, packed)
        _product_stage(team, stage + 6, weights, matrix + PROJECTION, width, width,
                       plain[vector[PROJECTION] : vector[PROJECTION] + width], packed, n, x, RESIDUAL, own)
        _norm_stage(team, stage + 7, x, n, width, plain, vector[NORM_2:], epsilon, narrow, packed)
        _product_stage(team, stage + 8, weights, matrix + INNER, width, inner,
                       plain[vector[INNER] : vector[INNER] + inner], packed, n, wide, shape.activation, own)
        _pack_stage(team, stage + 9, wide, n, inner, packed)
        _product_stage(team, stage + 10, weights, matrix + OUTER, inner, width,
                       plain[vector[OUTER] : vector[OUTER] + width], packed, n, x, RESIDUAL, own)
        stage += 10
    last = weights.vectors[N_VECTORS * shape.n_layer :]
    _norm_stage(team, stage + 1, x, n, width, plain, last, epsilon, hidden, packed)
    if logits.size > 0:
        _head_stages(team, stage + 2, shape, weights, packed, n, logits, own)


@jit(parallel=True, nogil=True)
def run_model(shape, weights, rows, keys, values, hidden, logits, scratch, threads):
    """One step: what is known after the K tokens to keep, into hidden, flat (K, C), and logits, flat (K, V), or empty.

    keys, values: the cache, (n_layer, blocks, n_head, elements) as `cached_attention.py` has it; those of the new
    tokens are put there.
    """
    counters = _counters(10 * shape.n_layer + 3, threads)
    for worker in prange(threads):
        _run_worker(Team(counters, worker, threads), shape, weights, rows, keys, values, hidden, logits, scratch,
             scratch.own[worker], scratch.packed_own[worker], scratch.scores[worker])


@jit(merge=True)
def _run_head_worker(team, shape, weights, hidden, rows, logits, scratch, own):
    _pack_stage(team, 0, hidden, rows, shape.n_embd, scratch.packed)
    _head_stages(team, 1, shape, weights, scratch.packed, rows, logits, own)


@jit(parallel=True, nogil=True)
def run_head(shape, weights, hidden, rows, logits, scratch, threads):
    """The output layer alone: hidden, flat (rows, C), into logits, flat (rows, V)."""
    counters = _counters(2, threads)
    for worker in prange(threads):
        _run_head_worker(Team(counters, worker, threads), shape, weights, hidden, rows, logits, scratch,
                         scratch.own[worker])
