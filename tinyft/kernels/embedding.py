"""Gradient of a table lookup."""

import numpy as np
from numba import prange

from .jit import jit
from .norm import PARTS

COLUMNS = 128  # columns that one thread owns at a time


@jit(parallel=True)
def embedding_backward(dout, ids, dweight):
    """dweight[ids[i]] += dout[i] for every row i: (rows, C), (rows,) into (V, C).

    One id can stand in many rows, so threads that share out rows would race for one sum. Each thread owns
    some of the columns instead.
    """
    columns = dout.shape[1]
    for block in prange((columns + COLUMNS - 1) // COLUMNS):
        low, high = block * COLUMNS, min(columns, (block + 1) * COLUMNS)
        for row in range(ids.size):
            source, target = dout[row, low:high], dweight[ids[row], low:high]
            for i in range(source.size):
                target[i] += source[i]


@jit(parallel=True)
def sum_rows(x):
    """(rows, n) -> (n,): the gradient of a bias. PARTS of the rows are summed apart, as in layer_norm's gradient."""
    rows, columns = x.shape
    sums = np.zeros((PARTS, columns), x.dtype)
    for part in prange(PARTS):
        target = sums[part]
        for row in range(rows * part // PARTS, rows * (part + 1) // PARTS):
            source = x[row]
            for i in range(source.size):
                target[i] += source[i]
    return sums.sum(axis=0)
