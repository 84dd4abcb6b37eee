"""The ops that GPT-2 is made of, but for the losses: the forward pass of each, with its backward pass inside.

Those of `arithmetic.py` are found here, too; it says how the derivations above each backward pass are to be read.
Letters in shapes: B rows of a batch, T positions, N = all positions of all rows, C channels, V vocabulary.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numba import get_num_threads

from . import tensor
from .arithmetic import (  # noqa: F401  all ops are found in one place
    add,
    div,
    exp,
    index,
    log,
    mean,
    mul,
    neg,
    pow,
    relu,
    reshape,
    sub,
    sum,
    tanh,
    transpose,
    unbroadcast,
)
from .kernels.attention import attention_backward, attention_forward
from .kernels.embedding import embedding_backward
from .kernels.gelu import exact_gelu_backward, exact_gelu_forward, gelu_backward, gelu_forward
from .kernels.jit import HAS_BFLOAT16, NO_BFLOAT16
from .kernels.matmul import gemm
from .kernels.norm import layer_norm_backward, layer_norm_forward
from .kernels.softmax import softmax_backward, softmax_forward
from .kernels.sums import sum_rows
from .tensor import Donated, op

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

    # shapes   a (M, K), b (K, N), out (M, N); leading axes are so many products
    # forward  out[m, n] = sum_k a[m, k] * b[k, n]
    # chain    a[m, k] occurs in all of row m, each time with the factor b[k, n]; b[k, n] in all of column n
    # result   da[m, k] = sum_n dout[m, n] * b[k, n]
    #          db[k, n] = sum_m a[m, k] * dout[m, n]
    #          which are dout b^T and a^T dout
    def backward(dout):
        da = _matmul_arrays(dout, b.T if b.ndim == 2 else b.swapaxes(-1, -2)) if wants_a else None
        if not wants_b:
            db = None
        elif b.ndim == 2:  # one product over all leading axes of a, not a sum of many
            db = gemm_of_context(as_rows(a).T, as_rows(dout))
        else:
            db = _matmul_arrays(a.swapaxes(-1, -2), dout)
        return (unbroadcast(da, a.shape) if wants_a else None), (unbroadcast(db, b.shape) if wants_b else None)

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

    # shapes   x (N, C), weight (C, D), bias (D,), out (N, D)
    # forward  out[n, d] = bias[d] + sum_c x[n, c] * weight[c, d]
    # chain    as for matmul; bias[d] occurs in all rows
    # result   dx[n, c] = sum_d dout[n, d] * weight[c, d]
    #          dweight[c, d] = sum_n x[n, c] * dout[n, d]
    #          dbias[d] = sum_n dout[n, d]
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
    # shapes   x, out (N, V)
    # forward  out[n, v] = exp(x[n, v]) / sum_w exp(x[n, w])
    # chain    the rule for a fraction: d out[n, w] / dx[n, v] = out[n, w] * ((v == w) - out[n, v])
    # result   dx[n, v] = out[n, v] * (dout[n, v] - sum_w dout[n, w] * out[n, w])
    return rows.reshape(shape), lambda dout: Donated(softmax_backward(as_rows(dout), rows).reshape(shape))


@op
def layer_norm(x, weight, bias, *, eps=1e-5):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: (..., C), (C,), (C,)."""
    for name, array in (("weight", weight), ("bias", bias)):
        if array.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} is {array.shape}, expected {x.shape[-1:]} to match x {x.shape}")
    rows = as_rows(x)
    out, means, rstd = layer_norm_forward(rows, weight, bias, eps)

    # shapes   x, out (N, C), weight, bias (C,); examples/tour/derivations.md has the steps
    # forward  mean[n] = sum_c x[n, c] / C; rstd[n] = 1 / sqrt(eps + sum_c (x[n, c] - mean[n])**2 / C)
    #          y[n, c] = (x[n, c] - mean[n]) * rstd[n]; out[n, c] = y[n, c] * weight[c] + bias[c]
    # chain    x[n, c] acts by itself, by mean[n] and by rstd[n]; the last two give the two means in dx
    # result   g[n, c] = dout[n, c] * weight[c]
    #          dx[n, c] = rstd[n] * (g[n, c] - (sum_e g[n, e] / C) - y[n, c] * sum_e g[n, e] * y[n, e] / C)
    #          dweight[c] = sum_n dout[n, c] * y[n, c]; dbias[c] = sum_n dout[n, c]
    def backward(dout):
        dx, dweight, dbias = layer_norm_backward(as_rows(dout), rows, weight, means, rstd)
        return Donated(dx.reshape(x.shape)), dweight, dbias

    return out.reshape(x.shape), backward


@op
def gelu(x, *, exact=False):
    """GPT-2's GELU, the form with tanh, or with `exact` the one with erf; see `kernels/gelu.py`."""
    flat = np.ascontiguousarray(x).reshape(-1)
    forward, gradient = (exact_gelu_forward, exact_gelu_backward) if exact else (gelu_forward, gelu_backward)

    # shapes   x, out: any
    # forward  u = sqrt(2 / pi) * (x + 0.044715 * x**3)
    #          out = 0.5 * x * (1 + tanh(u))
    # chain    the rule for a product, with d tanh(u) / du = 1 - tanh(u)**2 and du / dx from the first line
    # result   dx = dout * 0.5 * (1 + tanh(u) + x * (1 - tanh(u)**2) * sqrt(2 / pi) * (1 + 0.134145 * x**2))
    # exact: out = x * normal(x), dx = dout * (normal(x) + x * density(x)), of the normal distribution
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

    # shapes   weight (V, C), ids (N,), out (N, C)
    # forward  out[n, c] = weight[ids[n], c]
    # chain    row v occurs once for each n with ids[n] = v: an index, backwards, is a sum
    # result   dweight[v, c] = sum_n (ids[n] == v) * dout[n, c]
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

    # shapes   q, k, v, out (T, D), of one head and one row; examples/tour/derivations.md has the steps
    # forward  e[i, j] = (j <= i) * exp(scale * sum_d q[i, d] * k[j, d])
    #          w[i, j] = e[i, j] / sum_t e[i, t]; out[i, d] = sum_j w[i, j] * v[j, d]
    # chain    two products, and between them a softmax, whose sum over j of w * dw is that over d of dout * out
    # result   s[i, j] = w[i, j] * sum_d dout[i, d] * (v[j, d] - out[i, d])
    #          dq[i, d] = scale * sum_j s[i, j] * k[j, d]; dk[j, d] = scale * sum_i s[i, j] * q[i, d]
    #          dv[j, d] = sum_i w[i, j] * dout[i, d]
    def backward(dout):
        dout = np.ascontiguousarray(dout)
        return Donated(attention_backward(dout, qkv, n_head, segments, scale, lse, get_num_threads()))

    return out, backward


@op
def dropout(x, *, p, rng):
    """Zero each element with probability p, scale the others by 1 / (1 - p) so that the mean stays."""
    kept = (rng.random(x.shape, dtype=np.float32) >= p) * x.dtype.type(0 if p == 1 else 1 / (1 - p))
    # shapes   x, kept, out: any; kept is drawn: 0 or 1 / (1 - p)
    # forward  out = x * kept
    # chain    kept is a number once it is drawn
    # result   dx = dout * kept
    return x * kept, lambda dout: dout * kept


# The functions of NumPy that Python's operators call when an array stands on the left: array * tensor.
OPERATORS = {np.add: add, np.subtract: sub, np.multiply: mul, np.true_divide: div, np.matmul: matmul, np.power: pow}

tensor._ops = sys.modules[__name__]  # for the methods of Tensor
