"""GELU, x Phi(x) with Phi the normal distribution function (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).

GPT-2 has the approximation of the paper's section 2, gelu(x) = x/2 * (1 + tanh(u)) with
u = sqrt(2/pi) * (x + 0.044715 x**3). Since (1 + tanh(u)) / 2 is the logistic function of 2u, it is
x / (1 + exp(-2u)), which takes one exp and no tanh. The exact form is at the end of the file.
"""

import math

import numpy as np
from numba import prange, types
from numba.extending import overload

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .simd import exp, fma

TWICE_SQRT_2_OVER_PI = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715
BLOCK = 8192  # elements a thread takes at a time


@jit(reorder=True, inline=True)
def gelu_of(x, out):
    slope, cubic, one = x.dtype.type(TWICE_SQRT_2_OVER_PI), x.dtype.type(CUBIC), x.dtype.type(1)
    for i in range(x.size):
        twice_u = slope * x[i] * (one + cubic * x[i] * x[i])
        out[i] = x[i] / (one + exp(-twice_u))


@jit(parallel=True)
def gelu_forward(x):
    """(n,) -> (n,)"""
    out = np.empty_like(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
            gelu_of(x[part], out[part])
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
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
            _gelu_backward(dout[part], x[part], dx[part])
    return dx


# ---- the exact form


def _make_normal(real, farthest: float, coefficients: tuple[float, ...]):
    """Build normal(x) -> (Phi(x), phi(x) * sqrt(2 pi)) for one float type: the distribution function and its density.

    Phi falls like phi on the left, so that 1 + erf(x / sqrt(2)) would lose all digits there. With a = |x|, the
    quotient Phi(-a) / exp(-a**2 / 2) (Mills' ratio, up to a factor) is smooth and falls only like 1 / a; times
    a + 4 it is a polynomial in u = (a - 4) / (a + 4), which maps 0 ... inf to -1 ... 1 (the idea of Shepherd and
    Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < inf", 1981; the coefficients are
    those of the Chebyshev interpolation, sorted by powers of u, the highest first). Rounding a**2 would cost
    a**2 / 4 ulp of its exp; fma gives what was rounded off. Beyond `farthest`, exp(-a**2 / 2) is 0.
    """
    series = tuple(real(c) for c in coefficients)
    zero, half, one, four, minus_eight, farthest = (real(c) for c in (0, 0.5, 1, 4, -8, farthest))

    # No reordering here: what x * x rounds off would be taken for 0.
    @jit(inline=True)
    def normal_of(x):
        a = abs(x)
        a = farthest if a > farthest else a  # false for NaN, which passes through
        square = a * a
        rounded_off = fma(a, a, -square)
        density = exp(-half * square)
        density -= density * (half * rounded_off)
        r = one / (a + four)
        u = fma(minus_eight, r, one)
        p = series[0]
        for k in range(1, len(series)):
            p = fma(p, u, series[k])
        tail = density * (p * r)
        return (tail if x < zero else one - tail), density

    return normal_of


_normal32 = _make_normal(np.float32, 14.5, (
    -1.67331541e-06, -0.000157121554, 0.000133510242, 0.00156333705, -0.00347983092, -0.00751189189, 0.0603966042,
    -0.186526805, 0.387137413, -0.607896388, 0.755285144,
))
_normal64 = _make_normal(np.float64, 39.0, (
    -1.4936479509955031e-10, -1.6858481937278877e-09, -4.1774838524334276e-10, 1.6051942514282524e-08,
    1.7419125179458914e-08, -7.8746944304708382e-08, -1.5916439391794904e-07, 2.6468456126470355e-07,
    1.0242368988565404e-06, -6.2491416809006595e-07, -5.9212894221150283e-06, 7.1458025921931014e-07,
    3.5144988131603438e-05, -1.9076685133202144e-06, -0.00023109498674854848, 0.00013334420755153713,
    0.0016308184627789688, -0.0034796923564507777, -0.0075401889669966232, 0.060396574890348081, -0.18652185795965176,
    0.38713740074222691, -0.60789664197189208, 0.7552851304157514,
))


def normal(x):
    """Phi(x) and sqrt(2 pi) phi(x) inside a kernel, float32 or float64, both within 6 ulp of the exact value.

    Where exp(-x**2 / 2) is below the smallest normal float, Phi(x) on the left and phi(x) are 0. NaN stays NaN.
    """
    raise NotImplementedError("normal is for jitted code; use math.erfc in Python")


@overload(normal, inline="never")
def _choose_normal(x):
    if x == types.float32:
        return lambda x: _normal32(x)
    if x == types.float64:
        return lambda x: _normal64(x)
    return None


@jit
def exact_gelu_of(x, out):
    for i in range(x.size):
        distribution, _ = normal(x[i])
        out[i] = x[i] * distribution


@jit(parallel=True)
def exact_gelu_forward(x):
    """(n,) -> (n,): x Phi(x)"""
    out = np.empty_like(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
            exact_gelu_of(x[part], out[part])
    return out


@jit
def _exact_gelu_backward(dout, x, dx):
    """d(x Phi(x))/dx = Phi(x) + x phi(x)"""
    factor = x.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(x.size):
        distribution, density = normal(x[i])
        dx[i] = dout[i] * (distribution + x[i] * (factor * density))


@jit(parallel=True)
def exact_gelu_backward(dout, x):
    """(n,), (n,) -> dx (n,)"""
    dx = np.empty_like(x)
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (x.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(x.size, (block + 1) * BLOCK))
            _exact_gelu_backward(dout[part], x[part], dx[part])
    return dx
