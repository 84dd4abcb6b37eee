"""GELU in GPT-2's form (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2).

gelu(x) = x/2 * (1 + tanh(u)) with u = sqrt(2/pi) * (x + 0.044715 x**3). Since (1 + tanh(u)) / 2 is the
logistic function of 2u, it is x / (1 + exp(-2u)), which takes one exp and no tanh.
"""

import math

import numpy as np
from numba import prange

from .jit import jit
from .simd import exp

TWICE_SQRT_2_OVER_PI = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715
SQRT_HALF, INVERSE_SQRT_2_PI = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
BLOCK = 8192  # numbers a thread takes at a time


@jit(reorder=True)
def _gelu(x, out):
    slope, cubic, one = x.dtype.type(TWICE_SQRT_2_OVER_PI), x.dtype.type(CUBIC), x.dtype.type(1)
    for i in range(x.size):
        twice_u = slope * x[i] * (one + cubic * x[i] * x[i])
        out[i] = x[i] / (one + exp(-twice_u))


@jit(parallel=True)
def gelu_forward(x):
    """(n,) -> (n,)"""
    out = np.empty_like(x)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
        _gelu(x[part], out[part])
    return out


@jit(reorder=True)
def _gelu_backward(dout, x, dx):
    """With s = 1 / (1 + exp(-2u)): d(x s)/dx = s + x s (1 - s) d(2u)/dx."""
    slope, cubic, one = x.dtype.type(TWICE_SQRT_2_OVER_PI), x.dtype.type(CUBIC), x.dtype.type(1)
    three = x.dtype.type(3)
    for i in range(x.size):
        square = x[i] * x[i]
        s = one / (one + exp(-slope * x[i] * (one + cubic * square)))
        dx[i] = dout[i] * (s + x[i] * s * (one - s) * slope * (one + three * cubic * square))


@jit(parallel=True)
def gelu_backward(dout, x):
    """(n,), (n,) -> dx (n,)"""
    dx = np.empty_like(x)
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
        _gelu_backward(dout[part], x[part], dx[part])
    return dx


@jit(parallel=True)
def exact_gelu_forward(x):
    """(n,) -> (n,): x Phi(x), with Phi(x) = erfc(-x / sqrt(2)) / 2 the normal distribution function."""
    out = np.empty_like(x)
    for i in prange(x.size):
        out[i] = 0.5 * x[i] * math.erfc(-x[i] * SQRT_HALF)
    return out


@jit(parallel=True)
def exact_gelu_backward(dout, x):
    """(n,), (n,) -> dx (n,): d(x Phi(x))/dx = Phi(x) + x phi(x), with phi the normal density."""
    dx = np.empty_like(x)
    for i in prange(x.size):
        density = INVERSE_SQRT_2_PI * math.exp(-0.5 * x[i] * x[i])
        dx[i] = dout[i] * (0.5 * math.erfc(-x[i] * SQRT_HALF) + x[i] * density)
    return dx
