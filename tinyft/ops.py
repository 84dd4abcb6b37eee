"""The differentiable ops, but for the losses: the forward pass of each, with its backward nested inside.

`dx` is the gradient of x and has x's shape; `dout` is the gradient of the result. Letters in shapes: B rows
of a batch, T positions, N = all positions of all rows, C channels, V vocabulary.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numba import get_num_threads

from . import tensor
from .kernels.attention import attention_backward, attention_forward
from .kernels.embedding import embedding_backward
from .kernels.gelu import exact_gelu_backward, exact_gelu_forward, gelu_backward, gelu_forward
from .kernels.jit import HAS_BFLOAT16, NO_BFLOAT16
from .kernels.matmul import gemm
from .kernels.norm import layer_norm_backward, layer_norm_forward
from .kernels.softmax import softmax_backward, softmax_forward
from .kernels.sums import sum_rows
from .tensor import Donated, Tensor, op


def _unbroadcast(dx: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo NumPy's broadcasting: sum over the axes along which one value was used many times.

    Broadcasting is a linear map, x -> D x with one 1 in each row of D; its gradient is D^T dout, this sum.
    """
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
def pow(x, y):
    """x ** y where one of both is a plain number; a number as base has to be above 0."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        raise TypeError(f"pow: the exponent is an array {y.shape}, expected a number, as x is an array {x.shape} too")
    if isinstance(y, np.ndarray) and not x > 0:
        raise ValueError(f"pow: the base is {x}, expected a number above 0; others have no real power in general")
    out = x**y

    def backward(dout):
        if isinstance(y, np.ndarray):
            return None, dout * out * math.log(x)
        # x**0 is 1 everywhere; the rule would give 0 * inf at x = 0.
        return (np.zeros_like(x) if y == 0 else dout * y * x ** (y - 1)), None

    return out, backward


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
    """The same elements in another shape."""
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

_product_dtype = ContextVar("product_dtype", default="float32")  # each thread has its own


def set_product_dtype(dtype: str) -> None:
    """Round the factors of float32 products to "bfloat16", or no longer ("float32"), from now on in this thread.

    Sums, weights, moments, norms, softmax and loss stay in float32, and float64 products as they are. A backward
    pass does as its forward pass did. ValueError for another name, or where the CPU cannot do it.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"product dtype is {dtype!r}, expected float32 or bfloat16")
    if dtype == "bfloat16" and not HAS_BFLOAT16:
        raise ValueError(f"there are no bfloat16 products here: {NO_BFLOAT16}; use float32")
    _product_dtype.set(dtype)


@contextmanager
def product_dtype(dtype: str) -> Iterator[None]:
    """Within this block as `set_product_dtype` says, and afterwards as before."""
    before = _product_dtype.get()
    set_product_dtype(dtype)
    try:
        yield
    finally:
        _product_dtype.set(before)


def gemm_of_context(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None, **options) -> np.ndarray:
    """(M, K) @ (K, N) -> (M, N) in the dtype that was asked for; see `kernels/matmul.py`."""
    return gemm(a, b, out, bfloat16=_product_dtype.get() == "bfloat16" and a.dtype == np.float32, **options)


def as_rows(x: np.ndarray) -> np.ndarray:
    """(..., C) as contiguous (N, C)."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _matmul_arrays(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """NumPy's a @ b for two or more axes, on tinyft's kernel."""
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit, expected (..., M, K) @ (..., K, N)")
    if b.ndim == 2:
        return gemm_of_context(a if a.ndim == 2 else as_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    for i in np.ndindex(*batch):
        gemm_of_context(a[i], b[i], out=out[i])
    return out


@op
def matmul(a, b, *, wanted):
    """(..., M, K) @ (..., K, N) -> (..., M, N), leading axes broadcast as in NumPy."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}, expected two axes or more; "
                         "reshape a vector to (1, K) or (K, 1)")
    wants_a, wants_b = wanted

    def backward(dout):
        # out[i, j] = sum over k of a[i, k] b[k, j], so that da = dout b^T and db = a^T dout
        da = _matmul_arrays(dout, b.T if b.ndim == 2 else b.swapaxes(-1, -2)) if wants_a else None
        if not wants_b:
            db = None
        elif b.ndim == 2:  # one product over all leading axes of a, not a sum of many
            db = gemm_of_context(as_rows(a).T, as_rows(dout))
        else:
            db = _matmul_arrays(a.swapaxes(-1, -2), dout)
        return (_unbroadcast(da, a.shape) if wants_a else None), (_unbroadcast(db, b.shape) if wants_b else None)

    return _matmul_arrays(a, b), backward


