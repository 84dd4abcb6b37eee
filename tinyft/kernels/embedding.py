"""Gradient of a table lookup."""

from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces

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
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (columns + COLUMNS - 1) // COLUMNS):
            _add_columns(dout, ids, dweight, block * COLUMNS, min(columns, (block + 1) * COLUMNS))
