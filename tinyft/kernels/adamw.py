"""The optimizer's arithmetic, in one pass over memory."""

import numpy as np
from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces

BLOCK = 16384  # elements a thread takes at a time


@jit(reorder=True)
def _adamw(weight, grad, m, v, grad_scale, one_minus_beta1, one_minus_beta2, step_size, eps, decay_factor,
           root_correction2):
    """m += (g - m)(1 - beta1) is the paper's m = beta1 m + (1 - beta1) g with one product less; v likewise.

    step_size and root_correction2 hold the corrections of both averages for their start at 0.
    """
    for i in range(weight.size):
        g = grad[i] * grad_scale
        m[i] += (g - m[i]) * one_minus_beta1
        v[i] += (g * g - v[i]) * one_minus_beta2
        weight[i] = weight[i] * decay_factor - step_size * m[i] / (np.sqrt(v[i]) * root_correction2 + eps)


@jit(parallel=True)
def adamw_step(weight, grad, m, v, grad_scale, learning_rate, beta1, beta2, eps, weight_decay, step):
    """One AdamW step in place (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).

    weight, grad, m, v: (n,). The gradient is multiplied by `grad_scale` on the way, so that clipping needs
    no pass of its own. step counts from 1.
    """
    real = weight.dtype.type
    correction1 = 1 - beta1**step
    root_correction2 = 1 / np.sqrt(1 - beta2**step)
    decay_factor, step_size = 1 - learning_rate * weight_decay, learning_rate / correction1
    numbers = (real(grad_scale), real(1 - beta1), real(1 - beta2), real(step_size), real(eps), real(decay_factor),
               real(root_correction2))
    if weight.size <= BLOCK:  # a bias isn't worth waking threads for
        _adamw(weight, grad, m, v, *numbers)
        return
    counter = new_counter()
    for _ in prange(WORKERS):
        for block in pieces(counter, (weight.size + BLOCK - 1) // BLOCK):
            part = slice(block * BLOCK, min(weight.size, (block + 1) * BLOCK))
            _adamw(weight[part], grad[part], m[part], v[part], *numbers)
