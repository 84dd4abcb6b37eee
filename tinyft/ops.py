"""Every differentiable op: the forward pass, with its backward nested inside.

`dx` is the gradient of x and has x's shape; `dout` is the gradient of the result. Letters in shapes: B rows
of a batch, T positions, N = all positions of all rows, C channels, V vocabulary.
"""

import math

import numpy as np
from numba import get_num_threads

from .kernels.attention import attention_backward, attention_forward
from .kernels.embedding import embedding_backward
from .kernels.gelu import exact_gelu_backward, exact_gelu_forward, gelu_backward, gelu_forward
from .kernels.jit import HAS_BFLOAT16
from .kernels.loss import cross_entropy_and_gradient, cross_entropy_in_place
from .kernels.matmul import matmul as multiply_arrays
from .kernels.norm import layer_norm_backward, layer_norm_forward
from .kernels.softmax import softmax_backward, softmax_forward
from .kernels.sums import sum_rows
from .tensor import Given, Tensor, is_recording, op

IGNORE = -100  # a target that must not be learned
LOGITS_BYTES = 96 * 1024 * 1024  # room for the logits that `linear_cross_entropy` holds at a time


def _unbroadcast(dx: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo NumPy's broadcasting: sum over the axes along which one value was used many times."""
    if dx.shape == shape:
        return dx
    added = dx.ndim - len(shape)
    stretched = [added + i for i, n in enumerate(shape) if n == 1 and dx.shape[added + i] != 1]
    return dx.sum(axis=(*range(added), *stretched), keepdims=True).reshape(shape)


# ---- arithmetic


@op
def add(x, y):
    """x + y, broadcast as in NumPy."""
    # The shapes alone are named in backward, so that x and y themselves can be freed.
    x_shape, y_shape = np.shape(x), np.shape(y)

    def backward(dout):
        return _unbroadcast(dout, x_shape), _unbroadcast(dout, y_shape)

    return x + y, backward


@op
def sub(x, y):
    """x - y, broadcast as in NumPy."""
    x_shape, y_shape = np.shape(x), np.shape(y)

    def backward(dout):
        return _unbroadcast(dout, x_shape), _unbroadcast(-dout, y_shape)

    return x - y, backward


@op
def mul(x, y):
    """x * y, broadcast as in NumPy."""

    def backward(dout):
        return _unbroadcast(dout * y, np.shape(x)), _unbroadcast(dout * x, np.shape(y))

    return x * y, backward


@op
def div(x, y):
    """x / y, broadcast as in NumPy."""

    def backward(dout):
        dx = dout / y
        return _unbroadcast(dx, np.shape(x)), _unbroadcast(-dx * x / y, np.shape(y))

    return x / y, backward


@op
def neg(x):
    """-x"""
    return -x, lambda dout: -dout


@op
def pow(x, exponent):
    """x ** exponent for a plain number as exponent."""
    if isinstance(exponent, np.ndarray):
        raise TypeError(f"pow: the exponent is an array {exponent.shape}, expected a number")

    def backward(dout):
        # x**0 is 1 everywhere; the rule would give 0 * inf at x = 0.
        return (np.zeros_like(x) if exponent == 0 else dout * exponent * x ** (exponent - 1)), None

    return x**exponent, backward


@op
def exp(x):
    """e ** x"""
    out = np.exp(x)
    return out, lambda dout: dout * out


@op
def log(x):
    """Natural logarithm."""
    return np.log(x), lambda dout: dout / x


@op
def tanh(x):
    """Hyperbolic tangent; its derivative is 1 - tanh(x)**2."""
    out = np.tanh(x)
    return out, lambda dout: dout * (1 - out * out)


@op
def relu(x):
    """max(x, 0)"""
    return np.maximum(x, 0), lambda dout: dout * (x > 0)


# ---- shape


@op
def reshape(x, *, shape):
    """The same numbers in another shape."""
    before = x.shape
    return x.reshape(shape), lambda dout: dout.reshape(before)


@op
def transpose(x, *, axes=None):
    """Permute the axes; without `axes`, reverse them."""
    inverse = None if axes is None else np.argsort([axis % x.ndim for axis in axes])
    return x.transpose(axes), lambda dout: dout.transpose(inverse)


@op
def index(x, *, key):
    """x[key] with anything that NumPy takes as an index; an element picked twice gets both gradients."""
    shape = x.shape

    def backward(dout):
        dx = np.zeros(shape, dout.dtype)
        np.add.at(dx, key, dout)
        return dx

    return x[key], backward


@op
def sum(x, *, axis=None, keepdims=False):
    """Sum over one axis, several, or all."""
    shape = x.shape

    def backward(dout):
        if axis is not None and not keepdims:
            dout = np.expand_dims(dout, axis)
        return np.broadcast_to(dout, shape).copy()

    return x.sum(axis=axis, keepdims=keepdims), backward


def mean(x: Tensor, *, axis=None, keepdims=False) -> Tensor:
    """Mean over one axis, several, or all."""
    total = sum(x, axis=axis, keepdims=keepdims)
    return total * (total.size / x.size)


# ---- products

_bfloat16 = False


def use_bfloat16(on: bool) -> None:
    """Round the factors of all float32 products to bfloat16 from now on, or no longer.

    Sums, weights, moments, norms, softmax and loss stay in float32. ValueError where the CPU cannot do it.
    """
    global _bfloat16
    if on and not HAS_BFLOAT16:
        raise ValueError("bfloat16 products need a CPU with AVX-512 BF16, which this one is not; use float32")
    _bfloat16 = on


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, **options) -> np.ndarray:
    """The kernel's `matmul` of arrays, (M, K) @ (K, N) -> (M, N), in the precision that was asked for."""
    return multiply_arrays(a, b, out, bfloat16=_bfloat16 and a.dtype == np.float32, **options)


