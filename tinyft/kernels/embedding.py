"""Gradient of a table lookup."""

from numba import prange

from .jit import jit
from .norm import PARTS, sum_of_parts, zero_parts

COLUMNS = 128  # columns that one thread owns at a time


@jit
def _add_columns(dout, ids, dweight, low, high):
    for row in range(ids.size):
        source, target = dout[row, low:high], dweight[ids[row], low:high]
        for i in range(source.size):
            target[i] += source[i]


@jit(parallel=True)
def embedding_backward(dout, ids, dweight):
    """dweight[ids[i]] += dout[i] for every row i: (rows, C), (rows,) into (V, C).

    One id can stand in many rows, so threads that share out rows would race for one sum. Each thread owns
    some of the columns instead.
    """
    columns = dout.shape[1]
    for block in prange((columns + COLUMNS - 1) // COLUMNS):
        _add_columns(dout, ids, dweight, block * COLUMNS, min(columns, (block + 1) * COLUMNS))


@jit
def _add_rows(x, first, end, total):
    for row in range(first, end):
        for i in range(total.size):
            total[i] += x[row, i]


@jit(parallel=True)
def sum_rows(x):
    """(rows, n) -> (n,): the gradient of a bias. PARTS of the rows are summed apart, as in layer_norm's gradient."""
    sums = zero_parts(x)
    for part in prange(PARTS):
        _add_rows(x, x.shape[0] * part // PARTS, x.shape[0] * (part + 1) // PARTS, sums[part])
    return sum_of_parts(sums)
