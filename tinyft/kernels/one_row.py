"""One row times a matrix that isn't packed: bound by reading the matrix, not by arithmetic."""

from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .simd import as_factor


@jit(reorder=True)
def _add_weighted_rows(weights, b, columns, left, out, packed):
    """out += weights @ b[:, left : left + out.size], four rows of b at a time to save passes over out."""
    k = 0
    while k + 4 <= weights.size:
        at = k * columns + left
        row0, row1 = b[at : at + out.size], b[at + columns : at + columns + out.size]
        row2 = b[at + 2 * columns : at + 2 * columns + out.size]
        row3 = b[at + 3 * columns : at + 3 * columns + out.size]
        w0, w1 = as_factor(packed, weights[k]), as_factor(packed, weights[k + 1])
        w2, w3 = as_factor(packed, weights[k + 2]), as_factor(packed, weights[k + 3])
        for j in range(out.size):
            out[j] += (w0 * as_factor(packed, row0[j]) + w1 * as_factor(packed, row1[j])
                       + w2 * as_factor(packed, row2[j]) + w3 * as_factor(packed, row3[j]))
        k += 4
    while k < weights.size:
        row0, w0 = b[k * columns + left : k * columns + left + out.size], as_factor(packed, weights[k])
        for j in range(out.size):
            out[j] += w0 * as_factor(packed, row0[j])
        k += 1


@jit(reorder=True)
def _dot(x, y, packed):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += as_factor(packed, x[i]) * as_factor(packed, y[i])
    return total


@jit
def _dot_rows(a, b, first, out, packed):
    """out[j] += a @ b[first + j]"""
    for j in range(out.size):
        out[j] += _dot(a, b[first + j], packed)


@jit(parallel=True)
def multiply_row(a, b, b_transposed, out, width, packed):
    """out += a @ B for one row a (K,), without packing: each element of B is used only once.

    packed: of the type that factors would be packed in, so that one row is rounded like many. (Subnormal numbers alone
    are kept here; instructions for bfloat16 take them as 0.)
    """
    flat_b = b.reshape(-1)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (out.size + width - 1) // width):
            left, right = block * width, min(out.size, (block + 1) * width)
            if b_transposed:
                _dot_rows(a, b, left, out[left:right], packed)
            else:
                _add_weighted_rows(a, flat_b, b.shape[1], left, out[left:right], packed)
