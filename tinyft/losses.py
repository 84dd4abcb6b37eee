"""The losses: cross-entropy, alone and together with the output layer, and its value for each row.

Letters in shapes: N rows, C channels, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np

from .kernels.loss import cross_entropy_and_gradient, cross_entropy_in_place, losses_and_likeliest
from .ops import as_rows, gemm_of_context
from .tensor import Donated, op

IGNORE = -100  # a target that must not be learned
LOGITS_BYTES = 96 * 1024 * 1024  # room for the logits that `linear_cross_entropy` holds at a time


def _live_rows(name: str, targets: np.ndarray, vocabulary: int) -> np.ndarray:
    """Indices of the targets that count."""
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets are {targets.dtype}, expected integers")
    live = np.flatnonzero(targets != IGNORE)
    chosen = targets[live]
    if live.size and not (0 <= chosen.min() and chosen.max() < vocabulary):
        raise IndexError(f"{name}: targets run from {chosen.min()} to {chosen.max()}, expected 0 to "
                         f"{vocabulary - 1}, or {IGNORE} to ignore one")
    return live


@op
def cross_entropy(logits, targets):
    """Mean of -log softmax(logits)[target] over the targets that are not -100: (..., V), (...) -> ().

    Without any such target the loss is 0.
    """
    targets = np.asarray(targets)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"cross_entropy: targets are {targets.shape}, expected {logits.shape[:-1]} "
                         f"to match logits {logits.shape}")
    live = _live_rows("cross_entropy", targets.reshape(-1), logits.shape[-1]).size
    flat_targets = targets.reshape(-1).astype(np.int64)
    losses, dlogits = cross_entropy_and_gradient(as_rows(logits), flat_targets, 1 / max(1, live))

    # shapes   logits (N, V), targets, live (N,), out (); live is 1 where the target is not -100, else 0
    # forward  p[n, v] = exp(logits[n, v]) / sum_w exp(logits[n, w])
    #          out = -sum_n live[n] * log(p[n, targets[n]]) / sum_m live[m]
    # chain    -log p[t] = log(sum_w exp(logits[w])) - logits[t]: softmax from the first term, a 1 from the second
    # result   dlogits[n, v] = dout * live[n] * (p[n, v] - (v == targets[n])) / sum_m live[m]
    def backward(dout):
        scaled = dlogits if dout == 1 else dlogits * dout
        return Donated(scaled.reshape(logits.shape)), None

    return losses.sum() / logits.dtype.type(max(1, live)), backward


def _check_head(name: str, hidden: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> None:
    if targets.ndim != 1 or hidden.shape != (len(targets), weight.shape[1]):
        raise ValueError(f"{name}: hidden is {hidden.shape}, expected {(targets.size, weight.shape[1])} "
                         f"to match targets {targets.shape} and weight {weight.shape}")


def _chunks_of_logits(rows: int, weight: np.ndarray) -> Iterator[slice]:
    """Split `rows` evenly into parts whose logits take LOGITS_BYTES at most (one row at least)."""
    most = max(1, LOGITS_BYTES // (len(weight) * weight.itemsize))
    chunks = -(-rows // most)
    for chunk in range(chunks):
        yield slice(rows * chunk // chunks, rows * (chunk + 1) // chunks)


@op
def linear_cross_entropy(hidden, weight, targets, *, counts=None, total=None, wanted):
    """Cross-entropy of logits = hidden @ weight.T, without ever holding all of them: the end of GPT-2.

    hidden (N, C), weight (V, C), targets (N,) -> (): the sum over all targets but -100, each as often as `counts`
    (N,) says, once by default, divided by `total` (the sum of these counts by default; another one where a batch is
    split into several parts). Rows whose target is -100 skip the product with the vocabulary. The others go through
    in chunks of LOGITS_BYTES, and since the gradient of a chunk's logits replaces them, the gradients of hidden and
    weight that are wanted are formed in the forward pass, while the chunk is in the cache, and only scaled in the
    backward pass.
    """
    _check_head("linear_cross_entropy", hidden, weight, targets)
    live = _live_rows("linear_cross_entropy", targets, len(weight))
    counts = np.ones(live.size) if counts is None else counts[live]
    total = max(1, counts.sum() if total is None else total)
    rows, targets, scales = hidden[live], targets[live], (counts / total).astype(hidden.dtype)
    wants_hidden, wants_weight, _ = wanted
    drows = np.empty_like(rows) if wants_hidden else None
    dweight = (np.empty_like if live.size else np.zeros_like)(weight) if wants_weight else None
    loss = 0.0
    for part in _chunks_of_logits(live.size, weight):
        logits = gemm_of_context(rows[part], weight.T)
        loss += float(counts[part] @ cross_entropy_in_place(logits, targets[part], scales[part]))
        if wants_hidden:
            gemm_of_context(logits, weight, out=drows[part])
        if wants_weight:
            gemm_of_context(logits.T, rows[part], out=dweight, accumulate=part.start > 0)
        del logits  # or the next part's would stand beside it

    # shapes   hidden (N, C), weight (V, C), targets, counts (N,), out (); rows of -100 are left out
    # forward  logits[n, v] = sum_c hidden[n, c] * weight[v, c]
    #          out = sum_n counts[n] / total * (log(sum_w exp(logits[n, w])) - logits[n, targets[n]])
    # chain    as for cross_entropy, and then as for matmul
    # result   g[n, v] = dout * counts[n] / total * (exp(logits[n, v]) / (sum_w exp(logits[n, w])) - (v == targets[n]))
    #          dhidden[n, c] = sum_v g[n, v] * weight[v, c]; dweight[v, c] = sum_n g[n, v] * hidden[n, c]
    def backward(dout):
        dhidden = None
        if wants_hidden:
            dhidden = np.zeros_like(hidden)
            dhidden[live] = drows * dout
        scaled = dweight if not wants_weight or dout == 1 else dweight * dout
        return dhidden, (Donated(scaled) if wants_weight else None), None

    return weight.dtype.type(loss / total), backward


def row_losses(hidden: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and likeliest class of each row of logits = hidden @ weight.T, without gradients: for scoring.

    Arrays hidden (N, C), weight (V, C), targets (N,) -> losses (N,) = -log softmax(logits)[target], and the index of
    the largest logit (N,), the first of several. Where the target is -100 the loss is 0 and the index -1, and no
    logits are formed; the index is -1 as well where logits are NaN. Like `linear_cross_entropy` it never holds more
    than LOGITS_BYTES of logits.
    """
    _check_head("row_losses", hidden, weight, targets)
    live = _live_rows("row_losses", targets, len(weight))
    losses, likeliest = np.zeros(len(targets), weight.dtype), np.full(len(targets), -1)
    rows, chosen = hidden[live], targets[live].astype(np.int64)
    for part in _chunks_of_logits(live.size, weight):
        logits = gemm_of_context(rows[part], weight.T)
        losses[live[part]], likeliest[live[part]] = losses_and_likeliest(logits, chosen[part])
        del logits  # or the next part's would stand beside it
    return losses, likeliest