def _as_rows(x: np.ndarray) -> np.ndarray:
    """(..., C) as contiguous (N, C)."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """NumPy's a @ b for two or more axes, on tinyft's kernel."""
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit, expected (..., M, K) @ (..., K, N)")
    if b.ndim == 2:
        return multiply(a if a.ndim == 2 else _as_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    for i in np.ndindex(*batch):
        multiply(a[i], b[i], out=out[i])
    return out


@op
def matmul(a, b):
    """(..., M, K) @ (..., K, N) -> (..., M, N), leading axes broadcast as in NumPy."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}, expected two axes or more; "
                         "reshape a vector to (1, K) or (K, 1)")

    def backward(dout):
        # out = a @ b
        if b.ndim == 2:
            return _product(dout, b.T), multiply(_as_rows(a).T, _as_rows(dout))
        da, db = _product(dout, b.swapaxes(-1, -2)), _product(a.swapaxes(-1, -2), dout)
        return _unbroadcast(da, a.shape), _unbroadcast(db, b.shape)

    return _product(a, b), backward


@op
def linear(x, weight, bias):
    """x @ weight + bias: (..., C), (C, D), (D,) -> (..., D)."""
    if x.shape[-1] != weight.shape[0] or bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: x {x.shape}, weight {weight.shape}, bias {bias.shape} do not fit, "
                         "expected (..., C), (C, D), (D,)")
    rows = _as_rows(x)
    out = multiply(rows, weight, bias=bias).reshape(*x.shape[:-1], weight.shape[1])

    def backward(dout):
        dout = _as_rows(dout)

        def dweight(into, accumulate):
            multiply(rows.T, dout, out=into, accumulate=accumulate)

        return Given(multiply(dout, weight.T).reshape(x.shape)), dweight, sum_rows(dout)

    return out, backward


# ---- the ops that GPT-2 is made of


@op
def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"softmax: x is {x.shape}, expected at least one number on the last axis")
    shape, rows = x.shape, softmax_forward(_as_rows(x))
    return rows.reshape(shape), lambda dout: Given(softmax_backward(_as_rows(dout), rows).reshape(shape))


@op
def layer_norm(x, weight, bias, *, eps=1e-5):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: (..., C), (C,), (C,)."""
    for name, array in (("weight", weight), ("bias", bias)):
        if array.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} is {array.shape}, expected {x.shape[-1:]} to match x {x.shape}")
    rows = _as_rows(x)
    out, mean, rstd = layer_norm_forward(rows, weight, bias, eps)

    def backward(dout):
        dx, dweight, dbias = layer_norm_backward(_as_rows(dout), rows, weight, mean, rstd)
        return Given(dx.reshape(x.shape)), dweight, dbias

    return out.reshape(x.shape), backward


@op
def gelu(x, *, exact=False):
    """GPT-2's GELU, the form with tanh, or with `exact` the one with erf; see `kernels/gelu.py`."""
    flat = np.ascontiguousarray(x).reshape(-1)
    forward, gradient = (exact_gelu_forward, exact_gelu_backward) if exact else (gelu_forward, gelu_backward)

    def backward(dout):
        return Given(gradient(np.ascontiguousarray(dout).reshape(-1), flat).reshape(x.shape))

    return forward(flat).reshape(x.shape), backward


@op
def embedding(weight, ids):
    """Rows of a table: (V, C), integers of any shape -> (*ids.shape, C)."""
    if ids.size and not (0 <= ids.min() and ids.max() < len(weight)):
        raise IndexError(f"embedding: ids run from {ids.min()} to {ids.max()}, expected 0 to {len(weight) - 1}; "
                         "do tokenizer and model belong together?")

    def backward(dout):
        def dweight(into, accumulate):
            if not accumulate:
                into[...] = 0
            embedding_backward(_as_rows(dout), ids.reshape(-1), into)

        return dweight, None

    return weight[ids], backward


