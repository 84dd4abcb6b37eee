"""Layer normalisation of rows (Ba, Kiros and Hinton, "Layer Normalization", 2016)."""

import numpy as np
from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .sums import PARTS, sum_of_parts, zero_parts

ROWS = 8  # that a thread takes at a time


@jit(reorder=True, inline=True)
def normalise_row(x, weight, bias, eps, out):
    """One row; returns its mean and 1 / standard deviation. Two passes: x may have a large mean."""
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i]
    mean = total / x.dtype.type(x.size)
    squares = x.dtype.type(0)
    for i in range(x.size):
        squares += (x[i] - mean) * (x[i] - mean)
    rstd = x.dtype.type(1) / np.sqrt(squares / x.dtype.type(x.size) + x.dtype.type(eps))
    for i in range(x.size):
        out[i] = (x[i] - mean) * rstd * weight[i] + bias[i]
    return mean, rstd


@jit(parallel=True)
def layer_norm_forward(x, weight, bias, eps):
    """(rows, C), (C,), (C,) -> out (rows, C), and mean (rows,), rstd (rows,) for the backward pass.

    out = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(variance + eps).
    """
    out = np.empty_like(x)
    mean, rstd = np.empty(x.shape[0], x.dtype), np.empty(x.shape[0], x.dtype)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.shape[0] + ROWS - 1) // ROWS):
            for row in range(block * ROWS, min(x.shape[0], (block + 1) * ROWS)):
                mean[row], rstd[row] = normalise_row(x[row], weight, bias, eps, out[row])
    return out, mean, rstd


@jit(reorder=True)
def _normalise_row_backward(dout, x, weight, mean, rstd, dx, dweight, dbias):
    """One row of dx; adds the row's share to dweight and dbias.

    With n = (x - mean) * rstd and g = dout * weight: dx = rstd * (g - mean(g) - n * mean(g * n)), which is derived in
    examples/tour/derivations.md.
    """
    sum_g = x.dtype.type(0)
    sum_gn = x.dtype.type(0)
    for i in range(x.size):
        normal = (x[i] - mean) * rstd
        g = dout[i] * weight[i]
        sum_g += g
        sum_gn += g * normal
        dweight[i] += dout[i] * normal
        dbias[i] += dout[i]
    mean_g, mean_gn = sum_g / x.dtype.type(x.size), sum_gn / x.dtype.type(x.size)
    for i in range(x.size):
        normal = (x[i] - mean) * rstd
        dx[i] = rstd * (dout[i] * weight[i] - mean_g - normal * mean_gn)


@jit
def _backward_part(part, dout, x, weight, mean, rstd, dx, dweight, dbias):
    rows = x.shape[0]
    for row in range(rows * part // PARTS, rows * (part + 1) // PARTS):
        _normalise_row_backward(dout[row], x[row], weight, mean[row], rstd[row], dx[row], dweight, dbias)


@jit(parallel=True)
def layer_norm_backward(dout, x, weight, mean, rstd):
    """Gradients of x (rows, C), weight (C,) and bias (C,).

    All rows add to the same dweight and dbias, so that threads would race: each PART of the rows has sums of
    its own, joined at the end. Their number is fixed, and with it the rounding, whatever the threads.
    """
    dx = np.empty_like(x)
    dweights, dbiases = zero_parts(x), zero_parts(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for part in pieces(counter, PARTS):
            _backward_part(part, dout, x, weight, mean, rstd, dx, dweights[part], dbiases[part])
    return dx, sum_of_parts(dweights), sum_of_parts(dbiases)
