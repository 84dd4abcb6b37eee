"""Softmax over the last axis, row by row."""

import numpy as np
from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .simd import exp, maximum

ROWS = 16  # that a thread takes at a time


@jit(reorder=True)
def softmax_row(x, out):
    """out = exp(x - max x) / sum: one row; subtracting the maximum keeps exp from overflowing."""
    top = x[0]
    for i in range(x.size):
        top = maximum(top, x[i])
    total = x.dtype.type(0)
    for i in range(x.size):
        out[i] = exp(x[i] - top)
        total += out[i]
    scale = x.dtype.type(1) / total
    for i in range(x.size):
        out[i] *= scale


@jit(parallel=True)
def softmax_forward(x):
    """(rows, n) -> (rows, n), each row positive with sum 1."""
    out = np.empty_like(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.shape[0] + ROWS - 1) // ROWS):
            for row in range(block * ROWS, min(x.shape[0], (block + 1) * ROWS)):
                softmax_row(x[row], out[row])
    return out


@jit(reorder=True)
def softmax_row_backward(dout, out, dx):
    """dx = out * (dout - sum(dout * out)): one row of the softmax's Jacobian, diag(out) - out out^T, times dout.

    It is derived above `ops.softmax`'s backward pass.
    """
    dot = out.dtype.type(0)
    for i in range(out.size):
        dot += dout[i] * out[i]
    for i in range(out.size):
        dx[i] = out[i] * (dout[i] - dot)


@jit(parallel=True)
def softmax_backward(dout, out):
    """(rows, n) gradients of the result, and the result -> (rows, n) gradients of x."""
    dx = np.empty_like(out)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (out.shape[0] + ROWS - 1) // ROWS):
            for row in range(block * ROWS, min(out.shape[0], (block + 1) * ROWS)):
                softmax_row_backward(dout[row], out[row], dx[row])
    return dx