@op
def linear(x, weight, bias, *, wanted):
    """x @ weight + bias: (..., C), (C, D), (D,) -> (..., D)."""
    if x.shape[-1] != weight.shape[0] or bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: x {x.shape}, weight {weight.shape}, bias {bias.shape} do not fit, "
                         "expected (..., C), (C, D), (D,)")
    wants_x, wants_weight, wants_bias = wanted
    x_shape, rows = x.shape, as_rows(x)
    out = gemm_of_context(rows, weight, bias=bias).reshape(*x.shape[:-1], weight.shape[1])
    if not wants_weight:
        rows = None  # or a frozen layer's input would live until the backward pass for nothing

    def backward(dout):
        dout = as_rows(dout)
        dx = Donated(gemm_of_context(dout, weight.T).reshape(x_shape)) if wants_x else None

        def dweight(into, accumulate):  # called only where it is wanted
            gemm_of_context(rows.T, dout, out=into, accumulate=accumulate)

        return dx, dweight, (sum_rows(dout) if wants_bias else None)

    return out, backward


# ---- the ops that GPT-2 is made of


@op
def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"softmax: x is {x.shape}, expected at least one element on the last axis")
    shape, rows = x.shape, softmax_forward(as_rows(x))
    return rows.reshape(shape), lambda dout: Donated(softmax_backward(as_rows(dout), rows).reshape(shape))


@op
def layer_norm(x, weight, bias, *, eps=1e-5):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: (..., C), (C,), (C,)."""
    for name, array in (("weight", weight), ("bias", bias)):
        if array.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} is {array.shape}, expected {x.shape[-1:]} to match x {x.shape}")
    rows = as_rows(x)
    out, mean, rstd = layer_norm_forward(rows, weight, bias, eps)

    def backward(dout):
        dx, dweight, dbias = layer_norm_backward(as_rows(dout), rows, weight, mean, rstd)
        return Donated(dx.reshape(x.shape)), dweight, dbias

    return out.reshape(x.shape), backward


@op
def gelu(x, *, exact=False):
    """GPT-2's GELU, the form with tanh, or with `exact` the one with erf; see `kernels/gelu.py`."""
    flat = np.ascontiguousarray(x).reshape(-1)
    forward, gradient = (exact_gelu_forward, exact_gelu_backward) if exact else (gelu_forward, gelu_backward)

    def backward(dout):
        return Donated(gradient(np.ascontiguousarray(dout).reshape(-1), flat).reshape(x.shape))

    return forward(flat).reshape(x.shape), backward


@op
def embedding(weight, ids):
    """Rows of a table: (V, C), integers of any shape -> (*ids.shape, C)."""
    ids = np.asarray(ids)
    if ids.size and not (0 <= ids.min() and ids.max() < len(weight)):
        raise IndexError(f"embedding: ids run from {ids.min()} to {ids.max()}, expected 0 to {len(weight) - 1}; "
                         "do tokenizer and model belong together?")

    def backward(dout):
        def dweight(into, accumulate):
            if not accumulate:
                into[...] = 0
            embedding_backward(as_rows(dout), ids.reshape(-1), into)

        return dweight, None

    return weight[ids], backward


@op
def causal_attention(qkv, *, n_head, segments, scale=None):
    """Multi-head attention in which a token sees itself and those before it in its row: (N, 3C) -> (N, C).

    qkv: queries, keys and values side by side. segments: which tokens belong to which row, see `segments.py`; of all
    ops this one alone has to know. scale: what scores are multiplied by before the softmax; 1 / sqrt(a head's size) if
    None.
    """
    width = qkv.shape[1]
    if width % (3 * n_head):
        raise ValueError(f"causal_attention: qkv is {qkv.shape}, expected 3 x n_head x size columns "
                         f"with n_head = {n_head}")
    if segments.starts[-1] != len(qkv):
        raise ValueError(f"causal_attention: segments have {segments.starts[-1]} tokens, expected {len(qkv)} "
                         f"to match qkv {qkv.shape}")
    scale = 1 / math.sqrt(width // (3 * n_head)) if scale is None else float(scale)
    qkv = np.ascontiguousarray(qkv)
    out, lse = attention_forward(qkv, n_head, segments, scale, get_num_threads())

    def backward(dout):
        dout = np.ascontiguousarray(dout)
        return Donated(attention_backward(dout, qkv, n_head, segments, scale, lse, get_num_threads()))

    return out, backward


@op
def dropout(x, *, p, rng):
    """Zero each element with probability p, scale the others by 1 / (1 - p) so that the mean stays."""
    kept = (rng.random(x.shape, dtype=np.float32) >= p) * x.dtype.type(0 if p == 1 else 1 / (1 - p))
    return x * kept, lambda dout: dout * kept


# The functions of NumPy that Python's operators call when an array stands on the left: array * tensor.
OPERATORS = {np.add: add, np.subtract: sub, np.multiply: mul, np.true_divide: div, np.matmul: matmul, np.power: pow}

tensor._ops = sys.modules[__name__]  # for the methods of Tensor