@op
def causal_attention(qkv, *, n_head, row_starts, scale=None):
    """Multi-head attention in which a token sees itself and those before it: (N, 3C) -> (N, C).

    qkv: queries, keys and values side by side. row_starts: (B+1,) integers; row b of the batch is the tokens
    row_starts[b] to row_starts[b+1] - 1. Attention is all that rows have to be told apart for. scale: what scores
    are multiplied by before the softmax; 1 / sqrt(a head's size) if None.
    """
    width = qkv.shape[1]
    if width % (3 * n_head):
        raise ValueError(f"causal_attention: qkv is {qkv.shape}, expected 3 x n_head x size columns "
                         f"with n_head = {n_head}")
    row_starts = np.asarray(row_starts, np.int64)
    if row_starts[0] != 0 or row_starts[-1] != len(qkv) or np.any(np.diff(row_starts) < 0):
        raise ValueError(f"causal_attention: row_starts is {row_starts}, expected to rise from 0 to {len(qkv)}")
    scale = 1 / math.sqrt(width // (3 * n_head)) if scale is None else float(scale)
    qkv = np.ascontiguousarray(qkv)
    out, lse = attention_forward(qkv, n_head, row_starts, scale, get_num_threads())

    def backward(dout):
        dout = np.ascontiguousarray(dout)
        return Given(attention_backward(dout, qkv, n_head, row_starts, scale, lse, get_num_threads()))

    return out, backward


@op
def dropout(x, *, p, rng):
    """Zero each number with probability p, scale the others by 1 / (1 - p) so that the mean stays."""
    kept = (rng.random(x.shape, dtype=np.float32) >= p) * x.dtype.type(0 if p == 1 else 1 / (1 - p))
    return x * kept, lambda dout: dout * kept


# ---- losses


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
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"cross_entropy: targets are {targets.shape}, expected {logits.shape[:-1]} "
                         f"to match logits {logits.shape}")
    live = _live_rows("cross_entropy", targets.reshape(-1), logits.shape[-1]).size
    flat_targets = targets.reshape(-1).astype(np.int64)
    losses, dlogits = cross_entropy_and_gradient(_as_rows(logits), flat_targets, 1 / max(1, live))

    def backward(dout):
        if dout != 1:  # in place, since a graph is walked back only once
            np.multiply(dlogits, dout, out=dlogits)
        return Given(dlogits.reshape(logits.shape)), None

    return losses.sum() / logits.dtype.type(max(1, live)), backward


@op
def linear_cross_entropy(hidden, weight, targets, *, total=None):
    """Cross-entropy of logits = hidden @ weight.T, without ever holding all of them: the end of GPT-2.

    hidden (N, C), weight (V, C), targets (N,) -> (): the sum over all targets but -100, divided by `total`
    (their number by default; another one where a batch is split into several parts). Rows whose target is
    -100 skip the product with the vocabulary. The others go through in chunks of LOGITS_BYTES, and since
    the gradient of a chunk's logits replaces them, the gradients of hidden and weight are formed on the way
    there, while the chunk is in the cache, and only scaled on the way back.
    """
    if targets.ndim != 1 or hidden.shape != (len(targets), weight.shape[1]):
        raise ValueError(f"linear_cross_entropy: hidden is {hidden.shape}, expected {(targets.size, weight.shape[1])} "
                         f"to match targets {targets.shape} and weight {weight.shape}")
    live = _live_rows("linear_cross_entropy", targets, len(weight))
    total = max(1, live.size if total is None else total)
    rows, targets = hidden[live], targets[live]
    recording = is_recording()
    drows = np.empty_like(rows) if recording else None
    dweight = np.empty_like(weight) if recording and live.size else None
    loss = 0.0
    most = max(1, LOGITS_BYTES // (len(weight) * weight.itemsize))
    chunks = -(-live.size // most)
    for chunk in range(chunks):
        part = slice(live.size * chunk // chunks, live.size * (chunk + 1) // chunks)
        logits = multiply(rows[part], weight.T)
        loss += cross_entropy_in_place(logits, targets[part], 1 / total).sum(dtype=np.float64)
        if recording:
            multiply(logits, weight, out=drows[part])
            multiply(logits.T, rows[part], out=dweight, accumulate=chunk > 0)

    def backward(dout):
        dhidden = np.zeros_like(hidden)
        if not live.size:
            return dhidden, np.zeros_like(weight), None
        dhidden[live] = drows * dout
        if dout != 1:
            np.multiply(dweight, dout, out=dweight)
        return dhidden, Given(dweight), None

    return weight.dtype.type(loss / total), backward


# ---- what Python writes as operators and methods


def _method(function):
    return lambda self, *args, **options: function(self, *args, **options)


for name, function in dict(add=add, sub=sub, mul=mul, truediv=div, matmul=matmul).items():
    setattr(Tensor, f"__{name}__", _method(function))
    setattr(Tensor, f"__r{name}__", lambda self, other, function=function: function(other, self))
Tensor.__neg__, Tensor.__pow__ = _method(neg), _method(pow)
Tensor.__getitem__ = lambda self, key: index(self, key=key.data if isinstance(key, Tensor) else key)


def _several(arguments: tuple):
    """f(1, 2) and f((1, 2)) mean the same."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], list | tuple) else arguments


Tensor.reshape = lambda self, *shape: reshape(self, shape=_several(shape))
Tensor.transpose = lambda self, *axes: transpose(self, axes=_several(axes) or None)

Tensor.T = property(transpose)
for function in (sum, mean, exp, log, tanh, relu):
    setattr(Tensor, function.__name__, _method(function))
