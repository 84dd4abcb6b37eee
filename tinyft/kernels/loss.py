"""Cross-entropy of logits against the number of the right class."""

import numpy as np
from numba import prange

from .jit import jit
from .pieces import WORKERS, new_counter, pieces
from .simd import exp, maximum


@jit(reorder=True, inline=True)
def _softmax_minus_target(logits, target, scale):
    """Replace one row of logits by scale * (softmax(logits) - onehot(target)); returns two numbers.

    Their difference is -log softmax[target] = log(sum of exp(l)) - l[target], both less the largest logit. It is left
    to the caller, where sums are not reordered: the largest logit would be put back in, and the loss rounded to its
    digits. d log(sum of exp(l)) / dl is softmax(l); see the derivation in `losses.cross_entropy`.
    """
    top = logits[0]
    for i in range(logits.size):
        top = maximum(top, logits[i])
    correct = logits[target] - top
    total = logits.dtype.type(0)
    for i in range(logits.size):
        logits[i] = exp(logits[i] - top)
        total += logits[i]
    # Numbers below the smallest normal one, e**-87 in float32, would slow the products that follow down tenfold.
    scale_by_total, smallest = scale / total, np.finfo(logits.dtype).tiny
    for i in range(logits.size):
        gradient = logits[i] * scale_by_total
        logits[i] = 0 if abs(gradient) < smallest else gradient
    logits[target] -= scale
    return np.log(total), correct


@jit(parallel=True)
def cross_entropy_in_place(logits, targets, scales):
    """Losses (rows,) of logits (rows, V) against targets (rows,), none of them -100.

    `logits` becomes the gradient of sum(scales * losses), scales (rows,): it is never needed again, and a batch of
    GPT-2's logits is the largest array of all.
    """
    losses = np.empty(logits.shape[0], logits.dtype)
    counter = new_counter()
    for _ in prange(WORKERS):
        for row in pieces(counter, logits.shape[0]):
            log_total, correct = _softmax_minus_target(logits[row], targets[row], scales[row])
            losses[row] = log_total - correct
    return losses


@jit(inline=True)
def _loss_of_row(logits, target, scale, dlogits):
    if target < 0:
        dlogits[:] = 0
        return logits.dtype.type(0)
    dlogits[:] = logits
    log_total, correct = _softmax_minus_target(dlogits, target, scale)
    return log_total - correct


@jit(parallel=True)
def cross_entropy_and_gradient(logits, targets, scale):
    """As above, but leaves `logits` alone: losses (rows,) and the gradient (rows, V), both 0 where target < 0."""
    losses, dlogits = np.empty(logits.shape[0], logits.dtype), np.empty_like(logits)
    scale = logits.dtype.type(scale)
    counter = new_counter()
    for _ in prange(WORKERS):
        for row in pieces(counter, logits.shape[0]):
            losses[row] = _loss_of_row(logits[row], targets[row], scale, dlogits[row])
    return losses, dlogits


@jit(reorder=True)
def _loss_and_likeliest(logits, target):
    """One row: the two numbers of `_softmax_minus_target`, and the first index of the largest logit."""
    top = logits[0]
    for i in range(logits.size):
        top = maximum(top, logits[i])
    total = logits.dtype.type(0)
    for i in range(logits.size):
        total += exp(logits[i] - top)
    likeliest = -1
    for i in range(logits.size):
        if logits[i] == top:
            likeliest = i
            break
    return np.log(total), logits[target] - top, likeliest


@jit(parallel=True, nogil=True)
def losses_and_likeliest(logits, targets):
    """Losses (rows,) of logits (rows, V) against targets (rows,), and the index of each row's largest logit.

    The index is -1 in a row with a NaN.
    """
    losses, likeliest = np.empty(logits.shape[0], logits.dtype), np.empty(logits.shape[0], np.int64)
    counter = new_counter()
    for _ in prange(WORKERS):
        for row in pieces(counter, logits.shape[0]):
            log_total, correct, likeliest[row] = _loss_and_likeliest(logits[row], targets[row])
            losses[row] = log_total - correct
    return losses, likeliest
