"""The optimizer's arithmetic, in one pass over memory."""

import numpy as np
from numba import prange

from .jit import jit

BLOCK = 16384  # numbers a thread takes at a time


@jit(reorder=True)
def _adamw(weight, grad, m, v, grad_scale, beta1_left, beta2_left, step_size, eps, shrink, root_correction2):
    for i in range(weight.size):
        g = grad[i] * grad_scale
        m[i] += (g - m[i]) * beta1_left
        v[i] += (g * g - v[i]) * beta2_left
        weight[i] = weight[i] * shrink - step_size * m[i] / (np.sqrt(v[i]) * root_correction2 + eps)


@jit(parallel=True)
def adamw_step(weight, grad, m, v, grad_scale, learning_rate, beta1, beta2, eps, weight_decay, step):
    """One AdamW step in place (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).

    weight, grad, m, v: (n,). The gradient is multiplied by `grad_scale` on the way, so that clipping needs
    no pass of its own. step counts from 1.
    """
    real = weight.dtype.type
    correction1 = 1 - beta1**step
    root_correction2 = 1 / np.sqrt(1 - beta2**step)
    shrink, step_size = 1 - learning_rate * weight_decay, learning_rate / correction1
    for block in prange((weight.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(weight.size, (block + 1) * BLOCK))
        _adamw(weight[part], grad[part], m[part], v[part], real(grad_scale), real(1 - beta1),
               real(1 - beta2), real(step_size), real(eps), real(shrink), real(root_correction2))
