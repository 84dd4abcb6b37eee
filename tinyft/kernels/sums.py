"""Sums over many rows, shared out among threads in such a way that the rounding is the same for any number of them."""

import numpy as np
from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces

PARTS = 16  # of the rows, each summed apart
BLOCK = 16384  # elements a thread takes at a time


@jit
def zero_parts(x):
    """(PARTS, n) zeros for x (rows, n). Within a parallel function they would be compiled as one more parallel loop."""
    return np.zeros((PARTS, x.shape[1]), x.dtype)


@jit
def sum_of_parts(parts):
    """(parts, n) -> (n,)"""
    total = parts[0].copy()
    for part in range(1, parts.shape[0]):
        for i in range(total.size):
            total[i] += parts[part, i]
    return total


@jit
def _add_rows(x, first, end, total):
    for row in range(first, end):
        for i in range(total.size):
            total[i] += x[row, i]


@jit(parallel=True)
def sum_rows(x):
    """(rows, n) -> (n,): the gradient of a bias. PARTS of the rows are summed apart, as in layer_norm's gradient."""
    sums = zero_parts(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for part in pieces(counter, PARTS):
            _add_rows(x, x.shape[0] * part // PARTS, x.shape[0] * (part + 1) // PARTS, sums[part])
    return sum_of_parts(sums)


@jit(reorder=True)
def _sum_of_squares(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@jit(parallel=True)
def sum_of_squares(x):
    """Sum of x**2 over (n,). Blocks are joined in float64: one float32 sum of 100 million loses digits."""
    if x.size <= BLOCK:
        return float(_sum_of_squares(x))
    parts = np.empty((x.size + BLOCK - 1) // BLOCK)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, parts.size):
            parts[block] = _sum_of_squares(x[block * BLOCK : min(x.size, (block + 1) * BLOCK)])
    total = 0.0
    for part in parts:
        total += part
    return total
