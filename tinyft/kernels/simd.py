"""Small pieces that make loops vectorise: a fused multiply-add, bits as floats, and a branch-free exp.

The C library's `exp` is scalar under Numba: a loop that calls it runs one element at a time. `exp` here is
plain arithmetic without a branch, so LLVM turns a loop over it into vector instructions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .jit import jit


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once. All three of one float type."""
    if not (isinstance(a, types.Float) and a == b == c):
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def round_to_int(typingctx, x):
    """The nearest integer, still as a float (ties to even): one instruction."""

    def codegen(context, builder, signature, args):
        function = builder.module.declare_intrinsic("llvm.rint", [args[0].type])
        return builder.call(function, args)

    return x(x), codegen


@intrinsic
def power_of_two(typingctx, n):
    """2.0**n for a float n that holds a whole number in the exponent's range.

    A float stores its exponent, plus a bias, just above its fraction bits; writing n there is all it takes.
    """
    fraction_bits, bias = (23, 127) if n == types.float32 else (52, 1023)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(n.bitwidth)
        exponent = builder.add(builder.fptosi(args[0], integer), ir.Constant(integer, bias))
        return builder.bitcast(builder.shl(exponent, ir.Constant(integer, fraction_bits)), args[0].type)

    return n(n), codegen


def _make_exp(real, terms: int, lowest: float, highest: float, ln2_high: float, ln2_low: float):
    """Build exp for one float type.

    Range reduction: exp(x) = 2**n * exp(r) with n = round(x / ln 2), so |r| <= ln(2)/2. r is formed in two
    steps, with ln 2 = ln2_high + ln2_low and ln2_high short enough that n * ln2_high is exact (Cody and
    Waite, "Software Manual for the Elementary Functions", 1980). exp(r) is its Taylor series by Horner's rule.
    """
    lowest, highest = real(lowest), real(highest)
    log2_e = real(1 / math.log(2))
    minus_ln2_high, minus_ln2_low = real(-ln2_high), real(-ln2_low)
    zero, one, infinity = real(0), real(1), real(np.inf)
    series = tuple(real(1 / math.factorial(k)) for k in reversed(range(terms)))

    # No reordering here: it would merge the two parts of ln 2 again.
    @jit(inline=True)
    def exp_of(x):
        inside = min(max(x, lowest), highest)
        n = round_to_int(inside * log2_e)
        r = fma(n, minus_ln2_low, fma(n, minus_ln2_high, inside))
        p = series[0]
        for k in range(1, terms):
            p = fma(p, r, series[k])
        y = p * power_of_two(n)
        y = zero if x < lowest else y
        y = infinity if x > highest else y
        return y if x == x else x + one  # NaN stays NaN

    return exp_of


_exp32 = _make_exp(np.float32, 8, -87.3365, 88.37, 0.693359375, -2.1219444005469058e-4)
_exp64 = _make_exp(np.float64, 14, -708.396, 709.43, 0.6931471803691238, 1.9082149292705877e-10)


def exp(x):
    """e**x inside a kernel, float32 or float64, within 2 ulp of the exact value (`tests/test_simd.py`).

    Below the smallest normal float it gives 0, from half the largest float on inf; NaN stays NaN.
    """
    raise NotImplementedError("exp is for jitted code; use numpy.exp in Python")


@overload(exp, inline="never")
def _choose_exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    if x == types.float64:
        return lambda x: _exp64(x)
    return None
