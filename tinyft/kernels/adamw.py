"""The optimizer's arithmetic, in one pass over memory.

Both averages may be kept as bfloat16, in half the memory. To the nearest bfloat16 an average could not be rounded: with
beta2 = 0.999 it moves by a thousandth of its way at a step, and the next bfloat16 is up to 1/128 away, so that it would
stay for ever where it is. So it is rounded up or down at random, the nearer one more often, and is right on average
(stochastic rounding; Gupta et al., "Deep Learning with Limited Numerical Precision", 2015).

The random numbers come from a hash of a key and the element's index. They are the same for whatever threads and pieces.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .simd import expand

BLOCK = 16384  # elements a thread takes at a time


@intrinsic
def _number(typingctx, moment):
    """An element of m or v as a float."""
    number = types.float32 if moment == types.uint16 else moment
    return number(moment), lambda context, builder, signature, args: expand(builder, args[0])


@intrinsic
def _rounded(typingctx, moments, number, noise):
    """A float as an element of `moments`: where that is bfloat16, rounded up if the cut-off half + noise overflows.

    noise: 16 random bits.
    """

    def codegen(context, builder, signature, args):
        if moments.dtype != types.uint16:
            return args[1]
        bits = builder.add(builder.bitcast(args[1], ir.IntType(32)), args[2])
        return builder.trunc(builder.lshr(bits, ir.Constant(bits.type, 16)), ir.IntType(16))

    return moments.dtype(moments, number, types.uint32), codegen


@jit(inline=True)
def _mix(x):
    """A hash of 32 bits in which each bit of x changes half of all bits (lowbias32; Wellons, "Prospecting for Hash
    Functions", 2018)."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@jit(reorder=True)
def _adamw(weight, grad, m, v, grad_scale, one_minus_beta1, one_minus_beta2, step_size, eps, decay_factor,
           root_correction2, first, key):
    """m += (g - m)(1 - beta1) is the paper's m = beta1 m + (1 - beta1) g with one product less; v likewise.

    step_size and root_correction2 hold the corrections of both averages for their start at 0. first: the index of
    element 0 in the whole parameter.
    """
    low, high = np.uint32(key), np.uint32(key >> 32)
    for i in range(weight.size):
        g = grad[i] * grad_scale
        before, before_squared = _number(m[i]), _number(v[i])
        mean = before + (g - before) * one_minus_beta1
        square = before_squared + (g * g - before_squared) * one_minus_beta2
        weight[i] = weight[i] * decay_factor - step_size * mean / (np.sqrt(square) * root_correction2 + eps)
        noise = _mix(np.uint32(_mix(np.uint32(first + i) ^ low) + high))
        m[i] = _rounded(m, mean, np.uint32(noise & np.uint32(0xFFFF)))
        v[i] = _rounded(v, square, np.uint32(noise >> np.uint32(16)))


@jit(parallel=True)
def adamw_step(weight, grad, m, v, grad_scale, learning_rate, beta1, beta2, eps, weight_decay, step, key):
    """One AdamW step in place (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).

    weight, grad, m, v: (n,); m and v may be bfloat16, as uint16. The gradient is multiplied by `grad_scale` on the way,
    so that clipping needs no pass of its own. step counts from 1. key: 63 bits, another one for each step and
    parameter; of what bfloat16 is rounded with. examples/tour/derivations.md has the paper's form beside this one.
    """
    real = weight.dtype.type
    correction1 = 1 - beta1**step
    root_correction2 = 1 / np.sqrt(1 - beta2**step)
    decay_factor, step_size = 1 - learning_rate * weight_decay, learning_rate / correction1
    numbers = (real(grad_scale), real(1 - beta1), real(1 - beta2), real(step_size), real(eps), real(decay_factor),
               real(root_correction2))
    if weight.size <= BLOCK:  # a bias isn't worth waking threads for
        _adamw(weight, grad, m, v, *numbers, 0, key)
        return
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (weight.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(weight.size, (block + 1) * BLOCK))
            _adamw(weight[part], grad[part], m[part], v[part], *numbers, part.start, key)
